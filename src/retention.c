/*
 * retention.c
 *		Deleting what has ended and is needed no more.
 *
 * The worker deletes a slice of the outbox in a transaction of its own, between
 * two rounds of its loop: one after the other while the queue is empty, one a
 * second while it is not.  After the last it rests for an hour.  How far it has
 * come is in fini.purge_state, so that a worker that is started again goes on.
 *
 * That the row of an application has gone is seen as the owner of its table
 * sees it.  A table that cannot be read, or is locked, keeps what it has: this
 * is housekeeping, and waits for nobody.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "compat.h"
#include "flight.h"
#include "outbox.h"
#include "retention.h"
#include "settings.h"
#include "source.h"
#include "trouble.h"
#include "user_code.h"

PG_FUNCTION_INFO_V1(fini_sql_gone);

#define REST_US			(INT64CONST(3600) * 1000000)	/* between two passes */
#define BUSY_PAUSE_US	INT64CONST(1000000) /* between two slices while the queue holds something, or somebody else purges */

typedef struct Slice
{
	bool		complete;
	bool		kept_out;		/* by a session's fini.purge that has not committed */
} Slice;

static FiniStatement purge_statement = {
	.sql = "SELECT deleted, complete FROM fini._purge($1 * interval '1 minute', 1, false)",
	.nargs = 1, .types = {INT4OID}, .keep_plan = true
};

static FiniStatement attached_statement = {
	.sql = "SELECT FROM fini.attachment WHERE relation = $1",
	.nargs = 1, .types = {OIDOID}, .keep_plan = true
};

static int64 due_us = 0;

static void purge_slice(void *arg);
static bool still_there(Oid relid, int n, char **own_refs, bool *present);

long
fini_retention_service(FiniSlotShared *slot)
{
	int64		now = fini_monotonic_us();
	char		work[FINI_TROUBLE_NAME] = "delete what is older than fini.retention";

	if (fini_guc_retention == 0 || fini_trouble_waits(work))
		return -1;				/* the end of the trouble wakes us */
	if (now >= due_us)
	{
		Slice		slice = {0};
		bool		well = fini_trouble_guard(slot, work, purge_slice, &slice);

		now = fini_monotonic_us();
		if (well)
			due_us = slice.complete ? now + REST_US : slice.kept_out || fini_flight_backlog() ? now + BUSY_PAUSE_US : now;
	}
	return (long) ((Max(due_us - now, 0) + 999) / 1000);
}

/*
 * fini._gone(relation, own_refs): those that have no row.  All, when the table
 * has gone; none, when it cannot be known.
 */
Datum
fini_sql_gone(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	Datum	   *refs;
	bool	   *nulls;
	int			n;
	char	  **own_refs;
	bool	   *present;
	int			gone = 0;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &refs, &nulls, &n);
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		PG_RETURN_DATUM(PG_GETARG_DATUM(1));

	own_refs = palloc(sizeof(char *) * Max(1, n));
	present = palloc0(sizeof(bool) * Max(1, n));
	for (int i = 0; i < n; i++)
		own_refs[i] = nulls[i] ? pstrdup("") : TextDatumGetCString(refs[i]);
	if (still_there(relid, n, own_refs, present))
	{
		for (int i = 0; i < n; i++)
		{
			if (!present[i] && !nulls[i])
				own_refs[gone++] = own_refs[i];
		}
	}
	PG_RETURN_DATUM(fini_outbox_text_array(gone, own_refs));
}

static void
purge_slice(void *arg)
{
	Slice	   *slice = arg;
	Datum		values[1] = {Int32GetDatum(fini_guc_retention)};

	(void) fini_outbox_execute(&purge_statement, values, NULL, 1);
	slice->complete = SPI_processed == 0 ||
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &slice->kept_out));
}

/* which of the own_refs have a row; false when that cannot be known */
static bool
still_there(Oid relid, int n, char **own_refs, bool *present)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Datum		values[1] = {ObjectIdGetDatum(relid)};
	volatile bool known = false;

	SPI_connect();
	(void) fini_outbox_execute(&attached_statement, values, NULL, 1);
	if (SPI_processed > 0 && ConditionalLockRelationOid(relid, AccessShareLock))
	{
		BeginInternalSubTransaction(NULL);
		MemoryContextSwitchTo(old);
		PG_TRY();
		{
			fini_source_find_rows(fini_source_open(relid), n, own_refs, present);
			known = true;
			ReleaseCurrentSubTransaction();
		}
		PG_CATCH();
		{
			int			sqlstate;

			MemoryContextSwitchTo(old);
			sqlstate = geterrcode();
			/* a session's own cancel goes on; in the worker it is only what the table's code is cancelled by */
			if (sqlstate == ERRCODE_QUERY_CANCELED && !fini_user_code_is_watched())
				PG_RE_THROW();
			FlushErrorState();
			RollbackAndReleaseCurrentSubTransaction();
			known = false;
			elog(DEBUG1, "table with OID %u cannot be read (SQLSTATE %s): its operations are kept", relid, unpack_sql_state(sqlstate));
		}
		PG_END_TRY();
		MemoryContextSwitchTo(old);
		CurrentResourceOwner = owner;
	}
	SPI_finish();
	return known;
}
