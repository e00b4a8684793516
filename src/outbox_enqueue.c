/*
 * outbox_enqueue.c
 *		What a change to a user's table asks for, as operations in the queue.
 *
 * The rules rest on what stands for an own_ref: its last operation that was
 * not rejected, cancelled or given up (fini._standing in SQL).  They need not
 * be the last word: when an operation is claimed, its worker looks again and
 * turns an add on top of a standing record into a change, a change of nothing
 * into an add, and drops the withdrawal of what never was.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "compat.h"
#include "outbox.h"
#include "shared.h"

/* columns of a text-array parameter, in order */
#define ROWS_OF(params) "ROWS FROM (" params ") WITH ORDINALITY"

static FiniStatement attachment_statement = {
	.sql = "SELECT fields, outcome FROM fini.attachment WHERE relation = $1",
	.nargs = 1, .types = {OIDOID}, .keep_plan = true
};

static FiniStatement insert_statement = {
	.sql = "WITH new AS (INSERT INTO fini.submission (relation, own_ref, ipo_id, operation)"
	" SELECT $1, u.r, u.i, 'add' FROM " ROWS_OF("unnest($2), unnest($3)") " AS u(r, i, n) ORDER BY n"
	" RETURNING id, ipo_id)"
	" INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, 'add', id FROM new",
	.nargs = 3, .types = {OIDOID, TEXTARRAYOID, TEXTARRAYOID}, .keep_plan = true
};

/*
 * A queued add or change, once its queue row is locked, will read the row
 * after our commit: nothing to do.  If the lock is not to be had (the row was
 * claimed in the meantime), the operation may be on its way with old values.
 */
static FiniStatement update_statement = {
	.sql = "WITH u AS MATERIALIZED (SELECT u.r, u.i, u.n, l.* FROM " ROWS_OF("unnest($2), unnest($3)") " AS u(r, i, n)"
	"  LEFT JOIN LATERAL (SELECT s.id, s.operation, s.state FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1"
	"   AND s.state IN ('queued', 'sending', 'unknown', 'accepted') ORDER BY s.id DESC LIMIT 1) l ON true),"
	" locked AS MATERIALIZED (SELECT l.id FROM u, LATERAL (SELECT q.id FROM fini.queue q"
	"  WHERE q.ipo_id = u.i AND q.operation = u.operation AND q.id = u.id OFFSET 0 FOR UPDATE) l WHERE u.state = 'queued'),"
	" new AS (INSERT INTO fini.submission (relation, own_ref, ipo_id, operation)"
	"  SELECT $1, u.r, u.i, CASE WHEN u.id IS NULL THEN 'add' ELSE 'change' END FROM u"
	"  WHERE CASE WHEN u.id IS NULL THEN EXISTS (SELECT FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1"
	"     AND s.operation <> 'invalidate' AND s.state IN ('rejected', 'failed'))"
	"    WHEN u.operation = 'invalidate' THEN false"
	"    WHEN u.state = 'queued' THEN u.id NOT IN (SELECT id FROM locked)"
	"    ELSE true END"
	"  ORDER BY u.n RETURNING id, ipo_id, operation)"
	" INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, operation, id FROM new",
	.nargs = 3, .types = {OIDOID, TEXTARRAYOID, TEXTARRAYOID}
};

/* an add still queued under the old name is cancelled; what cannot be had has been sent */
static FiniStatement unqueue_moved_statement = {
	.sql = "WITH u AS MATERIALIZED (SELECT u.o, l.* FROM unnest($2) AS u(o),"
	"  LATERAL (SELECT s.id, s.operation, s.state, s.ipo_id FROM fini.submission s WHERE s.own_ref = u.o AND s.relation = $1"
	"   AND s.state IN ('queued', 'sending', 'unknown', 'accepted') ORDER BY s.id DESC LIMIT 1) l"
	"  WHERE l.operation <> 'invalidate'),"
	" gone AS (DELETE FROM fini.queue WHERE ctid = ANY (ARRAY(SELECT l.ctid FROM u, LATERAL (SELECT q.ctid FROM fini.queue q"
	"  WHERE q.ipo_id = u.ipo_id AND q.operation = 'add' AND q.id = u.id OFFSET 0) l WHERE u.state = 'queued' AND u.operation = 'add'))"
	"  RETURNING id),"
	" cancelled AS (UPDATE fini.submission s SET state = 'cancelled', settled_at = clock_timestamp(), error_code = 'moved',"
	"  error_message = 'own_ref or ipo_id changed before it was sent' WHERE s.id = ANY (ARRAY(SELECT id FROM gone)) RETURNING s.id)"
	" SELECT u.o FROM u WHERE u.id NOT IN (SELECT id FROM gone) LIMIT 1",
	.nargs = 2, .types = {OIDOID, TEXTARRAYOID}
};

/* under its new name a row goes as an add, if it had been enqueued under the old one at all */
static FiniStatement insert_moved_statement = {
	.sql = "WITH new AS (INSERT INTO fini.submission (relation, own_ref, ipo_id, operation)"
	" SELECT $1, u.r, u.i, 'add' FROM " ROWS_OF("unnest($2), unnest($3), unnest($4)") " AS u(o, r, i, n)"
	" WHERE EXISTS (SELECT FROM fini.submission s WHERE s.own_ref = u.o AND s.relation = $1 AND s.operation = 'add'"
	"  AND (s.state IN ('rejected', 'failed') OR s.error_code = 'moved')) ORDER BY n RETURNING id, ipo_id)"
	" INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, 'add', id FROM new",
	.nargs = 4, .types = {OIDOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
};

static FiniStatement delete_statement = {
	.sql = "SELECT fini._withdraw($1::regclass, $2, false)",
	.nargs = 2, .types = {OIDOID, TEXTARRAYOID}
};

static FiniStatement submit_statement = {
	.sql = "WITH new AS (INSERT INTO fini.submission (relation, own_ref, ipo_id, operation)"
	" SELECT $1, u.r, u.i, 'add' FROM " ROWS_OF("unnest($2), unnest($3)") " AS u(r, i, n)"
	" WHERE NOT EXISTS (SELECT FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1 AND s.state <> 'cancelled')"
	" ORDER BY n RETURNING id, ipo_id)"
	" INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, 'add', id FROM new",
	.nargs = 3, .types = {OIDOID, TEXTARRAYOID, TEXTARRAYOID}
};

/* the last operation of an own_ref that counts is an add or a change */
static FiniStatement stands_statement = {
	.sql = "SELECT FROM fini.submission s WHERE s.relation = $1 AND s.operation <> 'invalidate'"
	" AND s.state IN ('queued', 'sending', 'unknown', 'accepted')"
	" AND NOT EXISTS (SELECT FROM fini.submission l WHERE l.own_ref = s.own_ref AND l.relation = s.relation AND l.id > s.id"
	"  AND l.operation = 'invalidate' AND l.state = 'accepted')",
	.nargs = 1, .types = {OIDOID}
};

bool
fini_outbox_attachment(Oid relid, Jsonb **fields, Jsonb **outcome)
{
	MemoryContext into = CurrentMemoryContext;
	Datum		values[1] = {ObjectIdGetDatum(relid)};
	bool		isnull;
	MemoryContext old;

	(void) fini_outbox_execute(&attachment_statement, values, NULL, 1);
	if (SPI_processed == 0)
		return false;
	old = MemoryContextSwitchTo(into);
	*fields = DatumGetJsonbPCopy(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	*outcome = DatumGetJsonbPCopy(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	MemoryContextSwitchTo(old);
	SPI_freetuptable(SPI_tuptable);
	return true;
}

void
fini_outbox_inserted(Oid relid, int n, char **own_refs, char **ipo_ids)
{
	Datum		values[3] = {ObjectIdGetDatum(relid), fini_outbox_text_array(n, own_refs), fini_outbox_text_array(n, ipo_ids)};

	(void) fini_outbox_execute(&insert_statement, values, NULL, 0);
	fini_shared_wake_at_commit();
}

void
fini_outbox_updated(Oid relid, int n, char **own_refs, char **ipo_ids)
{
	Datum		values[3] = {ObjectIdGetDatum(relid), fini_outbox_text_array(n, own_refs), fini_outbox_text_array(n, ipo_ids)};

	(void) fini_outbox_execute(&update_statement, values, NULL, 0);
	fini_shared_wake_at_commit();
}

void
fini_outbox_moved(Oid relid, int n, char **old_refs, char **own_refs, char **ipo_ids)
{
	Datum		values[4] = {ObjectIdGetDatum(relid), fini_outbox_text_array(n, old_refs),
	fini_outbox_text_array(n, own_refs), fini_outbox_text_array(n, ipo_ids)};

	(void) fini_outbox_execute(&unqueue_moved_statement, values, NULL, 0);
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("own_ref and ipo_id of an application cannot change once it has been sent"),
				 errdetail("The application with own_ref \"%s\" has been sent, or is being sent.",
						   fini_outbox_column(0, 1, CurrentMemoryContext)),
				 errhint("Delete the row, which withdraws the application, and insert a new one.")));
	(void) fini_outbox_execute(&insert_moved_statement, values, NULL, 0);
	fini_shared_wake_at_commit();
}

void
fini_outbox_deleted(Oid relid, int n, char **own_refs)
{
	Datum		values[2] = {ObjectIdGetDatum(relid), fini_outbox_text_array(n, own_refs)};

	(void) fini_outbox_execute(&delete_statement, values, NULL, 0);
	fini_shared_wake_at_commit();
}

int64
fini_outbox_submit(Oid relid, int n, char **own_refs, char **ipo_ids)
{
	Datum		values[3] = {ObjectIdGetDatum(relid), fini_outbox_text_array(n, own_refs), fini_outbox_text_array(n, ipo_ids)};

	(void) fini_outbox_execute(&submit_statement, values, NULL, 0);
	fini_shared_wake_at_commit();
	return (int64) SPI_processed;
}

bool
fini_outbox_stands(Oid relid)
{
	Datum		values[1] = {ObjectIdGetDatum(relid)};

	(void) fini_outbox_execute(&stands_statement, values, NULL, 1);
	return SPI_processed > 0;
}
