# The cryptography against tools that are not ours: RSA by openssl, JSON Web Keys and Signatures by jose,
# published vectors of RFC 7638 and RFC 7515; then key files, encodings, what errors and logs give away,
# and what failing calls leave behind. (Vectors of the field cipher and of the signature: sql/envelope.sql.)
use strict;
use warnings;

use File::Spec;
use JSON::PP;
use MIME::Base64 qw(encode_base64 decode_base64 encode_base64url decode_base64url);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

alarm 600;	# a hang is a failure

my $node = PostgreSQL::Test::Cluster->new('crypto');
$node->init(extra => [ '-E', 'UTF8', '--locale=C' ]);
# statements are not logged, so that the log shows what the extension itself gives away
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'fini'
log_min_error_statement = panic
log_statement = none
log_error_verbosity = verbose
fsync = off
});
$node->start;
$node->safe_psql('postgres', 'create extension fini');

my $dir = File::Spec->rel2abs(PostgreSQL::Test::Utils::tempdir);
my $key = join '', map { chr } 0 .. 31;
my $iv = join '', map { chr } 100 .. 111;
my $args = sprintf q{'\x%s'::bytea, '\x%s'::bytea}, unpack('H*', $key), unpack('H*', $iv);

wrapped_key();
rfc7638();
rfc7515();
key_sets();
key_files();
encodings();
leaks();
log_is_clean();

$node->stop;
done_testing();

# what wrap_key makes is opened by openssl with the private key
sub wrapped_key
{
	for my $bits (2048, 3072, 4096)
	{
		new_key("$dir/gateway$bits.pem", $bits);
		my $wrapped = $node->safe_psql('postgres', "select fini.wrap_key($args, '" . spki("$dir/gateway$bits.pem") . "')");
		write_file("$dir/wrapped", decode_base64($wrapped));
		is(output('openssl', 'pkeyutl', '-decrypt', '-inkey', "$dir/gateway$bits.pem", '-pkeyopt', 'rsa_padding_mode:pkcs1',
				'-in', "$dir/wrapped"),
			encode_base64($key, '') . '#' . encode_base64($iv, ''), "openssl unwraps the key under RSA-$bits");
	}
	return;
}

# RFC 7638 section 3.1: the example key and its thumbprint. The RFC has no private half, and a thumbprint
# needs none: the PEM file around it says 3 for each private number.
sub rfc7638
{
	my $n = '0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs'
	  . 'tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD'
	  . '08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw';
	rsa_pem("$dir/rfc7638.pem", $n, 'AQAB', ('Aw') x 6);

	my $set = jwks('agent', "$dir/rfc7638.pem");
	is($set->{keys}[0]{kid}, 'NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs', 'thumbprint of RFC 7638 as kid');
	is($set->{keys}[0]{n}, $n, 'modulus of RFC 7638');
	is($set->{keys}[0]{e}, 'AQAB', 'exponent of RFC 7638');
	return;
}

# RFC 7515 appendix A.2: jose verifies the RS256 signature printed there with the set that fini.jwks makes of
# the private key printed there.
sub rfc7515
{
	my %jwk = (
		n => 'ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMs'
		  . 'D1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdV'
		  . 'MTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ',
		e => 'AQAB',
		d => 'Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0'
		  . 'BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYT'
		  . 'CBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ',
		p => '4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPG'
		  . 'BY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc',
		q => 'uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA'
		  . '-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc',
		dp => 'BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34'
		  . 'MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0',
		dq => 'h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNl'
		  . 'xAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU',
		qi => 'IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuMFrPyR3OsPkQaZBkZuLZ9VHSnPTbYxEBH-Bz5YCuFNwuNWlQ9cTI6QmF2qHVrKLKSsKkZWU'
		  . 'qvR9JBXKIz_qFe_sEbTTbCVFHpmSXLSqJcTbFd-CdSKb7yhjU2lUUS4');
	my $jws = 'eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.'
	  . 'cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKB'
	  . 'YNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6Bf'
	  . 'I7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw';
	rsa_pem("$dir/rfc7515.pem", @jwk{qw(n e d p q dp dq qi)});

	my $set = jwks('agent', "$dir/rfc7515.pem");
	is($set->{keys}[0]{n}, $jwk{n}, 'modulus of RFC 7515');
	write_file("$dir/set.json", encode_json($set));
	write_file("$dir/jws", $jws);
	is(output('jose', 'jws', 'ver', '-i', "$dir/jws", '-k', "$dir/set.json", '-O', '-'),
		qq({"iss":"joe",\r\n "exp":1300819380,\r\n "http://example.com/is_root":true}),
		'jose verifies the signature of RFC 7515 under our set');

	# the issuer changed from joe to jof
	write_file("$dir/jws", $jws =~ s/\.eyJpc3MiOiJqb2U/.eyJpc3MiOiJqb2Y/r);
	ok(!run_log([ 'jose', 'jws', 'ver', '-i', "$dir/jws", '-k', "$dir/set.json", '-O', "$dir/payload" ]), 'and refuses a forged one');
	return;
}

# sets of keys that openssl generated, read by jose
sub key_sets
{
	for my $bits (2048, 3072, 4096)
	{
		new_key("$dir/own$bits.pem", $bits);
		my $expires = time + 86400 * 300;
		my $text = with_keys("$dir/own$bits.pem", '', "select fini.jwks('agent', to_timestamp($expires))");
		my $set = decode_json($text);
		my ($jwk) = @{ $set->{keys} };

		write_file("$dir/set.json", $text);
		is(output('jose', 'jwk', 'thp', '-i', "$dir/set.json"), $jwk->{kid}, "jose computes the same thumbprint for RSA-$bits");
		is($text, qq({"keys":[{"kty":"RSA","e":"AQAB","use":"sig","kid":"$jwk->{kid}","alg":"RS256","n":"$jwk->{n}","exp":$expires}]}),
			'members and order of protocol.md');
		is(uc unpack('H*', decode_base64url($jwk->{n})),
			output('openssl', 'rsa', '-in', "$dir/own$bits.pem", '-noout', '-modulus') =~ s/^Modulus=(\S+)\s*$/$1/r, 'modulus as openssl has it');
	}

	# an odd exponent
	new_key("$dir/e3.pem", 2048, 3);
	is(jwks('machine', "$dir/e3.pem")->{keys}[0]{e}, 'Aw', 'exponent 3');
	return;
}

# which files serve as private keys; no path in any error
sub key_files
{
	my $good = "$dir/own2048.pem";
	my $jwks = "select fini.jwks('agent', now() + '30 days')";

	fails($jwks, qr/IP001.*fini.agent_key_file is not set/s, 'no key file');
	fails($jwks, qr/IP001.*agent and machine profile have the same key.*a key pair of its own/s, 'one key for both profiles', $good, $good);
	system_or_bail('openssl', 'rsa', '-in', $good, '-traditional', '-out', "$dir/traditional.pem");
	chmod 0600, "$dir/traditional.pem";
	fails($jwks, qr/the same key/, 'one key in two forms', $good, "$dir/traditional.pem");
	is(jwks('agent', "$dir/traditional.pem")->{keys}[0]{kid}, jwks('agent', $good)->{keys}[0]{kid}, 'both PEM forms are read');
	ok(jwks('agent', $good, "$dir/own3072.pem")->{keys}, 'two keys for two profiles');

	my %bad = (
		'missing' => [ undef, qr/No such file/ ],
		'empty' => [ '', qr/holds no private key/ ],
		'garbage' => [ "SECRET\n", qr/holds no private key/ ],
		'public' => [ output('openssl', 'pkey', '-in', $good, '-pubout') . "\n", qr/holds no private key/ ],
		'truncated' => [ substr(slurp_file($good), 0, 900), qr/holds no private key/ ],
		'large' => [ "# SECRET\n" x 10000, qr/too large/ ],
		'passphrase' => [ output('openssl', 'pkey', '-in', $good, '-aes256', '-passout', 'pass:SECRET') . "\n", qr/protected by a passphrase/ ],
		'old_passphrase' => [ output('openssl', 'rsa', '-in', $good, '-traditional', '-aes256', '-passout', 'pass:SECRET') . "\n",
			qr/protected by a passphrase/ ],
		'short' => [ output('openssl', 'genpkey', '-quiet', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:1024') . "\n", qr/less than 2048 bits/ ],
		'curve' => [ output('openssl', 'genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256') . "\n", qr/not an RSA key/ ],
		'pss' => [ output('openssl', 'genpkey', '-quiet', '-algorithm', 'RSA-PSS', '-pkeyopt', 'rsa_keygen_bits:2048') . "\n", qr/not an RSA key/ ]);
	for my $name (sort keys %bad)
	{
		my ($content, $reason) = @{ $bad{$name} };
		if (defined $content)
		{
			write_file("$dir/bad_$name", $content);
			chmod 0600, "$dir/bad_$name";
		}
		file_fails("$dir/bad_$name", $reason, "key file: $name");
	}

	file_fails($dir, qr/not a regular file/, 'key file: a directory');
	system_or_bail('mkfifo', '-m', '600', "$dir/fifo");
	file_fails("$dir/fifo", qr/not a regular file/, 'key file: a named pipe, which nobody writes to');
	for my $mode (0640, 0604, 0660, 0602, 0610)
	{
		chmod $mode, $good;
		file_fails($good, qr/open to group or others/, sprintf('key file: mode %04o', $mode));
	}
	chmod 0400, $good;
	ok(jwks('agent', $good)->{keys}, 'mode 0400 serves');
	chmod 0600, $good;
	return;
}

# databases in other encodings: UTF-8 on the wire, whatever the database holds
sub encodings
{
	for my $case ([ 'LATIN1', "caf\xc3\xa9 \xc3\xbf", "caf\xe9 \xff" ], [ 'EUC_TW', "\xe9\x99\xb3\xe5\xa4\xa7\xe6\x96\x87", undef ])
	{
		my ($encoding, $utf8, $native) = @$case;
		my $hex = unpack 'H*', $utf8;
		my $db = lc $encoding;
		$node->safe_psql('postgres', "create database $db encoding '$encoding' locale 'C' template template0");
		$node->safe_psql($db, 'create extension fini');

		# the same ciphertext as in UTF-8, and back
		my $field = $node->safe_psql('postgres', "select fini.encrypt_field(convert_from('\\x$hex', 'UTF8'), $args)");
		is($node->safe_psql($db, "select fini.encrypt_field(convert_from('\\x$hex', 'UTF8'), $args)"), $field, "$encoding: field in UTF-8");
		is($node->safe_psql($db, "select encode(convert_to(fini.decrypt_field('$field', $args), 'UTF8'), 'hex')"), $hex, "$encoding: and back");
		is($node->safe_psql($db, qq(select fini.encrypt_fields(('{"idNum":"' || convert_from('\\x$hex', 'UTF8') || '"}')::json, $args))),
			qq({"idNum":"$field"}), "$encoding: payload");
		is($node->safe_psql($db, qq(select encode(convert_to(fini.encrypt_fields(('{"x": "' || convert_from('\\x$hex', 'UTF8') || '"}')::json, $args), 'UTF8'), 'hex'))),
			unpack('H*', qq({"x": "$utf8"})), "$encoding: other fields unchanged");
		is($node->safe_psql($db, qq(select encode(convert_to(fini.decrypt_fields('{"idNum":"$field"}', $args)->>'idNum', 'UTF8'), 'hex'))),
			$hex, "$encoding: answer");
		is($node->safe_psql($db, "select fini.sign('\\x" . ('00' x 32) . "', convert_from('\\x$hex', 'UTF8'), repeat('0', 32), 1)"),
			$node->safe_psql('postgres', "select fini.sign('\\x" . ('00' x 32) . "', convert_from('\\x$hex', 'UTF8'), repeat('0', 32), 1)"),
			"$encoding: signature over UTF-8");

		# a character that the database lacks can still be sent, by its escape, but not be received
		my $emoji = $node->safe_psql('postgres', "select fini.encrypt_field('SECRET' || U&'\\+01F600', $args)");
		is($node->safe_psql($db, qq(select fini.encrypt_fields('{"idNum":"SECRET\\ud83d\\ude00"}', $args))), qq({"idNum":"$emoji"}),
			"$encoding: escape of a character that it lacks");
		fails("select fini.decrypt_field('$emoji', $args)", qr/IP010.*encoding of this database does not have/s, "$encoding: field that it cannot hold", '', '', $db);
		fails(qq(select fini.decrypt_fields('{"idNum":"$emoji"}', $args)), qr/IP010.*no equivalent in encoding "$encoding"/s,
			"$encoding: answer that it cannot hold", '', '', $db);
		fails(qq(select fini.decrypt_fields('{"x":"SECRET\\ud83d\\ude00"}', $args)), qr/IP010.*cannot be represented as jsonb/s,
			"$encoding: escape elsewhere that it cannot hold", '', '', $db);
	}

	# SQL_ASCII holds bytes: UTF-8 passes, anything else does not
	$node->safe_psql('postgres', "create database ascii encoding 'SQL_ASCII' locale 'C' template template0");
	$node->safe_psql('ascii', 'create extension fini');
	is($node->safe_psql('ascii', "select fini.decrypt_field(fini.encrypt_field(E'\\xe9\\x99\\xb3', $args), $args) = E'\\xe9\\x99\\xb3'"), 't', 'SQL_ASCII: UTF-8 passes');
	fails("select fini.encrypt_field(E'SECRET\\xe9', $args)", qr/22P05.*no equivalent in UTF-8/s, 'SQL_ASCII: other bytes do not', '', '', 'ascii');
	fails(qq(select fini.encrypt_fields(E'{"x":"SECRET\\xe9"}', $args)), qr/22P05.*no equivalent in UTF-8/s, 'SQL_ASCII: nor in a payload', '', '', 'ascii');
	return;
}

# calls that fail after they made OpenSSL objects, in one backend, many times: nothing is left behind
sub leaks
{
  SKIP: {
		skip 'needs /proc', 1 unless -r '/proc/self/status';
		my $spki = spki("$dir/gateway2048.pem");
		my $psql = $node->background_psql('postgres');
		$psql->query_safe(<<"SQL");
set fini.agent_key_file = '$dir/own2048.pem';
set fini.machine_key_file = '$dir/own2048.pem';
create function pg_temp.fail(statement text) returns boolean language plpgsql as \$\$
begin
	execute 'select ' || statement;
	return false;
exception when others then
	return true;
end\$\$;
create function pg_temp.round(n int) returns bigint language sql as \$\$
select count(*) from generate_series(1, n),
	(values (\$q\$fini.decrypt_field('%enc_%AAAAAAAAAAAAAAAAAAAAAAAAAAA=', $args)\$q\$),
			(\$q\$fini.encrypt_fields('{"a":[{"idNum":"SECRET","idType":{}}]}', $args)\$q\$),
			(\$q\$fini.decrypt_fields('{"idNum":"%enc_%AAAAAAAAAAAAAAAAAAAAAAAAAAA="}', $args)\$q\$),
			(\$q\$fini.decrypt_fields('{"x":"\\u0000"}', $args)\$q\$),
			(\$q\$fini.wrap_key($args, '$spki' || 'AAAA')\$q\$)) v(statement)
where pg_temp.fail(statement)\$\$;
SQL
		my $pid = $psql->query_safe('select pg_backend_pid()');
		is($psql->query_safe('select pg_temp.round(1000)'), '5000', 'all of them fail');
		$psql->query_safe(q{select count(*) from generate_series(1, 50) where pg_temp.fail($q$fini.jwks('agent', now() + '1 day')$q$)});
		my $before = resident($pid);
		is($psql->query_safe('select pg_temp.round(10000)'), '50000', 'again and again');
		is($psql->query_safe(q{select count(*) from generate_series(1, 500) where pg_temp.fail($q$fini.jwks('agent', now() + '1 day')$q$)}),
			'500', 'key files too');
		my $grown = resident($pid) - $before;
		# one leaked cipher context a call would be 10 MB, one RSA key much more; sanitizers keep what was freed
		cmp_ok($grown, '<', 1024, "memory of the backend has not grown by 1 MB (by $grown kB)") unless $ENV{FINI_TEST_SLOW};
		$psql->quit;
	}
	return;
}

# after all of the above
sub log_is_clean
{
	my $log = slurp_file($node->logfile);
	like($log, qr/encrypted field cannot be decrypted|cannot be represented as jsonb|no equivalent/, 'errors are in the log');
	unlike($log, qr/SECRET/, 'personal data is not');
	unlike($log, qr/\Q$dir\E/, 'nor are paths of keys');
	unlike($log, qr/PRIVATE KEY/, 'nor is anything of a key');
	return;
}

# the JWK set of a profile
sub jwks
{
	my ($profile, $file, $other) = @_;
	my @files = $profile eq 'agent' ? ($file, $other // '') : ($other // '', $file);
	return decode_json(with_keys(@files, "select fini.jwks('$profile', now() + '30 days')"));
}

sub with_keys
{
	my ($agent, $machine, $query) = @_;
	return $node->safe_psql('postgres', key_settings($agent, $machine) . $query);
}

# A file that is set in a role's or database's settings is looked at when it is used, not when it is set, just
# as one that was exchanged after it had been set: this is how unusable files get past the setting's own check.
sub key_settings
{
	my ($agent, $machine) = @_;
	return "set fini.agent_key_file = '$agent';\nset fini.machine_key_file = '$machine';\n";
}

sub file_fails
{
	my ($file, $reason, $name) = @_;
	# put in place after the setting was checked
	my $link = "$dir/link.pem";
	unlink $link;
	symlink "$dir/own3072.pem", $link or die $!;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($rc, $out, $err) = $node->psql('postgres',
		"\\set VERBOSITY verbose\n" . key_settings($link, '') . "\\! ln -sfn '$file' '$link'\nselect fini.jwks('agent', now() + '30 days')");
	isnt($rc, 0, "$name: refused");
	like($err, qr/IP001.*private key of the agent profile cannot be used.*$reason/s, $name);
	unlike($err, qr/ERROR.*(?:\Q$dir\E|SECRET)/s, "$name: without its path or content");
	return;
}

sub fails
{
	my ($query, $pattern, $name, $agent, $machine, $db) = @_;
	my ($rc, $out, $err) = $node->psql($db // 'postgres',
		"\\set VERBOSITY verbose\n" . key_settings($agent // '', $machine // '') . $query);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	isnt($rc, 0, "$name: refused");
	like($err, $pattern, $name);
	# psql shows the statement for errors that have a position in it; ours have none
	unlike($err, qr/SECRET/, "$name: without personal data");
	return;
}

sub new_key
{
	my ($file, $bits, $exponent) = @_;
	system_or_bail('openssl', 'genpkey', '-quiet', '-algorithm', 'RSA', '-pkeyopt', "rsa_keygen_bits:$bits",
		'-pkeyopt', 'rsa_keygen_pubexp:' . ($exponent // 65537), '-out', $file);
	chmod 0600, $file;
	return;
}

sub spki
{
	my ($file) = @_;
	system_or_bail('openssl', 'pkey', '-in', $file, '-pubout', '-outform', 'DER', '-out', "$file.der");
	return encode_base64(slurp_file("$file.der"), '');
}

# a PKCS#1 private key of the numbers of a JWK: n, e, d, p, q, dp, dq, qi
sub rsa_pem
{
	my ($file, @numbers) = @_;
	my $sequence = join '', map { der(0x02, $_) } "\0", map { my $bytes = decode_base64url($_); ord $bytes > 0x7f ? "\0$bytes" : $bytes } @numbers;
	write_file($file, "-----BEGIN RSA PRIVATE KEY-----\n" . encode_base64(der(0x30, $sequence)) . "-----END RSA PRIVATE KEY-----\n");
	chmod 0600, $file;
	return;
}

sub der
{
	my ($tag, $content) = @_;
	my $len = length $content;
	return pack('CC', $tag, $len) . $content if $len < 128;
	my $bytes = pack 'N', $len;
	$bytes =~ s/^\0+//;
	return pack('CC', $tag, 0x80 | length $bytes) . $bytes . $content;
}

# standard output of a command, which must succeed, without a last line feed
sub output
{
	my @command = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run(\@command, '<', \'', '>', \$out, '2>', \$err) or die "@command: $err";
	chomp $out;
	return $out;
}

sub write_file
{
	my ($file, $content) = @_;
	open my $handle, '>:raw', $file or die "$file: $!";
	print $handle $content;
	close $handle or die "$file: $!";
	return;
}

# kB of anonymous memory that a process holds
sub resident
{
	my ($pid) = @_;
	return slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m ? $1 : die 'no RssAnon';
}
