# Calls that cannot fail in a test unless they are made to: memory that is not given, OpenSSL and libcurl that say no. Each
# statement is done over and over, and each time the next call of the family fails, until none does. Wanted every time: an
# error with an SQLSTATE of its own or a right answer, a process that goes on, and nothing left behind. The same for the
# worker: whatever fails in it, what is queued is sent, once.

use strict;
use warnings;

use FiniModule;
use FiniTest;
use Test::More;

plan skip_all => 'needs the C library\'s own malloc' if $ENV{FINI_TEST_SLOW};

my $failing = FiniModule::build('failing.c', '-ldl');
my $fini;
{
	local $ENV{LD_PRELOAD} = $failing;
	$fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 5 }, gateway => [ '--rate-limit', '0' ],
		conf => "log_min_messages = warning\nlog_min_error_statement = panic\nlog_statement = none\n");
}
my $heap = FiniModule::build('heap.c', '-ldl');
$fini->sql(<<"END");
create function test_heap() returns bigint language c as '$heap', 'fini_test_heap';
create function test_files() returns int language c as '$heap', 'fini_test_files';
create function test_fail(pid int, family int, nth bigint, all_after bool default false) returns void language c as '$heap', 'fini_test_fail';
create function test_failed() returns text language c as '$heap', 'fini_test_failed';
create table outcome (what text, nth bigint, function text, state text, message text);
create table measured (what text, pass int, calls bigint, heap bigint, files int);

-- a statement as often as it takes until nothing of the family fails any more, twice, as the first time fills caches
create procedure sweep(what text, family int, statement text, all_after bool) language plpgsql as \$\$
declare
	answer text;
	got text;
	failed text;
	state text;
	message text;
	heap bigint;
	files int;
	n bigint;
begin
	execute statement into answer;
	for pass in 1 .. 2 loop
		heap := test_heap();
		files := test_files();
		n := 1;
		loop
			state := '00000';
			message := null;
			perform test_fail(pg_backend_pid(), family, n, all_after);
			begin
				execute statement into got;
				failed := test_failed();
				if got is distinct from answer then
					state := 'wrong';
					message := got;
				end if;
			exception when others then
				get stacked diagnostics state = returned_sqlstate, message = message_text;
				failed := test_failed();
			end;
			insert into outcome values (what, n, split_part(failed, ' ', 3), state, message);
			exit when split_part(failed, ' ', 2) = '0';
			-- OpenSSL reads a key with thousands of small pieces of memory
			n := n + 1 + case when n > 400 then n / 50 else 0 end;
		end loop;
		insert into measured values (what, pass, n - 1, test_heap() - heap, test_files() - files);
	end loop;
	-- and it works again
	execute statement into got;
	if got is distinct from answer then
		insert into outcome values (what, -1, 'none', 'wrong', got);
	end if;
end \$\$;
END

my $key = q{decode(repeat('41', 32), 'hex'), decode(repeat('42', 12), 'hex')};
chomp(my $public = `openssl pkey -in $ENV{FINI_TEST_KEYS}/agent.pem -pubout -outform DER | openssl base64 -A`);
my %families = (malloc => 1, crypto => 2, curl => 3);
my %statements = (
	'a field sealed' => "select fini.encrypt_field('Chan Tai Man', $key)",
	'a field opened' => "select fini.decrypt_field(fini.encrypt_field('Chan Tai Man', $key), $key)",
	'a payload sealed' => qq{select fini.encrypt_fields('{"idList":[{"idNum":"A1234563","fullNameEng":"CHAN, Tai Man"}]}'::json, $key)},
	'a payload opened' => qq{select fini.decrypt_fields(fini.encrypt_fields('{"idList":[{"idNum":"A1234563"}]}'::json, $key)::json, $key)},
	'a signature' => q{select fini.sign(decode(repeat('41', 32), 'hex'), '{}', repeat('a', 32), 1)},
	'a key wrapped' => "select length(fini.wrap_key($key, '$public'))",
	'a JWK set' => q{select fini.jwks('agent', '2027-06-01')->'keys'->0->>'n'},
	'a list' => 'select count(*) from fini.ipo_list()',
	'a query' => q{select count(*) from fini.subscription_query('1234')},
	'a check' => q{select count(*) from fini.check()},
);
$statements{'a JWK set'} =~ s/'2027-06-01'/now() + interval '100 days'/;

sub sweep
{
	my ($what, $family, %opt) = @_;
	my $name = "$what, $family" . ($opt{all_after} ? ' and all after it' : '');
	my ($rc, $out, $err);
	for my $attempt (1 .. 8)
	{
		($rc, $out, $err) = $fini->try_sql("set statement_timeout = '60s'; call sweep('$name', $families{$family}, \$s\$$statements{$what}\$s\$, "
			  . ($opt{all_after} ? 'true' : 'false') . ')', timeout => 600);
		# OpenSSL from 3.2 on keeps decoders of keys for as long as the process lives: also one that it was putting together when memory
		# failed, and that knows no key any more. Nobody can make it forget that one; another session does not have it.
		last unless $rc && $opt{all_after} && $err =~ /digital envelope routines::decode error/;
		note "OpenSSL has kept a decoder that is not complete (attempt $attempt)";
	}
	is($rc, 0, "$name: the backend lives") or diag $err;
	my ($calls, $bytes, $files) = split /\|/, $fini->sql("select calls, heap, files from measured where what = '$name' and pass = 2"), -1;
	my $answers = $fini->sql("select string_agg(state || ':' || n, ' ' order by state) from (select state, count(*) n from outcome where what = '$name' group by 1) o");
	ok(defined $calls && $calls > ($opt{fewest} // 0), "$name: " . ($calls // 'too many') . " calls made to fail ($answers)");
	is($fini->sql("select string_agg(distinct format('%s %s: %s', function, state, message), E'\\n') from outcome where what = '$name' and (state = 'wrong' or state like 'XX%')"),
		'', '... to errors or right answers');
	cmp_ok($bytes // 1e9, '<', 100_000, '... with nothing left behind: bytes');
	cmp_ok($files // 1e9, '<=', 0, '... and files');
	return;
}

sweep($_, 'crypto') for grep { !/list|query|check|JWK/ } sort keys %statements;
sweep('a JWK set', 'crypto');
sweep($_, 'crypto') for 'a list', 'a check', 'a query';
sweep('a query', 'crypto', all_after => 1);
sweep($_, 'curl') for 'a list', 'a query', 'a check';
# not of those that are mostly PostgreSQL reading catalogs and writing tables, which ends the session when it must
sweep($_, 'malloc') for grep { !/check|JWK/ } sort keys %statements;
# what goes on failing
sweep('a payload sealed', 'crypto', all_after => 1);
sweep($_, 'curl', all_after => 1) for 'a query';

# the worker: everything in it that can be made to fail, and every application arrives, once
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
my $rows = 0;
for my $family (qw(crypto curl malloc))
{
	my ($n, $step, $failures) = (1, 1, 0);
	while ($n < 3000)
	{
		my $pid = $fini->wait_for(sub { $fini->sql('select worker_pid from fini.status where worker_pid is not null') }, 'a worker');
		$fini->sql("select test_fail($pid, $families{$family}, $n)");
		$rows++;
		$fini->sql(qq{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
			values ('w$rows', '1234', 1000, 'PASSPORT', 'GBR', 'P$rows', 'DOE, Jane')});
		$fini->wait_for("select state not in ('queued', 'sending', 'unknown') from fini.submission where own_ref = 'w$rows'", "w$rows with call $n of $family failing", 120);
		my ($calls, $failed) = split / /, $fini->sql('select test_failed()');
		last if !$failed;
		$failures++;
		$n += $n < 60 ? 3 : int($n / 8);
	}
	cmp_ok($failures, '>', 3, "the worker: $failures times a call of $family failed, up to the ${n}th");
}
is($fini->sql(q{select string_agg(distinct state || coalesce(' ' || error_code, ''), ', ') from fini.submission}), 'accepted', "all $rows are accepted");
is($fini->stats->{duplicates}, 0, 'none twice');
is_deeply([ $fini->compare('applications') ], [], 'both sides agree');
unlike($fini->log_since(0), qr/was terminated by signal|PANIC|TRAP:/, 'no process crashed');
done_testing();
