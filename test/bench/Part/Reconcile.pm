# CPU per record of comparing a table with as many records at FINI, by the worker (fini.start_reconcile) and by a
# session (fini.reconcile).

package Part::Reconcile;

use strict;
use warnings;

use FiniBench;
use FiniReport;
use Time::HiRes qw(time);

sub measure
{
	my ($world, $report, $size) = @_;
	my $session = $world->session;
	my $rows = $size->{reconcile};
	my $title = FiniReport::commas($rows) . ' rows with as many records';

	$world->fill_many($rows);
	$world->drain($rows);
	$session->run('vacuum analyze applications');
	$world->take_memories;

	my @worker = FiniBench::cpu_seconds($world->worker);
	my $gateway = FiniBench::cpu_seconds($world->sandbox->pid);
	my $server = FiniBench::server_cpu_seconds($world->server->postmaster);
	my $began = time;
	my $run = $session->value(q{select fini.start_reconcile('applications', '1234')});
	$world->wait_for('the run to end', sub {
		$world->remember_memory;
		return $session->value("select state <> 'running' from fini.reconcile_run where run_id = $run") eq 't';
	}, undef, 3600);
	my $took = time - $began;
	my @now = FiniBench::cpu_seconds($world->worker);
	check($session, $run, $rows);
	my $per = sub { return [ 1e6 * $_[0] / $rows ] };
	$report->figure(name => 'reconcile', title => "reconcile $title, worker's CPU per record", unit => 'us', values => $per->($now[0] - $worker[0]));
	$report->figure(name => 'reconcile_user', title => 'of which in user mode', values => [ ($now[1] - $worker[1]) / ($now[0] - $worker[0]) ]);
	$report->figure(name => 'reconcile_server', title => "the whole server's CPU per record", unit => 'us',
		values => $per->(FiniBench::server_cpu_seconds($world->server->postmaster) - $server));
	$report->figure(name => 'reconcile_gateway', title => "the sandbox's CPU per record", unit => 'us', values => $per->(FiniBench::cpu_seconds($world->sandbox->pid) - $gateway));
	$report->figure(name => 'reconcile_rate', title => 'its speed, at the pace of fini.reconcile_share', unit => 'records/s', values => [ $rows / $took ]);
	$report->figure(name => 'reconcile_memory', title => "the worker's own memory, peak", unit => 'MiB', values => [ (sort { $b <=> $a } map { $_->[1] } $world->take_memories)[0] ], target_value => '<= 64');

	my $other = $world->server->session;
	my @before = FiniBench::cpu_seconds($other->backend);
	$run = $other->value(q{select run_id from fini.reconcile('applications', '1234')});
	@now = FiniBench::cpu_seconds($other->backend);
	check($session, $run, $rows);
	$report->figure(name => 'reconcile_session', title => "the same in a session, fini.reconcile, its CPU per record", unit => 'us', values => $per->($now[0] - $before[0]));
	$world->clean_up;
	return;
}

sub check
{
	my ($session, $run, $rows) = @_;
	my ($said) = $session->run("select state, local, remote, matched, discrepancies from fini.reconcile_run where run_id = $run");
	die "the run ended as $said\n" if $said ne "finished\t$rows\t$rows\t$rows\t0";
	return;
}

1;
