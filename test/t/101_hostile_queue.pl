# The same gateway, and what the worker's queue makes of it: the worker goes on, within bounded memory, and every
# row is delivered exactly once when the gateway behaves again.

use strict;
use warnings;

use FiniHostile;
use FiniTest;
use JSON::PP;
use Test::More;

# MB, see 100_hostile_gateway.pl
my $allowed = 700;

my $json = JSON::PP->new->utf8->canonical;
my $hostile = FiniHostile->new(settings => { 'fini.batch_size' => 10, 'fini.max_attempts' => 1000 });
my $fini = $hostile->fini;
my $sandbox = $hostile->sandbox;
$fini->wait_for(q{select worker_state = 'idle' from fini.status}, 'the worker');
my $worker = $fini->sql('select worker_pid from fini.status');
my $round = 0;

sub insert
{
	my ($n) = @_;
	$round++;
	$fini->sql(qq{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
		select 'Q$round-' || i, '1234', 100, 'PASSPORT', 'GB', 'P' || i, 'Name' from generate_series(1, $n) i});
	return;
}

# wait until the rows of this round stand, and look at both sides
sub delivered
{
	my ($title, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$fini->wait_done;
	is($fini->sql("select string_agg(distinct fini_state || coalesce(' ' || fini_error, ''), ', ') from applications where own_ref like 'Q$round-%'"),
		'accepted', "$title: accepted");
	my %records;
	$records{ $_->{ownRef} }{ $_->{recordID} } = 1 for grep { $_->{ownRef} =~ /^Q$round-/ } @{ $sandbox->dump(active => 1) };
	is(join(' ', map { "$_:" . keys %{ $records{$_} } } sort keys %records), join(' ', map { "Q$round-$_:1" } 1 .. $n), '... once each');
	my $peak = $hostile->peak($worker);
	cmp_ok($peak, '<', $allowed, "... within the memory allowed ($peak MB)");
	is($fini->sql('select worker_pid from fini.status'), $worker, '... by the same worker');
	return;
}

for my $case (FiniHostile::answers())
{
	my ($title, $plan) = @$case;

	# to the sending itself, and to the look that follows
	$hostile->hostile({ %$plan, path => 'subscriptions/add' }, { %$plan, path => 'subscriptions/query' });
	insert(3);
	delivered($title, 3);
	$hostile->behave;
}

# refusals that are too long to be kept
$hostile->hostile({ path => 'subscriptions/add', how => 'answer', status => 429, head => '{"code":"400999","message":"', body => 'no way ', times => 3_000_000, tail => '"}' });
insert(3);
delivered('too many requests, in 20 MB', 3);
ok($fini->sql('select max(length(message)) from fini.request') <= 400, 'little of it is kept');

# entries that are not ours, numbers that are another's, one record for two
for my $entries (
	'{"requestID":"1","ownRef":"YOURS","recordID":"1111111111111111A"},{"requestID":"9","recordID":"2222222222222222A"}',
	'{"requestID":"2","ownRef":"Q%d-1","recordID":"3333333333333333A"},{"requestID":"1","ownRef":"Q%d-2","recordID":"4444444444444444A"}',
	'{"requestID":1e0,"requestID":"x"},{"ownRef":"nobody","recordID":"5555555555555555A"},{"requestID":-1,"recordID":"A"},7,null,[]')
{
	(my $told = $entries) =~ s/%d/$round + 1/ge;
	$hostile->hostile({ path => 'subscriptions/add', how => 'answer', body => qq({"code":"0","message":"","data":[$told]}), after => JSON::PP::true });
	insert(2);
	delivered("an answer about $entries", 2);
	is($fini->sql(q{select count(*) from applications where record_id ~ '^(\d)\1{15}'}), 0, '... and no record is taken for ours that is not');
}

# a look that never ends is given up, and begun again
for my $plan ({ how => 'pages' }, { how => 'pages', round => 1 }, { how => 'pages', round => 3 }, { how => 'pages', data => [] })
{
	my $title = $json->encode($plan);
	my $from = $fini->log_position;
	$hostile->hostile({ path => 'subscriptions/add', how => 'drop', after => JSON::PP::true }, { %$plan, path => 'subscriptions/query', count => -1 });
	$hostile->seen;
	insert(2);
	if ($plan->{round} || $plan->{data})
	{
		$fini->wait_for(sub { $fini->log_since($from) =~ /pages of subscriptions\/query do not end/ }, "$title to be noticed");
	}
	else
	{
		$fini->wait_for(sub { $fini->sql(q{select calls > 200 from fini.stat_endpoint where endpoint = 'subscriptions/query'}) eq 't' }, 'a few hundred pages');
		is($fini->sql(qq{select count(*) from fini.submission where own_ref like 'Q$round-%' and state = 'unknown'}), 2, 'in doubt until they end');
		# others are not held up
		$fini->sql(q{select fini.set_deadline('3456', now() + '1 hour')});
		$fini->sql(q{insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
			values ('OTHER', '3456', 100, 'PASSPORT', 'GB', 'P9', 'Name')});
		$fini->wait_for(q{select fini_state = 'accepted' from applications where own_ref = 'OTHER'}, 'another IPO meanwhile');
		$hostile->hostile({ path => 'subscriptions/query', how => 'pages', round => 1, count => 5 });
	}
	$hostile->behave if $plan->{round} || $plan->{data};
	delivered("pages, $title", 2);
	$hostile->behave;
}

# the same for a reconciliation in the background
for my $plan ({ how => 'pages', round => 1 }, { how => 'pages', round => 3 }, { how => 'pages', data => [] })
{
	$hostile->hostile({ %$plan, path => 'subscriptions/query', count => -1 });
	my $run = $fini->sql(q{select fini.start_reconcile('applications', '1234')});
	$fini->wait_for("select failures > 0 or state = 'failed' from fini.reconcile_run where run_id = $run", 'the end of the pages to be missed');
	cmp_ok($fini->sql("select pages from fini.reconcile_run where run_id = $run"), '<', 20, 'reconciling notices ' . $json->encode($plan));
	$fini->sql("select fini.cancel_reconcile($run)");
	$hostile->behave;
}

# token and key
{
	my %bodies = (
		'a token of 1 MB' => [ 'access_token', { how => 'answer', head => '{"expires_in":30,"access_token":"', body => 'x', times => 1_000_000, tail => '"}' } ],
		'a token with a line break' => [ 'access_token', { how => 'answer', body => '{"expires_in":30,"access_token":"a\r\nX: 1"}' } ],
		'a token that comes a byte at a time' => [ 'access_token', { how => 'loris_body' } ],
		'a token nested 100,000 deep' => [ 'access_token', { how => 'answer', body => '[', times => 100_000 } ],
		'a token without end' => [ 'access_token', { how => 'endless_body' } ],
		'a key of nothing' => [ 'crypto/meta', { how => 'answer', body => '{"code":"0","data":{"publicKey":"","serverTimestamp":1}}' } ],
		'a key of 1 MB' => [ 'crypto/meta', { how => 'answer', head => '{"code":"0","data":{"serverTimestamp":1,"publicKey":"', body => 'AAAA', times => 250_000, tail => '"}}' } ],
		'a key without end' => [ 'crypto/meta', { how => 'endless_body' } ]);
	for my $title (sort keys %bodies)
	{
		my ($path, $plan) = @{ $bodies{$title} };
		$sandbox->admin('POST', $path eq 'access_token' ? '/expire-tokens' : '/rotate-key');
		$hostile->hostile({ %$plan, path => $path, count => 2 });
		insert(2);
		delivered($title, 2);
		is($fini->sql("select count(*) from fini.status where last_error ~ '\\d{100}|[^ -~]|x{50}'"), 0, '... and little is said of it');
	}
}

# somebody else in its place
for my $order ({ certificate => 'expired' }, { certificate => 'other' }, { certificate => 'stranger' }, { tls => '1.1' }, { tls => 'null' })
{
	my $title = join ' ', %$order;
	my $failed = $fini->sql(q{select coalesce(sum(errors), 0) from fini.stat_endpoint});
	$hostile->order(%$order);
	$hostile->seen;
	insert(2);
	$fini->wait_for("select sum(errors) > $failed from fini.stat_endpoint", "$title to be noticed");
	is(scalar($hostile->seen), 0, "$title: nothing is sent");
	is($fini->sql(q{select count(*) from fini.submission where state in ('unknown', 'failed', 'rejected')}), 0, '... and nothing is in doubt or given up');
	$hostile->behave;
	delivered($title, 2);
}

is($sandbox->stats->{duplicate_adds}, 0, 'no application came twice');
is($sandbox->stats->{duplicates}, 0, 'nor stands twice');
is_deeply([ $fini->compare('applications') ], [], 'both sides agree');
unlike($fini->log_since(0), qr/PANIC|terminated by signal|TRAP:/, 'nothing crashed');
done_testing();
