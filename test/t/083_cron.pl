# pg_cron runs what a DBA would schedule, through background workers and through connections, as a role that is no
# superuser: each a plain statement, and the effects are there.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'pg_cron is not installed' unless FiniTest->cron_conf('postgres');

# what runs when the server starts, and what runs by the clock; a job is [ name, statement, as superuser ]
my @at_start = (
	[ 'IPOs', 'select fini.refresh_ipos()' ],
	[ 'funding', 'select fini.refresh_funding()' ],
	[ 'submit', q{select fini.submit('applications')} ],
	[ 'reconcile', q{select fini.reconcile('applications', '5678')} ],
	[ 'start_reconcile', q{select fini.start_reconcile('applications', '3456')} ],
	[ 'purge', q{select fini.purge('90 days')}, 1 ]);
my @by_the_clock = (
	[ 'submit what has come', q{select fini.submit('applications', '1234')} ],
	[ 'confirm', q{select fini.confirm_funding(array_agg(transaction_ref), '20') from fini.funding where ipo_id = '1234'} ]);
my @clusters = map { make($_) } qw(on off);

# a cluster with rows that wait, and with the right identity in the database's settings alone: a job that did not take
# them over would have another fingerprint than the worker, and get no token
sub make
{
	my ($background_workers) = @_;
	my $fini = FiniTest->armed_cluster(name => "cron_$background_workers",
		settings => { 'fini.rate_limit' => 0, 'fini.request_timeout' => '30s', 'fini.machine_id' => '00000000-0000-0000-0000-000000000000' },
		gateway => [ '--rate-limit', 0 ],
		conf => FiniTest->cron_conf('postgres', background_workers => $background_workers));

	$fini->node->append_conf('postgresql.conf', "cron.host = '@{[ $fini->node->host ]}'\n");
	$fini->sql(qq{
		alter database postgres set fini.machine_id = '$FiniSandbox::MACHINE_ID';
		create extension pg_cron;
		create role jobs login;
		select fini.grant_access('jobs', 'submitter');
		grant usage on schema cron to jobs;
		select fini.create_subscription_table('applications');
		select fini.attach('applications', live => false);});
	insert($fini, '3456', 'a');
	# something to purge: it was cancelled long ago, and its row has gone
	$fini->sql(q{select fini.pause();
		insert into applications (own_ref, ipo_id, app_quantity) values ('long ago', '9012', 1);
		select fini.submit('applications', '9012'), fini.cancel('applications', '{"long ago"}');
		delete from applications where own_ref = 'long ago';
		update fini.submission set created_at = now() - interval '100 days', settled_at = now() - interval '100 days' where own_ref = 'long ago';
		select fini.resume()});
	is($fini->sql(q{select state from fini.submission where own_ref = 'long ago'}), 'cancelled', "cron_$background_workers: something to purge");
	return { mode => "background workers $background_workers", fini => $fini, jobs => [ @at_start ] };
}

sub insert
{
	my ($fini, $ipo, $prefix) = @_;
	$fini->sql(qq{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select '$prefix' || i, '$ipo', 1000, 'PASSPORT', 'GBR', 'P$prefix' || i, 'DOE, Jane' from generate_series(1, 20) i});
	return;
}

sub schedule
{
	my ($cluster, $when, @jobs) = @_;
	$cluster->{fini}->sql(join '', map { my ($name, $sql, $superuser) = @$_;
		($superuser ? 'reset role; ' : 'set role jobs; ') . "select cron.schedule('$name', '$when', \$\$$sql\$\$); " } @jobs);
	return;
}

# every job has run, well
sub ran
{
	my ($cluster, $what, @jobs) = @_;
	my $fini = $cluster->{fini};
	my $names = join ',', map { "'$_->[0]'" } @jobs;
	my $runs = qq{(select distinct on (j.jobname) j.jobname, d.status, d.return_message, d.username from cron.job j join cron.job_run_details d using (jobid)
		where j.jobname in ($names) and d.end_time is not null order by j.jobname, d.runid) r};

	$fini->wait_for("select count(*) = @{[ scalar @jobs ]} from $runs", "$what: the jobs to have run", 150);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($fini->sql("select jobname, status, return_message from $runs where status <> 'succeeded'"), '', "$cluster->{mode}: $what ran");
	return;
}

# What runs when the server starts goes through background workers alone: pg_cron 1.4 begins such jobs before it is
# let in, and does not try again. By the clock takes up to a minute; a version that knows seconds does not take as long.
for my $cluster (@clusters)
{
	my $fini = $cluster->{fini};
	insert($fini, '1234', 'b');
	schedule($cluster, '@reboot', @{ $cluster->{jobs} }) if $cluster->{mode} =~ / on$/;
	$fini->node->restart;
	$fini->sql(q{select fini.refresh_funding('1234')});
	my ($major, $minor) = split /[.-]/, $fini->sql(q{select extversion from pg_extension where extname = 'pg_cron'});
	schedule($cluster, $major > 1 || $minor >= 5 ? '1 second' : '* * * * *', $cluster->{mode} =~ / on$/ ? () : @{ $cluster->{jobs} }, @by_the_clock);
	# on: too late for the start, so these have to wait for the clock
	insert($fini, '1234', 'c');
}
for my $cluster (@clusters)
{
	my ($fini, $mode) = @{$cluster}{qw(fini mode)};

	ran($cluster, 'what looks at FINI and submits', @{ $cluster->{jobs} });
	is($fini->sql('select count(*) from fini.ipo'), scalar @{ $fini->admin('GET', '/ipos') }, "$mode: refresh_ipos");
	is($fini->sql('select count(*) from fini.funding'), scalar @{ $fini->admin('GET', '/funding') }, "$mode: refresh_funding");
	is($fini->sql(q{select bool_and(finished_at is not null) from fini.reconcile_run where ipo_id = '5678'}), 't', "$mode: reconcile");
	$fini->wait_for(q{select count(*) >= 1 from fini.reconcile_run where ipo_id = '3456' and finished_at is not null}, "$mode: start_reconcile");
	is($fini->sql(q{select count(*) from fini.submission where own_ref = 'long ago'}), 0, "$mode: purge");
	is($fini->sql(q{select string_agg(distinct username, ' ') from cron.job_run_details where command like '%refresh%'}), 'jobs', "$mode: as a role that is no superuser");
}

for my $cluster (@clusters)
{
	my ($fini, $mode) = @{$cluster}{qw(fini mode)};

	$fini->wait_for(q{select count(*) = 60 from applications where fini_state = 'accepted'}, "$mode: the rows to be accepted", 150);
	$fini->wait_for(q{select confirmation_state = 'accepted' from fini.funding where ipo_id = '1234'}, "$mode: the confirmation", 150);
	ran($cluster, 'what is scheduled by the clock', @by_the_clock);
	is((grep { $_->{ipoID} eq '1234' } @{ $fini->admin('GET', '/funding') })[0]{preFundingStatus}, '20', "$mode: confirm_funding");
	is(scalar @{ $fini->dump(active => 1) }, 60, "$mode: submit");
	is($fini->stats->{duplicates}, 0, "$mode: one application, one record");
	is($fini->stats->{confirmed}, 1, "$mode: one confirmation");
}

# an error of a job is the job's alone
for my $cluster (@clusters)
{
	my $fini = $cluster->{fini};
	unlike($fini->log_since(0), qr/fini: .*(?:ERROR|PANIC)|terminated by signal/, "$cluster->{mode}: no harm done");
}

done_testing();
