# Torture: carries out a plan (TorturePlan) against a server and a gateway, and kills on the way.
#
# Sessions take their transactions round by round. In each round the gateway has its weather, the aim of
# the round's kill is taken, the kill done, and the time measured until the first acceptance after it.
#
# Aiming needs nothing inside the extension:
#
#	before-claim	a lock on fini.request holds the claim at its last statement
#	after-claim		the same; then synchronous replication to nobody is switched on, and the lock let go: the
#					claim is committed, and the worker waits right there, before it sends
#	sending-...		the gateway holds the request: not processed, processed, or to be processed after the kill
#	answered		the worker is stopped while the gateway answers, so the answer lies unread in its socket
#	before-settle-row, -request		a lock on the users' rows, or on fini.request, holds the settling
#	after-settle	as after-claim
#	finding-out		the gateway holds a page of the look for what is in doubt
#	in-commit		a session's transaction is committed, but its client not told
#
# pg_locks tells which of its transactions the worker is in: a settling counts in fini.tally, a claim has
# fini.queue open and does not.

package Torture;

use strict;
use warnings;

use Carp;
use FiniSandbox;
use JSON::PP;
use List::Util qw(sum0);
use Time::HiRes qw(sleep time);
use TorturePlan;
use TorturePsql;
use TortureServer;

my $REQUEST_TIMEOUT = 2;		# s
my $AIM_TIME = 10;
my $RECOVERY_TIME = 60;
my $DRAIN_TIME = 300;

# work: folder   seed, kills, operations, sessions, minutes   say: code reference for lines of progress
sub new
{
	my ($class, %opt) = @_;
	my $self = bless {
		%opt, killed => {}, aimed => {}, missed => {}, recovery => [], down => [], repeated => 0, committed => 0, rolled_back => 0,
		faults => {}, rounds => 0, refused => [], queue => [ map { [] } 1 .. $opt{sessions} ], current => [], psql => [], retry_at => [] }, $class;
	$self->{plan} = TorturePlan->new(map { $_ => $opt{$_} } qw(seed kills operations sessions));
	return $self;
}

sub run
{
	my ($self) = @_;
	$self->{began} = time;
	$self->_set_up;
	for my $n (0 .. $self->{kills} - 1)
	{
		last if $self->{minutes} && time - $self->{began} > 60 * $self->{minutes};
		$self->_round($self->{plan}->round($n));
		$self->{say}->(sprintf '%4d kills, %d transactions, %.0f s', $n + 1, $self->{committed}, time - $self->{began}) if ($n + 1) % 10 == 0;
	}
	$self->_drain;
	$self->{took} = time - $self->{began};
	return;
}

sub sandbox { return $_[0]{sandbox} }
sub plan { return $_[0]{plan} }

# rows of a query, each a reference to its columns
sub rows
{
	my ($self, $sql) = @_;
	return map { [ split /\|/, $_, -1 ] } @{ $self->_ask($sql) };
}

sub stop
{
	my ($self) = @_;
	$_->close for grep { $_ } @{ $self->{psql} }, @{$self}{qw(control lock probe)};
	$self->{server}->stop('QUIT') if $self->{server};
	$self->{sandbox}->stop if $self->{sandbox};
	return;
}

sub _set_up
{
	my ($self) = @_;
	$self->{sandbox} = FiniSandbox->new(dir => "$self->{work}/gateway", options => [ '--rate-limit', 0, '--latency', 20 ])->start;
	$self->{server} = TortureServer->new(work => $self->{work}, conf => $self->{sandbox}->conf(
		'fini.databases' => 'postgres', 'fini.rate_limit' => 0, 'fini.batch_size' => 25,
		'fini.request_timeout' => "${REQUEST_TIMEOUT}s") . ($self->{conf} // '') . "\n");
	$self->{server}->start;
	$self->_ask('create extension fini; select fini.arm(); create schema torture;'
		  . ' create table torture.done (session int, number int, primary key (session, number)); create table torture.probe (n int)');
	$self->_ask("select fini.create_subscription_table('$_'); select fini.attach('$_')") for @TorturePlan::TABLES;
	$self->_ask($self->{plan}->shared_rows);
	return;
}

sub _round
{
	my ($self, $round) = @_;
	my $sandbox = $self->{sandbox};
	my $began = time;
	my (@now, @later);

	# a third of the work is kept for the time after the kill
	for my $list (@{ $round->{transactions} })
	{
		my $cut = int(@$list * 2 / 3);
		push @now, @{$list}[ 0 .. $cut - 1 ];
		push @later, @{$list}[ $cut .. $#$list ];
	}
	push @{ $self->{refused} }, map { @{ $_->{rejected} } } @now, @later;
	$sandbox->config(rejectOwnRefs => $self->{refused});
	for my $act (@{ $round->{acts} })
	{
		$self->{faults}{$act}++;
		if ($act eq 'skew') { $sandbox->config(clockSkew => ($round->{number} % 2 ? -1 : 1) * 41_000); }
		else { $sandbox->admin('POST', "/$act"); }
	}

	my $weather = sub { $sandbox->faults(@_, @{ $round->{faults} }) };
	my $release = sub { push @{ $self->{queue}[ $_->{session} ] }, $_ for splice @now };
	my $reached = $self->_aim($round, $weather, $release);
	$release->();
	$self->{killed}{ $round->{kill} }++;
	$self->{ $reached ? 'aimed' : 'missed' }{ $round->{aim} }++;
	$self->_kill($round->{kill});
	push @{ $self->{queue}[ $_->{session} ] }, $_ for @later;
	my $first = $self->_recovered($round);
	$sandbox->clear_faults;
	$self->_ask('select fini.resume()');
	$self->{rounds}++;
	$self->_note(sprintf 'round %d: %s at %s%s after %.2f s, down %.2f s, accepted after %s; %s', $round->{number}, $round->{kill}, $round->{aim},
		$reached ? '' : ' (missed)', $self->{killed_at} - $began, $self->{down}[-1], defined $first ? sprintf('%.2f s', $first) : 'nothing',
		join ', ', map { "$_->{endpoint} $_->{action}" . ($_->{count} > 1 ? " x$_->{count}" : '') } @{ $round->{faults} });
	return;
}

# Bring the worker (or a session) to the step and leave it there; whether that has worked.
sub _aim
{
	my ($self, $round, $weather, $release) = @_;
	my $aim = $round->{aim};
	my $server = $self->{server};

	if ($aim eq 'random')
	{
		$weather->();
		$release->();
		$self->_serve_until(sub { 0 }, $round->{delay} / 1000);
		return 1;
	}
	if ($aim eq 'in-commit')
	{
		$weather->();
		$self->_hold_commits or return 0;
		$release->();
		return $self->_serve_until(sub { $self->{victim} = $self->_session_in_commit }, $AIM_TIME);
	}
	if ($aim =~ /-claim$/)
	{
		$weather->();
		$self->_hold_worker('lock table fini.request in share mode', 'claim', $release) or return 0;
		return 1 if $aim eq 'before-claim';
		return $self->_let_commit;
	}
	if ($aim =~ /-settle/)
	{
		$weather->({ endpoint => 'subscriptions/*', action => 'delay', ms => 700 });
		$release->();
		$self->_struck(0) or return 0;
		my $rows = join '; ', map {
			"select from $_ where own_ref in (select s.own_ref from fini.request r, unnest(r.members) m(id) join fini.submission s on s.id = m.id"
			  . " where r.state = 'sending') for update" } @TorturePlan::TABLES;
		$self->_hold_worker($aim eq 'before-settle-row' ? $rows : 'lock table fini.request in share mode',
			$aim eq 'before-settle-row' ? 'write back' : 'settle', sub { }) or return 0;
		return 1 if $aim ne 'after-settle';
		return $self->_let_commit;
	}
	if ($aim eq 'finding-out')
	{
		$weather->({ endpoint => 'subscriptions/*', skip => 1, action => $round->{number} % 2 ? 'drop-after' : 'drop-before' },
			{ endpoint => 'subscriptions/query', action => 'delay', ms => 1500 });
		$release->();
		return $self->_struck(1);
	}

	# sending, and answered
	my %how = (
		'sending-unprocessed' => { action => 'hang-before', ms => 3000 }, 'sending-processed' => { action => 'hang-after', ms => 3000 },
		'sending-late' => { action => 'delay', ms => 1500 + $round->{delay} }, 'answered' => { action => 'delay', ms => 400 });
	my $processed = $self->_processed;
	$weather->({ endpoint => $self->_endpoint($round), skip => $round->{number} % 3, %{ $how{$aim} } });
	$release->();
	$self->_struck(0) or return 0;
	if ($aim eq 'answered')
	{
		$processed = $self->_processed;
		kill 'STOP', $self->_worker_pid or return 0;
		$self->{stopped} = $self->_worker_pid;
	}
	return 1 if $aim !~ /^(answered|sending-processed)$/;
	return $self->_serve_until(sub { $self->_processed > $processed }, 3);
}

# mostly adds, for these are what must not happen twice
sub _endpoint
{
	my ($self, $round) = @_;
	return 'subscriptions/' . (qw(add add * change add invalidate))[ $round->{number} % 6 ];
}

# has the n-th planted fault struck?
sub _struck
{
	my ($self, $n) = @_;
	return $self->_serve_until(sub { $self->{sandbox}->admin('GET', '/faults')->[$n]{hits} }, $AIM_TIME);
}

sub _processed
{
	my ($self) = @_;
	my $stats = $self->{sandbox}->stats;
	return $stats->{entries};
}

# Take locks in a transaction of our own until the worker waits for them in that kind of transaction; those
# of another kind are let through.
sub _hold_worker
{
	my ($self, $locks, $kind, $then) = @_;
	my $until = time + $AIM_TIME;

	while (time < $until)
	{
		my $held = 0;
		$self->_lock_session->send("begin; $locks", sub { $held = defined $_[0] });
		$then->();
		# a session from before the last kill finds out only now
		$self->_serve_until(sub { $held || !$self->{lock}->is_open }, 6) && $held or next;
		my $waits = '';
		$self->_serve_until(sub { ($waits = $self->_worker_waits) ne '' }, $kind eq 'claim' ? 4 : 2);
		return 1 if $waits eq $kind || ($kind eq 'settle' && $waits eq 'write back');
		$self->{lock}->ask('rollback');
	}
	return 0;
}

# what kind of transaction the worker is waiting in for a lock: claim, write back, settle, other; '': it is not
sub _worker_waits
{
	my ($self) = @_;
	my ($row) = $self->_worker_locks;
	return '' if !$row || ($row->[0] // '') ne 'Lock';
	return $row->[4] eq 't' ? 'write back' : $row->[3] eq 't' ? 'settle' : $row->[2] eq 't' ? 'claim' : 'other';
}

sub _worker_locks
{
	my ($self) = @_;
	my $holds = sub {
		"exists (select from pg_locks l where l.pid = a.pid and l.granted and l.mode = 'RowExclusiveLock' and l.relation in ("
		  . join(', ', map { "'$_'::regclass" } @_) . '))' };
	return $self->rows(q{select a.wait_event_type, a.wait_event, } . join(', ', $holds->('fini.queue'), $holds->('fini.tally'),
			$holds->(@TorturePlan::TABLES)) . q{ from pg_stat_activity a where a.backend_type = 'fini worker'});
}

# The worker waits for our lock: from now on commits wait for a standby that does not exist, and the lock
# goes. When the worker waits for the standby, its transaction is in the log and it knows nothing of it.
sub _let_commit
{
	my ($self) = @_;
	$self->_hold_commits or return 0;
	$self->{lock}->send('rollback', sub { });
	return $self->_serve_until(sub { my ($row) = $self->_worker_locks; $row && ($row->[1] // '') eq 'SyncRep' }, 3);
}

sub _hold_commits
{
	my ($self) = @_;
	$self->{server}->aim_conf("synchronous_standby_names = '*'\n");
	$self->{holding} = 1;

	# whether it is in force shows in a commit
	return $self->_serve_until(
		sub {
			my ($row) = $self->rows(q{select wait_event from pg_stat_activity where application_name = 'torture probe'});
			return 1 if $row && ($row->[0] // '') eq 'SyncRep';
			$self->{probe} = TorturePsql->new(name => 'probe', log => "$self->{work}/psql.log") if !$self->{probe} || !$self->{probe}->is_open;
			$self->{probe}->send('insert into torture.probe values (1)', sub { }) if !@{ $self->{probe}{waiting} };
			return 0;
		}, 5);
}

sub _session_in_commit
{
	my ($self) = @_;
	my ($row) = $self->rows(q{select pid from pg_stat_activity where application_name ~ '^torture session' and wait_event = 'SyncRep' limit 1});
	return $row && $row->[0];
}

sub _worker_pid
{
	my ($self) = @_;
	my ($row) = $self->rows('select worker_pid from fini._worker()');
	return $row && $row->[0];
}

sub _kill
{
	my ($self, $how) = @_;
	my $server = $self->{server};
	my ($what, $manner) = split /-/, $how;
	my $pid;

	if ($what eq 'worker')
	{
		# it may just be starting
		$self->_serve_until(sub { $pid = $self->_worker_pid }, 40) or croak 'there is no worker to kill';
	}
	elsif ($what eq 'backend')
	{
		$pid = $self->{victim};
		if (!$pid)
		{
			my ($row) = $self->rows(
				q{select pid from pg_stat_activity where application_name ~ '^torture session' order by state = 'active' desc, pid limit 1});
			$pid = $row && $row->[0];
		}
		# between two of their lives
		$pid //= ($self->rows('select pg_backend_pid()'))[0][0];
	}

	# what is held lets go with the kill, not before
	$self->{killed_at} = time;
	if ($what eq 'server')
	{
		$manner eq 'kill' ? $server->kill_all : $server->stop('QUIT');
		$server->aim_conf('') if delete $self->{holding};
		$self->_forget_sessions;
		$server->start;
	}
	elsif ($manner eq 'kill')
	{
		kill 'KILL', $pid;
		# the postmaster ends all others, and starts again
		$self->_serve_until(sub { !defined $self->{control}->ask('select 1') }, 20) or croak "killing $pid ended nothing";
		$server->aim_conf('') if delete $self->{holding};
	}
	else
	{
		kill 'TERM', $pid;
		kill 'CONT', $pid if $self->{stopped};
		$server->aim_conf('') if delete $self->{holding};
		$self->{lock}->send('rollback', sub { }) if $self->{lock} && $self->{lock}->is_open;
		if ($what eq 'worker')
		{
			$self->_serve_until(sub { my $now = $self->_worker_pid; $now && $now != $pid }, 40) or croak "no new worker after $pid";
		}
	}
	delete @{$self}{qw(stopped victim)};
	$self->_ask('select 1');
	$self->{up_at} = time;
	push @{ $self->{down} }, $self->{up_at} - $self->{killed_at};
	return;
}

# a line for who wants to know how a round went
sub _note
{
	my ($self, $text) = @_;
	open(my $file, '>>', "$self->{work}/rounds.log") or croak "rounds.log: $!";
	print {$file} "$text\n";
	CORE::close($file);
	return;
}

# the time from the server's being up to the first acceptance; undef: there was nothing to accept
sub _recovered
{
	my ($self, $round) = @_;
	my $first;

	return if $round->{kill} eq 'backend-terminate';
	$self->_ask('select 1');
	$self->{control}->notifications;
	$self->_serve_until(
		sub {
			$self->_ask('select 1');
			for my $notice ($self->{control}->notifications)
			{
				$first //= $notice->[0] if $notice->[1] =~ /"accepted":[1-9]/;
			}
			return defined $first || $self->_idle;
		}, $RECOVERY_TIME)
	  or push @{ $self->{complaints} }, "round $round->{number}: nothing accepted within $RECOVERY_TIME s of $round->{kill} at $round->{aim}";
	return undef if !defined $first;
	push @{ $self->{recovery} }, $first - $self->{up_at};
	return $first - $self->{up_at};
}

# nothing to do and nothing open
sub _idle
{
	my ($self) = @_;
	return 0 if grep { @$_ } @{ $self->{queue} };
	return 0 if grep { $_ } @{ $self->{current} };
	my ($row) = $self->rows(q{select queued = 0 from fini.status where not exists (select from fini.request where state in ('sending', 'unknown'))});
	return $row && $row->[0] eq 't';
}

# the end: no more faults, everything done
sub _drain
{
	my ($self) = @_;
	my $began = time;

	$self->{sandbox}->clear_faults;
	$self->_serve_until(sub { !(grep { @$_ } @{ $self->{queue} }) && !(grep { $_ } @{ $self->{current} }) }, $DRAIN_TIME)
	  or croak 'the sessions did not get their transactions done';
	$self->_ask('select fini.resume()');
	my $answer = $self->{control}->ask("select fini.wait(null, '$DRAIN_TIME s')", $DRAIN_TIME + 60);
	$self->{drained} = defined $answer && join('', @$answer) eq 't';
	$self->{drain_took} = time - $began;
	return;
}

# serve the sessions until the condition holds, or for so many seconds; what the condition gave
sub _serve_until
{
	my ($self, $condition, $timeout) = @_;
	my $until = time + $timeout;

	for (;;)
	{
		$self->_serve_sessions;
		TorturePsql::pump(0.01);
		my $value = $condition->();
		return $value if $value;
		return 0 if time > $until;
	}
}

# every session that is free takes its next transaction
sub _serve_sessions
{
	my ($self) = @_;

	for my $s (0 .. $self->{sessions} - 1)
	{
		next if $self->{busy}[$s] || time < ($self->{retry_at}[$s] // 0);
		my $psql = $self->{psql}[$s];
		if (!$psql || !$psql->is_open)
		{
			$psql = $self->{psql}[$s] = TorturePsql->new(name => "session $s", log => "$self->{work}/psql.log");
		}
		my $transaction = $self->{current}[$s];
		my $uncertain = defined $transaction;
		$transaction //= $self->{current}[$s] = shift @{ $self->{queue}[$s] } or next;

		# one that was broken off may have committed all the same
		my $verdict = "select 'committed', count(*) from torture.done where session = $s and number = $transaction->{number}";
		$self->{busy}[$s] = 1;
		$psql->send($uncertain ? $verdict : "$transaction->{sql}$verdict", sub {
			my ($lines) = @_;
			$self->{busy}[$s] = 0;
			my ($count) = map { /^committed\|(\d+)$/ } @{ $lines // [] };
			if (!defined $count)
			{
				# the session is gone; ask again in a new one
				$self->{retry_at}[$s] = time + 0.1;
			}
			elsif ($count || !$transaction->{commits})
			{
				$count ? $self->{committed}++ : $self->{rolled_back}++;
				undef $self->{current}[$s];
			}
			else
			{
				$self->{repeated}++;
				undef $self->{current}[$s];
				unshift @{ $self->{queue}[$s] }, $transaction;
			}
		});
	}
	return;
}

# a query in the controlling session, which is opened again as often as need be
sub _ask
{
	my ($self, $sql) = @_;
	my $until = time + 60;

	while (time < $until)
	{
		if (!$self->{control} || !$self->{control}->is_open)
		{
			$self->{control} = TorturePsql->new(name => 'control', log => "$self->{work}/psql.log");
			if (!defined $self->{control}->ask("set synchronous_commit = local; set lock_timeout = '30s'; listen fini"))
			{
				sleep 0.1;
				next;
			}
		}
		my $answer = $self->{control}->ask($sql);
		return $answer if defined $answer;
		sleep 0.05;
	}
	croak "the server cannot be reached, for: $sql";
}

sub _lock_session
{
	my ($self) = @_;
	if (!$self->{lock} || !$self->{lock}->is_open)
	{
		$self->{lock} = TorturePsql->new(name => 'lock', log => "$self->{work}/psql.log");
		$self->{lock}->send("set synchronous_commit = local; set lock_timeout = '5s'", sub { });
	}
	return $self->{lock};
}

# the server is gone: they need not find out by themselves
sub _forget_sessions
{
	my ($self) = @_;
	for my $psql (grep { $_ } @{ $self->{psql} }, @{$self}{qw(control lock probe)})
	{
		$psql->close;
	}
	return;
}

1;
