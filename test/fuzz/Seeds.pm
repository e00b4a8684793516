# Seeds: what the fuzzers start from, made anew for each run.

package Seeds;

use strict;
use warnings;

my $answer = '{"code":"0","message":"","data":[{"requestID":1,"recordID":"0000000000000001A","ownRef":"a","exception":[]},'
  . '{"requestID":"2","exception":[{"recordErrorCode":"405001","recordErrorMsg":"A123456(3) is no HKID"}],"idList":[{"idNum":"A123456(3)"}]}],'
  . '"totalSize":2,"timestamp":"2021-08-26 09:13:22","nextCursor":"0","exception":[]}';
my $refused = '{"code":"411002","message":"duplicate","data":{},"exception":[{"recordErrorCode":"411002","recordErrorMsg":"again"}]}';
my $payload = '{"data":[{"requestID":"1","ipoID":"1234","idList":[{"idType":"HKID","idCountryJurisdiction":"HKG","idNum":"A123456(3)",'
  . '"fullNameEng":"CHAN, Tai \u0041","fullNameChi":"陳大文"},{"idNum":null,"fullNameEng":12.5e3}],"appQuantity":"1000","ownRef":"f992"}]}';
my $sealed = '{"data":[{"idList":[{"idType":"%enc_%eapFkonN3fzIDdSEkiD9EQg=","idNum":"%enc_%BVeZ9hPEphW7EeSiE2UMP6bnM/QbklYusbM="}]}]}';

my %seeds = (
	answer => [ $answer, $refused, '{"code":0,"data":null}', '[]' ],
	values => [ (map { "\1$_" } $answer, $refused, $payload, '"\ud83d\ude00\u00e9\u0001"', '{"a":1,"a":[{}],"\u0061":-0.0e-1,"bb":1E+02}', '[[[]],{},null,true,1.50]',
		'1' x 1001, '{"code":0,"exception":[[1]],"data":[{"requestID":1e0,"exception":{}},[],1]}'),
		map { my $salt = $_; join '', chr(2 * ($salt % 2)), map { chr(($_ * $_ * 7 + $salt * 31 + ($_ >> 2)) % 256) } 1 .. 300 } 1 .. 20 ],
	verdict => [ map { "\0$_" } "d$answer", "d$refused", "\x90$refused" ],
	transform => [ $payload, '[]', '"\ud83d\ude00"' ],
	seal => [ $payload, '{"idNum":"","fullNameEng":null,"idType":[1,{"idNum":true}]}' ],
	open => [ $sealed, $payload, '{"idNum":"%enc_%"}' ],
	base64 => [ '', 'AA==', 'AAA=', 'AAAA', 'AB==', '+/+/' ],
	mapping => [ '{"ownRef":"own_ref","idNum":"id_num","bcan":"firm_id"}' . "\0" . '{"state":"fini_state","error":null}', '{}' . "\0" . '{}' ],
	settings => [ map { chr(0) . "a, \"B\"" , chr(1) . 'https://host/path//', chr(6) . 'sha256//' . ('A' x 43) . '=', chr(7) . 'http://user:pw@host:1',
		chr(8) . 'idNum, fullNameEng', chr(9) . '10' } 1 ],
	url => [ 'https://host:443/path', 'http://user:pw@proxy:3128', 'https://[::1]/' ],
	http_headers => [ "HTTP/1.1 429 x\r\nRetry-After: 120\r\n\r\n", "retry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\n", "Retry-After: 99999999999999999999\r\nbody" ],
	compare => [ '"ownRef":"a","appQuantity":"1000","idList":[{"idNum":"1"}]' . "\0" . '{"ownRef":" a ","appQuantity":1000,"idList":[{"idNum":"1"}]}' ],
	encoding => [ 'plain', '陳大文', "\xf0\x9f\x98\x80", '{"a":"\u0000\ud800"}' ]);

my %words = (
	answer => [ qw(code message data exception recordErrorCode recordErrorMsg requestID recordID ownRef nextCursor idList idNum), '\\\\u0000', '\\\\ud800' ],
	open => [ '%enc_%', qw(idNum idType fullNameEng) ],
	transform => [ qw(idNum fullNameEng null true), '\\\\u0069dNum' ],
	seal => [ qw(idNum fullNameEng idList null), '\\\\u0000' ],
	mapping => [ qw(ownRef ipoID idNum idList own_ref ipo_id id_num extra record_id state error fini_state ctid null) ],
	http_headers => [ 'Retry-After:', 'GMT' ],
	key_file => [ '-----BEGIN RSA PRIVATE KEY-----', '-----BEGIN PRIVATE KEY-----', '-----END PRIVATE KEY-----', 'Proc-Type: 4,ENCRYPTED', 'DEK-Info:' ],
	url => [ 'https://', 'http://', '@', '%00', '#', '?' ]);
$words{verdict} = $words{answer};
$words{compare} = $words{values} = $words{answer};

# the seeds of a target as files of its corpus
sub write
{
	my ($target, $folder) = @_;
	my @seeds = @{ $seeds{$target} // [] };

	push @seeds, map { scalar `openssl genpkey -algorithm $_ 2>/dev/null | openssl pkey -pubout -outform DER 2>/dev/null` }
	  'RSA -pkeyopt rsa_keygen_bits:2048', 'RSA -pkeyopt rsa_keygen_bits:1024', 'EC -pkeyopt ec_paramgen_curve:P-256'
	  if $target eq 'public_key';
	push @seeds, scalar(`openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 2>/dev/null`),
	  scalar(`openssl genrsa -traditional 1024 2>/dev/null`), scalar(`openssl genpkey -algorithm ED25519 2>/dev/null`)
	  if $target eq 'key_file';
	for my $i (0 .. $#seeds)
	{
		open(my $fh, '>:raw', "$folder/seed-$i") or die "$folder: $!\n";
		print $fh $seeds[$i];
		close $fh;
	}
	return;
}

# words worth trying, as a file for libFuzzer; its name
sub dictionary
{
	my ($target, $file) = @_;
	open(my $fh, '>', $file) or die "$file: $!\n";
	print $fh map { "\"$_\"\n" } @{ $words{$target} // [] };
	close $fh;
	return $file;
}

1;
