# What packagers and PGXN read: META.json by PGXN's Meta Spec 1.0.0, the control file, versions that agree, the licence.

use strict;
use warnings;

use File::Basename qw(dirname);
use File::Spec;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = File::Spec->rel2abs(dirname(__FILE__) . '/../..');
my $meta = JSON::PP->new->utf8->decode(slurp_file("$top/META.json"));
my $control = slurp_file("$top/fini.control");
my $semver = qr/(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)(?:-?[A-Za-z][0-9A-Za-z-]*)?/;
my $term = qr/[^\s\/\\\p{Cntrl}]{2,}/;

# a value by the spec's types: false with a reason, or true
sub text { my ($v) = @_; return defined $v && !ref $v && $v =~ /\S/ }
sub version_range { my ($v) = @_; return text($v) && $v =~ /^(?:(?:[<>]=?|[!=]=)?\s*(?:0|$semver))(?:\s*,\s*(?:[<>]=?|[!=]=)?\s*(?:0|$semver))*$/ }

# keys of an object: required, optional, and those of one's own
sub keys_are
{
	my ($object, $required, $optional, $what) = @_;
	my %known = map { $_ => 1 } @$required, @$optional;
	is_deeply([ grep { !exists $object->{$_} } @$required ], [], "$what: nothing required is missing");
	is_deeply([ grep { !$known{$_} && !/^x_/i } sort keys %$object ], [], "$what: nothing is unknown");
	return;
}

keys_are($meta, [qw(abstract maintainer license meta-spec name provides version)],
	[qw(description generated_by no_index prereqs release_status resources tags)], 'META.json');
like($meta->{name}, qr/^$term$/, 'name is a term');
like($meta->{version}, qr/^$semver$/, 'version is a semantic version');
ok(text($meta->{$_}), "$_ is text") for qw(abstract);
ok(!exists $meta->{$_} || text($meta->{$_}), "$_, if any, is text") for qw(description generated_by);
my @maintainers = ref $meta->{maintainer} eq 'ARRAY' ? @{ $meta->{maintainer} } : $meta->{maintainer};
ok(@maintainers && !(grep { !text($_) } @maintainers), 'maintainers');
my %license = map { $_ => 1 } qw(agpl_3 apache_1_1 apache_2_0 artistic_1 artistic_2 bsd freebsd gfdl_1_2 gfdl_1_3 gpl_1 gpl_2 gpl_3
	lgpl_2_1 lgpl_3_0 mit mozilla_1_0 mozilla_1_1 openssl perl_5 postgresql qpl_1_0 ssleay sun zlib open_source restricted unrestricted unknown);
ok($license{ $meta->{license} }, 'license is one of the list');
like($meta->{release_status} // 'stable', qr/^(?:stable|testing|unstable)$/, 'release_status');

keys_are($meta->{'meta-spec'}, ['version'], ['url'], 'meta-spec');
is($meta->{'meta-spec'}{version}, '1.0.0', 'of the spec that this is checked by');
like($meta->{'meta-spec'}{url} // 'https://pgxn.org/meta/spec.txt', qr{^https?://pgxn\.org/meta/spec\.txt$}, 'and its address');

cmp_ok(scalar keys %{ $meta->{provides} }, '>=', 1, 'something is provided');
for my $name (sort keys %{ $meta->{provides} })
{
	my $provided = $meta->{provides}{$name};
	keys_are($provided, [qw(file version)], [qw(abstract docfile)], "provides $name");
	like($name, qr/^$term$/, "$name is a term");
	like($provided->{version}, qr/^$semver$/, "$name: version");
	ok(-f "$top/$provided->{$_}", "$name: its $_ is there") for grep { exists $provided->{$_} } qw(file docfile);
}
for my $phase (sort keys %{ $meta->{prereqs} // {} })
{
	like($phase, qr/^(?:configure|build|test|runtime|develop|x_.*)$/i, "prereqs: phase $phase");
	for my $relation (sort keys %{ $meta->{prereqs}{$phase} })
	{
		like($relation, qr/^(?:requires|recommends|suggests|conflicts|x_.*)$/i, "prereqs: $phase $relation");
		my $wanted = $meta->{prereqs}{$phase}{$relation};
		ok(version_range($wanted->{$_}), "prereqs: $phase $relation $_ is a range of versions") for sort keys %$wanted;
	}
}
keys_are($meta->{resources}, [], [qw(homepage bugtracker repository)], 'resources') if $meta->{resources};
is_deeply([ grep { !text($_) || length > 255 || m{[/\\\p{Cntrl}]} } @{ $meta->{tags} // [] } ], [], 'tags');

# --- versions: of the release (1.0.0), of the SQL objects (1.0) ---

my ($default) = $control =~ /^default_version\s*=\s*'(.*)'/m;
ok(-f "$top/fini--$default.sql", 'the control file\'s version has its script');
is($meta->{provides}{fini}{file}, "fini--$default.sql", 'which is what META.json provides');
is($meta->{version}, $meta->{provides}{fini}{version}, 'the distribution\'s version is the extension\'s');
like($meta->{version}, qr/^\Q$default\E\.\d+$/, 'and begins with that of the SQL objects');
my ($newest) = slurp_file("$top/CHANGELOG") =~ /^(\d+\.\d+(?:\.\d+)?)\b/m;
like($meta->{version}, qr/^\Q$newest\E(?:\.0)?$/, 'CHANGELOG has it as the newest');

# --- licence, and what the Debian package says ---

my $licence = slurp_file("$top/LICENSE");
like($licence, qr/^PostgreSQL Licen[cs]e\n\nCopyright \(c\) \d{4}/, 'the PostgreSQL licence');
like($licence =~ s/\s+/ /gr, qr/Permission to use, copy, modify, and distribute this software and its documentation for any purpose, without fee, and without a written agreement is hereby granted/,
	'in its words');
my $debian = slurp_file("$top/packaging/debian/control.in");
like($debian, qr/^Package: postgresql-PGVERSION-fini$/m, 'one Debian package for each major version');
is_deeply([ grep { $debian !~ /\b\Q$_\E\b/ } qw(libcurl4-openssl-dev libssl-dev postgresql-server-dev-all) ], [], 'built with what the library links to');

done_testing();
