# The outbox without the executor: ends of the queue that are remembered, rows that are no longer where they
# were read, indexes that somebody puts on fini's tables, and what they do to their rows.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 50, 'fini.max_in_flight' => 2 }, gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});

sub insert
{
	my ($prefix, $n, $ipo) = @_;
	return sprintf(q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '%s' || g, '%s', 1000, 'PASSPORT', 'GBR', 'P' || g, 'DOE, Jane' from generate_series(1, %d) g}, $prefix, $ipo // '1234', $n);
}

sub states_of
{
	my ($prefix) = @_;
	return $fini->sql("select string_agg(distinct fini_state, ' ') from applications where own_ref like '$prefix%'");
}

subtest 'what commits late, below the end of the queue that the worker knows, under a snapshot that is held' => sub {
	my $late = $node->background_psql('postgres');
	$late->query_safe('begin');
	$late->query_safe(insert('late', 3));
	my $holder = $node->background_psql('postgres');
	$holder->query_safe('begin isolation level repeatable read');
	$holder->query_safe('select count(*) from fini.queue');

	$fini->sql(insert('early', 1000));
	$fini->wait_for(q{select count(*) = 1000 from applications where own_ref like 'early%' and fini_state = 'accepted'}, 'what came first');
	is($fini->sql('select count(*) from fini.queue'), 0, 'the queue is empty for who looks now');
	is($holder->query_safe('select count(*) from fini.queue'), 0, 'and the other snapshot is held');

	$late->query_safe('commit');
	$fini->wait_for(q{select count(*) = 3 from applications where own_ref like 'late%' and fini_state = 'accepted'}, 'what committed late');
	cmp_ok($fini->sql(q{select max(id) from fini.submission where own_ref like 'late%'}), '<',
		$fini->sql(q{select min(id) from fini.submission where own_ref like 'early%'}), 'its place was below all others');

	# what is put back comes with its old id, too
	$fini->faults({ endpoint => 'subscriptions/add', action => 'reject-entries', n => 1, code => '400777', message => 'x', count => 1 });
	$fini->sql(insert('again', 2));
	$fini->wait_done;
	$fini->clear_faults;
	$fini->sql(insert('more', 200));
	$fini->wait_done;
	$fini->sql(q{select fini.retry('1234')});
	$fini->wait_done;
	is($fini->sql(q{select count(*) from fini.submission where state <> 'accepted'}), 0, 'nothing is left over');

	# other IPOs, before and behind, and other kinds
	$fini->sql($_) for insert('low', 2, '0001'), insert('high', 2, '5678'), insert('between', 2, '3456'),
		q{update applications set app_quantity = 2000 where own_ref like 'early_'},
		q{delete from applications where own_ref like 'early__'};
	$fini->wait_done;
	is($fini->sql(q{select string_agg(ipo_id || ' ' || operation || ' ' || state || ' ' || n, ', ' order by ipo_id, operation) from (
			select ipo_id, operation, state, count(*) n from fini.submission
			where ipo_id <> '1234' or operation <> 'add' group by ipo_id, operation, state) x}),
		'0001 add rejected 2, 1234 change accepted 9, 1234 invalidate accepted 90, 3456 add accepted 2, 5678 add accepted 2',
		'each group was seen');
	$_->quit for $late, $holder;
};

subtest 'rows that have moved since they were read get their outcomes' => sub {
	my $hold = sub {
		my ($prefix, @statements) = @_;
		$fini->faults({ endpoint => 'subscriptions/add', action => 'delay', ms => 3000 });
		$fini->sql(insert($prefix, 20));
		$fini->wait_for(qq{select count(*) = 20 from fini.submission where own_ref like '$prefix%' and state = 'sending'}, 'the request to be sent');
		$fini->sql($_) for @statements;
		$fini->clear_faults;
		$fini->wait_done;
		is(states_of($prefix), 'accepted', "$prefix: each row has its outcome");
		is($fini->sql(qq{select count(*) from applications where own_ref like '$prefix%' and record_id is null}), 0, "$prefix: and its record");
		return;
	};
	$hold->('updated', q{update applications set firm_id = firm_id where own_ref like 'updated%'});
	$hold->('some', q{update applications set firm_id = firm_id where own_ref like 'some1%'});
	$hold->('full', q{delete from applications where own_ref like 'more%'}, 'vacuum full applications');
	$hold->('emptied', q{create table kept as select * from applications where own_ref like 'emptied%'},
		q{set session_replication_role = replica; truncate applications}, q{set session_replication_role = replica; insert into applications select * from kept});
};

subtest 'outcomes are written whatever the table has' => sub {
	my %tables = (
		behind_index => q{create index on %s (fini_state) where fini_state = 'accepted'; create unique index on %s (record_id)},
		checked => q{alter table %s add check (fini_state in ('accepted', 'rejected')), alter own_ref set not null},
		refusing => q{alter table %s add constraint never check (fini_state <> 'accepted')},
		triggered => q{create function stamped() returns trigger language plpgsql as $$ begin new.extra := '{"stamp": "1"}'; return new; end $$;
			create trigger stamp before update of fini_state on %s for each row execute function stamped()},
		statement => q{create table said (n int); create function says() returns trigger language plpgsql as $$ begin insert into public.said values (1); return null; end $$;
			create trigger says after update on %s for each statement execute function says()},
		generated => q{alter table %s add short text generated always as (left(fini_state, 3)) stored},
		narrow => q{alter table %s alter fini_error type varchar(10), alter fini_state type varchar(20)},
		domained => q{create domain state_text as text check (value <> 'x'); alter table %s alter fini_state type state_text},
		ruled => q{create table echo (r text); create rule echoes as on update to %s do also insert into echo values (new.own_ref)},
		secured => q{alter table %s enable row level security, force row level security; alter table %s owner to someone;
			create policy most on %s using (own_ref <> 'secured3')},
		wide => q{alter table %s add filler text default repeat(md5('x'), 300), alter filler set storage external},
	);
	$fini->sql('create role someone');
	for my $table (sort keys %tables)
	{
		(my $change = $tables{$table}) =~ s/%s/$table/g;
		$fini->sql("select fini.create_subscription_table('$table'); select fini.attach('$table'); $change");
		$fini->sql(insert($table, 3) =~ s/into applications/into $table/r);
	}
	$fini->wait_done;
	my %expected = map { $_ => 'accepted accepted accepted' } keys %tables;
	$expected{refusing} = '- - -';
	$expected{secured} = 'accepted accepted -';
	is($fini->sql("select string_agg(coalesce(fini_state, '-'), ' ' order by own_ref) from $_"), $expected{$_}, $_) for sort keys %tables;
	is($fini->sql(q{select count(*) from triggered where extra ->> 'stamp' = '1'}), 3, 'a row trigger has seen each');
	is($fini->sql('select count(*) > 0 from said'), 't', 'a statement trigger has been fired');
	is($fini->sql('select string_agg(distinct short, $$ $$) from generated'), 'acc', 'a column was generated anew');
	is($fini->sql('select string_agg(r, $$ $$ order by r) from echo'), 'ruled1 ruled2 ruled3', 'a rule was followed');
	is($fini->sql(q{set enable_seqscan = off; select count(*) from behind_index where fini_state = 'accepted'}), 3, 'an index has them');
	is($fini->sql(q{select string_agg(distinct error_code, ' ') from fini.submission where relation = 'refusing'::regclass}), 'write_back', 'what was refused is noted');
	is($fini->sql('select min(length(filler)) from wide'), 9600, 'what is stored elsewhere is still there');
};

subtest 'indexes that somebody puts on the outbox are kept' => sub {
	$fini->sql(q{create index on fini.submission (settled_at) where state = 'accepted'});
	$fini->sql(q{create index on fini.submission (upper(state), id)});
	$fini->sql(q{create index on fini.queue ((id % 7)) where operation = 'add'});
	$fini->sql("select fini.pause(); " . insert('indexed', 300));
	is($fini->sql(q{set enable_seqscan = off; select sum(n) from fini.queue where id % 7 >= 0 and operation = 'add'}), 300, 'the queue\'s');
	$fini->sql('select fini.resume()');
	$fini->wait_done;
	for my $condition (q{settled_at > '-infinity' and state = 'accepted'}, q{upper(state) = 'ACCEPTED'}, q{id > 0}, q{own_ref = 'indexed7'})
	{
		my $scan = sub { $fini->sql("set enable_seqscan = $_[0]; set enable_indexscan = $_[1]; set enable_bitmapscan = $_[1]; select count(*) from fini.submission where $condition") };
		is($scan->('off', 'on'), $scan->('on', 'off'), "$condition: index and table agree");
	}
};

subtest 'what is missing is named' => sub {
	my $from = $fini->log_position;
	$fini->sql_fails(q{begin; drop index fini.submission_own_ref; select fini.pause(); } . insert('x', 1) . '; select 1/0', qr/22012/, 'enqueueing needs no index on own_ref');
	$fini->sql(q{drop index fini.submission_own_ref});
	$fini->sql(insert('unindexed', 1));
	$fini->wait_for(sub { $fini->log_since($from) =~ /lacks its index on column own_ref of table submission/ }, 'the worker to say so');
	$fini->sql(q{create index submission_own_ref on fini.submission using hash (own_ref)});
	$fini->wait_done;
	is(states_of('unindexed'), 'accepted', 'and it goes on when it is back');
};

is($fini->stats->{duplicates}, 0, 'one application, one record');
done_testing();
