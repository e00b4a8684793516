# pg_dump and restore: all of fini's own data comes back, disarmed; and what was open is sent once.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->new(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 50 },
	gateway => [ '--rate-limit', 0 ],
	databases => 'postgres, beside');
my $node = $fini->node;
my $tmp = $PostgreSQL::Test::Utils::tmp_check;
$fini->sql('create extension fini; select fini.arm(); create database beside');

sub insert_rows
{
	my ($prefix, $n) = @_;
	$fini->sql(qq{
		insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$prefix' || i, '1234', 1000, 'PASSPORT', 'GBR', 'P' || i, 'Name ' || i from generate_series(1, $n) i});
	return;
}

# every table and sequence of fini's, with what is in it
sub contents
{
	my ($target, $database) = @_;
	my %contents;
	for my $table (split /\n/, $target->safe_psql($database,
		q{select relname from pg_class where relnamespace = 'fini'::regnamespace and relkind in ('r', 'p') and not relispartition order by 1}))
	{
		$contents{$table} = $target->safe_psql($database, "select count(*) || ' rows, ' || md5(string_agg(t::text, e'\n' order by t::text collate \"C\")) from fini.$table t");
	}
	for my $sequence (split /\n/, $target->safe_psql($database,
		q{select relname from pg_class where relnamespace = 'fini'::regnamespace and relkind = 'S' order by 1}))
	{
		$contents{$sequence} = $target->safe_psql($database, "select last_value, is_called from fini.$sequence");
	}
	return \%contents;
}

# something in as many tables as can be: settled, withdrawn, rejected and queued rows, a reconciliation with a finding
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
insert_rows('A', 120);
insert_rows('B', 10);
$fini->wait_done;
$fini->sql(q{delete from applications where own_ref like 'B%'; update applications set app_quantity = 2000 where own_ref = 'A1'});
$fini->sql(q{insert into applications (own_ref, ipo_id, app_quantity) values ('nobody', '1234', 1000)});
$fini->wait_done;
$fini->sql(q{select fini.pause('before the dump')});
insert_rows('C', 30);
$fini->sql(q{set session_replication_role = replica; delete from applications where own_ref = 'A2'});
isnt($fini->sql(q{select discrepancies from fini.reconcile('applications', '1234')}), 0, 'there is a discrepancy');
$fini->wait_for(q{select worker_state = 'idle' from fini.status}, 'the worker to be idle');
my $before = contents($node, 'postgres');
isnt($before->{$_}, '', "there is something in fini.$_") for qw(attachment submission queue request reconcile_run discrepancy);

# --- which tables a dump takes along ---

# what belongs to the cluster alone, and what holds it, must not travel
my %stays = (control => 'arming', look => 'where FINI stood', purge_state => 'where the purge stood');
is($fini->sql(q{
	select string_agg(c.relname, ' ' order by c.relname) from pg_class c, pg_extension e
	where e.extname = 'fini' and c.relnamespace = 'fini'::regnamespace and c.relkind in ('r', 'S') and c.oid <> all (e.extconfig)
	  and not exists (select from pg_depend d where d.objid = c.oid and d.deptype in ('i', 'a') and c.relkind = 'S'
		and not d.refobjid = any (e.extconfig))}),
	join(' ', sort keys %stays), 'every table and sequence is dumped, but for those that stay');

# --- there and back, in both formats ---

sub compare_contents
{
	my ($target, $database, $what) = @_;
	my $after = contents($target, $database);
	delete @{$_}{ keys %stays } for $after;
	my %expected = %$before;
	delete @expected{ keys %stays };
	is_deeply([ sort keys %$after ], [ sort keys %expected ], "$what: the same tables");
	is($after->{$_}, $expected{$_}, "$what: fini.$_ came back") for sort keys %expected;
	is($target->safe_psql($database, 'select armed from fini.status'), 'f', "$what: disarmed");
	is($target->safe_psql($database, 'select armed_at is null and system_identifier is null from fini.control'), 't', "$what: and not by chance");
	return;
}

# another database of the same cluster
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$tmp/dump.custom", '-d', $node->connstr('postgres') ], 'pg_dump -Fc');
$node->command_ok([ 'pg_restore', '-j', 2, '--exit-on-error', '-d', $node->connstr('beside'), "$tmp/dump.custom" ], 'pg_restore');
compare_contents($node, 'beside', 'beside it');
my $settled = $fini->stats->{accepted};

# another cluster
my $other = PostgreSQL::Test::Cluster->new('other');
$other->init(extra => [ '-E', 'UTF8', '--locale=C' ]);
$other->append_conf('postgresql.conf', "shared_preload_libraries = 'fini'\nfsync = off\n"
	  . $fini->sandbox->conf('fini.databases' => 'postgres', 'fini.rate_limit' => 0));
$other->start;
$node->command_ok([ 'pg_dump', '-f', "$tmp/dump.sql", '-d', $node->connstr('postgres') ], 'pg_dump');
$other->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$tmp/dump.sql", '-d', $other->connstr('postgres') ], 'restored with psql');
compare_contents($other, 'postgres', 'elsewhere');

# a user's data alone are in a dump of data, too
$node->command_ok([ 'pg_dump', '--data-only', '-f', "$tmp/data.sql", '-d', $node->connstr('postgres') ], 'pg_dump --data-only');
my $data = slurp_file("$tmp/data.sql");
like($data, qr/^COPY fini\.submission /m, 'a dump of data has the outbox');
unlike($data, qr/^COPY fini\.control /m, 'and not the arming');

# --- afterwards: the original sends what was queued; the copy, armed, finds it and sends nothing ---

$fini->sql('select fini.resume()');
$fini->wait_done;
is($fini->stats->{accepted}, $settled + 30, 'the original sent what was queued');
$other->safe_psql('postgres', 'select fini.arm()');
$fini->wait_for(
	sub { $other->safe_psql('postgres', q{select not exists (select from fini.submission where state in ('queued', 'sending', 'unknown'))}) eq 't' },
	'the copy to settle');
is($other->safe_psql('postgres', q{select count(*) from fini.submission where own_ref like 'C%' and state = 'accepted' and record_id is not null}),
	30, 'the copy has found what the original sent');
is($fini->stats->{duplicates}, 0, 'nothing twice');
is($other->safe_psql('postgres', q{select count(*) from applications where own_ref like 'C%' and fini_state = 'accepted'}), 30, 'and says so in the rows');

$other->safe_psql('postgres', q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
	values ('new', '1234', 1000, 'PASSPORT', 'GBR', 'PX', 'Name')});
$fini->wait_for(sub { $other->safe_psql('postgres', q{select fini_state from applications where own_ref = 'new'}) eq 'accepted' },
	'a new row of the copy to be accepted');
pass('the restored outbox works: triggers, identities, queue');
$other->stop;

# --- DROP EXTENSION with tables attached ---

$fini->sql_fails('drop extension fini', qr/2BP01.*trigger .* on table applications depends on function fini\.capture\(\)/s,
	'DROP EXTENSION is refused while a table is attached');
is($fini->sql(q{select count(*) > 0 from pg_trigger where tgrelid = 'applications'::regclass}), 't', 'its triggers are still there');
insert_rows('D', 5);
$fini->wait_done;
is($fini->sql(q{select count(*) from applications where own_ref like 'D%' and fini_state = 'accepted'}), 5, 'and work');

my $log = $fini->log_position;
$fini->sql('begin; drop extension fini cascade; rollback');
insert_rows('E', 5);
$fini->wait_done;
is($fini->sql(q{select count(*) from applications where own_ref like 'E%' and fini_state = 'accepted'}), 5, 'rolled back: goes on');

$fini->sql('set client_min_messages = warning; drop extension fini cascade');
is($fini->sql(q{select count(*) from pg_trigger where tgrelid = 'applications'::regclass}), 0, 'CASCADE leaves no orphan triggers');
is($fini->sql(q{select count(*) from pg_proc p where p.probin like '%fini%'}), 0, 'nor functions');
is($fini->sql(q{select count(*) from pg_depend where refclassid = 'pg_namespace'::regclass and refobjid = 'fini'::regnamespace}), 0,
	'the schema is empty');
$fini->sql(q{update applications set app_quantity = 3000 where own_ref = 'A3'; delete from applications where own_ref = 'A4'; truncate applications});
pass('the table is an ordinary table again');

$fini->sql(q{create extension fini; select fini.arm(); select fini.attach('applications')});
insert_rows('F', 5);
$fini->wait_done;
is($fini->sql(q{select count(*) from applications where own_ref like 'F%' and fini_state = 'accepted'}), 5, 'and can be attached again');
unlike($fini->log_since($log), qr/PANIC|terminated by signal|could not find function/, 'the server is well');

done_testing();
