# soak.pl [--minutes N] [--rate N] [--seed N]: hours of a broker's work, in half an hour, and nothing may grow.
#
# A session changes an attached table (--rate operations a second: adds, changes, withdrawals, some bad rows, some
# transactions rolled back); another calls FINI directly, some calls failing, some cancelled by a time-out. All the while the gateway
# has faults: answers lost before and after processing, 500, 429, garbage, cut and slow ones, tokens refused, keys
# rotated. What is settled is purged as an operator would. Both sessions and the worker live as long as the run.
#
# Sampled: private memory and open files of the worker and both sessions, locks and transactions older than a minute, dead
# rows and size of the extension's tables, the log. What the last third of the run holds is compared with
# the third before it; the first third fills caches. Then the faults end, everything is settled, and both sides agree.

use strict;
use warnings;

use File::Basename qw(dirname);
use FiniSandbox;
use FiniTest;
use Getopt::Long;
use lib dirname(__FILE__) . '/../torture';
use PostgreSQL::Test::Utils;
use Test::More ();
use Time::HiRes qw(sleep time);
use TorturePsql;

my ($minutes, $rate, $seed) = (30, 20, 20231122);
GetOptions('minutes=f' => \$minutes, 'rate=f' => \$rate, 'seed=i' => \$seed) && !@ARGV && $minutes >= 2 or die "usage: run [--minutes N (2 at least)] [--rate N] [--seed N]\n";
srand $seed;
alarm 0;
my $report = Test::More->builder->output;
local $SIG{__DIE__} = sub { print $report @_ unless $^S };
FiniSandbox::make_keys($ENV{FINI_TEST_KEYS});

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 50, 'fini.request_timeout' => 2000 }, gateway => [ '--rate-limit', '0' ],
	conf => "log_min_messages = warning\nlog_min_error_statement = panic\nautovacuum_naptime = 5\nautovacuum_vacuum_cost_delay = 0\n"
	  . "autovacuum_vacuum_threshold = 500\nautovacuum_vacuum_scale_factor = 0.02\nautovacuum_vacuum_insert_threshold = 1000\n");
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications');
	alter table applications set (fillfactor = 60); create sequence refs});
my $purge = $fini->sql(q{select count(*) from pg_proc where pronamespace = 'fini'::regnamespace and proname = 'purge'});

my @faults = (
	(map { +{ endpoint => 'subscriptions/add', action => $_ } } qw(drop-before drop-after truncate garbage)),
	(map { +{ endpoint => 'subscriptions/change', action => $_ } } qw(drop-after drop-before)),
	{ endpoint => 'subscriptions/add', action => 'status-before', status => 500 }, { endpoint => 'subscriptions/add', action => 'status-after', status => 503 },
	{ endpoint => 'subscriptions/query', action => 'status-before', status => 500 }, { endpoint => 'subscriptions/query', action => 'truncate' },
	{ endpoint => 'subscriptions/add', action => 'hang-after', ms => 4000 }, { endpoint => 'token', action => 'drop-before' },
	{ endpoint => 'ipos/list', action => 'garbage' });

# two sessions for good, each with a transaction at a time
my %session;
{
	local @ENV{qw(PGHOST PGPORT PGDATABASE)} = ($fini->node->host, $fini->node->port, 'postgres');
	%session = map { $_ => TorturePsql->new(name => $_, log => '/dev/null') } qw(writer caller);
}
my %pid = map { $_ => $session{$_}->ask('select pg_backend_pid()')->[0] } keys %session;
$session{caller}->ask('set statement_timeout = 300');
$pid{worker} = $fini->wait_for(sub { $fini->sql('select worker_pid from fini.status') }, 'the worker');

sub person { return "'PASSPORT', 'GBR', 'P' || currval('refs'), 'DOE, Jane'" }
my $columns = 'own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng';
my %did;
sub write_some
{
	my $dice = rand;
	my $which = q{(select own_ref from applications where record_id is not null and fini_state = 'accepted' order by random() limit 1)};
	my ($what, $sql) =
	    $dice < 0.45 ? ('add', "insert into applications ($columns) values ('s' || nextval('refs'), '1234', 1000, ${\ person()})")
	  : $dice < 0.65 ? ('change', "update applications set app_quantity = app_quantity + 1000 where own_ref = $which")
	  : $dice < 0.85 ? ('withdraw', "delete from applications where own_ref = $which")
	  : $dice < 0.90 ? ('bad row', "insert into applications ($columns) values ('s' || nextval('refs'), '9012', 1000, ${\ person()})")
	  : $dice < 0.95 ? ('rolled back', "begin; insert into applications ($columns) values ('s' || nextval('refs'), '1234', 1000, ${\ person()}); rollback")
	  : ('failing', "insert into applications (own_ref) values (repeat('x', 100000)); insert into applications ($columns) values ('s1', null, 1, null, null, null, null)");
	$session{writer}->ask($sql);
	$did{$what}++;
	return;
}

my @calls = (
	[ 'list' => 'select count(*) from fini.ipo_list()' ], [ 'query' => q{select count(*) from fini.subscription_query('5678')} ],
	[ 'sealed' => q{select fini.encrypt_fields('{"idNum":"A1234563"}'::json, decode(repeat('41', 32), 'hex'), decode(repeat('42', 12), 'hex'))} ],
	[ 'failing call' => q{select fini.decrypt_field('%enc_%AAAA', decode(repeat('41', 32), 'hex'), decode(repeat('42', 12), 'hex'))} ],
	[ 'refused call' => q{select fini.call('/api/eipo/subscriptions/query/v1', '{"data":{}}', true)} ],
	[ 'progress' => 'select count(*) from fini.progress' ], [ 'status' => 'select * from fini.status' ],
	[ 'JWK set' => q{select fini.jwks('agent', now() + interval '100 days')} ]);
sub call_some
{
	my ($what, $sql) = @{ $calls[ rand @calls ] };
	$session{caller}->ask($sql);
	$did{$what}++;
	return;
}

sub private_kb
{
	my ($pid) = @_;
	my $kb = 0;
	# anonymous memory: what the process itself holds, without shared buffers and libraries
	open(my $fh, '<', "/proc/$pid/smaps_rollup") or return 0;
	while (<$fh>) { $kb += $1 if /^Anonymous:\s+(\d+)/ }
	return $kb;
}
sub files { my ($pid) = @_; my @files = glob "/proc/$pid/fd/*"; return scalar @files }

my @samples;
open(my $tsv, '>', "$ENV{FINI_STAGE}/work/samples.tsv") or die "samples: $!\n";
sub sample
{
	my ($at) = @_;
	my %s = (at => $at);
	for my $who (qw(worker writer caller))
	{
		$s{"${who}_kb"} = private_kb($pid{$who});
		$s{"${who}_files"} = files($pid{$who});
	}
	@s{qw(locks old dead kb open settled)} = split /\|/, $fini->sql(q{select
		(select count(*) from pg_locks l join pg_stat_activity a using (pid) where datname = current_database() and state is distinct from 'active' and locktype <> 'virtualxid' and pid <> pg_backend_pid()),
		(select count(*) from pg_stat_activity where xact_start < now() - interval '1 min' and backend_type <> 'autovacuum worker'),
		(select sum(n_dead_tup) from pg_stat_all_tables where schemaname = 'fini'),
		(select sum(pg_total_relation_size(oid)) / 1024 from pg_class where relnamespace = 'fini'::regnamespace and relkind = 'r'),
		(select count(*) from fini.submission where state in ('queued', 'sending', 'unknown')),
		(select count(*) from fini.submission where state not in ('queued', 'sending', 'unknown'))});
	$s{log_kb} = ($fini->log_position) / 1024;
	my @names = sort keys %s;
	print $tsv join("\t", @names), "\n" unless @samples;
	print $tsv join("\t", map { $s{$_} // 0 } @names), "\n";
	push @samples, \%s;
	return;
}

my $begun = time;
my $end = $begun + $minutes * 60;
my $every = $minutes * 60 / 60;
my ($next_sample, $next_fault, $next_purge, $next_key) = ($begun + 5, $begun + 3, $begun + 20, $begun + 30);
my ($operations, $injected) = (0, 0);
while (time < $end)
{
	my $due = $begun + $operations / $rate;
	my $now = time;
	sleep($due - $now) if $due > $now;
	write_some();
	call_some() if $operations % 4 == 0;
	$operations++;
	$now = time;
	$operations = int(($now - $begun) * $rate) if $due < $now - 5;	# the machine is too slow for that rate: no catching up
	if ($now >= $next_fault) { $fini->faults($faults[ rand @faults ]); $injected++; $next_fault = $now + 2 + rand 6; }
	if ($now >= $next_key) { $fini->admin('POST', '/rotate-key'); $next_key = $now + 60; }
	if ($now >= $next_purge && $purge) { $fini->sql(q{select fini.purge(interval '30 s')}); $next_purge = $now + 15; }
	if ($now >= $next_sample) { sample($now - $begun); $next_sample = $now + $every; }
}

# the weather clears: everything is settled, and both sides agree
$fini->clear_faults;
$fini->wait_done(undef, 300);
my @findings;
my @different = $fini->compare('applications');
push @findings, "both sides differ: @different[0 .. ($#different < 4 ? $#different : 4)]" if @different;
push @findings, 'FINI has records twice' if $fini->stats->{duplicates};
push @findings, 'the worker died' unless $fini->sql('select worker_pid from fini.status') eq $pid{worker};
$_->close for values %session;

# the middle value of a third
sub middle { my ($name, $from, $to) = @_; my @v = sort { $a <=> $b } map { $_->{$name} // 0 } @samples[ $from .. $to ]; return $v[ @v / 2 ] }
sub most { my ($name, $from, $to) = @_; my ($most) = sort { $b <=> $a } map { $_->{$name} // 0 } @samples[ $from .. $to ]; return $most }
my $n = @samples;
die "too few samples: $n\n" if $n < 9;
my @second = (int($n / 3), int(2 * $n / 3) - 1);
my @third = (int(2 * $n / 3), $n - 1);
print $report sprintf("%d minutes, seed %d, %d faults; %s\n%d settled, %d samples\n", $minutes, $seed, $injected, join(', ', map { "$_: $did{$_}" } sort keys %did), $samples[-1]{settled}, $n);
print $report sprintf("%-14s %12s %12s %12s\n", '', 'first', 'second third', 'last third');
for my $name (qw(worker_kb writer_kb caller_kb worker_files writer_files caller_files locks old dead kb))
{
	my ($before, $after) = (middle($name, @second), middle($name, @third));
	# without a purge the tables keep what was settled
	my $allowed = $name =~ /_kb$/ ? $before * 1.05 + 512 : $name =~ /_files$/ ? $before + 2 : $name eq 'dead' ? $before * 1.5 + 3000
	  : $name eq 'kb' ? ($purge ? $before * 1.25 + 2048 : 1e12) : $before + 1;
	print $report sprintf("%-14s %12.0f %12.0f %12.0f%s\n", $name, $samples[0]{$name}, $before, $after, $after > $allowed ? '   GROWS' : '');
	push @findings, "$name grows: $before, then $after" if $after > $allowed;
}
my $logged = sub { my ($from, $to) = @_; return ($samples[$to]{log_kb} - $samples[$from]{log_kb}) / (($samples[$to]{at} - $samples[$from]{at}) / 60) };
my ($before, $after) = ($logged->(@second), $logged->(@third));
print $report sprintf("%-14s %12s %12.1f %12.1f%s\n", 'log, kB a min', '', $before, $after, $after > $before * 1.5 + 10 ? '   GROWS' : '');
push @findings, sprintf('the log grows: %.1f kB a minute, then %.1f', $before, $after) if $after > $before * 1.5 + 10;
push @findings, 'transactions older than a minute' if most('old', 0, $#samples);
print $report map { "FINDING: $_\n" } @findings;
print $report "soak: ", scalar @findings, " findings\n";
$fini->node->stop;
exit(@findings ? 1 : 0);
