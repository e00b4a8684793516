# What the worker does besides claiming and settling submissions, refused by the database for a while: by somebody's trigger on
# a table of fini's, or by a lock. The worker stays, submissions go on, what is refused is told once and tried later each time;
# and when it is refused no more, everything ends as it should, counted on both sides.

use strict;
use warnings;

use FiniTest;
use Test::More;
use Time::HiRes qw(time);

my $fini = FiniTest->armed_cluster(
	settings => { 'fini.rate_limit' => 0, 'fini.batch_size' => 50, 'fini.request_timeout' => '3s', 'fini.max_attempts' => 20 },
	gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;
my ($cases, $next, $changed) = (0, 1, 0);
$ENV{PGOPTIONS} = '-c lock_timeout=30s';	# a test that fails while it holds a lock does not wait for itself

$fini->new_table('applications', 'beside');
# counts what it refuses, which no rollback takes back
$fini->sql(q{create sequence refused;
	create function refuse() returns trigger language plpgsql as $$ begin
		perform pg_catalog.nextval('public.refused'); raise exception 'not now'; end $$});

sub worker { return $fini->sql(q{select pid from pg_stat_activity where backend_type = 'fini worker' and datname = 'postgres'}) }
sub refused { return $fini->sql('select case when is_called then last_value else 0 end from refused') }
sub requests { my ($endpoint) = @_; return $fini->stats->{requests}{$endpoint} // 0 }
# a token that was asked for before a lock was waited for may be late: that is told, too, but is no refusal
sub lines { my ($log) = @_; my @lines = grep { !/^could not reach / } $fini->log_since($log) =~ /LOG: .*fini: (could not .*)/g; return @lines }
sub accepted { my ($table, $prefix, $n) = @_; return "select count(*) = $n from $table where own_ref like '$prefix%' and fini_state = 'accepted'" }

# a session with a lock that keeps all others from a table
sub lock_table
{
	my ($table) = @_;
	my $session = $node->background_psql('postgres');
	$session->query_safe("begin; lock table $table in access exclusive mode");
	return $session;
}

sub unlock { my ($session) = @_; $session->query_safe('commit'); $session->quit; return }

# says: the work that is refused	when: which rows of the table; or lock: all of it (locks_all: and with it all work)
# before, begin, meanwhile, end: what is done before the refusal begins, to be refused, while it is, and afterwards
# paused: no fini.resume() when it ends	each: how much is refused each time
sub refuses
{
	my ($what, $table, %case) = @_;
	subtest $what => sub {
		my $holder;

		eval { refused_steps($table, \%case, \$holder); 1 } or do { fail('went through'); diag $@ };
		unlock($holder) if $holder;
		$fini->sql("drop trigger if exists refuse on $table") if $case{when};
		$fini->clear_faults;
		$fini->sql('select fini.resume()');
	};
	return;
}

sub refused_steps
{
	my ($table, $case, $holder) = @_;
	my $worker = worker();
	my $beside = 'BESIDE' . ++$cases . '-';
	my $do = sub { my ($step) = @_; $case->{$step}->() if $case->{$step} };

	$do->('before');
	my $log = $fini->log_position;
	$fini->sql("alter sequence refused restart; create trigger refuse before insert or update on $table for each row when ($case->{when}) execute function refuse()") if $case->{when};
	$$holder = lock_table($table) if $case->{lock};
	$do->('begin');
	$fini->wait_for(sub { lines($log) || worker() ne $worker }, 'a refusal', 60);
	my $begin = time;
	like((lines($log))[0] // '', qr/^could not $case->{says}: /, 'the log tells of it');
	if ($case->{when})
	{
		$fini->wait_for(sub { refused() >= 5 * ($case->{each} // 1) || worker() ne $worker }, 'it to be tried again', 60);
		# 2.8 seconds at least from the first time
		cmp_ok(time - $begin, '>', 1, 'later each time');
	}
	if (!$case->{locks_all})
	{
		like($fini->sql('select last_error from fini.status'), qr/could not .*\(SQLSTATE (P0001|55P03)\)/, 'fini.status tells of it, too');
		$fini->insert_rows('beside', $beside, 5, '5678');
		$fini->wait_for(accepted('beside', $beside, 5), 'submissions to go on', 60);
	}
	$do->('meanwhile');
	is(scalar(lines($log)), 1, 'one line in the log');
	is(worker(), $worker, 'the worker stays');
	$fini->sql("drop trigger refuse on $table") if $case->{when};
	unlock($$holder) if $$holder;
	$$holder = undef;
	$fini->sql('select fini.resume()') if !$case->{paused};
	$do->('end');
	is(worker(), $worker, 'to the end');
	return;
}

# --- confirmations of funding ---

sub ref_of { return sprintf '%013d', $_[0] }
sub refs { return '{' . join(',', map { ref_of($_) } @_) . '}' }
sub fund
{
	my ($n) = @_;
	my @numbers = map { $next++ } 1 .. $n;
	$fini->sandbox->funding(map { { transactionRef => ref_of($_), ipoID => '1234', preFundingStatus => '10' } } @numbers);
	$fini->sql("select fini.refresh_funding('1234')");
	return @numbers;
}
sub confirm { return $fini->sql("select fini.confirm_funding('" . refs(@_) . "', '20')") }
sub funding_is { my ($state, @numbers) = @_; return "select bool_and(state = '$state') and count(*) = " . @numbers . q{ from fini.funding_confirmation where transaction_ref = any ('} . refs(@numbers) . "')" }
sub confirmed
{
	my ($changes, $attempts, @numbers) = @_;

	$fini->wait_for(funding_is('accepted', @numbers), 'confirmations to be accepted', 90);
	my %at = map { $_->{transactionRef} => $_->{preFundingStatus} } @{ $fini->admin('GET', '/funding') };
	is(join(' ', map { $at{ ref_of($_) } } @numbers), join(' ', ('20') x @numbers), 'FINI has them');
	is($fini->stats->{confirmed}, $changed += $changes, 'each once');
	is($fini->stats->{contradicted}, 0, 'nothing is contradicted');
	is($fini->sql(q{select max(attempts) from fini.funding_confirmation where transaction_ref = any ('} . refs(@numbers) . "')"), $attempts, "sent $attempts time(s)");
	return;
}

{
	my @numbers;
	my ($queries, $confirms);

	refuses 'the outcomes of confirmations', 'fini.funding_confirmation',
		when => q{new.state = 'accepted'}, says => 'settle confirmations of funding', paused => 1,
		before => sub { @numbers = fund(20); ($queries, $confirms) = map { requests("funding/$_") } qw(query confirm) },
		begin => sub { confirm(@numbers) },
		meanwhile => sub {
			is($fini->sql(funding_is('sending', @numbers)), 't', 'what was sent is known to have been');
			$fini->sql('select fini.pause()');
		},
		end => sub {
			# which is no sending
			confirmed(20, 1, @numbers);
			$fini->sql('select fini.resume()');
			is(requests('funding/confirm') - $confirms, 1, 'in one request');
			is(requests('funding/query') - $queries, 1, 'and they were not looked for again');
		};

	refuses 'what a look at funding has decided', 'fini.funding_confirmation',
		when => q{new.state = 'accepted'}, says => 'settle confirmations of funding',
		before => sub {
			@numbers = fund(20);
			$fini->sandbox->funding(map { { transactionRef => ref_of($_), preFundingStatus => '20' } } @numbers);
			$confirms = requests('funding/confirm');
		},
		begin => sub { confirm(@numbers) },
		end => sub { confirmed(0, 0, @numbers); is(requests('funding/confirm'), $confirms, 'and nothing was sent') };

	refuses 'that confirmations are in doubt', 'fini.funding_confirmation',
		when => q{new.state = 'unknown'}, says => 'settle confirmations of funding',
		before => sub { @numbers = fund(20); $confirms = requests('funding/confirm'); $fini->faults({ endpoint => 'funding/confirm', action => 'drop-after' }) },
		begin => sub { confirm(@numbers) },
		end => sub { confirmed(20, 1, @numbers); is(requests('funding/confirm') - $confirms, 1, 'and not sent again') };

	refuses 'that confirmations are sent', 'fini.funding_confirmation',
		when => q{new.state = 'sending'}, says => 'claim confirmations of funding',
		before => sub { @numbers = fund(20) },
		begin => sub { confirm(@numbers) },
		end => sub { confirmed(20, 1, @numbers) };
}

# --- looks for what is in doubt ---

refuses 'where the records of an IPO end', 'fini.look',
	lock => 1, says => '(read|note) where the records of an IPO end',
	begin => sub {
		$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after' });
		$fini->insert_rows('applications', 'END', 30);
	},
	meanwhile => sub { $fini->wait_for(accepted('applications', 'END', 30), 'them to be found all the same', 60) },
	end => sub { is($fini->sql(q{select max(attempts) from fini.submission where own_ref like 'END%'}), 1, 'sent once') };

{
	my ($queries, @numbers);

	refuses 'the records of a page', 'fini.submission',
		lock => 1, locks_all => 1, says => 'take a page of what is in doubt of IPO "1234"',
		before => sub {
			@numbers = fund(5);
			$fini->faults({ endpoint => 'subscriptions/add', action => 'drop-after' },
				{ endpoint => 'subscriptions/query', action => 'delay', ms => 1500 });
			$fini->insert_rows('applications', 'PAGE', 30);
			$fini->wait_for(sub { $fini->stats->{faults}{delay} }, 'a page to be under way');
			$queries = requests('subscriptions/query');
		},
		# each piece of work that needs the table waits for it once, and briefly from then on
		meanwhile => sub {
			confirm(@numbers);
			$fini->wait_for(funding_is('accepted', @numbers), 'something else to go on', 60);
		},
		end => sub {
			$fini->wait_for(accepted('applications', 'PAGE', 30), 'them to be found', 60);
			is($fini->sql(q{select max(attempts) from fini.submission where own_ref like 'PAGE%'}), 1, 'sent once');
			cmp_ok(requests('subscriptions/query') - $queries, '<=', 8, 'the page was not asked for in a loop');
			confirmed(5, 1, @numbers);
		};
}

# --- a request that cannot be sealed ---

refuses 'that a request is set aside', 'fini.request',
	when => q{new.state = 'found_out'}, says => 'set aside request \w+',
	before => sub { $fini->sql('select fini.pause()') },
	begin => sub {
		$fini->insert_rows('applications', 'DEEP', 7);
		$fini->sql(q{update applications set id_type = null, id_country_jurisdiction = null, id_num = null, full_name_eng = null,
			id_list = jsonb_build_array(jsonb_build_object('idNum', 'A1', 'x', (repeat('[', 996) || repeat(']', 996))::jsonb)) where own_ref = 'DEEP3';
			select fini.resume()});
	},
	end => sub {
		$fini->wait_done(undef, 60);
		is($fini->sql(q{select string_agg(concat_ws(' ', own_ref, state, error_code), ', ') from fini.submission where own_ref like 'DEEP%' and state <> 'accepted'}),
			'DEEP3 rejected unsealable', 'the row at fault is rejected alone');
	};

# --- reconciling ---

sub start { my ($table, $ipo) = @_; return $fini->sql("select fini.start_reconcile('$table', '$ipo')") }
sub run_has { my ($run, $columns) = @_; return $fini->sql("select $columns from fini.reconcile_run where run_id = $run") }

{
	my ($run, $queries);

	$fini->sql(q{delete from applications where own_ref = 'DEEP3'});
	$fini->wait_done;
	refuses 'how far a run has come, and what went wrong with it', 'fini.reconcile_run',
		when => q{new.ipo_id = '1234' and new.pages + new.failures > 0}, says => 'note what went wrong with reconciliation run \d+', each => 2,
		begin => sub { $queries = requests('subscriptions/query'); $run = start('applications', '1234') },
		meanwhile => sub {
			cmp_ok(requests('subscriptions/query') - $queries, '<=', refused() / 2 + 1, 'pages are not asked for in a loop');
			my $other = start('beside', '5678');
			$fini->wait_for("select state = 'finished' and discrepancies = 0 from fini.reconcile_run where run_id = $other", 'another run to end', 60);
			is(run_has($run, 'state, phase, pages, failures'), 'running|pages|0|0', 'while this one is where it was');
		},
		end => sub {
			$fini->wait_for("select state = 'finished' from fini.reconcile_run where run_id = $run", 'the run to end', 60);
			is(run_has($run, 'discrepancies, matched, failures'), $fini->sql(q{select '0|' || count(*) || '|0' from applications}), 'with what it should find');
		};

	# between two pages, which are ten seconds apart
	refuses 'with which page a run goes on', 'fini.reconcile_run',
		lock => 1, says => 'take up reconciliation run \d+',
		before => sub {
			$fini->sql("alter system set $_") for 'fini.rate_limit = 10', q{fini.rate_window = '1s'}, 'fini.reconcile_share = 1';
			$node->reload;
			$fini->config(maxPageSize => 50);
			$fini->wait_for(q{select setting = '10' from pg_settings where name = 'fini.rate_limit'}, 'the settings');
			$run = start('applications', '1234');
			$fini->wait_for("select pages = 1 from fini.reconcile_run where run_id = $run", 'the first page', 60);
		},
		end => sub {
			$fini->sql("alter system reset $_") for qw(fini.rate_window fini.reconcile_share);
			$fini->sql('alter system set fini.rate_limit = 0');
			$node->reload;
			$fini->wait_for("select state = 'finished' from fini.reconcile_run where run_id = $run", 'the run to end', 90);
			is(run_has($run, 'discrepancies, matched, failures'), $fini->sql(q{select '0|' || count(*) || '|0' from applications}), 'with what it should find');
		};
}

# --- whether the extension is there ---

refuses 'a look at the catalogs', 'pg_extension',
	lock => 1, says => 'look for the extension',
	begin => sub { $fini->insert_rows('applications', 'WAKES', 1) },
	end => sub {
		$fini->insert_rows('applications', 'AFTER', 5);
		$fini->wait_for(accepted('applications', 'AFTER', 5), 'rows to be sent', 60);
	};

# --- claims of submissions, which know only in the middle what they are about to claim ---

refuses 'the claims of three groups, by a lock', 'fini.request',
	lock => 1, locks_all => 1, says => 'claim add operations of IPO "\\d+"',
	begin => sub { $fini->insert_rows('applications', "GROUP$_-", 5, $_) for qw(1234 3456 5678) },
	meanwhile => sub {
		my %waits;
		my $query = 'select extract(epoch from waitstart), extract(epoch from clock_timestamp() - waitstart) from pg_locks where not granted and waitstart is not null and pid = ' . worker();
		$fini->wait_for(sub {
			for (split /\n/, $fini->sql($query))
			{
				my ($start, $lasted) = split /\|/;
				$waits{$start} = $lasted;
			}
			return keys %waits >= 8 }, 'eight waits for the lock', 90);
		my @after_the_first = (map { $waits{$_} } sort { $a <=> $b } keys %waits)[3 .. 7];
		is(scalar(grep { $_ > 3 } @after_the_first), 0, 'once each group has waited in vain it is tried for a moment only') or diag "@after_the_first";
	},
	end => sub { $fini->wait_for(accepted('applications', 'GROUP', 15), 'the rows to be accepted', 60) };

is($fini->stats->{duplicates}, 0, 'nothing twice');
is($fini->stats->{duplicate_adds}, 0, 'no application twice');
$fini->sql('create view everything as select * from applications union all select * from beside');
is_deeply([ $fini->compare('everything') ], [], 'both sides agree');
unlike($fini->log_since(0), qr/terminated by signal|PANIC|TRAP:/, 'no process crashed');
done_testing();
