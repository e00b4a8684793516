# PgBouncer in transaction mode: many clients share few sessions, and what a session remembers of one of them is
# nothing to the next.

use strict;
use warnings;

use FiniTest;
use IPC::Run qw(start);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my ($program) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), qw(/usr/sbin /usr/local/sbin);
plan skip_all => 'PgBouncer is not installed (test/setup extras)' unless $program;

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0, 'fini.request_timeout' => '20s' }, gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications');
	create role clerk login; select fini.grant_access('clerk', 'submitter'); grant all on applications to clerk});

# a pool of two sessions, on a unix socket
my $dir = PostgreSQL::Test::Utils::tempdir_short();
my $port = $node->port;
my $owner = getpwuid($<);
append_to_file("$dir/users.txt", qq{"$owner" ""\n"clerk" ""\n});
append_to_file("$dir/pgbouncer.ini", <<"END");
[databases]
postgres = host=@{[ $node->host ]} port=$port dbname=postgres
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = trust
auth_file = $dir/users.txt
pool_mode = transaction
default_pool_size = 2
max_client_conn = 100
ignore_startup_parameters = extra_float_digits
logfile = $PostgreSQL::Test::Utils::log_path/pgbouncer.log
pidfile = $dir/pgbouncer.pid
admin_users = $owner
END
my $pooler = start([ $program, '-q', "$dir/pgbouncer.ini" ], '<', \undef, '>', \my $said, '2>&1');
END { $pooler->kill_kill(grace => 5) if $pooler }
$fini->wait_for(sub { -S "$dir/.s.PGSQL.$port" }, 'PgBouncer to listen');

# statements as a client of the pooler: status, output, errors; one psql a call, a connection of its own
sub client
{
	my ($sql, @arguments) = @_;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', '-d', "host=$dir port=$port dbname=postgres user=clerk", @arguments ],
		'<', \$sql, '>', \$out, '2>', \$err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	chomp $out;
	return ($ok, $out, $err);
}

sub row
{
	my ($own_ref, $ipo) = @_;
	$ipo //= '1234';
	return "insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)"
	  . " values ('$own_ref', '$ipo', 1000, 'PASSPORT', 'GBR', 'P$own_ref', 'DOE, Jane');\n";
}

# --- more clients than sessions, each with several transactions ---

my @clients = map {
	my $n = $_;
	my $sql = join('', map { row("C$n-$_") } 1 .. 25);
	my ($out, $err) = ('', '');
	{ out => \$out, err => \$err, run => start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', "host=$dir port=$port dbname=postgres user=clerk" ],
			'<', \$sql, '>', \$out, '2>', \$err) }
} 1 .. 8;
$_->{run}->finish for @clients;
is(join('', map { ${ $_->{err} } } @clients), '', 'eight clients write through two sessions');
$fini->wait_done;
is($fini->sql(q{select count(*) from applications where fini_state = 'accepted'}), 200, 'every row is accepted');
is($fini->stats->{duplicates}, 0, 'none twice');
cmp_ok($fini->sql(q{select count(*) from pg_stat_activity where usename = 'clerk'}), '<=', 2, 'they shared two sessions');

# --- a commit wakes the worker, whichever client of the session wrote ---

for my $round (1 .. 3)
{
	client("select 1");
	my $start = time;
	my ($ok, $out, $err) = client(row("W$round") . 'select fini.wait();');
	is("$ok $out", '1 t', "round $round: written and waited for") or diag $err;
	cmp_ok(time - $start, '<', 9, '... without waiting for the worker to look by itself');
}

# --- direct calls, and what they leave behind ---

my ($ok, $out, $err) = client(q{select count(*) from fini.subscription_query('1234')});
is($out, 203, 'a direct call through the pooler') or diag $err;
($ok, $out, $err) = client(q{begin; set local fini.base_url = 'https://elsewhere.invalid'; select * from fini.ipo_list(); rollback;});
like($err, qr/42501|permission denied/, 'a client may not set where requests go');
$fini->faults({ endpoint => 'ipos/list', action => 'hang-before', count => 1 });
($ok, $out, $err) = client(q{begin; set local statement_timeout = '500ms'; select count(*) from fini.ipo_list(); rollback;});
like($err, qr/57014/, 'a call that hangs is cancelled');
$fini->clear_faults;
for my $n (1 .. 4)
{
	($ok, $out, $err) = client(q{select count(*) from fini.ipo_list()});
	cmp_ok($out, '>', 0, "the sessions go on ($n)") or diag $err;
}

# --- a client that goes away in the middle of a transaction ---

{
	my ($in, $gone_out, $gone_err) = ('', '', '');
	my $gone = start([ 'psql', '-XAtq', '-d', "host=$dir port=$port dbname=postgres user=clerk" ], '<', \$in, '>', \$gone_out, '2>', \$gone_err);
	$in = "begin;\n" . row('GONE') . "select 'written';\n";
	$gone->pump until $gone_out =~ /written/;
	$gone->kill_kill(grace => 1);
	$fini->wait_for(q{select count(*) = 0 from pg_stat_activity where usename = 'clerk' and state like 'idle in transaction%'}, 'its transaction to end');
	($ok, $out, $err) = client(row('STAYS') . 'select fini.wait();');
	is($out, 't', 'the next client goes on') or diag $err;
	is($fini->sql(q{select string_agg(own_ref, ',') from fini.submission where own_ref in ('GONE', 'STAYS')}), 'STAYS', 'what it had not committed is not sent');
}

is($fini->stats->{duplicates}, 0, 'nothing twice');
is_deeply([ $fini->compare('applications') ], [], 'both sides agree');
$pooler->signal('INT');
$pooler->finish;
undef $pooler;
done_testing();
