# IPOs: the local copy, its history, and reference data at the price of a few requests.

use strict;
use warnings;

use FiniTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ]);
my $sandbox = $fini->sandbox;
$fini->sql('select fini.disarm()');		# a look needs no arming

sub asked { return $fini->stats->{requests}{'ipos/refdata'} // 0 }
sub listed { return scalar @{ $fini->admin('GET', '/ipos') } }
sub refresh { my ($arguments) = @_; return $fini->sql('select fini.refresh_ipos(' . ($arguments // '') . ')') }

# the first call: all of the list, and as much reference data as one call may ask for
my $n = listed();
cmp_ok($n, '>', 10, 'more IPOs than one call asks the reference data of');
is(refresh(), $n, 'refresh_ipos says how many FINI lists');
is(asked(), 10, 'and asks for the reference data of ten');
is($fini->sql('select count(*), count(refdata), count(refdata_at), bool_and(first_seen = last_seen and changed_at = last_seen) from fini.ipo'), "$n|10|10|t", 'all are there');
is(refresh(), $n, 'the next call');
is(asked(), $n, 'goes on with the others');
is(refresh(), $n, 'and a third');
is(asked(), $n, 'has nothing to ask for');
is($fini->sql(q{select stock_code, isin, status, raw ->> 'stkCode', refdata ->> 'issuer', refdata ->> 'ipoID' from fini.ipo where ipo_id = '3456'}),
	'03456|HK0000034561|25|03456|Star Ferry Foods|3456', 'whole');
is($fini->sql('select count(*), count(distinct ipo_id), bool_and(seen_at = first_seen) from fini.ipo_status_history join fini.ipo using (ipo_id, status)'),
	"$n|$n|t", 'the history begins with the status that it was first seen in');

# a change
my ($first) = $fini->sql(q{select first_seen from fini.ipo where ipo_id = '3456'});
$sandbox->ipos({ ipoID => '3456', status => '45', refdata => { issuer => 'Star Ferry Foods', price => '7.10' } },
	{ ipoID => '7777', stkCode => '07777', isin => 'HK0000077777', status => '20', refdata => { issuer => 'Noon Gun Ltd', lots => [ 1, 2.5 ] } });
is(refresh(), $n + 1, 'one more');
is(asked(), $n + 2, 'reference data of what is new or has changed');
is($fini->sql(q{select status, refdata ->> 'price', changed_at = last_seen, first_seen from fini.ipo where ipo_id = '3456'}), "45|7.10|t|$first", 'the change is there');
is($fini->sql(q{select refdata -> 'lots' from fini.ipo where ipo_id = '7777'}), '[1, 2.5]', 'nested values, too');
is($fini->sql(q{select string_agg(status, ' ' order by seen_at) from fini.ipo_status_history where ipo_id = '3456'}), '25 45', 'and in the history');
$sandbox->ipos({ ipoID => '3456', status => '25' });
refresh();
is($fini->sql(q{select string_agg(status, ' ' order by seen_at) from fini.ipo_status_history where ipo_id = '3456'}), '25 45 25', 'so is the way back');
is($fini->sql(q{select count(*) from fini.ipo_status_history}), $n + 3, 'nothing else');

# one that goes
$fini->admin('DELETE', '/ipos?ipoID=7777');
is(refresh(), $n, 'one less');
is($fini->sql(q{select count(*) filter (where last_seen < (select max(last_seen) from fini.ipo)), count(*) from fini.ipo}), '1|' . ($n + 1), 'what is gone stays, with its last_seen');

# age, and limits
my $before = asked();
refresh(q{max_age => '0 s', refdata_limit => 4});
is(asked(), $before + 4, 'older than max_age, no more than refdata_limit');
refresh(q{max_age => '0 s', refdata_limit => 0});
is(asked(), $before + 4, 'none');
is($fini->sql('select count(*) from (select from fini.ipo order by refdata_at desc limit 4) r'), 4, 'the oldest first');

# trouble with reference data is a warning, and the list counts
$sandbox->ipos(map { { ipoID => "8$_", stkCode => "0008$_", isin => "HK000000008$_", status => '25', refdata => {} } } 1 .. 3);
$fini->faults({ endpoint => 'ipos/refdata', action => 'code-before', status => 400, code => '400101', message => 'no such IPO' });
my ($rc, $out, $err) = $fini->try_sql('select fini.refresh_ipos()');
is("$rc $out", '0 ' . ($n + 3), 'FINI refuses the reference data of one');
like($err, qr/WARNING:.*no reference data of IPO 83: FINI refused/, 'with a warning');
is($fini->sql(q{select count(*), count(refdata) from fini.ipo where ipo_id like '8_'}), '3|2', 'the others have theirs');
$before = asked();
refresh();
is(asked(), $before, 'the one is not asked for again at once');
refresh(q{max_age => '0 s', refdata_limit => 100});
is($fini->sql(q{select count(refdata) from fini.ipo where ipo_id like '8_'}), 3, 'but later');

$sandbox->ipos(map { { ipoID => "8$_", status => '30' } } 1 .. 3);
$fini->faults({ endpoint => 'ipos/refdata', action => 'status-before', status => 429, retryAfter => 1 });
($rc, $out, $err) = $fini->try_sql('select fini.refresh_ipos()');
is("$rc $out", '0 ' . ($n + 3), 'throttled in the middle');
like($err, qr/WARNING: +IP008: no more reference data this time/, 'with a warning');
is($fini->sql(q{select count(*) from fini.ipo where ipo_id like '8_' and status = '30' and refdata_at < changed_at}), 3, 'the list is up to date');
refresh();
is($fini->sql(q{select count(*) from fini.ipo where ipo_id like '8_' and refdata_at >= changed_at}), 3, 'and the next call goes on');

# an error in the list is an error, and changes nothing
$fini->faults({ endpoint => 'ipos/list', action => 'garbage' });
$fini->sql_fails('select fini.refresh_ipos()', qr/IP010/, 'no list, no refresh');

# two at once; an older look does not hide a newer one
$fini->faults({ endpoint => 'ipos/list', action => 'trickle', ms => 2 });
{
	my $trickles = $fini->stats->{faults}{trickle} // 0;
	my $slow = $fini->node->background_psql('postgres', on_error_stop => 0);
	$slow->query_until(qr/started/, "\\echo started\nselect fini.refresh_ipos();\n");
	$fini->wait_for(sub { ($fini->stats->{faults}{trickle} // 0) > $trickles }, 'the slow answer to have begun');
	$sandbox->ipos({ ipoID => '81', status => '60' });
	refresh();
	$slow->quit;
}
is($fini->sql(q{select status from fini.ipo where ipo_id = '81'}), '60', 'an older look does not hide a newer one');
is($fini->sql(q{select string_agg(status, ' ' order by seen_at) from fini.ipo_status_history where ipo_id = '81'}), '25 30 60', 'nor in the history');

# many pages, and a list that changes meanwhile holds an IPO twice: no error, each once
$sandbox->config(maxPageSize => 3);
is(refresh(), $n + 3, 'over several pages');

done_testing();
