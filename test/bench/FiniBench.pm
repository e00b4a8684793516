# FiniBench: what the benchmarks need of a server, of the kernel's accounts and of arithmetic.
#
#	my $server = FiniBench::Server->new(work => $dir, conf => $lines);	# started; stopped at the end
#	my $session = $server->session;
#	$session->run('insert ...');										# one psql, one backend
#	my ($rows) = $session->value('select count(*) from t');
#	my $cpu = FiniBench::cpu_seconds($pid);								# user and system time so far
#
# Everything dies with the reason when it cannot do what it says.

package FiniBench;

use strict;
use warnings;

use POSIX ();

my $ticks = POSIX::sysconf(POSIX::_SC_CLK_TCK());

# user and system time of a process, its threads included: their sum, then each
sub cpu_seconds
{
	my ($pid) = @_;
	my ($user, $system) = @{ _stat($pid) }[ 11, 12 ];
	return wantarray ? (($user + $system) / $ticks, $user / $ticks, $system / $ticks) : ($user + $system) / $ticks;
}

# CPU time of a process's main thread in nanoseconds, for spans that the clock ticks of the above are too coarse for;
# exact while it waits
sub cpu_ns
{
	my ($pid) = @_;
	my ($ns) = slurp("/proc/$pid/schedstat") =~ /^(\d+)/ or die "/proc/$pid/schedstat cannot be read\n";
	return $ns;
}

# of a server: the postmaster, its children and those that have ended
sub server_cpu_seconds
{
	my ($postmaster) = @_;
	my $stat = _stat($postmaster);
	my $sum = $stat->[11] + $stat->[12] + $stat->[13] + $stat->[14];

	for my $process (glob '/proc/[0-9]*')
	{
		my ($pid) = $process =~ /(\d+)$/;
		my $child = eval { _stat($pid) } or next;
		$sum += $child->[11] + $child->[12] if $child->[1] == $postmaster;
	}
	return $sum / $ticks;
}

# A process's own memory in kB, now. Shared buffers do not count, not even those that nobody else has touched yet: the
# kernel calls these private, too.
sub own_memory
{
	my ($pid) = @_;
	my ($kb) = slurp("/proc/$pid/status") =~ /^RssAnon:\s*(\d+)/m or die "/proc/$pid/status cannot be read\n";
	return $kb;
}

# seconds that all CPUs together spent on anything, and idle, since boot
sub machine_seconds
{
	my @fields = slurp('/proc/stat') =~ /^cpu\s+([\d ]+)/ ? split(' ', $1) : die "/proc/stat cannot be read\n";
	my $idle = $fields[3] + $fields[4];
	my $all = 0;
	$all += $_ for @fields[ 0 .. 7 ];
	return (($all - $idle) / $ticks, $all / $ticks);
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	return undef if !@sorted;
	my $middle = int(@sorted / 2);
	return @sorted % 2 ? $sorted[$middle] : ($sorted[ $middle - 1 ] + $sorted[$middle]) / 2;
}

# the smallest value that p percent of all do not exceed
sub percentile
{
	my ($p, @values) = @_;
	my @sorted = sort { $a <=> $b } @values;
	my $rank = POSIX::ceil($p / 100 * @sorted);
	return $sorted[ $rank < 1 ? 0 : $rank - 1 ];
}

# run a program; its output comes back; dies, with all that it said, when it fails
sub command
{
	my (@command) = @_;
	my $said = '';
	my $pid = open(my $out, '-|') // die "fork: $!\n";
	if ($pid == 0)
	{
		POSIX::dup2(1, 2) if $command[0] ne 'pgbench';
		{ no warnings; exec { $command[0] } @command; }
		print STDERR "cannot run $command[0]: $!\n";
		POSIX::_exit(127);
	}
	$said = do { local $/; <$out> } // '';
	close $out or die "$command[0] failed: @command[1 .. $#command]\n$said";
	return $said;
}

sub write_file
{
	my ($file, $text) = @_;
	open(my $fh, '>:raw', $file) or die "$file: $!\n";
	print {$fh} $text;
	close $fh or die "$file: $!\n";
	return;
}

# fields of /proc/PID/stat behind the name: state, ppid, ... utime is the twelfth
sub _stat
{
	my ($pid) = @_;
	my ($rest) = slurp("/proc/$pid/stat") =~ /.*\)\s+(.*)/s or die "/proc/$pid/stat cannot be read\n";
	return [ split ' ', $rest ];
}

sub slurp
{
	my ($file) = @_;
	open(my $fh, '<', $file) or die "$file: $!\n";
	local $/;
	return <$fh> // '';
}

package FiniBench::Server;

use strict;
use warnings;

my @started;

# work: a directory of the account that runs this   conf: lines for postgresql.conf   database: made
sub new
{
	my ($class, %opt) = @_;
	my $self = bless { data => "$opt{work}/pg", log => "$opt{work}/pg.log", socket => "$opt{work}/s" }, $class;

	mkdir $self->{socket} or die "$self->{socket}: $!\n";
	FiniBench::command('initdb', '-D', $self->{data}, '-A', 'trust', '-U', 'postgres', '-E', 'UTF8', '--locale=C', '-N');
	open(my $conf, '>>', "$self->{data}/postgresql.conf") or die "postgresql.conf: $!\n";
	print {$conf} "listen_addresses = ''\nunix_socket_directories = '$self->{socket}'\n$opt{conf}";
	close $conf or die "postgresql.conf: $!\n";

	push @started, $self;
	# pg_ctl's standard output would otherwise stay open in the server
	system("pg_ctl -D '$self->{data}' -l '$self->{log}' -w -t 60 start >/dev/null 2>&1") == 0
	  or die 'the server did not start', $self->last_words;
	@ENV{qw(PGHOST PGUSER PGDATABASE)} = ($self->{socket}, 'postgres', 'postgres');
	FiniBench::command('createdb', $opt{database});
	$ENV{PGDATABASE} = $opt{database};
	return $self;
}

sub session { return FiniBench::Session->new }

sub postmaster
{
	my ($self) = @_;
	my ($pid) = FiniBench::slurp("$self->{data}/postmaster.pid") =~ /^(\d+)/;
	return $pid;
}

sub last_words
{
	my ($self) = @_;
	my @lines = split /^/, eval { FiniBench::slurp($self->{log}) } // '';
	return join '', "\nthe server's log:\n", @lines > 30 ? @lines[ -30 .. -1 ] : @lines;
}

sub stop
{
	my ($self) = @_;
	@started = grep { $_ != $self } @started;
	for my $mode (qw(fast immediate))
	{
		last if system("pg_ctl -D '$self->{data}' -m $mode -w -t 30 stop >/dev/null 2>&1") == 0;
	}
	return;
}

END
{
	my $status = $?;
	$_->stop for @started;
	$? = $status;
}

package FiniBench::Session;

use strict;
use warnings;

use IPC::Open2;

sub new
{
	my ($class) = @_;
	my $self = bless {}, $class;
	$self->{pid} = open2($self->{out}, $self->{in},
		'psql', '-XqAt', '-F', "\t", '-v', 'ON_ERROR_STOP=1', '-f', '-');
	$self->{in}->autoflush(1);
	$self->{backend} = $self->value('select pg_backend_pid()');
	return $self;
}

sub backend { return $_[0]{backend} }

# one or more statements; the rows come back, one text each, with tabs between the fields
sub run
{
	my ($self, $statements) = @_;
	my @rows;
	my $mark = 'done ' . ++$self->{count};

	# a broken pipe is found below, where more can be said
	local $SIG{PIPE} = 'IGNORE';
	print { $self->{in} } "$statements\n;\n\\echo $mark\n";
	for (;;)
	{
		my $row = readline $self->{out};
		die "psql ended at: $statements\n" if !defined $row;
		chomp $row;
		return @rows if $row eq $mark;
		push @rows, $row;
	}
}

# the first field of the first row
sub value
{
	my ($self, $query) = @_;
	my ($row) = $self->run($query);
	return defined $row ? (split /\t/, $row, -1)[0] : undef;
}

sub DESTROY
{
	my ($self) = @_;
	my $status = $?;
	close $self->{in};
	close $self->{out};
	waitpid $self->{pid}, 0 if $self->{pid};
	$? = $status;
}

1;
