# fini.ipo_refdata in a loop against a bare loop of libcurl (calls.c), both with one kept-alive connection that is warm, in
# short turns: a round trip on the loopback interface is mostly the scheduler's doing, and what it does to one it does
# to the other a few milliseconds later. Turns are compared pair by pair.

package Part::Calls;

use strict;
use warnings;

use FiniBench;
use FiniSandbox;
use IPC::Open2;
use JSON::PP;
use MIME::Base64 qw(encode_base64url);

my $peer;

sub measure
{
	my ($world, $report, $size) = @_;
	my $session = $world->session;
	my $sandbox = $world->sandbox;

	$session->run(q{create or replace function calls(n int) returns float language plpgsql as $$
		declare
			began timestamptz := clock_timestamp();
		begin
			for i in 1 .. n loop
				perform fini.ipo_refdata('1234');
			end loop;
			return extract(epoch from clock_timestamp() - began);
		end $$});
	token_form($world, "$world->{work}/form");
	my $pid = open2(my $from_peer, my $to_peer, "$world->{bin}/calls", $sandbox->keys_dir . '/ca.crt',
		"$sandbox->{url}/openam/oauth2/eu/access_token", "$world->{work}/form", "$sandbox->{url}/api/ipos/refdata/v1?ipoID=1234");
	$peer = $pid;
	$to_peer->autoflush(1);

	my %take = (
		ours => sub {
			my $cpu = FiniBench::cpu_ns($session->backend);
			my $seconds = $session->value("select calls($_[0])");
			return ($seconds, (FiniBench::cpu_ns($session->backend) - $cpu) / 1e9);
		},
		peer => sub {
			print {$to_peer} "$_[0]\n";
			return split ' ', readline($from_peer) // die "the libcurl loop ended\n";
		});
	turns($report, $size, \%take, 'calls', '', target => '>= 0.9');
	$sandbox->config(latency => 5);
	turns($report, { %$size, calls => $size->{calls} / 5 }, \%take, 'calls_5ms', ', a gateway 5 ms away');
	$sandbox->config(latency => 0);

	close $to_peer;
	waitpid $pid, 0;
	undef $peer;
	return;
}

# subject and peer in turns, each leading every other time
sub turns
{
	my ($report, $size, $take, $name, $where, @target) = @_;
	my (%rate, %cpu);
	my $calls = $size->{calls};

	$_->($calls) for values %$take;
	for my $turn (1 .. 10 * $size->{rounds})
	{
		for my $who ($turn % 2 ? qw(ours peer) : qw(peer ours))
		{
			my ($seconds, $cpu) = $take->{$who}->($calls);
			push @{ $rate{$who} }, $calls / $seconds;
			push @{ $cpu{$who} }, 1e6 * $cpu / $calls;
		}
	}
	$report->figure(name => $name, title => "direct calls (fini.ipo_refdata)$where", unit => '1/s', values => $rate{ours},
		peer => 'bare libcurl loop', peers => $rate{peer}, paired => 1, @target);
	$report->figure(name => "${name}_cpu", title => "of which the session's CPU per call", unit => 'us', values => $cpu{ours},
		peer => 'bare libcurl loop', peers => $cpu{peer}, paired => 1);
	return;
}

# a token request as the worker would make it, in a file
sub token_form
{
	my ($world, $file) = @_;
	my $url = $world->sandbox->url . '/openam/oauth2/eu/access_token';
	my $keys = $world->sandbox->keys_dir;
	my $work = $world->{work};
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

END
{
	my $status = $?;
	if ($peer)
	{
		kill 'TERM', $peer;
		waitpid $peer, 0;
	}
	$? = $status;
}

1;
