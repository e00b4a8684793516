# What is kept of a table between two uses says nothing any more when the table has changed.

use strict;
use warnings;

use FiniTest;
use Test::More;

my $fini = FiniTest->armed_cluster(databases => 'typed,parted', settings => { 'fini.rate_limit' => 0 }, gateway => [ '--rate-limit', 0 ]);
my $person = 'id_type, id_country_jurisdiction, id_num, full_name_eng';
my $values = q{'1234', 100, 'PASSPORT', 'GBR', 'P1234567', 'DOE, Jane'};

sub in_db { my ($db, $query) = @_; return $fini->sql($query, database => $db) }
sub settled { my ($db) = @_; return in_db($db, "select fini.wait(timeout => '3 min')") eq 't' || die "$db: not settled" }

subtest 'own_ref gets another type between two attachments' => sub {
	my $worker;
	in_db('typed', qq{create table t (own_ref integer primary key, ipo_id text not null, app_quantity bigint, id_type text, id_country_jurisdiction text,
		id_num text, full_name_eng text, record_id text, fini_state text, fini_error text);
		select fini.attach('t')});
	my $next = 1;
	for my $type ('integer', 'bigint', 'text', 'uuid')
	{
		in_db('typed', qq{select fini.detach('t', true); delete from t; alter table t alter own_ref type $type using }
			  . ($type eq 'uuid' ? 'gen_random_uuid()' : "own_ref::$type") . q{; select fini.attach('t')}) if $type ne 'integer';
		my $ref = $type eq 'uuid' ? 'gen_random_uuid()' : $type eq 'bigint' ? "'5000000001'" : "'$next'";
		in_db('typed', "insert into t (own_ref, ipo_id, app_quantity, $person) select $ref, $values");
		settled('typed');
		is(in_db('typed', q{select fini_state || ' ' || coalesce(fini_error, '-') from t}), 'accepted -', "$type: added, and told");
		in_db('typed', 'update t set app_quantity = 200');
		settled('typed');
		is(in_db('typed', q{select string_agg(operation || ' ' || state || coalesce(' ' || error_message, ''), ', ' order by id) from fini.submission where own_ref = (select own_ref::text from t)}),
			'add accepted, change accepted', "$type: changed");
		$next++;
		$worker //= in_db('typed', 'select worker_pid from fini.status');
	}
	is(in_db('typed', 'select worker_pid from fini.status'), $worker, 'all by one worker');
};

subtest 'a table that has become a partition keeps its bounds' => sub {
	in_db('parted', qq{select fini.create_subscription_table('leaf'); select fini.attach('leaf'); select fini.pause('until it is a partition')});
	in_db('parted', "insert into leaf (own_ref, ipo_id, app_quantity, $person) select 'P1', $values");
	in_db('parted', q{create table whole (like leaf) partition by list (fini_state);
		alter table whole attach partition leaf for values in (null);
		select fini.resume()});
	settled('parted');
	is(in_db('parted', q{select coalesce(fini_state, 'none') from leaf where own_ref = 'P1'}), 'none', 'an outcome that its bounds do not allow is not written');
	is(in_db('parted', q{select state || ' ' || error_code || ': ' || error_message from fini.submission}),
		'accepted write_back: the outcome could not be written to the table (SQLSTATE 23514)', 'but noted');
};

done_testing();
