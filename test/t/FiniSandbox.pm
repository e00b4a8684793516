# FiniSandbox: a gateway of one's own, with the keys and certificates it needs.
#
# Used by the tests (through FiniTest), the demo and the benchmarks. Knows nothing of PostgreSQL but
# the names of the settings that lead a server to this gateway. Keys and the registered JWK sets are
# made with openssl and Perl alone: the extension's own reading of the protocol takes no part.
#
#	my $sandbox = FiniSandbox->new(dir => $private_directory);
#	$sandbox->start;
#	print $config $sandbox->conf('fini.batch_size' => 100);
#	$sandbox->faults({ endpoint => 'subscriptions/add', action => 'drop-after' });
#	... $sandbox->stats->{duplicates} ...
#
# Every method dies with the reason when it cannot do what it says.

package FiniSandbox;

use strict;
use warnings;

use Carp;
use Digest::SHA qw(sha256);
use File::Basename qw(dirname);
use File::Path qw(make_path);
use File::Spec;
use HTTP::Tiny;
use IO::Select;
use JSON::PP;
use MIME::Base64 qw(encode_base64url);
use POSIX qw(:sys_wait_h);
use Time::HiRes qw(sleep time);

# who we are at the gateway; nobody's real identity
our $AGENT_ISSUER = 'https://broker.example/fini';
our $AGENT_SUBJECT = 'CP00010';
our $MACHINE_ID = '3f2b8c1e-5a47-4d0e-9b1d-6a7c0e2f9d35';

# what start() gives every gateway: three IPOs that are open, one that has closed
our @IPOS = (
	{ ipoID => '1234', stkCode => '01234', isin => 'HK0000012345', status => '25', refdata => { issuer => 'Harbour Light Holdings' } },
	{ ipoID => '3456', stkCode => '03456', isin => 'HK0000034561', status => '25', refdata => { issuer => 'Star Ferry Foods' } },
	{ ipoID => '5678', stkCode => '05678', isin => 'HK0000056789', status => '30', refdata => { issuer => 'Lion Rock Robotics' } },
	{ ipoID => '9012', stkCode => '09012', isin => 'HK0000090126', status => '60', refdata => { issuer => 'Peak Tram Logistics' } });

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my @running;

# no proxy stands between us and the loopback interface
delete @ENV{qw(http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY)};

# dir: a directory for this gateway's own files, made if need be
# keys: a directory for key pairs and certificates, shared by whoever names it ($FINI_TEST_KEYS)
# program: the gateway ($FINI_GATEWAY)   options: further options for it   ipos: instead of @IPOS
sub new
{
	my ($class, %opt) = @_;
	my $self = bless {
		dir => $opt{dir} // croak('dir is needed'),
		program => $opt{program} // $ENV{FINI_GATEWAY}
		  // File::Spec->rel2abs(dirname(__FILE__) . '/../gateway/fini-gateway'),
		options => $opt{options} // [],
		ipos => $opt{ipos} // \@IPOS,
		http => FiniSandbox::Http->new(timeout => 60, proxy => undef, http_proxy => undef),
	}, $class;

	-x $self->{program} or croak "no gateway at $self->{program}: run make gateway";
	make_path($self->{dir}, { mode => 0700 });
	$self->{keys} = $opt{keys} // $ENV{FINI_TEST_KEYS} // "$self->{dir}/keys";
	$self->{log} = "$self->{dir}/gateway.log";
	make_keys($self->{keys});
	return $self;
}

# start the gateway and wait for its ready line; again after stop(), on the same ports
sub start
{
	my ($self, @more) = @_;
	croak 'the gateway is running' if $self->{pid};

	my $keys = $self->{keys};
	my @command = (
		$self->{program},
		'--port', $self->{port} // 0, '--admin-port', $self->{admin_port} // 0,
		'--cert', "$keys/server.crt", '--key', "$keys/server.key",
		'--agent-jwks', "$keys/agent.jwks", '--machine-jwks', "$keys/machine.jwks",
		'--agent-issuer', $AGENT_ISSUER, '--agent-subject', $AGENT_SUBJECT,
		'--machine-id', $MACHINE_ID, @{ $self->{options} }, @more);

	# should we be killed outright, the gateway ends with us
	my ($setpriv) = grep { -x } qw(/usr/bin/setpriv /bin/setpriv);
	unshift @command, $setpriv, '--pdeathsig', 'TERM' if $setpriv;

	pipe(my $reader, my $writer) or croak "pipe: $!";
	my $pid = fork() // croak "fork: $!";
	if ($pid == 0)
	{
		# a group of its own: Ctrl-C at the terminal is for us, and we stop it
		setpgrp(0, 0);
		$SIG{$_} = 'DEFAULT' for qw(INT TERM HUP PIPE);
		open(STDIN, '<', '/dev/null');
		POSIX::dup2(fileno($writer), 1);
		open(my $log, '>>', $self->{log}) or POSIX::_exit(126);
		POSIX::dup2(fileno($log), 2);
		{ no warnings; exec { $command[0] } @command; }
		POSIX::_exit(127);
	}
	close $writer;
	$self->{pid} = $pid;
	push @running, $self;

	my $line = $self->_ready_line($reader, 30);
	my $ready = eval { $json->decode($line) };
	if (!$ready || !$ready->{port} || !$ready->{admin_port})
	{
		my $said = $self->log_text;
		$self->stop;
		croak "the gateway did not become ready; it said: $line$said";
	}
	# kept open: the gateway must not get SIGPIPE should it ever say more
	$self->{stdout} = $reader;
	@{$self}{qw(port admin_port url)} = @{$ready}{qw(port admin_port url)};
	$self->ipos(@{ $self->{ipos} }) if @{ $self->{ipos} };
	return $self;
}

# end the gateway: TERM, and KILL if that takes longer than 10 s (or at once: stop('KILL'))
sub stop
{
	my ($self, $signal) = @_;
	my $pid = $self->{pid} or return;
	my $status = $?;

	kill $signal // 'TERM', $pid;
	my $deadline = time + 10;
	while (waitpid($pid, WNOHANG) == 0)
	{
		if (time > $deadline)
		{
			kill 'KILL', $pid;
			waitpid($pid, 0);
			last;
		}
		sleep 0.01;
	}
	$self->{exit_status} = $?;
	$? = $status;
	delete $self->{pid};
	close delete $self->{stdout} if $self->{stdout};
	@running = grep { $_ != $self } @running;
	return;
}

sub restart
{
	my ($self, @more) = @_;
	$self->stop;
	return $self->start(@more);
}

sub url { return $_[0]{url} }
sub port { return $_[0]{port} }
sub admin_port { return $_[0]{admin_port} }
sub pid { return $_[0]{pid} }
sub keys_dir { return $_[0]{keys} }

# what the gateway wrote to its standard error
sub log_text
{
	my ($self) = @_;
	open(my $fh, '<', $self->{log}) or return '';
	local $/;
	return <$fh> // '';
}

# Ask the administration port. Body: undef, a reference (sent as JSON) or text (sent as it is).
# Gives the decoded answer; undef for an empty one; a list of values for newline-delimited JSON.
sub admin
{
	my ($self, $method, $path, $body) = @_;
	my $text = $self->admin_raw($method, $path, $body);

	return undef if $text !~ /\S/;
	return $json->decode($text) if $text !~ /\n\s*\S/ || $text =~ /^\s*\[/;
	my @values = eval { $json->decode($text) };
	@values = map { $json->decode($_) } grep { /\S/ } split /\n/, $text if !@values;
	return @values == 1 ? $values[0] : \@values;
}

# the same, giving the bytes of the answer
sub admin_raw
{
	my ($self, $method, $path, $body) = @_;
	my %request;

	if (defined $body)
	{
		$request{content} = ref $body ? $json->encode($body) : $body;
		$request{headers} = { 'Content-Type' => ref $body ? 'application/json' : 'application/x-ndjson' };
	}
	elsif ($method ne 'GET')
	{
		$request{content} = '';
	}
	my $answer = $self->{http}->request($method, "http://127.0.0.1:$self->{admin_port}$path", \%request);
	croak "$method $path: $answer->{status} $answer->{reason}: $answer->{content}" unless $answer->{success};
	return $answer->{content};
}

sub stats { return $_[0]->admin('GET', '/stats') }
sub refusals { return $_[0]->admin('GET', '/refusals') // [] }
sub reset { return $_[0]->admin('POST', '/reset') }
sub config { my ($self, %values) = @_; return $self->admin('POST', '/config', \%values) }
sub ipos { my ($self, @ipos) = @_; return $self->admin('POST', '/ipos', \@ipos) }
sub funding { my ($self, @rows) = @_; return $self->admin('POST', '/funding', \@rows) }
sub faults { my ($self, @faults) = @_; return $self->admin('POST', '/faults', \@faults) }
sub clear_faults { return $_[0]->admin('DELETE', '/faults') }

# the records, decrypted, as a reference to a list; filter: ipoID, active
sub dump
{
	my ($self, %filter) = @_;
	return [ map { $json->decode($_) } grep { /\S/ } split /\n/, $self->dump_raw(%filter) ];
}

# the same as bytes: one JSON object a line
sub dump_raw
{
	my ($self, %filter) = @_;
	my $query = join '&', map { "$_=$filter{$_}" } sort keys %filter;
	return $self->admin_raw('GET', '/dump' . ($query ne '' ? "?$query" : ''));
}

# the settings that lead a server to this gateway; overrides win, undef leaves one out
sub settings
{
	my ($self, %override) = @_;
	my %settings = (
		'fini.base_url' => $self->{url},
		'fini.ca_file' => "$self->{keys}/ca.crt",
		'fini.agent_issuer' => $AGENT_ISSUER,
		'fini.agent_subject' => $AGENT_SUBJECT,
		'fini.agent_key_file' => "$self->{keys}/agent.pem",
		'fini.machine_id' => $MACHINE_ID,
		'fini.machine_key_file' => "$self->{keys}/machine.pem",
		'fini.rate_limit' => 480,
		%override);
	delete @settings{ grep { !defined $settings{$_} } keys %settings };
	return \%settings;
}

# the same as lines of postgresql.conf
sub conf
{
	my ($self, %override) = @_;
	my $settings = $self->settings(%override);
	return join '', map { my $v = $settings->{$_}; $v =~ s/'/''/g; "$_ = '$v'\n" } sort keys %$settings;
}

# Key pairs and certificates under $dir, made once: another process that gets there first is waited
# for. agent.pem machine.pem (2048 bit), agent.jwks machine.jwks, ca.crt, server.crt server.key (for
# localhost and 127.0.0.1), client.crt client.key.
sub make_keys
{
	my ($dir) = @_;
	make_path($dir, { mode => 0700 });
	open(my $lock, '>>', "$dir/lock") or croak "$dir/lock: $!";
	flock($lock, 2) or croak "$dir/lock: $!";
	return if -e "$dir/complete";

	for my $profile (qw(agent machine))
	{
		make_rsa_key("$dir/$profile.pem");
		write_file("$dir/$profile.jwks", $json->encode(jwks("$dir/$profile.pem")));
	}
	openssl(qw(req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30), '-subj', '/CN=fini sandbox CA',
		'-addext', 'keyUsage=critical,keyCertSign,cRLSign', '-keyout', "$dir/ca.key", '-out', "$dir/ca.crt");
	make_certificate($dir, 'server', names => 'DNS:localhost,IP:127.0.0.1', usage => 'serverAuth');
	make_certificate($dir, 'client', names => "DNS:client.example", usage => 'clientAuth');
	write_file("$dir/complete", '');
	return;
}

sub make_rsa_key
{
	my ($file, $bits) = @_;
	openssl('genpkey', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:' . ($bits // 2048), '-out', $file);
	chmod 0600, $file;
	return;
}

# $dir/$name.crt and .key, signed by $dir/ca; names: subjectAltName, usage: extendedKeyUsage, days: may be
# negative, for a certificate that has expired
sub make_certificate
{
	my ($dir, $name, %opt) = @_;
	my $days = $opt{days} // 30;
	my @dates = $days > 0 ? ('-days', $days) : ();

	write_file("$dir/$name.ext", "subjectAltName=$opt{names}\nextendedKeyUsage=$opt{usage}\nbasicConstraints=CA:FALSE\n");
	openssl(qw(req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes), '-subj', "/CN=$name",
		'-keyout', "$dir/$name.key", '-out', "$dir/$name.csr");
	if (@dates)
	{
		openssl('x509', '-req', '-in', "$dir/$name.csr", '-CA', "$dir/ca.crt", '-CAkey', "$dir/ca.key",
			'-set_serial', int(rand(2**31)) + 1, @dates, '-extfile', "$dir/$name.ext", '-out', "$dir/$name.crt");
	}
	else
	{
		# only `openssl ca` can date a certificate into the past
		my $format = sub { POSIX::strftime('%Y%m%d%H%M%SZ', gmtime(time + $_[0] * 86400)) };
		write_file("$dir/$name.db", '');
		openssl('ca', '-batch', '-config', _ca_config($dir, $name), '-in', "$dir/$name.csr", '-cert', "$dir/ca.crt",
			'-keyfile', "$dir/ca.key", '-startdate', $format->($days - 30), '-enddate', $format->($days),
			'-extfile', "$dir/$name.ext", '-notext', '-out', "$dir/$name.crt");
	}
	chmod 0600, "$dir/$name.key";
	unlink "$dir/$name.csr", "$dir/$name.ext";
	return;
}

# the JWK set to register for a private key, as protocol.md has it
sub jwks
{
	my ($pem, $expires) = @_;
	my ($hex) = openssl('rsa', '-in', $pem, '-noout', '-modulus') =~ /^Modulus=([0-9A-F]+)/m
	  or croak "no modulus in $pem";
	my $n = encode_base64url(pack 'H*', $hex);
	my $kid = encode_base64url(sha256(qq({"e":"AQAB","kty":"RSA","n":"$n"})));
	return { keys => [ {
		kty => 'RSA', e => 'AQAB', use => 'sig', kid => $kid, alg => 'RS256', n => $n,
		exp => ($expires // int(time) + 30 * 86400) } ] };
}

sub openssl
{
	my (@arguments) = @_;
	my $pid = open(my $out, '-|') // croak "fork: $!";
	if ($pid == 0)
	{
		open(STDIN, '<', '/dev/null');
		POSIX::dup2(1, 2);
		{ no warnings; exec 'openssl', @arguments; }
		POSIX::_exit(127);
	}
	my $status = $?;
	my $said = do { local $/; <$out> } // '';
	close $out or croak "openssl $arguments[0] failed: $said";
	$? = $status;
	return $said;
}

sub write_file
{
	my ($file, $text) = @_;
	open(my $fh, '>', $file) or croak "$file: $!";
	binmode $fh;
	print {$fh} $text;
	close $fh or croak "$file: $!";
	return;
}

sub _ca_config
{
	my ($dir, $name) = @_;
	write_file("$dir/$name.cnf", <<"END");
[ca]
default_ca = this
[this]
database = $dir/$name.db
new_certs_dir = $dir
rand_serial = yes
default_md = sha256
policy = any
[any]
commonName = supplied
END
	return "$dir/$name.cnf";
}

# one line from the gateway, or what there was of it at the deadline or its end
sub _ready_line
{
	my ($self, $reader, $timeout) = @_;
	my $deadline = time + $timeout;
	my $select = IO::Select->new($reader);
	my $text = '';

	while ($text !~ /\n/ && time < $deadline)
	{
		next unless $select->can_read($deadline - time);
		sysread($reader, $text, 4096, length $text) or last;
	}
	return $text;
}

END
{
	my $status = $?;
	$_->stop for @running;
	$? = $status;
}

# HTTP::Tiny sends head and body of a request apart, and the body would wait for the other side to acknowledge the
# head: 40 ms, each time
package FiniSandbox::Http;

use parent -norequire, 'HTTP::Tiny';
use Socket qw(IPPROTO_TCP TCP_NODELAY);

sub _open_handle
{
	my $handle = shift->SUPER::_open_handle(@_);
	setsockopt($handle->{fh}, IPPROTO_TCP, TCP_NODELAY, 1);
	return $handle;
}

1;
