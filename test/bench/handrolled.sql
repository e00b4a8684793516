--
-- What a user would write without this extension, as a peer: PL/pgSQL and pgcrypto build, encrypt and sign the body of
-- each batch, post it and mark its rows. It does much less than fini: pgcrypto has no GCM, so CBC stands in for it; one
-- key a batch that nobody is told; no durable claim, no retry, no reading of the answer; one applicant a row.
-- Variable: rows, how many of them.
--
create extension if not exists pgcrypto;

drop table if exists handrolled;
create table handrolled as
	select row_number() over () id, own_ref, ipo_id, app_quantity, id_type, id_country_jurisdiction id_country, id_num,
		full_name_eng name_eng, full_name_chi name_chi, null::text record_id, 'pending' status
	from source where id_list is null limit :rows;
alter table handrolled add primary key (id);

create or replace function handrolled(url text, batch int) returns bigint language plpgsql as $$
declare
	k bytea;
	iv bytea;
	body text;
	n bigint := 0;
	r record;
	resp text;
	sig text;
begin
	for r in select array_agg(id) ids
		from (select id, (row_number() over (order by id) - 1) / batch b from handrolled where status = 'pending') x group by b order by b
	loop
		k := gen_random_bytes(32);
		iv := gen_random_bytes(16);
		select json_build_object('data', json_agg(json_build_object('requestID', id::text, 'ipoID', ipo_id,
			'idList', json_build_array(json_build_object(
				'idType', '%enc_%' || encode(encrypt_iv(id_type::bytea, k, iv, 'aes'), 'base64'),
				'idCountryJurisdiction', '%enc_%' || encode(encrypt_iv(id_country::bytea, k, iv, 'aes'), 'base64'),
				'idNum', '%enc_%' || encode(encrypt_iv(convert_to(id_num, 'UTF8'), k, iv, 'aes'), 'base64'),
				'fullNameEng', '%enc_%' || encode(encrypt_iv(convert_to(name_eng, 'UTF8'), k, iv, 'aes'), 'base64'),
				'fullNameChi', '%enc_%' || encode(encrypt_iv(convert_to(name_chi, 'UTF8'), k, iv, 'aes'), 'base64'))),
			'appQuantity', app_quantity::text, 'firmID', '00000', 'ownRef', own_ref)))::text
			into body from handrolled where id = any (r.ids);
		sig := encode(hmac(convert_to(body, 'UTF8'), k, 'sha256'), 'hex');
		resp := post_signed(url, sig, body);
		if resp is distinct from 'received' then
			raise exception 'the peer of the peer said: %', resp;
		end if;
		update handrolled set status = 'accepted', record_id = '1234567890123456A' where id = any (r.ids);
		n := n + cardinality(r.ids);
	end loop;
	return n;
end $$;
