# Rows are read without the executor where that is the same, and by a statement where it is not. Both ways read the same,
# whatever the table has been through; and the short one is taken where it can be.

use strict;
use warnings;

use FiniModule;
use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(databases => 'postgres,read', settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
	conf => "autovacuum = off\nlog_statement = none\nlog_min_error_statement = panic\n");
my $node = $fini->node;
my $library = FiniModule::build('read.c');
my $columns = 'ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng';
my $values = q{'1234', 100 + i, 'PASSPORT', 'GBR', 'P' || i, 'DOE, Jane ' || i};

# what is tried on tables is tried where no worker takes any notice
sub try_db { my ($query) = @_; return $fini->sql($query, database => 'read') }

try_db(qq{select fini.pause('tables are looked at, not sent');
	create function fetches(relation regclass) returns boolean language c as '$library', 'fini_test_fetches';
	create function watch(boolean) returns void language c as '$library', 'fini_test_watch';
	create function read(relation regclass, own_refs text[], by_statement boolean, places boolean default false) returns text[]
		language c as '$library', 'fini_test_read';
	-- the way that is taken, how many of how many are found, whether both ways agree, and the place with the table itself
	create function ways(relation regclass, own_refs text[], key text default 'own_ref') returns text language plpgsql as \$\$
	declare
		fetched text[] := read(relation, own_refs, false);
		stated text[] := read(relation, own_refs, true);
		misplaced text;
		way text := case when fetches(relation) then 'fetched' else 'stated' end;
	begin
		execute format('select min(u.line) from unnest(\$1, \$2) u(own_ref, line) join only %s t on t.%I::text collate "C" = u.own_ref
			where u.line not like ''%%:'' and right(u.line, length(t.ctid::text)) <> t.ctid::text', relation, key) into misplaced using own_refs, read(relation, own_refs, false, true);
		return format('%s %s of %s %s', way, (select count(*) from unnest(fetched) f where f not like '%:'), cardinality(own_refs),
			coalesce((select format('%s DIFFERS FROM %s', f, s) from unnest(fetched, stated) u(f, s) where f is distinct from s limit 1),
				'MISPLACED ' || misplaced, 'alike'));
	end \$\$});

# all own_refs of a table in its order, in another one, and some that it has not
sub in_order { my ($table, $key) = (@_, 'own_ref'); return qq{(select array_agg($key\::text collate "C" order by ctid) from only $table)} }
sub shuffled { my ($table, $key) = (@_, 'own_ref'); return qq{(select array_agg(r order by md5(r)) from (select $key\::text collate "C" r from only $table union all select 'none-' || i from generate_series(1, 20) i) x)} }

sub ways
{
	my ($table, $way, $n, $name, %opt) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $key = $opt{key} // 'own_ref';
	my @settings = $opt{settings} ? ($opt{settings}) : ();
	is(try_db(join ';', @settings, "select ways('$table', " . in_order($table, $key) . ", '$key')"), "$way $n of $n alike", $name);
	is(try_db(join ';', @settings, "select ways('$table', " . shuffled($table, $key) . ", '$key')"), "$way $n of @{[ $n + 20 ]} alike", "$name, in another order");
	return;
}

sub make_table
{
	my ($table, $n, %opt) = @_;
	try_db("select fini.create_subscription_table('$table'); select fini.attach('$table', live => false);");
	try_db("insert into $table (own_ref, $columns) select '$table' || i, $values from generate_series(1, $n) i") if $n;
	return;
}

subtest 'what a table can look like' => sub {
	make_table('standard', 1000);
	ways('standard', 'fetched', 1000, 'the standard table');

	try_db(qq{create table shifted (gone1 text default 'x', full_name_eng text, gone2 int, id_num text, id_type text, app_quantity numeric(20, 2),
			gone3 bigint, ipo_id varchar, own_ref varchar(60) not null unique, gone4 text);
		insert into shifted (own_ref, ipo_id, app_quantity, id_num, id_type, full_name_eng, gone2) select 'S' || i, '1234', i, 'P' || i, 'PASSPORT', 'X', 7 from generate_series(1, 300) i;
		alter table shifted drop gone1, drop gone3, add firm_id varchar(5) default '00042', add id_country_jurisdiction text not null default 'GBR', add fini_state text;
		insert into shifted (own_ref, ipo_id, app_quantity, id_num, firm_id) select 'T' || i, '1234', i, 'Q' || i, null from generate_series(1, 300) i;
		select fini.attach('shifted', live => false);
		alter table shifted drop gone2, drop gone4, add gone5 int default 1});
	ways('shifted', 'fetched', 600, 'columns in another order, dropped ones, and ones that came later');
	like(try_db(q{select (read('shifted', '{S7}', false))[1]}), qr/"idCountryJurisdiction":"GBR".*"firmID":"00042"|"firmID":"00042".*"idCountryJurisdiction":"GBR"/, 'a row from before a column has its default');

	make_table('wide', 0);
	try_db(qq{alter table wide alter full_name_eng set storage external, alter own_ref set storage main;
		insert into wide (own_ref, $columns, id_list, extra) select 'W' || i || repeat('w', 2000), $values,
			case when i % 3 = 0 then (select jsonb_agg(jsonb_build_object('idNum', md5(j::text || i), 'idType', 'PASSPORT')) from generate_series(1, 60) j) end,
			case when i % 5 = 0 then jsonb_build_object('channel', repeat('c', 5000)) end from generate_series(1, 60) i;
		update wide set full_name_eng = repeat(own_ref, 4) where app_quantity % 2 = 0;
		update wide set full_name_chi = repeat('x', 3000000) where app_quantity % 11 = 0});
	ways('wide', 'fetched', 60, 'values that are compressed or stored elsewhere');
	is(try_db(q{select count(*) from unnest(read('wide', (select array_agg(own_ref) from wide), false)) r where length(r) > 8000 and r not like '%unsealable%'}) > 20, 1, 'and they are read whole');

	for my $type ('integer', 'bigint', 'uuid', 'varchar(40)', 'text collate "C"', 'text collate "en-x-icu"', 'a_domain')
	{
		(my $table = "by_$type") =~ s/\W+/_/g;
		my $ref = $type eq 'uuid' ? 'gen_random_uuid()' : $type =~ /int/ ? 'i - 100' : q{'R_' || i};
		try_db(q{do $$ begin if to_regtype('a_domain') is null then create domain a_domain as varchar(40) check (value <> ''); end if; end $$});
		try_db(qq{create table $table (own_ref $type primary key, ipo_id text, app_quantity int, id_num text, id_type text);
			insert into $table select $ref, '1234', i, 'P' || i, 'PASSPORT' from generate_series(1, 300) i;
			select fini.attach('$table', live => false)});
		ways($table, 'fetched', 300, "own_ref is $type");
	}
	is(try_db(q{select ways('by_integer', '{007,7,-0,0,99999999999,x,"",7.0,-7,08,+7}')}), 'fetched 3 of 11 alike', 'numbers that are written in another way');
	is(try_db(q{select ways('by_text_collate_en_x_icu_', '{r_7,R_7,"R_7 ",R_07}')}), 'fetched 1 of 4 alike', 'what a language would take for nearly the same');
	is(try_db(q{select ways('by_uuid', '{F992B5C2-FD16-4E57-8387-738CB7AA75FB,x}')}), 'fetched 0 of 2 alike', 'a uuid in capitals');

	try_db(q{create table parent (like standard including all); select fini.attach('parent', live => false); create table child () inherits (parent);
		insert into parent select * from standard; insert into child select * from standard});
	ways('parent', 'fetched', 1000, 'a table that another one inherits from');
	make_table('empty', 0);
	is(try_db(q{select ways('empty', '{}'), ways('empty', '{a,b}')}), 'fetched 0 of 0 alike|fetched 0 of 2 alike', 'no rows, and none that are wanted');
	is(try_db(q{select ways('standard', '{standard7,standard8,standard9,standard10}')}), 'fetched 4 of 4 alike', 'few');
	is(try_db("select count(*), count(distinct r) from unnest(read('standard', @{[ shuffled('standard') ]} || @{[ shuffled('standard') ]}, false)) r where r not like '%:'"),
		'2000|1000', 'own_refs that are asked for twice');
};

subtest 'what a table can have been through' => sub {
	make_table('lived', 2000);
	my @rounds = (
		[ q{update lived set fini_state = 'x'}, 2000, 'each row has a second version' ],
		[ q{update lived set fini_state = 'y' where app_quantity % 3 = 0}, 2000, 'some have a third one' ],
		[ q{vacuum lived}, 2000, 'the old ones are gone' ],
		[ q{update lived set own_ref = own_ref || '-new' where app_quantity % 7 = 0}, 2000, 'some have another own_ref' ],
		[ q{delete from lived where app_quantity % 2 = 0}, 1000, 'every second one is dead' ],
		[ qq{begin; insert into lived (own_ref, $columns) select 'undone' || i, $values from generate_series(1, 500) i; rollback}, 1000, 'an insert was undone' ],
		[ qq{insert into lived (own_ref, $columns) select 'again' || i, $values from generate_series(1, 500) i order by md5(i::text)}, 1500, 'holes are filled' ],
		[ q{begin; savepoint a; update lived set fini_state = 'z'; rollback to a; delete from lived where own_ref like 'again1%'; commit}, 1389, 'in a savepoint' ],
		[ q{vacuum freeze lived}, 1389, 'all are frozen' ],
		[ q{cluster lived using lived_pkey}, 1389, 'in the order of own_ref' ],
		[ q{alter table lived alter app_quantity type numeric}, 1389, 'written anew' ],
		[ q{reindex table lived}, 1389, 'a new index' ],
		[ q{create index concurrently on lived (fini_state); reindex index concurrently lived_pkey}, 1389, 'and again, at the side' ],
		[ q{truncate lived}, 0, 'empty' ],
	);
	for my $round (@rounds)
	{
		my ($sql, $n, $name) = @$round;
		$sql =~ /vacuum|concurrently/ ? map { try_db($_) } split(/; /, $sql) : try_db($sql);
		$n ? ways('lived', 'fetched', $n, $name) : is(try_db(q{select ways('lived', '{lived1}')}), 'fetched 0 of 1 alike', $name);
	}

	make_table('random', 0);
	my $undone = 0;
	for my $round (1 .. 25)
	{
		my $end = $round % 6 == 5 ? 'rollback' : 'commit';
		try_db(qq{begin; select setseed(0.$round);
			insert into random (own_ref, $columns) select 'r$round-' || i, $values from generate_series(1, 120) i order by case when $round % 2 = 0 then random() end;
			update random set fini_state = '$round' where random() < 0.2;
			update random set own_ref = own_ref || 'b' where random() < 0.05;
			delete from random where random() < 0.15; $end});
		try_db('vacuum random') if $round % 8 == 0;
		my ($all, $other) = (in_order('random'), shuffled('random'));
		like(try_db(qq{with o as materialized (select $all a, $other b)
			select string_agg(distinct regexp_replace(w, '\\d+ of \\d+ ', ''), ' ') || count(*) from o, lateral unnest(array[ways('random', a), ways('random', b),
				ways('random', (select array_agg(r) from (select r from unnest(a) with ordinality u(r, n) where n % 4 = 0 order by n) x)),
				ways('random', (select array_agg(r order by n / 7, -n) from unnest(a) with ordinality u(r, n)))]) w}), qr/^fetched alike4$/, "round $round");
	}
};

subtest 'what others are doing' => sub {
	make_table('busy', 400);
	my ($n, $other) = (400, $node->background_psql('read'));
	$other->query_safe(qq{begin; update busy set own_ref = 'changed' || app_quantity where app_quantity % 5 = 0; delete from busy where app_quantity % 7 = 0;
		insert into busy (own_ref, $columns) select 'new' || i, $values from generate_series(1, 100) i});
	ways('busy', 'fetched', 400, 'rows that somebody is changing');
	my $own = 'begin; ' . q{update busy set fini_state = 'mine'; } . qq{insert into busy (own_ref, $columns) select 'own' || i, $values from generate_series(1, 50) i; };
	$other->query_safe('rollback');
	is(try_db(qq{$own select ways('busy', @{[ in_order('busy') ]})}), 'fetched 450 of 450 alike', 'what the transaction itself has done');
	is(try_db(q{select fetches('busy'); with u as (update busy set fini_state = 'mine' where app_quantity = 120 returning own_ref, ctid)
		select right((read('busy', array[own_ref], false, true))[1], length(ctid::text)) = ctid::text from u}), "t\nt", 'and the statement itself');
	my $reader = $node->background_psql('read');
	$reader->query_safe(q{begin isolation level repeatable read; select count(*) from busy});
	try_db(q{delete from busy where app_quantity % 2 = 0; update busy set own_ref = own_ref || '-later' where app_quantity % 3 = 0});
	is($reader->query_safe(qq{select ways('busy', @{[ in_order('busy') ]})}), 'fetched 400 of 400 alike', 'as it was when the transaction began');
	is($reader->query_safe(q{select ways('busy', array(select own_ref from busy order by md5(own_ref)))}), 'fetched 400 of 400 alike', 'in another order, too');
	$reader->query_safe('commit');
	ways('busy', 'fetched', 200, 'as it is now');
	is(try_db(qq{begin isolation level serializable; select ways('busy', @{[ in_order('busy') ]})}), 'stated 200 of 200 alike', 'a serializable transaction');
	$_->quit for $other, $reader;
};

subtest 'what is left to a statement' => sub {
	my %index = (
		'no index' => [ 'stated', '' ],
		'a primary key' => [ 'fetched', 'alter table %s add primary key (own_ref)' ],
		'one that covers more' => [ 'fetched', 'create unique index on %s (own_ref) include (ipo_id)' ],
		'another way round' => [ 'fetched', 'create unique index on %s (own_ref desc nulls last)' ],
		'several' => [ 'fetched', 'create index on %1$s (own_ref); create unique index on %1$s (own_ref, ipo_id); create unique index on %1$s (own_ref) where app_quantity > 0; create unique index on %1$s (own_ref)' ],
		'partial' => [ 'stated', q{create unique index on %s (own_ref) where own_ref <> 'x7'} ],
		'of several columns' => [ 'stated', 'create unique index on %s (own_ref, ipo_id)' ],
		'an expression' => [ 'stated', 'create unique index on %s ((own_ref || ipo_id))' ],
		'not unique' => [ 'stated', 'create index on %s (own_ref)' ],
		'a hash' => [ 'stated', 'create index on %s using hash (own_ref)' ],
		'deferrable' => [ 'stated', 'alter table %s add unique (own_ref) deferrable' ],
		'for patterns' => [ 'stated', 'create unique index on %s (own_ref text_pattern_ops)' ],
		'of another collation' => [ 'stated', 'create unique index on %s (own_ref collate "en-x-icu")' ],
		'invalid' => [ 'stated', q{create unique index %1$s_i on %1$s (own_ref); update pg_index set indisvalid = false where indexrelid = '%1$s_i'::regclass} ],
	);
	my $i = 0;
	for my $name (sort keys %index)
	{
		my ($way, $make) = @{ $index{$name} };
		my $table = 'indexed' . ++$i;
		make_table($table, 100);
		try_db("alter table $table drop constraint ${table}_pkey; alter table $table alter own_ref set not null");
		try_db(sprintf $make, $table) if $make ne '';
		ways($table, $way, 100, "index: $name");
	}

	try_db(q{create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		create table folded (own_ref text collate loose primary key, ipo_id text, app_quantity int, id_num text);
		insert into folded select 'F' || i, '1234', i, 'P' || i from generate_series(1, 100) i;
		select fini.attach('folded', live => false)});
	ways('folded', 'stated', 100, 'a collation that takes different texts for the same');
	is(try_db(q{select ways('folded', '{f7,F7}')}), 'stated 1 of 2 alike', 'which own_refs are not');
	try_db(q{create table parted (own_ref text primary key, ipo_id text, app_quantity int, id_num text) partition by hash (own_ref);
		create table parted0 partition of parted for values with (modulus 2, remainder 0); create table parted1 partition of parted for values with (modulus 2, remainder 1);
		insert into parted select 'H' || i, '1234', i, 'P' || i from generate_series(1, 100) i; select fini.attach('parted', live => false)});
	is(try_db(q{select fetches('parted')}), 'f', 'a partitioned table');

	like(try_db(qq{select watch(true); select ways('standard', @{[ in_order('standard') ]}); select watch(false); select fetches('standard')}),
		qr/^\s*stated 1000 of 1000 alike\s+t$/, 'somebody watches what statements read');

	# an owner who is nobody in particular
	try_db(q{create role someone; create schema theirs; grant all on schema theirs to someone});
	my $number = 0;
	my $owned = sub {
		my $table = 'theirs.owned' . ++$number;
		make_table($table, 0);
		try_db(qq{insert into $table (own_ref, $columns) select 'O' || i, $values from generate_series(1, 100) i; alter table $table owner to someone});
		return $table;
	};
	my $table = $owned->();
	ways($table, 'fetched', 100, 'a table of somebody else');
	try_db("alter table $table enable row level security");
	ways($table, 'fetched', 100, 'policies that do not concern its owner');
	try_db("create policy half on $table using (app_quantity <= 150); alter table $table force row level security");
	is(try_db("select ways('$table', @{[ in_order($table) ]})"), 'stated 50 of 100 alike', 'and that do');
	my $message = sub { my ($query) = @_; my ($rc, undef, $err) = $fini->try_sql($query, database => 'read'); return $rc == 0 ? 'no error' : $err =~ /(ERROR: .*)/ ? $1 : $err };
	my $refused = sub {
		my ($name, $pattern, $refuse, $permit) = @_;
		my $mine = $owned->();
		s/%s/$mine/ for $refuse, $permit;
		is(try_db("select fetches('$mine')"), 't', "$name: fetched before");
		try_db($refuse);
		my @errors = map { $message->("select read('$mine', '{O1,O2}', $_)") } 'false', 'true';
		like($errors[0], $pattern, "$name: refused");
		is($errors[0], $errors[1], "$name: in the same way");
		try_db($permit);
		ways($mine, $name =~ /columns/ ? 'stated' : 'fetched', 100, "$name: permitted again");
	};
	$refused->('rights to the table', qr/42501: permission denied for table owned/, 'revoke select on %s from someone', 'grant select on %s to someone');
	$refused->('rights to columns', qr/42501: permission denied for table owned/, 'revoke select on %s from someone',
		"grant select (own_ref, ctid, firm_id, full_name_chi, id_list, extra, $columns) on %s to someone");
	$refused->('rights to the schema', qr/42501: permission denied for schema theirs/, 'revoke all on schema theirs from someone', 'grant all on schema theirs to someone');
	$refused->('a column of another name', qr/42703: column "id_num" of table .* does not exist any more/, 'alter table %s rename id_num to other', 'alter table %s rename other to id_num');
	$refused->('a table that has become a view', qr/42809: .* is not an ordinary table any more/, 'select 1; update pg_class set relkind = $$v$$ where oid = $$%s$$::regclass', 'update pg_class set relkind = $$r$$ where oid = $$%s$$::regclass');
};

subtest 'how often the index is asked' => sub {
	my $counts = sub {
		my ($table, $refs) = @_;
		try_db("drop table if exists wanted; create table wanted as select $refs as refs");
		my ($said) = try_db(qq{select pg_stat_reset_single_table_counters(c) from unnest('{$table,${table}_pkey}'::regclass[]) c;
			select cardinality(read('$table', refs, false)) from wanted; select pg_stat_force_next_flush();
			select i.idx_scan, t.idx_tup_fetch - i.idx_tup_fetch, s.heap_blks_hit + s.heap_blks_read from pg_stat_user_tables t
			join pg_stat_user_indexes i using (relid) join pg_statio_user_tables s using (relid) where relid = '$table'::regclass}) =~ /([^\n]*)$/;
		return split /\|/, $said;
	};
	make_table('counted', 3000);
	try_db('analyze counted');
	my ($scans, $fetched, $blocks) = $counts->('counted', in_order('counted'));
	is($scans, 1, 'once for 3000 rows in the order of the table');
	is($fetched, 2999, 'the others are neighbours, and counted as read');
	my $pages = try_db(q{select pg_relation_size('counted') / 8192});
	cmp_ok($blocks, '<=', $pages + 2, "each page is looked at once ($blocks of $pages)");
	($scans) = $counts->('counted', q{(select array_agg(own_ref order by ctid) from counted where app_quantity % 6 = 0)});
	cmp_ok($scans, '<=', 3, "hardly more often where every sixth row is wanted ($scans)");
	($scans, $fetched, $blocks) = $counts->('counted', q{(select array_agg(own_ref order by md5(own_ref)) from counted)});
	cmp_ok($fetched, '<', 100, "hardly any is a neighbour in a random order ($fetched)");
	cmp_ok($blocks, '<', 3300, "and few pages are looked at in vain ($blocks)");
	try_db(q{update counted set fini_state = 'x'});
	($scans) = $counts->('counted', in_order('counted'));
	cmp_ok($scans, '<', 60, "in the order of second versions ($scans)");
	try_db(q{delete from counted where app_quantity % 10 = 0});
	($scans) = $counts->('counted', q{(select array_agg('counted' || i order by i) from generate_series(1, 3000) i)});
	cmp_ok($scans, '<=', 310, "for those that are not there, where every tenth row is gone ($scans)");
	($scans, $fetched, $blocks) = $counts->('counted', q{(select array_agg('none' || i order by i) from generate_series(1, 3000) i)});
	cmp_ok($blocks, '<', 300, "pages are not looked at again and again where no row is there ($blocks)");
};

subtest 'the worker' => sub {
	$fini->new_table('applications', 'stated');
	$fini->sql(q{alter table stated enable row level security, force row level security; create role other; alter table stated owner to other; create policy every on stated using (true)});
	for my $table ('applications', 'stated')
	{
		$fini->insert_rows($table, $table, 5000);
		$fini->wait_done;
		is($fini->sql("select count(*) from $table where fini_state = 'accepted'"), 5000, "$table: all are sent, and told");
		# the worker tells its counts when it has a moment, and keeps none when it ends
		my $before = $fini->sql('select pg_terminate_backend(worker_pid, 60000) from fini.status');
		$fini->wait_for(q{select worker_pid is not null from fini.status}, 'a worker');
	}
	my ($scans, $neighbours) = split /\|/, $fini->sql(q{select i.idx_scan, t.idx_tup_fetch - i.idx_tup_fetch from pg_stat_user_tables t join pg_stat_user_indexes i using (relid) where relid = 'applications'::regclass});
	cmp_ok($scans, '<', 100, "its own_ref's index is asked for few of them ($scans)");
	cmp_ok($neighbours, '>', 4900, "most are neighbours ($neighbours)");
	for my $table ('applications', 'stated')
	{
		# records of the other table are only there, of course
		is_deeply([ grep { /^$table/ || !/only at FINI$/ } $fini->compare($table) ], [], "$table: both sides agree");
	}
	is($fini->sql(q{select sum(discrepancies) from unnest('{applications,stated}'::regclass[]) t, fini.reconcile(t, '1234')}), 0, 'reconcile agrees');
};

is($fini->stats->{duplicates}, 0, 'no duplicates');
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP:|leak|still referenced/, 'nothing crashed, and nothing was left pinned');
done_testing();
