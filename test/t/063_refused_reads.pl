# What the worker reads between its claims and its settles, refused by the database at the wrong moment: by locks that others
# hold. Each of these once crashed the worker, sent what was too late, or kept everybody waiting.

use strict;
use warnings;

use FiniTest;
use Test::More;
use Time::HiRes qw(time);

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0, 'fini.request_timeout' => '3s' }, gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;
$fini->new_table('applications');

sub worker { return $fini->wait_for(sub { $fini->sql('select worker_pid from fini.status where worker_pid is not null') }, 'a worker') }
sub queries { return $fini->stats->{requests}{'subscriptions/query'} // 0 }
sub always { my ($endpoint, $status) = @_; return { endpoint => "subscriptions/$endpoint", action => 'status-before', status => $status, count => -1 } }

# a session with a lock that keeps all others from the table, or from writing it
sub lock_table
{
	my ($table, $mode) = @_;
	my $session = $node->background_psql('postgres');
	$session->query_safe("begin; lock table $table in $mode mode");
	return $session;
}

sub unlock { my ($session) = @_; $session->query_safe('commit'); $session->quit; return }

subtest 'rows that cannot be read again after a look in vain' => sub {
	$fini->insert_rows('applications', 'C', 600);
	$fini->wait_done;
	$fini->faults(always('change', 500), always('query', 503));
	$fini->sql('update applications set app_quantity = app_quantity + 1000');
	$fini->wait_for(q{select count(*) = 600 from fini.submission where state = 'unknown'}, 'changes to be in doubt', 60);
	my $before = worker();
	$fini->sql("select pg_terminate_backend($before)");
	my $looks = queries();
	$fini->wait_for(sub { queries() > $looks && worker() != $before }, 'another worker to look for them', 60);
	my $worker = worker();
	my $holder = lock_table('applications', 'access exclusive');
	my $from = $fini->log_position;
	$fini->clear_faults;
	$fini->faults(always('change', 500));
	# in vain, as none has arrived; the rows cannot be read then, and the next look compares records with them
	$fini->wait_for(sub { $fini->log_since($from) =~ /applications set aside: the table cannot be read/ || worker() != $worker }, 'rows that cannot be read', 120);
	$looks = queries();
	$fini->wait_for(sub { queries() > $looks || worker() != $worker }, 'another look', 120);
	unlock($holder);
	$fini->clear_faults;
	$fini->wait_done(undef, 120);
	is(worker(), $worker, 'the worker has stayed');
	is($fini->sql(q{select count(*) from applications where fini_state = 'accepted' and app_quantity = 2000}), 600, 'all changes are accepted in the end');
};

subtest 'a deadline that moves while what was too late could not be ended' => sub {
	$fini->faults(always('add', 500));
	$fini->insert_rows('applications', 'L', 3);
	$fini->wait_for(q{select exists (select from fini.request where attempts >= 4 and state = 'sending')}, 'requests to be sent again and again', 120);
	my $worker = worker();
	my $from = $fini->log_position;
	my $holder = lock_table('fini.request', 'share');
	$fini->sql(q{select fini.set_deadline('1234', now() + interval '1 s')});
	$fini->wait_for(sub { $fini->log_since($from) =~ /could not end what is too late/ || worker() != $worker }, 'the end to be refused', 120);
	$fini->sql(q{select fini.set_deadline('1234', now() + interval '1 hour')});
	$fini->clear_faults;
	unlock($holder);
	$fini->wait_done(undef, 120);
	is(worker(), $worker, 'the worker has stayed');
	is($fini->sql(q{select count(*) from applications where own_ref like 'L%' and fini_state = 'accepted'}), 3, 'they are accepted');
};

subtest 'a deadline that cannot be read' => sub {
	$fini->faults(always('add', 500), always('query', 503));
	$fini->insert_rows('applications', 'U', 3, '3456');
	$fini->wait_for(q{select count(*) = 3 from fini.submission where state = 'unknown'}, 'adds to be in doubt', 60);
	my $before = worker();
	$fini->sql(q{select fini.set_deadline('3456', now() + interval '1 s')});
	my $holder = lock_table('fini.deadline', 'access exclusive');
	my $from = $fini->log_position;
	$fini->sql("select pg_terminate_backend($before)");
	$fini->clear_faults;
	my $refused = sub { scalar(() = $fini->log_since($from) =~ /statement timeout|lock timeout|could not read the deadlines/g) };
	$fini->wait_for(sub { worker() != $before && $refused->() > 0 }, 'the new worker to fail to read deadlines', 120);
	$fini->wait_for(q{select now() > clock_timestamp() - interval '1 s'});
	is($fini->sql(q{select count(*) from fini.submission where state = 'accepted' and own_ref like 'U%'}), 0, 'nothing is sent meanwhile');
	unlock($holder);
	$fini->wait_for(q{select count(*) = 3 from fini.submission where own_ref like 'U%' and state = 'failed' and error_code = 'deadline'}, 'them to be too late', 60);
	is(scalar(grep { $_->{ownRef} =~ /^U/ } @{ $fini->dump }), 0, 'FINI has none of them');
};

subtest 'one refusal of whether anything may be sent' => sub {
	my $from = $fini->log_position;
	my $holder = lock_table('fini.control', 'access exclusive');
	$fini->insert_rows('applications', 'N', 3, '5678');
	$fini->wait_for(sub { $fini->log_since($from) =~ /could not see whether/ }, 'the refusal', 60);
	unlock($holder);
	my $begin = time;
	$fini->wait_for(q{select count(*) = 3 from fini.submission where own_ref like 'N%' and state = 'accepted'}, 'them to be accepted', 60);
	cmp_ok(time - $begin, '<', 8, 'sent soon after, not at the next look at the queue that comes anyway');
};

is($fini->stats->{duplicates}, 0, 'nothing twice');
unlike($fini->log_since(0), qr/terminated by signal|PANIC|TRAP:/, 'no process crashed');
done_testing();
