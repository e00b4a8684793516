# Partitions that go and come while operations are open, that come back, that are emptied; and rows that replication
# brings straight into partitions.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
	conf => "log_statement = none\nlog_min_error_statement = panic\n");
my $node = $fini->node;

my $columns = q{own_ref text not null, ipo_id text not null, app_quantity bigint, id_type text, id_country_jurisdiction text,
	id_num text, full_name_eng text, full_name_chi text, firm_id text, id_list jsonb};
my $outcome = q{record_id text, fini_state text, fini_error text};
my $person = q{app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng};

sub history { my ($ref) = @_; return join '|', map { join ' ', map { $_->{op} } @{ $_->{_history} } } grep { $_->{ownRef} eq $ref } @{ $fini->dump } }
sub insert { my ($table, @refs) = @_; return "insert into $table (own_ref, ipo_id, $person) select split_part(r, '/', 1), split_part(r, '/', 2), 100, 'PASSPORT', 'GBR', 'P' || r, 'Doe, Jane' from unnest('{" . join(',', @refs) . "}'::text[]) r" }
sub last_of { my ($ref) = @_; return $fini->sql("select operation || ' ' || state || coalesce(' ' || error_code, '') from fini.submission where own_ref = '$ref' order by id desc limit 1") }
sub told { my ($ref) = @_; return $fini->sql("select coalesce(fini_state, 'nothing') || case when record_id is null then '' else ', record' end from orders where own_ref = '$ref'") }

$fini->sql(qq{create table orders ($columns, $outcome, primary key (own_ref, ipo_id)) partition by list (ipo_id);
	create table orders_1234 partition of orders for values in ('1234');
	create table orders_3456 partition of orders for values in ('3456');
	create table orders_rest partition of orders default;
	select fini.attach('orders')});

subtest 'a partition goes while its rows are queued' => sub {
	$fini->sql(q{select fini.pause('test')});
	$fini->sql(insert('orders', 'A1/1234', 'A2/1234', 'B1/3456', 'B2/3456'));
	$fini->sql('alter table orders detach partition orders_1234; select fini.resume()');
	$fini->wait_done;
	is(last_of($_), 'add failed row_missing', "$_ ends, and says why") for qw(A1 A2);
	is(history($_), '', "$_ was not sent") for qw(A1 A2);
	is(told($_), 'accepted, record', "$_ of another partition goes its way") for qw(B1 B2);
	$fini->sql(q{alter table orders attach partition orders_1234 for values in ('1234')});
	is($fini->sql(q{select fini.retry('1234')}), 2, 'it comes back, and they can be put back');
	$fini->wait_done;
	is(history($_) . ', ' . told($_), 'add, accepted, record', "$_ arrives, once") for qw(A1 A2);
};

subtest 'a partition goes while its rows are being sent' => sub {
	$fini->faults({ endpoint => 'subscriptions/add', action => 'hang-after', ms => 1500, count => 1 });
	$fini->sql(insert('orders', 'C1/1234', 'C2/1234'));
	$fini->wait_for(sub { ($fini->stats->{faults}{'hang-after'} // 0) > 0 }, 'the request to be under way');
	$fini->sql('alter table orders detach partition orders_1234');
	$fini->wait_done;
	is(last_of($_), 'add accepted', "$_: the outbox knows") for qw(C1 C2);
	$fini->sql(q{alter table orders attach partition orders_1234 for values in ('1234')});
	is($fini->sql(q{select fini.submit('orders')}), 0, 'back again: they are not submitted twice');
	$fini->sql(q{update orders set app_quantity = 700 where own_ref = 'C1'; delete from orders where own_ref = 'C2'});
	$fini->wait_done;
	is(history('C1') . ', ' . told('C1'), 'add change, accepted, record', 'an update is a change of what stands, and tells the row');
	is(history('C2'), 'add invalidate', 'a delete withdraws it');
};

subtest 'in doubt meanwhile' => sub {
	$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after', count => 1 }, { endpoint => 'subscriptions/query', action => 'status-before', status => 503, count => -1 });
	$fini->sql(insert('orders', 'D1/1234'));
	$fini->wait_for(q{select state = 'unknown' from fini.submission where own_ref = 'D1'}, 'the doubt');
	$fini->sql('alter table orders detach partition orders_1234');
	$fini->clear_faults;
	$fini->wait_done;
	is(last_of('D1') . ', ' . history('D1'), 'add accepted, add', 'what FINI has is found without its row');
	$fini->sql(q{alter table orders attach partition orders_1234 for values in ('1234')});
};

subtest 'a partition that comes with rows that stand' => sub {
	$fini->sql(q{alter table orders detach partition orders_3456; update orders_3456 set app_quantity = 900 where own_ref = 'B1'; delete from orders_3456 where own_ref = 'B2';
		alter table orders attach partition orders_3456 for values in ('3456')});
	is($fini->sql(q{select count(*) from fini.submission where state in ('queued', 'sending')}), 0, 'what was done while it was away asked for nothing');
	my $run = $fini->sql(q{select fini.start_reconcile('orders', '3456')});
	is($fini->sql("select fini.wait_reconcile($run)"), 't', 'a reconciliation');
	is($fini->sql("select string_agg(concat_ws(' ', kind, own_ref, field, local, remote), ', ' order by own_ref) from fini.discrepancy where run_id = $run"),
		'field_differs B1 appQuantity 900 100, missing_locally B2', 'finds it');
	$fini->sql("select fini.repair($run, '{field_differs,missing_locally}')");
	$fini->wait_done;
	is(history('B1') . '|' . history('B2'), 'add change|add invalidate', 'and mends it');
	is($fini->sql(q{select discrepancies from fini.reconcile('orders', '3456')}), 0, 'all of it');
};

subtest 'the default partition' => sub {
	$fini->sql(insert('orders', 'E1/5678', 'E2/5678'));
	$fini->wait_done;
	# the usual way to give an IPO its own: out, over, in
	$fini->sql(q{begin; alter table orders detach partition orders_rest; create table orders_5678 (like orders including all);
		insert into orders_5678 select * from orders_rest where ipo_id = '5678'; delete from orders_rest where ipo_id = '5678';
		alter table orders attach partition orders_5678 for values in ('5678'); alter table orders attach partition orders_rest default; commit});
	is($fini->sql(q{select count(*) from fini.submission where own_ref ~ '^E'}), 2, 'rows that move out of it ask for nothing');
	$fini->sql(q{update orders_5678 set app_quantity = 200 where own_ref = 'E1'; delete from orders where own_ref = 'E2'});
	$fini->wait_done;
	is(history('E1') . '|' . history('E2'), 'add change|add invalidate', 'and are known where they are now');
	is($fini->sql(q{select count(*) from pg_trigger where tgname ~ '^fini' and not tgisinternal}), 4 * 5, 'every table has its triggers');
};

subtest 'TRUNCATE, precheck' => sub {
	$fini->sql_fails('truncate orders_rest', qr/55000.*cannot truncate table "orders_rest"/s, 'is refused of a partition without rows as long as others stand');
	$fini->sql(q{create table alone (own_ref text, ipo_id text, app_quantity bigint, id_type text, id_country_jurisdiction text, id_num text, full_name_eng text,
			fini_state text, primary key (own_ref, ipo_id)) partition by list (ipo_id);
		create table alone_1234 partition of alone for values in ('1234'); create table alone_3456 partition of alone for values in ('3456');
		select fini.attach('alone'), fini.pause('test')});
	$fini->sql(insert('alone', 'F1/1234', 'F2/3456') . q{; insert into alone (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng) values
		('F3', '1234', 1, 'HKID', 'HKG', 'A123456(4)', 'X'), ('F4', '1234', 1, 'PASSPORT', 'GBR', 'pf1/1234', 'X')});
	is($fini->sql(q{select string_agg(own_ref || ' ' || problem, ', ' order by own_ref, problem) from fini.precheck('alone', '1234')}), 'F1 duplicate_document, F3 bad_hkid, F4 duplicate_document', 'precheck sees all partitions');
	$fini->sql_fails('truncate alone_1234', qr/55000/, 'while anything is queued it is refused as well');
	is($fini->sql(q{select fini.cancel('alone', '{F1,F2,F3,F4}')}), 4, 'cancelled');
	$fini->sql('truncate alone_1234; select fini.resume()');
	is($fini->sql(q{select string_agg(own_ref, ' ') from alone}), 'F2', 'it goes through');
	is($fini->sql(q{select fini.submit('alone')}), 1, 'and the other partition is none the worse');
	$fini->wait_done;
	is(history('F1') . last_of('F2'), 'add accepted', 'only that is sent');
	$fini->sql_fails('truncate alone_1234', qr/55000/, 'from then on it is refused');
};

subtest 'replication straight into partitions' => sub {
	my $trading = PostgreSQL::Test::Cluster->new('trading');
	$trading->init(allows_streaming => 'logical', extra => [ '-E', 'UTF8', '--locale=C' ]);
	$trading->append_conf('postgresql.conf', "fsync = off\nautovacuum = off\n");
	$trading->start;
	my $lots = qq{create table lots (%s, desk text, primary key (own_ref, desk)) partition by list (desk);
		create table lots_a partition of lots for values in ('a'); create table lots_b partition of lots for values in ('b')};
	$trading->safe_psql('postgres', sprintf($lots, $columns) . qq{; create publication fini for table lots;
		insert into lots (desk, own_ref, ipo_id, $person) select 'a', 'G' || i, '1234', 100, 'PASSPORT', 'GBR', 'G' || i, 'Doe, Jane' from generate_series(1, 3) i});
	$fini->sql(sprintf($lots, "$columns, $outcome") . q{; select fini.attach('lots', replicated => true)});
	$fini->sql("create subscription fini connection '@{[ $trading->connstr ]} dbname=postgres' publication fini");
	my $done = sub { $trading->safe_psql('postgres', $_[0]); $trading->wait_for_catchup('fini'); $fini->wait_done };
	my $new = sub { my ($desk, @refs) = @_; return join ';', map { "insert into lots (desk, own_ref, ipo_id, $person) values ('$desk', '$_', '1234', 100, 'PASSPORT', 'GBR', '$_', 'Doe, Jane')" } @refs };
	$node->wait_for_subscription_sync($trading, 'fini');
	$fini->wait_done;
	is($fini->sql(q{select count(*) from pg_subscription_rel r where srrelid in ('lots_a'::regclass, 'lots_b'::regclass)}), 2, 'partition by partition');
	is($fini->sql(q{select string_agg(own_ref || fini_state, ' ' order by own_ref) from lots}), 'G1accepted G2accepted G3accepted', 'what is there at first');
	is($fini->sql(q{select string_agg(distinct relation::text, ' ') from fini.submission where own_ref ~ '^G'}), 'lots', 'in the name of the attached table');
	$done->($new->('b', 'H1', 'H2') . q{; update lots set app_quantity = 200 where own_ref = 'G1'; delete from lots where own_ref = 'G2'; update lots set desk = 'b' where own_ref = 'G3'});
	is(history('H1') . '|' . history('H2') . '|' . history('G1') . '|' . history('G2') , 'add|add|add change|add invalidate', 'what arrives');
	is(history('G3') . ' ' . $fini->sql(q{select tableoid::regclass from lots where own_ref = 'G3'}), 'add change lots_b', 'a row that changes its partition has changed');
	# a partition that comes at both ends, and one that goes
	$fini->sql(q{create table lots_c partition of lots for values in ('c')});
	$trading->safe_psql('postgres', q{create table lots_c partition of lots for values in ('c')});
	$fini->sql('alter subscription fini refresh publication');
	$node->wait_for_subscription_sync($trading, 'fini');
	$done->($new->('c', 'I1'));
	is(history('I1'), 'add', 'a partition that comes');
	$fini->sql('alter table lots detach partition lots_c');
	$done->($new->('c', 'I2') . q{; delete from lots where own_ref = 'I1'});
	is(last_of('I1') . ', ' . $fini->sql(q{select count(*) from fini.submission where own_ref = 'I2'}), 'add accepted, 0', 'one that has gone asks for nothing, and its records stand');
	is($fini->sql(q{select own_ref from lots_c}), 'I2', 'though rows arrive');
	$done->('truncate lots_a; ' . $new->('a', 'J1'));
	is(history('G1') . ' ' . last_of('J1'), 'add change add accepted', 'a truncated one withdraws nothing, and what follows goes on');
	$fini->sql(q{alter subscription fini disable; alter subscription fini set (slot_name = none); drop subscription fini});
};

is($fini->stats->{duplicates}, 0, 'no duplicates');
is($fini->stats->{out_of_order}, 0, 'nothing out of order');
is($fini->sql('select count(*) from fini.unwritten'), 0, 'nothing unwritten');
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP:|leak|Doe, Jane/, 'the log is clean');
done_testing();
