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
