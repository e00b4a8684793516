# Every function of the schema, as the catalog has them, called with nulls, extremes and wrong types: at once, in
# parallel workers, in a read-only transaction, in a subtransaction after a failed one, as triggers where none belongs,
# by roles that may not, and on a standby. Whatever the answer: no crash, no error that "cannot happen", no errors
# without an SQLSTATE of their own, and the worker goes on.

use strict;
use warnings;

use FiniTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $deep = q{(repeat('[', 3000) || repeat(']', 3000))};
my $deep_objects = q{(repeat('{"a":', 3000) || '1' || repeat('}', 3000))};

# the values tried for each type, the first of them one that might do
my %values = (
	text => [ q{'1234'}, q{''}, q{' '}, q{repeat('x', 100000)}, q{repeat(E'\u6c49', 5000)}, q{E'\x01\x7f\t\n'}, q{'%enc_%AAAA'}, q{'%s%n$1'},
		q{'"'';--'}, q{'applications'}, q{'{"a":1}'}, q{'/api/ipos/list/v1'}, q{'20'}, q{'agent'} ],
	int8 => [ qw(1 0 -1 9223372036854775807), q{'-9223372036854775808'} ],
	int4 => [ qw(1 0 -1 2147483647), q{'-2147483648'} ],
	bool => [ qw(true false) ],
	bytea => [ q{decode(repeat('41', 32), 'hex')}, q{decode(repeat('42', 12), 'hex')}, q{''}, q{'\x00'}, q{decode(repeat('ff', 1000000), 'hex')} ],
	json => [ q{'{"idNum":"A1234563"}'}, q{'null'}, q{'[]'}, q{'{}'}, q{'-1e400'}, q{'"\u0000"'}, q{'"\ud800"'}, $deep, $deep_objects,
		q{'{"idNum":{"idNum":[null,1,true]},"idNum":""}'} ],
	jsonb => [ q{'[{"ipoID":"1234","ownRef":"every","appQuantity":"1000","firmID":"00000","idList":[]}]'}, q{'null'}, q{'[]'}, q{'{}'}, q{'1e300'},
		q{'[{}]'}, q{'[null,1,"a"]'}, q{'[[{}]]'}, q{'{"ownRef":"ipo_id","ipoID":"own_ref","":"x"}'}, q{'{"state":"fini_error","error":"fini_error"}'},
		q{'{"ownRef":null}'}, $deep, $deep_objects, q{to_jsonb(array_fill('{"ownRef":"m"}'::jsonb, array[1500]))} ],
	'_text' => [ q{'{a,b}'}, q{'{}'}, q{'{NULL}'}, q{'{""}'}, q{'{{a,b},{c,NULL}}'}, q{'[-5:-4]={a,b}'}, q{array_fill('x'::text, array[3000])},
		q{array[repeat('y', 100000)]} ],
	'_int8' => [ q{'{1,2}'}, q{'{}'}, q{'{NULL,-1}'}, q{'{{9223372036854775807}}'}, q{'[-3:-3]={0}'} ],
	regclass => [ q{'applications'}, qw(0 4294967295), q{'loose'}, q{'a_view'}, q{'pg_class'}, q{'pg_authid'}, q{'applications_pkey'}, q{'a_sequence'}, q{'partitioned'},
		q{'materialized'}, q{'fini.submission'} ],
	regrole => [ q{'nobody'}, qw(0 4294967295), q{current_user}, q{'pg_monitor'} ],
	timestamptz => [ q{now() + interval '1 day'}, q{'infinity'}, q{'-infinity'}, q{'4713-01-01 00:00 BC'}, q{'294276-12-31'}, q{now()} ],
	interval => [ q{'10 ms'}, q{'0'}, q{'-1 day'}, q{'178000000 years'}, q{'-178000000 years'}, q{'2147483647 days -2147483647 months'} ],
	xid => [ qw('3' '0' '4294967295') ],
);
# values that lead further than the first of the type
my %named = (
	relation => q{'applications'}, level => q{'reader'}, path => q{'/api/ipos/list/v1'}, data_key => q{decode(repeat('41', 32), 'hex')},
	iv => q{decode(repeat('42', 12), 'hex')}, profile => q{'agent'}, expires => q{now() + interval '100 days'}, status => q{'20'},
	kinds => q{'{status_differs}'}, name => q{'a_' || md5(random()::text)}, request_id => q{repeat('a', 32)}, timeout => q{'10 ms'}, timeout_ms => 10,
	outcome => q{'{}'}, fields => q{'{}'}, own_refs => q{'{e1,e2}'}, refdata_limit => 1, force => 'true', sub_flow_status => q{'10'}, body => q{'{}'}, state => q{'done'});

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.request_timeout' => 2000 }, gateway => [ '--rate-limit', '0' ],
	init => { allows_streaming => 1 }, conf => "log_min_messages = warning\nlog_min_error_statement = panic\nwal_level = logical\nmax_connections = 30\n");
my $node = $fini->node;
my $start = $fini->sql('select pg_postmaster_start_time()');
$fini->sql(q{
	create role nobody login; create role stranger login;
	create table loose (a int); create view a_view as select 1 a; create sequence a_sequence; create materialized view materialized as select 1 a;
	create table partitioned (own_ref text, ipo_id text) partition by list (ipo_id);
	select fini.create_subscription_table('applications');
	insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select 'e' || i, '1234', 1000, 'PASSPORT', 'GBR', 'P' || i, 'DOE, Jane' from generate_series(1, 3) i;
	select fini.attach('applications')});
$fini->wait_done;

# oid|name|types and names of the arguments
my @functions = map { my ($name, $result, $kind, @arguments) = split /\|/; { name => $name, result => $result, kind => $kind, arguments => [ map { [ split /:/ ] } @arguments ] } }
  split /\n/, $fini->sql(q{
	select concat_ws('|', quote_ident(proname), prorettype::regtype, prokind, string_agg(typname || ':' || coalesce(proargnames[n], ''), '|' order by n))
	from pg_proc p left join lateral unnest(proargtypes::oid[]) with ordinality a(t, n) on true left join pg_type y on y.oid = t
	where pronamespace = 'fini'::regnamespace group by p.oid order by p.oid});
my @triggers = grep { $_->{result} =~ /trigger/ } @functions;
my @callable = grep { $_->{result} !~ /trigger/ } @functions;
cmp_ok(scalar @callable, '>', 60, 'functions: ' . @callable);

# every type has its values, so that a function with a new one is not passed over
for my $function (@callable)
{
	is_deeply([ grep { !$values{$_} } map { $_->[0] } @{ $function->{arguments} } ], [], "types of $function->{name}");
}

# calls of a function: each argument through all its values while the others are good; all of them null; each null
sub calls
{
	my ($function, $few) = @_;
	my @arguments = @{ $function->{arguments} };
	my @good = map { my ($type, $name) = @$_; cast($named{$name} // $values{$type}[0], $type) } @arguments;
	my @calls = [ @good ];

	push @calls, [ map { "null::$_->[0]" } @arguments ] if @arguments;
	for my $i (0 .. $#arguments)
	{
		my $type = $arguments[$i][0];
		my @tried = @{ $values{$type} };
		@tried = @tried[ 0, 1, $#tried ] if $few;
		push @calls, map { my @call = @good; $call[$i] = $_; \@call } 'null::' . $type, map { cast($_, $type) } @tried;
	}
	return map { "fini.$function->{name}(" . join(', ', @$_) . ')' } @calls;
}

sub cast { my ($value, $type) = @_; return "($value)::" . ($type =~ /^_(.*)/ ? "${1}[]" : $type) }

# what it is called through: not constants, so that the planner calls nothing itself
sub statement { my ($call) = @_; return "select count(*) from $call f" }

# run statements, each for itself, in one session; how often each SQLSTATE came, 00000 for none
my $total = 0;
sub run_all
{
	my ($on, $before, @statements) = @_;
	my ($out, $err) = ('', '');
	my $script = "\\set ON_ERROR_STOP 0\n\\set VERBOSITY sqlstate\nset statement_timeout = '4s';\nset client_min_messages = error;\n$before\n"
	  . join('', map { "\\echo\n$_;\n\\echo :SQLSTATE\n" } @statements) . "\\echo the end\n";
	IPC::Run::run([ 'psql', '-XAtq', '-d', $on->connstr('postgres'), '-f', '-' ], '<', \$script, '>', \$out, '2>', \$err, IPC::Run::timeout(600));
	my %seen;
	$seen{$_}++ for $out =~ /^([0-9A-Z]{5})$/mg;
	$total += @statements;
	return (\%seen, $out =~ /the end/ ? '' : "broken off: " . substr($err, -500));
}

# no internal error, no crash, nothing lost
sub harmless
{
	my ($what, $on, $before, @statements) = @_;
	my ($seen, $problem) = run_all($on, $before, @statements);
	my @wrong = grep { /^(XX|58|57P0[123]|08)/ } keys %$seen;
	my $answers = join ' ', map { "$_:$seen->{$_}" } sort keys %$seen;

	# which of them it was
	if (@wrong || $problem)
	{
		for my $statement (@statements)
		{
			my ($one, $broken) = run_all($on, $before, $statement);
			diag("$broken $statement: " . join(' ', keys %$one)) if $broken || grep { /^(XX|58|57P0[123]|08)/ } keys %$one;
		}
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(!@wrong && !$problem, "$what: " . @statements . " statements ($answers)") or diag $problem;
	return $seen;
}

# what calls before have undone
my $again = q{select fini.arm(), fini.resume(); do $$ begin perform fini.attach('applications'); exception when others then null; end $$;};
my %reached;

subtest 'at once' => sub {
	for my $function (@callable)
	{
		my $seen = harmless($function->{name}, $node, $again, map { statement($_) } calls($function));
		$reached{ $function->{name} } += $seen->{'00000'} // 0;
	}
};
# grant_access and the like included: the values are good enough to get through at least once
is_deeply([ grep { !$reached{$_} && !/^(reconcile|wait_reconcile|_end_reconcile|repair.*|subscription_.*|call|_wait_for_settle|_mend)$/ } sort keys %reached ], [], 'all of them have been got through');

subtest 'wrong types' => sub {
	for my $function (grep { @{ $_->{arguments} } } @callable)
	{
		my $n = @{ $function->{arguments} };
		harmless($function->{name}, $node, $again,
			map { my $value = $_; map { my $i = $_; "select fini.$function->{name}(" . join(', ', map { $_ == $i ? $value : 'null' } 0 .. $n - 1) . ')' } 0 .. $n - 1 }
			  q{'garbage'}, q('{'), '1.5', q{'\x'::bytea}, q{array[[1]]}, q{row(1, 'a')}, q{point '(1,2)'}, q('{"a"'::unknown), q{int4range 'empty'});
	}
};

subtest 'in parallel workers' => sub {
	my $setting = $node->safe_psql('postgres', q{select name from pg_settings where name in ('debug_parallel_query', 'force_parallel_mode')});
	my $before = "$again set $setting = on; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;"
	  . ' set max_parallel_workers_per_gather = 2; create temp table t as select 1;';
	my $few = $node->safe_psql('postgres', 'create table many (v) as select generate_series(1, 200); analyze many');
	for my $function (@callable)
	{
		harmless($function->{name}, $node, $before, map { ("select $_", "select count(*) from many where v < 3 and ($_) is not null") } calls($function, 1));
	}
	like($node->safe_psql('postgres', "set $setting = on; explain (costs off) select fini.sign(decode(repeat('41', 32), 'hex'), 'a', repeat('a', 32), v) from many"),
		qr/Gather/, 'and some do run there');
};

subtest 'in a read-only transaction' => sub {
	harmless($_->{name}, $node, "$again set default_transaction_read_only = on;", map { statement($_) } calls($_, 1)) for @callable;
};

subtest 'after a failed subtransaction' => sub {
	for my $function (@callable)
	{
		harmless($function->{name}, $node, $again, map { my $call = statement($_);
			"begin; savepoint a; select 1/0; rollback to a; $call; rollback to a; savepoint b; $call; select 1/0; rollback to a; $call; rollback to a; release a; $call; commit" }
			calls($function, 1));
		# the same within one statement
		harmless("$function->{name} in plpgsql", $node, $again, map { my $call = $_;
			"do \$\$ begin begin perform $call; raise division_by_zero; exception when others then null; end; perform $call; exception when others then null; end \$\$" }
			calls($function, 1));
	}
	harmless('prepared', $node, $again, map { ("begin; select $_; prepare transaction 'p'", "rollback prepared 'p'", 'rollback') } map { calls($_, 1) } @callable);
};

subtest 'as triggers where none belongs' => sub {
	my $n = 0;
	for my $function (@triggers)
	{
		my @statements = ("select fini.$function->{name}()");
		if ($function->{result} eq 'event_trigger')
		{
			for my $event (qw(ddl_command_start ddl_command_end sql_drop table_rewrite))
			{
				push @statements, "begin; create event trigger e on $event execute function fini.$function->{name}(); create table x (a int); alter table x alter a type text using a::text; drop table x; rollback";
			}
		}
		else
		{
			for my $table ('loose', 'applications')
			{
				for my $how ('before insert on T for each row', 'after insert on T for each row', 'after insert on T', 'before truncate on T', 'after update on T for each row',
					'before delete on T for each row', 'after insert on T referencing new table as x')
				{
					for my $arguments ('', q{'a', ''})
					{
						my $trigger = ($how =~ s/T/$table/r);
						my $column = $table eq 'loose' ? 'a' : 'own_ref';
						push @statements, "begin; create trigger t $trigger execute function fini.$function->{name}($arguments); insert into $table ($column) values ('1'); "
						  . "update $table set $column = '2'; delete from $table; truncate $table; rollback";
					}
				}
			}
			push @statements, "begin; create trigger t instead of insert on a_view for each row execute function fini.$function->{name}(); insert into a_view values (1); rollback";
		}
		harmless($function->{name}, $node, $again, @statements);
	}
};

subtest 'by one who may not' => sub {
	for my $function (@callable)
	{
		my $seen = harmless($function->{name}, $node, 'set session authorization stranger;', map { statement($_) } calls($function, 1));
		is($seen->{'00000'} // 0, 0, '... none goes through');
		is_deeply([ grep { !/^(42501|22|42P01|54001|42|54)/ } keys %$seen ], [], '... for want of the privilege') or diag join ' ', keys %$seen;
	}
};

subtest 'on a standby' => sub {
	$node->backup('every');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'every', has_streaming => 1);
	$standby->start;
	$node->wait_for_catchup($standby);
	harmless($_->{name}, $standby, '', map { statement($_) } calls($_, 1)) for @callable;
	$standby->stop;
};

is($fini->sql('select pg_postmaster_start_time()'), $start, 'the server has not started anew');
unlike($fini->log_since(0), qr/was terminated by signal|TRAP:|PANIC|server process .* exited with exit code/, 'no process has ended otherwise than it should');
$fini->sql($again);
$fini->sql(q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng) values ('last', '3456', 1000, 'PASSPORT', 'GBR', 'P99', 'DOE, Jane')});
$fini->wait_done('3456');
is($fini->sql(q{select state from fini.submission where own_ref = 'last'}), 'accepted', "and the worker goes on, after $total statements");
done_testing();
