# Counters of fini.stat_endpoint outlive a clean restart and nothing else; pg_stat_activity says what the worker does.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(databases => 'postgres,other', settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
	conf => "restart_after_crash = on\n");
my $file = $fini->node->data_dir . '/pg_stat/fini.stat';
my $person = 'id_type, id_country_jurisdiction, id_num, full_name_eng';
my $values = q{'PASSPORT', 'GBR', 'PX7654321', 'SECRETNAME, Jane'};

sub counters { my ($db) = @_; return $fini->sql(q{select * from fini.stat_endpoint where endpoint not in ('token', 'crypto/meta') order by 1}, database => $db // 'postgres') }
sub settled { return $fini->sql(q{select fini.wait(timeout => '3 min')}) eq 't' || die 'not settled' }

$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, $person) select 'A' || i, '1234', 100, $values from generate_series(1, 20) i");
settled();
$fini->sql('select count(*) from fini.ipo_list()', database => $_) for qw(postgres other other);
my %before = map { $_ => counters($_) } qw(postgres other);
like($before{postgres}, qr/^ipos\/list\|1\|0.*\nsubscriptions\/add\|1\|0\|0\|0\|20\|/, 'there is something to keep');

subtest 'a clean restart' => sub {
	ok(!-e $file, 'no file while the server runs');
	$fini->node->stop('fast');
	ok(-s $file, 'a file when it does not');
	is(sprintf('%o', (stat $file)[2] & 07777), '600', 'private to the server');
	unlike(slurp_file($file), qr/SECRET|PX7654321|eyJ/, 'with nothing but counters');
	$fini->node->start;
	ok(!-e $file, 'read and removed');
	is(counters($_), $before{$_}, "the same in database $_") for qw(postgres other);
	$fini->sql('select count(*) from fini.ipo_list()', database => 'other');
	like(counters('other'), qr/^ipos\/list\|3\|/, 'and they go on');
	$before{other} = counters('other');
};

subtest 'databases that are not served any more' => sub {
	$fini->node->append_conf('postgresql.conf', "fini.databases = 'another,postgres'");
	$fini->node->restart;
	is(counters('postgres'), $before{postgres}, 'those of the others are found by their names');
	$fini->node->append_conf('postgresql.conf', "fini.databases = 'postgres,other'");
	$fini->node->restart;
	is(counters('other'), '', 'what was not served is forgotten');
	is(counters('postgres'), $before{postgres}, 'the others are not');
};

subtest 'a damaged file, one of another version' => sub {
	my $whole;
	for my $damage ([ 'a bit flipped', sub { substr($whole, 300, 1) ^ "\x01" } ], [ 'cut off' ], [ 'longer' ], [ 'another version' ], [ 'empty' ])
	{
		my ($what) = @$damage;
		$fini->sql('select count(*) from fini.ipo_list()');
		$fini->node->stop('fast');
		$whole = slurp_file($file);
		my $bad = $what eq 'a bit flipped' ? substr($whole, 0, 300) . (substr($whole, 300, 1) ^ "\x01") . substr($whole, 301)
		  : $what eq 'cut off' ? substr($whole, 0, -7) : $what eq 'longer' ? "$whole." : $what eq 'empty' ? '' : "\xff" . substr($whole, 1);
		open(my $fh, '>:raw', $file) or die "$file: $!";
		print $fh $bad;
		close $fh;
		my $position = $fini->log_position;
		$fini->node->start;
		is(counters('postgres'), '', "$what: counters begin at zero");
		like($fini->log_since($position), qr/ignoring file "pg_stat\/fini\.stat"/, '... and the log says so');
		ok(!-e $file, '... once');
	}
};

subtest 'a crash' => sub {
	$fini->sql('select count(*) from fini.ipo_list()');
	isnt(counters('postgres'), '', 'something is counted');
	my $pid = $fini->node->safe_psql('postgres', q{select pid from pg_stat_activity where backend_type = 'walwriter'});
	my $position = $fini->log_position;
	kill 'KILL', $pid;
	$fini->wait_for(sub { my $log = $fini->log_since($position); $log =~ /all server processes terminated; reinitializing.*ready to accept connections/s }, 'the restart');
	is(counters('postgres'), '', 'of a process: zero');
	$fini->sql('select count(*) from fini.ipo_list()');
	my $postmaster = (split /\n/, slurp_file($fini->node->data_dir . '/postmaster.pid'))[0];
	kill 'KILL', $postmaster;
	$fini->wait_for(sub { !kill 0, $postmaster }, 'the postmaster to be gone');
	$fini->node->{_pid} = undef;
	ok(!-e $file, 'of the whole server: no file');
	$fini->wait_for(sub { eval { $fini->node->start(fail_ok => 1) } }, 'the server to start again');
	is(counters('postgres'), '', 'zero');
	$fini->sql('select count(*) from fini.ipo_list()');
	$fini->sql('select fini.stat_reset()');
	$fini->node->restart;
	is(counters('postgres'), '', 'what was reset does not come back');
};

subtest 'pg_stat_activity' => sub {
	my $activity = q{select state || ': ' || query from pg_stat_activity where backend_type = 'fini worker' and datname = 'postgres'};
	is($fini->wait_for(sub { $fini->sql($activity) eq 'idle: idle' }, 'an idle worker'), 1, 'idle');
	is($fini->sql(q{select application_name from pg_stat_activity where backend_type = 'fini worker' and datname = 'postgres'}), 'fini worker', 'its name');
	$fini->sql(q{select fini.pause('test')});
	ok($fini->wait_for(sub { $fini->sql($activity) eq 'idle: not armed or paused' }, 'a paused worker'), 'paused');
	$fini->faults({ endpoint => 'subscriptions/add', action => 'hang-after', ms => 600000, count => 1 });
	$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, $person) select 'B' || i, '1234', 100, $values from generate_series(1, 20) i");
	$fini->sql('select fini.resume()');
	ok($fini->wait_for(sub { $fini->sql($activity) eq 'active: 1 request under way' }, 'a busy worker'), 'a request under way');
	is($fini->sql(q{select wait_event_type from pg_stat_activity where backend_type = 'fini worker' and datname = 'postgres'}), 'Extension', 'what it waits for');
	$fini->faults({ endpoint => 'subscriptions/query', action => 'hang-before', ms => 600000, count => 1 });
	$fini->sql(q{select pg_terminate_backend(worker_pid) from fini.status});
	ok($fini->wait_for(sub { $fini->sql($activity) =~ /finding out what is in doubt/ }, 'a worker that finds out'), 'finding out');
	unlike($fini->sql(q{select string_agg(query, ' ') from pg_stat_activity where backend_type = 'fini worker'}), qr/SECRET|PX7|A1|B1/, 'no word of anybody');
	$fini->clear_faults;
	$fini->sql(q{select pg_terminate_backend(worker_pid) from fini.status});
	settled();
	is($fini->stats->{duplicates}, 0, 'all of it once');
};

done_testing();
