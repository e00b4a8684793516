# The throttle: exact in every window, shared by all databases and sessions of a company, used up while there is work.

use strict;
use warnings;

use FiniTest;
use IPC::Run qw(start finish);
use Test::More;
use Time::HiRes qw(time);

my ($limit, $window) = (40, 4);
my $fini = FiniTest->armed_cluster(
	databases => 'one, two, three', database => 'one',
	settings => { 'fini.rate_limit' => $limit, 'fini.rate_window' => "${window}s", 'fini.batch_size' => 1, 'fini.max_in_flight' => 8,
		'fini.request_timeout' => '60s' },
	gateway => [ '--rate-limit', $limit, '--rate-window', $window ]);
my $node = $fini->node;

sub insert_rows
{
	my ($database, $n) = @_;
	$node->safe_psql($database, qq{
		insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$database-' || i, '1234', 1000, 'PASSPORT', 'GB', 'P' || i, 'Name ' || i from generate_series(1, $n) i});
	return;
}

for my $database (qw(one two))
{
	$node->safe_psql($database, q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
}

# two workers with more than they can send, eight sessions of the third database calling as fast as they are let
insert_rows($_, 1000) for qw(one two);
my @sessions;
my $script = "$PostgreSQL::Test::Utils::tmp_check/calls.sql";
FiniSandbox::write_file($script, "select count(*) from fini.ipo_list();\n" x 500);
for my $i (1 .. 8)
{
	my ($out, $err) = ('', '');
	push @sessions, { err => \$err, handle => start([ 'psql', '-XAtq', '-d', $node->connstr('three'), '-f', $script ], \undef, \$out, \$err) };
}
my $begin = $fini->wait_for(sub { my $s = $fini->stats; $s->{peak_in_window} >= 0.9 * $limit ? time : 0 }, 'the throttle to bite');
# a token is a request as well, although this gateway does not count it
my $api = sub { my $r = $fini->stats->{requests}; my $n = 0; $n += $_ for values %$r; return $n };

# Requests come in bursts, as places become free: so the time that so many full windows' worth of them takes is
# measured, not how many an interval holds, which begins and ends somewhere in a burst.
my ($t0, $n0) = (time, $api->());
my $windows = 4;
my ($t1, $n1);
$fini->wait_for(sub { ($t1, $n1) = (time, $api->()); $n1 - $n0 >= $windows * $limit }, 'some windows to pass', 60);
my $stats = $fini->stats;
my $used = ($n1 - $n0) / (($t1 - $t0) * $limit / $window);

is($stats->{refusals}{429} // 0, 0, 'no 429');
cmp_ok($stats->{peak_in_window}, '<=', $limit, 'never over the limit in any window');
cmp_ok($used, '>=', 0.97, sprintf('%.1f %% of what is allowed was used while there was work', 100 * $used))
  or diag "$n1 - $n0 requests in @{[ $t1 - $t0 ]} s";
my %by_database = map { $_ => $node->safe_psql($_, q{select count(*) from fini.submission where state = 'accepted'}) } qw(one two);
cmp_ok($by_database{$_}, '>=', $windows * $limit / 20, "worker of $_ was not starved") for qw(one two);
cmp_ok($stats->{requests}{'ipos/list'}, '>=', $windows * $limit / 4, 'direct calls were not starved by the queue');

# a direct call that cannot be let through in time fails at once, and says so
$node->safe_psql('three', q{alter database three set fini.request_timeout = '100ms'});
my ($failed, $err) = (0, '');
for (1 .. 20)
{
	my ($rc, $out, $e) = $node->psql('three', "\\set VERBOSITY verbose\nset fini.request_timeout = '100ms'; select count(*) from fini.ipo_list()");
	next if $rc == 0;
	$failed = 1;
	$err = $e;
	last;
}
like($err, qr/IP008.*throttle leaves no room.*could leave in \d+ ms; $limit requests are allowed in \d+ ms.*nothing was sent/s, 'a call that would wait too long fails with a clear error');

# a call that has to wait says for how long, and can be cancelled
{
	my ($told, $cancelled) = (0, 0);
	my $script = "$PostgreSQL::Test::Utils::tmp_check/told.sql";
	FiniSandbox::write_file($script, "set fini.request_timeout = '60s';\n" . "select count(*) from fini.ipo_list();\n" x 1000);
	my ($out, $said) = ('', '');
	my $session = start([ 'psql', '-XAtq', '-d', $node->connstr('three') . ' application_name=told', '-f', $script ], \undef, \$out, \$said);
	$fini->wait_for(sub { $session->pump_nb; $said =~ /waiting for the throttle: the next request can leave in \d+ s/ }, 'a notice', 60);
	ok(1, 'a call that has to wait says for how long');
	$fini->wait_for(
		sub {
			$node->safe_psql('one', q{select pg_cancel_backend(pid) from pg_stat_activity where application_name = 'told' and state = 'active'});
			$session->pump_nb;
			return $said =~ /canceling statement due to user request/;
		}, 'the cancel', 30);
	ok(1, 'and can be cancelled');
	$session->kill_kill;
	finish($session);
}

# a restart does not burst over the limit
$_->{handle}->kill_kill for @sessions;
$node->stop('immediate');
$node->start;
$fini->wait_for(sub { $node->safe_psql('one', q{select count(*) from fini.submission where state = 'accepted'}) > $by_database{one} + 5 }, 'the queue to go on');
$stats = $fini->stats;
is($stats->{refusals}{429} // 0, 0, 'no 429 after a restart');
cmp_ok($stats->{peak_in_window}, '<=', $limit, 'within the limit across the restart');

# a session, and a server, that end with a request under way: its place counts from then on, and is free a window later
$node->safe_psql($_, 'select fini.pause()') for qw(one two);
for my $what (qw(session server))
{
	$fini->wait_for(sub { $node->psql('three', q{select fini.ipo_refdata('1234')}) == 0 }, 'a worker');
	my $before = $fini->stats->{faults}{'hang-before'} // 0;
	my ($out, $err) = ('', '');
	$fini->faults({ endpoint => 'ipos/refdata', action => 'hang-before', ms => 30_000 });
	my $session = start([ 'psql', '-XAtq', '-d', $node->connstr('three') . " application_name=hanging options='-c fini.request_timeout=60s'", '-c', q{select fini.ipo_refdata('1234')} ], \undef, \$out, \$err);
	$fini->wait_for(sub { $session->pump_nb; ($fini->stats->{faults}{'hang-before'} // 0) > $before }, 'a request under way');
	if ($what eq 'session') { $node->safe_psql('one', q{select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = 'hanging'}) }
	else { $node->stop('immediate'); $node->start }
	finish($session);
	$fini->clear_faults;
	$fini->wait_for(sub { $node->psql('three', q{select fini.ipo_refdata('1234')}) == 0 }, 'a call to find room');
	is($fini->stats->{refusals}{429} // 0, 0, "no 429 after the end of a $what with a request under way");
}

done_testing();
