# FiniWorld: the server, the sandbox gateway and the tables that all measurements draw from.
#
#	my $world = FiniWorld->new(work => $dir, here => 'test/bench', bin => $dir, rows => 100_000);
#	$world->fill(20_000);									# queued, the worker is paused
#	my $spent = $world->drain(20_000);						# seconds, and the CPU time of everybody
#	$world->setting('fini.rate_limit', 480);
#
# fini is looked at through what its documents promise (fini.status, fini.submission, fini.request, the
# applications themselves). Which tables lie below is read from the catalog, where their size is the question.
# Everything dies with the reason when it cannot do what it says.

package FiniWorld;

use strict;
use warnings;

use FiniBench;
use FiniSandbox;
use JSON::PP;
use Time::HiRes qw(sleep time);

my $DATABASE = 'brokerage';
my $COLUMNS = 'own_ref, ipo_id, app_quantity, firm_id, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi, id_list';

# rows: in table "source"   conf: more lines for postgresql.conf
sub new
{
	my ($class, %opt) = @_;
	my $self = bless { %opt, columns => $COLUMNS, private => [], began => time }, $class;

	my $sandbox = $self->{sandbox} = FiniSandbox->new(dir => "$opt{work}/gateway", options => [ '--rate-limit', 0, '--token-lifetime', 600 ])->start;
	my $server = $self->{server} = FiniBench::Server->new(
		work => $opt{work}, database => $DATABASE,
		conf => "shared_preload_libraries = 'fini'\nmax_wal_size = 4GB\ncheckpoint_timeout = 1h\nshared_buffers = 256MB\n"
		  . "track_commit_timestamp = on\n" . ($opt{conf} // '')
		  . $sandbox->conf('fini.databases' => $DATABASE, 'fini.rate_limit' => 0));
	my $made = FiniBench::command('perl', "$opt{here}/../data/applications", '--rows', $opt{rows} + 15, '--rejected', "$opt{work}/rejected");
	FiniBench::write_file("$opt{work}/applications", $made);
	$self->psql_file('source.sql', "file=$opt{work}/applications", "rejected=$opt{work}/rejected");

	my $session = $self->{session} = $server->session;
	# what is empty before the first row is what clean_up empties again
	my @tables = $self->tables_of_fini;
	$self->{outbox} = [ grep { $session->value("select exists (select from $_)") eq 'f' } @tables ];
	$self->wait_for('the worker', sub { $self->{worker} = $session->value('select worker_pid from fini.status where token_expires_at is not null') },
		sub { $session->run(q{insert into applications select * from source limit 1}) });
	$self->wait_for('the first row', sub { $session->value(q{select count(*) from applications where fini_state = 'accepted'}) });
	$self->clean_up;
	return $self;
}

sub session { return $_[0]{session} }
sub sandbox { return $_[0]{sandbox} }
sub server { return $_[0]{server} }
sub worker { return $_[0]{worker} }
sub columns { return $_[0]{columns} }
sub version { return $_[0]{session}->value('show server_version') }

# a file of this folder through psql, with variables
sub psql_file
{
	my ($self, $file, @variables) = @_;
	return FiniBench::command('psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', (map { ('-v', $_) } @variables), '-f', "$self->{here}/$file");
}

# the tables of fini's own, qualified
sub tables_of_fini
{
	my ($self) = @_;
	return $self->{session}->run(q{select oid::regclass from pg_class where relnamespace = 'fini'::regnamespace and relkind = 'r' order by relname});
}

sub pause
{
	my ($self) = @_;
	$self->{session}->run(q{select fini.pause('measuring')});
	return;
}

sub resume
{
	my ($self) = @_;
	$self->{session}->run('select fini.resume()');
	return;
}

# empty tables, as if they had never been attached; nothing is under way, but the worker may be looking at them in another order
sub clean_up
{
	my ($self) = @_;
	my $truncate = 'truncate ' . join(', ', 'applications', @{ $self->{outbox} });

	$self->{session}->run("set session_replication_role = replica;
		do \$\$ begin loop begin $truncate; exit; exception when deadlock_detected then null; end; end loop; end \$\$;
		reset session_replication_role");
	return;
}

# at once, for all processes; undef: back to what it was
sub setting
{
	my ($self, $name, $value) = @_;
	$self->{session}->run(defined $value ? "alter system set $name = '$value'" : "alter system reset $name");
	$self->{session}->run('select pg_reload_conf()');
	$self->wait_for("setting $name", sub {
		return 1 if !defined $value;
		my $is = $self->{server}->session->value("select setting from pg_settings where name = '$name'");
		return defined $is && $is eq $value;
	});
	return;
}

# a fresh start with so many rows of "source" queued, and the worker paused; where: which of them
sub fill
{
	my ($self, $rows, $where) = @_;

	$self->pause;
	$self->clean_up;
	$self->{sandbox}->reset;
	$self->{session}->run("insert into applications ($COLUMNS) select $COLUMNS from source @{[ $where ? qq{where $where} : '' ]} limit $rows");
	$self->{session}->run('vacuum analyze ' . join(', ', 'applications', @{ $self->{outbox} }));
	$self->{session}->run('checkpoint');
	return;
}

# The same with any number of rows, all of IPO 1234, with own_refs that are new and hit every index at random; in
# transactions of 100,000. Returns how many seconds that took.
sub fill_many
{
	my ($self, $rows) = @_;
	my $columns = $COLUMNS =~ s/own_ref, ipo_id/gen_random_uuid(), '1234'/r;

	$self->pause;
	$self->clean_up;
	$self->{sandbox}->reset;
	my $began = time;
	for (my $left = $rows; $left > 0; $left -= 100_000)
	{
		$self->{session}->run("insert into applications ($COLUMNS) select $columns from source limit @{[ $left < 100_000 ? $left : 100_000 ]}");
	}
	my $took = time - $began;
	$self->{session}->run('checkpoint');
	return $took;
}

# from fini.resume to the last outcome: seconds, and CPU seconds of worker, server and gateway. Every row has to be
# accepted. each: called, with how many are, about twenty times a second
sub drain
{
	my ($self, $rows, $each) = @_;
	my $session = $self->{session};

	my @worker_before = FiniBench::cpu_seconds($self->{worker});
	my $server_before = FiniBench::server_cpu_seconds($self->{server}->postmaster);
	my $gateway_before = FiniBench::cpu_seconds($self->{sandbox}->pid);
	my $began = $session->value('select extract(epoch from clock_timestamp())');
	$self->resume;
	for (;;)
	{
		my $stats = $self->{sandbox}->stats;
		my $done = $stats->{accepted} + $stats->{rejected};
		$self->remember_memory;
		$each->($done) if $each;
		last if $done >= $rows;
		die "the worker is gone\n", $self->{server}->last_words if !-d "/proc/$self->{worker}";
		sleep 0.05;
	}
	$self->wait_until_nothing_is_open;
	# as good as an error, where nothing was meant to go wrong; but not for us to hide
	my ($again, $why) = split /\t/, ($session->run(q{select count(*), (select last_error from fini.status) from fini.request where attempts > 1}))[0];
	print STDERR "$again requests were sent more than once: ", $why // 'no reason known', "\n" if $again;
	my @worker = FiniBench::cpu_seconds($self->{worker});
	my $server = FiniBench::server_cpu_seconds($self->{server}->postmaster);
	my $gateway = FiniBench::cpu_seconds($self->{sandbox}->pid);
	my ($ended, $accepted) = split /\t/,
	  ($session->run(q{select extract(epoch from max(settled_at)), count(*) filter (where state = 'accepted') from fini.submission}))[0];
	die "$accepted of $rows records were accepted\n" if $accepted != $rows;
	return {
		seconds => $ended - $began,
		worker => $worker[0] - $worker_before[0],
		worker_user => $worker[1] - $worker_before[1],
		server => $server - $server_before,
		gateway => $gateway - $gateway_before };
}

sub wait_until_nothing_is_open
{
	my ($self) = @_;
	$self->wait_for('all outcomes', sub { $self->{session}->value('select queued + sending + unknown = 0 from fini.status') eq 't' });
	return;
}

# after a part that failed: settings as they were, nothing queued, a session of our own
sub start_over
{
	my ($self) = @_;
	my $session = $self->{session} = $self->{server}->session;
	$session->run("select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()");
	$session->run('alter system reset all');
	$session->run('select pg_reload_conf()');
	$self->{sandbox}->config(rateLimit => 0, rateWindow => 60, latency => 0, forgetFields => JSON::PP::false);
	$self->pause;
	$self->clean_up;
	$self->resume;
	return;
}

# until the condition gives true; nudge: tried once beforehand; seconds: how long at most
sub wait_for
{
	my ($self, $what, $condition, $nudge, $seconds) = @_;
	my $deadline = time + ($seconds // 600);
	my $pause = 0.002;

	$nudge->() if $nudge;
	for (;;)
	{
		my $value = $condition->();
		return $value if $value;
		die "waited in vain for $what\n", $self->{server}->last_words if time > $deadline;
		sleep $pause;
		$pause = $pause * 1.5 > 0.1 ? 0.1 : $pause * 1.5;
	}
}

# notes the worker's own memory
sub remember_memory
{
	my ($self) = @_;
	my $private = FiniBench::own_memory($self->{worker}) / 1024;
	my $at = time - $self->{began};

	if (!@{ $self->{private} } || $at - $self->{private}[-1][0] > 0.5)
	{
		push @{ $self->{private} }, [ $at, $private ];
	}
	elsif ($private > $self->{private}[-1][1])
	{
		$self->{private}[-1][1] = $private;
	}
	return;
}

# since the last time it was asked for: [ seconds since the start, MiB ], the largest of each half second
sub take_memories
{
	my ($self) = @_;
	return splice @{ $self->{private} };
}

# CPU seconds of everything that belongs to us: server, gateway, this program and its children that have ended
sub own_cpu
{
	my ($self) = @_;
	my $sum = FiniBench::server_cpu_seconds($self->{server}->postmaster) + FiniBench::cpu_seconds($self->{sandbox}->pid);
	$sum += $_ for times;
	return $sum;
}

1;
