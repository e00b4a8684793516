# What the README shows works as it is printed there. Its quick start runs word by word in an empty Debian (make
# newcomer); here it runs without root: paths of the system are private ones, packages are there already, and the test
# is the account that the server runs as.

use strict;
use warnings;

use File::Basename qw(dirname);
use FiniTest;
use HTTP::Tiny;
use IPC::Run qw(run);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $readme = slurp_file(dirname(__FILE__) . '/../../README.md');
my $setup = slurp_file(dirname(__FILE__) . '/../setup');
my %port = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } 8443, 8444;
my $dir = PostgreSQL::Test::Utils::tempdir_short();
mkdir "$dir/$_" or die "$dir/$_: $!\n" for qw(conf tmp);

# the fenced block after the first line that matches
sub block
{
	my ($after, $mark) = @_;
	my ($block) = $readme =~ /$after(?s:.*?)^```$mark\n((?s:.*?))^```$/m or die "no block in the README after $after\n";
	return $block;
}

# a command of the README for an account without rights, in a place of its own
sub ours
{
	my ($text) = @_;
	$text =~ s/sudo (?:-u postgres )?//g;
	$text =~ s/ -o postgres -g postgres//g;
	$text =~ s{/etc/postgresql/15/main/conf\.d}{$dir/conf}g;
	$text =~ s{/etc/postgresql/fini}{$dir/fini}g;
	$text =~ s{/tmp/(?=[\w\$]+[.-]?\w*\.\w)}{$dir/tmp/}g;
	$text =~ s{test/gateway/fini-gateway}{$ENV{FINI_GATEWAY}}g;
	$text =~ s/\b(8443|8444)\b/$port{$1}/g;
	return $text;
}

sub command_runs
{
	my ($text, $what) = @_;
	my ($out, $err) = ('', '');
	my $script = 'set -e; ' . ours($text);
	run([ 'bash' ], '<', \$script, '>', \$out, '2>', \$err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	is($?, 0, $what) or diag "$script\n$out\n$err";
	return $out;
}

# 1. packages: those that the tests are built with, and curl for the reader
my $build = block(qr/\*\*1\. Build and install\*\*/, 'sh newcomer');
my ($install) = $build =~ /apt-get install -y ((?s:.*?[^\\]))\n/;
is_deeply([ grep { $setup !~ /\b\Q$_\E\b/ && !/^(?:postgresql-(?:server-dev-)?15|curl)$/ } split /[\s\\]+/, $install ], [], '1: the packages are those of test/setup');
like($build, qr/^make\nsudo make install\nmake gateway\n\z/m, '1: and the commands those of the tests');

# 2. keys; as old releases write them, a key that others may read would be refused
command_runs(block(qr/\*\*2\. Two key pairs\*\*/, 'sh newcomer'), '2: key pairs');

# 3. the gateway
my ($gateway) = block(qr/\*\*3\. The sandbox gateway\*\*/, 'sh newcomer') =~ /^(.*&)\n\z/s or die "the gateway is to run in the background\n";
command_runs("$gateway\necho \$! >$dir/gateway.pid", '3: the gateway starts');
my $pid = slurp_file("$dir/gateway.pid") + 0;
END { my $status = $?; kill 'TERM', $pid if $pid; $? = $status; }

# 4. settings
my $settings = block(qr/\*\*4\. Settings\*\*/, 'sh newcomer');
like($settings, qr/^sudo service postgresql restart\nsudo -u postgres createdb brokerage\n\z/m, '4: a restart, a database');
command_runs($settings =~ s/^sudo service (?s:.*)//mr, '4: settings');
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '-E', 'UTF8', '--locale=C' ]);
$node->append_conf('postgresql.conf', "include_dir = '$dir/conf'\nfsync = off\n");
$node->start;
my @settings = $settings =~ /^(fini\.\w+) =/mg;
is($node->safe_psql('postgres', "select string_agg(n, ' ') from unnest('{@{[ join ',', @settings ]}}'::text[]) n where coalesce(current_setting(n, true), '') = ''"),
	'', '4: the settings exist and are set');
cmp_ok(scalar @settings, '>=', 8, '4: and are all there');
$node->safe_psql('postgres', 'create database brokerage');

# 5. a table, and go; the gateway may have had to wait for entropy
my $http = HTTP::Tiny->new(timeout => 30, proxy => undef, http_proxy => undef);
FiniTest->wait_for(sub { $http->get("http://127.0.0.1:$port{8444}/stats")->{success} }, 'the gateway to answer');
my ($rc, $out, $err) = $node->psql('brokerage', block(qr/\*\*5\. A table, and go\*\*/, 'sql newcomer'), on_error_stop => 1);
is($rc, 0, '5: the statements run') or diag $err;
like($out, qr/^first\|accepted\|\d{16}[OBA]\|$/m, '5: the row is accepted');
like(command_runs(block(qr/holds of it/, 'sh newcomer'), '5: what the sandbox holds'), qr/"ownRef":"first"/, '5: is the row');
my ($reconcile) = $readme =~ /`(select \* from fini\.reconcile\(.*?\))`/s;
is($node->safe_psql('brokerage', 'select local, remote, matched, discrepancies from (' . $reconcile =~ s/\s+/ /gr . ') r'), '1|1|1|0', '5: the reconcile');
my ($check) = $readme =~ /`(select item, detail from fini\.check\(\) where not ok)`/;
is($node->safe_psql('brokerage', $check), '', '5: fini.check() finds nothing');

# the example at the top, in the table that is offered
my ($create) = $readme =~ /`(fini\.create_subscription_table\('applications'\))`/;
$node->safe_psql('brokerage', "select $create; select fini.attach('applications')");
$node->safe_psql('brokerage', block(qr/comes back into the row|its rejection/, 'sql run'));
is($node->safe_psql('brokerage', q{select fini_state from applications where own_ref = '2024-000123'}), 'accepted', 'the first example\'s row is accepted');

# registering: what the commands print is what an independent reading of the keys gives
for my $command (split /\n/, block(qr/### With FINI itself/, 'sh newcomer'))
{
	my ($database, $statement, $profile) = $command =~ /psql (\w+) -Atc "(select fini\.jwks\('(\w+)'.*)"/ or die "not understood: $command\n";
	my ($ours, $theirs) = (decode_json($node->safe_psql($database, $statement)), FiniSandbox::jwks("$dir/fini/$profile.pem"));
	delete $_->{keys}[0]{exp} for $ours, $theirs;
	is_deeply($ours, $theirs, "the JWK set of the $profile profile");
}

# every page is there
is_deeply([ grep { !-e dirname(__FILE__) . "/../../$_" } $readme =~ /\]\(([\w\/.]+)\)/g ], [], 'links lead to what is there');
is_deeply([ grep { my $p = $_; $readme !~ /\(docs\/\Q$p\E\)/ && $p ne 'torture.md' } map { s/.*\///r } glob dirname(__FILE__) . '/../../docs/*.md' ], [], 'and to every page');

done_testing();
