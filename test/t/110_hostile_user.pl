# A user who means harm: whatever he makes of his table, types, operators and search path, what he wrote runs as
# himself; nobody gains a right, nobody's rows are read or changed that should not be, and the worker goes on.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
	conf => "log_statement = none\nlog_min_error_statement = panic\n");
my $worker = $fini->sql('select worker_pid from fini.status');

$fini->sql(q{
	create role mallory login; create role victim login; create role clerk login; create role nobody login;
	select fini.grant_access('mallory', 'operator'), fini.grant_access('victim', 'operator'), fini.grant_access('clerk', 'submitter');
	create schema den authorization mallory; grant usage on schema den to public;
	create schema vault authorization victim;
	create table den.log (what text, who text, is_super boolean, session_who text, path text, pid int default pg_backend_pid());
	alter table den.log owner to mallory; grant insert on den.log to public});

sub as { my ($role, $sql, %opt) = @_; return $fini->sql("set session authorization $role; set search_path = " . ($opt{path} // 'den, pg_catalog') . "; $sql") }
sub fails_as { my ($role, $sql, $pattern, $name) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return $fini->sql_fails("set session authorization $role; set search_path = den, pg_catalog; $sql", $pattern, $name) }

my $columns = 'own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng';
# each application has a document of its own
my $values = q{'1234', 100, 'PASSPORT', 'GB', 'P1234567' || substr(md5(random()::text), 1, 12), 'Chan Tai Man'};

# note(what) writes down as whom it runs, and gives true
as('mallory', q{
	create function den.note(what text) returns boolean language plpgsql volatile as $$
	begin
		insert into den.log (what, who, is_super, session_who, path) values (what, current_user,
			(select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user), session_user, current_setting('search_path'));
		return true;
	end $$;
	-- where PostgreSQL wants a function to be immutable, it is said to be
	create function den.note_immutably(what text) returns boolean language plpgsql immutable as $$ begin return den.note(what); end $$;
	create function den.same(what text, value anyelement) returns anyelement language plpgsql immutable as
		$$ begin perform den.note(what); return value; end $$});

# who has run Mallory's code, that was not he
sub strangers { return $fini->sql(q{select coalesce(string_agg(distinct what || ' as ' || who, ', '), '') from den.log where who <> 'mallory' or is_super}) }

subtest 'code in every place that a table has' => sub {
	as('mallory', q{
		create domain den.ref as text check (den.note('domain of own_ref'));
		create domain den.word as text check (den.note('domain of a field'));
		create domain den.state as text check (value is null or den.note('domain of an outcome'));
		create type den.pair as (a text, b text);
		create type den.mood as enum ('good', 'bad');
		create function den.pair_to_json(den.pair) returns json language plpgsql as $$ begin perform den.note('cast to json'); return '{}'; end $$;
		create cast (den.pair as json) with function den.pair_to_json(den.pair);
		create function den.pair_to_text(den.pair) returns text language plpgsql as $$ begin perform den.note('cast to text'); return 'x'; end $$;
		create cast (den.pair as text) with function den.pair_to_text(den.pair) as implicit;
		create function den.equal(den.pair, den.pair) returns boolean language sql as $$ select den.note('operator of a type') $$;
		create operator den.= (leftarg = den.pair, rightarg = den.pair, function = den.equal);
		create table den.places (
			own_ref den.ref primary key,
			ipo_id text not null,
			app_quantity bigint default (den.same('default', 100)),
			id_type text, id_country_jurisdiction text, id_num den.word, full_name_eng text,
			remark text default (den.same('default', 'x'::text)),
			pair den.pair default row('a', 'b')::den.pair,
			mood den.mood default 'good',
			computed text generated always as (den.same('generated column', full_name_eng)) stored,
			record_id text, fini_state text, fini_error text,
			check (den.note('check')));
		create index on den.places (den.same('index expression', fini_state));
		create index on den.places (record_id) where den.note_immutably('index predicate');
		create statistics den.kept on den.same('statistics', ipo_id), app_quantity from den.places;
		alter table den.places enable row level security;
		alter table den.places force row level security;
		create policy seen on den.places for select using (den.note('policy for select'));
		create policy changed on den.places for update using (den.note('policy for update')) with check (den.note('check of a policy'));
		create policy added on den.places for insert with check (true);
		create policy gone on den.places for delete using (den.note('policy for delete'));
		create function den.fire() returns trigger language plpgsql as $$ begin perform den.note('trigger ' || tg_when || ' ' || tg_level); return new; end $$;
		create trigger a1 before update on den.places for each row execute function den.fire();
		create trigger a2 after update on den.places for each row execute function den.fire();
		create trigger a3 before update on den.places for each statement execute function den.fire();
		create trigger a4 after update on den.places for each statement execute function den.fire();
		create trigger a5 after update of fini_state on den.places for each row when (den.note('condition of a trigger')) execute function den.fire();
		create rule seen as on update to den.places do also select den.note('rule');
		select fini.attach('den.places', '{"remark":"remark","pair":"pair","mood":"mood","computed":"computed"}', precheck => true)});
	as('mallory', "insert into den.places ($columns) select 'P' || i, $values from generate_series(1, 3) i");
	$fini->wait_done;
	is(as('mallory', q{select string_agg(own_ref || ' ' || coalesce(fini_state, '-'), ',' order by own_ref) from den.places}), 'P1 accepted,P2 accepted,P3 accepted', 'sent, and told');
	my $places = $fini->sql("select string_agg(distinct what, ', ' order by what) from den.log where pid = $worker");
	for my $place ('check', 'check of a policy', 'domain of own_ref', 'generated column', 'index expression', 'policy for select',
		'policy for update', 'trigger AFTER ROW', 'trigger AFTER STATEMENT', 'trigger BEFORE ROW', 'trigger BEFORE STATEMENT', 'condition of a trigger')
	{
		like($places, qr/\b\Q$place\E\b/, "the worker came by: $place") unless $place eq 'domain of own_ref';
	}
	unlike($places, qr/cast|operator/, 'but by no cast and no operator');
	is(strangers(), '', 'as Mallory, all of it');
	is($fini->sql(q{select coalesce(string_agg(distinct what || ' with ' || path, ', '), '') from den.log where pid = (select worker_pid from fini.status) and path <> 'pg_catalog, pg_temp'}), '',
		'with a safe search path');

	# a table that has nothing but these: its outcomes are put in place without a statement
	as('mallory', q{create table den.bare (own_ref text primary key, ipo_id text not null, app_quantity bigint, id_type text, id_country_jurisdiction text,
			id_num text, full_name_eng text, record_id text, fini_state text, fini_error text, check (den.note('bare check')));
		create index on den.bare (den.same('bare index expression', fini_state));
		create index on den.bare (record_id) where den.note_immutably('bare index predicate');
		select fini.attach('den.bare')});
	as('mallory', "insert into den.bare ($columns) select 'B' || i, $values from generate_series(1, 3) i");
	$fini->wait_done;
	is(as('mallory', q{select count(*) from den.bare where fini_state = 'accepted'}), 3, 'a table without triggers and policies');
	for my $place ('bare check', 'bare index expression')
	{
		cmp_ok($fini->sql("select count(*) from den.log where pid = $worker and what = '$place'"), '>', 0, "the worker came by: $place");
	}
	is(strangers(), '', 'as Mallory too');

	# and in sessions of others, a superuser among them
	for my $role (qw(clerk victim postgres))
	{
		$fini->sql('truncate den.log');
		my $set = $role eq 'postgres' ? '' : "set session authorization $role;";
		$fini->sql("$set select count(*) from fini.precheck('den.places', '1234')");
		as('mallory', "alter table den.places disable trigger fini_insert; insert into den.places ($columns) values ('S-$role', $values); alter table den.places enable trigger fini_insert");
		$fini->sql("$set select fini.submit('den.places')");
		$fini->wait_done;
		my $run = $fini->sql("$set select run_id from fini.reconcile('den.places', '1234')");
		$fini->sql("$set select fini.repair($run)");
		$fini->sql(q{select fini.pause('test')});
		as('mallory', qq{insert into den.places ($columns) values ('C-$role', $values)});
		$fini->sql("$set select fini.cancel('den.places'), fini.invalidate('den.places', '{P1}'), fini.retry(relation => 'den.places')");
		$fini->sql('select fini.resume()');
		$fini->wait_done;
		cmp_ok($fini->sql(q{select count(*) from den.log where pid <> (select worker_pid from fini.status)}), '>', 3, "$role has run his code");
		is(strangers(), '', '... as Mallory');
	}
};

subtest 'a search path that leads astray' => sub {
	# operators and functions that are nearer than PostgreSQL's, by path or by type
	$fini->sql('create schema trap authorization mallory');
	as('mallory', q{
		grant usage on schema trap to public;
		do $do$
		declare
			o record;
		begin
			for o in select distinct oprname, oprleft, oprright from pg_operator
				where oprname in ('=', '<>', '>', '<', '>=', '<=', '||', '+', '-', '@>', '->', '->>') and oprleft <> 0
				  and oprleft::regtype::text in ('text', 'bigint', 'integer', 'oid', 'timestamp with time zone', 'jsonb', 'boolean', 'name', '"char"', 'xid')
				  and oprright::regtype::text in ('text', 'bigint', 'integer', 'oid', 'timestamp with time zone', 'interval', 'boolean', 'name', '"char"', 'xid')
				union values ('=', 'regclass'::regtype::oid, 'oid'::regtype::oid), ('=', 'oid'::regtype, 'regclass'::regtype),
					('=', 'regclass'::regtype, 'regclass'::regtype), ('=', 'regrole'::regtype, 'oid'::regtype), ('<>', 'regclass'::regtype, 'oid'::regtype),
					('=', 'regclass'::regtype, 'text'::regtype)
			loop
				execute format('create function trap.%I(%s, %s) returns %s language plpgsql as $f$ begin perform den.note(%L); return null; end $f$',
					'o' || md5(o::text), o.oprleft::regtype, o.oprright::regtype,
					case when o.oprname in ('||', '+', '-', '->', '->>') then 'text' else 'boolean' end, 'operator ' || o.oprname || ' of ' || o.oprleft::regtype);
				execute format('create operator trap.%s (leftarg = %s, rightarg = %s, function = trap.%I)', o.oprname, o.oprleft::regtype, o.oprright::regtype, 'o' || md5(o::text));
			end loop;
		end $do$;
		create function trap.clock_timestamp() returns timestamptz language plpgsql as $f$ begin perform den.note('clock_timestamp'); return now(); end $f$;
		create function trap.cardinality(anyarray) returns int language plpgsql as $f$ begin perform den.note('cardinality'); return 1; end $f$;
		create function trap.concat_ws(text, variadic text[]) returns text language plpgsql as $f$ begin perform den.note('concat_ws'); return ''; end $f$;
		create function trap.pg_notify(text, text) returns void language plpgsql as $f$ begin perform den.note('pg_notify'); end $f$;
		create function trap.quote_ident(text) returns text language plpgsql as $f$ begin perform den.note('quote_ident'); return $1; end $f$;
		create function trap.unnest(anyarray) returns setof anyelement language plpgsql as $f$ begin perform den.note('unnest'); end $f$;
		create table trap.submission (like fini.submission); create table trap.queue (like fini.queue); create table trap.attachment (like fini.attachment)}, path => 'pg_catalog');
	$fini->sql('truncate den.log');
	cmp_ok($fini->sql(q{select count(*) from pg_operator where oprnamespace = 'trap'::regnamespace}), '>', 30, 'traps');
	for my $path ('trap, pg_catalog, public', 'public, trap')
	{
		my $n = $path =~ /^trap/ ? 1 : 2;
		for my $call (
			"select fini.create_subscription_table('bait$n')", "select fini.attach('bait$n', precheck => true)", "select fini.attach('bait$n', live => false)",
			"create table parts$n (own_ref text, ipo_id text, app_quantity bigint, id_num text, primary key (own_ref)) partition by list (own_ref);"
			  . "create table parts${n}_a partition of parts$n for values in ('a'); select fini.attach('parts$n'); create table parts${n}_b partition of parts$n default;"
			  . "alter table parts$n detach partition parts${n}_b; select fini.attach('parts$n', replicated => true)",
			"insert into bait$n ($columns) values ('B$n', $values)", "update bait$n set app_quantity = 7", "select fini.submit('bait$n')",
			"select fini.cancel('bait$n'), fini.invalidate('bait$n', '{B$n}'), fini.retry()", "select * from fini.reconcile('bait$n', '1234')",
			"select fini.repair(max(run_id)) from fini.reconcile_run", "select fini.start_reconcile('bait$n', '5678')", "select fini.cancel_reconcile(1)",
			"select * from fini.precheck('bait$n', '1234')", 'select * from fini.status', 'select * from fini.progress', 'select fini.check()',
			"select fini.set_deadline('77', '2099-01-01')", 'select fini.recount()', "select fini.pause('x'), fini.resume(), fini.disarm(), fini.arm()",
			"select fini.wait(timeout => '10 ms')", 'select fini.refresh_ipos(), fini.refresh_funding()', "select fini.confirm_funding('{}', '20')", "select fini.cancel_funding()",
			"select fini.grant_access('nobody', 'reader')", "select fini.jwks('agent', now() + interval '30 days')", "select fini.subscription_invalidate('{}')",
			"delete from bait$n", "select fini.detach('bait$n', true)", "truncate bait$n")
		{
			my ($rc, $out, $err) = $fini->try_sql("set search_path = $path; $call");
			# what Mallory has put there breaks some of the caller's own expressions, which are his own
			ok($rc == 0 || $err !~ /XX000|server closed/, substr("$path: $call", 0, 100)) or diag($err);
		}
	}
	is($fini->sql(q{select coalesce(string_agg(distinct what || ' as ' || who, ', '), '') from den.log
		where what ~ '^(operator|clock_timestamp|cardinality|concat_ws|pg_notify|quote_ident|unnest)'}), '', 'none has sprung');
	is(strangers(), '', 'nobody has run his code as another');
	$fini->sql(q{revoke all on schema fini from nobody; revoke all on all tables in schema fini from nobody; revoke all on all functions in schema fini from nobody});
};

subtest 'temporary objects in the way' => sub {
	for my $role ('clerk', 'mallory')
	{
		$fini->sql('truncate den.log');
		my $out = as($role, qq{
			create temporary table submission (id bigint, relation regclass, own_ref text, ipo_id text, operation text, state text);
			create temporary table queue (id bigint); create temporary table attachment (relation regclass); create temporary table control (armed boolean);
			create temporary table pg_class (oid oid); create temporary table pg_roles (rolname name, rolsuper boolean);
			insert into pg_temp.pg_roles values ('$role', true);
			create function pg_temp.now() returns timestamptz language sql as 'select now()';
			select fini.submit('den.places') is not null, fini.cancel('den.places') is not null, (select armed from fini.status)}, path => 'pg_temp, pg_catalog, den');
		is($out, 't|t|t', "$role: found the right ones");
		$fini->sql_fails("set session authorization $role; create temporary table pg_roles as select '$role'::name rolname, true rolsuper; set search_path = pg_temp, pg_catalog; select fini.grant_access('$role', 'operator')",
			qr/42501/, '... nor is anybody a superuser for having said so');
	}
};

subtest 'mappings and names with SQL in them' => sub {
	my @names = (q{x"; drop table den.log; --}, q{a'b}, q{a"b}, q{$1}, q{%s%n}, 'select', "tab\tand\nnewline", q{"},  q{fini_old}, 'own_ref"=own_ref--');
	my $n = 0;
	for my $name (@names)
	{
		$n++;
		(my $ident = $name) =~ s/"/""/g;
		(my $literal = $name) =~ s/'/''/g;
		as('mallory', qq{
			create table "T$n $ident" ("$ident" text primary key, ipo_id text not null, app_quantity bigint, id_num text, "s $ident" text, "e $ident" text);
			select fini.attach(format('%I', 'T$n $literal')::regclass, jsonb_build_object('ownRef', '$literal'::text),
				jsonb_build_object('state', 's $literal'::text, 'error', 'e $literal'::text));
			insert into "T$n $ident" ("$ident", ipo_id, app_quantity, id_num) values ('N$n', '1234', 1, 'P1')});
		$fini->wait_done;
		like(as('mallory', qq{select "s $ident" from "T$n $ident"}), qr/^(accepted|rejected)$/, 'a column and a table named ' . ($name =~ s/\s/ /gr));
		like(as('clerk', qq{select count(*) from fini.precheck((select relation from fini.submission where own_ref = 'N$n' limit 1), '1234')}), qr/^\d+$/, '... are prechecked');
	}
	fails_as('mallory', q{select fini.attach('den.places', '{"ownRef":"own_ref; select 1"}')}, qr/42703/, 'a mapping is a name');
	fails_as('mallory', q{select fini.attach('den.places', '{"ownRef":"ctid"}')}, qr/42703/, 'and none of the system\'s');
	fails_as('mallory', q{select fini.attach('den.places', '{"remark":"(select passwd from pg_shadow limit 1)"}')}, qr/42703/, 'nor an expression');
	is($fini->sql(q{select to_regclass('den.log') is not null}), 't', 'nothing was dropped');
};

subtest 'tables that are exchanged' => sub {
	$fini->sql(q{create table vault.secret (own_ref text, ipo_id text, app_quantity bigint, id_num text, full_name_eng text, record_id text, fini_state text, fini_error text);
		insert into vault.secret values ('V1', '1234', 1, 'SECRET-NUMBER', 'Secret Name'); alter table vault.secret owner to victim});
	my $plain = q{(own_ref text primary key, ipo_id text not null, app_quantity bigint, id_num text, full_name_eng text, record_id text, fini_state text, fini_error text, id_type text default 'PASSPORT')};
	my $row = q{values ('%s', '1234', 1, 'P1', 'Name')};

	# a view of somebody's table under the name of the attached one
	as('mallory', qq{create table shift1 $plain; select fini.attach('shift1')});
	$fini->sql(q{select fini.pause('test')});
	as('mallory', q{insert into shift1 values ('X1', '1234', 1, 'P1', 'Name'); alter table shift1 rename to shift1_gone; create view shift1 as select 'X1'::text own_ref, * from pg_shadow});
	$fini->sql('select fini.resume()');
	$fini->wait_done;
	is(as('mallory', 'select fini_state from shift1_gone'), 'accepted', 'the table is known by itself, not by its name');
	fails_as('mallory', q{select fini.attach('shift1')}, qr/42809|42501/, 'a view cannot be attached');

	# a table that inherits, with rows of its own
	as('mallory', qq{create table shift2 $plain; select fini.attach('shift2')});
	as('mallory', q{create table shift2_child () inherits (shift2); insert into shift2_child values ('X2', '1234', 1, 'P1', 'Child'); insert into shift2 values ('X2', '1234', 1, 'P2', 'Parent')});
	$fini->wait_done;
	is($fini->sql(q{select string_agg(coalesce(fini_state, '-'), ',' order by full_name_eng) from den.shift2}), '-,accepted', 'a child\'s row is not the table\'s');

	# the table becomes a partition of another
	as('mallory', qq{create table shift3 $plain; select fini.attach('shift3'); insert into shift3 values ('X3', '1234', 1, 'P1', 'Name')});
	$fini->wait_done;
	my ($rc, undef, $err) = $fini->try_sql(q{set session authorization mallory; set search_path = den; create table above (like shift3 including all) partition by list (own_ref); alter table above attach partition shift3 for values in ('X3', 'X4'); insert into above values ('X4', '1234', 1, 'P1', 'Name')});
	unlike($err, qr/XX000|server closed/, 'a table that becomes a partition: no internal error') or diag($err);

	# columns that change their type, or go
	as('mallory', qq{create table shift4 $plain; select fini.attach('shift4')});
	$fini->sql(q{select fini.pause('test')});
	as('mallory', q{insert into shift4 select 'X5-' || i, '1234', 1, 'P1', 'Name' from generate_series(1, 3) i;
		alter table shift4 alter full_name_eng type den.pair using row('a', 'b')::den.pair, alter fini_state type int using 0, drop column fini_error});
	$fini->sql('select fini.resume()');
	$fini->wait_done;
	like($fini->sql(q{select string_agg(distinct state || ' ' || coalesce(error_message, ''), ', ') from fini.submission where own_ref like 'X5-%'}), qr/column "fini_error" of table "shift4" does not exist any more|could not be written/, 'said so');

	# statements in the place of ours
	as('mallory', qq{create table shift5 $plain; create table stolen (who text, own_ref text); grant insert on stolen to public; select fini.attach('shift5');
		create rule instead as on update to shift5 do instead insert into stolen values (current_user, new.own_ref);
		insert into shift5 values ('X6', '1234', 1, 'P1', 'Name')});
	$fini->wait_done;
	is($fini->sql(q{select coalesce(string_agg(distinct who, ','), 'mallory') from den.stolen}), 'mallory', 'a rule instead of the update runs as its owner');
	is($fini->sql(q{select state from fini.submission where own_ref = 'X6'}), 'accepted', 'the outbox has the truth');

	# an owner who points his table's code at what he must not see
	as('mallory', qq{create table shift6 $plain; create function den.steal() returns trigger language plpgsql as \$\$ begin new.fini_error := (select string_agg(id_num, ',') from vault.secret); return new; end \$\$;
		create trigger steal before update on shift6 for each row execute function den.steal(); select fini.attach('shift6'); insert into shift6 values ('X7', '1234', 1, 'P1', 'Name')});
	$fini->wait_done;
	is($fini->sql(q{select coalesce(fini_error, '') from den.shift6}), '', 'a trigger on an outcome reads what its owner may read');
	like($fini->sql(q{select error_message from fini.submission where own_ref = 'X7'}), qr/SQLSTATE 42501/, 'and it is said');
	is(strangers(), '', 'nobody has run his code as another');
};

subtest 'what is not his' => sub {
	as('victim', q{select fini.attach(fini.create_subscription_table('vault.orders')); insert into vault.orders (own_ref, ipo_id, app_quantity, id_type, id_num, full_name_eng) values ('VICTIM-1', '1234', 100, 'PASSPORT', 'VSECRET77', 'Victoria Secret')}, path => 'pg_catalog');
	$fini->wait_done;
	$fini->sql('grant usage on schema vault to mallory, clerk');
	my $keys = $fini->sandbox->keys_dir;
	for my $case (
		[ q{select * from vault.orders}, qr/42501/ ],
		[ q{select fini.attach('vault.orders')}, qr/42501: must be owner/ ], [ q{select fini.detach('vault.orders', true)}, qr/42501: must be owner/ ],
		[ q{create trigger t after insert on vault.orders for each row execute function fini.capture()}, qr/42501/ ],
		(map { [ $_, qr/42501/ ] } q{select fini._write_back('{1}')}, q{select fini._withdraw('vault.orders', '{VICTIM-1}')}, q{select fini._adopt_timeline()},
			q{select fini._wake()}, q{select fini._resume_endpoints()}, q{select fini._forget_runs(interval '0')}, q{select fini._end_reconcile(1, 'failed', 'x')}, q{select fini._is_mine('1')},
			q{select fini._wait_for_settle(1, 1)}, q{select fini._jwks('agent', now() + interval '1 day')}, q{select fini._tally_differences()},
			q{update fini.submission set state = 'queued'}, q{delete from fini.queue}, q{insert into fini.queue values ('1234', 'add', 1)}, q{truncate fini.request},
			q{update fini.attachment set relation = 'den.places'}, q{update fini.control set armed_by = 'me'}, q{select nextval('fini.submission_id_seq')},
			q{create table fini.mine (a int)}, q{create function fini.precheck(int) returns int language sql as 'select 1'}, q{alter function fini.capture() security invoker},
			q{alter extension fini update}, q{drop extension fini}, q{alter event trigger fini_follow_partitions disable}, q{create event trigger e on ddl_command_end execute function fini._follow_partitions()},
			q{begin; lock table fini.submission in access exclusive mode}, q{select fini.grant_access('mallory', 'operator')}, q{comment on schema fini is 'x'},
			q{create rule r as on insert to fini.submission do nothing}, q{create policy p on fini.submission}, q{create index on fini.submission (state)},
			q{show fini.agent_key_file}, q{show fini.machine_key_file}, q{show fini.proxy}, q{show fini.client_key_file}, q{set fini.base_url = 'https://evil.example'}, q{set fini.agent_key_file = '/etc/passwd'},
			q{set fini.encrypted_fields = 'x'}, q{set fini.rate_limit = 0}, q{alter role mallory set fini.base_url = 'https://evil.example'}, q{select set_config('fini.ca_file', '/tmp/x', false)},
			q{reset fini.base_url}, qq{select pg_read_file('$keys/agent.pem')}, qq{copy den.log from '$keys/agent.pem'}, q{alter system set fini.base_url = 'x'}, q{load 'fini'},
			q{create function den.c() returns void language c as 'fini', 'fini_sql_resume_endpoints'}, q{select pg_terminate_backend((select worker_pid from fini.status))},
			q{select pg_cancel_backend((select worker_pid from fini.status))}))
	{
		my ($statement, $error) = @$case;
		fails_as('mallory', $statement, $error, substr $statement, 0, 110);
	}
	is($fini->sql(q{set session authorization mallory; select coalesce(string_agg(name, ','), '') from pg_settings where name in ('fini.agent_key_file', 'fini.machine_key_file', 'fini.client_key_file', 'fini.proxy')}), '', 'nor does pg_settings show them');

	# through the functions that read others' tables
	my $told = as('mallory', q{select coalesce(string_agg(p::text, ';'), '') from fini.precheck('vault.orders', '1234') p;
		select fini.submit('vault.orders');
		select coalesce(string_agg(d::text, ';'), '') from fini.discrepancy d, fini.reconcile('vault.orders', '1234') r where d.run_id = r.run_id;
		select string_agg(s::text, ';') from fini.submission s where own_ref = 'VICTIM-1'; select string_agg(r::text, ';') from fini.request r});
	unlike($told, qr/VSECRET77|Victoria/, 'no value of another\'s table comes out of them');

	# a database's owner is no superuser
	$fini->sql(q{create role dbo login; create database dbos owner dbo});
	fails_as('dbo', q{alter database dbos set fini.base_url = 'https://evil.example'}, qr/42501/, 'the owner of a database cannot set where it sends');
};

subtest 'what the worker runs stays with its owner, and ends' => sub {
	$fini->sql(q{alter system set fini.table_timeout = '300ms'; select pg_reload_conf()});
	my $plain = q{(own_ref text primary key, ipo_id text not null, app_quantity bigint, id_type text, id_country_jurisdiction text, id_num text, full_name_eng text, record_id text, fini_state text, fini_error text)};
	my $insert = "insert into %s ($columns) select '%s-' || i, $values from generate_series(1, 2) i";
	as('victim', "select fini.attach(fini.create_subscription_table('vault.others'))", path => 'pg_catalog');

	my $others = sub {
		my ($title) = @_;
		my $ref = 'O' . $fini->sql('select count(*) from vault.others');
		$fini->sql(sprintf "set session authorization victim; $insert", 'vault.others', $ref);
		$fini->wait_for("select count(*) = 2 from vault.others where own_ref like '$ref-%' and fini_state = 'accepted'", "others to go on beside $title");
		ok(1, "others go on beside $title");
	};

	# calls that would use the worker's own event loop, or wait for it
	as('mallory', qq{create table reentrant $plain; create table tried (what text, outcome text);
		create function den.reenter() returns trigger language plpgsql as \$\$
		declare call text;
		begin
			foreach call in array array['select fini.ipo_list()', 'select fini.check()', 'select fini.subscription_query(''1234'')', 'select fini.wait(timeout => ''1 hour'')',
				'select fini.reconcile(''den.reentrant'', ''1234'')', 'select fini.call(''/api/ipos/list/v1?size=1&nextCursor=0'')', 'select fini.refresh_ipos()',
				'select fini.subscription_invalidate(''{1}'')', 'select fini.funding_query()'] loop
				begin
					execute call;
					insert into den.tried values (call, 'done');
				exception when others then
					insert into den.tried values (call, sqlstate);
				end;
			end loop;
			return new;
		end \$\$;
		create trigger reenter before update on reentrant for each row execute function den.reenter(); select fini.attach('reentrant')});
	$fini->sql(q{alter system set fini.table_timeout = '30s'; select pg_reload_conf()});
	as('mallory', sprintf $insert, 'reentrant', 'RE');
	as('victim', sprintf($insert, 'vault.others', 'BESIDE'), path => 'pg_catalog');
	$fini->wait_done;
	is($fini->sql(q{select string_agg(distinct outcome, ',') from den.tried}), '55000', 'the worker makes no direct calls for others');
	is($fini->sql(q{select count(*) from den.reentrant where fini_state = 'accepted'}), 2, '... and loses no answer by them');
	$fini->sql(q{alter system set fini.table_timeout = '300ms'; select pg_reload_conf()});

	# what outlives a transaction
	as('mallory', qq{create table litter $plain;
		create function den.litter() returns trigger language plpgsql as \$\$ begin
			perform pg_advisory_lock(7, i) from generate_series(1, 5) i; return new; end \$\$;
		create trigger litter before update on litter for each row execute function den.litter(); select fini.attach('litter')});
	as('mallory', sprintf $insert, 'litter', 'L');
	$fini->wait_done;
	is($fini->sql(q{select count(*) from den.litter where fini_state = 'accepted'}), 2, 'session locks by a trigger')
	  or diag($fini->sql(q{select own_ref, state, error_code, error_message from fini.submission where own_ref like 'L-%'}));
	$fini->wait_for(q{select count(*) = 0 from pg_locks where locktype = 'advisory'}, 'the locks to go');
	as('mallory', 'update litter set app_quantity = 5');
	$fini->wait_done;
	is($fini->sql(q{select count(*) from den.litter where fini_state = 'accepted' and fini_error is null}), 2, 'and the next time');

	# code that does not end: when rows are read, when outcomes are written
	as('mallory', qq{create table slow_read $plain; alter table slow_read enable row level security; alter table slow_read force row level security;
		create function den.forever() returns boolean language plpgsql as \$\$ begin perform pg_sleep(3600); return true; end \$\$;
		create policy p on slow_read for select using (den.forever()); create policy i on slow_read for insert with check (true); create policy u on slow_read for update using (true);
		select fini.attach('slow_read')});
	as('mallory', sprintf $insert, 'slow_read', 'SR');
	$fini->wait_for(q{select count(*) = 2 from fini.submission where own_ref like 'SR-%' and error_code = 'table_unreadable'}, 'rows that cannot be read to be set aside');
	like($fini->sql(q{select error_message from fini.submission where own_ref like 'SR-%' limit 1}), qr/SQLSTATE 57014/, 'a policy that does not end');
	$others->('a policy that does not end');
	is($fini->sql('select worker_pid from fini.status'), $worker, 'by the same worker');

	as('mallory', qq{create table slow_write $plain; create function den.slow_write() returns trigger language plpgsql as \$\$ begin perform pg_sleep(3600); return new; end \$\$;
		create trigger t before update on slow_write for each row execute function den.slow_write(); select fini.attach('slow_write')});
	as('mallory', sprintf $insert, 'slow_write', 'SW');
	$fini->wait_for(q{select count(*) = 2 from fini.submission where own_ref like 'SW-%' and state = 'accepted' and error_message ~ 'SQLSTATE 57014'}, 'an outcome that cannot be written');
	$others->('a trigger that does not end');
	is($fini->sql('select worker_pid from fini.status'), $worker, 'by the same worker');

	# a policy that says it was cancelled, met while another table is sent
	as('mallory', qq{create table false_cancel $plain; select fini.attach('false_cancel')});
	as('mallory', sprintf $insert, 'false_cancel', 'FC');
	$fini->wait_for(q{select count(*) = 2 from den.false_cancel where fini_state = 'accepted'}, 'rows to stand');
	as('mallory', q{alter table false_cancel enable row level security; alter table false_cancel force row level security;
		create function den.cancelled() returns boolean language plpgsql as $$ begin raise exception 'x' using errcode = '57014'; end $$; create policy p on false_cancel using (den.cancelled())});
	as('victim', "select fini.attach(fini.create_subscription_table('vault.checked'), precheck => true)", path => 'pg_catalog');
	as('victim', sprintf($insert, 'vault.checked', 'CH'), path => 'pg_catalog');
	$fini->wait_for(q{select count(*) = 2 from vault.checked where fini_state = 'accepted'}, 'a table with prechecks beside it');
	is($fini->sql('select worker_pid from fini.status'), $worker, 'an error of another table that looks like a cancel ends no worker');

	# code that catches the cancel and goes on
	as('mallory', qq{create table stubborn $plain; create function den.stubborn() returns trigger language plpgsql as \$\$
		begin loop begin perform pg_sleep(3600); exception when query_canceled then null; end; end loop; end \$\$;
		create trigger t before update on stubborn for each row execute function den.stubborn(); select fini.attach('stubborn')});
	my $position = $fini->log_position;
	as('mallory', sprintf $insert, 'stubborn', 'ST');
	$fini->wait_for(sub { $fini->log_since($position) =~ /tables whose owner has OID \d+ are left alone for 10 minutes/ }, 'the worker to leave the tables alone');
	$fini->wait_for(q{select count(*) = 2 from fini.submission where own_ref like 'ST-%' and state = 'accepted' and error_message ~ 'SQLSTATE 57014'}, 'the outcome in the outbox');
	$others->('a trigger that cannot be cancelled');
	is($fini->stats->{duplicates}, 0, 'nothing was sent twice for it');
	$worker = $fini->sql('select worker_pid from fini.status');
	as('mallory', sprintf $insert, 'litter', 'LATER');
	$fini->wait_for(q{select count(*) = 2 from fini.submission where own_ref like 'LATER-%' and error_message ~ 'SQLSTATE 57014'}, 'his other tables to be left alone');
	$others->('tables that are left alone');
	is($fini->sql('select worker_pid from fini.status'), $worker, 'by a worker that stays');
	$fini->sql(q{alter system reset fini.table_timeout; select pg_reload_conf()});
};

subtest 'cancelled at any moment, a session is itself again' => sub {
	$fini->sql(q{select fini.pause('test')});
	as('victim', q{create table vault.many (own_ref text primary key, ipo_id text not null, app_quantity bigint, id_num text, full_name_eng text, fini_state text);
		alter table vault.many enable row level security; create policy p on vault.many using (true);
		select fini.attach('vault.many', live => false); insert into vault.many select 'M' || i, '3456', 1, 'P' || i, 'Name' from generate_series(1, 20000) i}, path => 'pg_catalog');
	my %seen;
	for my $ms (map { $_ * 4 } 1 .. 60)
	{
		my ($rc, $out, $err) = $fini->node->psql('postgres', "set session authorization clerk; set search_path = den, pg_catalog;\nbegin; savepoint s; set local statement_timeout = $ms;\n"
			  . ($ms % 8 ? "select fini.submit('vault.many'), fini.cancel('vault.many');\n" : "select count(*) from fini.precheck('vault.many', '3456');\n")
			  . "rollback to s; set local statement_timeout = 0;\n"
			  . "select 'now ' || current_user || ' ' || session_user || ' ' || current_setting('search_path') || ' ' || has_table_privilege('vault.many', 'select'); rollback;", on_error_stop => 0);
		$seen{ $err =~ /canceling statement/ ? 'cancelled' : 'done' }++;
		next if $err =~ /stdin>:4: ERROR: .*57014|stdin>:4: ERROR:  canceling/;	# a slow machine: the time was up while the savepoint was undone
		my ($now) = $out =~ /^now (.*)$/m;
		is($now // $err, 'clerk clerk den, pg_catalog false', "after $ms ms");
	}
	cmp_ok($seen{cancelled} // 0, '>', 5, 'some were cancelled');
	is($fini->sql(q{select count(*) from fini.submission where relation = 'vault.many'::regclass}), 0, 'and nothing of them is left');
	$fini->sql('select fini.resume()');
};

is($fini->sql(q{select count(*) from pg_roles where rolsuper}), 1, 'there is one superuser, as before');
is($fini->sql(q{select string_agg(rolname, ',' order by rolname) from pg_roles r where has_function_privilege(r.oid, 'fini.arm()', 'execute') and not rolsuper}), 'mallory,victim', 'nobody has gained a right');
is(strangers(), '', 'nobody has run what Mallory wrote as another');
is($fini->stats->{duplicates}, 0, 'no duplicates');
my $log = slurp_file($fini->node->logfile);
unlike($log, qr/PANIC|terminated by signal|TRAP:/, 'nothing crashed');
unlike($log, qr/P1234567|Tai Man|VSECRET77|Victoria/, 'no personal data in the log');
done_testing();
