# A very long backlog, and the same under a snapshot that is held for the whole time: does a record cost the same
# at the end as at the beginning, how much memory does the worker take, is the outbox ever read from end to end, and
# what becomes of its tables and indexes?

package Part::Size;

use strict;
use warnings;

use FiniBench;
use FiniReport;
use JSON::PP;

sub measure
{
	my ($world, $report, $size) = @_;
	my $rows = $size->{size};
	my $n = FiniReport::commas($rows);
	my $slice = FiniReport::commas($size->{slice});

	$world->session->run('vacuum analyze source');
	# millions of records, whose fields nobody will ask for
	$world->sandbox->config(forgetFields => JSON::PP::true);
	my $free = run($world, $size);
	my %compact = compact($world);
	my $holder = $world->server->session;
	$holder->run('begin isolation level repeatable read; select 1');
	my $held = run($world, $size);
	$holder->run('rollback');
	$world->sandbox->config(forgetFields => JSON::PP::false);

	$report->figure(name => 'size_queue', title => "queueing $n rows in transactions of 100,000", unit => 'records/s', values => [ $rows / $free->{fill} ]);
	$report->figure(name => 'size_rate', title => 'draining them, fini.rate_limit 0', unit => 'records/s', values => [ $rows / $free->{seconds} ]);
	$report->figure(name => 'size_cpu', title => "worker's CPU per record", unit => 'us', values => [ 1e6 * $free->{worker} / $rows ]);
	$report->figure(name => 'size_last', title => "last $slice", unit => 'us', values => [ $free->{slices}[-1][1] ],
		peer => "first $slice", peers => [ $free->{slices}[0][1] ], target => '<= 1.1');
	$report->figure(name => 'size_worst', title => "the dearest $slice", unit => 'us', values => [ (sort { $b <=> $a } map { $_->[1] } @{ $free->{slices} })[0] ],
		peer => "first $slice", peers => [ $free->{slices}[0][1] ]);
	$report->figure(name => 'size_memory', title => "worker's own memory, peak", unit => 'MiB', values => [ $free->{memory} ], target_value => '<= 64');
	$report->figure(name => 'size_seq_scans', title => 'sequential scans of tables of fini above 8 MB, both runs', values => [ $free->{scans} + $held->{scans} ], target_value => '<= 0');
	$report->figure(name => 'size_scanned', title => 'rows per record read by sequential scans of any of its tables', values => [ $free->{scanned} / $rows ]);
	for my $what (qw(table index))
	{
		$report->figure(name => "size_$what", title => "fini's outbox at the end, " . ($what eq 'table' ? 'tables' : 'indexes'), unit => 'bytes/record', values => [ $free->{$what} / $rows ],
			peer => 'after VACUUM FULL', peers => [ $compact{$what} / $rows ]);
	}
	$report->figure(name => 'size_dead', title => 'dead rows in it at the end', unit => 'per record', values => [ $free->{dead} / $rows ]);
	$report->figure(name => 'size_gateway', title => "the sandbox's memory", unit => 'bytes/record', values => [ 1024 * $free->{gateway_kb} / $rows ]);
	$report->figure(name => 'size_held_cpu', title => "under a held snapshot: worker's CPU per record", unit => 'us', values => [ 1e6 * $held->{worker} / $rows ],
		peer => 'without it', peers => [ 1e6 * $free->{worker} / $rows ], target => '<= 1.2');
	$report->figure(name => 'size_held_rate', title => 'draining', unit => 'records/s', values => [ $rows / $held->{seconds} ],
		peer => 'without it', peers => [ $rows / $free->{seconds} ], target => '>= 0.8');
	$report->figure(name => 'size_held_last', title => "its last $slice", unit => 'us', values => [ $held->{slices}[-1][1] ],
		peer => "first $slice", peers => [ $held->{slices}[0][1] ]);
	$report->figure(name => 'size_held_memory', title => "worker's own memory, peak", unit => 'MiB', values => [ $held->{memory} ], target_value => '<= 64');
	$report->figure(name => 'size_held_disk', title => "fini's outbox at the end", unit => 'bytes/record', values => [ ($held->{table} + $held->{index}) / $rows ],
		peer => 'without it', peers => [ ($free->{table} + $free->{index}) / $rows ]);

	for my $series ([ free => $free ], [ held => $held ])
	{
		my ($name, $run) = @$series;
		$report->series(name => "cpu_$name", points => $run->{slices});
		$report->series(name => "memory_$name", points => $run->{memories});
		$report->series(name => "disk_$name", points => $run->{disk});
		$report->series(name => "rate_$name", points => [ [ $rows, $rows / $run->{seconds} ] ]);
	}
	$world->clean_up;
	return;
}

sub run
{
	my ($world, $size) = @_;
	my $rows = $size->{size};
	my $session = $world->session;
	my $fill = $world->fill_many($rows);
	my (@cpu, @disk, $after);
	my $before = scans($session);
	my $next = 0;
	my $start = FiniBench::cpu_ns($world->worker);
	$world->take_memories;

	my $spent = $world->drain($rows, sub {
		my ($done) = @_;
		push @cpu, [ $done, FiniBench::cpu_ns($world->worker) - $start ];
		if ($done >= $next)
		{
			my ($table, $index) = sizes($world);
			push @disk, [ $done, $table / 1024**2, $index / 1024**2 ];
			$next += $rows / 100;
		}
		# not at the end, as what comes then, we ourselves scan
		$after //= scans($session) if $done >= 0.8 * $rows && $done < $rows;
	});
	push @cpu, [ $rows, FiniBench::cpu_ns($world->worker) - $start ];
	$after //= $before;
	my ($table, $index) = sizes($world);
	push @disk, [ $rows, $table / 1024**2, $index / 1024**2 ];
	my @memories = $world->take_memories;
	my ($gateway_kb) = FiniBench::slurp('/proc/' . $world->sandbox->pid . '/status') =~ /^VmRSS:\s*(\d+)/m;
	return {
		%$spent, fill => $fill, table => $table, index => $index, disk => \@disk, gateway_kb => $gateway_kb,
		scans => $after->{scans} - $before->{scans}, scanned => $after->{rows} - $before->{rows},
		dead => $session->value(q{select sum(n_dead_tup) from pg_stat_user_tables where schemaname = 'fini'}),
		memories => [ map { [ $_->[0] - $memories[0][0], $_->[1] ] } @memories ], memory => (sort { $b <=> $a } map { $_->[1] } @memories)[0],
		slices => slices($size->{slice}, $rows, @cpu) };
}

# [ records, CPU per record in the slice that ends there in microseconds ]
sub slices
{
	my ($slice, $rows, @cpu) = @_;
	my @slices;
	for (my $end = $slice; $end <= $rows; $end += $slice)
	{
		push @slices, [ $end, (at($end, @cpu) - at($end - $slice, @cpu)) / 1000 / $slice ];
	}
	return \@slices;
}

# the CPU time when so many records were done, between the samples on both sides
sub at
{
	my ($done, @cpu) = @_;
	my ($low, $high) = ([ 0, 0 ], undef);
	for my $sample (@cpu)
	{
		$high = $sample;
		last if $sample->[0] >= $done && $done > 0;
		$low = $sample if $sample->[0] <= $done;
	}
	return 0 if $done == 0;
	return $high->[1] if $high->[0] == $low->[0];
	return $low->[1] + ($high->[1] - $low->[1]) * ($done - $low->[0]) / ($high->[0] - $low->[0]);
}

# sequential scans so far, of tables of fini that are large now, and the rows read by those of all
sub scans
{
	my ($session) = @_;
	my ($row) = $session->run(q{select coalesce(sum(seq_scan) filter (where pg_relation_size(relid) > 8 << 20), 0), sum(seq_tup_read)
		from pg_stat_user_tables where schemaname = 'fini'});
	my ($scans, $rows) = split /\t/, $row;
	return { scans => $scans, rows => $rows };
}

# bytes of the outbox's tables (with what is toasted), and of their indexes
sub sizes
{
	my ($world) = @_;
	my $tables = join ', ', map { "'$_'::regclass" } @{ $world->{outbox} };
	return split /\t/, ($world->session->run("select sum(pg_table_size(t)), sum(pg_indexes_size(t)) from unnest(array[$tables]) t"))[0];
}

# the same once all that is dead is gone
sub compact
{
	my ($world) = @_;
	$world->session->run("vacuum full $_") for @{ $world->{outbox} };
	my ($table, $index) = sizes($world);
	return (table => $table, index => $index);
}

1;
