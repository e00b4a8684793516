# tap.pl PORT: passes TCP connections on to 127.0.0.1:PORT and says when bytes pass.
#
# Listens on a free port of 127.0.0.1, prints that port on a line, then, unbuffered, one line for each
# portion of bytes: ">" from the client or "<" from the server, and the time it was read, in
# microseconds since 1970. Runs until its standard input ends. With TLS above it this is the
# nearest one gets to when a request's first byte is on the wire.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use Socket qw(IPPROTO_TCP TCP_NODELAY);
use Time::HiRes qw(time);

my $target = shift // die "usage: tap.pl PORT\n";
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 16, Proto => 'tcp')
  or die "listen: $!\n";
my $select = IO::Select->new($listener, \*STDIN);
my (%peer, %mark);

$| = 1;
$SIG{PIPE} = 'IGNORE';
print $listener->sockport, "\n";

LOOP: for (;;)
{
	for my $ready ($select->can_read)
	{
		last LOOP if $ready == \*STDIN;
		if ($ready == $listener)
		{
			connect_on();
			next;
		}
		my $length = sysread $ready, my $bytes, 1 << 16;
		my $when = time;
		if (!$length)
		{
			hang_up($ready);
			next;
		}
		next if !$peer{$ready};		# hung up on in this round
		my $direction = $mark{$ready};
		hang_up($ready) if !send_all($peer{$ready}, $bytes);
		printf "%s %.0f\n", $direction, $when * 1e6;
	}
}

sub connect_on
{
	my $client = $listener->accept or return;
	my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $target, Proto => 'tcp');
	if (!$server)
	{
		close $client;
		return;
	}
	setsockopt $_, IPPROTO_TCP, TCP_NODELAY, 1 for $client, $server;
	($peer{$client}, $peer{$server}) = ($server, $client);
	($mark{$client}, $mark{$server}) = ('>', '<');
	$select->add($client, $server);
	return;
}

sub send_all
{
	my ($socket, $bytes) = @_;
	while (length $bytes)
	{
		my $sent = syswrite $socket, $bytes;
		return 0 if !defined $sent;
		substr $bytes, 0, $sent, '';
	}
	return 1;
}

sub hang_up
{
	my ($socket) = @_;
	for my $end ($socket, delete $peer{$socket})
	{
		next if !$end;
		$select->remove($end);
		delete $peer{$end};
		delete $mark{$end};
		close $end;
	}
	return;
}
