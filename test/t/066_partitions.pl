# Partitioned tables: attached as one table, whichever way rows come and go, and however partitions do.

use strict;
use warnings;

use FiniTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
	conf => "log_statement = none\nlog_min_error_statement = panic\n");
my $node = $fini->node;

my $columns = q{own_ref text not null, ipo_id text not null, app_quantity bigint, id_type text, id_country_jurisdiction text,
	id_num text, full_name_eng text, full_name_chi text, firm_id text, id_list jsonb, record_id text, fini_state text, fini_error text};
my $person = q{app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng};
my $values = q{100, 'PASSPORT', 'HKG', 'P1234567', 'Chan Tai Man'};

# what the gateway did for an own_ref, "add change|add"
sub history { my ($ref) = @_; return join '|', map { join ' ', map { $_->{op} } @{ $_->{_history} } } grep { $_->{ownRef} eq $ref } @{ $fini->dump } }
sub insert { my ($table, @refs) = @_; return "insert into $table (own_ref, ipo_id, $person) select split_part(r, '/', 1), split_part(r, '/', 2), $values from unnest('{" . join(',', @refs) . "}'::text[]) r" }
sub triggers { my ($table) = @_; return $fini->sql("select string_agg(tgname, ' ' order by tgname) from pg_trigger where tgrelid = '$table'::regclass and not tgisinternal") }
sub state_of { my ($ref, $table) = @_; $table //= 'orders'; return $fini->sql("select string_agg(ipo_id || ' ' || fini_state, ', ' order by ipo_id) from $table where own_ref = '$ref'") }

# by IPO, one of them in two parts, one with its columns in another order
$fini->sql(qq{
	create table orders ($columns, primary key (own_ref, ipo_id)) partition by list (ipo_id);
	create table orders_1234 partition of orders for values in ('1234') partition by hash (own_ref);
	create table orders_1234_0 partition of orders_1234 for values with (modulus 2, remainder 0);
	create table orders_1234_1 partition of orders_1234 for values with (modulus 2, remainder 1);
	create table orders_3456 (fini_error text, dropped text, full_name_eng text, id_num text, id_type text, ipo_id text not null, fini_state text,
		app_quantity bigint, record_id text, own_ref text not null, id_list jsonb, firm_id text, full_name_chi text, id_country_jurisdiction text);
	alter table orders_3456 drop dropped;
	alter table orders attach partition orders_3456 for values in ('3456')});

subtest 'what cannot be attached' => sub {
	$fini->sql(qq{
		create table late (own_ref text not null, ipo_id text not null, app_quantity bigint, id_num text, fini_state text, unique (ipo_id, own_ref)) partition by list (ipo_id);
		create table unlogged (own_ref text primary key, ipo_id text, app_quantity bigint, id_num text) partition by hash (own_ref);
		create unlogged table unlogged_0 partition of unlogged for values with (modulus 1, remainder 0);
		create table by_state (own_ref text not null, ipo_id text, app_quantity bigint, id_num text, fini_state text, unique (own_ref, fini_state)) partition by list (fini_state)});
	$fini->sql_fails(q{select fini.attach('late')}, qr/55000.*not unique in the partitions.*followed by the partition key/s, 'own_ref does not come first');
	$fini->sql_fails(q{select fini.attach('unlogged')}, qr/42809.*"unlogged_0" cannot be a partition of the attached table "unlogged".*SET LOGGED/s, 'an unlogged partition');
	$fini->sql_fails(q{select fini.attach('by_state')}, qr/22023.*"fini_state" is part of the partition key/s, 'an outcome that would move its row');
	$fini->sql_fails(q{select fini.attach('orders_3456')}, qr/42809.*is a partition.*Attach the table that it is a partition of/s, 'a partition');
	is(triggers('unlogged'), '', 'no trigger is left over');
	$fini->sql('drop table late, unlogged, by_state');
};

$fini->sql(q{select fini.attach('orders')});
is(triggers($_), 'fini_delete fini_insert fini_truncate fini_update', "triggers of $_") for qw(orders orders_1234 orders_1234_0 orders_1234_1 orders_3456);

subtest 'rows, whichever table a statement names' => sub {
	$fini->sql(join '; ', insert('orders', map { ("A$_/1234", "B$_/3456") } 1 .. 20), insert('orders_1234', 'C1/1234', 'C2/1234'),
		insert('orders_3456', 'D1/3456', 'D2/3456', 'D3/3456'), qq{copy orders (own_ref, ipo_id, $person) from program 'printf "E1\\\\t1234\\\\t1\\\\tPASSPORT\\\\tHKG\\\\tP7\\\\tA\\\\nE2\\\\t3456\\\\t1\\\\tPASSPORT\\\\tHKG\\\\tP8\\\\tB\\\\n"'});
	is($fini->sql(q{select count(*), count(distinct own_ref), min(relation::text), max(relation::text) from fini.submission}), '47|47|orders|orders', 'each is enqueued once, for the attached table');
	$fini->wait_done;
	is($fini->sql(q{select count(*) from orders where fini_state = 'accepted' and record_id is not null}), 47, 'and told its outcome');
	$fini->sql(q{
		update orders set app_quantity = 200 where own_ref in ('A1', 'B1', 'D1');
		update orders_1234 set app_quantity = 200 where own_ref in ('A2', 'C1');
		update orders_3456 set app_quantity = 200 where own_ref in ('B2', 'D2');
		update orders set fini_error = 'mine', app_quantity = app_quantity where own_ref = 'A3';
		delete from orders where own_ref in ('A4', 'B4');
		delete from orders_1234_0 where own_ref in ('A5', 'A6', 'A7'); delete from orders_1234_1 where own_ref in ('A5', 'A6', 'A7');
		delete from orders_3456 where own_ref = 'D3'});
	$fini->wait_done;
	is(history($_), 'add change', "$_ is changed") for qw(A1 B1 D1 A2 C1 B2 D2);
	is(history($_), 'add invalidate', "$_ is withdrawn") for qw(A4 B4 A5 A6 A7 D3);
	is(history('A3'), 'add', 'A3 stays as it is');
	is_deeply([ $fini->compare('orders') ], [], 'both sides agree');
	is($fini->sql(q{select sum(discrepancies) from unnest('{1234,3456}'::text[]) i, fini.reconcile('orders', i)}), 0, 'reconcile agrees');
};

subtest 'a row that moves to another partition' => sub {
	$fini->sql(qq{
		create table desks ($columns, desk text not null, primary key (own_ref, desk)) partition by list (desk);
		create table desks_a partition of desks for values in ('a');
		create table desks_b partition of desks for values in ('b');
		select fini.attach('desks', '{"desk": "desk"}');
		insert into desks (desk, own_ref, ipo_id, $person) select 'a', 'M' || i, '1234', $values from generate_series(1, 5) i});
	$fini->wait_done;
	$fini->sql(q{update desks set desk = 'b', app_quantity = 300 where own_ref in ('M1', 'M2')});
	$fini->wait_done;
	is(history('M1'), 'add change', 'is changed');
	is($fini->sql(q{select tableoid::regclass, fini_state, record_id is not null from desks where own_ref = 'M1'}), 'desks_b|accepted|t', 'and told so where it is now');
	$fini->sql_fails(q{update desks set desk = 'b', own_ref = 'M9' where own_ref = 'M3'}, qr/55000.*cannot change once it has been sent/s, 'its own_ref stays');
	# triggers of one's own, for each row: the move is a delete and an insert to them
	$fini->sql(q{
		select fini.attach('desks', '{"desk": "desk"}', live => false);
		create trigger mine after insert or update or delete on desks for each row execute function fini.capture();
		update desks set desk = 'b', app_quantity = 400 where own_ref = 'M3';
		delete from desks where own_ref = 'M4'});
	$fini->wait_done;
	is(history('M3'), 'add change', 'also to row-level triggers');
	is(history('M4'), 'add invalidate', 'a delete is a delete');
	$fini->sql(q{drop trigger mine on desks; select fini.attach('desks', '{"desk": "desk"}')});

	# a trigger that keeps a row out of its new partition would lose it
	$fini->sql(q{
		create function keep_out() returns trigger language plpgsql as 'begin return null; end';
		create trigger keep_out before insert on desks_b for each row execute function keep_out()});
	$fini->sql_fails(q{update desks set desk = 'b' where own_ref = 'M5'}, qr/27000.*has lost rows on their way.*BEFORE INSERT trigger/s, 'one that is lost on the way');
	$fini->sql('drop trigger keep_out on desks_b');
};

subtest 'one own_ref in two partitions' => sub {
	$fini->sql_fails(insert('orders', 'A1/3456'), qr/23505.*two rows of table public.orders have the own_ref "A1"/s, 'is refused');
	$fini->sql_fails(insert('orders', 'F1/1234', 'F1/3456'), qr/23505.*own_ref "F1"/s, 'in one statement');
	$fini->sql_fails(insert('orders_3456', 'A1/3456'), qr/23505.*own_ref "A1"/s, 'directly');
	# at once, neither sees the other: both are kept from FINI
	$fini->sql(q{select fini.pause('test')});
	my ($in, $out, $err) = ('begin; ' . insert('orders', 'F2/1234') . ";\n\\echo done\n", '', '');
	my $session = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ], '<', \$in, '>', \$out, '2>', \$err);
	$session->pump until $out =~ /done/ || $err ne '';
	$fini->sql(insert('orders', 'F2/3456'));
	$in .= "commit;\n\\q\n";
	$session->finish;
	is($err, '', 'two transactions at once');
	$fini->sql('select fini.resume()');
	$fini->wait_done;
	is(state_of('F2'), '1234 rejected, 3456 rejected', 'both are rejected');
	is($fini->sql(q{select string_agg(distinct error_code, ' ') from fini.submission where own_ref = 'F2'}), 'own_ref_twice', 'and told why');
	is(history('F2'), '', 'nothing was sent');
	$fini->sql(q{delete from orders where own_ref = 'F2' and ipo_id = '1234'; update orders set app_quantity = 200 where own_ref = 'F2'});
	$fini->wait_done;
	is(history('F2'), 'add', 'until one is left');
};

subtest 'partitions that come' => sub {
	# by somebody who knows nothing of fini
	$fini->sql(q{
		create role keeper; grant create, usage on schema public to keeper;
		alter table orders owner to keeper; alter table orders_1234 owner to keeper;
		set role keeper;
		create table orders_5678 partition of orders for values in ('5678') partition by hash (own_ref);
		create table orders_5678_0 partition of orders_5678 for values with (modulus 1, remainder 0);
		create table orders_9012 (like orders including all);
		insert into orders_9012 (own_ref, ipo_id, app_quantity, id_num) values ('G9', '9012', 1, 'P7');
		alter table orders attach partition orders_9012 for values in ('9012')});
	is(triggers($_), 'fini_delete fini_insert fini_truncate fini_update', "triggers of $_") for qw(orders_5678 orders_5678_0 orders_9012);
	$fini->sql(join '; ', insert('orders', 'G1/5678'), insert('orders_5678', 'G2/5678'), insert('orders_5678_0', 'G3/5678'));
	$fini->wait_done;
	is($fini->sql(q{select count(*) from orders where own_ref ~ '^G' and fini_state = 'accepted'}), 3, 'rows of a new one go');
	is($fini->sql(q{select count(*) from fini.submission where own_ref = 'G9'}), 0, 'rows that it brought wait');
	is($fini->sql(q{select fini.submit('orders')}), 1, 'for fini.submit');
	$fini->wait_done;
	like($fini->sql(q{select fini_error from orders where own_ref = 'G9'}), qr/^\d{6}: /, 'and reach FINI then');
	$fini->sql(q{create schema s create table q (own_ref text primary key)});
	# what must not become one
	$fini->sql_fails(q{create unlogged table u partition of orders for values in ('u')}, qr/42809.*"u" cannot be a partition of the attached table "orders"/s, 'an unlogged one is refused');
	$fini->sql(q{create table attached (like orders including all, unique (own_ref)); select fini.attach('attached')});
	$fini->sql_fails(q{alter table orders attach partition attached for values in ('x')}, qr/42809.*"attached" cannot be a partition.*attached itself.*fini.detach/s, 'nor one that is attached itself');
	is($fini->sql(q{select count(*) from pg_inherits where inhrelid = 'attached'::regclass}), 0, 'and is none');
	$fini->sql(q{select fini.detach('attached'); drop table attached});
};

subtest 'partitions that go' => sub {
	$fini->sql_fails(q{truncate orders_5678_0}, qr/55000.*cannot truncate table "orders_5678_0".*DETACH PARTITION/s, 'TRUNCATE of one');
	$fini->sql_fails(q{truncate orders}, qr/55000.*cannot truncate table "orders"/s, 'or all');
	$fini->sql(q{alter table orders detach partition orders_5678});
	is(triggers($_), '', "$_ has no triggers left") for qw(orders_5678 orders_5678_0);
	my $count = $fini->sql('select count(*) from fini.submission');
	$fini->sql(q{update orders_5678 set app_quantity = 500; delete from orders_5678 where own_ref = 'G1'; truncate orders_5678_0});
	is($fini->sql('select count(*) from fini.submission'), $count, 'it asks for nothing any more');
	is(history('G1'), 'add', 'its records stand');
	is($fini->sql(q{select fini.invalidate('orders', '{G1,G2}')}), 2, 'and can be withdrawn');
	$fini->wait_done;
	is(history('G1'), 'add invalidate', 'at FINI');
	$node->psql('postgres', 'alter table orders detach partition orders_9012 concurrently');
	is($fini->sql(q{select relispartition from pg_class where relname = 'orders_9012'}), 'f', 'detached concurrently');
	$fini->sql(q{update orders_9012 set app_quantity = 500; truncate orders_9012});
	is($fini->sql('select count(*) from fini.submission'), $count + 2, 'asks for nothing either');
	$fini->sql(q{alter table orders add constraint c check (true)});
	is(triggers('orders_9012'), '', 'and has no triggers left');
	$fini->sql('drop table orders_3456');
	is($fini->sql(q{select fini.invalidate('orders', '{B1}')}), 1, 'a dropped one leaves its records');
	$fini->wait_done;
};

subtest 'the end' => sub {
	$fini->sql(q{select fini.detach('orders', true), fini.detach('desks')});
	is($fini->sql(q{select count(*) from pg_trigger where tgname ~ '^fini' and not tgisinternal}), 0, 'no trigger is left');
	$fini->sql(q{create table orders_more partition of orders for values in ('more')});
	is(triggers('orders_more'), '', 'nor follows');
	is($fini->stats->{duplicates}, 0, 'no duplicates');
	is($fini->stats->{out_of_order}, 0, 'nothing out of order');
	is($fini->sql('select count(*) from fini.unwritten'), 0, 'nothing unwritten');
	unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP:|leak|P1234567|Tai Man/, 'the log is clean');
};

done_testing();
