# Sessions that keep what they know of the outbox's tables from one INSERT to the next: whatever others, or they
# themselves, do to these tables and their indexes, the next row is in all of them.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;
my $amcheck = $fini->sql(q{select count(*) from pg_available_extensions where name = 'amcheck'});
$fini->sql('create extension amcheck') if $amcheck;
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications'); select fini.pause()});

my $session = $node->background_psql('postgres', on_error_stop => 0);
my $rows = 0;

sub insert
{
	my ($n, $table) = @_;
	$rows += $n;
	return sprintf(q{insert into %s (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select 'r' || g, '1234', 1000, 'PASSPORT', 'GBR', 'P' || g, 'DOE, Jane' from generate_series(%d, %d) g}, $table // 'applications', $rows - $n + 1, $rows);
}

# what the statement fails with
sub error_of
{
	my ($sql) = @_;
	$session->query($sql);
	my $said = $session->{stderr};
	$session->{stderr} = '';
	return $said;
}

# all rows are queued, and each index of both tables knows what the table knows
sub agree
{
	my ($name) = @_;
	my @problems;

	push @problems, 'rows: ' . $fini->sql(q{select count(*) || ' ' || count(*) filter (where state = 'queued') from fini.submission})
	  if $fini->sql("select count(*) = $rows from fini.submission where state = 'queued'") ne 't';
	push @problems, 'queue' if $fini->sql(qq{select count(*) = $rows and sum(n) = $rows from fini.submission s join fini._listed l using (id, ipo_id, operation)
			left join (select id, n from fini.queue) q using (id)}) ne 't';
	push @problems, 'own_refs' if $fini->sql(qq{set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off;
		select count(*) = $rows from generate_series(1, $rows) g join fini.submission s on s.own_ref = 'r' || g}) ne 't';
	if ($amcheck)
	{
		my ($rc, $out, $err) = $fini->try_sql(q{select bt_index_check(i.indexrelid, true) from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
			where i.indrelid in ('fini.submission'::regclass, 'fini.queue'::regclass) and a.amname = 'btree' and i.indisvalid});
		push @problems, $err if $rc != 0;
	}
	return is(join("\n", @problems), '', $name);
}

$session->query_safe(insert(1));
$session->query_safe(insert(3));
agree('as installed');

for my $change (
	q{create index more_state on fini.submission (state)},
	q{create index concurrently more_id on fini.queue (id)},
	q{create index more_sent on fini.submission (id) where sent_at is not null and state = 'accepted'},
	q{create index more_both on fini.submission (settled_at, id) include (own_ref) where settled_at is not null},
	q{create index more_not_null on fini.submission (id) where own_ref is not null},
	q{create index more_known on fini.queue (not_before, id) where id is not null},
	q{reindex table concurrently fini.submission},
	q{reindex table fini.queue},
	q{create index more_upper on fini.submission (upper(state))},
	q{create index more_part on fini.queue (id) where operation = 'add'},
	q{drop index concurrently fini.more_upper},
	q{drop index fini.more_part},
	q{alter table fini.queue add constraint more_unique unique (id) deferrable initially deferred},
	q{alter table fini.queue drop constraint more_unique},
	q{create unique index more_once on fini.submission (own_ref, id)},
	q{alter index fini.more_once rename to more_renamed},
	q{create index more_brin on fini.submission using brin (created_at)},
	q{drop index fini.more_brin},
	q{vacuum full fini.queue},
	q{cluster fini.submission using submission_pkey},
	q{analyze fini.submission, fini.queue},
	q{alter table fini.submission set (fillfactor = 60)},
	q{alter table fini.submission add more integer},
	q{do $$ begin for i in 1 .. 8 loop execute format('create index many%s on fini.submission (id)', i); end loop; end $$},
	q{do $$ begin for i in 1 .. 8 loop execute format('drop index fini.many%s', i); end loop; end $$},
	q{alter table fini.submission drop more},
	q{drop index fini.more_state, fini.more_id, fini.more_both, fini.more_sent, fini.more_not_null, fini.more_known, fini.more_renamed})
{
	$fini->sql($change);
	$session->query_safe(insert(1));
	$session->query_safe(insert(2));
	agree($change =~ s/^do .*execute format\('(\w+ index).*/eight times $1/r);
}

subtest 'in the middle of a transaction' => sub {
	$session->query_safe('begin');
	$session->query_safe(insert(1));
	my $builder = $node->background_psql('postgres');
	$builder->query_until(qr/begun/, "\\echo begun\ncreate index concurrently slow on fini.queue (id, ipo_id);\n");
	$fini->wait_for(q{select count(*) > 0 from pg_stat_activity where query like 'create index concurrently slow%' and wait_event_type = 'Lock'}, 'the index to wait');
	$session->query_safe(insert(2));
	$session->query_safe('savepoint a; create index inner_one on fini.submission (operation)');
	$session->query_safe(insert(1));
	$session->query_safe('rollback to a');
	$rows--;
	$session->query_safe(insert(1));
	$session->query_safe('create index inner_two on fini.submission (operation)');
	$session->query_safe(insert(2));
	$session->query_safe('commit');
	$fini->wait_for(q{select indisvalid from pg_index where indexrelid = 'fini.slow'::regclass}, 'the index to be there');
	$builder->quit;
	agree('an index that waited, one that was undone, one that was not');
	$session->query_safe(insert(2));
	agree('and the next transaction');
	$fini->sql('drop index fini.slow, fini.inner_two');
};

subtest 'an index that is being built' => sub {
	for my $build (q{create index concurrently slow on fini.queue (id, ipo_id)}, q{reindex index concurrently fini.submission_pkey})
	{
		my ($writer, $reader, $builder) = map { $node->background_psql('postgres') } 1 .. 3;
		my $phase = sub { return qq{select count(*) > 0 from pg_stat_progress_create_index where phase = '$_[0]'} };

		$reader->query_safe('begin isolation level repeatable read; select count(*) from pg_class');
		$writer->query_safe('begin; ' . insert(1));
		$builder->query_until(qr/begun/, "\\echo begun\n$build;\n");
		$fini->wait_for($phase->('waiting for writers before build'), 'an index that takes no rows yet');
		$session->query_safe(insert(1));
		$writer->query_safe('commit');
		$fini->wait_for($phase->('waiting for old snapshots'), 'an index that takes rows, and has all that were there');
		$session->query_safe(insert(2));
		$reader->query_safe('commit');
		$builder->query_safe('select 1');
		$_->quit for $writer, $reader, $builder;
		agree($build);
	}
	$fini->sql('drop index fini.slow');
};

subtest 'what is not there any more is named, and the session goes on when it is back' => sub {
	for my $case (
		[ 'alter table fini.queue rename ipo_id to other', qr/lacks its column ipo_id of table queue/ ],
		[ 'alter table fini.submission rename to other', qr/lacks its table submission/ ],
		[ 'alter sequence fini.submission_id_seq rename to other', qr/lacks its sequence submission_id_seq/ ],
		[ 'alter schema fini rename to other', qr/schema "fini" does not exist/ ])
	{
		my ($change, $message) = @$case;
		$session->query_safe("begin; $change");
		my $said = error_of(insert(1));
		$rows--;
		$session->query_safe('rollback');
		like($said, $message, $change);
		$session->query_safe(insert(1));
		agree("$change: undone");
	}
};

subtest 'errors in the middle' => sub {
	# a unique index of somebody's that refuses the second of two, after the first has all its entries
	$fini->sql(q{create unique index refuses on fini.submission (own_ref)});
	$session->query_safe(q{create table others (like applications including all); select fini.attach('others')});
	$session->query_safe('begin; savepoint a');
	my $before = $rows;
	$rows = 0;
	like(error_of(insert(2, 'others')), qr/refuses/, 'an own_ref of another table');
	$rows = $before;
	$session->query_safe('rollback to a');
	$session->query_safe(insert(3));
	$session->query_safe('commit');
	agree('what came after the error');
	$fini->sql('drop index fini.refuses');
	$session->query_safe(insert(1));
	agree('and without the index');
};

subtest 'triggers within triggers, other formats and other rights' => sub {
	$session->query_safe(q{create function pass_on() returns trigger language plpgsql as $$ begin
			insert into passed select * from applications where own_ref = new.own_ref and own_ref not in (select own_ref from passed); return null; end $$;
		create table passed (like applications including all);
		create trigger aa_pass after insert on applications for each row execute function pass_on();
		create trigger zz_pass after insert on applications for each row execute function pass_on();
		select fini.attach('passed')});
	$session->query_safe(insert(2));
	is($fini->sql(q{select string_agg(relation || ' ' || n, ', ' order by relation::text) from (select relation, count(*) n from fini.submission
			where own_ref in (select own_ref from passed) group by relation) x}), 'applications 2, passed 2', 'both tables have asked');
	$session->query_safe('drop trigger aa_pass on applications; drop trigger zz_pass on applications');
	$fini->sql(q{set session_replication_role = replica; delete from fini.queue q using fini.submission s where s.id = any (coalesce(q.ids, array[q.id])) and s.relation = 'passed'::regclass;
		delete from fini.submission where relation = 'passed'::regclass});

	# ipo_ids that are too long, values that are compressed or stored elsewhere, columns of other types
	$session->query_safe(q{create table numbered (n bigint primary key, offer varchar(3000) not null, units bigint, doc text);
		alter table numbered alter offer set storage external;
		select fini.attach('numbered', '{"ownRef":"n", "ipoID":"offer", "appQuantity":"units", "idNum":"doc"}', '{}');
		insert into numbered select g, repeat('ä', 2900), 1 from generate_series(1, 2) g;
		insert into numbered values (3, '77', 1)});
	is($fini->sql(q{select string_agg(s.own_ref || ' ' || length(q.ipo_id) || ' ' || octet_length(q.ipo_id), ', ' order by s.id) from fini.submission s join fini._listed q using (id)
			where relation = 'numbered'::regclass}), '1 100 200, 2 100 200, 3 2 2', 'long ones are clipped');
	$session->query_safe(q{delete from numbered});

	$fini->sql(q{create role clerk; grant insert on applications to clerk; create schema trap; grant all on schema trap to clerk});
	$session->query_safe(q{set role clerk; create table trap.submission (id int); create table trap.queue (id int);
		set search_path = trap, pg_catalog, public});
	$session->query_safe(insert(1));
	$session->query_safe(insert(2));
	is($session->query_safe('show search_path'), 'trap, pg_catalog, public', 'the path is as it was');
	is($session->query_safe('select current_user'), 'clerk', 'and so is the user');
	like(error_of(q{insert into applications (own_ref, ipo_id) values ('r1', '1234')}), qr/applications_pkey/, 'an own_ref that is there');
	like(error_of(q{select * from fini.submission}), qr/permission denied/, 'no rights are left over');
	is($session->query_safe('select current_user'), 'clerk', 'after an error, too');
	# functions of somebody's indexes run with our rights, so not with the user's search_path
	$fini->sql(q{create function public.keyed(text) returns text immutable language plpgsql as $$ begin return lower($1); end $$;
		create function public.compared(text, text) returns integer immutable language plpgsql as $$ begin return lower('-1')::int * bttextcmp($2, $1); end $$;
		create operator class public.text_compared for type text using btree as operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 public.compared(text, text)});
	$session->query_safe(q{create function trap.lower(text) returns text language plpgsql immutable as
		$$ begin perform set_config('trap.who', current_user, false); return pg_catalog.lower($1); end $$});
	for my $key ('public.keyed(state)', 'state public.text_compared')
	{
		$fini->sql("create index somebodys on fini.submission ($key)");
		$session->query_safe(q{select set_config('trap.who', 'nobody', false)});
		$session->query_safe(insert(2));
		is($session->query_safe(q{select current_setting('trap.who')}), 'nobody', "an index on $key");
		$fini->sql('drop index fini.somebodys');
	}
	$session->query_safe('reset role; reset search_path');
	$session->query_safe(insert(1));
	is($fini->sql(qq{select count(*) from fini.submission where relation = 'applications'::regclass and state = 'queued'}), $rows, 'all are queued');
};

$session->quit;
$fini->sql('select fini.resume()');
$fini->wait_for(q{select count(*) = 0 from fini.queue}, 'the queue to be empty');
$fini->wait_for(q{select queued + sending + unknown = 0 from fini.status}, 'all outcomes');
is($fini->sql(qq{select count(*) from applications where fini_state = 'accepted'}), $rows, 'and sent, each');
is($fini->stats->{duplicates}, 0, 'one application, one record');
done_testing();
