# How much of the throttle the worker uses while there is work, and whether the gateway ever had to say no. With small
# batches the limit is what holds the worker up.

package Part::Throttle;

use strict;
use warnings;

use Time::HiRes qw(sleep);

sub measure
{
	my ($world, $report, $size) = @_;
	my $session = $world->session;
	my ($window, $windows) = @{$size}{qw(window windows)};
	my $limit = 8 * $window;
	my $batch = 10;
	my $columns = $world->columns;

	$world->pause;
	$world->clean_up;
	$world->sandbox->reset;
	$world->sandbox->config(rateLimit => $limit, rateWindow => $window);
	my $need = ($windows + 1) * $limit * $batch;
	$session->run("insert into applications ($columns) select $columns from source order by ipo_id limit $need");
	$world->setting('fini.batch_size', $batch);
	$world->setting('fini.rate_window', $window * 1000);
	$world->setting('fini.rate_limit', $limit);
	sleep $window + 0.1;	# what went before is out of the window
	$world->resume;
	$world->wait_for('the first request', sub { $session->value('select count(*) from fini.request') });
	sleep $windows * $window + 0.2;
	my ($first, @rest) = $session->run('select extract(epoch from started_at) from fini.request order by started_at');
	my @at = map { $_ - $first } $first, @rest;
	my $used = grep { $_ < $windows * $window } @at;
	$world->pause;
	my $stats = $world->sandbox->stats;
	$world->setting($_, undef) for qw(fini.batch_size fini.rate_window);
	$world->setting('fini.rate_limit', 0);
	$world->sandbox->config(rateLimit => 0, rateWindow => 60);
	$world->resume;
	$world->wait_until_nothing_is_open;

	$report->figure(name => 'throttle', title => "requests in $windows windows of $window s, a backlog waiting", values => [$used],
		peer => 'allowed', peers => [ $windows * $limit ], target => '>= 0.97');
	$report->figure(name => 'throttle_refused', title => 'of these refused by the sandbox (429)', values => [ $stats->{refusals}{429} // 0 ], target_value => '<= 0');
	$report->series(name => 'throttle', limit => $limit, window => $window, points => in_window($window, $windows * $window, @at));
	$world->clean_up;
	return;
}

# how many requests had begun within the last window, at each tenth of a second
sub in_window
{
	my ($window, $until, @at) = @_;
	my @points;
	for my $tick (0 .. 10 * $until)
	{
		my $now = $tick / 10;
		push @points, [ $now, scalar grep { $_ <= $now && $_ > $now - $window } @at ];
	}
	return \@points;
}

1;
