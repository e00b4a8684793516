--
-- Where do a table of standard columns (psql variable "table") and the gateway's active records (table
-- gateway_dump, one jsonb a row) differ? One row for each field that does; none if both sides agree.
-- FINI trims spaces around what it is sent, so both sides are compared trimmed. The extension's own
-- reconcile takes no part in this.
--
with
local as (
	select btrim(own_ref, ' ') own_ref, fini_state, btrim(ipo_id, ' ') ipo_id, app_quantity::text app_quantity, record_id,
		btrim(coalesce(firm_id, current_setting('fini.firm_id')), ' ') firm_id,
		coalesce(id_list, jsonb_build_array(jsonb_build_object('idType', id_type, 'idCountryJurisdiction', id_country_jurisdiction,
			'idNum', id_num, 'fullNameEng', full_name_eng, 'fullNameChi', full_name_chi))) id_list
	from :"table"),
remote as (
	select r->>'ownRef' own_ref, r->>'ipoID' ipo_id, r->>'appQuantity' app_quantity, r->>'recordID' record_id,
		r->>'firmID' firm_id, r->'idList' id_list
	from gateway_dump),
pair as (
	select l.own_ref is not null is_local, r.own_ref is not null is_remote, own_ref, l.fini_state,
		to_jsonb(l) - '{fini_state,id_list}'::text[] l, to_jsonb(r) - 'id_list'::text r,
		case when fini_state = 'accepted' then l.id_list end l_ids, case when fini_state = 'accepted' then r.id_list end r_ids,
		count(*) over (partition by r.own_ref, r.ipo_id) copies
	from local l full join remote r using (own_ref))
select own_ref, 'only here' field from pair where fini_state = 'accepted' and not is_remote
union all
select own_ref, 'only at FINI' from pair where is_remote and (not is_local or fini_state is distinct from 'accepted')
union all
select own_ref, 'twice at FINI' from pair where is_remote and copies > 1
union all
select own_ref, 'not settled' from pair where is_local and coalesce(fini_state, '') not in ('accepted', 'rejected')
union all
select own_ref, key from pair, jsonb_object_keys(l) key
where fini_state = 'accepted' and is_remote and l->>key is distinct from r->>key
union all
select own_ref, format('%s of applicant %s', field, coalesce(a.n, b.n)) from pair,
	lateral (select * from jsonb_array_elements(l_ids) with ordinality x(applicant, n)) a
	full join lateral (select * from jsonb_array_elements(r_ids) with ordinality y(applicant, n)) b on a.n = b.n,
	unnest('{idType,idCountryJurisdiction,idNum,fullNameEng,fullNameChi}'::text[]) field
where fini_state = 'accepted' and is_remote
	and btrim(a.applicant->>field, ' ') is distinct from btrim(b.applicant->>field, ' ')
order by 1, 2;
