--
-- The envelope: field encryption, wrapped key, signature, and what is refused
--
-- Non-ASCII text is written with U& escapes, so that the client's encoding
-- does not matter.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS fini;
RESET client_min_messages;
\pset null '<null>'

\set key '''\\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f''::bytea'
\set iv '''\\x0f0e0d0c0b0a090807060504''::bytea'

-- the bytes behind a field's prefix: ciphertext and tag
CREATE FUNCTION pg_temp.sealed(field text) RETURNS bytea LANGUAGE sql AS
$$SELECT decode(substr(field, 7), 'base64')$$;

CREATE FUNCTION pg_temp.field(sealed bytea) RETURNS text LANGUAGE sql AS
$$SELECT '%enc_%' || translate(encode(sealed, 'base64'), E'\n', '')$$;

CREATE FUNCTION pg_temp.xor(a bytea, b bytea) RETURNS bytea LANGUAGE sql AS
$$SELECT string_agg(set_byte('\x00', 0, get_byte(a, i) # get_byte(b, i)), '' ORDER BY i)
  FROM generate_series(0, length(a) - 1) i$$;

-- what an expression comes to, or its error; SECRET stands for personal data
-- in the cases below and must be in no part of an error
CREATE FUNCTION pg_temp.try(expression text, OUT result text, OUT state text, OUT detail text, OUT hint text)
LANGUAGE plpgsql AS $$
DECLARE
	context text;
BEGIN
	EXECUTE 'SELECT (' || expression || ')::text' INTO result;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, result = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
	-- from where EXECUTE begins, the context quotes the statement above
	IF concat(result, detail, hint, split_part(context, 'SQL statement', 1)) LIKE '%SECRET%' THEN
		RAISE 'the error quotes personal data: % / % / % / %', result, detail, hint, context;
	END IF;
END$$;

--
-- Published vectors of AES-256-GCM: 96-bit IV, no additional data.  From the
-- GCM specification (McGrew and Viega; test cases 13, 14 and 15) and from
-- NIST's CAVP (gcmEncryptExtIV256.rsp; Keylen 256, IVlen 96, AADlen 0, Taglen 128).
--
CREATE TEMP TABLE vector (name text, key bytea, iv bytea, plaintext bytea, ciphertext bytea, tag bytea);
INSERT INTO vector VALUES
('GCM 13',
 '\x0000000000000000000000000000000000000000000000000000000000000000', '\x000000000000000000000000',
 '', '', '\x530f8afbc74536b9a963b4f1c4cb738b'),
('GCM 14',
 '\x0000000000000000000000000000000000000000000000000000000000000000', '\x000000000000000000000000',
 '\x00000000000000000000000000000000', '\xcea7403d4d606b6e074ec5d3baf39d18', '\xd0d1c8a799996bf0265b98b5d48ab919'),
('GCM 15',
 '\xfeffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308', '\xcafebabefacedbaddecaf888',
 '\xd9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255',
 '\x522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad',
 '\xb094dac5d93471bdec1a502270e3cc6c'),
('CAVP PTlen 0, 0',
 '\xb52c505a37d78eda5dd34f20c22540ea1b58963cf8e5bf8ffa85f9f2492505b4', '\x516c33929df5a3284ff463d7',
 '', '', '\xbdc1ac884d332457a1d2664f168c76f0'),
('CAVP PTlen 0, 1',
 '\x5fe0861cdc2690ce69b3658c7f26f8458eec1c9243c5ba0845305d897e96ca0f', '\x770ac1a5a3d476d5d96944a1',
 '', '', '\x196d691e1047093ca4b3d2ef4baba216'),
('CAVP PTlen 0, 2',
 '\x7620b79b17b21b06d97019aa70e1ca105e1c03d2a0cf8b20b5a0ce5c3903e548', '\x60f56eb7a4b38d4f03395511',
 '', '', '\xf570c38202d94564bab39f75617bc87a'),
('CAVP PTlen 128, 0',
 '\x31bdadd96698c204aa9ce1448ea94ae1fb4a9a0b3c9d773b51bb1822666b8f22', '\x0d18e06c7c725ac9e362e1ce',
 '\x2db5168e932556f8089a0622981d017d', '\xfa4362189661d163fcd6a56d8bf0405a', '\xd636ac1bbedd5cc3ee727dc2ab4a9489');

-- An empty plaintext is text: encryption gives the published tag, and nothing
-- else, which proves key schedule, counter block and tag.
SELECT name, pg_temp.sealed(fini.encrypt_field('', key, iv)) = tag AS encrypts,
       fini.decrypt_field(pg_temp.field(tag), key, iv) = '' AS decrypts
FROM vector WHERE plaintext = '' ORDER BY name;

-- The other plaintexts are no text, so they cannot be given to encrypt_field.
-- Their ciphertexts are proven by the key stream: text of the same length under
-- the same key and IV must satisfy C xor P = C' xor P'.
SELECT name,
       pg_temp.xor(ciphertext, plaintext) =
       pg_temp.xor(substr(pg_temp.sealed(fini.encrypt_field(repeat('x', length(plaintext)), key, iv)), 1, length(plaintext)),
                   convert_to(repeat('x', length(plaintext)), 'UTF8')) AS same_key_stream
FROM vector WHERE plaintext <> '' ORDER BY name;

-- Their tags are proven by decryption, which checks the tag first: IP010 says
-- that it was right and the plaintext is no text, IP009 that it was wrong.
SELECT name, (pg_temp.try(format('fini.decrypt_field(%L, %L, %L)', pg_temp.field(ciphertext || tag), key, iv))).state AS published,
       (pg_temp.try(format('fini.decrypt_field(%L, %L, %L)',
                           pg_temp.field(ciphertext || set_bit(tag, 127, 1 - get_bit(tag, 127))), key, iv))).state AS last_bit_flipped
FROM vector WHERE plaintext <> '' ORDER BY name;
SELECT name, t.state, t.result FROM vector, pg_temp.try(format('fini.decrypt_fields(json_build_object(''idNum'', %L::text), %L, %L)', pg_temp.field(ciphertext || tag), key, iv)) t
WHERE plaintext <> '' ORDER BY name;

-- every single bit of ciphertext and tag counts
SELECT count(*) AS bits, count(*) FILTER (WHERE t.state = 'IP009' AND t.result = 'encrypted field cannot be decrypted') AS refused
FROM (SELECT pg_temp.sealed(fini.encrypt_field('A123456(3)', :key, :iv)) AS sealed) s,
     generate_series(0, 8 * length(s.sealed) - 1) bit,
     pg_temp.try(format('fini.decrypt_field(%L, %L, %L)',
                        pg_temp.field(set_bit(s.sealed, bit, 1 - get_bit(s.sealed, bit))), :key, :iv)) t;

-- the signature that the protocol's source prints (protocol.md section 2)
SELECT fini.sign('YN5i4GiqgMKcOgr4oDDpIntc9866elbh',
'{"data":[{"requestID":"1","ipoID":"1234","idList":[{"idType":"%enc_%eapFkonN3fzIDdSEkiD9EQg=","idCountryJurisdiction":"%enc_%ACzvoa5ZmoiXFScyhNbRKtxUgw==","idNum":"%enc_%BVeZ9hPEphW7EeSiE2UMP6bnM/QbklYusbM=","fullNameEng":"%enc_%CQnGpkKS/FHrGOMgkJROsmXZe+kEXEZ61hEcNn/P","fullNameChi":"%enc_%rtYCIbx0dZksk9K1QLpNT3zAjRi2YaZuWQ=="}],"appQuantity":"1000","firmID":"00000","ownRef":"f992b5c2-fd16-4e57-8387-738cb7aa75fb"}]}',
'cbbfb2afa2094b14a7c6b66a0a399034', 1672531199012);

-- RFC 4231 has no key of 32 bytes; this is HMAC-SHA256 by PostgreSQL's own SHA-256 (RFC 2104)
WITH k AS (SELECT :key || decode(repeat('00', 32), 'hex') AS padded)
SELECT fini.sign(:key, U&'\9673\5927\6587', '00000000000000000000000000000001', 7) =
       encode(sha256(pg_temp.xor(padded, decode(repeat('5c', 64), 'hex')) ||
              sha256(pg_temp.xor(padded, decode(repeat('36', 64), 'hex')) ||
                     convert_to(U&'\9673\5927\6587' || '00000000000000000000000000000001' || '7', 'UTF8'))), 'hex') AS same
FROM k;

--
-- Fields there and back
--
SELECT what, length(pg_temp.sealed(fini.encrypt_field(value, :key, :iv))) - octet_length(value) AS overhead,
       fini.encrypt_field(value, :key, :iv) ~ '^%enc_%[A-Za-z0-9+/]+={0,2}$' AS form,
       fini.decrypt_field(fini.encrypt_field(value, :key, :iv), :key, :iv) = value AS same
FROM (VALUES ('empty', ''), ('one byte', 'x'), ('quotes and backslashes', 'O''Neil "Bob" \ \\ /'),
             ('control characters', E'\x01\x1f\t\r\n\b\f\x7f'), ('Chinese', U&'\9673\5927\6587'),
             ('four bytes', U&'\+020BB7\+01F600'), ('combining', U&'e\0301'),
             ('15 bytes', repeat('a', 15)), ('16 bytes', repeat('a', 16)), ('17 bytes', repeat('a', 17)),
             ('a prefix', '%enc_%'), ('a ciphertext', fini.encrypt_field('x', :key, :iv)),
             ('one MB', repeat('0123456789abcdef', 65536))) v(what, value);

-- as the protocol has it: base64 of 4 bytes of ciphertext and a tag of 16
SELECT fini.encrypt_field('HKID', :key, :iv);
SELECT fini.encrypt_field(NULL, :key, :iv) IS NULL AS encrypts_null, fini.decrypt_field(NULL, :key, :iv) IS NULL AS decrypts_null;

--
-- Payloads: the personal fields, and nothing but them
--
SELECT what, fini.encrypt_fields(payload::json, :key, :iv)
FROM (VALUES
(1, 'entry', '{"data":[{"requestID":"1","idList":[{"idType":"HKID","idCountryJurisdiction":"HKG","idNum":"A123456(3)","fullNameEng":"CHAN TAI MAN","fullNameChi":null}],"appQuantity":"1000"}]}'),
(2, 'white space and key order', E' {\n\t"z" : 1 ,\r "idNum"\t:\n "x" , "a":{ } , "b" : [ ] }\n'),
(3, 'numbers as they are', '{"a":1.50,"b":1E400,"c":-0,"d":123456789012345678901234567890.000,"idNum":1.50,"idType":-1e9}'),
(4, 'booleans', '{"idNum":true,"idType":false,"x":true}'),
(5, 'duplicates', '{"idNum":"a","x":1,"idNum":"b","x":2,"idNum":null}'),
(6, 'escaped names', '{"\u0069dNum":"a","id\u004eum":"a","idNum\u0020":"a","\"idNum":"a","idNum\\":"a","\\":"a","":"a"}'),
(7, 'similar names', '{"IDNUM":"a","idnum":"a","idNumX":"a","idNu":"a"," idNum":"a"}'),
(8, 'values like names', '{"x":"idNum","y":["idNum","a"],"idNum":"idNum"}'),
(9, 'escaped values', '{"idNum":"\u0061","idType":"\/","x":"\u0061\/\ud800"}'),
(10, 'empty string', '{"idNum":""}'),
(11, 'empty object', '{}'), (12, 'empty array', '[]'), (13, 'scalar', '"idNum"'), (14, 'null', 'null'),
(15, 'deep', '[[[{"a":{"b":[{"idNum":"a"}]}}]]]')) v(i, what, payload)
ORDER BY i;

-- every byte outside of the personal values, for a larger payload
WITH p AS (
	SELECT string_agg(format(E'{"n": %s, "idNum":"%s" ,"t":"\\u00e9 \\" \\\\ {\\"idNum\\":1}"}', i, i), E',\n ' ORDER BY i) AS t
	FROM generate_series(1, 1000) i)
SELECT regexp_replace(fini.encrypt_fields(('[' || t || ']')::json, :key, :iv), '"%enc_%[^"]*"', '""', 'g') =
       regexp_replace('[' || t || ']', '("idNum":)"\d+"', '\1""', 'g') AS same
FROM p;

-- many values in one payload, short and long: each as if it were alone
SELECT count(*) AS values, count(*) FILTER (WHERE e->>'idNum' = fini.encrypt_field(e->>'n', :key, :iv)) AS same
FROM json_array_elements(fini.encrypt_fields((
		SELECT json_agg(json_build_object('n', v, 'idNum', v))
		FROM (SELECT repeat(chr(33 + i % 90), i % 20) || i AS v FROM generate_series(1, 3000) i) s), :key, :iv)::json) e;

-- the meaning of a value is encrypted, however it is written
SELECT fini.encrypt_fields('{"idNum":"\u9673\ud83d\ude00\"\\\b\f\n\r\t\/A"}', :key, :iv) =
       '{"idNum":"' || fini.encrypt_field(U&'\9673\+01F600"' || E'\\\b\f\n\r\t/A', :key, :iv) || '"}' AS same;

-- which fields are personal is a setting
SET fini.encrypted_fields = 'bcan, idNum';
SELECT fini.encrypt_fields('{"bcan":"a","idNum":"a","idType":"a"}', :key, :iv);
RESET fini.encrypted_fields;

--
-- Answers
--
SELECT what, fini.decrypt_fields(replace(replace(replace(payload,
           '$0', fini.encrypt_field('', :key, :iv)),
           '$1', fini.encrypt_field('A"\ ' || U&'\9673\+01F600' || E'\n\x01', :key, :iv)),
           '$2', substr(fini.encrypt_field('x', :key, :iv), 7))::json, :key, :iv)
FROM (VALUES
(1, 'entry', '{"code":"0","data":[{"requestID":1,"idList":[{"idType":"$1","idNum":"$0","fullNameChi":null}]}]}'),
(2, 'not encrypted', '{"idNum":"","idType":"A123","fullNameEng":12,"x":"$0"}'),
(3, 'empty values', '{"idNum":{},"idType":[],"fullNameEng":null}'),
(4, 'inside a personal field', '{"idNum":{"idNum":"$1"},"idType":["$1"]}'),
(5, 'escaped', '{"\u0069dNum":"\u0025enc_%$2"}'),
(6, 'prefix only in part', '{"idNum":"%enc_","idType":"x%enc_%"}')) v(i, what, payload)
ORDER BY i;

-- an encoder may escape the slashes of base64
SELECT bool_and(fini.decrypt_fields(('{"idNum":"' || replace(fini.encrypt_field(i::text, :key, :iv), '/', '\/') || '"}')::json, :key, :iv)
                = jsonb_build_object('idNum', i::text)) AS same,
       bool_or(fini.encrypt_field(i::text, :key, :iv) LIKE '%/%') AS some_with_slash
FROM generate_series(1, 100) i;

-- there and back again
SELECT bool_and(fini.decrypt_fields(fini.encrypt_fields(p::json, :key, :iv)::json, :key, :iv) = p) AS same
FROM (SELECT jsonb_build_object('idNum', chr(i) || repeat('x', i % 40), 'n', i) AS p
      FROM generate_series(1, 1000) i) s;

--
-- What is refused.  SECRET is in none of the errors.
--
\set args ', ''\\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f'', ''\\x0f0e0d0c0b0a090807060504'''
SELECT what, t.*
FROM (VALUES
(1, 'object', 'fini.encrypt_fields(''{"idNum":{"a":"SECRET"}}''$)'),
(2, 'array', 'fini.encrypt_fields(''{"idNum":["SECRET"]}''$)'),
(3, 'empty object', 'fini.encrypt_fields(''{"idNum":{}}''$)'),
(4, 'NUL in a value', 'fini.encrypt_fields(''{"idNum":"SECRET\u0000"}''$)'),
(5, 'high surrogate at the end', 'fini.encrypt_fields(''{"idNum":"SECRET\ud83d"}''$)'),
(6, 'high surrogate alone', 'fini.encrypt_fields(''{"idNum":"SECRET\ud83dx"}''$)'),
(7, 'two high surrogates', 'fini.encrypt_fields(''{"idNum":"SECRET\ud83d\ud83d"}''$)'),
(8, 'low surrogate', 'fini.encrypt_fields(''{"idNum":"SECRET\ude00"}''$)'),
(9, '1,001 levels', 'fini.encrypt_fields((repeat(''['', 1001) || ''{"idNum":"SECRET"}'' || repeat('']'', 1001))::json$)'),
(10, '1,001 levels of objects', 'fini.encrypt_fields((repeat(''{"a":'', 1001) || ''"SECRET"'' || repeat(''}'', 1001))::json$)'),
(11, 'wrong prefix', 'fini.decrypt_field(''%ENC_%SECRET''$)'),
(12, 'no prefix', 'fini.decrypt_field(''SECRET''$)'),
(13, 'empty', 'fini.decrypt_field(''''$)'),
(14, 'prefix alone', 'fini.decrypt_field(''%enc_%''$)'),
(15, 'tag too short', 'fini.decrypt_field(pg_temp.field(''\x000102030405060708090a0b0c0d0e'')$)'),
(16, 'base64 garbage', 'fini.decrypt_field(''%enc_%SECRET*SECRET=''$)'),
(17, 'answer: tampered', 'fini.decrypt_fields((''{"idNum":"'' || overlay(fini.encrypt_field(''SECRET''$) placing ''A'' from 7) || ''"}'')::json$)'),
(18, 'answer: truncated', 'fini.decrypt_fields((''{"idNum":"'' || left(fini.encrypt_field(''SECRET''$), -4) || ''"}'')::json$)'),
(19, 'answer: prefix alone', 'fini.decrypt_fields(''{"idNum":"%enc_%"}''$)'),
(20, 'answer: 1,001 levels', 'fini.decrypt_fields((repeat(''['', 1001) || ''{"x":"SECRET"}'' || repeat('']'', 1001))::json$)'),
(21, 'answer: NUL elsewhere', 'fini.decrypt_fields(''{"x":"SECRET\u0000"}''$)'),
(22, 'answer: NUL in a field', 'fini.decrypt_fields(''{"idNum":"SECRET\u0000"}''$)'),
(23, 'answer: surrogate elsewhere', 'fini.decrypt_fields(''{"x":"SECRET\ud83d"}''$)')) v(i, what, expression),
     pg_temp.try(replace(expression, '$', :'args')) t
ORDER BY i;

-- a thousand levels are fine, in both directions
SELECT fini.encrypt_fields((repeat('[', 1000) || repeat(']', 1000))::json, :key, :iv) = repeat('[', 1000) || repeat(']', 1000) AS arrays,
       fini.decrypt_fields((repeat('{"a":', 1000) || '1' || repeat('}', 1000))::json, :key, :iv) IS NOT NULL AS objects;

-- 100,000 levels do not get past the type, and do not crash
SELECT (pg_temp.try(format('fini.encrypt_fields(%L::json%s)', repeat('[', 100000) || repeat(']', 100000), :'args'))).state;

-- one spelling of base64 only
SELECT what, t.state
FROM (SELECT fini.encrypt_field('xy', :key, :iv) AS f0, fini.encrypt_field('x', :key, :iv) AS f1,
             fini.encrypt_field('xyz', :key, :iv) AS f2) f,
LATERAL (VALUES
(1, 'as it is, no padding', f0), (2, 'as it is, one', f1), (3, 'as it is, two', f2),
(4, 'one missing', left(f1, -1)), (5, 'two missing', left(f2, -2)), (6, 'one of two missing', left(f2, -1)),
(7, 'padding too much', f0 || '===='), (8, 'padding within', f1 || f1),
(9, 'trailing space', f0 || ' '), (10, 'trailing line feed', f0 || E'\n'), (11, 'leading space', '%enc_% ' || substr(f0, 7)),
(12, 'line feed within', left(f0, 20) || E'\n' || substr(f0, 21)), (13, 'four trailing line feeds', f0 || E'\n\n\n\n'),
(14, 'URL alphabet', '%enc_%' || repeat('-_', 16)), (15, 'no ASCII', left(f0, 21) || U&'\9673' || substr(f0, 25)),
(16, 'padding alone', '%enc_%===='), (17, 'three paddings', left(f2, -3) || '==='), (18, 'trailing quad', f0 || 'AAAA')) v(i, what, field),
     pg_temp.try(format('fini.decrypt_field(%L%s)', field, :'args')) t
ORDER BY i;

-- unused bits: of the characters that end the same bytes, the canonical one alone is taken
SELECT padding, count(*) AS spellings, count(*) FILTER (WHERE t.state IS NULL) AS taken
FROM (VALUES ('=', fini.encrypt_field('x', :key, :iv)), ('==', fini.encrypt_field('xyz', :key, :iv))) f(padding, field),
     string_to_table('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/', NULL) c,
     LATERAL (SELECT left(field, -1 - length(padding)) || c || padding AS spelling) s,
     pg_temp.try(format('fini.decrypt_field(%L%s)', spelling, :'args')) t
WHERE pg_temp.sealed(spelling) = pg_temp.sealed(field)
GROUP BY padding ORDER BY padding;

-- another key or IV
SELECT (pg_temp.try(format('fini.decrypt_field(%L, %L, %L)', fini.encrypt_field('x', :key, :iv), set_byte(:key, 31, 0), :iv))).state AS other_key,
       (pg_temp.try(format('fini.decrypt_field(%L, %L, %L)', fini.encrypt_field('x', :key, :iv), :key, set_byte(:iv, 11, 0)))).state AS other_iv;

-- arguments
SELECT what, t.*
FROM (VALUES
(1, 'short key', 'fini.encrypt_field(''SECRET'', ''\x00'', ''\x000000000000000000000000'')'),
(2, 'long key', 'fini.decrypt_field(''SECRET'', decode(repeat(''00'', 33), ''hex''), ''\x000000000000000000000000'')'),
(3, 'no key', 'fini.encrypt_fields(''{}'', '''', ''\x000000000000000000000000'')'),
(4, 'short IV', 'fini.decrypt_fields(''{}'', decode(repeat(''00'', 32), ''hex''), ''\x0000000000000000000000'')'),
(5, 'long IV', 'fini.wrap_key(decode(repeat(''00'', 32), ''hex''), decode(repeat(''00'', 16), ''hex''), '''')'),
(6, 'key of sign', 'fini.sign(''\x00'', ''SECRET'', repeat(''0'', 32), 1)'),
(7, 'GUID with hyphens', 'fini.sign(decode(repeat(''00'', 32), ''hex''), ''SECRET'', ''cbbfb2af-a209-4b14-a7c6-b66a0a399034'', 1)'),
(8, 'request ID not hexadecimal', 'fini.sign(decode(repeat(''00'', 32), ''hex''), ''SECRET'', repeat(''g'', 32), 1)'),
(9, 'request ID too long', 'fini.sign(decode(repeat(''00'', 32), ''hex''), ''SECRET'', repeat(''0'', 33), 1)'),
(10, 'request ID and more', 'fini.sign(decode(repeat(''00'', 32), ''hex''), ''SECRET'', repeat(''0'', 32) || ''-'', 1)'),
(11, 'key not base64', 'fini.wrap_key($, ''SECRET'')'),
(12, 'key empty', 'fini.wrap_key($, '''')'),
(13, 'key not DER', 'fini.wrap_key($, ''U0VDUkVU'')'),
(14, 'key too long', 'fini.wrap_key($, repeat(''AAAA'', 10000))'),
(15, 'RSA of 1024 bits', 'fini.wrap_key($, ''MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDR+iCQ5/2790miB/8UMTTmeyK18SonfJiiuQGRdXCTzzZrhmnCL6/M8UN6i7kfF3IV5XjUUai5reVSBW9sRQZjiS4N+AYzF0NN+cKAdBk9QzHTQ1fGyfEWX86uMhNpp1Qmc4poHkl32gqyxB+lmbYH/zTrp8F5Frxb09KzxRGdZwIDAQAB'')'),
(16, 'elliptic curve', 'fini.wrap_key($, ''MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf5ZSjR7wvZ114eon8BXwO/IugJa1RIX31kiLieqc01WNyuJeFczy9VMJoHjrLhOa5cHG/uX7jZQp5O1Nu/R9Qg=='')')) v(i, what, expression),
     pg_temp.try(replace(expression, '$', ltrim(:'args', ', '))) t
ORDER BY i;

--
-- The wrapped key.  What is inside is checked in test/t/001_crypto.pl, which
-- has the private key: here its size, that it is canonical base64, and that the padding is random.
--
\set spki '''MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd/wWJcyQoTbji9k0l8W26mPddxHmfHQp+Vaw+4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL+yRT+SFd2lZS+pCgNMsD1W/YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb/7OMg0LOL+bSf63kpaSHSXndS5z5rexMdbBYUsLA9e+KXBdQOS+UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6/I5IhlJH7aGhyxXFvUK+DWNmoudF8NAco9/h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQIDAQAB'''
SELECT length(decode(fini.wrap_key(:key, :iv, :spki), 'base64')) AS bytes,
       fini.wrap_key(:key, :iv, :spki) ~ '^[A-Za-z0-9+/]+==$' AS form,
       fini.wrap_key(:key, :iv, :spki) <> fini.wrap_key(:key, :iv, :spki) AS random;
SELECT * FROM pg_temp.try(format('fini.wrap_key(%L, %L, %L)', :key, :iv, encode(decode(:spki, 'base64') || '\x00', 'base64')));
SELECT * FROM pg_temp.try(format('fini.wrap_key(%L, %L, %L)', :key, :iv,
                                 translate(encode(decode(:spki, 'base64') || '\x00', 'base64'), E'\n', '')));

--
-- JWK sets: what needs no key file (the rest is in test/t/001_crypto.pl)
--
SELECT what, t.*
FROM (VALUES
(1, 'unknown profile', 'fini.jwks(''Agent'', now() + ''1 day'')'),
(2, 'expired', 'fini.jwks(''agent'', now())'),
(3, 'a year', 'fini.jwks(''agent'', now() + ''1 year'')'),
(4, 'infinity', 'fini.jwks(''agent'', ''infinity'')'),
(5, '-infinity', 'fini.jwks(''agent'', ''-infinity'')'),
(6, 'null', 'fini.jwks(''agent'', NULL)')) v(i, what, expression),
     pg_temp.try(expression) t
ORDER BY i;

-- what the planner may assume
SELECT proname, provolatile, proisstrict, proparallel
FROM pg_proc
WHERE pronamespace = 'fini'::regnamespace
  AND proname IN ('encrypt_field', 'decrypt_field', 'encrypt_fields', 'decrypt_fields', 'wrap_key', 'sign', 'jwks')
ORDER BY proname;
