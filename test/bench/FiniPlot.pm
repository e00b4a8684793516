# FiniPlot: the plots of a report, as SVG through gnuplot.
#
#	my @files = FiniPlot::draw($report, $directory);
#
# Draws what the report has data for. Without gnuplot it says so and draws nothing.

package FiniPlot;

use strict;
use warnings;

use File::Path qw(make_path);
use File::Temp;
use FiniBench;
use FiniReport;
use POSIX ();

sub draw
{
	my ($report, $dir) = @_;
	my %part = map { $_->{name} => $_ } @{ $report->{parts} };
	my @drawn;

	if (system('gnuplot --version >/dev/null 2>&1') != 0)
	{
		print STDERR "no plots: there is no gnuplot here\n";
		return;
	}
	make_path($dir);
	for my $plot (
		[ 'drain-rate' => \&drain_rate ], [ latency => \&latency ], [ throttle => \&throttle ], [ memory => \&memory ],
		[ 'cpu-per-record' => \&cpu_per_record ], [ disk => \&disk ])
	{
		my ($name, $make) = @$plot;
		my ($lines, @curves) = $make->(\%part);
		next if !@curves;
		gnuplot("$dir/$name.svg", $lines, @curves);
		push @drawn, "$dir/$name.svg";
	}
	return @drawn;
}

# lines: for gnuplot   curve: { points, with => its style, title }
sub gnuplot
{
	my ($file, $lines, @curves) = @_;
	my $dir = File::Temp->newdir;
	my $script = "set terminal svg size 900,520 font 'sans,14' background 'white'\nset output '$file'\nset grid linecolor rgb '#dddddd'\n"
	  . "set border 3\nset tics nomirror\nset decimalsign '.'\nset key tmargin center horizontal noenhanced Left reverse\n$lines";
	my @plots;

	for my $n (0 .. $#curves)
	{
		my $curve = $curves[$n];
		FiniBench::write_file("$dir/$n", join '', map { "@$_\n" } @{ $curve->{points} });
		push @plots, sprintf "'%s' using %s with %s title '%s'", "$dir/$n", $curve->{using} // '1:2', $curve->{with}, $curve->{title} =~ s/'/''/gr;
	}
	FiniBench::write_file("$dir/script", "$script\nplot " . join(", \\\n", @plots) . "\n");
	FiniBench::command('gnuplot', "$dir/script");
	return;
}

sub points
{
	my ($part, $name) = @_;
	return $part && $part->{series}{$name} ? @{ $part->{series}{$name}{points} } : ();
}

sub title
{
	my ($text, $part) = @_;
	return "set title \"$text\\n{/*0.8 PostgreSQL $part->{server}, $part->{cpus} CPUs, sandbox gateway on the same machine"
	  . ($part->{quick} ? ', quick run' : '') . "}\"\n";
}

my $BLUE = "linecolor rgb '#1f5fa8' linewidth 2";
my $ORANGE = "linecolor rgb '#d9701a' linewidth 2";
my $LIMIT = "lines linecolor rgb '#777777' linewidth 1.5 dashtype 2";

# records a second over the length of the backlog
sub drain_rate
{
	my ($part) = @_;
	my @drain = sort { $a->[0] <=> $b->[0] } points($part->{drain}, 'drain_rate'), points($part->{size}, 'rate_free');
	my @held = points($part->{size}, 'rate_held');
	return if @drain < 2;
	my ($from, $to) = ($drain[0][0] / 1.5, $drain[-1][0] * 1.5);
	return (title('Drain rate over backlog size', $part->{drain} // $part->{size})
		  . "set logscale x\nset xrange [$from:$to]\nset yrange [0:*]\nset xlabel 'backlog, records (logarithmic)'\nset ylabel 'records a second'\nset format x \"%.0s%c\"\nset format y \"%.0f\"\n",
		{ points => \@drain, with => "linespoints pointtype 7 pointsize 0.8 $BLUE", title => 'fini.rate_limit 0' },
		(@held ? { points => \@held, with => "points pointtype 9 pointsize 1.2 $ORANGE", title => 'the same under a held snapshot' } : ()),
		{ points => [ [ $from, 8000 ], [ $to, 8000 ] ], with => $LIMIT, title => "FINI's ceiling for a company, 8,000" });
}

# what share of the inserts took no longer than so many milliseconds
sub latency
{
	my ($part) = @_;
	my @sorted = map { $_->[0] } points($part->{latency}, 'latency');
	return if !@sorted;
	my $n = @sorted;
	my @share = map { [ $sorted[$_], 100 * ($_ + 1) / $n ] } 0 .. $#sorted;
	my ($p50, $p99) = map { FiniBench::percentile($_, @sorted) } 50, 99;
	my $to = POSIX::ceil($sorted[-1] > 6 ? $sorted[-1] * 1.05 : 6);
	return (title('From commit to the first byte on the wire, idle queue, warm token', $part->{latency})
		  . ($to > 30 ? "set logscale x\nset xrange [" . $sorted[0] / 1.1 . ":$to]\nset xtics (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)\n" : "set xrange [0:$to]\n")
		  . "set yrange [0:102]\nset xlabel 'milliseconds@{[ $to > 30 ? ' (logarithmic)' : '' ]}'\nset ylabel 'share of the inserts, per cent'\n",
		{ points => \@share, with => "steps $BLUE", title => FiniReport::commas($n) . ' single inserts' },
		{ points => [ [ $p50, 50 ] ], with => 'points pointtype 7 pointsize 0.9 ' . $ORANGE, title => sprintf('p50 %.2f ms (wanted: 3)', $p50) },
		{ points => [ [ $p99, 99 ] ], with => 'points pointtype 5 pointsize 0.9 ' . $ORANGE, title => sprintf('p99 %.2f ms (wanted: 25)', $p99) });
}

# requests begun within the window that ends now
sub throttle
{
	my ($part) = @_;
	my @points = points($part->{throttle}, 'throttle');
	return if !@points;
	my ($limit, $window) = @{ $part->{throttle}{series}{throttle} }{qw(limit window)};
	return (title("Use of the throttle while there is work: $limit requests in any $window s", $part->{throttle})
		  . "set yrange [0:" . $limit * 1.2 . "]\nset xlabel 'seconds since the first request'\nset ylabel 'requests begun in the last $window s'\n",
		{ points => \@points, with => "steps $BLUE", title => 'requests' },
		{ points => [ [ 0, $limit ], [ $points[-1][0], $limit ] ], with => $LIMIT, title => 'allowed' },
		{ points => [ [ 0, 0.97 * $limit ], [ $points[-1][0], 0.97 * $limit ] ], with => "lines linecolor rgb '#c0392b' linewidth 1 dashtype 3", title => '97 %, wanted on average' });
}

# the worker's own memory while a long backlog drains
sub memory
{
	my ($part) = @_;
	my @free = points($part->{size}, 'memory_free');
	my @held = points($part->{size}, 'memory_held');
	return if !@free;
	my $to = (sort { $b <=> $a } $free[-1][0], @held ? $held[-1][0] : 0)[0];
	my $rows = FiniReport::commas($part->{size}{series}{rate_free}{points}[0][0]);
	return (title("Own memory of the worker while $rows records drain", $part->{size})
		  . "set yrange [0:72]\nset xlabel 'seconds'\nset ylabel 'MiB'\n",
		{ points => \@free, with => "lines $BLUE", title => 'worker' },
		{ points => \@held, with => "lines $ORANGE", title => 'under a held snapshot' },
		{ points => [ [ 0, 64 ], [ $to, 64 ] ], with => $LIMIT, title => 'wanted: 64 at most' });
}

sub cpu_per_record
{
	my ($part) = @_;
	my @free = points($part->{size}, 'cpu_free');
	my @held = points($part->{size}, 'cpu_held');
	return if !@free;
	my $last = $free[-1][0];
	return (title("CPU of the worker per record, as a backlog drains", $part->{size})
		  . "set yrange [0:*]\nset xrange [0:$last]\nset xlabel 'records drained'\nset ylabel 'microseconds of CPU per record'\nset format x \"%.0s%c\"\n",
		{ points => \@free, with => "linespoints pointtype 7 pointsize 0.5 $BLUE", title => 'slice by slice' },
		{ points => \@held, with => "linespoints pointtype 9 pointsize 0.6 $ORANGE", title => 'under a held snapshot' },
		{ points => [ [ 0, 1.1 * $free[0][1] ], [ $last, 1.1 * $free[0][1] ] ], with => $LIMIT, title => 'first slice and 10 %' });
}

sub disk
{
	my ($part) = @_;
	my @free = points($part->{size}, 'disk_free');
	my @held = points($part->{size}, 'disk_held');
	return if !@free;
	return (title("Size of fini's outbox on disk, as a backlog drains", $part->{size})
		  . "set yrange [0:*]\nset xrange [0:$free[-1][0]]\nset xlabel 'records drained'\nset ylabel 'MiB'\nset format x \"%.0s%c\"\n",
		{ points => \@free, with => "lines $BLUE", title => 'tables' },
		{ points => \@free, using => '1:3', with => "lines $BLUE dashtype 4", title => 'indexes' },
		{ points => \@held, with => "lines $ORANGE", title => 'tables, under a held snapshot' },
		{ points => \@held, using => '1:3', with => "lines $ORANGE dashtype 4", title => 'indexes, under a held snapshot' });
}

1;
