# FiniHostile: a cluster whose way to the sandbox leads through test/module/hostile_gateway.py.
#
#	my $hostile = FiniHostile->new(settings => { ... });
#	$hostile->hostile({ path => 'subscriptions/add', how => 'loris_body' });
#	...
#	$hostile->behave;
#	my @seen = $hostile->seen;
#
# $hostile->fini is the FiniTest, with a table "applications" attached.

package FiniHostile;

use strict;
use warnings;

use FiniModule;
use FiniSandbox;
use FiniTest;
use IO::Socket::INET;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More ();
use Time::HiRes qw(sleep time);

my $json = JSON::PP->new->utf8->canonical;

sub new
{
	my ($class, %opt) = @_;
	my $dir = "$PostgreSQL::Test::Utils::tmp_check/hostile_$$";
	my ($in, $out) = ('', '');

	FiniSandbox::make_keys($dir);
	FiniSandbox::make_keys("$dir/stranger");
	FiniSandbox::make_certificate($dir, 'expired', names => 'DNS:localhost', usage => 'serverAuth', days => -1);
	FiniSandbox::make_certificate($dir, 'other', names => 'DNS:other.example', usage => 'serverAuth');
	FiniSandbox::make_certificate($dir, 'renewed', names => 'DNS:localhost', usage => 'serverAuth');
	FiniSandbox::write_file("$dir/stranger.$_", PostgreSQL::Test::Utils::slurp_file("$dir/stranger/server.$_")) for qw(crt key);

	# its standard input is open as long as we are: it ends with us
	my $process = IPC::Run::start([ 'python3', "$FiniModule::folder/hostile_gateway.py", $dir ], '<pipe', \*TO_HOSTILE, '>', \$out);
	my $deadline = time + 60;
	until ($out =~ /\n/)
	{
		$process->pump_nb;
		die "the hostile gateway did not start\n" if time > $deadline;
		sleep 0.02;
	}
	my $ports = $json->decode($out);
	my $self = bless {
		dir => $dir, process => $process, url => "https://localhost:$ports->{port}",
		control => IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $ports->{control}) // die "control port: $!\n" }, $class;

	my $sandbox = FiniSandbox->new(dir => "$dir/sandbox", keys => $dir,
		options => [ '--rate-limit', 0, '--token-aud', "$self->{url}/openam/oauth2/eu/access_token" ])->start;
	$self->order(upstream => $sandbox->port);
	$self->{fini} = FiniTest->armed_cluster(sandbox => $sandbox,
		settings => { 'fini.base_url' => $self->{url}, 'fini.rate_limit' => 0, 'fini.request_timeout' => '2s',
			'fini.connect_timeout' => '2s', %{ $opt{settings} // {} } },
		conf => "log_statement = none\n" . ($opt{conf} // ''));
	$self->{fini}->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
	return $self;
}

sub fini { return $_[0]{fini} }
sub sandbox { return $_[0]{fini}->sandbox }
sub dir { return $_[0]{dir} }
sub url { return $_[0]{url} }

sub order
{
	my ($self, %order) = @_;
	print { $self->{control} } $json->encode(\%order) . "\n";
	my $line = readline($self->{control}) // die "the hostile gateway has gone\n";
	return $json->decode($line);
}

sub hostile { my ($self, @plan) = @_; $self->order(plan => \@plan); return }
sub behave { my ($self) = @_; $self->order(plan => [], certificate => 'server', tls => ''); return }

# requests since the last time
sub seen { my ($self) = @_; return grep { $_->{target} } @{ $self->order(events => JSON::PP::true)->{events} } }

# the most megabytes that a process has held since it was last asked
sub peak
{
	my ($self, $pid) = @_;
	my ($kb) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB/m;
	if (open(my $fh, '>', "/proc/$pid/clear_refs"))
	{
		print {$fh} '5';
		close $fh;
	}
	return int($kb / 1024);
}

# what a gateway may answer to anything: [ title, plan ]
sub answers
{
	my $number = '{"requestID":1e131071,"recordID":1e131071,"ownRef":1e131071},';
	my @after = (after => JSON::PP::true);
	return (
		[ 'a header that comes a byte at a time', { how => 'loris_head' } ],
		[ 'a body that comes a byte at a time', { how => 'loris_body', @after } ],
		[ 'a body without end', { how => 'endless_body', @after } ],
		[ 'headers without end', { how => 'endless_headers' } ],
		[ 'a header line without end', { how => 'one_header' } ],
		[ 'interim answers without end', { how => 'interim' } ],
		[ 'trailers without end', { how => 'trailers', @after } ],
		[ 'a gzip bomb as Content-Encoding', { how => 'bomb', encoding => 'content', @after } ],
		[ 'a gzip bomb as Transfer-Encoding', { how => 'bomb', encoding => 'transfer', @after } ],
		[ 'nested 100,000 deep', { how => 'answer', body => '[', times => 100_000 } ],
		[ 'nested 100,000 deep, and closed',
			{ how => 'answer', head => '{"code":"0","data":', body => '[', times => 100_000, tail => (']' x 100_000) . '}', @after } ],
		[ '30 million values', { how => 'answer', head => '{"code":"0","data":[', body => '0,', times => 30_000_000, tail => '0]}', @after } ],
		[ '20 million objects', { how => 'answer', head => '{"code":"0","data":[', body => '{},', times => 20_000_000, tail => '0]}' } ],
		[ 'a million entries', { how => 'answer', head => '{"code":"0","data":[', body => '{},', times => 900_000, tail => '{}]}', @after } ],
		[ 'numbers that are long when written out',
			{ how => 'answer', head => '{"code":"0","data":[', body => $number, times => 20_000, tail => '{}]}', @after } ],
		[ 'a string without end', { how => 'answer', head => '{"code":"0","message":"', body => 'x', times => 1_000_000 } ],
		
		[ 'nothing, and the end of the connection', { how => 'drop', @after } ],
		[ 'nothing, and the end of the connection, before anything was done', { how => 'drop' } ]);
}

1;
