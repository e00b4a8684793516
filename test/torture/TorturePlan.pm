# TorturePlan: what a run of the torture test is going to do, and what must have come of it.
#
# Everything follows from the seed: the transactions of each session, the weather of each round (how the
# gateway misbehaves) and its kill. Only the moments at which these meet are left to the machine.
#
# A transaction that a kill breaks off is tried again until it has committed (Torture looks it up in
# torture.done), so the final state follows from the plan alone, whatever happened on the way: want() is
# the oracle. Sessions own their rows, except for some that all of them add to.

package TorturePlan;

use strict;
use warnings;

our @IPOS = ('1234', '3456');
our @TABLES = ('applications', 'placements');
our $SHARED = 12;		# rows that every session adds to

# seed, kills, operations, sessions
sub new
{
	my ($class, %opt) = @_;
	my $self = bless { %opt, model => {}, inserts => {}, counter => {}, given => 0, journal => [] }, $class;

	$self->{rng} = TorturePlan::Random->new($opt{seed});
	$self->{stream} = [ map { TorturePlan::Random->new($opt{seed} * 1000 + $_ + 1) } 0 .. $opt{sessions} - 1 ];
	$self->{live} = [ map { [] } 1 .. $opt{sessions} ];
	$self->{gone} = [ map { [] } 1 .. $opt{sessions} ];
	$self->{number} = [ (0) x $opt{sessions} ];
	$self->{kills_planned} = $self->_plan_kills;
	return $self;
}

# the rows that all sessions add to, as one transaction
sub shared_rows
{
	my ($self) = @_;
	my @rows = map { $self->_new_row("shared-$_", $self->{rng}) } 1 .. $SHARED;

	$self->_apply_insert($_) for @rows;
	return join '', _insert(@rows);
}

# Round n: { kill, aim, delay (ms), faults, acts, transactions: one list a session }. To be asked for in
# order. A transaction: { session, number, sql, commits, operations, rejected: own_refs the gateway is to refuse }.
sub round
{
	my ($self, $n) = @_;
	my $rng = $self->{rng};
	my $kill = $self->{kills_planned}[ $n % @{ $self->{kills_planned} } ];
	my $share = int($self->{operations} * ($n + 1) / $self->{kills}) - int($self->{operations} * $n / $self->{kills});
	my @lists;

	for my $session (0 .. $self->{sessions} - 1)
	{
		my $left = int($share * ($session + 1) / $self->{sessions}) - int($share * $session / $self->{sessions});
		my @list;

		while ($left > 0)
		{
			my $transaction = $self->_transaction($session, $left);
			$left -= $transaction->{operations};
			push @list, $transaction;
		}
		push @lists, \@list;
	}
	return {
		%$kill, number => $n, delay => int $rng->below(1200), transactions => \@lists,
		faults => _weather($rng), acts => [ grep { $rng->below(8) < 1 } qw(rotate-key expire-tokens skew) ] };
}

# what must stand in the tables and at FINI: own_ref => { table, ipo_id, app_quantity, full_name_eng, id_num, rejected }
sub want { return $_[0]{model} }

# how often an own_ref was inserted for good; 0 or undef: it must never have reached FINI
sub inserts { return $_[0]{inserts} }
sub operations { return $_[0]{given} }

# the kills, a shuffled deal: three in ten fall on the whole server, one in five on a session
sub _plan_kills
{
	my ($self) = @_;
	my @victims = qw(server-immediate worker-kill worker-terminate server-kill backend-kill worker-kill
	  worker-terminate backend-terminate server-immediate worker-terminate);
	my %aims = (
		'worker' => [ qw(random before-claim after-claim sending-unprocessed sending-processed sending-late answered
			  before-settle-row before-settle-request after-settle finding-out random) ],
		'server' => [ qw(random before-claim after-claim sending-unprocessed sending-processed sending-late
			  before-settle-row before-settle-request after-settle finding-out) ],
		'backend' => [ qw(random in-commit) ]);
	my %dealt;
	my @kills;

	for my $n (0 .. $self->{kills} - 1)
	{
		my $victim = $victims[ $n % @victims ];
		my ($kind) = $victim =~ /^(\w+)-/;
		my $aims = $aims{$kind};
		# each victim goes round all aims, from a start of its own
		my $turn = $dealt{$victim}++ + length $victim;
		push @kills, { kill => $victim, aim => $aims->[ $turn % @$aims ] };
	}
	$self->{rng}->shuffle(\@kills);
	return \@kills;
}

# two to five faults, each on one endpoint and for a few requests
sub _weather
{
	my ($rng) = @_;
	my @any = (
		{ action => 'drop-before' }, { action => 'drop-after' }, { action => 'hang-before', ms => 2600 }, { action => 'hang-after', ms => 2600 },
		{ action => 'status-before', status => 503 }, { action => 'status-after', status => 503 }, { action => 'status-after', status => 500, body => 'oops' },
		{ action => 'status-after', status => 504 }, { action => 'status-before', status => 429, retryAfter => 1 }, { action => 'status-before', status => 401 },
		{ action => 'truncate' }, { action => 'garbage' }, { action => 'wrong-shape' }, { action => 'invalid-utf8' }, { action => 'trickle', ms => 1 },
		{ action => 'delay', ms => 300 }, { action => 'delay', ms => 2600 }, { action => 'oversize', bytes => 70_000_000 });
	my @entries = (
		{ action => 'drop-entries', n => 3 }, { action => 'extra-entries', n => 3 }, { action => 'reorder' }, { action => 'request-id-string' },
		{ action => 'request-id-number' }, { action => 'big-record-id' }, { action => 'code-after', status => 400, code => '411002', message => 'duplicate request ID' },
		{ action => 'code-before', status => 400, code => '411004', message => 'timestamp expired' },
		{ action => 'code-before', status => 400, code => '411007', message => 'wrong public key' },
		{ action => 'status-before', status => 403 }, { action => 'redirect' });
	my @sealed = ({ action => 'tamper' }, { action => 'truncate-ciphertext' }, { action => 'bad-prefix' });
	my @token = grep { $_->{action} !~ /oversize|trickle/ } @any;
	my @faults;

	for (1 .. 2 + $rng->below(4))
	{
		my $where = $rng->below(100);
		my ($endpoint, $from) =
			$where < 32 ? ('subscriptions/add', [ @any, @entries ])
		  : $where < 48 ? ('subscriptions/change', [ @any, @entries ])
		  : $where < 60 ? ('subscriptions/invalidate', [ @any, @entries ])
		  : $where < 84 ? ('subscriptions/query', [ @any, @sealed ])
		  : $where < 92 ? ('token', \@token)
		  : ('crypto/meta', \@token);
		push @faults, { %{ $rng->pick($from) }, endpoint => $endpoint, skip => $rng->below(4), count => 1 + $rng->below(2) };
	}
	return \@faults;
}

sub _transaction
{
	my ($self, $session, $left) = @_;
	my $rng = $self->{stream}[$session];
	my $number = ++$self->{number}[$session];
	my $commits = $rng->below(100) >= 8;
	my $isolation = $rng->below(100) < 8 ? ' isolation level repeatable read' : '';
	my $before_all = $self->_save($session);
	my $sql = "begin$isolation;\n";
	my ($operations, %rejected) = (0);

	for (1 .. 1 + $rng->below(3))
	{
		last if $operations >= $left;
		# part of it taken back
		if ($rng->below(100) < 10)
		{
			my $before = $self->_save($session);
			my ($text) = $self->_step($session, 1 + $rng->below(6), {});
			$self->_restore($session, $before);
			$sql .= "savepoint s;\n${text}rollback to s;\n" . ($rng->below(2) ? "release s;\n" : '');
		}
		my $size = 1 + int($rng->below(30) * $rng->below(100) / 100);
		$size = $left - $operations if $size > $left - $operations;
		my ($text, $n) = $self->_step($session, $size, \%rejected);
		$sql .= $text;
		$operations += $n;
	}
	if ($commits)
	{
		@{ $self->{journal} } = ();
		$sql .= "insert into torture.done values ($session, $number);\ncommit;\n";
		$self->{given} += $operations;
	}
	else
	{
		$sql .= "rollback;\n";
		$self->_restore($session, $before_all);
	}
	return {
		session => $session, number => $number, sql => $sql, commits => $commits,
		operations => $commits ? $operations : 0, rejected => [ sort keys %rejected ] };
}

# one step of a transaction on about n rows: its SQL, and how many operations it is
sub _step
{
	my ($self, $session, $n, $rejected) = @_;
	my $rng = $self->{stream}[$session];
	my $what = $rng->below(100);
	my ($live, $gone) = ($self->{live}[$session], $self->{gone}[$session]);

	if ($what < 40 || @$live < 20)
	{
		my @rows;
		for (1 .. $n)
		{
			my $bad = $rng->below(150) == 0;
			my $ref = sprintf 's%d-%s%d', $session, $bad ? 'refused-' : '', ++$self->{counter}{$session};
			my $row = $self->_new_row($ref, $rng);
			$row->{rejected} = $rejected->{$ref} = 1 if $bad;
			$self->_apply_insert($row);
			push @$live, $ref unless $bad;
			push @rows, $row;
		}
		return (join('', _insert(@rows)), $n);
	}
	if ($what < 70)
	{
		my @refs = _unique(map { $rng->pick($live) } 1 .. $n);
		return ($self->_update($rng, @refs), scalar @refs);
	}
	if ($what < 76)
	{
		# rows that every session adds to, always in the same order
		my @refs = sort(_unique(map { 'shared-' . (1 + $rng->below($SHARED)) } 1 .. 1 + $rng->below(3)));
		my $sql = '';
		for my $ref (@refs)
		{
			$self->_put($ref, { %{ $self->{model}{$ref} }, app_quantity => $self->{model}{$ref}{app_quantity} + 500 });
			$sql .= "update $self->{model}{$ref}{table} set app_quantity = app_quantity + 500 where own_ref = '$ref';\n";
		}
		return ($sql, scalar @refs);
	}
	if ($what < 88)
	{
		my @refs = _unique(map { $rng->pick($live) } 1 .. ($n > 8 ? 8 : $n));
		return ($self->_delete($session, @refs), scalar @refs);
	}
	if ($what < 94 && @$gone)
	{
		# deleted ones come again
		my @refs = _unique(map { $rng->pick($gone) } 1 .. ($n > 8 ? 8 : $n));
		return ($self->_again($session, $rng, @refs), scalar @refs);
	}

	# the same rows deleted and inserted again, or changed and deleted, in one transaction
	my @refs = _unique(map { $rng->pick($live) } 1 .. ($n > 4 ? 4 : $n));
	return ($self->_delete($session, @refs) . $self->_again($session, $rng, @refs), 2 * @refs) if $what < 97;
	return ($self->_update($rng, @refs) . $self->_delete($session, @refs), 2 * @refs);
}

sub _update
{
	my ($self, $rng, @refs) = @_;
	my %values;

	for my $ref (@refs)
	{
		my $row = { %{ $self->{model}{$ref} } };
		$self->_put($ref, $row);
		$row->{app_quantity} = 500 * (1 + $rng->below(1000));
		$row->{full_name_eng} = "Chan O'Neil $ref no. " . ++$row->{version};
		push @{ $values{ $row->{table} } }, sprintf '(%s, %d, %s)', _quote($ref), $row->{app_quantity}, _quote($row->{full_name_eng});
	}
	return join '', map {
		"update $_ t set app_quantity = v.q, full_name_eng = v.n from (values " . join(', ', @{ $values{$_} })
		  . ") v(r, q, n) where t.own_ref = v.r;\n"
	} sort keys %values;
}

sub _delete
{
	my ($self, $session, @refs) = @_;
	my (%by_table, %is_gone);

	for my $ref (@refs)
	{
		push @{ $by_table{ $self->{model}{$ref}{table} } }, _quote($ref);
		$self->_put($ref, undef);
		$is_gone{$ref} = 1;
	}
	$self->{live}[$session] = [ grep { !$is_gone{$_} } @{ $self->{live}[$session] } ];
	push @{ $self->{gone}[$session] }, @refs;
	return join '', map { "delete from $_ where own_ref in (" . join(', ', @{ $by_table{$_} }) . ");\n" } sort keys %by_table;
}

sub _again
{
	my ($self, $session, $rng, @refs) = @_;
	my %is_back = map { $_ => 1 } @refs;
	my @rows = map { $self->_new_row($_, $rng) } @refs;

	$self->_apply_insert($_) for @rows;
	$self->{gone}[$session] = [ grep { !$is_back{$_} } @{ $self->{gone}[$session] } ];
	push @{ $self->{live}[$session] }, @refs;
	return join '', _insert(@rows);
}

# an own_ref always has the same table and IPO
sub _new_row
{
	my ($self, $ref, $rng) = @_;
	my $digit = unpack('%32C*', $ref);

	return {
		own_ref => $ref, table => $TABLES[ $digit % 2 ], ipo_id => $IPOS[ int($digit / 2) % 2 ], app_quantity => 500 * (1 + $rng->below(1000)),
		full_name_eng => "Chan O'Neil $ref", full_name_chi => "\xe9\x99\xb3\xe5\xa4\xa7\xe6\x96\x87", id_num => 'P' . $rng->below(1_000_000_000), version => 0 };
}

sub _apply_insert
{
	my ($self, $row) = @_;
	$self->_put($row->{own_ref}, $row);
	$self->{inserts}{ $row->{own_ref} }++;
	return;
}

sub _insert
{
	my (@rows) = @_;
	my %values;

	for my $row (@rows)
	{
		push @{ $values{ $row->{table} } }, sprintf "(%s, '%s', %d, 'PASSPORT', 'GBR', '%s', %s, %s)", _quote($row->{own_ref}), $row->{ipo_id},
		  $row->{app_quantity}, $row->{id_num}, _quote($row->{full_name_eng}), _quote($row->{full_name_chi});
	}
	return map {
		"insert into $_ (own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi) values\n"
		  . join(",\n", @{ $values{$_} }) . ";\n"
	} sort keys %values;
}

# What a rollback has to undo: rows replaced since, and the session's lists. Numbers of own_refs are not
# given out twice.
sub _save
{
	my ($self, $session) = @_;
	return { since => scalar @{ $self->{journal} }, live => [ @{ $self->{live}[$session] } ], gone => [ @{ $self->{gone}[$session] } ] };
}

sub _restore
{
	my ($self, $session, $saved) = @_;
	while (@{ $self->{journal} } > $saved->{since})
	{
		my ($ref, $row, $inserts) = @{ pop @{ $self->{journal} } };
		if ($row) { $self->{model}{$ref} = $row; }
		else { delete $self->{model}{$ref}; }
		$self->{inserts}{$ref} = $inserts;
	}
	$self->{live}[$session] = $saved->{live};
	$self->{gone}[$session] = $saved->{gone};
	return;
}

# a row comes, changes or goes (undef)
sub _put
{
	my ($self, $ref, $row) = @_;
	push @{ $self->{journal} }, [ $ref, $self->{model}{$ref}, $self->{inserts}{$ref} ];
	if ($row) { $self->{model}{$ref} = $row; }
	else { delete $self->{model}{$ref}; }
	return;
}

sub _quote { my ($text) = @_; $text =~ s/'/''/g; return "'$text'" }
sub _unique { my %seen; return grep { !$seen{$_}++ } @_ }

# a stream of numbers of its own (splitmix64), the same on every machine
package TorturePlan::Random;

sub new
{
	my ($class, $seed) = @_;
	return bless { state => $seed }, $class;
}

sub below
{
	my ($self, $limit) = @_;
	my $z;
	{
		use integer;
		$z = $self->{state} += -7046029254386353131;
		$z = ($z ^ (($z >> 30) & ((1 << 34) - 1))) * -4658895280553007687;
		$z = ($z ^ (($z >> 27) & ((1 << 37) - 1))) * -7723592293110705685;
		$z = ($z ^ (($z >> 31) & ((1 << 33) - 1))) & 0x7FFFFFFF;
	}
	return int($z / 2147483648 * $limit);
}

sub pick
{
	my ($self, $list) = @_;
	return $list->[ $self->below(scalar @$list) ];
}

sub shuffle
{
	my ($self, $list) = @_;
	for my $i (reverse 1 .. $#$list)
	{
		my $j = $self->below($i + 1);
		@{$list}[ $i, $j ] = @{$list}[ $j, $i ];
	}
	return;
}

1;
