# From commit to the first byte on the wire: single inserts, one after the other, nothing queued, a warm token, through a
# tap (tap.pl). The commit's time is the server's, taken before the commit is written to disk. As each goes alone and at
# once, this is also the proof that nothing waits for a batch to fill.

package Part::Latency;

use strict;
use warnings;

use FiniBench;
use IO::Select;
use IPC::Open2;
use Time::HiRes qw(sleep);

my $tap;

sub measure
{
	my ($world, $report, $size) = @_;
	my $url = $world->sandbox->url;
	my $pid = open2(my $from_tap, my $to_tap, $^X, "$world->{here}/tap.pl", $world->sandbox->port);
	$tap = $pid;
	chomp(my $port = readline $from_tap // '');
	die "no tap\n" if $port !~ /^\d+$/;

	$world->clean_up;
	$world->setting('fini.token_url', "$url/openam/oauth2/eu/access_token");
	$world->setting('fini.base_url', "https://localhost:$port");
	my ($wire, @inserted) = insert_one_by_one($world, $size->{singles}, $from_tap);
	close $to_tap;
	waitpid $pid, 0;
	undef $tap;
	$world->setting('fini.base_url', undef);
	$world->setting('fini.token_url', undef);

	my (@to_wire, @to_claim);
	my $i = 0;
	for my $line ($world->session->run("select extract(epoch from pg_xact_commit_timestamp(x::xid)), extract(epoch from r.started_at)
		from unnest('{" . join(',', @inserted) . "}'::text[]) with ordinality u(x, n)
		join fini.submission s on s.own_ref = 'L' || n join fini.request r using (request_id) order by n"))
	{
		my ($committed, $claimed) = split /\t/, $line;
		$i++ while $i < @$wire && $wire->[$i] < $claimed;
		die "a request was not seen on the wire\n" if $i == @$wire;
		push @to_wire, 1000 * ($wire->[$i] - $committed);
		push @to_claim, 1000 * ($claimed - $committed);
	}
	die scalar(@to_wire) . " requests of $size->{singles}\n" if @to_wire != $size->{singles};

	my $p = \&FiniBench::percentile;
	$report->figure(name => 'latency_p50', title => "commit to first byte, $size->{singles} single inserts, p50", unit => 'ms', values => [ $p->(50, @to_wire) ], target_value => '<= 3');
	$report->figure(name => 'latency_p99', title => 'the same, p99', unit => 'ms', values => [ $p->(99, @to_wire) ], target_value => '<= 25');
	$report->figure(name => 'latency_max', title => 'the same, the longest', unit => 'ms', values => [ $p->(100, @to_wire) ]);
	$report->figure(name => 'claim_p50', title => 'of which commit to claim, p50', unit => 'ms', values => [ $p->(50, @to_claim) ]);
	$report->series(name => 'latency', points => [ map { [$_] } sort { $a <=> $b } @to_wire ]);
	$world->clean_up;
	return;
}

# times at which bytes of the client's passed the tap, and the transactions of the rows
sub insert_one_by_one
{
	my ($world, $singles, $from_tap) = @_;
	my $select = IO::Select->new($from_tap);
	my (@seen, @inserted);
	my $listen = sub {
		my ($direction, $when) = split ' ', readline($from_tap) // die "the tap ended\n";
		push @seen, $when / 1e6 if $direction eq '>';
		return $direction;
	};

	for my $n (-20 .. $singles)
	{
		@seen = () if $n == 1;
		my ($row) = $world->session->run("insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)"
			  . " values ('L$n', '1234', 1000, 'HKID', 'HKG', 'C123456(9)', 'CHAN, Tai Man') returning pg_current_xact_id()");
		push @inserted, $row if $n >= 1;
		1 until $listen->() eq '<';
		# let the worker settle and become idle again, at no fixed beat
		$world->wait_until_nothing_is_open;
		sleep 0.005 + rand(0.01);
		$listen->() while $select->can_read(0);
	}
	return (\@seen, @inserted);
}

END
{
	my $status = $?;
	if ($tap)
	{
		kill 'TERM', $tap;
		waitpid $tap, 0;
	}
	$? = $status;
}

1;
