# What the triggers cost those who insert: many rows at once, and one row with its commit.

package Part::Triggers;

use strict;
use warnings;

use FiniBench;
use FiniReport;
use Time::HiRes qw(time);

sub measure
{
	my ($world, $report, $size) = @_;

	$world->session->run(q{drop table if exists plain; select fini.create_subscription_table('plain')});
	bulk($world, $report, $size);
	single($world, $report, $size, 0);
	single($world, $report, $size, 1);
	return;
}

# so many rows in one statement; the worker is paused, so that the statement is all there is
sub bulk
{
	my ($world, $report, $size) = @_;
	my $session = $world->session;
	my $columns = $world->columns;
	my %took;

	$world->pause;
	for my $round (0 .. $size->{rounds})
	{
		for my $table ($round % 2 ? qw(plain applications) : qw(applications plain))
		{
			$world->clean_up;
			$session->run('truncate plain');
			$session->run('checkpoint');
			my $cpu = FiniBench::cpu_ns($session->backend);
			my $began = time;
			$session->run("insert into $table ($columns) select $columns from source limit $size->{rows}");
			my $took = time - $began;
			$cpu = FiniBench::cpu_ns($session->backend) - $cpu;
			# the first round makes room on disk
			next if $round == 0;
			push @{ $took{$table} }, $took;
			push @{ $took{"$table cpu"} }, $cpu / 1000 / $size->{rows};
		}
	}
	$world->clean_up;
	$session->run('truncate plain');
	$world->resume;
	$report->figure(name => 'bulk_insert', title => FiniReport::commas($size->{rows}) . ' rows in one insert, attached', unit => 's', values => $took{applications},
		peer => 'plain table', peers => $took{plain}, paired => 1, target => '<= 1.5');
	$report->figure(name => 'bulk_insert_cpu', title => "of which the session's CPU per row", unit => 'us', values => $took{'applications cpu'},
		peer => 'plain table', peers => $took{'plain cpu'}, paired => 1);
	return;
}

# single-row inserts, each with its commit, from one client; with the worker paused, and with it sending at FINI's ceiling
sub single
{
	my ($world, $report, $size, $sending) = @_;
	my %took;

	$world->setting('fini.rate_window', 1000) if $sending;
	$world->setting('fini.rate_limit', 8) if $sending;
	$sending ? $world->resume : $world->pause;
	for my $round (1 .. 2 * $size->{rounds})
	{
		for my $table ($round % 2 ? qw(plain applications) : qw(applications plain))
		{
			my $file = "$world->{work}/$table.pgbench";
			FiniBench::write_file($file, "\\set id random(1, 9000000000000000)\n"
				  . 'insert into ' . $table . " (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi)"
				  . " values ('S' || :id, '1234', 1000, 'HKID', 'HKG', 'C123456(9)', 'CHAN, Tai Man', '\xe9\x99\xb3\xe5\xa4\xa7\xe6\x96\x87');\n");
			my $said = FiniBench::command('pgbench', '-n', '-c', 1, '-M', 'prepared', '-T', $size->{pgbench}, '-f', $file);
			my ($tps) = $said =~ /^tps = ([\d.]+)/m or die "pgbench said: $said";
			push @{ $took{$table} }, 1000 / $tps;
			$world->wait_until_nothing_is_open if $sending;
		}
	}
	$report->figure(name => $sending ? 'single_insert_sending' : 'single_insert',
		title => 'single-row insert with commit, ' . ($sending ? 'worker sending' : 'worker paused'), unit => 'ms',
		values => $took{applications}, peer => 'plain table', peers => $took{plain}, paired => 1, $sending ? () : (target => '<= 1.2'));
	$world->clean_up;
	$world->session->run('truncate plain');
	$world->resume;
	$world->setting('fini.rate_limit', 0);
	$world->setting('fini.rate_window', undef);
	return;
}

1;
