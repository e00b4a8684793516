# fuzz.pl TARGET...: runs fuzz targets on a stage (see test/fuzz/run), two at a time, and counts.
#
# Each target has a data directory of its own, a copy of one made beforehand, since the fuzzer ends the
# single-user backend that it runs in.

use strict;
use warnings;

use File::Basename qw(basename dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use lib dirname(__FILE__);
use Seeds;

$| = 1;
my $stage = $ENV{FINI_STAGE} or die "FINI_STAGE is not set: call test/fuzz/run\n";
my $found = dirname(__FILE__) . '/found';
my ($runs, $seconds) = @ENV{qw(FINI_FUZZ_RUNS FINI_FUZZ_SECONDS)};
my $data = "$stage/work/template";
my ($executions, $findings) = (0, 0);
my $at_once = $ENV{FINI_TEST_JOBS} // 2;
my @targets = @ARGV;
my %running;

make_template();
while (@targets || %running)
{
	while (@targets && keys %running < $at_once)
	{
		my $target = shift @targets;
		my $pid = fork() // die "fork: $!\n";
		exit(fuzz($target)) if $pid == 0;
		$running{$pid} = $target;
	}
	my $pid = wait;
	report(delete $running{$pid}, $?) if $running{$pid};
}
print "$executions executions, $findings findings\n";
exit($findings || !$executions ? 1 : 0);

sub make_template
{
	system("initdb -D $data -U fuzz -A trust -E UTF8 --no-locale --no-sync >$stage/work/initdb.log 2>&1") == 0
	  or die "initdb failed: see $stage/work/initdb.log\n";
	open(my $conf, '>>', "$data/postgresql.conf") or die "$data: $!\n";
	print $conf "shared_preload_libraries = 'fini'\nfsync = off\nmax_stack_depth = '1MB'\nlog_min_messages = fatal\n";
	close $conf;
	backend($data, "$stage/work/template.log", <<"END") == 0 or die "no template: see $stage/work/template.log\n";
create extension fini
select fini.create_subscription_table('public.fuzzed')
create function public.fini_fuzz(target text, arguments text[]) returns int language c as '\$libdir/fini', 'fini_sql_fuzz'
END
	return;
}

# in a process of its own
sub fuzz
{
	my ($target) = @_;
	my $dir = "$stage/work/$target";
	my $corpus = "$stage/work/corpus/$target";

	make_path($dir, $corpus);
	system('cp', '-R', $data, "$dir/data") == 0 or return 2;
	Seeds::write($target, $corpus);
	copy($_, "$corpus/" . basename($_)) for glob "$found/$target/*";
	my @arguments = ("-runs=$runs", '-max_len=4096', '-rss_limit_mb=4000', '-timeout=30', '-print_final_stats=1',
		'-handle_int=0', '-handle_term=0', "-artifact_prefix=$dir/", '-verbosity=0',
		(-s Seeds::dictionary($target, "$dir/dictionary") ? "-dict=$dir/dictionary" : ()),
		$seconds ? "-max_total_time=$seconds" : (), $corpus);
	return backend("$dir/data", "$dir/fuzz.log", "select public.fini_fuzz('$target', '{" . join(',', map { "\"$_\"" } @arguments) . "}')\n");
}

# one statement a line in a single-user backend
sub backend
{
	my ($directory, $log, $statements) = @_;

	local $ENV{LD_PRELOAD} = $ENV{FINI_ASAN};
	local $ENV{ASAN_OPTIONS} = 'detect_leaks=0:abort_on_error=1:handle_abort=0:allocator_may_return_null=1:detect_odr_violation=0';
	local $ENV{UBSAN_OPTIONS} = 'print_stacktrace=1';
	open(my $pipe, '|-', "postgres --single -D $directory postgres >>$log 2>&1") or return 2;
	print $pipe $statements;
	return close($pipe) ? 0 : 1;
}

sub report
{
	my ($target, $status) = @_;
	my $dir = "$stage/work/$target";
	my $log = slurp("$dir/fuzz.log");
	my ($count) = $log =~ /stat::number_of_executed_units:\s+(\d+)/;
	my ($rate) = $log =~ /stat::average_exec_per_sec:\s+(\d+)/;
	my @artifacts = glob "$dir/crash-* $dir/oom-* $dir/timeout-* $dir/leak-*";

	$executions += $count // 0;
	if ($status == 0 && defined $count && !@artifacts)
	{
		printf "%-14s %9d executions, %6d a second, %5d inputs kept\n", $target, $count, $rate, scalar(() = glob "$stage/work/corpus/$target/*");
		return;
	}
	$findings++;
	printf "%-14s FINDING (status %d)\n", $target, $status >> 8;
	my @lines = grep { /broken:|ERROR|SUMMARY|runtime error|#\d+ |FATAL|PANIC/ } split /\n/, $log;
	print map { "  $_\n" } @lines[0 .. ($#lines < 29 ? $#lines : 29)];
	return;
}

sub slurp
{
	my ($file) = @_;
	open(my $fh, '<:raw', $file) or return '';
	local $/ = undef;
	return <$fh> // '';
}
