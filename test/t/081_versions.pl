# Another version of fini: a library beside SQL objects of another version sends nothing and loses nothing;
# ALTER EXTENSION fini UPDATE under a running worker, before and after the library is replaced.
#
# Version 1.1 is made up here, in a private installation: the same library with another number in it, and an
# update script that changes a table of fini's.

use strict;
use warnings;

use File::Basename qw(dirname);
use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = dirname(__FILE__) . '/../..';
my ($control_version) = slurp_file("$top/fini.control") =~ /^default_version = '(.*)'/m;
my ($header_version) = slurp_file("$top/src/version.h") =~ /^#define FINI_VERSION "(.*)"/m;
is($header_version, $control_version, 'src/version.h and fini.control agree');

# --- an installation whose files this test may change ---

my $stage = "$ENV{FINI_STAGE}/root";
my $root = "$PostgreSQL::Test::Utils::tmp_check/root";
my %place = map { /^(\w+) = (.*)$/ ? ($1 => $2) : () } split /\n/, `pg_config` =~ s/^([A-Z-]+)/$1 =~ tr{-}{_}r/megr;
system('cp', '-a', $stage, $root) == 0 or die "cp failed\n";
system('chmod', '-R', 'u+w', $root) == 0 or die "chmod failed\n";
s/^\Q$stage\E/$root/ for values %place;
my $extensions = "$place{SHAREDIR}/extension";

my $fini = FiniTest->new(
	install_path => dirname($place{BINDIR}),
	databases => 'postgres, second',
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 10, 'fini.request_timeout' => '30s' },
	gateway => [ '--rate-limit', 0 ]);
$fini->sql('create extension fini; select fini.arm(); create database second');
$fini->sql('create extension fini; select fini.arm()', database => 'second');

sub install_file
{
	my ($name, $text) = @_;
	append_to_file("$name.new", $text);
	rename "$name.new", $name or die "$name: $!\n";
	return;
}

sub install_next_version
{
	my $library = slurp_file("$place{PKGLIBDIR}/fini.so");
	is($library =~ s/fini library \Q$control_version\E\0/fini library 1.1\0/g, 1, 'the library says which version it is');
	install_file("$place{PKGLIBDIR}/fini.so", $library);
	install_file("$extensions/fini.control", slurp_file("$extensions/fini.control") =~ s/^default_version = .*/default_version = '1.1'/mr);
	install_file("$extensions/fini--$control_version--1.1.sql", <<'END');
ALTER TABLE fini.request ADD COLUMN remark text;
CREATE FUNCTION fini._remark() RETURNS text LANGUAGE sql AS $$ SELECT 'new in 1.1' $$;
REVOKE ALL ON FUNCTION fini._remark() FROM PUBLIC;
END
	# and one that needs what the library does not have
	install_file("$extensions/fini--1.1--1.2.sql", <<'END');
ALTER TABLE fini.request ADD COLUMN later text;
CREATE FUNCTION fini._later() RETURNS void LANGUAGE C AS 'MODULE_PATHNAME', 'fini_sql_later';
END
	return;
}

sub insert_rows
{
	my ($prefix, $n, $database) = @_;
	$fini->sql(qq{
		insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$prefix' || i, '1234', 1000, 'PASSPORT', 'GBR', '$prefix' || i, 'Name ' || i from generate_series(1, $n) i}, database => $database // 'postgres');
	return;
}

sub all_accepted
{
	my ($prefix, $database) = @_;
	$fini->wait_for(sub {
		$fini->sql(qq{select count(*) > 0 and bool_and(fini_state is not distinct from 'accepted') from applications where own_ref like '$prefix%'},
			database => $database // 'postgres') eq 't' }, "all rows $prefix to be accepted");
	return 1;
}

sub versions { my ($database) = @_; return $fini->sql(q{select library_version, extversion from fini._check_worker(), pg_extension where extname = 'fini'}, database => $database // 'postgres') }

for my $database (qw(postgres second))
{
	$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')}, database => $database);
}
is(versions(), "$control_version|$control_version", 'library and objects of one version');
insert_rows('A', 10);
ok(all_accepted('A'), 'they work together');

# --- installed, but nobody has restarted or updated anything: the server goes on as it was ---

install_next_version();
insert_rows('B', 10);
ok(all_accepted('B'), 'a new library in the file system alone changes nothing');

my $log = $fini->log_position;
$fini->sql('begin; alter extension fini update; select fini._remark(); rollback');
insert_rows('C', 10);
ok(all_accepted('C'), 'an update that is rolled back changes nothing');

# --- the objects are updated first, while requests are under way ---

$fini->faults({ endpoint => 'subscriptions/add', action => 'hang-before', count => 1 });
insert_rows('D', 30);
$fini->wait_for(q{select sending > 0 from fini.status}, 'a request to be under way');
$fini->sql('alter extension fini update');
is(versions(), "$control_version|1.1", 'objects updated, the server has the old library');
$fini->wait_for(q{select worker_state = 'waiting' from fini.status}, 'the worker to wait');
like($fini->sql('select last_error from fini.status'), qr/library is of version \Q$control_version\E, the extension in this database of 1\.1/, 'it says why');
like($fini->log_since($log), qr/HINT:.*ALTER EXTENSION fini UPDATE/, 'and what to do, in the log');

my $accepted = $fini->stats->{accepted};
insert_rows('E', 10);
is($fini->sql(q{select count(*) from fini.submission where own_ref like 'E%' and state = 'queued'}), 10, 'rows are captured meanwhile');
is($fini->sql('select count(*) > 0 from fini.ipo_list()'), 't', 'direct calls work');
is($fini->stats->{accepted}, $accepted, 'and nothing is sent');
insert_rows('S', 10, 'second');
ok(all_accepted('S', 'second'), 'a database that was not updated goes on');
is(() = $fini->log_since($log) =~ /the fini library is of version/g, 1, 'one line in the log, not many');

$fini->sql_fails(q{alter extension fini update to '1.2'}, qr/could not find function "fini_sql_later"/, 'an update that needs another library is refused');
is($fini->sql(q{select count(*) from pg_attribute where attrelid = 'fini.request'::regclass and attname = 'later'}), 0, 'as a whole');

# --- the server is restarted with the new library: one database is ahead of the other now ---

$fini->clear_faults;
insert_rows('T', 1, 'second');
ok(all_accepted('T', 'second'), 'before the restart');
$fini->node->restart;
is(versions(), '1.1|1.1', 'after the restart they agree');
ok(all_accepted('D'), 'what was under way when the objects changed is settled');
ok(all_accepted('E'), 'and what came while they differed');

is(versions('second'), "1.1|$control_version", 'the other database: library ahead of the objects');
insert_rows('U', 10, 'second');
$fini->wait_for(sub { $fini->sql('select worker_state from fini.status', database => 'second') eq 'waiting' }, 'its worker to wait');
is($fini->sql(q{select count(*) from fini.submission where state = 'queued'}, database => 'second'), 10, 'rows are captured');
is($fini->sql('select armed from fini.status', database => 'second'), 't', 'still armed');
is($fini->sql('select count(*) > 0 from fini.ipo_list()', database => 'second'), 't', 'it fetches tokens for direct calls');
$fini->sql('alter extension fini update', database => 'second');
ok(all_accepted('U', 'second'), 'ALTER EXTENSION fini UPDATE, and it goes on by itself');
is($fini->sql('select worker_state from fini.status', database => 'second') =~ /idle|busy/, 1, 'nothing to restart');

is($fini->stats->{duplicates}, 0, 'nothing twice');
is($fini->sql(q{select count(*) from applications where fini_state = 'accepted' and record_id is not null}), 70, 'nothing lost');
unlike($fini->log_since($log), qr/PANIC|terminated by signal/, 'nothing crashed');

done_testing();
