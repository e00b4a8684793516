# The library as `make` builds it: what is known to make memory errors hard to exploit is in it.

use strict;
use warnings;

use Config;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'of Linux' unless $Config{osname} eq 'linux';
plan skip_all => 'a build with sanitizers is another' if ($ENV{FINI_TEST_SLOW} // '') eq 'asan';
plan skip_all => 'readelf is not there' if system('readelf --version >/dev/null 2>&1') != 0;

chomp(my $libdir = `pg_config --pkglibdir`);
my $library = "$libdir/fini.so";
ok(-f $library, 'the library is there') or BAIL_OUT('no library');

sub readelf
{
	my (@arguments) = @_;
	my ($out, $err);
	my $ok = IPC::Run::run([ 'readelf', '-W', @arguments, $library ], '>', \$out, '2>', \$err);
	ok($ok, "readelf @arguments") or diag $err;
	return $out;
}

my $segments = readelf('--program-headers');
like($segments, qr/^\s+GNU_RELRO\s/m, 'relocations are read-only after loading');
my ($stack) = $segments =~ /^\s+GNU_STACK\s.*0x[0-9a-f]+\s([RWE ]{3})\s+0x[0-9a-f]+$/m;
is($stack, 'RW ', 'the stack is not executable');
my @loads = $segments =~ /^\s+LOAD\s.*0x[0-9a-f]+\s([RWE ]{3})\s+0x[0-9a-f]+$/mg;
cmp_ok(scalar @loads, '>=', 2, 'segments to load');
is_deeply([ grep { /W/ && /E/ } @loads ], [], 'none is both writable and executable');

my $dynamic = readelf('--dynamic');
like($dynamic, qr/BIND_NOW/, 'everything is bound when it is loaded');
unlike($dynamic, qr/TEXTREL/, 'no relocations in the code');
unlike($dynamic, qr/RPATH|RUNPATH/, 'no path of its own where libraries are looked for');
my @needed = sort $dynamic =~ /NEEDED.*\[([^\].]+)/g;
is_deeply([ grep { !/^(libcurl|libssl|libcrypto|libc|libm|libpthread|ld-linux.*)$/ } @needed ], [], "libraries: @needed");

my $symbols = readelf('--dyn-syms');
like($symbols, qr/UND __stack_chk_fail\b/, 'the stack is protected');
# what gcov puts in has one
unlike($symbols, qr/UND (gets|strcpy|strcat|sprintf|vsprintf|tmpnam|mktemp)\b/, 'no functions that do not') unless $ENV{FINI_TEST_COVERAGE};

done_testing();
