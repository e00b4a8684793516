# What can be known of applications before FINI refuses them: fini.precheck, and tables attached with it.
#
#	FINI_PRECHECK_ROWS=1000000 test/run t/065_precheck.pl		the same at full size, with time and memory

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $rows = $ENV{FINI_PRECHECK_ROWS} // 20_000;
my $planted = $rows >= 100_000 ? 500 : 50;
my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 100 }, gateway => [ '--rate-limit', 0 ],
	conf => "log_statement = none\nlog_min_error_statement = panic\nmax_wal_size = 4GB\n");

# a Hong Kong identity card's number, with another reading of the rule than the extension's: weights to 9 and 8 letters
$fini->sql(q{
	create function digit(body text) returns text language sql immutable as $$
		select case r when 10 then 'A' else r::text end from (select (11 - sum((10 - n) * case
			when c = ' ' then 36 when c ~ '[A-Z]' then ascii(c) - 55 else c::integer end)::integer % 11) % 11 as r
			from regexp_split_to_table(lpad(body, 8, ' '), '') with ordinality x(c, n)) s $$;
	create function hkid(n bigint) returns text language sql immutable as $$
		select body || '(' || digit(body) || ')' from (select case when n % 10 = 0 then 'W' else '' end || chr(65 + (n / 1000000 % 26)::integer) || lpad((n % 1000000)::text, 6, '0') as body) b $$;
	select fini.pause('test')});

# rows of fini.precheck as "own_ref|problem|detail"
sub found { my ($table, $ipo, $where) = @_; return [ split /\n/, $fini->sql("select own_ref, problem, detail from fini.precheck('$table', '$ipo')" . (defined $where ? " where $where" : '') . ' order by own_ref collate "C", problem, detail') ] }
sub applicants { my ($table, @rows) = @_; return "insert into $table (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng) values " . join(', ', map { my @v = @$_; '(' . join(', ', map { defined ? "'$_'" : 'null' } @v) . ')' } @rows) }
sub history { my ($ref) = @_; return join '|', map { join ' ', map { $_->{op} } @{ $_->{_history} } } grep { $_->{ownRef} eq $ref && $_->{ipoID} eq '5678' } @{ $fini->dump } }
sub outcome { my ($ref, $table) = @_; $table //= 'checked'; return $fini->sql("select fini_state || coalesce(' ' || fini_error, '') from $table where own_ref = '$ref'") }

subtest 'check digits' => sub {
	is($fini->sql(q{select string_agg(body || digit(body), ' ') from unnest('{A123456,G123456,AB987654}'::text[]) body}), 'A1234563 G123456A AB9876543', 'the test can count');
	$fini->sql(q{select fini.create_subscription_table('digits'); select fini.attach('digits', live => false)});
	my @good = ('A123456(3)', 'A1234563', ' a123456(3) ', 'A123456 (3)', 'G123456(A)', 'g123456a', 'AB987654(3)', 'ab9876543 ');
	my $n = 0;
	$fini->sql(applicants('digits', map { [ 'G' . $n++, '1234', 100, $_ =~ /a/ ? 'hkid' : 'HKID', 'HKG', $_, 'CHAN, Tai Man' ] } @good));
	is_deeply([ grep { /bad_hkid/ } @{ found('digits', '1234') } ], [], 'right ones');
	# every digit at every place
	$fini->sql(q{delete from digits;
		insert into digits (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select body || c, '1234', 100, 'HKID', 'HKG', case when n % 2 = 0 then body || c else body || '(' || c || ')' end, 'CHAN, Tai Man'
		from unnest('{A123456,Z683365,WX123456,AB987654,C668668,Y000000}'::text[]) with ordinality b(body, n), unnest('{0,1,2,3,4,5,6,7,8,9,A}'::text[]) c});
	is($fini->sql(q{select count(*) from (
		select own_ref from digits where right(own_ref, 1) <> digit(left(own_ref, -1))
		except select own_ref from fini.precheck('digits', '1234') where problem = 'bad_hkid' and detail = 'the check digit of idNum is wrong') x}), 0, 'wrong ones are all found');
	is($fini->sql(q{select count(*) from fini.precheck('digits', '1234') where problem = 'bad_hkid'}), 60, 'and no other');
	$n = 0;
	$fini->sql('delete from digits; ' . applicants('digits', map { [ 'B' . $n++, '1234', 100, 'HKID', 'HKG', $_, 'CHAN, Tai Man' ] }
		'1234563', 'A12345(3)', 'A123456(3', 'A1234563)', 'A(123456)3', 'ABC123456(3)', 'A123456((3))', 'A123456()', '()', 'A123456(B)', 'A12345B(3)', '港123456(3)', 'A123456-3'));
	is_deeply(found('digits', '1234', q{problem = 'bad_hkid'}), [ map { "B$_|bad_hkid|idNum does not have the form of a Hong Kong identity card's number" } sort 0 .. 12 ], 'what is none at all');
	$fini->sql(q{update digits set id_type = 'PASSPORT'});
	is_deeply(found('digits', '1234'), [], 'other documents have none');
	is($fini->sql(q{set fini.hkid_types = 'ID , Passport'; select count(*) from fini.precheck('digits', '1234') where problem = 'bad_hkid'}), 13, 'which they are is a setting');
	$fini->sql(q{select fini.detach('digits'); drop table digits});
};

subtest 'what is missing' => sub {
	$fini->sql(q{select fini.create_subscription_table('missing'); select fini.attach('missing', live => false)});
	$fini->sql(applicants('missing', [ 'A', '1234', undef, 'PASSPORT', 'GBR', 'P1', 'X' ], [ 'B', '1234', 0, 'PASSPORT', 'GBR', 'P2', 'X' ], [ 'C', '1234', -5, 'PASSPORT', 'GBR', 'P3', 'X' ],
		[ 'D', '1234', 1, undef, 'GBR', 'P4', 'X' ], [ 'E', '1234', 1, 'PASSPORT', ' ', 'P5', 'X' ], [ 'F', '1234', 1, 'PASSPORT', 'GBR', '', 'X' ],
		[ 'G', '1234', 1, 'PASSPORT', 'GBR', 'P7', undef ], [ 'H', '1234', 1, undef, undef, undef, undef ], [ 'I', '1234', 1, undef, undef, undef, 'X' ], [ 'Z', '3456', -1, undef, undef, undef, undef ],
		[ 'K ', '1234', 1, 'PASSPORT', 'GBR', 'P8', 'X' ]));
	$fini->sql(q{insert into missing (own_ref, ipo_id, app_quantity, full_name_chi, id_type, id_country_jurisdiction, id_num) values ('L', '1234', 1, '陳大文', 'PASSPORT', 'GBR', 'P9');
		insert into missing (own_ref, ipo_id, app_quantity, id_list) values
		('M', '1234', 1, '[{"idType":"PASSPORT","idCountryJurisdiction":"GBR","idNum":"P10","fullNameEng":"X"},{"idType":"HKID","idNum":"A123456(4)"},{"idType":"PASSPORT","idCountryJurisdiction":"gbr","idNum":" p10","fullNameEng":"X"}]'),
		('N', '1234', 1, '{}'), ('O', '1234', 1, '[]'), ('Q', '1234', 1, '[7, "x"]'), ('P', '1234', 1, '[{"idType":"PASSPORT","idCountryJurisdiction":"GBR","idNum":123,"fullNameEng":"X"}]')});
	is_deeply(found('missing', '1234'), [ split /\n/, <<'END' =~ s/\n$//r ], 'each with its field');
A|bad_quantity|the quantity is no positive whole number of at most 18 digits
B|bad_quantity|the quantity is no positive whole number of at most 18 digits
C|bad_quantity|the quantity is no positive whole number of at most 18 digits
D|no_id_type|idType is missing
E|no_country|idCountryJurisdiction is missing
F|no_id_number|idNum is missing
G|no_name|fullNameEng and fullNameChi are missing
H|no_applicant|the row names no applicant
I|no_country|idCountryJurisdiction is missing
I|no_id_number|idNum is missing
I|no_id_type|idType is missing
K |bad_own_ref|the own_ref is empty, or begins or ends with a space
M|bad_hkid|the check digit of idNum is wrong (applicant 2)
M|duplicate_document|idNum is also that of another applicant of this application (applicant 3)
M|no_country|idCountryJurisdiction is missing (applicant 2)
M|no_name|fullNameEng and fullNameChi are missing (applicant 2)
N|bad_id_list|the id_list is no array of applicants
O|no_applicant|the id_list names no applicant
Q|bad_id_list|the id_list is no array of applicants
END
	$fini->sql_fails(q{select * from fini.precheck('pg_class', '1234')}, qr/55000.*not attached/s, 'a table that is not attached');
	is_deeply(found('missing', 'no such'), [], 'an IPO without rows');
	$fini->sql(q{select fini.detach('missing'); drop table missing});
};

subtest 'documents that are used twice' => sub {
	$fini->sql(q{select fini.create_subscription_table(t), fini.attach(t::regclass, live => false) from unnest('{one,two}'::text[]) t} =~ s/, fini.attach.*live => false\)//r);
	$fini->sql(q{create table three (ref integer primary key, ipo integer, shares integer, docs json); select fini.attach('one', live => false), fini.attach('two', live => false),
		fini.attach('three', '{"ownRef": "ref", "ipoID": "ipo", "appQuantity": "shares", "idList": "docs"}', live => false)});
	$fini->sql(join '; ',
		applicants('one', [ 'A', '1234', 1, 'HKID', 'HKG', 'A123456(3)', 'X' ], [ 'B', '1234', 1, 'hkid', 'HK', ' a1234563', 'X' ], [ 'C', '3456', 1, 'HKID', 'HKG', 'A123456(3)', 'X' ],
			[ 'D', '1234', 1, 'PASSPORT', 'GBR', 'P1', 'X' ], [ 'E', '1234', 1, 'PASSPORT', 'FRA', 'P1', 'X' ], [ 'F', '1234', 1, 'PASSPORT', 'FRA', 'Z9', 'X' ], [ 'G', '1234', 1, 'PASSPORT', 'FRA', 'Q7', 'X' ], [ 'H', '1234', 1, 'PASSPORT', 'FRA', 'Q7', 'X' ]),
		applicants('two', [ 'T', '1234', 1, 'Passport ', 'gbr', 'p1', 'X' ], map { [ "U$_", '1234', 1, 'PASSPORT', 'CAN', 'Q1', 'X' ] } 1 .. 6),
		q{insert into three values (7, 1234, 1, '[{"idType":"PASSPORT","idCountryJurisdiction":"AUS","idNum":"Q5","fullNameEng":"X"},{"idType":"PASSPORT","idCountryJurisdiction":"FRA","idNum":"Z9","fullNameEng":"Y"}]')});
	is_deeply(found('one', '1234'), [
		'A|duplicate_document|idNum is also that of own_ref "B"', 'B|duplicate_document|idNum is also that of own_ref "A"',
		'D|duplicate_document|idNum is also that of own_ref "T" of table public.two', 'F|duplicate_document|idNum is also that of own_ref "7" of table public.three',
		'G|duplicate_document|idNum is also that of own_ref "H"', 'H|duplicate_document|idNum is also that of own_ref "G"' ], 'in the table, in others, among joint applicants; not in other IPOs or countries');
	is((grep { /^U1\|/ } @{ found('two', '1234') })[0], 'U1|duplicate_document|idNum is also that of own_ref "U2", own_ref "U3", own_ref "U4" and 2 more', 'many of them');
	is_deeply(found('three', '1234'), [ '7|duplicate_document|idNum is also that of own_ref "F" of table public.one' ], 'the other way round');
	is_deeply(found('three', 'no such'), [], 'an IPO that a table of numbers cannot have');

	# those that stand, or may come to
	$fini->sql(q{select fini.resume(); select fini.submit('one', '1234')});
	$fini->wait_done;
	$fini->config(rejectOwnRefs => []);
	$fini->sql(q{select fini.invalidate('one', '{A}')});
	$fini->wait_done;
	is_deeply([ map { /^(\w+)/ } @{ found('one', '1234') } ], [ qw(D F G H) ], 'one that has been withdrawn does not count');
	$fini->config(rejectOwnRefs => [ 'T' ]);
	$fini->sql(q{select fini.submit('two', '1234')});
	$fini->wait_done;
	is_deeply([ map { /^(\w+)/ } @{ found('one', '1234') } ], [ qw(F G H) ], 'nor one that was rejected');
	$fini->config(rejectOwnRefs => []);

	# another table's trouble
	$fini->sql('alter table three drop docs');
	my (undef, $out, $err) = $fini->try_sql(q{select own_ref from fini.precheck('one', '1234') order by 1});
	is($out, "G\nH", 'a table that cannot be read is left out');
	like($err, qr/WARNING:.*"three" cannot be read \(SQLSTATE 42703\).*Its documents are not compared/s, 'with a warning');

	# whoever reads the outbox may call it, and gets to see nothing of the rows
	$fini->sql(q{create role reader login; select fini.grant_access('reader', 'reader'); update one set full_name_eng = null where own_ref = 'G'});
	is($fini->sql(q{set client_min_messages = error; set session authorization reader; select own_ref, problem, detail from fini.precheck('one', '1234') order by 1, 2}),
		"G|duplicate_document|idNum is also that of own_ref \"H\"\nG|no_name|fullNameEng and fullNameChi are missing\nH|duplicate_document|idNum is also that of own_ref \"G\"", 'a reader');
	$fini->sql_fails('set session authorization reader; select * from one', qr/42501/, 'who may not look at the table');
	$fini->sql_fails(q{create role nobody; set session authorization nobody; select * from fini.precheck('one', '1234')}, qr/42501/, 'nobody else');
	$fini->sql(q{select fini.detach('one'), fini.detach('two'), fini.detach('three'); drop table one, two, three});
};

subtest 'kept from FINI' => sub {
	$fini->sql(q{select fini.create_subscription_table('checked'); select fini.create_subscription_table('unchecked');
		select fini.attach('checked', '{}', '{}', true, true), fini.attach('unchecked', '{}', '{}', true)});
	is($fini->sql(q{select string_agg(relation || ' ' || live || ' ' || precheck || ' ' || replicated, ', ' order by relation::text) from fini.attachment}),
		'checked true true false, unchecked true false false', 'asked for');
	my @p = ('PASSPORT', 'GBR');
	$fini->sql(applicants('checked', [ 'A', '5678', 1, 'HKID', 'HKG', 'A123456(4)', 'X' ], [ 'B', '5678', 1, @p, 'P1', undef ], [ 'C', '5678', 1, @p, 'P2', 'X' ], [ 'D', '5678', 1, @p, 'p2', 'X' ],
		[ 'E', '3456', 1, @p, 'P2', 'X' ], [ 'F', '5678', 1, 'HKID', 'HKG', 'A123456(3)', 'X' ]));
	$fini->wait_done;
	is(outcome('A'), 'rejected bad_hkid: the check digit of idNum is wrong', 'a check digit');
	is(outcome('B'), 'rejected no_name: fullNameEng and fullNameChi are missing', 'a name');
	is(outcome('D'), 'rejected duplicate_document: idNum is also that of own_ref "C"', 'a document of the same request');
	is(outcome($_), 'accepted', "$_ is accepted") for qw(C E F);
	is(history($_), '', "$_ has not been sent") for qw(A B D);
	$fini->sql(applicants('checked', [ 'G', '5678', 1, 'hkid', 'HK', 'a1234563', 'X' ]));
	$fini->sql(q{insert into checked (own_ref, ipo_id, app_quantity, id_list) values ('H', '5678', 1, '[{"idType":"PASSPORT","idCountryJurisdiction":"GBR","idNum":"P77","fullNameEng":"X"},{"idType":"PASSPORT","idCountryJurisdiction":"GBR","idNum":"P2","fullNameEng":"X"}]')});
	$fini->wait_done;
	is(outcome('G'), 'rejected duplicate_document: idNum is also that of own_ref "F"', 'of an earlier one');
	is(outcome('H'), 'rejected duplicate_document: idNum is also that of own_ref "C"', 'of a joint applicant');

	# mended, and the other one gone
	$fini->sql(q{update checked set id_num = 'A123456(3)' where own_ref = 'A'; update checked set full_name_eng = 'X' where own_ref = 'B'});
	$fini->wait_done;
	is(outcome('A'), 'rejected duplicate_document: idNum is also that of own_ref "F"', 'mended, but now another has it');
	is(outcome('B'), 'accepted', 'mended');
	$fini->sql(q{delete from checked where own_ref = 'F'});
	$fini->wait_done;
	is($fini->sql(q{select fini.retry(own_refs => '{A}')}), 1, 'put back');
	$fini->wait_done;
	is(outcome('A'), 'accepted', 'when the other has been withdrawn');
	$fini->sql(q{update checked set id_num = 'P3' where own_ref = 'C'});
	$fini->wait_done;
	$fini->sql(q{select fini.retry(own_refs => '{D}')});
	$fini->wait_done;
	is(outcome('D'), 'accepted', 'or has another document');
	$fini->sql(q{update checked set id_num = 'P3' where own_ref = 'B'});
	$fini->wait_done;
	is(outcome('B') . ' ' . history('B'), 'rejected duplicate_document: idNum is also that of own_ref "C" add', 'a change is looked at as well');
	is($fini->sql(q{select record_id is not null from checked where own_ref = 'B'}), 't', 'and leaves its record');
	$fini->sql(q{update checked set id_num = 'P1' where own_ref = 'B'});
	$fini->wait_done;
	is(outcome('B'), 'accepted', 'until it is mended');

	# other tables, one of which does not ask for it
	$fini->sql(applicants('unchecked', [ 'U', '5678', 1, @p, 'P3', 'X' ], [ 'V', '5678', 1, @p, 'P9', 'X' ]));
	$fini->wait_done;
	is(outcome('U', 'unchecked'), 'accepted', 'a table without it');
	$fini->sql(applicants('checked', [ 'W', '5678', 1, @p, 'P9', 'X' ]));
	$fini->wait_done;
	is(outcome('W'), 'rejected duplicate_document: idNum is also that of own_ref "V" of table public.unchecked', 'is looked at all the same');

	# a worker that knows nothing yet
	$fini->sql(q{select pg_terminate_backend(worker_pid, 10000) from fini.status});
	$fini->sql(applicants('checked', [ 'X1', '5678', 1, @p, 'P9', 'X' ], [ 'X2', '5678', 1, @p, 'P3', 'X' ], [ 'X3', '5678', 1, @p, 'P4', 'X' ], [ 'X4', '5678', 1, 'HKID', 'HKG', 'A1234563', 'X' ]));
	$fini->wait_done;
	is(outcome('X1'), 'rejected duplicate_document: idNum is also that of own_ref "V" of table public.unchecked', 'another worker finds it out');
	like(outcome('X2'), qr/^rejected duplicate_document: idNum is also that of own_ref "(C"|U" of table public.unchecked)$/, 'all of it');
	is(outcome('X3'), 'accepted', 'and lets others go');
	is(outcome('X4'), 'rejected duplicate_document: idNum is also that of own_ref "A"', 'in whichever spelling');
	# rows that wait for their submit
	$fini->sql(q{select fini.attach('checked', live => false, precheck => true)});
	$fini->sql(applicants('checked', [ 'Y1', '5678', 1, @p, 'P9', 'X' ], [ 'Y2', '5678', 1, undef, undef, 'P5', 'X' ]));
	$fini->sql(q{select fini.submit('checked')});
	$fini->wait_done;
	like(outcome('Y1'), qr/^rejected duplicate_document/, 'submitted later');
	is(outcome('Y2'), 'rejected no_id_type: idType is missing', 'with the first thing that is wrong');

	# more documents than there are places for at first, in a table attached meanwhile: the worker makes its register anew
	$fini->sql(q{select fini.create_subscription_table('crowd'); select fini.attach('crowd', precheck => true);
		insert into crowd (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
			select 'C' || i, '5678', 1, 'PASSPORT', 'GBR', 'CROWD' || i, 'X' from generate_series(1, 1600) i});
	$fini->wait_done;
	is($fini->sql(q{select count(*) from crowd where fini_state = 'accepted'}), 1600, 'many documents');
	$fini->sql(q{insert into crowd (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
			select 'D' || i, '5678', 1, 'PASSPORT', 'GBR', 'crowd' || i, 'X' from unnest('{1,400,1599}'::int[]) i});
	$fini->wait_done;
	is($fini->sql(q{select string_agg(own_ref || ' ' || (fini_error = 'duplicate_document: idNum is also that of own_ref "C' || substr(own_ref, 2) || '"'), ', ' order by own_ref) from crowd where own_ref like 'D%'}),
		'D1 true, D1599 true, D400 true', 'each of them is known');
	$fini->sql(q{select fini.attach('checked', live => true, precheck => true); alter table crowd rename id_num to doc});
	$fini->sql(applicants('checked', [ 'Z1', '5678', 1, @p, 'CROWD7', 'X' ]));
	$fini->wait_done;
	is(outcome('Z1'), 'accepted', 'while their table cannot be read they hold up nothing');
	$fini->sql(q{alter table crowd rename doc to id_num});

	# more IPOs than it keeps in mind: those not used for longest go, and are read again
	for my $ipo (map({ "IPO$_" } 1 .. 9), '5678')
	{
		$fini->sql(applicants('checked', [ "$ipo-1", $ipo, 1, @p, 'CROWD1', 'X' ], [ "$ipo-2", $ipo, 1, @p, 'CROWD1', 'X' ]));
		$fini->wait_done;
		like(outcome($_), $ipo eq '5678' ? qr/^rejected duplicate_document: idNum is also that of own_ref "C1"/ : $_ =~ /1$/ ? qr/^rejected 4/ : qr/^rejected (duplicate_document|4)/, "$_ is judged within its IPO") for "$ipo-1", "$ipo-2";
	}
	is($fini->stats->{duplicates}, 0, 'no duplicates at the gateway');
	is($fini->sql(q{select fini.reconcile('checked', '5678') is not null; select count(*) from fini.discrepancy where kind <> 'missing_locally'}), "t\n0", 'both sides agree');
	$fini->sql(q{select fini.invalidate(t::regclass, array(select own_ref from checked union select own_ref from unchecked union select own_ref from crowd)) from unnest('{checked,unchecked,crowd}'::text[]) t});
	$fini->wait_done;
	$fini->sql(q{select fini.detach('checked'), fini.detach('unchecked'), fini.detach('crowd')});
};

subtest "$rows rows" => sub {
	# half of the planted duplicates within the table, half across two; spelt in another way
	$fini->sql(qq{select fini.create_subscription_table('many'); select fini.create_subscription_table('few'); select fini.attach('many', live => false), fini.attach('few', live => false);
		insert into many (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, id_list)
		select case when i % 3 = 0 then md5(i::text)::uuid::text else 'R' || i end, '1234', 100, t, c, d, 'CHAN, Tai Man', case when i % 10 = 7 then
			jsonb_build_array(jsonb_build_object('idType', t, 'idCountryJurisdiction', c, 'idNum', d, 'fullNameEng', 'X'), jsonb_build_object('idType', 'PASSPORT', 'idCountryJurisdiction', 'GBR', 'idNum', 'J' || i, 'fullNameEng', 'Y')) end
		from generate_series(1, $rows) i, lateral (select case when i % 4 = 0 then 'PASSPORT' else 'HKID' end t, case when i % 4 = 0 then 'GBR' else 'HKG' end c, case when i % 4 = 0 then 'P' || i when i % 3 = 0 then replace(replace(hkid(i), '(', ''), ')', '') else hkid(i) end d) x;
		create table bad_planted as select own_ref from many where id_list is null and id_type = 'HKID' order by md5(own_ref) limit $planted;
		update many m set id_num = regexp_replace(id_num, '[0-9A](\\)?)\$', case when id_num ~ '0\\)?\$' then '1' else '0' end || '\\1') from bad_planted b where b.own_ref = m.own_ref;
		create table double_planted as select own_ref, id_type, id_country_jurisdiction, id_num, row_number() over (order by md5(own_ref || 'x')) n from many
			where id_list is null and own_ref not in (select own_ref from bad_planted) order by n limit $planted;
		insert into many (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
			select 'twin of ' || own_ref, '1234', 100, lower(id_type), id_country_jurisdiction, ' ' || lower(replace(replace(id_num, '(', ''), ')', '')), 'LEE' from double_planted where n % 2 = 0;
		insert into few (own_ref, ipo_id, app_quantity, id_list)
			select 'twin of ' || own_ref, '1234', 100, jsonb_build_array(jsonb_build_object('idType', 'PASSPORT', 'idCountryJurisdiction', 'FRA', 'idNum', 'F' || n, 'fullNameEng', 'X'),
				jsonb_build_object('idType', id_type, 'idCountryJurisdiction', id_country_jurisdiction, 'idNum', id_num, 'fullNameEng', 'LEE')) from double_planted where n % 2 = 1;
		analyze});
	# user and system time of the process, in hundredths of a second
	$fini->sql(q{create function cpu() returns numeric language sql volatile as $$ select split_part(s, ' ', 12)::numeric + split_part(s, ' ', 13)::numeric from regexp_replace(pg_read_file('/proc/self/stat'), '^.*\) ', '') s $$});
	my $before = time;
	my $result = $fini->sql(q{
		select set_config('test.before', cpu()::text, false);
		create table result as select * from fini.precheck('many', '1234');
		select round((cpu() - current_setting('test.before')::numeric) / 100, 2);
		select substring(pg_read_file('/proc/self/smaps_rollup') from 'Private_Dirty: *([0-9]+)');
		select substring(pg_read_file('/proc/self/status') from 'VmHWM:\s*([0-9]+)'), substring(pg_read_file('/proc/self/status') from 'RssShmem:\s*([0-9]+)')}, timeout => 900);
	my $seconds = time - $before;
	my $say = $ENV{FINI_PRECHECK_ROWS} ? \&diag : \&note;
	$say->(sprintf('%d rows in %.2f s: %.0f a second; CPU time in s, private memory in kB after it, peak, shared memory in it: %s', $rows, $seconds, $rows / $seconds, join(' ', (split /\n/, $result)[ 1 .. 3 ])));
	is($fini->sql(q{select count(*) from ((select own_ref from bad_planted except select own_ref from result where problem = 'bad_hkid')
		union all (select own_ref from result where problem = 'bad_hkid' except select own_ref from bad_planted)) x}), 0, "$planted wrong check digits: exactly those");
	is($fini->sql(q{select count(*) from result where problem = 'bad_hkid'}), $planted, 'each once');
	is($fini->sql(q{with expected as (select own_ref from double_planted union all select 'twin of ' || own_ref from double_planted where n % 2 = 0)
		select count(*) from ((select own_ref from expected except select own_ref from result where problem = 'duplicate_document')
		union all (select own_ref from result where problem = 'duplicate_document' except select own_ref from expected)) x}), 0, "$planted documents used twice: exactly those");
	is($fini->sql(q{select string_agg(distinct problem, ' ') from result}), 'bad_hkid duplicate_document', 'and nothing else');
	is($fini->sql(q{select count(*) from result r where position('"twin of ' || r.own_ref || '"' in detail) > 0 and problem = 'duplicate_document'}), $planted, 'each names the other');
	is($fini->sql(q{select count(*) from result r, many m where position(btrim(m.id_num) in r.detail) > 0 and r.own_ref = m.own_ref and m.id_list is null}), 0, 'and no document');
};

unlike(slurp_file($fini->node->logfile), qr/PANIC|terminated by signal|TRAP:|leak|A1234563|A123456\(/, 'the log is clean');
done_testing();
