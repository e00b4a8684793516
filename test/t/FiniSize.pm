# FiniSize: what tests and benchmarks at full size need: applications that stand on both sides without having been
# sent one by one, and the costs of a process.
#
#	FiniSize::stand(sub { $fini->sql($_[0]) }, $fini->sandbox, 'applications', $query);
#	my $before = FiniSize::cpu($pid);
#	... FiniSize::private_kb($pid) ...
#
# Knows of the cluster only that the given function runs SQL as a superuser, on this machine, as this account.

package FiniSize;

use strict;
use warnings;

use File::Path qw(make_path remove_tree);
use POSIX ();

my $ticks = POSIX::sysconf(POSIX::_SC_CLK_TCK());

# records that the gateway's administration takes at once: its answer is parsed whole
use constant AT_ONCE => 20000;

# The rows of a query with standard columns, but those of the outcome, and an n from 1 up, into an attached table
# of standard columns, its outbox and the gateway's store, as if each had been added and accepted. The n-th has the
# record ID "%016dA". Every statement is one over the whole set, so a million rows take a minute or so.
#
# order: in which the gateway will list them (record_id)
sub stand
{
	my ($sql, $sandbox, $table, $query, %opt) = @_;
	my $columns = 'own_ref, ipo_id, app_quantity, firm_id, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi, id_list';
	my $dir = "$sandbox->{dir}/standing";

	$sql->(qq{
		begin;
		set local session_replication_role = replica;
		create temporary table standing on commit drop as $query;
		insert into $table ($columns, record_id, fini_state)
			select $columns, lpad(n::text, 16, '0') || 'A', 'accepted' from standing order by n;
		insert into fini.submission (relation, own_ref, ipo_id, operation, state, record_id, attempts, sent_at, settled_at)
			select '$table'::regclass, own_ref, ipo_id, 'add', 'accepted', lpad(n::text, 16, '0') || 'A', 1, now(), now() from standing order by n;
		insert into fini.tally (ipo_id, state, n) select ipo_id, 'accepted', count(*) from standing group by 1;
		commit;
		vacuum (analyze) $table;
		vacuum (analyze) fini.submission});

	# what the gateway would keep of them, in files that it takes
	make_path($dir);
	my $order = $opt{order} // 'record_id';
	$sql->(qq{
		copy (select json_build_object('recordID', record_id, 'ipoID', ipo_id, 'ownRef', own_ref, 'appQuantity', app_quantity::text,
				'firmID', coalesce(firm_id, current_setting('fini.firm_id')), 'idList', coalesce(id_list, jsonb_build_array(jsonb_build_object(
				'idType', id_type, 'idCountryJurisdiction', id_country_jurisdiction, 'idNum', id_num, 'fullNameEng', full_name_eng, 'fullNameChi', full_name_chi))))
			from $table order by $order)
		to program 'env -u LD_PRELOAD split -l @{[ AT_ONCE ]} -a 4 - "$dir/records"' with (format csv, delimiter e'\\x02', quote e'\\x01')});
	my $loaded = 0;
	for my $file (sort glob "$dir/records*")
	{
		open(my $fh, '<:raw', $file) or die "$file: $!\n";
		my $text = do { local $/; <$fh> };
		$loaded += $sandbox->admin('POST', '/records', $text)->{loaded};
	}
	remove_tree($dir);
	return $loaded;
}

# user and system time of a process in seconds
sub cpu { my @f = split ' ', (_slurp("/proc/$_[0]/stat") =~ s/^.*\) //sr); return ($f[11] + $f[12]) / $ticks }

# What a process has for itself. Pages of shared memory that nobody else has touched yet count as private in
# /proc/PID/smaps_rollup, and after a restart these are all shared buffers that it reads; so mapping by mapping.
sub private_kb
{
	my ($pid) = @_;
	my ($sum, $shared) = (0, 0);
	for (split /\n/, _slurp("/proc/$pid/smaps"))
	{
		if (/^[0-9a-f]+-[0-9a-f]+ ...([ps]) /) { $shared = $1 eq 's' }
		elsif (/^Private_\w+:\s+(\d+)/) { $sum += $1 if !$shared }
	}
	return $sum;
}

sub _slurp
{
	my ($file) = @_;
	open(my $fh, '<', $file) or die "$file: $!\n";
	local $/;
	return <$fh> // '';
}

1;
