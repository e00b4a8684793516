# Reconciling at size: planted differences of every kind are found, and nothing else; by the worker, page by
# page, through a killed worker and a restart of the server; by a session; and then mended.
#
# FINI_RECONCILE_ROWS is the number of rows (make size: 1000000), a thousandth of them, but 20 at least, are
# planted of each kind. What is measured is printed. The gateway lists them shuffled, or as they were sent
# (FINI_RECONCILE_ORDER=record_id, and that of make size).

use strict;
use warnings;

use FiniSize;
use FiniTest;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $rows = $ENV{FINI_RECONCILE_ROWS} // 20000;
my $each = $rows / 1000 > 20 ? int($rows / 1000) : 20;
my $say = $ENV{FINI_RECONCILE_ROWS} ? \&diag : \&note;
my @personal = qw(idType idCountryJurisdiction idNum fullNameEng fullNameChi);

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ],
	conf => "max_wal_size = 4GB\nshared_buffers = 256MB\nautovacuum_naptime = 5s\nrestart_after_crash = on\n");
my $json = JSON::PP->new->utf8->canonical;

# waiting by polling fini.submission would go through all of it each time
sub settled { return $fini->wait_for(sub { $fini->sql("select fini.wait(timeout => '5 s')") eq 't' }, 'everything to be settled', 3600) }
sub worker_pid { return $fini->sql('select worker_pid from fini.status') }
sub queries { return $fini->stats->{requests}{'subscriptions/query'} // 0 }
sub applicant { my ($i) = @_; return { idType => 'PASSPORT', idCountryJurisdiction => 'GBR', idNum => sprintf('PX%07d', $i), fullNameEng => "SECRETNAME, Jane $i", fullNameChi => "\x{9673}$i" } }
sub own_ref { return sprintf 'R%08d', $_[0] }

# the largest private memory of a process while a query of another session says so
sub watch
{
	my ($pid, $condition, $what) = @_;
	my $peak = 0;
	$fini->wait_for(sub { my $now = eval { FiniSize::private_kb($pid) } // 0; $peak = $now if $now > $peak; return $fini->sql($condition) eq 't' }, $what);
	return $peak;
}

# discrepancies of a run that are not expected, and expected ones that are missing
sub unexpected
{
	my ($run) = @_;
	my $found = "select kind, own_ref, record_id, field, local, remote from fini.discrepancy where run_id = $run";
	my $expected = 'select kind, own_ref, record_id, field, local, remote from expected';
	return $fini->sql("(select '+' sign, * from ($found except all $expected) f) union all (select '-', * from ($expected except all $found) e) order by 2, 3 limit 20");
}

# --- rows that stand, and what is planted among them ---

my $began = time;
$fini->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
is(FiniSize::stand(sub { $fini->sql($_[0], timeout => 3600) }, $fini->sandbox, 'applications', qq{
	select i as n, 'R' || lpad(i::text, 8, '0') own_ref, '1234' ipo_id, 1000 + i % 7 * 500 app_quantity, null firm_id, 'PASSPORT' id_type,
		'GBR' id_country_jurisdiction, 'PX' || lpad(i::text, 7, '0') id_num, 'SECRETNAME, Jane ' || i full_name_eng, U&'\\9673' || i full_name_chi, null::jsonb id_list
	from generate_series(1, $rows) i}, order => $ENV{FINI_RECONCILE_ORDER} // 'md5(own_ref)'), $rows, 'all rows stand');
$say->(sprintf '%d rows stand after %.0f s', $rows, time - $began);

my @planted = qw(missing quantity personal firm status withdrawn duplicate record_id own_ref);
my $apart = int($rows / (@planted * $each));
my %plan;
for my $j (0 .. $each - 1)
{
	push @{ $plan{ $planted[$_] } }, $apart * (@planted * $j + $_) + 1 for 0 .. $#planted;
}
my %record = map { split /\|/ } split /\n/,
  $fini->sql('select own_ref, record_id from applications where own_ref = any (string_to_array(\'' . join(',', map { own_ref($_) } map { @$_ } values %plan) . '\', \',\'))');
my @expected;
sub patch { my ($ref, $fields) = @_; $fini->admin('PATCH', "/records?ownRef=$ref", $fields); return }
sub expected { push @expected, join "\t", map { $_ // '\N' } @_; return }

$fini->sql(q{select fini.invalidate('applications', string_to_array('} . join(',', map { own_ref($_) } @{ $plan{withdrawn} }) . q{', ','))});
settled();
for my $i (@{ $plan{missing} })
{
	my $ref = own_ref($i);
	$fini->admin('DELETE', "/records?ownRef=$ref");
	expected('missing_at_fini', $ref, $record{$ref}, undef, undef, undef);
}
for my $i (@{ $plan{quantity} })
{
	my $ref = own_ref($i);
	patch($ref, { appQuantity => '777' });
	expected('field_differs', $ref, $record{$ref}, 'appQuantity', 1000 + $i % 7 * 500, 777);
}
for my $n (0 .. $each - 1)
{
	my $i = $plan{personal}[$n];
	my $ref = own_ref($i);
	my $field = $personal[ $n % 5 ];
	patch($ref, { idList => [ { %{ applicant($i) }, $field => 'OTHER' } ] });
	expected('field_differs', $ref, $record{$ref}, $field, undef, undef);
}
for my $i (@{ $plan{firm} })
{
	my $ref = own_ref($i);
	patch($ref, { firmID => '00009' });
	expected('field_differs', $ref, $record{$ref}, 'firmID', '00000', '00009');
}
for my $i (@{ $plan{status} })
{
	my $ref = own_ref($i);
	patch($ref, { subFlowStatus => '20' });
	expected('status_differs', $ref, $record{$ref}, 'subFlowStatus', 'accepted', '20');
}
for my $i (@{ $plan{withdrawn} })
{
	my $ref = own_ref($i);
	patch($ref, { subFlowStatus => '10' });
	expected('status_differs', $ref, $record{$ref}, 'subFlowStatus', 'withdrawn', '10');
}
my @more;
for my $i (@{ $plan{duplicate} })
{
	my $ref = own_ref($i);
	my $id = sprintf '88%014dA', $i;
	push @more, { recordID => $id, ipoID => '1234', ownRef => $ref, appQuantity => '1000', firmID => '00000', idList => [ applicant($i) ] };
	expected('duplicate_at_fini', $ref, $id, 'recordID', $record{$ref}, $id);
}
for my $i (@{ $plan{record_id} })
{
	my $ref = own_ref($i);
	my $id = sprintf '77%014dA', $i;
	patch($ref, { recordID => $id });
	expected('record_id_differs', $ref, $id, 'recordID', $record{$ref}, $id);
}
for my $i (@{ $plan{own_ref} })
{
	my $ref = own_ref($i);
	patch($ref, { ownRef => "x$ref" });
	expected('field_differs', $ref, $record{$ref}, 'ownRef', $ref, "x$ref");
}
for my $n (1 .. $each)
{
	my $id = sprintf '99%014dA', $n;
	push @more, { recordID => $id, ipoID => '1234', ownRef => "foreign $n", appQuantity => '1000', firmID => '00000', idList => [ applicant($n) ] };
	expected('missing_locally', "foreign $n", $id, undef, undef, undef);
}
# in order: an invalidated record of nobody's
push @more, { recordID => '6666666666666666A', ipoID => '1234', ownRef => 'gone', subFlowStatus => '20', appQuantity => '1', idList => [ applicant(0) ] };
$fini->admin('POST', '/records', join '', map { $json->encode($_) . "\n" } @more);
my $file = $fini->sandbox->{dir} . '/expected.tsv';
FiniSandbox::write_file($file, join '', map { "$_\n" } @expected);
$fini->sql("create table expected (kind text, own_ref text, record_id text, field text, local text, remote text); copy expected from '$file'");
my $records = $rows - $each + @more;
my $pages = int(($records + 999) / 1000);

# --- the worker, killed at the half, the server restarted later ---

my $first = queries();
my $half = int($pages / 2);
my $third = int($pages * 3 / 4);
my %hang = (endpoint => 'subscriptions/query', action => 'hang-before', ms => 3600000);
$fini->faults({ %hang, skip => $half }, { %hang, skip => $third });
my $cpu = FiniSize::cpu(worker_pid());
$began = time;
my $run = $fini->sql(q{select fini.start_reconcile('applications', '1234')});
$fini->sql_fails(q{select fini.start_reconcile('applications', '1234')}, qr/ERROR:  55006: .*HINT:  Wait for it with fini\.wait_reconcile\($run\)/s, 'a second run says that one is under way');
$fini->sql_fails(q{select fini.reconcile('applications', '1234')}, qr/ERROR:  55006: /, 'in a session, too');
my $pid = worker_pid();
my $peak = watch($pid, "select pages = $half from fini.reconcile_run where run_id = $run", 'half of the pages');
is($fini->sql("select state, phase, pages, remote from fini.reconcile_run where run_id = $run"), "running|pages|$half|" . $half * 1000, 'at half');
$fini->wait_for(sub { ($fini->stats->{faults}{'hang-before'} // 0) > 0 }, 'the next page to be asked for');
my $used = FiniSize::cpu($pid) - $cpu;

subtest 'what is kept of a run under way names no person' => sub {
	my $text = $fini->sql('select s::text from fini.reconcile_seen s union all select c::text from fini.reconcile_candidate c union all select r::text from fini.reconcile_run r');
	cmp_ok(length $text, '>', 1000, 'there is something to look at');
	unlike($text, qr/SECRETNAME|PX\d{7}|\xE9\x99\xB3|OTHER/, 'and nothing personal in it');
	$say->($fini->sql(q{select format('kept at half: seen %s in %s rows, candidates %s in %s rows', pg_size_pretty(pg_total_relation_size('fini.reconcile_seen')),
		(select count(*) from fini.reconcile_seen), pg_size_pretty(pg_total_relation_size('fini.reconcile_candidate')), (select count(*) from fini.reconcile_candidate))}));
};

kill 'KILL', $pid;
# a psql that cannot connect while the server recovers may be gone before it has been told anything
$fini->wait_for(sub { my $now = eval { $fini->sql('select worker_pid from fini.status where worker_pid is not null') } // ''; $now =~ /^\d+$/ && $now != $pid }, 'another worker');
$fini->wait_for(sub { ($fini->stats->{faults}{'hang-before'} // 0) > 1 }, 'a page in the last half to be asked for');
my ($state, $reached) = split /\|/, $fini->sql("select state, pages from fini.reconcile_run where run_id = $run");
ok($state eq 'running' && $reached >= $third - 1 && $reached < $pages, "a killed worker: its successor goes on ($reached pages)");
$used += FiniSize::cpu(worker_pid());
$fini->node->restart;
$fini->clear_faults;
$fini->wait_for("select worker_pid is not null from fini.status", 'a worker');
$pid = worker_pid();
my $peak_later = watch($pid, "select state <> 'running' from fini.reconcile_run where run_id = $run", 'the run to end');
$used += FiniSize::cpu($pid);
$peak = $peak_later if $peak_later > $peak;
is($fini->sql("select state, error, pages from fini.reconcile_run where run_id = $run"), "finished||$pages", 'a restarted server: the run goes on to its end');
is(queries() - $first, $pages + 2, "$pages pages, and the two that were interrupted, were asked for");
is(unexpected($run), '', 'what was planted was found, and nothing else');
is($fini->sql("select local, remote, matched, discrepancies from fini.reconcile_run where run_id = $run"),
	join('|', $rows, $records, $rows - 8 * $each, scalar @expected) =~ s/\|(\d+)\|(\d+)$/'|' . ($rows - @planted * $each + $each) . "|$2"/er, 'the run says how many');
cmp_ok($peak, '<', 100 * 1024, "the worker's private memory stays below 100 MB ($peak kB)") unless $ENV{FINI_TEST_SLOW};
is($fini->sql('select (select count(*) from fini.reconcile_seen) + (select count(*) from fini.reconcile_candidate)'), 0, 'nothing else is kept');
$say->(sprintf 'worker: %d records in %d pages: %.1f s of its CPU, %.1f us a record, in %.0f s; at most %d kB private', $records, $pages, $used, $used * 1e6 / $records, time - $began, $peak);

# --- a session, with one implementation ---

my $session = $fini->node->background_psql('postgres', on_error_stop => 0);
my $backend = $session->query_safe('select pg_backend_pid()');
my $before = FiniSize::cpu($backend);
$first = queries();
$session->query_until(qr/on its way/, "\\echo on its way\ncreate table direct as select * from fini.reconcile('applications', '1234');\n");
$peak = watch($backend, q{select to_regclass('direct') is not null}, 'fini.reconcile');
is(queries() - $first, $pages, "a session asks for $pages pages");
cmp_ok($peak, '<', 100 * 1024, "the session's private memory stays below 100 MB ($peak kB)") unless $ENV{FINI_TEST_SLOW};
$say->(sprintf 'session: %.1f us of its CPU a record', (FiniSize::cpu($backend) - $before) * 1e6 / $records);
$session->quit;
is($fini->sql('select local, remote, matched, discrepancies from direct'),
	$fini->sql("select local, remote, matched, discrepancies from fini.reconcile_run where run_id = $run"), 'it comes to the same numbers');
is(unexpected($fini->sql('select run_id from direct')), '', 'and the same discrepancies');

# --- a dry run, the repair, and peace ---

$fini->sql(qq{create table planned as select * from fini.repair_plan($run, '{missing_at_fini,missing_locally,field_differs,status_differs,duplicate_at_fini,record_id_differs}')});
is($fini->sql('select kind, operation, count(*) from planned group by 1, 2 order by 1, 2'), join("\n",
	"duplicate_at_fini|invalidate|$each", 'field_differs|change|' . 3 * $each, "missing_at_fini|add|$each", "missing_locally|invalidate|$each",
	"record_id_differs|adopt|$each", "status_differs|add|$each", "status_differs|invalidate|$each"), 'the plan of a repair');
is($fini->sql(q{select count(*) from fini.submission where state in ('queued', 'sending')}), 0, 'a plan asks for nothing');
is($fini->sql(qq{select count(*) from fini.repair_plan($run, '{duplicate_at_fini}')}), $each, 'a plan of one kind');
my $from = $fini->sql('select max(id) from fini.submission');
is($fini->sql(qq{select fini.repair($run, '{missing_at_fini,missing_locally,field_differs,status_differs,duplicate_at_fini,record_id_differs}')}),
	$fini->sql('select count(*) from planned'), 'the repair does as much');
is($fini->sql(qq{select count(*) from planned p where operation <> 'adopt' and not exists (select from fini.submission s
	where s.id > $from and (s.own_ref, s.operation) = (p.own_ref, p.operation))}), 0, 'and the same');
settled();
is($fini->sql(qq{select count(*) from fini.submission where id > $from and state <> 'accepted'}), 0, 'all of it is accepted');
$run = $fini->sql(q{select fini.start_reconcile('applications', '1234')});
is($fini->sql("select fini.wait_reconcile($run)"), 't', 'a run can be waited for');
is($fini->sql("select kind, count(*) from fini.discrepancy where run_id = $run group by 1"), "field_differs|$each", 'only the own_refs that FINI has otherwise are left');
is($fini->sql("select count(*) from fini.repair_plan($run)"), 0, 'which no repair can mend');
is($fini->stats->{duplicates}, 0, 'no application stands twice');

# --- a restore: the outbox knows nothing of what stands, and the rows say so ---

$fini->sql(q{delete from fini.submission; delete from fini.tally; set session_replication_role = replica; update applications set record_id = null, fini_state = null}, timeout => 3600);
my $active = $rows - 2 * $each;	# but those withdrawn, and those that FINI has under another own_ref
$pid = worker_pid();
$began = time;
$cpu = FiniSize::cpu($pid);
$run = $fini->sql(q{select fini.start_reconcile('applications', '1234')});
$peak = watch($pid, "select state <> 'running' from fini.reconcile_run where run_id = $run", 'the run to end');
is($fini->sql("select kind, count(*) from fini.discrepancy where run_id = $run and own_ref like 'R%' group by 1"), "record_id_differs|$active", 'after a restore every record is one that its row does not know');
cmp_ok($peak, '<', 100 * 1024, "the worker's private memory stays below 100 MB ($peak kB)") unless $ENV{FINI_TEST_SLOW};
$say->(sprintf 'after a restore: %.1f us of the worker\'s CPU a record, in %.0f s; at most %d kB private', (FiniSize::cpu($pid) - $cpu) * 1e6 / $active, time - $began, $peak);
$began = time;
is($fini->sql("select fini.repair($run, '{record_id_differs}')", timeout => 7200), $active, 'repair adopts them');
$say->(sprintf '%d records adopted in %.0f s', $active, time - $began);
is($fini->sql(q{select count(*) from applications where fini_state = 'accepted' and record_id is not null}), $active, 'and the rows are told');
$fini->sql(q{select fini.pause('test')});
is($fini->sql(q{select fini.submit('applications')}), $rows - $active, 'and no other row counts as sent');
is($fini->stats->{duplicates}, 0, 'no application stands twice');

done_testing();
