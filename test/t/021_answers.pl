# Everything the gateway may answer to a direct call: a clear error or a visible row, nothing sent twice by itself,
# and nothing personal where it does not belong.

use strict;
use warnings;
use utf8;

use FiniTest;
use IO::Socket::INET;
use Test::More;

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 10, 'fini.request_timeout' => '5s' },
	gateway => [ '--rate-limit', 0 ],
	conf => "log_min_messages = debug1\nlog_statement = none\n");
my $log_start = $fini->log_position;

# what must show up nowhere but in the gateway's store
my @personal = ('Wong Kar-Fai', 'K98765432', '黃家輝𠮷', 'Wong Mei-Ling');
my $round = 0;

# a literal of n applications of this round, the first one with personal values that are looked for later
sub applications
{
	my ($n) = @_;
	my $json = JSON::PP->new->canonical;
	return $json->encode([
		map { {
			ipoID => '1234', ownRef => "R$round-$_", appQuantity => '500',
			idList => [ { idType => 'PASSPORT', idCountryJurisdiction => 'GB', idNum => $_ == 1 ? " $personal[1] " : "P$_",
				fullNameEng => $_ == 1 ? $personal[0] : "Name $_", fullNameChi => $_ == 1 ? $personal[2] : undef },
				$_ == 1 ? { idType => 'PASSPORT', idCountryJurisdiction => 'GB', idNum => 87654321, fullNameEng => $personal[3], fullNameChi => 'Wong' } : () ]
		} } 1 .. $n ]);
}

# one call under some faults: what psql said, and what the gateway saw of it
sub under
{
	my ($faults, $call, $endpoint) = @_;
	my $before = $fini->stats;
	$fini->faults(ref $faults eq 'ARRAY' ? @$faults : $faults);
	my $query = "select $call";
	utf8::encode($query);
	my ($rc, $out, $err) = $fini->try_sql($query);
	utf8::decode($_) for $out, $err;
	my $after = $fini->stats;
	$fini->clear_faults;
	return { rc => $rc, out => $out, err => $err,
		requests => ($after->{requests}{$endpoint} // 0) - ($before->{requests}{$endpoint} // 0),
		records => $after->{records} - $before->{records} };
}

sub add_under
{
	my ($fault, $n) = @_;
	$round++;
	return under([ map { { endpoint => 'subscriptions/add', %$_ } } ref $fault eq 'ARRAY' ? @$fault : $fault ],
		"string_agg(concat_ws(' ', split_part(own_ref, '-', 2), record_id is not null, error_code, error_message), E'\\n')"
		  . " from fini.subscription_add('" . (applications($n) =~ s/'/''/gr) . "')", 'subscriptions/add');
}

sub title { my ($f) = @_; return (join " ", map { "$_=" . substr($f->{$_}, 0, 40) } sort keys %$f) =~ s{[^ -~]}{?}gr }

# a whole request that fails: [ fault, error, requests, records ]
my $told = "applicant \U$personal[0]\E ($personal[1]) $personal[2], 87654321, $personal[3]: no";
my $blanked = qr/applicant \*+ \(\*+\) \*+, \*+, \*+: no/;
for my $case (
	[ { action => 'drop-before' }, qr/IP005.*not known whether FINI processed.*query before/s, 1, 0 ],
	[ { action => 'drop-after' }, qr/IP005/, 1, 1 ],
	[ { action => 'hang-before', ms => 6000 }, qr/IP005/, 1, 0 ],
	[ { action => 'hang-after', ms => 6000 }, qr/IP005/, 1, 1 ],
	[ { action => 'status-before', status => 500 }, qr/IP005.*HTTP status 500/s, 1, 0 ],
	[ { action => 'status-after', status => 503, body => '<html>busy</html>' }, qr/IP005.*HTTP status 503, code http_503/s, 1, 1 ],
	[ { action => 'status-before', status => 504, body => '' }, qr/IP005.*HTTP status 504.*answer is empty/s, 1, 0 ],
	[ { action => 'status-before', status => 403 }, qr/IP007.*not entitled to subscriptions\/add/s, 1, 0 ],
	[ { action => 'status-before', status => 404 }, qr/IP007/, 1, 0 ],
	[ { action => 'status-before', status => 401, count => 2 }, qr/IP006.*HTTP status 401, code http_401: the access token was not accepted/s, 2, 0 ],
	[ { action => 'status-before', status => 413 }, qr/IP006.*HTTP status 413/s, 1, 0 ],
	[ { action => 'code-before', status => 400, code => '411007', message => 'wrong public key', count => 2 }, qr/IP006.*code 411007: wrong public key/s, 2, 0 ],
	[ { action => 'code-before', status => 400, code => '411001', message => 'envelope' }, qr/IP006.*code 411001: envelope/s, 1, 0 ],
	[ { action => 'code-after', status => 400, code => '411002', message => 'duplicate request ID' }, qr/IP005.*code 411002: duplicate request ID/s, 1, 1 ],
	[ { action => 'code-before', status => 400, code => '400999', message => $told }, qr/IP006.*HTTP status 400, code 400999: $blanked/s, 1, 0 ],
	[ { action => 'code-before', status => 200, code => '400999', message => $told }, qr/IP006.*HTTP status 200, code 400999: $blanked/s, 1, 0 ],
	[ { action => 'code-after', status => 500, code => '500000', message => $told }, qr/IP005.*HTTP status 500, code 500000: $blanked/s, 1, 1 ],
	[ { action => 'code-before', status => 400, code => $personal[1], message => "tab\there" }, qr/IP006.*code \*+: tab here/s, 1, 0 ],
	[ { action => 'code-before', status => 400, code => '1', message => ('long ' x 1000) . $told }, qr/IP006.*long long/s, 1, 0 ],
	[ { action => 'code-before', status => 400, code => '1', message => ('x' x 393) . $personal[0] }, qr/IP006.*x\*+/s, 1, 0 ],
	[ { action => 'garbage' }, qr/IP005.*code unreadable: the answer is not the JSON object/s, 1, 1 ],
	[ { action => 'garbage', body => '[' x 100000 }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'garbage', body => '{"code":"0","x":"a' . '\\' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'garbage', body => '"text"' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'garbage', body => '{"code":"0","data":[{"requestID":1e500000}]}' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'garbage', body => '{"code":"0","data":[{"requestID":1e-100}]}' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'garbage', body => '{"code":"0","data":[{"requestID":' . ('1' x 131073) . '}]}' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'garbage', body => '{"code":"0","data":' . ('[' x 1000) . (']' x 1000) . '}' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'garbage', body => '{"code":"0","data":[' . ('[],' x 700_000) . '[]]}' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'wrong-shape', body => '[1,2]' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'wrong-shape', body => '{"data":[]}' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'wrong-shape', body => '{"code":{},"data":[]}' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'wrong-shape', body => '{"code":"' . ('9' x 100) . '"}' }, qr/IP005.*unreadable/s, 1, 1 ],
	[ { action => 'wrong-shape', body => '{"code":"0","exception":[{"recordErrorCode":"400777","recordErrorMsg":"all wrong"}]}' },
		qr/IP006.*code 400777: all wrong/s, 1, 1 ],
	[ { action => 'invalid-utf8' }, qr/IP005.*not valid UTF-8/s, 1, 1 ],
	[ { action => 'truncate' }, qr/IP005.*code no_answer/s, 1, 1 ],
	[ { action => 'oversize', bytes => 70_000_000 }, qr/IP005.*code no_answer/s, 1, 1 ])
{
	my ($fault, $error, $requests, $records) = @$case;
	my $got = add_under($fault, 1);
	my $name = 'add under ' . title($fault);

	isnt($got->{rc}, 0, "$name fails") or diag $got->{out};
	like($got->{err}, $error, "$name: error");
	is("$got->{requests} $got->{records}", "$requests $records", "$name: requests and records at the gateway");
}

# an encrypted field is nobody's to read, but need not be shown
like(add_under({ action => 'code-before', status => 400, code => '1', message => 'cannot read %enc_%QUJD+/= of yours' }, 1)->{err}, qr/cannot read %enc_%\*{7} of yours/, 'a quoted ciphertext is withheld');

# outcomes count whatever the code beside them
like(add_under({ action => 'wrong-shape', body => '{"code":"400999","data":[{"requestID":"1","recordID":"1111111111111111A"}]}' }, 1)->{out}, qr/^1 t/, 'an entry with an outcome has it');

# what is no JSON, by each rule of its grammar
for my $body ('{1:2}', '{"a":1,2:3}', '{"a" 1}', '{"a":}', '{"a":]}', '{"a":1 "b":2}', '{"a":[1 2]}', '{"code":"0"}x', '{"code":"0"}{}', "{\"a\":\"\t\"}", '{"a":"\u12g4"}', '{"a":"\x"}', '-', '{"a":-}', '{"a":01}',
	'{"a":1.}', '{"code":"0","data":[' . ('0,' x 100_000) . '0]}', '{"a":1e}', '{"a":1e+}', '{"a":1x}', '{"\ud800":1}', '{"a":"', '{"a":"\u12')
{
	like(under({ endpoint => 'subscriptions/query', action => 'garbage', body => $body }, q{fini.subscription_query('5678')}, 'subscriptions/query')->{err}, qr/IP010/, "a query answered by " . substr $body, 0, 40);
}
like(under({ endpoint => 'subscriptions/query', action => 'garbage', body => '{"code":false,"data":[]}' }, q{fini.subscription_query('5678')}, 'subscriptions/query')->{err}, qr/code false/, 'a code that is a Boolean');
is(under({ endpoint => 'subscriptions/query', action => 'garbage', body => '{"code":0e+5,"data":[]}' }, q{count(*) from fini.subscription_query('5678')}, 'subscriptions/query')->{out}, 0, 'one that is zero after all');
is(under({ endpoint => 'ipos/refdata', action => 'garbage', body => '{"code":"0","data":null}' }, q{fini.ipo_refdata('1234') is null}, 'ipos/refdata')->{out}, 't', 'reference data of nothing');

# what is not processed for reasons of token or key goes again, once, and arrives
for my $fault (
	{ action => 'status-before', status => 401 },
	{ action => 'code-before', status => 400, code => '411007' },
	{ action => 'code-before', status => 400, code => '411008' },
	{ action => 'code-before', status => 400, code => '411011' },
	{ action => 'code-before', status => 400, code => '411004' })
{
	my $got = add_under($fault, 2);
	is("$got->{out} $got->{requests} $got->{records}", "1 t\n2 t 2 2", 'add under ' . title($fault) . ' goes again and arrives');
}

# 429: nothing happened; the call after it waits as long as the gateway asked for
{
	my $got = add_under({ action => 'status-before', status => 429, retryAfter => 1 }, 1);
	like($got->{err}, qr/IP008.*throttling.*Nothing was processed/s, '429 is an error');
	is($got->{requests}, 1, 'and not sent again');
}

# entries: [ fault, rows ]
my $all = join "\n", map { "$_ t" } 1 .. 5;
for my $case (
	[ { action => 'delay', ms => 200 }, $all ],
	[ { action => 'trickle', ms => 0 }, $all ],
	[ { action => 'reorder' }, $all ],
	[ { action => 'extra-entries', n => 3 }, $all ],
	[ { action => 'request-id-number' }, $all ],
	[ { action => 'request-id-string' }, $all ],
	[ { action => 'big-record-id' }, qr/^1 f unknown .*find out.*\n2 t\n3 t\n4 t\n5 t$/ ],
	[ { action => 'drop-entries', n => 2 }, qr/^(?=(?:.*\n)*.* f unknown .*account)(?:\d [tf].*\n?){5}$/ ],
	[ { action => 'reject-entries', n => 2, code => '400120', message => $told }, qr/^1 f 400120 $blanked\n2 f 400120 applicant .*\n3 t\n4 t\n5 t$/ ],
	[ { action => 'reject-entries', n => 1, status => 400, code => $personal[1], message => '' }, qr/^1 f \*+ \n2 t\n/ ],
	[ { action => 'wrong-shape', body => '{"code":"0","data":{"recordID":"x"}}' }, qr/^(\d f unknown .*\n?){5}$/ ],
	[ { action => 'wrong-shape', body => '{"code":"0","data":[1,null,"x",[],{},{"requestID":1},{"requestID":"2","recordID":"0000000000000001A","ownRef":"other"}]}' },
		qr/^(\d f unknown .*\n?){5}$/ ],
	[ { action => 'wrong-shape', body => '{"code":0,"data":[{"requestID":-1,"recordID":"A"},{"requestID":99999999999,"recordID":"B"},{"requestID":1.5,"recordID":"C"}]}' },
		qr/^(\d f unknown .*\n?){5}$/ ],
	[ { action => 'wrong-shape', body => '{"code":0,"data":[{"requestID":5,"recordID":"E"},{"requestID":5,"recordID":"F"},{"requestID":1,"recordID":"A","exception":{}}]}' },
		qr/^1 t\n(\d f unknown .*\n){3}5 t$/ ],
	# characters that no text can hold do not take the other entries' outcome away
	[ { action => 'wrong-shape', body => '{"code":0,"data":[{"requestID":1,"recordID":"A"},'
			. '{"requestID":2,"exception":[{"recordErrorCode":"4","recordErrorMsg":"a\\u0000b\\ud842c\\udfb7d\\u9ec3\\ud842\\udfb7"}]}]}' },
		qr/^1 t\n2 f 4 a\?b\?c\?d黃𠮷\n(\d f unknown .*\n?){3}$/ ],
	# of what comes twice the last one counts, whatever it is written like
	[ { action => 'wrong-shape', body => '{"code":"1","data":[],"\\u0063ode":0,"data":[{"requestID":5,"\\u0072equestID":"\\u0031","recordID":"A","recordID":"B",'
			. '"exception":[{"recordErrorCode":"4"}],"exception":[]},{"requestID":2,"recordID":"C","\\u0065xception":[{"recordErrorCode":"\\u0035"}]}]}' },
		qr/^1 t\n2 f 5 \n(\d f unknown .*\n?){3}$/ ],
	# numbers mean what numeric makes of them
	[ { action => 'wrong-shape', body => '{"code":-0e1,"data":[{"requestID":10E-1,"recordID":"A"},{"requestID":2e0,"recordID":1E+2},{"requestID":0.3e1,"recordID":true},'
			. '{"requestID":"04","recordID":"D"},{"requestID":"5","recordID":-1.50,"x":[1e99,-1e-99,' . ('1' x 131072) . ',0.' . ('1' x 16383) . ']}]}' },
		qr/^1 f unknown .*\n2 t\n3 t\n4 f unknown .*\n5 t$/ ],
	# null is nothing, and so is what has no text
	[ { action => 'wrong-shape', body => '{"code":"0","message":null,"nextCursor":{},"data":[{"requestID":1,"recordID":"A","ownRef":null,"exception":null},'
			. '{"requestID":2,"recordID":null},{"requestID":3,"recordID":["C"]},{"requestID":4,"recordID":"D","ownRef":{"a":1},"exception":"no"},{"requestID":5,"recordID":""}],"exception":[{}]}' },
		qr/^1 t\n2 f unknown .*\n3 f unknown .*\n4 t\n5 f unknown .*$/ ],
	[ { action => 'wrong-shape', body => '{"code":"0","data":[{"requestID":1,"recordID":"A","exception":[1]},{"requestID":2,"exception":[[{}]]},{"requestID":3,"exception":{"recordErrorCode":7}}]}' },
		qr/^1 f rejected \n2 f rejected \n3 f 7 \n(\d f unknown .*\n?){2}$/ ],
	# what nobody asked for may be long, and deep
	[ { action => 'wrong-shape', body => '{"x":' . ('[{"x":' x 490) . '0' . ('}]' x 490) . ',"code":"0","data":[{"requestID":1,"recordID":"A","x":"' . ('\\u9ec3x' x 500_000) . '"}]}' },
		qr/^1 t\n(\d f unknown .*\n?){4}$/ ],
	[ { action => 'reject-entries', n => 1, code => 'c' x 100, message => 'long ' x 1_000_000 }, qr/^1 f c{31} (?:long ){80}\n2 t\n/ ],
	# nor does a field that does not open
	[ { action => 'wrong-shape', body => '{"code":0,"data":[{"requestID":1,"recordID":"A","idNum":"%enc_%AAAA"}]}' }, qr/^1 t\n(\d f unknown .*\n?){4}$/ ])
{
	my ($fault, $rows) = @$case;
	my $got = add_under($fault, 5);
	my $name = '5 entries under ' . title($fault);

	is($got->{rc}, 0, $name) or diag $got->{err};
	ref $rows ? like($got->{out}, $rows, "$name: rows") : is($got->{out}, $rows, "$name: rows");
	is($got->{requests}, 1, "$name: sent once");
}

# three requests, the second of which fails: the rows of the first come back all the same
my $ten = "(?:\\d+ t\\n){10}";
for my $case (
	[ { action => 'status-after', status => 503, skip => 1 }, qr/^$ten(?:1\d|20) f unknown .*find out.*?21 f not_sent/s, 20 ],
	[ { action => 'drop-before', skip => 1 }, qr/^$ten(?:\d+ f unknown .*\n){10}(?:2\d f not_sent .*\n?){5}$/, 10 ],
	[ { action => 'garbage', skip => 1 }, qr/^$ten(?:\d+ f unknown .*\n){10}(?:2\d f not_sent .*\n?){5}$/, 20 ],
	[ { action => 'code-before', status => 400, code => '400999', message => 'no', skip => 1 }, qr/^$ten(?:\d+ f 400999 no\n){10}(?:2\d f not_sent .*\n?){5}$/, 10 ],
	[ { action => 'status-before', status => 429, skip => 1 }, qr/^$ten(?:\d+ f http_429 too many requests\n){10}(?:2\d f not_sent .*\n?){5}$/, 10 ],
	[ [ { action => 'status-before', status => 401, skip => 1 }, { endpoint => 'token', action => 'status-before', status => 500, count => -1 } ],
		qr/^$ten(?:\d+ f not_sent no token.*\n){10}(?:2\d f not_sent .*\n?){5}$/, 10 ],
	[ { action => 'drop-entries', n => 1, skip => 1 }, qr/^$ten(?:\d+ [tf].*\n){10}(?:2\d t\n?){5}$/, 25 ],
	[ { action => 'drop-after' }, undef, 10 ])
{
	my ($fault, $rows, $records) = @$case;
	my $got = add_under($fault, 25);
	my $name = 'three requests under ' . title(ref $fault eq 'ARRAY' ? $fault->[0] : $fault);

	defined $rows ? like($got->{out}, $rows, "$name: rows") || diag($got->{err}) : like($got->{err}, qr/IP005/, "$name: the first one's failure is an error");
	is($got->{records}, $records, "$name: records at the gateway");
}

# changes and invalidations
{
	my $ids = q{(select array_agg(record_id order by record_id) from (select record_id from fini.subscription_query('1234', sub_flow_status => '10') limit 3) r)};
	$fini->sql("create table ids as select $ids ids");
	my $changes = q{(select jsonb_agg(jsonb_build_object('recordID', i, 'appQuantity', '9')) from ids, unnest(ids) i)};
	my $rows = q{string_agg(concat_ws(' ', r.record_id = ids.ids[n], error_code), ',' order by n) from ids, lateral };

	for my $case ([ 'change', "fini.subscription_change($changes)" ], [ 'invalidate', 'fini.subscription_invalidate(ids)' ])
	{
		my ($verb, $call) = @$case;
		$rows = "string_agg(concat_ws(' ', r.record_id = ids.ids[n], error_code), ',' order by n) from ids, lateral"
		  . " (select row_number() over () n, c.* from $call c) r";
		my $endpoint = "subscriptions/$verb";
		# these were not processed, so that the next one finds the records as they were
		like(under({ endpoint => $endpoint, action => 'drop-before' }, $rows, $endpoint)->{err}, qr/IP005.*\Q$endpoint\E/s, "$verb: drop-before");
		like(under({ endpoint => $endpoint, action => 'code-before', status => 400, code => '405904', message => 'size' }, $rows, $endpoint)->{err},
			qr/IP006.*405904: size/s, "$verb: refused as a whole");
		is(under({ endpoint => $endpoint, action => 'reject-entries', n => 3, code => '400555' }, $rows, $endpoint)->{out},
			't 400555,t 400555,t 400555', "$verb: rejected");
		is(under({ endpoint => $endpoint, action => 'wrong-shape', body =>
			'{"code":"0","data":[{"requestID":1,"recordID":"9999999999999999A"},{"requestID":2}]}' }, $rows, $endpoint)->{out},
			't unknown,t,t unknown', "$verb: an answer about another record is none") if $verb eq 'change';
		is(under({ endpoint => $endpoint, action => 'reorder' }, $rows, $endpoint)->{out}, 't,t,t', "$verb: reordered");
	}
}

# the worker: what it can read is the outcome; what it cannot is in doubt, and found out
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
{
	my $worker = $fini->sql('select worker_pid from fini.status');
	my $n = 0;
	for my $case (
		[ '{"code":0,"data":[{"requestID":"\\u0031","ownRef":"Q%d","recordID":"S","recordID":"R%d"}]}', 'accepted R%d' ],
		[ '{"code":0,"data":[{"\\u006fwnRef":"Q%d","recordID":1e3}]}', 'accepted 1000' ],
		[ '{"code":0,"data":[{"requestID":1,"exception":[{"recordErrorCode":4,"recordErrorMsg":"no\\tP%d \\u9ec3"}]}]}', 'rejected 4 no *** 黃' ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":"R%d","x":"\\ud842"}]}', 'accepted R%d' ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":"R%d","x":"\\ud842\\u0000"},7,null]}', 'accepted R%d' ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":"R%d"}]', undef ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":"R%d"},]}', undef ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":"R%d\\x"}]}', undef ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":"R%d","x":01}]}', undef ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":"R%d","x":1e100}]}', undef ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":"R%d","x":' . ('[' x 998) . (']' x 998) . '}]}', undef ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":"R%d","x":' . ('[' x 100_000), undef ],
		[ { action => 'invalid-utf8' }, undef ],
		[ '{"code":0,"data":[{"requestID":2,"recordID":"R%d"}]}', undef ],
		[ '{"code":0,"data":[{"requestID":1,"ownRef":"q%d","recordID":"R%d"}]}', undef ],
		[ '{"code":0,"data":[{"requestID":1,"recordID":{}}]}', undef ])
	{
		my ($body, $outcome) = @$case;
		my $before = $fini->stats->{requests};
		$n++;
		my $fault = ref $body ? $body : { action => 'wrong-shape', body => $body =~ s/%d/100 + $n/ger };
		$fini->faults({ endpoint => 'subscriptions/add', %$fault });
		$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)"
			  . " values ('Q' || 100 + $n, '1234', 500, 'PASSPORT', 'GBR', 'P' || 100 + $n, 'DOE, Jane')");
		$fini->wait_done;
		my $after = $fini->stats->{requests};
		my $got = $fini->sql("select concat_ws(' ', a.fini_state, a.record_id, s.error_code, s.error_message) from applications a join fini.submission s using (own_ref) where own_ref = 'Q' || 100 + $n");
		utf8::decode($got);
		my $name = "answer $n to the worker, " . title($fault);
		defined $outcome ? is($got, $outcome =~ s/%d/100 + $n/er =~ s/\*\*\*/****/r, $name) : like($got, qr/^accepted \d{16}A$/, "$name: it is found at FINI");
		is($after->{'subscriptions/add'} - $before->{'subscriptions/add'}, 1, '... sent once');
		is(($after->{'subscriptions/query'} // 0) > ($before->{'subscriptions/query'} // 0) ? 1 : 0, defined $outcome ? 0 : 1, '... looked for if it cannot be read');
	}
	is($fini->sql('select worker_pid from fini.status'), $worker, 'the worker has gone on');
}

# what cannot become jsonb here for lack of room in the stack
for my $case ([ q{fini.call('/api/eipo/subscriptions/invalidate/v1', '{"data":[{"requestID":"1","recordID":"x"}]}', true)}, qr/IP005.*cannot be represented as jsonb/s, 'subscriptions/invalidate' ],
	[ q{fini.ipo_refdata('1234')}, qr/IP010.*cannot be represented as jsonb/s, 'ipos/refdata' ])
{
	my ($call, $error, $endpoint) = @$case;
	my $got = under({ endpoint => $endpoint, action => 'wrong-shape', body => '{"code":"0","data":' . ('[' x 900) . (']' x 900) . '}' },
		"set_config('max_stack_depth', '100kB', false); select $call", $endpoint);
	like($got->{err}, $error, "an answer that is nested deeper than the stack allows, $endpoint");
}

# what only reads
for my $case (
	[ { action => 'garbage' }, qr/IP010.*no usable answer from subscriptions\/query.*not the JSON object/s ],
	[ { action => 'truncate' }, qr/IP010/ ], [ { action => 'invalid-utf8' }, qr/IP010.*not valid UTF-8/s ],
	[ { action => 'wrong-shape', body => '{"code":"0","data":{"a":1}}' }, qr/IP010.*unexpected shape/s ],
	[ { action => 'wrong-shape', body => '{"code":"0","data":[1]}' }, qr/IP010.*unexpected shape/s ],
	[ { action => 'wrong-shape', body => '{"code":"0","data":[],"nextCursor":"7"}' }, qr/IP010.*pages .* do not end/s ],
	[ { action => 'wrong-shape', body => '{"code":"0","data":[{}],"nextCursor":"' . ('9' x 21) . '"}' }, qr/IP010.*pages .* do not end/s ],
	[ { action => 'wrong-shape', body => '{"code":"0","data":[{}],"nextCursor":"7"}', count => 2 }, qr/IP010.*pages .* do not end/s ],
	[ { action => 'wrong-shape', body => '{"code":"0","data":[{"recordID":"A","ownRef":"x\\u0000"}]}' }, qr/IP010.*no equivalent/s ],
	[ { action => 'tamper' }, qr/IP010.*do not open with the key/s ],
	[ { action => 'truncate-ciphertext' }, qr/IP010.*do not open with the key/s ],
	[ { action => 'drop-after' }, qr/IP010/ ], [ { action => 'status-before', status => 500 }, qr/IP010.*HTTP status 500/s ],
	[ { action => 'oversize', bytes => 70_000_000 }, qr/IP010/ ])
{
	my ($fault, $error) = @$case;
	my $got = under({ endpoint => 'subscriptions/query', %$fault }, "count(*) from fini.subscription_query('1234')", 'subscriptions/query');
	like($got->{err}, $error, 'query under ' . title($fault)) or diag $got->{out};
}
is(under({ endpoint => 'subscriptions/query', action => 'bad-prefix' },
	"count(*) filter (where id_list::text ~ '%') from fini.subscription_query('1234')", 'subscriptions/query')->{out}, 1,
	'query: a value that is not encrypted is shown as it is');
is(under({ endpoint => 'subscriptions/query', action => 'wrong-shape', body => '{"code":"0","data":[{"recordID":7,"appQuantity":"many","idList":null,"new":[true]}]}' },
	"string_agg(concat_ws('|', record_id, own_ref is null, app_quantity is null, id_list is null, raw), ';') from fini.subscription_query('1234')", 'subscriptions/query')->{out},
	'7|t|t|t|{"new": [true], "idList": null, "recordID": 7, "appQuantity": "many"}', 'query: what it does not expect is in raw');

for my $case ([ 'ipos/list', 'fini.ipo_list()' ], [ 'ipos/refdata', q{fini.ipo_refdata('1234')} ], [ 'funding/query', 'fini.funding_query()' ])
{
	my ($endpoint, $call) = @$case;
	like(under({ endpoint => $endpoint, action => 'garbage', body => '[' x 100000 }, $call, $endpoint)->{err}, qr/IP010/, "$endpoint: nested without end");
	like(under({ endpoint => $endpoint, action => 'invalid-utf8' }, $call, $endpoint)->{err}, qr/IP010.*not valid UTF-8/s, "$endpoint: invalid UTF-8");
	like(under({ endpoint => $endpoint, action => 'code-before', status => 403, code => '403', message => 'no' }, $call, $endpoint)->{err}, qr/IP007/, "$endpoint: 403");
	like(under({ endpoint => $endpoint, action => 'status-before', status => 503 }, $call, $endpoint)->{err}, qr/IP010/, "$endpoint: 503");
}
like(under({ endpoint => 'funding/confirm', action => 'drop-after' }, q{fini.funding_confirm('{1}', '20')}, 'funding/confirm')->{err},
	qr/IP005.*funding\/confirm/s, 'funding/confirm: in doubt');
is(under({ endpoint => 'funding/confirm', action => 'wrong-shape', body => '{"code":"0","data":[{"requestID":1,"transactionRef":"2"},{"transactionRef":"7"}]}' },
	q{string_agg(concat_ws(' ', transaction_ref, pre_funding_status, error_code), ',') from fini.funding_confirm('{1,2}', '20')}, 'funding/confirm')->{out},
	'1 unknown,2 20', 'funding/confirm: matched by the reference');

# a redirect is not followed, nor is the token sent there
{
	my $listener = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1', Blocking => 0) or die "listen: $!";
	for my $status (301, 302, 307, 308)
	{
		my $got = add_under({ action => 'redirect', status => $status, location => 'https://localhost:' . $listener->sockport . '/' }, 1);
		like($got->{err}, qr/IP006.*HTTP status $status.*redirects/s, "$status: an error");
	}
	is($listener->accept, undef, 'nobody called there');
}

# the token's and the key's answers
for my $case (
	[ 'token', { action => 'garbage' }, qr/IP003.*cannot be read/s ],
	[ 'token', { action => 'garbage', body => '[' x 100000 }, qr/IP003.*cannot be read/s ],
	[ 'token', { action => 'invalid-utf8' }, qr/IP003/ ],
	[ 'token', { action => 'wrong-shape', body => '{"access_token":"a b","expires_in":30}' }, qr/IP003.*not plausible/s ],
	[ 'token', { action => 'wrong-shape', body => '{"access_token":"' . ('a' x 5000) . '","expires_in":30}' }, qr/IP003.*not plausible/s ],
	[ 'token', { action => 'wrong-shape', body => '{"access_token":"abc","expires_in":"nan"}' }, qr/IP003.*not plausible/s ],
	[ 'token', { action => 'wrong-shape', body => '{"access_token":"abc","expires_in":-1}' }, qr/IP003.*not plausible/s ],
	[ 'token', { action => 'status-before', status => 400, body => '{"error":"invalid_grant","error_description":"JWT has expired"}' }, qr/IP003.*invalid_grant: JWT has expired/s ],
	[ 'token', { action => 'drop-before' }, qr/IP004.*token endpoint/s ],
	[ 'crypto/meta', { action => 'garbage' }, qr/IP003.*crypto\/meta/s ],
	[ 'crypto/meta', { action => 'invalid-utf8' }, qr/IP003.*crypto\/meta/s ],
	[ 'crypto/meta', { action => 'wrong-shape', body => '{"code":"0","data":{"publicKey":"AAAA","serverTimestamp":1}}' }, qr/IP009.*public key/s ],
	[ 'crypto/meta', { action => 'wrong-shape', body => '{"code":"0","data":{"publicKey":7}}' }, qr/IP009/ ],
	[ 'crypto/meta', { action => 'wrong-shape', body => '{"code":"0","data":7}' }, qr/IP009/ ],
	[ 'crypto/meta', { action => 'wrong-shape', body => '{"code":"0","data":[1]}' }, qr/IP009/ ],
	[ 'crypto/meta', { action => 'status-before', status => 403 }, qr/IP007.*crypto\/meta/s ])
{
	my ($endpoint, $fault, $error) = @$case;
	$fini->admin('POST', $endpoint eq 'token' ? '/expire-tokens' : '/rotate-key');
	my $got = under({ endpoint => $endpoint, count => -1, %$fault }, "count(*) from fini.subscription_query('5678')", $endpoint);
	like($got->{err}, $error, "$endpoint under " . title($fault)) or diag $got->{out};
	$fini->wait_for(sub { ($fini->try_sql(q{select count(*) from fini.subscription_query('5678')}))[0] == 0 }, 'token and key');
}

is($fini->stats->{repeated_request_ids}, 0, 'nothing was sent again under the ID of a request that had been processed');
is($fini->stats->{duplicate_adds}, 0, 'no application came twice');

# a server that is not there
{
	$fini->sandbox->stop;
	my (undef, undef, $err) = $fini->try_sql(q{select fini.subscription_add('[{"ownRef":"gone"}]')});
	like($err, qr/IP00[34].*/s, 'no gateway: an error');
	unlike($err, qr/IP005/, 'not a doubt');
	$fini->sandbox->start;
	$fini->wait_for(sub { ($fini->try_sql('select fini.ipo_list()'))[0] == 0 }, 'the gateway to be back');
}

# in the log
{
	my $log = $fini->log_since($log_start);
	utf8::decode($log);
	like($log, qr/it is not known whether FINI processed this call of subscriptions\/add.*DEBUG: /s, 'the log says what happened');
	for my $value (@personal, '87654321')
	{
		ok($log !~ /^(.*\Q$value\E.*)$/mi, 'log without ' . ($value =~ s{[^ -~]}{?}gr)) or diag $1 =~ s{[^ -~]}{?}gr;
	}
	ok($log !~ /(eyJ|Bearer|PRIVATE KEY|%enc_%[^*]|assertion=|X-FINI-)/i, 'log without tokens, keys and sealed bodies');
	for my $profile ('agent', 'machine')
	{
		my @lines = split /\n/, PostgreSQL::Test::Utils::slurp_file($fini->sandbox->keys_dir . "/$profile.pem");
		ok(index($log, $lines[1]) < 0, "log without the $profile\'s key");
	}
	ok($log !~ /(PANIC|terminated by signal|TRAP:)/, 'nothing crashed') or diag $1;
}

done_testing();
