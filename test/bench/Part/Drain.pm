# A backlog, from fini.resume to the last outcome: how fast, and at what cost to worker, server and gateway; at backlogs
# of several sizes; and whether requests are full.

package Part::Drain;

use strict;
use warnings;

use FiniReport;

sub measure
{
	my ($world, $report, $size) = @_;
	my (%rate, %cpu, %server, %gateway, @user, @points);
	my $rows = $size->{drain};

	for my $round (1 .. $size->{rounds})
	{
		for my $limit (0, 480)
		{
			$world->setting('fini.rate_limit', $limit);
			$world->fill($rows);
			my $spent = $world->drain($rows);
			push @{ $rate{$limit} }, $rows / $spent->{seconds};
			push @{ $cpu{$limit} }, 1e6 * $spent->{worker} / $rows;
			push @user, $spent->{worker_user} / $spent->{worker};
			push @{ $server{$limit} }, 1e6 * $spent->{server} / $rows;
			push @{ $gateway{$limit} }, 1e6 * $spent->{gateway} / $rows;
		}
	}
	$world->setting('fini.rate_limit', 0);
	my ($fill) = $world->session->run(fullness());
	for my $backlog (@{ $size->{backlogs} }, $rows)
	{
		my @rates = $backlog == $rows ? @{ $rate{0} } : ();
		for (@rates ? () : 1 .. 3)
		{
			$world->fill($backlog);
			push @rates, $backlog / $world->drain($backlog)->{seconds};
		}
		push @points, [ $backlog, FiniBench::median(@rates) ];
	}

	$report->figure(name => 'drain', title => 'backlog of ' . FiniReport::commas($rows) . ', fini.rate_limit 0', unit => 'records/s', values => $rate{0});
	$report->figure(name => 'drain_480', title => 'the same, fini.rate_limit 480', unit => 'records/s', values => $rate{480},
		peer => "FINI's ceiling", peers => [8000]);
	$report->figure(name => 'drain_cpu', title => "worker's CPU per record", unit => 'us', values => [ @{ $cpu{0} }, @{ $cpu{480} } ]);
	$report->figure(name => 'worker_user', title => 'of which in user mode', values => \@user);
	$report->figure(name => 'server_cpu', title => "the whole server's CPU per record", unit => 'us', values => [ @{ $server{0} }, @{ $server{480} } ]);
	$report->figure(name => 'gateway_cpu', title => "the sandbox's CPU per record", unit => 'us', values => [ @{ $gateway{0} }, @{ $gateway{480} } ]);
	$report->figure(name => 'batch_fill', title => 'share of fini.batch_size in requests, a backlog waiting', values => [$fill], target_value => '>= 0.99');
	$report->series(name => 'drain_rate', title => 'drain', points => \@points);
	return;
}

# the mean request of all but the last one of each IPO, against the largest that is allowed
sub fullness
{
	return q{select avg(entries) / current_setting('fini.batch_size')::numeric from (
		select r.entries, row_number() over (partition by s.ipo_id order by r.started_at desc) n
		from fini.request r join (select distinct on (request_id) request_id, ipo_id from fini.submission order by request_id) s using (request_id)) x
		where n > 1};
}

1;
