/*
 * outbox_settle.c
 *		How operations and requests end, or are sent again.
 *
 * The outcome goes into fini.submission and fini.request, and into the user's
 * row, in one transaction.  The user's table may refuse (a trigger, a lock, a
 * dropped column): then the outbox has the outcome all the same, with a note,
 * because it is the truth about FINI; rows are tried one by one so that only
 * those refused go without.  Where it was but a lock that somebody held, the
 * outcome is put down in fini.unwritten, and the worker tries again whenever
 * it looks round: it waits for nobody's transaction.
 *
 * The table's owner decides what runs when a row is written, so everything has
 * to run before his identity is left: the worker, whose transaction holds
 * nothing else, makes deferrable constraints immediate.  In a user's session
 * that would also run what the user has deferred himself, with the rights of
 * somebody else; there a deferred trigger is refused by PostgreSQL, and the
 * outcome is noted instead.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/timeout.h"

#include "answer.h"
#include "compat.h"
#include "outbox.h"
#include "shared.h"

#define CHANNEL		"fini"

/*
 * How long the worker waits for a lock on somebody's rows: for many at once,
 * for one, and how often before it leaves the rest for later.  All of it is
 * short of deadlock_timeout, lest the deadlock be found in the user's session.
 */
#define LOCK_MS_TABLE	"100ms"
#define LOCK_MS_ROW		"10ms"
#define MAX_LOCKED_ROWS	20
#define LATE_BATCH		1000

/* how long the triggers of a table may hold the worker up, for one batch */
#define USER_CODE_MS	5000

PG_FUNCTION_INFO_V1(fini_sql_write_back);

static FiniStatement settle_statement = {
	.sql = "UPDATE fini.submission s SET state = v.state, record_id = coalesce(v.record_id, s.record_id),"
	" error_code = nullif(v.code, ''), error_message = nullif(v.message, ''), settled_at = clock_timestamp()"
	" FROM ROWS FROM (unnest($1), unnest($2), unnest($3), unnest($4), unnest($5)) AS v(id, state, record_id, code, message)"
	" WHERE s.id = v.id",
	.nargs = 5, .types = {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
};

static FiniStatement requeue_statement = {
	.sql = "WITH v AS MATERIALIZED (SELECT * FROM ROWS FROM (unnest($1), unnest($2), unnest($3), unnest($4), unnest($5))"
	"  AS v(id, operation, delay, code, message)),"
	" again AS (UPDATE fini.submission s SET state = 'queued', operation = v.operation, error_code = nullif(v.code, ''),"
	"  error_message = nullif(v.message, ''), not_before = CASE WHEN v.delay > 0 THEN clock_timestamp() + v.delay * interval '1 microsecond' END"
	"  FROM v WHERE s.id = v.id RETURNING s.id, s.ipo_id, s.operation, s.not_before)"
	" INSERT INTO fini.queue (ipo_id, operation, id, not_before) SELECT ipo_id, operation, id, not_before FROM again",
	.nargs = 5, .types = {INT8ARRAYOID, TEXTARRAYOID, INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
};

static FiniStatement answered_statement = {
	.sql = "UPDATE fini.request SET state = CASE WHEN cardinality($6) > 0 THEN state ELSE 'answered' END,"
	" http_status = nullif($2, 0), code = $3, message = $4,"
	" duration = $5 * interval '1 microsecond', members = $6 WHERE request_id = $1",
	.nargs = 6, .types = {TEXTOID, INT4OID, TEXTOID, TEXTOID, INT8OID, INT8ARRAYOID}
};

static FiniStatement members_statement = {
	.sql = "UPDATE fini.request SET members = $2, state = CASE WHEN cardinality($2) > 0 THEN state ELSE 'found_out' END"
	" WHERE request_id = $1",
	.nargs = 2, .types = {TEXTOID, INT8ARRAYOID}
};

static FiniStatement doubt_request_statement = {
	.sql = "UPDATE fini.request SET state = 'unknown', http_status = nullif($2, 0), code = $3, message = $4,"
	" duration = $5 * interval '1 microsecond' WHERE request_id = $1",
	.nargs = 5, .types = {TEXTOID, INT4OID, TEXTOID, TEXTOID, INT8OID}
};

static FiniStatement doubt_members_statement = {
	.sql = "UPDATE fini.submission s SET state = 'unknown', error_code = $2, error_message = $3"
	" FROM unnest($1) AS m(id) WHERE s.id = m.id AND s.state IN ('sending', 'unknown')",
	.nargs = 3, .types = {INT8ARRAYOID, TEXTOID, TEXTOID}
};

static FiniStatement postponed_request_statement = {
	.sql = "UPDATE fini.request SET attempts = attempts + 1, http_status = nullif($2, 0), code = $3, message = $4 WHERE request_id = $1",
	.nargs = 4, .types = {TEXTOID, INT4OID, TEXTOID, TEXTOID}
};

static FiniStatement postponed_members_statement = {
	.sql = "UPDATE fini.submission s SET attempts = attempts + 1, error_code = $2, error_message = $3"
	" FROM unnest($1) AS m(id) WHERE s.id = m.id AND s.state IN ('sending', 'unknown')",
	.nargs = 3, .types = {INT8ARRAYOID, TEXTOID, TEXTOID}
};

static FiniStatement resend_request_statement = {
	.sql = "UPDATE fini.request SET state = 'sending', request_id = $2, attempts = attempts + 1 WHERE request_id = $1",
	.nargs = 2, .types = {TEXTOID, TEXTOID}
};

static FiniStatement resend_members_statement = {
	.sql = "UPDATE fini.submission s SET state = 'sending', request_id = $2, attempts = attempts + 1, sent_at = clock_timestamp()"
	" FROM unnest($1) AS m(id) WHERE s.id = m.id AND s.state IN ('sending', 'unknown')",
	.nargs = 2, .types = {INT8ARRAYOID, TEXTOID}
};

static FiniStatement note_statement = {
	.sql = "UPDATE fini.submission s SET error_code = coalesce(error_code, 'write_back'),"
	" error_message = concat_ws('; ', error_message, $2) FROM unnest($1) AS m(id) WHERE s.id = m.id",
	.nargs = 2, .types = {INT8ARRAYOID, TEXTOID}
};

static FiniStatement knows_statement = {
	.sql = "SELECT FROM fini.submission WHERE own_ref = $1 AND record_id = $2 AND id <> $3 LIMIT 1",
	.nargs = 3, .types = {TEXTOID, TEXTOID, INT8OID}
};

static FiniStatement unwritten_statement = {
	.sql = "INSERT INTO fini.unwritten (id) SELECT m.id FROM unnest($1) AS m(id) ON CONFLICT DO NOTHING",
	.nargs = 1, .types = {INT8ARRAYOID}
};

/* a row shows its last outcome: one that another has overtaken is dropped */
static FiniStatement late_statement = {
	.sql = "WITH late AS (DELETE FROM fini.unwritten u USING (SELECT id FROM fini.unwritten ORDER BY id LIMIT $1) AS l"
	"  WHERE u.id = l.id RETURNING u.id)"
	" SELECT s.id FROM late JOIN fini.submission s ON s.id = late.id"
	" WHERE NOT EXISTS (SELECT FROM fini.submission l WHERE l.own_ref = s.own_ref AND l.relation = s.relation"
	"  AND l.id > s.id AND l.settled_at IS NOT NULL AND (l.operation = 'add' OR l.state <> 'cancelled'))",
	.nargs = 1, .types = {INT8OID}
};

static FiniStatement settled_statement = {
	.sql = "SELECT s.id, s.relation::oid, s.own_ref, s.record_id, s.state, s.error_code, s.error_message, s.operation"
	" FROM unnest($1) AS m(id) JOIN fini.submission s ON s.id = m.id JOIN fini.attachment a ON a.relation = s.relation"
	" WHERE s.settled_at IS NOT NULL AND NOT s.stray",
	.nargs = 1, .types = {INT8ARRAYOID}
};

static void settle_final(FiniBatch *batch);
static void requeue(FiniBatch *batch);
static void close_request(FiniBatch *batch, const FiniCall *call);
static void announce(FiniBatch *batch);
static int	member_ids(const FiniBatch *batch, bool open_only, int64 *ids);
static void begin_worker_writes(void);
static void write_ids(int n, const int64 *ids, bool by_worker);
static void write_batch(const FiniBatch *batch, bool by_worker);
static void write_table(const FiniBatch *batch, Oid relid, bool by_worker);
static bool write_rows(Oid relid, int n, const FiniOutcome *outcomes, const char *lock_timeout, int *sqlstate);
static bool is_passing(int sqlstate);
static void note_unwritten(int n, const int64 *ids);
static bool outcome_of(const FiniMember *member, FiniOperation operation, FiniOutcome *outcome);

void
fini_outbox_settle(FiniBatch *batch, const FiniCall *call)
{
	bool		anything = call != NULL;

	for (int i = 0; i < batch->count && !anything; i++)
		anything = batch->members[i].state != NULL;
	if (!anything)
		return;
	settle_final(batch);
	requeue(batch);
	if (call != NULL)
		close_request(batch, call);
	else
	{
		int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
		Datum		values[2] = {CStringGetTextDatum(batch->request_id), 0};

		values[1] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
		(void) fini_outbox_execute(&members_statement, values, NULL, 0);
	}
	begin_worker_writes();
	write_batch(batch, true);
	announce(batch);
}

void
fini_outbox_doubt(const FiniBatch *batch, const FiniCall *call)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	Datum		values[5];
	const char *code = call != NULL ? call->code : "new_timeline";
	const char *message = call != NULL ? call->message : "";

	values[0] = CStringGetTextDatum(batch->request_id);
	values[1] = Int32GetDatum(call != NULL ? call->http_status : 0);
	values[2] = CStringGetTextDatum(code);
	values[3] = CStringGetTextDatum(message);
	values[4] = Int64GetDatum(call != NULL ? call->http.duration_us : 0);
	(void) fini_outbox_execute(&doubt_request_statement, values, NULL, 0);

	values[0] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
	values[1] = CStringGetTextDatum(code);
	values[2] = CStringGetTextDatum(message[0] != '\0' ? message : "it is being found out whether FINI has it");
	(void) fini_outbox_execute(&doubt_members_statement, values, NULL, 0);
}

void
fini_outbox_postponed(const FiniBatch *batch, const FiniCall *call)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	Datum		values[4];

	values[0] = CStringGetTextDatum(batch->request_id);
	values[1] = Int32GetDatum(call->http_status);
	values[2] = CStringGetTextDatum(call->code);
	values[3] = CStringGetTextDatum(call->message);
	(void) fini_outbox_execute(&postponed_request_statement, values, NULL, 0);
	values[0] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
	values[1] = CStringGetTextDatum(call->code);
	values[2] = CStringGetTextDatum(call->message);
	(void) fini_outbox_execute(&postponed_members_statement, values, NULL, 0);
}

void
fini_outbox_resend(const FiniBatch *batch, const char *new_request_id)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	Datum		values[2];

	values[0] = CStringGetTextDatum(batch->request_id);
	values[1] = CStringGetTextDatum(new_request_id);
	(void) fini_outbox_execute(&resend_request_statement, values, NULL, 0);
	values[0] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
	(void) fini_outbox_execute(&resend_members_statement, values, NULL, 0);
}

bool
fini_outbox_knows_record(const char *own_ref, const char *record_id, int64 except_id)
{
	Datum		values[3] = {CStringGetTextDatum(own_ref), CStringGetTextDatum(record_id), Int64GetDatum(except_id)};

	(void) fini_outbox_execute(&knows_statement, values, NULL, 1);
	return SPI_processed > 0;
}

void
fini_outbox_write_back(int n, const int64 *ids)
{
	write_ids(n, ids, false);
}

void
fini_outbox_write_late(void)
{
	Datum		values[1] = {Int64GetDatum(LATE_BATCH)};
	int64	   *ids;
	int			n;

	(void) fini_outbox_execute(&late_statement, values, NULL, 0);
	n = (int) SPI_processed;
	if (n == 0)
		return;
	ids = palloc(sizeof(int64) * n);
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		ids[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	begin_worker_writes();
	write_ids(n, ids, true);
}

/* fini._write_back(ids): for outcomes that SQL functions have written into the outbox */
Datum
fini_sql_write_back(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	Datum	   *values;
	bool	   *nulls;
	int64	   *ids;
	int			n;
	int			count = 0;

	deconstruct_array(array, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &values, &nulls, &n);
	ids = palloc(sizeof(int64) * Max(1, n));
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i])
			ids[count++] = DatumGetInt64(values[i]);
	}
	SPI_connect();
	fini_outbox_write_back(count, ids);
	SPI_finish();
	PG_RETURN_VOID();
}

static void
settle_final(FiniBatch *batch)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	char	  **texts[4];
	Datum		values[5];
	int			n = 0;

	for (int t = 0; t < 4; t++)
		texts[t] = palloc(sizeof(char *) * Max(1, batch->count));
	for (int i = 0; i < batch->count; i++)
	{
		FiniMember *member = &batch->members[i];

		if (member->state == NULL || strcmp(member->state, "queued") == 0)
			continue;
		ids[n] = member->id;
		texts[0][n] = unconstify(char *, member->state);
		/* an accepted change or invalidate says which record it was */
		texts[1][n] = unconstify(char *, member->new_record_id ? member->new_record_id : member->record_id);
		texts[2][n] = unconstify(char *, member->error_code);
		texts[3][n++] = unconstify(char *, member->error_message);
	}
	if (n == 0)
		return;
	values[0] = fini_outbox_int8_array(n, ids);
	for (int t = 0; t < 4; t++)
		values[t + 1] = fini_outbox_text_array(n, texts[t]);
	(void) fini_outbox_execute(&settle_statement, values, NULL, 0);
}

static void
requeue(FiniBatch *batch)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	int64	   *delays = palloc(sizeof(int64) * Max(1, batch->count));
	char	  **operations = palloc(sizeof(char *) * Max(1, batch->count));
	char	  **codes = palloc(sizeof(char *) * Max(1, batch->count));
	char	  **messages = palloc(sizeof(char *) * Max(1, batch->count));
	Datum		values[5];
	int			n = 0;

	for (int i = 0; i < batch->count; i++)
	{
		FiniMember *member = &batch->members[i];

		if (member->state == NULL || strcmp(member->state, "queued") != 0)
			continue;
		ids[n] = member->id;
		delays[n] = member->delay_us;
		operations[n] = unconstify(char *, fini_outbox_operation_name(member->requeue_as));
		codes[n] = unconstify(char *, member->error_code);
		messages[n++] = unconstify(char *, member->error_message);
	}
	if (n == 0)
		return;
	values[0] = fini_outbox_int8_array(n, ids);
	values[1] = fini_outbox_text_array(n, operations);
	values[2] = fini_outbox_int8_array(n, delays);
	values[3] = fini_outbox_text_array(n, codes);
	values[4] = fini_outbox_text_array(n, messages);
	(void) fini_outbox_execute(&requeue_statement, values, NULL, 0);
}

static void
close_request(FiniBatch *batch, const FiniCall *call)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	Datum		values[6];

	values[0] = CStringGetTextDatum(batch->request_id);
	values[1] = Int32GetDatum(call->http_status);
	values[2] = CStringGetTextDatum(call->code);
	values[3] = CStringGetTextDatum(call->message);
	values[4] = Int64GetDatum(call->http.duration_us);
	values[5] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
	(void) fini_outbox_execute(&answered_statement, values, NULL, 0);
}

/* one notification for each request: {"ipo_id":…, "operation":…, "request_id":…, "accepted":n, …} */
static void
announce(FiniBatch *batch)
{
	static const char *const states[] = {"accepted", "rejected", "failed", "cancelled"};
	int			counts[lengthof(states)] = {0};
	int			total = 0;
	StringInfoData payload;

	for (int i = 0; i < batch->count; i++)
	{
		for (size_t s = 0; s < lengthof(states); s++)
		{
			if (batch->members[i].state != NULL && strcmp(batch->members[i].state, states[s]) == 0)
			{
				counts[s]++;
				total++;
			}
		}
	}
	if (total == 0)
		return;
	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"event\":\"settled\",\"ipo_id\":");
	escape_json(&payload, batch->ipo_id);
	appendStringInfo(&payload, ",\"operation\":\"%s\",\"request_id\":\"%s\"",
					 fini_outbox_operation_name(batch->operation), batch->request_id);
	for (size_t s = 0; s < lengthof(states); s++)
		appendStringInfo(&payload, ",\"%s\":%d", states[s], counts[s]);
	appendStringInfoChar(&payload, '}');
	/* an IPO's name of unreasonable length is no reason for an error */
	if (payload.len < 4000)
		Async_Notify(CHANNEL, payload.data);
}

static int
member_ids(const FiniBatch *batch, bool open_only, int64 *ids)
{
	int			n = 0;

	for (int i = 0; i < batch->count; i++)
	{
		if (!open_only || batch->members[i].state == NULL)
			ids[n++] = batch->members[i].id;
	}
	return n;
}

/* the worker's transaction has nothing else deferred; see the top */
static void
begin_worker_writes(void)
{
	if (SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not make constraints immediate");
}

/* outcomes as the outbox has them */
static void
write_ids(int n, const int64 *ids, bool by_worker)
{
	Datum		values[1] = {fini_outbox_int8_array(n, ids)};
	SPITupleTable *table;
	uint64		rows;

	(void) fini_outbox_execute(&settled_statement, values, NULL, 0);
	table = SPI_tuptable;
	rows = SPI_processed;
	for (int pass = FINI_OPERATION_ADD; pass <= FINI_OPERATION_INVALIDATE; pass++)
	{
		FiniBatch	batch = {.operation = pass};

		batch.members = palloc0(sizeof(FiniMember) * Max(1, rows));
		for (uint64 i = 0; i < rows; i++)
		{
			FiniMember *member = &batch.members[batch.count];
			bool		isnull;

			if (fini_outbox_operation(SPI_getvalue(table->vals[i], table->tupdesc, 8)) != (FiniOperation) pass)
				continue;
			member->id = DatumGetInt64(SPI_getbinval(table->vals[i], table->tupdesc, 1, &isnull));
			member->relid = DatumGetObjectId(SPI_getbinval(table->vals[i], table->tupdesc, 2, &isnull));
			member->own_ref = SPI_getvalue(table->vals[i], table->tupdesc, 3);
			member->new_record_id = SPI_getvalue(table->vals[i], table->tupdesc, 4);
			member->state = SPI_getvalue(table->vals[i], table->tupdesc, 5);
			member->error_code = SPI_getvalue(table->vals[i], table->tupdesc, 6);
			member->error_message = SPI_getvalue(table->vals[i], table->tupdesc, 7);
			batch.count++;
		}
		write_batch(&batch, by_worker);
	}
	SPI_freetuptable(table);
}

static void
write_batch(const FiniBatch *batch, bool by_worker)
{
	for (int i = 0; i < batch->count; i++)
	{
		bool		seen = false;

		for (int j = 0; j < i && !seen; j++)
			seen = batch->members[j].relid == batch->members[i].relid;
		if (!seen)
			write_table(batch, batch->members[i].relid, by_worker);
	}
}

static void
write_table(const FiniBatch *batch, Oid relid, bool by_worker)
{
	FiniOutcome *outcomes = palloc(sizeof(FiniOutcome) * batch->count);
	int64	   *ids = palloc(sizeof(int64) * batch->count);
	int64	   *refused = palloc(sizeof(int64) * batch->count);
	int64	   *unwritten = palloc(sizeof(int64) * batch->count);
	int			n = 0;
	int			refusals = 0;
	int			later = 0;
	int			sqlstate = 0;
	int			last = 0;
	bool		too_slow;
	char	   *note;
	Datum		values[2];

	for (int i = 0; i < batch->count; i++)
	{
		if (batch->members[i].relid == relid &&
			outcome_of(&batch->members[i], batch->operation, &outcomes[n]))
			ids[n++] = batch->members[i].id;
	}
	if (n == 0 || write_rows(relid, n, outcomes, by_worker ? LOCK_MS_TABLE : NULL, &last))
		return;
	/* one by one, the table's triggers would take as long for each */
	too_slow = last == ERRCODE_QUERY_CANCELED;
	for (int i = 0; i < n; i++)
	{
		if (later < MAX_LOCKED_ROWS && n > 1 && !too_slow &&
			write_rows(relid, 1, &outcomes[i], by_worker ? LOCK_MS_ROW : NULL, &last))
			continue;
		if (is_passing(last))
			unwritten[later++] = ids[i];
		else
		{
			sqlstate = last;
			refused[refusals++] = ids[i];
		}
	}
	if (later > 0)
		note_unwritten(later, unwritten);
	if (refusals == 0)
		return;

	/* the table's own error text may quote the row: its code has to do */
	note = psprintf("the outcome could not be written to the table (SQLSTATE %s)", unpack_sql_state(sqlstate));
	values[0] = fini_outbox_int8_array(refusals, refused);
	values[1] = CStringGetTextDatum(note);
	(void) fini_outbox_execute(&note_statement, values, NULL, 0);
	ereport(LOG,
			(errcode(sqlstate),
			 errmsg("fini: %d outcomes could not be written to table %s", refusals,
					get_rel_name(relid) ? get_rel_name(relid) : psprintf("with OID %u", relid)),
			 errdetail("SQLSTATE %s; the first is operation " INT64_FORMAT ".", unpack_sql_state(sqlstate), refused[0])));
}

/* in a subtransaction; false, and why, when the table refused */
static bool
write_rows(Oid relid, int n, const FiniOutcome *outcomes, const char *lock_timeout, int *sqlstate)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool written = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		int			guc_level = NewGUCNestLevel();
		Jsonb	   *fields;
		Jsonb	   *outcome;

		if (lock_timeout != NULL)
			(void) set_config_option("lock_timeout", lock_timeout, PGC_USERSET, PGC_S_SESSION,
									 GUC_ACTION_SAVE, true, 0, false);
		if (MyBackendType == B_BG_WORKER)
			enable_timeout_after(STATEMENT_TIMEOUT, USER_CODE_MS);
		/* a table that has been detached takes no outcomes */
		if (fini_outbox_attachment(relid, &fields, &outcome))
			fini_source_write_back(fini_source_open(relid), n, outcomes);
		if (MyBackendType == B_BG_WORKER)
			disable_timeout(STATEMENT_TIMEOUT, false);
		AtEOXact_GUC(false, guc_level);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		*sqlstate = geterrcode();
		if (MyBackendType == B_BG_WORKER)
			disable_timeout(STATEMENT_TIMEOUT, false);
		/* a session's own cancel goes on; in the worker it is only what the table's triggers say */
		if (MyBackendType != B_BG_WORKER &&
			(*sqlstate == ERRCODE_QUERY_CANCELED || *sqlstate == ERRCODE_ADMIN_SHUTDOWN))
			PG_RE_THROW();
		MemoryContextSwitchTo(old);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		written = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return written;
}

/* may the same write succeed in a while? */
static bool
is_passing(int sqlstate)
{
	return sqlstate == ERRCODE_LOCK_NOT_AVAILABLE ||
		ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_TRANSACTION_ROLLBACK ||
		ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_INSUFFICIENT_RESOURCES;
}

static void
note_unwritten(int n, const int64 *ids)
{
	Datum		values[1] = {fini_outbox_int8_array(n, ids)};

	(void) fini_outbox_execute(&unwritten_statement, values, NULL, 0);
}

/* what the user's row is told; false: nothing */
static bool
outcome_of(const FiniMember *member, FiniOperation operation, FiniOutcome *outcome)
{
	bool		accepted;

	if (member->state == NULL || strcmp(member->state, "queued") == 0 || member->stray)
		return false;
	accepted = strcmp(member->state, "accepted") == 0;

	/* a change or withdrawal that was cancelled leaves the record as it stands */
	if (strcmp(member->state, "cancelled") == 0 && operation != FINI_OPERATION_ADD)
		return false;
	outcome->own_ref = member->own_ref;
	outcome->state = accepted && operation == FINI_OPERATION_INVALIDATE ? "invalidated" : member->state;
	outcome->record_id = accepted ? member->new_record_id : operation == FINI_OPERATION_ADD ? "" : NULL;
	outcome->error = "";
	if (member->error_code != NULL && member->error_code[0] != '\0')
		outcome->error = psprintf("%s: %s", member->error_code, member->error_message ? member->error_message : "");
	return true;
}
