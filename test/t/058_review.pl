# What must hold when operations meet: privileges of triggers, a worker that ends in the middle, reconcile and
# repair, operations enqueued side by side, rows and tables at fault.

use strict;
use warnings;

use FiniTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.request_timeout' => '1500ms', 'fini.batch_size' => 100 },
	gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;

# one property; what breaks it off fails it, and does not stop the others
sub holds
{
	my ($what, $code) = @_;
	subtest $what => sub {
		eval { $code->(); 1 } or do { fail('went through'); diag $@ };
		$fini->clear_faults;
		$fini->sql('select fini.resume()');
	};
	return;
}

# wait until nothing of a table is open
sub settled
{
	my ($table, $timeout) = @_;
	return $fini->wait_for(
		"select not exists (select from fini.submission where relation = '$table'::regclass and state in ('queued', 'sending', 'unknown'))",
		"table $table to be settled", $timeout // 20);
}

sub under_way
{
	my ($own_ref, $operation) = @_;
	return $fini->wait_for(
		"select exists (select from fini.submission where own_ref = '$own_ref' and operation = '$operation' and state = 'sending')",
		"the $operation of $own_ref to be under way", 20);
}

sub records
{
	my ($own_ref) = @_;
	return grep { $_->{ownRef} eq $own_ref } @{ $fini->dump };
}

sub active
{
	my ($own_ref) = @_;
	return grep { $_->{subFlowStatus} eq '10' } records($own_ref);
}

sub reconcile
{
	my ($table, $ipo) = @_;
	return $fini->sql("select run_id from fini.reconcile('$table', '$ipo')");
}

sub worker_pid { return $fini->sql('select worker_pid from fini.status') }

sub end_worker
{
	$fini->sql('select pg_terminate_backend(worker_pid) from fini.status');
	return;
}

# a statement in a session of its own, which may have to wait for another; finish() waits for its end
sub statement_beside
{
	my ($statement) = @_;
	my $session = $node->background_psql('postgres');
	my $pid = $session->query_safe('select pg_backend_pid()');
	my $beside = {
		session => $session,
		ended => "select exists (select from pg_stat_activity where pid = $pid and state = 'idle' and query = \$q\$$statement;\$q\$)" };
	$session->query_until(qr/begun/, "\\echo begun\n$statement;\n");
	$fini->wait_for(
		sub { $fini->sql($beside->{ended}) eq 't' || $fini->sql("select wait_event_type = 'Lock' from pg_stat_activity where pid = $pid") eq 't' },
		'the statement beside to end, or to wait', 20);
	return $beside;
}

sub finish
{
	my ($beside) = @_;
	$fini->wait_for($beside->{ended}, 'the statement beside to end', 20);
	$beside->{session}->quit;
	return;
}

# --- privileges -------------------------------------------------------------------------------------------------

$fini->sql(q{create role submitter_one login; create role operator_one login;
	select fini.grant_access('submitter_one', 'submitter'); select fini.grant_access('operator_one', 'operator');
	create schema submitter_one authorization submitter_one; create schema operator_one authorization operator_one});

holds "a submitter's deferred trigger does not run as the owner of the table in fini.cancel" => sub {
	$fini->new_table('owned');
	$fini->sql('select fini.pause()');
	$fini->insert_rows('owned', 'OWN', 1);
	my ($rc, $out, $err) = $fini->try_sql(q{set role submitter_one; set search_path = submitter_one;
		create table ran (who name);
		create table cause (i int);
		create function pay() returns trigger language plpgsql as
			$$ begin insert into submitter_one.ran values (current_user); return null; end $$;
		create constraint trigger c after insert on cause deferrable initially deferred for each row execute function pay();
		begin; insert into cause values (1); select fini.cancel('public.owned'); commit});
	is($fini->sql(q{select count(*) from submitter_one.ran where who <> 'submitter_one'}), 0, 'as nobody else');
	is($err, '', 'nor does it break the cancel');
	is($fini->sql(q{select state from fini.submission where own_ref = 'OWN1'}), 'cancelled', 'cancelled');
};

holds "an operator's deferred trigger does not run as the worker" => sub {
	$fini->sql(q{set role operator_one; set search_path = operator_one;
		select fini.create_subscription_table('applications'); select fini.attach('applications');
		create table ran (who name);
		create table cause (i int);
		create function pay() returns trigger language plpgsql as
			$$ begin insert into operator_one.ran values (current_user); return null; end $$;
		create constraint trigger c after insert on cause deferrable initially deferred for each row execute function pay();
		create function step() returns trigger language plpgsql as
			$$ begin execute 'set constraints all deferred'; insert into operator_one.cause values (1); return null; end $$;
		create trigger s after update on applications for each row execute function step()});
	$fini->insert_rows('operator_one.applications', 'OPER', 1);
	settled('operator_one.applications');
	is($fini->sql(q{select count(*) from operator_one.ran where who <> 'operator_one'}), 0, 'as nobody else');
	is($fini->sql(q{select state from fini.submission where own_ref = 'OPER1'}), 'accepted', 'accepted');
};

# --- a worker that ends in the middle ---------------------------------------------------------------------------

for my $action (qw(hang-before hang-after))
{
	holds "a change and a withdrawal under way when the worker ends, $action" => sub {
		my $table = 'ends_' . ($action =~ s/-/_/r);
		my $ref = uc $table;
		$fini->new_table($table);
		$fini->insert_rows($table, $ref, 2);
		settled($table);
		my %record = map { $_ => $fini->sql("select record_id from $table where own_ref = '$ref$_'") } 1, 2;

		$fini->faults({ endpoint => 'subscriptions/invalidate', action => $action, ms => 1000, count => 1 });
		$fini->sql("delete from $table where own_ref = '${ref}1'");
		under_way("${ref}1", 'invalidate');
		$fini->wait_for(sub { $fini->stats->{faults}{$action} }, 'the gateway to have it', 20);
		end_worker();
		settled($table);
		my @withdrawn = records("${ref}1");
		is_deeply([ map { "$_->{recordID} $_->{subFlowStatus}" } @withdrawn ], [ "$record{1} 20" ], 'the record was withdrawn');
		is(scalar(grep { $_->{op} eq 'invalidate' } map { @{ $_->{_history} } } @withdrawn), 1, 'once');
		is($fini->sql("select state, record_id from fini.submission where own_ref = '${ref}1' and operation = 'invalidate'"),
			"accepted|$record{1}", 'the withdrawal is accepted, with its record');

		my $hit = $fini->stats->{faults}{$action};
		$fini->faults({ endpoint => 'subscriptions/change', action => $action, ms => 1000, count => 1 });
		$fini->sql("update $table set app_quantity = 5000");
		under_way("${ref}2", 'change');
		$fini->wait_for(sub { $fini->stats->{faults}{$action} > $hit }, 'the gateway to have it', 20);
		end_worker();
		settled($table);
		my @changed = records("${ref}2");
		is_deeply([ map { "$_->{recordID} $_->{subFlowStatus} $_->{appQuantity}" } @changed ], [ "$record{2} 10 5000" ], 'the record was changed');
		is(scalar(grep { $_->{op} eq 'change' } map { @{ $_->{_history} } } @changed), 1, 'once');
		is($fini->sql("select state, record_id from fini.submission where own_ref = '${ref}2' and operation = 'change'"),
			"accepted|$record{2}", 'the change is accepted, with its record');
		is($fini->sql("select fini_state, record_id from $table"), "accepted|$record{2}", 'and so is the row');
	};
}

# --- reconcile and repair ---------------------------------------------------------------------------------------

holds 'a run can be repaired twice: what is missing is added once' => sub {
	$fini->new_table('twice');
	$fini->insert_rows('twice', 'TWICE', 1);
	settled('twice');
	my ($record) = records('TWICE1');
	$fini->admin('DELETE', "/records?recordID=$record->{recordID}");
	my $run = reconcile('twice', '1234');
	is($fini->sql("select kind from fini.discrepancy where run_id = $run and own_ref = 'TWICE1'"), 'missing_at_fini', 'missing');
	$fini->sql("select fini.repair($run)");
	settled('twice');
	is($fini->sql("select fini.repair($run)"), 0, 'the second time there is nothing to do');
	settled('twice');
	is(scalar(active('TWICE1')), 1, 'one record');
};

holds 'reconcile of one table leaves the records of another table of the same IPO alone' => sub {
	$fini->new_table('mine');
	$fini->new_table('theirs');
	$fini->insert_rows('mine', 'MINE', 1, '3456');
	$fini->insert_rows('theirs', 'THEIRS', 2, '3456');
	settled('mine');
	settled('theirs');
	my $run = reconcile('mine', '3456');
	is($fini->sql("select count(*) from fini.discrepancy where run_id = $run and own_ref like 'THEIRS%'"), 0, 'not listed');
	$fini->sql("select fini.repair($run, '{missing_locally,missing_at_fini,duplicate_at_fini,status_differs,field_differs,record_id_differs}')");
	settled('mine');
	settled('theirs');
	is(scalar(active('THEIRS1')) + active('THEIRS2'), 2, 'and not withdrawn');
	is($fini->sql(q{select count(*) from theirs where fini_state = 'accepted' and record_id is not null}), 2, 'the rows stand');
};

holds 'reconcile refuses to compare with a snapshot' => sub {
	for my $level ('repeatable read', 'serializable')
	{
		$fini->sql_fails("begin isolation level $level; select * from fini.reconcile('mine', '3456')", qr/ERROR:\s+25001/, $level);
	}
};

holds 'a row whose duplicate was repaired still belongs to its record' => sub {
	$fini->new_table('doubled');
	$fini->insert_rows('doubled', 'DOUBLED', 1, '5678');
	settled('doubled');
	my ($record) = records('DOUBLED1');
	my %copy = %$record;
	delete $copy{_history};
	$copy{recordID} = '9999999999999999A';
	$fini->admin('POST', '/records', [ \%copy ]);
	is(scalar(active('DOUBLED1')), 2, 'two records');

	my $run = reconcile('doubled', '5678');
	is($fini->sql("select kind, record_id from fini.discrepancy where run_id = $run"), 'duplicate_at_fini|9999999999999999A', 'found');
	$fini->sql("select fini.repair($run)");
	settled('doubled');
	is_deeply([ map { $_->{recordID} } active('DOUBLED1') ], [ $record->{recordID} ], 'the one of the row is left');
	is($fini->sql('select fini_state, record_id from doubled'), "accepted|$record->{recordID}", 'which is what the row says');

	$fini->sql('update doubled set app_quantity = 7000');
	settled('doubled');
	is_deeply([ map { "$_->{recordID} $_->{appQuantity}" } active('DOUBLED1') ], ["$record->{recordID} 7000"], 'a later change reaches it');
	$fini->sql('delete from doubled');
	settled('doubled');
	is(scalar(active('DOUBLED1')), 0, 'a later withdrawal too');
};

holds 'reconcile of a table keyed by uuid, with foreign records in the IPO' => sub {
	$fini->sql(q{create table keyed (own_ref uuid primary key, ipo_id text not null, app_quantity int, id_type text,
			id_country_jurisdiction text, id_num text, full_name_eng text);
		select fini.attach('keyed')});
	$fini->sql(q{insert into keyed values ('f992b5c2-fd16-4e57-8387-738cb7aa75fb', '3456', 100, 'PASSPORT', 'GB', 'P1', 'Name')});
	settled('keyed');
	my ($record) = records('f992b5c2-fd16-4e57-8387-738cb7aa75fb');
	my %foreign = %$record;
	delete $foreign{_history};
	@foreign{qw(recordID ownRef)} = ('8888888888888888A', 'no uuid');
	$fini->admin('POST', '/records', [ \%foreign ]);
	my $run = reconcile('keyed', '3456');
	is($fini->sql("select kind, own_ref from fini.discrepancy where run_id = $run"), 'missing_locally|no uuid', 'only the foreign one is listed');
	is($fini->sql("select matched from fini.reconcile_run where run_id = $run"), 1, 'its own row matches');
	$fini->admin('DELETE', '/records?recordID=8888888888888888A');
};

# --- operations side by side ------------------------------------------------------------------------------------

holds 'retry beside an update of the same row gives one record' => sub {
	$fini->new_table('again');
	$fini->faults({ endpoint => 'subscriptions/add', action => 'reject-entries', n => 1, code => '400777', message => 'x', count => 1 });
	$fini->insert_rows('again', 'AGAIN', 1);
	settled('again');
	is($fini->sql('select fini_state from again'), 'rejected', 'rejected first');

	my $retry = $node->background_psql('postgres');
	$retry->query_safe('begin');
	$retry->query_safe(q{select fini.retry(relation => 'again')});
	my $update = statement_beside('update again set app_quantity = 2000');
	# if it had not to wait for the retry, what it asks for goes first
	$fini->wait_for(q{select not exists (select from fini.queue) and not exists (select from fini.submission where state in ('sending', 'unknown'))},
		'what can be sent to be sent', 20);
	$retry->query_safe('commit');
	$retry->quit;
	finish($update);
	settled('again');
	is_deeply([ map { $_->{appQuantity} } active('AGAIN1') ], ['2000'], 'one record, as updated');
	is($fini->sql('select fini_state, record_id from again'), 'accepted|' . (active('AGAIN1'))[0]{recordID}, 'and it is that of the row');
};

holds 'a change enqueued beside the withdrawal does not submit again' => sub {
	$fini->new_table('beside');
	$fini->insert_rows('beside', 'BESIDE', 1);
	settled('beside');
	$fini->sql('select fini.pause()');
	my $withdrawal = $node->background_psql('postgres');
	$withdrawal->query_safe('begin');
	$withdrawal->query_safe(q{select fini.invalidate('beside', '{BESIDE1}')});
	my $update = statement_beside('update beside set app_quantity = 2000');
	$withdrawal->query_safe('commit');
	$withdrawal->quit;
	finish($update);
	$fini->sql('select fini.resume()');
	settled('beside');
	is(scalar(active('BESIDE1')), 0, 'withdrawn');
	is(scalar(records('BESIDE1')), 1, 'and not added again');
};

holds 'an add in doubt is not found in an invalidated record' => sub {
	$fini->new_table('invalid');
	$fini->insert_rows('invalid', 'INVALID', 1);
	settled('invalid');
	my ($record) = records('INVALID1');
	$fini->admin('PATCH', "/records?recordID=$record->{recordID}", { subFlowStatus => '20' });
	my $run = reconcile('invalid', '1234');
	is($fini->sql("select kind from fini.discrepancy where run_id = $run and own_ref = 'INVALID1'"), 'status_differs', 'invalidated by somebody');
	$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-before', count => 1 });
	$fini->sql("select fini.repair($run)");
	settled('invalid');
	is($fini->stats->{faults}{'drop-before'}, 1, 'the add was in doubt');
	my @active = active('INVALID1');
	is(scalar(@active), 1, 'and was sent again');
	is($fini->sql('select fini_state, record_id from invalid'), 'accepted|' . ($active[0]{recordID} // ''), 'the row has the new record');
};

holds "a user's trigger on an outcome may insert into another attached table" => sub {
	$fini->new_table('leads');
	$fini->new_table('follows');
	$fini->sql(q{create function follow() returns trigger language plpgsql as $$ begin
			if new.fini_state = 'accepted' then
				insert into public.follows (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
				values ('FOLLOW-' || new.own_ref, '3456', 100, 'PASSPORT', 'GB', 'P1', 'Follow Up');
			end if;
			return null; end $$;
		create trigger follow after update on leads for each row execute function follow()});
	$fini->insert_rows('leads', 'LEAD', 1);
	settled('leads');
	$fini->wait_for(q{select exists (select from follows)}, 'the follow-up', 20);
	is($fini->sql(q{select count(*) from fini.submission where own_ref = 'FOLLOW-LEAD1'}), 1, 'it was captured');
	settled('follows');
	is(scalar(active('FOLLOW-LEAD1')), 1, 'and sent, without another call');
};

# --- answers and rows at fault ----------------------------------------------------------------------------------

for my $data ('null', '{}')
{
	holds "data $data in the answer to a query is an empty page" => sub {
		my $table = $data eq 'null' ? 'empty_null' : 'empty_object';
		$fini->new_table($table);
		$fini->faults(
			{ endpoint => 'subscriptions/add', action => 'drop-before', count => 1 },
			{ endpoint => 'subscriptions/query', action => 'status-before', status => 200, count => -1,
				body => qq({"code":"0","message":"","data":$data,"totalSize":0,"nextCursor":"0","exception":[]}) });
		$fini->insert_rows($table, uc $table, 1, '5678');
		is($fini->sql(q{select count(*) from fini.subscription_query('5678')}), 0, 'no rows');
		settled($table);
		is($fini->sql("select fini_state from $table"), 'accepted', 'it ends the search for what is in doubt');
		is(scalar(active(uc($table) . '1')), 1, 'one record');
	};
}

holds 'a row that cannot be sealed is rejected alone' => sub {
	$fini->new_table('unsealable');
	my $pid = worker_pid();
	$fini->sql('select fini.pause()');
	$fini->insert_rows('unsealable', 'BEFORE', 3);
	$fini->sql(q{insert into unsealable (own_ref, ipo_id, app_quantity, id_list) values ('ARRAY', '1234', 100,
		'[{"idType":"PASSPORT","idCountryJurisdiction":"GB","idNum":"P1","fullNameEng":["Li","Wu"]}]')});
	$fini->sql(q{insert into unsealable (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, extra)
		values ('OBJECT', '1234', 100, 'PASSPORT', 'GB', 'P1', 'Name', '{"guardian":{"fullNameEng":{"first":"Li"}}}')});
	$fini->insert_rows('unsealable', 'AFTER', 3);
	$fini->sql('select fini.resume()');
	settled('unsealable');
	is($fini->sql(q{select string_agg(own_ref, ',' order by own_ref) from unsealable where fini_state = 'rejected'}), 'ARRAY,OBJECT', 'they are rejected');
	is($fini->sql(q{select count(*) from unsealable where fini_state = 'accepted'}), 6, 'the others accepted');
	is(worker_pid(), $pid, 'by the same worker');
};

for my $code (qw(57014 57P01))
{
	holds "a user's trigger that raises $code on an outcome does not end the worker" => sub {
		my $table = lc "raises_$code";
		$fini->new_table($table);
		$fini->new_table("${table}_other");
		$fini->sql(qq{create function $table() returns trigger language plpgsql as
				\$\$ begin raise exception 'x' using errcode = '$code'; end \$\$;
			create trigger raises after update on $table for each row execute function $table()});
		my $pid = worker_pid();
		$fini->insert_rows($table, uc $table, 2);
		settled($table);
		$fini->insert_rows("${table}_other", "${code}OTHER", 2);
		settled("${table}_other");
		is($fini->sql("select string_agg(distinct state, ',') from fini.submission where relation = '$table'::regclass"), 'accepted', 'the outbox has the outcome');
		is($fini->sql("select count(*) from ${table}_other where fini_state = 'accepted'"), 2, 'the other table goes on');
		is(worker_pid(), $pid, 'the worker is the same');
		$fini->sql("drop trigger raises on $table");
	};
}

holds 'what the row says of its IPO and quantity, extra does not override' => sub {
	my @extra = ('{"ipoID":"3456"}', '{"appQuantity":"77"}', '{"ownRef":"OTHER"}', '{"note":"kept"}');
	$fini->new_table('overrides');
	for my $i (0 .. $#extra)
	{
		$fini->sql(qq{insert into overrides (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, extra)
			values ('OVERRIDE$i', '1234', 100, 'PASSPORT', 'GB', 'P1', 'Name', '$extra[$i]')});
	}
	settled('overrides');
	is($fini->sql(q{select string_agg(concat_ws(' ', own_ref, fini_state, nullif(split_part(fini_error, ':', 1), '')), ', ' order by own_ref)
			from overrides}),
		join(', ', (map { "OVERRIDE$_ rejected bad_extra" } 0 .. 2), 'OVERRIDE3 accepted'), 'refused, and said so');
	is(scalar(map { records($_) } qw(OVERRIDE0 OVERRIDE1 OVERRIDE2 OTHER)), 0, 'nothing of them was sent');
	is_deeply([ map { "$_->{ipoID} $_->{appQuantity} $_->{note}" } active('OVERRIDE3') ], ['1234 100 kept'], 'another field goes along');
};

holds 'numbers among the personal values are blanked in messages of the gateway' => sub {
	$fini->new_table('blanked');
	my $log = $fini->log_position;
	$fini->faults({ endpoint => 'subscriptions/add', action => 'reject-entries', n => 1, code => '400777', count => 1,
			message => 'document 74839201 of the applicant is on the list' });
	$fini->sql(q{insert into blanked (own_ref, ipo_id, app_quantity, id_list) values ('BLANKED', '1234', 100, '[{"idType":"PASSPORT","idCountryJurisdiction":"GB","idNum":74839201,"fullNameEng":"Li Wu"}]')});
	settled('blanked');
	my $message = $fini->sql(q{select error_message from fini.submission where own_ref = 'BLANKED'});
	like($message, qr/of the applicant is on the list/, 'the message is there');
	unlike($message, qr/74839201/, 'without the number, in the outbox');
	unlike($fini->sql('select fini_error from blanked'), qr/74839201/, 'in the row');
	unlike($fini->sql('select coalesce(string_agg(message, $$ $$), $$$$) from fini.request'), qr/74839201/, 'in the request log');
	unlike($fini->log_since($log) =~ s/^.*statement: insert into blanked.*$//mgr, qr/74839201/, "in the server's log, but for the user's statement");
};

holds 'locked rows get their outcome once the lock goes, and hold up no other table' => sub {
	$fini->new_table('locked');
	$fini->new_table('free');
	$fini->sql('select fini.pause()');
	$fini->insert_rows('locked', 'LOCKED', 4);
	my $holder = $node->background_psql('postgres');
	$holder->query_safe('begin');
	$holder->query_safe('select count(*) from (select from locked for update) l');
	$fini->sql('select fini.resume()');
	settled('locked');
	my $begin = time;
	$fini->insert_rows('free', 'FREE', 4);
	$fini->wait_for(q{select count(*) = 4 from free where fini_state = 'accepted'}, 'the other table', 20);
	cmp_ok(time - $begin, '<', 4, 'the other table went on at once');
	$holder->query_safe('commit');
	$holder->quit;
	$fini->wait_for(q{select count(*) = 4 from locked where fini_state = 'accepted' and record_id is not null}, 'the outcomes', 30);
	ok(1, 'the outcomes are in the rows');
};

# --- cancel over a standing record --------------------------------------------------------------------------------

holds 'cancel of a row that was inserted again over a standing record' => sub {
	$fini->new_table('reborn');
	$fini->insert_rows('reborn', 'REBORN', 1);
	settled('reborn');
	my $record = $fini->sql('select record_id from reborn');
	$fini->sql('select fini.pause()');
	$fini->sql('delete from reborn');
	$fini->insert_rows('reborn', 'REBORN', 1);
	$fini->sql(q{select fini.cancel('reborn')});
	$fini->sql('select fini.resume()');
	settled('reborn');
	is_deeply([ map { $_->{recordID} } active('REBORN1') ], [$record], 'the record stands');
	is($fini->sql('select record_id from reborn'), $record, 'and the row knows it');
};

done_testing();
