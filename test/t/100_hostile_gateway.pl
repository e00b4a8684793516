# A gateway that means harm, and what direct calls make of it: an error with a SQLSTATE, bounded time and memory, a
# session that goes on, nothing sent twice, and nobody called elsewhere.

use strict;
use warnings;

use FiniHostile;
use FiniTest;
use IO::Socket::INET;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Time::HiRes qw(time);

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $hostile = FiniHostile->new;
my $fini = $hostile->fini;
my $sandbox = $hostile->sandbox;

# MB: an answer of the size allowed is there several times over: as it came, opened, as jsonb
my $allowed = 700;

# --- direct calls: [ title, where, plan, pattern of the error; none: no error ] ---

my $add_error = qr/ERROR:  IP005/;
my $query_error = qr/ERROR:  IP010/;
my $n = 0;
for my $case (FiniHostile::answers())
{
	my ($title, $plan) = @$case;
	for my $call (
		[ 'subscriptions/add', 'select fini.subscription_add($$[{"ipoID":"1234","ownRef":"DIRECT-%d","appQuantity":"1",'
				. '"idList":[{"idType":"PASSPORT","idCountryJurisdiction":"GB","idNum":"P1","fullNameEng":"Name"}]}]$$)', $add_error ],
		[ 'subscriptions/query', q{select count(*) from fini.subscription_query('5678') where %d is not null}, $query_error ])
	{
		my ($endpoint, $statement, $error) = @$call;
		my $asked = sprintf $statement, ++$n;
		my $start = time;

		$hostile->hostile({ %$plan, path => $endpoint });
		my ($rc, $out, $err) = $fini->try_sql("\\set ON_ERROR_STOP 0\n$asked;\n"
			  . q{select 'peak ' || (substring(pg_read_file('/proc/self/status') from 'VmHWM:\s+(\d+)'))::int / 1024});
		my $took = time - $start;
		my ($peak) = $out =~ /peak (\d+)/;
		like($err, $error, "$endpoint: $title") or diag($out);
		ok(defined $peak && $peak < $allowed, '... within the memory allowed') or diag($peak // $err);
		# the time-out of the request, and what this machine takes to make and read 64 MB
		cmp_ok($took, '<', 30, '... and within the time allowed');
	}
}

# an error text of 100 MB; it takes a while to make
$fini->sql(q{alter database postgres set fini.request_timeout = '60s'});
$hostile->hostile({ path => 'subscriptions/query', how => 'answer', status => 400, head => '{"code":"400999","message":"', body => 'no way ', times => 14_000_000, tail => '"}' });
$fini->sql_fails(q{select fini.subscription_query('5678')}, qr/IP010.*exceeds/s, 'an error text of 100 MB is too long an answer');
$hostile->hostile({ path => 'subscriptions/query', how => 'answer', status => 400, head => '{"code":"400999","message":"', body => 'no way ', times => 8_000_000, tail => '"}' });
{
	my (undef, undef, $err) = $fini->try_sql(q{select fini.subscription_query('5678')});
	like($err, qr/IP006.*code 400999: no way/s, 'one of 56 MB is an error text');
	cmp_ok(length $err, '<', 2000, '... of which little is shown');
}
$fini->sql('alter database postgres reset fini.request_timeout');

$hostile->hostile({ path => 'subscriptions/query', how => 'answer', status => 429, body => '{}', headers => [ 'Retry-After: ' . '9' x 100 ] });
$fini->sql_fails(q{select fini.subscription_query('5678')}, qr/HTTP status 429/, 'a pause whose length has no end');
$hostile->behave;

# pages
for my $plan ({ how => 'pages' }, { how => 'pages', round => 2 }, { how => 'pages', round => 3 }, { how => 'pages', round => 100 }, { how => 'pages', data => [] })
{
	my $title = 'pages ' . ($plan->{round} ? "that go round after $plan->{round}" : $plan->{data} ? 'that are empty' : 'without end');
	$hostile->seen;
	$hostile->hostile({ %$plan, path => 'ipos/list', count => -1 });
	if ($plan->{round} || $plan->{data})
	{
		$fini->sql_fails('select fini.ipo_list()', qr/IP010.*pages of ipos\/list do not end/s, $title);
		cmp_ok(scalar($hostile->seen), '<', 300, '... are noticed');
	}
	else
	{
		$fini->sql_fails(q{set statement_timeout = '500 ms'; select fini.ipo_list()}, qr/57014/, "$title end with the statement's time");
		$hostile->seen;
		$fini->sql_fails('select fini.ipo_list()', qr/IP010.*pages of ipos\/list do not end/s, "$title end");
		cmp_ok(scalar($hostile->seen), '<=', 20_001, '... with the 20,000th');		# and one of the statement before
	}
	$hostile->behave;
}

# what it says must not get into our requests
{
	my @cursors = ("0 HTTP/1.1\r\nX-In: 1", '0&ipoID=9', "0\nX-In:1", '0#x', '../../x');
	for my $cursor (@cursors)
	{
		$hostile->seen;
		$hostile->hostile({ path => 'ipos/list', how => 'answer', body => $json->encode({ code => '0', data => [ { ipoID => '1' } ], nextCursor => substr $cursor, 0, 20 }) });
		my (undef, undef, $err) = $fini->try_sql('select fini.ipo_list()');
		my @seen = $hostile->seen;
		is(scalar(grep { "@{ $_->{headers} }" =~ /x-in/ || $_->{target} !~ m{^/(api/ipos/list/v1\?size=100&nextCursor=[\w%.~-]+|api/crypto/meta|openam/oauth2/eu/access_token)$} } @seen), 0,
			'the cursor ' . $json->allow_nonref->encode($cursor) . ' is a value and nothing else') or diag($json->encode(\@seen));
	}
	$sandbox->admin('POST', '/expire-tokens');
	for my $token ("abc\r\nX-In: 1", "abc\nX-In: 1", 'a b', "abc\x{7f}", '')
	{
		$hostile->seen;
		$hostile->hostile({ path => 'access_token', how => 'answer', body => $json->encode({ access_token => $token, expires_in => 30 }), count => -1 });
		$fini->sql_fails('select fini.ipo_list()', qr/IP003/, 'a token that is no token: ' . $json->allow_nonref->encode($token));
		is(scalar(grep { "@{ $_->{headers} // [] }" =~ /x-in/ } $hostile->seen), 0, '... adds no header');
	}
	$hostile->hostile({ path => 'access_token', how => 'answer', head => '{"expires_in":30,"access_token":"', body => 'x', times => 1_000_000, tail => '"}', count => -1 });
	$fini->sql_fails('select fini.ipo_list()', qr/IP003/, 'a token of 1 MB');
	$fini->wait_for(q{select last_error ~ 'not plausible' from fini.status}, 'the worker to say why');
	for my $life ('1e300', '"nan"', '-1e300', '1e19', '"inf"', '0', '[]')
	{
		$hostile->hostile({ path => 'access_token', how => 'answer', body => qq({"expires_in":$life,"access_token":"abc"}), count => -1 });
		$fini->sql_fails('select fini.ipo_list()', qr/IP003/, "a token that lives $life seconds");
	}
	$hostile->behave;
	$fini->wait_for(sub { ($fini->try_sql('select fini.ipo_list()'))[0] == 0 }, 'a token');
}

# redirects, and other headers that would lead elsewhere
{
	my $listener = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1', Blocking => 0) or die "listen: $!";
	my $elsewhere = 'localhost:' . $listener->sockport;
	for my $status (301, 302, 303, 307, 308)
	{
		for my $path ('subscriptions/query', 'ipos/list', 'access_token')
		{
			$hostile->hostile({ path => $path, how => 'answer', status => $status, body => '', headers => [ "Location: https://$elsewhere/" ] });
			$sandbox->admin('POST', '/expire-tokens') if $path eq 'access_token';
			$fini->try_sql($path eq 'subscriptions/query' ? q{select fini.subscription_query('5678')} : 'select fini.ipo_list()');
		}
	}
	$hostile->behave;
	$hostile->hostile({ path => 'ipos/list', how => 'with_headers', after => JSON::PP::true, count => -1, headers => [
			"Alt-Svc: h2=\"$elsewhere\"; ma=3600, http/1.1=\"$elsewhere\"", "Refresh: 0; url=https://$elsewhere/",
			"Content-Location: https://$elsewhere/", 'Set-Cookie: a=b', "Link: <https://$elsewhere/>; rel=canonical",
			"Proxy-Authenticate: Basic realm=\"x\"", "WWW-Authenticate: Negotiate", "Connection: Upgrade", "Upgrade: h2c" ] });
	$fini->wait_for(sub { ($fini->try_sql('select fini.ipo_list(), fini.ipo_list()'))[0] == 0 }, 'the answer under such headers');
	$hostile->behave;
	$hostile->seen;
	is($fini->sql('select count(*) > 0 from fini.ipo_list()'), 't', 'the next call goes where it should');
	is(scalar(grep { "@{ $_->{headers} // [] }" =~ /cookie/ } $hostile->seen), 0, 'without a cookie');
	is($listener->accept, undef, 'nobody called elsewhere');
}

# an answer that comes before its request is nobody's
{
	$hostile->hostile({ path => 'subscriptions/query', how => 'smuggle' });
	my ($first, $second) = split /\n/, $fini->sql(q{select count(*) from fini.subscription_query('5678'); select count(*) > 1 from fini.ipo_list()});
	is("$first $second", '0 t', 'an answer sent ahead is not taken for the next one\'s');

	# and its connection is closed: what comes after that goes over one connection again
	$hostile->hostile({ path => 'subscriptions/query', how => 'smuggle' });
	$hostile->seen;
	$fini->sql(q{select count(*) from fini.subscription_query('5678'); select count(*) from fini.ipo_list(); select count(*) from fini.ipo_list(); select count(*) from fini.ipo_list()});
	my %connections = map { $_->{connection} => 1 } grep { $_->{target} =~ /query|list/ } $hostile->seen;
	is(scalar(keys %connections), 2, '... and is not kept');
	$hostile->behave;
}

# public keys, and clocks
{
	my $der = sub { my ($tag, $bytes) = @_; my $len = length $bytes;
		return pack('C', $tag) . ($len < 128 ? pack('C', $len) : $len < 256 ? pack('CC', 0x81, $len) : pack('Cn', 0x82, $len)) . $bytes };
	my $rsa_oid = $der->(0x30, pack('H*', '06092a864886f70d0101010500'));
	my $rsa = sub { my ($bits, $e) = @_;
		my $n = "\0\xC5" . ("\xA7" x ($bits / 8 - 2)) . "\xB1";
		return $der->(0x30, $rsa_oid . $der->(0x03, "\0" . $der->(0x30, $der->(0x02, $n) . $der->(0x02, pack('H*', $e // '010001'))))) };
	my $ec = pack('H*', '3059301306072a8648ce3d020106082a8648ce3d03010703420004'
		  . '60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb67903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299');
	my $meta = sub { my ($key, $clock) = @_;
		return $json->encode({ code => '0', message => '', data => { publicKey => $key, serverTimestamp => $clock // int(time * 1000) } }) };
	my $fetch = sub { my ($body) = @_;
		# one that can be had ends the pauses of the attempts before
		$hostile->behave;
		$fini->wait_for(sub { ($fini->try_sql(q{select count(*) from fini.subscription_query('5678')}))[0] == 0 }, 'a public key');
		$sandbox->admin('POST', '/rotate-key');
		$hostile->hostile({ path => 'crypto/meta', how => 'answer', body => $body, count => -1 }) };

	for my $case (
		[ 'of 512 bits', $rsa->(512) ], [ 'of 1024 bits', $rsa->(1024) ], [ 'of 16384 bits', $rsa->(16384) ],
		[ 'with the exponent 1', $rsa->(2048, '01') ], [ 'with an even exponent', $rsa->(2048, '010000') ], [ 'with the exponent 0', $rsa->(2048, '00') ],
		[ 'that is none of RSA', $ec ], [ 'with something behind it', $rsa->(2048) . 'x' ], [ 'that is cut off', substr($rsa->(2048), 0, 100) ],
		[ 'that is no key', 'abc' ], [ 'of 100 kB', 'x' x 100_000 ], [ 'that is empty', '' ])
	{
		my ($title, $key) = @$case;
		$fetch->($meta->(encode_base64($key, '')));
		$fini->sql_fails(q{select fini.subscription_query('5678')}, qr/IP009.*public key/s, "a public key $title");
	}
	for my $case (
		[ 'is refused', '{"code":"400123","message":"not you"}' ], [ 'is not base64', $meta->('%%%%') ], [ 'has a line break', $meta->(encode_base64($rsa->(2048))) ],
		[ 'is a number', '{"code":"0","data":{"publicKey":1e131071,"serverTimestamp":1}}' ],
		[ 'comes without a clock', $json->encode({ code => '0', data => { publicKey => encode_base64($rsa->(2048), '') } }) ],
		[ 'comes with a clock beyond all years', $meta->(encode_base64($rsa->(2048), ''), '9' x 30) ],
		[ 'comes with a clock that is no number', $meta->(encode_base64($rsa->(2048), ''), "1\n2") ])
	{
		my ($title, $body) = @$case;
		$fetch->($body);
		$fini->sql_fails(q{select fini.subscription_query('5678')}, qr/IP009|IP003/, "a public key that $title");
	}
	$hostile->behave;
	$fini->wait_for(sub { ($fini->try_sql(q{select count(*) from fini.subscription_query('5678')}))[0] == 0 }, 'a public key');
}

# repeated keys, and entries that are not ours
{
	my $add = q{select string_agg(concat_ws(' ', own_ref, record_id, error_code), ',' order by own_ref) from fini.subscription_add($$[{"ipoID":"1234","ownRef":"MINE-1","appQuantity":"1","idList":[]},}
		. q{{"ipoID":"1234","ownRef":"MINE-2","appQuantity":"1","idList":[]}]$$)};
	for my $case (
		[ 'repeated keys, the last of which is ours', '{"requestID":"9","requestID":"1","ownRef":"YOURS","ownRef":"MINE-1","recordID":"1111111111111111A"}', 'MINE-1 1111111111111111A,MINE-2 unknown' ],
		[ 'repeated keys, the last of which is not ours', '{"requestID":"1","requestID":"9","recordID":"1111111111111111A"}', 'MINE-1 unknown,MINE-2 unknown' ],
		[ 'an entry for another request', '{"requestID":"1","ownRef":"YOURS","recordID":"1111111111111111A"}', 'MINE-1 unknown,MINE-2 unknown' ],
		[ 'the other one\'s number', '{"requestID":"2","ownRef":"MINE-1","recordID":"1111111111111111A"}', 'MINE-1 unknown,MINE-2 unknown' ],
		[ 'one record for both', '{"requestID":"1","recordID":"1111111111111111A"},{"requestID":"2","recordID":"1111111111111111A"}', undef ],
		[ 'a record ID of 1 MB', '{"requestID":"1","recordID":"' . ('7' x 1_000_000) . '"}', 'MINE-1 unknown,MINE-2 unknown' ])
	{
		my ($title, $entries, $expected) = @$case;
		$hostile->hostile({ path => 'subscriptions/add', how => 'answer', body => qq({"code":"0","data":[$entries]}) });
		my $got = $fini->sql($add);
		is($got, $expected, $title) if defined $expected;
		ok(length $got < 200, "$title: nothing long") unless defined $expected;
	}
	$hostile->hostile({ path => 'ipos/list', how => 'answer', body => '{"code":"1","code":"0","nextCursor":"7","nextCursor":"0","data":[{}],"data":[]}' });
	is($fini->sql('select count(*) from fini.ipo_list()'), 0, 'the last of repeated keys counts, all through');
}

# another process answers: TLS
{
	for my $case (
		[ { certificate => 'expired' }, qr/expired/ ], [ { certificate => 'other' }, qr/subject name|host name/ ],
		[ { certificate => 'stranger' }, qr/certificate/ ], [ { tls => '1.1' }, qr/version|protocol|SSL/ ], [ { tls => 'null' }, qr/SSL|cipher|handshake/ ])
	{
		my ($order, $reason) = @$case;
		my $title = join ' ', %$order;
		is($fini->sql('select count(*) > 1 from fini.ipo_list()'), 't', "before $title");
		$hostile->order(%$order);
		$hostile->seen;
		$fini->sql_fails('select fini.ipo_list()', qr/IP004.*$reason/s, "$title: refused");
		is(scalar($hostile->seen), 0, '... before anything was sent');
		$hostile->behave;
		$fini->wait_for(sub { ($fini->try_sql('select fini.ipo_list()'))[0] == 0 }, 'the true certificate');
	}

	# in the middle of a session, between two of its calls
	my $session = $fini->node->background_psql('postgres', on_error_stop => 0);
	is($session->query('select count(*) > 1 from fini.ipo_list()'), 't', 'a session calls');
	$hostile->order(certificate => 'renewed');
	is($session->query('select count(*) > 1 from fini.ipo_list()'), 't', 'a renewed certificate is no matter');
	$hostile->order(certificate => 'stranger');
	$hostile->seen;
	$session->{stderr} = '';
	$session->query('select count(*) from fini.ipo_list()');
	like($session->{stderr}, qr/could not reach ipos\/list.*certificate|could not reach/s, 'a stranger\'s, between two calls of a session, is');
	is(scalar($hostile->seen), 0, '... and gets nothing');
	$session->quit;
	$hostile->behave;
}

is($sandbox->stats->{repeated_request_ids}, 0, 'nothing was sent again by itself');
unlike($fini->log_since(0), qr/PANIC|terminated by signal|TRAP:/, 'nothing crashed');
done_testing();
