# Where personal data and secrets are, and where they are not: with everything logged that PostgreSQL can log, in the
# log, in statistics, in every file of the data directory, in the WAL of fini's own tables, in dumps, in what SQL shows,
# and, once they have been used, in the memory of the processes that used them. Claims of docs/security.md.

use strict;
use warnings;

use FiniHostile;
use FiniTest;
use JSON::PP;
use MIME::Base64 qw(decode_base64);
use PostgreSQL::Test::Utils;
use Test::More;

my $json = JSON::PP->new->utf8;
my $pg15_libraries = 'fini,auto_explain,pg_stat_statements';

my $hostile = FiniHostile->new(
	settings => { 'fini.batch_size' => 50, 'fini.request_timeout' => '5s' },
	conf => "shared_preload_libraries = '$pg15_libraries'\n"
	  . "log_min_messages = debug5\nlog_min_error_statement = debug5\nlog_error_verbosity = verbose\n"
	  . "log_min_duration_statement = -1\nlog_duration = on\nlog_connections = on\nlog_lock_waits = on\nlog_temp_files = 0\nlog_parameter_max_length = -1\n"
	  . "log_parameter_max_length_on_error = -1\nlog_replication_commands = on\ntrack_activity_query_size = 1MB\n"
	  . "auto_explain.log_min_duration = 0\nauto_explain.log_nested_statements = on\nauto_explain.log_analyze = on\nauto_explain.log_verbose = on\n"
	  . "auto_explain.log_triggers = on\nauto_explain.log_settings = on\npg_stat_statements.track = all\npg_stat_statements.track_utility = on\n"
	  . "restart_after_crash = on\nwal_level = logical\nwal_keep_size = 1GB\nwal_recycle = off\nautovacuum = off\nfsync = on\n");
my $fini = $hostile->fini;
my $dir = $hostile->dir;
my $pgdata = $fini->node->data_dir;
FiniSandbox::make_rsa_key("$dir/between.pem");
my $captured = "$dir/captured";
$hostile->order(capture => $captured);
$hostile->sandbox->admin('POST', '/rotate-key');

# --- what must not be found; every value is one of a kind ---

my @personal = ('Marvinia Markerova', 'MARK77889', "\xE9\xA6\xAC\xE5\x85\x8B\xE6\xA8\x99", 'Zebulonia', 'QDOCTYPEQ', 'QCOUNTRYQ');

# applications go through a file and COPY, as docs/security.md advises
sub copy_in
{
	my ($table, $prefix, $n) = @_;
	my $rows = join '', map { "$prefix$_\t1234\t100\tQDOCTYPEQ\tQCOUNTRYQ\tMARK77889$prefix$_\tMarvinia Markerova $_\t$personal[2]\n" } 1 .. $n;
	FiniSandbox::write_file("$dir/rows", $rows);
	$fini->sql("copy $table (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi) from '$dir/rows'");
	return;
}

# --- everything that fini does, with personal data in it ---

copy_in('applications', 'A', 60);
$fini->wait_done;
# the gateway echoes what it was sent
$hostile->sandbox->faults({ endpoint => 'subscriptions/add', action => 'reject-entries', n => 2, code => 'MARK77889B1',
	message => 'applicant Marvinia Markerova 1 (MARK77889B1) is on a list, and MARVINIA MARKEROVA 2 MARK77889B2 too' });
copy_in('applications', 'B', 4);
$fini->wait_done;
is($fini->sql(q{select count(*) from applications where fini_state = 'rejected'}), 2, 'two are rejected');
$hostile->sandbox->faults({ endpoint => 'subscriptions/add', action => 'code-before', status => 400, code => '400999', message => 'bad: Marvinia Markerova 1, MARK77889C1' });
copy_in('applications', 'C', 2);
$fini->wait_done;
# in doubt, and found out
$hostile->hostile({ path => 'subscriptions/add', how => 'drop', after => JSON::PP::true }, { path => 'subscriptions/query', how => 'answer', body => '{"code":"0","data":[{"idNum":"MARK77889"}' });
copy_in('applications', 'D', 5);
$fini->wait_done;
$hostile->behave;
$fini->sql(q{update applications set app_quantity = 200 where own_ref like 'A1%'; delete from applications where own_ref like 'A2%'});
$fini->wait_done;
# what was sent is quoted by refusals: the token, an encrypted field, assertions
$hostile->sandbox->admin('POST', '/expire-tokens');
$hostile->hostile({ path => 'access_token', how => 'echo', which => 'agent' }, { path => 'access_token', how => 'echo', which => 'machine' });
copy_in('applications', 'F', 1);
$fini->wait_done;
$hostile->sandbox->admin('POST', '/rotate-key');
$hostile->hostile({ path => 'crypto/meta', how => 'echo' });
copy_in('applications', 'G', 1);
$fini->wait_done;
$hostile->hostile({ path => 'subscriptions/add', how => 'echo' });
copy_in('applications', 'H', 1);
$fini->wait_done;
like($fini->sql(q{select fini_error from applications where own_ref = 'H1'}), qr/^400888: not with \*+ %enc_%\*+$/, 'a refusal that quotes what was sent');
$hostile->behave;
# a policy that tells what it should not, under whatever SQLSTATE
$fini->sql(q{create role teller; alter table applications owner to teller; alter table applications enable row level security; alter table applications force row level security;
	create function tell(what text) returns boolean language plpgsql as $$ begin raise exception 'not %', what using errcode = '42501'; end $$;
	create policy tells on applications for select using (case when own_ref = 'I1' then tell(id_num || full_name_eng) else true end)});
copy_in('applications', 'I', 1);
$fini->wait_done;
like($fini->sql(q{select error_message from fini.submission where own_ref = 'I1'}), qr/^the table cannot be read \(SQLSTATE 42501\)$/, 'a policy that fails has its SQLSTATE alone');
$fini->sql('drop policy tells on applications; alter table applications no force row level security; alter table applications disable row level security; delete from applications where own_ref = $$I1$$');
$fini->wait_done;
# rows that cannot be sent, and tables that refuse, with texts of their own
$fini->sql(q{update applications set id_list = jsonb_build_array(jsonb_build_object('idNum', jsonb_build_array(id_num))) where own_ref = 'A3'});
$fini->sql(q{create function refuse() returns trigger language plpgsql as $$ begin raise exception 'cannot take % of %', new.id_num, new.full_name_eng; end $$;
	create trigger refuse before update on applications for each row when (new.own_ref like 'E%') execute function refuse()});
copy_in('applications', 'E', 3);
$fini->wait_done;
$fini->sql('drop trigger refuse on applications');
# direct calls, from a function that has the values in variables
# which plans with log_verbose would show: docs/security.md
$fini->sql(q{create function call_directly(what text) returns bigint language plpgsql set auto_explain.log_verbose = off as $$
	declare
		payload jsonb;
		n bigint;
	begin
		select jsonb_agg(jsonb_build_object('ipoID', ipo_id, 'ownRef', what || own_ref, 'appQuantity', '5', 'idList', jsonb_build_array(jsonb_build_object(
			'idType', id_type, 'idCountryJurisdiction', id_country_jurisdiction, 'idNum', id_num, 'fullNameEng', full_name_eng, 'fullNameChi', full_name_chi))))
			into payload from applications where own_ref like 'A5%';
		select count(*) into n from fini.subscription_add(payload);
		return n;
	end $$});
is($fini->sql(q{select call_directly('X')}), 11, 'a direct call');
for my $fault ({ action => 'code-before', status => 400, code => '400777', message => 'no: Marvinia Markerova 5 MARK77889A5' }, { action => 'status-before', status => 503 }, { action => 'drop-after' }, { action => 'garbage' })
{
	$hostile->sandbox->faults({ endpoint => 'subscriptions/add', %$fault });
	my (undef, undef, $err) = $fini->try_sql(q{select call_directly('Y' || clock_timestamp())});
	like($err, qr/IP00\d/, "... under $fault->{action}");
	unlike($err, qr/Markerova|MARK77889/, '... says nothing personal');
}
$fini->sql(q{create table elsewhere as select own_ref, id_list from fini.subscription_query('1234') limit 0});
$fini->sql(q{select count(*) from fini.subscription_query('1234'); select fini.precheck('applications', '1234'); select fini.reconcile('applications', '1234'); select fini.start_reconcile('applications', '1234')});
$fini->wait_for(q{select count(*) = 2 from fini.reconcile_run where state = 'finished'}, 'reconciliations');
$fini->sql(q{select fini.repair(1); select fini.check(); select fini.jwks('agent', now() + interval '100 days')});
$fini->wait_done;
my (undef, undef, $undecrypted) = $fini->try_sql(q{select fini.decrypt_field('%enc_%AAAA', decode(repeat('41', 32), 'hex'), decode(repeat('42', 12), 'hex'))});

# --- what was sent, taken apart ---

my (%tokens, %assertions, %sealed, %keys, @data_keys, @ivs);
for my $line (split /\n/, slurp_file($captured))
{
	my $request = $json->decode($line);
	my %headers = map { lc $_ => $request->{headers}{$_} } keys %{ $request->{headers} };
	$tokens{$1} = 1 if ($headers{authorization} // '') =~ /^Bearer (\S+)/;
	$assertions{$1} = 1 while $request->{body} =~ /assertion=([\w-]+\.[\w-]+\.[\w-]+)/g;
	# short values have ciphertexts that are cheap to come by twice
	$sealed{$1} = 1 while $request->{body} =~ /%enc_%([\w+\/]{44,}={0,2})/g;
	$keys{ $request->{key} } = 1 if $request->{key};
	if ($request->{key})
	{
		my ($data_key, $iv) = split /#/, $request->{key};
		push @data_keys, $data_key;
		push @ivs, $iv;
	}
}
cmp_ok(scalar(keys %$_), '>', 1, 'captured ' . scalar(keys %$_)) for \%tokens, \%assertions, \%sealed, \%keys;

# a request that is sent again included
for my $what ([ 'data key', @data_keys ], [ 'IV', @ivs ])
{
	my ($name, @all) = @$what;
	is(scalar(keys %{ { map { $_ => 1 } @all } }), scalar @all, 'each of ' . @all . " sendings has a $name of its own");
}

my (@pem, @numbers);
for my $profile (qw(agent machine))
{
	my @lines = grep { !/-----/ } split /\n/, slurp_file("$dir/$profile.pem");
	push @pem, @lines[1 .. $#lines - 1];
	my $text = `openssl rsa -in $dir/$profile.pem -noout -text 2>/dev/null`;
	for my $name (qw(privateExponent prime1 prime2 exponent1 exponent2 coefficient))
	{
		my ($hex) = $text =~ /^$name:\n((?:\s+[0-9a-f:]+\n)+)/m or die "no $name";
		(my $digits = $hex) =~ s/[^0-9a-f]//g;
		$digits =~ s/^00//;
		my $bytes = pack 'H*', $digits;
		# as it is computed with; the bytes as written pass through OpenSSL's decoder, see docs/security.md
		push @numbers, [ "$profile $name", scalar reverse $bytes ];
	}
}
my @secrets = (keys %tokens, keys %assertions, keys %sealed, @pem, map({ $_, (split /#/)[0], decode_base64((split /#/)[0]) } keys %keys), map { ($_->[1], scalar reverse $_->[1]) } @numbers);

# which of these does the text hold?
sub holds
{
	my ($text, @what) = @_;
	return join ', ', map { s/[^ -~]/?/gr } grep { index($text, $_) >= 0 } @what;
}

# --- the log ---

{
	my $log = $fini->log_since(0);
	like($log, qr/DEBUG:.*LOG:  00000: duration: .* plan:/s, 'the log is as talkative as can be');
	like($log, qr/Query Text: .*fini\.submission/, '... about fini\'s own statements too');
	# what is logged of the user's own statements is his: this one names nobody
	is(holds($log, @personal), '', 'no personal data in the log');
	is(holds($log, @secrets), '', 'no secret in the log');
	unlike($log, qr/eyJ0eXAi|Bearer |PRIVATE KEY|%enc_%[\w+\/]{20}|client_assertion=/, 'nor anything like one');
	unlike($log, qr/PANIC|terminated by signal|TRAP:/, 'nothing crashed');
}

# --- statistics, activity, and what fini's own objects say ---

{
	my @relations = split /\n/, $fini->sql(q{select oid::regclass from pg_class where relnamespace = 'fini'::regnamespace and relkind in ('r', 'v', 'm')});
	cmp_ok(scalar @relations, '>', 10, 'relations of fini');
	for my $relation (@relations, 'pg_stat_activity', 'pg_settings', 'pg_db_role_setting', 'pg_prepared_statements', 'pg_cursors', 'pg_stat_progress_copy')
	{
		my $text = $fini->sql("select coalesce(string_agg(t::text, E'\\n'), '') from $relation t");
		is(holds($text, @personal, @secrets), '', "$relation shows nothing");
	}
	$fini->sql('create extension pg_stat_statements');
	$fini->sql(q{update applications set app_quantity = 300 where own_ref like 'A1%'; select call_directly('Z')});
	$fini->wait_done;
	my $statements = $fini->sql(q{select string_agg(query, E'\n') from pg_stat_statements});
	like($statements, qr/fini\.submission/, 'pg_stat_statements knows fini\'s statements');
	is(holds($statements, @personal, @secrets), '', '... and nothing of their values');
}

# --- dumps ---

{
	my $dump = "$dir/dump.sql";
	$fini->node->command_ok([ 'pg_dump', '-f', $dump, '--exclude-table-data=applications', $fini->node->connstr('postgres') ], 'a dump without the table\'s rows');
	my $text = slurp_file($dump);
	like($text, qr/COPY fini\.submission/, '... has the outbox');
	is(holds($text, @personal, @secrets), '', '... and nothing personal, nor secret');
	$fini->node->command_ok([ 'pg_dumpall', '-f', $dump, '--globals-only', '-d', $fini->node->connstr('postgres') ], 'the globals');
	is(holds(slurp_file($dump), @personal, @secrets), '', '... likewise');
}

# --- files ---

{
	# rows of a table that takes no outcomes are written once, before; what follows in the WAL is fini's
	$fini->sql(q{create table quiet (own_ref text primary key, ipo_id text not null, app_quantity bigint, id_type text, id_country_jurisdiction text, id_num text, full_name_eng text, full_name_chi text);
		select fini.attach('quiet'); select fini.pause('test')});
	copy_in('quiet', 'W', 40);
	# dead rows that a later read would prune away, with an image of their page
	$fini->sql($_) for 'vacuum freeze quiet', 'vacuum freeze applications', 'checkpoint';
	my $before = $fini->sql('select pg_walfile_name(pg_switch_wal())');
	$fini->sql('select fini.resume()');
	$fini->wait_done;
	is($fini->sql(q{select count(*) from fini.submission where own_ref like 'W%' and state = 'accepted'}), 40, 'rows sent');
	$fini->sql(q{select fini.precheck('quiet', '1234'); select count(*) from fini.reconcile('quiet', '1234')});
	my $after = $fini->sql('select pg_walfile_name(pg_switch_wal()); checkpoint');
	my @segments = grep { $_ gt $before && $_ le $after } map { s{.*/}{}r } glob "$pgdata/pg_wal/0*";
	cmp_ok(scalar @segments, '>', 0, 'segments of WAL: ' . scalar @segments);
	my $wal = join '', map { slurp_file("$pgdata/pg_wal/$_") } @segments;
	cmp_ok(index($wal, 'W17'), '>', 0, 'the outbox is in the WAL');
	is(holds($wal, @personal, @secrets), '', '... and nothing personal, nor secret');

	my @own = split /\n/, $fini->sql(q{select pg_relation_filepath(c.oid) from pg_class c where c.relkind in ('r', 'i', 'S', 't') and (c.relnamespace = 'fini'::regnamespace
		or c.oid in (select reltoastrelid from pg_class where relnamespace = 'fini'::regnamespace)
		or c.oid in (select indexrelid from pg_index where indrelid in (select reltoastrelid from pg_class where relnamespace = 'fini'::regnamespace)))});
	cmp_ok(scalar @own, '>', 30, 'files of fini\'s tables: ' . scalar @own);
	is(holds(join('', map { slurp_file("$pgdata/$_") } grep { -e "$pgdata/$_" } @own), @personal, @secrets), '', '... hold nothing personal, nor secret');

	# secrets are in no file at all, personal data in the user's alone
	my %users = map { $_ => 1 } split /\n/, $fini->sql(q{select pg_relation_filepath(c.oid) from pg_class c where relname ~ '^(applications|quiet)' or oid in (select reltoastrelid from pg_class where relname ~ '^(applications|quiet)')});
	my (@with_secrets, @with_personal);
	my $files = 0;
	for my $file (split /\0/, `find '$pgdata' -type f -print0`)
	{
		(my $name = $file) =~ s{^\Q$pgdata\E/}{};
		my $text = eval { slurp_file($file) } // next;
		$files++;
		push @with_secrets, $name if holds($text, @secrets) ne '';
		push @with_personal, $name if holds($text, @personal) ne '' && !$users{$name} && $name !~ m{^pg_wal/};
	}
	cmp_ok($files, '>', 500, "$files files");
	is_deeply(\@with_secrets, [], 'no secret is in any file of the data directory');
	is_deeply(\@with_personal, [], 'personal data is in the files of the user\'s tables alone, and their WAL');
}

# --- memory ---

SKIP: {
	skip "a sanitizer's memory holds what has been freed, and is too large to search", 1 if $ENV{FINI_TEST_SLOW};
	# a session that has called, and the worker that has signed, sealed and opened
	my $session = $fini->node->background_psql('postgres');
	is($session->query(q{select call_directly('M')}), 11, 'a session calls directly');
	$session->query(q{select fini.jwks('machine', now() + interval '100 days')});
	is($session->query(q{select count(*) from (select fini.ipo_refdata('1234') from generate_series(1, 3)) r}), 3, '... and without a body');
	my $session_pid = $session->query('select pg_backend_pid()');
	$fini->sql(q{update applications set app_quantity = 400 where own_ref like 'A1%'});
	$fini->wait_done;
	my $worker = $fini->sql('select worker_pid from fini.status');
	$fini->wait_for(q{select worker_state = 'idle' from fini.status}, 'the worker to be idle');

	for my $process ([ 'the worker', $worker ], [ 'a session', $session_pid ])
	{
		my ($title, $pid) = @$process;
		my $memory = memory_of($pid) // skip 'the memory of other processes cannot be read', 1;
		cmp_ok(length $memory, '>', 1_000_000, "$title: " . int(length($memory) / 1_000_000) . ' MB of memory');
		holds_no_secret($title, $memory);
	}
	$session->quit;

	# the same of what the kernel writes down when the worker crashes: the token may be in there, since shared memory is
	my $limited = system("prlimit --pid $worker --core=unlimited 2>/dev/null");
	skip 'core files are not to be had here', 1 if $limited || slurp_file('/proc/sys/kernel/core_pattern') !~ /^core$/m;
	my $since = $fini->log_position;
	kill 'ABRT', $worker;
	$fini->wait_for(sub { $fini->log_since($since) =~ /database system is ready to accept connections/ }, 'the server to be back');
	my ($core) = glob "$pgdata/core*";
	ok(defined $core, 'the worker left a core file') or skip 'no core file', 1;
	my $memory = slurp_file($core);
	cmp_ok(length $memory, '>', 1_000_000, 'a core file: ' . int(length($memory) / 1_000_000) . ' MB');
	holds_no_secret('the core file', $memory);
	unlink $core;
	$fini->sql(q{update applications set app_quantity = 500 where own_ref like 'A1%'});
	$fini->wait_done;
	is($fini->sql(q{select count(*) from applications where own_ref like 'A1%' and fini_state = 'accepted'}), 11, 'the next worker goes on');
}

done_testing();

# what has been captured so far and the keys are not in a process's memory
sub holds_no_secret
{
	my ($title, $memory) = @_;
	my (%tokens, %sealed, %keys, %assertions);

	for my $line (split /\n/, slurp_file($captured))
	{
		my $request = $json->decode($line);
		my %headers = map { lc $_ => $request->{headers}{$_} } keys %{ $request->{headers} };
		$tokens{$1} = 1 if ($headers{authorization} // '') =~ /^Bearer (\S+)/;
		$assertions{$1} = 1 while $request->{body} =~ /assertion=([\w-]+\.[\w-]+\.[\w-]+)/g;
		$sealed{$1} = 1 while $request->{body} =~ /%enc_%([\w+\/]{44,}={0,2})/g;
		$keys{ $request->{key} } = 1 if $request->{key};
	}
	cmp_ok(index($memory, 'applications'), '>=', 0, "$title can be searched");
	# the token is in shared memory, which a core file has
	is(scalar(grep { index($memory, $_) >= 0 } keys %tokens), 0, "$title holds no token") if $title ne 'the core file';
	is(holds($memory, @pem), '', "$title holds no line of a key file");
	is(join(', ', map { $_->[0] } grep { index($memory, $_->[1]) >= 0 } @numbers), '', "$title holds no number of a private key");
	is(scalar(grep { index($memory, $_) >= 0 } keys %assertions), 0, "$title holds no assertion");
	is(scalar(grep { index($memory, $_) >= 0 || index($memory, (split /#/)[0]) >= 0 } keys %keys), 0, "$title holds no data key as text");
	is(scalar(grep { index($memory, decode_base64((split /#/)[0])) >= 0 } keys %keys), 0, "$title holds no data key");
	is(scalar(grep { index($memory, $_) >= 0 } keys %sealed), 0, "$title holds no sealed value");
	return;
}

# what a process can write to, its shared memory aside: that holds the token, as docs/security.md says
sub memory_of
{
	my ($pid) = @_;
	my $memory = '';
	open(my $maps, '<', "/proc/$pid/maps") or return undef;
	open(my $mem, '<:raw', "/proc/$pid/mem") or return undef;
	while (<$maps>)
	{
		my ($from, $to, $rights, $file) = /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)$/ or next;
		next unless $rights =~ /^rw.p/;
		no warnings 'portable';
		my ($at, $end) = (hex $from, hex $to);
		sysseek($mem, $at, 0) or next;
		while ($at < $end)
		{
			my $got = sysread($mem, my $piece, $end - $at < 1 << 20 ? $end - $at : 1 << 20) or last;
			$memory .= $piece;
			$at += $got;
		}
	}
	return $memory;
}
