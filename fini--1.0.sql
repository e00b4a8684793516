/* fini--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION fini" to load this file. \quit

/*
 * Names that begin with an underscore are the extension's own; they may
 * change with any version.
 */

----------------------------------------------------------------------
-- Tables
----------------------------------------------------------------------

CREATE TABLE fini.attachment (
	relation	regclass PRIMARY KEY,
	fields		jsonb NOT NULL,
	outcome		jsonb NOT NULL,
	live		boolean NOT NULL,
	precheck	boolean NOT NULL,
	replicated	boolean NOT NULL,
	attached_by	regrole NOT NULL,
	attached_at	timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE fini.attachment IS 'tables whose rows are FINI applications, with the mapping in force: FINI field to column';

-- HOT updates: neither claim nor settle touches an indexed column, and a page has room for three versions of each of
-- its rows (queued, being sent, with its outcome), which is what there is of them under a snapshot that is held
CREATE TABLE fini.submission (
	id				bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	relation		regclass NOT NULL,
	own_ref			text NOT NULL,
	ipo_id			text NOT NULL,
	operation		text NOT NULL CHECK (operation IN ('add', 'change', 'invalidate')),
	state			text NOT NULL DEFAULT 'queued'
					CHECK (state IN ('queued', 'sending', 'unknown', 'accepted', 'rejected', 'cancelled', 'failed')),
	record_id		text,
	request_id		text,
	attempts		integer NOT NULL DEFAULT 0,
	error_code		text,
	error_message	text,
	not_before		timestamptz,
	created_at		timestamptz NOT NULL DEFAULT now(),
	sent_at			timestamptz,
	settled_at		timestamptz,
	stray			boolean NOT NULL DEFAULT false	-- about a record that is not the one of the own_ref's row
) WITH (fillfactor = 26, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
-- a third of a btree's size and work: own_refs come in random order, and of one there are few operations
CREATE INDEX submission_own_ref ON fini.submission USING hash (own_ref);
COMMENT ON TABLE fini.submission IS 'the durable outbox: one row per operation asked for, with its state';

-- where the worker has to look, no more: whether an operation is queued its own row says.  What is cancelled stays
-- listed until the worker comes by, and is taken off the count in fini.tally
CREATE TABLE fini.queue (
	ipo_id		text NOT NULL,
	operation	text NOT NULL,
	id			bigint NOT NULL,
	not_before	timestamptz,
	n			integer NOT NULL DEFAULT 1,
	ids			bigint[],		-- all of them in their order, when there are several
	PRIMARY KEY (ipo_id, operation, id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
ALTER TABLE fini.queue ALTER COLUMN ids SET STORAGE EXTERNAL;
CREATE INDEX queue_deferred ON fini.queue (not_before) WHERE not_before IS NOT NULL;
COMMENT ON TABLE fini.queue IS 'operations to be claimed, in their order: a row for one, or for a run of them that one statement asked for';

CREATE VIEW fini._listed AS
	SELECT q.ipo_id, q.operation, l.id, q.not_before FROM fini.queue q, LATERAL unnest(coalesce(q.ids, ARRAY[q.id])) AS l(id);
COMMENT ON VIEW fini._listed IS 'a row for each operation that fini.queue lists; those that are queued are among them';

CREATE TABLE fini.request (
	request_id	text PRIMARY KEY,
	endpoint	text NOT NULL,
	entries		integer NOT NULL,
	attempts	integer NOT NULL DEFAULT 0,
	http_status	integer,
	code		text,
	message		text,
	started_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	duration	interval,
	state		text NOT NULL CHECK (state IN ('sending', 'unknown', 'answered', 'found_out')),
	ipo_id		text,
	operation	text,
	members		bigint[]
);
ALTER TABLE fini.request ALTER COLUMN members SET STORAGE EXTERNAL;
CREATE INDEX request_open ON fini.request (state) WHERE state IN ('sending', 'unknown');
COMMENT ON TABLE fini.request IS 'one row per request of the worker that changes something at FINI, written before its first byte leaves';

CREATE TABLE fini.unwritten (
	id		bigint PRIMARY KEY
);
COMMENT ON TABLE fini.unwritten IS 'operations whose outcome a lock kept from being written to its row; the worker tries again';

CREATE TABLE fini.look (
	ipo_id		text PRIMARY KEY,
	cursor		text NOT NULL,
	looked_at	timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE fini.look IS 'where FINI''s records of an IPO ended at the last look for what was in doubt; the next look begins there';

CREATE TABLE fini.control (
	singleton			boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	created_at			timestamptz NOT NULL DEFAULT clock_timestamp(),
	system_identifier	bigint,
	home				text,
	timeline			integer,
	doubt_below			bigint NOT NULL DEFAULT 0,
	armed_at			timestamptz,
	armed_by			text,
	paused_at			timestamptz,
	paused_by			text,
	paused_reason		text
);
INSERT INTO fini.control DEFAULT VALUES;
COMMENT ON TABLE fini.control IS 'whether this cluster may send: armed for its system identifier, data directory and timeline, and not paused; operations up to doubt_below are looked for at FINI before they are sent';

SELECT pg_catalog.pg_extension_config_dump('fini.attachment', '');
SELECT pg_catalog.pg_extension_config_dump('fini.submission', '');
SELECT pg_catalog.pg_extension_config_dump('fini.submission_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('fini.queue', '');
SELECT pg_catalog.pg_extension_config_dump('fini.request', '');
SELECT pg_catalog.pg_extension_config_dump('fini.unwritten', '');

----------------------------------------------------------------------
-- Deadlines: tables
----------------------------------------------------------------------

CREATE TABLE fini.deadline (
	ipo_id		text PRIMARY KEY,
	deadline	timestamptz NOT NULL,
	set_by		text NOT NULL,
	set_at		timestamptz NOT NULL DEFAULT clock_timestamp(),
	missed		bigint NOT NULL DEFAULT 0,
	warned_at	timestamptz,
	passed_at	timestamptz
);
COMMENT ON TABLE fini.deadline IS 'deadlines of IPOs, after which nothing is sent for them; written by fini.set_deadline and the worker';

-- see src/outbox_tally.c; the sum of n is the count
CREATE TABLE fini.tally (
	ipo_id	text NOT NULL,
	state	text NOT NULL,
	n		bigint NOT NULL,
	at		timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE fini.tally IS 'how many operations of an IPO have ended in a state, as differences to be added up; and, state queued, how many fewer are queued than fini.queue lists';

SELECT pg_catalog.pg_extension_config_dump('fini.deadline', '');
SELECT pg_catalog.pg_extension_config_dump('fini.tally', '');

----------------------------------------------------------------------
-- Building blocks
----------------------------------------------------------------------

CREATE FUNCTION fini.encrypt_field(plaintext text, data_key bytea, iv bytea)
RETURNS text
AS 'MODULE_PATHNAME', 'fini_sql_encrypt_field'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION fini.encrypt_field(text, bytea, bytea) IS
'encrypts one value as FINI expects it: prefix, base64 of AES-256-GCM ciphertext and tag';

CREATE FUNCTION fini.decrypt_field(ciphertext text, data_key bytea, iv bytea)
RETURNS text
AS 'MODULE_PATHNAME', 'fini_sql_decrypt_field'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION fini.decrypt_field(text, bytea, bytea) IS
'decrypts one value that FINI or fini.encrypt_field encrypted';

-- these two read fini.encrypted_fields, so they are not immutable
CREATE FUNCTION fini.encrypt_fields(payload json, data_key bytea, iv bytea)
RETURNS text
AS 'MODULE_PATHNAME', 'fini_sql_encrypt_fields'
LANGUAGE C STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION fini.encrypt_fields(json, bytea, bytea) IS
'encrypts the personal fields of a payload at any depth and leaves every other byte as it is';

CREATE FUNCTION fini.decrypt_fields(payload json, data_key bytea, iv bytea)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'fini_sql_decrypt_fields'
LANGUAGE C STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION fini.decrypt_fields(json, bytea, bytea) IS
'decrypts the personal fields of an answer at any depth';

-- PKCS#1 v1.5 padding is random
CREATE FUNCTION fini.wrap_key(data_key bytea, iv bytea, public_key text)
RETURNS text
AS 'MODULE_PATHNAME', 'fini_sql_wrap_key'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION fini.wrap_key(bytea, bytea, text) IS
'the header X-FINI-ENCRYPTED-KEY: data key and IV under the public key that crypto/meta gives';

CREATE FUNCTION fini.sign(data_key bytea, body text, request_id text, timestamp_ms bigint)
RETURNS text
AS 'MODULE_PATHNAME', 'fini_sql_sign'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION fini.sign(bytea, text, text, bigint) IS
'the header X-FINI-SIGNATURE of a request';

----------------------------------------------------------------------
-- Keys to register
----------------------------------------------------------------------

CREATE TABLE fini.registered_key (
	profile		text NOT NULL CHECK (profile IN ('agent', 'machine')),
	kid			text NOT NULL,
	expires		timestamptz NOT NULL,
	recorded_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	recorded_by	text NOT NULL DEFAULT session_user,
	PRIMARY KEY (profile, kid)
);
COMMENT ON TABLE fini.registered_key IS 'keys for which fini.jwks made a set to register, with the end that it gave them last';
SELECT pg_catalog.pg_extension_config_dump('fini.registered_key', '');

-- reads a key file
CREATE FUNCTION fini._jwks(profile text, expires timestamptz)
RETURNS json LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'fini_sql_jwks';
COMMENT ON FUNCTION fini._jwks(text, timestamptz) IS 'the JWK set of a profile''s key';

CREATE FUNCTION fini.jwks(profile text, expires timestamptz) RETURNS json
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	made json := fini._jwks(profile, expires);
BEGIN
	-- so that fini.check can warn before the registration ends
	IF current_setting('transaction_read_only') = 'on' THEN
		RAISE NOTICE 'the transaction is read-only: fini.check will not know when this key expires';
	ELSE
		INSERT INTO fini.registered_key AS r (profile, kid, expires)
		VALUES (jwks.profile, made #>> '{keys,0,kid}', jwks.expires)
		ON CONFLICT (profile, kid) DO UPDATE SET expires = excluded.expires, recorded_at = excluded.recorded_at, recorded_by = excluded.recorded_by;
	END IF;
	RETURN made;
END $$;
COMMENT ON FUNCTION fini.jwks(text, timestamptz) IS
'the JWK set to register on HKEX Client Connect for the profile agent or machine; its end is kept for fini.check';

----------------------------------------------------------------------
-- Direct calls
----------------------------------------------------------------------

CREATE FUNCTION fini.ipo_list(OUT ipo_id text, OUT stock_code text, OUT isin text, OUT status text, OUT raw jsonb)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_ipo_list';
COMMENT ON FUNCTION fini.ipo_list() IS 'the IPOs at FINI, all pages';

CREATE FUNCTION fini.ipo_refdata(ipo_id text)
RETURNS jsonb LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_ipo_refdata';
COMMENT ON FUNCTION fini.ipo_refdata(text) IS 'reference data of one IPO, whole';

CREATE FUNCTION fini.subscription_add(entries jsonb, OUT request_id text, OUT own_ref text, OUT record_id text,
	OUT error_code text, OUT error_message text)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_subscription_add';
COMMENT ON FUNCTION fini.subscription_add(jsonb) IS 'add applications now, from this session: one row per entry, in order';

CREATE FUNCTION fini.subscription_change(entries jsonb, OUT request_id text, OUT own_ref text, OUT record_id text,
	OUT error_code text, OUT error_message text)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_subscription_change';
COMMENT ON FUNCTION fini.subscription_change(jsonb) IS 'change applications now, by their recordID: one row per entry, in order';

CREATE FUNCTION fini.subscription_invalidate(record_ids text[], OUT request_id text, OUT own_ref text, OUT record_id text,
	OUT error_code text, OUT error_message text)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_subscription_invalidate';
COMMENT ON FUNCTION fini.subscription_invalidate(text[]) IS 'invalidate records now: one row per record, in order';

CREATE FUNCTION fini.subscription_query(ipo_id text DEFAULT NULL, record_ids text[] DEFAULT NULL, sub_flow_status text DEFAULT NULL,
	OUT record_id text, OUT ipo_id text, OUT own_ref text, OUT app_quantity numeric, OUT sub_flow_status text,
	OUT id_list jsonb, OUT raw jsonb)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_subscription_query';

CREATE FUNCTION fini.funding_query(ipo_id text DEFAULT NULL, OUT transaction_ref text, OUT ipo_id text,
	OUT pre_funding_status text, OUT raw jsonb)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_funding_query';
COMMENT ON FUNCTION fini.subscription_query(text, text[], text) IS 'records at FINI, decrypted, all pages; ipo_id or record_ids is needed';

COMMENT ON FUNCTION fini.funding_query(text) IS 'funding of this bank''s participants, all pages';

CREATE FUNCTION fini.funding_confirm(transaction_refs text[], status text, OUT transaction_ref text,
	OUT pre_funding_status text, OUT error_code text, OUT error_message text)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_funding_confirm';
COMMENT ON FUNCTION fini.funding_confirm(text[], text) IS 'confirm (20) or reject (30) funding now: one row per reference, in order';

CREATE FUNCTION fini.call(path text, body jsonb DEFAULT NULL, sealed boolean DEFAULT false)
RETURNS jsonb LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_call';
COMMENT ON FUNCTION fini.call(text, jsonb, boolean) IS 'any endpoint of the gateway: POST with a body, GET without; sealed: with the envelope';

----------------------------------------------------------------------
-- Whether anything is sent
----------------------------------------------------------------------

CREATE FUNCTION fini._wake() RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_wake';
COMMENT ON FUNCTION fini._wake() IS 'wakes this database''s worker when the transaction commits';

CREATE FUNCTION fini._primary(function text) RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fini_sql_primary';
COMMENT ON FUNCTION fini._primary(text) IS 'raises the error that a function of this name cannot run during recovery, on a standby';

CREATE FUNCTION fini._cluster(OUT system_identifier bigint, OUT home text, OUT timeline integer, OUT streaming boolean)
LANGUAGE C VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fini_sql_cluster';
COMMENT ON FUNCTION fini._cluster() IS 'which cluster this is: what fini.arm() binds to';

/*
 * A restored dump has another system identifier, a copied data directory
 * another home.  A standby that has been promoted has another home too, but a
 * later timeline and a primary that it streamed from.
 */
CREATE VIEW fini._may_send AS
	SELECT coalesce(c.system_identifier = k.system_identifier
					AND (c.home = k.home OR (k.streaming AND k.timeline > c.timeline)), false) AS armed,
		c.paused_at IS NOT NULL AS paused, c.doubt_below
	FROM fini.control c, fini._cluster() k;
COMMENT ON VIEW fini._may_send IS 'is this cluster armed, and is it paused?';

/*
 * After a promotion, a restore or on a copy, the outbox can be older than FINI:
 * what is open in it may have been sent.  The same goes for operations that are older
 * than the extension in this database: they came with a dump.
 */
CREATE FUNCTION fini._adopt_timeline() RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
	UPDATE fini.control c SET timeline = k.timeline, home = k.home,
		doubt_below = coalesce((SELECT max(s.id) FROM fini.submission s WHERE c.timeline IS NOT NULL OR s.created_at < c.created_at), 0)
	FROM fini._cluster() k
	WHERE (c.timeline, c.home) IS DISTINCT FROM (k.timeline, k.home)
$$;
COMMENT ON FUNCTION fini._adopt_timeline() IS 'on a new timeline or in a new place, what is open is to be looked for at FINI before it is sent';

CREATE FUNCTION fini.arm() RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT fini._primary('arm');
	INSERT INTO fini.control DEFAULT VALUES ON CONFLICT DO NOTHING;
	SELECT fini._adopt_timeline();
	UPDATE fini.control c SET system_identifier = k.system_identifier, home = k.home,
		armed_at = clock_timestamp(), armed_by = session_user
	FROM fini._cluster() k;
	SELECT fini._wake();
$$;
COMMENT ON FUNCTION fini.arm() IS 'allows this very cluster to submit; a restored dump, an upgraded cluster or a copied data directory starts disarmed';

CREATE FUNCTION fini.disarm() RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT fini._primary('disarm');
	UPDATE fini.control SET system_identifier = NULL, armed_at = NULL, armed_by = NULL;
	SELECT fini._wake();
$$;
COMMENT ON FUNCTION fini.disarm() IS 'nothing that changes anything at FINI is sent any more';

CREATE FUNCTION fini.pause(reason text DEFAULT NULL) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT fini._primary('pause');
	UPDATE fini.control SET paused_at = clock_timestamp(), paused_by = session_user, paused_reason = reason;
	SELECT fini._wake();
$$;
COMMENT ON FUNCTION fini.pause(text) IS 'the worker sends nothing more until fini.resume; direct calls go on';

CREATE FUNCTION fini._resume_endpoints() RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_resume_endpoints';
COMMENT ON FUNCTION fini._resume_endpoints() IS 'lets the worker use endpoints again that were stopped';

CREATE FUNCTION fini.resume() RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT fini._primary('resume');
	UPDATE fini.control SET paused_at = NULL, paused_by = NULL, paused_reason = NULL;
	SELECT fini._resume_endpoints();
	SELECT fini._wake();
$$;
COMMENT ON FUNCTION fini.resume() IS 'ends a pause, and uses endpoints again that were stopped after a refusal';

----------------------------------------------------------------------
-- Subscription tables
----------------------------------------------------------------------

CREATE FUNCTION fini.create_subscription_table(name text) RETURNS regclass
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	parts text[] := pg_catalog.parse_ident(name);
	qualified text;
BEGIN
	PERFORM fini._primary('create_subscription_table');
	-- where CREATE TABLE would put it, so that what is returned is what was created
	IF pg_catalog.cardinality(parts) OPERATOR(pg_catalog.=) 1 AND current_schema IS NOT NULL THEN
		parts := pg_catalog.array_prepend(current_schema::text, parts);
	END IF;
	IF pg_catalog.cardinality(parts) OPERATOR(pg_catalog.>) 2 THEN
		RAISE invalid_name USING MESSAGE = pg_catalog.format('"%s" is no table name', name),
			HINT = 'Give a name, or schema and name.';
	END IF;
	SELECT pg_catalog.string_agg(pg_catalog.quote_ident(p), '.' ORDER BY n) INTO qualified
	FROM pg_catalog.unnest(parts) WITH ORDINALITY AS u(p, n);
	EXECUTE 'CREATE TABLE ' OPERATOR(pg_catalog.||) qualified OPERATOR(pg_catalog.||) ' (
		own_ref text PRIMARY KEY,
		ipo_id text NOT NULL,
		app_quantity bigint,
		firm_id text,
		id_type text,
		id_country_jurisdiction text,
		id_num text,
		full_name_eng text,
		full_name_chi text,
		id_list jsonb,
		extra jsonb,
		record_id text,
		fini_state text,
		fini_error text) WITH (fillfactor = 45)';
	-- room on each page for the versions of all its rows that have their outcome, so that no index has to know of them
	RETURN qualified::regclass;
END $$;
COMMENT ON FUNCTION fini.create_subscription_table(text) IS 'creates a table with the standard columns, owned by the caller; attach it next';

-- takes its owner's rights by itself, and pins the search_path when it runs SQL
CREATE FUNCTION fini.capture() RETURNS trigger
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'fini_sql_capture';
COMMENT ON FUNCTION fini.capture() IS 'trigger function of attached tables: enqueues what a statement asks for';

-- a row's change is the table's, for all who keep what they know of it
CREATE FUNCTION fini._attachment_changed() RETURNS trigger
LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'fini_sql_attachment_changed';
COMMENT ON FUNCTION fini._attachment_changed() IS 'trigger function of fini.attachment: tells all sessions that a table''s mapping has changed';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON fini.attachment
	FOR EACH ROW EXECUTE FUNCTION fini._attachment_changed();
ALTER TABLE fini.attachment ENABLE ALWAYS TRIGGER changed;
COMMENT ON TRIGGER changed ON fini.attachment IS 'tells all sessions that a table''s mapping has changed';

CREATE FUNCTION fini.attach(relation regclass, fields jsonb DEFAULT '{}', outcome jsonb DEFAULT '{}', live boolean DEFAULT true,
	precheck boolean DEFAULT false, replicated boolean DEFAULT false)
RETURNS void LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_attach';
COMMENT ON FUNCTION fini.attach(regclass, jsonb, jsonb, boolean, boolean, boolean) IS 'makes the rows of a table FINI applications';

-- partitions that come later get their triggers from this
CREATE FUNCTION fini._follow_partitions() RETURNS event_trigger
LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'fini_sql_follow_partitions';
COMMENT ON FUNCTION fini._follow_partitions() IS 'gives new partitions of attached tables their triggers, as the extension''s owner';
CREATE EVENT TRIGGER fini_follow_partitions ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'CREATE SCHEMA')
	EXECUTE FUNCTION fini._follow_partitions();
COMMENT ON EVENT TRIGGER fini_follow_partitions IS 'follows partitions of tables attached to fini';

CREATE FUNCTION fini.precheck(relation regclass, ipo_id text, OUT own_ref text, OUT problem text, OUT detail text)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'fini_sql_precheck';
COMMENT ON FUNCTION fini.precheck(regclass, text) IS 'what FINI would refuse of the rows of one IPO, as far as it can be known; no personal values';

CREATE FUNCTION fini.detach(relation regclass, force boolean DEFAULT false)
RETURNS void LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_detach';
COMMENT ON FUNCTION fini.detach(regclass, boolean) IS 'stops; refused while something is open, unless forced';

CREATE FUNCTION fini.submit(relation regclass, ipo_id text DEFAULT NULL)
RETURNS bigint LANGUAGE C VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'fini_sql_submit';
COMMENT ON FUNCTION fini.submit(regclass, text) IS 'enqueues the rows that were never sent; returns how many';

CREATE FUNCTION fini._write_back(ids bigint[])
RETURNS void LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_write_back';
COMMENT ON FUNCTION fini._write_back(bigint[]) IS 'writes the outcome of operations back into the rows of their tables, as the tables'' owners';

-- whoever has locked a queued operation owns it: the worker's claim, a cancel, a trigger
CREATE FUNCTION fini._take(ids bigint[]) RETURNS bigint[]
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_take';
COMMENT ON FUNCTION fini._take(bigint[]) IS 'locks those of the operations that are still queued, and says which; waits for whoever is working on them';

/*
 * Withdraw: cancel adds and changes still queued, then enqueue an invalidate
 * for what stands or may come to stand at FINI.
 */
CREATE FUNCTION fini._withdraw(relation regclass, own_refs text[]) RETURNS bigint
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_withdraw';
COMMENT ON FUNCTION fini._withdraw(regclass, text[]) IS 'withdraws applications, wherever they are on their way; returns how many it concerned';

CREATE FUNCTION fini.invalidate(relation regclass, own_refs text[]) RETURNS bigint
LANGUAGE sql STRICT VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT fini._primary('invalidate');
	SELECT fini._withdraw(relation, own_refs)
$$;
COMMENT ON FUNCTION fini.invalidate(regclass, text[]) IS 'withdraws these applications at FINI; what is still queued is cancelled instead. Returns how many';

CREATE FUNCTION fini.cancel(relation regclass, own_refs text[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	ids bigint[];
BEGIN
	PERFORM fini._primary('cancel');
	IF own_refs IS NULL THEN
		ids := ARRAY(SELECT s.id FROM fini._listed l, LATERAL (SELECT s.id FROM fini.submission s
			WHERE s.id = l.id AND s.state = 'queued' AND s.relation = cancel.relation OFFSET 0) s);
	ELSE
		ids := ARRAY(SELECT s.id FROM fini.submission s
			WHERE s.own_ref = ANY (own_refs) AND s.state = 'queued' AND s.relation = cancel.relation);
	END IF;
	ids := fini._take(ids);
	WITH cancelled AS (
		UPDATE fini.submission s SET state = 'cancelled', settled_at = clock_timestamp(), error_code = 'cancelled',
			error_message = 'cancelled before it was sent'
		WHERE s.id = ANY (ids)
		RETURNING s.id, s.ipo_id
	), tallied AS (
		INSERT INTO fini.tally (ipo_id, state, n)
		SELECT ipo_id, x.state, x.sign * count(*) FROM cancelled, (VALUES ('cancelled', 1), ('queued', -1)) AS x(state, sign)
		GROUP BY ipo_id, x.state, x.sign
	)
	SELECT array_agg(id) INTO ids FROM cancelled;
	IF ids IS NOT NULL THEN
		PERFORM fini._write_back(ids);
	END IF;
	RETURN coalesce(cardinality(ids), 0);
END $$;
COMMENT ON FUNCTION fini.cancel(regclass, text[]) IS 'cancels operations of a table that are still queued (all of them, or these own_refs); returns how many';

CREATE FUNCTION fini.retry(ipo_id text DEFAULT NULL, relation regclass DEFAULT NULL, own_refs text[] DEFAULT NULL,
	states text[] DEFAULT '{failed,rejected}') RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	n bigint;
BEGIN
	PERFORM fini._primary('retry');
	IF NOT states <@ '{failed,rejected}' THEN
		RAISE invalid_parameter_value USING MESSAGE = 'only failed and rejected operations can be put back',
			HINT = 'Give states as an array of failed, rejected or both.';
	END IF;
	-- one that has been overtaken by a later operation stays as it is
	WITH again AS (
		UPDATE fini.submission s
		SET state = 'queued', attempts = 0, request_id = NULL, error_code = NULL, error_message = NULL, not_before = NULL, settled_at = NULL
		FROM fini.submission o
		WHERE o.id = s.id AND s.state = ANY (states)
		  AND (retry.ipo_id IS NULL OR s.ipo_id = retry.ipo_id)
		  AND (retry.relation IS NULL OR s.relation = retry.relation)
		  AND (retry.own_refs IS NULL OR s.own_ref = ANY (retry.own_refs))
		  AND NOT EXISTS (SELECT FROM fini.submission later
						  WHERE later.own_ref = s.own_ref AND later.relation = s.relation AND later.id > s.id
							AND later.state <> 'cancelled')
		RETURNING s.id, s.ipo_id, s.operation, o.state
	), queued AS (
		INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, operation, id FROM again
	), tallied AS (
		INSERT INTO fini.tally (ipo_id, state, n) SELECT ipo_id, state, -count(*) FROM again GROUP BY ipo_id, state
	)
	SELECT count(*) INTO n FROM again;
	PERFORM fini._wake();
	RETURN n;
END $$;
COMMENT ON FUNCTION fini.retry(text, regclass, text[], text[]) IS 'puts failed or rejected operations back into the queue; returns how many';

CREATE FUNCTION fini._wait_for_settle(serial bigint, timeout_ms integer) RETURNS bigint
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_wait_for_settle';
COMMENT ON FUNCTION fini._wait_for_settle(bigint, integer) IS 'waits until the worker has settled something since the given serial, and returns the new one';

CREATE FUNCTION fini._is_mine(writer xid) RETURNS boolean
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_is_mine';
COMMENT ON FUNCTION fini._is_mine(xid) IS 'was a row with this xmin written by the current transaction, its savepoints included?';

CREATE FUNCTION fini.wait(ipo_id text DEFAULT NULL, timeout interval DEFAULT '1 min') RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	deadline timestamptz := clock_timestamp() + timeout;
	next_notice timestamptz := clock_timestamp() + interval '1 second';
	serial bigint := -1;
	queued bigint;
	under_way bigint;
	last_text text;
	this_text text;
BEGIN
	PERFORM fini._primary('wait');
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE active_sql_transaction USING MESSAGE = 'fini.wait cannot see progress in this transaction',
			DETAIL = format('Its isolation level is %s.', current_setting('transaction_isolation')),
			HINT = 'Call it at isolation level read committed.';
	END IF;
	IF pg_current_xact_id_if_assigned() IS NOT NULL AND
		(EXISTS (SELECT FROM fini.queue q, LATERAL unnest(coalesce(q.ids, ARRAY[q.id])) AS l(id),
					LATERAL (SELECT FROM fini.submission s WHERE s.id = l.id AND s.state = 'queued' OFFSET 0) s
				 WHERE fini._is_mine(q.xmin))
		 OR EXISTS (SELECT FROM fini.funding_confirmation c WHERE c.state = 'queued' AND fini._is_mine(c.xmin))) THEN
		RAISE active_sql_transaction USING MESSAGE = 'fini.wait would wait for its own transaction',
			DETAIL = 'Operations that this transaction has enqueued are sent after it commits.',
			HINT = 'Commit first, then wait.';
	END IF;
	LOOP
		-- the serial is read before the tables, so that no settle falls in between
		serial := fini._wait_for_settle(serial,
			greatest(0, least(1000, extract(epoch FROM deadline - clock_timestamp()) * 1000))::integer);
		IF NOT EXISTS (SELECT FROM fini._listed l, LATERAL (SELECT FROM fini.submission s WHERE s.id = l.id AND s.state = 'queued' OFFSET 0) s
					   WHERE wait.ipo_id IS NULL OR l.ipo_id = wait.ipo_id)
		   AND NOT EXISTS (SELECT FROM fini.request r WHERE r.state IN ('sending', 'unknown')
						   AND r.operation IS NOT NULL AND (wait.ipo_id IS NULL OR r.ipo_id = wait.ipo_id))
		   AND NOT EXISTS (SELECT FROM fini.funding_confirmation c WHERE c.state IN ('queued', 'sending', 'unknown')
						   AND (wait.ipo_id IS NULL OR c.ipo_id = wait.ipo_id)) THEN
			RETURN true;
		END IF;
		IF clock_timestamp() >= next_notice THEN
			SELECT coalesce(sum(l.n), 0) INTO queued FROM (SELECT q.ipo_id, q.n FROM fini.queue q
				UNION ALL SELECT t.ipo_id, t.n FROM fini.tally t WHERE t.state = 'queued') l
			WHERE wait.ipo_id IS NULL OR l.ipo_id = wait.ipo_id;
			SELECT coalesce(sum(cardinality(r.members)), 0) INTO under_way FROM fini.request r
			WHERE r.state IN ('sending', 'unknown') AND (wait.ipo_id IS NULL OR r.ipo_id = wait.ipo_id);
			this_text := format('%s queued, %s being sent', queued, under_way);
			IF this_text IS DISTINCT FROM last_text THEN
				RAISE NOTICE '%', this_text;
				last_text := this_text;
			END IF;
			next_notice := clock_timestamp() + interval '1 second';
		END IF;
		IF clock_timestamp() >= deadline THEN
			RETURN false;
		END IF;
	END LOOP;
END $$;
COMMENT ON FUNCTION fini.wait(text, interval) IS 'waits until nothing is open, with progress as notices; true when done, false when the time is up';

----------------------------------------------------------------------
-- Reconciling
----------------------------------------------------------------------

-- reached: the last operation, or key of a candidate, of the slices done in the phases rows and candidates
CREATE TABLE fini.reconcile_run (
	run_id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	relation		regclass NOT NULL,
	ipo_id			text NOT NULL,
	state			text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'finished', 'failed', 'cancelled')),
	local			bigint NOT NULL DEFAULT 0,
	remote			bigint NOT NULL DEFAULT 0,
	matched			bigint NOT NULL DEFAULT 0,
	discrepancies	bigint NOT NULL DEFAULT 0,
	started_at		timestamptz NOT NULL DEFAULT clock_timestamp(),
	finished_at		timestamptz,
	started_by		text NOT NULL,
	background		boolean NOT NULL,
	phase			text NOT NULL DEFAULT 'pages' CHECK (phase IN ('pages', 'rows', 'candidates')),
	pages			bigint NOT NULL DEFAULT 0,
	cursor			text,
	cursor_mark		text,
	reached			bigint NOT NULL DEFAULT 0,
	progress_at		timestamptz,
	failures		integer NOT NULL DEFAULT 0,
	not_before		timestamptz,
	error			text
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX reconcile_run_running ON fini.reconcile_run (relation, ipo_id) WHERE state = 'running';
COMMENT ON TABLE fini.reconcile_run IS 'reconciliations of a table with FINI''s records of one IPO, and how far those under way have come';

CREATE TABLE fini.discrepancy (
	run_id		bigint NOT NULL,		-- no foreign key: pg_restore --jobs would load this table before that one
	kind		text NOT NULL CHECK (kind IN ('missing_at_fini', 'missing_locally', 'field_differs',
											  'status_differs', 'duplicate_at_fini', 'record_id_differs')),
	own_ref		text,
	record_id	text,
	field		text,
	local		text,
	remote		text
);
CREATE INDEX discrepancy_run ON fini.discrepancy (run_id, kind);
COMMENT ON TABLE fini.discrepancy IS 'what a reconciliation found; personal fields by name only';

-- 256 neighbouring operations to a bucket; a page adds a row to each bucket that it has operations of
CREATE TABLE fini.reconcile_seen (
	run_id		bigint NOT NULL,
	bucket		bigint NOT NULL,
	operations	bigint[] NOT NULL
);
CREATE INDEX reconcile_seen_bucket ON fini.reconcile_seen (run_id, bucket);
COMMENT ON TABLE fini.reconcile_seen IS 'of runs under way: operations whose record is at FINI, active';

-- kind: that of a discrepancy, or other (an active record that is not the one its row knows) or foreign (one without a row)
CREATE TABLE fini.reconcile_candidate (
	run_id		bigint NOT NULL,
	key			bigint NOT NULL,
	kind		text NOT NULL,
	own_ref		text NOT NULL,
	record_id	text,
	field		text,
	local		text,
	remote		text,
	standing	bigint
);
CREATE INDEX reconcile_candidate_key ON fini.reconcile_candidate (run_id, key);
CREATE INDEX reconcile_candidate_record_id ON fini.reconcile_candidate (run_id, record_id) WHERE record_id IS NOT NULL;
COMMENT ON TABLE fini.reconcile_candidate IS 'of runs under way: what may become a discrepancy; personal fields by name only';

CREATE FUNCTION fini._forget_runs() RETURNS trigger
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	DELETE FROM fini.discrepancy d USING gone WHERE d.run_id = gone.run_id;
	DELETE FROM fini.reconcile_seen s USING gone WHERE s.run_id = gone.run_id;
	DELETE FROM fini.reconcile_candidate c USING gone WHERE c.run_id = gone.run_id;
	RETURN NULL;
END $$;
COMMENT ON FUNCTION fini._forget_runs() IS 'trigger function: what belongs to a run goes with it';
CREATE TRIGGER forget_runs AFTER DELETE ON fini.reconcile_run REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT EXECUTE FUNCTION fini._forget_runs();

SELECT pg_catalog.pg_extension_config_dump('fini.reconcile_run', '');
SELECT pg_catalog.pg_extension_config_dump('fini.reconcile_run_run_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('fini.discrepancy', '');
SELECT pg_catalog.pg_extension_config_dump('fini.reconcile_seen', '');
SELECT pg_catalog.pg_extension_config_dump('fini.reconcile_candidate', '');

CREATE FUNCTION fini.reconcile(relation regclass, ipo_id text, OUT run_id bigint, OUT local bigint, OUT remote bigint,
	OUT matched bigint, OUT discrepancies bigint, OUT started_at timestamptz, OUT finished_at timestamptz)
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'fini_sql_reconcile';
COMMENT ON FUNCTION fini.reconcile(regclass, text) IS 'compares every row of the table for this IPO with every record at FINI, now and in this transaction';

CREATE FUNCTION fini.start_reconcile(relation regclass, ipo_id text) RETURNS bigint
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'fini_sql_start_reconcile';
COMMENT ON FUNCTION fini.start_reconcile(regclass, text) IS 'has the worker compare every row of the table for this IPO with every record at FINI; returns the run_id at once';

CREATE FUNCTION fini._forget_runs(older_than interval) RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
	WITH gone AS (
		DELETE FROM fini.reconcile_run r WHERE r.state <> 'running' AND r.finished_at < clock_timestamp() - older_than RETURNING 1
	)
	SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION fini._forget_runs(interval) IS 'deletes reconciliation runs that ended longer ago, with their discrepancies; returns how many';

CREATE FUNCTION fini._end_reconcile(run_id bigint, state text, error text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	run fini.reconcile_run;
	retention interval := current_setting('fini.reconcile_retention', true)::interval;
BEGIN
	UPDATE fini.reconcile_run r SET state = _end_reconcile.state, error = _end_reconcile.error, not_before = NULL,
		finished_at = clock_timestamp()
	WHERE r.run_id = _end_reconcile.run_id AND r.state = 'running'
	RETURNING r.* INTO run;
	IF NOT FOUND THEN
		RETURN false;
	END IF;
	DELETE FROM fini.reconcile_seen x WHERE x.run_id = run.run_id;
	DELETE FROM fini.reconcile_candidate x WHERE x.run_id = run.run_id;
	PERFORM pg_notify('fini', json_build_object('event', 'reconciled', 'run_id', run.run_id, 'ipo_id', run.ipo_id,
		'state', run.state, 'discrepancies', run.discrepancies)::text);
	IF retention > interval '0' THEN
		PERFORM fini._forget_runs(retention);
	END IF;
	RETURN true;
END $$;
COMMENT ON FUNCTION fini._end_reconcile(bigint, text, text) IS 'ends a run under way: its state, its work tables, the announcement, and runs past their retention';

CREATE FUNCTION fini.cancel_reconcile(run_id bigint) RETURNS boolean
LANGUAGE plpgsql STRICT VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	ended boolean;
BEGIN
	PERFORM fini._primary('cancel_reconcile');
	ended := fini._end_reconcile(run_id, 'cancelled', format('cancelled by %s', session_user));
	PERFORM fini._wake();
	RETURN ended;
END $$;
COMMENT ON FUNCTION fini.cancel_reconcile(bigint) IS 'ends a run of the worker''s; false when it has ended already or there is none';

CREATE FUNCTION fini.wait_reconcile(run_id bigint, timeout interval DEFAULT '1 hour') RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	deadline timestamptz := clock_timestamp() + timeout;
	next_notice timestamptz := clock_timestamp() + interval '1 second';
	serial bigint := -1;
	run fini.reconcile_run;
	mine boolean;
	last_text text;
	this_text text;
BEGIN
	PERFORM fini._primary('wait_reconcile');
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE active_sql_transaction USING MESSAGE = 'fini.wait_reconcile cannot see progress in this transaction',
			DETAIL = format('Its isolation level is %s.', current_setting('transaction_isolation')),
			HINT = 'Call it at isolation level read committed.';
	END IF;
	LOOP
		-- the serial is read before the table, so that no end falls in between
		serial := fini._wait_for_settle(serial,
			greatest(0, least(1000, extract(epoch FROM deadline - clock_timestamp()) * 1000))::integer);
		SELECT * INTO run FROM fini.reconcile_run r WHERE r.run_id = wait_reconcile.run_id;
		IF NOT FOUND THEN
			RAISE undefined_object USING MESSAGE = format('there is no reconciliation run %s', run_id),
				HINT = 'fini.start_reconcile returns the run_id.';
		END IF;
		IF run.state <> 'running' THEN
			RETURN true;
		END IF;
		SELECT fini._is_mine(r.xmin) INTO mine FROM fini.reconcile_run r WHERE r.run_id = run.run_id;
		IF mine AND pg_current_xact_id_if_assigned() IS NOT NULL THEN
			RAISE active_sql_transaction USING MESSAGE = 'fini.wait_reconcile would wait for its own transaction',
				DETAIL = 'The worker begins with the run after this transaction commits.',
				HINT = 'Commit first, then wait.';
		END IF;
		IF clock_timestamp() >= next_notice THEN
			this_text := format('%s pages, %s records%s', run.pages, run.remote, ', ' || run.error);
			IF this_text IS DISTINCT FROM last_text THEN
				RAISE NOTICE '%', this_text;
				last_text := this_text;
			END IF;
			next_notice := clock_timestamp() + interval '1 second';
		END IF;
		IF clock_timestamp() >= deadline THEN
			RETURN false;
		END IF;
	END LOOP;
END $$;
COMMENT ON FUNCTION fini.wait_reconcile(bigint, interval) IS 'waits until a run has ended, with progress as notices; true when it has, false when the time is up';

/*
 * Mending.  A record that FINI does not have is added again; one that it has
 * too many is invalidated by its record ID; a difference in fields or status
 * is mended towards the local row; a differing record ID is adopted.
 */
CREATE FUNCTION fini.repair_plan(run_id bigint, kinds text[] DEFAULT NULL, OUT own_ref text, OUT record_id text, OUT kind text,
	OUT operation text)
RETURNS SETOF record LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
	run fini.reconcile_run;
	-- a record without a row may be somebody else's: it is withdrawn only when that is asked for by name
	wanted_kinds text[] := coalesce(kinds, '{missing_at_fini,field_differs,status_differs,duplicate_at_fini,record_id_differs}');
BEGIN
	SELECT * INTO run FROM fini.reconcile_run r WHERE r.run_id = repair_plan.run_id;
	IF run.state IS DISTINCT FROM 'finished' THEN
		RAISE undefined_object USING MESSAGE = format('there is no finished reconciliation run %s', repair_plan.run_id),
			HINT = 'fini.reconcile and fini.start_reconcile return the run_id.';
	END IF;
	IF NOT coalesce(kinds, '{}') <@ '{missing_at_fini,missing_locally,field_differs,status_differs,duplicate_at_fini,record_id_differs}' THEN
		RAISE invalid_parameter_value USING MESSAGE = 'unknown kind of discrepancy',
			HINT = 'The kinds are those of the column kind of fini.discrepancy.';
	END IF;

	-- never on top of something that is open, or has been asked for or settled since the run began
	RETURN QUERY
	SELECT DISTINCT d.own_ref, d.record_id, d.kind, x.operation
	FROM fini.discrepancy d,
		LATERAL (SELECT CASE d.kind
							WHEN 'missing_at_fini' THEN 'add'
							WHEN 'status_differs' THEN CASE WHEN d.local = 'withdrawn' THEN 'invalidate' ELSE 'add' END
							WHEN 'field_differs' THEN 'change'
							WHEN 'missing_locally' THEN 'invalidate'
							WHEN 'duplicate_at_fini' THEN 'invalidate'
							WHEN 'record_id_differs' THEN 'adopt' END AS operation) x
	WHERE d.run_id = run.run_id AND d.kind = ANY (wanted_kinds) AND d.own_ref IS NOT NULL
	  AND (x.operation = 'add' OR d.record_id IS NOT NULL)
	  AND d.field IS DISTINCT FROM 'ownRef'		-- FINI changes no own_ref
	  AND NOT EXISTS (SELECT FROM fini.submission s WHERE s.own_ref = d.own_ref AND (s.state IN ('queued', 'sending', 'unknown')
					  OR s.created_at >= run.started_at OR s.settled_at >= run.started_at))
	ORDER BY 1, 3, 2;
END $$;
COMMENT ON FUNCTION fini.repair_plan(bigint, text[]) IS 'what fini.repair would do now, and does not: one row for each operation';

-- by indexes, however many there are: after a restore the outbox is empty when this is planned, and has a row for
-- every record when it ends
CREATE FUNCTION fini._mend(run_id bigint, kinds text[], OUT n bigint, OUT adopted bigint[])
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
	run fini.reconcile_run;
BEGIN
	PERFORM fini._primary('repair');
	-- two at once would both find nothing under way
	SELECT * INTO run FROM fini.reconcile_run r WHERE r.run_id = _mend.run_id FOR UPDATE;

	WITH plan AS MATERIALIZED (
		SELECT * FROM fini.repair_plan(_mend.run_id, kinds)
	), found AS (
		-- adopt: the operation that gave the record gets the identifier that FINI has; a row
		-- that FINI has although we never heard of its acceptance becomes an accepted add
		SELECT p.own_ref, p.record_id,
			(SELECT s.id FROM fini.submission s WHERE s.own_ref = p.own_ref AND s.relation = run.relation
			 AND s.state = 'accepted' AND NOT s.stray ORDER BY s.id + 0 DESC LIMIT 1) AS id	-- + 0: not by walking the primary key backwards
		FROM plan p WHERE p.operation = 'adopt'
	), mended AS (
		UPDATE fini.submission s SET record_id = found.record_id FROM found WHERE s.id = found.id RETURNING s.id
	), heard_of AS (
		INSERT INTO fini.submission (relation, own_ref, ipo_id, operation, state, record_id, settled_at)
		SELECT run.relation, found.own_ref, run.ipo_id, 'add', 'accepted', found.record_id, clock_timestamp()
		FROM found WHERE found.id IS NULL
		RETURNING id
	), heard_tally AS (
		INSERT INTO fini.tally (ipo_id, state, n) SELECT run.ipo_id, 'accepted', count(*) FROM heard_of HAVING count(*) > 0
	), forgotten AS (
		-- what FINI does not have (any more) stands no longer: an add must not turn into a change
		UPDATE fini.submission s SET state = 'failed', error_code = 'not_at_fini',
			error_message = format('reconciliation run %s did not find its record', run.run_id)
		FROM plan p
		WHERE p.operation = 'add' AND s.own_ref = p.own_ref AND s.relation = run.relation AND s.state = 'accepted' AND NOT s.stray
		RETURNING s.ipo_id
	), forgotten_tally AS (
		INSERT INTO fini.tally (ipo_id, state, n)
		SELECT ipo_id, x.state, x.sign * count(*) FROM forgotten, (VALUES ('accepted', -1), ('failed', 1)) AS x(state, sign)
		GROUP BY ipo_id, x.state, x.sign
	), mending AS (
		-- a record that is not its row's is withdrawn without the row's application
		INSERT INTO fini.submission (relation, own_ref, ipo_id, operation, record_id, stray)
		SELECT DISTINCT run.relation, p.own_ref, run.ipo_id, p.operation, CASE WHEN p.operation <> 'add' THEN p.record_id END,
			p.operation = 'invalidate' AND (p.kind <> 'status_differs' OR NOT EXISTS (
				SELECT FROM fini.submission s WHERE s.own_ref = p.own_ref AND s.relation = run.relation AND s.record_id = p.record_id
				AND s.state = 'accepted' AND NOT s.stray))
		FROM plan p WHERE p.operation <> 'adopt'
		RETURNING id, ipo_id, operation
	), queued AS (
		INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, operation, id FROM mending
	)
	SELECT (SELECT count(*) FROM mending),
		(SELECT array_agg(a.id) FROM (SELECT m.id FROM mended m UNION ALL SELECT h.id FROM heard_of h) a)
	INTO n, adopted;
END $$;
COMMENT ON FUNCTION fini._mend(bigint, text[]) IS 'queues what mends the discrepancies of a run: how many operations; and those that have adopted a record';

CREATE FUNCTION fini.repair(run_id bigint, kinds text[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	mended record;
BEGIN
	SELECT * INTO mended FROM fini._mend(run_id, kinds);
	IF mended.adopted IS NOT NULL THEN
		PERFORM fini._write_back(mended.adopted);
	END IF;
	PERFORM fini._wake();
	RETURN mended.n + coalesce(cardinality(mended.adopted), 0);
END $$;
COMMENT ON FUNCTION fini.repair(bigint, text[]) IS 'queues what mends the discrepancies of a run: these kinds, or all but missing_locally; returns how many';

----------------------------------------------------------------------
-- IPOs and funding: local copies, and confirming funding
----------------------------------------------------------------------

CREATE TABLE fini.ipo (
	ipo_id		text PRIMARY KEY,
	stock_code	text,
	isin		text,
	status		text,
	refdata		jsonb,
	refdata_at	timestamptz,
	raw			jsonb NOT NULL,
	first_seen	timestamptz NOT NULL,
	changed_at	timestamptz NOT NULL,
	last_seen	timestamptz NOT NULL
);
COMMENT ON TABLE fini.ipo IS 'the IPOs as FINI listed them last, with their reference data whole; one that is not listed any more keeps its last_seen';

CREATE TABLE fini.ipo_status_history (
	ipo_id		text NOT NULL,
	seen_at		timestamptz NOT NULL,
	status		text,
	PRIMARY KEY (ipo_id, seen_at)
);
COMMENT ON TABLE fini.ipo_status_history IS 'every status that an IPO was seen in, and since when';

CREATE TABLE fini.funding_seen (
	transaction_ref		text PRIMARY KEY,
	ipo_id				text,
	pre_funding_status	text,
	raw					jsonb NOT NULL,
	first_seen			timestamptz NOT NULL,
	last_seen			timestamptz NOT NULL
);
COMMENT ON TABLE fini.funding_seen IS 'funding as FINI listed it last; fini.funding shows it with what has been confirmed since';

-- the worker writes here, and passes over rows that others hold locked
CREATE TABLE fini.funding_confirmation (
	id				bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	transaction_ref	text NOT NULL,
	ipo_id			text,
	status			text NOT NULL CHECK (status IN ('20', '30')),
	state			text NOT NULL DEFAULT 'queued'
					CHECK (state IN ('queued', 'sending', 'unknown', 'accepted', 'rejected', 'cancelled', 'failed')),
	request_id		text,
	attempts		integer NOT NULL DEFAULT 0,
	error_code		text,
	error_message	text,
	not_before		timestamptz,
	asked_by		text NOT NULL DEFAULT session_user,
	created_at		timestamptz NOT NULL DEFAULT now(),
	sent_at			timestamptz,
	settled_at		timestamptz
);
-- two that are open can neither race nor contradict each other
CREATE UNIQUE INDEX funding_confirmation_open ON fini.funding_confirmation (transaction_ref) WHERE state IN ('queued', 'sending', 'unknown');
CREATE INDEX funding_confirmation_due ON fini.funding_confirmation (id) WHERE state IN ('queued', 'sending', 'unknown');
CREATE INDEX funding_confirmation_ref ON fini.funding_confirmation (transaction_ref, id);
COMMENT ON TABLE fini.funding_confirmation IS 'the durable outbox of funding: one row per confirmation asked for, with its state';

SELECT pg_catalog.pg_extension_config_dump('fini.ipo', '');
SELECT pg_catalog.pg_extension_config_dump('fini.ipo_status_history', '');
SELECT pg_catalog.pg_extension_config_dump('fini.funding_seen', '');
SELECT pg_catalog.pg_extension_config_dump('fini.funding_confirmation', '');
SELECT pg_catalog.pg_extension_config_dump('fini.funding_confirmation_id_seq', '');

CREATE VIEW fini.funding AS
	SELECT f.transaction_ref, f.ipo_id,
		CASE WHEN c.state = 'accepted' AND c.settled_at > f.last_seen THEN c.status ELSE f.pre_funding_status END AS pre_funding_status,
		c.status AS confirmation_status, c.state AS confirmation_state, c.error_code AS confirmation_error,
		f.raw, f.first_seen, f.last_seen
	FROM fini.funding_seen f
		LEFT JOIN LATERAL (SELECT * FROM fini.funding_confirmation c WHERE c.transaction_ref = f.transaction_ref
						   ORDER BY c.id DESC LIMIT 1) c ON true;
COMMENT ON VIEW fini.funding IS 'funding as FINI listed it last or accepted its confirmation since, with the last confirmation asked for';

/*
 * Reference data is one request for each IPO, so it is asked for when an IPO is
 * new, when its row in the list has changed, or after max_age; and no more than
 * so many times in one call, the next one goes on.  The calls come first: the
 * lock is held for the writing alone.
 */
CREATE FUNCTION fini.refresh_ipos(refdata_limit integer DEFAULT 10, max_age interval DEFAULT '1 day') RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	began timestamptz := clock_timestamp();
	list jsonb;
	due text;
	asked text[] := '{}';
	got jsonb[] := '{}';
	data jsonb;
	code text;
	message text;
BEGIN
	PERFORM fini._primary('refresh_ipos');
	-- a list that changes while it is paged through can hold an IPO twice
	SELECT coalesce(jsonb_agg(to_jsonb(l)), '[]') INTO list FROM (
		SELECT DISTINCT ON (q.ipo_id) q.ipo_id, q.stock_code, q.isin, q.status, q.raw
		FROM fini.ipo_list() WITH ORDINALITY AS q(ipo_id, stock_code, isin, status, raw, n)
		WHERE length(q.ipo_id) BETWEEN 1 AND 64
		ORDER BY q.ipo_id, q.n DESC) l;

	FOR due IN
		SELECT l.ipo_id
		FROM jsonb_to_recordset(list) AS l(ipo_id text, raw jsonb) LEFT JOIN fini.ipo i ON i.ipo_id = l.ipo_id,
			LATERAL (SELECT CASE WHEN i.raw = l.raw THEN i.changed_at ELSE began END AS changed_at) c
		WHERE i.refdata_at IS NULL OR i.refdata_at < c.changed_at OR i.refdata_at < began - max_age
		ORDER BY i.refdata_at < c.changed_at DESC, i.refdata_at NULLS FIRST, l.ipo_id DESC
		LIMIT refdata_limit
	LOOP
		BEGIN
			data := fini.ipo_refdata(due);
			asked := asked || due;
			got := got || data;
		EXCEPTION WHEN SQLSTATE 'IP006' OR SQLSTATE 'IP010' THEN
			-- this one's fault: asked for again when it changes, or after max_age
			GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
			RAISE WARNING 'no reference data of IPO %: %', due, message;
			asked := asked || due;
			got := got || NULL::jsonb;
		WHEN SQLSTATE 'IP000' THEN
			-- the next call goes on
			GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, code = RETURNED_SQLSTATE;
			RAISE WARNING 'no more reference data this time: %', message USING ERRCODE = code;
			EXIT;
		END;
	END LOOP;

	LOCK TABLE fini.ipo IN SHARE ROW EXCLUSIVE MODE;
	INSERT INTO fini.ipo_status_history (ipo_id, seen_at, status)
	SELECT l.ipo_id, began, l.status
	FROM jsonb_to_recordset(list) AS l(ipo_id text, status text) LEFT JOIN fini.ipo i ON i.ipo_id = l.ipo_id
	WHERE i.ipo_id IS NULL OR (i.status IS DISTINCT FROM l.status AND (i.last_seen < began OR i.last_seen > clock_timestamp()));
	-- what another call has seen later is not overwritten, unless the clock was set back
	INSERT INTO fini.ipo AS i (ipo_id, stock_code, isin, status, raw, first_seen, changed_at, last_seen)
	SELECT l.ipo_id, l.stock_code, l.isin, l.status, l.raw, began, began, began
	FROM jsonb_to_recordset(list) AS l(ipo_id text, stock_code text, isin text, status text, raw jsonb)
	ON CONFLICT (ipo_id) DO UPDATE
	SET stock_code = excluded.stock_code, isin = excluded.isin, status = excluded.status, raw = excluded.raw,
		changed_at = CASE WHEN i.raw = excluded.raw THEN i.changed_at ELSE excluded.changed_at END, last_seen = excluded.last_seen
	WHERE i.last_seen < excluded.last_seen OR i.last_seen > clock_timestamp();
	UPDATE fini.ipo i SET refdata = coalesce(r.data, i.refdata), refdata_at = began
	FROM unnest(asked, got) AS r(ipo_id, data)
	WHERE i.ipo_id = r.ipo_id AND (i.refdata_at IS NULL OR i.refdata_at < began OR i.refdata_at > clock_timestamp());
	RETURN jsonb_array_length(list);
END $$;
COMMENT ON FUNCTION fini.refresh_ipos(integer, interval) IS 'brings fini.ipo up to date; returns how many IPOs FINI lists';

CREATE FUNCTION fini.refresh_funding(ipo_id text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	began timestamptz := clock_timestamp();
	n bigint;
BEGIN
	PERFORM fini._primary('refresh_funding');
	WITH listed AS MATERIALIZED (
		SELECT DISTINCT ON (q.transaction_ref) q.transaction_ref, coalesce(q.ipo_id, refresh_funding.ipo_id) AS ipo_id,
			q.pre_funding_status, q.raw
		FROM fini.funding_query(refresh_funding.ipo_id) WITH ORDINALITY AS q(transaction_ref, ipo_id, pre_funding_status, raw, n)
		WHERE length(q.transaction_ref) BETWEEN 1 AND 64
		ORDER BY q.transaction_ref, q.n DESC
	), kept AS (
		-- what another call has seen later is not overwritten, unless the clock was set back
		INSERT INTO fini.funding_seen AS f (transaction_ref, ipo_id, pre_funding_status, raw, first_seen, last_seen)
		SELECT l.transaction_ref, l.ipo_id, l.pre_funding_status, l.raw, began, began FROM listed l ORDER BY l.transaction_ref
		ON CONFLICT (transaction_ref) DO UPDATE
		SET ipo_id = excluded.ipo_id, pre_funding_status = excluded.pre_funding_status, raw = excluded.raw, last_seen = excluded.last_seen
		WHERE f.last_seen < excluded.last_seen OR f.last_seen > clock_timestamp()
	)
	SELECT count(*) INTO n FROM listed;
	RETURN n;
END $$;
COMMENT ON FUNCTION fini.refresh_funding(text) IS 'brings fini.funding up to date, of one IPO or all; returns how many rows FINI lists';

CREATE FUNCTION fini.confirm_funding(transaction_refs text[], status text) RETURNS bigint
LANGUAGE plpgsql STRICT VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	refs text[] := ARRAY(SELECT DISTINCT r FROM unnest(transaction_refs) r WHERE r IS NOT NULL);
	problem record;
	n bigint;
BEGIN
	PERFORM fini._primary('confirm_funding');
	IF confirm_funding.status NOT IN ('20', '30') THEN
		RAISE invalid_parameter_value USING MESSAGE = format('"%s" is no status that funding can be given', confirm_funding.status),
			HINT = '20 confirms, 30 rejects.';
	END IF;
	IF array_position(transaction_refs, NULL) IS NOT NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'transaction_refs must not contain nulls';
	END IF;

	-- who asks about the same funding at the same time waits here, and sees below what was asked
	PERFORM FROM fini.funding_seen f WHERE f.transaction_ref = ANY (refs) ORDER BY f.transaction_ref FOR UPDATE;

	SELECT min(r) AS transaction_ref, count(*) AS n INTO problem
	FROM unnest(refs) r WHERE NOT EXISTS (SELECT FROM fini.funding_seen f WHERE f.transaction_ref = r);
	IF problem.n > 0 THEN
		RAISE undefined_object USING MESSAGE = format('no funding with reference "%s" is known', problem.transaction_ref),
			DETAIL = format('%s of %s references are unknown; nothing was queued.', problem.n, cardinality(refs)),
			HINT = 'Compare the reference with FINI''s list: fini.refresh_funding() brings fini.funding up to date.';
	END IF;

	-- what is open, what FINI says, and what FINI has accepted must not be contradicted
	SELECT min(f.transaction_ref) AS transaction_ref, count(*) AS n,
		(array_agg(coalesce(o.state, 'accepted') ORDER BY f.transaction_ref))[1] AS state INTO problem
	FROM fini.funding f
		LEFT JOIN fini.funding_confirmation o ON o.transaction_ref = f.transaction_ref AND o.state IN ('queued', 'sending', 'unknown')
		LEFT JOIN LATERAL (SELECT a.status FROM fini.funding_confirmation a
						   WHERE a.transaction_ref = f.transaction_ref AND a.state = 'accepted' ORDER BY a.id DESC LIMIT 1) a ON true
	WHERE f.transaction_ref = ANY (refs)
	  AND CASE WHEN o.status IS NOT NULL THEN o.status
			   WHEN f.pre_funding_status IN ('20', '30') THEN f.pre_funding_status
			   ELSE a.status END <> confirm_funding.status;
	IF problem.n > 0 THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format(CASE problem.state WHEN 'queued' THEN 'funding "%s" is queued to be given the other status'
												WHEN 'accepted' THEN 'funding "%s" has been given the other status'
												ELSE 'funding "%s" is being given the other status' END, problem.transaction_ref),
			DETAIL = format('%s of %s references contradict; nothing was queued.', problem.n, cardinality(refs)),
			HINT = CASE problem.state WHEN 'queued' THEN 'fini.cancel_funding takes back what has not been sent.'
				ELSE 'See fini.funding. A decision once given to FINI is not contradicted from here.' END;
	END IF;

	INSERT INTO fini.funding_confirmation (transaction_ref, ipo_id, status)
	SELECT f.transaction_ref, f.ipo_id, confirm_funding.status
	FROM fini.funding f
	WHERE f.transaction_ref = ANY (refs) AND f.pre_funding_status IS DISTINCT FROM confirm_funding.status
	  AND NOT EXISTS (SELECT FROM fini.funding_confirmation o
					  WHERE o.transaction_ref = f.transaction_ref AND o.state IN ('queued', 'sending', 'unknown'))
	ORDER BY f.transaction_ref
	ON CONFLICT (transaction_ref) WHERE state IN ('queued', 'sending', 'unknown') DO NOTHING;
	GET DIAGNOSTICS n = ROW_COUNT;
	IF n > 0 THEN
		PERFORM fini._wake();
	END IF;
	RETURN n;
END $$;
COMMENT ON FUNCTION fini.confirm_funding(text[], text) IS 'queues the confirmation (20) or rejection (30) of funding; returns how many. What has that status, or is on its way to it, is left alone; a contradiction is an error';

CREATE FUNCTION fini.cancel_funding(transaction_refs text[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n bigint;
BEGIN
	PERFORM fini._primary('cancel_funding');
	-- what the worker is taking out at this moment is not waited for
	UPDATE fini.funding_confirmation c SET state = 'cancelled', settled_at = clock_timestamp(), not_before = NULL,
		error_code = 'cancelled', error_message = 'cancelled before it was sent'
	WHERE c.id = ANY (ARRAY(SELECT q.id FROM fini.funding_confirmation q
							WHERE q.state = 'queued' AND (transaction_refs IS NULL OR q.transaction_ref = ANY (transaction_refs))
							FOR UPDATE SKIP LOCKED));
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END $$;
COMMENT ON FUNCTION fini.cancel_funding(text[]) IS 'cancels confirmations of funding that are still queued, of these references or all; returns how many';

----------------------------------------------------------------------
-- Running it
----------------------------------------------------------------------

CREATE FUNCTION fini._worker(OUT worker_pid integer, OUT worker_state text, OUT token_expires_at timestamptz,
	OUT public_key_fetched_at timestamptz, OUT clock_difference interval, OUT last_error text, OUT last_error_at timestamptz)
LANGUAGE C VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fini_sql_worker';
COMMENT ON FUNCTION fini._worker() IS 'what shared memory says of this database''s worker';

-- what is listed may have been cancelled; when that is so of the first hundred rows, what is queued has not been there for longer
CREATE VIEW fini._oldest_queued AS
	SELECT x.due, coalesce(
		(SELECT s.created_at
		 FROM (SELECT q.id, q.ids FROM fini.queue q WHERE x.due IS FALSE OR q.not_before IS NULL OR q.not_before <= clock_timestamp()
			   ORDER BY q.id LIMIT 100) q,
			LATERAL unnest(coalesce(q.ids, ARRAY[q.id])) AS l(id),
			LATERAL (SELECT s.created_at FROM fini.submission s WHERE s.id = l.id AND s.state = 'queued' OFFSET 0) s
		 LIMIT 1),
		(SELECT s.created_at FROM fini.submission s
		 WHERE s.id = (SELECT q.id FROM fini.queue q WHERE x.due IS FALSE OR q.not_before IS NULL OR q.not_before <= clock_timestamp()
					   ORDER BY q.id LIMIT 1 OFFSET 99))) AS created_at
	FROM (VALUES (false), (true)) AS x(due);
COMMENT ON VIEW fini._oldest_queued IS 'since when the first operation of the queue is there, and the first of those that are due';

CREATE VIEW fini.status AS
	SELECT w.worker_pid, w.worker_state, m.armed, m.paused, w.token_expires_at, w.public_key_fetched_at, w.clock_difference,
		n.queued, r.sending, r.unknown,
		least(CASE WHEN n.queued > 0 THEN (SELECT o.created_at FROM fini._oldest_queued o WHERE NOT o.due) END, r.oldest) AS oldest_open,
		w.last_error, w.last_error_at
	FROM fini._worker() w, fini._may_send m,
		(SELECT ((SELECT coalesce(sum(q.n), 0) FROM fini.queue q)
				 + (SELECT coalesce(sum(t.n), 0) FROM fini.tally t WHERE t.state = 'queued'))::bigint AS queued OFFSET 0) n,
		(SELECT coalesce(sum(cardinality(q.members)) FILTER (WHERE q.state = 'sending'), 0)::bigint AS sending,
				coalesce(sum(cardinality(q.members)) FILTER (WHERE q.state = 'unknown'), 0)::bigint AS unknown,
				min(q.started_at) AS oldest
		 FROM fini.request q WHERE q.state IN ('sending', 'unknown')) r;
COMMENT ON VIEW fini.status IS 'one row: the worker, what it may do, what it holds, what is open';

----------------------------------------------------------------------
-- Deadlines and progress
----------------------------------------------------------------------

CREATE FUNCTION fini._gateway_now() RETURNS timestamptz
LANGUAGE C VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fini_sql_gateway_now';
COMMENT ON FUNCTION fini._gateway_now() IS 'now, by the gateway''s clock as far as it is known';

CREATE FUNCTION fini._pace(OUT batch_size integer, OUT margin interval)
LANGUAGE C VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fini_sql_pace';
COMMENT ON FUNCTION fini._pace() IS 'what the worker works with';

CREATE FUNCTION fini._estimate(operations bigint, requests bigint) RETURNS interval
LANGUAGE C STRICT VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fini_sql_estimate';
COMMENT ON FUNCTION fini._estimate(bigint, bigint) IS 'how long from now until FINI has decided so many operations, under the throttle and at the pace that was measured';

CREATE FUNCTION fini.set_deadline(ipo_id text, deadline timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
	PERFORM fini._primary('set_deadline');
	IF coalesce(ipo_id, '') = '' OR length(ipo_id) > 20 THEN
		RAISE invalid_parameter_value USING MESSAGE = 'ipo_id must have 1 to 20 characters';
	END IF;
	IF deadline IS NULL THEN
		DELETE FROM fini.deadline d WHERE d.ipo_id = set_deadline.ipo_id;
	ELSIF NOT isfinite(deadline) THEN
		RAISE datetime_field_overflow USING MESSAGE = 'a deadline must be finite',
			HINT = 'Give null to remove the deadline.';
	ELSE
		INSERT INTO fini.deadline AS d (ipo_id, deadline, set_by) VALUES (ipo_id, deadline, session_user)
		ON CONFLICT ON CONSTRAINT deadline_pkey DO UPDATE
		SET deadline = excluded.deadline, set_by = excluded.set_by, set_at = excluded.set_at,
			missed = 0, passed_at = NULL;
		IF deadline - (SELECT p.margin FROM fini._pace() p) <= fini._gateway_now() THEN
			RAISE NOTICE 'the deadline of IPO % has passed: nothing more is sent for it, and what is queued becomes failed', ipo_id;
		END IF;
	END IF;
	PERFORM fini._wake();
END $$;
COMMENT ON FUNCTION fini.set_deadline(text, timestamptz) IS 'nothing of this IPO is sent after the deadline, and IPOs with an earlier one go first; null removes it';

/*
 * Open operations are counted where they are few pages; ended ones are added
 * up.  IPOs are in the order in which the worker serves them, so what lies ahead
 * of each is the running sum.  Looking for what is in doubt takes one pass over
 * the IPO's records.
 */
CREATE VIEW fini.progress AS
	WITH part AS (
		SELECT q.ipo_id, min(q.id) AS first_id, sum(q.n) AS queued, 1 AS kinds, (sum(q.n) + k.batch_size - 1) / k.batch_size AS listed, 0::bigint AS requests,
			0::bigint AS sending, 0::bigint AS unknown, NULL::text AS state, 0::bigint AS n, 0::bigint AS lately, 0::bigint AS funding
		FROM fini.queue q, fini._pace() k GROUP BY q.ipo_id, q.operation, k.batch_size
		UNION ALL
		SELECT r.ipo_id, min(r.members[1]), 0, 0, 0, count(*) FILTER (WHERE r.state = 'unknown'),
			coalesce(sum(cardinality(r.members)) FILTER (WHERE r.state = 'sending'), 0)::bigint,
			coalesce(sum(cardinality(r.members)) FILTER (WHERE r.state = 'unknown'), 0)::bigint, NULL, 0, 0, 0
		FROM fini.request r WHERE r.state IN ('sending', 'unknown') AND r.operation IS NOT NULL GROUP BY r.ipo_id
		UNION ALL
		SELECT t.ipo_id, NULL, CASE WHEN t.state = 'queued' THEN sum(t.n)::bigint ELSE 0 END, 0, 0, 0, 0, 0, t.state, sum(t.n)::bigint,
			coalesce(sum(t.n) FILTER (WHERE t.n > 0 AND t.at > clock_timestamp() - interval '1 minute'), 0)::bigint, 0
		FROM fini.tally t GROUP BY t.ipo_id, t.state
		UNION ALL
		SELECT d.ipo_id, NULL, 0, 0, 0, 0, 0, 0, NULL, 0, 0, 0 FROM fini.deadline d
		UNION ALL
		SELECT c.ipo_id, NULL, 0, 0, 0, 0, 0, 0, NULL, 0, 0, count(*) FROM fini.funding_confirmation c
		WHERE c.state IN ('queued', 'sending', 'unknown') AND c.ipo_id IS NOT NULL GROUP BY c.ipo_id
	), ipo AS (
		SELECT p.ipo_id, min(p.first_id) AS first_id, sum(p.queued)::bigint AS queued, sum(p.sending)::bigint AS sending,
			sum(p.unknown)::bigint AS unknown,
			coalesce(sum(p.n) FILTER (WHERE p.state = 'accepted'), 0)::bigint AS accepted,
			coalesce(sum(p.n) FILTER (WHERE p.state = 'rejected'), 0)::bigint AS rejected,
			coalesce(sum(p.n) FILTER (WHERE p.state = 'cancelled'), 0)::bigint AS cancelled,
			coalesce(sum(p.n) FILTER (WHERE p.state = 'failed'), 0)::bigint AS failed,
			coalesce(sum(p.lately) FILTER (WHERE p.state IN ('accepted', 'rejected')), 0)::bigint AS records_per_minute,
			sum(p.kinds)::bigint AS kinds, sum(p.listed)::bigint AS listed, sum(p.requests)::bigint AS doubted, sum(p.funding)::bigint AS funding_open
		FROM part p GROUP BY p.ipo_id
	), served AS (
		SELECT i.*, d.deadline, d.missed, i.queued + i.sending + i.unknown AS open, k.margin, c.now,
			-- of what is listed some may have been cancelled
			i.doubted + CASE WHEN i.queued <= 0 THEN 0
							 ELSE least(i.listed, (i.queued + k.batch_size - 1) / k.batch_size + i.kinds - 1) END AS requests,
			coalesce(d.deadline - k.margin <= c.now, false) AS passed
		FROM ipo i LEFT JOIN fini.deadline d USING (ipo_id), fini._pace() k, (SELECT fini._gateway_now() AS now OFFSET 0) c
	), ahead AS (
		SELECT s.*, sum(CASE WHEN passed THEN 0 ELSE open END) OVER w AS operations_ahead,
			sum(CASE WHEN passed THEN 0 ELSE requests + CASE WHEN unknown > 0 THEN accepted / 1000 + 1 ELSE 0 END END) OVER w AS requests_ahead
		FROM served s WINDOW w AS (ORDER BY deadline NULLS LAST, first_id NULLS LAST ROWS UNBOUNDED PRECEDING)
	), estimated AS (
		SELECT a.*, CASE WHEN open > 0 AND NOT passed
						THEN now + fini._estimate(operations_ahead::bigint, requests_ahead::bigint) END AS estimated_finish
		FROM ahead a
	)
	SELECT ipo_id, queued, sending, unknown, accepted, rejected, cancelled, failed, records_per_minute, deadline, estimated_finish,
		CASE WHEN deadline IS NOT NULL THEN missed = 0 AND (open = 0 OR coalesce(estimated_finish <= deadline - margin, false)) END AS on_time,
		funding_open
	FROM estimated;
COMMENT ON VIEW fini.progress IS 'each IPO''s operations by state, its pace, whether it will be finished by its deadline, and confirmations of funding that are open';

-- see fini.purge
CREATE TABLE fini.purged (
	ipo_id	text NOT NULL,
	state	text NOT NULL,
	n		bigint NOT NULL,
	PRIMARY KEY (ipo_id, state)
) WITH (fillfactor = 50);
COMMENT ON TABLE fini.purged IS 'how many operations of an IPO that had ended in a state fini.purge has deleted';
SELECT pg_catalog.pg_extension_config_dump('fini.purged', '');

CREATE FUNCTION fini._tally_differences(OUT ipo_id text, OUT state text, OUT tallied bigint, OUT counted bigint)
RETURNS SETOF record LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT x.ipo_id, x.state, sum(x.t)::bigint, sum(x.c)::bigint
	FROM (SELECT t.ipo_id, t.state, t.n AS t, 0 AS c FROM fini.tally t
		  UNION ALL
		  SELECT q.ipo_id, 'queued', q.n, 0 FROM fini.queue q
		  UNION ALL
		  SELECT s.ipo_id, s.state, 0, 1 FROM fini.submission s WHERE s.state IN ('queued', 'accepted', 'rejected', 'cancelled', 'failed')
		  UNION ALL
		  SELECT p.ipo_id, p.state, 0, p.n FROM fini.purged p) x
	GROUP BY 1, 2 HAVING sum(x.t) <> sum(x.c)
$$;
COMMENT ON FUNCTION fini._tally_differences() IS 'where fini.tally disagrees with fini.submission and what fini.purge took from it: nowhere, unless somebody has written to them';

CREATE FUNCTION fini.recount() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	n bigint;
BEGIN
	PERFORM fini._primary('recount');
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE active_sql_transaction USING MESSAGE = 'fini.recount must see what others have committed',
			HINT = 'Call it at isolation level read committed.';
	END IF;
	-- a state and its tally change in one transaction, so one snapshot holds the whole difference; but two
	-- of us must not mend it twice
	LOCK TABLE fini.tally IN SHARE UPDATE EXCLUSIVE MODE;
	INSERT INTO fini.tally (ipo_id, state, n, at)
	SELECT d.ipo_id, d.state, d.counted - d.tallied, '-infinity' FROM fini._tally_differences() d;
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END $$;
COMMENT ON FUNCTION fini.recount() IS 'counts ended operations anew, after somebody has written to fini''s tables; returns how many counts were wrong';

----------------------------------------------------------------------
-- Retention
----------------------------------------------------------------------

/*
 * What has ended goes, but not what a promise rests on.  Of an own_ref in a
 * table these stay: the last operation; the last that FINI accepted; the last
 * that was not cancelled; and one for each record that it ever had at FINI.
 * So whatever is asked of the outbox (what stands? was this row sent? whose is
 * this record?) has the same answer before and after.
 *
 * All of it goes when the row has gone and nothing was ever sent, or the IPO is
 * over: its deadline has passed, FINI lists others but not this one any more,
 * or the own_ref has been quiet for 30 days, where applications open for four.
 * An own_ref with anything open is left alone.
 *
 * An operation is deleted on account of a later one, which is itself deleted
 * only on account of one later still; so slices may be taken in any order.
 */

-- reached: the last operation of the slices done; the row is locked by whoever purges
CREATE TABLE fini.purge_state (
	singleton	boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	reached		bigint NOT NULL DEFAULT 0,
	purged_at	timestamptz
);
INSERT INTO fini.purge_state DEFAULT VALUES;
COMMENT ON TABLE fini.purge_state IS 'how far fini.purge, or the worker by fini.retention, has gone through the outbox';

CREATE FUNCTION fini._gone(relation regclass, own_refs text[]) RETURNS text[]
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_gone';
COMMENT ON FUNCTION fini._gone(regclass, text[]) IS 'those own_refs that have no row any more; none when the table is not attached, or cannot be read at this moment';

-- the next 2,000 operations greater than after, none of them greater than upto
CREATE FUNCTION fini._purge_slice(after bigint, upto bigint, before timestamptz, OUT deleted bigint, OUT reached bigint)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off SET jit = off AS $$
	WITH slice AS MATERIALIZED (
		SELECT max(x.id) AS last FROM (SELECT s.id FROM fini.submission s WHERE s.id > after AND s.id <= upto ORDER BY s.id LIMIT 2000) x
	), still_listed AS MATERIALIZED (
		SELECT t.ipo_id FROM fini.tally t WHERE t.state = 'queued' GROUP BY t.ipo_id HAVING sum(t.n) <> 0
	), old AS MATERIALIZED (
		SELECT s.* FROM fini.submission s
		WHERE s.id > after AND s.id <= (SELECT last FROM slice) AND s.state IN ('accepted', 'rejected', 'cancelled', 'failed') AND s.settled_at < before
		  AND NOT EXISTS (SELECT FROM fini.submission o
						  WHERE o.own_ref = s.own_ref
							AND (o.state IN ('queued', 'sending', 'unknown')
								 -- may still be listed, and has to be there to be taken off the count
								 OR (o.state = 'cancelled' AND o.ipo_id IN (SELECT l.ipo_id FROM still_listed l)
									 AND EXISTS (SELECT FROM fini.queue q
												 WHERE q.ipo_id = o.ipo_id AND q.operation = o.operation AND q.id <= o.id))))
		  AND NOT EXISTS (SELECT FROM fini.unwritten w WHERE w.id = s.id)
	), superseded AS (
		SELECT s.id FROM old s
		WHERE EXISTS (SELECT FROM fini.submission l
					  WHERE l.own_ref = s.own_ref AND l.relation = s.relation AND l.ipo_id = s.ipo_id AND l.id > s.id
						AND l.settled_at >= s.settled_at
						AND CASE WHEN s.stray OR s.state = 'cancelled' THEN true
								 WHEN s.state = 'accepted' THEN l.state = 'accepted' AND NOT l.stray
								 ELSE l.state <> 'cancelled' AND NOT l.stray END)
		  AND (s.record_id IS NULL
			   OR EXISTS (SELECT FROM fini.submission k
						  WHERE k.own_ref = s.own_ref AND k.relation = s.relation AND k.id > s.id AND k.record_id = s.record_id
							AND (s.state <> 'accepted' OR s.operation = 'invalidate' OR (k.state = 'accepted' AND k.operation <> 'invalidate'))))
	), last_words AS (
		SELECT s.relation, array_agg(s.own_ref) AS own_refs FROM old s
		WHERE NOT EXISTS (SELECT FROM fini.submission l WHERE l.own_ref = s.own_ref AND l.relation = s.relation AND l.id > s.id)
		  AND NOT EXISTS (SELECT FROM fini.submission k
						  WHERE k.own_ref = s.own_ref AND k.relation = s.relation
							AND (k.settled_at >= before OR EXISTS (SELECT FROM fini.unwritten w WHERE w.id = k.id)
								 OR ((k.state <> 'cancelled' OR k.record_id IS NOT NULL)
									 AND k.settled_at >= clock_timestamp() - interval '30 days'
									 AND NOT EXISTS (SELECT FROM fini.deadline d WHERE d.ipo_id = k.ipo_id AND d.deadline < before)
									 AND NOT EXISTS (SELECT FROM fini.ipo i WHERE i.ipo_id = k.ipo_id AND i.last_seen < before
													 AND EXISTS (SELECT FROM fini.ipo listed WHERE listed.last_seen >= before)))))
		GROUP BY s.relation
	), doomed AS MATERIALIZED (
		SELECT k.id, true AS whole, k.relation, k.own_ref
		FROM last_words w, unnest(fini._gone(w.relation, w.own_refs)) AS g(own_ref), fini.submission k
		WHERE k.own_ref = g.own_ref AND k.relation = w.relation
		UNION ALL
		SELECT s.id, false, NULL, NULL FROM superseded s
	), locked AS MATERIALIZED (
		SELECT s.id FROM fini.submission s
		WHERE s.id = ANY (ARRAY(SELECT d.id FROM doomed d)) AND s.state IN ('accepted', 'rejected', 'cancelled', 'failed')
		FOR UPDATE SKIP LOCKED
	), deleted AS (
		-- an own_ref goes as a whole or not at all: half of it would tell another story
		DELETE FROM fini.submission s
		WHERE s.id = ANY (ARRAY(SELECT d.id FROM doomed d WHERE NOT d.whole AND d.id IN (SELECT l.id FROM locked l)
								UNION ALL
								SELECT unnest(array_agg(d.id)) FROM doomed d WHERE d.whole GROUP BY d.relation, d.own_ref
								HAVING bool_and(d.id IN (SELECT l.id FROM locked l))))
		RETURNING s.ipo_id, s.state
	), counted AS (
		INSERT INTO fini.purged AS p (ipo_id, state, n) SELECT ipo_id, state, count(*) FROM deleted GROUP BY ipo_id, state
		ON CONFLICT (ipo_id, state) DO UPDATE SET n = p.n + excluded.n
	)
	SELECT (SELECT count(*) FROM deleted), (SELECT last FROM slice)
$$;
COMMENT ON FUNCTION fini._purge_slice(bigint, bigint, timestamptz) IS 'deletes of some operations those that ended before and are needed no more: how many, and the last that it looked at, null when there were none';

/*
 * Up to so many slices of operations, then the smaller tables.  Nobody is
 * waited for but another purge, and what somebody has locked is left for the
 * next.
 */
CREATE FUNCTION fini._purge(older_than interval, slices integer, wait boolean, OUT deleted bigint, OUT complete boolean)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	-- what ended while a reconciliation runs is needed to judge what it saw
	before timestamptz := least(clock_timestamp() - older_than,
		(SELECT min(r.started_at) FROM fini.reconcile_run r WHERE r.state = 'running'));
	most constant bigint := 10000 * slices;
	began bigint;
	at bigint;
	piece record;
	n bigint;
BEGIN
	deleted := 0;
	complete := false;
	IF wait THEN
		SELECT r.reached INTO began FROM fini.purge_state r FOR UPDATE;
	ELSE
		SELECT r.reached INTO began FROM fini.purge_state r FOR UPDATE SKIP LOCKED;
		IF NOT FOUND THEN
			complete := NULL;
			RETURN;
		END IF;
	END IF;

	-- from where the last one ended to the end, then from the beginning to there
	began := coalesce(began, 0);
	at := began;
	LOOP
		EXIT WHEN slices <= 0;
		SELECT * INTO piece FROM fini._purge_slice(at, CASE WHEN complete THEN began ELSE 9223372036854775807 END, before);
		IF piece.reached IS NULL THEN
			at := 0;
			EXIT WHEN complete OR began = 0;
			complete := true;
		ELSE
			deleted := deleted + piece.deleted;
			at := piece.reached;
			slices := slices - 1;
		END IF;
	END LOOP;
	complete := complete OR at = 0;
	UPDATE fini.purge_state SET reached = at, purged_at = clock_timestamp();
	IF NOT (complete OR wait) THEN
		RETURN;
	END IF;

	-- answered requests have no members any more
	DELETE FROM fini.request q WHERE q.request_id = ANY (ARRAY(
		SELECT r.request_id FROM fini.request r WHERE r.state IN ('answered', 'found_out') AND r.started_at < before
		LIMIT most FOR UPDATE SKIP LOCKED));
	GET DIAGNOSTICS n = ROW_COUNT;
	deleted := deleted + n;

	-- of each funding the last confirmation and the last accepted one stay: a decision must not be contradicted
	DELETE FROM fini.funding_confirmation q WHERE q.id = ANY (ARRAY(
		SELECT c.id FROM fini.funding_confirmation c
		WHERE c.state IN ('accepted', 'rejected', 'cancelled', 'failed') AND c.settled_at < before
		  AND EXISTS (SELECT FROM fini.funding_confirmation l WHERE l.transaction_ref = c.transaction_ref AND l.id > c.id
					  AND (c.state <> 'accepted' OR l.state = 'accepted'))
		LIMIT most FOR UPDATE SKIP LOCKED));
	GET DIAGNOSTICS n = ROW_COUNT;
	deleted := deleted + n;

	-- runs go when their discrepancies have gone
	DELETE FROM fini.discrepancy q WHERE q.ctid = ANY (ARRAY(
		SELECT d.ctid FROM fini.discrepancy d
		WHERE d.run_id IN (SELECT r.run_id FROM fini.reconcile_run r WHERE r.state <> 'running' AND r.finished_at < before)
		LIMIT most FOR UPDATE SKIP LOCKED));
	GET DIAGNOSTICS n = ROW_COUNT;
	deleted := deleted + n;
	DELETE FROM fini.reconcile_run q WHERE q.run_id = ANY (ARRAY(
		SELECT r.run_id FROM fini.reconcile_run r WHERE r.state <> 'running' AND r.finished_at < before
		  AND NOT EXISTS (SELECT FROM fini.discrepancy d WHERE d.run_id = r.run_id)
		LIMIT most FOR UPDATE SKIP LOCKED));
	GET DIAGNOSTICS n = ROW_COUNT;
	deleted := deleted + n;

	-- the status that an IPO has had since then stays
	DELETE FROM fini.ipo_status_history q WHERE q.ctid = ANY (ARRAY(
		SELECT h.ctid FROM fini.ipo_status_history h
		WHERE EXISTS (SELECT FROM fini.ipo_status_history l WHERE l.ipo_id = h.ipo_id AND l.seen_at > h.seen_at AND l.seen_at < before)
		LIMIT most FOR UPDATE SKIP LOCKED));
	GET DIAGNOSTICS n = ROW_COUNT;
	deleted := deleted + n;
END $$;
COMMENT ON FUNCTION fini._purge(interval, integer, boolean) IS 'a bounded part of fini.purge: how much it deleted, and whether it has come to the end; null when somebody else is purging';

CREATE FUNCTION fini.purge(older_than interval) RETURNS bigint
LANGUAGE plpgsql STRICT VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM fini._primary('purge');
	IF older_than < interval '0' THEN
		RAISE invalid_parameter_value USING MESSAGE = 'older_than must not be negative';
	END IF;
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE active_sql_transaction USING MESSAGE = 'fini.purge must see what others have committed',
			HINT = 'Call it at isolation level read committed.';
	END IF;
	RETURN (SELECT p.deleted FROM fini._purge(older_than, 100, true) p);
END $$;
COMMENT ON FUNCTION fini.purge(interval) IS 'deletes what ended longer ago and no promise rests on: operations, requests, confirmations, reconciliations, statuses of IPOs; returns how many rows. A call goes through up to 200,000 operations, the next one goes on';

CREATE FUNCTION fini._stat_endpoint(OUT endpoint text, OUT calls bigint, OUT errors bigint, OUT retries bigint, OUT throttled bigint,
	OUT entries bigint, OUT bytes bigint, OUT mean_ms double precision, OUT p50_ms double precision,
	OUT p95_ms double precision, OUT p99_ms double precision)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fini_sql_stat_endpoint';
COMMENT ON FUNCTION fini._stat_endpoint() IS 'counters and latencies in shared memory';

CREATE VIEW fini.stat_endpoint AS SELECT * FROM fini._stat_endpoint();
COMMENT ON VIEW fini.stat_endpoint IS 'calls of each endpoint from this database since the server started or the last reset; latencies in milliseconds';

CREATE FUNCTION fini.stat_reset() RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_stat_reset';
COMMENT ON FUNCTION fini.stat_reset() IS 'sets the counters of fini.stat_endpoint to zero';

----------------------------------------------------------------------
-- Checking every prerequisite
----------------------------------------------------------------------

CREATE FUNCTION fini._check(subscriptions_needed boolean, funding_needed boolean, OUT item text, OUT ok boolean, OUT detail text)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fini_sql_check';
COMMENT ON FUNCTION fini._check(boolean, boolean) IS 'items of fini.check on server, worker, settings, files and network';

CREATE FUNCTION fini._check_worker(OUT library_version text, OUT library_replaced boolean, OUT worker_version text, OUT stopped text,
	OUT settled_at timestamptz, OUT access_error text)
LANGUAGE C VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fini_sql_check_worker';
COMMENT ON FUNCTION fini._check_worker() IS 'what items of fini.check on versions and the queue know from shared memory';

CREATE FUNCTION fini._key_id(profile text) RETURNS text
LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'fini_sql_key_id';
COMMENT ON FUNCTION fini._key_id(text) IS 'the kid of the key that the settings name for agent or machine; null when it cannot be used';

CREATE FUNCTION fini._check_version(OUT item text, OUT ok boolean, OUT detail text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	w record;
	objects text := (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'fini');
	available text := (SELECT a.default_version FROM pg_available_extensions a WHERE a.name = 'fini');
BEGIN
	SELECT * INTO w FROM fini._check_worker();
	item := 'version';
	ok := false;
	IF objects IS DISTINCT FROM w.library_version THEN
		detail := format('The SQL objects of this database are version %s, the library that the server has loaded is version %s. '
			'Install the newer package, restart the server, then run ALTER EXTENSION fini UPDATE here.', objects, w.library_version);
	ELSIF w.worker_version IS DISTINCT FROM w.library_version AND w.worker_version IS NOT NULL THEN
		detail := format('The worker runs version %s, this session version %s: restart the server.', w.worker_version, w.library_version);
	ELSIF w.library_replaced THEN
		detail := format('The file of the library has been replaced since the server loaded version %s: restart the server to use the new one.',
			w.library_version);
	ELSIF available IS DISTINCT FROM objects AND available IS NOT NULL THEN
		detail := format('Version %s is installed, the SQL objects of this database are version %s: run ALTER EXTENSION fini UPDATE.', available, objects);
	ELSE
		ok := true;
		detail := format('Library, worker and SQL objects are version %s.', objects);
	END IF;
END $$;
COMMENT ON FUNCTION fini._check_version() IS 'item of fini.check: do library, worker and SQL objects belong together?';

CREATE FUNCTION fini._check_keys(OUT item text, OUT ok boolean, OUT detail text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	whose text;
	key text;
	expires timestamptz;
BEGIN
	FOREACH whose IN ARRAY '{agent,machine}'::text[] LOOP
		key := fini._key_id(whose);
		expires := (SELECT r.expires FROM fini.registered_key r WHERE r.profile = whose AND r.kid = key);
		item := whose || '_key_expiry';
		IF key IS NULL THEN
			ok := NULL;
			detail := format('Not tested: see %s_key.', whose);
		ELSIF expires IS NULL THEN
			ok := NULL;
			detail := format('Not known: fini.jwks has not been called for this key in this database. Its registration lasts less than a year; '
				'select fini.jwks(''%s'', its end) records the end.', whose);
		ELSIF expires < now() + interval '28 days' THEN
			ok := false;
			detail := format('The registration of this key, as fini.jwks last gave it, %s on %s. Register a new key in HKEX Client Connect, then switch to it.',
				CASE WHEN expires < now() THEN 'ended' ELSE 'ends' END, to_char(expires, 'YYYY-MM-DD'));
		ELSE
			ok := true;
			detail := format('The registration of this key ends on %s, as fini.jwks last gave it.', to_char(expires, 'YYYY-MM-DD'));
		END IF;
		RETURN NEXT;
	END LOOP;
END $$;
COMMENT ON FUNCTION fini._check_keys() IS 'items of fini.check: when do the registered keys expire?';

CREATE FUNCTION fini._check_sending(OUT item text, OUT ok boolean, OUT detail text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	patience constant interval := '5 minutes';
	c fini.control;
	k record;
	m record;
	w record;
	s record;
	doubt record;
	slow record;
	funding record;
	oldest timestamptz;
	next_due timestamptz;
	reason text;
BEGIN
	SELECT * INTO c FROM fini.control;
	SELECT * INTO k FROM fini._cluster();
	SELECT * INTO m FROM fini._may_send;
	SELECT * INTO w FROM fini._check_worker();

	item := 'armed';
	ok := m.armed IS TRUE;
	IF ok THEN
		detail := format('This cluster was armed by %s on %s.', c.armed_by, to_char(c.armed_at, 'YYYY-MM-DD HH24:MI TZ'));
	ELSE
		detail := CASE WHEN c.armed_at IS NULL THEN 'Nothing that changes anything at FINI is sent from here.'
			WHEN c.system_identifier IS DISTINCT FROM k.system_identifier THEN
				'Armed was another cluster, from which this database came by a dump or pg_upgrade.'
			ELSE 'Armed was this cluster in another data directory, of which this one is a copy, or from which it was moved.' END
			|| ' When no other server sends the same rows any more, call fini.arm().';
	END IF;
	RETURN NEXT;

	item := 'paused';
	ok := c.paused_at IS NULL;
	detail := CASE WHEN ok THEN 'Not paused.'
		ELSE format('Paused by %s on %s%s. fini.resume() ends it.', c.paused_by, to_char(c.paused_at, 'YYYY-MM-DD HH24:MI TZ'),
			coalesce(': ' || c.paused_reason, '')) END;
	RETURN NEXT;

	item := 'endpoints';
	ok := w.stopped IS NULL;
	detail := CASE WHEN ok THEN 'The worker uses all endpoints.'
		ELSE format('The worker has stopped using %s, which the gateway refused (see the server''s log); what is queued for it stays queued. '
			'Mend the cause, then call fini.resume().', w.stopped) END;
	RETURN NEXT;

	item := 'queue';
	SELECT * INTO s FROM fini.status;
	SELECT count(*) AS requests, min(r.started_at) AS since INTO doubt FROM fini.request r
	WHERE r.state = 'unknown' AND r.started_at < clock_timestamp() - patience;
	SELECT count(*) AS requests, min(r.started_at) AS since, min(r.code) AS code INTO slow FROM fini.request r
	WHERE r.state = 'sending' AND r.started_at < clock_timestamp() - patience;
	SELECT count(*) AS open, min(f.created_at) AS since, min(f.error_code) AS code INTO funding FROM fini.funding_confirmation f
	WHERE f.state IN ('queued', 'sending', 'unknown');
	SELECT min(q.not_before) INTO next_due FROM fini.queue q;
	IF s.queued > 0 THEN
		SELECT o.created_at INTO oldest FROM fini._oldest_queued o WHERE o.due;
	END IF;
	reason := CASE WHEN s.worker_pid IS NULL THEN 'No worker is running: see worker.'
		WHEN w.stopped IS NOT NULL THEN 'An endpoint is stopped: see endpoints.'
		WHEN w.access_error IS NOT NULL THEN format('The worker gets no token or public key: %s.', rtrim(w.access_error, '. '))
		WHEN s.last_error_at > clock_timestamp() - patience THEN format('The worker''s last error: %s.', rtrim(s.last_error, '. '))
		ELSE 'See throttle, and the worker''s lines in the server''s log.' END;
	ok := false;
	IF s.queued + s.sending + s.unknown + funding.open = 0 THEN
		ok := true;
		detail := 'Nothing is open.';
	ELSIF m.armed IS NOT TRUE OR m.paused THEN
		ok := NULL;
		detail := format('%s operations%s are open, and wait: see %s.', s.queued + s.sending + s.unknown,
			CASE WHEN funding.open > 0 THEN format(' and %s confirmations of funding', funding.open) ELSE '' END, CASE WHEN m.paused THEN 'paused' ELSE 'armed' END);
	ELSIF doubt.requests > 0 THEN
		detail := format('%s requests are in doubt since %s: what became of them cannot be found out. %s', doubt.requests,
			to_char(doubt.since, 'YYYY-MM-DD HH24:MI TZ'), reason);
	ELSIF slow.requests > 0 THEN
		detail := format('%s requests do not get through since %s%s. %s', slow.requests, to_char(slow.since, 'YYYY-MM-DD HH24:MI TZ'),
			coalesce(', code ' || slow.code, ''), reason);
	ELSIF oldest < clock_timestamp() - patience AND coalesce(w.settled_at < clock_timestamp() - patience, true) THEN
		detail := format('%s operations are queued, the oldest since %s, and nothing has been settled %s. %s', s.queued,
			to_char(oldest, 'YYYY-MM-DD HH24:MI TZ'), coalesce('since ' || to_char(w.settled_at, 'YYYY-MM-DD HH24:MI TZ'), 'yet'), reason);
	ELSIF funding.since < clock_timestamp() - patience THEN
		detail := format('%s confirmations of funding are open, the oldest since %s%s: see fini.funding_confirmation. %s', funding.open,
			to_char(funding.since, 'YYYY-MM-DD HH24:MI TZ'), coalesce(', code ' || funding.code, ''), reason);
	ELSE
		ok := true;
		detail := format('%s operations are queued, %s being sent, %s in doubt%s.', s.queued, s.sending, s.unknown,
			CASE WHEN s.queued > 0 AND oldest IS NULL THEN ', the next due at ' || to_char(next_due, 'YYYY-MM-DD HH24:MI:SS TZ') ELSE '' END
			|| CASE WHEN funding.open > 0 THEN format('; %s confirmations of funding', funding.open) ELSE '' END);
	END IF;
	RETURN NEXT;
END $$;
COMMENT ON FUNCTION fini._check_sending() IS 'items of fini.check: may anything be sent, and does it get there?';

CREATE FUNCTION fini.check(OUT item text, OUT ok boolean, OUT detail text) RETURNS SETOF record
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT c.item, c.ok, c.detail
	FROM (SELECT * FROM fini._check(EXISTS (SELECT FROM fini.attachment),
				EXISTS (SELECT FROM fini.funding_confirmation))
		  UNION ALL SELECT * FROM fini._check_version()
		  UNION ALL SELECT * FROM fini._check_keys()
		  UNION ALL SELECT * FROM fini._check_sending()) c
	ORDER BY array_position('{server,library,version,worker,settings,agent_key,machine_key,key_pair,agent_key_expiry,machine_key_expiry,
		tls_files,token_service,token,gateway,public_key,clock,ipos,subscriptions,funding,throttle,armed,paused,endpoints,queue}'::text[], c.item)
$$;
COMMENT ON FUNCTION fini.check() IS 'each prerequisite: true, false, or null where it could not be tested; what is the case and what to do';

----------------------------------------------------------------------
-- Privileges: nothing for PUBLIC, three levels on request
----------------------------------------------------------------------

CREATE FUNCTION fini.grant_access(role regrole, level text) RETURNS void
LANGUAGE plpgsql STRICT VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	reader constant text[] := '{precheck}';
	submitter constant text[] := '{encrypt_field,decrypt_field,encrypt_fields,decrypt_fields,wrap_key,sign,ipo_list,ipo_refdata,
		subscription_add,subscription_change,subscription_invalidate,subscription_query,funding_query,funding_confirm,
		submit,invalidate,cancel,retry,wait,reconcile,repair,
		refresh_ipos,refresh_funding,confirm_funding,cancel_funding,
		start_reconcile,cancel_reconcile,wait_reconcile,repair_plan}';
	operator constant text[] := '{jwks,check,call,attach,detach,capture,create_subscription_table,arm,disarm,pause,resume,stat_reset,purge}';
	deadlines constant text[] := '{set_deadline,recount}';
	-- what views and invoker functions of the level call
	reader_internal constant text[] := '{_worker,_cluster,_stat_endpoint,_pace,_estimate,_gateway_now}';
	operator_internal constant text[] := '{_check,_check_worker,_check_version,_check_keys,_check_sending,_key_id,_primary}';
	names text[];
	f regprocedure;
BEGIN
	PERFORM fini._primary('grant_access');
	IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
		RAISE insufficient_privilege USING MESSAGE = 'only a superuser can grant access to fini';
	END IF;
	IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = role) THEN
		RAISE undefined_object USING MESSAGE = format('there is no role with OID %s', role::oid);
	END IF;
	CASE level
		WHEN 'reader' THEN names := reader || reader_internal;
		WHEN 'submitter' THEN names := reader || reader_internal || submitter;
		WHEN 'operator' THEN names := reader || reader_internal || submitter || operator || operator_internal || deadlines;
		ELSE
			RAISE invalid_parameter_value USING MESSAGE = format('there is no access level "%s"', level),
				HINT = 'The levels are reader, submitter and operator, each including the one before.';
	END CASE;
	EXECUTE format('GRANT USAGE ON SCHEMA fini TO %s', role);
	EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA fini TO %s', role);
	FOR f IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'fini'::regnamespace AND p.proname = ANY (names) LOOP
		EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', f, role);
	END LOOP;
END $$;
COMMENT ON FUNCTION fini.grant_access(regrole, text) IS 'grants a role the level reader, submitter or operator';

REVOKE ALL ON SCHEMA fini FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA fini FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA fini FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA fini FROM PUBLIC;

-- a worker that waits for the extension hears of it when this commits
SELECT fini._wake();
