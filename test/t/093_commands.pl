# Every command in README.md, CONTRIBUTING.md and docs/ says whether it is run, and what is marked so runs as it stands.
# How a page marks them: CONTRIBUTING.md. The newcomer's blocks run in an empty Debian (make newcomer); here their
# syntax is looked at, and 090_readme.pl runs those of the README as far as they need no root.

use strict;
use warnings;

use File::Basename qw(basename dirname);
use File::Spec;
use FiniTest;
use IPC::Run qw(run);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = File::Spec->rel2abs(dirname(__FILE__) . '/../..');
my %page = map { s{^\Q$top\E/}{}r => slurp_file($_) } "$top/README.md", "$top/CONTRIBUTING.md", glob "$top/docs/*.md";
my $makefiles = slurp_file("$top/Makefile");
my $command = qr/(?:sudo|make|test\/|packaging\/|curl|openssl|psql|perf|promtool|apt-get|git|createdb|systemctl|service|PG_CONFIG=)\b/;
my %blocks;		# page to a list of [ line, kind, text ]

for my $name (sort keys %page)
{
	my (@unmarked, $open);
	my $number = 0;

	for my $line (split /\n/, $page{$name})
	{
		$number++;
		if ($open && $line =~ /^```\s*$/) { push @{ $blocks{$name} }, $open if $open->[1]; undef $open; }
		elsif ($open)
		{
			$open->[2] .= "$line\n";
			push @unmarked, "$number: $line" if !$open->[1] && !$open->[3] && $line =~ /^(?:\$ )?$command /;
		}
		elsif ($line =~ /^```(.*)/)
		{
			my $mark = $1 =~ s/\s+$//r;
			my ($kind) = $mark =~ /^sh (run|newcomer)$/ ? $1 : $mark =~ /^sh (not run): ./ ? $1 : '';
			$open = [ $number, $kind, '', $mark ];
			push @unmarked, "$number: ```$mark" if !$kind && $mark =~ /^(?:sh|bash|shell|console)\b/;
		}
		# a command that is only indented would slip through
		elsif ($line =~ /^ {4}(?:\$ )?$command/) { push @unmarked, "$number: $line"; }
	}
	is_deeply(\@unmarked, [], "$name: every command says what is to happen") or diag "$name:", explain \@unmarked;
}
cmp_ok(scalar map({ @$_ } values %blocks), '>=', 12, 'there are commands');

# --- what can be said of each: its syntax, the targets of make and the programs of ours that it names ---

for my $name (sort keys %blocks)
{
	for my $block (@{ $blocks{$name} })
	{
		my ($line, $kind, $text) = @$block;
		my $said;
		run([ 'bash', '-n' ], '<', \$text, '>&', \$said);
		is($said, '', "$name:$line: syntax");
		my $logical = $text =~ s/\\\n\s*/ /gr =~ s/#.*//gr;
		is_deeply([ grep { $makefiles !~ /^[\w -]*\b\Q$_\E\b[\w -]*:/m } $logical =~ /^(?:sudo )?make (?!-C)(?:\w+=\S* )*([a-z][\w-]*)/mg ], [], "$name:$line: make has these targets");
		is_deeply([ grep { !-e "$top/$_" && $_ ne 'test/gateway/fini-gateway' } $logical =~ /(?:^| )((?:test|monitoring|packaging)\/[\w.\/-]+)/mg ], [], "$name:$line: these files exist");
	}
}

# --- those that run: in a copy of the repository with a built gateway, a page at a time, on ports that are free ---

my $fini = FiniTest->armed_cluster(gateway => [ '--rate-limit', 0 ]);
my $node = $fini->node;
for my $name (sort keys %blocks)
{
	my @run = grep { $_->[1] eq 'run' } @{ $blocks{$name} } or next;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my %port = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } 8443, 8444;
	system("cp -r '$top/.' '$dir/' && chmod -R u+w '$dir' && cp '$ENV{FINI_GATEWAY}' '$dir/test/gateway/fini-gateway'") == 0 or die "no copy\n";

	# one shell for the whole page, as a reader would have it; it says where it is, and ends what it started
	my $script = "set -e; cd '$dir'; trap 'kill \$(jobs -p) 2>/dev/null' EXIT\n";
	for my $block (@run)
	{
		my $text = $block->[2] =~ s/\b(8443|8444)\b/$port{$1}/gr;
		$script .= "$text\necho; echo 'done: $block->[0]'\n";
		# what a reader sees before he types on
		$script .= "for i in \$(seq 600); do curl -sf http://localhost:$port{8444}/stats >/dev/null && break; sleep 0.1; done\n" if $text =~ /fini-gateway.*&\s*$/s;
	}
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres');
	my ($out, $err) = ('', '');
	run([ 'bash' ], '<', \$script, '>', \$out, '2>', \$err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	my %done = map { $_ => 1 } $out =~ /^done: (\d+)$/mg;
	ok($done{ $_->[0] }, "$name:$_->[0] runs") or diag "$out\n$err" for @run;
}

done_testing();
