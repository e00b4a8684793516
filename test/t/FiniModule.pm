# FiniModule: test/module/fini_test.c, built and declared in a cluster, for tests of inner modules.
#
#	my $library = FiniModule::build('fini_test.c');
#	FiniModule::declare($node, $library);
#
# Needs the C compiler, the server's headers and the extension's own in src/.

package FiniModule;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;

my $here = dirname(abs_path(__FILE__));
our $folder = "$here/../module";

# compile one file of test/module to a shared library; gives its path
sub build
{
	my ($source, @arguments) = @_;
	my $config = _pg_config();
	chomp(my $include = `$config --includedir-server`);
	(my $name = $source) =~ s/\.c$//;
	# of its own for each test: to write one that another's server has mapped would pull it from under its feet
	my $library = "$PostgreSQL::Test::Utils::tmp_check/$name-$$.so";

	PostgreSQL::Test::Utils::system_or_bail($ENV{CC} // 'cc', qw(-shared -fPIC -O1 -g -Wall -Werror -D_GNU_SOURCE),
		"-I$include", "-I$here/../../src", '-o', $library, "$folder/$source", @arguments);
	chmod 0755, $library;
	return $library;
}

sub declare
{
	my ($node, $library, $database) = @_;
	$node->safe_psql($database // 'postgres', <<"END");
create function test_http(urls text[], bodies text[] default '{}', max_answer int default 0, timeout_ms int default 0)
	returns text language c strict as '$library', 'fini_test_http';
create function test_perform(url text, body text) returns text language c as '$library', 'fini_test_perform';
create function test_abandon(url text, ms int) returns int language c strict as '$library', 'fini_test_abandon';
create function test_leave(url text, ms int) returns int language c strict as '$library', 'fini_test_leave';
create function test_running() returns int language c strict as '$library', 'fini_test_running';
create function test_reset_running(url text) returns text language c strict as '$library', 'fini_test_reset_running';
create function test_reset() returns void language c strict as '$library', 'fini_test_reset';
END
	return;
}

# a private installation has programs, but no headers: ask for those of the one it was copied from
sub _pg_config
{
	my ($version) = `pg_config --version` =~ /(PostgreSQL \d+)/ or croak 'pg_config does not answer';
	my @candidates = ($ENV{PG_CONFIG} // (), (map { "$_/pg_config" } split /:/, $ENV{PATH}), glob '/usr/lib/postgresql/*/bin/pg_config');

	for my $config (grep { -x } @candidates)
	{
		chomp(my $include = `$config --includedir-server`);
		return $config if -e "$include/postgres.h" && `$config --version` =~ /^\Q$version\E\b/;
	}
	croak "no pg_config of $version with the server's headers";
}

1;
