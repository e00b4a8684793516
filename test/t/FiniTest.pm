# FiniTest: a cluster with the extension and a gateway that it talks to, for TAP tests.
#
#	use FiniTest;
#	use Test::More;
#
#	my $fini = FiniTest->armed_cluster;				# gateway, cluster, create extension, fini.arm()
#	$fini->new_table('applications');
#	$fini->insert_rows('applications', 'A', 1000);
#	$fini->wait_done;
#	is($fini->stats->{accepted}, 1000, 'all accepted');
#	done_testing();
#
# Run through `make test`, or for one file `test/run t/name.pl`. The environment is set by test/run: the
# private installation is first in PATH, FINI_GATEWAY names the gateway, FINI_TEST_KEYS the keys.
#
# The gateway starts with the IPOs 1234, 3456 and 5678 open and 9012 closed. What this module started is
# ended when the test ends, however it ends.

package FiniTest;

use strict;
use warnings;

use Carp;
use File::Basename ();
use FiniSandbox;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

# a test file that hangs fails with a message instead of holding up everything
my $file_deadline = $ENV{FINI_TEST_DEADLINE} // 900;
$SIG{ALRM} = sub { die "the test did not end within $file_deadline s\n" };
alarm $file_deadline;
$SIG{$_} = sub { die "ended by a signal\n" } for qw(TERM INT HUP);

my $count = 0;
my @nodes;

# name: of the node (main)
# databases: fini.databases (postgres)		database: where sql() goes (the first of them)
# sandbox: share that of another FiniTest	gateway: options for the gateway	ipos: its IPOs
# settings: { 'fini.batch_size' => 10, 'fini.ca_file' => undef (left out) }
# conf: further lines of postgresql.conf	init: arguments for $node->init
# install_path: another installation of PostgreSQL
# start: 0 to leave the server stopped
sub new
{
	my ($class, %opt) = @_;
	my $databases = $opt{databases} // 'postgres';
	my ($first) = split /\s*,\s*/, $databases;
	my $name = $opt{name} // ($count++ ? "main$count" : 'main');

	my $self = bless {
		database => $opt{database} // $first,
		sandbox => $opt{sandbox} // FiniSandbox->new(
			dir => "$PostgreSQL::Test::Utils::tmp_check/gateway_" . _file_name() . "_$name",
			options => $opt{gateway} // [],
			$opt{ipos} ? (ipos => $opt{ipos}) : ())->start,
	}, $class;

	my $node = $self->{node} = PostgreSQL::Test::Cluster->new($name,
		$opt{install_path} ? (install_path => $opt{install_path}) : ());
	# collation and encoding do not depend on the caller's locale
	$node->init(extra => [ '-E', 'UTF8', '--locale=C' ], %{ $opt{init} // {} });
	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = 'fini'\n"
		  . $self->{sandbox}->conf('fini.databases' => $databases, %{ $opt{settings} // {} })
		  . "log_min_messages = info\nfsync = off\n"
		  . ($opt{conf} // '')
		  . "\n");
	push @nodes, $node;
	$node->start unless defined $opt{start} && !$opt{start};
	return $self;
}

# the same, with the extension in every database of fini.databases, armed
sub armed_cluster
{
	my ($class, %opt) = @_;
	my $self = $class->new(%opt);

	for my $database (split /\s*,\s*/, $opt{databases} // 'postgres')
	{
		$self->{node}->safe_psql('postgres', qq{create database "$database"})
		  unless $self->{node}->safe_psql('postgres', qq{select 1 from pg_database where datname = '$database'});
		$self->{node}->safe_psql($database, 'create extension fini; select fini.arm()');
	}
	return $self;
}

sub node { return $_[0]{node} }
sub sandbox { return $_[0]{sandbox} }
sub database { return $_[0]{database} }

# the gateway's, see FiniSandbox
sub admin { my $self = shift; return $self->{sandbox}->admin(@_) }
sub stats { my $self = shift; return $self->{sandbox}->stats(@_) }
sub dump { my $self = shift; return $self->{sandbox}->dump(@_) }
sub faults { my $self = shift; return $self->{sandbox}->faults(@_) }
sub clear_faults { my $self = shift; return $self->{sandbox}->clear_faults(@_) }
sub config { my $self = shift; return $self->{sandbox}->config(@_) }
sub refusals { my $self = shift; return $self->{sandbox}->refusals(@_) }

# settings for pg_cron beside fini, for conf; nothing when this PostgreSQL has no pg_cron. More than eight
# processes are needed, and it may run jobs through connections, to the socket.
sub cron_conf
{
	my ($class, $database, %opt) = @_;
	my ($sharedir) = `pg_config --sharedir` =~ /(.*)/;

	return undef unless -f "$sharedir/extension/pg_cron.control";
	return "shared_preload_libraries = 'fini,pg_cron'\nmax_worker_processes = 40\ncron.database_name = '$database'\n"
	  . 'cron.use_background_workers = ' . ($opt{background_workers} // 'on') . "\n";
}

# run statements as superuser; the result as psql -At prints it; dies when they fail
sub sql
{
	my ($self, $query, %opt) = @_;
	return $self->{node}->safe_psql($opt{database} // $self->{database}, $query, timeout => $opt{timeout} // _timeout());
}

# the same for a query giving one JSON value: decoded (wrap it: select jsonb_agg(t) from (...) t)
sub sql_json
{
	my ($self, $query, %opt) = @_;
	my $text = $self->sql($query, %opt);
	return $text eq '' ? undef : JSON::PP->new->utf8->allow_nonref->decode($text);
}

# statements that may fail: (exit status of psql, standard output, standard error with SQLSTATEs)
sub try_sql
{
	my ($self, $query, %opt) = @_;
	my ($rc, $out, $err) = $self->{node}->psql(
		$opt{database} // $self->{database}, "\\set VERBOSITY verbose\n$query",
		timeout => $opt{timeout} // _timeout(), on_error_stop => 1);
	return ($rc, $out, $err);
}

# a test: the statements fail and the error (SQLSTATE, message, detail and hint) matches
sub sql_fails
{
	my ($self, $query, $pattern, $name, %opt) = @_;
	my ($rc, $out, $err) = $self->try_sql($query, %opt);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $rc != 0 ? like($err, $pattern, $name) : ok(0, "$name: no error, but \"$out\"");
}

# Wait until the condition gives true, and return what it gave. The condition is a code reference, or a
# query that must answer t. Dies at the deadline, saying what was waited for.
sub wait_for
{
	my ($self, $condition, $what, $timeout) = @_;
	my $deadline = time + ($timeout // _timeout());
	my $pause = 0.01;

	for (;;)
	{
		my $value = ref $condition ? $condition->() : $self->sql($condition) eq 't';
		return $value if $value;
		croak 'waited in vain for ' . ($what // $condition) . $self->situation if time > $deadline;
		sleep $pause;
		$pause = $pause * 1.5 > 0.25 ? 0.25 : $pause * 1.5;
	}
}

# create and attach tables with the standard columns
sub new_table
{
	my ($self, @tables) = @_;
	$self->sql("select fini.create_subscription_table('$_'); select fini.attach('$_')") for @tables;
	return;
}

# $n good rows with the own_refs ${prefix}1, ${prefix}2, ...; ipo: 1234
sub insert_rows
{
	my ($self, $table, $prefix, $n, $ipo, %opt) = @_;
	$ipo //= '1234';
	$self->sql(qq{
		insert into $table (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$prefix' || i, '$ipo', 1000, 'PASSPORT', 'GB', 'P' || i, 'Name ' || i from generate_series(1, $n) i}, %opt);
	return;
}

# wait until nothing is open any more, for one IPO or all
sub wait_done
{
	my ($self, $ipo_id, $timeout) = @_;
	my $which = defined $ipo_id ? " and ipo_id = '$ipo_id'" : '';
	return $self->wait_for(
		"select not exists (select from fini.submission where state in ('queued', 'sending', 'unknown')$which)",
		'all submissions to be settled', $timeout);
}

# number of submissions by state, as a hash
sub states
{
	my ($self, $where) = @_;
	my $query = 'select state, count(*) from fini.submission' . (defined $where ? " where $where" : '') . ' group by 1';
	return { map { split /\|/ } split /\n/, $self->sql($query) };
}

# put the gateway's records into a table, one jsonb a row in column r, to compare them in SQL
sub load_dump
{
	my ($self, $table, %filter) = @_;
	my $file = "$self->{sandbox}{dir}/dump.ndjson";
	FiniSandbox::write_file($file, $self->{sandbox}->dump_raw(%filter));
	# JSON holds no raw control characters, so these leave every line whole
	$self->sql("set client_min_messages = warning; drop table if exists $table; create table $table (r jsonb not null);"
		  . " set client_encoding = 'UTF8';"
		  . " copy $table from '$file' (format csv, delimiter e'\\x02', quote e'\\x01')");
	unlink $file;
	return;
}

# Compare a table of standard columns with the gateway's active records, field by field: the differences,
# one "own_ref|field" each, none if both sides agree. See test/data/compare.sql.
sub compare
{
	my ($self, $table) = @_;
	$self->load_dump('gateway_dump', active => 1);
	my $query = PostgreSQL::Test::Utils::slurp_file(File::Basename::dirname(__FILE__) . '/../data/compare.sql');
	return split /\n/, $self->sql("\\set table $table\n$query");
}

# the server's log from a position on; position() before, log_since() after
sub log_position { my ($self) = @_; return -s $self->{node}->logfile // 0 }
sub log_since { my ($self, $from) = @_; return PostgreSQL::Test::Utils::slurp_file($self->{node}->logfile, $from // 0) }

# what a reader of a failed test wants to know first
sub situation
{
	my ($self) = @_;
	my (undef, $states) = $self->{node}->psql($self->{database},
		"select coalesce(string_agg(format('%s %s %s: %s', operation, state, coalesce(error_code, ''), n), ', '), 'none')"
		  . ' from (select operation, state, error_code, count(*) n from fini.submission group by 1, 2, 3) s');
	my $refusals = eval { JSON::PP->new->canonical->encode($self->refusals) } // 'no answer';
	return "\nsubmissions: " . ($states // 'no answer') . "\nrefusals by the gateway: " . substr($refusals, -500) . "\n";
}

sub _timeout { return $PostgreSQL::Test::Utils::timeout_default }

sub _file_name
{
	my ($name) = $0 =~ m{([^/]+?)(?:\.[^./]*)?$};
	return $name;
}

# a TAP file must not outlive its servers, and its exit status must not be ours
END
{
	my $status = $?;
	alarm 0;
	# what is counted is written down by a process that ends, not by one that is ended at once, as nodes are by default
	if ($ENV{FINI_TEST_COVERAGE})
	{
		eval { $_->stop('fast', fail_ok => 1) } for grep { defined $_->{_pid} } @nodes;
	}
	$? = $status;
}

1;
