# pg_upgrade from an older major version: everything of fini's comes along, nothing is sent before the new cluster is
# armed, and what was open is found out, not sent again.
#
# Needs a second, older PostgreSQL with its development files: FINI_OLD_PG_CONFIG=/path/to/its/pg_config.

use strict;
use warnings;

use File::Basename qw(dirname);
use FiniTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $old_bindir = $ENV{FINI_OLD_BINDIR};
plan skip_all => 'no older PostgreSQL to upgrade from: set FINI_OLD_PG_CONFIG' unless $old_bindir;

my ($old_major) = `$old_bindir/postgres --version` =~ /PostgreSQL\) (\d+)/;
my ($new_major) = `postgres --version` =~ /PostgreSQL\) (\d+)/;
plan skip_all => "upgrading takes an older version, not $old_major to $new_major" unless $old_major < $new_major;
note "from $old_major to $new_major";

my %settings = ('fini.rate_limit' => 0, 'fini.batch_size' => 10);
my $fini = FiniTest->new(name => 'old', install_path => dirname($old_bindir), settings => \%settings, gateway => [ '--rate-limit', 0 ]);
my $old = $fini->node;
$fini->sql(q{create extension fini; select fini.arm(); select fini.create_subscription_table('applications'); select fini.attach('applications')});

sub insert_rows
{
	my ($target, $prefix, $n) = @_;
	$target->safe_psql('postgres', qq{
		insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$prefix' || i, '1234', 1000, 'PASSPORT', 'GBR', '$prefix' || i, 'Name ' || i from generate_series(1, $n) i});
	return;
}

# settled rows, some in doubt that FINI has, and some still queued
insert_rows($old, 'A', 40);
$fini->wait_done;
$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after', count => 1 },
	{ endpoint => 'subscriptions/query', action => 'status-before', status => 503, count => -1 });
insert_rows($old, 'B', 10);
$fini->wait_for(q{select unknown = 10 from fini.status}, 'a request to be in doubt');
$fini->sql(q{select fini.pause('upgrade')});
insert_rows($old, 'C', 15);
$fini->wait_for(q{select queued = 15 and sending = 0 and unknown = 10 from fini.status}, 'the queue to stand still');
my $accepted = $fini->stats->{accepted};
is($accepted, 50, 'FINI has those in doubt');
# nothing must move while pg_upgrade has the servers, paused or not; until then FINI takes nothing of what resume lets go
$fini->faults({ endpoint => 'subscriptions/*', action => 'status-before', status => 503, count => -1 });
$fini->sql(q{select fini.resume()});
$old->stop('immediate');					# a crash at the worst moment ...
$old->start;
$old->stop;								# ... and pg_upgrade wants a clean end

my $new = PostgreSQL::Test::Cluster->new('new');
$new->init(extra => [ '-E', 'UTF8', '--locale=C', $new_major >= 18 ? '--no-data-checksums' : () ]);
$new->append_conf('postgresql.conf', "shared_preload_libraries = 'fini'\nfsync = off\n"
	  . $fini->sandbox->conf('fini.databases' => 'postgres', %settings));
$fini->clear_faults;

# --- pg_upgrade, with fini in both configurations ---

my $requests = $fini->stats->{requests};
chdir $PostgreSQL::Test::Utils::tmp_check or die "chdir: $!\n";

# [ did it work, what it said ]
sub upgrade
{
	my ($from, $to, @more) = @_;
	my $said = '';
	my $done = IPC::Run::run([ 'pg_upgrade', '--no-sync', '-d', $from->data_dir, '-D', $to->data_dir, '-b', $old_bindir, '-B', $to->config_data('--bindir'),
			'-s', $to->host, '-p', $from->port, '-P', $to->port, '-U', scalar getpwuid($<), @more ], '<', \undef, '>&', \$said);
	return ($done, $said);
}

# whether these two versions of PostgreSQL can be upgraded at all, with one table and without fini
sub plain_upgrade
{
	my @nodes = map { PostgreSQL::Test::Cluster->new("plain_$_->[0]", $_->[1] ? (install_path => $_->[1]) : ()) } [ 'old', dirname($old_bindir) ], [ 'new' ];
	$nodes[0]->init(extra => [ '-E', 'UTF8', '--locale=C' ]);
	$nodes[0]->start;
	$nodes[0]->safe_psql('postgres', 'create table plain (i int)');
	$nodes[0]->stop;
	$nodes[1]->init(extra => [ '-E', 'UTF8', '--locale=C', $new_major >= 18 ? '--no-data-checksums' : () ]);
	return upgrade(@nodes);
}

my ($checked, $check_said) = upgrade($old, $new, '--check');
ok($checked, 'pg_upgrade --check') or diag $check_said;
my ($done, $said) = upgrade($old, $new);
if (!$done && !(plain_upgrade())[0])
{
	# seen with an old version whose minor release is younger than the new version's
	SKIP: { skip "pg_upgrade from $old_major to $new_major fails here without fini, too", 1; }
	done_testing();
	exit;
}
ok($done, 'pg_upgrade') or diag $said;
is_deeply($fini->stats->{requests}, $requests, 'neither server asked the gateway anything meanwhile');

# --- the new cluster ---

$new->start;
is($new->safe_psql('postgres', 'select armed, paused from fini.status'), 'f|f', 'the upgraded cluster is disarmed');
is($new->safe_psql('postgres', q{select extversion from pg_extension where extname = 'fini'}),
	$new->safe_psql('postgres', 'select library_version from fini._check_worker()'), 'library and objects agree');
is($new->safe_psql('postgres', q{select count(*), count(record_id) from applications where fini_state = 'accepted'}), '40|40', 'the rows are there');
is($new->safe_psql('postgres', q{select count(*) from fini.submission where state = 'accepted'}), 40, 'the outbox, too');
is($new->safe_psql('postgres', q{select count(*) from fini.submission where state in ('queued', 'sending', 'unknown')}), 25, 'with what is open');
insert_rows($new, 'D', 5);
$fini->wait_for(sub { $new->safe_psql('postgres', q{select queued + unknown = 30 and queued >= 5 and worker_state = 'idle' from fini.status}) eq 't' }, 'the worker to be idle');
is($fini->stats->{accepted}, $accepted, 'disarmed: rows are captured and nothing is sent');

$new->safe_psql('postgres', 'select fini.arm()');
$fini->wait_for(sub { $new->safe_psql('postgres',
	q{select not exists (select from fini.submission where state in ('queued', 'sending', 'unknown'))}) eq 't' }, 'everything to be settled');
is($new->safe_psql('postgres', q{select count(*), count(distinct record_id) from applications where fini_state = 'accepted'}), '70|70', 'armed: all accepted');
is($fini->stats->{accepted}, 70, 'each was sent once');
is($fini->stats->{duplicates}, 0, 'nothing twice');
is($new->safe_psql('postgres', q{select discrepancies from fini.reconcile('applications', '1234')}), 0, 'and FINI agrees');
unlike(slurp_file($new->logfile), qr/PANIC|terminated by signal|could not access file/, 'the new server is well');
$new->stop;

done_testing();
