# fini.encrypt_fields over payloads of 1,000 entries, against a bare loop of EVP calls (evp.c) over the same fields; both
# by their CPU time.

package Part::Seal;

use strict;
use warnings;

use FiniBench;
use JSON::PP;

sub measure
{
	my ($world, $report, $size) = @_;
	my $session = $world->session;
	my $file = "$world->{work}/fields";

	$world->psql_file('seal.sql');
	write_fields($file, map { decode_json($_) } $session->run('select payload from payload order by n'));

	my (@ours, @floor);
	$session->run('select seal(0.1)');
	for (1 .. 2 * $size->{rounds} + 1)
	{
		my $cpu = FiniBench::cpu_ns($session->backend);
		my $n = $session->value("select seal($size->{seal})");
		push @ours, 1e9 * $n / (FiniBench::cpu_ns($session->backend) - $cpu);
		my ($floor_n, undef, undef, $floor_took) = split ' ', FiniBench::command("$world->{bin}/evp", $file, 1000, $size->{seal});
		push @floor, $floor_n / $floor_took;
	}
	$report->figure(name => 'seal', title => 'fini.encrypt_fields, batches of 1,000 (CPU)', unit => 'records/s', values => \@ours,
		peer => 'bare loop of EVP calls', peers => \@floor, paired => 1, target => '>= 0.60');
	return;
}

# the personal fields of the entries, in the form that evp.c reads
sub write_fields
{
	my ($file, @payloads) = @_;
	my @names = qw(idType idCountryJurisdiction idNum fullNameEng fullNameChi);
	my $text = '';

	for my $entry (map { @{ $_->{data} } } @payloads)
	{
		my @values = map { my $applicant = $_; grep { defined } @{$applicant}{@names} } @{ $entry->{idList} };
		utf8::encode($_) for @values;
		$text .= @values . "\n" . join('', map { length($_) . " $_\n" } @values);
	}
	FiniBench::write_file($file, $text);
	return;
}

1;
