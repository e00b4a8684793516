--
-- Tables that all measurements draw from. Table "source" holds realistic applications, which test/data/applications
-- has made (psql variable "file"); those that FINI would not accept are left out.
--
create extension fini;
select fini.arm();
select fini.create_subscription_table('source');
copy source (own_ref, ipo_id, app_quantity, firm_id, id_type, id_country_jurisdiction, id_num, full_name_eng, full_name_chi, id_list)
	from :'file';
create temp table rejected (own_ref text, who text, what text);
copy rejected from :'rejected';
delete from source s using rejected r where s.own_ref = r.own_ref;
vacuum analyze source;

select fini.create_subscription_table('applications');
select fini.attach('applications');

-- the same table, without us
select fini.create_subscription_table('plain');

-- entries as FINI takes them, 1,000 in each payload
create table payload as
	select n, json_build_object('data', json_agg(json_build_object('requestID', id::text, 'ipoID', ipo_id,
			'idList', coalesce(id_list::json, json_build_array(json_build_object('idType', id_type,
				'idCountryJurisdiction', id_country_jurisdiction, 'idNum', id_num,
				'fullNameEng', full_name_eng, 'fullNameChi', full_name_chi))),
			'appQuantity', app_quantity::text, 'firmID', coalesce(firm_id, '00000'), 'ownRef', own_ref) order by id)) payload
	from (select row_number() over () id, (row_number() over () - 1) / 1000 n, * from source limit 10000) s
	group by n having count(*) = 1000;

-- seals all payloads, again and again for some seconds; they stay in memory, so that reading them is not part of it
create function seal(seconds float, out records bigint, out took float) language plpgsql as $$
declare
	payloads json[] := (select array_agg((payload::text || ' ')::json order by n) from payload);
	p json;
	began timestamptz := clock_timestamp();
	k bytea := sha256('key');
	iv bytea := substr(sha256('iv'), 1, 12);
begin
	records := 0;
	loop
		foreach p in array payloads loop
			perform octet_length(fini.encrypt_fields(p, k, iv));
			records := records + 1000;
		end loop;
		took := extract(epoch from clock_timestamp() - began);
		exit when took > seconds;
	end loop;
end $$;

-- direct calls, one after the other: how many seconds they take
create function calls(n int) returns float language plpgsql as $$
declare
	began timestamptz := clock_timestamp();
begin
	for i in 1 .. n loop
		perform fini.ipo_refdata('1234');
	end loop;
	return extract(epoch from clock_timestamp() - began);
end $$;
