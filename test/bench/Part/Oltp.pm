# pgbench's own load (TPC-B) beside a worker that sends at FINI's ceiling of 8,000 records a second, against the same
# load beside a worker that is paused before the same backlog: at half of what the machine can do, and all out.
#
# The sandbox stands for a machine of HKEX's. It runs at the lowest priority here, so that it takes what is left.

package Part::Oltp;

use strict;
use warnings;

use FiniBench;
use FiniSandbox;
use Time::HiRes qw(time);

my $LATE = 100;		# ms: a transaction that would have to wait longer is lost

sub measure
{
	my ($world, $report, $size) = @_;
	my $clients = grep { /^processor/ } split /^/, FiniBench::slurp('/proc/cpuinfo');
	my $rounds = $size->{rounds} > 3 ? 3 : $size->{rounds};
	my %fixed = ('fini.rate_window' => 1000, 'fini.rate_limit' => 8);

	FiniBench::command('pgbench', '-i', '-q', '-s', 10);
	my $gateway = polite_gateway($world);
	$world->setting('fini.token_url', undef);
	$world->setting('fini.base_url', $gateway->url);
	$world->setting($_, $fixed{$_}) for sort keys %fixed;

	my $all_out = pgbench($clients, $size->{oltp})->{tps};
	my (%half, %full, @speed);
	for my $round (1 .. $rounds)
	{
		for my $mode ([ \%half, '-R', int($all_out / 2), '-L', $LATE ], [ \%full ])
		{
			my ($into, @options) = @$mode;
			$world->pause;
			settle($world);
			$world->fill_many(8000 * ($size->{oltp} + 5));
			for my $beside ($round % 2 ? qw(paused sending) : qw(sending paused))
			{
				my $before = start($world, $gateway, $beside eq 'sending');
				my $began = time;
				my $said = pgbench($clients, $size->{oltp}, @options);
				push @speed, ($gateway->stats->{accepted} - $before) / (time - $began) if $beside eq 'sending';
				push @{ $into->{"$beside $_"} }, $said->{$_} for keys %$said;
			}
		}
	}
	$world->pause;
	settle($world);
	$world->clean_up;
	$world->resume;
	$world->setting($_, undef) for qw(fini.base_url fini.rate_window);
	$world->setting('fini.rate_limit', 0);
	$gateway->stop;

	$report->figure(name => 'oltp', title => "pgbench at half load, worker at FINI's ceiling", unit => '1/s', values => $half{'sending tps'},
		peer => 'worker paused', peers => $half{'paused tps'}, paired => 1, target => '>= 0.95');
	$report->figure(name => 'oltp_latency', title => 'of which the mean latency', unit => 'ms', values => $half{'sending latency'},
		peer => 'worker paused', peers => $half{'paused latency'}, paired => 1);
	$report->figure(name => 'oltp_all_out', title => "pgbench all out, worker at FINI's ceiling", unit => '1/s', values => $full{'sending tps'},
		peer => 'worker paused', peers => $full{'paused tps'}, paired => 1, target => '>= 0.95');
	$report->figure(name => 'oltp_worker', title => "the worker's speed beside them", unit => 'records/s', values => \@speed, peer => "FINI's ceiling", peers => [8000]);
	return;
}

# transactions a second that were not late, and their latency in ms
sub pgbench
{
	my ($clients, $seconds, @options) = @_;
	my $said = FiniBench::command('pgbench', '-n', '-c', $clients, '-j', 1, '-M', 'prepared', '-T', $seconds, @options);
	my ($tps) = $said =~ /^tps = ([\d.]+)/m or die "pgbench said: $said";
	my ($latency) = $said =~ /^latency average = ([\d.]+) ms/m or die "pgbench said: $said";
	my ($done) = $said =~ /actually processed: (\d+)/;
	my ($late) = $said =~ /latency limit: (\d+)\/\d+/;
	$tps *= 1 - $late / $done if $late && $done;
	return { tps => $tps, latency => $latency };
}

# let the worker send, or not; how much had been accepted by then
sub start
{
	my ($world, $gateway, $sending) = @_;
	if (!$sending)
	{
		$world->pause;
		settle($world);
		return 0;
	}
	my $before = $gateway->stats->{accepted};
	$world->resume;
	$world->wait_for('the first record', sub { $gateway->stats->{accepted} > $before });
	return $gateway->stats->{accepted};
}

# what was under way when the worker was paused
sub settle
{
	my ($world) = @_;
	$world->wait_for('what is under way', sub { $world->session->value('select sending + unknown = 0 from fini.status') eq 't' });
	return;
}

sub polite_gateway
{
	my ($world) = @_;
	my $program = "$world->{work}/polite-gateway";
	FiniBench::write_file($program, "#!/bin/sh\nexec nice -n 19 '$ENV{FINI_GATEWAY}' \"\$@\"\n");
	chmod 0700, $program or die "$program: $!\n";
	return FiniSandbox->new(dir => "$world->{work}/polite", program => $program, options => [ '--rate-limit', 0, '--token-lifetime', 600 ])->start;
}

1;
