# What users build on: names, arguments, columns and their order, settings, who may what. A change here breaks them.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster(conf => "wal_level = replica\nmax_wal_senders = 4\n");

# every function: arguments, result, level, and a call of it
my @functions = (
	[ 'encrypt_field', 'plaintext text, data_key bytea, iv bytea', 'text', 'submitter' ],
	[ 'decrypt_field', 'ciphertext text, data_key bytea, iv bytea', 'text', 'submitter' ],
	[ 'encrypt_fields', 'payload json, data_key bytea, iv bytea', 'text', 'submitter' ],
	[ 'decrypt_fields', 'payload json, data_key bytea, iv bytea', 'jsonb', 'submitter' ],
	[ 'wrap_key', 'data_key bytea, iv bytea, public_key text', 'text', 'submitter' ],
	[ 'sign', 'data_key bytea, body text, request_id text, timestamp_ms bigint', 'text', 'submitter' ],
	[ 'jwks', 'profile text, expires timestamp with time zone', 'json', 'operator' ],
	[ 'ipo_list', 'OUT ipo_id text, OUT stock_code text, OUT isin text, OUT status text, OUT raw jsonb', 'SETOF record', 'submitter', 'ipo_list()' ],
	[ 'ipo_refdata', 'ipo_id text', 'jsonb', 'submitter', q{ipo_refdata('1234')} ],
	[ 'subscription_add', 'entries jsonb, OUT request_id text, OUT own_ref text, OUT record_id text, OUT error_code text, OUT error_message text', 'SETOF record', 'submitter', q{subscription_add('[{"ownRef":"a"}]')} ],
	[ 'subscription_change', 'entries jsonb, OUT request_id text, OUT own_ref text, OUT record_id text, OUT error_code text, OUT error_message text', 'SETOF record', 'submitter', q{subscription_change('[{"recordID":"a"}]')} ],
	[ 'subscription_invalidate', 'record_ids text[], OUT request_id text, OUT own_ref text, OUT record_id text, OUT error_code text, OUT error_message text', 'SETOF record', 'submitter', q{subscription_invalidate('{a}')} ],
	[ 'subscription_query', 'ipo_id text DEFAULT NULL::text, record_ids text[] DEFAULT NULL::text[], sub_flow_status text DEFAULT NULL::text, OUT record_id text, OUT ipo_id text, OUT own_ref text, OUT app_quantity numeric, OUT sub_flow_status text, OUT id_list jsonb, OUT raw jsonb', 'SETOF record', 'submitter', q{subscription_query('1234')} ],
	[ 'funding_query', 'ipo_id text DEFAULT NULL::text, OUT transaction_ref text, OUT ipo_id text, OUT pre_funding_status text, OUT raw jsonb', 'SETOF record', 'submitter', 'funding_query()' ],
	[ 'funding_confirm', 'transaction_refs text[], status text, OUT transaction_ref text, OUT pre_funding_status text, OUT error_code text, OUT error_message text', 'SETOF record', 'submitter', q{funding_confirm('{a}', '20')} ],
	[ 'call', 'path text, body jsonb DEFAULT NULL::jsonb, sealed boolean DEFAULT false', 'jsonb', 'operator', q{call('/api/ipos/list/v1')} ],
	[ 'create_subscription_table', 'name text', 'regclass', 'operator', q{create_subscription_table('t2')} ],
	[ 'attach', q{relation regclass, fields jsonb DEFAULT '{}'::jsonb, outcome jsonb DEFAULT '{}'::jsonb, live boolean DEFAULT true, precheck boolean DEFAULT false, replicated boolean DEFAULT false}, 'void', 'operator', q{attach('t')} ],
	[ 'detach', 'relation regclass, force boolean DEFAULT false', 'void', 'operator', q{detach('t')} ],
	[ 'precheck', 'relation regclass, ipo_id text, OUT own_ref text, OUT problem text, OUT detail text', 'SETOF record', 'reader' ],
	[ 'submit', 'relation regclass, ipo_id text DEFAULT NULL::text', 'bigint', 'submitter', q{submit('t')} ],
	[ 'invalidate', 'relation regclass, own_refs text[]', 'bigint', 'submitter', q{invalidate('t', '{a}')} ],
	[ 'cancel', 'relation regclass, own_refs text[] DEFAULT NULL::text[]', 'bigint', 'submitter', q{cancel('t')} ],
	[ 'retry', q{ipo_id text DEFAULT NULL::text, relation regclass DEFAULT NULL::regclass, own_refs text[] DEFAULT NULL::text[], states text[] DEFAULT '{failed,rejected}'::text[]}, 'bigint', 'submitter', 'retry()' ],
	[ 'wait', q{ipo_id text DEFAULT NULL::text, timeout interval DEFAULT '00:01:00'::interval}, 'boolean', 'submitter', 'wait()' ],
	[ 'capture', '', 'trigger', 'operator' ],
	[ 'reconcile', 'relation regclass, ipo_id text, OUT run_id bigint, OUT local bigint, OUT remote bigint, OUT matched bigint, OUT discrepancies bigint, OUT started_at timestamp with time zone, OUT finished_at timestamp with time zone', 'record', 'submitter', q{reconcile('t', '1234')} ],
	[ 'start_reconcile', 'relation regclass, ipo_id text', 'bigint', 'submitter', q{start_reconcile('t', '1234')} ],
	[ 'cancel_reconcile', 'run_id bigint', 'boolean', 'submitter', 'cancel_reconcile(1)' ],
	[ 'wait_reconcile', q{run_id bigint, timeout interval DEFAULT '01:00:00'::interval}, 'boolean', 'submitter', 'wait_reconcile(1)' ],
	[ 'repair', 'run_id bigint, kinds text[] DEFAULT NULL::text[]', 'bigint', 'submitter', 'repair(1)' ],
	[ 'repair_plan', 'run_id bigint, kinds text[] DEFAULT NULL::text[], OUT own_ref text, OUT record_id text, OUT kind text, OUT operation text', 'SETOF record', 'submitter' ],
	[ 'refresh_ipos', q{refdata_limit integer DEFAULT 10, max_age interval DEFAULT '1 day'::interval}, 'bigint', 'submitter', 'refresh_ipos()' ],
	[ 'refresh_funding', 'ipo_id text DEFAULT NULL::text', 'bigint', 'submitter', 'refresh_funding()' ],
	[ 'confirm_funding', 'transaction_refs text[], status text', 'bigint', 'submitter', q{confirm_funding('{a}', '20')} ],
	[ 'cancel_funding', 'transaction_refs text[] DEFAULT NULL::text[]', 'bigint', 'submitter', 'cancel_funding()' ],
	[ 'set_deadline', 'ipo_id text, deadline timestamp with time zone', 'void', 'operator', q{set_deadline('1234', now())} ],
	[ 'arm', '', 'void', 'operator', 'arm()' ],
	[ 'disarm', '', 'void', 'operator', 'disarm()' ],
	[ 'pause', 'reason text DEFAULT NULL::text', 'void', 'operator', 'pause()' ],
	[ 'resume', '', 'void', 'operator', 'resume()' ],
	[ 'check', 'OUT item text, OUT ok boolean, OUT detail text', 'SETOF record', 'operator' ],
	[ 'recount', '', 'bigint', 'operator', 'recount()' ],
	[ 'stat_reset', '', 'void', 'operator', 'stat_reset()' ],
	[ 'purge', 'older_than interval', 'bigint', 'operator', q{purge('1 day')} ],
	[ 'grant_access', 'role regrole, level text', 'void', 'nobody', q{grant_access('level_reader', 'reader')} ]);

# tables and views: their first columns, in this order; more may follow
my %columns = (
	submission => 'id relation own_ref ipo_id operation state record_id request_id attempts error_code error_message not_before created_at sent_at settled_at',
	request => 'request_id endpoint entries attempts http_status code message started_at duration state',
	discrepancy => 'run_id kind own_ref record_id field local remote',
	status => 'worker_pid worker_state armed paused token_expires_at public_key_fetched_at clock_difference queued sending unknown oldest_open last_error last_error_at',
	progress => 'ipo_id queued sending unknown accepted rejected cancelled failed records_per_minute deadline estimated_finish on_time',
	stat_endpoint => 'endpoint calls errors retries throttled entries bytes mean_ms p50_ms p95_ms p99_ms');

my @settings = qw(databases base_url token_url agent_issuer agent_subject agent_key_file machine_id machine_key_file client_assertion_type
	assertion_lifetime firm_id ca_file client_cert_file client_key_file pinned_public_key proxy connect_timeout request_timeout rate_limit
	rate_window batch_size max_in_flight encrypted_fields authorised_status invalidated_status token_refresh_margin);

sub rows { return map { [ split /\|/, $_, -1 ] } split /\n/, $fini->sql($_[0]) }
my @levels = qw(reader submitter operator);
$fini->sql("create role level_$_; select fini.grant_access('level_$_', '$_')") for @levels;
$fini->sql(q{create role level_nobody; select fini.create_subscription_table('t'); select fini.attach('t'); grant all on t to public});

subtest 'functions' => sub {
	my %exists = map { $_->[0] => $_ } rows(q{select proname, pg_get_function_arguments(oid), case when proretset then 'SETOF ' else '' end || format_type(prorettype, null),
		case when has_function_privilege('level_reader', oid, 'execute') then 'reader' when has_function_privilege('level_submitter', oid, 'execute') then 'submitter'
		when has_function_privilege('level_operator', oid, 'execute') then 'operator' else 'nobody' end, provolatile = 'v' or proname ~ '(en|de)crypt|sign|wrap'
		from pg_proc where pronamespace = 'fini'::regnamespace and proname !~ '^_'});
	is_deeply([ sort keys %exists ], [ sort map { $_->[0] } @functions ], 'these and no others: decide on a level for a new one, here and in 032_roles.pl');
	for my $wanted (@functions)
	{
		my ($name, $arguments, $result, $level) = @$wanted;
		is_deeply([ @{ $exists{$name} // [] }[ 0 .. 3 ] ], [ $name, $arguments, $result, $level ], $name);
	}
};

subtest 'tables, views, settings' => sub {
	for my $name (sort keys %columns)
	{
		my @wanted = split / /, $columns{$name};
		my @there = map { $_->[0] } rows("select attname from pg_attribute where attrelid = 'fini.$name'::regclass and attnum > 0 and not attisdropped order by attnum");
		is("@there[ 0 .. ($#wanted < $#there ? $#wanted : $#there) ]", "@wanted", "fini.$name");
	}
	ok($fini->sql("select count(*) = 2 from pg_attribute where attrelid = 'fini.$_'::regclass and attname in ('first_seen', 'last_seen')") eq 't', "fini.$_ says since when") for qw(ipo funding);
	my %context = map { @$_ } rows(q{select name, context from pg_settings where name ~ '^fini\.'});
	is($context{"fini.$_"}, $_ eq 'databases' ? 'postmaster' : 'superuser', "fini.$_") for @settings;
	is_deeply([ grep { !/^fini\.databases$/ && $context{$_} ne 'superuser' } sort keys %context ], [], 'no setting of others');
	my @hidden = map { $_->[0] } rows(q{set role level_operator; select s from unnest(array['fini.agent_key_file', 'fini.machine_key_file', 'fini.client_key_file', 'fini.proxy']) s where s in (select name from pg_settings)});
	is("@hidden", '', 'paths of keys are not shown to an operator');
};

# everything in the schema that can have an ACL: the owner, and the levels; nothing for PUBLIC
subtest 'privileges of everything' => sub {
	my $acl = sub { my ($what) = @_; return map { "$_->[0]: $_->[1]" } rows(qq{
		select x.name, coalesce((select string_agg(case when a.grantee = 0 then 'PUBLIC' else a.grantee::regrole::text end || ' ' || a.privilege_type || case when a.is_grantable then ' WITH GRANT OPTION' else '' end, ', ' order by a.grantee::regrole::text, a.privilege_type)
			from aclexplode(x.acl) a where a.grantee <> x.owner), '') from ($what) x(name, owner, acl)}) };

	is_deeply([ $acl->(q{select nspname, nspowner, coalesce(nspacl, acldefault('n', nspowner)) from pg_namespace where nspname = 'fini'}) ],
		[ 'fini: level_operator USAGE, level_reader USAGE, level_submitter USAGE' ], 'the schema can be used, and nothing be put there');
	my @relations = $acl->(q{select relname, relowner, coalesce(relacl, acldefault('r', relowner)) from pg_class where relnamespace = 'fini'::regnamespace and relkind in ('r', 'v', 'p', 'm', 'f')});
	cmp_ok(scalar @relations, '>', 15, 'tables and views');
	is_deeply([ grep { !/: level_operator SELECT, level_reader SELECT, level_submitter SELECT$/ } @relations ], [], '... are read, and written by no one');
	my @sequences = $acl->(q{select relname, relowner, coalesce(relacl, acldefault('s', relowner)) from pg_class where relnamespace = 'fini'::regnamespace and relkind = 'S'});
	is_deeply([ grep { !/: (level_operator SELECT, level_reader SELECT, level_submitter SELECT)?$/ } @sequences ], [], 'sequences are drawn from by no one');
	is($fini->sql(q{select count(*) from pg_attribute a join pg_class c on c.oid = a.attrelid where c.relnamespace = 'fini'::regnamespace and a.attacl is not null}), 0, 'no column has its own');
	my @functions = $acl->(q{select oid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner)) from pg_proc where pronamespace = 'fini'::regnamespace});
	is_deeply([ grep { /PUBLIC|GRANT OPTION|(?:SELECT|INSERT)/ } @functions ], [], 'no function for PUBLIC');
	is($fini->sql(q{select count(*) from pg_type t where typnamespace = 'fini'::regnamespace and typtype not in ('c') and typelem = 0}), 0, 'no types but those of rows');
	is($fini->sql(q{select string_agg(evtname || ' ' || evtfoid::regproc, ', ') from pg_event_trigger}), 'fini_follow_partitions fini._follow_partitions', 'event triggers');
	is($fini->sql(q{select count(*) from pg_proc where pronamespace = 'fini'::regnamespace and prosecdef and not coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false)}), 0, 'whatever runs as the owner pins its search path');
	is($fini->sql(q{select string_agg(oid::regprocedure::text, ', ') from pg_proc where pronamespace = 'fini'::regnamespace and has_function_privilege('level_nobody', oid, 'execute') and has_schema_privilege('level_nobody', 'fini', 'usage')}), '', 'nobody may anything');
	for my $relation (rows(q{select oid::regclass from pg_class where relnamespace = 'fini'::regnamespace and relkind in ('r', 'v')}))
	{
		my @wrong = grep { my (undef, undef, $err) = $fini->try_sql("set role level_operator; $_"); $err !~ /42501|55000: cannot (?:insert into|delete from) view|42809: .*is not a table/ }
		  "insert into $relation->[0] default values", "delete from $relation->[0]", "truncate $relation->[0]";
		is("@wrong", '', "$relation->[0] is not written by an operator");
	}
};

# a new version's script must not forget it: every function that anybody may call has been granted by grant_access alone
subtest 'levels include one another' => sub {
	my ($reader, $submitter, $operator) = map { { map { $_->[0] => 1 } rows("select oid::regprocedure::text from pg_proc where pronamespace = 'fini'::regnamespace and has_function_privilege('level_$_', oid, 'execute')") } } @levels;
	is_deeply([ grep { !$submitter->{$_} } keys %$reader ], [], 'a submitter may what a reader may');
	is_deeply([ grep { !$operator->{$_} } keys %$submitter ], [], 'an operator may what a submitter may');
};

subtest 'on a standby' => sub {
	my $node = $fini->node;
	$node->append_conf('pg_hba.conf', "local replication all trust\n");
	$node->backup('copy');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'copy', has_streaming => 1);
	$standby->start;
	$node->wait_for_catchup($standby);
	for (grep { defined $_->[4] } @functions)
	{
		my (undef, undef, $err) = $standby->psql('postgres', "\\set VERBOSITY verbose\nset statement_timeout = '20s'; select fini.$_->[4]");
		like($err, qr/25006: .*during recovery/s, "fini.$_->[0] says that it cannot run during recovery");
	}
	my ($key, $iv) = ("'" . ('k' x 32) . "'", "'" . ('i' x 12) . "'");
	for ("fini.encrypt_field('x', $key, $iv)", "fini.decrypt_field(fini.encrypt_field('x', $key, $iv), $key, $iv)", "fini.sign($key, '{}', repeat('a', 32), 1)",
		q{fini.precheck('t', '1234')}, 'fini.check()', q{fini.jwks('agent', now() + interval '1 day')}, '(select count(*) from fini.status)', '(select count(*) from fini.progress)', '(select count(*) from fini.stat_endpoint)')
	{
		my ($rc, undef, $err) = $standby->psql('postgres', "select $_", on_error_stop => 1);
		is($rc, 0, "$_ works") or diag $err;
	}
	$standby->stop;
};

done_testing();
