# sqlsmith.pl [--queries N] [--seed N] [--role ROLE]...: sqlsmith against the extension, on a stage (see test/sqlsmith/run).
#
# sqlsmith makes statements out of the catalog, which has three thousand functions beside the extension's. So that its
# calls are mostly of ours, it gets to see another pg_proc by its search path: the extension's functions, and of
# PostgreSQL's own those that are immutable, aggregates and window functions. Each statement is rolled back by it.
#
# What fails the run: a process that crashes or an assertion, a server that starts anew, an internal error (SQLSTATE
# XX...) raised by the extension, a role with no right to anything that gets through to a function, a worker that does
# not work any more. The last line is "N statements, N findings".

use strict;
use warnings;

use FiniSandbox;
use FiniTest;
use Getopt::Long;
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Utils;
use Test::More ();
use Time::HiRes qw(sleep time);

my ($queries, $seed, @roles) = (20_000, time % 100_000);
GetOptions('queries=i' => \$queries, 'seed=i' => \$seed, 'role=s' => \@roles) && !@ARGV or die "usage: run [--queries N] [--seed N] [--role ROLE]...\n";
@roles = qw(superuser nobody reader submitter operator) unless @roles;

alarm 0;
# the library for tests has standard output for its log
my $report = Test::More->builder->output;
local $SIG{__DIE__} = sub { print $report @_ unless $^S };
FiniSandbox::make_keys($ENV{FINI_TEST_KEYS});
my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.request_timeout' => 2000 }, gateway => [ '--rate-limit', '0' ],
	conf => "log_min_messages = warning\nlog_min_error_statement = error\nlog_error_verbosity = verbose\nlog_line_prefix = '%u %e '\ntrack_functions = all\n"
	  . "max_stack_depth = '1MB'\nwork_mem = '1MB'\n");
$fini->sql(q{
	create role superuser login superuser; create role nobody login; create role reader login; create role submitter login; create role operator login;
	select fini.grant_access(r::regrole, r) from unnest('{reader,submitter,operator}'::text[]) r;
	create table public.anybodys (a int, t text, j jsonb, b bytea, z timestamptz, i interval, ts text[]);
	grant all on public.anybodys to public;
	insert into anybodys select i, repeat('x', i), '{"ownRef":"a"}', '\x00', now(), '1 ms', '{a,b}' from generate_series(1, 3) i;
	select fini.create_subscription_table('applications');
	grant all on applications to public;
	insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select 'e' || i, '1234', 1000, 'PASSPORT', 'GBR', 'P' || i, 'DOE, Jane' from generate_series(1, 20) i;
	select fini.attach('applications'), fini.submit('applications');
	create schema seen;
	create view seen.pg_proc as select * from pg_catalog.pg_proc p where pronamespace = 'fini'::regnamespace
		or pronamespace = 'pg_catalog'::regnamespace and (prokind <> 'f' or provolatile = 'i' and prorettype = any ('{text,int4,int8,bool,jsonb,json,bytea,timestamptz,interval,text[]}'::regtype[])
			and proname !~ '^(pg_|bt|hash|gin|gist|brin|spg)')
			and not exists (select from unnest(proargtypes) a (t) join pg_type y on y.oid = t where typtype = 'p');
	grant usage on schema seen to public; grant select on seen.pg_proc to public});
$fini->wait_done;
my $start = $fini->sql('select pg_postmaster_start_time()');
my $calls = $fini->sql(q{select count(*) from pg_proc where pronamespace = 'fini'::regnamespace});
my $from = $fini->log_position;

my %running;
for my $n (0 .. $#roles)
{
	my $role = $roles[$n];
	my $pid = fork() // die "fork: $!\n";
	if ($pid == 0)
	{
		open(STDOUT, '>', "$ENV{FINI_STAGE}/work/sqlsmith_$role.log");
		open(STDERR, '>&', \*STDOUT);
		exec 'sqlsmith', '--verbose', '--exclude-catalog', "--max-queries=$queries", '--seed=' . ($seed + $n),
		  '--target=' . $fini->node->connstr('postgres') . " user=$role options='-c search_path=seen,public,pg_catalog'"
		  or exit 127;
	}
	$running{$pid} = $role;
}
my ($statements, @findings) = 0;
while (%running)
{
	my $pid = waitpid(-1, WNOHANG);
	if ($pid <= 0)
	{
		# a time-out of the session would hit sqlsmith's own questions, which take longer than its statements may
		eval { $fini->sql(q{select pg_cancel_backend(pid) from pg_stat_activity where usename = any ('{superuser,nobody,reader,submitter,operator}')
			and state = 'active' and query_start < now() - interval '300 ms' and query !~ 'pg_proc|pg_type|pg_operator|information_schema|pg_attribute|pg_constraint'}) };
		sleep 0.3;
		next;
	}
	my $role = delete $running{$pid} // next;
	my $status = $?;
	my $said = PostgreSQL::Test::Utils::slurp_file("$ENV{FINI_STAGE}/work/sqlsmith_$role.log");
	my ($done) = reverse $said =~ /^queries: (\d+)/mg;
	my ($failed) = reverse $said =~ /error rate: ([\d.e-]+)/g;
	# it stops at the limit with its report of every thousandth still outstanding
	$done = $queries if $status == 0;
	$statements += $done // 0;
	print $report sprintf("%-10s %7d statements, seed %d, status %d, rate of errors %s\n", $role, $done // 0, $seed, $status >> 8, $failed // 'not said');
	push @findings, "sqlsmith as $role ended: " . substr($said, -300) if $status;
}

# what the server has to say of it
my $log = $fini->log_since($from);
my (%states, %internal);
my @lines = split /\n/, $log;
for my $i (0 .. $#lines)
{
	my ($role, $state, $message) = $lines[$i] =~ /^(\w+) (\w{5}) ERROR:  (.*)/ or next;
	$states{$role}{$state}++;
	next unless $state =~ /^XX/;
	# the place follows within a few lines; PostgreSQL's own internal errors are not ours
	my ($place) = grep { defined } map { $lines[$_] && $lines[$_] =~ /LOCATION:\s+(.*)/ ? $1 : undef } $i + 1 .. $i + 12;
	my ($file) = ($place // '') =~ /, (\S+\.c):/;
	$internal{"$state $message ($place)"}++ if defined $file && -e "$ENV{FINI_STAGE}/tree/src/" . ($file =~ s{.*/}{}r);
}
for my $role (@roles)
{
	my %of = %{ $states{$role} // {} };
	my @most = sort { $of{$b} <=> $of{$a} || $a cmp $b } keys %of;
	print $report sprintf("%-10s errors: %s\n", $role, join ' ', map { "$_:$of{$_}" } @most[0 .. ($#most < 14 ? $#most : 14)]);
}
my ($tried, $times) = split /\|/, $fini->sql(q{select count(*), sum(calls) from pg_stat_user_functions where schemaname = 'fini'});
print $report "functions of the extension called: $tried of $calls, $times times\n";
push @findings, map { "internal error $_, $internal{$_} times" } sort keys %internal;
push @findings, "the log: $_" for grep { /TRAP:|was terminated by signal|PANIC|exited with exit code/ } @lines;
push @findings, 'the server has started anew' if eval { $fini->sql('select pg_postmaster_start_time()') } ne $start;
push @findings, 'functions have come or gone' if $fini->sql(q{select count(*) from pg_proc where pronamespace = 'fini'::regnamespace}) != $calls;
eval {
	$fini->sql(q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		values ('last', '3456', 1000, 'PASSPORT', 'GBR', 'P99', 'DOE, Jane')});
	$fini->wait_done('3456');
	$fini->sql(q{select state from fini.submission where own_ref = 'last'}) eq 'accepted';
} or push @findings, "the worker does not work any more: $@";
print $report map { "FINDING: $_\n" } @findings;
print $report "$statements statements, ${\ scalar @findings} findings\n";
$fini->node->stop;
exit(@findings || !$statements ? 1 : 0);
