# bench.pl [--quick] [--only NAME[,NAME...]] [--size N] --json FILE: the measurements of `make bench`, on a stage
# (see test/stage.sh).
#
# What is measured, against what, and how to read it: docs/performance.md. Subject and peer take turns, and a
# figure is the median over the rounds, since neither the machine nor its load is ours alone. Each part has a file
# in Part/ with one function, measure. After each the JSON file is written, and a part that fails does not keep the
# others from being measured. With --only the file keeps what it says of other parts.

use strict;
use warnings;

use FiniBench;
use FiniReport;
use FiniWorld;
use Getopt::Long;
use JSON::PP;
use Time::HiRes qw(time);

my ($quick, $json_file, $only, $size);
GetOptions('quick' => \$quick, 'json=s' => \$json_file, 'only|part=s' => \$only, 'size=i' => \$size) && $json_file && !@ARGV
  or die "usage: bench.pl [--quick] [--only NAME[,NAME...]] [--size N] --json FILE\n";

my $stage = $ENV{FINI_STAGE} or die "FINI_STAGE is not set: call test/bench/run\n";
my $here = "$stage/tree/test/bench";

# how much of everything; the bulk insert has its 100,000 rows either way
my %size = $quick
  ? (rows => 100_000, drain => 20_000, backlogs => [ 1000, 10_000 ], rounds => 2, pgbench => 2, singles => 200, seal => 0.3, calls => 20, window => 5,
	windows => 2, oltp => 4, size => 50_000, slice => 10_000, reconcile => 10_000)
  : (rows => 100_000, drain => 100_000, backlogs => [ 1000, 10_000, 30_000 ], rounds => 5, pgbench => 6, singles => 1000, seal => 1, calls => 100, window => 15,
	windows => 4, oltp => 15, size => 1_000_000, slice => 100_000, reconcile => 1_000_000);
if ($size)
{
	$size{size} = $size;
	$size{slice} = $size / 5 if $size < 5 * $size{slice};
}

my @parts = qw(seal triggers drain peer throttle latency calls oltp reconcile size);
my @wanted = defined $only ? split /,/, $only : @parts;
for my $name (@wanted)
{
	die "no part \"$name\": they are @parts\n" if !grep { $_ eq $name } @parts;
}

$| = 1;
$SIG{$_} = sub { die "\nended by a signal\n" } for qw(INT TERM HUP);
$SIG{ALRM} = sub { die "\nnot done in time\n" };
exit main();

sub main
{
	my $report = defined $only && -s $json_file ? FiniReport->load($json_file) : FiniReport->new;
	my $failed = 0;

	progress('setting up');
	my $world = FiniWorld->new(work => "$stage/work", here => $here, bin => "$stage/bin", rows => $size{rows});
	for my $name (grep { my $n = $_; grep { $_ eq $n } @wanted } @parts)
	{
		my $began = time;
		my @machine = FiniBench::machine_seconds();
		my $own = $world->own_cpu;

		progress("measuring: $name");
		require "$here/Part/\u$name.pm";
		$report->begin($name);
		# no part may take for ever, the one with millions of rows aside
		alarm($name eq 'size' ? 3600 + $size{size} / 500 : 1800);
		my $well = eval { "Part::\u$name"->can('measure')->($world, $report, \%size); 1 };
		my $error = $@;
		alarm 0;
		die $error if !$well && $error =~ /ended by a signal/;
		$failed = 1 if !$well;

		my @now = FiniBench::machine_seconds();
		$report->end(
			$well ? () : (error => $error),
			quick => $quick ? JSON::PP::true : JSON::PP::false, seconds => sprintf('%.0f', time - $began) + 0,
			server => ($world->version =~ /^(\S+)/)[0], cpus => scalar(grep { /^processor/ } split /^/, FiniBench::slurp('/proc/cpuinfo')),
			# work of other programs takes time away from ours: more than a few percent spoil the figures
			foreign_load => share($now[0] - $machine[0] - $world->own_cpu + $own, $now[1] - $machine[1]));
		$report->save($json_file);
		print STDERR "\r\e[K$name failed: $error" if !$well;
		# whatever it left: the next one begins from settings as they were
		$world->start_over if !$well;
	}
	progress('');
	return $failed;
}

sub share { my ($part, $whole) = @_; return $whole > 0 && $part > 0 ? 0 + sprintf('%.3f', $part / $whole) : 0 }

# what is going on; one line on a terminal
sub progress
{
	my ($text) = @_;
	return if $text eq '' && !-t STDERR;
	print STDERR -t STDERR ? "\r\e[K$text" . ($text eq '' ? '' : ' ...') : "$text ...\n";
	return;
}
