# bench.pl [--quick] [--only NAME] --json FILE: the measurements of `make bench`, on a stage (see test/stage.sh).
#
# What is measured, against what, and how to read it: docs/performance.md. Subject and peer take turns, and a
# figure is the median over the rounds, since neither the machine nor its load is ours alone.

use strict;
use warnings;

use FiniBench;
use FiniReport;
use FiniSandbox;
use Getopt::Long;
use IO::Select;
use IPC::Open2;
use JSON::PP;
use MIME::Base64 qw(encode_base64url);
use Time::HiRes qw(sleep time);

my ($quick, $json_file, $only);
GetOptions('quick' => \$quick, 'json=s' => \$json_file, 'only=s' => \$only) && $json_file && !@ARGV
  or die "usage: bench.pl [--quick] [--only NAME] --json FILE\n";

my $stage = $ENV{FINI_STAGE} or die "FINI_STAGE is not set: call test/bench/run\n";
my $work = "$stage/work";
my $here = "$stage/tree/test/bench";
my $database = 'brokerage';
my $columns = 'own_ref, ipo_id, app_quantity, firm_id, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi, id_list';

# how much of everything; the bulk insert has its 100,000 rows either way
my %size = $quick
  ? (rows => 100_000, drain => 20_000, rounds => 3, pgbench => 3, singles => 200, seal => 0.4, calls => 300, window => 6, windows => 2)
  : (rows => 100_000, drain => 100_000, rounds => 5, pgbench => 10, singles => 1000, seal => 1, calls => 2000, window => 15, windows => 4);

my @parts = (
	[ seal => \&measure_seal ], [ bulk => \&measure_bulk_insert ], [ single => \&measure_single_inserts ], [ drain => \&measure_drain ],
	[ throttle => \&measure_throttle ], [ latency => \&measure_latency ], [ calls => \&measure_calls ]);
die "no part \"$only\": they are @{[ map { $_->[0] } @parts ]}\n" if defined $only && !grep { $_->[0] eq $only } @parts;
my ($server, $sandbox, $session, $worker, $tap);
my @private;
my $report = FiniReport->new;

$| = 1;
$SIG{$_} = sub { die "\nended by a signal\n" } for qw(INT TERM HUP);
$SIG{ALRM} = sub { die "\nnot done in time\n" };
alarm 3600;
main();

sub main
{
	my $began = time;
	my @machine = FiniBench::machine_seconds();

	progress('setting up');
	set_up();
	for my $part (@parts)
	{
		my ($name, $measure) = @$part;
		next if defined $only && $name ne $only;
		progress("measuring: $name");
		$measure->();
	}
	measure_memory();
	progress('');

	my @now = FiniBench::machine_seconds();
	my $ours = FiniBench::server_cpu_seconds($server->postmaster) + FiniBench::cpu_seconds($sandbox->pid) + own_seconds();
	$report->finish($json_file,
		quick => $quick ? JSON::PP::true : JSON::PP::false,
		seconds => sprintf('%.0f', time - $began) + 0,
		server => $server->session->value('show server_version'),
		cpus => scalar(grep { /^processor/ } split /^/, FiniBench::slurp('/proc/cpuinfo')),
		# work of other programs takes time away from ours: more than a few percent spoil the figures
		foreign_load => share($now[0] - $machine[0] - $ours, $now[1] - $machine[1]));
	return;
}

sub set_up
{
	$sandbox = FiniSandbox->new(dir => "$work/gateway", options => [ '--rate-limit', 0, '--token-lifetime', 600 ])->start;
	$server = FiniBench::Server->new(
		work => $work, database => $database,
		conf => "shared_preload_libraries = 'fini'\nmax_wal_size = 4GB\ncheckpoint_timeout = 1h\nshared_buffers = 256MB\n"
		  . "track_commit_timestamp = on\n"
		  . $sandbox->conf('fini.databases' => $database, 'fini.rate_limit' => 0));
	my $made = FiniBench::command('perl', "$stage/tree/test/data/applications", '--rows', $size{rows} + 15, '--rejected', "$work/rejected");
	FiniBench::write_file("$work/applications", $made);
	FiniBench::command('psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-v', "file=$work/applications", '-v', "rejected=$work/rejected",
		'-f', "$here/source.sql");
	FiniBench::command('psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', "$here/handrolled.sql");

	$session = $server->session;
	wait_for('the worker', sub { $worker = $session->value('select worker_pid from fini.status where token_expires_at is not null') },
		sub { $session->run(q{insert into applications select * from source limit 1}) });
	wait_for('the first row', sub { $session->value(q{select count(*) from applications where fini_state = 'accepted'}) });
	clean_up();
	return;
}

# fini.encrypt_fields over payloads of 1,000 entries against a bare loop of EVP calls over the same fields
sub measure_seal
{
	my @payloads = map { decode_json($_) } $session->run('select payload from payload order by n');
	my @names = qw(idType idCountryJurisdiction idNum fullNameEng fullNameChi);
	my $text = '';
	my $records = 0;

	for my $entry (map { @{ $_->{data} } } @payloads)
	{
		my @values = map { my $applicant = $_; grep { defined } @{$applicant}{@names} } @{ $entry->{idList} };
		utf8::encode($_) for @values;
		$text .= @values . "\n" . join('', map { length($_) . " $_\n" } @values);
		$records++;
	}
	FiniBench::write_file("$work/fields", $text);

	my (@ours, @floor);
	$session->run("select * from seal(0.1)");
	for (1 .. 2 * $size{rounds} - 1)
	{
		my ($n, $took) = split /\t/, ($session->run("select * from seal($size{seal})"))[0];
		push @ours, $n / $took;
		my ($floor_n, undef, undef, $floor_took) = split ' ', FiniBench::command("$stage/bin/evp", "$work/fields", 1000, $size{seal});
		push @floor, $floor_n / $floor_took;
	}
	$report->figure(name => 'seal', title => 'fini.encrypt_fields, batches of 1,000', unit => 'records/s', values => \@ours,
		peer => 'bare loop of EVP calls', peers => \@floor, target => '>= 0.60');
	return;
}

# 100,000 rows in one statement; the worker is paused, so that the statement is all there is
sub measure_bulk_insert
{
	my (@attached, @plain);

	pause();
	for my $round (0 .. $size{rounds})
	{
		for my $table (qw(plain applications))
		{
			clean_up();
			$session->run('truncate plain');
			$session->run('checkpoint');
			my $began = time;
			$session->run("insert into $table ($columns) select $columns from source limit $size{rows}");
			# the first round makes room on disk
			push @{ $table eq 'plain' ? \@plain : \@attached }, time - $began if $round > 0;
		}
	}
	clean_up();
	$session->run('truncate plain');
	resume();
	$report->figure(name => 'bulk_insert', title => FiniReport::commas($size{rows}) . ' rows in one insert, attached', unit => 's', values => \@attached,
		peer => 'plain table', peers => \@plain, target => '<= 1.5');
	return;
}

# single-row inserts, each with its commit, from one client; with the worker paused, and with it sending at FINI's ceiling
sub measure_single_inserts
{
	for my $sending (0, 1)
	{
		my (@attached, @plain);

		setting('fini.rate_window', 1000) if $sending;
		setting('fini.rate_limit', 8) if $sending;
		$sending ? resume() : pause();
		for my $round (1 .. $size{rounds})
		{
			for my $table ($round % 2 ? qw(plain applications) : qw(applications plain))
			{
				my $file = "$work/$table.pgbench";
				FiniBench::write_file($file, "\\set id random(1, 9000000000000000)\n"
					  . 'insert into ' . $table . " (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi)"
					  . " values ('S' || :id, '1234', 1000, 'HKID', 'HKG', 'C123456(9)', 'CHAN, Tai Man', '\xe9\x99\xb3\xe5\xa4\xa7\xe6\x96\x87');\n");
				my $said = FiniBench::command('pgbench', '-n', '-c', 1, '-M', 'prepared', '-T', $size{pgbench}, '-f', $file);
				my ($tps) = $said =~ /^tps = ([\d.]+)/m or die "pgbench said: $said";
				push @{ $table eq 'plain' ? \@plain : \@attached }, 1000 / $tps;
				wait_until_nothing_is_open() if $sending;
			}
		}
		$report->figure(name => $sending ? 'single_insert_sending' : 'single_insert',
			title => 'single-row insert with commit, ' . ($sending ? 'worker sending' : 'worker paused'),
			unit => 'ms', values => \@attached, peer => 'plain table', peers => \@plain, $sending ? () : (target => '<= 1.2'));
		clean_up();
		$session->run('truncate plain');
	}
	setting('fini.rate_limit', 0);
	setting('fini.rate_window', undef);
	return;
}

# a backlog, from fini.resume to the last outcome; between the rounds the peer of the worker's CPU
sub measure_drain
{
	my (%rate, %cpu, %server, %gateway, @handrolled, @user);

	for my $round (1 .. $size{rounds})
	{
		for my $limit (0, 480)
		{
			setting('fini.rate_limit', $limit);
			my $result = drain($size{drain});
			push @{ $rate{$limit} }, $size{drain} / $result->{seconds};
			push @{ $cpu{$limit} }, 1e6 * $result->{worker} / $size{drain};
			push @user, $result->{worker_user} / $result->{worker};
			push @{ $server{$limit} }, 1e6 * $result->{server} / $size{drain};
			push @{ $gateway{$limit} }, 1e6 * $result->{gateway} / $size{drain};
		}
		push @handrolled, handrolled();
	}
	setting('fini.rate_limit', 0);

	$report->figure(name => 'drain', title => 'backlog of ' . FiniReport::commas($size{drain}) . ', fini.rate_limit 0', unit => 'records/s', values => $rate{0});
	$report->figure(name => 'drain_480', title => 'the same, fini.rate_limit 480', unit => 'records/s', values => $rate{480},
		peer => "FINI's ceiling", peers => [8000]);
	$report->figure(name => 'worker_cpu', title => "worker's CPU per record", unit => 'us', values => [ @{ $cpu{0} }, @{ $cpu{480} } ],
		peer => 'PL/pgSQL, without HTTP', peers => \@handrolled, target => '<= 0.7');
	$report->figure(name => 'worker_user', title => 'of which in user mode', unit => '', values => \@user);
	$report->figure(name => 'server_cpu', title => "the whole server's CPU per record", unit => 'us', values => [ @{ $server{0} }, @{ $server{480} } ]);
	$report->figure(name => 'gateway_cpu', title => "the sandbox's CPU per record", unit => 'us', values => [ @{ $gateway{0} }, @{ $gateway{480} } ]);

	# an update that is not HOT inserts into every index
	$report->figure(name => 'hot_updates', title => 'updates of fini.submission that are HOT', unit => '', values => [ $session->value(
		q{select n_tup_hot_upd / greatest(n_tup_upd, 1)::float from pg_stat_all_tables where relid = 'fini.submission'::regclass}) ]);
	return;
}

sub drain
{
	my ($rows) = @_;

	pause();
	clean_up();
	$sandbox->reset;
	$session->run("insert into applications ($columns) select $columns from source limit $rows");
	$session->run('vacuum analyze applications, fini.submission, fini.queue');
	$session->run('checkpoint');

	my @cpu_before = FiniBench::cpu_seconds($worker);
	my $server_before = FiniBench::server_cpu_seconds($server->postmaster);
	my $gateway_before = FiniBench::cpu_seconds($sandbox->pid);
	my $began = $session->value('select extract(epoch from clock_timestamp())');
	resume();
	for (;;)
	{
		my $stats = $sandbox->stats;
		remember_memory();
		last if $stats->{accepted} + $stats->{rejected} >= $rows;
		die "the worker is gone\n" if !-d "/proc/$worker";
		sleep 0.05;
	}
	wait_until_nothing_is_open();
	my ($ended, $accepted) = split /\t/,
	  ($session->run(q{select extract(epoch from max(settled_at)), count(*) filter (where state = 'accepted') from fini.submission}))[0];
	die "$accepted of $rows records were accepted\n" if $accepted != $rows;
	my @cpu = FiniBench::cpu_seconds($worker);
	return {
		seconds => $ended - $began,
		worker => $cpu[0] - $cpu_before[0],
		worker_user => $cpu[1] - $cpu_before[1],
		server => FiniBench::server_cpu_seconds($server->postmaster) - $server_before,
		gateway => FiniBench::cpu_seconds($sandbox->pid) - $gateway_before };
}

# CPU per record, in microseconds, of what a user would write
sub handrolled
{
	$session->run(q{update handrolled set status = 'pending', record_id = null});
	$session->run('vacuum full handrolled');
	$session->run('checkpoint');
	my $peer = $server->session;
	my $before = FiniBench::cpu_seconds($peer->backend);
	my $rows = $peer->value('select handrolled(1000)');
	return 1e6 * (FiniBench::cpu_seconds($peer->backend) - $before) / $rows;
}

# with small batches the limit is what holds the worker up: how much of it is used?
sub measure_throttle
{
	my $limit = 8 * $size{window};
	my $batch = 10;
	my $windows = $size{windows};

	pause();
	clean_up();
	$sandbox->reset;
	$sandbox->config(rateLimit => $limit, rateWindow => $size{window});
	my $need = ($windows + 1) * $limit * $batch;
	$session->run("insert into applications ($columns) select $columns from source order by ipo_id limit $need");
	setting('fini.batch_size', $batch);
	setting('fini.rate_window', $size{window} * 1000);
	setting('fini.rate_limit', $limit);
	sleep $size{window} + 0.1;	# the window is empty
	resume();
	wait_for('the first request', sub { $session->value('select count(*) from fini.request') });
	sleep $windows * $size{window} + 0.2;
	my $used = $session->value("select count(*) from fini.request where started_at <
		(select min(started_at) from fini.request) + interval '1 second' * @{[ $windows * $size{window} ]}");
	pause();
	my $stats = $sandbox->stats;
	setting($_, undef) for qw(fini.batch_size fini.rate_window);
	setting('fini.rate_limit', 0);
	$sandbox->config(rateLimit => 0, rateWindow => 60);
	resume();
	wait_until_nothing_is_open();
	$report->figure(name => 'throttle', title => "requests in $windows windows of $size{window} s", unit => '', values => [$used],
		peer => 'allowed', peers => [ $windows * $limit ], target => '>= 0.97');
	$report->figure(name => 'throttle_refused', title => 'of these refused by the sandbox (429)', unit => '', values => [ $stats->{refusals}{429} // 0 ]);
	return;
}

# From commit to the first byte on the wire: single inserts, one after the other, through a tap.
# The commit's time is the server's, taken before the commit is written to disk.
sub measure_latency
{
	my $pid = open2(my $from_tap, my $to_tap, $^X, "$here/tap.pl", $sandbox->port);
	$tap = { pid => $pid, in => $to_tap };
	chomp(my $port = readline $from_tap // '');
	die "no tap\n" if $port !~ /^\d+$/;
	my @inserted;

	clean_up();
	setting('fini.token_url', "$sandbox->{url}/openam/oauth2/eu/access_token");
	setting('fini.base_url', "https://localhost:$port");
	my @seen;
	my $listen = sub {
		my ($direction, $when) = split ' ', readline($from_tap) // die "the tap ended\n";
		push @seen, $when / 1e6 if $direction eq '>';
		return $direction;
	};
	my $select = IO::Select->new($from_tap);
	for my $n (-20 .. $size{singles})
	{
		@seen = () if $n == 1;
		my ($row) = $session->run("insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)"
			  . " values ('L$n', '1234', 1000, 'HKID', 'HKG', 'C123456(9)', 'CHAN, Tai Man') returning pg_current_xact_id()");
		push @inserted, $row if $n >= 1;
		1 until $listen->() eq '<';
		# let the worker settle and become idle again, at no fixed beat
		wait_until_nothing_is_open();
		sleep 0.005 + rand(0.01);
		$listen->() while $select->can_read(0);
	}
	close $to_tap;
	waitpid $pid, 0;
	undef $tap;
	setting('fini.base_url', undef);
	setting('fini.token_url', undef);

	my @wire = sort { $a <=> $b } @seen;
	my (@to_wire, @to_claim);
	my $i = 0;
	for my $line ($session->run("select extract(epoch from pg_xact_commit_timestamp(x::xid)), extract(epoch from r.started_at)
		from unnest('{" . join(',', @inserted) . "}'::text[]) with ordinality u(x, n)
		join fini.submission s on s.own_ref = 'L' || n join fini.request r using (request_id) order by n"))
	{
		my ($committed, $claimed) = split /\t/, $line;
		$i++ while $i < @wire && $wire[$i] < $claimed;
		die "a request was not seen on the wire\n" if $i == @wire;
		push @to_wire, 1000 * ($wire[$i] - $committed);
		push @to_claim, 1000 * ($claimed - $committed);
	}
	die scalar(@to_wire) . " requests of $size{singles}\n" if @to_wire != $size{singles};
	$report->figure(name => 'latency_p50', title => "commit to first byte, $size{singles} inserts, p50", unit => 'ms',
		values => [ FiniBench::percentile(50, @to_wire) ], target_value => '<= 3');
	$report->figure(name => 'latency_p99', title => 'the same, p99', unit => 'ms',
		values => [ FiniBench::percentile(99, @to_wire) ], target_value => '<= 25');
	$report->figure(name => 'claim_p50', title => 'of which commit to claim, p50', unit => 'ms', values => [ FiniBench::percentile(50, @to_claim) ]);
	clean_up();
	return;
}

# fini.ipo_refdata against a bare loop of libcurl calls for the same thing
sub measure_calls
{
	my (@ours, @peer);
	token_form("$work/form");
	$session->value('select calls(10)');
	for (1 .. $size{rounds})
	{
		push @ours, $size{calls} / $session->value("select calls($size{calls})");
		my ($n, $took) = split ' ', FiniBench::command("$stage/bin/calls", $sandbox->keys_dir . '/ca.crt',
			"$sandbox->{url}/openam/oauth2/eu/access_token", "$work/form", "$sandbox->{url}/api/ipos/refdata/v1?ipoID=1234", $size{calls});
		push @peer, $n / $took;
	}
	$report->figure(name => 'calls', title => 'direct calls (fini.ipo_refdata)', unit => '1/s', values => \@ours,
		peer => 'bare libcurl loop', peers => \@peer, target => '>= 0.9');
	return;
}

# a token request as the worker would make it, in a file
sub token_form
{
	my ($file) = @_;
	my $url = "$sandbox->{url}/openam/oauth2/eu/access_token";
	my $keys = $sandbox->keys_dir;
	my $assertion = sub {
		my ($key, $issuer, $subject) = @_;
		my $text = join '.', map { encode_base64url(encode_json($_)) } { typ => 'JWT', alg => 'RS256' },
		  { aud => $url, iss => $issuer, sub => $subject, exp => int(time) + 300 };
		FiniBench::write_file("$work/assertion", $text);
		FiniSandbox::openssl('dgst', '-sha256', '-sign', $key, '-out', "$work/signature", "$work/assertion");
		return "$text." . encode_base64url(FiniBench::slurp("$work/signature"));
	};
	my $kind = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
	FiniBench::write_file($file, join '&', map { s/:/%3A/gr } "grant_type=$kind",
		'assertion=' . $assertion->("$keys/agent.pem", $FiniSandbox::AGENT_ISSUER, $FiniSandbox::AGENT_SUBJECT),
		"client_assertion_type=$kind",
		'client_assertion=' . $assertion->("$keys/machine.pem", $FiniSandbox::MACHINE_ID, $FiniSandbox::MACHINE_ID));
	return;
}

# at the end, so that the peaks are those of everything above
sub measure_memory
{
	remember_memory();
	my ($peak) = FiniBench::memory($worker);
	$report->figure(name => 'memory_private', title => "worker's private memory, peak", unit => 'MiB',
		values => [ (sort { $b <=> $a } @private)[0] / 1024 ], target_value => '<= 64');
	$report->figure(name => 'memory_resident', title => "worker's resident memory, shared included, peak", unit => 'MiB', values => [ $peak / 1024 ]);
	return;
}

sub remember_memory
{
	my (undef, $private) = FiniBench::memory($worker);
	push @private, $private;
	return;
}

sub pause
{
	$session->run(q{select fini.pause('measuring')});
	return;
}

sub resume
{
	$session->run('select fini.resume()');
	return;
}

# empty tables, as if they had never been attached; nothing is under way
sub clean_up
{
	$session->run(q{set session_replication_role = replica; truncate applications, fini.submission, fini.queue, fini.request;
		reset session_replication_role});
	return;
}

# at once, for all processes; undef: back to what it was
sub setting
{
	my ($name, $value) = @_;
	$session->run(defined $value ? "alter system set $name = '$value'" : "alter system reset $name");
	$session->run('select pg_reload_conf()');
	wait_for("setting $name", sub {
		return 1 if !defined $value;
		my $is = $server->session->value("select setting from pg_settings where name = '$name'");
		return defined $is && $is eq $value;
	});
	return;
}

sub wait_until_nothing_is_open
{
	wait_for('all outcomes', sub {
		$session->value(q{select not exists (select from fini.request where state in ('sending', 'unknown')) and not exists (select from fini.queue)}) eq 't';
	});
	return;
}

# until the condition gives true; nudge: tried once beforehand
sub wait_for
{
	my ($what, $condition, $nudge) = @_;
	my $deadline = time + 300;
	my $pause = 0.002;

	$nudge->() if $nudge;
	for (;;)
	{
		my $value = $condition->();
		return $value if $value;
		die "waited in vain for $what", $server->last_words if time > $deadline;
		sleep $pause;
		$pause = $pause * 1.5 > 0.1 ? 0.1 : $pause * 1.5;
	}
}

# CPU time of this program and the children that have ended
sub own_seconds
{
	my $sum = 0;
	$sum += $_ for times;
	return $sum;
}

sub share { my ($part, $whole) = @_; return $whole > 0 && $part > 0 ? 0 + sprintf('%.3f', $part / $whole) : 0 }

# on a terminal only: what is going on
sub progress
{
	my ($text) = @_;
	print STDERR "\r\e[K$text" . ($text eq '' ? '' : ' ...') if -t STDERR;
	return;
}

END
{
	my $status = $?;
	alarm 0;
	$SIG{$_} = 'IGNORE' for qw(INT TERM HUP PIPE);
	if ($tap)
	{
		kill 'TERM', $tap->{pid};
		waitpid $tap->{pid}, 0;
	}
	$? = $status;
}
