# report.pl --json FILE [--with FILE] [--plots DIR]: prints what bench.pl measured as one table, and draws it.
#
# --with names the file of part peer on another server, which is added as part "peer_http".

use strict;
use warnings;

use FiniBench;
use FiniPlot;
use FiniReport;
use Getopt::Long;

my ($json, $with, $plots);
GetOptions('json=s' => \$json, 'with=s' => \$with, 'plots=s' => \$plots) && $json && !@ARGV
  or die "usage: report.pl --json FILE [--with FILE] [--plots DIR]\n";

my $report = FiniReport->load($json);
if ($with)
{
	my $other = FiniReport->load($with);
	$_->{name} = 'peer_http' for @{ $other->{parts} };
	$report->take($other, [qw(seal triggers drain peer peer_http throttle latency calls oltp reconcile size)]);
	$report->save($json);
}
$report->print;
print "\nwritten to $json\n";
if ($plots)
{
	my @drawn = FiniPlot::draw($report, $plots);
	print "drawn: @drawn\n" if @drawn;
}
