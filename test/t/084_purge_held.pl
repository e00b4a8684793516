# A purge that somebody holds open does not keep the worker busy; a purge ends when it is cancelled.

use strict;
use warnings;

use FiniTest;
use Test::More;
use Time::HiRes qw(time);

my $fini = FiniTest->armed_cluster(settings => { 'fini.rate_limit' => 0, 'fini.retention' => '1d' }, gateway => [ '--rate-limit', 0 ],
	conf => "track_functions = all\n");

sub calls { return $fini->sql(q{select coalesce(sum(calls), 0) from pg_stat_user_functions where schemaname = 'fini' and funcname = '_purge'}) }

$fini->sql(q{select fini.create_subscription_table('t'); select fini.attach('t'); create role clerk; alter table t owner to clerk;
	insert into t (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng)
	select 'R' || i, '1234', 100, 'PASSPORT', 'GBR', 'P1234567', 'DOE, Jane' from generate_series(1, 3) i});
is($fini->sql(q{select fini.wait(timeout => '3 min')}), 't', 'settled');

subtest 'held open' => sub {
	my $holder = $fini->node->background_psql($fini->database);
	$holder->query_safe(q{begin; select fini.purge('1 day')});
	is($fini->sql(q{select deleted || ' ' || coalesce(complete::text, 'kept out') from fini._purge('1 day', 1, false)}), '0 kept out', 'another one is told');

	# a worker that begins has not rested yet
	my $worker = $fini->sql('select worker_pid from fini.status');
	$fini->sql("select pg_terminate_backend($worker)");
	my $before = calls();
	$fini->wait_for(sub { calls() > $before }, 'the worker to try', 60);
	my ($first, $began) = (calls(), time);
	$fini->wait_for(sub { calls() >= $first + 2 }, 'the worker to try again', 60);
	my $tries = calls() - $first;
	cmp_ok($tries, '<=', (time - $began) + 2, "it tries once a second: $tries times");
	$holder->query_safe('rollback');
	$holder->quit;
	$fini->wait_for(sub { $fini->sql(q{select purged_at is not null from fini.purge_state}) eq 't' }, 'the worker to purge', 60);
};

subtest 'cancelled' => sub {
	$fini->sql(q{update fini.submission set settled_at = settled_at - interval '31 days';
		alter table t enable row level security; alter table t force row level security;
		create policy slow on t using (pg_sleep(120) is not null)});
	$fini->sql_fails(q{set statement_timeout = '1s'; select fini.purge('1 day')}, qr/57014: .*statement timeout/, 'while it reads a table');
	is($fini->sql('select count(*) from fini.submission'), 3, 'nothing has been deleted');
};

done_testing();
