# Workers that cannot start, cannot connect, or are told that something has changed.

use strict;
use warnings;

use FiniTest;
use Test::More;
use Time::HiRes qw(time);

sub holds
{
	my ($what, $code) = @_;
	subtest $what => sub { eval { $code->(); 1 } or do { fail('went through'); diag $@ } };
	return;
}

sub lines { my ($fini, $log, $pattern) = @_; my $n = () = $fini->log_since($log) =~ /$pattern/g; return $n }

holds 'a worker that gets no slot' => sub {
	my $fini = FiniTest->armed_cluster(
		name => 'slots', databases => 'postgres, second', settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
		# one is the launcher of logical replication
		conf => "max_worker_processes = 2\nmax_parallel_workers = 0\n");
	$fini->new_table('applications');
	$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')}, database => 'second');
	$fini->insert_rows('applications', 'SERVED', 10);
	$fini->insert_rows('applications', 'UNSERVED', 10, undef, database => 'second');
	$fini->wait_done;
	is($fini->sql(q{select count(*) from applications where fini_state = 'accepted'}), 10, 'the database whose worker has one is served');
	is($fini->sql('select worker_pid is null, worker_state, queued from fini.status', database => 'second'), 't|stopped|10', 'the other has no worker, and keeps its rows');
	like($fini->log_since(0), qr/too many background workers/, "the server's log says why");
	$fini->sql_fails(q{set fini.request_timeout = '500ms'; select * from fini.ipo_list()}, qr/IP002.*max_worker_processes/s, 'direct calls say what to look at',
		database => 'second');
	is($fini->sql(q{select ok || ' ' || (detail ~ 'max_worker_processes') from fini.check() where item = 'worker'}, database => 'second'), 'false true', 'so does fini.check');
	is($fini->sql(q{select fini.wait(timeout => '1 s')}, database => 'second'), 'f', 'fini.wait does not hang');

	$fini->sql('alter system set max_worker_processes = 10');
	$fini->node->restart;
	$fini->wait_for(sub { $fini->sql(q{select count(*) = 10 from applications where fini_state = 'accepted'}, database => 'second') eq 't' }, 'the rows to be accepted');
	ok(1, 'with more slots it is served');
	$fini->node->stop;
	$fini->sandbox->stop;
};

holds 'no connection is left' => sub {
	my $fini = FiniTest->armed_cluster(
		name => 'connections', settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
		conf => "max_connections = 6\nsuperuser_reserved_connections = 0\n");
	$fini->new_table('applications');
	my @sessions = map { $fini->node->background_psql('postgres') } 1 .. 6;
	my ($rc, $out, $err) = $fini->node->psql('postgres', 'select 1');
	like($err, qr/too many clients|remaining connection slots/, 'there is none');
	$sessions[0]->query_safe(q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select 'FULL' || i, '1234', 1000, 'PASSPORT', 'GB', 'P' || i, 'Name' from generate_series(1, 100) i});
	$fini->wait_for(sub { $sessions[0]->query_safe(q{select count(*) from applications where fini_state = 'accepted'}) eq '100' }, 'the queue to go on');
	ok(1, 'the queue goes on');

	# a worker that starts meanwhile has a place of its own
	my $worker = $sessions[0]->query_safe('select worker_pid from fini.status');
	$sessions[0]->query_safe("select pg_terminate_backend($worker)");
	$sessions[0]->query_safe(q{update applications set app_quantity = 2000});
	$fini->wait_for(sub { $sessions[0]->query_safe(q{select count(*) from fini.submission where operation = 'change' and state = 'accepted'}) eq '100' }, 'a new worker');
	isnt($sessions[0]->query_safe('select worker_pid from fini.status'), $worker, 'a new worker has started');
	$_->quit for @sessions;
	is_deeply([ $fini->compare('applications') ], [], 'both sides agree');
	$fini->node->stop;
	$fini->sandbox->stop;
};

my $fini = FiniTest->new(
	databases => 'postgres, later', settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 10, 'fini.max_in_flight' => 4 },
	gateway => [ '--rate-limit', 0, '--latency', 50 ]);
$fini->sql('create extension fini; select fini.arm()');
$fini->new_table('applications');
my @later = (database => 'later');

holds 'a database that does not exist yet' => sub {
	$fini->wait_for(sub { lines($fini, 0, 'FATAL: +database "later" does not exist') }, 'the first attempt');
	my $log = $fini->log_position;
	my $begin = time;
	$fini->wait_for(sub { time - $begin > 6 }, 'six seconds');
	cmp_ok(lines($fini, $log, 'later|background worker'), '<=', 1, 'is waited for quietly');
	$fini->sql('create database later');
	$fini->sql('create extension fini; select fini.arm()', @later);
	$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')}, @later);
	$fini->insert_rows('applications', 'LATER', 10, undef, @later);
	$fini->wait_for(sub { $fini->sql(q{select count(*) = 10 from applications where fini_state = 'accepted'}, @later) eq 't' }, 'the rows to be accepted');
	ok(1, 'and served as soon as it is there');
};

holds 'a database that lets nobody in' => sub {
	my $worker = $fini->sql('select worker_pid from fini.status', @later);
	$fini->sql('alter database later allow_connections false');
	$fini->sql("select pg_terminate_backend($worker)");
	$fini->wait_for(sub { lines($fini, 0, 'not currently accepting connections') }, 'an attempt to connect');
	my $log = $fini->log_position;
	my $begin = time;
	$fini->wait_for(sub { time - $begin > 6 }, 'six seconds');
	cmp_ok(lines($fini, $log, 'later|background worker|not currently accepting'), '<=', 1, 'is waited for quietly');
	$fini->sql('alter database later allow_connections true');
	$fini->insert_rows('applications', 'AGAIN', 10, undef, @later);
	$fini->wait_for(sub { $fini->sql(q{select count(*) = 20 from applications where fini_state = 'accepted'}, @later) eq 't' }, 'the rows to be accepted');
	ok(1, 'and served again');
};

# requests are under way all the time
for my $case (
	[ 'ALTER DATABASE SET' => 'alter database postgres set fini.batch_size = 35', 35 ],
	[ 'ALTER DATABASE RESET, and SIGHUP' => q{alter database postgres reset fini.batch_size; alter system set fini.batch_size = 45}, 45 ])
{
	my ($name, $command, $size) = @$case;
	holds "$name is picked up while the queue is never empty" => sub {
		$fini->insert_rows('applications', "$name-", 5000);
		$fini->wait_for(q{select sending > 0 from fini.status}, 'requests to be under way');
		$fini->sql($_) for split /; /, $command;
		$fini->sql('select pg_reload_conf()');
		$fini->wait_for("select exists (select from fini.request where entries = $size)", 'a request of the new size', 60);
		cmp_ok($fini->sql(q{select queued from fini.status}), '>', 0, 'with operations still queued') or diag $fini->situation;
		$fini->wait_done;
		is($fini->stats->{duplicate_adds}, 0, 'nothing twice');
		is($fini->sql(qq{select count(*) from fini.submission where own_ref like '$name-%' and (state <> 'accepted' or attempts > 1)}), 0, 'nothing had to be found out');
	};
}

holds 'a session whose settings are not those of the worker' => sub {
	my $begin = time;
	$fini->sql_fails(q{set fini.request_timeout = '600s'; set fini.machine_id = '00000000-0000-4000-8000-000000000000'; select * from fini.ipo_list()},
		qr/IP001.*settings of this session differ/s, 'fails, and says why');
	cmp_ok(time - $begin, '<', 60, 'soon, not at its time-out');
	is($fini->sql('select count(*) > 0 from fini.ipo_list()'), 't', 'others go on');
};

holds 'a session that has settings which the worker is about to take' => sub {
	$fini->insert_rows('applications', 'TAKE-', 200);
	$fini->wait_for(q{select sending > 0 from fini.status}, 'requests to be under way');
	my $file = "$PostgreSQL::Test::Utils::tmp_check/ca.crt";
	FiniSandbox::write_file($file, PostgreSQL::Test::Utils::slurp_file($fini->sandbox->keys_dir . '/ca.crt'));
	$fini->sql("alter database postgres set fini.ca_file = '$file'");
	is($fini->sql('select count(*) > 0 from fini.ipo_list()'), 't', 'waits for it');
	$fini->wait_done;
};

holds 'a worker whose statement is cancelled' => sub {
	$fini->insert_rows('applications', 'CANCEL-', 1000);
	$fini->sql('select pg_cancel_backend(worker_pid) from fini.status where worker_pid is not null') for 1 .. 10;
	$fini->wait_done(undef, 60);
	is($fini->sql(q{select count(*) from fini.submission where own_ref like 'CANCEL-%' and state = 'accepted'}), 1000, 'loses nothing');
	is($fini->stats->{duplicate_adds}, 0, 'and does nothing twice');
};

done_testing();
