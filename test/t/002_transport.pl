# The transport in isolation: TLS, limits, time-outs, cancelling, and that no request is ever sent twice.
#
# A server that misbehaves on request (test/module/transport_server.py) stands on the other side and notes
# every connection and every request that it got; test/module/fini_test.c calls src/http.c.

use strict;
use warnings;

use FiniModule;
use FiniSandbox;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

alarm($ENV{FINI_TEST_DEADLINE} // 300);

my $json = JSON::PP->new->utf8;
my $dir = "$PostgreSQL::Test::Utils::tmp_check/transport";
my $stranger_dir = "$dir/stranger";
my $log = "$dir/events";

FiniSandbox::make_keys($dir);
FiniSandbox::make_keys($stranger_dir);
FiniSandbox::make_certificate($dir, 'expired', names => 'DNS:localhost', usage => 'serverAuth', days => -1);
FiniSandbox::make_certificate($dir, 'other', names => 'DNS:other.example', usage => 'serverAuth');
rename "$stranger_dir/server.$_", "$dir/stranger.$_" for qw(crt key);

my ($server_in, $server_out) = ('', '');
my $server = IPC::Run::start([ 'python3', "$FiniModule::folder/transport_server.py", $dir, $log ], '<', \$server_in, '>', \$server_out);
wait_for(sub { $server->pump_nb; $server_out =~ /\n/ }, 'the test server');
my $port = $json->decode($server_out);

# The environment must not matter: this proxy does not exist, the one that fini.proxy names is not exempt, and
# an OpenSSL that would put up with TLS 1.0 is not enough to get it.
FiniSandbox::write_file("$dir/openssl.cnf", <<'END');
openssl_conf = all
[all]
ssl_conf = modules
[modules]
system_default = lax
[lax]
MinProtocol = TLSv1
CipherString = ALL:@SECLEVEL=0
END
my $node = PostgreSQL::Test::Cluster->new('transport');
$node->init(extra => [ '-E', 'UTF8', '--locale=C' ]);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'fini'\nfsync = off\nfini.ca_file = '$dir/ca.crt'\n");
my $library = FiniModule::build('fini_test.c');
{
	local $ENV{https_proxy} = 'http://127.0.0.1:1';
	local $ENV{ALL_PROXY} = 'http://127.0.0.1:1';
	local $ENV{no_proxy} = '*';
	local $ENV{OPENSSL_CONF} = "$dir/openssl.cnf";
	local $ENV{LD_PRELOAD} = FiniModule::build('slow_names.c', '-ldl');
	$node->start;
}
FiniModule::declare($node, $library);

my $url = "https://localhost:$port->{server}";
my $body = '{"data":[]}';

# ---------------------------------------------------------------- plain requests
{
	my $from = position();
	my ($get) = http([ "$url/ok" ]);
	is($get->{outcome}, 'answered', 'GET is answered') or diag $get->{error};
	is($get->{status}, 200, '... with its status');
	is($json->decode($get->{answer})->{body}, 0, '... and its body');
	is($get->{bytes_in}, length $get->{answer}, '... counted');
	is($get->{error}, '', '... without an error');
	is($get->{retry_after}, -1, '... and no Retry-After');

	my ($post) = http([ "$url/ok" ], [ $body x 100000 ]);
	is($json->decode($post->{answer})->{body}, 100000 * length $body, 'POST of 1 MB arrives whole');
	is($post->{bytes_out}, 100000 * length $body, '... counted');

	my ($empty) = http([ "$url/ok" ], [ '' ]);
	is($empty->{outcome}, 'answered', 'POST without content is answered');

	my @requests = events($from, 'request');
	is(join(' ', map { $_->{method} } @requests), 'GET POST POST', 'methods are as asked for');
	my $headers = $requests[1]{headers};
	is($headers->{authorization}, 'Bearer secret-of-the-test', 'headers are sent');
	is($headers->{'content-type'}, 'application/json', '... the type of the body');
	ok(!exists $headers->{expect}, '... no Expect');
	ok(!exists $headers->{'accept-encoding'}, '... no offer to decompress');
	is($requests[1]{version}, 'HTTP/1.1', '... in HTTP/1.1');

	my ($redirect) = http([ "$url/redirect" ]);
	is($redirect->{status}, 302, 'a redirect is an answer');
	is($json->decode($json->encode([ events($from, 'request') ]))->[-1]{path}, '/redirect', '... and not followed');

	my ($bomb) = http([ "$url/bomb" ]);
	is($bomb->{answer}, "\x1f not really", 'a compressed answer stays compressed');
	my ($early) = http([ "$url/early" ], [ $body ]);
	is("$early->{status} $early->{retry_after}", '200 99', 'an interim answer is passed over');
}

# ---------------------------------------------------------------- Retry-After
{
	my $date = sub { POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime(time + $_[0])) =~ s/ /%20/gr };
	my $after = sub { my ($r) = http([ "$url/status?status=429&after=$_[0]" ]); return $r->{retry_after} };
	is($after->(17), 17, 'Retry-After in seconds');
	is($after->('%20%2017%20'), 17, '... with spaces around it');
	my $seconds = $after->($date->(100));
	ok($seconds > 80 && $seconds <= 100, '... as a date') or diag $seconds;
	is($after->($date->(-100)), 0, '... as a date gone by');
	is($after->('99999999999999999999999'), 86400, '... in too many seconds');
	is($after->('soon'), -1, '... in words');
	is($after->('-5'), -1, '... negative');
}

# ---------------------------------------------------------------- TLS
{
	my @refused = (
		[ 'stranger', 'localhost', qr/certificate/, 'a certificate of an unknown authority' ],
		[ 'other', 'localhost', qr/host name|subject/, 'a certificate of another host' ],
		[ 'expired', 'localhost', qr/expired/, 'an expired certificate' ],
		[ 'old', 'localhost', qr/version|protocol|SSL/, 'a server that speaks TLS 1.1 only' ],
		[ 'plain', 'localhost', qr/SSL|TLS/, 'a server that speaks no TLS' ]);
	for my $case (@refused)
	{
		my ($name, $host, $error, $what) = @$case;
		my $from = position();
		my ($result) = http([ "https://$host:$port->{$name}/ok" ], [ $body ]);
		is($result->{outcome}, 'not sent', "$what is refused");
		like($result->{error}, $error, '... with a reason');
		is(scalar events($from, 'request'), 0, '... and nothing was sent to it');
	}
	my ($result) = http([ "http://localhost:$port->{server}/ok" ], [ $body ]);
	is($result->{outcome}, 'not sent', 'http:// is refused');

	# the other way round, to know that it was the authority that mattered
	($result) = http([ "https://localhost:$port->{stranger}/ok" ], [], "set fini.ca_file = '$stranger_dir/ca.crt'");
	is($result->{outcome}, 'answered', 'with its authority the stranger is accepted') or diag $result->{error};
	my @both = results(psql("set fini.ca_file = '$stranger_dir/ca.crt'; " . query([ "https://localhost:$port->{stranger}/ok" ])
		. "; set fini.ca_file = '$dir/ca.crt'; " . query([ "https://localhost:$port->{stranger}/ok" ])));
	is("$both[0]{outcome}, $both[1]{outcome}", 'answered, not sent', 'an open connection does not survive a change of ca_file');

	my $vanished = "$dir/vanished.crt";
	FiniSandbox::write_file($vanished, slurp_file("$dir/ca.crt"));
	$node->safe_psql('postgres', "alter database postgres set fini.ca_file = '$vanished'");
	unlink $vanished;
	($result) = http([ "$url/ok" ], [ $body ]);
	is($result->{outcome}, 'not sent', 'a ca_file that vanished makes requests fail');
	like($result->{error}, qr/fini\.ca_file/, '... naming the setting');
	$node->safe_psql('postgres', 'alter database postgres reset fini.ca_file');

	my $pin = pin("$dir/server.crt");
	my $other_pin = pin("$dir/other.crt");
	($result) = http([ "$url/ok" ], [ $body ], "set fini.pinned_public_key = '$pin'");
	is($result->{outcome}, 'answered', 'the pinned key is accepted') or diag $result->{error};
	($result) = http([ "$url/ok" ], [ $body ], "set fini.pinned_public_key = '$other_pin;$pin'");
	is($result->{outcome}, 'answered', '... as the second of two') or diag $result->{error};
	my $from = position();
	($result) = http([ "$url/ok" ], [ $body ], "set fini.pinned_public_key = '$other_pin'");
	is($result->{outcome}, 'not sent', 'another key than the pinned one is refused');
	like($result->{error}, qr/public key/, '... with a reason');
	is(scalar events($from, 'request'), 0, '... and nothing was sent to it');
	@both = results(psql(query([ "$url/ok" ]) . "; set fini.pinned_public_key = '$other_pin'; " . query([ "$url/ok" ])));
	is("$both[0]{outcome}, $both[1]{outcome}", 'answered, not sent', 'an open connection does not survive a new pin');

	my $mutual = "https://localhost:$port->{mutual}/ok";
	my $certificate = "set fini.client_cert_file = '$dir/client.crt'; set fini.client_key_file = '$dir/client.key'";
	($result) = http([ $mutual ], [ $body ], $certificate);
	is($result->{outcome}, 'answered', 'the client certificate is shown') or diag $result->{error};
	@both = results(psql("$certificate; " . query([ $mutual ]) . "; set fini.client_key_file = '$dir/ca.key'; " . query([ $mutual ])));
	is("$both[0]{outcome}, $both[1]{outcome}", 'answered, not sent', 'an open connection does not survive another client key');
	$from = position();
	($result) = http([ $mutual ], [ $body ]);
	isnt($result->{outcome}, 'answered', 'without one, a server that wants one refuses us');
	is(scalar events($from, 'request'), 0, '... and no request was taken');
	my $key = "$dir/vanished.key";
	FiniSandbox::write_file($key, slurp_file("$dir/client.key"));
	chmod 0600, $key;
	$node->safe_psql('postgres', "alter database postgres set fini.client_cert_file = '$dir/client.crt'; alter database postgres set fini.client_key_file = '$key'");
	unlink $key;
	($result) = http([ $mutual ], [ $body ]);
	is($result->{outcome}, 'not sent', 'a client key that vanished makes requests fail');
	unlike($result->{error}, qr/vanished/, '... without its path');
	$node->safe_psql('postgres', 'alter database postgres reset all');
}

# ---------------------------------------------------------------- proxy
{
	my $from = position();
	my ($result) = http([ "$url/ok" ], [ $body ], "set fini.proxy = 'http://user:pass\@127.0.0.1:$port->{proxy}'");
	is($result->{outcome}, 'answered', 'a request goes through the proxy') or diag $result->{error};
	is($result->{retry_after}, -1, '... whose headers are not the answer\'s');
	my ($connect) = events($from, 'connect');
	is($connect->{target}, "localhost:$port->{server}", '... with CONNECT');
	like($connect->{head}, qr/^Proxy-Authorization: Basic /m, '... and its credentials');
	unlike($connect->{head}, qr/secret-of-the-test/, '... but not ours');
	($result) = http([ "$url/ok" ], [ $body ], "set fini.proxy = 'http://127.0.0.1:$port->{proxy}'");
	is($result->{outcome}, 'not sent', 'a proxy that refuses: not sent');
	($result) = http([ "$url/ok" ], [ $body ], "set fini.proxy = 'http://user:pass\@127.0.0.1:$port->{closed}'");
	is($result->{outcome}, 'not sent', 'a proxy that is not there: not sent');
	unlike($result->{error}, qr/pass/, '... and its password is in no message');
}

# ---------------------------------------------------------------- what cannot be reached
{
	my ($result) = http([ "https://no-such-host.invalid/ok" ], [ $body ]);
	is($result->{outcome}, 'not sent', 'an unknown host: not sent');
	like($result->{error}, qr/resolve/, '... with a reason');
	($result) = http([ "https://localhost:$port->{closed}/ok" ], [ $body ]);
	is($result->{outcome}, 'not sent', 'a closed port: not sent');
	($result) = http([ 'nonsense://' ], [ $body ]);
	is($result->{outcome}, 'not sent', 'no URL at all: not sent');

	my $start = time;
	($result) = http([ "https://localhost:$port->{silent}/ok" ], [ $body ], 'set fini.connect_timeout = 300');
	is($result->{outcome}, 'not sent', 'a server that does not shake hands: not sent');
	like($result->{error}, qr/time/i, '... for lack of time');
	ok(time - $start < 5, '... soon');
}

# ---------------------------------------------------------------- answers that fail
{
	my ($result) = http([ "$url/hang" ], [ $body ], 'set fini.request_timeout = 300');
	is($result->{outcome}, 'in doubt', 'no answer in time: in doubt');
	($result) = http([ "$url/hang" ], [ $body ], '', 0, 300);
	is($result->{outcome}, 'in doubt', '... and in the time of one request');
	like($result->{error}, qr/timed out/i, '... with a reason');

	for my $how (qw(drop reset truncate garbage))
	{
		my $from = position();
		($result) = http([ "$url/$how" ], [ $body ]);
		is($result->{outcome}, 'in doubt', "answer $how: in doubt");
		isnt($result->{error}, '', '... with a reason');
		is(scalar events($from, 'request'), 1, '... and the request was sent once');
	}

	($result) = http([ "$url/big?n=1000" ], [ $body ], '', 1000);
	is($result->{outcome}, 'answered', 'an answer as large as allowed');
	($result) = http([ "$url/big?n=1001" ], [ $body ], '', 1000);
	is($result->{outcome}, 'too large', 'an answer that announces more than allowed');
	($result) = http([ "$url/endless" ], [ $body ], '', 1000000);
	is($result->{outcome}, 'too large', 'an answer that grows beyond what is allowed');
	($result) = http([ "$url/endless" ], [ $body ]);
	is($result->{outcome}, 'too large', '... beyond what is allowed by default');
	($result) = http([ "$url/headers" ], [ $body ]);
	is($result->{outcome}, 'too large', 'headers without end');
	like($result->{error}, qr/headers/, '... with a reason');
}

# ---------------------------------------------------------------- connections kept, and never a second sending
{
	my @results = results(psql(join ';', map { query([ "$url/ok" ], [ $body ]) } 1 .. 3));
	my %connections = map { $json->decode($_->{answer})->{connection} => 1 } @results;
	is(scalar keys %connections, 1, 'three requests go over one connection');

	@results = results(psql(query([ "$url/ok" ], [ $body ]) . '; select test_reset(); ' . query([ "$url/ok" ], [ $body ])));
	isnt($json->decode($results[0]{answer})->{connection}, $json->decode($results[1]{answer})->{connection}, '... but not after a reset');

	@results = results(psql(query([ ("$url/slow?ms=300") x 2 ], []) . "; select test_reset_running('$url/slow?ms=300'); " . query([ "$url/ok" ])));
	my @numbers = map { $json->decode($_->{answer})->{connection} } @results;
	is($numbers[2], (grep { $_ == $numbers[2] } @numbers[0, 1])[0], 'a reset while a request runs lets it end on its connection');
	is(scalar(grep { $_ == $numbers[3] } @numbers[0 .. 2]), 0, '... the next one already gets a new one');
	is(scalar(grep { $_ == $numbers[4] } @numbers[0 .. 3]), 0, '... and what was opened before the end of the reset is gone with it');

	is($numbers[5], $numbers[4], '... and after that connections are kept again');

	# libcurl's own habit would be to send these again on a new connection
	for my $case ([ 'POST', [ $body ] ], [ 'POST of 1 MB', [ $body x 100000 ] ], [ 'POST without content', [ '' ] ], [ 'GET', [] ])
	{
		my ($what, $bodies) = @$case;
		for my $how (qw(drop reset))
		{
			my $from = position();
			@results = results(psql(query([ "$url/ok" ]) . '; ' . query([ "$url/$how" ], $bodies)));
			is($results[1]{outcome}, 'in doubt', "$what, kept connection broken by $how: in doubt");
			like($results[1]{error}, qr/connection|reset|Recv|recv|SSL/, '... with a reason');
			my @requests = events($from, 'request');
			is(scalar @requests, 2, '... and not sent again');
			is($requests[0]{connection}, $requests[1]{connection}, '... the connection was the kept one');
			is(scalar events($from, 'accept'), 1, '... and no other was opened');
		}
	}

	# with more kept connections than one, libcurl could turn to another
	my $from = position();
	@results = results(psql(query([ ("$url/slow?ms=300") x 3 ], []) . '; ' . query([ "$url/drop" ], [ $body ])));
	is(scalar(grep { $_->{outcome} eq 'answered' } @results), 3, 'three connections are kept');
	is($results[3]{outcome}, 'in doubt', '... one breaks: in doubt');
	is(scalar(grep { $_->{path} eq '/drop' } events($from, 'request')), 1, '... and the others are not tried');

	# a connection that is known to be gone is no reason to fail: nothing was sent into it
	$from = position();
	@results = results(psql(query([ "$url/leave" ]) . "; select pg_sleep(1.5); " . query([ "$url/ok" ], [ $body ])));
	is($results[1]{outcome}, 'answered', 'a kept connection that the server closed meanwhile is replaced') or diag $results[1]{error};
	is(scalar events($from, 'request'), 2, '... without sending anything twice');
}

# ---------------------------------------------------------------- one after another
{
	# what one was asked to do, or how it ended, is not the next one's
	my $from = position();
	my @results = results(psql(join '; ', query([ "$url/ok" ]), query([ "$url/ok" ], [$body]), query([ "$url/ok" ]), query([ "$url/status?status=404" ]),
		query([ "$url/big?n=1001" ], [], 1000), query([ "$url/big?n=1001" ]), query([ "$url/hang" ], [], 0, 300), query([ "$url/slow?ms=600" ]),
		query([ "$url/drop" ]), query([ "$url/ok", "$url/slow?ms=100", "$url/ok" ]), query([ "$url/ok" ])));
	is(join(', ', map { $_->{outcome} } @results), 'answered, answered, answered, answered, too large, answered, in doubt, answered, in doubt, ' . join(', ', ('answered') x 4),
		'each request ends as it would by itself');
	is(join(' ', map { $_->{status} } @results[ 0 .. 3 ]), '200 200 200 404', '... with its own status');
	my @requests = events($from, 'request');
	is(join(' ', map { $_->{method} } @requests[ 0 .. 3 ]), 'GET POST GET GET', '... its own method');
	is_deeply([ map { $_->{headers}{'content-type'} // 'none' } @requests[ 0 .. 2 ] ], [ 'none', 'application/json', 'none' ], '... its own headers');
	is(join(' ', map { $json->decode($_->{answer})->{body} } @results[ 0 .. 2 ]), '0 ' . length($body) . ' 0', '... its own body');

	# settings that have nothing to do with the connection
	@results = results(psql(query([ "$url/slow?ms=600" ]) . "; set fini.request_timeout = 300; " . query([ "$url/slow?ms=600" ]) . "; reset fini.request_timeout; " . query([ "$url/slow?ms=600" ])));
	is(join(', ', map { $_->{outcome} } @results), 'answered, in doubt, answered', 'a change of a time-out counts for the next request');

	# and those that have
	$from = position();
	@results = results(psql(query([ "$url/ok" ]) . "; set fini.proxy = 'http://user:pass\@127.0.0.1:$port->{proxy}'; " . query([ "$url/ok" ]) . "; reset fini.proxy; " . query([ "$url/ok" ])));
	is(join(', ', map { $_->{outcome} } @results), 'answered, answered, answered', 'a proxy comes and goes');
	is(scalar events($from, 'connect'), 1, '... and is there for one request');
	is(scalar(keys %{ { map { $json->decode($_->{answer})->{connection} => 1 } @results } }), 3, '... each on a connection of its own');
}

# ---------------------------------------------------------------- several at once
{
	my $start = time;
	my @results = http([ map { "$url/slow?ms=" . (1000 - 100 * $_) } 0 .. 7 ], [ map { $body } 0 .. 7 ]);
	my $took = time - $start;
	is(scalar(grep { $_->{outcome} eq 'answered' } @results), 8, 'eight at once are answered');
	ok($took < 3, '... in the time of the slowest') or diag $took;
	is($results[0]{index}, 8, '... the fastest first');
	is($results[7]{index}, 1, '... the slowest last');

	@results = http([ "$url/hang", "$url/ok", "https://no-such-host.invalid/", "$url/drop" ], [ ($body) x 4 ], '', 0, 1000);
	my %outcome = map { $_->{index} => $_->{outcome} } @results;
	is_deeply(\%outcome, { 1 => 'in doubt', 2 => 'answered', 3 => 'not sent', 4 => 'in doubt' }, 'each has an outcome of its own');
}

# ---------------------------------------------------------------- closing
{
	# newer versions of libcurl wait until the other side agrees that a connection is closed; this one never does
	my $from = position();
	my @results = results(psql(join '; ', map { query([ $_ ], [ $body ]) } ("$url/linger") x 12, "$url/ok"));
	is(scalar(grep { $_->{outcome} eq 'answered' } @results), 13, 'a server that does not let a connection be closed does not keep a session from going on');

	$from = position();
	@results = http([ "$url/linger", "$url/hang" ], [ ($body) x 2 ], '', 0, 6000);
	my %outcome = map { $_->{index} => $_->{outcome} } @results;
	is_deeply(\%outcome, { 1 => 'answered', 2 => 'in doubt' }, '... nor another request');
	my %connection = map { $_->{path} => $_->{connection} } events($from, 'request');
	my %closed;
	wait_for(sub { %closed = map { $_->{connection} => $_->{at} } events($from, 'close'); 2 == grep { $closed{$_} } values %connection }, 'the end of both connections');
	cmp_ok($closed{$connection{'/linger'}}, '<', $closed{$connection{'/hang'}} - 1, '... and it is closed meanwhile');
}

# ---------------------------------------------------------------- letting go
{
	for my $function (qw(test_abandon test_leave))
	{
		my $from = position();
		my ($left, $result) = split /\n/, psql("select $function('$url/hang', 300); " . query([ "$url/ok" ], [ $body ]));
		is($left, $function eq 'test_leave' ? 10 : 0, "$function: none is left running");
		is($json->decode($result)->[0]{outcome}, 'answered', '... the next request goes through');
		my ($hung) = grep { $_->{path} eq '/hang' } events($from, 'request');
		wait_for(sub { grep { $_->{connection} == $hung->{connection} } events($from, 'close') }, 'the end of the connection');
		pass('... and its connection is closed');
		my ($next) = grep { $_->{path} eq '/ok' } events($from, 'request');
		isnt($next->{connection}, $hung->{connection}, '... and not used again');
	}
	is(psql("select test_abandon('https://slow.invalid/', 300)"), 0, 'a request is let go of while its name is looked up');

	# cancelled: the error is PostgreSQL's own, and the session goes on
	for my $function ("test_perform('$url/hang', '{}')", "test_http('{$url/hang}', '{x}')",
		"test_perform('https://slow.invalid/', '{}')", "test_perform('https://localhost:$port->{silent}/', '{}')")
	{
		my $start = time;
		my $from = position();
		my ($rc, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\nset statement_timeout = 300; select $function;\n"
			. "set statement_timeout = 0; select test_running(); " . query([ "$url/ok" ], [ $body ]), on_error_stop => 0);
		like($err, qr/57014/, "statement_timeout ends $function");
		ok(time - $start < 5, '... at once');
		my ($running, $result) = split /\n/, $out;
		is($running, 0, '... none is left running');
		is($json->decode($result)->[0]{outcome}, 'answered', '... the session goes on');
		if ($function =~ /hang/)
		{
			my ($hung) = grep { $_->{path} eq '/hang' } events($from, 'request');
			wait_for(sub { grep { $_->{connection} == $hung->{connection} } events($from, 'close') }, 'the end of the connection');
		}
	}
}

# ---------------------------------------------------------------- renegotiation
{
	# openssl's own server: "R" on its standard input makes it negotiate anew, and what else is typed is sent
	my ($in, $out) = ('', '');
	my $renegotiating = IPC::Run::start([ qw(openssl s_server -tls1_2 -accept 0), '-cert', "$dir/server.crt", '-key', "$dir/server.key" ],
		'<', \$in, '>', \$out, '2>&1');
	wait_for(sub { $renegotiating->pump_nb; $out =~ /ACCEPT \S*:(\d+)/ }, 'openssl s_server');
	my ($at) = $out =~ /ACCEPT \S*:(\d+)/;
	my ($session, $err, $answer) = waiting_session("https://localhost:$at/renegotiate");
	wait_for(sub { $renegotiating->pump_nb; $out =~ /\/renegotiate/ }, 'the request');
	$in .= "R\n";
	wait_for(sub { $renegotiating->pump_nb; $session->pump_nb; $out =~ /SSL_do_handshake|DONE|ERROR|renegotiat(?!e HTTP)/ || $$answer ne '' || $$err ne '' }, 'what becomes of it');
	$renegotiating->kill_kill;
	$session->finish;
	is(scalar(() = $out =~ /Secure Renegotiation IS/g), 1, 'a server that wants to negotiate anew does not get to') or diag $out;
	like($$answer . $$err, qr/in doubt/, '... and the request that was under way is in doubt');
}

# ---------------------------------------------------------------- ending
{
	for my $where ("$url/hang", 'https://slow.invalid/')
	{
		my ($session, $err) = waiting_session($where);
		my $start = time;
		$node->safe_psql('postgres', "select pg_terminate_backend(pid) from pg_stat_activity where query like '%waiting_session%' and pid <> pg_backend_pid()");
		$session->finish;
		like($$err, qr/terminating connection/, "pg_terminate_backend ends a session that waits for $where");
		ok(time - $start < 5, '... at once');
	}
	my ($session, $err) = waiting_session("$url/hang");
	my ($second) = waiting_session('https://slow.invalid/');
	my $start = time;
	$node->stop('fast');
	ok(time - $start < 10, 'a fast shutdown waits for no network');
	$session->finish;
	$second->finish;
	my $text = slurp_file($node->logfile);
	like($text, qr/looking up a slow name/, 'the slow name server was asked');
	unlike($text, qr/signals reach the resolver's thread/, '... in threads that get no signals');
	unlike($text, qr/PANIC|was terminated by signal|TRAP/, 'no process crashed');
	unlike($text, qr/ERROR:  .*secret-of-the-test/, 'no secret is in an error');
}

$server->kill_kill;
done_testing();

# ---------------------------------------------------------------- helpers

sub query
{
	my ($urls, $bodies, $max_answer, $timeout) = @_;
	my $list = sub { 'array[' . join(', ', map { defined $_ ? "'$_'" : 'null' } @_) . ']::text[]' };
	my @bodies = map { length $_ > 1000 ? "'||repeat('" . substr($_, 0, 11) . "', " . length($_) / 11 . ")||'" : $_ } @{ $bodies // [] };
	return 'select test_http(' . join(', ', $list->(@$urls), $list->(@bodies), $max_answer // 0, $timeout // 0) . ')';
}

sub psql { return $node->safe_psql('postgres', $_[0]) }

# the results in what psql printed
sub results { return map { @{ $json->decode($_) } } grep { /^\[/ } split /\n/, $_[0] }

# requests at once in a session of their own, after other statements
sub http
{
	my ($urls, $bodies, $before, @limits) = @_;
	return results(psql(($before ? "$before; " : '') . query($urls, $bodies, @limits)));
}

# what the server noted
sub position { return -s $log // 0 }

sub events
{
	my ($from, $kind) = @_;
	return grep { $_->{event} eq $kind } map { $json->decode($_) } split /\n/, slurp_file($log, $from);
}

# a session that waits for an answer or for a name; its standard error by reference
sub waiting_session
{
	my ($where) = @_;
	my ($in, $out, $err) = ("select test_perform('$where', '{}') as waiting_session;\n", '', '');
	my $session = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ], '<', \$in, '>', \$out, '2>', \$err);
	wait_for(sub {
			$session->pump_nb;
			psql("select count(*) from pg_stat_activity where query like '%$where%waiting_session%' and wait_event_type = 'Extension'"
				  . " and pid <> pg_backend_pid()") > 0
		},
		"a session that waits for $where");
	return ($session, \$err, \$out);
}

sub wait_for
{
	my ($condition, $what) = @_;
	my $deadline = time + 60;
	until ($condition->())
	{
		die "waited in vain for $what\n" if time > $deadline;
		sleep 0.02;
	}
	return;
}

# a certificate's pin, computed as the hint of the setting says
sub pin
{
	my ($certificate) = @_;
	return 'sha256//' . `openssl x509 -in $certificate -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64` =~ s/\n//r;
}
