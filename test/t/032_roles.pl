# Who may do what, and with whose rights user code runs: the privileges of everything in the schema, every
# function tried at every level, and triggers of tables that belong to somebody who is no superuser.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(conf => "log_statement = none\nlog_min_error_statement = panic\n");
my $worker = $fini->sql('select worker_pid from fini.status');

$fini->sql(q{
	create role nobody login; create role reader login; create role submitter login; create role operator login;
	create role app login; create role owner login;
	select fini.grant_access('reader', 'reader'), fini.grant_access('submitter', 'submitter'), fini.grant_access('operator', 'operator'),
		fini.grant_access('owner', 'operator');
	create schema data authorization owner; grant usage on schema data to public});

# statements as a role that has logged in itself
sub as { my ($role, $sql) = @_; return $fini->sql("set session authorization $role; set search_path = data, pg_catalog; $sql") }
sub fails_as { my ($role, $sql, $pattern, $name) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return $fini->sql_fails("set session authorization $role; set search_path = data, pg_catalog; $sql", $pattern, $name) }
sub row { my ($table, $ref, $columns) = @_; return $fini->sql("select $columns from data.$table where own_ref = '$ref'") }
my $person = q{id_type, id_num, full_name_eng};
my $values = q{'PASSPORT', 'P1234567', 'Chan Tai Man'};

subtest 'privileges' => sub {
	my $public = q{select string_agg(format('%s %s', what, name), ', ') from (
		select 'schema' what, nspname::text name, coalesce(nspacl, acldefault('n', nspowner)) acl from pg_namespace where nspname = 'fini'
		union all select 'relation', oid::regclass::text, coalesce(relacl, acldefault(case when relkind = 'S' then 's'::"char" else 'r' end, relowner))
			from pg_class where relnamespace = 'fini'::regnamespace and relkind in ('r', 'v', 'S', 'p', 'm', 'f')
		union all select 'column', attrelid::regclass || '.' || attname, attacl from pg_attribute join pg_class c on c.oid = attrelid
			where relnamespace = 'fini'::regnamespace and attacl is not null
		union all select 'function', oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)) from pg_proc where pronamespace = 'fini'::regnamespace
		union all select 'type', oid::regtype::text, typacl from pg_type where typnamespace = 'fini'::regnamespace and typacl is not null) o,
		aclexplode(acl) a where grantee = 0};
	is($fini->sql($public), '', 'nothing for PUBLIC');
	is($fini->sql(q{select count(*) from pg_default_acl}), 0, 'nor by default');

	# what each level may execute; a function that is added has to be put here
	my %levels = (
		reader => [ sort qw(_cluster _stat_endpoint _worker precheck _pace _estimate _gateway_now) ],
		submitter => [ sort qw(cancel decrypt_field decrypt_fields encrypt_field encrypt_fields funding_confirm funding_query invalidate ipo_list ipo_refdata
			reconcile repair retry sign submit subscription_add subscription_change subscription_invalidate subscription_query wait wrap_key
			cancel_funding confirm_funding refresh_funding refresh_ipos
			start_reconcile cancel_reconcile wait_reconcile repair_plan) ],
		operator => [ sort qw(set_deadline recount _check _check_keys _check_sending _check_version _check_worker _key_id _primary arm attach call capture check create_subscription_table detach disarm jwks pause purge resume stat_reset) ]);
	my %seen;
	for my $level (qw(reader submitter operator))
	{
		my @functions = split /\n/, $fini->sql(qq{select distinct proname from pg_proc where pronamespace = 'fini'::regnamespace and has_function_privilege('$level', oid, 'execute') order by 1});
		is_deeply([ grep { !$seen{$_} } @functions ], $levels{$level}, "functions of $level");
		is_deeply([ sort grep { my $f = $_; !grep { $_ eq $f } @functions } keys %seen ], [], '... include those before');
		$seen{$_} = 1 for @functions;
		is($fini->sql(qq{select count(*) from pg_class where relnamespace = 'fini'::regnamespace and relkind in ('r', 'v') and not has_table_privilege('$level', oid, 'select')}), 0,
			'... and can read');
		is($fini->sql(qq{select string_agg(oid::regclass::text, ', ') from pg_class where relnamespace = 'fini'::regnamespace
			and case relkind when 'S' then has_sequence_privilege('$level', oid, 'usage, update') else relkind in ('r', 'v') and has_table_privilege('$level', oid, 'insert, update, delete, truncate, references, trigger') end}), '',
			'... but write nothing');
		is($fini->sql(qq{select has_schema_privilege('$level', 'fini', 'create')}), 'f', '... nor create anything there');
	}
	is($fini->sql(q{select string_agg(oid::regprocedure::text, ', ') from pg_proc where pronamespace = 'fini'::regnamespace and prosecdef
		and not coalesce(proconfig, '{}') @> '{"search_path=pg_catalog, pg_temp"}'}), '', 'functions with the rights of their owner pin their search path');
	is($fini->sql(q{select string_agg(oid::regprocedure::text, ', ') from pg_proc where pronamespace = 'fini'::regnamespace and proname like '\_%' and prosecdef}), '',
		'internal ones have no such rights');
};

subtest 'every function tried' => sub {
	# nulls that the planner does not see: a call of a strict function with constant nulls is none
	my @functions = split /\n/, $fini->sql(q{
		select format('%s|select fini.%I(%s) from (select 1%s offset 0) v', proname, proname, args, columns)
		from pg_proc, lateral (select string_agg('a' || n, ', ' order by n) args, string_agg(format(', null::%s a%s', format_type(t, null), n), '' order by n) columns
			from unnest(proargtypes::oid[]) with ordinality a(t, n)) a
		where pronamespace = 'fini'::regnamespace and prokind = 'f' order by 1});
	cmp_ok(scalar @functions, '>', 40, 'functions');
	for my $role (qw(nobody reader submitter operator))
	{
		my (@wrong, $tried);
		for (@functions)
		{
			my ($name, $call) = split /\|/;
			my $may = $fini->sql(qq{select bool_or(has_function_privilege('$role', oid, 'execute')) from pg_proc where pronamespace = 'fini'::regnamespace and proname = '$name'}) eq 't';
			# those that would do something are left out where they are allowed
			next if $may && $name =~ /^(arm|disarm|pause|resume|wait|retry|purge|stat_reset|ipo_list|subscription_query|funding_query|call)$/;
			my (undef, undef, $err) = $fini->try_sql("set session authorization $role; $call");
			my $denied = $err =~ /42501: permission denied for (schema fini|function)/ ? 1 : 0;
			$tried++;
			push @wrong, "$name: " . ($err || 'no error') if $denied == ($may ? 1 : 0) || $err =~ /XX000|server closed/;
		}
		is_deeply(\@wrong, [], "$role: $tried calls");
	}
	is($fini->sql(q{set session authorization reader; select count(*) from fini.status, fini.stat_endpoint}) =~ /^\d+$/, 1, 'a reader sees the views');
	$fini->sql_fails("set session authorization $_; select fini.grant_access('nobody', 'operator')", qr/42501/, "$_ grants nothing") for qw(operator owner);
	$fini->sql_fails(q{select fini.grant_access('nobody', 'admin')}, qr/22023.*no access level "admin".*reader, submitter and operator/s, 'an unknown level');
	is($fini->sql('select worker_pid from fini.status'), $worker, 'nothing crashed');
};

subtest 'an application that may only insert' => sub {
	as('owner', q{select fini.attach(fini.create_subscription_table('orders')); grant insert, update, delete on orders to app; grant select (own_ref) on orders to app});
	as('app', "insert into orders (own_ref, ipo_id, app_quantity, $person) select 'A' || i, '1234', 100, $values from generate_series(1, 3) i");
	$fini->wait_done;
	is($fini->sql(q{select count(*) from data.orders where fini_state = 'accepted'}), 3, 'without any right to fini');
	as('app', q{update orders set app_quantity = 200 where own_ref = 'A1'; delete from orders where own_ref = 'A2'});
	$fini->wait_done;
	is($fini->sql(q{select string_agg(operation, ' ' order by id) from fini.submission where own_ref in ('A1', 'A2') and state = 'accepted'}), 'add add change invalidate', 'or to update and delete');
	fails_as('app', $_, qr/42501/, $_) for 'select * from fini.submission', q{select fini.submit('orders')}, q{truncate orders}, q{select fini.cancel('orders')};
	fails_as('operator', $_->[0], qr/42501: must be owner of table orders/, $_->[0]) for [ q{select fini.attach('orders')} ], [ q{select fini.detach('orders', true)} ];
	# any submitter submits for any table: the rows are read with their owner's rights, and nothing of them comes back
	$fini->sql(qq{set session_replication_role = replica; insert into data.orders (own_ref, ipo_id, app_quantity, $person) select 'A9', '1234', 1, $values});
	is(as('submitter', q{select fini.submit('data.orders')}), 1, 'a submitter submits');
	fails_as('submitter', 'select * from orders', qr/42501/, 'but cannot look');
	$fini->wait_done;
};

# tables of the owner's that log who runs their triggers, under which settings
$fini->sql(q{
	create table data.log (what text, own_ref text, who text, session_who text, path text, is_super boolean);
	alter table data.log owner to owner; grant insert on data.log to public});
as('owner', q{
	create function data.note() returns trigger language plpgsql as $$
	begin
		insert into data.log values (tg_name, new.own_ref, current_user, session_user, current_setting('search_path'),
			(select rolsuper from pg_roles where rolname = current_user));
		return new;
	end $$});

subtest 'outcomes are written with the rights of the owner' => sub {
	as('owner', q{
		select fini.create_subscription_table('noted');
		create trigger a_before before update on noted for each row execute function note();
		create trigger an_after after update on noted for each row execute function note();
		create constraint trigger deferred after update on noted deferrable initially deferred for each row execute function note();
		select fini.attach('noted')});
	as('owner', "insert into noted (own_ref, ipo_id, app_quantity, $person) select 'N' || i, '1234', 100, $values from generate_series(1, 2) i");
	$fini->wait_done;
	is($fini->sql(q{select count(*) from data.noted where fini_state = 'accepted'}), 2, 'written');
	is($fini->sql(q{select what, count(*), min(who), bool_or(is_super), min(path) from data.log where own_ref ~ '^N' group by 1 order by 1}),
		"a_before|2|owner|f|pg_catalog, pg_temp\nan_after|2|owner|f|pg_catalog, pg_temp\ndeferred|2|owner|f|pg_catalog, pg_temp",
		'by the owner, deferred triggers too, with a safe search path');

	# in a session, a deferred trigger could only run at its end, as somebody else: refused, and noted
	$fini->sql(q{select fini.pause('test'); truncate data.log});
	as('owner', "insert into noted (own_ref, ipo_id, app_quantity, $person) select 'N3', '1234', 100, $values");
	is($fini->sql(q{select fini.cancel('data.noted')}), 1, 'cancelled by a superuser');
	is($fini->sql(q{select state, error_message from fini.submission where own_ref = 'N3'}),
		'cancelled|cancelled before it was sent; the outcome could not be written to the table (SQLSTATE 42501)', 'noted');
	is($fini->sql('select count(*) from data.log where is_super'), 0, 'no trigger has run as superuser');
	$fini->sql('select fini.resume()');
};

subtest 'what a user has deferred himself stays deferred' => sub {
	# a submitter's own deferred trigger must not run with the rights of the table that fini writes to
	as('owner', q{select fini.attach(fini.create_subscription_table('target')); create table secret (s text)});
	$fini->sql(q{
		select fini.pause('test');
		create schema lure authorization submitter; grant usage on schema lure to public;
		set role submitter;
		create table lure.bait (a integer);
		create function lure.spring() returns trigger language plpgsql as
			$$ begin insert into data.log values ('sprung', 'bait', current_user, session_user); return null; end $$;
		create constraint trigger spring after insert on lure.bait deferrable initially deferred for each row execute function lure.spring()});
	as('owner', "insert into target (own_ref, ipo_id) values ('T1', '1234')");
	as('submitter', q{begin; insert into lure.bait values (1); select fini.cancel('data.target'); commit});
	is($fini->sql(q{select who from data.log where what = 'sprung'}), 'submitter', 'and runs as he who deferred it');
	is(row('target', 'T1', 'fini_state'), 'cancelled', 'while the outcome is written');
	$fini->sql('select fini.resume()');
};

subtest 'a trigger that fails' => sub {
	as('owner', q{
		select fini.create_subscription_table('failing');
		create function data.refuse() returns trigger language plpgsql as $$
		begin
			if new.own_ref in ('F2', 'F4') then
				raise exception 'cannot take % of %', new.full_name_eng, new.id_num using errcode = 'ZZ999';
			end if;
			return new;
		end $$;
		create trigger refuse before update on failing for each row execute function data.refuse();
		select fini.attach('failing')});
	my $position = $fini->log_position;
	as('owner', "insert into failing (own_ref, ipo_id, app_quantity, $person) select 'F' || i, '1234', 100, $values from generate_series(1, 5) i");
	$fini->wait_done;
	is($fini->sql(q{select string_agg(own_ref, ' ' order by own_ref) from data.failing where fini_state = 'accepted'}), 'F1 F3 F5', 'the other rows are written');
	is($fini->sql(q{select string_agg(own_ref || ' ' || state || ' ' || (record_id is not null) || ' ' || error_message, ', ' order by own_ref) from fini.submission where own_ref in ('F2', 'F4')}),
		join(', ', map { "$_ accepted true the outcome could not be written to the table (SQLSTATE ZZ999)" } qw(F2 F4)), 'the outbox has the truth, with a note');
	like($fini->log_since($position), qr/2 outcomes could not be written to table failing/, 'and the log a line');
	is($fini->sql('select count(*) from fini.unwritten'), 0, 'they are not tried for ever');
	is($fini->sql('select worker_pid from fini.status'), $worker, 'the worker goes on');
};

subtest 'tricks' => sub {
	# what an owner may try while our statement runs with his rights, and what a search path could smuggle in
	$fini->sql(q{create schema trick authorization owner});
	as('owner', q{
		create function trick.evil(text, text) returns boolean language plpgsql as $$ begin insert into data.log values ('evil operator', null, current_user); return true; end $$;
		create operator trick.= (leftarg = text, rightarg = text, function = trick.evil);
		create function trick.nullif(text, text) returns text language sql as $$ select 'evil'::text $$;
		create function trick.left(text, integer) returns text language sql as $$ select 'evil'::text $$;
		create function trick.clock_timestamp() returns timestamptz language sql as $$ select '-infinity'::timestamptz $$;
		create table trick.submission (like fini.submission);
		alter role owner set search_path = trick, pg_catalog, data;
		create table tried (what text, outcome text);
		create function data.attempt(what text) returns void language plpgsql as $$
		begin
			execute what;
			insert into data.tried values (what, 'done as ' || current_user);
		exception when others then
			insert into data.tried values (what, sqlstate);
		end $$;
		create function data.attempts() returns trigger language plpgsql as $$
		begin
			perform data.attempt(what) from unnest(array['set role postgres', 'set session authorization postgres', 'reset role', 'create temporary table t (a integer)',
				'listen x', 'alter role owner superuser', 'update fini.control set armed_by = ''me''', 'select fini.disarm()', 'set local session_replication_role = replica',
				'select pg_read_file(''PG_VERSION'')', 'copy (select 1) to program ''true''', 'prepare p as select 1', 'declare c cursor with hold for select 1', 'security label on role postgres is ''x''']) what;
			perform set_config('search_path', 'trick, pg_catalog', false);
			return new;
		end $$;
		select fini.create_subscription_table('tricky');
		alter table tricky alter fini_error type varchar(200);
		create trigger attempts before update on tricky for each row execute function data.attempts();
		select fini.attach('tricky')});
	$fini->config(rejectOwnRefs => [ 'K2' ]);
	as('owner', "insert into tricky (own_ref, ipo_id, app_quantity, $person) select 'K' || i, '1234', 100, $values from generate_series(1, 2) i");
	$fini->wait_done;
	is($fini->sql(q{select string_agg(own_ref || ' ' || fini_state, ', ' order by own_ref) from data.tricky}), 'K1 accepted, K2 rejected', 'outcomes as they are');
	unlike(row('tricky', 'K2', 'fini_error'), qr/evil/, 'functions and operators are PostgreSQL\'s');
	is($fini->sql(q{select string_agg(distinct what, ', ') from data.tried where outcome like 'done%' and what not in ('prepare p as select 1', 'select fini.disarm()')}), '', 'nothing that matters has worked');
	is($fini->sql(q{select count(distinct what) from data.tried}), 14, 'all tried');
	is($fini->sql(q{select string_agg(distinct outcome, ', ') from data.tried where outcome like 'done%'}), 'done as owner', 'nor as anybody else');
	is($fini->sql(q{select rolsuper from pg_roles where rolname = 'owner'}), 'f', 'no superuser was made');
	is($fini->sql(q{select count(*) from data.log where what like 'evil%'}), 0, 'no operator was called');
	# an operator may disarm, and did so in his own trigger
	$fini->sql('select fini.arm()');
	$fini->config(rejectOwnRefs => []);
	as('owner', q{drop trigger attempts on tricky; update tricky set app_quantity = 7});
	$fini->wait_done;
	is($fini->sql(q{select count(*) from data.tricky where fini_state = 'accepted'}), 2, 'the worker\'s own search path is as before');
};

subtest 'rows that their owner does not see, tables that change hands' => sub {
	as('owner', q{
		select fini.create_subscription_table('hidden');
		alter table hidden enable row level security; alter table hidden force row level security;
		create policy not_all on hidden using (own_ref <> 'H2') with check (true);
		select fini.attach('hidden')});
	as('owner', "insert into hidden (own_ref, ipo_id, app_quantity, $person) select 'H' || i, '1234', 100, $values from generate_series(1, 3) i");
	$fini->wait_done;
	is($fini->sql(q{select string_agg(own_ref || ' ' || state || coalesce(' ' || error_code, ''), ', ' order by own_ref) from fini.submission where own_ref ~ '^H'}),
		'H1 accepted, H2 failed row_missing, H3 accepted', 'row-level security holds for the worker');

	$fini->sql(q{create role heir; grant usage, create on schema data to heir; alter table data.noted owner to heir; truncate data.log});
	$fini->sql(qq{insert into data.noted (own_ref, ipo_id, app_quantity, $person) select 'N8', '1234', 100, $values});
	$fini->wait_done;
	is($fini->sql(q{select string_agg(distinct who, ', ') from data.log where own_ref = 'N8'}), 'heir', 'whoever owns the table now');
	fails_as('owner', q{select fini.detach('noted')}, qr/42501: must be owner/, 'and nobody else detaches it');
	$fini->sql(q{revoke all on data.noted from heir});
	$fini->sql(qq{insert into data.noted (own_ref, ipo_id, app_quantity, $person) select 'N9', '1234', 100, $values});
	$fini->wait_done;
	like($fini->sql(q{select state || ' ' || error_code || ' ' || error_message from fini.submission where own_ref = 'N9'}),
		qr/^failed table_unreadable .*SQLSTATE 42501.*permission denied for table noted/, 'an owner who has given up his rights');
};

is($fini->sql('select worker_pid from fini.status'), $worker, 'the worker has not ended once');
my $log = slurp_file($fini->node->logfile);
unlike($log, qr/PANIC|terminated by signal|TRAP:|leak/, 'nothing crashed');
unlike($log, qr/P1234567|Tai Man/, 'no personal data in the log');
is($fini->stats->{duplicates}, 0, 'no duplicates');
done_testing();
