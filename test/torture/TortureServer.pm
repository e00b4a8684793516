# TortureServer: the PostgreSQL server that is killed, and the ways to kill it.
#
# Not a PostgreSQL::Test::Cluster: a server that crashes is what we want, and fsync stays on, so that what a kill leaves is what a server would really find.

package TortureServer;

use strict;
use warnings;

use Carp;
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

# work: folder   conf: further lines of postgresql.conf
sub new
{
	my ($class, %opt) = @_;
	my $self = bless { data => "$opt{work}/pg", socket => "$opt{work}/s", log => "$opt{work}/server.log" }, $class;

	mkdir $self->{socket} or croak "$self->{socket}: $!";
	_command('initdb', '-D', $self->{data}, '-A', 'trust', '-U', 'postgres', '-E', 'UTF8', '--locale=C', '-N');
	open(my $conf, '>>', "$self->{data}/postgresql.conf") or croak "postgresql.conf: $!";
	print {$conf} "listen_addresses = ''\nunix_socket_directories = '$self->{socket}'\nshared_preload_libraries = 'fini'\n",
	  "restart_after_crash = on\nlog_min_messages = info\nlog_line_prefix = '%m [%p] %b %a '\nlog_statement = none\n",
	  "max_wal_size = '4GB'\ncheckpoint_timeout = '10min'\nshared_buffers = '256MB'\n",
	  $opt{conf}, "include_if_exists = 'aim.conf'\n";
	close $conf or croak "postgresql.conf: $!";
	@ENV{qw(PGHOST PGUSER PGDATABASE)} = ($self->{socket}, 'postgres', 'postgres');
	return $self;
}

# The postmaster is our own child, so that nothing of it is left once it has been killed and waited for.
sub start
{
	my ($self) = @_;
	my $until = time + 60;
	my $pid = fork() // croak "fork: $!";

	if ($pid == 0)
	{
		setpgrp(0, 0);
		$SIG{$_} = 'DEFAULT' for qw(INT TERM HUP PIPE);
		open(STDIN, '<', '/dev/null');
		open(my $log, '>>', $self->{log}) or POSIX::_exit(126);
		POSIX::dup2(fileno $log, $_) for 1, 2;
		{ no warnings; exec 'postgres', '-D', $self->{data}; }
		POSIX::_exit(127);
	}
	$self->{pid} = $pid;
	until ($self->_is_ready)
	{
		croak "the server has ended, see $self->{log}" if waitpid($pid, WNOHANG) != 0;
		croak "the server did not get ready, see $self->{log}" if time > $until;
		sleep 0.02;
	}
	return;
}

# manner: INT fast, QUIT immediate
sub stop
{
	my ($self, $signal) = @_;
	my $pid = $self->{pid} or return;
	my $until = time + 60;
	my $status = $?;

	kill $signal, $pid;
	while (waitpid($pid, WNOHANG) == 0)
	{
		kill 'KILL', $pid if time > $until;
		sleep 0.01;
	}
	$? = $status;
	delete $self->{pid};
	return;
}

# SIGKILL for the postmaster and every child: nothing has a chance to say goodbye
sub kill_all
{
	my ($self) = @_;
	my $until = time + 30;
	my @children;

	# it must not see its children go
	kill 'STOP', $self->{pid};
	@children = _children($self->{pid});
	kill 'KILL', $self->{pid}, @children;
	waitpid(delete $self->{pid}, 0);
	while (my @left = grep { _alive($_) } @children)
	{
		croak "still there after SIGKILL: @left" if time > $until;
		sleep 0.01;
	}
	return;
}

sub _is_ready
{
	my ($self) = @_;
	open(my $file, '<', "$self->{data}/postmaster.pid") or return 0;
	my @lines = <$file>;
	return @lines > 7 && int $lines[0] == $self->{pid} && $lines[7] =~ /^ready/;
}

# further settings, at once; '' for none
sub aim_conf
{
	my ($self, $text) = @_;
	open(my $conf, '>', "$self->{data}/aim.conf") or croak "aim.conf: $!";
	print {$conf} $text;
	close $conf or croak "aim.conf: $!";
	kill 'HUP', $self->{pid} if $self->{pid};
	return;
}

sub _children
{
	my ($parent) = @_;
	my @children;
	for my $stat (glob '/proc/[0-9]*/stat')
	{
		open(my $file, '<', $stat) or next;
		my ($pid, $of) = (<$file> // '') =~ /^(\d+) \(.*\) \S (\d+)/ or next;
		push @children, $pid if $of == $parent;
	}
	return @children;
}

# a process that has ended but was not waited for is no longer alive
sub _alive
{
	my ($pid) = @_;
	open(my $file, '<', "/proc/$pid/stat") or return 0;
	return (<$file> // '') =~ /\) [^ZX] /;
}

sub _command
{
	my (@command) = @_;
	my $pid = open(my $out, '-|') // croak "fork: $!";
	if ($pid == 0)
	{
		open(STDIN, '<', '/dev/null');
		open(STDERR, '>&', \*STDOUT);
		{ no warnings; exec @command; }
		POSIX::_exit(127);
	}
	my @said = <$out>;
	my $status = $?;
	close $out or croak "$command[0] failed: @said";
	$? = $status;
	return;
}

1;
