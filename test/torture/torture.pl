# torture.pl [--seed N] [--kills N] [--operations N] [--minutes N] [--sessions N]: see docs/torture.md
#
# Called on a stage (test/stage.sh). The same seed plans the same transactions, faults and kills. With
# --minutes the run ends after so many minutes at the latest, whatever is left of the plan.
# Exit status 0 only if both sides agree with the plan.

use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use Getopt::Long;
use JSON::PP;
use List::Util qw(max);
use Torture;
use TortureVerdict;

my %opt = (seed => 1, kills => 60, operations => 15_000, sessions => 4, minutes => 0);
GetOptions(\%opt, 'seed=i', 'kills=i', 'operations=i', 'minutes=f', 'sessions=i', 'conf=s', 'quiet') && !@ARGV
  && $opt{kills} > 0 && $opt{operations} >= $opt{kills} && $opt{sessions} > 0
  or die "usage: torture.pl [--seed N] [--kills N] [--operations N] [--minutes N] [--sessions N] [--conf LINES] [--quiet]\n";
my $stage = $ENV{FINI_STAGE} or die "FINI_STAGE is not set: call test/torture/run\n";
my $torture;

$| = 1;
$SIG{$_} = sub { die "ended by a signal\n" } for qw(INT TERM HUP);
$SIG{PIPE} = 'IGNORE';
exit main();

sub main
{
	my $work = $opt{work} = "$stage/work/torture";
	mkdir $work or die "$work: $!\n";
	$torture = Torture->new(%opt, say => sub { print "  $_[0]\n" if !$opt{quiet} });

	print "seed $opt{seed}: $opt{kills} kills, $opt{operations} operations, $opt{sessions} sessions\n";
	my $ended = eval { $torture->run; 1 };
	my $why = $@;
	if (!$ended)
	{
		print "broken off: $why";
		return 1;
	}
	my $verdict = TortureVerdict->new($torture);
	return report($verdict);
}

sub report
{
	my ($verdict) = @_;
	my $stats = $verdict->{stats};
	my $counts = sub { my ($of) = @_; return join(', ', map { "$_ $of->{$_}" } sort keys %$of) || 'none' };
	my $sum = sub { my $n = 0; $n += $_ for values %{ $_[0] }; return $n };
	my ($submissions) = $torture->rows(q{select count(*), count(*) filter (where operation = 'add'), count(*) filter (where operation = 'change'),
		count(*) filter (where operation = 'invalidate'), coalesce(sum(attempts) filter (where attempts > 1), 0) from fini.submission});
	my ($requests) = $torture->rows(q{select count(*), count(*) filter (where attempts > 1), count(*) filter (where state = 'found_out') from fini.request});

	my @complaints = ($verdict->wrong, @{ $torture->{complaints} // [] });
	print map { sprintf "%-24s %s\n", "$_->[0]:", $_->[1] } (
		[ 'seed', $opt{seed} ],
		[ 'kills', $sum->($torture->{killed}) . ' (' . $counts->($torture->{killed}) . ')' ],
		[ 'of the whole server', ($torture->{killed}{'server-immediate'} // 0) + ($torture->{killed}{'server-kill'} // 0) ],
		[ 'aimed, step reached', $counts->($torture->{aimed}) ],
		[ 'aimed, step missed', $counts->($torture->{missed}) ],
		[ 'faults injected', $sum->($stats->{faults}) . ' (' . $counts->($stats->{faults}) . ')' ],
		[ 'gateway disturbed', $counts->($torture->{faults}) ],
		[ 'refusals', $counts->($stats->{refusals}) ],
		[ 'operations', $torture->plan->operations . " in $torture->{committed} transactions; $torture->{rolled_back} rolled back, $torture->{repeated} repeated" ],
		[ 'submissions', "$submissions->[0]: add $submissions->[1], change $submissions->[2], invalidate $submissions->[3]" ],
		[ 'requests', "$requests->[0]; sent more than once $requests->[1], found out $requests->[2]" ],
		[ 'rows', scalar keys %{ $verdict->{local} } ],
		[ 'records at FINI', "$stats->{records}, active $stats->{active}" ],
		[ 'lost', $verdict->count('lost') ],
		[ 'twice', max($verdict->count('twice'), $stats->{duplicates}, $stats->{duplicate_adds}) ],
		[ 'out of order', max($verdict->count('order'), $stats->{out_of_order}) ],
		[ 'disagreements', $verdict->count('disagree') ],
		[ 'record IDs that differ', $verdict->count('record_ids_differ') . ' of ' . $verdict->count('record_ids') ],
		[ 'repeated request IDs', "$stats->{repeated_request_ids} (refused by the gateway)" ],
		[ 'server down', spread($torture->{down}) ],
		[ 'up to first accepted', spread($torture->{recovery}) ],
		[ 'time', sprintf('%.0f s, of it %.0f s for what was open at the end', $torture->{took}, $torture->{drain_took}) ]);

	push @complaints, "the gateway counts $stats->{$_} $_" for grep { $stats->{$_} } qw(duplicates duplicate_adds out_of_order);
	print "  $_\n" for @complaints > 60 ? (@complaints[ 0 .. 59 ], '... ' . (@complaints - 60) . ' more') : @complaints;
	if (@complaints)
	{
		open(my $file, '>', "$opt{work}/complaints.log");
		print {$file} "$_\n" for @complaints;
		evidence($verdict->{records}, @complaints);
	}
	print @complaints ? "NOT as it should be\n" : "nothing lost, nothing twice, nothing out of order, both sides agree\n";
	return @complaints ? 1 : 0;
}

# of the first own_refs that something is wrong with: their operations, and the gateway's records
sub evidence
{
	my ($records, @complaints) = @_;
	my %seen;
	my @refs = grep { !$seen{$_}++ } map { /\b(s\d+-(?:refused-)?\d+|shared-\d+)\b/ ? $1 : () } @complaints;
	@refs = @refs[ 0 .. 19 ] if @refs > 20;
	return if !@refs;
	my $list = join ', ', map { "'$_'" } @refs;

	open(my $file, '>', "$opt{work}/evidence.log");
	print {$file} join('|', @$_), "\n" for $torture->rows(
		"select id, own_ref, operation, state, record_id, request_id, attempts, error_code, error_message, created_at, sent_at, settled_at from fini.submission where own_ref in ($list) order by own_ref, id");
	print {$file} join('|', @$_), "\n" for $torture->rows(
		"select distinct r.* from fini.request r join fini.submission s using (request_id) where s.own_ref in ($list)");
	my $json = JSON::PP->new->utf8->canonical;
	for my $ref (@refs)
	{
		print {$file} $json->encode($_), "\n" for grep { $_->{ownRef} eq $ref } @{ $records };
	}
	return;
}

sub spread
{
	my ($values) = @_;
	my @sorted = sort { $a <=> $b } @$values;
	return 'none' if !@sorted;
	return sprintf 'median %.2f s, 95 %% %.2f s, longest %.2f s', map { $sorted[ int($_ * $#sorted + 0.5) ] } 0.5, 0.95, 1;
}

END
{
	my $status = $?;
	$torture->stop if $torture;
	$? = $status;
}
