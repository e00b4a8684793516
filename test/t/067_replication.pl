# Logical replication: a trading database publishes, the database beside it submits what arrives.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
	conf => "log_statement = none\nlog_min_error_statement = panic\n");
my $node = $fini->node;
my $trading = PostgreSQL::Test::Cluster->new('trading');
$trading->init(allows_streaming => 'logical', extra => [ '-E', 'UTF8', '--locale=C' ]);
$trading->append_conf('postgresql.conf', "fsync = off\nautovacuum = off\n");
$trading->start;

my $columns = q{own_ref text not null, ipo_id text not null, app_quantity bigint, id_type text, id_country_jurisdiction text,
	id_num text, full_name_eng text, full_name_chi text, firm_id text, id_list jsonb};
my $outcome = q{record_id text, fini_state text, fini_error text, remark text};
my $person = q{app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng};
my $values = q{100, 'PASSPORT', 'HKG', 'P1234567', 'Chan Tai Man'};

sub trade { my ($sql) = @_; return $trading->safe_psql('postgres', $sql) }
sub arrived { return $trading->wait_for_catchup('fini') }
sub done { arrived(); return $fini->wait_done }
sub insert { my ($table, @refs) = @_; return "insert into $table (own_ref, ipo_id, $person) select split_part(r, '/', 1), coalesce(nullif(split_part(r, '/', 2), ''), '1234'), $values from unnest('{" . join(',', @refs) . "}'::text[]) r" }
sub history { my ($ref) = @_; return join '|', map { join ' ', map { $_->{op} } @{ $_->{_history} } } grep { $_->{ownRef} eq $ref } @{ $fini->dump } }
sub operations { my ($ref) = @_; return $fini->sql("select string_agg(operation || ' ' || state, ', ' order by id) from fini.submission where own_ref = '$ref'") }
sub row { my ($ref, $columns, $table) = @_; $table //= 'orders'; return $fini->sql("select $columns from $table where own_ref = '$ref'") }
# the process that applies, which stays the same as long as nothing has broken it
sub applier { return $fini->sql(q{select pid from pg_stat_subscription where subname = 'fini' and relid is null}) }

trade("create table orders ($columns, primary key (own_ref)); create table lots ($columns, desk text, primary key (own_ref, desk)) partition by list (desk);
	create table lots_a partition of lots for values in ('a'); create table lots_b partition of lots for values in ('b');
	create table whole ($columns, desk text, primary key (own_ref, desk)); alter table whole replica identity full;
	create publication fini for table orders, lots, whole with (publish_via_partition_root);");
trade(insert('orders', map { "I$_" } 1 .. 50));
trade("insert into whole (desk, own_ref, ipo_id, $person) select 'a', 'W' || i, '1234', $values from generate_series(1, 2) i");
$fini->sql("create table orders ($outcome, $columns, primary key (own_ref));
	create table lots ($columns, $outcome, desk text, primary key (own_ref, desk)) partition by list (desk);
	create table lots_a partition of lots for values in ('a'); create table lots_b ($outcome, desk text not null, $columns);
	alter table lots attach partition lots_b for values in ('b');
	create table whole ($columns, $outcome, desk text, primary key (own_ref, desk)) partition by list (desk);
	create table whole_a partition of whole for values in ('a'); create table whole_b partition of whole for values in ('b')");

subtest 'attaching' => sub {
	$fini->sql_fails(q{select fini.attach('orders', live => false, replicated => true)}, qr/22023.*replicated without being live/s, 'replicated and not live');
	$fini->sql(q{select fini.attach('orders', replicated => true), fini.attach('lots', '{"desk": "desk"}', replicated => true), fini.attach('whole', replicated => true)});
	is($fini->sql(q{select string_agg(tgname || ' ' || tgenabled::text, ', ' order by tgname) from pg_trigger where tgrelid = 'orders'::regclass}),
		'fini_delete O, fini_insert O, fini_replica R, fini_replica_truncate R, fini_truncate O, fini_update O', 'triggers of a table');
	is($fini->sql("select string_agg(tgname || ' ' || tgenabled::text, ', ' order by tgname) from pg_trigger where tgrelid = '$_'::regclass"),
		'fini_delete O, fini_insert O, fini_replica R, fini_replica_truncate R, fini_truncate O, fini_update O', "triggers of $_") for qw(lots lots_a lots_b);
	is($fini->sql('select live, precheck, replicated from fini.attachment limit 1'), 't|f|t', 'the attachment says so');
};

$fini->sql("create subscription fini connection '@{[ $trading->connstr ]} dbname=postgres' publication fini");
$node->wait_for_subscription_sync($trading, 'fini');
$fini->wait_done;

subtest 'what is there at first' => sub {
	is($fini->sql(q{select count(*), count(distinct own_ref) from fini.submission}), '52|52', 'is enqueued, once');
	is($fini->sql(q{select count(*) from orders where fini_state = 'accepted' and record_id is not null}), 50, 'accepted, and its rows are told');
};
my $applier = applier();

subtest 'what arrives' => sub {
	trade(join '; ', insert('orders', map { "A$_" } 1 .. 10), q{begin}, insert('orders', 'B1', 'B2', 'B3'),
		q{update orders set app_quantity = 5 where own_ref = 'B1'; delete from orders where own_ref = 'B2'; commit},
		q{update orders set app_quantity = 200 where own_ref in ('I1', 'I2')}, q{delete from orders where own_ref = 'I3'});
	done();
	is(history('I1'), 'add change', 'UPDATE');
	is(row('I1', 'app_quantity, fini_state'), '200|accepted', 'which leaves the outcome of the row');
	is(history('I3'), 'add invalidate', 'DELETE');
	is(history($_), 'add', "INSERT of $_") for qw(A1 A10 B3);
	is((grep { $_->{ownRef} eq 'B1' } @{ $fini->dump })[0]{appQuantity}, 5, 'one transaction: inserted and updated');
	like(operations('B2'), qr/^add cancelled$|^add accepted, invalidate accepted$/, 'inserted and deleted');
	my $count = $fini->sql('select count(*) from fini.submission');
	trade(q{update orders set app_quantity = app_quantity where own_ref = 'A1'; update orders set firm_id = null where own_ref = 'A2'});
	done();
	is($fini->sql('select count(*) from fini.submission'), $count, 'what does not change asks for nothing');

	# the same table, by sessions here
	$fini->sql(join '; ', insert('orders', 'L1', 'L2'), q{update orders set remark = 'nothing mapped' where own_ref = 'A3'}, q{update orders set app_quantity = 300 where own_ref = 'A4'});
	$fini->wait_done;
	is($fini->sql('select count(*) from fini.submission'), $count + 3, 'local statements are seen once');
	is(history('A4'), 'add change', 'as what they are');
	is($fini->sql('select max(n) from (select count(*) n from fini.submission where own_ref ~ \'^[LA]\' and operation = \'add\' group by own_ref) c'), 1, 'nothing twice');
	is(applier(), $applier, 'the replication goes on');
};

subtest 'what would be refused here' => sub {
	# what has been sent cannot change its name; what has been replicated cannot be refused
	trade(q{update orders set own_ref = 'A5b' where own_ref = 'A5'; update orders set ipo_id = '3456' where own_ref = 'A6'});
	done();
	is(history('A5'), 'add invalidate', 'another own_ref: the old application is withdrawn');
	is(history('A5b'), 'add', 'and one added under the new');
	is(row('A5b', 'fini_state'), 'accepted', 'which its row is told');
	is(history('A6'), 'add invalidate|add', 'another IPO: withdrawn there, added here');
	is($fini->sql(q{select string_agg(operation || ipo_id, ' ' order by id) from fini.submission where own_ref = 'A6'}), 'add1234 invalidate1234 add3456', 'in order');
	$fini->sql(q{select fini.pause('test')});
	trade(insert('orders', 'N1'));
	trade(q{update orders set own_ref = 'N2' where own_ref = 'N1'});
	arrived();
	is(operations('N1') . '|' . operations('N2'), 'add cancelled|add queued', 'before it is sent it may');
	$fini->sql('select fini.resume()');

	# rows that are no applications
	trade(q{insert into orders (own_ref, ipo_id) values ('', '1234'), ('Z1', ''), ('Z2', '1234'), (' Z3', repeat('x', 500)), (repeat('y', 2000), '1234')});
	trade(insert('orders', 'Z9'));
	done();
	is($fini->sql(q{select string_agg(distinct fini_state, ' ') from orders where own_ref ~ '^$|^Z[12]| Z3|^yy'}), 'rejected', 'bad rows are rejected');
	is(history('Z9'), 'add', 'what follows goes on');
	is(applier(), $applier, 'so does the replication');
	is_deeply([ grep { !/^( Z3|W\d)?\|/ } $fini->compare('orders') ], [], 'both sides agree');
};

subtest 'partitions' => sub {
	trade("insert into lots (desk, own_ref, ipo_id, $person) select case when i < 4 then 'a' else 'b' end, 'P' || i, '1234', $values from generate_series(1, 6) i");
	done();
	is($fini->sql(q{select string_agg(relation || ' ' || n, ',') from (select relation::text, count(*) n from fini.submission where own_ref ~ '^P' group by 1) r}), 'lots 6', 'rows arrive in partitions');
	is($fini->sql(q{select count(*) from lots where fini_state = 'accepted'}), 6, 'whose rows are told');
	trade(q{update lots set desk = 'b', app_quantity = 7 where own_ref = 'P1'; update lots set app_quantity = 8 where own_ref = 'P5'; delete from lots where own_ref = 'P2'});
	done();
	is(history('P1'), 'add change', 'a move to another is a change');
	is(history('P5'), 'add change', 'and so is a change');
	is(history('P2'), 'add invalidate', 'a DELETE is none');
	trade(q{begin; delete from lots where own_ref = 'P3'; } . "insert into lots (desk, own_ref, ipo_id, $person) select 'a', 'P3', '3456', $values; commit");
	done();
	is(history('P3'), 'add invalidate|add', 'nor one that comes back for another IPO');
	trade(q{begin; delete from lots where own_ref = 'P4'; savepoint a; delete from lots where own_ref = 'P6'; rollback to a; } . "insert into lots (desk, own_ref, ipo_id, $person) select 'a', 'P7', '1234', $values; commit");
	done();
	is(join(' ', map { history($_) } qw(P4 P6 P7)), 'add invalidate add add', 'or not at all');
	$fini->sql(q{create table lots_c partition of lots for values in ('c')});
	trade(q{create table lots_c partition of lots for values in ('c')} . ";insert into lots (desk, own_ref, ipo_id, $person) select 'c', 'P9', '1234', $values");
	done();
	is(history('P9'), 'add', 'a partition that came later');
	trade(q{update whole set desk = 'b', app_quantity = 9 where own_ref = 'W1'; delete from whole where own_ref = 'W2'});
	done();
	is(history('W1'), 'add change', 'a table that is partitioned here only');
	is(history('W2'), 'add invalidate', 'and a row that is gone');
	is(applier(), $applier, 'the replication goes on');
};

subtest 'TRUNCATE' => sub {
	my $position = $fini->log_position;
	trade('truncate orders');
	trade(insert('orders', 'T1'));
	done();
	is($fini->sql('select count(*) from orders'), 1, 'goes through');
	like($fini->log_since($position), qr/WARNING:.*table "orders" is truncated by replication while applications.*HINT:.*They stand on.*leave truncate out/s, 'with a warning');
	is(history('A1'), 'add', 'and withdraws nothing');
	is($fini->sql(q{select fini.invalidate('orders', '{A1}')}), 1, 'which can be done');
	$fini->wait_done;
	is(history('A1'), 'add invalidate', 'by name');
	is(applier(), $applier, 'the replication goes on');
	$position = $fini->log_position;
	trade('truncate lots');
	done();
	like($fini->log_since($position), qr/WARNING:.*table "lots(_\w)?" is truncated by replication/, 'of a partitioned table');
	$fini->sql_fails('truncate orders', qr/55000.*cannot truncate table "orders"/s, 'a local one is refused');
};

subtest 'not asked for' => sub {
	$fini->sql(q{select fini.attach('orders'), fini.attach('lots', '{"desk": "desk"}'), fini.attach('whole')});
	is($fini->sql(q{select count(*) from pg_trigger where tgname ~ 'replica'}), 0, 'attached again without it: those triggers are gone');
	trade(insert('orders', 'U1'));
	arrived();
	is(operations('U1'), '', 'what arrives waits');
	is($fini->sql(q{select fini.submit('orders')}), 1, 'for fini.submit');
	$fini->wait_done;
	$fini->sql(q{select fini.attach('orders', replicated => true)});
	trade(q{delete from orders where own_ref = 'U1'});
	done();
	is(history('U1'), 'add invalidate', 'and asked for again');
	$fini->sql(q{alter subscription fini disable; alter subscription fini set (slot_name = none); drop subscription fini; select fini.detach('orders'), fini.detach('lots'), fini.detach('whole')});
	is($fini->sql(q{select count(*) from pg_trigger where tgname ~ '^fini' and not tgisinternal}), 0, 'detached');
};

is($fini->stats->{duplicates}, 0, 'no duplicates');
is($fini->stats->{out_of_order}, 0, 'nothing out of order');
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP:|leak|P1234567|Tai Man/, 'the log is clean');
done_testing();
