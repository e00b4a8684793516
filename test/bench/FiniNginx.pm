# FiniNginx: an nginx of one's own, over TLS on the loopback interface, that takes whatever is posted to it.
#
#	my $nginx = FiniNginx->new(dir => $private_directory, keys => $sandbox->keys_dir);	# undef: there is no nginx here
#	... $nginx->url ...
#	$nginx->stop;

package FiniNginx;

use strict;
use warnings;

use FiniBench;
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(sleep time);

my @running;

sub new
{
	my ($class, %opt) = @_;
	my ($program) = grep { -x } map { "$_/nginx" } qw(/usr/sbin /usr/local/sbin), split /:/, $ENV{PATH};
	return undef if !$program;

	my $self = bless { dir => $opt{dir}, port => free_port() }, $class;
	-d $self->{dir} or mkdir $self->{dir}, 0700 or die "$self->{dir}: $!\n";
	FiniBench::write_file("$self->{dir}/nginx.conf", $self->conf($opt{keys}));
	$self->{pid} = fork() // die "fork: $!\n";
	if ($self->{pid} == 0)
	{
		setpgrp(0, 0);
		$SIG{$_} = 'DEFAULT' for qw(INT TERM HUP PIPE ALRM);
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>', "$self->{dir}/said");
		open(STDERR, '>&', \*STDOUT);
		{ no warnings; exec { $program } $program, '-p', $self->{dir}, '-e', "$self->{dir}/error.log", '-c', "$self->{dir}/nginx.conf"; }
		POSIX::_exit(127);
	}
	push @running, $self;
	my $deadline = time + 20;
	until (IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port}, Proto => 'tcp'))
	{
		die "nginx does not answer\n", map { eval { FiniBench::slurp("$self->{dir}/$_") } // '' } qw(said error.log)
		  if time > $deadline || waitpid($self->{pid}, POSIX::WNOHANG()) != 0;
		sleep 0.02;
	}
	return $self;
}

sub url { return "https://localhost:$_[0]{port}/api/eipo/subscriptions/add/v1" }

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;
	my $status = $?;
	@running = grep { $_ != $self } @running;
	kill 'TERM', $pid;
	waitpid $pid, 0;
	$? = $status;
	return;
}

# what is posted is read and thrown away
sub conf
{
	my ($self, $keys) = @_;
	my $dir = $self->{dir};
	return <<"END";
daemon off;
worker_processes 1;
pid $dir/nginx.pid;
events { worker_connections 64; }
http {
	access_log off;
	client_body_temp_path $dir/body;
	proxy_temp_path $dir/proxy;
	fastcgi_temp_path $dir/fastcgi;
	uwsgi_temp_path $dir/uwsgi;
	scgi_temp_path $dir/scgi;
	client_max_body_size 64m;
	client_body_buffer_size 4m;
	keepalive_requests 1000000;
	keepalive_timeout 300s;
	default_type application/json;
	server {
		listen 127.0.0.1:$self->{port} ssl;
		server_name localhost;
		ssl_certificate $keys/server.crt;
		ssl_certificate_key $keys/server.key;
		ssl_protocols TLSv1.2 TLSv1.3;
		location / { return 200 "received"; }
	}
}
END
}

# whose number nobody else is given before nginx has it, as a rule
sub free_port
{
	my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 1, Proto => 'tcp') or die "listen: $!\n";
	return $socket->sockport;
}

END
{
	my $status = $?;
	$_->stop for @running;
	$? = $status;
}

1;
