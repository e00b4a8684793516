# Looks for what is in doubt: the newest records first, a record by its ID, one look for all requests of an IPO, none
# that holds up another IPO's, and none of it at the price of the truth.

use strict;
use warnings;

use FiniTest;
use Test::More;
use Time::HiRes qw(time);

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 20, 'fini.request_timeout' => '2s', 'fini.max_in_flight' => 4 },
	gateway => [ '--rate-limit', 0 ]);

$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
# many small pages: a look from the first one takes 50 requests
$fini->config(maxPageSize => 20);

sub queries { return $fini->stats->{requests}{'subscriptions/query'} // 0 }

sub agree
{
	my ($what) = @_;
	my $stats = $fini->stats;
	is($stats->{duplicate_adds}, 0, "$what: nothing twice");
	is($stats->{out_of_order}, 0, "$what: nothing out of order");
	is_deeply([ $fini->compare('applications') ], [], "$what: both sides agree");
	is($fini->sql(q{select count(*) from applications where fini_state is distinct from 'accepted'}), 0, "$what: all accepted");
	return;
}

# 1000 records, none in doubt: nothing is looked for
$fini->insert_rows('applications', 'OLD', 1000);
$fini->wait_done;
is(queries(), 0, 'nothing in doubt, nothing looked for');

# the first look knows of no end, and goes through the pages until it has found what it looks for
$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after', count => 1 });
$fini->insert_rows('applications', 'FIRST', 5);
$fini->wait_done;
cmp_ok(queries(), '>=', 51, 'the first look goes through all pages');
isnt($fini->sql(q{select cursor from fini.look where ipo_id = '1234'}), '', 'and keeps where they end');
agree('first look');

# from then on the newest come first
my $before = queries();
$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after', count => 1 });
$fini->insert_rows('applications', 'NEW', 5);
$fini->wait_done;
cmp_ok(queries() - $before, '<=', 2, 'what is new is found among the newest records');
agree('newest first');

# also by a worker that has just started
$before = queries();
$fini->faults({ endpoint => 'subscriptions/add', action => 'hang-after', ms => 1000, count => 1 });
$fini->insert_rows('applications', 'RESTART', 5);
$fini->wait_for(sub { $fini->stats->{faults}{'hang-after'} }, 'the request to be processed');
$fini->node->stop('immediate');
$fini->node->start;
$fini->wait_done;
cmp_ok(queries() - $before, '<=', 2, 'and after a crash');
agree('after a crash');

# what is not there is not called absent before all pages have been seen
$before = queries();
$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-before', count => 1 });
$fini->insert_rows('applications', 'ABSENT', 5);
$fini->wait_done;
cmp_ok(queries() - $before, '>=', 51, 'absent only after all pages');
agree('absent');

# a cursor that the gateway does not take any more, and one that leads past everything
for my $cursor ('nonsense', '4000000000')
{
	$fini->sql("update fini.look set cursor = '$cursor'");
	$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after', count => 1 });
	$fini->insert_rows('applications', "CURSOR-$cursor-", 5);
	$fini->wait_done;
	isnt($fini->sql('select cursor from fini.look'), $cursor, "cursor $cursor: replaced");
	agree("cursor $cursor");
}

# a change and a withdrawal know their records
$before = queries();
$fini->faults({ endpoint => 'subscriptions/change', action => 'drop-after', count => 1 },
	{ endpoint => 'subscriptions/change', action => 'drop-before', count => 1 });
$fini->sql(q{update applications set app_quantity = 3000 where own_ref in ('OLD1', 'OLD500')});
$fini->wait_done;
$fini->sql(q{update applications set app_quantity = 4000 where own_ref in ('OLD1', 'OLD500')});
$fini->wait_done;
cmp_ok(queries() - $before, '<=', 3, 'changes in doubt, one processed and one not, take a request for each look');
$before = queries();
$fini->faults({ endpoint => 'subscriptions/invalidate', action => 'drop-after', count => 1 });
$fini->sql(q{delete from applications where own_ref = 'OLD2'});
$fini->wait_done;
cmp_ok(queries() - $before, '<=', 1, 'a withdrawal as well');
agree('by record');

# a gateway that gives active records alone when asked by ID, and one that refuses such a question
for my $how ('active records alone', 'refused')
{
	$fini->config(recordIDActiveOnly => JSON::PP::true) if $how ne 'refused';
	$fini->faults({ endpoint => 'subscriptions/invalidate', action => 'drop-after', count => 1 },
		$how eq 'refused' ? { endpoint => 'subscriptions/query', match => '"recordID"', action => 'code-before', status => 400, code => '400903', message => 'no', count => -1 } : ());
	$fini->sql("delete from applications where own_ref = '" . ($how eq 'refused' ? 'OLD3' : 'OLD4') . "'");
	$fini->wait_done;
	$fini->clear_faults;
	$fini->config(recordIDActiveOnly => JSON::PP::false);
	agree("a withdrawal where $how");
}
is($fini->stats->{invalidated}, 3, 'each was withdrawn once');

# one look serves all requests of an IPO that are in doubt
$before = queries();
$fini->sql(q{select fini.pause()});
$fini->insert_rows('applications', 'MANY', 80);
$fini->faults({ endpoint => 'subscriptions/add', action => 'hang-after', ms => 1000, count => 4 });
my $hung = $fini->stats->{faults}{'hang-after'};
$fini->sql(q{select fini.resume()});
$fini->wait_for(sub { $fini->stats->{faults}{'hang-after'} - $hung == 4 }, 'four requests to be under way');
$fini->node->stop('immediate');
$fini->node->start;
$fini->wait_done;
# 80 records on pages of 20 behind where they ended before
cmp_ok(queries() - $before, '<=', 8, 'one look for four requests');
agree('one look');

# an IPO whose queries always fail keeps neither the looks nor the requests of others waiting
$fini->faults(
	{ endpoint => 'subscriptions/query', match => '"ipoID":"3456"', action => 'status-before', status => 500, count => -1 },
	{ endpoint => 'subscriptions/add', match => '"ipoID":"3456"', action => 'drop-after', count => -1 });
$fini->insert_rows('applications', 'STUCK', 400, '3456');
$fini->wait_for(q{select count(*) >= 20 from fini.submission where ipo_id = '3456' and state = 'unknown'}, 'one IPO to be in doubt');
my $log = $fini->log_position;
for my $round (1 .. 3)
{
	$fini->faults({ endpoint => 'subscriptions/add', match => '"ipoID":"5678"', action => 'drop-after', count => 1 });
	$fini->insert_rows('applications', "OTHER$round-", 30, '5678');
	$fini->wait_done('5678', 20);
}
is_deeply($fini->states(q{ipo_id = '5678'}), { accepted => 90 }, 'another IPO is found out, and sent, meanwhile');
is($fini->sql(q{select count(*) from fini.submission where ipo_id = '3456' and state = 'accepted'}), 0, 'the one in doubt still is');
cmp_ok($fini->sql(q{select count(*) from fini.request where ipo_id = '3456' and state in ('sending', 'unknown')}), '<=', 4,
	'with no more requests than may be under way at once');
my $lines = () = $fini->log_since($log) =~ /fini: could not look/g;
cmp_ok($lines, '<=', 1, 'its failures are told once');
$fini->clear_faults;
$fini->sql('select fini.resume()');
$fini->wait_done;
agree('in the end');

# FINI says that a request ID has been used, but shows nothing of it: a new one comes into play once, and only after two
# looks through everything and the time that a request can take; then it is given up, visibly
for my $mended (1, 0)
{
	my $name = $mended ? 'TAKEN' : 'LOST';
	my $request = "select max(request_id) from fini.submission where own_ref = '${name}1'";
	$before = queries();
	my $begin = time;
	$fini->faults({ endpoint => 'subscriptions/add', action => 'code-before', status => 400, code => '411002', message => 'duplicate request ID', count => -1 });
	$fini->insert_rows('applications', $name, 1);
	my $first = $fini->wait_for(sub { $fini->sql($request) }, 'a request ID');
	my $second = $fini->wait_for(sub { my $id = $fini->sql($request); $id ne $first ? $id : undef }, 'another one', 60);
	cmp_ok(time - $begin, '>=', 2, "$name: not before a copy on its way has had its time");
	# more than 50 pages each
	cmp_ok(queries() - $before, '>=', 100, "$name: nor before two looks");
	$fini->clear_faults if $mended;
	$fini->wait_done(undef, 90);
	$fini->clear_faults;
	is($fini->sql($request), $second, "$name: one new ID, and no more");
	is($fini->sql("select concat_ws(' ', state, error_code) from fini.submission where own_ref = '${name}1'"),
		$mended ? 'accepted' : 'failed not_found', $mended ? 'then it goes' : 'else it is given up, and says so');
	like($fini->sql("select fini_error from applications where own_ref = '${name}1'"), qr/not_found: .*look there/, 'with what to do') if !$mended;
}
is($fini->sql(q{select fini.retry(own_refs => '{LOST1}')}), 1, 'which puts it back');
$fini->wait_done;
agree('after 411002');

# the same of one that FINI refuses, and whose answers are lost under both request IDs: there is no record to be found, so
# it cannot be told from one that FINI only does not show
$fini->config(rejectOwnRefs => ['REFUSED1']);
$fini->faults({ endpoint => 'subscriptions/add', action => 'code-after', status => 400, code => '411002', message => 'duplicate request ID', count => -1 });
$fini->insert_rows('applications', 'REFUSED', 1);
$fini->wait_done(undef, 90);
$fini->clear_faults;
my $refused = q{select concat_ws(' ', state, error_code) from fini.submission where own_ref = 'REFUSED1'};
is($fini->sql($refused), 'failed not_found', 'one that FINI has refused without being heard is given up as well');
is($fini->sql(q{select fini.retry(own_refs => '{REFUSED1}')}), 1, '... put back');
$fini->wait_done;
like($fini->sql($refused), qr/^rejected /, '... and then it is rejected');
$fini->config(rejectOwnRefs => []);
$fini->sql(q{delete from applications where own_ref = 'REFUSED1'});
$fini->wait_done;
agree('after a refusal');

# queries that are refused for good stop until fini.resume, and nothing is concluded meanwhile
$fini->faults(
	{ endpoint => 'subscriptions/query', action => 'status-before', status => 403, count => -1 },
	{ endpoint => 'subscriptions/add', action => 'drop-before', count => 1 });
$fini->insert_rows('applications', 'STOPPED', 5);
$fini->wait_for(q{select last_error like 'subscriptions/query stopped%' from fini.status}, 'queries to be stopped');
$before = queries();
$fini->insert_rows('applications', 'BESIDE', 5);
$fini->wait_for(q{select count(*) = 5 from applications where own_ref like 'BESIDE%' and fini_state = 'accepted'}, 'adds to go on');
is($fini->sql(q{select string_agg(distinct state, ',') from fini.submission where own_ref like 'STOPPED%'}), 'unknown', 'what is in doubt stays so');
is(queries(), $before, 'and no query is sent');
$fini->clear_faults;
$fini->sql('select fini.resume()');
$fini->wait_done;
agree('queries stopped');

done_testing();
