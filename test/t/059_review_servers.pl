# What must hold when servers, sessions, extensions and databases go away in the middle, and while a gateway is down.

use strict;
use warnings;

use FiniTest;
use Test::More;
use Time::HiRes qw(sleep time);

# one property; what breaks it off fails it, and does not stop the others
sub holds
{
	my ($what, $code) = @_;
	subtest $what => sub { eval { $code->(); 1 } or do { fail('went through'); diag $@ } };
	return;
}

sub new_table
{
	my ($fini, $table, %opt) = @_;
	$fini->sql("select fini.create_subscription_table('$table'); select fini.attach('$table')", %opt);
	return;
}

sub insert_rows
{
	my ($fini, $table, $prefix, $n, %opt) = @_;
	$fini->sql(qq{
		insert into $table (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$prefix' || i, '1234', 1000, 'PASSPORT', 'GB', 'P' || i, 'Name ' || i from generate_series(1, $n) i}, %opt);
	return;
}

sub active
{
	my ($fini, $own_ref) = @_;
	return grep { $_->{ownRef} eq $own_ref && $_->{subFlowStatus} eq '10' } @{ $fini->dump };
}

# of the worker: resident memory in kB, processor time in ticks
sub proc
{
	my ($fini, $file) = @_;
	open(my $fh, '<', '/proc/' . $fini->sql('select worker_pid from fini.status') . "/$file") or die "$file: $!";
	local $/;
	return <$fh>;
}
sub memory { return proc($_[0], 'status') =~ /VmRSS:\s*(\d+)/ ? $1 : die 'no VmRSS' }
sub ticks { my @field = split ' ', proc($_[0], 'stat') =~ s/^.*\)//sr; return $field[11] + $field[12] }

holds 'commits that need not be durable, and a crash after the claim: nothing twice' => sub {
	my $fini = FiniTest->armed_cluster(
		name => 'async', settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
		conf => "synchronous_commit = off\nautovacuum = off\n");
	new_table($fini, 'applications');
	insert_rows($fini, 'applications', 'WARM', 1);
	$fini->wait_done(undef, 20);
	$fini->sql('select fini.pause()');
	insert_rows($fini, 'applications', 'ASYNC', 1);
	$fini->wait_for(q{select worker_state = 'idle' from fini.status}, 'the worker to be idle', 20);

	# with its writer stopped, what is not flushed by its own commit is lost in the crash
	my $writer = $fini->sql(q{select pid from pg_stat_activity where backend_type = 'walwriter'});
	$fini->faults({ endpoint => 'subscriptions/add', action => 'hang-after', ms => 20000, count => 1 });
	kill 'STOP', $writer;
	$fini->sql('set synchronous_commit = on; select fini.resume()');
	$fini->wait_for(sub { $fini->stats->{accepted} == 2 }, 'the request to be processed', 20);
	$fini->node->stop('immediate');
	$fini->node->start;
	$fini->wait_done(undef, 60);
	is(scalar(active($fini, 'ASYNC1')), 1, 'one record');
	is($fini->stats->{duplicate_adds}, 0, 'nothing twice');
	is($fini->sql(q{select count(*) from applications where fini_state = 'accepted'}), 2, 'all accepted');
	$fini->node->stop;
};

holds 'a direct call that waits for the throttle is terminated: the queue goes on' => sub {
	my $fini = FiniTest->armed_cluster(
		name => 'throttle', settings => { 'fini.rate_limit' => 4, 'fini.rate_window' => '3s' }, gateway => [ '--rate-limit', 0 ]);
	new_table($fini, 'applications');
	insert_rows($fini, 'applications', 'WARM', 1);
	$fini->wait_done(undef, 20);

	my @sessions = map { $fini->node->background_psql('postgres', on_error_stop => 0) } 1 .. 3;
	my $pids = join ',', map { $_->query_safe('select pg_backend_pid()') } @sessions;
	$_->query_until(qr/begun/, "\\echo begun\n" . "select count(*) from fini.ipo_list();\n" x 8) for @sessions;
	# a call takes milliseconds unless it has to wait for its turn
	my $waiting = "from pg_stat_activity where pid in ($pids) and state = 'active' and clock_timestamp() - query_start > interval '300 ms'";
	$fini->wait_for("select count(*) = 3 $waiting", 'the calls to wait', 20);
	is($fini->sql("select count(pg_terminate_backend(pid)) $waiting"), 3, 'terminated while they wait');
	$fini->wait_for("select not exists (select from pg_stat_activity where pid in ($pids))", 'them to be gone', 20);
	for my $session (@sessions) { eval { $session->quit } }

	my $begin = time;
	insert_rows($fini, 'applications', 'QUEUED', 3);
	$fini->wait_done(undef, 30);
	is($fini->sql(q{select count(*) from applications where fini_state = 'accepted'}), 4, 'the queue goes on');
	cmp_ok(time - $begin, '<', 10, 'in its own time');
	my $answer = $fini->sql('select count(*) > 0 from fini.ipo_list()', timeout => 20);
	is($answer, 't', 'and so do direct calls');
	$fini->node->stop;
};

my $fini = FiniTest->armed_cluster(
	name => 'drops', settings => { 'fini.rate_limit' => 0, 'fini.request_timeout' => '20s' }, gateway => [ '--rate-limit', 0 ],
	databases => 'postgres, later');

my %former = (
	'429' => { action => 'status-before', status => 429, retryAfter => 2 },
	'hang-before' => { action => 'hang-before', ms => 1500 });
for my $how (sort keys %former)
{
	holds "what a former extension had under way is not sent by its successor, $how" => sub {
		my $table = 'former_' . ($how =~ s/-/_/r);
		new_table($fini, $table);
		insert_rows($fini, $table, uc "$table-warm", 1);
		$fini->wait_done(undef, 20);

		my $hit = $fini->stats->{faults}{ $former{$how}{action} } // 0;
		$fini->faults({ endpoint => 'subscriptions/add', count => 1, %{ $former{$how} } });
		insert_rows($fini, $table, uc $table, 2);
		$fini->wait_for(sub { ($fini->stats->{faults}{ $former{$how}{action} } // 0) > $hit }, 'the request to be under way', 20);
		my $begin = time;
		$fini->sql('drop extension fini cascade');
		$fini->sql('create extension fini; select fini.arm()');
		new_table($fini, "${table}_next");
		insert_rows($fini, "${table}_next", uc "${table}_NEXT", 1);
		$fini->wait_done(undef, 40);
		is($fini->sql("select fini_state from ${table}_next"), 'accepted', 'the new one works');
		# the moment at which it would have been sent again
		$fini->wait_for(sub { time - $begin > 4 }, 'its time to have come', 20);
		is(scalar(active($fini, uc($table) . $_)), 0, "row $_ of the former one was not sent") for 1, 2;
		is($fini->sql('select count(*) from fini.submission'), 1, 'the outbox holds what is new');
		$fini->clear_faults;
	};
}

holds 'DROP DATABASE with a request under way' => sub {
	my @later = (database => 'later');
	new_table($fini, 'applications', @later);
	my $hit = $fini->stats->{faults}{'hang-before'} // 0;
	$fini->faults({ endpoint => 'subscriptions/add', action => 'hang-before', ms => 8000, count => 1 });
	insert_rows($fini, 'applications', 'DROPPED', 1, @later);
	$fini->wait_for(sub { ($fini->stats->{faults}{'hang-before'} // 0) > $hit }, 'the request to be under way', 20);
	my $begin = time;
	my ($rc, $out, $err) = $fini->try_sql('drop database later');
	is($rc, 0, 'goes through') or diag $err;
	cmp_ok(time - $begin, '<', 5, 'at once');
	is($fini->sql('select worker_state from fini.status'), 'idle', 'the worker of the other database stays');
	$fini->sql('create database later');
	$fini->sql('create extension fini; select fini.arm()', @later);
	new_table($fini, 'applications', @later);
	insert_rows($fini, 'applications', 'REMADE', 1, @later);
	$fini->wait_for(sub { $fini->sql('select fini_state from applications', @later) eq 'accepted' }, 'the database of that name to be served', 30);
	is(scalar(active($fini, 'REMADE1')), 1, 'a database of that name is served again');
	is(scalar(active($fini, 'DROPPED1')), 0, 'nothing of the former one was sent');
	$fini->node->stop;
};

$fini = FiniTest->armed_cluster(
	name => 'down', settings => { 'fini.rate_limit' => 0, 'fini.request_timeout' => '1500ms', 'fini.batch_size' => 100 },
	gateway => [ '--rate-limit', 0 ]);

# --- a gateway that is down, and a worker that must be quiet ----------------------------------------------------

holds 'a gateway that answers 503 is not asked in a tight loop' => sub {
	new_table($fini, 'down');
	for my $endpoint ('subscriptions/add', '*')
	{
		$fini->faults({ endpoint => $endpoint, action => 'status-before', status => 503, count => -1 });
		my $hits = sub { $fini->stats->{faults}{'status-before'} // 0 };
		my $before = $hits->();
		insert_rows($fini, 'down', $endpoint eq '*' ? 'ALL' : 'ADD', 1000);
		$fini->wait_for(sub { $hits->() > $before + 1 }, 'the first refusals', 20);
		my ($from, $memory, $ticks, $begin) = ($hits->(), memory($fini), ticks($fini), time);
		$fini->wait_for(sub { time - $begin > 4 }, 'four seconds', 20);
		# ten batches at most are out, each with its own pauses, and a search for them
		cmp_ok($hits->() - $from, '<', 60, "$endpoint: requests in 4 s");
		cmp_ok(memory($fini) - $memory, '<', 4096, "$endpoint: kB that the worker grew by") unless $ENV{FINI_TEST_SLOW};
		cmp_ok(ticks($fini) - $ticks, '<', 60, "$endpoint: processor time");
		$fini->clear_faults;
		$fini->wait_done(undef, 60);
	}
	is($fini->sql(q{select count(*) from down where fini_state = 'accepted'}), 2000, 'all accepted in the end');
	is($fini->stats->{duplicate_adds}, 0, 'nothing twice');
};

holds 'crypto/meta that answers 401 gives no storm of tokens' => sub {
	new_table($fini, 'unkeyed');
	$fini->admin('POST', '/rotate-key');
	$fini->faults({ endpoint => 'crypto/meta', action => 'status-before', status => 401, count => -1 });
	my $log = $fini->log_position;
	my ($tokens, $hits) = @{ $fini->stats }{qw(tokens faults)};
	insert_rows($fini, 'unkeyed', 'UNKEYED', 1);
	$fini->wait_for(sub { ($fini->stats->{faults}{'status-before'} // 0) > ($hits->{'status-before'} // 0) }, 'the first refusal', 20);
	my $begin = time;
	$fini->wait_for(sub { time - $begin > 4 }, 'four seconds', 20);
	cmp_ok($fini->stats->{tokens} - $tokens, '<=', 6, 'tokens in 4 s');
	cmp_ok($fini->stats->{faults}{'status-before'} - ($hits->{'status-before'} // 0), '<=', 8, 'calls of crypto/meta in 4 s');
	my $lines = () = $fini->log_since($log) =~ m{crypto/meta}g;
	cmp_ok($lines, '<=', 4, 'lines in the log');
	$fini->clear_faults;
	$fini->wait_done(undef, 40);
	is($fini->sql('select fini_state from unkeyed'), 'accepted', 'accepted once the key can be had');
};

holds 'the worker does not spin while a row put off is due and cannot be claimed' => sub {
	new_table($fini, 'put_off');
	$fini->faults({ endpoint => 'subscriptions/add', action => 'status-before', status => 403, count => 1 });
	insert_rows($fini, 'put_off', 'PUTOFF', 1);
	$fini->wait_for(q{select last_error like 'subscriptions/add stopped%' from fini.status}, 'the endpoint to be stopped', 20);
	$fini->wait_for(q{select count(*) = 1 from fini.queue}, 'the row to be back', 20);
	$fini->sql(q{with o as (update fini.queue set not_before = clock_timestamp() - interval '1 s' returning id, not_before)
		update fini.submission s set not_before = o.not_before from o where s.id = o.id; select fini._wake()});
	$fini->wait_for(q{select worker_state = 'idle' from fini.status}, 'the worker to have looked', 20);
	my ($ticks, $begin) = (ticks($fini), time);
	$fini->wait_for(sub { time - $begin > 2 }, 'two seconds', 20);
	cmp_ok(ticks($fini) - $ticks, '<', 20, 'processor time in 2 s, the endpoint being stopped');

	# the endpoint is there again, but there is no token
	$fini->faults({ endpoint => 'token', action => 'status-before', status => 503, count => -1 });
	$fini->admin('POST', '/expire-tokens');
	$fini->sql('select fini.resume()');
	$fini->wait_for(sub { ($fini->stats->{requests}{token} // 0) > 0 || ($fini->stats->{faults}{'status-before'} // 0) > 1 }, 'a token to be refused', 20);
	($ticks, $begin) = (ticks($fini), time);
	$fini->wait_for(sub { time - $begin > 2 }, 'two seconds', 20);
	cmp_ok(ticks($fini) - $ticks, '<', 20, 'processor time in 2 s, without a token');
	$fini->clear_faults;
	$fini->wait_done(undef, 40);
};

done_testing();
