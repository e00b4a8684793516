# TortureVerdict: compares what a plan asked for with the tables, the outbox and the gateway's records.
#
# The gateway keeps the history of every record, so not only the end is judged: no own_ref may ever have
# had two active records at one time (it counts these), and nothing may have happened to a record after its
# invalidation.

package TortureVerdict;

use strict;
use warnings;

use TorturePlan;

# counts by kind, and a list of sentences about what is wrong (the first few hundred of each kind)
sub new
{
	my ($class, $torture) = @_;
	my $self = bless { torture => $torture, count => { map { $_ => 0 } qw(lost twice order disagree record_ids record_ids_differ) }, wrong => [] }, $class;

	$self->{records} = $torture->sandbox->dump;
	$self->{stats} = $torture->sandbox->stats;
	$self->_read_tables;
	$self->_judge_tables;
	$self->_judge_records;
	$self->_judge_histories;
	$self->_judge_outbox;
	$self->_judge_reconciliation;
	return $self;
}

sub count { my ($self, $kind) = @_; return $self->{count}{$kind} }
sub wrong { return @{ $_[0]{wrong} } }

sub _complain
{
	my ($self, $kind, $text) = @_;
	push @{ $self->{wrong} }, "$kind: $text" if $self->{count}{$kind}++ < 300;
	return;
}

sub _read_tables
{
	my ($self) = @_;
	for my $table (@TorturePlan::TABLES)
	{
		for my $row ($self->{torture}->rows("select own_ref, ipo_id, app_quantity, full_name_eng, id_num, record_id, fini_state, fini_error from $table"))
		{
			my %row = (table => $table);
			@row{qw(own_ref ipo_id app_quantity full_name_eng id_num record_id fini_state fini_error)} = @$row;
			$self->{local}{ $row{own_ref} } = \%row;
		}
	}
	return;
}

# the users' own transactions: if these differ, nothing else can be judged
sub _judge_tables
{
	my ($self) = @_;
	my ($want, $local) = ($self->{torture}->plan->want, $self->{local});

	for my $ref (sort keys %$want)
	{
		my $row = $local->{$ref};
		if (!$row)
		{
			$self->_complain(disagree => "$ref is not in its table");
			next;
		}
		for my $field (qw(table ipo_id app_quantity full_name_eng id_num))
		{
			$self->_complain(disagree => "$ref has $field $row->{$field} in its table, was given $want->{$ref}{$field}") if $row->{$field} ne $want->{$ref}{$field};
		}
	}
	$self->_complain(disagree => "$_ is in a table, and should not be") for grep { !$want->{$_} } sort keys %$local;
	return;
}

# each live row has one active record that says what the row says; nothing else is active
sub _judge_records
{
	my ($self) = @_;
	my ($want, $local) = ($self->{torture}->plan->want, $self->{local});
	my (%active, %all);

	for my $record (@{ $self->{records} })
	{
		$all{ $record->{ownRef} }++;
		push @{ $active{ $record->{ownRef} } }, $record if $record->{subFlowStatus} eq '10';
	}
	for my $ref (sort keys %$want)
	{
		my @records = @{ delete $active{$ref} // [] };
		my ($plan, $row) = ($want->{$ref}, $local->{$ref} // {});
		my $state = $row->{fini_state} || 'none';

		if ($plan->{rejected})
		{
			$self->_complain(disagree => "$ref is to be refused, its state is $state ($row->{fini_error})") if $state ne 'rejected' && !_unheard($ref, $state, $row->{fini_error});
			$self->_complain(twice => "$ref is to be refused, and is at FINI") if @records;
			next;
		}
		$self->_complain(lost => "$ref is not at FINI, its state is $state ($row->{fini_error})") if !@records;
		$self->_complain(twice => "$ref is at FINI " . @records . ' times: ' . join(' ', map { $_->{recordID} } @records)) if @records > 1;
		$self->_complain(disagree => "$ref has the state $state ($row->{fini_error})") if @records && $state ne 'accepted';
		next if @records != 1;

		my $record = $records[0];
		$self->{count}{record_ids}++;
		$self->{count}{record_ids_differ}++ if $record->{recordID} ne ($row->{record_id} // '');
		my $person = $record->{idList}[0];
		my %pairs = (
			'record ID' => [ $record->{recordID}, $row->{record_id} ], 'ipoID' => [ $record->{ipoID}, $plan->{ipo_id} ],
			'appQuantity' => [ $record->{appQuantity}, $plan->{app_quantity} ], 'fullNameEng' => [ $person->{fullNameEng}, $plan->{full_name_eng} ],
			'idNum' => [ $person->{idNum}, $plan->{id_num} ], 'error' => [ '', $row->{fini_error} ]);
		for my $field (sort keys %pairs)
		{
			my ($there, $here) = map { $_ // '' } @{ $pairs{$field} };
			$self->_complain(disagree => "$ref has $field $there at FINI, $here here") if $there ne $here;
		}
	}
	for my $ref (sort keys %active)
	{
		$self->_complain(disagree => "$ref is at FINI (" . join(' ', map { $_->{recordID} } @{ $active{$ref} }) . '), and should not be');
	}
	for my $ref (sort keys %all)
	{
		my $inserts = $self->{torture}->plan->inserts->{$ref} // 0;
		$self->_complain(twice => "$ref was inserted $inserts times and has $all{$ref} records") if $all{$ref} > $inserts;
	}
	return;
}

sub _judge_histories
{
	my ($self) = @_;
	my %of;

	for my $record (@{ $self->{records} })
	{
		my @ops = map { $_->{op} } @{ $record->{_history} };
		my $ops = join ' ', @ops;
		$self->_complain(order => "$record->{recordID} of $record->{ownRef}: $ops") if $ops !~ /^add( change)*( invalidate)?$/;
		push @{ $of{ $record->{ownRef} } }, $record;
	}
	for my $ref (sort keys %of)
	{
		# record IDs grow, so the records are in the order of their coming
		my @records = sort { $a->{recordID} cmp $b->{recordID} } @{ $of{$ref} };
		for my $n (1 .. $#records)
		{
			# the gateway's clock jumps; that one came while another was active is what it counts as duplicate_adds
			$self->_complain(twice => "$ref has $records[$n]{recordID} although $records[$n - 1]{recordID} was never invalidated")
			  if !grep { $_->{op} eq 'invalidate' } @{ $records[ $n - 1 ]{_history} };
		}
	}
	return;
}

sub _judge_outbox
{
	my ($self) = @_;
	my $torture = $self->{torture};

	$self->_complain(lost => 'fini.wait did not end well') if !$torture->{drained};
	$self->_complain(lost => "$_->[2] operations ($_->[0]) are still $_->[1]")
	  for $torture->rows(q{select operation, state, count(*) from fini.submission where state in ('queued', 'sending', 'unknown') group by 1, 2 order by 1, 2});
	$self->_complain(lost => "$_->[0] operations are left in the queue")
	  for grep { $_->[0] } $torture->rows('select queued from fini.status');
	$self->_complain(lost => "$_->[0] requests are still $_->[1]")
	  for $torture->rows(q{select count(*), state from fini.request where state in ('sending', 'unknown') group by 2 order by 2});

	# an operation may give up only because its row has gone, or where its refusals went unheard; it may be rejected only
	# where the gateway was told to
	$self->_complain(lost => "$_->[1] of $_->[0] gave up: $_->[2] $_->[3]")
	  for grep { $_->[1] ne 'add' || !_unheard($_->[0], 'failed', $_->[2]) } $torture->rows(q{select own_ref, operation, error_code, error_message from fini.submission s where state = 'failed'}
		  . q{ and (error_code <> 'row_missing' or not exists (select from fini.submission l where l.own_ref = s.own_ref and l.operation = 'invalidate' and l.id > s.id)) order by id});
	$self->_complain(disagree => "$_->[1] of $_->[0] was rejected: $_->[2] $_->[3]")
	  for $torture->rows(q{select own_ref, operation, error_code, error_message from fini.submission where state = 'rejected' and own_ref !~ '-refused-' order by id});
	$self->_complain(disagree => "$_->[1] of $_->[0] was not written back: $_->[2]")
	  for $torture->rows(q{select own_ref, operation, error_message from fini.submission where error_message like '%could not be written%' order by id});
	return;
}

# Both request IDs of an add that the gateway refuses can lose their answers. A second copy is told 411002, and no look finds
# anything: then it is given up, visibly, as FINI might only not show it. With a record of it that would never do.
sub _unheard
{
	my ($ref, $state, $error) = @_;
	return $ref =~ /-refused-/ && $state eq 'failed' && ($error // '') =~ /^not_found\b/;
}

# The extension's own comparison has to come to the same end. Records of one table are nothing to complain
# about for the other.
sub _judge_reconciliation
{
	my ($self) = @_;
	my $local = $self->{local};

	for my $table (@TorturePlan::TABLES)
	{
		for my $ipo (@TorturePlan::IPOS)
		{
			my ($run) = $self->{torture}->rows("select run_id, discrepancies from fini.reconcile('$table', '$ipo')");
			if (!$run)
			{
				$self->_complain(disagree => "reconciliation of $table with $ipo gives nothing");
				next;
			}
			for my $row ($self->{torture}->rows("select kind, own_ref, record_id, field from fini.discrepancy where run_id = $run->[0]"))
			{
				next if $row->[0] eq 'missing_locally' && $local->{ $row->[1] } && $local->{ $row->[1] }{table} ne $table;
				$self->_complain(disagree => "reconciliation: @$row");
			}
		}
	}
	return;
}

1;
