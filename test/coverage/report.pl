# report.pl SOURCES INFO JUSTIFIED PERCENT: what lcov has counted, for people (see test/coverage/run).
#
# A line of JUSTIFIED is "WHERE<tab>REGULAR EXPRESSION"; a line that begins with "=" gives the reason for those that follow.
# A block of lines that has not run is accounted for if it, to the end of its last statement, or the two lines before it
# match. WHERE is * or a file, for blocks of up to three lines, or FILE:FUNCTION for blocks of any length in that
# function. Lines of JUSTIFIED that account for nothing are named.

use strict;
use warnings;

my ($sources, $info, $justified, $wanted) = @ARGV;
my (%lines, %branches, $file);

open(my $in, '<', $info) or die "$info: $!\n";
while (<$in>)
{
	if (/^SF:.*?([^\/]+)$/) { chomp($file = $1); }
	elsif (/^DA:(\d+),(\d+)/) { $lines{$file}{$1} = $2; }
	elsif (/^BRDA:\d+,\d+,\d+,(\d+|-)/) { $branches{$file}[0]++; $branches{$file}[1]++ if $1 ne '-' && $1 > 0; }
}
close $in;
my (@rules, $reason);
if (open($in, '<', $justified))
{
	while (<$in>)
	{
		chomp;
		next if /^#|^\s*$/;
		if (/^=\s*(.+)/) { $reason = $1; next; }
		my ($where, $pattern, $more) = split /\t+/;
		die "$justified:$.: where and what, with a tab between, after a line with their reason\n" if !defined $pattern || defined $more || !defined $reason;
		push @rules, { where => $where, pattern => qr/$pattern/s, text => $pattern, reason => $reason, used => 0 };
	}
}

my ($all, $run, $accounted, @open, %because) = (0, 0, 0);
my ($all_branches, $run_branches) = (0, 0);
for $file (sort grep { /\.c$/ } keys %lines)
{
	my %count = %{ $lines{$file} };
	my $n = keys %count;
	my $hit = grep { $_ > 0 } values %count;
	my @b = map { $_ // 0 } @{ $branches{$file} // [] }[ 0, 1 ];
	printf "%-24s lines %5d of %5d  %5.1f %%   branches %5d of %5d  %5.1f %%\n", $file, $hit, $n, 100 * $hit / $n, $b[1], $b[0], $b[0] ? 100 * $b[1] / $b[0] : 100;
	$all += $n;
	$run += $hit;
	$all_branches += $b[0];
	$run_branches += $b[1];

	open(my $source, '<', "$sources/$file") or next;
	my @text = ('', <$source>);
	my @block;
	for my $line ((sort { $a <=> $b } keys %count), 1e9)
	{
		if ($line < 1e9 && !$count{$line}) { push @block, $line; next; }
		next unless @block;
		my $from = $block[0] > 2 ? $block[0] - 2 : 1;
		my $to = $block[-1];
		# all of a statement
		$to++ while $text[$to] !~ /;/ && $to < $block[-1] + 6 && $to < $#text;
		my $code = join '', map { $text[$_] // '' } $from .. $to;
		my ($function) = map { $text[$_] =~ /^(\w+)\(/ } reverse 1 .. $block[0];
		my ($rule) = grep { ($_->{where} eq "$file:" . ($function // '') || (@block <= 3 && ($_->{where} eq '*' || $_->{where} eq $file))) && $code =~ $_->{pattern} } @rules;
		if ($rule) { $rule->{used}++; $accounted += @block; $because{ $rule->{reason} } += @block; }
		else { push @open, sprintf("%s:%d-%d\t%s", $file, $block[0], $block[-1], join(' ', map { s/\s+/ /gr =~ s/^ | $//gr } map { $text[$_] // '' } @block[ 0 .. ($#block < 1 ? $#block : 1) ])); }
		@block = ();
	}
}
die "nothing was counted\n" unless $all;
printf "%-24s lines %5d of %5d  %5.1f %%   branches %5d of %5d  %5.1f %%\n", 'all', $run, $all, 100 * $run / $all, $run_branches, $all_branches, 100 * $run_branches / ($all_branches || 1);
print "\n", scalar @open, " blocks have not run and are not justified ($accounted lines are):\n", map { "  $_\n" } @open;
print "\nlines that are justified:\n", (map { sprintf "  %4d  %s\n", $because{$_}, $_ } sort { $because{$b} <=> $because{$a} || $a cmp $b } keys %because), "\n";
print "justified, but run by now, or gone: $_->{where}\t$_->{text}\n" for grep { !$_->{used} } @rules;
my $percent = 100 * $run / $all;
printf "coverage: %s, %.1f %% of the lines, %.1f %% of the branches; %d are wanted\n", $percent >= $wanted ? 'enough' : 'too little', $percent, 100 * $run_branches / ($all_branches || 1), $wanted;
