# Every example in docs/ runs. How a page marks them: CONTRIBUTING.md.

use strict;
use warnings;

use File::Basename qw(basename dirname);
use FiniTest;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $docs = dirname(__FILE__) . '/../../docs';
my %page = map { basename($_, '.md') => slurp_file($_) } glob "$docs/*.md";
my %blocks;		# page to a list of [ line, kind, argument, SQL ]
my @cron_pages;

# --- what there is; whatever is not marked is an error ---

for my $name (sort keys %page)
{
	my $statement = qr/(?:select|insert|update|delete|create|alter|drop|set|begin|commit|call|do|with|listen|copy|grant|revoke) /i;
	my (@unmarked, $open);
	my $number = 0;

	for my $line (split /\n/, $page{$name})
	{
		$number++;
		if ($open)
		{
			if ($line =~ /^```\s*$/) { push @{ $blocks{$name} }, $open if $open->[1]; undef $open; }
			elsif ($open->[1] eq '' && $open->[2] ne 'not run' && $line =~ /^$statement.*;\s*$/) { push @unmarked, "$number: $line"; }
			else { $open->[3] .= "$line\n"; }
		}
		elsif ($line =~ /^```(.*)/)
		{
			my $mark = $1 =~ s/\s+$//r;
			$open = [ $number, '', '', '' ];
			if ($mark =~ /^sql (run|newcomer|cron|trading)$/) { $open->[1] = $1; }
			elsif ($mark =~ /^sql fails ([0-9A-Z]{5})$/) { @{$open}[ 1, 2 ] = ('fails', $1); }
			elsif ($mark =~ /^sql not run: ./) { $open->[2] = 'not run'; note "$name.md:$number: $mark"; }
			elsif ($mark =~ /sql/i) { push @unmarked, "$number: ```$mark"; }
		}
		# SQL that is only indented would slip through
		elsif ($line =~ /^ {4}$statement/)
		{
			push @unmarked, "$number: $line";
		}
	}
	is_deeply(\@unmarked, [], "$name.md: every example says what is to happen") or diag "$name.md:", explain \@unmarked;
	ok(!$open, "$name.md: every block ends");
	push @cron_pages, $name if grep { $_->[1] eq 'cron' } @{ $blocks{$name} // [] };
}
cmp_ok(scalar @cron_pages, '<=', 1, 'pg_cron runs in one database') or diag "@cron_pages";
cmp_ok(scalar map({ @$_ } values %blocks), '>=', 20, 'there are examples');

# --- run them ---

my @names = sort keys %blocks;
my $cron = @cron_pages ? FiniTest->cron_conf($cron_pages[0]) : undef;

# a second key of the agent's, registered beside the first
my $second = "$PostgreSQL::Test::Utils::tmp_check/agent-2.pem";
FiniSandbox::make_rsa_key($second);
FiniSandbox::write_file("$second.jwks", encode_json({ keys => [ map { @{ FiniSandbox::jwks($_)->{keys} } } "$ENV{FINI_TEST_KEYS}/agent.pem", $second ] }));

my $fini = FiniTest->new(databases => join(',', @names), settings => { 'fini.rate_limit' => 0 },
	gateway => [ '--rate-limit', 0, '--agent-jwks', "$second.jwks" ], conf => $cron // "max_worker_processes = 40\n");
my $node = $fini->node;

# the trading database of the examples, on a server that knows nothing of fini
my $trading;
if (grep { $_->[1] eq 'trading' } map { @$_ } values %blocks)
{
	$trading = PostgreSQL::Test::Cluster->new('trading');
	$trading->init(allows_streaming => 'logical');
	$trading->start;
	$trading->safe_psql('postgres', 'create database orders');
	$trading->safe_psql('orders', q{create table applications (own_ref text primary key, ipo_id text not null, app_quantity bigint, id_type text,
		id_country_jurisdiction text, id_num text, full_name_eng text, full_name_chi text, id_list jsonb)});
}

# what the examples name and a test has otherwise
sub stand_ins
{
	my ($sql, $page) = @_;
	$sql =~ s{/etc/postgresql/fini/agent-2\.pem}{$second}g;
	$sql =~ s{\bdatabase brokerage\b}{database $page}g;
	$sql =~ s{host=trading dbname=}{@{[ $trading->connstr ]} dbname=}g if $trading;
	return $sql;
}
my $funding = $fini->admin('GET', '/funding');

for my $name (@names)
{
	$fini->sandbox->reset;
	$fini->sandbox->funding(@$funding);
	$node->safe_psql('postgres', "create database $name");
	$fini->sql(q{create extension fini; select fini.arm(); select fini.create_subscription_table('applications'); select fini.attach('applications')},
		database => $name);
	for my $block (@{ $blocks{$name} })
	{
		my ($line, $kind, $wanted, $sql) = @$block;
		my $what = "$name.md:$line";

	  SKIP:
		{
			skip "$what: pg_cron is not installed", 1 if $kind eq 'cron' && !$cron;
			my ($rc, undef, $err) = $kind eq 'trading' ? $trading->psql('orders', $sql, on_error_stop => 1) :
			  $fini->try_sql(stand_ins($sql, $name), database => $name);
			if ($kind eq 'fails') { ok($rc != 0 && $err =~ /ERROR:  \Q$wanted\E:/, "$what fails with $wanted") or diag $err; }
			else { is($rc, 0, "$what runs") or diag $err; }
		}
	}
	next unless $cron && grep { $_ eq $name } @cron_pages;

	# what has been scheduled, and unscheduled on the page again, is right as well
	my %command = map { split /\|/, $_, 2 } split /\n/, $fini->sql(
		q{select jobname, format('set role %I; %s', username, translate(command, e'\n', ' ')) from cron.job order by jobid}, database => $name);
	# by whom it is scheduled there
	for my $block (@{ $blocks{$name} })
	{
		my $role = $block->[3] =~ /set role fini_jobs/ ? 'set role fini_jobs; ' : '';
		$command{"line $block->[0], $_"} = "$role$_" for $block->[3] =~ /cron\.schedule\([^\$]*\$\$(select fini(?s:.*?))\$\$/g;
	}
	cmp_ok(scalar keys %command, '>=', 5, "$name.md has jobs");
	for my $job (sort keys %command)
	{
		# one that is still at work in the background is no error of the next
		$fini->wait_for(sub { $fini->sql(q{select not exists (select from fini.reconcile_run where state = 'running')}, database => $name) eq 't' },
			'reconciling to end');
		my ($rc, undef, $err) = $fini->try_sql($command{$job}, database => $name);
		is($rc, 0, "$name.md: the job works: $job") or diag $err;
	}
}

# --- names ---

my %exists = map { $_ => 1 } split /\n/, $fini->sql(q{
	select substr(name, 6) from pg_settings where name like 'fini.%'
	union select proname from pg_proc where pronamespace = 'fini'::regnamespace
	union select relname from pg_class where relnamespace = 'fini'::regnamespace
	union select 'throttle'});		# a file in the data directory
for my $name (@names)
{
	my $sql = join "\n", map { $_->[3] } @{ $blocks{$name} };
	is_deeply([ grep { !$exists{$_} } $page{$name} =~ /`fini\.(\w+)/g, $sql =~ /\bfini\.(\w+)/g ], [], "$name.md names nothing that does not exist");
	is_deeply([ grep { !-e "$docs/$_" } $page{$name} =~ /\]\(((?:\.\.\/)?\w+\.md)/g ], [], "$name.md links to what is there");
}

done_testing();
