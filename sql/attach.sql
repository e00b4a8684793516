--
-- Subscription tables: creating, attaching, and what statements on them enqueue.
-- This database is disarmed, so nothing is ever sent; what FINI would have answered is written into
-- fini.submission by hand where a case needs it.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS fini;
SELECT fini.disarm();
DELETE FROM fini.queue; DELETE FROM fini.tally; DELETE FROM fini.submission; DELETE FROM fini.attachment;
RESET client_min_messages;
\pset null '<null>'
\set VERBOSITY default
CREATE SCHEMA fini_attach;
SET search_path = fini_attach, public;
SET DateStyle = ISO;

-- operations of a table in order, without what differs from run to run
CREATE FUNCTION ops(relation regclass, OUT own_ref text, OUT ipo_id text, OUT operation text, OUT state text, OUT error_code text)
RETURNS SETOF record LANGUAGE sql AS $$
	SELECT own_ref, ipo_id, operation, state, error_code FROM fini.submission s WHERE s.relation = ops.relation ORDER BY id
$$;
-- the queue lists each operation that is in state queued once, and it is known how many others it lists
CREATE FUNCTION queue_in_step() RETURNS boolean LANGUAGE sql AS $$
	SELECT NOT EXISTS (SELECT FROM fini.submission s LEFT JOIN fini._listed l USING (id, ipo_id, operation) WHERE s.state = 'queued'
					   GROUP BY s.id HAVING count(l.id) <> 1)
		AND (SELECT queued FROM fini.status) = (SELECT count(*) FROM fini.submission WHERE state = 'queued')
$$;
-- what the worker does: take what is queued, and end it
CREATE PROCEDURE claim(rel regclass, refs text[] DEFAULT NULL) LANGUAGE sql AS $$
	WITH claimed AS (UPDATE fini.submission s SET state = 'sending' WHERE s.relation = rel AND s.state = 'queued'
					 AND (refs IS NULL OR s.own_ref = ANY (refs)) RETURNING s.id),
		gone AS (DELETE FROM fini.queue q WHERE coalesce(q.ids, ARRAY[q.id]) && ARRAY(SELECT id FROM claimed) RETURNING q.*)
	INSERT INTO fini.queue (ipo_id, operation, id, not_before)
	SELECT g.ipo_id, g.operation, m.id, g.not_before FROM gone g, unnest(coalesce(g.ids, ARRAY[g.id])) AS m(id)
	WHERE m.id NOT IN (SELECT id FROM claimed);
$$;
CREATE PROCEDURE settle(rel regclass, outcome text, refs text[] DEFAULT NULL) LANGUAGE sql AS $$
	UPDATE fini.submission SET state = outcome, settled_at = now(),
		record_id = CASE WHEN outcome = 'accepted' THEN coalesce(record_id, lpad(id::text, 16, '0') || 'A') END,
		error_code = CASE WHEN outcome <> 'accepted' THEN 'test' END
	WHERE relation = rel AND state = 'sending' AND (refs IS NULL OR own_ref = ANY (refs));
$$;

----------------------------------------------------------------------
-- Creating
----------------------------------------------------------------------
SELECT fini.create_subscription_table('applications');
SELECT fini.create_subscription_table('fini_attach."Quoted ""Name"" ü"');
SELECT fini.create_subscription_table('MixedCase');
SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
WHERE attrelid = 'applications'::regclass AND attnum > 0 ORDER BY attnum;
SELECT relname, relpersistence, relkind FROM pg_class WHERE relnamespace = 'fini_attach'::regnamespace AND relkind = 'r' ORDER BY relname COLLATE "C";
SELECT fini.create_subscription_table('a.b.c');
\set VERBOSITY terse
SELECT fini.create_subscription_table('applications');
SELECT fini.create_subscription_table('nowhere.applications');
SELECT fini.create_subscription_table('x; DROP TABLE applications');
SELECT fini.create_subscription_table('"x');
SELECT fini.create_subscription_table('');
\set VERBOSITY default
-- what comes back is what was created, whatever else has that name
CREATE TEMPORARY TABLE hidden (a integer);
SELECT fini.create_subscription_table('hidden')::oid AS created \gset
SELECT relnamespace::regnamespace, relname FROM pg_class WHERE oid = :created;
DROP TABLE pg_temp.hidden, fini_attach.hidden;

----------------------------------------------------------------------
-- Attaching: the mapping in force
----------------------------------------------------------------------
SELECT fini.attach('applications');
SELECT relation, fields, outcome, live FROM fini.attachment;
SELECT tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'applications'::regclass ORDER BY tgname;
SELECT fini.attach('"Quoted ""Name"" ü"', live => false);
SELECT tgname FROM pg_trigger WHERE tgrelid = '"Quoted ""Name"" ü"'::regclass;

-- columns of one's own, pass-through fields, and no outcome columns at all
CREATE DOMAIN reference AS varchar(40) CHECK (VALUE <> '?');
CREATE TABLE mapped ("Client Ref" reference NOT NULL UNIQUE, ipo integer, shares numeric(20), doc_no text, doc_type text,
	surname text, given text, "Name" text GENERATED ALWAYS AS (surname || ' ' || given) STORED, bcan text, urgent boolean, more json, note text);
SELECT fini.attach('mapped', '{"ownRef": "Client Ref", "ipoID": "ipo", "appQuantity": "shares", "idNum": "doc_no", "idType": "doc_type",
	"fullNameEng": "Name", "bcan": "bcan", "urgent": "urgent", "anything else": "more"}');
SELECT fields, outcome, live FROM fini.attachment WHERE relation = 'mapped'::regclass;
-- attach again: another mapping, and no triggers of before are left over
SELECT fini.attach('mapped', '{"ownRef": "Client Ref", "ipoID": "ipo", "appQuantity": "shares", "idNum": "doc_no"}', '{"state": "note"}', live => false);
SELECT fields, outcome, live FROM fini.attachment WHERE relation = 'mapped'::regclass;
SELECT tgname FROM pg_trigger WHERE tgrelid = 'mapped'::regclass;
SELECT fini.attach('mapped', '{"ownRef": "Client Ref", "ipoID": "ipo", "appQuantity": "shares", "idNum": "doc_no"}', '{"error": "note"}');
SELECT outcome, live FROM fini.attachment WHERE relation = 'mapped'::regclass;
SELECT tgname FROM pg_trigger WHERE tgrelid = 'mapped'::regclass ORDER BY tgname;
-- one that was disabled is put right
ALTER TABLE mapped DISABLE TRIGGER fini_update;
SELECT fini.attach('mapped', '{"ownRef": "Client Ref", "ipoID": "ipo", "appQuantity": "shares", "idNum": "doc_no"}', '{"error": "note"}');
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'mapped'::regclass ORDER BY tgname;
-- every type that an own_ref may have
CREATE TABLE by_uuid (own_ref uuid PRIMARY KEY, ipo_id text, app_quantity text, id_list json);
CREATE TABLE by_integer (own_ref integer PRIMARY KEY, ipo_id varchar(20), app_quantity bigint, id_list jsonb);
CREATE TABLE by_bigint (own_ref bigint GENERATED ALWAYS AS IDENTITY UNIQUE, ipo_id bigint, app_quantity bigint, id_num text);
SELECT fini.attach('by_uuid'), fini.attach('by_integer'), fini.attach('by_bigint');
SELECT relation, fields FROM fini.attachment WHERE relation::text LIKE 'by%' ORDER BY relation::text;

----------------------------------------------------------------------
-- Attaching: refusals
----------------------------------------------------------------------
CREATE VIEW a_view AS SELECT * FROM applications;
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM applications;
CREATE FOREIGN DATA WRAPPER fini_attach_nothing;
CREATE SERVER fini_attach_server FOREIGN DATA WRAPPER fini_attach_nothing;
CREATE FOREIGN TABLE a_foreign_table (own_ref text NOT NULL, ipo_id text) SERVER fini_attach_server;
CREATE TEMPORARY TABLE a_temporary_table (LIKE applications INCLUDING ALL);
CREATE UNLOGGED TABLE an_unlogged_table (LIKE applications INCLUDING ALL);
CREATE TABLE a_partitioned_table (LIKE applications) PARTITION BY HASH (own_ref);
CREATE TABLE a_partition PARTITION OF a_partitioned_table (PRIMARY KEY (own_ref)) FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE TABLE a_parent (LIKE applications INCLUDING ALL);
CREATE TABLE a_child (PRIMARY KEY (own_ref)) INHERITS (a_parent);
CREATE SEQUENCE a_sequence;
CREATE TYPE a_type AS (a integer);
SELECT fini.attach('a_view');
SELECT fini.attach('a_matview');
SELECT fini.attach('a_foreign_table');
CREATE TABLE with_a_foreign_partition (LIKE applications) PARTITION BY LIST (own_ref);
CREATE FOREIGN TABLE a_foreign_partition PARTITION OF with_a_foreign_partition FOR VALUES IN ('x') SERVER fini_attach_server;
SELECT fini.attach('with_a_foreign_partition');
DROP TABLE with_a_foreign_partition;
SELECT fini.attach('a_temporary_table');
SELECT fini.attach('an_unlogged_table');
SELECT fini.attach('a_partitioned_table');
SELECT fini.attach('a_partition');
SELECT fini.attach('a_parent');
SELECT fini.attach('a_child');
SELECT fini.attach('a_sequence');
SELECT fini.attach('applications_pkey');
SELECT fini.attach('pg_catalog.pg_class');
SELECT fini.attach('fini.submission');
SELECT fini.attach('no_such_table');
SELECT fini.attach(4000000000);
SELECT fini.attach(NULL) IS NULL AS nothing;
-- a parent that has lost its children is an ordinary table again
DROP TABLE a_child;
SELECT fini.attach('a_parent');
SELECT fini.detach('a_parent');

-- the mapping
SELECT fini.attach('applications', '["own_ref"]');
SELECT fini.attach('applications', '"own_ref"');
SELECT fini.attach('applications', '{"idNum": "no_such_column"}');
SELECT fini.attach('applications', '{"idNum": ["id_num"]}');
SELECT fini.attach('applications', '{"idNum": null}');
SELECT fini.attach('applications', '{"ownRef": "ctid"}');
SELECT fini.attach('applications', '{"": "id_num"}');
SELECT fini.attach('applications', '{"recordID": "record_id"}');
SELECT fini.attach('applications', '{"requestID": "id_num"}');
SELECT fini.attach('applications', outcome => '["fini_state"]');
SELECT fini.attach('applications', outcome => '{"status": "fini_state"}');
SELECT fini.attach('applications', outcome => '{"state": null}');
SELECT fini.attach('applications', outcome => '{"state": "no_such_column"}');
SELECT fini.attach('applications', outcome => '{"state": "app_quantity"}');
SELECT fini.attach('applications', outcome => '{"state": "id_num"}');
SELECT fini.attach('applications', outcome => '{"state": "fini_error"}');
SELECT fini.attach('applications', outcome => '{"state": "record_id", "error": "record_id"}');
ALTER TABLE mapped ADD generated text GENERATED ALWAYS AS (surname) STORED;
SELECT fini.attach('mapped', '{"ownRef": "Client Ref", "ipoID": "ipo", "appQuantity": "shares", "idNum": "doc_no"}', '{"state": "generated"}');
CREATE TABLE incomplete (own_ref text PRIMARY KEY);
SELECT fini.attach('incomplete');
ALTER TABLE incomplete ADD ipo_id text;
SELECT fini.attach('incomplete');
ALTER TABLE incomplete ADD app_quantity integer;
SELECT fini.attach('incomplete');
ALTER TABLE incomplete ADD full_name_eng text;
SELECT fini.attach('incomplete');
ALTER TABLE incomplete DROP own_ref;
SELECT fini.attach('incomplete');
CREATE TABLE wrong_types (own_ref bytea PRIMARY KEY, ipo_id date, app_quantity integer, id_list text, extra text, id_num text, ref text UNIQUE NOT NULL, ipo text, list jsonb);
SELECT fini.attach('wrong_types');
SELECT fini.attach('wrong_types', '{"ownRef": "ref"}');
SELECT fini.attach('wrong_types', '{"ownRef": "ref", "ipoID": "ipo"}');
SELECT fini.attach('wrong_types', '{"ownRef": "ref", "ipoID": "ipo", "idList": "list"}');
SELECT fini.attach('wrong_types', '{"ownRef": "ref", "ipoID": "ipo", "idList": "list", "more": "extra", "idNum": "id_num", "idType": "id_list"}');

-- own_ref: not null, and unique by itself and at once
CREATE TABLE loose (own_ref text, ipo_id text, app_quantity integer, id_num text);
SELECT fini.attach('loose');
ALTER TABLE loose ALTER own_ref SET NOT NULL;
SELECT fini.attach('loose');
CREATE INDEX ON loose (own_ref);
ALTER TABLE loose ADD UNIQUE (own_ref, ipo_id);
CREATE UNIQUE INDEX ON loose (own_ref) WHERE ipo_id = '1234';
CREATE UNIQUE INDEX ON loose (lower(own_ref));
ALTER TABLE loose ADD CONSTRAINT late UNIQUE (own_ref) DEFERRABLE;
SELECT fini.attach('loose');
ALTER TABLE loose ADD CONSTRAINT prompt UNIQUE (own_ref) INCLUDE (ipo_id);
SELECT fini.attach('loose');

-- a user's own trigger of one of our names is left alone
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
SELECT fini.detach('loose');
CREATE TRIGGER fini_insert AFTER INSERT ON loose EXECUTE FUNCTION nothing();
SELECT fini.attach('loose', live => false);
SELECT fini.detach('loose');
SELECT tgname, tgfoid::regproc FROM pg_trigger WHERE tgrelid = 'loose'::regclass AND NOT tgisinternal;
SELECT fini.attach('loose');

-- not one's own
CREATE ROLE regress_fini_operator;
SELECT fini.grant_access('regress_fini_operator', 'operator');
GRANT USAGE, CREATE ON SCHEMA fini_attach TO regress_fini_operator;
GRANT ALL ON ALL TABLES IN SCHEMA fini_attach TO regress_fini_operator;
SET ROLE regress_fini_operator;
SELECT fini.attach('loose');
SELECT fini.attach('a_view');
SELECT fini.detach('applications');
SELECT fini.attach('pg_catalog.pg_class');
SELECT fini.attach(fini.create_subscription_table('operators'));
INSERT INTO operators (own_ref, ipo_id) VALUES ('O1', '1234');
SELECT * FROM ops('operators');
SELECT fini.cancel('operators');
SELECT own_ref, fini_state, fini_error FROM operators;
SELECT fini.detach('operators');
DROP TABLE operators;
RESET ROLE;

----------------------------------------------------------------------
-- What statements enqueue
----------------------------------------------------------------------
-- INSERT, all at once; nothing for no rows
INSERT INTO applications (own_ref, ipo_id) SELECT 'A' || i, '1234' FROM generate_series(1, 5) i;
INSERT INTO applications (own_ref, ipo_id) SELECT 'X', '1234' WHERE false;
UPDATE applications SET id_num = 'X' WHERE false;
DELETE FROM applications WHERE false;
-- changes coalesce while queued
UPDATE applications SET id_num = 'N1' WHERE own_ref = 'A1';
UPDATE applications SET id_num = 'N2', app_quantity = 5 WHERE own_ref IN ('A1', 'A2');
-- delete before sending cancels
DELETE FROM applications WHERE own_ref IN ('A3', 'A4');
SELECT * FROM ops('applications');
-- ... and an own_ref that was deleted can be inserted again
INSERT INTO applications (own_ref, ipo_id) VALUES ('A3', '3456');
SELECT * FROM ops('applications') WHERE own_ref = 'A3';
SELECT queue_in_step();

-- while being sent: one change, however often it is updated; a delete afterwards takes the change back
CALL claim('applications');
UPDATE applications SET id_num = 'N3' WHERE own_ref IN ('A1', 'A2');
UPDATE applications SET id_num = 'N4' WHERE own_ref IN ('A1', 'A2');
DELETE FROM applications WHERE own_ref = 'A2';
SELECT * FROM ops('applications') WHERE own_ref IN ('A1', 'A2') ORDER BY own_ref, operation;
-- inserted again before the withdrawal is through, changed, and deleted again
INSERT INTO applications (own_ref, ipo_id) VALUES ('A2', '1234');
UPDATE applications SET id_num = 'N5' WHERE own_ref = 'A2';
SELECT * FROM ops('applications') WHERE own_ref = 'A2';
DELETE FROM applications WHERE own_ref = 'A2';
SELECT * FROM ops('applications') WHERE own_ref = 'A2';

-- sent: a change for what is mapped, nothing for what is not or has not changed
CALL settle('applications', 'accepted');
CALL claim('applications');
CALL settle('applications', 'accepted');
DELETE FROM fini.submission WHERE own_ref NOT IN ('A1', 'A5');
UPDATE applications SET record_id = 'R', fini_state = 'S', fini_error = 'E', id_num = id_num, extra = extra;
SELECT * FROM ops('applications');
UPDATE applications SET id_num = NULL WHERE own_ref IN ('A1', 'A5');
SELECT * FROM ops('applications');
-- rejected: goes again as an add, unless the row was withdrawn or cancelled since
INSERT INTO applications (own_ref, ipo_id) VALUES ('B1', '1234'), ('B2', '1234'), ('B3', '1234');
CALL claim('applications', '{B1,B2,B3}');
CALL settle('applications', 'rejected', '{B1,B2,B3}');
UPDATE applications SET id_num = 'better' WHERE own_ref LIKE 'B%';
SELECT fini.cancel('applications', '{B2}'), fini.invalidate('applications', '{B3}');
UPDATE applications SET id_num = 'even better' WHERE own_ref LIKE 'B%';
SELECT * FROM ops('applications') WHERE own_ref LIKE 'B%';
SELECT own_ref, fini_state, fini_error FROM applications WHERE own_ref LIKE 'B%' ORDER BY 1;
-- a rejected change leaves the application standing
CALL claim('applications', '{A1}');
CALL settle('applications', 'rejected', '{A1}');
UPDATE applications SET id_num = 'other' WHERE own_ref = 'A1';
SELECT * FROM ops('applications') WHERE own_ref = 'A1';
SELECT queue_in_step();

-- own_ref and ipo_id: as long as it has not been sent
UPDATE applications SET own_ref = 'A1b' WHERE own_ref = 'A1';
UPDATE applications SET ipo_id = '3456' WHERE own_ref = 'A1';
INSERT INTO applications (own_ref, ipo_id) VALUES ('C1', '1234'), ('C2', '1234'), ('C3', '1234');
CALL claim('applications', '{C1,C3}');
UPDATE applications SET own_ref = 'C1b' WHERE own_ref = 'C1';
CALL settle('applications', 'rejected', '{C1}');
UPDATE applications SET own_ref = own_ref || 'b', ipo_id = '3456' WHERE own_ref IN ('C1', 'C2');
UPDATE applications SET ipo_id = '5678' WHERE own_ref = 'C2b';
UPDATE applications SET own_ref = 'C2c' WHERE own_ref = 'C2b';
SELECT * FROM ops('applications') WHERE own_ref LIKE 'C%';
-- several in one statement, one of them sent: none changes
UPDATE applications SET ipo_id = '1234' WHERE own_ref IN ('C2c', 'C3');
UPDATE applications SET ipo_id = '5678' WHERE own_ref IN ('C2c', 'C3');
SELECT own_ref, ipo_id FROM applications WHERE own_ref LIKE 'C%' ORDER BY 1;
-- one that was withdrawn stays so under its new name, whatever had become of it before
CALL claim('applications', '{C1b}');
CALL settle('applications', 'rejected', '{C1b}');
SELECT fini.retry(relation => 'applications', own_refs => '{C1b}'), fini.cancel('applications', '{C1b}');
UPDATE applications SET own_ref = 'C1c' WHERE own_ref = 'C1b';
SELECT * FROM ops('applications') WHERE own_ref LIKE 'C1%';
SELECT queue_in_step();

-- savepoints, COPY, ON CONFLICT, MERGE, and one statement that does a bit of everything
BEGIN;
INSERT INTO applications (own_ref, ipo_id) VALUES ('D1', '1234');
SAVEPOINT a;
INSERT INTO applications (own_ref, ipo_id) VALUES ('D2', '1234');
UPDATE applications SET id_num = 'gone' WHERE own_ref = 'A5';
ROLLBACK TO a;
INSERT INTO applications (own_ref, ipo_id) VALUES ('D3', '1234');
RELEASE a;
COMMIT;
COPY applications (own_ref, ipo_id, id_num) FROM stdin;
D4	1234	x
D5	1234	\N
\.
SELECT * FROM ops('applications') WHERE own_ref LIKE 'D%';
CALL claim('applications', '{D1,D3,D4,D5}');
CALL settle('applications', 'accepted', '{D1,D3,D4,D5}');
INSERT INTO applications (own_ref, ipo_id, id_num) VALUES ('D1', '1234', 'new'), ('D6', '1234', 'new'), ('D4', '1234', 'x')
ON CONFLICT (own_ref) DO UPDATE SET id_num = excluded.id_num;
INSERT INTO applications (own_ref, ipo_id) VALUES ('D1', '1234') ON CONFLICT DO NOTHING;
SELECT * FROM ops('applications') WHERE own_ref LIKE 'D%';
MERGE INTO applications a USING (VALUES ('D3', 'merged'), ('D4', NULL), ('D5', 'same'), ('D7', 'merged')) v(r, n) ON a.own_ref = v.r
WHEN MATCHED AND v.n = 'same' THEN DO NOTHING
WHEN MATCHED AND v.n IS NULL THEN DELETE
WHEN MATCHED THEN UPDATE SET id_num = v.n
WHEN NOT MATCHED THEN INSERT (own_ref, ipo_id, id_num) VALUES (v.r, '1234', v.n);
SELECT * FROM ops('applications') WHERE own_ref ~ '^D[3-7]';
-- a statement whose parts insert, update and delete
WITH d AS (DELETE FROM applications WHERE own_ref IN ('D1', 'D6')), u AS (UPDATE applications SET id_num = 'with' WHERE own_ref IN ('D5', 'D7'))
INSERT INTO applications (own_ref, ipo_id) VALUES ('D8', '1234');
SELECT * FROM ops('applications') WHERE own_ref ~ '^D[15678]';
-- deleted and inserted again in one transaction
BEGIN;
DELETE FROM applications WHERE own_ref = 'D3';
INSERT INTO applications (own_ref, ipo_id) VALUES ('D3', '3456');
COMMIT;
SELECT * FROM ops('applications') WHERE own_ref = 'D3';
-- a replica's changes are the origin's affair
SET session_replication_role = replica;
INSERT INTO applications (own_ref, ipo_id) VALUES ('E1', '1234');
UPDATE applications SET id_num = 'replica' WHERE own_ref IN ('E1', 'A5');
DELETE FROM applications WHERE own_ref = 'D5';
RESET session_replication_role;
SELECT * FROM ops('applications') WHERE own_ref IN ('E1', 'D5');
SELECT queue_in_step();

-- more rows than one portion; a reference, and an IPO, of absurd length are no reason for an error
INSERT INTO by_integer SELECT i, '1234', i, '[]' FROM generate_series(1, 45000) i;
UPDATE by_integer SET app_quantity = app_quantity + 1;
SELECT operation, state, count(*), count(DISTINCT own_ref) FROM ops('by_integer') GROUP BY 1, 2;
DELETE FROM by_integer;
SELECT operation, state, count(*) FROM ops('by_integer') GROUP BY 1, 2;
SELECT string_agg(md5(i::text), '') AS absurd FROM generate_series(1, 1000) i \gset
INSERT INTO applications (own_ref, ipo_id) VALUES ('F1', :'absurd'), ('F2', repeat('港', 1000));
UPDATE applications SET id_num = 'x' WHERE own_ref = 'F1';
SELECT own_ref, octet_length(ipo_id), operation, state FROM ops('applications') WHERE own_ref LIKE 'F%';
DELETE FROM applications WHERE own_ref LIKE 'F%';
SELECT own_ref, octet_length(ipo_id), operation, state FROM ops('applications') WHERE own_ref LIKE 'F%';
INSERT INTO mapped ("Client Ref", ipo, surname, given) VALUES ('M 1', 7, 'Chan', 'Tai Man'), ('M 2', NULL, 'Lee', 'Siu');
SELECT * FROM ops('mapped');

-- a value that is stored out of line is compared as it is
CREATE TABLE wide (LIKE by_uuid INCLUDING ALL, extra jsonb);
ALTER TABLE wide ALTER extra SET STORAGE EXTERNAL;
SELECT fini.attach('wide');
INSERT INTO wide SELECT 'f992b5c2-fd16-4e57-8387-738cb7aa75fb', '1234', '5', '[]', jsonb_build_object('long', repeat('x', 100000));
CALL claim('wide');
CALL settle('wide', 'accepted');
UPDATE wide SET extra = jsonb_build_object('long', repeat('x', 100000));
SELECT * FROM ops('wide');
UPDATE wide SET extra = jsonb_build_object('long', repeat('x', 99999) || 'y');
SELECT * FROM ops('wide');

-- what a user's trigger does when an outcome is written counts, that write itself does not
CREATE TABLE chained (LIKE applications INCLUDING ALL, touched integer DEFAULT 0);
SELECT fini.attach('chained', '{"touched": "touched"}');
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.touched := OLD.touched + 1; RETURN NEW; END $$;
CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql SET search_path = fini_attach, pg_temp AS $$
BEGIN
	IF NEW.fini_state = 'cancelled' AND NEW.own_ref NOT LIKE '%again' THEN
		INSERT INTO chained (own_ref, ipo_id) VALUES (NEW.own_ref || ' again', NEW.ipo_id);
		UPDATE chained SET id_num = 'followed' WHERE own_ref = 'K2';
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER touch BEFORE UPDATE ON chained FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TRIGGER follow AFTER UPDATE ON chained FOR EACH ROW EXECUTE FUNCTION follow();
INSERT INTO chained (own_ref, ipo_id) VALUES ('K1', '1234'), ('K2', '1234');
CALL claim('chained', '{K2}');
CALL settle('chained', 'accepted', '{K2}');
SELECT fini.cancel('chained', '{K1}');
SELECT own_ref, touched, fini_state FROM chained ORDER BY 1;
SELECT * FROM ops('chained');

----------------------------------------------------------------------
-- The trigger function placed by hand, and misplaced
----------------------------------------------------------------------
SELECT fini.attach('by_bigint', live => false);
INSERT INTO by_bigint (ipo_id) VALUES (7);
SELECT * FROM ops('by_bigint');
CREATE TRIGGER mine AFTER INSERT OR UPDATE OR DELETE ON by_bigint FOR EACH ROW EXECUTE FUNCTION fini.capture();
INSERT INTO by_bigint (ipo_id) VALUES (8), (9);
DELETE FROM by_bigint WHERE ipo_id = 9;
UPDATE by_bigint SET ipo_id = 10 WHERE ipo_id = 8;
SELECT * FROM ops('by_bigint');
DROP TRIGGER mine ON by_bigint;
CREATE TRIGGER mine BEFORE INSERT ON by_bigint FOR EACH ROW EXECUTE FUNCTION fini.capture();
INSERT INTO by_bigint (ipo_id) VALUES (8);
DROP TRIGGER mine ON by_bigint;
CREATE TRIGGER mine AFTER UPDATE ON by_bigint REFERENCING NEW TABLE AS n EXECUTE FUNCTION fini.capture();
UPDATE by_bigint SET ipo_id = 8;
DROP TRIGGER mine ON by_bigint;
CREATE TRIGGER mine AFTER INSERT ON incomplete FOR EACH ROW EXECUTE FUNCTION fini.capture();
INSERT INTO incomplete DEFAULT VALUES;
SELECT fini.capture();

----------------------------------------------------------------------
-- submit, invalidate, cancel, retry
----------------------------------------------------------------------
DELETE FROM by_bigint; DELETE FROM fini.queue; DELETE FROM fini.tally; DELETE FROM fini.submission;
INSERT INTO by_bigint (ipo_id, id_num) OVERRIDING SYSTEM VALUE SELECT 1 + i % 2, i FROM generate_series(1, 6) i;
SELECT fini.submit('by_bigint', '1'), fini.submit('by_bigint', '1');
SELECT fini.submit('by_bigint'), fini.submit('by_bigint');
SELECT ipo_id, operation, state, count(*) FROM ops('by_bigint') GROUP BY 1, 2, 3 ORDER BY 1;
SELECT fini.submit('by_bigint', '3'), fini.submit('by_bigint', NULL);
SELECT fini.submit('by_bigint', 'x');
SELECT fini.submit(NULL);
SELECT fini.submit('incomplete');
-- cancel: all that is queued, or some of it; what was cancelled can be submitted again
SELECT array_agg(own_ref ORDER BY own_ref) AS refs FROM by_bigint \gset
SELECT fini.cancel('by_bigint', (:'refs'::text[])[1:2]), fini.cancel('by_bigint', (:'refs'::text[])[1:2]), fini.cancel('by_bigint', '{no,NULL}');
CALL claim('by_bigint', (:'refs'::text[])[3:3]);
SELECT fini.cancel('by_bigint');
SELECT state, error_code, count(*) FROM ops('by_bigint') GROUP BY 1, 2 ORDER BY 1;
SELECT fini.submit('by_bigint');
-- invalidate: what is queued is cancelled, what is on its way or stands is withdrawn, once; each application counts once
CALL claim('by_bigint', (:'refs'::text[])[2:2]);
CALL settle('by_bigint', 'accepted');
UPDATE by_bigint SET id_num = 'changed' WHERE own_ref = (:'refs'::bigint[])[2];
SELECT fini.invalidate('by_bigint', (:'refs'::text[])[1:3] || (:'refs'::text[])[1] || '{nobody,NULL}'::text[]);
SELECT fini.invalidate('by_bigint', (:'refs'::text[])[1:3]);
SELECT operation, state, error_code, count(*) FROM ops('by_bigint') GROUP BY 1, 2, 3 ORDER BY 1, 2;
SELECT fini.invalidate('by_bigint', NULL), fini.invalidate('by_bigint', '{}');
-- retry: failed and rejected ones, unless overtaken
DELETE FROM fini.queue; DELETE FROM fini.tally; DELETE FROM fini.submission;
SELECT fini.submit('by_bigint');
CALL claim('by_bigint');
CALL settle('by_bigint', 'rejected', (:'refs'::text[])[1:2]);
CALL settle('by_bigint', 'failed', (:'refs'::text[])[3:4]);
CALL settle('by_bigint', 'accepted');
SELECT fini.retry('1', states => '{failed}'), fini.retry(relation => 'by_bigint', own_refs => (:'refs'::text[])[1:1]);
SELECT fini.retry('no such ipo'), fini.retry(), fini.retry();
SELECT operation, state, error_code, attempts, count(*) FROM fini.submission GROUP BY 1, 2, 3, 4 ORDER BY 1, 2;
SELECT fini.retry(states => '{accepted}');
SELECT fini.retry(states => '{rejected,queued}');
SELECT queue_in_step();

----------------------------------------------------------------------
-- TRUNCATE, detach, and the end of tables
----------------------------------------------------------------------
TRUNCATE by_bigint;
SELECT fini.detach('by_bigint');
CALL claim('by_bigint');
CALL settle('by_bigint', 'rejected');
TRUNCATE by_bigint;
SELECT fini.detach('by_bigint');
-- only accepted adds are left
SELECT DISTINCT operation, state FROM fini.submission WHERE state = 'accepted';
SELECT array_agg(own_ref ORDER BY own_ref) AS refs FROM fini.submission WHERE state = 'accepted' \gset
SELECT fini.attach('by_bigint');
-- own_ref cannot come from another column now, but a column may be renamed
ALTER TABLE by_bigint ADD other bigint GENERATED BY DEFAULT AS IDENTITY UNIQUE;
SELECT fini.attach('by_bigint', '{"ownRef": "other"}');
SELECT fini.attach('by_bigint', '{"ipoID": "other"}');
ALTER TABLE by_bigint RENAME own_ref TO renamed;
INSERT INTO by_bigint (ipo_id, other) VALUES (1, 100);
SELECT fini.attach('by_bigint', '{"ownRef": "renamed"}');
SELECT fini.invalidate('by_bigint', :'refs');
TRUNCATE by_bigint;
CALL claim('by_bigint');
CALL settle('by_bigint', 'accepted');
TRUNCATE by_bigint;
SELECT fini.attach('by_bigint', '{"ownRef": "other"}');

-- detach: not while something is open, unless forced
INSERT INTO wide VALUES ('00000000-0000-0000-0000-000000000001', '1234', '5', '[]'), ('00000000-0000-0000-0000-000000000002', '1234', '5', '[]');
CALL claim('wide', '{00000000-0000-0000-0000-000000000001}');
SELECT fini.detach('wide');
SELECT fini.detach('wide', force => true);
SELECT * FROM ops('wide');
SELECT tgname FROM pg_trigger WHERE tgrelid = 'wide'::regclass AND NOT tgisinternal;
SELECT count(*) FROM fini.attachment WHERE relation = 'wide'::regclass;
UPDATE wide SET app_quantity = 1;
SELECT fini.detach('wide');
SELECT fini.submit('wide');

-- a dropped table leaves its attachment, which can be detached
SELECT 'chained'::regclass::oid AS chained \gset
INSERT INTO chained (own_ref, ipo_id) VALUES ('K9', '1234');
DROP TABLE chained;
SELECT count(*) FROM fini.attachment WHERE relation = :chained;
SELECT fini.detach(:chained, true);
SELECT count(*) FROM fini.attachment WHERE relation = :chained;
SELECT own_ref, state FROM fini.submission WHERE relation = :chained AND own_ref = 'K9';

-- what tells of mappings belongs to fini.attachment alone
CREATE TABLE columnless ();
CREATE TRIGGER stray AFTER INSERT ON columnless FOR EACH ROW EXECUTE FUNCTION fini._attachment_changed();
INSERT INTO columnless DEFAULT VALUES;
DROP TABLE columnless;

-- triggers hold on to the extension
\set VERBOSITY terse
DROP EXTENSION fini;
BEGIN;
SET LOCAL client_min_messages = warning;
DROP EXTENSION fini CASCADE;
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'fini%' AND tgfoid <> 'nothing'::regproc;
INSERT INTO applications (own_ref, ipo_id) VALUES ('Z1', '1234');
TRUNCATE applications;
CREATE EXTENSION fini;
SELECT fini.attach('applications');
INSERT INTO applications (own_ref, ipo_id) VALUES ('Z2', '1234');
SELECT * FROM ops('applications');
ROLLBACK;
\set VERBOSITY default

-- what capture and the functions leave alone: settings of the session
SHOW enable_seqscan;
SHOW search_path;

SET client_min_messages = warning;
DELETE FROM fini.queue; DELETE FROM fini.tally; DELETE FROM fini.submission; DELETE FROM fini.attachment;
DROP SCHEMA fini_attach CASCADE;
DROP FOREIGN DATA WRAPPER fini_attach_nothing CASCADE;
DROP OWNED BY regress_fini_operator;
DROP ROLE regress_fini_operator;
