# Direct calls: every one of them against what the gateway holds; arguments; who may not call; tokens; interrupts.

use strict;
use warnings;

use FiniTest;
use IO::Socket::INET;
use IPC::Run;
use Test::More;
use Time::HiRes qw(time);

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0 },
	gateway => [ '--rate-limit', 0 ],
	init => { allows_streaming => 1 });
my $node = $fini->node;

$fini->sql(q{
	create function applications(prefix text, n int, ipo text default '1234') returns jsonb language sql as $$
		select coalesce(jsonb_agg(jsonb_build_object('ipoID', ipo, 'ownRef', prefix || i, 'appQuantity', (500 * i)::text,
			'idList', jsonb_build_array(jsonb_build_object('idType', 'PASSPORT', 'idCountryJurisdiction', 'GB', 'idNum', 'P' || i,
				'fullNameEng', 'Chan O''Neil-"Tai\Man" ' || i, 'fullNameChi', '陳大文𠮷'))) order by i), '[]')
		from generate_series(1, n) i $$;
	create table sent (n bigint primary key, entry jsonb);
	create table added (n bigint, request_id text, own_ref text, record_id text, error_code text, error_message text)});

sub requests { return $fini->stats->{requests}{ $_[0] } // 0 }

# the IPOs, page by page, as the gateway has them
{
	my @ipos = @{ $fini->admin('GET', '/ipos') };
	$fini->config(maxPageSize => 3);
	is($fini->sql(q{select string_agg(concat_ws(' ', ipo_id, stock_code, isin, status), ',') from fini.ipo_list()}),
		join(',', map { join ' ', @{$_}{qw(ipoID stkCode isin status)} } @ipos), 'ipo_list gives every page, in order');
	is($fini->sql(q{select raw ->> 'isin' from fini.ipo_list() where ipo_id = '3456'}), 'HK0000034561', 'ipo_list keeps the whole row');
	is($fini->sql(q{select fini.ipo_refdata('3456') ->> 'issuer'}), 'Star Ferry Foods', 'ipo_refdata');
	$fini->sql_fails(q{select fini.ipo_refdata('no/such?&ipo=1')}, qr/IP006.*400101.*ipoID is missing or unknown/s, 'ipo_refdata of an unknown IPO');
	is($fini->sql(q{select fini.ipo_refdata(null) is null}), 't', 'ipo_refdata of null');
	$fini->config(maxPageSize => 1000);
}

# as many entries as one likes, one row for each, in order
for my $n (0, 1, 1000, 1001, 2500)
{
	my $before = requests('subscriptions/add');
	$fini->sql(qq{
		truncate sent, added;
		insert into sent select ordinality, value from jsonb_array_elements(applications('A$n-', $n)) with ordinality;
		insert into added select row_number() over (), a.* from fini.subscription_add((select jsonb_agg(entry order by n) from sent)) a});
	is($fini->sql('select count(*), count(record_id), count(error_code), count(distinct request_id) from added'),
		join('|', $n, $n, 0, int(($n + 999) / 1000)), "$n entries: a record for each");
	is($fini->sql(qq{select count(*) from added where own_ref <> 'A$n-' || n}), 0, "$n entries: rows in order");
	is(requests('subscriptions/add') - $before, int(($n + 999) / 1000), "$n entries: as few requests as can be");
	$fini->load_dump('gateway_dump');
	is($fini->sql(qq{
		select count(*) from added a join sent using (n) join gateway_dump d on d.r ->> 'recordID' = a.record_id
		where d.r ->> 'ownRef' = a.own_ref and d.r ->> 'appQuantity' = (500 * n)::text and d.r ->> 'firmID' = '00000'
		  and d.r -> 'idList' = entry -> 'idList'
		  and d.r #>> '{_history,0,requestID}' = a.request_id}), $n, "$n entries: the gateway has what the rows say");
}
is($fini->stats->{records}, 4502, 'nothing was added twice');

# the query: all pages, decrypted
{
	$fini->config(maxPageSize => 700);
	my $before = requests('subscriptions/query');
	is($fini->sql(q{
		select count(*), count(*) filter (where ipo_id = '1234' and sub_flow_status = '10' and own_ref = d.r ->> 'ownRef'
			and app_quantity = (d.r ->> 'appQuantity')::numeric and id_list = d.r -> 'idList' and raw -> 'idList' = id_list)
		from fini.subscription_query('1234') join gateway_dump d on d.r ->> 'recordID' = record_id}), '4502|4502',
		'subscription_query gives every record, decrypted');
	is(requests('subscriptions/query') - $before, 7, 'page by page');
	$fini->config(maxPageSize => 1000);

	is($fini->sql(q{select count(*), count(distinct record_id), min(n), max(n) from fini.subscription_query(record_ids =>
		(select array_agg(record_id order by n) from added)) join added using (record_id)}), '2500|2500|1|2500',
		'subscription_query by 2500 record IDs');
	is($fini->sql(q{select count(*) from fini.subscription_query(record_ids => '{}')}), 0, 'by no record ID');
	is($fini->sql(q{select count(*) from fini.subscription_query(record_ids => '{0000000000000000A}')}), 0, 'by an unknown record ID');
	is($fini->sql(q{select count(*) from fini.subscription_query('3456')}), 0, 'of an IPO without records');
	$fini->sql_fails('select fini.subscription_query()', qr/22023.*an ipo_id or record_ids are needed/s, 'of nothing');
	$fini->sql_fails(q{select fini.subscription_query(record_ids => '{a,null}')}, qr/22004.*must not contain nulls/s, 'by a null');
	$fini->sql_fails(q{select fini.subscription_query('1234', sub_flow_status => 'x')}, qr/IP006.*400904/s, 'by an unknown status');
	$fini->sql_fails(q{select fini.subscription_query(repeat('9', 21))}, qr/IP006.*400902/s, 'by too long an IPO');
}

# changes and invalidations
{
	is($fini->sql(q{
		with c as (select c.* from fini.subscription_change((select jsonb_agg(entry || jsonb_build_object('recordID', record_id, 'appQuantity', '77') order by n)
			from added join sent using (n))) c)
		select count(*), count(*) filter (where c.record_id = a.record_id and c.error_code is null) from c join added a using (own_ref)}),
		'2500|2500', '2500 changes, each of its record');
	is(scalar(grep { $_->{appQuantity} eq '77' && @{ $_->{_history} } == 2 } @{ $fini->dump }), 2500, 'each once at the gateway');
	is($fini->sql(q{select own_ref, record_id = (select record_id from added where n = 1), error_code
		from fini.subscription_change((select jsonb_build_array(jsonb_build_object('recordID', record_id, 'appQuantity', '78')) from added where n = 1))}),
		'A2500-1|t|', 'a change of one field: the ownRef comes from FINI');
	is($fini->sql(q{select own_ref, record_id, error_code from fini.subscription_change('[{"recordID":"0000000000000000A","ownRef":"x","appQuantity":"1"}]')}),
		'x|0000000000000000A|400110', 'a change of an unknown record is a row');

	is($fini->sql(q{select count(*), count(*) filter (where i.record_id = a.record_id and i.error_code is null) from added a
		join fini.subscription_invalidate((select array_agg(record_id order by n) from added where n <= 1500)) i using (record_id)}),
		'1500|1500', '1500 invalidations');
	is($fini->sql(q{select string_agg(coalesce(error_code, 'ok'), ',') from fini.subscription_invalidate(
		(select array[record_id, '0000000000000000A', record_id] from added where n = 2000))}), 'ok,400110,400111',
		'one invalidated, one unknown, one invalidated already');
	is(scalar(grep { $_->{subFlowStatus} eq '20' } @{ $fini->dump }), 1501, 'invalidated at the gateway');
	is($fini->sql(q{select count(*) from fini.subscription_query('1234', sub_flow_status => '20')}), 1501, 'subscription_query by status');
	is($fini->sql(q{select count(*) from fini.subscription_invalidate('{}')}), 0, 'no invalidation');
	is($fini->stats->{duplicate_adds}, 0, 'no application came twice');
}

# entries that FINI rejects, and those beside them
is($fini->sql(q{
	select string_agg(concat_ws(' ', own_ref, coalesce(error_code, 'ok'), record_id is null), ',') from fini.subscription_add(
		applications('good', 1) || applications('closed', 1, '9012') || applications('none', 1, '777')
		|| jsonb_set(applications('quantity', 1), '{0,appQuantity}', '"-5"') || jsonb_set(applications('nobody', 1), '{0,idList}', '[]')
		|| '[{}]' || '[{"ownRef":null,"ipoID":[],"idList":{}}]' || applications('last', 1))}),
	'good1 ok f,closed1 400102 t,none1 400101 t,quantity1 400103 t,nobody1 400104 t,400103 t,400103 t,last1 ok f',
	'rejected entries are rows in their place');

# funding
{
	my @funding = map { { transactionRef => sprintf('%013d', $_), ipoID => '5678', preFundingStatus => '10', amount => "$_.50" } } 1 .. 2300;
	$fini->admin('POST', '/funding', \@funding);
	is($fini->sql(q{select count(*), count(*) filter (where pre_funding_status = '10' and raw ->> 'amount' = transaction_ref::int || '.50')
		from fini.funding_query('5678')}), '2300|2300', 'funding_query of an IPO, all pages');
	cmp_ok($fini->sql('select count(*) from fini.funding_query()'), '>', 2300, 'funding_query of all');
	is($fini->sql(q{
		select count(*), count(*) filter (where transaction_ref = refs[n] and pre_funding_status = '20' and error_code is null)
		from (select array_agg(lpad(i::text, 13, '0') order by i desc) refs from generate_series(1, 2200) i) r,
			lateral (select row_number() over () n, c.* from fini.funding_confirm(refs, '20') c) c}), '2200|2200',
		'2200 confirmations, rows in order');
	is(scalar(grep { $_->{ipoID} eq '5678' && $_->{preFundingStatus} eq '20' } @{ $fini->admin('GET', '/funding') }), 2200, 'confirmed at the gateway');
	is($fini->sql(q{select string_agg(concat_ws(' ', transaction_ref, pre_funding_status, error_code), ',') from fini.funding_confirm(
		'{0000000002300,9999999999999,0000000000001,0000000002299}', '30')}),
		'0000000002300 30,9999999999999 400131,0000000000001 20 400132,0000000002299 30', 'rejections, and confirmations refused, as rows');
	$fini->sql_fails(q{select fini.funding_confirm('{1}', '25')}, qr/22023.*"25" is no status/s, 'an unknown status');
	$fini->sql_fails(q{select fini.funding_confirm('{1,null}', '20')}, qr/22004/, 'a null reference');
	is($fini->sql(q{select count(*) from fini.funding_confirm('{}', '20')}), 0, 'no confirmation');
}

# any endpoint
{
	is($fini->sql(q{select fini.call('/api/ipos/list/v1?size=2&nextCursor=0') ->> 'nextCursor'}), '2', 'call: GET');
	is($fini->sql(q{select jsonb_array_length(fini.call('/api/eipo/subscriptions/query/v1',
		'{"data":{"ipoID":"1234"},"size":5,"nextCursor":"0"}', true) -> 'data')}), 5, 'call: a sealed query');
	is($fini->sql(q{select fini.call('/api/eipo/subscriptions/query/v1', '{"data":{"ipoID":"1234"},"size":1,"nextCursor":"0"}', true)
		#>> '{data,0,idList,0,fullNameChi}'}), '陳大文𠮷', 'call: its answer is opened');
	is($fini->sql(q{select fini.call('/api/eipo/subscriptions/add/v1', jsonb_build_object('data', jsonb_set(applications('call', 1),
		'{0,requestID}', '"7"')), true) #>> '{data,0,requestID}'}), '7', 'call: a sealed add');
	$fini->sql_fails(q{select fini.call('/api/eipo/subscriptions/add/v1', jsonb_build_object('data', applications('clear', 1)))},
		qr/22023.*personal data is sent in a sealed body only/s, 'call: personal data is not sent in the clear');
	$fini->sql_fails(q{select fini.call('/api/no/such/v1')}, qr/IP007.*not entitled to \/api\/no\/such\/v1.*HTTP status 404/s, 'call: no such endpoint');
	for my $path ('', 'api', '//evil.example', '/a//b', '/a/../b', '/a b', '/a#b', '/a\\b', "/a\nb", '/陳')
	{
		$fini->sql_fails("select fini.call(\$p\$$path\$p\$)", qr/22023.*is no path of the gateway/s, "call: path $path");
	}
	$fini->sql_fails('select fini.call(null)', qr/22004/, 'call: no path');
	$fini->sql_fails(q{select fini.call('/api/crypto/meta', null, true)}, qr/22023.*needs a body/s, 'call: sealed without a body');
}

# arguments that cannot be
{
	my $before = $fini->stats->{requests}{'subscriptions/add'};
	for my $bad ('null', '1', '"x"', '{}', '{"ownRef":"x"}', '[1]', '[null]', '[[]]', '[{"ownRef":"a"},"b"]')
	{
		$fini->sql_fails("select fini.subscription_add('$bad')", qr/22023.*(must be a JSON array|is not a JSON object)/s, "entries $bad");
	}
	is($fini->sql('select count(*) from fini.subscription_add(null)'), 0, 'no entries at all');
	is($fini->sql('select count(*) from fini.subscription_invalidate(null)'), 0, 'no record IDs at all');
	$fini->sql_fails(q{select fini.subscription_invalidate('{a,null}')}, qr/22004/, 'a null record ID');
	$fini->sql_fails(q{select fini.subscription_change(applications('x', 3))}, qr/22023.*entry 1 has no recordID/s, 'a change without recordID');
	$fini->sql_fails(q{select fini.subscription_change('[{"recordID":"a"},{"recordID":""}]')}, qr/22023.*entry 2 has no recordID/s,
		'a change with an empty one');
	$fini->sql_fails(q{select fini.subscription_add(applications('x', 1500) || applications('x', 7))},
		qr/22023.*entries 1 and 1501 have the same ownRef/s, 'one application twice');
	# found before anything is sent, although it is in the second request
	for my $nested ('{}', '[]', '["HKID"]', '{"idNum":"S3CRET"}')
	{
		my ($rc, undef, $err) = $fini->try_sql(qq{
			select fini.subscription_add(applications('x', 1500) || jsonb_set(applications('y', 1), '{0,idList,0,idNum}', '$nested'))});
		like($err, qr/22023.*personal field "idNum".*entry 1501/s, "a personal field that is $nested");
		unlike($err, qr/S3CRET/, 'which the error does not show');
	}
	$fini->sql_fails(q{select fini.subscription_add(applications('x', 1000) ||
			jsonb_build_array((repeat('{"a":', 1100) || '1' || repeat('}', 1100))::jsonb))},
		qr/22023.*nested too deeply.*entry 1001/s, 'nested without end');
	$fini->sql_fails(q{select fini.subscription_add(jsonb_build_array(jsonb_build_object('ownRef', repeat('x', 67200000))))},
		qr/54000.*too long for one request/s, 'an entry of 70 MB');
	is($fini->stats->{requests}{'subscriptions/add'}, $before, 'none of these was sent');

	# awkward but not wrong
	is($fini->sql(q{select own_ref, error_code from fini.subscription_add(jsonb_build_array(applications('n', 1) -> 0
			|| '{"requestID":"99","recordID":"x","extra":{"a":[1e400,null,"\ud83d\ude00"]},"appQuantity":5}'))}), 'n1|',
		'further fields, a requestID of one\'s own');
	my ($record) = grep { ($_->{ownRef} // '') eq 'n1' } @{ $fini->dump };
	is($record->{extra}{a}[2], "\x{1f600}", 'which arrive as they are');
	is($fini->sql(q{select own_ref = repeat('o', 20000), error_code from fini.subscription_add(
		jsonb_build_array(applications('x', 1) -> 0 || jsonb_build_object('ownRef', repeat('o', 20000))))}), 't|', 'a long ownRef');
}

# who may not
{
	$fini->sql('select fini.disarm()');
	my $before = $fini->stats;
	for my $call (q{subscription_add(applications('d', 1))}, q{subscription_change('[{"recordID":"a"}]')}, q{subscription_invalidate('{a}')},
		q{funding_confirm('{0000000002298}', '20')}, q{call('/api/eipo/subscriptions/add/v1', '{"data":[]}', true)},
		q{call('/api/eipo/subscriptions/add%2Fv1', '{}')}, q{subscription_add('[]')})
	{
		$fini->sql_fails("select fini.$call", qr/IP011.*not armed.*fini\.arm/s, "disarmed: $call");
	}
	is_deeply($fini->stats->{requests}, $before->{requests}, 'disarmed: nothing was sent');
	for my $call ('ipo_list()', q{ipo_refdata('1234')}, q{subscription_query('1234')}, 'funding_query()', q{call('/api/ipos/list/v1?size=1&nextCursor=0')},
		q{call('/api/eipo/funding/query/v1', '{"data":{},"size":1,"nextCursor":"0"}')})
	{
		is(($fini->try_sql("select fini.$call"))[0], 0, "disarmed: $call works");
	}
	$fini->sql('select fini.arm()');

	$fini->sql('create database other');
	$fini->sql('create extension fini', database => 'other');
	$fini->sql_fails('select fini.ipo_list()', qr/IP002.*fini\.databases/s, 'a database that is not in fini.databases', database => 'other');
	$fini->sql_fails(q{select fini.subscription_add('[{}]')}, qr/IP002.*fini\.databases/s, 'the same, changing', database => 'other');

	$node->backup('copy');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'copy', has_streaming => 1);
	$standby->start;
	$node->wait_for_catchup($standby);
	for my $call ('ipo_list()', q{ipo_refdata('1234')}, q{subscription_add('[{}]')}, q{subscription_change('[{"recordID":"a"}]')},
		q{subscription_invalidate('{a}')}, q{subscription_query('1234')}, 'funding_query()', q{funding_confirm('{a}', '20')}, q{call('/a')})
	{
		my (undef, undef, $err) = $standby->psql('postgres', "\\set VERBOSITY verbose\nselect fini.$call");
		like($err, qr/25006.*during recovery/s, "standby: $call");
	}
	$standby->stop('immediate');
}

# a session that points elsewhere does not take the token there
{
	my $listener = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1', Blocking => 0) or die "listen: $!";
	my $start = time;
	$fini->sql_fails("set fini.request_timeout = '2s'; set fini.base_url = 'https://localhost:" . $listener->sockport . "'; select fini.ipo_list()",
		qr/IP001.*differ from those of the worker.*reconnect/s, 'settings that differ from the worker\'s');
	cmp_ok(time - $start, '<', 10, 'said in time');
	is($listener->accept, undef, 'nobody called there');
	is($fini->sql(q{set fini.request_timeout = '2s'; set fini.firm_id = '00001'; select count(*) > 0 from fini.ipo_list()}), 't',
		'other settings may differ');
}

# a gateway that hangs
for my $endpoint ('subscriptions/query', 'subscriptions/add', 'token')
{
	my $call = $endpoint =~ /add/ ? q{fini.subscription_add(applications('hang', 1))} : q{fini.subscription_query('5678')};
	my ($start, $rc, $err);

	for my $how ('statement_timeout', 'cancel')
	{
		# noticed by the call, which then waits for the next token
		$fini->admin('POST', '/expire-tokens') if $endpoint eq 'token';
		$fini->faults({ endpoint => $endpoint, action => 'hang-before', ms => 3000 });
		if ($how eq 'statement_timeout')
		{
			$start = time;
			(undef, undef, $err) = $fini->try_sql("set statement_timeout = '400ms'; select $call");
			cmp_ok(time - $start, '<', 1.4, "$endpoint hangs: statement_timeout ends the call");
		}
		else
		{
			my ($out);
			my $harness = IPC::Run::start([ 'psql', '-XAt', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres'), '-c', "select $call" ],
				'>', \$out, '2>', \$err);
			$fini->wait_for(q{select exists (select from pg_stat_activity where state = 'active' and wait_event_type = 'Extension'
				and query like 'select fini.subscription%')}, 'the call to wait');
			$start = time;
			$fini->sql(q{select pg_cancel_backend(pid) from pg_stat_activity where state = 'active' and query like 'select fini.subscription%'});
			$harness->finish;
			cmp_ok(time - $start, '<', 1, "$endpoint hangs: pg_cancel_backend ends the call");
		}
		like($err, qr/57014/, "$endpoint hangs: $how says so");
		$fini->clear_faults;
		# the worker's own request for a token ends when the gateway drops it
		$fini->wait_for(sub { ($fini->try_sql(q{select count(*) from fini.subscription_query('5678')}))[1] eq '0' }, 'a token')
		  if $endpoint eq 'token';
		is($fini->sql(q{select count(*) from fini.subscription_query('5678')}), 0, "$endpoint hung: the next call works");
	}
}
is(scalar(grep { ($_->{ownRef} // '') eq 'hang1' } @{ $fini->dump }), 0, 'what hung before it was processed was not sent again');

# one fetch, however many ask
{
	my $before = $fini->stats;
	$node->restart;
	my @harnesses;
	my @out = ('') x 20;
	for my $i (0 .. 19)
	{
		push @harnesses, IPC::Run::start([ 'psql', '-XAt', '-d', $node->connstr('postgres'), '-c', q{select count(*) from fini.subscription_query('5678')} ],
			'>', \$out[$i], '2>&1');
	}
	$_->finish for @harnesses;
	is_deeply([ map { s/\s+//gr } @out ], [ ('0') x 20 ], '20 sessions at once are served');
	is($fini->stats->{tokens} - $before->{tokens}, 1, 'with one token');
	is($fini->stats->{meta} - $before->{meta}, 1, 'and one public key');
}

# tokens of 5 s while they are used; and none when nobody does
{
	$fini->config(tokenLifetime => 5);
	$fini->admin('POST', '/expire-tokens');
	my $before = $fini->stats;
	$fini->sql('select fini.ipo_list()');
	my $refused = @{ $fini->refusals };
	$fini->wait_for(sub { $fini->sql('select count(*) from fini.ipo_list()'); $fini->stats->{tokens} >= $before->{tokens} + 3 },
		'three tokens of 5 s');
	is(scalar(@{ $fini->refusals }), $refused, 'no call met a token that had run out');

	# the worker may replace it once more, for the use since; then it runs out. The worker looks at its queue every 10 s
	$fini->wait_for(q{select token_expires_at is null from fini.status}, 'the token to run out', 30);
	my $tokens = $fini->stats->{tokens};
	my $until = time + 11;
	$fini->wait_for(sub { time > $until }, 'the worker\'s next look');
	is($fini->stats->{tokens}, $tokens, 'nobody calls: no token is fetched');
	is($fini->sql('select count(*) > 0 from fini.ipo_list()'), 't', 'and one when somebody does');
	is($fini->stats->{tokens}, $tokens + 1, 'just one');
	$fini->config(tokenLifetime => 30);
}

# a token service that refuses
{
	my $from = $fini->log_position;
	$fini->sql(q{alter system set fini.agent_issuer = 'https://somebody.else.example'});
	$fini->sql('select pg_reload_conf()');
	$fini->wait_for(sub { (($fini->try_sql(q{set fini.request_timeout = '5s'; select fini.ipo_list()}))[2]) =~ /IP003/ }, 'the settings to be read');
	my (undef, undef, $err) = $fini->try_sql('select fini.ipo_list()');
	like($err, qr/IP003.*refused an access token.*JWT assertion is not valid/s, 'a refused token: the error has the gateway\'s description');
	unlike($err . $fini->log_since($from), qr/eyJ|Bearer|PRIVATE|assertion=/, 'and no secret, nor has the log');
	$fini->sql('alter system reset fini.agent_issuer');
	$fini->sql('select pg_reload_conf()');
	$fini->wait_for(sub { ($fini->try_sql(q{set fini.request_timeout = '5s'; select fini.ipo_list()}))[0] == 0 }, 'calls to work again');
	pass('and mended, it works again');
}

is($fini->stats->{repeated_request_ids}, 0, 'no request was sent twice under one ID');
is($fini->stats->{duplicate_adds}, 0, 'and no application');

done_testing();
