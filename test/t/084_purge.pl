# What has ended can go, and nothing but the rows tells that it has: a database that is purged after every step does what
# one does that never is; the queue drains meanwhile; what is needed stays, what is not needed goes.
#
# FINI_PURGE_SEED and FINI_PURGE_STEPS vary or prolong the first part.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster(databases => 'purged,kept', settings => { 'fini.rate_limit' => 0 },
	gateway => [ '--rate-limit', 0 ], conf => "autovacuum_naptime = 5s\n");
my %ipo = (purged => '1234', kept => '3456');
my $person = 'id_type, id_country_jurisdiction, id_num, full_name_eng';
my $values = q{'PASSPORT', 'GBR', 'P1234567', 'DOE, Jane'};

sub in_db { my ($db, $query) = @_; return $fini->sql($query, database => $db) }
sub settled { my ($db) = @_; return in_db($db, "select fini.wait(timeout => '3 min')") eq 't' || die "$db: not settled" }
sub purge { my ($db, $age) = @_; return in_db($db, "select fini.purge('" . ($age // '0') . "')") }
sub operations { my ($db, $where) = @_; return in_db($db, 'select count(*) from fini.submission where ' . ($where // 'true')) }

# --- the same random steps in both databases ---

my $seed = $ENV{FINI_PURGE_SEED} // 12;
my $steps = $ENV{FINI_PURGE_STEPS} // 50;
note("seed $seed");
srand($seed);
in_db($_, q{select fini.create_subscription_table('live'); select fini.attach('live');
	select fini.create_subscription_table('other'); select fini.attach('other', live => false)}) for keys %ipo;

sub any { my ($n) = @_; return map { 'R' . int(rand(15)) } 1 .. ($n // 1) }
sub list { return join ',', map { "'$_'" } @_ }

# a step: statements, with IPO for the IPO, and what to do at the gateway before
my %step = (
	insert => sub {
		my $table = rand() < 0.7 ? 'live' : 'other';
		return { sql => "insert into $table (own_ref, ipo_id, app_quantity, $person) select r, 'IPO', @{[ 100 + int rand 50 ]}, $values"
			  . " from unnest(array[@{[ list(any(4)) ]}]) r on conflict do nothing" };
	},
	update => sub { return { sql => "update live set app_quantity = app_quantity + 1 where own_ref in (@{[ list(any(4)) ]})" } },
	delete => sub { return { sql => "delete from @{[ rand() < 0.8 ? 'live' : 'other' ]} where own_ref in (@{[ list(any(3)) ]})" } },
	reinsert => sub {
		my $refs = list(any(2));
		return { sql => "with gone as (delete from live where own_ref in ($refs)) select; insert into live (own_ref, ipo_id, app_quantity, $person)"
			  . " select r, 'IPO', 77, $values from (select distinct r from unnest(array[$refs]) r) x" };
	},
	move => sub { my ($from) = any(); return { sql => "update live set own_ref = own_ref || 'm' where own_ref = '$from' and not exists (select from live where own_ref = '${from}m')" } },
	invalidate => sub { return { sql => "select fini.invalidate('@{[ rand() < 0.7 ? 'live' : 'other' ]}', array[@{[ list(any(2)) ]}])" } },
	submit => sub { return { sql => q{select fini.submit('live'); select fini.submit('other')} } },
	unseen => sub {
		return { sql => "set session_replication_role = replica; insert into live (own_ref, ipo_id, app_quantity, $person) select r, 'IPO', 55, $values"
			  . " from unnest(array[@{[ list(any(2)) ]}]) r on conflict do nothing" };
	},
	retry => sub { return { sql => 'select fini.retry()' } },
	truncate => sub { return { sql => 'truncate ' . (rand() < 0.5 ? 'live' : 'other') } },
	reject => sub { return { reject => [ any(4) ], sql => 'update live set app_quantity = app_quantity + 2' } },
	accept => sub { return { reject => [], sql => 'select 1' } },
	cancel => sub {
		return { sql => "select fini.pause('test'); update live set app_quantity = app_quantity + 1 where own_ref in (@{[ list(any(3)) ]});"
			  . " insert into live (own_ref, ipo_id, app_quantity, $person) select r, 'IPO', 44, $values from unnest(array[@{[ list(any(2)) ]}]) r on conflict do nothing;"
			  . " PURGE; select fini.cancel('live', array[@{[ list(any(4)) ]}]); PURGE; select fini.resume()" };
	},
	doubt => sub {
		my $action = rand() < 0.5 ? 'drop-after' : 'drop-before';
		return { faults => [ { endpoint => 'subscriptions/*', action => $action, count => 1 } ],
			sql => "update live set app_quantity = app_quantity + 3 where own_ref in (@{[ list(any(3)) ]}); insert into live (own_ref, ipo_id, app_quantity, $person)"
			  . " select r, 'IPO', 33, $values from unnest(array[@{[ list(any(3)) ]}]) r on conflict do nothing" };
	},
	planted => sub {
		my ($ref) = any();
		return { plant => rand() < 0.5 ? [ 'POST', "/records", [ { ipoID => 'IPO', ownRef => $ref, appQuantity => '9', firmID => '00000', idList => [] } ] ]
			: [ 'PATCH', "/records?ownRef=$ref&ipoID=IPO", { subFlowStatus => rand() < 0.5 ? '10' : '20' } ], sql => 'select 1' };
	},
	agree => sub { return { sql => q{select fini.reconcile('live', 'IPO'); SHOW; select fini.repair(max(run_id)) from fini.reconcile_run} } },
);
my %weight = (insert => 5, update => 5, delete => 4, reinsert => 2, invalidate => 2, doubt => 3, agree => 3, planted => 2);
my @bag = map { ($_) x ($weight{$_} // 1) } sort keys %step;

# identifiers and numbers that cannot be the same in both
sub plain { my ($text, $db) = @_; return $text =~ s/\b$ipo{$db}\b/IPO/gr =~ s/\b\d{16}A\b/RECORD/gr =~ s/\b\d{4}-\d\d-\d\d [\d:.+]+/TIME/gr =~ s/psql:<stdin>:\d+: //gr }

# what can be seen of it all
sub picture
{
	my ($db) = @_;
	my $rows = in_db($db, qq{
		select 'row', t, own_ref, app_quantity, fini_state, fini_error, record_id is not null from (select 'live' t, * from live union all select 'other', * from other) x
		-- a repair also marks what came before as failed, which purged are counted as accepted
		union all select 'count', ipo_id, (accepted + failed)::text, rejected, cancelled::text, null, null from fini.progress
		order by 1, 2, 3});
	my @records = sort map { "$_->{ownRef} $_->{appQuantity} $_->{subFlowStatus}" } grep { $_->{ipoID} eq $ipo{$db} } @{ $fini->dump };
	return join "\n", plain($rows, $db), @records;
}

my $purged = 0;
my $same = 1;
for my $n (1 .. $steps)
{
	my $name = $bag[ rand @bag ];
	my $step = $step{$name}->();
	my %result;

	$fini->config(rejectOwnRefs => $step->{reject}) if $step->{reject};
	for my $db (qw(purged kept))
	{
		my $purge = $db eq 'purged' ? "select 'P' || fini.purge('0')" : 'select';
		my $show = q{select kind, own_ref, field, local, remote from fini.discrepancy where run_id = (select max(run_id) from fini.reconcile_run) order by 1, 2, 3, 4, 5};
		my $sql = $step->{sql} =~ s/IPO/$ipo{$db}/gr =~ s/PURGE/$purge/gr =~ s/SHOW/$show/gr;

		if ($step->{plant})
		{
			my ($method, $path, $body) = @{ $step->{plant} };
			$body = [ { %{ $body->[0] }, ipoID => $ipo{$db} } ] if ref $body eq 'ARRAY';
			eval { $fini->admin($method, $path =~ s/IPO/$ipo{$db}/r, $body) };
		}
		$fini->clear_faults;
		$fini->faults(@{ $step->{faults} }) if $step->{faults};
		my (undef, $out, $err) = $fini->try_sql($sql, database => $db);
		settled($db);
		$result{$db} = plain("$out\n$err", $db) =~ s/^P\d+\n//mgr =~ s/^\(\d+,/(RUN,/mgr =~ s/LOCATION:.*\n//gr . "\n" . picture($db);
		$purged += purge($db) if $db eq 'purged';
	}
	$result{purged} =~ s/^\n+|\n+$//g; $result{kept} =~ s/^\n+|\n+$//g;
	next if $result{purged} eq $result{kept};
	$same = 0;
	my %lines = map { $_ => { map { $_ => 1 } split /\n/, $result{$_} } } keys %result;
	diag("seed $seed, step $n, $name: $step->{sql}");
	diag("purged: $_") for grep { !$lines{kept}{$_} } sort keys %{ $lines{purged} };
	diag("kept: $_") for grep { !$lines{purged}{$_} } sort keys %{ $lines{kept} };
	for my $ref ($result{purged} =~ /\b(R\d+m?)\b/g ? sort keys %{ { map { /\b(R\d+m?)\b/ ? ($1 => 1) : () }
		grep { !$lines{kept}{$_} || !$lines{purged}{$_} } map { keys %$_ } values %lines } } : ())
	{
		diag("$_: $ref\n" . in_db($_, "select id, relation, operation, state, record_id, stray, error_code from fini.submission where own_ref = '$ref' order by id")) for qw(purged kept);
	}
	last;
}
ok($same, "a database that is purged after each of $steps steps does what the other one does");
cmp_ok($purged, '>', $steps / 2, "$purged rows were purged");
cmp_ok(operations('purged'), '<', operations('kept'), operations('purged') . ' operations are left of ' . operations('kept'));
is(in_db('purged', 'select count(*) from fini._tally_differences()'), 0, 'counts agree with what was purged');
is(in_db('purged', 'select fini.recount()'), 0, 'and are not counted down');

# --- what is needed stays, and what is not needed goes ---

my $db = 'kept';
sub row_of { my ($ref, $ipo) = @_; return "('$ref', '" . ($ipo // '5678') . "', 100, $values)" }
sub insert { my ($table, @rows) = @_; return in_db($db, "insert into $table (own_ref, ipo_id, app_quantity, $person) values " . join ', ', @rows) }
sub history { my ($ref) = @_; return in_db($db, "select coalesce(string_agg(operation || ' ' || state, ', ' order by id), 'nothing') from fini.submission where own_ref = '$ref'") }
sub grown_old { my ($ref, $days) = @_; return in_db($db, "update fini.submission set settled_at = settled_at - interval '$days days' where own_ref = '$ref'") }

in_db($db, q{select fini.create_subscription_table('t'); select fini.attach('t')});
$fini->config(rejectOwnRefs => [ 'refused' ]);
insert('t', map { row_of($_) } qw(stands changed withdrawn gone refused refused_gone moved));
settled($db);
in_db($db, q{update t set app_quantity = app_quantity + 1 where own_ref in ('changed', 'gone'); select fini.invalidate('t', array['withdrawn'])});
settled($db);
in_db($db, q{delete from t where own_ref in ('gone', 'refused_gone')});
settled($db);
in_db($db, q{select fini.pause('test'); insert into t select 'cancelled_gone', '5678', 1; delete from t where own_ref = 'cancelled_gone'});
in_db($db, 'select fini.resume()');

subtest 'of each own_ref what a promise rests on' => sub {
	purge($db);
	is(history($_->[0]), $_->[1], $_->[0]) for [ stands => 'add accepted' ], [ changed => 'change accepted' ], [ withdrawn => 'add accepted, invalidate accepted' ],
	  [ gone => 'change accepted, invalidate accepted' ], [ refused => 'add rejected' ], [ cancelled_gone => 'nothing' ];
	is(purge($db), 0, 'nothing is left to do');
	is(in_db($db, q{select fini.submit('t')}), 0, 'nothing is sent again');
	$fini->sql_fails('truncate t', qr/55000: cannot truncate/, 'TRUNCATE is refused', database => $db);
	$fini->sql_fails(q{update t set own_ref = 'x' where own_ref = 'stands'}, qr/55000: own_ref and ipo_id/, 'nor can the own_ref change', database => $db);
	in_db($db, q{update t set app_quantity = 7 where own_ref in ('stands', 'changed')});
	settled($db);
	is(history('stands'), 'add accepted, change accepted', 'a change is a change');
	is((grep { $_->{ownRef} eq 'stands' } @{ $fini->dump(active => 1) })[0]{appQuantity}, '7', 'of the same record');
	insert('t', row_of('gone'));
	settled($db);
	is(history('gone'), 'change accepted, invalidate accepted, add accepted', 'an own_ref that was withdrawn comes again');
	in_db($db, q{delete from t where own_ref = 'gone'});
	settled($db);
};

subtest 'all of it, when the row has gone and the IPO is over' => sub {
	purge($db);
	isnt(history('gone'), 'nothing', 'not while it may be open');
	grown_old($_, 31) for qw(gone withdrawn);
	purge($db, '40 days');
	isnt(history('gone'), 'nothing', 'not before the time');
	purge($db, '20 days');
	is(history('gone'), 'nothing', 'quiet for 30 days');
	is(history('withdrawn'), 'add accepted, invalidate accepted', 'not when there is a row');

	# rows that went behind the triggers, so that their records stand
	insert('t', row_of('late', '3456'), row_of('unlisted', '1234'));
	settled($db);
	in_db($db, q{set session_replication_role = replica; delete from t where own_ref in ('late', 'unlisted')});
	purge($db);
	is(history($_), 'add accepted', "$_: stands") for qw(late unlisted);
	$fini->sql(q{select fini.set_deadline('3456', clock_timestamp() + interval '100 ms'); select pg_sleep(0.11)}, database => $db);
	purge($db);
	is(history('late'), 'nothing', 'the deadline has passed');
	in_db($db, 'select fini.refresh_ipos()');
	$fini->admin('DELETE', '/ipos?ipoID=1234');
	in_db($db, q{select fini.refresh_ipos(); update fini.ipo set last_seen = last_seen - interval '1 day' where ipo_id = '1234'; update fini.submission set settled_at = settled_at - interval '1 day' where own_ref = 'unlisted'});
	purge($db, '1 hour');
	is(history('unlisted'), 'nothing', 'FINI lists others, not this one');
	in_db($db, q{select fini.set_deadline('3456', null)});
	$fini->admin('POST', '/ipos', [ { ipoID => '1234', stkCode => '01234', isin => 'HK0000012345', status => '25' } ]);
};

subtest 'tables that have gone, are detached, locked or cannot be read' => sub {
	in_db($db, "select fini.create_subscription_table('$_'); select fini.attach('$_')") for qw(dropped detached locked broken);
	insert($_, row_of("$_-1"), row_of("$_-2")) for qw(dropped detached locked broken);
	settled($db);
	in_db($db, "set session_replication_role = replica; delete from $_") for qw(dropped detached locked broken);
	in_db($db, "update fini.submission set settled_at = settled_at - interval '31 days' where own_ref ~ '^(dropped|detached|locked|broken)-'");
	my $holder = $fini->node->background_psql($db);
	$holder->query_safe('begin; lock table locked in access exclusive mode');
	in_db($db, q{drop table dropped; select fini.detach('detached', true); alter table broken rename own_ref to other_name});
	purge($db, '1 day');
	is(history('dropped-1'), 'nothing', 'dropped');
	is(history("$_-1"), 'add accepted', "$_: kept") for qw(detached locked broken);
	$holder->query_safe('rollback');
	$holder->quit;
	purge($db, '1 day');
	is(history('locked-2'), 'nothing', 'locked no more');
	is(history('broken-2'), 'add accepted', 'still broken');
};

subtest 'as a whole or not at all' => sub {
	insert('t', row_of('half'));
	settled($db);
	in_db($db, q{delete from t where own_ref = 'half'});
	settled($db);
	grown_old('half', 31);
	my $holder = $fini->node->background_psql($db);
	for my $which (qw(add invalidate))
	{
		$holder->query_safe("begin; update fini.submission set attempts = attempts where own_ref = 'half' and operation = '$which'");
		purge($db, '1 day');
		is(history('half'), 'add accepted, invalidate accepted', "somebody holds the $which: nobody waits, and all of it stays");
		$holder->query_safe('rollback');
	}
	$holder->quit;
	purge($db, '1 day');
	is(history('half'), 'nothing', 'then it goes');
};

subtest 'the other tables' => sub {
	my %kept = map { $_ => in_db($db, "select count(*) from fini.$_") } qw(request reconcile_run discrepancy funding_confirmation ipo_status_history);
	in_db($db, q{insert into fini.funding_seen select ref, '5678', '10', '{}', now(), now() from unnest(array['F1', 'F2', 'F3']) ref;
		insert into fini.funding_confirmation (transaction_ref, ipo_id, status, state, settled_at)
		select ref, '5678', status, state, now() - age from (values ('F1', '20', 'rejected', interval '9 days'), ('F1', '20', 'accepted', '8 days'), ('F1', '20', 'accepted', '7 days'),
			('F2', '20', 'accepted', '9 days'), ('F2', '30', 'rejected', '8 days'), ('F2', '30', 'failed', '7 days'),
			('F3', '20', 'rejected', '9 days'), ('F3', '20', 'accepted', '0 days')) v(ref, status, state, age);
		insert into fini.ipo_status_history values ('H', now() - interval '9 days', '25'), ('H', now() - interval '8 days', '30'), ('H', now() - interval '1 hour', '45');
		insert into fini.reconcile_run (relation, ipo_id, state, started_at, finished_at, started_by, background)
		select 't'::regclass, '5678', state, now() - age - interval '1 minute', now() - age, 'me', false
		from (values ('finished', interval '9 days'), ('failed', '9 days'), ('finished', '0 days')) v(state, age);
		insert into fini.discrepancy (run_id, kind) select run_id, 'missing_locally' from fini.reconcile_run, generate_series(1, 50) where started_by = 'me'});
	my $funding = in_db($db, q{select jsonb_agg(f order by transaction_ref) from fini.funding f});
	# 4 confirmations are old and not needed; 2 runs with their discrepancies; 1 status
	is(purge($db, '5 days'), 4 + 2 * 51 + 1, 'it says how many rows it deleted');
	is(in_db($db, q{select string_agg(transaction_ref || ' ' || status || ' ' || state, ', ' order by id) from fini.funding_confirmation where transaction_ref ~ '^F[123]'}),
		'F1 20 accepted, F2 20 accepted, F2 30 failed, F3 20 accepted', 'confirmations: the last, and what was decided');
	is(in_db($db, q{select jsonb_agg(f order by transaction_ref) from fini.funding f}), $funding, 'fini.funding says what it said');
	$fini->sql_fails(q{select fini.confirm_funding('{F2}', '30')}, qr/55000: .*other status/, 'no decision is contradicted', database => $db);
	is(in_db($db, q{select string_agg(status, ' ' order by seen_at) from fini.ipo_status_history where ipo_id = 'H'}), '30 45', 'what the status has been since then');
	is(in_db($db, q{select count(*) || ' ' || (select count(*) from fini.discrepancy join fini.reconcile_run using (run_id) where started_by = 'me') from fini.reconcile_run where started_by = 'me'}), '1 50', 'runs go with their discrepancies');
	in_db($db, q{insert into fini.request (request_id, endpoint, entries, state, started_at, members) select i::text, 'subscriptions/add', 1, s, now() - interval '9 days', '{}' from unnest(array['answered', 'found_out', 'unknown']) with ordinality u(s, i)});
	is(purge($db, '5 days'), 2, 'requests that were answered or found out');
	is(in_db($db, q{delete from fini.request where request_id = '3' returning state}), 'unknown', 'not what is in doubt');
};

subtest 'who may, and how' => sub {
	in_db($db, "create role $_; select fini.grant_access('$_', '$_')") for qw(submitter operator);
	$fini->sql_fails(q{set role submitter; select fini.purge('1 day')}, qr/42501/, 'no submitter', database => $db);
	is(in_db($db, q{set role operator; select fini.purge('1 day')}), 0, 'an operator');
	$fini->sql_fails(q{select fini.purge('-1 day')}, qr/22023: older_than must not be negative/, 'no negative age', database => $db);
	$fini->sql_fails(q{begin isolation level repeatable read; select fini.purge('1 day')}, qr/25001: .*HINT:.*read committed/s, 'at read committed', database => $db);
};

# --- while the worker drains, and while a purge is held open ---

subtest 'nobody waits for a purge' => sub {
	my $n = 6000;
	in_db($db, q{select fini.create_subscription_table('busy'); select fini.attach('busy')});
	my $holder = $fini->node->background_psql($db);
	in_db($db, "insert into busy (own_ref, ipo_id, app_quantity, $person) select 'B' || i, '5678', 100, $values from generate_series(1, $n) i");
	settled($db);
	in_db($db, q{update busy set app_quantity = 101});
	settled($db);
	# a purge that does not commit
	cmp_ok($holder->query_safe(q{begin; select fini.purge('0')}), '>=', $n, 'a transaction that has purged');
	in_db($db, q{update busy set app_quantity = 102 where own_ref < 'B3'; delete from busy where own_ref >= 'B9'});
	settled($db);
	is(in_db($db, q{select fini.retry(relation => 'busy')}), 0, 'retry');
	ok(1, 'the queue has drained, sessions have worked');
	$holder->query_safe('commit');

	# purges one after the other while rows come, change and go
	my ($rounds, $deleted) = (0, 0);
	my $writer = $fini->node->background_psql($db);
	$writer->query_until(qr/started/, qq{\\echo started
		do \$\$ begin
			for i in 1 .. 20 loop
				insert into busy (own_ref, ipo_id, app_quantity, $person) select 'C' || i || '-' || j, '5678', 100, $values from generate_series(1, 300) j;
				commit;
				update busy set app_quantity = app_quantity + 1 where own_ref ~ ('^C' || (i - 1) || '-');
				commit;
				delete from busy where own_ref ~ ('^C' || (i - 2) || '-.*[05]\$');
				commit;
			end loop;
		end \$\$;
		create table written ();
	});
	$fini->wait_for(sub { $deleted += purge($db); $rounds++; return in_db($db, q{select to_regclass('written') is not null and not exists (select from fini.queue) and not exists (select from fini.request where state in ('sending', 'unknown'))}) eq 't' }, 'the rows to be sent', 300);
	cmp_ok($deleted, '>', 1000, "$rounds purges have deleted $deleted rows meanwhile");
	settled($db);
	$deleted += purge($db);
	$_->quit for $writer, $holder;
	is(in_db($db, q{select count(*) from busy where fini_state is distinct from 'accepted'}), 0, 'every row has its outcome');
	my %active = map { ("$_->{ownRef} $_->{appQuantity}" => 1) } grep { $_->{ownRef} =~ /^[BC]\d/ } @{ $fini->dump(active => 1, ipoID => '5678') };
	my %wanted = map { $_ => 1 } split /\n/, in_db($db, q{select own_ref || ' ' || app_quantity from busy});
	is_deeply([ grep { !$active{$_} } keys %wanted ], [], 'all rows stand at FINI as they are');
	is_deeply([ grep { !$wanted{$_} } keys %active ], [], 'and nothing else does');
	is((split /\|/, in_db($db, q{select * from fini.reconcile('busy', '5678')}))[4] >= 0 && in_db($db, q{select count(*) from fini.discrepancy where own_ref ~ '^[BC]\d' and run_id = (select max(run_id) from fini.reconcile_run)}), 0, 'and a reconciliation says the same');
	is(in_db($db, 'select count(*) from fini._tally_differences()'), 0, 'counts agree');
};

# --- slice by slice, by the worker ---

subtest 'slices' => sub {
	in_db($db, q{update busy set app_quantity = app_quantity + 1});
	settled($db);
	my ($calls, $deleted) = (0, 0);
	my $expected = in_db($db, q{select count(*) from fini.submission s where exists (select from fini.submission l where l.own_ref = s.own_ref and l.relation = s.relation and l.id > s.id and l.state = 'accepted' and l.operation = 'change') and s.own_ref in (select own_ref from busy)});
	for (;;)
	{
		my ($n, $complete) = split /\|/, in_db($db, q{select * from fini._purge('0', 1, false)});
		$deleted += $n; $calls++;
		last if $complete eq 't';
	}
	cmp_ok($calls, '>=', 5, "$calls calls");
	cmp_ok($deleted, '>=', $expected, "have deleted all $expected that were not needed");
	my $holder = $fini->node->background_psql($db);
	$holder->query_safe(q{begin; select fini.purge('1 day')});
	is(in_db($db, q{select * from fini._purge('0', 1, false)}), '0|', 'the worker waits for no other purge, and is told of it');
	$holder->query_safe('rollback');
	$holder->quit;
};

subtest 'fini.retention' => sub {
	in_db($db, q{update busy set app_quantity = app_quantity + 1});
	settled($db);
	my $before = in_db($db, q{select jsonb_agg(p order by ipo_id) from (select ipo_id, accepted, rejected, cancelled, failed from fini.progress) p});
	in_db($db, q{update fini.submission set settled_at = settled_at - interval '2 days'});
	my $all = operations($db);
	my $pid = in_db($db, 'select worker_pid from fini.status');
	in_db($db, qq{alter database $db set fini.retention = '1d'});
	$fini->wait_for(sub { in_db($db, q{select not exists (select from fini.submission s where own_ref in (select own_ref from busy) group by own_ref having count(*) > 1)}) eq 't' }, 'the worker to delete what is old', 60);
	cmp_ok(operations($db), '<', $all - 5000, 'the worker has deleted what is old');
	is(in_db($db, q{select jsonb_agg(p order by ipo_id) from (select ipo_id, accepted, rejected, cancelled, failed from fini.progress) p}), $before, 'the counts are what they were');
	is(in_db($db, q{select count(*) from busy where own_ref ~ '^B1' and fini_state = 'accepted'}), in_db($db, q{select count(*) from busy where own_ref ~ '^B1'}), 'the rows know nothing of it');

	# housekeeping that fails is no reason to stop working
	my $position = $fini->log_position;
	in_db($db, q{alter table fini.purged add constraint never check (n < 0) not valid; update busy set app_quantity = app_quantity + 1 where own_ref ~ '^B1'});
	settled($db);
	in_db($db, qq{update fini.submission set settled_at = settled_at - interval '2 days'; alter database $db set fini.retention = '1h'});
	$fini->wait_for(sub { $fini->log_since($position) =~ /could not delete what is older than fini\.retention: the database refused it.*SQLSTATE 23514/s }, 'the failure to be told', 60);
	in_db($db, q{update busy set app_quantity = app_quantity + 1 where own_ref = 'B1'});
	settled($db);
	is(in_db($db, q{select fini_state from busy where own_ref = 'B1'}), 'accepted', 'and the worker goes on');
};

unlike($fini->log_since(0), qr/PANIC|TRAP:|terminated by signal/, 'nothing crashed');
done_testing();
