# Rows that cannot be an application, walked one by one: each is rejected alone and visibly, with a local
# code in words; the others go on, nothing crashes, and what has been mended goes again.

use strict;
use warnings;
use utf8;

use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->new(
	databases => 'postgres, ascii, latin',
	conf => "log_statement = none\nlog_min_error_statement = panic\n");
$fini->sql($_)
  for q{create database ascii encoding 'SQL_ASCII' locale 'C' template template0},
  q{create database latin encoding 'LATIN1' locale 'C' template template0};
$fini->sql(q{create extension fini; select fini.arm(); select fini.create_subscription_table('applications'); select fini.attach('applications')},
	database => $_) for qw(postgres ascii latin);

my $worker = $fini->sql('select worker_pid from fini.status');

# a good row; each case changes a column or two. Values are SQL. A code is what must be in fini_error,
# "gateway" a rejection by the gateway itself, "accepted" none.
my %good = (ipo_id => q{'1234'}, app_quantity => '100', id_type => q{'PASSPORT'}, id_num => q{'P1234567'}, full_name_eng => q{'Chan Tai Man'});
my @columns = qw(ipo_id app_quantity firm_id id_type id_country_jurisdiction id_num full_name_eng full_name_chi id_list extra);
my $single = q{{"idType": "PASSPORT", "idNum": "P1", "fullNameEng": "A B"}};
my $nobody = { map { $_ => 'NULL' } qw(id_type id_num full_name_eng) };

my @cases = (
	# text of every kind is an application like any other
	[ 'quotes', { full_name_eng => q{'O''Brien "Bob" `x` $$'} }, 'accepted' ],
	[ 'backslashes', { full_name_eng => q{E'a\\\\b\\\\u0041\\\\"\\\\'} }, 'accepted' ],
	[ 'control characters', { full_name_eng => q{E'a\\tb\\nc\\rd\\be\\ff' || chr(1) || chr(31) || chr(127)} }, 'accepted' ],
	[ 'four-byte UTF-8', { full_name_chi => q{U&'\+020BB7\+02A6A5\+01F600' || '陳大文'} }, 'accepted' ],
	[ 'separators', { full_name_eng => q{U&'a\2028b\2029c\FEFFd\00A0'} }, 'accepted' ],
	[ 'JSON in text', { full_name_eng => q<'"},{"x":[1'>, firm_id => q<'","a":"'> }, 'accepted' ],
	[ 'the prefix of a ciphertext', { full_name_eng => q{'%enc_%AAAA'} }, undef ],
	[ 'a long name', { full_name_eng => q{repeat('Very ', 2000) || 'Long'} }, 'accepted' ],
	[ 'a name too long', { full_name_eng => q{repeat('Very ', 20000) || 'Long'} }, 'unsealable' ],
	[ q{an own_ref with "all" \ sorts	of 𠮷 things}, {}, 'accepted' ],
	[ q{'; drop table applications; --}, {}, 'accepted' ],
	[ '$1', {}, 'accepted' ],
	[ '%s%n', {}, 'accepted' ],

	# own_ref
	[ '', {}, 'bad_own_ref' ],
	[ ' ', {}, 'bad_own_ref' ],
	[ ' padded', {}, 'bad_own_ref' ],
	[ 'padded ', {}, 'bad_own_ref' ],
	[ 'pad ded', {}, 'accepted' ],

	# id_list
	[ 'list: an object', { id_list => qq{'$single'} }, 'bad_id_list' ],
	[ 'list: a string', { id_list => q{'"x"'} }, 'bad_id_list' ],
	[ 'list: a number', { id_list => q{'5'} }, 'bad_id_list' ],
	[ 'list: null', { id_list => q{'null'} }, 'bad_id_list' ],
	[ 'list: true', { id_list => q{'true'} }, 'bad_id_list' ],
	[ 'list of strings', { id_list => q{'["x"]'} }, 'bad_id_list' ],
	[ 'list of lists', { id_list => qq{'[[$single]]'} }, 'bad_id_list' ],
	[ 'list with a null', { id_list => qq{'[$single, null]'} }, 'bad_id_list' ],
	[ 'list: empty', { id_list => q{'[]'} }, 'no_applicant' ],
	[ 'list of nobody', { id_list => q{'[{}]'} }, 'gateway' ],
	[ 'list of one', { %$nobody, id_list => qq{'[$single]'} }, 'accepted' ],
	[ 'list: deep', { id_list => q{jsonb_build_array(jsonb_build_object('idNum', 'A1', 'x', (repeat('[', 3000) || repeat(']', 3000))::jsonb))} }, 'unsealable' ],
	[ 'list with more in it', { id_list => q{'[{"idType": "PASSPORT", "idNum": "P1", "fullNameEng": "A", "more": {"idNum": 1, "x": [[]]}}]'} }, 'accepted' ],
	[ 'list: a nested number', { id_list => q{'[{"idType": "PASSPORT", "idNum": ["P1"], "fullNameEng": "A"}]'} }, 'unsealable' ],
	[ 'list: a number within', { id_list => q{'[{"idType": "PASSPORT", "idNum": "P1", "fullNameEng": "A", "more": {"idNum": [1, null]}}]'} }, 'unsealable' ],

	# an applicant
	[ 'nobody', $nobody, 'no_applicant' ],
	[ 'nobody, empty', { map { $_ => q{''} } qw(id_type id_country_jurisdiction id_num full_name_eng full_name_chi) }, 'no_applicant' ],
	[ 'no number', { id_num => 'NULL' }, 'gateway' ],

	# quantity
	[ 'quantity: null', { app_quantity => 'NULL' }, 'bad_quantity' ],
	[ 'quantity: zero', { app_quantity => '0' }, 'bad_quantity' ],
	[ 'quantity: negative', { app_quantity => '-100' }, 'bad_quantity' ],
	[ 'quantity: enormous', { app_quantity => '9223372036854775807' }, 'bad_quantity' ],
	[ 'quantity: the least', { app_quantity => '-9223372036854775808' }, 'bad_quantity' ],
	[ 'quantity: large', { app_quantity => '999999999999999999' }, undef ],

	# ipo_id
	[ 'ipo: long', { ipo_id => q{repeat('1', 21)} }, 'bad_ipo_id' ],
	[ 'ipo: very long', { ipo_id => q{(select string_agg(md5(i::text), '') from generate_series(1, 2000) i)} }, 'bad_ipo_id' ],
	[ 'ipo: empty', { ipo_id => q{''} }, 'bad_ipo_id' ],
	[ 'ipo: padded', { ipo_id => q{'1234 '} }, 'bad_ipo_id' ],
	[ 'ipo: unknown', { ipo_id => q{'港港港港港港港港港港港港港港港港港港港港'} }, 'gateway' ],
	[ 'ipo: closed', { ipo_id => q{'9012'} }, 'gateway' ],

	# further fields
	[ 'extra: a list', { extra => q{'[{"a": 1}]'} }, 'bad_extra' ],
	[ 'extra: a string', { extra => q<'"}{"'> }, 'bad_extra' ],
	[ 'extra: null', { extra => q{'null'} }, 'bad_extra' ],
	[ 'extra: nested', { extra => q{'{"more": [{"fullNameEng": {"first": "A"}}]}'} }, 'unsealable' ],
	[ 'extra: empty', { extra => q{'{}'} }, 'accepted' ],
	[ 'extra: deep', { extra => q{'{"a": {"ownRef": "not the entry''s", "b": [{}]}, "": 1.50, "c": 12345678901234567890.123}'} }, 'accepted' ],
	(map { [ "extra: $_", { extra => qq{'{"a": 1, "$_": "9"}'} }, 'bad_extra' ] }
		  qw(ownRef ipoID appQuantity firmID idList requestID recordID idNum fullNameChi)),
);

sub insert
{
	my ($table, @rows) = @_;
	my @tuples = map {
		my ($ref, $change) = @$_;
		my %row = (%good, %$change);
		'(' . join(', ', 'U&' . unicode($ref), map { $row{$_} // 'NULL' } @columns) . ')';
	} @rows;
	return "insert into $table (own_ref, " . join(', ', @columns) . ') values ' . join(",\n", @tuples);
}

# a literal that any client encoding can carry
sub unicode
{
	my ($text) = @_;
	return "'" . join('', map { ord($_) == 0x5c ? '\\\\' : ord($_) == 0x27 ? q{''} : ord($_) > 126 || ord($_) < 32 ? sprintf('\\+%06X', ord($_)) : $_ } split //, $text) . "'";
}

sub query
{
	my ($sql, %opt) = @_;
	utf8::encode($sql);
	my $answer = $fini->sql("set client_encoding = 'UTF8'; $sql", %opt);
	utf8::decode($answer);
	return $answer;
}

subtest 'all in one statement' => sub {
	query(insert('applications', @cases, map { [ "fine $_", {} ] } 1 .. 20));
	$fini->wait_done;
	my %outcome = map { $_->{own_ref} => $_ } @{ $fini->sql_json(q{select jsonb_agg(a) from (select own_ref, fini_state, fini_error, record_id from applications) a}) };
	my %submission = map { $_->{own_ref} => $_ } @{ $fini->sql_json(q{select jsonb_agg(s) from fini.submission s}) };
	for my $case (@cases)
	{
		my ($ref, undef, $expected) = @$case;
		my ($row, $operation) = ($outcome{$ref}, $submission{$ref});
		my $name = ($ref =~ /\S/ ? $ref : "own_ref \"$ref\"") =~ s/[^ -~]/?/gr;

		if (!defined $expected)
		{
			like($row->{fini_state}, qr/^(accepted|rejected)$/, "$name: $row->{fini_state}");
		}
		elsif ($expected eq 'accepted')
		{
			is($row->{fini_state}, 'accepted', "$name: accepted") or diag $row->{fini_error};
		}
		else
		{
			my $code = $expected eq 'gateway' ? qr/[0-9]{6}/ : $expected;
			is($row->{fini_state}, 'rejected', "$name: rejected");
			like($row->{fini_error} // '', qr/^$code: ./, "... $expected");
			is($row->{record_id}, undef, '... without a record');
			like($operation->{error_code} // '', qr/^$code$/, '... and so in the outbox');
		}
	}
	is(scalar(grep { $outcome{"fine $_"}{fini_state} eq 'accepted' } 1 .. 20), 20, 'the others go on');
	is_deeply([ $fini->compare('applications') ], [], 'and arrive as they are');
	is($fini->sql(q{select count(distinct error_message) from fini.submission where error_message ~ 'Chan|P1234567'}), 0, 'no personal data in the outbox');
};

subtest 'refused by the table itself' => sub {
	$fini->sql_fails(q{insert into applications (own_ref, ipo_id) values (null, '1234')}, qr/23502/, 'null own_ref');
	$fini->sql_fails(q{insert into applications (own_ref, ipo_id) values ('fine 1', '1234')}, qr/23505/, 'duplicate own_ref');
	$fini->sql_fails(q{insert into applications (own_ref, ipo_id) values ('x', '1234'), ('x', '1234')}, qr/23505/, 'twice in one statement');
	is($fini->sql('select count(*) from fini.queue'), 0, 'nothing is enqueued');
};

subtest 'mended' => sub {
	query(q{update applications set app_quantity = 5 where own_ref like 'quantity:%';
		update applications set id_list = null where own_ref like 'list%' and fini_state = 'rejected';
		update applications set ipo_id = '1234' where own_ref like 'ipo:%';
		update applications set extra = null where own_ref like 'extra:%';
		update applications set own_ref = 'own_ref' || own_ref || '.' where own_ref in ('', ' ', ' padded', 'padded ') ;
		update applications set id_type = 'PASSPORT', id_num = 'P1', full_name_eng = 'A' where own_ref like 'no%';
		update applications set full_name_eng = 'A' where own_ref = 'a name too long'});
	$fini->wait_done;
	is(query(q{select string_agg(own_ref || ': ' || fini_error, ', ') from applications where fini_state <> 'accepted'
		and own_ref not in ('the prefix of a ciphertext')}), '', 'all accepted');
	is_deeply([ grep { !/^the prefix/ } $fini->compare('applications') ], [], 'both sides agree');
};

subtest 'columns of other types' => sub {
	$fini->sql(q{
		create table typed (own_ref integer primary key, ipo_id text, shares numeric, people json, more json, extra json, id_type jsonb, id_num float8, state text, error text);
		select fini.attach('typed', '{"appQuantity": "shares", "idList": "people", "more": "more"}', '{"state": "state", "error": "error"}');
		insert into typed (own_ref, ipo_id, shares, people, more, extra) values
			(1, '1234', 1.5, null, null, null), (2, '1234', 'NaN', null, null, null), (3, '1234', 'Infinity', null, null, null),
			(4, '1234', 1e30, null, null, null), (5, '1234', 0.0, null, null, null), (6, null, 1, null, null, null)});
	my $people = q{'[{"idType": "PASSPORT", "idNum": "X", "fullNameEng": "A"}]'};
	$fini->sql(qq{
		insert into typed (own_ref, ipo_id, shares, people, more, extra) values
			(11, '1234', 100.000, $people, '"\\ud800"', null), (12, '1234', 7, $people, '{"a": "\\u0000"}', null), (13, '1234', 7, $people, '1e999999', null),
			(14, '1234', 7, $people, null, '{"a": "\\u0000"}'), (15, '1234', 7, '[{"idNum": "\\ud800"}]', null, null),
			(16, '1234', 100.000, $people, ' {"a" : [ 1 , 2.50 ] , "a" : "\\ud83d\\ude00" } ', E' {"b" : 1,\\n"c": true } '),
			(17, '1234', 7, $people, to_json(repeat('x', 60000)), null), (18, '1234', 7, $people, to_json(repeat('x', 1000000)), null),
			(19, '1234', 7, $people, null, '{"n": {"idNum": ["hidden"], "idNum": "shown"}}'), (20, '1234', 7, $people, null, null)});
	$fini->sql(q{update typed set people = null, id_type = '{"a": 1}', id_num = 1.5 where own_ref = 20});
	$fini->wait_done;
	is($fini->sql(q{select string_agg(own_ref || ' ' || case when error ~ '^[0-9]{6}: ' then 'gateway' else split_part(coalesce(error, state), ':', 1) end, ', ' order by own_ref) from typed}),
		'1 bad_quantity, 2 bad_quantity, 3 bad_quantity, 4 bad_quantity, 5 bad_quantity, 6 bad_ipo_id, '
		  . '11 bad_field, 12 bad_field, 13 bad_field, 14 bad_extra, 15 bad_id_list, 16 accepted, 17 accepted, 18 unsealable, 19 unsealable, 20 gateway', 'each for itself');
	my ($record) = grep { $_->{ownRef} eq '16' } @{ $fini->dump };
	is_deeply([ @{$record}{qw(appQuantity b c)} ], [ '100', 1, JSON::PP::true ], 'a whole number with decimals, and further fields');
};

subtest 'changed behind the triggers' => sub {
	$fini->sql(q{select fini.pause('test')});
	query(insert('applications', map { [ "behind $_", {} ] } 1 .. 4));
	$fini->sql(q{
		set session_replication_role = replica;
		delete from applications where own_ref = 'behind 1';
		update applications set ipo_id = '3456' where own_ref = 'behind 2';
		update applications set app_quantity = 7 where own_ref = 'behind 3';
		reset session_replication_role;
		select fini.resume()});
	$fini->wait_done;
	is($fini->sql(q{select string_agg(own_ref || ' ' || state || ' ' || coalesce(error_code, ''), ', ' order by own_ref) from fini.submission where own_ref like 'behind%'}),
		'behind 1 failed row_missing, behind 2 failed row_moved, behind 3 accepted , behind 4 accepted ', 'found out, each for itself');
	is($fini->sql(q{select fini_state, fini_error is not null from applications where own_ref = 'behind 2'}), 'failed|t', 'and told to the row');
	is((grep { $_->{ownRef} eq 'behind 3' } @{ $fini->dump })[0]{appQuantity}, 7, 'what is sent is what is there');
};

subtest 'a table that has lost a column, or itself' => sub {
	$fini->sql(q{
		select fini.create_subscription_table('broken'), fini.create_subscription_table('dropped');
		select fini.attach('broken'), fini.attach('dropped'); select fini.pause('test')});
	query(insert('broken', [ 'broken', {} ]) . '; ' . insert('dropped', [ 'dropped', {} ]) . '; ' . insert('applications', [ 'beside', {} ]));
	$fini->sql('alter table broken drop id_num; drop table dropped; select fini.resume()');
	$fini->wait_done;
	is($fini->sql(q{select string_agg(own_ref || ' ' || state || ' ' || coalesce(error_code, ''), ', ' order by own_ref) from fini.submission where own_ref in ('broken', 'dropped', 'beside')}),
		'beside accepted , broken failed table_unreadable, dropped failed table_unreadable', 'its rows are set aside, others go on');
	like($fini->sql(q{select error_message from fini.submission where own_ref = 'broken'}), qr/column "id_num" of table "broken" does not exist any more/, 'with the reason');
	$fini->sql(q{alter table broken add id_num text; update broken set id_num = 'P1'; select fini.attach('broken')});
	is($fini->sql(q{select fini.retry(own_refs => '{broken}')}), 0, 'the update has put it back');
	$fini->wait_done;
	is($fini->sql('select fini_state from broken'), 'accepted', 'mended, it goes');
};

subtest 'rows of any size' => sub {
	$fini->sql(q{select fini.create_subscription_table('large'); select fini.attach('large'); select fini.pause('test')});
	my $large = sub {
		my ($ref, $n, %change) = @_;
		my %row = (full_name_eng => q{'A'}, extra => 'null', %change);
		$fini->sql(qq{insert into large (own_ref, ipo_id, app_quantity, id_type, id_num, full_name_eng, extra)
			select '$ref' || g, '1234', 1, 'PASSPORT', 'P$ref' || g, $row{full_name_eng}, $row{extra} from generate_series(1, $n) g});
	};
	my $settled = sub {
		my ($ref) = @_;
		$fini->sql('select fini.resume()');
		$fini->wait_done;
		return $fini->sql(qq{select string_agg(k || ' ' || o || ' ' || n, ', ' order by k, o) from (select translate(own_ref, '0123456789', '') k,
			coalesce(error_code, state) o, count(*) n from fini.submission where own_ref ~ '^$ref' group by 1, 2) x});
	};

	# many at once take no more memory than one
	my $peak = sub { return slurp_file("/proc/$worker/status") =~ /^VmHWM:\s+(\d+) kB/m ? $1 : die 'no VmHWM' };
	my $before = $peak->();
	$large->('m.small', 20);
	$large->('m.large', 60, full_name_eng => q{repeat('x', 8000000)});
	$large->('m.list', 30, extra => q{jsonb_build_object('x', repeat('x', 8000000))});
	is($settled->('m'), 'm.large unsealable 60, m.list unsealable 30, m.small accepted 20', 'each for itself');
	cmp_ok($peak->() - $before, '<', 200_000, 'in little memory');

	# an update that makes a row too large is no change, and reconciling tells
	$fini->sql(q{update large set extra = jsonb_build_object('x', repeat('x', 70000)) where own_ref = 'm.small7'});
	is($settled->('m.small7'), 'm.small accepted 1, m.small unsealable 1', 'a change');
	$fini->sql(q{select fini.reconcile('large', '1234')});
	is($fini->sql(q{select string_agg(kind || ' ' || own_ref || ' "' || field || '"', ', ') from fini.discrepancy where own_ref ~ '^m.small'}),
		'field_differs m.small7 ""', 'the row is not what stands at FINI');

	# what would be beyond what PostgreSQL has room for, once it is JSON or text
	$fini->sql(q{select fini.pause('test')});
	$large->('x.small', 20);
	$large->('x.escapes', 1, full_name_eng => q{repeat(chr(1), 200000000)});
	$large->('x.number', 10, extra => q{(select jsonb_object_agg(i, '1e100000'::numeric) from generate_series(1, 12000) i)});
	$large->('x.numbers', 1, extra => q{(select jsonb_object_agg(i, i * 1e20) from generate_series(1, 500) i)});
	is($settled->('x'), 'x.escapes unsealable 1, x.number unsealable 10, x.numbers accepted 1, x.small accepted 20', 'each for itself');
	cmp_ok($peak->() - $before, '<', 200_000, 'in little memory, too');
};

subtest 'databases in other encodings' => sub {
	query(insert('applications', [ 'latin é', { full_name_eng => q{U&'Ren\00E9 \00DF \00A0'} } ]), database => 'latin');
	# bytes that are no UTF-8, and bytes that are
	$fini->sql(q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_num, full_name_eng) values
		('ascii bad', '1234', 1, 'PASSPORT', 'P1', E'\\xff\\xfe'), ('ascii short', '1234', 1, 'PASSPORT', 'P1', E'x\\xe9'),
		('ascii good', '1234', 1, 'PASSPORT', 'P1', 'plain'), ('ascii utf-8', '1234', 1, 'PASSPORT', 'P1', E'\\xe9\\x99\\xb3'), (E'ascii \\xff', '1234', 1, 'PASSPORT', 'P1', 'x')},
		database => 'ascii');
	for my $database (qw(latin ascii))
	{
		$fini->wait_for(sub { $fini->sql(q{select count(*) from fini.submission where state in ('queued', 'sending', 'unknown')}, database => $database) eq '0' }, $database);
	}
	is(query(q{select fini_state from applications}, database => 'latin'), 'accepted', 'LATIN1');
	my ($record) = grep { $_->{ownRef} eq 'latin é' } @{ $fini->dump };
	is($record->{idList}[0]{fullNameEng}, "Ren\x{e9} \x{df} \x{a0}", 'transcoded');
	is($fini->sql(q{select string_agg(encode(own_ref::bytea, 'escape') || ': ' || coalesce(split_part(fini_error, ':', 1), fini_state), ', ' order by own_ref) from applications}, database => 'ascii'),
		'ascii bad: bad_encoding, ascii good: accepted, ascii short: bad_encoding, ascii utf-8: accepted, ascii \377: bad_encoding', 'SQL_ASCII');
};

is($fini->sql('select worker_pid from fini.status'), $worker, 'the worker has not ended once');
is($fini->stats->{duplicates}, 0, 'no duplicates');
my $log = slurp_file($fini->node->logfile);
unlike($log, qr/PANIC|terminated by signal|TRAP:|leak|ERROR:.*fini worker/, 'nothing crashed');
unlike($log, qr/P1234567|Tai Man|O'Brien/, 'no personal data in the log');
done_testing();
