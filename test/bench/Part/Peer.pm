# The worker's CPU per record against what a user would write without fini (handrolled.sql), on one server, with the same
# rows, each with its HTTPS requests: the peer's to an nginx, the worker's to the sandbox. With the pgsql-http
# extension where the server has it, and with the stand-in of http_post.c everywhere.

package Part::Peer;

use strict;
use warnings;

use FiniBench;
use FiniNginx;
use Time::HiRes qw(time);

sub measure
{
	my ($world, $report, $size) = @_;
	my $session = $world->session;
	my $ca = $world->sandbox->keys_dir . '/ca.crt';
	my $nginx = FiniNginx->new(dir => "$world->{work}/nginx", keys => $world->sandbox->keys_dir) or die "there is no nginx: run test/setup bench\n";
	my %post = ('libcurl function' => "create function post_signed(ca text, url text, signature text, body text) returns text language c as '$world->{bin}/http_post', 'post_signed';
		create function post_signed(url text, signature text, body text) returns text language sql as \$\$ select post_signed('$ca', url, signature, body) \$\$");
	$post{'pgsql-http'} = "create extension http; select http_set_curlopt('CURLOPT_CAINFO', '$ca');
		create function post_signed(url text, signature text, body text) returns text language sql as \$\$
		select content from http(('POST', url, array[http_header('X-FINI-SIGNATURE', signature)], 'application/json', body)::http_request) \$\$"
	  if $session->value(q{select exists (select from pg_available_extensions where name = 'http')}) eq 't';

	$world->psql_file('handrolled.sql', "rows=$size->{drain}");
	my $rows = $session->value('select count(*) from handrolled');
	my $where = 'id_list is null';
	my (%peer, %rate, @ours, @server);
	for (0 .. $size->{rounds})
	{
		$world->fill($rows, $where);
		my $spent = $world->drain($rows);
		push @ours, 1e6 * $spent->{worker} / $rows;
		push @server, 1e6 * $spent->{server} / $rows;
		for my $http (sort keys %post)
		{
			my ($cpu, $seconds) = handrolled($world, $post{$http}, $ca, $nginx->url);
			push @{ $peer{$http} }, $cpu;
			push @{ $rate{$http} }, 1e6 / $seconds;
		}
	}
	$nginx->stop;

	for my $http (reverse sort keys %post)
	{
		# the real one counts, where it is
		my $counts = $http eq 'pgsql-http' || keys %post == 1;
		$report->figure(name => $counts ? 'worker_cpu' : 'worker_cpu_stand_in', title => "worker's CPU per record, one applicant each", unit => 'us', values => \@ours,
			peer => "PL/pgSQL, pgcrypto, $http", peers => $peer{$http}, paired => 1, target => '<= 0.7');
		$report->figure(name => $counts ? 'peer_rate' : 'peer_rate_stand_in', title => "the peer's speed with $http", unit => 'records/s', values => $rate{$http});
	}
	$report->figure(name => 'peer_server_cpu', title => "the whole server's CPU per record while the worker drains", unit => 'us', values => \@server);
	return;
}

# CPU and seconds per record, in microseconds, in a session of its own
sub handrolled
{
	my ($world, $post, $ca, $url) = @_;
	$world->session->run('vacuum full analyze handrolled');
	$world->session->run('checkpoint');
	my $session = $world->server->session;
	$session->run('begin');
	$session->run($post);
	# a connection that is warm, as the worker's is
	$session->value("select post_signed('$url', 'none', '{}')");
	my $before = FiniBench::cpu_ns($session->backend);
	my $began = time;
	my $rows = $session->value("select handrolled('$url', 1000)");
	my $seconds = time - $began;
	my $cpu = FiniBench::cpu_ns($session->backend) - $before;
	$session->run('rollback');
	return ($cpu / 1000 / $rows, 1e6 * $seconds / $rows);
}

1;
