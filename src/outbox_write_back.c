/*
 * outbox_write_back.c
 *		Outcomes on their way into the rows of users' tables.
 *
 * The user's table may refuse an outcome (a trigger, a lock, a dropped column):
 * then the outbox has it all the same, with a note, because it is the truth
 * about FINI; rows are tried one by one so that only those refused go without.
 * Where it was but a lock that somebody held, the outcome is put down in
 * fini.unwritten, and the worker tries again whenever it looks round: it waits
 * for nobody's transaction.
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
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/timeout.h"

#include "compat.h"
#include "outbox.h"

/*
 * How long the worker waits for a lock on somebody's rows: for many at once,
 * for one, and how often before it leaves the rest for later.  All of it is
 * short of deadlock_timeout, lest the deadlock be found in the user's session.
 */
#define LOCK_MS_TABLE	"100ms"
#define LOCK_MS_ROW		"10ms"
#define MAX_LOCKED_ROWS	20
#define LATE_BATCH		1000

/* outcomes that a session writes at once: it may ask for a million */
#define PORTION			5000

/*
 * How long the triggers of a table may hold the worker up, for one batch; less
 * where fini.table_timeout is.  Not more where that is longer: reading a row can
 * keep it from being sent, but what is written here has been decided.
 */
#define USER_CODE_MS	5000

PG_FUNCTION_INFO_V1(fini_sql_write_back);

static FiniStatement note_statement = {
	.sql = "UPDATE fini.submission s SET error_code = coalesce(error_code, 'write_back'),"
	" error_message = concat_ws('; ', error_message, $2) FROM unnest($1) AS m(id) WHERE s.id = m.id",
	.nargs = 2, .types = {INT8ARRAYOID, TEXTOID}
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

/* a row whose operations were cancelled, but whose own_ref stands at FINI by an earlier one, is told that */
static FiniStatement settled_statement = {
	.sql = "SELECT s.id, s.relation::oid, s.own_ref, coalesce(st.record_id, s.record_id),"
	"  CASE WHEN st.record_id IS NULL THEN s.state ELSE 'accepted' END, s.error_code, s.error_message, s.operation"
	" FROM fini.submission s JOIN fini.attachment a ON a.relation = s.relation"
	" LEFT JOIN LATERAL (SELECT l.record_id FROM (SELECT p.operation, p.record_id FROM fini.submission p"
	"   WHERE p.own_ref = s.own_ref AND p.relation = s.relation AND p.state = 'accepted' AND NOT p.stray"
	"   ORDER BY p.settled_at DESC, p.id DESC LIMIT 1) l WHERE l.operation <> 'invalidate') st"
	"  ON s.state = 'cancelled' AND s.operation = 'add'"
	" WHERE s.id = ANY ($1) AND s.settled_at IS NOT NULL AND NOT s.stray",
	.nargs = 1, .types = {INT8ARRAYOID}
};

static void begin_worker_writes(void);
static void write_ids(int n, const int64 *ids, bool by_worker);
static void write_batch(const FiniBatch *batch, bool by_worker);
static void write_table(const FiniBatch *batch, Oid relid, bool by_worker);
static bool write_rows(Oid relid, int n, const FiniOutcome *outcomes, const char *lock_timeout, int *sqlstate);
static void end_user_code(void);
static bool is_passing(int sqlstate);
static void note_unwritten(int n, const int64 *ids);
static bool outcome_of(const FiniMember *member, FiniOperation operation, FiniOutcome *outcome);

void
fini_outbox_write_batch(const FiniBatch *batch)
{
	begin_worker_writes();
	write_batch(batch, true);
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
	int64	   *ids;
	int			count = fini_outbox_int8s(PG_GETARG_DATUM(0), &ids);

	/* of several operations of one row the last one counts */
	qsort(ids, count, sizeof(int64), fini_outbox_compare_ids);
	SPI_connect();
	for (int i = 0; i < count; i += PORTION)
	{
		MemoryContext portion = AllocSetContextCreate(CurrentMemoryContext, "fini written back", ALLOCSET_DEFAULT_SIZES);
		MemoryContext old = MemoryContextSwitchTo(portion);

		CHECK_FOR_INTERRUPTS();
		fini_outbox_write_back(Min(PORTION, count - i), ids + i);
		MemoryContextSwitchTo(old);
		MemoryContextDelete(portion);
	}
	SPI_finish();
	PG_RETURN_VOID();
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
	MemoryContext old = CurrentMemoryContext;
	Datum		values[1] = {fini_outbox_int8_array(n, ids)};
	SPITupleTable *table;
	uint64		rows;

	(void) fini_outbox_execute(&settled_statement, values, NULL, 0);
	MemoryContextSwitchTo(old);
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

/* in a subtransaction; false, and why, when the table refused. lock_timeout: the worker's, NULL in a session */
static bool
write_rows(Oid relid, int n, const FiniOutcome *outcomes, const char *lock_timeout, int *sqlstate)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	bool		by_worker = lock_timeout != NULL;
	volatile bool written = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		int			guc_level = NewGUCNestLevel();
		FiniSource *source;

		if (by_worker)
		{
			(void) set_config_option("lock_timeout", lock_timeout, PGC_USERSET, PGC_S_SESSION,
									 GUC_ACTION_SAVE, true, 0, false);
			enable_timeout_after(STATEMENT_TIMEOUT, USER_CODE_MS);
		}
		/* a table that has been detached takes no outcomes */
		source = fini_source_try_open(relid);
		if (source != NULL)
			fini_source_write_back(source, n, outcomes);
		if (by_worker)
			end_user_code();
		AtEOXact_GUC(false, guc_level);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		*sqlstate = geterrcode();
		if (by_worker)
			end_user_code();
		/* a session's own cancel goes on; in the worker it is only what the table's triggers say */
		if (!by_worker &&
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

/* a time-out that has fired at the last moment must not hit what comes next */
static void
end_user_code(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	QueryCancelPending = false;
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
	outcome->tid = member->row.tid;
	outcome->state = accepted && operation == FINI_OPERATION_INVALIDATE ? "invalidated" : member->state;
	outcome->record_id = accepted ? member->new_record_id : operation == FINI_OPERATION_ADD ? "" : NULL;
	outcome->error = "";
	if (member->error_code != NULL && member->error_code[0] != '\0')
		outcome->error = psprintf("%s: %s", member->error_code, member->error_message ? member->error_message : "");
	return true;
}
