# Databases that are not UTF-8: transcoded on the way out and on the way in; what has no equivalent is said, or
# replaced where the outcome of an application depends on it.

use strict;
use warnings;
use utf8;

use FiniTest;
use Test::More;

$ENV{PGCLIENTENCODING} = 'UTF8';

my $fini = FiniTest->new(
	databases => 'latin1,euc_tw,sql_ascii',
	settings => { 'fini.rate_limit' => 0 },
	gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;

for my $database (qw(latin1 euc_tw sql_ascii))
{
	$node->safe_psql('postgres', "create database $database encoding '$database' locale 'C' template template0");
	$node->safe_psql($database, q{
		create extension fini;
		select fini.arm();
		select fini.create_subscription_table('applications');
		select fini.attach('applications')});
}

# what there is in each: a name, an own_ref, and whether a Chinese name fits too
my %text = (
	latin1 => { name => 'Zoë Müller-Señor Ångström', ref => 'réf', chi => undef },
	euc_tw => { name => 'Chan Tai Man', ref => '參考', chi => '陳大文' },
	sql_ascii => { name => 'Zoë Müller', ref => 'réf參考', chi => '陳大文𠮷' });

sub bytes { my ($text) = @_; utf8::encode($text); return $text }
sub chars { my ($bytes) = @_; utf8::decode($bytes); return $bytes }
sub sql { my ($database, $query) = @_; return chars($fini->sql(bytes($query), database => $database)) }

sub wait_done
{
	my ($database, $what) = @_;
	return $fini->wait_for(sub { sql($database, q{select not exists (select from fini.submission
		where state in ('queued', 'sending', 'unknown'))}) eq 't' }, $what, 60);
}

sub fails
{
	my ($database, $query, $pattern, $name) = @_;
	my ($rc, $out, $err) = $fini->try_sql(bytes($query), database => $database);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	isnt($rc, 0, "$name fails");
	return like(chars($err), $pattern, "$name: error");
}

sub entry
{
	my ($database, $ref, %more) = @_;
	my $t = $text{$database};
	return JSON::PP->new->canonical->encode({ ipoID => '1234', ownRef => $ref, appQuantity => '500', idList => [ { idType => 'PASSPORT',
		idCountryJurisdiction => 'GB', idNum => 'P1', fullNameEng => $t->{name}, fullNameChi => $t->{chi} } ], %more });
}

sub record
{
	my ($ref) = @_;
	my ($record) = grep { ($_->{ownRef} // '') eq $ref } @{ $fini->dump };
	return $record // {};
}

$fini->admin('POST', '/ipos', [ { ipoID => 'é1', stkCode => '1', isin => 'x', status => '25', refdata => { issuer => 'Société' } } ]);

for my $database (qw(latin1 euc_tw sql_ascii))
{
	my $t = $text{$database};
	my $ref = "$database-$t->{ref}";

	# out and in, by a direct call and by the queue
	is(sql($database, "select own_ref, record_id is not null, error_code from fini.subscription_add('[" . entry($database, $ref) . "]')"), "$ref|t|",
		"$database: added");
	my $got = record($ref);
	is_deeply([ @{ $got->{idList}[0] }{qw(fullNameEng fullNameChi)} ], [ @{$t}{qw(name chi)} ], "$database: as UTF-8 at the gateway");
	is(sql($database, "select own_ref, id_list #>> '{0,fullNameEng}', id_list #>> '{0,fullNameChi}' from fini.subscription_query(record_ids => '{$got->{recordID}}')"),
		join('|', $ref, $t->{name}, $t->{chi} // ''), "$database: and back");

	sql($database, "insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi) select '$ref-' || i, '1234', 500, 'PASSPORT', 'GB', 'Q' || i, '$t->{name}', "
		  . (defined $t->{chi} ? "'$t->{chi}'" : 'null') . ' from generate_series(1, 3) i');
	wait_done($database, "rows of $database");
	is(sql($database, q{select count(*) from applications where fini_state = 'accepted'}), 3, "$database: rows accepted");
	is(record("$ref-3")->{idList}[0]{fullNameEng}, $t->{name}, "$database: as UTF-8 at the gateway");
	sql($database, q{select fini.reconcile('applications', '1234')});
	is(sql($database, "select count(*), count(*) filter (where own_ref like '$database-$t->{ref}-%') from fini.discrepancy where own_ref like '$database-%'"), '1|0',
		"$database: reconcile finds the record added by hand alone");

	# the gateway's own texts
	if ($database ne 'euc_tw')
	{
		is(sql($database, q{select fini.ipo_refdata('é1') ->> 'issuer'}), 'Société', "$database: an argument in a URL is UTF-8");
		is(sql($database, q{select count(*) from fini.ipo_list() where ipo_id = 'é1'}), 1, "$database: ipo_list");
	}
	# as an escape
	$fini->faults({ endpoint => 'ipos/refdata', action => 'wrong-shape', body => '{"code":"0","data":{"issuer":"' .
		($database eq 'latin1' ? '\\u0053oci\\u00e9t\\u00e9' : '\\u9673\\u5927\\u6587') . '\\\\u"}}' });
	is(sql($database, q{select fini.ipo_refdata('1234') ->> 'issuer'}), ($database eq 'latin1' ? 'Société' : '陳大文') . '\\u',
		"$database: escapes that it can hold");

	# a personal value in a message: blanked, and still text
	my $value = $t->{chi} // $t->{name};
	my $message = ($database eq 'latin1' ? 'çç ' : '文大 ') . "$value wrong: $value";
	$fini->faults({ endpoint => 'subscriptions/add', action => 'reject-entries', code => '400120', message => $message });
	my $said = sql($database, "select error_message from fini.subscription_add('[" . entry($database, 'x') . "]')");
	like($said, qr/^\S\S \*+ wrong: \*+$/, "$database: a personal value is blanked from the gateway's message");
	$fini->faults({ endpoint => 'subscriptions/add', action => 'code-before', status => 400, code => '400120', message => $message });
	fails($database, "select error_message from fini.subscription_add('[" . entry($database, 'x') . "]')", qr/IP006.*code 400120: \S\S \*+ wrong: \*+ /s,
		"$database: the same for a whole request");
}

# characters that the database cannot hold
my $foreign = '陳大文𠮷 € no';
$fini->admin('POST', '/records', [ map { { ipoID => '1234', ownRef => "foreign$_", appQuantity => '1', idList => [ { idType => 'PASSPORT',
	idCountryJurisdiction => 'HK', idNum => "F$_", fullNameEng => 'Chan', fullNameChi => $foreign } ] } } 1 .. 3 ]);
for my $database (qw(latin1 euc_tw))
{
	my $encoding = uc $database;
	my $t = $text{$database};

	fails($database, q{select fini.subscription_query('1234')}, qr/IP010.*no equivalent in encoding "$encoding"/s, "$database: a query");
	for my $body ($foreign, '\\ud842\\udfb7', '\\u20ac')
	{
		$fini->faults({ endpoint => 'ipos/list', action => 'wrong-shape', body => '{"code":"0","data":[{"ipoID":"' . $body . '"}]}' });
		fails($database, q{select fini.ipo_list()}, qr/IP010.*no equivalent in encoding "$encoding"/s, "$database: ipo_list");
	}
	my $shown = $database eq 'latin1' ? '???? ? no' : '陳大文? ? no';
	$fini->faults({ endpoint => 'subscriptions/add', action => 'reject-entries', n => 1, code => '400120', message => $foreign });
	my @nobody = (idList => [ { idNum => 'S', idType => 'PASSPORT', fullNameEng => 'x' } ]);		# names of the request would be blanked
	is(sql($database, "select string_agg(concat_ws('|', own_ref, record_id is not null, error_code, error_message), ';') from fini.subscription_add('["
			  . entry($database, "$database-f1", @nobody) . ',' . entry($database, "$database-f2", @nobody) . "]')"),
		"$database-f1|f|400120|$shown;$database-f2|t", "$database: a rejection is a row, the other entry stands");
	$fini->faults({ endpoint => 'subscriptions/add', action => 'code-before', status => 400, code => '400120', message => $foreign });
	fails($database, "select fini.subscription_add('[" . entry($database, 'y', idList => []) . "]')", qr/IP006.*code 400120: \Q$shown\E/s, "$database: a refusal");

	# the queue: an outcome, whatever the message says and whoever else has records there
	my $insert = sub {
		my ($ref) = @_;
		sql($database, "insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)"
			  . " select '$ref' || i, '1234', 500, 'PASSPORT', 'GB', 'R' || i, '$t->{name}' from generate_series(1, 5) i");
	};
	my $states = sub {
		my ($ref) = @_;
		return sql($database, "select string_agg(distinct concat_ws(' ', fini_state, s.error_code, s.error_message), ';') from applications a"
			  . " join fini.submission s using (own_ref) where own_ref like '$ref%' and s.id = (select max(id) from fini.submission l where l.own_ref = s.own_ref)");
	};
	$fini->faults({ endpoint => 'subscriptions/add', action => 'reject-entries', n => 5, code => '400120', message => $foreign });
	$insert->("$database-rejected");
	wait_done($database, 'rejections');
	is($states->("$database-rejected"), "rejected 400120 $shown", "$database: rejected rows say why");

	for my $action ('drop-after', 'status-after')
	{
		$fini->faults({ endpoint => 'subscriptions/add', action => $action });
		$insert->("$database-$action-");
		wait_done($database, "adds under $action");
		is($states->("$database-$action-"), 'accepted', "$database: adds in doubt ($action) are found out");
		$fini->faults({ endpoint => 'subscriptions/change', action => $action });
		sql($database, "update applications set app_quantity = 1500 where own_ref like '$database-$action-%'");
		wait_done($database, "changes under $action");
		is($states->("$database-$action-"), 'accepted', "$database: changes in doubt ($action) are found out");
		is(scalar(grep { $_->{ownRef} =~ /^$database-$action-/ && @{ $_->{_history} } == 2 && $_->{appQuantity} eq '1500' } @{ $fini->dump }), 5,
			"$database: each once");
	}

	# a worker that begins with what its predecessor left in doubt
	$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after' }, { endpoint => 'subscriptions/query', action => 'status-before', status => 503, count => -1 });
	$insert->("$database-left-");
	$fini->wait_for(sub { sql($database, q{select count(*) = 5 from fini.submission where state = 'unknown'}) eq 't' }, 'the doubt');
	$node->stop('immediate');
	$fini->clear_faults;
	$node->start;
	wait_done($database, 'what was left in doubt');
	is($states->("$database-left-"), 'accepted', "$database: what was left in doubt is found out by the next worker");

	my $run = sql($database, q{select run_id from fini.reconcile('applications', '1234')});
	is(sql($database, qq{select count(*) from fini.discrepancy where run_id = $run and kind = 'missing_locally' and own_ref like 'foreign%'}), 3, "$database: reconcile takes records that it cannot hold");
	is(sql($database, qq{select count(*) from fini.discrepancy where run_id = $run and own_ref in (select own_ref from applications)}), 0, "$database: and finds its own in order");
}

# a character of the database that UTF-8 lacks: the entry is named, the row rejected, the others go on
{
	my $entries = q{jsonb_build_array('{}'::jsonb, jsonb_build_object('ownRef', 'SECRET' || convert_from('\x8ea7f2a1', 'EUC_TW')))};
	$fini->sql_fails("select fini.subscription_add($entries)", qr/no equivalent in UTF-?8.*entry 2/si, 'euc_tw: a character without equivalent in UTF-8', database => 'euc_tw');
	$fini->sql(q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_num, full_name_eng) values ('lone', '1234', 1, 'PASSPORT', '1', convert_from('\x8ea7f2a1', 'EUC_TW')),
		('beside', '1234', 1, 'PASSPORT', '1', 'x')}, database => 'euc_tw');
	wait_done('euc_tw', 'the two rows');
	is($fini->sql(q{select string_agg(concat_ws(' ', own_ref, state, error_code), ',' order by own_ref) from fini.submission where own_ref in ('lone', 'beside')},
			database => 'euc_tw'), 'beside accepted,lone rejected bad_encoding', 'euc_tw: the row is rejected, the other accepted');
	my ($rc, undef, $err) = $fini->try_sql(q{select fini.subscription_add(jsonb_build_array(jsonb_build_object('ownRef', 'a'), jsonb_build_object('ownRef', e'SECRET\xff')))},
		database => 'sql_ascii');
	like($err, qr/no equivalent in UTF-?8.*entry 2/si, 'sql_ascii: bytes that are no UTF-8');
	(undef, undef, my $other) = $fini->try_sql(q{select fini.ipo_refdata(E'\\xe9')}, database => 'sql_ascii');
	like($other, qr/22P05.*a character of the argument has no equivalent in UTF-?8/si, '... in an argument');
	(undef, undef, $other) = $fini->try_sql(q{select fini.funding_query(E'\\xe9')}, database => 'sql_ascii');
	like($other, qr/22P05.*request has a character without equivalent/s, '... in one that is sent in the clear');
	(undef, undef, $other) = $fini->try_sql(q{select fini.funding_confirm(array[E'\\xe9'], '20')}, database => 'sql_ascii');
	like($other, qr/22P05.*entry has a character without equivalent/s, '... in a reference');
	unlike($err, qr/SECRET/, 'and the error does not show them');
}

# an IPO's name that is too long for a line about it is cut between two characters
$fini->sql(qq{alter table fini.tally add constraint never check (ipo_id not like 'A台%') not valid;
	insert into applications (own_ref, ipo_id) select 'long', 'A' || repeat('台', 90)}, database => 'euc_tw');
$fini->wait_for(sub { $fini->sql('select last_error from fini.status', database => 'euc_tw') =~ /^could not claim add operations of IPO "A[^:]{20,}: the database refused it \(SQLSTATE 23514\)/ },
	'euc_tw: the last error to be readable', 60);

is($fini->stats->{duplicate_adds}, 0, 'no application came twice');
is($fini->stats->{repeated_request_ids}, 0, 'no request ID twice');
ok($fini->log_since(0) !~ /(PANIC|terminated by signal|TRAP:)/, 'nothing crashed');

done_testing();
