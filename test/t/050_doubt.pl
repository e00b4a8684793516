# Requests in doubt: whatever happens between sending and answer, one application is one record.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 50, 'fini.request_timeout' => $ENV{FINI_TEST_SLOW} ? '10s' : '2s' },
	gateway => [ '--rate-limit', 0 ],
	conf => "restart_after_crash = on\n");
my $round = 0;

$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});

sub insert_rows
{
	my ($n) = @_;
	$round++;
	$fini->sql(qq{
		insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi)
		select 'R$round-' || i, '1234', 1000, 'PASSPORT', 'GB', 'P' || i, 'Name ' || i, '陳大文' from generate_series(1, $n) i});
	return;
}

# both sides agree, and nothing happened twice
sub agree
{
	my ($what) = @_;
	my $stats = $fini->stats;

	is($fini->sql(q{select count(*) from applications where fini_state is distinct from 'accepted'}), 0, "$what: every row accepted");
	is($stats->{duplicates}, 0, "$what: no duplicate");
	is($stats->{out_of_order}, 0, "$what: nothing out of order");
	is_deeply([ $fini->compare('applications') ], [], "$what: both sides agree field by field");
	is($fini->sql(q{select (fini.reconcile('applications', '1234')).discrepancies}), 0, "$what: reconcile finds nothing");
	is($fini->sql(q{select (select count(*) from fini.queue) + (select count(*) from fini.request where state in ('sending', 'unknown'))}),
		0, "$what: nothing open");
	return;
}

for my $fault (
	{ action => 'drop-before' }, { action => 'drop-after' },
	{ action => 'hang-before', ms => 3000 }, { action => 'hang-after', ms => 3000 },
	{ action => 'status-before', status => 503 }, { action => 'status-after', status => 503 },
	{ action => 'status-after', status => 500, body => 'oops' },
	{ action => 'truncate' }, { action => 'garbage' }, { action => 'wrong-shape' }, { action => 'invalid-utf8' },
	{ action => 'drop-entries', n => 3 }, { action => 'extra-entries', n => 3 }, { action => 'reorder' },
	{ action => 'big-record-id' }, { action => 'request-id-string' },
	{ action => 'code-after', status => 400, code => '411002', message => 'duplicate request ID' },
	{ action => 'code-before', status => 400, code => '411004', message => 'timestamp expired' },
	{ action => 'status-before', status => 429, retryAfter => 1 },
	{ action => 'status-before', status => 401 })
{
	my $name = join ' ', map { "$_=$fault->{$_}" } sort keys %$fault;
	my $struck = $fini->stats->{faults}{ $fault->{action} } // 0;

	# add
	$fini->faults({ endpoint => 'subscriptions/add', count => 2, %$fault });
	insert_rows(120);
	$fini->wait_done(undef, 60);
	# change, invalidate
	$fini->faults({ endpoint => 'subscriptions/change', count => 1, %$fault });
	$fini->sql(qq{update applications set app_quantity = 2000, full_name_eng = 'New ' || own_ref where own_ref in ('R$round-1', 'R$round-2')});
	$fini->wait_done(undef, 60);
	$fini->faults({ endpoint => 'subscriptions/invalidate', count => 1, %$fault });
	$fini->sql(qq{delete from applications where own_ref in ('R$round-3', 'R$round-4')});
	$fini->wait_done(undef, 60);
	is(($fini->stats->{faults}{ $fault->{action} } // 0) - $struck, 4, "$name: the fault struck");
	$fini->clear_faults;
	agree($name);
}

# sent again after a doubt, and then refused: an earlier copy may still count, so it is looked for before anything else is sent
insert_rows(1);
$fini->wait_done;
$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-before' }, { endpoint => 'subscriptions/add', action => 'code-before', status => 400, code => '400999', message => 'no' });
my $queries = $fini->stats->{requests}{'subscriptions/query'};
insert_rows(20);
$fini->wait_done(undef, 60);
cmp_ok($fini->stats->{requests}{'subscriptions/query'} - $queries, '>=', 2, 'refused after a doubt: looked for after each of them');
is($fini->sql("select count(*) from fini.submission where own_ref like 'R$round-%' and state = 'accepted'"), 20, 'then accepted in smaller requests');
agree('refused after a doubt');
$fini->clear_faults;

# answers that lie: an entry without its number, one for another record, records that are none
$fini->faults({ endpoint => 'subscriptions/add', action => 'status-before', status => 200,
		body => '{"code":"0","data":[{"ownRef":"R' . ($round + 1) . '-1","exception":[{"recordErrorCode":"400777","recordErrorMsg":"no"}]}]}' });
insert_rows(2);
$fini->wait_done(undef, 60);
is($fini->sql("select string_agg(own_ref || ' ' || concat_ws(' ', state, error_code), ', ' order by own_ref) from fini.submission where own_ref like 'R$round-%'"),
	"R$round-1 rejected 400777, R$round-2 accepted", 'an entry without its number is known by its own_ref');
is($fini->sql('select fini.retry()'), 1, 'put back');
$fini->wait_done;
$fini->faults({ endpoint => 'subscriptions/change', action => 'status-before', status => 200, body => '{"code":"0","data":[{"requestID":"1","recordID":"9999999999999999A"}]}' });
$fini->sql(qq{update applications set app_quantity = 3000 where own_ref = 'R$round-1'});
$fini->wait_done(undef, 60);
$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after' },
	{ endpoint => 'subscriptions/query', action => 'status-before', status => 200, body => qq({"code":"0","data":[{"recordID":"1"},{"ownRef":"R$round-1"},7]}) });
insert_rows(2);
$fini->wait_done(undef, 60);
agree('answers that lie');
$fini->clear_faults;

# never anything but doubt: given up when fini.max_attempts is reached, and may be put back
$fini->sql('alter system set fini.max_attempts = 2');
$fini->sql('select pg_reload_conf()');
$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-before', count => -1 });
insert_rows(5);
$fini->wait_done(undef, 90);
is($fini->sql("select string_agg(distinct state || ' ' || error_code, ', ') from fini.submission where own_ref like 'R$round-%'"), 'failed not_found', 'nothing but doubt: given up');
$fini->clear_faults;
$fini->sql('alter system reset fini.max_attempts');
$fini->sql('select pg_reload_conf()');
is($fini->sql('select fini.retry()'), 5, 'put back');
$fini->wait_done(undef, 60);
agree('put back after nothing but doubt');

# the worker dies while a request is under way, before and after it was processed
for my $action (qw(hang-before hang-after))
{
	$fini->faults({ endpoint => 'subscriptions/add', count => 1, action => $action, ms => 1500 });
	insert_rows(20);
	$fini->wait_for(q{select sending > 0 from fini.status}, 'the request to be under way');
	$fini->sql(q{select pg_terminate_backend(worker_pid) from fini.status});
	$fini->wait_done(undef, 60);
	agree("worker terminated, $action");
}

# the server stops without a checkpoint
for my $action (qw(hang-before hang-after))
{
	$fini->faults({ endpoint => 'subscriptions/add', count => 1, action => $action, ms => 1500 });
	insert_rows(20);
	$fini->wait_for(q{select sending > 0 from fini.status}, 'the request to be under way');
	$fini->node->stop('immediate');
	$fini->node->start;
	$fini->wait_done(undef, 60);
	agree("server stopped at once, $action");
}

done_testing();
