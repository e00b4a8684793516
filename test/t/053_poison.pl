# Rows, tables and disks at fault: what is concerned is set aside with its reason, or waits; everything else goes on, the
# worker stays, and the log has a line, not thousands.

use strict;
use warnings;

use FiniModule;
use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# a disk that is full while a file is there
my $flag = "$PostgreSQL::Test::Utils::tmp_check/full_disk";
my $space = "$PostgreSQL::Test::Utils::tmp_check/small_space";
mkdir $space or die "$space: $!";
my $fini;
{
	local $ENV{LD_PRELOAD} = FiniModule::build('full_disk.c', '-ldl');
	local $ENV{FINI_FULL_DISK} = $flag;
	$fini = FiniTest->new(
		databases => 'postgres, small',
		settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 500, 'fini.request_timeout' => '5s' },
		gateway => [ '--rate-limit', 0 ]);
}
my $node = $fini->node;
$fini->sql("create tablespace small location '$space'");
$fini->sql('create database small tablespace small');
$fini->sql('create extension fini; select fini.arm()', database => $_) for qw(postgres small);

sub full { FiniSandbox::write_file($flag, 'small_space'); return }
sub free { unlink $flag; return }
sub lines { my ($log, $pattern) = @_; my $n = () = $fini->log_since($log) =~ /$pattern/g; return $n }

sub ticks
{
	my ($pid) = @_;
	my @field = split ' ', PostgreSQL::Test::Utils::slurp_file("/proc/$pid/stat") =~ s/^.*\)//sr;
	return $field[11] + $field[12];
}

sub queries { return $fini->stats->{requests}{'subscriptions/query'} // 0 }

sub holds
{
	my ($what, $code) = @_;
	subtest $what => sub {
		my $worker = $fini->sql('select worker_pid from fini.status');
		eval { $code->(); 1 } or do { fail('went through'); diag $@ };
		free();
		$fini->clear_faults;
		is($fini->sql('select worker_pid from fini.status'), $worker, 'by the same worker');
		is($fini->stats->{duplicate_adds}, 0, 'nothing twice');
	};
	return;
}

# fini's own tables, and all else of a database, are on the full disk
holds 'a full disk on settle' => sub {
	my @small = (database => 'small');
	$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')}, @small);
	$fini->new_table('elsewhere');
	$fini->insert_rows('applications', 'WARM', 1, undef, @small);
	$fini->wait_for(sub { $fini->sql('select fini_state from applications', @small) eq 'accepted' }, 'a first row');
	my $worker = $fini->sql('select worker_pid from fini.status', @small);

	# nothing that has been replaced can be used again, so every update needs room
	my $snapshot = $node->background_psql('small');
	$snapshot->query_safe('begin isolation level repeatable read; select count(*) from applications;');
	$fini->sql(q{select fini.pause()}, @small);
	$fini->insert_rows('applications', 'FULL', 3000, undef, @small);
	$fini->faults({ endpoint => 'subscriptions/add', action => 'delay', ms => 1500, count => 6 });
	$fini->sql(q{select fini.resume()}, @small);
	$fini->wait_for(sub { $fini->stats->{faults}{delay} // 0 }, 'requests to be under way');
	my $log = $fini->log_position;
	full();
	$fini->wait_for(sub { lines($log, 'LOG: .*fini: could not ') }, 'the disk to be full');
	like($fini->sql('select last_error from fini.status', @small), qr/could not .*\(SQLSTATE 53100\)/, 'fini.status tells of it');

	# the other database goes on
	$fini->insert_rows('elsewhere', 'ELSEWHERE', 100);
	$fini->wait_done;
	is($fini->sql(q{select count(*) from elsewhere where fini_state = 'accepted'}), 100, 'another database goes on');

	# for a while
	my ($begin, $ticks) = (time, ticks($worker));
	$fini->wait_for(sub { time - $begin > 5 }, 'five seconds');
	cmp_ok(ticks($worker) - $ticks, '<', 100, 'the worker does not spin');
	is(lines($log, 'fini: could not '), 1, 'one line in the log');
	is($fini->sql('select worker_pid from fini.status', @small), $worker, 'the worker has not ended');
	cmp_ok($fini->sql(q{select count(*) from fini.request where state = 'sending'}, @small), '>', 0, 'there are requests that could not be settled');

	# there is room again
	my $queries = queries();
	free();
	$fini->wait_for(sub { $fini->sql(q{select count(*) = 3001 from applications where fini_state = 'accepted'}, @small) eq 't' }, 'everything to be settled', 120);
	is(queries(), $queries, 'what was answered has not been looked for');
	is($fini->sql(q{select count(*) from fini.submission where state = 'accepted' and attempts = 1}, @small), 3001, 'nor sent again');
	is($fini->sql('select worker_pid from fini.status', @small), $worker, 'by the same worker');
	$snapshot->query_safe('commit;');
	$snapshot->quit;
};

# a lock that outlasts the worker's patience does the same at other moments
for my $moment ('what was in doubt has been found', 'operations are claimed')
{
	holds "a lock held for long when $moment" => sub {
		my $claim = $moment =~ /claimed/;
		my $prefix = $claim ? 'CLAIMED' : 'FOUND';
		my $count = qq{select count(*) from fini.submission where own_ref like '$prefix%' and state};
		$fini->new_table(lc $prefix);
		$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after' },
			{ endpoint => 'subscriptions/query', action => 'status-before', status => 503, count => -1 }) if !$claim;
		$fini->sql('select fini.pause()') if $claim;
		$fini->insert_rows(lc $prefix, $prefix, 20);
		$fini->wait_for("$count = 'unknown'" =~ s/count\(\*\)/count(*) = 20/r, 'the rows to be in doubt') if !$claim;

		my $holder = $node->background_psql('postgres');
		$holder->query_safe('begin; lock table fini.request in share mode;');
		my $log = $fini->log_position;
		$fini->clear_faults;
		$fini->sql('select fini.resume()');
		my $text = $claim ? 'claim add operations of IPO "1234"' : 'settle what was found of request';
		$fini->wait_for(sub { lines($log, "LOG: .*fini: could not $text") }, 'the worker to give up waiting', 60);
		like($fini->sql('select last_error from fini.status'), qr/could not .*lock timeout.*SQLSTATE 55P03/, 'fini.status tells of it');
		is($fini->sql($claim ? "$count = 'queued'" : "$count = 'unknown'"), 20, 'the rows are as they were');
		is(lines($log, 'LOG: .*fini: could not '), 1, 'one line in the log');
		$holder->query_safe('commit;');
		$holder->quit;
		$fini->sql('select fini.resume()');	# need not wait for the pause to end
		$fini->wait_for("$count = 'accepted'" =~ s/count\(\*\)/count(*) = 20/r, 'the rows to be accepted', 90);
		is($fini->sql(qq{select max(attempts) from fini.submission where own_ref like '$prefix%'}), 1, 'sent once');
	};
}

# so do its looks at the queue, the deadlines and the counts
holds 'tables that are only read are locked for long' => sub {
	my $of_worker = q{select pid from pg_stat_activity where backend_type = 'fini worker' and datname = 'postgres'};
	my $worker = $fini->sql('select worker_pid from fini.status');
	$fini->new_table('kept_out');
	$fini->sql(q{select fini.set_deadline('1234', now() + interval '1 day')});
	$fini->sql('select fini.pause()');
	$fini->insert_rows('kept_out', 'KEPT', 20);
	my $holder = $node->background_psql('postgres');
	$holder->query_safe('begin; lock table fini.queue, fini.deadline, fini.tally, fini.funding_confirmation, fini.reconcile_run in access exclusive mode;');
	my $log = $fini->log_position;
	$fini->sql('select fini.resume()');
	$fini->wait_for(sub { lines($log, 'LOG: .*fini: could not ') }, 'the worker to give up waiting', 60);
	# as long again
	my $until = time + 12;
	$fini->wait_for(sub { time > $until || $fini->sql($of_worker) ne $worker }, 'some more looks');
	is($fini->sql($of_worker), $worker, 'the worker goes on');
	is(lines($log, 'LOG: .*fini: could not '), 1, 'one line in the log');
	$holder->query_safe('commit;');
	$holder->quit;
	$fini->wait_for(q{select count(*) = 20 from fini.submission where own_ref like 'KEPT%' and state = 'accepted'}, 'the rows to be accepted', 90);
	$fini->sql(q{select fini.set_deadline('1234', null)});
};

# only the user's table is
holds "a full disk under the user's table" => sub {
	$fini->new_table('crowded', 'roomy');
	$fini->sql('alter table crowded set (fillfactor = 100); alter table crowded set tablespace small');
	$fini->sql('select fini.pause()');
	$fini->insert_rows('crowded', 'CROWDED', 400);
	my $log = $fini->log_position;
	full();
	$fini->sql('select fini.resume()');
	$fini->wait_done;
	is_deeply($fini->states(q{relation = 'crowded'::regclass}), { accepted => 400 }, 'the outbox has the outcomes');
	$fini->wait_for(q{select count(*) > 0 from fini.unwritten}, 'outcomes that could not be written');
	$fini->insert_rows('roomy', 'ROOMY', 50);
	$fini->wait_for(q{select count(*) = 50 from roomy where fini_state = 'accepted'}, 'another table');
	cmp_ok(lines($log, 'LOG: .*fini:'), '<=', 1, 'no more than one line in the log');
	free();
	$fini->wait_for(q{select count(*) = 400 from crowded where fini_state = 'accepted' and record_id is not null}, 'the outcomes', 60);
	is($fini->sql('select count(*) from fini.unwritten'), 0, 'nothing is left');
};

# owners that are nobody special
$fini->sql(q{create role broker login; select fini.grant_access('broker', 'operator'); create schema broker authorization broker});

sub owned_table
{
	my ($table) = @_;
	$fini->sql("set role broker; select fini.create_subscription_table('broker.$table'); select fini.attach('broker.$table')");
	return "broker.$table";
}

for my $case (
	[ 'unreadable', 'revoke select on broker.unreadable from broker', 'grant select on broker.unreadable to broker' ],
	[ 'unreachable', 'alter schema broker owner to current_user', 'alter schema broker owner to broker' ])
{
	my ($name, $revoke, $grant) = @$case;
	holds "a privilege that the table's owner has lost: $revoke" => sub {
		my $table = owned_table($name);
		my $prefix = uc $name;
		$fini->new_table("beside_$name");
		$fini->sql('select fini.pause()');
		$fini->insert_rows($table, $prefix, 20);
		$fini->insert_rows("beside_$name", "BESIDE-$prefix", 20);
		$fini->sql($revoke);
		my $log = $fini->log_position;
		$fini->sql('select fini.resume()');
		$fini->wait_done;
		is($fini->sql("select string_agg(distinct concat_ws(' ', state, error_code), ', ') from fini.submission where own_ref like '$prefix%'"),
			'failed table_unreadable', 'the rows are set aside');
		like($fini->sql("select max(error_message) from fini.submission where own_ref like '$prefix%'"), qr/SQLSTATE 42501.*permission denied/, 'with the reason');
		is($fini->sql("select count(*) from beside_$name where fini_state = 'accepted'"), 20, 'another table goes on');
		is(lines($log, 'fini: rows of table'), 1, 'one line in the log');

		$fini->sql($grant);
		is($fini->sql("select fini.retry(relation => '$table')"), 20, 'mended, they are put back');
		$fini->wait_done;
		is($fini->sql("select count(*) from $table where fini_state = 'accepted'"), 20, 'and accepted');
	};
}

holds 'a table whose owner may not write any more' => sub {
	my $table = owned_table('unwritable');
	$fini->sql("revoke update on $table from broker");
	my $log = $fini->log_position;
	$fini->insert_rows($table, 'UNWRITABLE', 20);
	$fini->wait_done;
	is_deeply($fini->states("relation = '$table'::regclass"), { accepted => 20 }, 'the outbox has the outcomes');
	is($fini->sql("select count(*) from fini.submission where relation = '$table'::regclass and error_message ~ 'could not be written.*42501'"), 20, 'and says that the table has not');
	is(lines($log, 'LOG: +fini: .* could not be written'), 1, 'one line in the log');
	is($fini->sql('select count(*) from fini.unwritten'), 0, 'it is not tried for ever');
};

holds "a user's trigger that raises on the outcome of a row" => sub {
	$fini->new_table('picky');
	$fini->sql(q{create function picky() returns trigger language plpgsql as $$ begin
			if new.own_ref = 'PICKY7' then raise exception 'not this one: %', new.full_name_eng; end if; return new; end $$;
		create trigger picky before update on picky for each row execute function picky()});
	my $log = $fini->log_position;
	$fini->insert_rows('picky', 'PICKY', 20);
	$fini->wait_done;
	is($fini->sql(q{select string_agg(own_ref, ',') from picky where fini_state is null}), 'PICKY7', 'the others have their outcomes');
	is($fini->sql(q{select state || ' ' || (error_message ~ 'could not be written.*P0001') from fini.submission where own_ref = 'PICKY7'}), 'accepted true', 'the outbox has its own');
	is(lines($log, 'LOG: +fini: .* could not be written'), 1, 'one line in the log');
	unlike($fini->log_since($log) =~ s/^.*(statement|STATEMENT): .*$//mgr, qr/Name 7/, 'without what the trigger said');
};

# a table altered while its rows are queued
for my $case (
	[ 'a mapped column dropped' => 'alter table %s drop column id_num', 'alter table %1$s add column id_num text; update %1$s set id_num = %2$s', 'failed table_unreadable' ],
	[ 'a mapped column renamed' => 'alter table %s rename column full_name_eng to name', 'alter table %s rename column name to full_name_eng', 'failed table_unreadable' ],
	[ 'a type changed' => 'alter table %s alter column app_quantity type text using app_quantity || %3$s', 'alter table %1$s alter column app_quantity type bigint using 1000', undef ],
	[ 'row security that hides the rows' => 'alter table %s enable row level security; alter table %1$s force row level security', 'alter table %s no force row level security', 'failed row_missing' ])
{
	my ($name, $break, $mend, $outcome) = @$case;
	holds $name => sub {
		(my $table = "broker.altered_" . lc $name) =~ s/\W+/_/g;
		$table =~ s/^broker_/broker./;
		my $prefix = uc($table =~ s/broker\.altered_//r) . '-';
		owned_table($table =~ s/broker\.//r);
		$fini->new_table('steady') if $fini->sql(q{select to_regclass('steady') is null}) eq 't';
		$fini->sql('select fini.pause()');
		$fini->insert_rows($table, $prefix, 10);
		$fini->insert_rows('steady', "STEADY-$prefix", 10);
		$fini->sql(sprintf $break, $table, q{'P' || 1}, q{' shares'});
		my $log = $fini->log_position;
		$fini->sql('select fini.resume()');
		$fini->wait_done;
		is($fini->sql("select count(*) from steady where own_ref like 'STEADY-$prefix%' and fini_state = 'accepted'"), 10, 'another table goes on');
		my $states = $fini->sql("select string_agg(distinct concat_ws(' ', state, error_code), ', ') from fini.submission where own_ref like '$prefix%'");
		if ($outcome) { is($states, $outcome, 'the rows are set aside, with the reason') }
		else { like($states, qr/^rejected \w+$/, "the rows are set aside: $states") }
		cmp_ok(lines($log, 'fini: '), '<=', 2, 'no more than a line for reading and one for writing');
		is($fini->sql("select max(attempts) from fini.submission where own_ref like '$prefix%'"), 1, 'they are not tried for ever');

		$fini->sql(sprintf $mend, $table, q{'P' || 1}, q{' shares'});
		$fini->sql("select fini.retry(relation => '$table')");
		$fini->wait_done;
		is($fini->sql("select count(*) from $table where fini_state = 'accepted'"), 10, 'mended, they go');
	};
}

# what is in doubt when its row becomes one that cannot be sealed: a late copy must not meet the same rows under another ID.
# An entry of 999 levels can be, but not in the two levels of a request.
for my $levels (1502, 999)
{
	holds "a row of $levels levels, which cannot be sealed, when it is to be sent again" => sub {
		my $prefix = "RESEALED$levels-";
		$fini->new_table("resealed$levels");
		$fini->sql(q{alter system set fini.request_timeout = '2s'});
		$fini->sql('select pg_reload_conf()');
		$fini->faults({ endpoint => 'subscriptions/add', action => 'delay', ms => 3500 });
		$fini->insert_rows("resealed$levels", $prefix, 5);
		$fini->wait_for(qq{select count(*) = 5 from fini.submission where own_ref like '$prefix%' and state = 'sending'}, 'the request to be under way');
		$fini->sql(sprintf q{update resealed%1$d set id_type = null, id_country_jurisdiction = null, id_num = null, full_name_eng = null,
			id_list = jsonb_build_array(jsonb_build_object('idNum', 'A1', 'x', (repeat('[', %2$d) || repeat(']', %2$d))::jsonb)) where own_ref = '%3$s3'}, $levels, $levels - 3, $prefix);
		$fini->wait_done(undef, 60);
		is($fini->sql(qq{select count(*) from fini.submission where own_ref like '$prefix%' and operation = 'add' and state = 'accepted'}), 5, 'the late copy has been found');
		is($fini->sql(qq{select state || ' ' || error_code from fini.submission where own_ref = '${prefix}3' and operation = 'change'}), 'rejected unsealable', 'the change is rejected');
		is($fini->sql(qq{select count(distinct own_ref) from fini.submission where own_ref like '$prefix%'}), scalar(grep { $_->{ownRef} =~ /^$prefix/ } @{ $fini->dump }), 'one record each');
	};
}

holds 'a row that can be sealed, but not in a request' => sub {
	$fini->new_table('deep');
	$fini->sql('select fini.pause()');
	$fini->insert_rows('deep', 'DEEP', 7);
	$fini->sql(q{update deep set id_type = null, id_country_jurisdiction = null, id_num = null, full_name_eng = null,
		id_list = jsonb_build_array(jsonb_build_object('idNum', 'A1', 'x', (repeat('[', 996) || repeat(']', 996))::jsonb)) where own_ref = 'DEEP3';
		select fini.resume()});
	$fini->wait_done(undef, 60);
	is($fini->sql(q{select string_agg(concat_ws(' ', own_ref, state, error_code, error_message), ', ') from fini.submission where own_ref like 'DEEP%' and state <> 'accepted'}),
		'DEEP3 rejected unsealable payload is nested too deeply', 'it is rejected alone, with the reason');
	is($fini->sql(q{select count(*) from deep where fini_state = 'accepted'}), 6, 'those of the same request are accepted');
};

done_testing();
