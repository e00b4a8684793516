# FiniReport: figures, each beside its floor or peer, kept in a JSON file part by part, and printed as one table.
#
#	my $report = FiniReport->load($file);					# or FiniReport->new
#	$report->begin('seal');									# forgets what an earlier run said of this part
#	$report->figure(name => 'seal', title => 'sealing', unit => 'records/s', values => [...],
#		peer => 'bare loop', peers => [...], target => '>= 0.60');
#	$report->series(name => 'latency', points => [ [ x, y ], ... ]);
#	$report->end(seconds => 80, ...);
#	$report->save($file);
#	$report->print;

package FiniReport;

use strict;
use warnings;

use FiniBench;
use JSON::PP;

my $json = JSON::PP->new->canonical->pretty->utf8;

sub new { return bless { parts => [] }, $_[0] }

sub load
{
	my ($class, $file) = @_;
	return bless $json->decode(FiniBench::slurp($file)), $class;
}

sub save
{
	my ($self, $file) = @_;
	FiniBench::write_file($file, $json->encode({%$self}));
	return;
}

# a part keeps its place when it is measured again
sub begin
{
	my ($self, $name) = @_;
	my ($part) = grep { $_->{name} eq $name } @{ $self->{parts} };

	push @{ $self->{parts} }, $part = {} if !$part;
	%$part = (name => $name, figures => [], series => {});
	$self->{current} = $part;
	return;
}

# server, seconds, foreign_load, quick, error
sub end
{
	my ($self, %how) = @_;
	my $part = delete $self->{current};
	$part->{$_} = $how{$_} for keys %how;
	return;
}

# take over the parts of another report, in place of our own of these names
sub take
{
	my ($self, $other, $order) = @_;
	my %theirs = map { $_->{name} => $_ } @{ $other->{parts} };
	my %rank = map { $order->[$_] => $_ } 0 .. $#$order;

	$self->{parts} = [ sort { ($rank{ $a->{name} } // 99) <=> ($rank{ $b->{name} } // 99) }
		(grep { !$theirs{ $_->{name} } } @{ $self->{parts} }), values %theirs ];
	return;
}

# Name, title, unit, values, and for a ratio: peer, peers, target; target_value for the value itself. Where subject
# and peer took turns closely enough to be compared pair by pair, paired => 1: the ratio is the median of theirs.
sub figure
{
	my ($self, %figure) = @_;
	my @values = @{ $figure{values} };
	my @peers = @{ $figure{peers} // [] };
	my $value = FiniBench::median(@values);
	my $peer = FiniBench::median(@peers);
	my $ratio = defined $peer && $peer != 0 ? $value / $peer : undef;
	my $met;

	$ratio = FiniBench::median(map { $values[$_] / $peers[$_] } 0 .. $#peers) if $figure{paired};
	for my $pair ([ $figure{target}, $ratio ], [ $figure{target_value}, $value ])
	{
		my ($target, $is) = @$pair;
		next if !defined $target || !defined $is;
		my ($sign, $bound) = split ' ', $target;
		$met = ($sign eq '<=' ? $is <= $bound : $is >= $bound) ? JSON::PP::true : JSON::PP::false;
	}
	push @{ $self->{current}{figures} }, {
		name => $figure{name}, title => $figure{title}, unit => $figure{unit} // '', value => rounded($value), values => [ map { rounded($_) } @values ],
		defined $peer ? (peer => $figure{peer}, peer_value => rounded($peer), peer_values => [ map { rounded($_) } @peers ], ratio => rounded($ratio)) : (),
		defined $met ? (target => ($figure{target} // $figure{target_value}), target_of => $figure{target} ? 'ratio' : 'value', met => $met) : () };
	return;
}

# for the plots; further keys go along
sub series
{
	my ($self, %series) = @_;
	my $name = delete $series{name};
	$series{points} = [ map { [ map { rounded($_, 6) } @$_ ] } @{ $series{points} } ];
	$self->{current}{series}{$name} = \%series;
	return;
}

sub print
{
	my ($self) = @_;
	my $line = "%-62s %18s   %-46s %6s   %s\n";

	printf $line, 'figure', '', 'floor or peer', 'ratio', 'wanted';
	for my $part (@{ $self->{parts} })
	{
		printf "\n-- %s: PostgreSQL %s, %d CPUs, %s%.0f s; programs not ours took %.1f %% of the CPU time%s\n", $part->{name}, $part->{server} // '?',
		  $part->{cpus} // 0, $part->{quick} ? 'quick, ' : '', $part->{seconds} // 0, 100 * ($part->{foreign_load} // 0),
		  $part->{error} ? "\n   NOT MEASURED: " . join "\n   ", split /\n/, $part->{error} : '';
		for my $f (@{ $part->{figures} })
		{
			printf $line, $f->{title}, with_unit($f->{value}, $f->{unit}),
			  defined $f->{peer} ? with_unit($f->{peer_value}, $f->{unit}) . " $f->{peer}" : '', defined $f->{ratio} ? sprintf('%.2f', $f->{ratio}) : '',
			  defined $f->{met} ? $f->{target} . ($f->{met} ? '' : '  missed') : '';
		}
	}
	return;
}

sub with_unit { my ($value, $unit) = @_; return number($value) . ($unit ne '' ? " $unit" : '') }

# to so many digits that count
sub rounded
{
	my ($value, $digits) = @_;
	return undef if !defined $value;
	return 0 + sprintf '%.*g', $digits // 4, $value;
}

sub number
{
	my ($value) = @_;
	return '?' if !defined $value;
	return abs($value) >= 1000 ? commas(sprintf '%.0f', $value) : abs($value) >= 100 ? sprintf('%.0f', $value) : sprintf('%.4g', sprintf '%.3g', $value);
}

sub commas
{
	my ($n) = @_;
	1 while $n =~ s/^(\d+)(\d{3})/$1,$2/;
	return $n;
}

1;
