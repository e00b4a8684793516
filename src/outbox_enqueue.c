/*
 * outbox_enqueue.c
 *		What a change to a user's table asks for, as operations in the queue.
 *
 * The rules rest on what stands for an own_ref: its last operation that was
 * not rejected, cancelled or given up.  They need not be the last word: when an
 * operation is claimed, its worker looks again and turns an add on top of a
 * standing record into a change, a change of nothing into an add, and drops the
 * withdrawal of what never was.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_append.h"
#include "shared.h"

PG_FUNCTION_INFO_V1(fini_sql_withdraw);

/*
 * An ipo_id may be anything the user's column holds, but is part of an index
 * key here.  What is clipped is far too long for FINI and rejected when its
 * turn comes.
 */
#define MAX_IPO_ID_KEPT		200

/* what a statement has cancelled is counted as such, and as queued no more (outbox_tally.c) */
#define TALLY_CANCELLED \
	"INSERT INTO fini.tally (ipo_id, state, n) SELECT c.ipo_id, x.state, x.sign * count(*)" \
	" FROM cancelled c, (VALUES ('cancelled', 1), ('queued', -1)) AS x(state, sign) GROUP BY c.ipo_id, x.state, x.sign"

/* columns of a text-array parameter, in order */
#define ROWS_OF(params) "ROWS FROM (" params ") WITH ORDINALITY"

static FiniStatement attachment_statement = {
	.sql = "SELECT fields, outcome FROM fini.attachment WHERE relation = $1",
	.nargs = 1, .types = {OIDOID}, .keep_plan = true
};

/*
 * A queued add or change, once it is ours, will read the row after our commit:
 * nothing to do.  If it is not to be had (it was claimed in the meantime), the
 * operation may be on its way with old values.  Where nothing stands, a row
 * goes again only if the last that happened to it was a refusal: one that was
 * withdrawn or cancelled stays so.
 */
static FiniStatement update_statement = {
	.sql = "WITH u AS MATERIALIZED (SELECT u.r, u.i, u.n, l.* FROM " ROWS_OF("unnest($2), unnest($3)") " AS u(r, i, n)"
	"  LEFT JOIN LATERAL (SELECT s.id, s.operation, s.state FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1"
	"   AND s.state IN ('queued', 'sending', 'unknown', 'accepted') AND NOT s.stray " FINI_LAST_OPERATION ") l ON true),"
	" ours AS MATERIALIZED (SELECT o.id FROM unnest(fini._take(ARRAY(SELECT u.id FROM u WHERE u.state = 'queued'))) AS o(id)),"
	" new AS (INSERT INTO fini.submission (relation, own_ref, ipo_id, operation)"
	"  SELECT $1, u.r, u.i, CASE WHEN u.id IS NULL THEN 'add' ELSE 'change' END FROM u"
	"  WHERE CASE WHEN u.id IS NULL THEN (SELECT s.operation <> 'invalidate' AND s.state IN ('rejected', 'failed')"
	"     FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1 " FINI_LAST_OPERATION ")"
	"    WHEN u.operation = 'invalidate' THEN false"
	"    WHEN u.state = 'queued' THEN u.id NOT IN (SELECT id FROM ours)"
	"    ELSE true END"
	"  ORDER BY u.n RETURNING id, ipo_id, operation)"
	" INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, operation, id FROM new",
	.nargs = 3, .types = {OIDOID, TEXTARRAYOID, TEXTARRAYOID}
};

/* an add still queued under the old name is cancelled; what cannot be had has been sent */
static FiniStatement unqueue_moved_statement = {
	.sql = "WITH u AS MATERIALIZED (SELECT u.o, l.* FROM unnest($2) AS u(o),"
	"  LATERAL (SELECT s.id, s.operation, s.state, s.ipo_id FROM fini.submission s WHERE s.own_ref = u.o AND s.relation = $1"
	"   AND s.state IN ('queued', 'sending', 'unknown', 'accepted') AND NOT s.stray " FINI_LAST_OPERATION ") l"
	"  WHERE l.operation <> 'invalidate'),"
	" ours AS MATERIALIZED (SELECT o.id FROM unnest(fini._take(ARRAY(SELECT u.id FROM u WHERE u.state = 'queued' AND u.operation = 'add'))) AS o(id)),"
	" cancelled AS (UPDATE fini.submission s SET state = 'cancelled', settled_at = clock_timestamp(), error_code = 'moved',"
	"  error_message = 'own_ref or ipo_id changed before it was sent' WHERE s.id = ANY (ARRAY(SELECT id FROM ours)) RETURNING s.ipo_id),"
	" tallied AS (" TALLY_CANCELLED ")"
	" SELECT u.o FROM u WHERE u.id NOT IN (SELECT id FROM ours) LIMIT 1",
	.nargs = 2, .types = {OIDOID, TEXTARRAYOID}
};

/* under its new name a row goes as an add, if it was queued under the old one, or refused */
static FiniStatement insert_moved_statement = {
	.sql = "WITH new AS (INSERT INTO fini.submission (relation, own_ref, ipo_id, operation)"
	" SELECT $1, u.r, u.i, 'add' FROM " ROWS_OF("unnest($2), unnest($3), unnest($4)") " AS u(o, r, i, n)"
	" WHERE (SELECT s.operation <> 'invalidate' AND (s.state IN ('rejected', 'failed') OR s.error_code = 'moved')"
	"  FROM fini.submission s WHERE s.own_ref = u.o AND s.relation = $1 " FINI_LAST_OPERATION ") ORDER BY n RETURNING id, ipo_id)"
	" INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, 'add', id FROM new",
	.nargs = 4, .types = {OIDOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
};

/* withdraw: adds and changes still queued are cancelled, once they are ours ... */
static FiniStatement unqueue_withdrawn_statement = {
	.sql = "WITH ours AS MATERIALIZED (SELECT o.id FROM unnest(fini._take(ARRAY(SELECT s.id FROM unnest($2) AS u(r),"
	"  LATERAL (SELECT s.id FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1"
	"   AND s.state = 'queued' AND s.operation <> 'invalidate' OFFSET 0) s))) AS o(id)),"
	" cancelled AS (UPDATE fini.submission s SET state = 'cancelled', settled_at = clock_timestamp(), error_code = 'withdrawn',"
	"  error_message = 'withdrawn before it was sent' WHERE s.id = ANY (ARRAY(SELECT id FROM ours)) RETURNING s.id, s.own_ref, s.ipo_id),"
	" tallied AS (" TALLY_CANCELLED ")"
	" SELECT id, own_ref FROM cancelled",
	.nargs = 2, .types = {OIDOID, TEXTARRAYOID}
};

/* ... and what stands then, or may come to stand, at FINI is invalidated; $3: what has been cancelled, counted once */
static FiniStatement invalidate_statement = {
	.sql = "WITH withdrawn AS (INSERT INTO fini.submission (relation, own_ref, ipo_id, operation)"
	"  SELECT $1, u.r, l.ipo_id, 'invalidate' FROM (SELECT DISTINCT r FROM unnest($2) AS u(r)) u,"
	"   LATERAL (SELECT s.operation, s.ipo_id FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1"
	"    AND s.state IN ('queued', 'sending', 'unknown', 'accepted') AND NOT s.stray " FINI_LAST_OPERATION ") l"
	"  WHERE l.operation <> 'invalidate' RETURNING id, own_ref, ipo_id, operation),"
	" queued AS (INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, operation, id FROM withdrawn)"
	" SELECT count(*) FROM (SELECT own_ref FROM withdrawn UNION SELECT c.r FROM unnest($3) AS c(r)) x",
	.nargs = 3, .types = {OIDOID, TEXTARRAYOID, TEXTARRAYOID}
};

static FiniStatement submit_statement = {
	.sql = "WITH new AS (INSERT INTO fini.submission (relation, own_ref, ipo_id, operation)"
	" SELECT $1, u.r, u.i, 'add' FROM " ROWS_OF("unnest($2), unnest($3)") " AS u(r, i, n)"
	" WHERE NOT EXISTS (SELECT FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1 AND s.state <> 'cancelled' AND NOT s.stray)"
	" ORDER BY n RETURNING id, ipo_id)"
	" INSERT INTO fini.queue (ipo_id, operation, id) SELECT ipo_id, 'add', id FROM new",
	.nargs = 3, .types = {OIDOID, TEXTARRAYOID, TEXTARRAYOID}
};

/* the last operation of an own_ref that counts is an add or a change */
static FiniStatement stands_statement = {
	.sql = "SELECT FROM fini.submission s WHERE s.relation = $1 AND s.operation <> 'invalidate'"
	" AND s.state IN ('queued', 'sending', 'unknown', 'accepted')"
	" AND NOT EXISTS (SELECT FROM fini.submission l WHERE l.own_ref = s.own_ref AND l.relation = s.relation AND l.id > s.id"
	"  AND l.operation = 'invalidate' AND l.state = 'accepted' AND NOT l.stray)",
	.nargs = 1, .types = {OIDOID}
};

static char **kept_ipo_ids(int n, char **ipo_ids);
static int64 withdraw(Oid relid, Datum own_refs, bool write_back);

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
	fini_append(relid, fini_outbox_operation_name(FINI_OPERATION_ADD), n, own_refs, kept_ipo_ids(n, ipo_ids));
	fini_shared_work_at_commit();
}

void
fini_outbox_updated(Oid relid, int n, char **own_refs, char **ipo_ids)
{
	Datum		values[3] = {ObjectIdGetDatum(relid), fini_outbox_text_array(n, own_refs), fini_outbox_text_array(n, kept_ipo_ids(n, ipo_ids))};

	(void) fini_outbox_execute(&update_statement, values, NULL, 0);
	fini_shared_work_at_commit();
}

void
fini_outbox_moved(Oid relid, int n, char **old_refs, char **own_refs, char **ipo_ids)
{
	Datum		values[4] = {ObjectIdGetDatum(relid), fini_outbox_text_array(n, old_refs),
	fini_outbox_text_array(n, own_refs), fini_outbox_text_array(n, kept_ipo_ids(n, ipo_ids))};

	(void) fini_outbox_execute(&unqueue_moved_statement, values, NULL, 0);
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("own_ref and ipo_id of an application cannot change once it has been sent"),
				 errdetail("The application with own_ref \"%s\" has been sent, or is being sent.",
						   fini_outbox_column(0, 1, CurrentMemoryContext)),
				 errhint("Delete the row, which withdraws the application, and insert a new one.")));
	(void) fini_outbox_execute(&insert_moved_statement, values, NULL, 0);
	fini_shared_work_at_commit();
}

void
fini_outbox_deleted(Oid relid, int n, char **own_refs)
{
	(void) withdraw(relid, fini_outbox_text_array(n, own_refs), false);
}

/* fini._withdraw(relation, own_refs): how many applications it concerned; their rows, if any, are told */
Datum
fini_sql_withdraw(PG_FUNCTION_ARGS)
{
	int64		n;

	SPI_connect();
	n = withdraw(PG_GETARG_OID(0), PG_GETARG_DATUM(1), true);
	SPI_finish();
	PG_RETURN_INT64(n);
}

int64
fini_outbox_submit(Oid relid, int n, char **own_refs, char **ipo_ids)
{
	Datum		values[3] = {ObjectIdGetDatum(relid), fini_outbox_text_array(n, own_refs), fini_outbox_text_array(n, kept_ipo_ids(n, ipo_ids))};

	(void) fini_outbox_execute(&submit_statement, values, NULL, 0);
	fini_shared_work_at_commit();
	return (int64) SPI_processed;
}

bool
fini_outbox_stands(Oid relid)
{
	Datum		values[1] = {ObjectIdGetDatum(relid)};

	(void) fini_outbox_execute(&stands_statement, values, NULL, 1);
	return SPI_processed > 0;
}

static char **
kept_ipo_ids(int n, char **ipo_ids)
{
	char	  **kept = palloc(sizeof(char *) * Max(1, n));

	for (int i = 0; i < n; i++)
	{
		int			len = (int) strlen(ipo_ids[i]);

		kept[i] = len <= MAX_IPO_ID_KEPT ? ipo_ids[i] :
			pnstrdup(ipo_ids[i], pg_mbcliplen(ipo_ids[i], len, MAX_IPO_ID_KEPT));
	}
	return kept;
}

/* own_refs: a text[]; how many applications it concerned */
static int64
withdraw(Oid relid, Datum own_refs, bool write_back)
{
	Datum		values[3] = {ObjectIdGetDatum(relid), own_refs, 0};
	int64	   *ids;
	char	  **cancelled;
	int			n;
	int64		concerned;
	bool		isnull;

	(void) fini_outbox_execute(&unqueue_withdrawn_statement, values, NULL, 0);
	n = (int) SPI_processed;
	ids = palloc(sizeof(int64) * Max(1, n));
	cancelled = palloc(sizeof(char *) * Max(1, n));
	for (int i = 0; i < n; i++)
	{
		ids[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		cancelled[i] = fini_outbox_column(i, 2, CurrentMemoryContext);
	}
	SPI_freetuptable(SPI_tuptable);

	values[2] = fini_outbox_text_array(n, cancelled);
	(void) fini_outbox_execute(&invalidate_statement, values, NULL, 0);
	concerned = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	if (write_back && n > 0)
		fini_outbox_write_back(n, ids);
	fini_shared_work_at_commit();
	return concerned;
}
