--
-- For the measurement of sealing.
--
-- entries as FINI takes them, 1,000 in each payload
drop table if exists payload;
create table payload as
	select n, json_build_object('data', json_agg(json_build_object('requestID', id::text, 'ipoID', ipo_id,
			'idList', coalesce(id_list::json, json_build_array(json_build_object('idType', id_type,
				'idCountryJurisdiction', id_country_jurisdiction, 'idNum', id_num,
				'fullNameEng', full_name_eng, 'fullNameChi', full_name_chi))),
			'appQuantity', app_quantity::text, 'firmID', coalesce(firm_id, '00000'), 'ownRef', own_ref) order by id)) payload
	from (select row_number() over () id, (row_number() over () - 1) / 1000 n, * from source limit 10000) s
	group by n having count(*) = 1000;

-- nor are they to be decompressed
alter table payload alter payload set storage external;
update payload set payload = (payload::text || ' ')::json;

-- seals all payloads, again and again for some seconds, and returns how many records that were; the payloads stay in
-- memory, so that reading them is not part of it
create or replace function seal(seconds float) returns bigint language plpgsql as $$
declare
	payloads json[] := (select array_agg(payload order by n) from payload);
	p json;
	began timestamptz := clock_timestamp();
	k bytea := sha256('key');
	iv bytea := substr(sha256('iv'), 1, 12);
	records bigint := 0;
begin
	loop
		foreach p in array payloads loop
			perform octet_length(fini.encrypt_fields(p, k, iv));
			records := records + 1000;
		end loop;
		exit when clock_timestamp() > began + seconds * interval '1 second';
	end loop;
	return records;
end $$;
