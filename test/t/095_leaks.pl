# What fails leaves nothing behind: the heap of a backend, libcurl's and OpenSSL's objects included, is as
# large after thousands of failing calls as before them, and so is the number of its open files.

use strict;
use warnings;

use FiniModule;
use FiniTest;
use Test::More;

# allocators of sanitizers do not answer mallinfo2
plan skip_all => 'needs the C library\'s own malloc' if $ENV{FINI_TEST_SLOW};

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', '0' ]);
my $heap = FiniModule::build('heap.c');
$fini->sql(<<"END");
create function test_heap() returns bigint language c as '$heap', 'fini_test_heap';
create function test_files() returns int language c as '$heap', 'fini_test_files';
create table left_behind (what text, heap bigint, files int, calls int, failed int, error text);

-- calls that statement often enough that everything cached is cached, then n times more, in quarters: what leaks
-- does so in each of them, so it is the quarter with the least growth that counts, not a cache that grew in one
create procedure leak(what text, statement text, n int, out failed int) language plpgsql as \$\$
declare
	heap bigint;
	growth bigint;
	files int;
	error text;
begin
	failed := 0;
	for i in 1 .. n + 500 loop
		if i > 500 and (i - 501) % (n / 4) = 0 then
			growth := least(growth, test_heap() - heap);
			heap := test_heap();
		end if;
		if i = 501 then
			files := test_files();
			failed := 0;
		end if;
		begin
			execute statement;
		exception when others or query_canceled then
			failed := failed + 1;
			error := sqlerrm;
		end;
	end loop;
	growth := least(growth, test_heap() - heap);
	insert into left_behind values (leak.what, growth, test_files() - files, n, leak.failed, error);
end \$\$;
END

# of that many bytes in a quarter of hundreds of calls nobody notices anything
my $allowed = 25_000;
my $key = q{decode(repeat('41', 32), 'hex'), decode(repeat('42', 12), 'hex')};

sub flat
{
	my ($what, $statement, $n, %opt) = @_;
	my $calls = ($opt{before} // '') . "call leak('$what', \$leak\$$statement\$leak\$, $n, null);";
	$fini->sql($calls, timeout => 600);
	my ($bytes, $files, $failed, $error) = split /\|/, $fini->sql("select heap, files, failed, error from left_behind where what = '$what'"), -1;
	is($failed, $opt{fails} // $n, "$what: they fail: $error");
	cmp_ok($bytes, '<', $allowed, "$what: heap in a quarter of $n calls (grown by $bytes bytes)");
	# a file of a catalog may have been opened in the meantime; what leaks does so with every call
	cmp_ok($files, '<=', 0, "$what: open files (grown by $files)");
	return;
}

# what leaks is seen: a setting of one's own stays with the session, in a block of its own if it is that long
$fini->sql(q{call leak('a leak', $$select set_config('leak.x' || translate(gen_random_uuid()::text, '-', ''), repeat('x', 10000), false)$$, 500, null)});
cmp_ok($fini->sql(q{select heap from left_behind where what = 'a leak'}), '>', $allowed, 'a leak is seen');

flat('a field with a wrong tag', "select fini.decrypt_field('%enc_%' || repeat('A', 43) || '=', $key)", 10_000);
flat('no JSON', "select fini.encrypt_fields('{\"idNum\":\"\\u0000\"}'::json, $key)", 10_000);
flat('a key that is none', "select fini.wrap_key($key, 'MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE')", 10_000);
flat('a JWK set that expires too late', "select fini.jwks('agent', now() + interval '2 years')", 2_000);
flat('a JWK set', "select fini.jwks('agent', now() + interval '100 days')", 500, fails => 0);

$fini->sql('select count(*) from fini.ipo_list()');
flat('calls that succeed', 'select count(*) from fini.ipo_list()', 1_000, fails => 0);
$fini->faults({ endpoint => 'ipos/list', action => 'status-after', status => 500, count => -1 });
flat('HTTP 500', 'select count(*) from fini.ipo_list()', 500);
$fini->clear_faults;
$fini->faults({ endpoint => 'subscriptions/query', action => 'garbage', count => -1 });
flat('garbage', q{select count(*) from fini.subscription_query('1234')}, 500);
$fini->clear_faults;
$fini->faults({ endpoint => 'subscriptions/query', action => 'truncate', count => -1 });
flat('connections cut', q{select count(*) from fini.subscription_query('1234')}, 500);
$fini->clear_faults;
flat('refused as a whole', q{select fini.call('/api/eipo/subscriptions/query/v1', '{"data":{}}', true)}, 500);

# cancelled while it waits: a timer of the statement ends each call
$fini->faults({ endpoint => 'ipos/list', action => 'hang-after', count => -1 });
for my $round (1 .. 20)
{
	$fini->try_sql("set statement_timeout = 60; select count(*) from fini.ipo_list()");
}
my @heaps = split /\n/, $fini->{node}->safe_psql('postgres', join(';', 'set statement_timeout = 40',
	map { my $heap = $_ % 25 == 20 ? '; select test_heap()' : '';
		"do \$\$ begin perform count(*) from fini.ipo_list(); exception when query_canceled then null; end \$\$$heap" } 1 .. 120), timeout => 300);
my ($least) = sort { $a <=> $b } map { $heaps[$_] - $heaps[$_ - 1] } 1 .. $#heaps;
is(scalar @heaps, 5, 'cancelled: a hundred calls, in quarters');
cmp_ok($least, '<', $allowed, "cancelled: heap in a quarter of 100 calls (grown by $least bytes)");

done_testing();
