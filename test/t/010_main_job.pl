# The main job: rows of an attached table go to FINI, outcomes come back, both sides agree.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster;

$fini->sql(q{select fini.create_subscription_table('applications')});
$fini->sql(q{select fini.attach('applications')});
$fini->sql(q{
	insert into applications (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi)
	select 'A' || i, '1234', 1000 * i, 'PASSPORT', 'HK', 'P' || i, 'Chan "Tai\Man" ' || i, '陳大文𠮷' from generate_series(1, 2500) i});
$fini->wait_done;

is($fini->sql(q{select count(*) from applications where fini_state = 'accepted' and record_id is not null}), 2500, 'all rows accepted');
my $stats = $fini->stats;
is($stats->{active}, 2500, 'all records at FINI');
is($fini->sql(q{select matched, discrepancies from fini.reconcile('applications', '1234')}), '2500|0', 'reconcile agrees');

done_testing();
