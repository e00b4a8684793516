/*
 * reconcile_judge.c
 *		After the pages: what was not seen, and what the candidates amount to.
 *
 * Slices by the number of the operation, then by the key of the candidates,
 * each a handful of statements and some milliseconds.
 *
 * What is under way is in order: an own_ref of which anything is open, or was
 * asked for or settled since the run began, is not judged.  This is looked at
 * here, when everything has been seen, so that it holds for whatever happened
 * while the pages came.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "outbox.h"
#include "reconcile.h"
#include "source.h"

#define OUTBOX_SLICE	8192	/* operations; whole buckets of fini.reconcile_seen */
#define ROWS_AT_ONCE	1000
#define CANDIDATE_SLICE	2000

static FiniStatement next_operation_statement = {
	.sql = "SELECT min(s.id) FROM fini.submission s WHERE s.id > $1",
	.nargs = 1, .types = {INT8OID}
};

static FiniStatement standing_statement = {
	.sql = "SELECT s.id FROM fini.submission s WHERE s.id > $1 AND s.id <= $2 AND s.relation = $3 AND s.ipo_id = $4"
	" AND s.state = 'accepted' AND s.operation <> 'invalidate' AND NOT s.stray",
	.nargs = 4, .types = {INT8OID, INT8OID, OIDOID, TEXTOID}
};

static FiniStatement seen_statement = {
	.sql = "SELECT x.operations FROM fini.reconcile_seen x WHERE x.run_id = $1 AND x.bucket >= $2 >> 8 AND x.bucket <= $3 >> 8",
	.nargs = 3, .types = {INT8OID, INT8OID, INT8OID}, .keep_plan = true
};

/* of the operations not seen: those that are the last word of their own_ref, and of which no page said anything else */
static FiniStatement unseen_statement = {
	.sql = "SELECT s.own_ref, s.record_id FROM fini.submission s"
	" WHERE s.id = ANY ($2) AND NOT EXISTS (SELECT FROM fini.submission o WHERE o.own_ref = s.own_ref AND (" FINI_RECONCILE_TOUCHED("o", "$3")
	"  OR (o.relation = s.relation AND o.state = 'accepted' AND NOT o.stray AND (o.settled_at, o.id) > (s.settled_at, s.id))))"
	" AND NOT EXISTS (SELECT FROM fini.reconcile_candidate c WHERE c.run_id = $1 AND c.key = " FINI_RECONCILE_KEY("s.own_ref")
	"  AND c.own_ref = s.own_ref)",
	.nargs = 3, .types = {INT8OID, INT8ARRAYOID, TIMESTAMPTZOID}
};

/* a record that is there under another own_ref is not missing */
static FiniStatement missing_statement = {
	.sql = "WITH m AS MATERIALIZED (SELECT * FROM ROWS FROM (unnest($2), unnest($3)) AS m(own_ref, record_id)),"
	" renamed AS (DELETE FROM fini.reconcile_candidate c USING m"
	"  WHERE c.run_id = $1 AND c.record_id = m.record_id AND c.kind = 'foreign' RETURNING c.record_id, c.own_ref)"
	" INSERT INTO fini.discrepancy (run_id, kind, own_ref, record_id, field, local, remote)"
	" SELECT $1, CASE WHEN r.own_ref IS NULL THEN 'missing_at_fini' ELSE 'field_differs' END, m.own_ref, m.record_id,"
	"  CASE WHEN r.own_ref IS NOT NULL THEN 'ownRef' END, CASE WHEN r.own_ref IS NOT NULL THEN m.own_ref END, r.own_ref"
	" FROM m LEFT JOIN (SELECT DISTINCT ON (record_id) * FROM renamed ORDER BY record_id, own_ref) r ON r.record_id = m.record_id",
	.nargs = 3, .types = {INT8OID, TEXTARRAYOID, TEXTARRAYOID}
};

static FiniStatement next_key_statement = {
	.sql = "SELECT max(k.key) FROM (SELECT c.key FROM fini.reconcile_candidate c WHERE c.run_id = $1 AND c.key > $2"
	" ORDER BY c.key LIMIT $3) k",
	.nargs = 3, .types = {INT8OID, INT8OID, INT8OID}
};

/*
 * The first active record that is not the one its row knows stands for it when
 * that one was not seen active; all others are too many.  A record that an
 * operation of another table accounts for is that table's affair.
 */
static FiniStatement judge_statement = {
	.sql = "WITH c AS MATERIALIZED ("
	"  SELECT DISTINCT ON (x.own_ref, x.kind, x.record_id, x.field) x.*"
	"  FROM fini.reconcile_candidate x WHERE x.run_id = $1 AND x.key > $2 AND x.key <= $3"
	"   AND NOT EXISTS (SELECT FROM fini.submission s WHERE s.own_ref = x.own_ref AND (" FINI_RECONCILE_TOUCHED("s", "$4")
	"    OR (s.record_id = x.record_id AND s.relation <> $5 AND s.state = 'accepted' AND s.operation <> 'invalidate')))"
	"  ORDER BY x.own_ref, x.kind, x.record_id, x.field"
	" ), j AS ("
	"  SELECT c.*, bool_or(c.kind = 'other') OVER (PARTITION BY c.own_ref) AS has_other,"
	"   c.kind = 'other' AND row_number() OVER (PARTITION BY c.own_ref, c.kind ORDER BY c.record_id) = 1"
	"    AND NOT EXISTS (SELECT FROM fini.reconcile_seen e WHERE e.run_id = $1 AND e.bucket = c.standing >> 8"
	"     AND c.standing = ANY (e.operations)) AS takes_place"
	"  FROM c"
	" )"
	" INSERT INTO fini.discrepancy (run_id, kind, own_ref, record_id, field, local, remote)"
	" SELECT $1, CASE WHEN j.kind = 'foreign' THEN 'missing_locally' WHEN j.takes_place THEN 'record_id_differs'"
	"   WHEN j.kind = 'other' THEN 'duplicate_at_fini' ELSE j.kind END,"
	"  j.own_ref, j.record_id, CASE WHEN j.kind = 'other' THEN 'recordID' ELSE j.field END,"
	"  CASE WHEN j.kind <> 'foreign' THEN j.local END, CASE WHEN j.kind = 'other' THEN j.record_id ELSE j.remote END"
	" FROM j WHERE NOT (j.kind = 'status_differs' AND j.local = 'accepted' AND j.has_other)",
	.nargs = 5, .types = {INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, OIDOID}
};

static void judge_outbox(FiniReconcile *run);
static int	drop_seen(FiniReconcile *run, int64 from, int64 *ids, int n);
static void judge_unseen(FiniReconcile *run, int n, const int64 *ids);
static void report_missing(FiniReconcile *run, FiniSource *source, int n, char **own_refs, char **record_ids);
static bool judge_candidates(FiniReconcile *run);
static int64 first_number(bool *isnull);

bool
fini_reconcile_judge(FiniReconcile *run)
{
	MemoryContext old = MemoryContextSwitchTo(run->piece);
	bool		done = false;

	if (run->phase == FINI_RECONCILE_ROWS)
		judge_outbox(run);
	else
		done = judge_candidates(run);
	MemoryContextSwitchTo(old);
	MemoryContextReset(run->piece);
	return done;
}

/* operations that stand for rows of this table and IPO, and whose record was not seen */
static void
judge_outbox(FiniReconcile *run)
{
	Datum		values[4] = {Int64GetDatum(run->reached)};
	SPITupleTable *table;
	int64	   *ids;
	int64		from;
	bool		none;
	int			n;

	fini_reconcile_execute(&next_operation_statement, values, NULL);
	from = first_number(&none);
	if (none)
	{
		run->local = fini_source_count(fini_source_open(run->relid), run->ipo_id);
		run->phase = FINI_RECONCILE_CANDIDATES;
		run->reached = -1;
		return;
	}
	from -= from % OUTBOX_SLICE;
	run->reached = from + OUTBOX_SLICE - 1;

	values[0] = Int64GetDatum(from - 1);
	values[1] = Int64GetDatum(run->reached);
	values[2] = ObjectIdGetDatum(run->relid);
	values[3] = CStringGetTextDatum(run->ipo_id);
	fini_reconcile_execute(&standing_statement, values, NULL);
	table = SPI_tuptable;
	n = (int) table->numvals;
	ids = palloc(sizeof(int64) * Max(n, 1));
	for (int i = 0; i < n; i++)
		ids[i] = DatumGetInt64(SPI_getbinval(table->vals[i], table->tupdesc, 1, &none));
	SPI_freetuptable(table);
	n = drop_seen(run, from, ids, n);
	if (n > 0)
		judge_unseen(run, n, ids);
}

/* those of a slice's operations whose record was not seen; how many */
static int
drop_seen(FiniReconcile *run, int64 from, int64 *ids, int n)
{
	Datum		values[3] = {Int64GetDatum(run->run_id), Int64GetDatum(from), Int64GetDatum(run->reached)};
	bool		seen[OUTBOX_SLICE] = {false};
	SPITupleTable *table;
	int			kept = 0;

	if (n == 0)
		return 0;
	fini_reconcile_execute(&seen_statement, values, NULL);
	table = SPI_tuptable;
	for (uint64 i = 0; i < table->numvals; i++)
	{
		bool		isnull;
		Datum	   *operations;
		int			count;

		deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(table->vals[i], table->tupdesc, 1, &isnull)), INT8OID,
						  sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &operations, NULL, &count);
		for (int k = 0; k < count; k++)
		{
			int64		at = DatumGetInt64(operations[k]) - from;

			if (at >= 0 && at < OUTBOX_SLICE)
				seen[at] = true;
		}
	}
	SPI_freetuptable(table);
	for (int i = 0; i < n; i++)
	{
		if (!seen[ids[i] - from])
			ids[kept++] = ids[i];
	}
	return kept;
}

static void
judge_unseen(FiniReconcile *run, int n, const int64 *ids)
{
	Datum		values[3] = {Int64GetDatum(run->run_id), fini_outbox_int8_array(n, ids), TimestampTzGetDatum(run->started_at)};
	FiniSource *source;
	char	  **own_refs;
	char	  **record_ids;

	fini_reconcile_execute(&unseen_statement, values, NULL);
	n = (int) SPI_processed;
	if (n == 0)
	{
		SPI_freetuptable(SPI_tuptable);
		return;
	}
	own_refs = palloc(sizeof(char *) * n);
	record_ids = palloc(sizeof(char *) * n);
	for (int i = 0; i < n; i++)
	{
		own_refs[i] = fini_outbox_column(i, 1, run->piece);
		record_ids[i] = fini_outbox_column(i, 2, run->piece);
	}
	SPI_freetuptable(SPI_tuptable);
	source = fini_source_open(run->relid);
	MemoryContextSwitchTo(run->piece);
	for (int i = 0; i < n; i += ROWS_AT_ONCE)
		report_missing(run, source, Min(ROWS_AT_ONCE, n - i), own_refs + i, record_ids + i);
}

/* those that have a row */
static void
report_missing(FiniReconcile *run, FiniSource *source, int n, char **own_refs, char **record_ids)
{
	MemoryContext context = AllocSetContextCreate(run->piece, "fini missing rows", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	FiniRow    *rows = palloc0(sizeof(FiniRow) * n);
	Datum		values[3];
	int			missing = 0;

	fini_source_read(source, n, (const char *const *) own_refs, rows, context);
	MemoryContextSwitchTo(context);
	for (int i = 0; i < n; i++)
	{
		if (!rows[i].found || strcmp(rows[i].ipo_id, run->ipo_id) != 0)
			continue;
		own_refs[missing] = own_refs[i];
		record_ids[missing++] = record_ids[i];
	}
	if (missing > 0)
	{
		values[0] = Int64GetDatum(run->run_id);
		values[1] = fini_outbox_text_array(missing, own_refs);
		values[2] = fini_outbox_text_array(missing, record_ids);
		fini_reconcile_execute(&missing_statement, values, NULL);
		run->discrepancies += SPI_processed;
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* true when there are no more */
static bool
judge_candidates(FiniReconcile *run)
{
	Datum		values[5] = {Int64GetDatum(run->run_id), Int64GetDatum(run->reached), Int64GetDatum(CANDIDATE_SLICE)};
	int64		to;
	bool		none;

	fini_reconcile_execute(&next_key_statement, values, NULL);
	to = first_number(&none);
	if (none)
		return true;
	values[2] = Int64GetDatum(to);
	values[3] = TimestampTzGetDatum(run->started_at);
	values[4] = ObjectIdGetDatum(run->relid);
	fini_reconcile_execute(&judge_statement, values, NULL);
	run->discrepancies += SPI_processed;
	run->reached = to;
	return false;
}

/* the only number of a result */
static int64
first_number(bool *isnull)
{
	int64		number = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, isnull));

	SPI_freetuptable(SPI_tuptable);
	return number;
}
