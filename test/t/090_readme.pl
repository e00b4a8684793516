# What the README shows works as it is printed there.

use strict;
use warnings;

use File::Basename qw(dirname);
use FiniTest;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $readme = slurp_file(dirname(__FILE__) . '/../../README.md');
my $fini = FiniTest->new(databases => 'brokerage');
my $node = $fini->node;

# the indented block after the first line that matches
sub block
{
	my ($after) = @_;
	my ($block) = $readme =~ /$after(?s:.*?)\n\n((?: {4}.*\n|\n(?= {4}))+)/ or die "no block in the README after $after\n";
	return $block =~ s/^ {4}//gmr;
}

# settings: each is known, and nothing that has no default is left out
my @settings = block(qr/\*\*3\. Settings\*\*/) =~ /^(fini\.\w+) =/mg;
is($fini->sql("select string_agg(n, ' ') from unnest('{@{[ join ',', @settings ]}}'::text[]) n where current_setting(n, true) is null",
		database => 'postgres'), '', 'the settings of the quick start exist');
cmp_ok(scalar @settings, '>=', 7, 'and are all there');

# registering: what the commands print is what an independent reading of the keys gives
for my $command (grep { /psql/ } split /\n/, block(qr/\*\*4\. Register/))
{
	my ($statement) = $command =~ /-A?t?c "(.*)"/ or die "not understood: $command\n";
	$node->safe_psql('postgres', 'create database brokerage') if $statement =~ /create extension/;
	my $answer = $node->safe_psql('brokerage', $statement);
	next unless $statement =~ /jwks\('(\w+)'/;
	my $profile = $1;
	my ($ours, $theirs) = (decode_json($answer), FiniSandbox::jwks($fini->sandbox->keys_dir . "/$profile.pem"));
	delete $_->{keys}[0]{exp} for $ours, $theirs;
	is_deeply($ours, $theirs, "the JWK set of the $profile profile");
}

# a table, and go
my $go = block(qr/\*\*5\. A table, and go/);
$node->safe_psql('brokerage', $go);
like($fini->sql(q{select fini_state, record_id from applications where own_ref = 'first'}), qr/^accepted\|\d{16}[OBA]$/,
	'the quick start\'s row is accepted');

# the example at the top
$node->safe_psql('brokerage', block(qr/comes back into the row/));
is($fini->sql(q{select fini_state from applications where own_ref = '2024-000123'}), 'accepted', 'the first example\'s row is accepted');
is_deeply([ $fini->compare('applications') ], [], 'both sides agree');

# a table with names of its own, and reconciling
$fini->sql('create table orders (client_ref text primary key, doc_no text, ipo_id text, app_quantity bigint, id_type text,
	id_country_jurisdiction text, full_name_eng text)');
my ($attach) = $readme =~ /`(fini\.attach\('orders'.*?\))`/;
$fini->sql("select $attach");
$fini->sql(q{insert into orders values ('o1', '123', '5678', 100, 'PASSPORT', 'FRA', 'MARTIN, Luc')});
$fini->wait_done;
is($fini->sql(q{select state from fini.submission where own_ref = 'o1'}), 'accepted', 'a table with columns of its own');

my ($reconcile) = $readme =~ /`(select \* from fini\.reconcile\(.*?\))`/s;
$fini->sql('create table run as ' . $reconcile =~ s/\s+/ /gr);
is($fini->sql('select local, remote, matched, discrepancies from run'), '2|2|2|0', 'the reconcile of the README');

done_testing();
