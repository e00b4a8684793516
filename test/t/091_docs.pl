# The pages in docs/ say what there is: nothing is missing, nothing is there that has gone. Their examples: 092_examples.pl.

use strict;
use warnings;

use Encode qw(decode_utf8);
use File::Basename qw(basename dirname);
use FiniTest;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = dirname(__FILE__) . '/../..';
my %page = map { $_ => slurp_file("$top/docs/$_.md") } qw(reference architecture operations security);
my $reference = $page{reference};
my $sql = slurp_file("$top/fini--1.0.sql");
my %source = map { basename($_) => slurp_file($_) } glob "$top/src/*.[ch]";

# every page's examples have a database of their own
my $fini = FiniTest->armed_cluster(databases => join(',', sort keys %page), settings => { 'fini.rate_limit' => 0 },
	gateway => [ '--rate-limit', 0 ]);
my $database = 'reference';

sub rows { return map { [ split /\|/, $_, -1 ] } split /\n/, $fini->sql($_[0], database => $database) }

# the rows of all tables of a text, or of its section: cells without the backquotes around them
sub table_rows
{
	my ($text) = @_;
	return map { [ map { s/^\s+|\s+$//gr } split /\|/, $_ =~ s/^\||\|$//gr, -1 ] } $text =~ /^(\|.*\|)$/mg;
}

sub section
{
	my ($title, $page) = @_;
	my ($level, $text) = ($page // $reference) =~ /^(#+) \Q$title\E\n((?s:.*?))(?=^#|\z)/m or return '';
	return $text;
}

# all names in backquotes in the first cells of a text's tables
sub first_cells { return map { $_->[0] =~ /`([^`]+)`/g } table_rows($_[0]) }

# two lists hold the same; says what is missing and what is too much
sub same_names
{
	my ($documented, $existing, $what) = @_;
	my %documented = map { $_ => 1 } @$documented;
	my %existing = map { $_ => 1 } @$existing;
	is_deeply([ sort grep { !$documented{$_} } keys %existing ], [], "$what: all are documented");
	is_deeply([ sort grep { !$existing{$_} } keys %documented ], [], "$what: all that are documented exist");
	return;
}

# --- settings, with default and range ---

my @settings = grep { $_->[0] =~ /^`fini\./ } table_rows(section('Settings'));
same_names([ map { $_->[0] =~ /`(.*)`/ } @settings ], [ map { $_->[0] } rows(q{select name from pg_settings where name like 'fini.%'}) ], 'settings');
for my $row (@settings)
{
	my ($name, $default, $least, $most) = map { /^`(.*)`$/ ? $1 : $_ } @$row;
	my ($boot, $min, $max, $type) = @{ (rows("select boot_val, min_val, max_val, vartype from pg_settings where name = '$name'"))[0] };

	# PostgreSQL reads what the page says, units included
	if ($type eq 'integer')
	{
		is_deeply([ map { (rows("begin; set local $name = '$_'; select setting from pg_settings where name = '$name'"))[0][0] } $default, $least, $most ],
			[ $boot, $min, $max ], "$name: default, least and most");
	}
	else { is($default eq q('') ? '' : $default, $boot, "$name: default"); }
}

# --- functions: arguments, result columns, level ---

my %function = map { my ($name) = $_->[0] =~ /^`fini\.(\w+)\(/; $name ? ($name => $_) : () }
  map { table_rows(section($_)) } 'Building blocks', 'Direct calls', 'Subscription tables', 'Reconciling', 'IPOs and funding', 'Running it';
my @functions = rows(q{
	select p.proname, coalesce((select string_agg(a.name || ' ' || format_type(a.type, null), ', ' order by a.n)
			from unnest(coalesce(p.proargnames, '{}'), coalesce(p.proallargtypes, p.proargtypes::oid[]), coalesce(p.proargmodes, '{}')) with ordinality
				as a(name, type, mode, n) where coalesce(a.mode, 'i') = 'i' and a.type is not null), ''), p.pronargdefaults,
		array_to_string(array(select a.name from unnest(p.proargnames, p.proargmodes) as a(name, mode) where a.mode = 'o'), ' '),
		format_type(p.prorettype, null)
	from pg_proc p where p.pronamespace = 'fini'::regnamespace and p.proname !~ '^_' order by 1});
same_names([ keys %function ], [ map { $_->[0] } @functions ], 'functions');

my @levels = qw(reader submitter operator);
$fini->sql("create role level_$_; select fini.grant_access('level_$_', '$_')", database => $database) for @levels;
for my $wanted (@functions)
{
	my ($name, $arguments, $defaults, $columns, $type) = @$wanted;
	my $row = $function{$name} or next;
	my ($signature) = $row->[0] =~ /^`fini\.\w+\((.*)\)`$/;
	my $said_defaults = () = $signature =~ / DEFAULT /g;

	# not within a default such as '{failed,rejected}'
	my $said = $signature =~ s/ DEFAULT (?:'[^']*'|\w+)//gr =~ s/timestamptz/timestamp with time zone/gr;
	is("$said, $said_defaults with default", "$arguments, $defaults with default", "fini.$name: arguments");
	if ($columns ne '') { is(join(' ', $row->[1] =~ /`(\w+)`/g), $columns, "fini.$name: columns of its result"); }
	else { is($row->[1] =~ s/`//gr, $type, "fini.$name: type of its result"); }

	my ($level) = grep { (rows("select has_function_privilege('level_$_', oid, 'execute') from pg_proc"
			. " where pronamespace = 'fini'::regnamespace and proname = '$name'"))[0][0] eq 't' } @levels;
	is($row->[2], $level // 'superuser', "fini.$name: level");
}

# --- tables and views, each column ---

my @relations = map { $_->[0] } rows(q{select relname from pg_class where relnamespace = 'fini'::regnamespace and relkind in ('r', 'v')});
same_names([ $reference =~ /^### fini\.(\w+)$/mg ], \@relations, 'tables and views');
for my $relation (@relations)
{
	same_names([ first_cells(section("fini.$relation")) ],
		[ map { $_->[0] } rows("select attname from pg_attribute where attrelid = 'fini.$relation'::regclass and attnum > 0 and not attisdropped") ],
		"columns of fini.$relation");
}

# --- states and kinds: the names that the checks of the tables allow ---

sub allowed
{
	my ($constraint) = @_;
	return map { $_->[0] } rows("select (regexp_matches(pg_get_constraintdef(oid), '''([a-z_]+)''', 'g'))[1] from pg_constraint where connamespace = 'fini'::regnamespace and conname = '$constraint'");
}
my ($submission_states, $request_states) = section('States') =~ /(\| submission (?s:.*?))\n\n(\| request (?s:.*))/;
same_names([ first_cells($submission_states) ], [ allowed('submission_state_check') ], 'states of a submission');
same_names([ first_cells($request_states) ], [ allowed('request_state_check') ], 'states of a request');
same_names([ grep { !/fini\./ } first_cells(section('Reconciling')) ], [ allowed('discrepancy_kind_check') ], 'kinds of discrepancy');

# --- errors ---

my %sqlstate = map { /ERRCODE_(\w+)/; my @c = /'(\w)'/g; (join('', @c) => $1) } $source{'error.h'} =~ /^#define (FINI_ERRCODE_.*)/mg;
same_names([ first_cells(section('SQLSTATEs')) ], [ keys %sqlstate ], 'SQLSTATEs');

# codes of our own, in C and in SQL within C or without: words where a code is set
my %codes;
for my $text (values %source, $sql)
{
	$codes{$_}++ for $text =~ /\bproblem\([\w>-]+, "(\w+)"/g;
	$codes{$_}++ for $text =~ /strlcpy\([\w>-]*\bcode, "(\w+)"/g;
	for my $value ($text =~ /\b(?:error_)?code = ([^;]*);/g)
	{
		# a literal, perhaps of a conditional; not an argument
		1 while $value =~ s/\w+\([^()]*\)//;
		$codes{$_}++ for $value =~ /"([a-z_]+)"/g;
	}
	$codes{$_}++ for $text =~ /\berror_code = '(\w+)'/g, $text =~ /coalesce\((?:error_)?code, '(\w+)'\)/g;
}
same_names([ first_cells(section('Error codes in rows')) ], [ keys %codes ], 'codes of our own');

# --- what SQL shows in words: states of runs and of the worker, endpoints, events ---

my %words = (
	'fini.reconcile_run' => [ allowed('reconcile_run_state_check'), allowed('reconcile_run_phase_check') ],
	'fini.status' => [ map { /"(\w+)"/g } $source{'worker_sql.c'} =~ /states\[\] = \{(.*)\};/ ],
	'fini.stat_endpoint' => [ $source{'endpoint.c'} =~ /^\t\[FINI_ENDPOINT_\w+\] = \{"([^"]+)"/mg ],
	'NOTIFY' => [ map { $_->[0] } rows(q{select distinct (regexp_matches(prosrc, '''event'', ''(\w+)''', 'g'))[1] from pg_proc where pronamespace = 'fini'::regnamespace}) ]);
push @{ $words{NOTIFY} }, join('', values %source) =~ /\\"event\\":\\"(\w+)\\"/g, join('', values %source) =~ /fini_outbox_deadline_event\(\w+, "(\w+)"/g;
for my $title (sort keys %words)
{
	my @words = @{ $words{$title} };
	my $text = section($title);
	cmp_ok(scalar @words, '>', 1, "$title: words");
	is_deeply([ grep { $text !~ /[`"]\Q$_\E[`"]/ } @words ], [], "$title: all words are documented");
}

# --- what the worker writes into the log; values are left out ---

my @lines;
for my $text (values %source)
{
	push @lines, $1 while $text =~ /ereport\((?:LOG|WARNING),(?:(?!ereport)(?s:.))*?errmsg\("fini: ((?:[^"\\]|\\.|" INT64_FORMAT ")*)"/g;
}
my %lines = map { s/" INT64_FORMAT "|%\w/\x{2026}/gr =~ s/\\"/"/gr => 1 } @lines;
cmp_ok(scalar(keys %lines), '>', 12, 'lines of the log');
same_names([ map { decode_utf8($_) } first_cells(section('The log, line by line', $page{operations})) ], [ keys %lines ], 'lines of the log');

# --- claims of security, and the tests that show them ---

my $claims = section('The claims, one by one', $page{security});
is_deeply([ grep { !/`\d\d\d_\w+\.pl`|`\w+\.sql`/ } $claims =~ /^(\d+\. (?s:.*?))(?=^\d+\. |^\n|\z)/mg ], [], 'each claim names a test');
is_deeply([ grep { !-e (/\.sql$/ ? "$top/sql/$_" : "$top/test/t/$_") } $claims =~ /`(\w+\.(?:pl|sql))`/g ], [], '... that exists');

# --- NOTIFY ---

my ($example) = section('NOTIFY') =~ /```json\n(.*)\n```/;
sub application
{
	my ($own_ref) = @_;
	return "insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)"
	  . " values ('$own_ref', '1234', 1000, 'PASSPORT', 'GBR', '123456789', 'DOE, Jane');";
}
for my $name (sort keys %page)
{
	$fini->sql("select fini.create_subscription_table('applications'); select fini.attach('applications')", database => $name);
	my (undef, $said) = $fini->try_sql("listen fini; @{[ application($name) ]} select fini.wait(); select 1;", database => $name);
	my ($payload) = $said =~ /notification "fini" with payload "(.*)" received/;
	is_deeply([ sort keys %{ decode_json($payload // '{}') } ], [ sort keys %{ decode_json($example) } ], "the notification is as documented ($name)");
}

# --- comments ---

is_deeply([ rows(q{
	select 'function ' || oid::regprocedure from pg_proc where pronamespace = 'fini'::regnamespace and obj_description(oid, 'pg_proc') is null
	union all select 'relation ' || oid::regclass from pg_class
	where relnamespace = 'fini'::regnamespace and relkind in ('r', 'v') and obj_description(oid, 'pg_class') is null}) ], [], 'everything has a comment');

# --- pages: names, links, files ---

my %exists = map { $_ => 1 } (map { $_->[0] =~ /^`fini\.(\w+)`/ } @settings), (map { $_->[0] } @functions), @relations,
  'throttle', 'stat', 'c',		# files in the data directory, one in src/
 
  (map { $_->[0] } rows(q{select proname from pg_proc where pronamespace = 'fini'::regnamespace}));
for my $name (sort keys %page)
{
	is_deeply([ grep { !$exists{$_} } $page{$name} =~ /\bfini\.(\w+)/g ], [], "$name.md names nothing that does not exist");
	is_deeply([ grep { !-e "$top/docs/$_" } $page{$name} =~ /\]\((\w+\.md|\.\.\/README\.md)/g ], [], "$name.md links to what is there");
}
# places within pages: GitHub's names of headings
my %place;
my %text = map { basename($_) => slurp_file($_) } glob("$top/docs/*.md"), "$top/README.md", "$top/CONTRIBUTING.md";
for my $file (keys %text)
{
	(my $prose = $text{$file}) =~ s/^```(?s:.*?)^```//mg;
	$place{"$file#" . lc($_) =~ s/[^\w -]//gr =~ tr/ /-/r } = 1 for $prose =~ /^#+ (.*)$/mg;
}
for my $file (sort keys %text)
{
	my @places = map { my ($of, $where) = @$_; ($of eq '' ? $file : basename($of)) . "#$where" } map { [ split /#/, $_, 2 ] } $text{$file} =~ /\]\(([\w.\/]*#[^)]+)\)/g;
	is_deeply([ grep { !$place{$_} } @places ], [], "$file leads to headings that exist");
}
same_names([ $page{architecture} =~ /`(\w+\.c)`/g ], [ grep { /\.c$/ } keys %source ], 'files of src/');

# layers: nothing is included from above
my %layer;
my @layers = grep { $_->[1] =~ /\.c`/ } table_rows(section('Files', $page{architecture}));
for my $i (0 .. $#layers) { $layer{$_} = $i for $layers[$i][1] =~ /`(\w+)\.[ch]`/g; }
$layer{http_private} = $layer{http};
my @upward;
for my $file (sort keys %source)
{
	my $name = $file =~ s/\.[ch]$//r;
	push @upward, "$file includes $_.h" for grep { defined $layer{$_} && defined $layer{$name} && $layer{$_} < $layer{$name} } $source{$file} =~ /^#include "(\w+)\.h"/mg;
}
cmp_ok(scalar @layers, '>', 8, 'layers');
is_deeply(\@upward, [ 'settings_check.c includes http.h' ], 'a file includes headers of its own layer and those below');

done_testing();
