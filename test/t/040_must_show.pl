# What the main job must show: clock skew, short tokens, changes and withdrawals, rejections, key rotation, and
# nothing held while the network is awaited.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ]);

sub insert_rows
{
	my ($table, $prefix, $n, $quantity) = @_;
	$fini->sql(qq{
		insert into $table (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi)
		select '$prefix' || i, '1234', $quantity, 'PASSPORT', 'GB', 'P' || i, 'Chan O''Neil-"Tai\\Man" ' || i, '陳大文𠮷'
		from generate_series(1, $n) i});
	return;
}

sub new_table
{
	my ($table) = @_;
	$fini->sql("select fini.create_subscription_table('$table')");
	$fini->sql("select fini.attach('$table')");
	return;
}

# a clock 41 s off and tokens of 5 s
for my $skew (41_000, -41_000)
{
	my $table = 'skew' . ($skew > 0 ? '_ahead' : '_behind');

	$fini->admin('POST', '/reset');
	$fini->config(clockSkew => $skew, tokenLifetime => 5, latency => 150);
	$fini->admin('POST', '/expire-tokens');
	$fini->admin('POST', '/rotate-key');
	new_table($table);
	# in portions, so that the work outlives several tokens
	for my $portion (1 .. 50)
	{
		insert_rows($table, "$table-$portion-", 100, 1000);
		# while the queue is in use the token is replaced before it ends
		$fini->wait_for(sub { $fini->sql('select count(*) from fini.ipo_list()'); $fini->stats->{tokens} >= 3 }, 'the third token')
		  if $portion == 25;
	}
	$fini->wait_done(undef, 120);
	is($fini->sql("select count(*) from $table where fini_state = 'accepted' and record_id is not null"), 5000,
		"5000 rows accepted with a clock $skew ms off and tokens of 5 s");
	my @refused = grep { $_->{code} !~ /^(401|411007)$/ } @{ $fini->refusals };
	is_deeply(\@refused, [], 'no refusal but those of the token and key taken away') or diag explain \@refused;
}
$fini->config(clockSkew => 0, tokenLifetime => 30, latency => 0);

# from a fresh server no refusal of any kind
{
	my $fresh = FiniTest->armed_cluster(name => 'fresh', gateway => [ '--clock-skew', 41000, '--token-lifetime', 5, '--latency', 100 ]);
	$fresh->sql(q{select fini.create_subscription_table('applications'); select fini.attach('applications')});
	for my $portion (1 .. 50)
	{
		$fresh->sql(qq{
			insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
			select 'F$portion-' || i, '1234', 500, 'PASSPORT', 'GB', 'P' || i, 'Name ' || i from generate_series(1, 100) i});
		# while the queue is in use the token is replaced before it ends
		if ($portion % 10 == 0)
		{
			my $tokens = $fresh->stats->{tokens};
			$fresh->wait_for(
				sub { $fresh->sql('select count(*) from fini.ipo_list()'); $fresh->stats->{tokens} > $tokens }, 'the next token');
		}
	}
	$fresh->wait_done(undef, 120);
	is_deeply($fresh->states, { accepted => 5000 }, '5000 rows accepted against a clock 41 s off with tokens of 5 s');
	is_deeply($fresh->refusals, [], 'no refusal of any kind logged by the gateway');
	cmp_ok($fresh->stats->{tokens}, '>', 1, 'the token was replaced on the way');
	$fresh->node->stop;
	$fresh->sandbox->stop;
}

# changes and withdrawals
$fini->admin('POST', '/reset');
new_table('changes');
insert_rows('changes', 'C', 2000, 1000);
$fini->wait_done;
$fini->sql(q{update changes set app_quantity = 2000 where own_ref in (select 'C' || i from generate_series(1, 1000) i)});
$fini->sql(q{delete from changes where own_ref in (select 'C' || i from generate_series(1001, 1500) i)});
$fini->wait_done;
my $stats = $fini->stats;
is($stats->{changed}, 1000, '1000 changed');
is($stats->{invalidated}, 500, '500 invalidated');
is($stats->{duplicates}, 0, 'no duplicate');
is($stats->{out_of_order}, 0, 'nothing out of order');
my @records = @{ $fini->dump };
is(scalar(grep { my $h = $_->{_history}; grep({ $_->{op} eq 'change' } @$h) > 1 || grep({ $_->{op} eq 'invalidate' } @$h) > 1 } @records),
	0, 'each once');
is(scalar(grep { $_->{ownRef} =~ /^C(\d+)$/ && $1 <= 1000 && $_->{appQuantity} eq '2000' } @records), 1000, 'with the new quantity');
is($fini->sql(q{select count(*) from fini.submission where operation = 'invalidate' and state = 'accepted' and relation = 'changes'::regclass}),
	500, 'withdrawals accepted');
is_deeply([ $fini->compare('changes') ], [], 'both sides agree field by field');

# ten rejected inside a batch of 1000
$fini->admin('POST', '/reset');
new_table('rejections');
$fini->faults({ endpoint => 'subscriptions/add', action => 'reject-entries', ownRefs => [ map { 'R' . ($_ * 100) } 1 .. 10 ],
	code => '400777', message => 'fund shortage', count => 1 });
insert_rows('rejections', 'R', 1000, 1000);
$fini->wait_done;
is($fini->sql(q{select count(*) from rejections where fini_state = 'accepted'}), 990, 'the other 990 accepted');
is($fini->sql(q{select count(*) from rejections where fini_state = 'rejected' and fini_error like '400777: %' and record_id is null}), 10,
	'ten carry the code of FINI');
is($fini->sql(q{select count(*) from fini.submission where state = 'rejected' and error_code = '400777' and relation = 'rejections'::regclass}),
	10, 'also in the outbox');
$fini->sql(q{update rejections set app_quantity = 500 where fini_state = 'rejected'});
$fini->wait_done;
is($fini->sql(q{select count(*) from rejections where fini_state = 'accepted' and fini_error is null}), 1000, 'mended, they went again');
is($fini->stats->{active}, 1000, 'once each');

# the key rotated under load
$fini->admin('POST', '/reset');
$fini->config(latency => 20);
new_table('rotation');
for my $portion (1 .. 20)
{
	insert_rows('rotation', "K$portion-", 250, 1000);
	$fini->admin('POST', '/rotate-key') if $portion % 4 == 0;
}
$fini->wait_done;
is($fini->sql(q{select count(*) from rotation where fini_state = 'accepted'}), 5000, 'nothing rejected, nothing lost under key rotation');
$stats = $fini->stats;
is($stats->{active}, 5000, 'all there');
is($stats->{duplicates}, 0, 'none twice');
$fini->config(latency => 0);

# nothing held while the network is awaited
new_table('waiting');
$fini->faults({ endpoint => 'subscriptions/add', action => 'delay', ms => 3000, count => 1 });
insert_rows('waiting', 'W', 10, 1000);
$fini->wait_for(q{select sending = 10 from fini.status}, 'the request to be under way');
my $held = $fini->sql(q{
	select count(*) filter (where a.backend_xid is not null or a.backend_xmin is not null or a.xact_start is not null),
		(select count(*) from pg_locks l where l.pid = s.worker_pid and l.locktype <> 'virtualxid')
	from fini.status s join pg_stat_activity a on a.pid = s.worker_pid group by s.worker_pid});
is($held, '0|0', 'the worker has no transaction, snapshot or lock while it waits for the network');
is($fini->sql(q{select sending from fini.status}), 10, 'and it did wait');
$fini->wait_done;
is_deeply($fini->states(q{relation = 'waiting'::regclass}), { accepted => 10 }, 'accepted in the end');

done_testing();
