# FiniReport: figures, each beside its floor or peer, as one table and as JSON.
#
#	my $report = FiniReport->new;
#	$report->figure(name => 'seal', title => 'sealing', unit => 'records/s', values => [...],
#		peer => 'bare loop', peers => [...], target => '>= 0.60');
#	$report->finish($file, seconds => 80, ...);

package FiniReport;

use strict;
use warnings;

use FiniBench;
use JSON::PP;

sub new { return bless { figures => [] }, $_[0] }

# name, title, unit, values, and for a ratio: peer, peers, target; target_value for the value itself
sub figure
{
	my ($self, %figure) = @_;
	my $value = FiniBench::median(@{ $figure{values} });
	my $peer = $figure{peers} ? FiniBench::median(@{ $figure{peers} }) : undef;
	my $ratio = defined $peer && $peer != 0 ? $value / $peer : undef;
	my $met;

	for my $pair ([ $figure{target}, $ratio ], [ $figure{target_value}, $value ])
	{
		my ($target, $is) = @$pair;
		next if !defined $target;
		my ($sign, $bound) = split ' ', $target;
		$met = ($sign eq '<=' ? $is <= $bound : $is >= $bound) ? JSON::PP::true : JSON::PP::false;
	}
	push @{ $self->{figures} }, {
		name => $figure{name}, title => $figure{title}, unit => $figure{unit}, value => round($value), values => [ map { round($_) } @{ $figure{values} } ],
		defined $peer ? (peer => $figure{peer}, peer_value => round($peer), peer_values => [ map { round($_) } @{ $figure{peers} } ], ratio => round($ratio)) : (),
		defined $met ? (target => ($figure{target} // $figure{target_value}), target_of => $figure{target} ? 'ratio' : 'value', met => $met) : () };
	return;
}

# the table to standard output, and all with what else is known of the run to a file
sub finish
{
	my ($self, $json_file, %result) = @_;
	$result{figures} = $self->{figures};
	FiniBench::write_file($json_file, JSON::PP->new->canonical->pretty->utf8->encode(\%result));

	printf "%-50s %16s   %-42s %7s  %s\n", 'figure', '', 'floor or peer', 'ratio', 'wanted';
	for my $f (@{ $result{figures} })
	{
		my $peer = defined $f->{peer} ? sprintf('%s %s', number($f->{peer_value}) . ($f->{unit} ne '' ? " $f->{unit}" : ''), $f->{peer}) : '';
		printf "%-50s %16s   %-42s %7s  %s\n", $f->{title}, number($f->{value}) . ($f->{unit} ne '' ? " $f->{unit}" : ''), $peer,
		  defined $f->{ratio} ? sprintf('%.2f', $f->{ratio}) : '',
		  defined $f->{met} ? "$f->{target}" . ($f->{met} ? '' : '  missed') : '';
	}
	printf "PostgreSQL %s, %d CPUs, %d s; CPU time of programs not ours: %.1f %%\n", $result{server} =~ /^(\S+)/, $result{cpus},
	  $result{seconds}, 100 * $result{foreign_load};
	return;
}

# to four digits that count
sub round
{
	my ($value) = @_;
	return undef if !defined $value;
	return 0 + sprintf('%.4g', $value);
}

sub number
{
	my ($value) = @_;
	return abs($value) >= 1000 ? commas(sprintf '%.0f', $value) : abs($value) >= 100 ? sprintf('%.0f', $value) : sprintf('%.4g', sprintf '%.3g', $value);
}

sub commas
{
	my ($n) = @_;
	1 while $n =~ s/^(\d+)(\d{3})/$1,$2/;
	return $n;
}

1;
