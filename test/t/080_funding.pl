# Funding: the local copy, and confirmations that are neither lost nor contradicted, counted on both sides.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 50, 'fini.request_timeout' => '3s', 'fini.max_attempts' => 5 },
	gateway => [ '--rate-limit', 0 ]);
my $sandbox = $fini->sandbox;
my $node = $fini->node;

sub ref_of { return sprintf '%013d', $_[0] }
sub refs { return '{' . join(',', map { ref_of($_) } @_) . '}' }

# new funding rows at the gateway, known here
sub fund
{
	my ($ipo, @numbers) = @_;
	$sandbox->funding(map { { transactionRef => ref_of($_), ipoID => $ipo, preFundingStatus => '10', participantID => 'B01234', amount => '100.00' } } @numbers);
	$fini->sql("select fini.refresh_funding('$ipo')");
	return;
}

# transactionRef to status, as the gateway has it
sub gateway { return { map { $_->{transactionRef} => $_->{preFundingStatus} } @{ $fini->admin('GET', '/funding') } } }
sub states { return { map { split /\|/ } split /\n/, $fini->sql('select state, count(*) from fini.funding_confirmation where transaction_ref = any ('
	. "'" . refs(@_) . "') group by 1") } }
sub settled
{
	my ($timeout) = @_;
	return $fini->wait_for(q{select not exists (select from fini.funding_confirmation where state in ('queued', 'sending', 'unknown'))},
		'confirmations to be settled', $timeout);
}
sub confirm { my ($status, @numbers) = @_; return $fini->sql("select fini.confirm_funding('" . refs(@numbers) . "', '$status')") }
sub count { return $fini->stats->{ $_[0] } }
sub calls { return $fini->stats->{requests}{"funding/$_[0]"} // 0 }

# both sides say the same of these: the status here, there, and how often anything changed there
sub agree
{
	my ($name, $status, $changes, @numbers) = @_;
	my $gateway = gateway();
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply([ map { $gateway->{ ref_of($_) } } @numbers ], [ ($status) x @numbers ], "$name: FINI has status $status");
	is($fini->sql('select string_agg(distinct pre_funding_status, $$ $$) from fini.funding where transaction_ref = any ($$' . refs(@numbers) . '$$)'),
		$status, "$name: so has fini.funding");
	is(count('confirmed') , $changes, "$name: each was changed once");
	is(count('contradicted'), 0, "$name: nothing was contradicted");
	return;
}
my $changed = 0;

# --- the local copy ---

my $at_gateway = scalar @{ $fini->admin('GET', '/funding') };
is($fini->sql('select fini.refresh_funding()'), $at_gateway, 'refresh_funding says how many FINI lists');
is($fini->sql('select count(*) from fini.funding'), $at_gateway, 'and fini.funding has them');
is($fini->sql(q{select transaction_ref, ipo_id, pre_funding_status, raw ->> 'amount', confirmation_state is null, first_seen = last_seen
	from fini.funding where ipo_id = '1234'}), '0000100000001|1234|10|1250000.00|t|t', 'whole');
my $first = $fini->sql(q{select first_seen from fini.funding where ipo_id = '1234'});
$sandbox->funding({ transactionRef => '0000100000001', amount => '99.00' });
is($fini->sql(q{select fini.refresh_funding('1234')}), 1, 'one IPO only');
is($fini->sql(q{select raw ->> 'amount', last_seen > first_seen, first_seen from fini.funding where ipo_id = '1234'}), "99.00|t|$first",
	'what has changed is brought up to date, first_seen stays');
is($fini->sql(q{select bool_and(last_seen = first_seen) from fini.funding where ipo_id <> '1234'}), 't', 'the others are as they were');
$sandbox->config(maxPageSize => 2);
is($fini->sql('select fini.refresh_funding()'), $at_gateway, 'over several pages');
$sandbox->config(maxPageSize => 1000);
$fini->admin('DELETE', '/funding?transactionRef=0000100000008');
$fini->sql('select fini.refresh_funding()');
is($fini->sql(q{select count(*), count(*) filter (where last_seen < (select max(last_seen) from fini.funding)) from fini.funding}),
	"$at_gateway|1", 'a row that FINI does not list any more keeps its last_seen');

# an older look must not hide a newer one: the first of these two is answered last
{
	my $slow = $node->background_psql('postgres', on_error_stop => 0);
	$fini->faults({ endpoint => 'funding/query', action => 'trickle', ms => 4, count => 1 });
	$slow->query_until(qr/started/, "\\echo started\nselect fini.refresh_funding('1234');\n");
	$fini->wait_for(sub { count('faults')->{trickle} }, 'the slow answer to have begun');
	$sandbox->funding({ transactionRef => '0000100000001', preFundingStatus => '20' });
	$fini->sql(q{select fini.refresh_funding('1234')});
	$slow->quit;
}
is($fini->sql(q{select pre_funding_status from fini.funding where ipo_id = '1234'}), '20', 'an older look does not hide a newer one');

# --- confirming ---

fund('1234', 1 .. 120);
is(confirm(20, 1 .. 60), 60, 'confirm_funding says how many were queued');
is(confirm(30, 61 .. 120), 60, 'rejecting, too');
settled();
is_deeply(states(1 .. 120), { accepted => 120 }, 'all accepted');
$changed += 120;
agree('confirmed', '20', $changed, 1 .. 60);
agree('rejected', '30', $changed, 61 .. 120);
is($fini->sql(q{select count(*) from fini.funding where confirmation_state = 'accepted' and confirmation_status = pre_funding_status}), 120,
	'fini.funding shows the confirmation beside the status');
is($fini->sql(q{select count(*), bool_and(attempts = 1 and request_id ~ '^[0-9a-f]{32}$' and sent_at <= settled_at and asked_by = current_user),
	max(n) <= 50 from (select *, count(*) over (partition by request_id) as n from fini.funding_confirmation) c}), '120|t|t',
	'each sent once, in requests of fini.batch_size');

# the same again is no work, for nobody
my $calls = calls('confirm');
is(confirm(20, 1 .. 60), 0, 'the same again: nothing is queued');
is(confirm(30, 61, 61, 62), 0, 'nor of references named twice');
is(calls('confirm'), $calls, 'and nothing is sent');

# what contradicts is refused, whole
$fini->sql_fails("select fini.confirm_funding('" . refs(121, 1, 2) . "', '30')", qr/42704.*"0000000000121" is known.*refresh_funding/s, 'an unknown reference is refused');
fund('1234', 121 .. 140);
$fini->sql_fails("select fini.confirm_funding('" . refs(121, 1, 2) . "', '30')", qr/55000.*"0000000000001" has been given the other status.*2 of 3/s, 'a contradiction is refused');
is($fini->sql(q{select count(*) from fini.funding_confirmation where transaction_ref = '0000000000121'}), 0, 'with all that was asked for beside it');
$fini->sql_fails("select fini.confirm_funding('" . refs(121) . "', '25')", qr/22023.*"25" is no status/, 'another status is refused');
$fini->sql_fails("select fini.confirm_funding('{0000000000121,null}', '20')", qr/22004/, 'so is null');
is($fini->sql(q{select fini.confirm_funding('{}', '20')}), 0, 'no reference, nothing to do');

# while it is queued, and while it is under way
$fini->sql(q{select fini.pause('test')});
is(confirm(20, 121, 122), 2, 'queued while paused');
is(confirm(20, 121, 123), 1, 'again: only what is new');
$fini->sql_fails("select fini.confirm_funding('" . refs(121) . "', '30')", qr/55000.*is queued to be given the other status.*cancel_funding/s, 'not contradicted while it is queued');
is($fini->sql("select fini.cancel_funding('" . refs(121) . "')"), 1, 'cancelled');
is(confirm(30, 121), 1, 'then it may be rejected');
$fini->sql_fails('begin; select fini.cancel_funding(); select fini.confirm_funding($$' . refs(124) . '$$, $$20$$); select fini.wait()',
	qr/25001.*its own transaction/s, 'fini.wait does not wait for its own transaction');
is($fini->sql(q{select fini.wait(timeout => '1 s')}), 'f', 'and waits for confirmations');
$fini->faults({ endpoint => 'funding/confirm', action => 'delay', ms => 1000, count => 1 });
$fini->sql('select fini.resume()');
$fini->wait_for(sub { count('faults')->{delay} }, 'the request to be under way');
$fini->sql_fails("select fini.confirm_funding('" . refs(121) . "', '20')", qr/55000.*is being given the other status/s, 'not contradicted while it is under way');
is($fini->sql("select fini.cancel_funding()"), 0, 'nor cancelled then');
is($fini->sql(q{select fini.wait(timeout => '1 min')}), 't', 'fini.wait sees the end');
$changed += 3;
agree('after all that, confirmed', '20', $changed, 122, 123);
agree('after all that, rejected', '30', $changed, 121);

# what somebody else has decided at FINI meanwhile is found before anything is sent
fund('1234', 150 .. 153);
$sandbox->funding(map { { transactionRef => ref_of($_), preFundingStatus => $_ < 152 ? '20' : '30' } } 150 .. 153);
$calls = calls('confirm');
is(confirm(20, 150 .. 153), 4, 'the local copy is older than FINI');
settled();
is_deeply(states(150, 151), { accepted => 2 }, 'what has the status already is accepted');
is_deeply(states(152, 153), { rejected => 2 }, 'what has the other one is rejected');
is($fini->sql(q{select distinct confirmation_error from fini.funding where transaction_ref = any ('} . refs(152, 153) . q{')}), 'contradiction', 'with the reason');
is(calls('confirm'), $calls, 'and nothing was sent');
$fini->sql('select fini.refresh_funding()');
agree('decided elsewhere', '30', $changed, 152, 153);

# --- the gateway misbehaves: whatever it does, once, and the same on both sides ---

my $next = 1000;
for my $case (
	[ 'dropped before processing', { action => 'drop-before' } ],
	[ 'dropped after processing', { action => 'drop-after' } ],
	[ 'dropped twice', { action => 'drop-after' }, { action => 'drop-before' } ],
	[ 'hanging after processing', { action => 'hang-after', ms => 10000 } ],
	[ '503 before', { action => 'status-before', status => 503 } ],
	[ '503 after', { action => 'status-after', status => 503 } ],
	[ '500 after', { action => 'status-after', status => 500 } ],
	[ '429', { action => 'status-before', status => 429, retryAfter => 1 } ],
	[ '401', { action => 'status-before', status => 401 } ],
	[ 'garbage', { action => 'garbage' } ],
	[ 'truncated', { action => 'truncate' } ],
	[ 'entries left out', { action => 'drop-entries', n => 4 } ],
	[ 'strange entries', { action => 'extra-entries', n => 3 } ],
	[ 'reordered', { action => 'reorder' } ],
	[ 'refused as a whole, twice', { action => 'code-before', status => 400, code => '400999', message => 'no', count => 2 } ])
{
	my ($name, @faults) = @$case;
	my @numbers = ($next .. $next + 9);
	$next += 10;
	fund('3456', @numbers);
	$fini->faults(map { { endpoint => 'funding/confirm', %$_ } } @faults);
	confirm(20, @numbers[ 0 .. 4 ]);
	confirm(20, @numbers[ 5 .. 9 ]);
	settled(60);
	$changed += 10;
	is_deeply(states(@numbers), { accepted => 10 }, "$name: accepted") or diag $fini->situation;
	agree($name, '20', $changed, @numbers);
	ok(!$fini->admin('GET', '/faults')->[0]{left}, "$name: it has happened");
	$fini->clear_faults;
}

# looking fails for a while
my @numbers = ($next .. $next + 9);
$next += 10;
fund('3456', @numbers);
$fini->faults({ endpoint => 'funding/query', action => 'status-before', status => 503, count => 3 }, { endpoint => 'funding/query', action => 'garbage', count => 2 });
confirm(30, @numbers);
settled(60);
$changed += 10;
agree('looks that fail', '30', $changed, @numbers);

# FINI rejects some: final, with its reason, and it may be asked again
@numbers = ($next .. $next + 9);
$next += 10;
fund('3456', @numbers);
$fini->faults({ endpoint => 'funding/confirm', action => 'reject-entries', n => 3, code => '400555', message => 'not now' });
confirm(20, @numbers);
settled();
is_deeply(states(@numbers), { accepted => 7, rejected => 3 }, 'FINI rejects three');
is($fini->sql(q{select string_agg(distinct confirmation_error, ' ') from fini.funding where confirmation_state = 'rejected' and ipo_id = '3456'}), '400555', 'with its code');
is(confirm(20, @numbers), 3, 'they may be asked for again');
settled();
$changed += 10;
agree('rejected, then accepted', '20', $changed, @numbers);

# a request of one is refused as a whole: so is the confirmation
fund('3456', $next);
$fini->faults({ endpoint => 'funding/confirm', action => 'code-before', status => 400, code => '400999', message => 'not this one' });
confirm(20, $next);
settled();
is($fini->sql("select state, error_code, error_message from fini.funding_confirmation where transaction_ref = '" . ref_of($next) . "'"), 'rejected|400999|not this one', 'one alone is rejected with the code of the request');
confirm(20, $next);
settled();
$changed++;
agree('refused alone, then accepted', '20', $changed, $next++);

# an answer that names one of them twice
fund('3456', $next);
{
	my $entry = '{"transactionRef":"' . ref_of($next) . '","exception":[{"recordErrorCode":"400556","recordErrorMsg":"no"}]}';
	$fini->faults({ endpoint => 'funding/confirm', action => 'status-before', status => 200, body => qq({"code":"0","data":[$entry,$entry]}) });
}
confirm(20, $next);
settled();
is($fini->sql("select state, error_code from fini.funding_confirmation where transaction_ref = '" . ref_of($next) . "'"), 'rejected|400556', 'named twice in an answer, it has the first outcome');
confirm(20, $next);
settled();
$changed++;
agree('named twice, then accepted', '20', $changed, $next++);

# not entitled to this one call: it stops, and what was to be confirmed stays
fund('3456', $next);
$fini->faults({ endpoint => 'funding/confirm', action => 'status-before', status => 403 });
confirm(20, $next);
$fini->wait_for(q{select last_error like 'funding/confirm stopped%' from fini.status}, 'funding/confirm to be stopped');
is_deeply(states($next), { queued => 1 }, 'the confirmation stays queued');
$fini->sql('select fini.resume()');
settled();
$changed++;
agree('stopped, then resumed', '20', $changed, $next++);
$next = 10 * int($next / 10) + 10;

# the throttle has no room: confirmations wait for it
{
	$fini->sql("alter system set $_") for 'fini.rate_limit = 3', q{fini.rate_window = '2s'}, 'fini.batch_size = 1';
	$fini->sql('select pg_reload_conf()');
	@numbers = ($next .. $next + 5);
	$next += 10;
	fund('3456', @numbers);
	confirm(20, @numbers);
	settled(60);
	$fini->sql("alter system reset $_") for qw(fini.rate_limit fini.rate_window fini.batch_size);
	$fini->sql('select pg_reload_conf()');
	$changed += 6;
	agree('under a throttle', '20', $changed, @numbers);
}

# a gateway that never answers: failed in the end, visibly, and not before the last copy can have arrived
@numbers = ($next .. $next + 1);
$next += 10;
fund('3456', @numbers);
$fini->faults({ endpoint => 'funding/confirm', action => 'drop-before', count => -1 });
confirm(20, @numbers);
settled(90);
is_deeply(states(@numbers), { failed => 2 }, 'given up after fini.max_attempts');
is($fini->sql('select distinct error_code, attempts, settled_at > sent_at + interval $$3 s$$ from fini.funding_confirmation where transaction_ref = any ($$' . refs(@numbers) . '$$)'),
	'not_found|5|t', 'later than the last copy could have arrived');
$fini->clear_faults;
$fini->faults({ endpoint => 'funding/confirm', action => 'status-before', status => 429, retryAfter => 0, count => -1 });
$fini->sql('select fini.resume()');
is(confirm(20, @numbers), 2, 'asked for again');
settled(60);
is($fini->sql('select string_agg(distinct state || $$ $$ || error_code, $$,$$) from fini.funding_confirmation where id > (select max(id) - 2 from fini.funding_confirmation)'),
	'failed http_429', 'what was never processed fails with the reason');
$fini->clear_faults;
$fini->sql('select fini.resume()');
confirm(20, @numbers);
settled();
$changed += 2;
agree('in the end', '20', $changed, @numbers);

# --- not a designated bank: this endpoint stops, the others go on ---

fund('1234', 160);
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
$sandbox->config(entitle => ['subscriptions']);
confirm(20, 160);
$fini->wait_for(q{select last_error like 'funding/query stopped%' from fini.status}, 'the endpoint to be stopped');
my $refused = calls('query') + calls('confirm');
$fini->sql(q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
	values ('a', '1234', 1000, 'PASSPORT', 'GBR', '123456789', 'DOE, Jane')});
$fini->wait_done;
is($fini->sql('select fini_state from applications'), 'accepted', 'applications go on without the entitlement to funding');
is_deeply(states(160), { queued => 1 }, 'the confirmation stays queued');
like($fini->sql(q{select error_code, error_message from fini.funding_confirmation where state = 'queued'}), qr/^403\|not entitled/, 'and says why');
is($fini->sql(q{select funding_open, queued, on_time is null from fini.progress where ipo_id = '1234'}), '1|0|t', 'fini.progress counts it apart from applications');
is($fini->sql(q{select ok, detail from fini.check() where item = 'queue'}), 't|0 operations are queued, 0 being sent, 0 in doubt; 1 confirmations of funding.', 'fini.check: it is open');
$fini->sql(q{update fini.funding_confirmation set created_at = now() - interval '1 hour' where state = 'queued'});
like($fini->sql(q{select ok, detail from fini.check() where item = 'queue'}), qr/^f\|1 confirmations of funding are open, the oldest since .*, code 403: see fini\.funding_confirmation\. An endpoint is stopped: see endpoints\.$/, 'fini.check: for too long');
$refused += 2;	# fini.check asks for itself
$fini->sql_fails('select fini.refresh_funding()', qr/IP007/, 'refresh_funding says it at once');
is(calls('query') + calls('confirm'), $refused + 1, 'FINI is not asked over and over');
$sandbox->config(entitle => [ 'subscriptions', 'funding' ]);
$fini->sql('select fini.resume()');
settled();
$changed += 1;
agree('entitled again', '20', $changed, 160);
is($fini->sql(q{select funding_open from fini.progress where ipo_id = '1234'}) . $fini->sql(q{select detail from fini.check() where item = 'queue'}), '0Nothing is open.', 'and seen there as well');

# not armed: queued, and not sent
$fini->sql('select fini.disarm()');
fund('1234', 161);
confirm(20, 161);
$calls = calls('confirm');
$fini->sql('select fini.refresh_ipos()');
is_deeply(states(161), { queued => 1 }, 'disarmed, it stays queued');
is($fini->sql(q{select ok is null, detail from fini.check() where item = 'queue'}), 't|0 operations and 1 confirmations of funding are open, and wait: see armed.', 'fini.check: which is no fault');
is(calls('confirm'), $calls, 'and nothing is sent');
$fini->sql('select fini.arm()');
settled();
$changed += 1;
agree('armed again', '20', $changed, 161);

is(count('confirmed_again') <= 0, 1, 'no confirmation was ever sent for what FINI had already') or diag count('confirmed_again');

done_testing();
