# A copy of a request that is processed long after its client gave it up: not found by the look in between,
# and still never the second of two, nor one that nobody wants any more.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.request_timeout' => '2s' },
	gateway => [ '--rate-limit', 0 ]);
my $late = { endpoint => 'subscriptions/add', action => 'delay', ms => 3500 };

$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});

sub insert_rows
{
	my ($prefix) = @_;
	$fini->sql(qq{
		insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$prefix' || i, '1234', 1000, 'PASSPORT', 'GBR', 'P' || i, 'Name ' || i from generate_series(1, 3) i});
	return;
}

# deleted meanwhile: nothing can be sent that would take the request ID from the late copy
$fini->faults($late);
insert_rows('gone');
$fini->wait_for(q{select sending = 3 from fini.status}, 'the request to be under way');
$fini->sql('delete from applications');
$fini->wait_for(sub { $fini->stats->{accepted} == 3 }, 'the late copy');
$fini->wait_done(undef, 60);
is($fini->stats->{active}, 0, 'rows deleted while their request was on its way do not stand at FINI');
is($fini->sql(q{select count(*) from fini.submission where operation = 'invalidate' and state = 'accepted'}), 3, 'they were withdrawn');

# refused as not entitled when it was sent again: its operations keep their request ID
$fini->admin('POST', '/reset');
$fini->faults($late, { endpoint => 'subscriptions/add', action => 'status-before', status => 403, skip => 1 });
insert_rows('stopped');
$fini->wait_for(sub { $fini->stats->{accepted} == 3 }, 'the late copy');
is($fini->stats->{refusals}{403} // $fini->stats->{faults}{'status-before'}, 1, 'the endpoint was stopped in between');
$fini->sql('select fini.resume()');
$fini->wait_done(undef, 60);
is($fini->stats->{duplicate_adds}, 0, 'nothing twice after fini.resume');
is_deeply($fini->states(q{own_ref like 'stopped%'}), { accepted => 3 }, 'accepted, once');
is_deeply([ $fini->compare('applications') ], [], 'both sides agree');

# given up after the attempts allowed: not before a copy that left earlier has had its time
$fini->admin('POST', '/reset');
$fini->sql('alter system set fini.max_attempts = 2');
$fini->sql('select pg_reload_conf()');
$fini->faults($late, { endpoint => 'subscriptions/add', action => 'status-before', status => 429, retryAfter => 0, skip => 1, count => 5 });
insert_rows('limit');
$fini->wait_done(undef, 60);
is($fini->stats->{accepted}, 3, 'the late copy counted');
is_deeply($fini->states(q{own_ref like 'limit%'}), { accepted => 3 }, 'and was found, instead of given up');

done_testing();
