# Sessions that are cancelled, and sessions that are ended, at any moment of what they do: a hundred moments of each
# statement, one after the other, from its beginning to past its end, waits for the gateway included. Wanted every time: the
# statement's answer or the cancel's error, nothing half done, nothing left behind, and a session that goes on. Then the
# worker, ended at any moment of a batch.

use strict;
use warnings;

use FiniModule;
use FiniTest;
use Test::More;

my $moments = $ENV{FINI_TEST_SLOW} ? 20 : 100;
my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 20, 'fini.request_timeout' => '10s' }, gateway => [ '--rate-limit', '0' ]);
my $heap = FiniModule::build('heap.c', '-ldl');
my @standard = ('ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng', q{'1234', 1000, 'PASSPORT', 'GBR', 'P' || i, 'DOE, Jane ' || i});
$fini->sql(<<"END");
create function test_heap() returns bigint language c as '$heap', 'fini_test_heap';
create function test_files() returns int language c as '$heap', 'fini_test_files';
create function test_interrupt(signal int, us bigint) returns void language c as '$heap', 'fini_test_interrupt';
create table outcome (what text, moment int, state text, message text);
create table measured (what text, pass int, heap bigint, files int);
select fini.create_subscription_table('applications'), fini.create_subscription_table('standing'), fini.create_subscription_table('other');
select fini.attach('applications'), fini.attach('standing');

-- a statement, cancelled at moment after moment. One that wrote says how to tell whether it did: 'all or nothing' is its answer
create procedure sweep(what text, moments int, statement text, check_answer bool) language plpgsql as \$\$
declare
	answer text;
	got text;
	state text;
	message text;
	heap bigint;
	files int;
	took bigint;
	began timestamptz;
begin
	for i in 1 .. 3 loop
		began := clock_timestamp();
		execute replace(statement, '{n}', what || '-0-' || i) into answer;
		took := extract(epoch from clock_timestamp() - began) * 1000000;
	end loop;
	for pass in 1 .. 2 loop
		-- a connection that is kept alive is there at both ends
		execute replace(statement, '{n}', what || '-' || pass || '-begin') into got;
		heap := test_heap();
		files := test_files();
		for moment in 0 .. moments - 1 loop
			state := '00000';
			message := null;
			begin
				perform test_interrupt(2, 1 + took * moment * 12 / 10 / moments);
				execute replace(statement, '{n}', what || '-' || pass || '-' || moment) into got;
				perform test_interrupt(2, 0);
				if check_answer and got is distinct from answer then
					state := 'wrong';
					message := got;
				end if;
			exception when query_canceled then
				state := '57014';
			when others then
				get stacked diagnostics state = returned_sqlstate, message = message_text;
			end;
			-- one that came too late for the statement
			begin
				perform test_interrupt(2, 0);
				perform 1;
			exception when query_canceled then
				null;
			end;
			insert into outcome values (what, moment, state, message);
			commit;
		end loop;
		execute replace(statement, '{n}', what || '-' || pass || '-end') into got;
		insert into measured values (what, pass, test_heap() - heap, test_files() - files);
	end loop;
	execute replace(statement, '{n}', what || '-3-0') into got;
	if check_answer and got is distinct from answer then
		insert into outcome values (what, -1, 'wrong', got);
	end if;
end \$\$;
insert into standing (own_ref, $standard[0]) select 'S' || i, $standard[1] from generate_series(1, 60) i;
END
$fini->wait_done;

# each: [ the statement, whether its answer is always the same ]; {n} is a text of its own for each execution
my $entry = q{jsonb_build_array(jsonb_build_object('ipoID', '1234', 'ownRef', '{n}', 'appQuantity', '5', 'idList',
	jsonb_build_array(jsonb_build_object('idType', 'PASSPORT', 'idCountryJurisdiction', 'GBR', 'idNum', 'P1', 'fullNameEng', 'DOE, Jane'))))};
my %statements = (
	seal => [ q{select md5(fini.encrypt_fields((select jsonb_build_object('idList', jsonb_agg(jsonb_build_object('idNum', 'A' || i))) from generate_series(1, 2000) i)::json,
		decode(repeat('41', 32), 'hex'), decode(repeat('42', 12), 'hex'))::text)}, 1 ],
	list => [ 'select count(*) from fini.ipo_list()', 1 ],
	query => [ q{select count(*) > 50 from fini.subscription_query('1234')}, 1 ],
	check => [ 'select count(*) from fini.check()', 1 ],
	precheck => [ q{select count(*) from fini.precheck('standing', '1234')}, 1 ],
	reconcile => [ q{select count(*) from fini.reconcile('standing', '1234')}, 0 ],
	add => [ "select error_code from fini.subscription_add($entry)", 1 ],
	insert => [ qq{with i as (insert into applications (own_ref, $standard[0]) select '{n}-' || i, $standard[1] from generate_series(1, 50) i returning 1) select count(*) from i}, 1 ],
	change => [ q{with u as (update standing set app_quantity = app_quantity + 1 returning 1) select count(*) from u}, 1 ],
	submit => [ q{select fini.submit('standing') >= 0}, 1 ],
	status => [ 'select count(*) from fini.status, fini.progress', 1 ],
	attach => [ q{select fini.attach('other')::text || fini.detach('other')::text}, 1 ],
);

for my $what (sort keys %statements)
{
	my ($statement, $same) = @{ $statements{$what} };
	my ($rc, undef, $err) = $fini->try_sql("call sweep('$what', $moments, \$s\$$statement\$s\$, " . ($same ? 'true' : 'false') . ')', timeout => 600);
	is($rc, 0, "$what: the session lives") or diag $err;
	my %seen = map { split /:/ } split / /, $fini->sql("select string_agg(state || ':' || n, ' ') from (select state, count(*) n from outcome where what = '$what' group by 1) o");
	note "$what: ", join ', ', map { "$_ $seen{$_}" } sort keys %seen;
	cmp_ok($seen{'57014'} // 0, '>', 1, '... though cancelled ' . ($seen{'57014'} // 0) . ' times');
	is($fini->sql("select string_agg(distinct state || ' ' || message, E'\\n') from outcome where what = '$what' and state not in ('00000', '57014')"), '', '... with its answer or the cancel\'s error');
	my ($bytes, $files) = split /\|/, $fini->sql("select heap, files from measured where what = '$what' and pass = 2");
	cmp_ok($bytes // 1e9, '<', 100_000, '... and nothing left behind: bytes');
	cmp_ok($files // 1e9, '<=', 0, '... and files');
}

# --- nothing half done ---

$fini->wait_done;
is($fini->sql(q{select count(*) from (select regexp_replace(own_ref, '-\d+$', '') from applications group by 1 having count(*) <> 50) h}), 0, 'statements of which a part was done: none');
is($fini->sql(q{select (select count(*) from applications where fini_state is distinct from 'accepted') || ' ' || (select count(*) from applications)
	- (select count(*) from fini.submission where own_ref like 'insert-%')}), '0 0', 'every row that is there was sent, and none besides');
both_sides_agree();
my %at_fini = map { $_->{ownRef} => 1 } grep { $_->{ownRef} =~ /^add-/ } @{ $fini->dump };
my %answered = map { $_ => 1 } split /\n/, $fini->sql(q{select moment from outcome where what = 'add' and state = '00000'});
cmp_ok(scalar(keys %at_fini), '>=', scalar(keys %answered), 'direct calls that answered are at FINI');
is($fini->sql(q{select count(*) from standing s join fini.submission u using (own_ref) where u.state not in ('accepted', 'cancelled')}), 0, 'changes are settled');
is($fini->stats->{duplicates}, 0, 'nothing twice');

# --- ended, from outside: what a session was doing is undone or done ---

my $signal = 15;
my $from = $fini->log_position;
for my $what (qw(seal query check add insert reconcile submit))
{
	my ($statement) = @{ $statements{$what} };
	my %seen;
	(my $once = $statement) =~ s/\{n\}/$what-end-0/g;
	$fini->sql($once);
	my $took = $fini->sql("select clock_timestamp() as began \\gset\n" . $once =~ s/$what-end-0/$what-end-again/gr . " \\g /dev/null\nselect (extract(epoch from clock_timestamp() - :'began') * 1000000)::bigint");
	for my $moment (0 .. $moments / 3)
	{
		(my $now = $statement) =~ s/\{n\}/$what-end-$moment-x/g;
		my ($rc, $out, $err) = $fini->try_sql(sprintf "select test_interrupt(%d, %d);\n%s", $signal, 1 + $took * 1.2 * $moment / ($moments / 3), $now);
		$seen{ $rc == 0 ? 'done' : $err =~ /57P01/ ? 'ended' : "? $rc $err" }++;
	}
	is(join(', ', grep { /^\?/ } keys %seen), '', "$what, ended: an end or an answer (" . join(', ', map { "$_ $seen{$_}" } sort keys %seen) . ')');
}
$fini->wait_done;
is($fini->sql(q{select count(*) from (select regexp_replace(own_ref, '-\d+$', '') from applications group by 1 having count(*) <> 50) h}), 0, 'nothing half done');
is($fini->sql(q{select (select count(*) from applications where fini_state is distinct from 'accepted') || ' ' || (select count(*) from applications)
	- (select count(*) from fini.submission where own_ref like 'insert-%')}), '0 0', 'every row that is there was sent, and none besides');
is($fini->sql(q{select count(*) from fini.ipo_list()}) > 0, 1, 'others call as before');

# --- the worker, ended in the middle of batches ---

my $ended = 0;
for my $ms (map { $_ * 2 } 0 .. ($ENV{FINI_TEST_SLOW} ? 3 : 20))
{
	my $pid = $fini->wait_for(sub { $fini->sql('select worker_pid from fini.status where worker_pid is not null') }, 'a worker');
	$fini->sql(qq{insert into applications (own_ref, $standard[0]) select 'worker-$ms-' || i, $standard[1] from generate_series(1, 30) i;
		select pg_sleep($ms / 1000.0), pg_terminate_backend($pid)});
	$ended++;
	$fini->wait_for("select count(*) = 30 from applications where own_ref like 'worker-$ms-%' and fini_state = 'accepted'", "rows sent although the worker ended after $ms ms", 60);
}
cmp_ok($ended, '>', 2, "the worker ended $ended times, and all was sent");
is($fini->stats->{duplicates}, 0, 'nothing twice');
both_sides_agree();
unlike($fini->log_since(0), qr/terminated by signal|PANIC|TRAP:/, 'no process crashed');
done_testing();

# what the rows of the two tables and the active records say, whose own_refs are not a direct call's
sub both_sides_agree
{
	$fini->load_dump('gateway_dump', active => 1);
	is($fini->sql(q{select count(*) from (select own_ref, app_quantity, id_num, full_name_eng, record_id from applications union all select own_ref, app_quantity, id_num, full_name_eng, record_id from standing) a
		full join (select r from gateway_dump where r->>'ownRef' !~ '^add-') d on d.r->>'recordID' = a.record_id and d.r->>'ownRef' = a.own_ref
			and (d.r->>'appQuantity')::bigint = a.app_quantity and d.r#>>'{idList,0,idNum}' = a.id_num and d.r#>>'{idList,0,fullNameEng}' = a.full_name_eng
		where a.own_ref is null or d.r is null}), 0, 'both sides agree');
	return;
}
