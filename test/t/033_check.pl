# fini.check finds every fault that is planted, says what to do, raises no error for it, and tells no secrets.

use strict;
use warnings;

use File::Basename qw(dirname);
use File::Copy qw(copy);
use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my @items = qw(server library version worker settings agent_key machine_key key_pair agent_key_expiry machine_key_expiry
	tls_files token_service token gateway public_key clock ipos subscriptions funding throttle armed paused endpoints queue);
my @network = qw(token_service token gateway public_key clock ipos subscriptions funding);

# keys in files of our own, which will be exchanged under the server's feet
my $dir = "$PostgreSQL::Test::Utils::tmp_check/check_keys";
FiniSandbox::make_keys($ENV{FINI_TEST_KEYS});
mkdir $dir or die "$dir: $!";
sub put_key { my ($name, $from) = @_; unlink "$dir/$name"; copy($from, "$dir/$name") or die "$from: $!"; chmod 0600, "$dir/$name"; return }
put_key("$_.pem", "$ENV{FINI_TEST_KEYS}/$_.pem") for qw(agent machine);

my $fini = FiniTest->armed_cluster(conf => "log_error_verbosity = verbose\n",
	settings => { 'fini.agent_key_file' => "$dir/agent.pem", 'fini.machine_key_file' => "$dir/machine.pem", 'fini.rate_limit' => 480, 'fini.rate_window' => '1s' },
	gateway => [ '--rate-limit', 0 ]);
# a window of one second is quick to be free again; here it is judged as the usual minute
my $usual = 'set fini.rate_limit = 60; set fini.rate_window = 60000;';
$fini->sql(q{create role operator login; create role reader login; select fini.grant_access('operator', 'operator'), fini.grant_access('reader', 'reader')});

# the rows as item => [ ok, detail ]; what comes before runs in the same session
my @last;
our $setting = '';
sub check
{
	my ($before, %opt) = @_;
	my $text = $fini->sql($setting . ($before // '') . q{; select item, coalesce(ok::text, 'null'), detail from fini.check()}, %opt);
	@last = map { [ split /\|/, $_, 3 ] } grep { /\|/ } split /\n/, $text;
	return { map { $_->[0] => [ $_->[1], $_->[2] ] } @last };
}

# these items and no others are false, and the first of them says what matches
sub finds
{
	my ($what, $before, $items, $pattern) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $found = check($before);
	is_deeply([ map { $_->[0] } grep { $_->[1] eq 'false' && $_->[0] ne 'throttle' && !($setting && $_->[2] =~ /^The settings of this session differ[^.]*\.$/) } @last ], $items, "$what: found");
	like($found->{ $items->[0] }[1] // '', $pattern, '... and explained');
	unlike(join("\n", map { $_->[2] } @last), qr/PRIVATE KEY|eyJ|Bearer|null value/, '... without secrets');
	is(scalar @last, scalar @items, '... among all items');
	return $found;
}
sub not_tested { my ($found, @names) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return is_deeply([ map { $found->{$_}[0] } @names ], [ ('null') x @names ], '... what rests on it is not tested') }
# settings for the session: that they differ from the worker's is found as well, see finds()
sub setting
{
	my ($set, $code) = @_;
	local $setting = join '', map { "set $_ = '$set->{$_}';" } keys %$set;
	return $code->();
}

$fini->wait_for(q{select worker_state = 'idle' from fini.status});

subtest 'all is well' => sub {
	my $requests = sub { my $n = 0; my $r = $fini->stats->{requests}; $n += $_ for values %$r; return $n };
	my $before = $requests->();
	check($usual);
	is_deeply([ map { $_->[0] } @last ], \@items, 'items, in their order');
	my ($page) = slurp_file(dirname(__FILE__) . '/../../docs/reference.md') =~ /^## What fini\.check finds\n(.*?)^## /ms;
	is_deeply([ $page =~ /^\| `(\w+)`/mg ], \@items, '... as documented');
	is_deeply([ map { $_->[0] } grep { $_->[1] ne 'true' } @last ], [qw(agent_key_expiry machine_key_expiry)], 'all true, but what is not known') or diag explain \@last;
	cmp_ok($requests->() - $before, '<=', 6, 'it costs a handful of requests');
	like($last[8][2], qr/fini\.jwks has not been called for this key/, 'fini.jwks has not been called');
	is($fini->sql(q{select token_expires_at is null from fini.status}), 't', 'its token is its own');

	$fini->sql(qq{select fini.jwks('$_', now() + interval '200 days')}) for qw(agent machine);
	check($usual);
	is_deeply([ grep { $_->[1] ne 'true' } @last ], [], 'with keys that are known, all true');
	is($fini->sql(q{begin read only; select json_typeof(fini.jwks('agent', now() + interval '1 day')); commit}), 'object', 'fini.jwks still works in a read-only transaction');
	like(check()->{agent_key_expiry}[1], qr/ends on/, 'and records nothing then');
};

subtest 'who may ask' => sub {
	my $found = check("set session authorization operator");
	is($found->{agent_key}[0], 'true', 'an operator may');
	unlike(join(' ', map { $_->[2] } @last), qr/\Q$dir\E/, 'and is not shown paths');
	like(check()->{agent_key}[1], qr/\Q$dir\E\/agent\.pem/, 'a superuser is');
	$fini->sql_fails('set session authorization reader; select * from fini.check()', qr/42501/, 'a reader may not');
	unlink "$dir/agent.pem";
	unlike(check('set session authorization operator')->{agent_key}[1], qr/\Q$dir\E/, 'nor are paths in a failure');
	put_key('agent.pem', "$ENV{FINI_TEST_KEYS}/agent.pem");
};

subtest 'settings' => sub {
	my %needed = (base_url => '', agent_issuer => '', agent_subject => '', machine_id => '');
	for my $name (sort keys %needed)
	{
		my $found = check("set fini.$name = ''");
		is($found->{settings}[0], 'false', "fini.$name missing: found");
		like($found->{settings}[1], qr/Not set: fini\.$name\. Set them with ALTER DATABASE/, '... and named');
		not_tested($found, qw(token ipos subscriptions funding));
	}
	my $found = finds('a key file not set', "set fini.agent_key_file = ''", [qw(settings agent_key)], qr/Not set: fini\.agent_key_file/);
	like($found->{agent_key}[1], qr/openssl genpkey.*register what fini\.jwks prints/, '... and how to come by one');
	not_tested($found, qw(key_pair agent_key_expiry token));
	like(check("set fini.base_url = ''; set fini.agent_issuer = ''")->{settings}[1], qr/Not set: fini\.base_url, fini\.agent_issuer\./, 'all that are missing');

	finds('two statuses alike', "set fini.invalidated_status = '10'", ['settings'], qr/are the same/);
	finds('a client certificate without its key', "set fini.client_cert_file = '$ENV{FINI_TEST_KEYS}/client.crt'", [qw(settings token_service)], qr/Only one of/);
	finds('time-outs that contradict', "set fini.request_timeout = '2s'", ['settings'], qr/connect_timeout is longer/);
	finds('a personal field not encrypted', "set fini.encrypted_fields = 'idType,idCountryJurisdiction,fullNameEng,fullNameChi'", ['settings'], qr/lacks idNum/);
	finds('a session with settings of its own', "set fini.machine_id = 'another'", [qw(settings token)], qr/differ from those of the worker/);
	is(check('set fini.rate_limit = 481; set fini.rate_window = 60000')->{throttle}[0], 'false', 'more than 480 a minute');
	like((grep { $_->[0] eq 'throttle' } @last)[0][2], qr/481 requests in 60 s: FINI refuses more than 480 a minute for a company\. Lower it/, '... explained');
	is(check('set fini.rate_limit = 480; set fini.rate_window = 30000')->{throttle}[0], 'false', 'the same in half a minute');
	is(check('set fini.rate_limit = 480; set fini.rate_window = 60000')->{throttle}[0], 'true', '480 a minute');
	is(check('set fini.rate_limit = 0')->{throttle}[0], 'false', 'no limit');
};

subtest 'key files' => sub {
	my $keys = $ENV{FINI_TEST_KEYS};
	FiniSandbox::make_rsa_key("$dir/small", 1024);
	FiniSandbox::openssl(qw(genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out), "$dir/ec");
	FiniSandbox::write_file("$dir/text", "no key\n");
	for my $profile (qw(agent machine))
	{
		my $file = "$dir/$profile.pem";
		my $fault = sub {
			my ($what, $pattern, $plant) = @_;
			$plant->();
			not_tested(finds("$profile key $what", '', ["${profile}_key"], $pattern), qw(key_pair token), "${profile}_key_expiry");
			put_key("$profile.pem", "$keys/$profile.pem");
		};
		$fault->('missing', qr/cannot be opened: No such file.*must be readable by the operating system user/, sub { unlink $file });
		next if $profile eq 'machine';
		$fault->('unreadable', qr/cannot be opened: Permission denied/, sub { chmod 0000, $file });
		$fault->('readable by others', qr/open to group or others\. Permissions should be 0600/, sub { chmod 0644, $file });
		$fault->('no RSA key', qr/not an RSA key/, sub { put_key("$profile.pem", "$dir/ec") });
		$fault->('no key', qr/holds no private key in PEM form.*openssl genpkey/, sub { put_key("$profile.pem", "$dir/text") });
		$fault->('of root, and readable by all', qr/open to group or others/, sub { unlink $file; symlink '/etc/passwd', $file or die "$file: $!" });
		$fault->('too short', qr/less than 2048 bits/, sub { put_key("$profile.pem", "$dir/small") });
	}
	put_key('machine.pem', "$keys/agent.pem");
	not_tested(finds('one key for both', '', ['key_pair'], qr/a key pair of its own for each/), 'token');
	put_key('machine.pem', "$keys/machine.pem");

	$fini->sql(q{select fini.jwks('agent', now() + interval '20 days')});
	finds('a registration that ends soon', '', ['agent_key_expiry'], qr/ends on \d{4}-.*Register a new key/);
	$fini->sql(q{update fini.registered_key set expires = now() - interval '1 day' where profile = 'machine'; select fini.jwks('agent', now() + interval '40 days')});
	finds('one that has ended', '', ['machine_key_expiry'], qr/ended on/);
	is($fini->sql(q{select fini.jwks('machine', now() + interval '300 days') is null}), 'f', 'the last one counts');

	copy("$keys/ca.crt", "$dir/ca.crt");
	finds('authorities that cannot be read', "set fini.ca_file = '$dir/ca.crt';\n\\! echo nothing > '$dir/ca.crt'\n", [qw(settings tls_files token_service)], qr/differ/);
	like((grep { $_->[0] eq 'tls_files' } @last)[0][2], qr/What is wrong with fini\.ca_file: The file holds no certificate/, '... said where they are');
	my %pair = ('fini.client_cert_file' => "$keys/client.crt", 'fini.client_key_file' => "$keys/server.key");
	finds('certificate and key of two pairs', join(';', map { "set $_ = '$pair{$_}'" } keys %pair), [qw(settings tls_files token_service)], qr/differ/);
	like((grep { $_->[0] eq 'tls_files' } @last)[0][2], qr/do not belong together/, '... said where it is');
	FiniSandbox::make_certificate($keys, 'soon', names => 'DNS:client.example', usage => 'clientAuth', days => 5);
	like(check("set fini.client_cert_file = '$keys/soon.crt'; set fini.client_key_file = '$keys/soon.key'")->{tls_files}[1], qr/expires in [45] days/, 'a client certificate that ends soon');
	FiniSandbox::make_certificate($keys, 'ended', names => 'DNS:client.example', usage => 'clientAuth', days => -1);
	is_deeply(check("set fini.client_cert_file = '$keys/ended.crt'; set fini.client_key_file = '$keys/ended.key'")->{tls_files},
		[ 'false', 'Our TLS client certificate has expired. Set a new one with its key.' ], 'one that has ended');
};

subtest 'the way to the gateway' => sub {
	my $port = $fini->sandbox->port;
	my $keys = $ENV{FINI_TEST_KEYS};
	my $unreachable = sub {
		my ($what, $set, $pattern) = @_;
		setting($set, sub { not_tested(finds($what, '', ['token_service'], $pattern), @network[ 1 .. $#network ]) });
	};
	$unreachable->('an unknown host', { 'fini.base_url' => 'https://nowhere.invalid' }, qr/It cannot be reached: .*resolve host.*Check the host in fini\.base_url/i);
	$unreachable->('nobody at the port', { 'fini.base_url' => 'https://localhost:1' }, qr/cannot be reached: .*connect.*Check host and port/i);
	FiniSandbox::openssl(qw(req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3 -subj /CN=other), '-keyout', "$dir/other.key", '-out', "$dir/other.crt");
	$unreachable->('authorities of somebody else', { 'fini.ca_file' => "$dir/other.crt" }, qr/Nobody whom this server trusts vouches/);
	$unreachable->('another key than the one pinned', { 'fini.pinned_public_key' => 'sha256//' . 'A' x 43 . '=' }, qr/not in fini\.pinned_public_key/);
	$unreachable->('a proxy that is none', { 'fini.proxy' => 'http://nowhere.invalid:3128' }, qr/Check fini\.proxy/);
	$unreachable->('no TLS', { 'fini.base_url' => 'https://localhost:' . $fini->sandbox->admin_port }, qr/check that the port speaks TLS/);

	FiniSandbox::make_certificate($keys, 'expired', names => 'DNS:localhost', usage => 'serverAuth', days => -1);
	FiniSandbox::make_certificate($keys, 'elsewhere', names => 'DNS:elsewhere.example', usage => 'serverAuth');
	for (['expired', qr/is not valid now: compare this server's clock.*has to renew it/], ['elsewhere', qr/made out to another host/])
	{
		my ($name, $pattern) = @$_;
		my $other = FiniSandbox->new(dir => "$dir/$name", options => [ '--cert', "$keys/$name.crt", '--key', "$keys/$name.key" ])->start;
		$unreachable->("a certificate that is $name", { 'fini.base_url' => $other->url }, $pattern);
		$other->stop;
	}

	# the token service apart from the gateway
	setting({ 'fini.token_url' => 'https://nowhere.invalid/token' }, sub {
		my $found = finds('the token service alone', '', ['token_service'], qr/resolve host/i);
		is($found->{gateway}[0], 'true', '... while the gateway is there') });
	setting({ 'fini.token_url' => $fini->sandbox->url =~ s/localhost/127.0.0.1/r . '/openam/oauth2/eu/access_token', 'fini.base_url' => 'https://localhost:1' }, sub {
		not_tested(finds('the gateway alone', '', [qw(token gateway)], qr/JWT assertion is not valid/), qw(public_key clock)) });
	setting({ 'fini.token_url' => $fini->sandbox->url . '/nothing/there' }, sub { finds('no token service', '', ['token'], qr/This is no token service \(HTTP status 404/) });
};

subtest 'refusals of the token service' => sub {
	my $token = sub {
		my ($what, $pattern) = @_;
		not_tested(finds($what, '', ['token'], $pattern), qw(public_key clock ipos subscriptions funding));
	};
	setting({ 'fini.agent_issuer' => 'https://somebody.example' }, sub { $token->('a wrong issuer', qr/JWT assertion is not valid.*most likely about the agent's.*fini\.agent_issuer/) });
	setting({ 'fini.machine_id' => 'another' }, sub { $token->('a wrong machine', qr/JWT assertion is not valid.*most likely about the machine's.*fini\.machine_id/) });
	setting({ 'fini.client_assertion_type' => 'urn:example' }, sub { $token->('an unknown type', qr/Set fini\.client_assertion_type to another of the forms/) });
	FiniSandbox::make_rsa_key("$dir/unregistered");
	put_key('agent.pem', "$dir/unregistered");
	finds('a key that is not registered', '', ['token'], qr/JWT assertion is not valid.*register what fini\.jwks prints/);
	put_key('agent.pem', "$ENV{FINI_TEST_KEYS}/agent.pem");
	$fini->config(clockSkew => 400_000);
	$token->('a clock that is behind', qr/JWT has expired.*clock is behind FINI's/);
	$fini->config(clockSkew => -2_000_000);
	$token->('a clock that is ahead', qr/JWT expiration time is unreasonable.*clock is ahead of FINI's/);
	$fini->config(clockSkew => 0);
	my %said = (
		'JWT assertion is expired or invalid' => qr/too old when it arrived/,
		'JWT could not parse' => qr/did not arrive as they were sent/,
		'something new' => qr/most likely about the agent's.*The agent's assertion was refused/);
	for my $text (sort keys %said)
	{
		$fini->faults({ endpoint => 'token', action => 'status-before', status => 400, count => -1, body => qq({"error":"invalid_grant","error_description":"$text"}) });
		$token->($text, qr/\Q$text\E.*$said{$text}/);
		$fini->clear_faults;
	}
	$fini->faults({ endpoint => 'token', action => 'status-before', status => 503, body => 'out', count => -1 });
	$token->('a service that is down', qr/does not work \(HTTP status 503/);
	$fini->clear_faults;
	$fini->faults({ endpoint => 'token', action => 'status-before', status => 429, body => 'slowly', retryAfter => 3, count => 1 });
	$token->('a service that throttles', qr/throttles \(HTTP status 429\).*Lower fini\.rate_limit/);
	$fini->clear_faults;
};

subtest 'clock and entitlements' => sub {
	for ([ 1500, 'ahead of' ], [ -2500, 'behind' ])
	{
		$fini->config(clockSkew => $_->[0]);
		my $seconds = abs($_->[0]) / 1000;
		like(finds("a clock $_->[1] ours", '', ['clock'], qr/The gateway's clock is \d\.\d{3} s $_->[1] this server's.*NTP/)->{clock}[1], qr/is \Q@{[int $seconds]}\E\./, '... by how much');
	}
	$fini->config(clockSkew => 600);
	is(check()->{clock}[0], 'true', 'less than a second is none');
	$fini->config(clockSkew => 0);

	for ([ { action => 'status-before', status => 401 }, qr/refuses the token that its token service has just granted.*belong together/ ],
		[ { action => 'status-before', status => 404, body => 'no' }, qr/refuses crypto\/meta \(HTTP status 404, code none\)/ ],
		[ { action => 'code-before', status => 400, code => '400123', message => 'not you' }, qr/refuses crypto\/meta \(HTTP status 400, code 400123: not you\)/ ])
	{
		$fini->faults({ endpoint => 'crypto/meta', count => -1, %{ $_->[0] } });
		not_tested(finds("crypto/meta with status $_->[0]{status}", '', ['public_key'], $_->[1]), 'clock');
		$fini->clear_faults;
	}

	$fini->config(entitle => ['subscriptions']);
	my $found = finds('a broker that is no bank', '', [], qr//);
	is_deeply($found->{funding}, [ 'null', 'Not entitled (HTTP status 403): these endpoints are for EIPO Designated Banks. Nothing in this database needs them.' ], '... is no fault');
	$fini->sql(q{insert into fini.funding_confirmation (transaction_ref, ipo_id, status, state, settled_at) values ('1234567890123', '1234', '20', 'accepted', now())});
	finds('one that confirms funding', '', ['funding'], qr/Not entitled.*this database needs them.*Ask HKEX, then call fini\.resume/);
	$fini->sql(q{delete from fini.funding_confirmation});
	$fini->config(entitle => ['funding']);
	is(finds('a bank that is no broker', '', [], qr//)->{subscriptions}[0], 'null', '... is no fault');
	$fini->sql(q{select fini.attach(fini.create_subscription_table('applications'))});
	finds('a bank with applications', '', ['subscriptions'], qr/for HKSCC Participants, and this database needs them/);
	$fini->config(entitle => []);
	finds('neither', '', [qw(subscriptions funding)], qr/403/);
	$fini->config(entitle => [qw(subscriptions funding)]);
	$fini->faults({ endpoint => 'ipos/*', action => 'status-before', status => 403, count => -1 });
	finds('nobody at all', '', ['ipos'], qr/Not entitled to IPO data/);
	$fini->clear_faults;
	$fini->faults({ endpoint => 'ipos/*', action => 'status-before', status => 429, retryAfter => 120, count => 1 });
	finds('a gateway that throttles', '', ['ipos'], qr/The gateway throttles \(HTTP status 429\).*Lower fini\.rate_limit/);
	check();
	like((grep { $_->[0] eq 'throttle' } @last)[0][2], qr/has asked for a pause of \d+ more seconds \(429\)/, '... and the pause it asked for');
	$fini->clear_faults;
	$fini->sql('select fini.resume()');
	$fini->wait_for(sub { (check()->{ipos}[0] // '') eq 'true' }, 'the pause to end');
	for (['subscriptions/query', 'subscriptions', 404, qr/does not know these endpoints.*fini\.base_url/], ['funding/query', 'funding', 503, qr/No usable answer \(HTTP status 503/])
	{
		$fini->faults({ endpoint => $_->[0], action => 'status-before', status => $_->[2], count => -1 });
		finds("$_->[1] answer $_->[2]", '', [ $_->[1] ], $_->[3]);
		$fini->clear_faults;
	}
	$fini->faults({ endpoint => 'subscriptions/query', action => 'code-before', code => '411005', message => 'no', count => -1 });
	finds('an envelope refused', '', ['subscriptions'], qr/411005: no.*Report it/);
	$fini->clear_faults;
	$fini->faults({ endpoint => 'ipos/list', action => 'drop-before', count => -1 });
	finds('no answer', '', ['ipos'], qr/It does not answer/);
	$fini->clear_faults;
};

subtest 'it takes no longer than it may' => sub {
	$fini->faults({ endpoint => '*', action => 'hang-before', ms => 120_000, count => -1 });
	my $start = time;
	$fini->sql_fails(q{set statement_timeout = '1s'; select * from fini.check()}, qr/57014/, 'it can be cancelled');
	cmp_ok(time - $start, '<', 9, '... at once');
	$start = time;
	like(check(q{set fini.connect_timeout = '1s'; set fini.request_timeout = '1s'})->{token_service}[1], qr/It does not answer.*Nobody answered in time/i, 'and waits for nobody for ever');
	cmp_ok(time - $start, '<', 9, '... in time');
	$fini->clear_faults;
	# a queue that fills the window: what has no room is not tested
	check('set fini.rate_window = 3600000');
	my ($used) = (grep { $_->[0] eq 'throttle' } @last)[0][2] =~ /(\d+) of 480 places/;
	my $found = check('set fini.rate_limit = ' . ($used + 8) . '; set fini.rate_window = 3600000');
	is($found->{public_key}[0], 'true', 'as far as the throttle lets it');
	like($found->{funding}[1], qr/^Not tested: the throttle leaves no room now, see throttle\.$/, 'and no farther');
	is_deeply([ @{ check('set fini.rate_limit = 1; set fini.rate_window = 3600000') }{qw(token_service token gateway)} ],
		[ [ 'null', 'Not tested: the throttle leaves no room now, see throttle.' ], [ 'null', 'Not tested: see token_service.' ], [ 'null', 'Not tested: the throttle leaves no room now, see throttle.' ] ], 'nothing at all, if there is none');
};

subtest 'sending' => sub {
	my $outbox = $fini->sql(q{select coalesce(to_regclass('fini._submission'), 'fini.submission')});
	my $row = sub { $fini->sql("insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng) values ('$_[0]', '1234', 100, 'PASSPORT', 'GBR', '123456789', 'DOE, Jane')") };
	$fini->sql('select fini.disarm()');
	finds('not armed', '', ['armed'], qr/Nothing that changes anything.*call fini\.arm\(\)/);
	$row->('a');
	is(check()->{queue}[0], 'null', 'what waits for that is no fault of the queue');
	$fini->sql(q{update fini.control set system_identifier = 1, armed_at = now(), armed_by = 'x'});
	finds('another cluster', '', ['armed'], qr/came by a dump or pg_upgrade/);
	$fini->sql(q{update fini.control set system_identifier = (select system_identifier from fini._cluster()), home = '/elsewhere'});
	finds('a copy', '', ['armed'], qr/of which this one is a copy/);
	$fini->sql(q{update fini.control set home = (select home from fini._cluster())});
	$fini->faults({ endpoint => 'subscriptions/add', action => 'status-before', status => 403, count => 1 });
	$fini->sql(q{select fini.pause('stock-taking'), fini.arm()});
	finds('a pause', '', ['paused'], qr/Paused by \w+ on .*: stock-taking\. fini\.resume\(\) ends it/);
	$fini->sql('select fini.resume()');
	$fini->wait_for(sub { check()->{endpoints}[0] eq 'false' }, 'the endpoint to be stopped');
	finds('an endpoint that is stopped', '', ['endpoints'], qr/stopped using subscriptions\/add.*call fini\.resume/);
	$fini->sql("update $outbox set created_at = now() - interval '1 hour'");
	like(finds('a queue that is stuck', '', [qw(endpoints queue)], qr//)->{queue}[1], qr/1 operations are queued, the oldest since .*nothing has been settled yet\. An endpoint is stopped: see endpoints/, '... with the reason');
	$fini->sql('select fini.resume()');
	$fini->wait_done;
	like(finds('a queue that moves', '', [], qr//)->{queue}[1], qr/Nothing is open/, '... is no fault');

	$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after' }, { endpoint => 'subscriptions/query', action => 'status-before', status => 503, count => -1 });
	$row->('b');
	$fini->wait_for(q{select unknown = 1 from fini.status}, 'the doubt');
	$fini->sql(q{update fini.request set started_at = now() - interval '10 minutes' where state = 'unknown'});
	like(check()->{queue}[1], qr/^1 requests are in doubt since .*cannot be found out/, 'what cannot be found out');
	$fini->clear_faults;
	$fini->wait_done;
	is($fini->stats->{duplicates}, 0, 'nothing was done twice');
};

subtest 'a worker without its settings' => sub {
	my $pairs = { 'fini.machine_id' => [ '', qr/fini\.machine_id is not set/ ], 'fini.invalidated_status' => [ '10', qr/are the same/ ], 'fini.client_cert_file' => [ "$ENV{FINI_TEST_KEYS}/client.crt", qr/only one of/ ] };
	for my $name (sort keys %$pairs)
	{
		my ($value, $pattern) = @{ $pairs->{$name} };
		$fini->sql("alter system set $name = '$value'");
		$fini->sql('select pg_reload_conf()');
		$fini->wait_for(sub { ($fini->try_sql('select fini.ipo_list()'))[2] =~ $pattern }, "a call to be refused because of $name");
		$fini->wait_for(sub { $fini->sql('select last_error from fini.status') =~ $pattern }, "the worker to say so of $name");
		$fini->wait_for(sub { $fini->sql('select access_error from fini._check_worker()') =~ $pattern }, "what a queue that waits is told of $name");
		$fini->sql("alter system reset $name");
		$fini->sql('select pg_reload_conf()');
		$fini->wait_for(sub { ($fini->try_sql('select fini.ipo_list()'))[0] == 0 }, 'calls to work again');
	}
	pass('settings that cannot be right are named by calls and by the worker');
};

subtest 'versions and workers' => sub {
	$fini->sql(q{update pg_extension set extversion = '0.9' where extname = 'fini'});
	finds('SQL objects of another version', '', ['version'], qr/SQL objects of this database are version 0\.9, the library.*ALTER EXTENSION fini UPDATE/);
	$fini->sql(q{update pg_extension set extversion = '1.0' where extname = 'fini'});
	my $another = sub {
		my $pid = $fini->sql('select worker_pid from fini.status');
		$fini->sql("select pg_terminate_backend($pid, 10000)");
		$fini->wait_for("select worker_pid <> $pid from fini.status", 'another worker');
	};
	$fini->sql(q{update pg_extension set extversion = '0.9' where extname = 'fini'});
	$another->();
	$fini->wait_for(sub { (check()->{worker}[0] // '') eq 'false' }, 'a worker that waits for the right version');
	like((grep { $_->[0] eq 'worker' } @last)[0][2], qr/is starting, or waits for database or extension/, 'a worker that waits');
	$fini->sql(q{update pg_extension set extversion = '1.0' where extname = 'fini'});
	$fini->wait_for(sub { (check()->{worker}[0] // '') eq 'true' }, 'it to work');
	$another->() for 1 .. 5;
	$fini->wait_for(sub { check()->{worker}[1] =~ /keeps failing: it has been started \d+ times in a row/ }, 'a worker that keeps failing to be found');
	my $library = (grep { -e } map { chomp; "$_/fini.so" } `pg_config --pkglibdir`, "$ENV{FINI_STAGE}/root" . `"$ENV{PG_CONFIG}" --pkglibdir`)[-1];
	my @times = (stat $library)[ 8, 9 ];
	SKIP:
	{
		skip 'the library is not ours', 4 unless defined $times[1] && utime($times[0], $times[1] + 60, $library);
		finds('a library that was replaced', '', ['version'], qr/has been replaced since the server loaded version 1\.0: restart/);
		utime @times, $library;
	}

	$fini->node->safe_psql('postgres', 'create database elsewhere');
	$fini->sql('create extension fini', database => 'elsewhere');
	check('', database => 'elsewhere');
	is_deeply([ map { "$_->[0] $_->[1]" } grep { $_->[0] =~ /^(library|worker|token|ipos)$/ } @last ], [ 'library false', 'worker null', 'token true', 'ipos true' ], 'a database without a worker: the rest is tested');
	like($last[1][2], qr/not in fini\.databases/, '... and it is said why');

	# no place for its process
	$fini->node->append_conf('postgresql.conf', "fini.databases = 'template1,postgres'\nmax_worker_processes = 1\nmax_logical_replication_workers = 0\n");
	$fini->node->restart;
	finds('no worker', '', ['worker'], qr/No worker is running.*max_worker_processes/);
	$fini->node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
	$fini->node->restart;
	not_tested(finds('not loaded', '', ['library'], qr/Add fini to shared_preload_libraries/), 'worker', @network);
};

done_testing();
