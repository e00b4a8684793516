-- Settings: names, defaults, bounds, and what their checks refuse, with the reason and the advice given.
\set VERBOSITY default
select name, boot_val, unit, min_val, max_val, context from pg_settings where name like 'fini.%' order by name collate "C";
-- each has a short and a long description
select count(*) from pg_settings where name like 'fini.%' and (coalesce(short_desc, '') = '' or coalesce(extra_desc, '') = '');
-- the prefix is reserved: a misspelt setting is refused
set fini.base_ulr = 'https://fini.example.com';
-- one that needs a restart
set fini.databases = 'a';
alter system set fini.databases = 'two words';
alter system set fini.databases = 'a,,b';

-- URLs
begin;
set local fini.base_url = 'https://fini.example.com/';
show fini.base_url;
set local fini.base_url = 'https://fini.example.com:8443/gateway//';
show fini.base_url;
set local fini.base_url = 'HTTPS://fini.example.com';
set local fini.base_url = '';
set local fini.token_url = 'https://[::1]:8443/openam/token';
rollback;
set fini.base_url = 'http://fini.example.com';
set fini.base_url = 'fini.example.com';
set fini.base_url = 'file:///etc/passwd';
set fini.base_url = 'https://';
set fini.base_url = 'https:///path';
set fini.base_url = 'https:/fini.example.com';
set fini.base_url = 'https:/user:password@fini.example.com/a://b';
set fini.base_url = 'https://user:password@fini.example.com';
set fini.base_url = 'https://user@fini.example.com';
set fini.base_url = 'https://fini.example.com?x=1';
set fini.base_url = 'https://fini.example.com/#x';
set fini.base_url = 'https://fini.example.com:99999';
set fini.base_url = 'https://fini example.com';
set fini.base_url = E'https://fini.example.com/\n';
set fini.base_url = 'https:\\fini.example.com';
set fini.token_url = 'http://fini.example.com/token';

-- a proxy may have credentials, and be http
begin;
set local fini.proxy = 'http://user:password@proxy.example.com:3128';
set local fini.proxy = 'https://proxy.example.com/';
set local fini.proxy = '';
rollback;
set fini.proxy = 'socks5://proxy.example.com';
set fini.proxy = 'proxy.example.com:3128';
set fini.proxy = 'http://proxy.example.com/path';
set fini.proxy = 'http://';

-- who we are
set fini.agent_subject = 'CP00010 ';
set fini.agent_issuer = E'https://broker.example/\tfini';
set fini.machine_id = E'\u00e9';
select set_config('fini.machine_id', repeat('x', 257), false);
set fini.client_assertion_type = '';
set fini.client_assertion_type = 'two words';
set fini.firm_id = '123456789012345678901';
begin;
set local fini.firm_id = 'HK 00000';
rollback;

-- pins
begin;
set local fini.pinned_public_key = 'sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=';
set local fini.pinned_public_key = 'sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=';
set local fini.pinned_public_key = '';
rollback;
set fini.pinned_public_key = '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=';
\set VERBOSITY terse
set fini.pinned_public_key = 'sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU';
set fini.pinned_public_key = 'sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=';
set fini.pinned_public_key = 'sha256//47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=';
set fini.pinned_public_key = 'sha1//2jmj7l5rSw0yVb/vlWAYkK/YBwk=';
set fini.pinned_public_key = 'sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;';
set fini.pinned_public_key = 'sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=,sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=';
set fini.pinned_public_key = '/etc/ssl/certs/fini.pem';
\set VERBOSITY default

-- encrypted fields
begin;
set local fini.encrypted_fields = 'idNum';
set local fini.encrypted_fields = 'idType, idNum , "with, comma"';
rollback;
set fini.encrypted_fields = '';
set fini.encrypted_fields = ' ';
set fini.encrypted_fields = 'idType,';
set fini.encrypted_fields = 'idType,,idNum';
set fini.encrypted_fields = 'idType idNum';
set fini.encrypted_fields = '""';
set fini.hkid_types = E'HKID,\t1';
select set_config('fini.encrypted_fields', repeat('x', 129), false);
select set_config('fini.encrypted_fields', repeat('x,', 64) || 'x', false);

-- codes
begin;
set local fini.authorised_status = '1';
set local fini.invalidated_status = 'XX';
rollback;
set fini.authorised_status = '';
set fini.authorised_status = '100';
set fini.invalidated_status = '1 ';

-- numbers
create function pg_temp.takes(name text, value text) returns boolean language plpgsql as $$
begin
	perform set_config('fini.' || name, value, true);
	return true;
exception when invalid_parameter_value then
	return false;
end $$;
select name, string_agg(value, ' ' order by i) filter (where pg_temp.takes(name, value)) as taken,
	string_agg(value, ' ' order by i) filter (where not pg_temp.takes(name, value)) as refused
from (values
	('assertion_lifetime', '{0,1s,30min,1801s}'::text[]), ('connect_timeout', '{99,100,10min,600001}'),
	('request_timeout', '{99ms,100ms,1h,3600001ms}'), ('rate_limit', '{-1,0,60,9600,9601}'),
	('rate_window', '{999ms,1s,1h,2h}'), ('batch_size', '{0,1,1000,1001,x}'), ('max_in_flight', '{0,1,64,65}'), ('max_attempts', '{0,1,1000000,1000001}'),
	('token_refresh_margin', '{-1,0,10min,601s}')) s(name, tried), unnest(tried) with ordinality v(value, i)
group by name order by name collate "C";

-- Files: absolute, there, regular, readable, of the right kind, and keys private. The folder's name differs from
-- one server to the next, so say what was refused without it.
select current_setting('data_directory') || '/fini_settings_test' as dir \gset
create function pg_temp.refusal(name text, file text) returns text language plpgsql as $$
declare
	detail text;
	hint text;
begin
	perform set_config('fini.' || name, file, true);
	return 'accepted';
exception when invalid_parameter_value then
	get stacked diagnostics detail = pg_exception_detail, hint = pg_exception_hint;
	if strpos(detail || hint, 'fini_settings_test') > 0 then
		return 'the path is shown: ' || detail || hint;
	end if;
	return concat_ws(' ', detail, nullif(hint, ''));
end $$;
\set make 'cat >/dev/null; exec 2>/dev/null; umask 077; rm -rf ' :dir '; mkdir ' :dir '; cd ' :dir ' || exit; openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem; openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out short.pem; openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem; openssl pkey -in rsa.pem -aes256 -passout pass:x -out locked.pem; cp rsa.pem open.pem; chmod 640 open.pem; openssl req -x509 -key rsa.pem -subj /CN=test -days 2 -out one.crt; cat one.crt one.crt > two.crt; (cat one.crt; head -n 5 one.crt) > damaged.crt; echo nothing > nothing; ln -s rsa.pem link.pem; (cat rsa.pem one.crt; head -c 4300000 /dev/zero | tr "\\0" x) > big.pem; mkfifo fifo'
copy (select) to program :'make';
select file, string_agg(setting, ' ' order by i) as settings, refusal
from unnest(array['agent_key_file', 'machine_key_file', 'client_key_file', 'ca_file', 'client_cert_file']) with ordinality s(setting, i),
	unnest(array['rsa.pem', 'link.pem', 'ec.pem', 'short.pem', 'locked.pem', 'open.pem', 'nothing', 'missing', 'one.crt', 'two.crt', 'damaged.crt', 'big.pem', 'fifo', '/etc']) with ordinality f(file, j),
	pg_temp.refusal(setting, case when file like '/%' then file else :'dir' || '/' || file end) refusal
group by j, file, refusal order by j, min(i);
set fini.agent_key_file = 'agent.pem';
set fini.ca_file = './ca.crt';
set fini.agent_key_file = '/nonexistent/agent.pem';

-- a person who sets a value for later is told at once
alter database :"DBNAME" set fini.ca_file = '/nonexistent/ca.crt';
alter role current_user set fini.machine_key_file = '/nonexistent/machine.pem';
alter system set fini.client_cert_file = '/nonexistent/client.crt';

-- but a file that vanishes afterwards disturbs no session that begins, and no parallel worker
\set file :dir '/one.crt'
\set key :dir '/rsa.pem'
alter database :"DBNAME" set fini.ca_file = :'file';
alter database :"DBNAME" set fini.agent_key_file = :'key';
\c
set fini.client_cert_file = :'file';
\set remove 'cat >/dev/null; rm -r ' :dir
copy (select) to program :'remove';
set parallel_setup_cost = 0;
set parallel_tuple_cost = 0;
set min_parallel_table_scan_size = 0;
set min_parallel_index_scan_size = 0;
select count(*) > 0 as counted from pg_class;
\c
select current_setting('fini.ca_file') like '%/fini_settings_test/one.crt' as set_all_the_same;
alter database :"DBNAME" reset fini.ca_file;
alter database :"DBNAME" reset fini.agent_key_file;
\c

-- only superusers set anything, and see what is secret
create role regress_fini_settings;
select string_agg(name, ' ') as names from pg_settings where name like 'fini.%' \gset
set role regress_fini_settings;
select name as hidden from unnest(string_to_array(:'names', ' ')) name
where name not in (select name from pg_settings) order by name collate "C";
set fini.base_url = 'https://elsewhere.example';
set fini.rate_limit = 0;
alter role regress_fini_settings set fini.agent_key_file = '/etc/passwd';
reset role;
drop role regress_fini_settings;
