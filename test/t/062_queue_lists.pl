# The queue lists operations of one statement together. Nobody who works on one of them holds up the others, what is
# cancelled is not sent although it is still listed, nobody who has waited for the worker keeps a lock on what it
# sends, and the counts are right at every moment.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 100, 'fini.max_in_flight' => 2 }, gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});

sub insert
{
	my ($prefix, $n, @ipos) = @_;
	my $ipos = join ',', map { "'$_'" } @ipos ? @ipos : '1234';
	return sprintf(q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '%s' || g, (array[%s])[g %% %d + 1], 1000, 'PASSPORT', 'GBR', 'P%s' || g, 'DOE, Jane' from generate_series(0, %d) g},
		$prefix, $ipos, scalar @ipos || 1, $prefix, $n - 1);
}

# each queued operation is listed once, and all counts of what is queued agree; how many
sub queued
{
	my ($name) = @_;
	my $n = $fini->sql(q{select count(*) from fini.submission where state = 'queued'});
	is($fini->sql(q{select count(*) from fini.submission s left join fini._listed l using (id, ipo_id, operation) where s.state = 'queued'
		group by s.id having count(l.id) <> 1}), '', "$name: each is listed once");
	is($fini->sql('select queued from fini.status'), $n, "$name: fini.status has as many");
	is($fini->sql('select coalesce(sum(queued), 0) from fini.progress'), $n, "$name: fini.progress has as many");
	is($fini->sql('select count(*) from fini._tally_differences()'), 0, "$name: all counts agree");
	return $n;
}

subtest 'one row for many' => sub {
	$fini->sql('select fini.pause()');
	$fini->sql(insert('many', 2500));
	is($fini->sql(q{select string_agg(n::text, ' ' order by id) from fini.queue}), '1000 1000 500', 'by the thousand');
	is(queued('many'), 2500, 'queued');
	$fini->sql(insert('mixed', 60, map { sprintf '%04d', $_ } 1 .. 20));
	is(queued('mixed'), 2560, 'of twenty IPOs in turn');
	$fini->sql(insert('one', 1));
	is($fini->sql(q{select ids is null from fini.queue q where id = (select id from fini.submission where own_ref = 'one0')}), 't', 'one is a row of its own');
	$fini->sql('select fini.resume()');
	$fini->wait_done;
	# FINI does not know these twenty
	is($fini->sql(q{select string_agg(n || ' ' || fini_state, ', ' order by n) from (select count(*) n, fini_state from applications group by 2) x}),
		'60 rejected, 2501 accepted', 'all have been sent');
	$fini->sql(q{delete from applications where fini_state = 'rejected'});
	is(queued('sent'), 0, 'none is left');
};

subtest 'one of them is being worked on' => sub {
	my $user = $node->background_psql('postgres');
	for my $case ([ 'commit', 'cancelled' ], [ 'rollback', 'accepted' ])
	{
		my ($end, $state) = @$case;
		$fini->sql('select fini.pause()');
		$fini->sql(insert($end, 300));
		$user->query_safe("begin; select fini.cancel('applications', '{${end}7}')");
		is(queued("$end, before it"), 300, 'the others see all');
		$fini->sql('select fini.resume()');
		$fini->wait_for(qq{select count(*) = 299 from applications where own_ref like '$end%' and fini_state = 'accepted'}, 'the others to be accepted');
		is(queued($end), 1, 'and that one waits');
		$user->query_safe($end);
		$fini->sql('select fini._wake()');
		$fini->wait_done;
		is($fini->sql("select fini_state from applications where own_ref = '${end}7'"), $state, "its end: $end");
		$fini->wait_for('select not exists (select from fini.queue)', 'the queue to be empty');
		is(queued("$end, after it"), 0, 'nothing is queued');
	}
	# an update of a queued row, which has nothing to ask for, keeps it back as well
	$fini->sql('select fini.pause()');
	$fini->sql(insert('update', 300));
	$user->query_safe(q{begin; update applications set app_quantity = 2000 where own_ref = 'update7'});
	$fini->sql('select fini.resume()');
	$fini->wait_for(q{select count(*) = 299 from applications where own_ref like 'update%' and fini_state = 'accepted'}, 'the others to be accepted');
	$user->query_safe('commit');
	$fini->sql('select fini._wake()');
	$fini->wait_done;
	is_deeply([ map { $_->{appQuantity} } grep { $_->{ownRef} eq 'update7' } @{ $fini->dump } ], [ 2000 ], 'it goes with what was committed');
	is($fini->sql(q{select count(*) from fini.submission where own_ref like 'update%'}), 300, 'and once');
	$user->quit;
};

subtest 'many of them are being worked on' => sub {
	my $user = $node->background_psql('postgres');
	$fini->sql('select fini.pause()');
	$fini->sql(insert('locked', 5000));
	$fini->sql(insert('behind', 1000));
	$user->query_safe(q{begin; update applications set app_quantity = 2000 where own_ref like 'locked%'});
	my $cpu = sub { my ($ticks) = slurp_file('/proc/' . $fini->sql('select worker_pid from fini.status') . '/stat') =~ /\) \S+(?: \S+){10} (\d+)/; return $ticks };
	my $before = $cpu->();
	$fini->sql('select fini.resume()');
	$fini->wait_for(q{select count(*) = 1000 from applications where own_ref like 'behind%' and fini_state = 'accepted'}, 'those behind to be accepted');
	note('ticks of the worker: ' . ($cpu->() - $before));
	# put one at a time, each time the worker has to look
	for (1 .. 20)
	{
		$fini->sql(insert("late$_", 1));
		$fini->wait_for(qq{select fini_state = 'accepted' from applications where own_ref = 'late${_}0'}, 'one that came late');
	}
	note('ticks of the worker: ' . ($cpu->() - $before));
	is(queued('many are locked'), 5000, 'the others wait');
	$user->query_safe('commit');
	$fini->wait_done;
	is($fini->sql(q{select count(*) from applications where own_ref like 'locked%' and fini_state = 'accepted'}), 5000, 'all are accepted then');
	is($fini->sql(q{select count(*) from fini.submission where own_ref like 'locked%'}), 5000, 'once each');
	$user->quit;
};

subtest 'what is cancelled stays listed until the worker comes by' => sub {
	$fini->sql('select fini.pause()');
	$fini->wait_for(q{select worker_state = 'idle' from fini.status}, 'the worker to have nothing to do');
	my $worker = $fini->sql('select worker_pid from fini.status');
	kill 'STOP', $worker or die "cannot stop the worker: $!";
	$fini->sql(insert('some', 300, '1234', '3456'));
	is($fini->sql(q{select fini.cancel('applications', array(select 'some' || g from generate_series(0, 99) g))}), 100, 'cancelled by own_ref');
	is(queued('some are cancelled'), 200, 'queued');
	is($fini->sql(q{select fini.cancel('applications', '{some1}')}), 0, 'not twice');
	$fini->sql(q{delete from applications where own_ref in (select 'some' || g from generate_series(100, 149) g)});
	is(queued('some are withdrawn'), 150, 'queued');
	$fini->sql(q{update applications set ipo_id = '5678' where own_ref = 'some200'});
	is(queued('one has moved'), 150, 'queued');
	is($fini->sql(q{select count(*) from fini._listed}), 301, 'all of them are listed');
	is($fini->sql(q{select oldest_open = (select min(created_at) from fini.submission where state = 'queued') from fini.status}), 't', 'the oldest is known');

	# as many rows of one each, and some time ago
	$fini->sql(insert("single$_", 1)) for 1 .. 120;
	$fini->sql(q{update fini.submission set created_at = created_at - interval '1 day'});
	$fini->sql(q{select fini.cancel('applications', array(select own_ref from applications where own_ref like 'some%' or own_ref like 'single%'))});
	$fini->sql(insert('after', 60));
	is(queued('all before it are cancelled'), 60, 'queued');
	is($fini->sql(q{select oldest_open <= (select min(created_at) from fini.submission where state = 'queued') from fini.status}), 't', 'it is not older than that');
	is($fini->sql(q{select queued || ' ' || to_char(estimated_finish - clock_timestamp(), 'MI') from fini.progress where ipo_id = '1234'}), '60 00',
		'what is cancelled needs no request');
	is($fini->sql(q{select fini.cancel('applications')}), 60, 'all that is left is cancelled');
	is(queued('all are cancelled'), 0, 'queued');
	is($fini->sql(q{select fini.wait()}), 't', 'nothing to wait for');
	is($fini->sql(q{select oldest_open from fini.status}), '', 'nothing is open');
	is($fini->sql(q{select detail from fini.check() where item = 'queue'}), 'Nothing is open.', 'so says fini.check');

	# what is listed is not purged, or it could not be taken off the count
	$fini->sql(q{update fini.submission set settled_at = settled_at - interval '60 days', created_at = created_at - interval '60 days' where own_ref like 'some%'});
	$fini->sql(q{delete from applications where own_ref like 'some%'});
	$fini->sql(q{select fini.purge('1 day')});
	is($fini->sql(q{select count(*) from fini.submission where own_ref like 'some%'}), 301, 'nor purged');

	# it comes by although it is paused
	kill 'CONT', $worker;
	$fini->wait_for('select not exists (select from fini.queue)', 'the queue to be empty');
	$fini->sql('select fini.resume()');
	is(queued('the worker has come by'), 0, 'queued');
	is($fini->sql(q{select coalesce(sum(n), 0) from fini.tally where state = 'queued'}), 0, 'nothing is to be taken off any more');
	is($fini->sql(q{select fini.purge('1 day')}), 301, 'then it is purged');
	is(scalar(grep { $_->{ownRef} =~ /^some/ } @{ $fini->dump }), 0, 'nothing of it was sent');
	is($fini->sql('select fini.recount()'), 0, 'no count was wrong');
};

# as a restore of data alone may have it: the queue first, the operations later
subtest 'what is listed and not there' => sub {
	my $later = $fini->sql(q{select nextval('fini.submission_id_seq') + 100});
	$fini->sql("insert into fini.queue (ipo_id, operation, id, n, ids) values ('1234', 'add', $later, 2, array[$later, $later + 1])");
	$fini->sql(insert('near', 3));
	$fini->wait_for(q{select count(*) = 3 from applications where own_ref like 'near%' and fini_state = 'accepted'}, 'others to be accepted');
	$fini->sql('select fini._wake()') for 1 .. 5;
	$fini->wait_for(q{select worker_state = 'idle' from fini.status}, 'the worker to have looked');
	is($fini->sql("select n from fini.queue where id = $later"), 2, 'it stays listed');
	is($fini->sql(q{select coalesce(sum(n), 0) from fini.tally where state = 'queued'}), 0, 'and is not taken for cancelled');
	$fini->sql("insert into fini.submission (id, relation, own_ref, ipo_id, operation) overriding system value
		select $later + g, 'applications', 'later' || g, '1234', 'add' from generate_series(0, 1) g");
	$fini->sql(q{set session_replication_role = replica; insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select 'later' || g, '1234', 1000, 'PASSPORT', 'GBR', 'PL' || g, 'DOE, Jane' from generate_series(0, 1) g});
	$fini->sql('select fini._wake()');
	$fini->wait_for(q{select count(*) = 2 from applications where own_ref like 'later%' and fini_state = 'accepted'}, 'it to be sent once it is there');
	$fini->sql("select setval('fini.submission_id_seq', $later + 10)");
};

# who waits while the worker claims gets no lock on what is being sent from then on
subtest 'nobody holds up the settling' => sub {
	for my $case ([ 'cancel', q{select fini.cancel('applications', '{cancel7}')}, 'add accepted' ],
		[ 'delete', q{delete from applications where own_ref = 'delete7'}, 'add accepted, invalidate accepted' ],
		[ 'change', q{update applications set app_quantity = 2000 where own_ref = 'change7'}, 'add accepted, change accepted' ])
	{
		my ($prefix, $statement, $history) = @$case;
		my $user = $node->background_psql('postgres');
		my $holder = $node->background_psql('postgres');
		$fini->sql('select fini.pause()');
		$fini->sql(insert($prefix, 50));
		$holder->query_safe('begin; lock table fini.request in share mode');
		$fini->sql('select fini.resume()');
		$fini->wait_for(q{select exists (select from pg_locks where relation = 'fini.request'::regclass and not granted)}, 'the claim to have come as far as its request');
		$user->query_until(qr/begun/, "\\echo begun\nbegin isolation level repeatable read; $statement;\n");
		$fini->wait_for(q{select exists (select from pg_locks where locktype = 'transactionid' and not granted)}, 'the user to wait for it');
		$holder->query_safe('commit');
		# his transaction is still open
		$fini->wait_for(qq{select count(*) = 50 from fini.submission where own_ref like '$prefix%' and operation = 'add' and state = 'accepted'}, 'all to be settled', 60);
		$user->query_safe('commit');
		$fini->wait_done;
		is($fini->sql(qq{select string_agg(operation || ' ' || state, ', ' order by id) from fini.submission where own_ref = '${prefix}7'}), $history, "$prefix: $history");
		$_->quit for $user, $holder;
	}
	is(queued('afterwards'), 0, 'queued');
};

is($fini->sql(q{select count(*) from (select id from fini.submission where state <> 'cancelled' group by id having count(*) > 1) x}), 0, 'no operation is there twice');
is($fini->stats->{duplicates}, 0, 'no application is at FINI twice');
is($fini->stats->{out_of_order}, 0, 'nothing out of order');
$fini->sql(q{delete from applications where fini_state = 'cancelled'});
is_deeply([ $fini->compare('applications') ], [], 'both sides agree field by field');

done_testing();
