# demo.pl [ROWS]: what `make demo` shows, on a stage (see test/stage.sh).
#
# A server on a unix socket, a sandbox gateway on the loopback interface, an application table attached to
# FINI, and 10,000 rows. Everything that is printed as a fact is checked: the exit status is 0 only if
# the expected rows were rejected, all others accepted, and both sides agree field by field.

use strict;
use warnings;

use FiniSandbox;
use Time::HiRes qw(sleep time);

my $rows = $ARGV[0] // 10_000;
my $stage = $ENV{FINI_STAGE} or die "FINI_STAGE is not set: call test/demo/run\n";
my $work = "$stage/work";
my $data = "$stage/tree/test/data";
my $socket = "$work/s";
my $deadline = 600;
my ($server_started, $waiter);
my @complaints;

$| = 1;
$SIG{$_} = sub { die "\nended by a signal\n" } for qw(INT TERM HUP PIPE);
$SIG{ALRM} = sub { die "\nnot done within $deadline s\n" };
alarm $deadline;
main();

sub main
{
	my $sandbox = FiniSandbox->new(dir => "$work/gateway")->start;
	start_server($sandbox);
	heading('A sandbox gateway and a PostgreSQL server');
	print '  ', query('select version()'), "\n";
	print "  gateway at $sandbox->{url}, IPOs ", join(', ', map { $_->{ipoID} } @FiniSandbox::IPOS), "\n";

	heading('The table');
	statements(
		'create extension fini',
		'select fini.arm()',
		q{select fini.create_subscription_table('applications')},
		q{select fini.attach('applications')});
	wait_for_worker();

	heading(commas($rows) . ' applications');
	my $began = time;
	load();
	watch();
	my $took = time - $began;
	printf "  %s records in %.1f s from the COPY to the last outcome: %s a second\n", commas($rows), $took, commas($rows / $took);

	outcome();
	rejected();
	one_record();
	reconcile();
	requests();
	gateways_view($sandbox);
	both_sides($sandbox);

	heading(@complaints ? 'Not as it should be' : 'Done');
	print "  $_\n" for @complaints;
	print "  nothing lost, nothing twice, both sides agree field by field\n" if !@complaints;
	exit(@complaints ? 1 : 0);
}

sub start_server
{
	my ($sandbox) = @_;
	mkdir $socket or die "$socket: $!\n";
	command('initdb', '-D', "$work/pg", '-A', 'trust', '-U', 'postgres', '-E', 'UTF8', '--locale=C', '-N');
	open(my $conf, '>>', "$work/pg/postgresql.conf") or die "postgresql.conf: $!\n";
	print {$conf} "listen_addresses = ''\nunix_socket_directories = '$socket'\nshared_preload_libraries = 'fini'\n",
	  $sandbox->conf('fini.databases' => 'brokerage');
	close $conf or die "postgresql.conf: $!\n";

	$server_started = 1;
	command('pg_ctl', '-D', "$work/pg", '-l', "$work/pg.log", '-w', '-t', 60, 'start');
	$ENV{PGHOST} = $socket;
	$ENV{PGUSER} = 'postgres';
	$ENV{PGDATABASE} = 'postgres';
	command('createdb', 'brokerage');
	$ENV{PGDATABASE} = 'brokerage';
	return;
}

# the worker looks for its database once a second; start-up is not what we want to measure
sub wait_for_worker
{
	my $until = time + 30;
	until (query('select worker_state from fini.status') =~ /^(idle|busy)$/)
	{
		die "the worker did not get ready\n", server_log() if time > $until;
		sleep 0.1;
	}
	return;
}

sub load
{
	my $columns = 'own_ref, ipo_id, app_quantity, firm_id, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi, id_list';
	my $made = command('perl', "$data/applications", '--rows', $rows, '--rejected', "$work/rejected");
	FiniSandbox::write_file("$work/applications", $made);
	my $began = time;
	psql("\\copy applications ($columns) from '$work/applications'");
	printf "  COPY of %s rows, queued as they come: %.2f s\n", commas($rows), time - $began;
	return;
}

# a line of progress until fini.wait says that nothing is open
sub watch
{
	my $began = time;
	my $is_tty = -t STDOUT;
	my ($shown, $last) = (0, '');

	pipe(my $reader, my $writer) or die "pipe: $!\n";
	$waiter = fork() // die "fork: $!\n";
	if ($waiter == 0)
	{
		open(STDOUT, '>&', $writer);
		open(STDERR, '>', "$work/wait.log");
		{ no warnings; exec 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-c', "select fini.wait(null, '$deadline s')"; }
		POSIX::_exit(127);
	}
	close $writer;

	for (;;)
	{
		my $done = waitpid($waiter, POSIX::WNOHANG()) != 0;
		undef $waiter if $done;
		if ($done || $is_tty || time - $shown >= 1)
		{
			$shown = time;
			$last = progress_line($began);
			print $is_tty ? "\r\e[K  $last" : "  $last\n";
		}
		last if $done;
		sleep($is_tty ? 0.25 : 0.1);
	}
	print "\n" if $is_tty;
	my $answer = do { local $/; <$reader> } // '';
	if ($answer !~ /^t$/m)
	{
		open(my $log, '<', "$work/wait.log");
		die "fini.wait did not end well: $answer", <$log>, server_log();
	}
	return;
}

sub progress_line
{
	my ($began) = @_;
	my %count = map { split /\t/ } split /\n/, query('select state, count(*) from fini.submission group by 1');
	my ($all, $open) = (0, 0);
	for my $state (keys %count)
	{
		$all += $count{$state};
		$open += $count{$state} if $state =~ /^(queued|sending|unknown)$/;
	}
	my $settled = $all - $open;
	my $width = 30;
	my $filled = $all ? int($width * $settled / $all) : 0;
	my $elapsed = time - $began;
	return sprintf '[%s%s] %3d %%  %s', '#' x $filled, '.' x ($width - $filled), $all ? 100 * $settled / $all : 0,
	  join('  ', map { "$_ " . commas($count{$_}) } grep { $count{$_} } qw(queued sending unknown accepted rejected failed cancelled))
	  . ($settled && $elapsed > 0.2 ? '  ' . commas($settled / $elapsed) . '/s' : '');
}

sub outcome
{
	heading('Outcome by state');
	table('select fini_state as state, count(*), count(record_id) as with_record_id from applications group by 1 order by 1');
	my $open = query(q{select count(*) from fini.submission where state in ('queued', 'sending', 'unknown')});
	complain("$open submissions are still open") if $open;
	return;
}

sub rejected
{
	heading('Rejected, with FINI\'s code or our own');
	table(q{select own_ref, ipo_id, error_code, error_message from fini.submission where state = 'rejected' order by error_code, ipo_id, own_ref});

	open(my $fh, '<', "$work/rejected") or die "rejected: $!\n";
	my %expected = map { /^([^\t]*)\t/ ? ($1 => 1) : () } <$fh>;
	my %is = map { $_ => 1 } split /\n/, query(q{select own_ref from applications where fini_state = 'rejected'});
	complain("not rejected: $_") for grep { !$is{$_} } sort keys %expected;
	complain("rejected without reason: $_") for grep { !$expected{$_} } sort keys %is;
	my $bare = query(q{select count(*) from applications where fini_state = 'rejected' and coalesce(fini_error, '') = ''});
	complain("$bare rejected rows do not say why") if $bare;
	return;
}

sub one_record
{
	heading('One record asked back from FINI, decrypted');
	my $record = query(q{select record_id from applications where fini_state = 'accepted' and jsonb_array_length(id_list) = 3 order by own_ref limit 1})
	  || query(q{select record_id from applications where fini_state = 'accepted' order by own_ref limit 1});
	print "  select * from fini.subscription_query(record_ids => array['$record'])\n";
	table(qq{select q.record_id, q.own_ref, q.app_quantity, a->>'idType' id_type, a->>'idNum' id_num, a->>'fullNameEng' english, a->>'fullNameChi' chinese
		from fini.subscription_query(record_ids => array['$record']) q, jsonb_array_elements(q.id_list) a});
	return;
}

sub reconcile
{
	heading('Reconcile');
	my @ipos = split /\n/, query(q{select distinct ipo_id from applications where fini_state = 'accepted' order by 1});
	my $union = join ' union all ',
	  map { "select '$_' ipo_id, local, remote, matched, discrepancies from fini.reconcile('applications', '$_')" } @ipos;
	table($union);
	my $found = query('select count(*) from fini.discrepancy');
	print '  discrepancies: ', ($found || 'none'), "\n";
	return unless $found;
	complain("reconcile found $found discrepancies");
	table('select kind, field, count(*), min(own_ref) as first from fini.discrepancy group by 1, 2 order by 1, 2');
	return;
}

sub requests
{
	heading('Requests and their latencies');
	if (query(q{select to_regclass('fini.stat_endpoint') is not null}) eq 't')
	{
		table(q{select endpoint, calls, errors, retries, throttled, entries, pg_size_pretty(bytes) as bytes, round(mean_ms::numeric, 1) as mean_ms,
			round(p50_ms::numeric, 1) as p50_ms, round(p95_ms::numeric, 1) as p95_ms, round(p99_ms::numeric, 1) as p99_ms
			from fini.stat_endpoint where calls > 0 order by 1});
		return;
	}
	table(q{select endpoint, count(*) as requests, sum(entries) as entries, sum(attempts) as attempts,
		round(1000 * avg(s), 1) as mean_ms, round(1000 * percentile_cont(0.5) within group (order by s)::numeric, 1) as p50_ms,
		round(1000 * percentile_cont(0.95) within group (order by s)::numeric, 1) as p95_ms, round(1000 * max(s), 1) as max_ms
		from fini.request, extract(epoch from duration) s group by 1 order by 1});
	return;
}

sub gateways_view
{
	my ($sandbox) = @_;
	heading('What the gateway says');
	my $stats = $sandbox->stats;
	my $refusals = $sandbox->refusals;
	printf "  accepted %s, rejected %s, duplicates %s, out of order %s, requests refused %s, most requests in a minute %s\n",
	  map { commas($_ // 0) } @{$stats}{qw(accepted rejected duplicates out_of_order)}, scalar @$refusals, $stats->{peak_in_window};
	complain("the gateway saw $stats->{duplicates} duplicates") if $stats->{duplicates};
	complain("the gateway saw $stats->{out_of_order} entries out of order") if $stats->{out_of_order};
	complain("refused: $_->{endpoint} $_->{http} $_->{code} $_->{message}") for @$refusals;
	return;
}

# what the gateway holds, decrypted by the gateway, against the table
sub both_sides
{
	my ($sandbox) = @_;
	heading('Both sides, field by field');
	FiniSandbox::write_file("$work/dump", $sandbox->dump_raw(active => 1));
	# JSON holds no raw control characters, so these leave every line whole
	my ($compared, @differences) = split /\n/, psql('create temp table gateway_dump (r jsonb not null)',
		"\\copy gateway_dump from '$work/dump' (format csv, delimiter e'\\x02', quote e'\\x01')",
		'select count(*) from gateway_dump', '\set table applications', "\\i $data/compare.sql");
	my $accepted = query(q{select count(*) from applications where fini_state = 'accepted'});

	printf "  %s records at the gateway, %s rows accepted here, differences: %s\n", commas($compared), commas($accepted),
	  scalar @differences || 'none';
	complain("$compared records there, $accepted accepted here") if $compared != $accepted;
	complain('no record arrived') if !$compared;
	my $more = @differences > 10 ? @differences - 10 : 0;
	complain("differs: $_") for @differences[ 0 .. $#differences - $more ];
	complain("... and $more more differences") if $more;
	return;
}

sub heading
{
	my ($text) = @_;
	print "\n$text\n", '-' x length $text, "\n";
	return;
}

# statements shown as they are run
sub statements
{
	for my $statement (@_)
	{
		print "  $statement;\n";
		psql($statement);
	}
	return;
}

# the result of a query as a table for people
sub table
{
	my ($query) = @_;
	my $said = command('psql', '-Xq', '-P', 'pager=off', '-P', 'footer=off', '-P', 'linestyle=ascii', '-v', 'ON_ERROR_STOP=1', '-c', $query);
	print map { "  $_\n" } grep { /\S/ } split /\n/, $said;
	return;
}

# the result of a query for us: fields between tabs, rows between line feeds
sub query
{
	my ($query) = @_;
	my $said = psql($query);
	chomp $said;
	return $said;
}

sub psql
{
	return command('psql', '-XqAt', '-F', "\t", '-v', 'ON_ERROR_STOP=1', map { ('-c', $_) } @_);
}

# run a program; its output comes back; dies, with all that it said, when it fails
sub command
{
	my (@command) = @_;
	my $pid = open(my $out, '-|') // die "fork: $!\n";
	if ($pid == 0)
	{
		open(STDERR, '>>', "$work/stderr");
		{ no warnings; exec { $command[0] } @command; }
		print STDERR "cannot run $command[0]: $!\n";
		POSIX::_exit(127);
	}
	my $said = do { local $/; <$out> } // '';
	return $said if close $out;

	open(my $err, '<', "$work/stderr");
	my $why = do { local $/; <$err> } // '';
	die "\n$command[0] failed: @command[1 .. $#command]\n$said$why" . server_log();
}

sub server_log
{
	open(my $fh, '<', "$work/pg.log") or return '';
	my @lines = <$fh>;
	return join '', "\nthe server's log:\n", @lines > 30 ? @lines[ -30 .. -1 ] : @lines;
}

sub complain { push @complaints, @_; return }

sub commas
{
	my ($n) = @_;
	$n = sprintf '%.0f', $n;
	1 while $n =~ s/^(\d+)(\d{3})/$1,$2/;
	return $n;
}

END
{
	my $status = $?;
	alarm 0;
	$SIG{$_} = 'IGNORE' for qw(INT TERM HUP PIPE);
	if ($waiter)
	{
		kill 'TERM', $waiter;
		waitpid($waiter, 0);
	}
	# fast is enough for a worker that obeys; immediate is for one that does not
	for my $mode ($server_started ? qw(fast immediate) : ())
	{
		last if system("pg_ctl -D '$work/pg' -m $mode -w -t 20 stop >/dev/null 2>&1") == 0;
		print "  the server did not stop within 20 s\n" if $mode eq 'fast' && -e "$work/pg/postmaster.pid";
	}
	$? = $status;
}
