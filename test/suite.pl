# suite.pl [TEST ...]: runs the tests on a stage (see stage.sh) and counts them.
#
# Called by test/run as the account that servers run as. Every regression file, every isolation spec
# and every single TAP test, those within subtests included, counts as one. The last line printed is
# "N passed, N failed"; the exit status is 0 only if none failed and some passed.

use strict;
use warnings;

use File::Basename qw(basename dirname);
use File::Path qw(make_path);
use FiniSandbox;
use POSIX qw(WNOHANG);
use TAP::Harness;

$| = 1;
my $stage = $ENV{FINI_STAGE} or die "FINI_STAGE is not set: call test/run\n";
my $tree = "$stage/tree";
my $work = "$stage/work";
my $pgxs = dirname(dirname(dirname($ENV{PG_REGRESS})));
my ($bindir) = split /:/, $ENV{PATH};
my $deadline = $ENV{FINI_TEST_DEADLINE} // 900;
my $until = $ENV{FINI_TEST_UNTIL};		# seconds since the epoch: TAP tests not begun by then are skipped
my $again = $ENV{FINI_TEST_AGAIN} // 0;		# how often a TAP test that failed has to pass by itself to count as passed
my ($passed, $failed, $skipped) = (0, 0, 0);
my (@not_reached, @unsteady);

# a group of our own, so that a signal can be handed on to every test and to nothing else
setpgrp(0, 0);
$SIG{$_} = \&give_up for qw(INT TERM HUP);
main(@ARGV);

sub main
{
	my @wanted = map { s{^.*?((?:sql|specs|t)/[^/]+)$}{$1}r } @_;
	my @sql = choose('sql', 'sql', @wanted);
	my @specs = choose('specs', 'spec', @wanted);
	my @tap = choose('t', 'pl', @wanted);

	for my $name (@wanted)
	{
		next if grep { $_ eq $name } @sql, @specs, @tap;
		print "no such test: $name\n";
		$failed++;
	}
	make_path(@ENV{qw(TESTDATADIR TESTLOGDIR PG_TEST_PORT_DIR)});
	FiniSandbox::make_keys($ENV{FINI_TEST_KEYS});

	regress('regression', 'contrib_regression', "$ENV{PG_REGRESS}", @sql) if @sql;
	regress('isolation', 'isolation_regression', "$pgxs/test/isolation/pg_isolation_regress", @specs) if @specs;
	tap(@tap) if @tap;

	print "unsteady, failed at first and then passed $again times: $_\n" for @unsteady;
	print "not reached within the time: @not_reached\n" if @not_reached;
	print "$skipped skipped\n" if $skipped;
	print "$passed passed, $failed failed\n";
	exit($failed || !$passed ? 1 : 0);
}

# the files of a folder, or those of them that were asked for
sub choose
{
	my ($folder, $suffix, @wanted) = @_;
	my $from = $folder eq 't' ? "$tree/test" : $tree;
	my @files = map { "$folder/" . basename($_) } sort glob "$from/$folder/*.$suffix";
	return @files unless @wanted;
	return grep { my $file = $_; grep { $_ eq $file } @wanted } @files;
}

# pg_regress and its sister for isolation tests: a cluster of their own, with a gateway beside it
sub regress
{
	my ($what, $database, $program, @files) = @_;
	my $output = "$work/$what";
	my @names = map { s/\.\w+$//r } map { basename($_) } @files;
	my %open = map { $_ => 1 } @names;

	print "# $what tests\n";
	make_path($output);
	my $sandbox = FiniSandbox->new(dir => "$work/gateway_$what")->start;
	FiniSandbox::write_file("$output/fini.conf",
		"shared_preload_libraries = 'fini'\nfsync = off\nmax_prepared_transactions = 10\n"
		  . $sandbox->conf('fini.databases' => $database));

	my $out = run_lines(
		$program, "--temp-instance=$output/instance", "--temp-config=$output/fini.conf", "--bindir=$bindir",
		"--inputdir=$tree", "--outputdir=$output", "--dbname=$database", '--encoding=UTF8', '--no-locale', @names);
	$sandbox->stop;

	# up to PostgreSQL 15 "test name ... ok", from 16 on TAP; what was not reported has failed
	for my $line (@$out)
	{
		my ($name, $ok);
		if ($line =~ /^test (\S+)\s+\.\.\. (\w+)/) { ($name, $ok) = ($1, $2 eq 'ok'); }
		elsif ($line =~ /^(not )?ok \d+\s+[-+] (\S+)/) { ($name, $ok) = ($2, !$1); }
		next unless defined $name && delete $open{$name};
		$ok ? $passed++ : $failed++;
	}
	$failed += keys %open;
	print "not run to the end: @{[ sort keys %open ]}\n" if %open;

	my $diffs = "$output/regression.diffs";
	$diffs = "$output/output_iso/regression.diffs" unless -s $diffs;
	if (-s $diffs && open(my $fh, '<', $diffs))
	{
		print while <$fh>;
	}
	return;
}

# TAP: one process a file
sub tap
{
	my (@files) = @_;
	print "# TAP tests\n";
	chdir "$tree/test" or die "$tree/test: $!\n";
	my %outcome = run_files($ENV{FINI_TEST_JOBS} // 1, @files);

	for my $file (grep { $outcome{$_}{failed} } @files)
	{
		my @repeated = repeat($file);
		next if !@repeated || grep { $_->{failed} || !$_->{passed} } @repeated;
		push @unsteady, $file;
		$outcome{$file} = $repeated[-1];
	}
	for my $outcome (values %outcome)
	{
		$passed += $outcome->{passed};
		$failed += $outcome->{failed};
		$skipped += $outcome->{skipped};
	}
	return;
}

# A machine that stands still for seconds can fail a test whose deadlines are generous. So one that failed is given
# another chance, if that is wanted: alone, until it fails again or has passed so many times. Both are said, and what
# it wrote the first time is kept.
sub repeat
{
	my ($file) = @_;
	my @outcomes;

	for my $n (1 .. $again)
	{
		my $place = "$work/again_$n";
		local @ENV{qw(TESTDIR TESTDATADIR TESTLOGDIR)} = ($place, "$place/data", "$place/log");
		last if $until && time >= $until;
		print "# $file again, alone\n";
		make_path(@ENV{qw(TESTDATADIR TESTLOGDIR)});
		my %outcome = run_files(1, $file);
		push @outcomes, $outcome{$file};
		return @outcomes if $outcome{$file}{failed};
	}
	return @outcomes == $again ? @outcomes : ();
}

# what came of each: passed, failed, skipped
sub run_files
{
	my ($jobs, @files) = @_;
	my %outcome = map { $_ => { passed => 0, failed => 0, skipped => 0 } } @files;
	my $harness = SuiteHarness->new({
		lib => [ split /:/, $ENV{PERL5LIB} ], merge => 0, failures => 1, timer => 1,
		jobs => $jobs, verbosity => 0, color => 0,
		exec => sub {
			my (undef, $file) = @_;
			return undef if !$until || time < $until;
			push @not_reached, $file;
			return "1..0 # SKIP the time was used up\n";
		} });

	$harness->callback(made_parser => sub {
		my ($parser, $test) = @_;
		my @seen;		# tests seen at each depth since the last one of the depth above

		$parser->callback(ALL => sub { count_line($_[0]->raw, \@seen, $outcome{ $test->[0] }) });
	});
	my $result = eval { $harness->runtests(@files) };
	if (!$result)
	{
		print "the tests were broken off: $@";
		$failed++;
		return %outcome;
	}

	# a file that died, or ran fewer tests than it had planned, fails even if every line it printed is ok
	for my $file ($result->descriptions)
	{
		my ($parser) = $result->parsers($file);
		show_log($file) if $parser->has_problems;
		$outcome{$file}{skipped}++ if defined $parser->skip_all;
		next if !$parser->has_problems || grep { 1 } $parser->failed;
		print "$file: ", ($parser->parse_errors ? join('; ', $parser->parse_errors) : 'exit status ' . $parser->exit), "\n";
		$outcome{$file}{failed}++;
	}
	return %outcome;
}

# a test file that gives up does so for itself alone
{
	package SuiteHarness;
	use parent -norequire, 'TAP::Harness';

	sub _bailout
	{
		my ($self, $result) = @_;
		print 'gave up: ', $result->explanation, "\n";
		return;
	}
}

# the end of what a test that failed wrote, where the reason for its death is
sub show_log
{
	my ($file) = @_;
	my $name = basename($file, '.pl');
	my ($log) = grep { -s } map { "$_/regress_log_$name" } $ENV{TESTLOGDIR}, "$ENV{TESTDIR}/tmp_check/log";
	return unless defined $log && open(my $fh, '<', $log);
	my @lines = <$fh>;
	print "# the end of the log of $file\n", map { "# $_" } @lines > 40 ? @lines[ -40 .. -1 ] : @lines;
	return;
}

# Count one line of TAP in the outcome of its file. The line that sums up a subtest counts only if the subtest's own lines do
# not account for it.
sub count_line
{
	my ($line, $seen, $outcome) = @_;
	my ($indent, $not, $rest) = $line =~ /^((?: {4})*)(not )?ok\b(.*)/ or return;
	my $depth = length($indent) / 4;
	my $inner = $seen->[ $depth + 1 ];

	splice @$seen, $depth + 1;
	$seen->[$depth] //= { count => 0, failed => 0 };
	$seen->[$depth]{count}++;
	$seen->[$depth]{failed}++ if $not;
	if ($inner)
	{
		$outcome->{failed}++ if $not && !$inner->{failed};
	}
	elsif ($rest =~ /# skip\b/i) { $outcome->{skipped}++; }
	elsif ($not) { $outcome->{failed}++; }
	else { $outcome->{passed}++; }
	return;
}

# run a program, printing what it says as it says it; the lines come back
sub run_lines
{
	my (@command) = @_;
	my @lines;

	my $child = open(my $out, '-|') // die "fork: $!\n";
	if ($child == 0)
	{
		open(STDERR, '>&', \*STDOUT);
		{ no warnings; exec { $command[0] } @command; }
		print "cannot run $command[0]: $!\n";
		exit 127;
	}
	local $SIG{ALRM} = sub {
		print "did not end within $deadline s\n";
		kill 'TERM', $child;
	};
	alarm $deadline;
	while (my $line = <$out>)
	{
		print $line;
		push @lines, $line;
	}
	close $out;
	alarm 0;
	return \@lines;
}

# end the tests, which then end what they started
sub give_up
{
	$SIG{$_} = 'IGNORE' for qw(INT TERM HUP);
	kill 'TERM', 0;
	my $until = time + 20;
	until (waitpid(-1, WNOHANG) < 0 || time > $until)
	{
		select undef, undef, undef, 0.05;
	}
	# not die: an eval of the harness would catch it and start the next test
	print "ended by a signal\n";
	exit 1;
}
