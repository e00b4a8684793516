# TorturePsql: psql in the background, one SQL session each, all of them served by one loop.
#
#	my $psql = TorturePsql->new(name => 'session 1', log => $file);		# PGHOST and the like from the environment
#	$psql->send('select 1', sub { my ($lines) = @_; ... });		# undef: the session has ended
#	TorturePsql::pump(0.01);		# serve all sessions
#	my $lines = $psql->ask('select 1');		# the same at once, serving the others meanwhile
#
# An answer is what psql -At prints. Errors go to the log: who needs to know asks in SQL.

package TorturePsql;

use strict;
use warnings;

use Carp;
use IO::Select;
use POSIX qw(WNOHANG);
use Time::HiRes qw(time);

my %open;		# by file descriptor of the output
my $select = IO::Select->new;
my $serial = 0;

sub new
{
	my ($class, %opt) = @_;
	my $self = bless { name => $opt{name}, text => '', lines => [], waiting => [], noticed => [] }, $class;

	pipe(my $child_in, my $in) or croak "pipe: $!";
	pipe(my $out, my $child_out) or croak "pipe: $!";
	my $pid = fork() // croak "fork: $!";
	if ($pid == 0)
	{
		$SIG{$_} = 'DEFAULT' for qw(INT TERM HUP PIPE);
		open(my $log, '>>', $opt{log}) or POSIX::_exit(126);
		POSIX::dup2(fileno $child_in, 0);
		POSIX::dup2(fileno $child_out, 1);
		POSIX::dup2(fileno $log, 2);
		$ENV{PGAPPNAME} = "torture $opt{name}";
		# what a user has been told is committed has to be, whatever the server's setting
		$ENV{PGOPTIONS} = '-c synchronous_commit=on';
		{ no warnings; exec 'psql', '-XqAt', '-v', 'VERBOSITY=terse'; }
		POSIX::_exit(127);
	}
	close $child_in;
	close $child_out;
	$in->autoflush(1);
	@{$self}{qw(pid in out)} = ($pid, $in, $out);
	$select->add($out);
	$open{ fileno $out } = $self;
	return $self;
}

sub is_open { return defined $_[0]{pid} }

sub send
{
	my ($self, $sql, $done) = @_;
	my $marker = 'answered ' . ++$serial;

	if (!$self->{pid})
	{
		$done->(undef);
		return;
	}
	push @{ $self->{waiting} }, [ $marker, $done ];
	local $SIG{PIPE} = 'IGNORE';
	print { $self->{in} } "$sql\n;\\echo $marker\n";
	return;
}

sub ask
{
	my ($self, $sql, $timeout) = @_;
	my $until = time + ($timeout // 60);
	my ($answered, $answer);

	$self->send($sql, sub { ($answered, $answer) = (1, $_[0]) });
	until ($answered)
	{
		pump(0.05);
		croak "no answer from $self->{name} to: $sql" if time > $until;
	}
	return $answer;
}

# notifications that have come since the last call: [ moment, payload ] each
sub notifications
{
	my ($self) = @_;
	return splice @{ $self->{noticed} };
}

sub close
{
	my ($self) = @_;
	my $status = $?;
	return unless $self->{pid};

	$select->remove($self->{out});
	delete $open{ fileno $self->{out} };
	CORE::close($self->{in});
	CORE::close($self->{out});
	waitpid(delete $self->{pid}, 0);
	$? = $status;
	$_->[1]->(undef) for splice @{ $self->{waiting} };
	return;
}

# take what has arrived at any session, waiting for it so long (s)
sub pump
{
	my ($timeout) = @_;
	my @ready = $select->can_read($timeout);

	$_->_read for grep { $_ } map { $open{ fileno $_ } } @ready;
	return scalar @ready;
}

sub _read
{
	my ($self) = @_;

	if (!sysread($self->{out}, $self->{text}, 65536, length $self->{text}))
	{
		$self->close;
		return;
	}
	while ($self->{text} =~ s/^([^\n]*)\n//)
	{
		my $line = $1;
		if ($line =~ /^Asynchronous notification "\w+" with payload "(.*)" received/)
		{
			push @{ $self->{noticed} }, [ time, $1 ];
		}
		elsif (@{ $self->{waiting} } && $line eq $self->{waiting}[0][0])
		{
			my $done = (shift @{ $self->{waiting} })->[1];
			$done->([ splice @{ $self->{lines} } ]);
		}
		else
		{
			push @{ $self->{lines} }, $line;
		}
	}
	return;
}

1;
