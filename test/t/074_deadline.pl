# Deadlines: the order of IPOs, the estimate, the warning and its end, and the cut-off on both sides.
#
# FINI_DEADLINE_ROWS is the number of rows of each of two IPOs (make size: 200000). From 40,000 on batches are full and
# all times grow with the number: 200,000 rows are 200 requests, under a throttle of 45 in ten seconds, with deadlines
# 150 s apart; under FINI's recommended 60 in a minute these would be more than ten minutes.

use strict;
use warnings;

use FiniTest;
use JSON::PP;
use Test::More;
use Time::HiRes qw(sleep time);

# a gateway whose clock is ahead of ours, so that it shows whose clock counts
my $skew = 30;
my $rows = $ENV{FINI_DEADLINE_ROWS} // 4000;
my $batch = $rows / 40 > 1000 ? 1000 : $rows / 40;
my $scale = $rows / $batch / 40;
my $say = $ENV{FINI_DEADLINE_ROWS} ? \&diag : \&note;
my $fini = FiniTest->armed_cluster(
	gateway => [ '--rate-limit', 0, '--clock-skew', $skew * 1000 ],
	settings => { 'fini.rate_limit' => 9 * $scale, 'fini.rate_window' => 2000 * $scale, 'fini.batch_size' => $batch, 'fini.deadline_margin' => '500ms',
		'fini.request_timeout' => '5s' }, conf => "log_line_prefix = '%m [%p] %e '\n");

# in seconds by FINI's clock
sub now { return time + $skew }
sub deadline { my ($ipo, $in) = @_; $fini->sql("select fini.set_deadline('$ipo', clock_timestamp() + interval '" . ($in + $skew) . " s')") }
sub progress { my ($ipo) = @_; return $fini->sql_json("select to_jsonb(p) from fini.progress p where ipo_id = '$ipo'") }

sub enqueue
{
	my ($ipo, $n, $prefix) = @_;
	$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)"
		  . " select '$prefix-' || i, '$ipo', 1000, 'PASSPORT', 'HK', '$prefix' || i, 'CHAN ' || i from generate_series(1, $n) i");
}

# polling fini.submission as wait_done does goes through all of it each time; and a long wait would hold a snapshot
sub all_done { $fini->wait_for(sub { $fini->sql("select fini.wait(timeout => '5 s')") eq 't' }, 'everything to be settled', 3600) }

# what stands and when it came: no record of the IPO after the deadline, and both sides agree row by row
sub cut_off_is_exact
{
	my ($ipo, $deadline, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$fini->load_dump('remote', ipoID => $ipo);
	my $both = "(select own_ref, fini_state, (select error_code from fini.submission s where s.own_ref = a.own_ref order by id desc limit 1) error_code from applications a where ipo_id = '$ipo') l"
	  . " full join (select r->>'ownRef' own_ref, r from remote) r using (own_ref)";
	is($fini->sql("select own_ref from $both where r is not null and fini_state is distinct from 'accepted' limit 5"), '', "$name: what FINI has is accepted here");
	is($fini->sql("select own_ref from $both where r is null and fini_state = 'accepted' limit 5"), '', "$name: what is accepted here FINI has");
	is($fini->sql("select own_ref, fini_state from $both where fini_state <> 'accepted' and error_code is distinct from 'deadline' limit 5"), '', "$name: all others are failed with code deadline");
	cmp_ok($fini->sql(q{select max((h->>'at')::numeric) / 1000 from remote, jsonb_array_elements(r->'_history') h}), '<', $deadline, "$name: nothing came to FINI after the deadline");
	return;
}

# all that listens hears, in order
my $listener = $fini->node->background_psql('postgres', timeout => 800);
$listener->query_safe('listen fini');
sub events
{
	my ($kind) = @_;
	my $text = $listener->query('select 1');
	return map { decode_json($_) } $text =~ /payload "(\{"event":"$kind".*?\})" received/g;
}

$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});

# --- the function ---

$fini->sql_fails(q{select fini.set_deadline('', now())}, qr/22023: .*1 to 20 characters/, 'an ipo_id is needed');
$fini->sql_fails(q{select fini.set_deadline(null, now())}, qr/22023/, 'null is none');
$fini->sql_fails(q{select fini.set_deadline('1234', 'infinity')}, qr/22008: .*finite.*null to remove/s, 'a deadline is finite');
my (undef, undef, $notice) = $fini->try_sql(q{select fini.set_deadline('9012', '2020-01-01')});
like($notice, qr/NOTICE:.*the deadline of IPO 9012 has passed: nothing more is sent/, 'a past deadline is said to be past');
$fini->sql(q{select fini.set_deadline('9012', null)});
is($fini->sql(q{select count(*) from fini.deadline}), 0, 'null removes it');

# the gateway's clock is known once something was sent
enqueue('3456', 1, 'first');
$fini->wait_done;
$fini->wait_for(sub { abs($fini->sql('select extract(epoch from clock_difference) from fini.status') - $skew) < 1 }, 'the clock difference');
is($fini->sql(q{select on_time is null and deadline is null and accepted = 1 from fini.progress where ipo_id = '3456'}), 't', 'an IPO without deadline');

# --- order: the later one came first; nine requests in two seconds, of which eight are the queue's ---

$fini->sql('select fini.pause()');
enqueue('1234', $rows, 'late');
enqueue('5678', $rows, 'early');
deadline('1234', 50 * $scale);
deadline('5678', 20 * $scale);
my ($estimate_5678, $estimate_1234, $begin) = split /\|/, $fini->sql(q{
	select extract(epoch from a.estimated_finish - fini._gateway_now()), extract(epoch from b.estimated_finish - fini._gateway_now()),
		extract(epoch from clock_timestamp()) from fini.progress a, fini.progress b where a.ipo_id = '5678' and b.ipo_id = '1234'}
	  . '; select fini.resume()');

# at half
$fini->wait_for("select queued < $rows / 2 from fini.progress where ipo_id = '5678'");
is(progress('1234')->{queued}, $rows, 'the earlier deadline goes first, all of it');
my ($at_half, $half_left) = split /\|/, $fini->sql(q{select extract(epoch from estimated_finish),
	extract(epoch from estimated_finish - fini._gateway_now()) from fini.progress where ipo_id = '1234'});
all_done();
my ($took_5678, $took_1234) = map { $fini->sql("select extract(epoch from max(settled_at)) - $begin from fini.submission where ipo_id = '$_'") } '5678', '1234';
my $done = $begin + $took_1234 + $skew;
$say->(sprintf 'two IPOs of %d rows, %d requests each: estimates %.1f and %.1f s, took %.1f and %.1f s; at half of the first the second\'s is %.1f s off %.1f s', $rows, $rows / $batch,
	$estimate_5678, $estimate_1234, $took_5678, $took_1234, $at_half - $done, $half_left);
# a second for a machine that is busy
cmp_ok(abs($estimate_5678 - $took_5678), '<', 0.1 * $took_5678 + 1, 'estimate of the first, before anything was measured');
cmp_ok(abs($estimate_1234 - $took_1234), '<', 0.1 * $took_1234 + 1, 'estimate of the second, which waits for the first');
cmp_ok(abs($at_half - $done), '<', 0.1 * $half_left + 1, 'estimate at half');
is($fini->sql(q{select string_agg(on_time::text, ' ') from fini.progress where deadline is not null}), 'true true', 'both on time');
is_deeply([ events('deadline_at_risk') ], [], 'and nobody was warned');
is($fini->sql(q{select count(*) from fini._tally_differences()}), 0, 'the tally agrees with the outbox');

# --- at risk, back, at risk, back; also while paused ---

my $log = $fini->log_position;
$fini->sql('select fini.pause()');
enqueue('1234', 3 * $rows, 'risk');
deadline('1234', 15 * $scale);
$fini->wait_for(q{select warned_at is not null from fini.deadline where ipo_id = '1234'}, 'the warning');
my ($warning) = events('deadline_at_risk');
is($warning->{ipo_id}, '1234', 'NOTIFY: at risk');
$say->("warned: deadline $warning->{deadline}, estimated finish $warning->{estimated_finish}");
cmp_ok($warning->{estimated_finish}, 'gt', $warning->{deadline}, 'with an estimate beyond the deadline');
my $warned = qr/IP012 WARNING:  fini: not all operations of IPO 1234 are expected to be sent before its deadline/;
like($fini->log_since($log), $warned, 'one line in the log');
is(progress('1234')->{on_time}, JSON::PP::false, 'fini.progress says so');
sleep 3;
is(scalar(() = $fini->log_since($log) =~ /$warned/g), 1, 'not another one while it stays so');

deadline('1234', 600 * $scale);
$fini->wait_for(q{select warned_at is null from fini.deadline where ipo_id = '1234'}, 'another deadline makes it well again');
is(scalar(() = events('deadline_on_time')), 1, 'NOTIFY: on time again');
deadline('1234', 20 * $scale);
$fini->wait_for(q{select warned_at is not null from fini.deadline where ipo_id = '1234'}, 'the second warning');
$fini->sql(q{alter system set fini.rate_limit = 500});
$fini->sql(q{select pg_reload_conf()});
$fini->wait_for(q{select warned_at is null from fini.deadline where ipo_id = '1234'}, 'a wider throttle makes it well, too');
is(scalar(() = events('deadline_on_time')), 1, 'NOTIFY again');
my $recovered = qr/LOG:  fini: all operations of IPO 1234 are expected to be sent before its deadline again/;
is(scalar(() = $fini->log_since($log) =~ /$recovered/g), 2, 'in the log as well');

# --- the cut-off: some seconds of it can be sent, half a second is the margin ---

$fini->sql(q{alter system reset fini.rate_limit});
$fini->sql(q{select pg_reload_conf()});
$fini->sql(q{update applications set app_quantity = 2000 where own_ref in ('late-1', 'late-2'); delete from applications where own_ref = 'late-3'});
my $deadline = $fini->sql("select extract(epoch from deadline) from (select clock_timestamp() + interval '" . ($skew + 4 * $scale) . " s' as deadline) d,"
	. " fini.set_deadline('1234', deadline); select fini.resume()") + 0;
$fini->wait_for(q{select passed_at is not null from fini.deadline where ipo_id = '1234'}, 'the deadline');
enqueue('1234', 3, 'after');
all_done();
my ($passed) = events('deadline_passed');
my $accepted = $fini->sql(q{select count(*) from applications where own_ref like 'risk%' and fini_state = 'accepted'});
cmp_ok($accepted, '>', 0, "some were sent ($accepted)");
cmp_ok($accepted, '<', 3 * $rows, 'some were not');
is($fini->sql(q{select string_agg(distinct fini_error, ',') from applications where own_ref like 'after%'}),
	"deadline: the IPO's deadline passed before it could be sent", 'what comes after it fails at once, and says why');
my $failed = $fini->sql(q{select count(*) from fini.submission where state = 'failed' and error_code = 'deadline'});
is($fini->sql(q{select missed from fini.deadline where ipo_id = '1234'}), $failed, "all $failed are counted");
cmp_ok($passed->{failed}, '<=', $failed, 'NOTIFY: passed, with the number');
$fini->load_dump('remote', ipoID => '1234');
my ($last) = $fini->sql(q{select max((h->>'at')::numeric) / 1000 from remote, jsonb_array_elements(r->'_history') h});
cmp_ok($last, '<', $deadline, 'nothing came to FINI after the deadline');
$say->(sprintf 'cut off: %d of %d accepted, %d failed; the last came to FINI %.3f s before the deadline', $accepted, 3 * $rows, $failed, $deadline - $last);
is($accepted, $fini->sql(q{select count(*) from remote where r->>'ownRef' like 'risk%'}), 'what is accepted is what FINI has');
is(progress('1234')->{on_time}, JSON::PP::false, 'fini.progress: it was not on time');
is($fini->sql(q{select count(*) from fini._tally_differences()}), 0, 'the tally agrees with the outbox');

# --- moved: what failed can go again ---

deadline('1234', 600 * $scale);
is($fini->sql(q{select fini.retry('1234') from (select 1) x}), $failed, 'all go again');
$fini->sql(q{alter system set fini.rate_limit = 0; select pg_reload_conf()});
all_done();
is($fini->sql(q{select count(*) from fini.submission where state <> 'accepted'}), 0, 'and are accepted');
is_deeply([ $fini->compare('applications') ], [], 'both sides agree');
is($fini->sql(q{select on_time from fini.progress where ipo_id = '1234'}), 't', 'on time now');

# --- in doubt over the deadline: what FINI has is accepted, what it does not have fails after it was looked for ---

$fini->sql(q{alter system set fini.batch_size = 1; select pg_reload_conf()});
$fini->wait_for(q{select current_setting('fini.batch_size') = '1'});
$fini->faults({ endpoint => 'subscriptions/add', action => 'status-before', status => 429, retryAfter => 1, skip => 2, count => -1 },
	{ endpoint => 'subscriptions/add', action => 'drop-before', skip => 1, count => 1 },
	{ endpoint => 'subscriptions/add', action => 'drop-after', count => 1 },
	{ endpoint => 'subscriptions/query', action => 'status-before', status => 503, count => -1 });
$deadline = now() + 3;
deadline('5678', 3);
enqueue('5678', 6, 'doubt');
$fini->wait_for(q{select count(*) = 2 from fini.submission where state = 'unknown'}, 'two in doubt');
$fini->wait_for(q{select count(*) = 4 from fini.submission where error_code = 'deadline' and own_ref like 'doubt%'}, 'the others to fail');
is($fini->sql(q{select count(*) from fini.submission where state = 'unknown'}), 2, 'what is in doubt stays so over the deadline');
$fini->clear_faults;
all_done();
is($fini->sql(q{select string_agg(state || coalesce(':' || error_code, ''), ' ' order by state) from fini.submission where own_ref like 'doubt%'}),
	'accepted failed:deadline failed:deadline failed:deadline failed:deadline failed:deadline', 'one was there, one was not');
cut_off_is_exact('5678', $deadline, 'in doubt');
is($fini->sql(q{select missed from fini.deadline where ipo_id = '5678'}), 5, 'all counted');

# --- a worker killed in the middle of failing many; paused at that ---

$fini->sql('select fini.pause()');
$fini->sql(q{select fini.set_deadline('3456', clock_timestamp() - interval '1 day')});
my $many = 20000;
# each batch takes a while, so that there is a middle to be killed in
$fini->sql(q{create function linger() returns trigger language plpgsql as 'begin perform pg_catalog.pg_sleep(0.2); return null; end';
	create trigger linger after update on applications for each statement execute function linger()});
$fini->sql("begin; select 1 from fini.deadline; insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)"
	. " select 'many-' || i, '3456', 1000, 'PASSPORT', 'HK', 'M' || i, 'CHAN ' || i from generate_series(1, $many) i; commit");
$fini->wait_for(q{select count(*) > 0 from fini.submission where own_ref like 'many%' and state = 'failed'}, 'the first to fail');
my $pid = $fini->sql('select worker_pid from fini.status');
$fini->sql("select pg_terminate_backend($pid)");
my $between = $fini->sql(q{select count(*) from fini.submission where own_ref like 'many%' and state = 'failed'});
all_done();
cmp_ok($between, '<', $many, "killed after $between of $many");
is($between % 1000, 0, 'in whole batches');
is($fini->sql(q{select count(*) from applications where own_ref like 'many%' and fini_state = 'failed' and fini_error like 'deadline:%'}), $many, 'all failed, and their rows say so');
is($fini->sql(q{select missed from fini.deadline where ipo_id = '3456'}), $many, 'each counted once');
is($fini->sql(q{select failed from fini.progress where ipo_id = '3456'}), $many, 'by fini.progress as well');
$fini->sql('select fini.resume()');

# --- not armed: nothing is judged ---

$fini->sql('select fini.disarm()');
enqueue('3456', 5, 'clone');
sleep 3;
is($fini->sql(q{select sum(n) from fini.queue}), 5, 'on a cluster that is not armed nothing fails');
$fini->sql('select fini.arm()');
all_done();
is($fini->sql(q{select count(*) from fini.submission where own_ref like 'clone%' and error_code = 'deadline'}), 5, 'once it is, it does');

# --- the tally: folded, recounted ---

$fini->sql(q{update fini.tally set at = at - interval '1 hour'; insert into fini.tally (ipo_id, state, n, at) select '1234', 'accepted', s, '2020-01-01' from generate_series(1, 300) i, (values (1), (-1)) x(s)});
$fini->sql("select pg_terminate_backend(worker_pid) from fini.status");
$fini->wait_for('select count(*) < 30 from fini.tally', 'the tally to be folded');
is($fini->sql(q{select count(*) from fini._tally_differences()}), 0, 'folding keeps the sums');
$fini->sql(q{delete from fini.tally where ipo_id = '1234'});
is($fini->sql('select fini.recount()'), 1, 'a count that was lost');
is($fini->sql(q{select count(*) from fini._tally_differences()}) . $fini->sql('select fini.recount()'), '00', 'is found again');

# --- a deadline that passes while a request waits to be sent again: looked for once more, then failed ---

$fini->faults({ endpoint => 'subscriptions/add', match => 'lost-', action => 'drop-before', count => -1 },
	{ endpoint => 'subscriptions/add', match => 'taken-', action => 'code-before', status => 400, code => '411002', message => 'duplicate request ID', count => -1 });
for ([ '5678', 'lost' ], [ '1234', 'taken' ])
{
	my ($ipo, $prefix) = @$_;
	deadline($ipo, 4);
	enqueue($ipo, 3, $prefix);
}
$deadline = now() + 4;
all_done();
is($fini->sql(q{select string_agg(distinct state || ' ' || error_code, ', ') from fini.submission where own_ref like 'lost-%'}), 'failed deadline', 'what is not there is too late');
is($fini->sql(q{select string_agg(distinct state || ' ' || error_code, ', ') from fini.submission where own_ref like 'taken-%'}), 'failed not_found', 'what FINI says it has taken may yet be there');
$fini->clear_faults;
cut_off_is_exact('5678', $deadline, 'sent again');
$fini->sql("select fini.set_deadline('$_', null)") for qw(1234 5678);

$listener->quit;
done_testing();
