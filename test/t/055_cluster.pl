# Which cluster may send: arming, copies, dumps, promotion; and databases that come and go.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 100 },
	gateway => [ '--rate-limit', 0 ],
	init => { allows_streaming => 1 },
	databases => 'postgres, later');
my $node = $fini->node;

sub insert_rows
{
	my ($target, $prefix, $n) = @_;
	$target->safe_psql('postgres', qq{
		insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$prefix' || i, '1234', 1000, 'PASSPORT', 'GB', 'P' || i, 'Name ' || i from generate_series(1, $n) i});
	return;
}

sub all_settled
{
	my ($target, $what) = @_;
	return $fini->wait_for(
		sub { $target->safe_psql('postgres', q{select not exists (select from fini.submission where state in ('queued', 'sending', 'unknown'))}) eq 't' },
		$what);
}

$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});

# disarmed, nothing leaves; direct calls that change something are refused
$fini->sql('select fini.disarm()');
insert_rows($node, 'D', 10);
$fini->sql_fails(q{select * from fini.subscription_invalidate(array['1234567890123456A'])}, qr/IP011.*not armed/s, 'disarmed: refused');
is($fini->sql('select count(*) > 0 from fini.ipo_list()'), 't', 'disarmed: queries work');
is($fini->sql('select armed, queued from fini.status'), 'f|10', 'disarmed: rows wait');
$fini->sql('select fini.arm()');
$fini->wait_done;
is($fini->sql(q{select count(*) from applications where fini_state = 'accepted'}), 10, 'armed: sent');

# paused
$fini->sql(q{select fini.pause('lunch')});
insert_rows($node, 'P', 10);
$fini->wait_for(q{select paused and queued = 10 and worker_state = 'idle' from fini.status}, 'the worker to be idle');
is($fini->stats->{accepted}, 10, 'paused: nothing sent');
$fini->sql('select fini.resume()');
$fini->wait_done;
is($fini->stats->{accepted}, 20, 'resumed: sent');

# a copy of the data directory is disarmed
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	$node->stop;
	system('cp', '-a', $node->data_dir, $copy->data_dir . '.new') == 0 or die 'cp failed';
	rename $copy->data_dir . '.new', $copy->data_dir or die "rename: $!";
	$node->start;
	$copy->append_conf('postgresql.conf', 'port = ' . $copy->port . "\nunix_socket_directories = '" . $copy->host . "'");
	$copy->start;
	insert_rows($copy, 'COPY', 5);
	is($copy->safe_psql('postgres', 'select armed from fini.status'), 'f', 'a copied data directory is disarmed');
	is($node->safe_psql('postgres', 'select armed from fini.status'), 't', 'the original is not');
	$copy->stop;
}

# a dump restored elsewhere is disarmed, and brings fini's own data
{
	my $restored = PostgreSQL::Test::Cluster->new('restored');
	$restored->init(extra => [ '-E', 'UTF8', '--locale=C' ]);
	$restored->append_conf('postgresql.conf', "shared_preload_libraries = 'fini'\n" . $fini->sandbox->conf('fini.databases' => 'postgres'));
	$restored->start;
	my $dump = "$PostgreSQL::Test::Utils::tmp_check/dump.sql";
	$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump');
	$restored->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $restored->connstr('postgres') ], 'restore');
	is($restored->safe_psql('postgres', 'select armed from fini.status'), 'f', 'a restored dump is disarmed');
	is($restored->safe_psql('postgres', 'select count(*) from fini.submission'), $node->safe_psql('postgres', 'select count(*) from fini.submission'),
		'its outbox came back');
	is($restored->safe_psql('postgres', q{select count(*) from fini.attachment a where a.relation = 'applications'::regclass}), 1, 'and the attachment');
	$restored->stop;
}

# a database that is dropped, and made again
{
	my $log = $fini->log_position;
	$node->safe_psql('postgres', 'drop database later');
	ok(1, 'DROP DATABASE does not wait for the worker');
	$node->safe_psql('postgres', 'create database later');
	$node->safe_psql('later', 'create extension fini; select fini.arm()');
	$fini->wait_for(sub { $node->safe_psql('later', 'select worker_state from fini.status') eq 'idle' }, 'the worker to come back');
	is($node->safe_psql('later', 'select count(*) > 0 from fini.ipo_list()'), 't', 'and it serves the new database');
}

# the extension dropped and created under the worker
$node->safe_psql('later', 'drop extension fini');
$node->safe_psql('later', 'create extension fini; select fini.arm(); select fini.create_subscription_table(\'t\'); select fini.attach(\'t\')');
$node->safe_psql('later', q{insert into t (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
	values ('L1', '1234', 100, 'PASSPORT', 'GB', 'P1', 'Name')});
$fini->wait_for(sub { $node->safe_psql('later', 'select fini_state from t') eq 'accepted' }, 'the row to be accepted');
ok(1, 'the extension can be dropped and created under the worker');

# ALTER DATABASE SET is picked up
$node->safe_psql('postgres', q{alter database postgres set fini.batch_size = 7});
insert_rows($node, 'S', 1);
$fini->wait_done;
insert_rows($node, 'T', 70);
$fini->wait_done;
$fini->wait_for(sub {
	insert_rows($node, 'U' . int(rand(1e9)) . '-', 14); $fini->wait_done;
	$fini->sql(q{select entries from fini.request order by started_at desc limit 1}) <= 7 }, 'the new batch size to be in force');
ok(1, 'ALTER DATABASE SET is picked up');

# A standby is inert. It lags behind, its primary dies, it is promoted: nothing twice, nothing lost of what arrived.
{
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$node->backup('base');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	$standby->start;
	my ($rc, $out, $err) = $standby->psql('postgres', 'select * from fini.ipo_list()');
	like($err, qr/during recovery/, 'a standby says that it cannot');

	# what is enqueued arrives, what is sent and acknowledged after that does not
	$node->safe_psql('postgres', q{select fini.pause('before the fall')});
	insert_rows($node, 'X', 500);
	$node->safe_psql('postgres', q{update applications set app_quantity = 2000 where own_ref like 'D%'});
	$node->safe_psql('postgres', q{delete from applications where own_ref like 'P%'});
	$node->wait_for_catchup($standby);
	$standby->append_conf('postgresql.conf', "primary_conninfo = 'host=/nonexistent'");
	$standby->reload;
	$fini->wait_for(sub { $standby->safe_psql('postgres', 'select count(*) from pg_stat_wal_receiver') eq '0' }, 'the standby to be cut off');
	$node->safe_psql('postgres', 'select fini.resume()');
	$fini->wait_done;
	my $before = $fini->stats;
	$node->stop('immediate');
	is($standby->safe_psql('postgres', 'select queued from fini.status'), 520, 'the standby knows of no sending');

	$standby->promote;
	$fini->wait_for(sub { $standby->safe_psql('postgres', 'select worker_state from fini.status') =~ /idle|busy/ }, 'the worker of the promoted standby');
	$standby->safe_psql('postgres', 'select fini.resume()');
	insert_rows($standby, 'Y', 50);
	all_settled($standby, 'all to be settled on the promoted standby');
	my $stats = $fini->stats;
	is($stats->{accepted}, $before->{accepted} + 50, 'promoted: only what is new was added');
	is($stats->{invalidated}, $before->{invalidated}, 'promoted: no withdrawal was sent again');
	is($stats->{changed}, $before->{changed}, 'promoted: no change was sent again');
	is($stats->{duplicates}, 0, 'promoted: nothing twice');
	is($stats->{duplicate_adds}, 0, 'promoted: not even in passing');
	is($standby->safe_psql('postgres', q{select count(*) from applications where fini_state is distinct from 'accepted'}), 0, 'promoted: nothing lost');
	is($standby->safe_psql('postgres', q{select discrepancies from fini.reconcile('applications', '1234')}), 1, 'promoted: reconcile finds only the record of the other database');
	$standby->stop;
}

done_testing();
