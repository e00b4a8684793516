# Every signal of a gateway has its own rule (protocol.md section 4), and is told where an operator looks: each one by itself.

use strict;
use warnings;

use FiniModule;
use FiniTest;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 10, 'fini.request_timeout' => '2s', 'fini.max_attempts' => 3 },
	gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;
my $round = 0;

$fini->new_table('applications');

# rows under a prefix of their own
sub insert_rows
{
	my ($n) = @_;
	my $prefix = sprintf 'R%02d-', ++$round;
	$fini->insert_rows('applications', $prefix, $n // 2);
	return $prefix;
}

# states, codes and attempts of the operations of a prefix, and of their requests
sub operations
{
	my ($prefix, $columns) = @_;
	return $fini->sql("select string_agg(distinct concat_ws(' ', $columns), ', ') from fini.submission where own_ref like '$prefix%'");
}

sub requests
{
	my ($prefix, $columns) = @_;
	return $fini->sql("select string_agg(distinct concat_ws(' ', $columns), ', ') from fini.request where request_id in"
		  . " (select request_id from fini.submission where own_ref like '$prefix%')");
}

sub add { my (%fault) = @_; $fini->faults({ endpoint => 'subscriptions/add', %fault }); return }

sub settled
{
	my ($prefix, $what) = @_;
	return $fini->wait_for(
		"select not exists (select from fini.submission where own_ref like '$prefix%' and state in ('queued', 'sending', 'unknown'))",
		"$what to be settled", 60);
}

# what a gateway that starts again has to be given
sub records { return map { delete $_->{_history}; $_ } @{ $fini->dump } }

sub lines { my ($log, $pattern) = @_; my $n = () = $fini->log_since($log) =~ /$pattern/g; return $n }

# what must hold after each: nothing twice, both sides agree on what was accepted
sub holds
{
	my ($what, $code) = @_;
	subtest $what => sub {
		eval { $code->(); 1 } or do { fail('went through'); diag $@ };
		$fini->clear_faults;
		$fini->sql('select fini.resume()');
		eval { $fini->wait_done(undef, 60); 1 } or do { fail('everything is settled in the end'); diag $@ };
		is($fini->stats->{duplicate_adds}, 0, 'nothing twice');
		is($fini->sql(q{select count(*) from applications where fini_state = 'accepted'}), $fini->stats->{active}, 'what is accepted is at FINI');
	};
	return;
}

# tokens and keys before the first case
my $first = insert_rows();
settled($first, 'the first rows');

# --- sent again by itself, under the same request ID --------------------------------------------------------------

# signal, what is fetched anew for it
my @again = (
	[ '401' => { action => 'status-before', status => 401 }, 'tokens' ],
	[ '401 with a body' => { action => 'code-before', status => 401, code => '401001', message => 'token invalid' }, 'tokens' ],
	[ '411004 timestamp expired' => { action => 'code-before', status => 400, code => '411004', message => 'timestamp expired' }, 'meta' ],
	[ '411007 wrong public key' => { action => 'code-before', status => 400, code => '411007', message => 'wrong public key' }, 'meta' ],
	[ '411008 signature' => { action => 'code-before', status => 400, code => '411008', message => 'signature' }, 'meta' ],
	[ '411011 cannot decrypt' => { action => 'code-before', status => 200, code => '411011', message => 'cannot decrypt' }, 'meta' ],
	[ '429 without Retry-After' => { action => 'status-before', status => 429 }, undef ]);

for my $case (@again)
{
	my ($name, $fault, $fetched) = @$case;
	holds "$name: again, once" => sub {
		my $before = $fini->stats;
		add(%$fault);
		my $prefix = insert_rows();
		settled($prefix, $name);
		my $stats = $fini->stats;
		is(operations($prefix, 'state, attempts'), 'accepted 2', 'accepted at the second sending');
		is(requests($prefix, 'state, attempts, entries'), 'answered 2 2', 'of the same request');
		is($stats->{repeated_request_ids}, $before->{repeated_request_ids}, 'which was not processed before');
		cmp_ok($stats->{$fetched}, '>', $before->{$fetched}, "with new $fetched") if $fetched;
	};
}

# the same signals for ever: the attempts have a limit, the reason is told, retry puts the rows back
for my $case (grep { $_->[2] } @again)
{
	my ($name, $fault) = @$case;
	holds "$name, for ever: failed, with the reason" => sub {
		my $code = $fault->{code} // "http_$fault->{status}";
		add(%$fault, count => -1);
		my $prefix = insert_rows();
		settled($prefix, $name);
		is(operations($prefix, 'state, error_code, attempts >= 3'), "failed $code t", 'failed after the attempts allowed');
		like($fini->sql("select fini_error from applications where own_ref = '${prefix}1'"), qr/^\Q$code\E: ./, 'the row says why');
		$fini->clear_faults;
		is($fini->sql("select fini.retry(own_refs => array(select own_ref from applications where own_ref like '$prefix%'))"), 2, 'put back');
		settled($prefix, 'the rows put back');
		is(operations($prefix, 'state'), 'accepted', 'accepted then');
	};
}

# --- stops the endpoint -------------------------------------------------------------------------------------------

my @stops = (
	[ 403 => { action => 'status-before', status => 403 }, 'http_403' ],
	[ 404 => { action => 'status-before', status => 404 }, 'http_404' ],
	(map { [ $_ => { action => 'code-before', status => 400, code => $_, message => 'our envelope is wrong' }, $_ ] }
		qw(411001 411003 411005 411006 411009 411010 411999)),
	[ '302' => { action => 'redirect', location => 'https://localhost:1/' }, 'http_302' ]);

for my $case (@stops)
{
	my ($name, $fault, $code) = @$case;
	holds "$name: the endpoint stops, the operator is told, others go on" => sub {
		my $log = $fini->log_position;
		my $other = $fini->sql(q{select own_ref from applications where fini_state = 'accepted' order by own_ref limit 1});
		add(%$fault, count => -1);
		my $prefix = insert_rows();
		$fini->wait_for(qq{select last_error like 'subscriptions/add stopped, code $code%' from fini.status}, 'the endpoint to be stopped');
		is(operations($prefix, 'state, error_code'), "queued $code", 'its operations stay queued and say why');
		my $requests = $fini->stats->{requests}{'subscriptions/add'};
		my $more = insert_rows();
		$fini->sql("update applications set app_quantity = app_quantity + 1000 where own_ref = '$other'");
		settled($other, 'a change');
		is($fini->sql("select state from fini.submission where own_ref = '$other' and operation = 'change' order by id desc limit 1"), 'accepted', 'changes go on');
		is(operations($more, 'state'), 'queued', 'later adds wait');
		is($fini->stats->{requests}{'subscriptions/add'}, $requests, 'and are not sent');
		is(lines($log, 'fini: stopped using subscriptions/add'), 1, 'one line in the log');
		like($fini->sql(q{select string_agg(detail, ' ') from fini.check() where not ok}), qr{subscriptions/add}, 'fini.check tells of it') if $name eq '403';
		$fini->clear_faults;
		$fini->sql('select fini.resume()');
		settled($_, 'what was queued') for $prefix, $more;
		is(operations($prefix, 'state'), 'accepted', 'sent after fini.resume');
	};
}

# --- rejected -----------------------------------------------------------------------------------------------------

for my $case (
	[ 'an entry of a 400' => { action => 'reject-entries', n => 1, status => 400, code => '400777', message => 'no such client' }, '400777' ],
	[ 'an entry of a 200' => { action => 'reject-entries', n => 1, status => 200, code => '400778', message => 'no such client' }, '400778' ])
{
	my ($name, $fault, $code) = @$case;
	holds "$name: rejected, the others stand" => sub {
		add(%$fault);
		my $prefix = insert_rows(3);
		settled($prefix, $name);
		is($fini->sql("select string_agg(concat_ws(' ', fini_state, split_part(fini_error, ':', 1)), ', ' order by own_ref) from applications where own_ref like '$prefix%'"),
			"rejected $code, accepted, accepted", 'each has its own outcome');
	};
}

for my $case (
	[ '400' => { action => 'code-before', status => 400, code => '400123', message => 'no' }, '400123' ],
	[ '400 without a body' => { action => 'status-before', status => 400 }, 'http_400' ],
	[ '401900 size' => { action => 'code-before', status => 400, code => '401900', message => 'size' }, '401900' ],
	[ '405904 batch size' => { action => 'code-before', status => 400, code => '405904', message => 'batch size' }, '405904' ],
	[ '200 with another code' => { action => 'code-before', status => 200, code => '400124', message => 'no' }, '400124' ])
{
	my ($name, $fault, $code) = @$case;
	holds "$name for the whole request: final for those at fault" => sub {
		add(%$fault, count => -1);
		my $prefix = insert_rows(1);
		settled($prefix, $name);
		is(operations($prefix, 'state, error_code'), "rejected $code", 'one alone is rejected');
		$fini->clear_faults;
		add(%$fault, match => sprintf('"ownRef":"R%02d-2"', $round + 1), count => -1);
		$prefix = insert_rows(5);
		settled($prefix, $name);
		is($fini->sql("select string_agg(fini_state, ', ' order by own_ref) from applications where own_ref like '$prefix%'"),
			'accepted, rejected, accepted, accepted, accepted', 'one of several is found, the others go');
	};
}

# --- in doubt -----------------------------------------------------------------------------------------------------

my @doubts = (
	(map { [ "$_ before" => { action => 'status-before', status => $_ }, "http_$_", $_ ], [ "$_ after" => { action => 'status-after', status => $_ }, "http_$_", $_ ] } 500, 503, 504),
	[ 'no answer' => { action => 'drop-after' }, 'no_answer', '' ],
	[ 'a time-out' => { action => 'hang-after', ms => 3000 }, 'no_answer', '' ],
	[ 'truncated' => { action => 'truncate' }, 'no_answer', '' ],
	[ 'unreadable' => { action => 'garbage' }, 'unreadable', 200 ],
	[ 'of another shape' => { action => 'wrong-shape' }, qr/unreadable|no_entry/, 200 ],
	[ 'an entry left out' => { action => 'drop-entries', n => 1 }, 'no_entry', 200 ],
	[ '411002, processed' => { action => 'code-after', status => 400, code => '411002', message => 'duplicate request ID' }, '411002', 400 ]);

for my $case (@doubts)
{
	my ($name, $fault, $code, $status) = @$case;
	holds "$name: found out before it is sent again" => sub {
		# looks come to nothing at first, so that the doubt can be seen
		$fini->faults({ endpoint => 'subscriptions/query', action => 'status-before', status => 500, count => -1 });
		add(%$fault);
		my $prefix = insert_rows();
		$fini->wait_for("select exists (select from fini.submission where own_ref like '$prefix%' and state = 'unknown')", 'the doubt', 30);
		my ($state) = grep { /unknown/ } split /, /, operations($prefix, 'state, error_code');
		like($state, ref $code ? qr/^unknown $code/ : qr/^unknown \Q$code\E$/, 'the operation is unknown and says why');
		is(requests($prefix, 'state, http_status'), join(' ', 'unknown', $status eq '' ? () : $status), 'so does its request');
		$fini->clear_faults;
		$fini->sql('select fini.resume()');
		settled($prefix, $name);
		is(operations($prefix, 'state'), 'accepted', 'accepted');
	};
}

# 503 with Retry-After is in doubt as well, and waits as long as asked before it looks
holds '503 with Retry-After' => sub {
	my $queries = $fini->stats->{requests}{'subscriptions/query'} // 0;
	add(action => 'status-after', status => 503, retryAfter => 2);
	my $begin = time;
	my $prefix = insert_rows();
	$fini->wait_for(sub { ($fini->stats->{requests}{'subscriptions/query'} // 0) > $queries }, 'the look', 30);
	cmp_ok(time - $begin, '>=', 2, 'the look comes after the time asked for');
	settled($prefix, 'the rows');
};

# --- Retry-After --------------------------------------------------------------------------------------------------

holds '429 with Retry-After: nobody sends for the time asked, and says so' => sub {
	my $before = $fini->stats->{requests};
	add(action => 'status-before', status => 429, retryAfter => 4);
	my $begin = time;
	my $prefix = insert_rows();
	$fini->wait_for("select exists (select from fini.submission where own_ref like '$prefix%' and error_code = 'http_429')", 'the reason to be seen');
	like($fini->sql(q{select last_error from fini.status}), qr/http_429/, 'fini.status has it');
	my ($rc, $out, $err) = $fini->try_sql('select count(*) from fini.ipo_list()');
	like($err, qr/IP008.*next request could leave in \d{3,4} ms/s, 'a direct call that would wait for longer than its time-out fails');
	settled($prefix, 'the rows');
	cmp_ok(time - $begin, '>=', 4, 'not before');
	is(operations($prefix, 'state, attempts'), 'accepted 2', 'then again');
};

holds 'a hold asked for by Retry-After is lifted by fini.resume' => sub {
	$fini->config(tokenLifetime => 3);
	$fini->admin('POST', '/expire-tokens');
	$fini->sql('select count(*) from fini.ipo_list()');
	add(action => 'status-before', status => 429, retryAfter => 3000);
	my $prefix = insert_rows();
	$fini->wait_for("select exists (select from fini.submission where own_ref like '$prefix%' and error_code = 'http_429')", 'the reason to be seen');
	is(operations($prefix, 'state'), 'sending', 'held');
	$fini->wait_for('select token_expires_at is null from fini.status', 'the token to end');
	my $begin = time;
	$fini->sql_fails('select count(*) from fini.ipo_list()', qr/IP008.*the gateway wants nothing to be sent for another \d+ s.*no access token/s, 'a direct call that needs a token says so');
	cmp_ok(time - $begin, '<', 2, '... at once');
	$fini->config(tokenLifetime => 30);
	$fini->sql('select fini.resume()');
	settled($prefix, 'the rows');
	is(operations($prefix, 'state'), 'accepted', 'accepted');
	is($fini->sql('select count(*) > 0 from fini.ipo_list()'), 't', 'direct calls go as well');
};

# --- the token service --------------------------------------------------------------------------------------------

for my $description ('JWT assertion is expired or invalid', 'JWT has expired', 'JWT expiration time is unreasonable', 'JWT assertion is not valid', 'JWT could not parse')
{
	holds "token service: $description" => sub {
		my $log = $fini->log_position;
		my $hits = $fini->stats->{faults}{'status-before'} // 0;
		$fini->faults({ endpoint => 'token', action => 'status-before', status => 400, count => -1,
				body => qq({"error":"invalid_grant","error_description":"$description"}) });
		$fini->admin('POST', '/expire-tokens');
		my $prefix = insert_rows();
		$fini->wait_for(sub { ($fini->stats->{faults}{'status-before'} // 0) >= $hits + 2 }, 'it to be asked twice', 30);
		like($fini->sql('select last_error from fini.status'), qr/\Q$description\E/, 'last_error has the reason');
		$fini->sql_fails('select * from fini.ipo_list()', qr/IP003.*\Q$description\E/s, 'direct calls say it');
		like(operations($prefix, 'state'), qr/^(queued|sending)$/, 'the rows wait');
		is(lines($log, 'LOG:.*the token endpoint refused an access token'), 1, 'one line in the log');
		$fini->clear_faults;
		settled($prefix, 'the rows');
		is(operations($prefix, 'state'), 'accepted', 'accepted once there are tokens again');
	};
}

for my $case (
	[ token => { action => 'status-before', status => 503 } ], [ token => { action => 'status-before', status => 429, retryAfter => 1 } ],
	[ token => { action => 'drop-before' } ], [ token => { action => 'status-before', status => 200, body => 'garbage' } ],
	[ token => { action => 'status-before', status => 200, body => '{"access_token":"","expires_in":30}' } ],
	[ 'crypto/meta' => { action => 'status-before', status => 503 } ], [ 'crypto/meta' => { action => 'drop-before' } ],
	[ 'crypto/meta' => { action => 'status-before', status => 403 } ],
	[ 'crypto/meta' => { action => 'status-before', status => 200, body => '{"code":"0","message":"","data":{"publicKey":"AAAA","serverTimestamp":1}}' } ])
{
	my ($endpoint, $fault) = @$case;
	holds "$endpoint: " . join(' ', map { "$_=$fault->{$_}" } sort keys %$fault) => sub {
		my $hits = $fini->stats->{faults}{ $fault->{action} } // 0;
		$fini->faults({ endpoint => $endpoint, count => 2, %$fault });
		$fini->admin('POST', $endpoint eq 'token' ? '/expire-tokens' : '/rotate-key');
		my $prefix = insert_rows();
		settled($prefix, 'the rows');
		is(operations($prefix, 'state'), 'accepted', 'accepted in the end');
		cmp_ok($fini->stats->{faults}{ $fault->{action} } - $hits, '>=', 2, 'after two failures');
	};
}

# --- connection, TLS, names ---------------------------------------------------------------------------------------

$fini->sql('alter system set fini.max_attempts = 1000');
$fini->sql('select pg_reload_conf()');

# a token and a key that are as good as new, then no gateway
sub fresh_token
{
	my $tokens = $fini->stats->{tokens};
	$fini->admin('POST', '/expire-tokens');
	my $prefix = insert_rows();
	settled($prefix, 'rows with a new token');
	cmp_ok($fini->stats->{tokens}, '>', $tokens, 'the token is new');
	return;
}

holds 'a gateway that is away: attempts and reason can be seen, the pauses double, success resets them' => sub {
	my $log = $fini->log_position;
	for my $outage (1, 2)
	{
		fresh_token();
		my @records = records();
		my $port = $fini->sandbox->port;
		my $active = $fini->stats->{active};
		$fini->sandbox->stop;

		# a listener that knows when somebody came
		my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 50, ReuseAddr => 1, Blocking => 0) or die "port $port: $!";
		my $prefix = insert_rows(1);
		my @came;
		$fini->wait_for(
			sub {
				while (my $client = $listener->accept) { push @came, time; close $client }
				return @came >= 5;
			}, 'five attempts', 60);
		my @gaps = map { $came[$_] - $came[ $_ - 1 ] } 1 .. $#came;
		if ($outage == 1)
		{
			# at least three quarters of 0.2, 0.4, 0.8, 1.6 s
			cmp_ok($gaps[$_], '>=', 0.14 * 2**$_, "pause @{[ $_ + 1 ]}") for 0 .. 3;
		}
		like(operations($prefix, 'state, error_code, attempts >= 4'), qr/^sending connection t$/, 'attempts and reason stand in fini.submission');
		like(requests($prefix, 'code, attempts >= 4, message'), qr/^connection t ./, 'and in fini.request');
		close $listener;
		$fini->sandbox->start;
		$fini->admin('POST', '/records', \@records);
		is($fini->stats->{active}, $active, 'the gateway is back') if $outage == 1;
		settled($prefix, 'the rows');
		is(operations($prefix, 'state'), 'accepted', 'accepted');
	}
	is(lines($log, 'fini: subscriptions/add is not to be had now'), 2, 'one line in the log for each outage');
};

holds 'a certificate that is not to be trusted' => sub {
	fresh_token();
	my @records = records();
	my $others = "$PostgreSQL::Test::Utils::tmp_check/others";
	FiniSandbox::make_keys($others);
	$fini->sandbox->restart('--cert', "$others/server.crt", '--key', "$others/server.key");
	my $prefix = insert_rows();
	$fini->wait_for("select exists (select from fini.submission where own_ref like '$prefix%' and error_code = 'connection' and attempts > 1)", 'attempts', 30);
	like(requests($prefix, 'message'), qr/SSL|certificate/i, 'the reason is told');
	# once the token has lapsed, direct calls say it, too
	$fini->sql_fails(q{select * from fini.ipo_list()}, qr/IP004.*(SSL|certificate)/si, 'direct calls as well');
	is($fini->stats->{requests}{'subscriptions/add'} // 0, 0, 'nothing was sent');
	$fini->sandbox->restart;
	$fini->admin('POST', '/records', \@records);
	settled($prefix, 'the rows');
	is(operations($prefix, 'state'), 'accepted', 'accepted');
};

holds 'a name that does not resolve' => sub {
	my $url = $fini->sandbox->url;
	my $log = $fini->log_position;
	$fini->sql(q{alter system set fini.base_url = 'https://gateway.invalid'});
	$fini->sql('select pg_reload_conf()');
	my $prefix = insert_rows();
	$fini->wait_for(q{select last_error ~* 'token endpoint.*resolve' from fini.status}, 'the reason', 60);
	is(operations($prefix, 'state'), 'queued', 'the rows wait');
	$fini->sql_fails('select * from fini.ipo_list()', qr/IP004.*resolve/si, 'direct calls say it');
	is(lines($log, 'LOG:.*could not reach the token endpoint'), 1, 'one line in the log');
	$fini->sql('alter system reset fini.base_url');
	$fini->sql('select pg_reload_conf()');
	settled($prefix, 'the rows');
	is(operations($prefix, 'state'), 'accepted', 'accepted once it is mended');
};

# --- the pauses themselves ----------------------------------------------------------------------------------------

{
	my $library = FiniModule::build('fini_test.c');
	$fini->sql("create function test_backoff(failures int, min_us bigint, max_us bigint) returns bigint language c strict as '$library', 'fini_test_backoff'");
	is($fini->sql(q{select string_agg(f || ' ' || bool_and, ', ' order by f) from (select f, bool_and(p between 0.75 * 200000 * 2 ^ (f - 1) and 1.25 * 200000 * 2 ^ (f - 1))
			from generate_series(1, 8) f, generate_series(1, 200) i, test_backoff(f, 200000, 30000000) p group by f) x}),
		join(', ', map { "$_ true" } 1 .. 8), 'doubling, a quarter more or less');
	is($fini->sql(q{select bool_and(test_backoff(f, 200000, 30000000) between 22500000 and 37500000) from generate_series(9, 5000) f}), 't', 'up to a ceiling');
	cmp_ok($fini->sql(q{select count(distinct test_backoff(5, 200000, 30000000)) from generate_series(1, 200)}), '>', 100, 'with jitter');
}

done_testing();
