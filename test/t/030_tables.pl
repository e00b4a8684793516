# Subscription tables end to end: what users do to their rows, what reaches the gateway, what comes back.

use strict;
use warnings;

use FiniTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(conf => "max_prepared_transactions = 10\nlog_statement = none\nlog_min_error_statement = panic\n");
my $node = $fini->node;

# an applicant in the five columns
my $person = q{id_type, id_country_jurisdiction, id_num, full_name_eng};
my $values = q{'PASSPORT', 'HK', 'P1234567', 'Chan Tai Man'};

# the gateway's records of an own_ref in order, and what was done to each: "add change|add"
sub records { my ($ref) = @_; return grep { $_->{ownRef} eq $ref } @{ $fini->dump } }
sub history { return join '|', map { join ' ', map { $_->{op} } @{ $_->{_history} } } records(@_) }
sub row { my ($table, $ref, $columns) = @_; return $fini->sql("select $columns from $table where own_ref = '$ref'") }
sub sending { my ($ref) = @_; return $fini->wait_for("select exists (select from fini.submission where own_ref = '$ref' and state = 'sending')") }

$fini->sql(q{
	select fini.create_subscription_table('applications');
	alter table applications add remark text;
	select fini.attach('applications')});

subtest 'columns of all kinds' => sub {
	$fini->sql(q{
		create domain client_reference as varchar(40) check (value <> '');
		create table "Odd ""Table""" (
			"Client Ref" client_reference not null unique, "IPO" integer, "Shares" numeric(20, 2), doc_no varchar(30), "Doc Type" char(8),
			given text, surname text, "Full Name" text generated always as (surname || ' ' || given) stored,
			bcan text, urgent boolean, more jsonb, tags json, firm varchar(5), "Record" varchar(20), "State" text, "Why" varchar(12));
		select fini.attach('"Odd ""Table"""', '{"ownRef": "Client Ref", "ipoID": "IPO", "appQuantity": "Shares", "idNum": "doc_no",
			"idType": "Doc Type", "fullNameEng": "Full Name", "bcan": "bcan", "urgent": "urgent", "tags": "tags", "extra": "more",
			"firmID": "firm", "a \"name\"": "given"}', '{"record_id": "Record", "state": "State", "error": "Why"}');
		insert into "Odd ""Table""" ("Client Ref", "IPO", "Shares", doc_no, "Doc Type", given, surname, bcan, urgent, more, tags, firm)
		values ('R 1', 1234, 500.00, 'K7654321', 'PASSPORT', 'Siu "Ming"', 'Lee', 'BCAN01', true, '{"channel": "app", "n": [1, {"x": null}]}', '["a", 1]', '00042'),
			('R 2', 9012, 500, 'K7654322', 'PASSPORT', 'Siu', 'Ho', NULL, false, NULL, NULL, NULL)});
	$fini->wait_done;
	my ($one) = records('R 1');
	is_deeply([ @{$one}{qw(ipoID appQuantity firmID bcan urgent channel)} ], [ '1234', '500', '00042', 'BCAN01', JSON::PP::true, 'app' ], 'fields');
	is_deeply($one->{n}, [ 1, { x => undef } ], 'a nested further field');
	is_deeply($one->{tags}, [ 'a', 1 ], 'a JSON column');
	is($one->{'a "name"'}, 'Siu "Ming"', 'a field with an odd name');
	is($one->{idList}[0]{fullNameEng}, 'Lee Siu "Ming"', 'a generated column');
	is($fini->sql(q{select "State", "Record" = '} . $one->{recordID} . q{' from "Odd ""Table""" where "Client Ref" = 'R 1'}), 'accepted|t', 'outcome columns');
	like($fini->sql(q{select "State" || ' ' || "Why" from "Odd ""Table""" where "Client Ref" = 'R 2'}), qr/^rejected \d{6}: .{4}$/,
		'an error too long for its column is clipped');
	$fini->sql(q{update "Odd ""Table""" set given = 'Siu Mui' where "Client Ref" = 'R 1'});
	$fini->wait_done;
	is(history('R 1'), 'add change', 'a generated column that changes is a change');

	$fini->sql(q{
		create table by_uuid (own_ref uuid primary key, ipo_id text, app_quantity text, id_list json);
		create table by_integer (own_ref integer primary key, ipo_id varchar, app_quantity integer, id_list jsonb);
		create table by_bigint (own_ref bigint primary key, ipo_id bigint, app_quantity bigint, id_num text, id_type text, full_name_chi text, record_id text);
		select fini.attach(t) from unnest('{by_uuid,by_integer,by_bigint}'::regclass[]) t;
		insert into by_uuid values ('F992B5C2-FD16-4E57-8387-738CB7AA75FB', '3456', '0100',
			'[{"idType": "PASSPORT", "idNum": "X1", "fullNameEng": "A"}, {"idType": "PASSPORT", "idNum": "X2", "fullNameEng": "B"}]');
		insert into by_integer values (-7, '3456', 200, '[{"idType": "PASSPORT", "idNum": "X3", "fullNameChi": "陳大文"}]');
		insert into by_bigint values (9223372036854775807, 3456, 300, 'X4', 'PASSPORT', '李小明')});
	$fini->wait_done;
	is($fini->sql('select count(*) from by_bigint where record_id is not null'), 1, 'bigint') or diag $fini->situation;
	my ($joint) = records('f992b5c2-fd16-4e57-8387-738cb7aa75fb');
	is(scalar @{ $joint->{idList} }, 2, 'joint applicants');
	is($joint->{firmID}, '00000', 'the firm of the setting where the table has none');
	is_deeply([ sort map { $_->{ownRef} } grep { $_->{ipoID} eq '3456' } @{ $fini->dump } ],
		[ sort 'f992b5c2-fd16-4e57-8387-738cb7aa75fb', '-7', '9223372036854775807' ], 'uuid, integer and bigint');
	$fini->sql('update by_uuid set app_quantity = 150; delete from by_integer; update by_bigint set app_quantity = 350');
	$fini->wait_done;
	is(history($_->[0]), $_->[1], "$_->[0]: $_->[1]")
	  for [ 'f992b5c2-fd16-4e57-8387-738cb7aa75fb', 'add change' ], [ '-7', 'add invalidate' ], [ '9223372036854775807', 'add change' ];
	$fini->sql('delete from "Odd ""Table"""; delete from by_uuid; delete from by_bigint');
	$fini->wait_done;
	is($fini->stats->{active}, 0, 'all withdrawn');
};

subtest 'while queued' => sub {
	$fini->sql(qq{
		select fini.pause('test');
		insert into applications (own_ref, ipo_id, app_quantity, $person)
		select 'Q' || i, '1234', i, $values from generate_series(1, 4) i;
		update applications set app_quantity = 50 where own_ref = 'Q1';
		update applications set id_num = 'NEWEST', app_quantity = 51 where own_ref = 'Q1';
		delete from applications where own_ref = 'Q2';
		update applications set own_ref = 'Q3 renamed', ipo_id = '5678' where own_ref = 'Q3'});
	is($fini->sql(q{select fini.cancel('applications', '{Q4}')}), 1, 'cancelled');
	is(row('applications', 'Q4', 'fini_state'), 'cancelled', 'the row says so');
	$fini->sql('select fini.resume()');
	$fini->wait_done;
	is(history('Q1'), 'add', 'changes coalesce into the add');
	is((records('Q1'))[0]{appQuantity} . (records('Q1'))[0]{idList}[0]{idNum}, '51NEWEST', 'with the newest values');
	is(history($_), '', "$_ never reaches the gateway") for qw(Q2 Q3 Q4);
	is((records('Q3 renamed'))[0]{ipoID}, '5678', 'a row that was renamed before it was sent');
	is($fini->sql(q{select fini.submit('applications')}), 1, 'what was cancelled can be submitted');
	$fini->wait_done;
	is(history('Q4'), 'add', 'and goes');
	$fini->sql(q{
		select fini.pause('test');
		update applications set app_quantity = 60 where own_ref = 'Q1'; update applications set app_quantity = 61 where own_ref = 'Q1';
		update applications set app_quantity = 62 where own_ref = 'Q4'; delete from applications where own_ref = 'Q4';
		select fini.resume()});
	$fini->wait_done;
	is(history('Q1'), 'add change', 'two changes are one');
	is((records('Q1'))[0]{appQuantity}, 61, 'with the newest values');
	is(history('Q4'), 'add invalidate', 'a change is no use before a withdrawal');
};

subtest 'while being sent' => sub {
	$fini->faults({ endpoint => 'subscriptions/add', action => 'delay', ms => 1500 });
	$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, $person) select 'S' || i, '1234', 1, $values from generate_series(1, 3) i");
	sending('S1');
	$fini->sql(qq{
		update applications set app_quantity = 2 where own_ref = 'S1';
		update applications set app_quantity = 3 where own_ref = 'S1';
		delete from applications where own_ref in ('S2', 'S3');
		insert into applications (own_ref, ipo_id, app_quantity, $person) select 'S3', '5678', 4, $values});
	$fini->sql_fails(q{update applications set own_ref = 'S9' where own_ref = 'S1'}, qr/55000.*cannot change once.*\n.*"S1" has been sent, or is being sent.*\n.*Delete the row/s, 'own_ref stays');
	$fini->wait_done;
	is(history('S1'), 'add change', 'exactly one change afterwards');
	is((records('S1'))[0]{appQuantity}, 3, 'with the newest values');
	is(history('S2'), 'add invalidate', 'a delete withdraws');
	is(history('S3'), 'add invalidate|add', 'and what is inserted again is another application');
	is(row('applications', 'S3', 'fini_state, record_id, ipo_id'), 'accepted|' . (records('S3'))[1]{recordID} . '|5678', 'whose outcome the row has');
};

subtest 'rejected while its withdrawal waits' => sub {
	$fini->faults({ endpoint => 'subscriptions/add', action => 'delay', ms => 1500 });
	$fini->config(rejectOwnRefs => [ 'N1' ]);
	$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, $person) select 'N1', '1234', 1, $values");
	sending('N1');
	$fini->sql(q{delete from applications where own_ref = 'N1'});
	$fini->wait_done;
	$fini->config(rejectOwnRefs => []);
	is($fini->sql(q{select string_agg(concat_ws(' ', operation, state, case when operation = 'invalidate' then error_code end), ', ' order by id) from fini.submission where own_ref = 'N1'}),
		'add rejected, invalidate cancelled never_added', 'there is nothing to withdraw');
	is(history('N1'), '', 'and FINI is not asked to');
};

subtest 'rejected while a change of it waits' => sub {
	$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, $person) select 'V1', '1234', 1, $values");
	$fini->wait_done;
	$fini->sql(q{delete from applications where own_ref = 'V1'});
	$fini->wait_done;
	$fini->faults({ endpoint => 'subscriptions/add', action => 'reject-entries', ownRefs => [ 'V1', 'V2' ], code => '400999', message => 'no' });
	$fini->config(latency => 1000);
	$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, $person) select r, '1234', 2, $values from unnest('{V1,V2}'::text[]) r");
	sending($_) for qw(V1 V2);
	$fini->sql(q{update applications set app_quantity = 3 where own_ref in ('V1', 'V2')});
	$fini->config(latency => 0);
	$fini->wait_done;
	is($fini->sql(q{select string_agg(operation || ' ' || state, ', ' order by id) from fini.submission where own_ref = 'V2'}), 'add rejected, add accepted', 'the change goes as an add');
	is(history('V1'), 'add invalidate|add', 'also if there was an application of that name before');
	is((records('V1'))[1]{appQuantity}, 3, 'with the newest values');
};

subtest 'rejected' => sub {
	$fini->config(rejectOwnRefs => [ 'R1', 'R2', 'R3', 'R4' ]);
	$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, $person) select 'R' || i, '1234', 1, $values from generate_series(1, 5) i");
	$fini->wait_done;
	is($fini->sql(q{select string_agg(own_ref || fini_state || (fini_error is null) || (record_id is null), ' ' order by own_ref) from applications where own_ref ~ '^R'}),
		'R1rejectedfalsetrue R2rejectedfalsetrue R3rejectedfalsetrue R4rejectedfalsetrue R5acceptedtruefalse', 'four of five');
	$fini->config(rejectOwnRefs => []);
	my $added = $fini->stats->{accepted};
	$fini->sql(q{update applications set remark = 'nothing mapped' where own_ref ~ '^R'; update applications set app_quantity = app_quantity where own_ref ~ '^R'});
	is($fini->sql('select count(*) from fini.queue'), 0, 'what is not mapped, or does not change, asks for nothing');
	$fini->sql(q{update applications set app_quantity = 2 where own_ref in ('R1', 'R2'); update applications set own_ref = 'R3b', ipo_id = '3456' where own_ref = 'R3'});
	is($fini->sql(q{select fini.retry('1234', own_refs => '{R2,R4,R5}')}), 1, 'retry: what was updated goes already');
	$fini->wait_done;
	is(history($_), 'add', "$_ went again as an add") for qw(R1 R2 R3b R4);
	is(row('applications', 'R1', 'fini_state, fini_error is null, record_id is null'), 'accepted|t|f', 'its error is cleared');
	is($fini->stats->{accepted} - $added, 4, 'each once');
	$fini->sql_fails(qq{update applications set $_->[0] where own_ref = 'R5'}, qr/cannot change once it has been sent/, "$_->[1] of what was sent stays")
	  for [ q{ipo_id = '3456'}, 'ipo_id' ], [ q{own_ref = 'R6'}, 'own_ref' ];
};

subtest 'statements that do several things' => sub {
	$fini->sql(qq{
		begin;
		insert into applications (own_ref, ipo_id, app_quantity, $person) select 'M' || i, '1234', i, $values from generate_series(1, 6) i;
		savepoint s;
		insert into applications (own_ref, ipo_id, app_quantity, $person) select 'never', '1234', 1, $values;
		rollback to s;
		commit;
		copy applications (own_ref, ipo_id, app_quantity, $person) from program 'printf "M7\\t1234\\t7\\tPASSPORT\\tHK\\tP7\\tA\\nM8\\t1234\\t8\\tPASSPORT\\tHK\\tP8\\tB\\n"'});
	$fini->wait_done;
	$fini->sql(qq{
		begin;
		insert into applications (own_ref, ipo_id, app_quantity, $person) select r, '1234', 20, $values from unnest('{M1,M9}'::text[]) r
		on conflict (own_ref) do update set app_quantity = excluded.app_quantity;
		merge into applications a using (values ('M2', 21), ('M3', NULL), ('M10', 22)) v(r, q) on a.own_ref = v.r
		when matched and q is null then delete when matched then update set app_quantity = q
		when not matched then insert (own_ref, ipo_id, app_quantity, $person) values (r, '1234', q, $values);
		with d as (delete from applications where own_ref = 'M4'), u as (update applications set app_quantity = 23 where own_ref in ('M5', 'M6'))
		insert into applications (own_ref, ipo_id, app_quantity, $person) select 'M11', '1234', 24, $values;
		delete from applications where own_ref = 'M7';
		insert into applications (own_ref, ipo_id, app_quantity, $person) select 'M7', '1234', 25, $values;
		update applications set app_quantity = 26 where own_ref = 'M7';
		commit});
	$fini->wait_done;
	my %expected = (M1 => 'add change', M2 => 'add change', M3 => 'add invalidate', M4 => 'add invalidate', M5 => 'add change',
		M6 => 'add change', M7 => 'add invalidate|add', M8 => 'add', M9 => 'add', M10 => 'add', M11 => 'add', never => '');
	is_deeply({ map { $_ => history($_) } keys %expected }, \%expected, 'each reaches the gateway as what it was');
	is_deeply([ $fini->compare('applications') ], [], 'both sides agree');
};

subtest 'prepared transactions, and replicas' => sub {
	$fini->sql(qq{
		begin;
		insert into applications (own_ref, ipo_id, app_quantity, $person) select 'P' || i, '1234', i, $values from generate_series(1, 2) i;
		prepare transaction 'one';
		begin;
		insert into applications (own_ref, ipo_id, app_quantity, $person) select 'P3', '1234', 3, $values;
		prepare transaction 'two'});
	is($fini->sql(q{select count(*) from fini.submission where own_ref ~ '^P'}), 0, 'nothing yet');
	$fini->sql(q{rollback prepared 'two'});
	$fini->sql(q{commit prepared 'one'});
	$fini->wait_for(q{select count(*) = 2 from applications where own_ref ~ '^P' and fini_state = 'accepted'}, 'the worker to look by itself', 30);
	is(history('P3'), '', 'what was rolled back was never sent');

	$fini->sql(qq{
		set session_replication_role = replica;
		insert into applications (own_ref, ipo_id, app_quantity, $person) select 'L1', '1234', 1, $values});
	is($fini->sql(q{select count(*) from fini.submission where own_ref = 'L1'}), 0, 'a replica enqueues nothing');
	is($fini->sql(q{select fini.submit('applications', '5678'), fini.submit('applications', '1234'), fini.submit('applications')}), '0|1|0', 'submit finds it, once');
	$fini->wait_done;
	is(history('L1'), 'add', 'and it goes');
};

subtest 'rows that wait for their submit' => sub {
	$fini->sql(qq{
		select fini.create_subscription_table('waiting');
		select fini.attach('waiting', live => false);
		insert into waiting (own_ref, ipo_id, app_quantity, $person) select 'W' || i, case when i < 3 then '1234' else '3456' end, i, $values from generate_series(1, 5) i});
	is($fini->sql('select count(*) from fini.queue'), 0, 'nothing is enqueued');
	is($fini->sql(q{select fini.submit('waiting', '1234')}), 2, 'one IPO');
	$fini->wait_done;
	is($fini->sql(q{select fini.submit('waiting')}), 3, 'the rest');
	$fini->wait_done;
	is($fini->sql(q{select fini.submit('waiting')}), 0, 'nothing is submitted twice');
	is($fini->sql(q{select count(*) from waiting where fini_state = 'accepted'}), 5, 'all accepted');
	is($fini->sql(q{select fini.invalidate('waiting', '{W1,W2,nobody}')}), 2, 'withdrawn by function');
	is($fini->sql(q{select fini.invalidate('waiting', '{W1,W2}')}), 0, 'once');
	$fini->wait_done;
	is(history('W1'), 'add invalidate', 'at the gateway');
	is(row('waiting', 'W1', 'fini_state'), 'invalidated', 'and in the row');
	$fini->sql_fails('truncate waiting', qr/55000.*cannot truncate table "waiting" while applications.*Delete the rows/s, 'TRUNCATE while three stand');
	$fini->sql(q{select fini.invalidate('waiting', array(select own_ref from waiting))});
	$fini->wait_done;
	$fini->sql('truncate waiting');
	is($fini->sql('select count(*) from waiting'), 0, 'TRUNCATE when none stands');
	$fini->sql(q{select fini.detach('waiting')});
};

subtest 'wait' => sub {
	is($fini->sql('select fini.wait()'), 't', 'nothing is open');
	$fini->sql(qq{select fini.pause('test'); insert into applications (own_ref, ipo_id, app_quantity, $person) select 'T1', '1234', 1, $values});
	my ($rc, $out, $err) = $fini->try_sql(q{select fini.wait('1234', '2500 ms')});
	is($out, 'f', 'the time is up');
	like($err, qr/NOTICE.*1 queued, 0 being sent/, 'with a notice');
	is(() = $err =~ /NOTICE/g, 1, 'which is not repeated while nothing changes');
	is($fini->sql(q{select fini.wait('5678', '0')}), 't', 'another IPO has nothing open');
	is($fini->sql(q{select fini.wait(timeout => '0')}), 'f', 'no time at all');
	my $begun = time;
	my ($waiting, $said, $answer) = (undef, '', '');
	my $psql = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', q{select fini.wait(timeout => '1 min')} ], '>', \$said, '2>', \$answer);
	$fini->wait_for(q{select exists (select from pg_stat_activity where query like 'select fini.wait%' and wait_event is not null and pid <> pg_backend_pid())});
	$fini->sql('select fini.resume()');
	$psql->finish;
	is($said, "t\n", 'true when done');
	cmp_ok(time - $begun, '<', 30, 'soon after it was');

	my $insert = "insert into applications (own_ref, ipo_id, app_quantity, $person) select 'T2', '1234', 1, $values";
	$fini->sql_fails("begin isolation level $_; select fini.wait()", qr/25001.*cannot see progress.*\n.*isolation level is $_.*\n.*read committed/s, $_)
	  for 'repeatable read', 'serializable';
	$fini->sql_fails("begin; $insert; select fini.wait()", qr/25001.*would wait for its own transaction.*Commit first/s, 'its own transaction');
	$fini->sql_fails("begin; savepoint a; $insert; release a; select fini.wait()", qr/25001.*own transaction/s, 'also in a savepoint');
	is($fini->sql("begin; savepoint a; $insert; rollback to a; select fini.wait(); commit"), 't', 'what was rolled back is not waited for');
	$fini->sql("select fini.pause('test'); $insert");
	$fini->sql_fails(q{set statement_timeout = '300 ms'; select fini.wait()}, qr/57014.*statement timeout/s, 'can be cancelled');
	$fini->sql('select fini.resume()');
	$fini->wait_done;						# no fault of what follows is meant for it
};

subtest 'rows that somebody holds locked' => sub {
	$fini->faults({ endpoint => 'subscriptions/add', action => 'delay', ms => 3000 });
	$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, $person) select 'H' || i, '1234', 1, $values from generate_series(1, 200) i");
	sending('H1');
	my $in = "begin; update applications set remark = 'held' where own_ref in (select 'H' || i from generate_series(1, 60) i);\n\\echo held\n";
	my ($out, $err) = ('', '');
	my $session = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ], '<', \$in, '>', \$out, '2>', \$err);
	$session->pump until $out =~ /held/ || $err ne '';
	$fini->wait_done;
	is($fini->states(q{own_ref ~ '^H'})->{accepted}, 200, 'all settled');
	$fini->wait_for(q{select count(*) > 0 from fini.unwritten}, 'rows to be left for later');
	# others go on meanwhile
	$fini->sql("insert into applications (own_ref, ipo_id, app_quantity, $person) select 'I1', '1234', 1, $values");
	$fini->wait_for(q{select fini_state = 'accepted' from applications where own_ref = 'I1'}, 'another row to get its outcome', 8);
	is($fini->sql(q{select count(*) from applications where own_ref ~ '^H' and fini_state is null}) >= 60, 1, 'the locked rows have none');
	$in .= "commit;\n\\q\n";
	$session->finish;
	is($err, '', 'the session was not disturbed');
	$fini->wait_for(q{select not exists (select from applications where own_ref ~ '^H' and fini_state is distinct from 'accepted')}, 'the rows to get their outcomes', 30);
	is($fini->sql('select count(*) from fini.unwritten'), 0, 'nothing is left for later');
	is($fini->sql(q{select count(*) from fini.submission where error_code is not null and own_ref ~ '^[HI]'}), 0, 'nor noted as an error');
};

# in the end
$fini->wait_done;
subtest 'more tables, and more IPOs, than plans and places are kept for' => sub {
	my @tables = map { "many$_" } 1 .. 60;
	$fini->sql(join ';', map { "select fini.attach(fini.create_subscription_table('$_'))" } @tables);
	for my $round (1, 2)
	{
		$fini->sql(join ';', map { "insert into $_ (own_ref, ipo_id, app_quantity, $person) select '$_-$round', '1234', $round, $values" } @tables);
		$fini->wait_done;
		is($fini->sql("select count(*) from fini.submission where own_ref like 'many%-$round' and state = 'accepted'"), 60, 'all are sent');
	}
	is($fini->sql('select count(*) from (' . join(' union all ', map { "select fini_state from $_" } @tables) . q{) t where fini_state = 'accepted'}), 120, 'and told');
	$fini->sql(q{select fini.set_deadline('1234', now() + interval '1 day')});
	$fini->sql("insert into many1 (own_ref, ipo_id, app_quantity, $person) select 'ipo-' || i, case when i = 1 then '1234' else 'IPO-' || i end, 1, $values from generate_series(1, 300) i");
	$fini->wait_done;
	is($fini->sql(q{select string_agg(state || ' ' || n, ', ' order by state) from (select state, count(*) n from fini.submission where own_ref like 'ipo-%' group by 1) s}), 'accepted 1, rejected 299', 'IPOs that FINI does not know');
	$fini->sql(q{select fini.set_deadline('1234', null)});
	$fini->sql(join ';', map { "delete from $_" } @tables);
	$fini->wait_done;
};

is_deeply([ $fini->compare('applications') ], [], 'both sides agree field by field');
is($fini->sql(q{select sum(discrepancies) from unnest('{1234,3456,5678}'::text[]) i, fini.reconcile('applications', i)}), 0, 'reconcile agrees');
my $stats = $fini->stats;
is($stats->{duplicates}, 0, 'no duplicates');
is($stats->{out_of_order}, 0, 'nothing out of order');
is($fini->sql(q{select count(*) from (select id, ipo_id, operation from fini.submission where state = 'queued') s
	full join fini._listed l using (id, ipo_id, operation) where s.id is null or l.id is null}), 0, 'the queue is in step');

# the extension goes, the tables stay
$fini->sql_fails('drop extension fini', qr/2BP01.*depend/s, 'triggers hold on to the extension');
$fini->sql('set client_min_messages = warning; drop extension fini cascade');
is($fini->sql(q{select count(*) from pg_trigger where tgname like 'fini%'}), 0, 'CASCADE leaves no trigger');
$fini->sql(q{update applications set app_quantity = 1; truncate applications});
my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|terminated by signal|TRAP:|leak/, 'nothing crashed');
unlike($log, qr/P1234567|NEWEST|Tai Man/, 'no personal data in the log');
done_testing();
