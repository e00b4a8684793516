/*
 * reconcile_run.c
 *		The row of a run in fini.reconcile_run: begin, go on, end.
 *
 * One run of a table and IPO at a time.  A run of the worker's shows in its
 * row, one in a session does not before it commits; so both take a lock that
 * their transactions hold.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "outbox.h"
#include "reconcile.h"
#include "source.h"

#define MAX_IPO_ID		20
#define LOCK_CLASS		0xF141	/* among advisory locks; those of SQL are 1 and 2 */

static const char *const phases[] = {"pages", "rows", "candidates"};

static FiniStatement busy_statement = {
	.sql = "SELECT r.run_id, r.pages FROM fini.reconcile_run r WHERE r.relation = $1 AND r.ipo_id = $2 AND r.state = 'running'",
	.nargs = 2, .types = {OIDOID, TEXTOID}, .keep_plan = true
};

static FiniStatement begin_statement = {
	.sql = "INSERT INTO fini.reconcile_run (relation, ipo_id, background, started_by) VALUES ($1, $2, $3, session_user)"
	" RETURNING run_id, started_at",
	.nargs = 3, .types = {OIDOID, TEXTOID, BOOLOID}, .keep_plan = true
};

static FiniStatement next_statement = {
	.sql = "SELECT r.run_id, greatest(0, extract(epoch FROM r.not_before - clock_timestamp()) * 1000000)::bigint"
	" FROM fini.reconcile_run r WHERE r.state = 'running' ORDER BY r.not_before NULLS FIRST, r.run_id",
	.nargs = 0, .keep_plan = true
};

/* a cancel that has not committed yet holds the row: then it is not our turn */
static FiniStatement load_statement = {
	.sql = "SELECT r.relation::oid, r.ipo_id, r.started_at, r.phase, r.cursor, r.reached, r.pages, r.local, r.remote, r.matched,"
	" r.discrepancies, r.failures, r.cursor_mark FROM fini.reconcile_run r WHERE r.run_id = $1 AND r.state = 'running' FOR UPDATE SKIP LOCKED",
	.nargs = 1, .types = {INT8OID}, .keep_plan = true
};

static FiniStatement save_statement = {
	.sql = "UPDATE fini.reconcile_run SET phase = $2, cursor = $3, reached = $4[1], pages = $4[2], local = $4[3], remote = $4[4],"
	" matched = $4[5], discrepancies = $4[6], cursor_mark = $5, failures = 0, not_before = NULL, error = NULL, progress_at = clock_timestamp()"
	" WHERE run_id = $1",
	.nargs = 5, .types = {INT8OID, TEXTOID, TEXTOID, INT8ARRAYOID, TEXTOID}, .keep_plan = true
};

static FiniStatement postpone_statement = {
	.sql = "UPDATE fini.reconcile_run SET failures = failures + 1, error = $2,"
	" not_before = clock_timestamp() + $3 * interval '1 microsecond' WHERE run_id = $1 AND state = 'running'",
	.nargs = 3, .types = {INT8OID, TEXTOID, INT8OID}, .keep_plan = true
};

static FiniStatement end_statement = {
	.sql = "SELECT fini._end_reconcile($1, $2, $3)",
	.nargs = 3, .types = {INT8OID, TEXTOID, TEXTOID}, .keep_plan = true
};

static FiniReconcile *make_run(void);
static void lock_subject(Oid relid, const char *ipo_id);
static void refuse_busy(Oid relid, const char *ipo_id, int64 run_id, int64 pages) pg_attribute_noreturn();
static int64 number(int column);
static int64 number_in(uint64 row, int column);

FiniReconcile *
fini_reconcile_begin(Oid relid, const char *ipo_id, bool background)
{
	FiniReconcile *run = make_run();
	MemoryContext old = MemoryContextSwitchTo(run->piece);
	Datum		values[3] = {ObjectIdGetDatum(relid), CStringGetTextDatum(ipo_id), BoolGetDatum(background)};

	if (ipo_id[0] == '\0' || pg_mbstrlen(ipo_id) > MAX_IPO_ID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an ipo_id has 1 to %d characters", MAX_IPO_ID)));
	(void) fini_source_open(relid);
	MemoryContextSwitchTo(run->piece);
	lock_subject(relid, ipo_id);
	fini_reconcile_execute(&busy_statement, values, NULL);
	if (SPI_processed > 0)
		refuse_busy(relid, ipo_id, number(1), number(2));

	fini_reconcile_execute(&begin_statement, values, NULL);
	run->run_id = number(1);
	run->started_at = (TimestampTz) number(2);
	run->relid = relid;
	run->ipo_id = MemoryContextStrdup(run->context, ipo_id);
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(old);
	return run;
}

int64
fini_reconcile_next(int64 (*held_back) (int64 run_id), int64 *wait_us)
{
	int64		next = 0;

	*wait_us = 0;
	fini_reconcile_execute(&next_statement, NULL, NULL);
	for (uint64 row = 0; row < SPI_processed && (next == 0 || *wait_us > 0); row++)
	{
		int64		run_id = number_in(row, 1);
		int64		wait = Max(number_in(row, 2), held_back(run_id));	/* null, hence 0, when it has no pause */

		if (next != 0 && wait >= *wait_us)
			continue;
		next = run_id;
		*wait_us = wait;
	}
	SPI_freetuptable(SPI_tuptable);
	return next;
}

FiniReconcile *
fini_reconcile_load(int64 run_id)
{
	Datum		values[1] = {Int64GetDatum(run_id)};
	FiniReconcile *run;
	char	   *phase;
	char	   *cursor;
	char	   *mark;

	fini_reconcile_execute(&load_statement, values, NULL);
	if (SPI_processed == 0)
		return NULL;
	run = make_run();
	run->run_id = run_id;
	run->relid = (Oid) number(1);
	run->ipo_id = fini_outbox_column(0, 2, run->context);
	run->started_at = (TimestampTz) number(3);
	phase = fini_outbox_column(0, 4, run->piece);
	for (size_t i = 0; i < lengthof(phases); i++)
	{
		if (strcmp(phases[i], phase) == 0)
			run->phase = (FiniReconcilePhase) i;
	}
	cursor = fini_outbox_column(0, 5, run->piece);
	mark = fini_outbox_column(0, 13, run->piece);
	strlcpy(run->pages.cursor, cursor != NULL ? cursor : "", sizeof(run->pages.cursor));
	strlcpy(run->pages.mark, mark != NULL ? mark : "", sizeof(run->pages.mark));
	run->reached = number(6);
	run->pages.n = number(7);
	run->local = number(8);
	run->remote = number(9);
	run->matched = number(10);
	run->discrepancies = number(11);
	run->failures = (int) number(12);
	SPI_freetuptable(SPI_tuptable);
	return run;
}

void
fini_reconcile_save(FiniReconcile *run)
{
	MemoryContext old = MemoryContextSwitchTo(run->piece);
	int64		counts[] = {run->reached, run->pages.n, run->local, run->remote, run->matched, run->discrepancies};
	Datum		values[5] = {Int64GetDatum(run->run_id), CStringGetTextDatum(phases[run->phase]),
	CStringGetTextDatum(run->pages.cursor), fini_outbox_int8_array(lengthof(counts), counts), CStringGetTextDatum(run->pages.mark)};

	fini_reconcile_execute(&save_statement, values, NULL);
	run->failures = 0;
	MemoryContextSwitchTo(old);
}

void
fini_reconcile_postpone(int64 run_id, const char *error, int64 pause_us)
{
	Datum		values[3] = {Int64GetDatum(run_id), CStringGetTextDatum(error), Int64GetDatum(pause_us)};

	fini_reconcile_execute(&postpone_statement, values, NULL);
}

void
fini_reconcile_end(int64 run_id, const char *state, const char *error)
{
	Datum		values[3] = {Int64GetDatum(run_id), CStringGetTextDatum(state),
	error != NULL ? CStringGetTextDatum(error) : (Datum) 0};

	fini_reconcile_execute(&end_statement, values, error != NULL ? NULL : "  n");
	SPI_freetuptable(SPI_tuptable);
}

void
fini_reconcile_execute(FiniStatement *statement, Datum *values, const char *nulls)
{
	MemoryContext old = CurrentMemoryContext;

	(void) fini_outbox_execute(statement, values, nulls, 0);
	MemoryContextSwitchTo(old);
}

static FiniReconcile *
make_run(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini reconcile", ALLOCSET_DEFAULT_SIZES);
	FiniReconcile *run = MemoryContextAllocZero(context, sizeof(FiniReconcile));

	run->context = context;
	run->piece = AllocSetContextCreate(context, "fini reconcile piece", ALLOCSET_DEFAULT_SIZES);
	return run;
}

/* held until the transaction ends */
static void
lock_subject(Oid relid, const char *ipo_id)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, relid, hash_bytes((const unsigned char *) ipo_id, (int) strlen(ipo_id)), LOCK_CLASS);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		refuse_busy(relid, ipo_id, 0, 0);
}

static void
refuse_busy(Oid relid, const char *ipo_id, int64 run_id, int64 pages)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("table %s is being reconciled with IPO \"%s\" already", quote_identifier(get_rel_name(relid)), ipo_id),
			 run_id == 0 ? errdetail("Another session is at it.") :
			 errdetail("Run " INT64_FORMAT " has read " INT64_FORMAT " pages.", run_id, pages),
			 run_id == 0 ? errhint("Wait until it has ended.") :
			 errhint("Wait for it with fini.wait_reconcile(" INT64_FORMAT "), or end it with fini.cancel_reconcile(" INT64_FORMAT ").",
					 run_id, run_id)));
}

/* of the first row */
static int64
number(int column)
{
	return number_in(0, column);
}

/* an oid, integer, bigint or timestamptz; 0 when null */
static int64
number_in(uint64 row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	if (isnull)
		return 0;
	switch (SPI_gettypeid(SPI_tuptable->tupdesc, column))
	{
		case OIDOID:
			return DatumGetObjectId(value);
		case INT4OID:
			return DatumGetInt32(value);
		default:
			return DatumGetInt64(value);
	}
}
