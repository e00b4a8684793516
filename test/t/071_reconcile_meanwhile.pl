# Reconciling while other things happen: rows are sent, changed and withdrawn, the queue is full, the gateway
# or the table fails, the worker is paused, the run is cancelled.
#
# FINI_RECONCILE_MEANWHILE is the number of rows sent during a run.

use strict;
use warnings;

use FiniTest;
use JSON::PP;
use Test::More;

my $meanwhile = $ENV{FINI_RECONCILE_MEANWHILE} // 2000;
my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ]);

sub queries { return $fini->stats->{requests}{'subscriptions/query'} // 0 }
sub insert_rows
{
	my ($table, $ref, $n) = @_;
	$fini->sql(qq{insert into $table (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$ref' || i, '1234', 1000, 'PASSPORT', 'GBR', 'P' || i, 'Doe, Jane' from generate_series(1, $n) i});
	return;
}
sub start { return $fini->sql(q{select fini.start_reconcile('applications', '1234')}) }
sub ended { my ($run) = @_; return $fini->sql("select fini.wait_reconcile($run, '3 min')") }
sub run_has { my ($run, $columns) = @_; return $fini->sql("select $columns from fini.reconcile_run where run_id = $run") }
sub restart_with { $fini->sql("alter system set $_") for @_; $fini->node->reload; return }

$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
insert_rows('applications', 'OLD', 1500);
$fini->wait_done;
$fini->config(maxPageSize => 50);

subtest 'rows sent, changed and withdrawn during a run are no discrepancies' => sub {
	$fini->faults({ endpoint => 'subscriptions/query', action => 'delay', ms => 200, count => -1 });
	my $run = start();
	$fini->wait_for("select pages > 3 from fini.reconcile_run where run_id = $run", 'the first pages');
	for my $part (1 .. 10)
	{
		insert_rows('applications', "NEW$part-", $meanwhile / 10);
		$fini->sql("update applications set app_quantity = app_quantity + 500 where own_ref ~ '^OLD[0-9]*$part\$'; delete from applications where own_ref ~ '^OLD[0-9]*${part}5\$'");
	}
	$fini->clear_faults;
	is(ended($run), 't', 'the run ends');
	is(run_has($run, 'state, discrepancies'), 'finished|0', 'and finds nothing');
	my $during = $fini->sql("select count(*) from fini.submission s, fini.reconcile_run r where run_id = $run and s.settled_at between r.started_at and r.finished_at");
	cmp_ok($during, '>', $meanwhile / 2, "$during operations were settled during the run");
	$fini->wait_done;
	is($fini->sql(q{select discrepancies from fini.reconcile('applications', '1234')}), 0, 'nor does one afterwards, in a session');
};

subtest 'pages give way to a queue that is longer than the throttle allows, and come to an end' => sub {
	restart_with('fini.rate_limit = 60', q{fini.rate_window = '2s'}, 'fini.batch_size = 10');
	$fini->config(maxPageSize => 20);
	$fini->sql('select fini.pause()');
	insert_rows('applications', 'QUEUE', 2000);
	my $run = start();
	my ($adds, $pages) = ($fini->stats->{requests}{'subscriptions/add'}, queries());
	$fini->sql('select fini.resume()');
	$fini->wait_for(q{select not exists (select from fini.queue)}, 'the queue to be empty');
	$adds = $fini->stats->{requests}{'subscriptions/add'} - $adds;
	$pages = queries() - $pages;
	is($adds, 200, 'the queue took 200 requests');
	cmp_ok($pages, '>=', 10, "meanwhile $pages pages were read");
	cmp_ok($pages, '<=', 40, 'which is a small part');
	restart_with('fini.rate_limit = 0', 'fini.batch_size = 1000');
	is(ended($run), 't', 'the run ends');
	is(run_has($run, 'state, discrepancies'), 'finished|0', 'and finds nothing');
	$fini->config(maxPageSize => 50);
};

subtest 'a page that fails is asked for again after a pause' => sub {
	$fini->faults({ endpoint => 'subscriptions/query', action => 'status-before', status => 503, count => 2, skip => 5 });
	my $run = start();
	$fini->wait_for("select failures > 0 from fini.reconcile_run where run_id = $run", 'the failure to be noted');
	like(run_has($run, 'state, pages, not_before is not null, error'), qr/^running\|5\|t\|subscriptions\/query failed: HTTP status 503/, 'it is');
	is(ended($run), 't', 'the run ends');
	is(run_has($run, 'state, discrepancies, failures, error is null'), 'finished|0|0|t', 'well');
	$fini->clear_faults;
};

subtest 'a refusal ends a run' => sub {
	$fini->faults({ endpoint => 'subscriptions/query', action => 'status-before', status => 403, count => 1, skip => 2 });
	my $run = start();
	is(ended($run), 't', 'the run ends');
	like(run_has($run, 'state, error'), qr/^failed\|subscriptions\/query was refused: HTTP status 403/, 'and says why');
	is($fini->sql("select count(*) from fini.reconcile_seen where run_id = $run"), 0, 'what it kept has gone');
	$fini->sql_fails("select * from fini.repair_plan($run)", qr/ERROR:  42704: there is no finished/, 'it cannot be repaired by');
	$fini->clear_faults;
};

subtest 'a table that cannot be read holds up nothing else' => sub {
	$fini->config(latency => 30);
	my $run = start();
	$fini->wait_for("select pages > 2 from fini.reconcile_run where run_id = $run", 'the first pages');
	$fini->sql('alter table applications rename firm_id to firm');
	$fini->wait_for("select failures > 0 from fini.reconcile_run where run_id = $run", 'the failure to be noted');
	is(run_has($run, 'state, error'), 'running|a piece of the comparison failed with SQLSTATE 42703', 'by its SQLSTATE alone');
	$fini->config(latency => 0);
	$fini->sql(q{select fini.create_subscription_table('beside'); select fini.attach('beside')});
	insert_rows('beside', 'BESIDE', 3);
	$fini->wait_done;
	is($fini->sql(q{select count(*) from beside where fini_state = 'accepted'}), 3, 'others are sent');
	$fini->sql('alter table applications rename firm to firm_id');
	is(ended($run), 't', 'mended, the run goes on to its end');
	is(run_has($run, 'state, discrepancies'), 'finished|0', 'and the records of the other table are none of its business');
};

subtest 'pause, cancel, disarm' => sub {
	$fini->faults({ endpoint => 'subscriptions/query', action => 'hang-before', ms => 3600000, count => 1, skip => 3 });
	my $run = start();
	$fini->wait_for(sub { ($fini->stats->{faults}{'hang-before'} // 0) > 0 }, 'a page that hangs');
	is($fini->sql("select fini.cancel_reconcile($run)"), 't', 'it can be cancelled');
	is(run_has($run, 'state, error, finished_at is not null'), 'cancelled|cancelled by ' . $fini->sql('select session_user') . '|t', 'at once');
	is($fini->sql("select fini.cancel_reconcile($run)"), 'f', 'once');
	$fini->clear_faults;
	$fini->sql("select pg_terminate_backend(worker_pid) from fini.status");	# does not wait for the page

	$fini->sql('select fini.pause()');
	$run = start();
	my $before = queries();
	is($fini->sql("select fini.wait_reconcile($run, '1 s')"), 'f', 'while paused the time runs out');
	is(queries(), $before, 'and nothing is asked for');
	$fini->sql('select fini.resume()');
	is(ended($run), 't', 'resumed, it goes on');
	is(run_has($run, 'state, discrepancies'), 'finished|0', 'to its end');

	$fini->sql_fails(q{begin; select fini.wait_reconcile(fini.start_reconcile('applications', '1234'))}, qr/ERROR:  25001: .*HINT:  Commit first/s, 'no waiting for a run of one\'s own transaction');
	$fini->sql_fails('select fini.wait_reconcile(0)', qr/ERROR:  42704: /, 'nor for one that is not there');
	$fini->sql_fails(q{select fini.start_reconcile('applications', repeat('1', 21))}, qr/ERROR:  22023: /, 'an ipo_id has its limits');
	$fini->sql_fails(q{create table plain (a int); select fini.start_reconcile('plain', '1234')}, qr/ERROR:  55000: /, 'a table has to be attached');
	$fini->sql('select fini.disarm()');
	$fini->sql_fails(q{select fini.start_reconcile('applications', '1234')}, qr/ERROR:  IP011: /, 'a cluster that is not armed asks for nothing by itself');
	is($fini->sql(q{select discrepancies from fini.reconcile('applications', '1234')}), 0, 'a session does');
	$fini->sql('select fini.arm()');
};

subtest 'a run waits for the throttle' => sub {
	restart_with('fini.rate_limit = 4', q{fini.rate_window = '2s'});
	my $run = start();
	$fini->wait_for("select pages > 8 from fini.reconcile_run where run_id = $run", 'more pages than a window has places for', 60);
	restart_with('fini.rate_limit = 0');
	is(ended($run), 't', 'the run ends');
	is(run_has($run, 'state, discrepancies'), 'finished|0', 'well');
};

subtest 'an answer that is no page, or a page with something else than records' => sub {
	$fini->faults({ endpoint => 'subscriptions/query', action => 'wrong-shape', body => '{"code":"0","data":"all"}' });
	my $run = start();
	$fini->wait_for("select failures > 0 from fini.reconcile_run where run_id = $run", 'the failure to be noted');
	is(run_has($run, 'state, error'), 'running|the answer is no page of records', 'by what it is');
	is(ended($run), 't', 'asked for again, the run ends');
	is(run_has($run, 'state, discrepancies'), 'finished|0', 'well');
	for my $data ('"all"', '["nothing"]')
	{
		$fini->faults({ endpoint => 'subscriptions/query', action => 'wrong-shape', body => qq({"code":"0","data":$data}) });
		$fini->sql_fails(q{select fini.reconcile('applications', '1234')}, qr/IP010/, "a session raises an error for $data");
		$fini->clear_faults;
	}
};

subtest 'what FINI writes in another way is compared by its meaning' => sub {
	$fini->sql(q{select fini.create_subscription_table('written'); select fini.attach('written')});
	$fini->sql(q{insert into written (own_ref, ipo_id, app_quantity, extra, id_list)
		select 'WRITTEN' || i, '3456', 1000, '{"aNumber": 12, "aFlag": true, "aList": [1, 2], "aName": " spaces ", "nothing": null}',
			'[{"idType": "PASSPORT", "idCountryJurisdiction": "GBR", "idNum": "W1", "fullNameEng": " Doe, Jane "}]' from generate_series(1, 6) i});
	$fini->wait_done;
	my $found = sub {
		my ($ref, $fields) = @_;
		$fini->admin('PATCH', "/records?ownRef=$ref", $fields);
		my $run = $fini->sql(q{select run_id from fini.reconcile('written', '3456')});
		return $fini->sql("select string_agg(concat_ws(' ', kind, field, local, remote), ', ' order by field) from fini.discrepancy where run_id = $run and own_ref = '$ref'");
	};
	is($found->('WRITTEN1', { aNumber => '12', aFlag => 'true', aName => ' spaces', nothing => '' }), '', 'the same as text');
	is($found->('WRITTEN2', { aNumber => 12.5, aFlag => JSON::PP::false, aName => 'space' }), 'field_differs aFlag true false, field_differs aName spaces space, field_differs aNumber 12 12.5', 'others');
	is($found->('WRITTEN3', { aList => [ 1 ] }), 'field_differs aList 2 elements 1 elements', 'a shorter list');
	is($found->('WRITTEN4', { aList => [ 3, 4 ], nothing => 5 }), 'field_differs aList 1 3, field_differs nothing 5', 'a field that differs twice is told once');
	is($found->('WRITTEN5', { ownRef => ' WRITTEN5 ' }), '', 'spaces around an own_ref');
	$fini->sql(q{select fini.detach('written')});
};

subtest 'a run leaves after its retention, and is announced' => sub {
	$fini->sql(q{update fini.reconcile_run set finished_at = now() - interval '91 days' where state = 'failed'});
	my $listener = $fini->node->background_psql('postgres');
	$listener->query_safe('listen fini');
	my $run = start();
	is(ended($run), 't', 'a run ends');
	is($fini->sql(q{select count(*) from fini.reconcile_run where state = 'failed'}), 0, 'that of 91 days ago has gone');
	cmp_ok($fini->sql('select count(*) from fini.reconcile_run'), '>', 5, 'others have not');
	my $heard = $listener->query('select 1');
	like($heard, qr/"event" : "reconciled", "run_id" : $run, "ipo_id" : "1234", "state" : "finished", "discrepancies" : 0/, 'the end was announced');
	$listener->quit;
};

done_testing();
