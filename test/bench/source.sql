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
