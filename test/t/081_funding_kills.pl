# Whatever ends the worker while it confirms funding: every confirmation reaches FINI, changes it once, contradicts nothing.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 20, 'fini.request_timeout' => '5s' },
	gateway => [ '--rate-limit', 0 ],
	conf => 'restart_after_crash = on');
my $node = $fini->node;
my ($next, $changed) = (1, 0);

sub ref_of { return sprintf '%013d', $_[0] }
sub worker { return $fini->sql('select worker_pid from fini.status') }
sub server_is_back
{
	$fini->wait_for(sub { ($node->psql('postgres', 'select 1'))[0] == 0 }, 'the server to be back');
	return;
}

my %kill = (
	'worker terminated' => sub { $fini->sql('select pg_terminate_backend(worker_pid) from fini.status') },
	'worker killed' => sub { kill 'KILL', worker(); server_is_back() },
	'server stopped at once' => sub { $node->stop('immediate'); $node->start },
	'server stopped' => sub { $node->restart });

# when it dies: what the gateway is doing at that moment
my %moment = (
	'before processing' => { endpoint => 'funding/confirm', action => 'hang-before', ms => 2000 },
	'on its way' => { endpoint => 'funding/confirm', action => 'delay', ms => 500 },
	'after processing' => { endpoint => 'funding/confirm', action => 'hang-after', ms => 2000 },
	'while looking' => { endpoint => 'funding/query', action => 'hang-after', ms => 2000 });

for my $how (sort keys %kill)
{
	for my $when (sort keys %moment)
	{
		my @refs = map { ref_of($next++) } 1 .. 30;
		my $list = join ',', @refs;

		$fini->sandbox->funding(map { { transactionRef => $_, ipoID => '1234', preFundingStatus => '10' } } @refs);
		$fini->sql("select fini.refresh_funding('1234')");
		$fini->faults($moment{$when});
		my $before = $fini->stats->{faults}{ $moment{$when}{action} } // 0;
		$fini->sql("select fini.confirm_funding(('{$list}'::text[])[:15], '20'), fini.confirm_funding(('{$list}'::text[])[16:], '30')");
		$fini->wait_for(sub { ($fini->stats->{faults}{ $moment{$when}{action} } // 0) > $before }, "$when: the moment");
		$kill{$how}->();
		$fini->wait_for(q{select not exists (select from fini.funding_confirmation where state in ('queued', 'sending', 'unknown'))},
			"$how $when: to be settled", 60);

		is($fini->sql("select string_agg(distinct state, ' ') from fini.funding_confirmation where transaction_ref = any ('{$list}')"),
			'accepted', "$how $when: all accepted");
		my %at = map { $_->{transactionRef} => $_->{preFundingStatus} } @{ $fini->admin('GET', '/funding') };
		is(join(' ', map { $at{$_} } @refs), join(' ', ('20') x 15, ('30') x 15), "$how $when: FINI has them");
		is($fini->stats->{confirmed}, $changed += 30, "$how $when: each once");
	}
}
is($fini->stats->{contradicted}, 0, 'nothing was contradicted');
is($fini->sql(q{select count(*) from fini.funding where confirmation_state <> 'accepted' or pre_funding_status <> confirmation_status}), 0, 'both sides agree');

# the row that a session holds locked is settled when it is let go, and nothing else waits for it
{
	my @refs = map { ref_of($next++) } 1 .. 2;
	$fini->sandbox->funding(map { { transactionRef => $_, ipoID => '1234', preFundingStatus => '10' } } @refs);
	$fini->sql("select fini.refresh_funding('1234'); select fini.pause(); select fini.confirm_funding('{$refs[0]}', '20')");
	my $session = $node->background_psql('postgres');
	$session->query_safe('begin; select from fini.funding_confirmation where state = $$queued$$ for update;');
	$fini->sql("select fini.resume(); select fini.confirm_funding('{$refs[1]}', '20')");
	$fini->wait_for("select confirmation_state = 'accepted' from fini.funding where transaction_ref = '$refs[1]'", 'the other one');
	is($fini->sql("select confirmation_state from fini.funding where transaction_ref = '$refs[0]'"), 'queued', 'a locked row is passed over');
	$session->query_safe('rollback;');
	$session->quit;
	$fini->wait_for("select confirmation_state = 'accepted' from fini.funding where transaction_ref = '$refs[0]'", 'the row that was locked');
	is($fini->stats->{confirmed}, $changed += 2, 'and has its turn later');
}

done_testing();
