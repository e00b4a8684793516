# What must not stop the queue: a held snapshot, a dropped table, an endpoint that refuses, a gateway that is away,
# a shutdown while it hangs.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 100, 'fini.max_attempts' => 3 },
	gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;

# A held snapshot: nothing that is replaced or deleted can be cleared away, and the pages that a row costs must not grow
# with all that has gone before. Pages are counted, since time is shared with others.
$fini->new_table('held');
{
	my $pages = sub {
		return $fini->sql(q{select sum(coalesce(heap_blks_hit, 0) + coalesce(heap_blks_read, 0) + coalesce(idx_blks_hit, 0) + coalesce(idx_blks_read, 0))
			from pg_statio_user_tables where schemaname = 'fini' or relname = 'held'});
	};
	my $drain = sub {
		my ($prefix) = @_;
		my ($begin, $before) = (time, $pages->());
		$fini->insert_rows('held', $prefix, 10_000);
		$fini->wait_done;
		$fini->wait_for(q{select worker_state = 'idle' from fini.status}, 'the worker to be idle');
		return { seconds => time - $begin, pages => ($pages->() - $before) / 10_000 };
	};
	$drain->('warm-up');
	my $free = $drain->('free');
	my $session = $node->background_psql('postgres');
	$session->query_safe('begin isolation level repeatable read; select count(*) from held;');
	my @held = map { $drain->("held$_-") } 1 .. 3;
	is($session->query_safe('select count(*) from held;'), 20_000, 'the snapshot was held');
	$session->query_safe('commit;');
	$session->quit;
	is($fini->sql(q{select count(*) from held where fini_state = 'accepted'}), 50_000, 'all accepted under a held snapshot');
	note sprintf('10,000 rows without a held snapshot: %.2f s, %.1f pages a row; with one: %s', $free->{seconds}, $free->{pages},
		join ', ', map { sprintf '%.2f s, %.1f pages', @$_{qw(seconds pages)} } @held);
	cmp_ok($held[2]{pages}, '<', 3 * $free->{pages}, 'a row costs hardly more pages than without one');
}

# a table dropped while its rows are being sent, and with rows still queued
$fini->new_table('dropped');
$fini->new_table('kept');
$fini->faults({ endpoint => 'subscriptions/add', action => 'delay', ms => 1000, count => 1 });
$fini->insert_rows('dropped', 'D', 10);
$fini->wait_for(q{select sending = 10 from fini.status}, 'the rows to be under way');
$fini->sql(q{select fini.pause('drop')});
$fini->insert_rows('dropped', 'E', 10);
$fini->insert_rows('kept', 'K', 10);
my $log = $fini->log_position;
$fini->sql('drop table dropped');
$fini->sql('select fini.resume()');
$fini->wait_done;
is_deeply($fini->states(q{own_ref ~ '^D[0-9]'}), { accepted => 10 }, 'what was under way has its outcome in the outbox');
is_deeply($fini->states(q{own_ref ~ '^E[0-9]'}), { failed => 10 }, 'what was queued has failed, visibly');
is($fini->sql(q{select distinct error_code from fini.submission where own_ref ~ '^E[0-9]'}), 'table_unreadable', 'with the reason');
is($fini->sql(q{select count(*) from kept where fini_state = 'accepted'}), 10, 'another table went on');
my $lines = () = $fini->log_since($log) =~ /fini: rows of table/g;
is($lines, 1, 'one line in the log');

# an endpoint that refuses stops; the others go on; resume puts it back
$fini->new_table('refused');
$fini->insert_rows('refused', 'R', 5);
$fini->wait_done;
$fini->faults({ endpoint => 'subscriptions/change', action => 'status-before', status => 403, count => -1 });
$fini->sql('update refused set app_quantity = 2000');
$fini->wait_for(q{select last_error like 'subscriptions/change stopped%' from fini.status}, 'the endpoint to be stopped');
$fini->insert_rows('refused', 'S', 5);
$fini->wait_for(q{select count(*) = 10 from refused where fini_state = 'accepted'}, 'adds to go on');
is_deeply($fini->states(q{relation = 'refused'::regclass and operation = 'change'}), { queued => 5 }, 'changes stay queued');
my $calls = $fini->stats->{requests}{'subscriptions/change'};
$fini->insert_rows('refused', 'T', 5);
$fini->wait_for(q{select count(*) = 15 from refused where fini_state = 'accepted'}, 'more adds');
is($fini->stats->{requests}{'subscriptions/change'}, $calls, 'and the endpoint is left alone');
$fini->clear_faults;
$fini->sql('select fini.resume()');
$fini->wait_done;
is($fini->stats->{changed}, 5, 'resumed, the changes went');

# a gateway that is away for longer than the attempts last: failed, not dropped; retry puts it back
$fini->new_table('away');
$fini->faults({ endpoint => 'subscriptions/add', action => 'status-before', status => 429, retryAfter => 0, count => -1 });
$fini->insert_rows('away', 'A', 5);
$fini->wait_done(undef, 60);
is_deeply($fini->states(q{relation = 'away'::regclass}), { failed => 5 }, 'failed after the attempts allowed');
is($fini->sql(q{select distinct error_code || ' ' || fini_error from fini.submission join away using (own_ref)}) =~ /429/, 1, 'with the reason');
$fini->clear_faults;
is($fini->sql(q{select fini.retry('1234')}), 15, 'retry puts back what failed') or diag $fini->situation;
$fini->wait_for(q{select count(*) = 5 from away where fini_state = 'accepted'}, 'the rows to be accepted');

# one entry that makes FINI refuse whole requests does not take the others down
$fini->new_table('poison');
$fini->faults({ endpoint => 'subscriptions/add', action => 'code-before', status => 400, code => '400999', message => 'no', count => 3 });
$fini->insert_rows('poison', 'P', 200);
$fini->wait_done(undef, 60);
is($fini->sql(q{select count(*) from poison where fini_state = 'accepted'}), 200, 'a refused batch goes again in smaller ones');

# a row that cannot be sealed is rejected, the others go on
$fini->insert_rows('poison', 'V', 50);
$fini->sql(q{insert into poison (own_ref, ipo_id, app_quantity, id_list)
	values ('deep', '1234', 100, jsonb_build_array(jsonb_build_object('idNum', 'A1', 'x', (repeat('[', 1500) || repeat(']', 1500))::jsonb)))});
$fini->insert_rows('poison', 'U', 50);
$fini->wait_done(undef, 60);
is($fini->sql(q{select fini_state, split_part(fini_error, ':', 1) from poison where own_ref = 'deep'}), 'rejected|unsealable', 'a row that cannot be sealed is rejected');
is($fini->sql(q{select count(*) from poison where fini_state = 'accepted'}), 300, 'the others went') or diag $fini->situation;

# fast shutdown while the gateway hangs
$fini->faults({ endpoint => 'subscriptions/add', action => 'hang-after', ms => 20000, count => 1 });
$fini->insert_rows('kept', 'H', 10);
$fini->wait_for(q{select sending = 10 from fini.status}, 'the request to hang');
my $begin = time;
$node->stop('fast');
cmp_ok(time - $begin, '<', 2, 'fast shutdown within 2 s while the gateway hangs');
$node->start;
$fini->wait_done(undef, 60);
is($fini->sql(q{select count(*) from kept where fini_state = 'accepted'}), 20, 'and nothing is lost');
is($fini->stats->{duplicates}, 0, 'nor doubled');

# quiet when idle: no request without work
my $requests = $fini->stats->{requests};
$fini->sql(q{select fini._wake()});
$fini->wait_for(q{select worker_state = 'idle' from fini.status}, 'the worker to be idle');
is_deeply($fini->stats->{requests}, $requests, 'no request without work');

done_testing();
