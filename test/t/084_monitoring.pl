# Monitoring as it is shipped: a real exporter, as a role that is a reader and nothing more, has every metric that the
# dashboard and the alerts name, at a price that does not grow with the outbox, and without personal data; the alerts
# fire when they should; a real Prometheus understands every query of the dashboard and has an answer to it.

use strict;
use warnings;

use File::Basename qw(dirname);
use File::Spec;
use FiniTest;
use HTTP::Tiny;
use IPC::Run qw(run start);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = File::Spec->rel2abs(dirname(__FILE__) . '/../..');
my $queries = slurp_file("$top/monitoring/queries.yaml");
my $rules = slurp_file("$top/monitoring/rules.yaml");
my $rules_test = slurp_file("$top/monitoring/rules.test.yaml");
my $dashboard = JSON::PP->new->decode(slurp_file("$top/monitoring/dashboard.json"));
my $page = slurp_file("$top/docs/monitoring.md");
my $rows = $ENV{FINI_MONITORING_ROWS} // 5000;

# --- what the files say of each other ---

my (%metric, %label, $of);
for my $line (split /\n/, $queries)
{
	if ($line =~ /^(\w+):$/) { $of = $1; }
	elsif ($line =~ /^\s+- (\w+): \{ usage: (\w+), description: ".+" \}$/) { $2 eq 'LABEL' ? $label{$1}++ : ($metric{"${of}_$1"} = $2); }
}
cmp_ok(scalar keys %metric, '>=', 40, 'there are metrics');
is_deeply([ grep { ($metric{$_} eq 'COUNTER') ne (/_total$/ ? 1 : '') } keys %metric ], [], 'counters, and nothing else, end in _total');

my @panels = map { $_, @{ $_->{panels} // [] } } @{ $dashboard->{panels} };
my %expression = map { my $p = $_; map { ("$p->{title} $_->{refId}" => $_->{expr}) } @{ $p->{targets} // [] } } @panels;
sub named { return sort { $a cmp $b } keys %{ { map { $_ => 1 } map { /\b(fini_\w+)\b/g } @_ } } }

cmp_ok(scalar @panels, '>=', 15, 'there are panels');
is_deeply([ grep { !$_->{title} || !$_->{gridPos} || !@{ $_->{targets} // [] } } @panels ], [], 'each has a title, a place and queries');
my %id;
is_deeply([ grep { $id{ $_->{id} }++ } @panels ], [], 'and a number of its own');
for my $a (@panels)
{
	my $g = $a->{gridPos};
	for my $b (grep { $_->{id} > $a->{id} } @panels)
	{
		my $h = $b->{gridPos};
		ok(0, "$a->{title} covers $b->{title}")
		  if $g->{x} < $h->{x} + $h->{w} && $h->{x} < $g->{x} + $g->{w} && $g->{y} < $h->{y} + $h->{h} && $h->{y} < $g->{y} + $g->{h};
	}
}
my @variables = map { $_->{query}{query} } grep { $_->{type} eq 'query' } @{ $dashboard->{templating}{list} };
is_deeply([ grep { !$metric{$_} } named(values %expression, @variables) ], [], 'the dashboard names metrics that there are');
my @alerts = $rules =~ /- alert: (\w+)/g;
my ($rule_expressions) = join "\n", $rules =~ /expr: (?:>\n)?((?s:.*?))(?=\n +(?:for|labels):)/g;
is(() = $rules =~ /expr:/g, scalar @alerts, 'each alert has an expression');
is_deeply([ grep { !$metric{$_} } named($rule_expressions) ], [], 'the alerts name metrics that there are');
is_deeply([ grep { $rules_test !~ /(?:alertname="|alertname: )$_\b/ } @alerts ], [], 'for each alert there is a test in which it fires');
is_deeply([ grep { !$metric{$_} } named($rules_test =~ /series: '(\w+)/g) ], [], 'which is fed with metrics that there are');
is_deeply([ grep { $page !~ /^\| `$_` \|/m } @alerts ], [], 'the page has each alert') or diag explain [ grep { $page !~ /^\| `$_` \|/m } @alerts ];
is_deeply([ grep { my $a = $_; !grep { $_ eq $a } @alerts } $page =~ /^\| `(Fini\w+)` \|/mg ], [], 'and no other');

sub program { my ($name) = @_; return (grep { -x } map { "$_/$name" } split(/:/, $ENV{PATH}), qw(/usr/bin /usr/local/bin))[0] }

# --- the alerts ---

SKIP:
{
	my $promtool = program('promtool') or skip 'promtool is not installed (test/setup extras)', 2;
	chdir "$top/monitoring" or die "chdir: $!\n";
	command_ok([ $promtool, 'check', 'rules', 'rules.yaml' ], 'promtool check rules');
	command_ok([ $promtool, 'test', 'rules', 'rules.test.yaml' ], 'promtool test rules');
}

# --- a real scrape ---

my $exporter = program('prometheus-postgres-exporter') // program('postgres_exporter');
if (!$exporter)
{
	SKIP: { skip 'prometheus-postgres-exporter is not installed (test/setup extras)', 1; }
	done_testing();
	exit;
}

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 100 }, gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;
$fini->sql(qq{
	select fini.create_subscription_table('applications'); select fini.attach('applications');
	insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
	select 'secretref' || i, '1234', 1000, 'PASSPORT', 'GBR', 'K' || 1000000 + i, 'MONTAGUE, Romeo ' || i from generate_series(1, $rows) i;
	insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
	values ('secretref', '1234', 0, 'PASSPORT', 'GBR', 'K7654321', 'CAPULET, Juliet');
	select fini.set_deadline('1234', now() + interval '1 day')});
$fini->wait_done;
$fini->sql(q{select fini.reconcile('applications', '1234'); select fini.jwks('agent', now() + interval '300 days')});

# as the page has it
my ($role) = $page =~ /```sql newcomer\n((?s:.*?create role prometheus.*?))```/ or die "no role in monitoring.md\n";
$fini->sql($role);
$fini->sql('vacuum analyze');
sub tuples_read
{
	return $fini->sql(q{select sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) from pg_stat_user_tables where schemaname = 'fini' or relname = 'applications'});
}

my $http = HTTP::Tiny->new(timeout => 30, proxy => undef, http_proxy => undef);
my @started;
END { my $status = $?; $_->kill_kill(grace => 5) for reverse @started; $? = $status; }

sub begin_program
{
	my ($name, @command) = @_;
	my $log = "$PostgreSQL::Test::Utils::log_path/$name.log";
	push @started, start(\@command, '<', \undef, '>', $log, '2>&1');
	return $started[-1];
}

sub scrape
{
	my ($port) = @_;
	my $answer = $http->get("http://127.0.0.1:$port/metrics");
	return $answer->{success} ? $answer->{content} : '';
}

my $port = PostgreSQL::Test::Cluster::get_free_port();
$ENV{DATA_SOURCE_NAME} = 'host=' . $node->host . ' port=' . $node->port . ' user=prometheus dbname=postgres sslmode=disable';
my $running = begin_program('exporter', $exporter, "--web.listen-address=127.0.0.1:$port", "--extend.query-path=$top/monitoring/queries.yaml",
	'--disable-settings-metrics');
$fini->wait_for(sub { scrape($port) =~ /^fini_status_worker_up/m }, 'the exporter to answer');

my $text = scrape($port);
my %scraped = map { $_ => 1 } $text =~ /^(fini_\w+)(?:\{|\s)/mg;
is_deeply([ grep { !$scraped{$_} } sort keys %metric ], [], 'every metric is in the scrape') or diag $text =~ s/^(?!fini_|pg_exporter).*\n//mgr;
is_deeply([ grep { !$metric{$_} } sort keys %scraped ], [], 'and no other of fini\'s');
like($text, qr/^pg_exporter_last_scrape_error 0$/m, 'without errors');
unlike($text, qr/^fini_\w+\{[^}]*\} NaN/m, 'each has a value');

# values, not only names
sub value
{
	my ($name, %with) = @_;
	my $labels = join '', map { "(?=[^}]*\\b$_=\"\Q$with{$_}\E\")" } sort keys %with;
	my ($value) = $text =~ /^$name\{${labels}[^}]*\} (\S+)$/m;
	return $value // 'none';
}
is(value('fini_status_armed') + 0, 1, 'armed');
is(value('fini_ipo_accepted', ipo_id => '1234') + 0, $rows, 'what was accepted');
is(value('fini_ipo_rejected', ipo_id => '1234') + 0, 1, 'what was rejected');
is(value('fini_endpoint_entries_total', endpoint => 'subscriptions/add') + 0, $rows, 'what was sent');
is(value('fini_reconcile_discrepancies', relation => 'applications') + 0, 0, 'discrepancies');
my $days = (value('fini_key_expires_timestamp_seconds', profile => 'agent') - time) / 86400;
ok($days > 299 && $days < 301, 'when the key expires') or diag $days;
unlike($text, qr/MONTAGUE|CAPULET|secretref|K7654321|K1000001/, 'no personal data, and no own_ref');

# --- what it costs ---

$fini->sql('select pg_terminate_backend(pid) from pg_stat_activity where usename = \'prometheus\'') ;
$running->kill_kill(grace => 5);
shift @started;
$fini->wait_for(q{select not exists (select from pg_stat_activity where usename = 'prometheus')}, 'the exporter to have gone');
my $before = tuples_read();
for my $query ($queries =~ /query: \|\n((?:    .*\n)+)/g)
{
	my ($rc, undef, $err) = $node->psql('postgres', "$query;", connstr => $node->connstr('postgres') . ' user=prometheus');
	is($rc, 0, 'a query runs by itself') or diag $err;
}
$fini->wait_for(q{select not exists (select from pg_stat_activity where usename = 'prometheus')}, 'the sessions to have gone');
my $read = tuples_read() - $before;
cmp_ok($read, '<', $rows / 10, 'a scrape does not go through the outbox') or diag $read;

# --- Prometheus: the rules load, every query of the dashboard has an answer ---

SKIP:
{
	my $prometheus = program('prometheus') or skip 'Prometheus is not installed (test/setup extras)', 2;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $web = PostgreSQL::Test::Cluster::get_free_port();
	append_to_file("$dir/prometheus.yml", <<"END");
global: { scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }
rule_files: [ "$top/monitoring/rules.yaml" ]
scrape_configs:
  - job_name: postgres
    static_configs: [ { targets: [ "127.0.0.1:$port" ] } ]
END
	begin_program('exporter2', $exporter, "--web.listen-address=127.0.0.1:$port", "--extend.query-path=$top/monitoring/queries.yaml", '--disable-settings-metrics');
	begin_program('prometheus', $prometheus, "--config.file=$dir/prometheus.yml", "--storage.tsdb.path=$dir/data", "--web.listen-address=127.0.0.1:$web");

	# two samples make a rate
	my $ask = sub {
		my ($query) = @_;
		my $answer = $http->get("http://127.0.0.1:$web/api/v1/query?" . $http->www_form_urlencode({ query => $query }));
		return $answer->{content} =~ /^\{/ ? decode_json($answer->{content}) : { status => $answer->{content} };
	};
	$fini->wait_for(sub {
		my $answer = $ask->('min(count_over_time(fini_endpoint_calls_total[1m]))');
		return $answer->{status} eq 'success' && @{ $answer->{data}{result} } && $answer->{data}{result}[0]{value}[1] >= 3;
	}, 'Prometheus to have scraped');
	my @unanswered;
	for my $name (sort keys %expression)
	{
		my $query = $expression{$name} =~ s/\$__rate_interval/1m/gr =~ s/\$\w+/.*/gr;
		my $answer = $ask->($query);
		push @unanswered, "$name: $query: " . encode_json($answer) unless $answer->{status} eq 'success' && @{ $answer->{data}{result} };
	}
	is_deeply(\@unanswered, [], 'every query of the dashboard has an answer');
	my $loaded = decode_json($http->get("http://127.0.0.1:$web/api/v1/rules")->{content});
	is_deeply([ map { $_->{name} } map { @{ $_->{rules} } } @{ $loaded->{data}{groups} } ], \@alerts, 'and it has the rules');
}

done_testing();
