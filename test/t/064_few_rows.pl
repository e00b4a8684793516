# What is asked of a large outbox about a few rows reads a few rows, whatever the planner believes: nothing, right after
# a load; that the outbox is empty; that all rows have one own_ref.

use strict;
use warnings;

use FiniSize;
use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $rows = 20000;
my $few = 10;
my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
	conf => "autovacuum = off\nlog_statement = none\n");
my $columns = q{own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng};

sub read_rows { return $fini->sql(q{select sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) from pg_stat_user_tables where schemaname = 'fini' and relname ~ 'submission'}) }
sub refs { my ($from) = @_; return "array(select 'R' || lpad(i::text, 8, '0') from generate_series($from, @{[ $from + $few - 1 ]}) i)" }

# what has been read of the outbox by these statements and what the worker does of them
sub reads
{
	my ($what, @sql) = @_;
	my $before = read_rows();
	$fini->sql($_) for @sql;
	$fini->sql(q{select fini.wait(timeout => '2 min')}) eq 't' or die "$what is not settled\n";
	# the worker tells its counts when it has a moment, and keeps none when it ends
	$fini->sql(q{select pg_terminate_backend(worker_pid, 60000) from fini.status});
	$fini->wait_for(q{select worker_pid is not null from fini.status}, 'a worker');
	my $read = read_rows() - $before;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	cmp_ok($read, '<', $rows / 4, "$what ($read rows read)");
	return;
}

my $from = 1;
my %belief = (
	'never analysed' => '',
	'analysed when it was empty' => 'analyze',
	'one own_ref' => q{insert into fini.submission (relation, own_ref, ipo_id, operation, state) select 'pg_class', 'one', 'none', 'add', 'failed' from generate_series(1, 2000);
		analyze; delete from fini.submission where own_ref = 'one'});
for my $what (sort keys %belief)
{
	my $table = 'applications_' . $from++;
	$fini->sandbox->reset;
	$fini->sandbox->ipos(@FiniSandbox::IPOS);
	$fini->sql("drop extension if exists fini cascade; create extension fini; select fini.arm(); select fini.create_subscription_table('$table'); select fini.attach('$table')");
	$fini->sql($belief{$what}) if $belief{$what};
	FiniSize::stand(sub { $fini->sql($_[0] =~ s/^\s*vacuum.*?;\s*vacuum[^;]*$//msr) }, $fini->sandbox, $table, qq{
		select i as n, 'R' || lpad(i::text, 8, '0') own_ref, '1234' ipo_id, 1000 app_quantity, null firm_id, 'PASSPORT' id_type,
			'GBR' id_country_jurisdiction, 'P' || i id_num, 'Doe, Jane' full_name_eng, null full_name_chi, null::jsonb id_list from generate_series(1, $rows) i});
	is($fini->sql(q{select count(*) from fini.submission where state = 'accepted'}), $rows, "$what: a large outbox");

	reads("$what: an insert", "insert into $table ($columns) select 'N' || i, '1234', 1, 'PASSPORT', 'GBR', 'N' || i, 'X' from generate_series(1, $few) i");
	reads("$what: an update of one row", "update $table set app_quantity = 2000 where own_ref = 'R00000100'");
	reads("$what: an update of some", "update $table set app_quantity = 2000 where own_ref = any (@{[ refs(200) ]})");
	reads("$what: a delete", "delete from $table where own_ref = any (@{[ refs(300) ]})");
	reads("$what: the same again", "insert into $table ($columns) select r, '1234', 1, 'PASSPORT', 'GBR', r, 'X' from unnest(@{[ refs(300) ]}) r");
	reads("$what: fini.invalidate", "select fini.invalidate('$table', @{[ refs(400) ]})");
	reads("$what: fini.cancel", 'select fini.pause()', "update $table set app_quantity = 3000 where own_ref = any (@{[ refs(500) ]})",
		"select fini.cancel('$table', @{[ refs(500) ]})", 'select fini.resume()');
	# one that is asked for by state goes through all of it
	$fini->sql("insert into $table ($columns) select 'Z' || i, '9012', 1, 'PASSPORT', 'GBR', 'Z' || i, null from generate_series(1, $few) i");
	reads("$what: fini.precheck of some with problems", "select count(*) from fini.precheck('$table', '9012')");
}

done_testing();
