/*
 * reconcile.c
 *		fini.reconcile: every row of a table against every record of an IPO.
 *
 * Records come page by page; the rows they belong to are read beside each page
 * and compared in memory, so that personal data is held for one page only and
 * stored nowhere.  What is kept for the whole run is one small entry for each
 * own_ref at FINI.  After the last page the table's own_refs are gone through
 * to find those that FINI does not have.
 *
 * What is under way is in order: an own_ref with an open operation, and one
 * whose operation was settled after the run had begun, is not judged.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compare.h"
#include "compat.h"
#include "direct.h"
#include "error.h"
#include "outbox.h"
#include "query.h"
#include "settings.h"
#include "source.h"
#include "textmap.h"

PG_FUNCTION_INFO_V1(fini_sql_reconcile);

/* what the outbox says of an own_ref */
typedef struct Standing
{
	bool		under_way;
	bool		stands;			/* an accepted add or change is the last word */
	bool		withdrawn;		/* an accepted invalidate is */
	const char *record_id;
} Standing;

/* what has been seen at FINI of an own_ref */
typedef struct Seen
{
	const char *own_ref;
	bool		settled;		/* nothing more to say of it */
	bool		has_row;
	bool		stands;
	bool		has_local_record;	/* the active record that the row knows is there */
	const char *local_record_id;
	List	   *others;			/* other active record IDs */
} Seen;

typedef struct Run
{
	int64		id;
	TimestampTz started_at;
	const char *ipo_id;
	FiniSource *source;
	MemoryContext context;		/* of the whole run */
	MemoryContext page_context;
	HTAB	   *seen;
	int64		local;
	int64		remote;
	int64		matched;
	int64		discrepancies;
} Run;

static FiniStatement begin_statement = {
	.sql = "INSERT INTO fini.reconcile_run (relation, ipo_id) VALUES ($1, $2) RETURNING run_id, started_at",
	.nargs = 2, .types = {OIDOID, TEXTOID}
};

static FiniStatement end_statement = {
	.sql = "UPDATE fini.reconcile_run SET local = $2, remote = $3, matched = $4, discrepancies = $5,"
	" finished_at = clock_timestamp() WHERE run_id = $1"
	" RETURNING run_id, local, remote, matched, discrepancies, started_at, finished_at",
	.nargs = 5, .types = {INT8OID, INT8OID, INT8OID, INT8OID, INT8OID}
};

static FiniStatement discrepancy_statement = {
	.sql = "INSERT INTO fini.discrepancy (run_id, kind, own_ref, record_id, field, local, remote) VALUES ($1, $2, $3, $4, $5, $6, $7)",
	.nargs = 7, .types = {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
};

static FiniStatement standing_statement = {
	.sql = "SELECT u.n, a.operation, a.record_id, a.settled_at >= $3,"
	" EXISTS (SELECT FROM fini.submission o WHERE o.own_ref = u.r AND o.relation = $2 AND o.state IN ('queued', 'sending', 'unknown'))"
	" FROM ROWS FROM (unnest($1)) WITH ORDINALITY AS u(r, n)"
	" LEFT JOIN LATERAL (SELECT s.operation, s.record_id, s.settled_at FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $2"
	"  AND s.state = 'accepted' AND NOT s.stray ORDER BY s.settled_at DESC, s.id DESC LIMIT 1) a ON true ORDER BY u.n",
	.nargs = 3, .types = {TEXTARRAYOID, OIDOID, TIMESTAMPTZOID}
};

static FiniStatement elsewhere_statement = {
	.sql = "SELECT FROM fini.submission s WHERE s.own_ref = $1 AND s.record_id = $2 AND s.relation <> $3"
	" AND s.operation <> 'invalidate' AND s.state = 'accepted'",
	.nargs = 3, .types = {TEXTOID, TEXTOID, OIDOID}
};

static void begin_run(Run *run, Oid relid, const char *ipo_id);
static Datum end_run(FunctionCallInfo fcinfo, Run *run);
static void read_pages(Run *run);
static void take_page(Run *run, FiniAnswer *answer);
static void judge_record(Run *run, const char *own_ref, JsonbContainer *record, const FiniRow *row, const Standing *standing);
static void judge_rest(Run *run);
static bool belongs_elsewhere(Run *run, const char *own_ref, const char *record_id);
static void judge_rows(void *arg, int n, char **own_refs, char **ipo_ids);
static void read_standings(Run *run, int n, char **own_refs, Standing *standings, MemoryContext into);
static void report(Run *run, const char *kind, const char *own_ref, const char *record_id,
				   const char *field, const char *local, const char *remote);
static char *trimmed(char *text);

Datum
fini_sql_reconcile(PG_FUNCTION_ARGS)
{
	Run			run = {0};
	Datum		result;

	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("fini.reconcile would compare FINI of now with rows of before"),
				 errdetail("The transaction's isolation level does not let it see what is committed meanwhile."),
				 errhint("Call it at isolation level read committed.")));
	run.context = CurrentMemoryContext;
	SPI_connect();
	begin_run(&run, PG_GETARG_OID(0), text_to_cstring(PG_GETARG_TEXT_PP(1)));
	read_pages(&run);
	judge_rest(&run);
	fini_source_scan(run.source, run.ipo_id, judge_rows, &run);
	result = end_run(fcinfo, &run);
	SPI_finish();
	return result;
}

static void
begin_run(Run *run, Oid relid, const char *ipo_id)
{
	Datum		values[2] = {ObjectIdGetDatum(relid), CStringGetTextDatum(ipo_id)};
	bool		isnull;

	MemoryContextSwitchTo(run->context);
	run->ipo_id = ipo_id;
	run->source = fini_source_open(relid);
	MemoryContextSwitchTo(run->context);
	run->page_context = AllocSetContextCreate(run->context, "fini reconcile page", ALLOCSET_DEFAULT_SIZES);
	run->seen = fini_textmap_create("own_refs at FINI", 4096, sizeof(Seen), run->context);

	(void) fini_outbox_execute(&begin_statement, values, NULL, 0);
	run->id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	run->started_at = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
}

static Datum
end_run(FunctionCallInfo fcinfo, Run *run)
{
	Datum		values[5] = {Int64GetDatum(run->id), Int64GetDatum(run->local), Int64GetDatum(run->remote),
	Int64GetDatum(run->matched), Int64GetDatum(run->discrepancies)};
	TupleDesc	desc;
	Datum		columns[7];
	bool		nulls[7];
	HeapTuple	tuple;
	MemoryContext old;

	(void) fini_outbox_execute(&end_statement, values, NULL, 0);
	for (int i = 0; i < 7; i++)
		columns[i] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1, &nulls[i]);
	old = MemoryContextSwitchTo(run->context);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	tuple = heap_form_tuple(BlessTupleDesc(desc), columns, nulls);
	MemoryContextSwitchTo(old);
	return HeapTupleGetDatum(tuple);
}

static void
read_pages(Run *run)
{
	FiniSlotShared *slot = fini_direct_begin();
	char	   *cursor = NULL;

	do
	{
		FiniCall   *call;
		char	   *next;

		MemoryContextSwitchTo(run->context);
		call = fini_query_page(run->ipo_id, 0, NULL, NULL, cursor);
		fini_direct_perform(call, slot);
		if (!fini_answer_is_page(call->answer))
			fini_call_raise(call);
		if (call->answer->data != NULL)
			take_page(run, call->answer);
		MemoryContextSwitchTo(run->context);
		next = call->answer->next_cursor != NULL ? pstrdup(call->answer->next_cursor) : NULL;
		if (next != NULL && (fini_query_cursor_stuck(cursor, next) || call->answer->entries <= 0))
			ereport(ERROR,
					(errcode(FINI_ERRCODE_UNREADABLE),
					 errmsg("the pages of subscriptions/query do not end")));
		fini_call_free(call);
		cursor = next;
	} while (cursor != NULL);
}

static void
take_page(Run *run, FiniAnswer *answer)
{
	int			n = answer->entries;
	JsonbContainer **records;
	char	  **own_refs;
	FiniRow    *rows;
	Standing   *standings;
	int			used = 0;

	MemoryContextReset(run->page_context);
	MemoryContextSwitchTo(run->page_context);
	records = palloc(sizeof(JsonbContainer *) * Max(1, n));
	own_refs = palloc(sizeof(char *) * Max(1, n));
	for (int i = 0; i < n; i++)
	{
		if (!fini_answer_object(answer, i, &records[used]))
			continue;
		own_refs[used] = fini_answer_field(records[used], "ownRef");
		own_refs[used] = own_refs[used] != NULL ? trimmed(own_refs[used]) : "";
		used++;
	}
	run->remote += used;
	if (used == 0)
		return;
	rows = palloc0(sizeof(FiniRow) * used);
	standings = palloc0(sizeof(Standing) * used);

	/*
	 * The same own_ref twice on a page would be read for one of them only; so
	 * both see the row that was read for the last.
	 */
	fini_source_read(run->source, used, (const char *const *) own_refs, rows, run->page_context);
	read_standings(run, used, own_refs, standings, run->page_context);
	MemoryContextSwitchTo(run->page_context);
	for (int i = 0; i < used; i++)
	{
		const FiniRow *row = &rows[i];

		for (int j = i + 1; j < used && !row->found; j++)
		{
			if (rows[j].found && strcmp(own_refs[i], own_refs[j]) == 0)
				row = &rows[j];
		}
		judge_record(run, own_refs[i], records[i], row, &standings[i]);
	}
}

static void
judge_record(Run *run, const char *own_ref, JsonbContainer *record, const FiniRow *row, const Standing *standing)
{
	char	   *record_id = fini_answer_field(record, "recordID");
	char	   *status = fini_answer_field(record, "subFlowStatus");
	bool		active = status == NULL || strcmp(status, fini_guc_invalidated_status) != 0;
	bool		has_row = row->found && strcmp(row->ipo_id, run->ipo_id) == 0;
	bool		known;
	bool		found;
	Seen	   *seen = fini_textmap_enter(run->seen, own_ref, &found);

	known = record_id != NULL && standing->record_id != NULL && strcmp(record_id, standing->record_id) == 0;
	if (!found)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);

		seen->own_ref = pstrdup(own_ref);
		seen->settled = false;
		seen->has_row = has_row;
		seen->stands = standing->stands;
		seen->has_local_record = false;
		seen->local_record_id = standing->record_id != NULL ? pstrdup(standing->record_id) : NULL;
		seen->others = NIL;
		MemoryContextSwitchTo(old);
	}
	if (standing->under_way)
	{
		seen->settled = true;
		return;
	}

	if (!active)
	{
		/* invalidated at FINI: in order unless the row thinks that it stands */
		if (has_row && standing->stands && known)
		{
			report(run, "status_differs", own_ref, record_id, "subFlowStatus", "accepted", status);
			seen->settled = true;
		}
		return;
	}
	if (has_row && standing->withdrawn && known)
	{
		report(run, "status_differs", own_ref, record_id, "subFlowStatus", "withdrawn", status);
		return;
	}
	if (has_row && standing->stands && known)
	{
		List	   *differences = row->entry != NULL ? fini_compare_entry(row->entry->data, row->entry->len, record, false) : NIL;
		ListCell   *cell;

		seen->has_local_record = true;
		foreach(cell, differences)
		{
			FiniDifference *difference = lfirst(cell);

			report(run, "field_differs", own_ref, record_id, difference->field, difference->local, difference->remote);
		}
		if (differences == NIL)
			run->matched++;
		return;
	}
	if (record_id != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);

		seen->others = lappend(seen->others, pstrdup(record_id));
		MemoryContextSwitchTo(old);
	}
}

/* active records that are not the one their row knows */
static void
judge_rest(Run *run)
{
	HASH_SEQ_STATUS status;
	Seen	   *seen;

	MemoryContextReset(run->page_context);
	MemoryContextSwitchTo(run->page_context);
	hash_seq_init(&status, run->seen);
	while ((seen = hash_seq_search(&status)) != NULL)
	{
		bool		first = !seen->has_local_record;
		ListCell   *cell;

		if (seen->settled)
			continue;
		foreach(cell, seen->others)
		{
			const char *record_id = lfirst(cell);

			if (!seen->has_row && belongs_elsewhere(run, seen->own_ref, record_id))
				continue;
			if (!seen->has_row)
				report(run, "missing_locally", seen->own_ref, record_id, NULL, NULL, NULL);
			else if (first)
				report(run, "record_id_differs", seen->own_ref, record_id, "recordID", seen->local_record_id, record_id);
			else
				report(run, "duplicate_at_fini", seen->own_ref, record_id, "recordID", seen->local_record_id, record_id);
			first = false;
		}
	}
}

/* is it the record of an application of another table? */
static bool
belongs_elsewhere(Run *run, const char *own_ref, const char *record_id)
{
	Datum		values[3] = {CStringGetTextDatum(own_ref), CStringGetTextDatum(record_id),
	ObjectIdGetDatum(run->source->relid)};

	(void) fini_outbox_execute(&elsewhere_statement, values, NULL, 1);
	return SPI_processed > 0;
}

/* rows that should stand at FINI, and of which nothing active was seen there */
static void
judge_rows(void *arg, int n, char **own_refs, char **ipo_ids)
{
	Run		   *run = arg;
	Standing   *standings;

	MemoryContextReset(run->page_context);
	standings = MemoryContextAllocZero(run->page_context, sizeof(Standing) * n);
	run->local += n;
	read_standings(run, n, own_refs, standings, run->page_context);
	for (int i = 0; i < n; i++)
	{
		Seen	   *seen;

		if (!standings[i].stands || standings[i].under_way)
			continue;
		seen = fini_textmap_find(run->seen, own_refs[i]);
		if (seen == NULL || (!seen->settled && !seen->has_local_record && seen->others == NIL))
			report(run, "missing_at_fini", own_refs[i], standings[i].record_id, NULL, NULL, NULL);
	}
}

static void
read_standings(Run *run, int n, char **own_refs, Standing *standings, MemoryContext into)
{
	Datum		values[3];
	SPITupleTable *table;

	values[0] = fini_outbox_text_array(n, own_refs);
	values[1] = ObjectIdGetDatum(run->source->relid);
	values[2] = TimestampTzGetDatum(run->started_at);
	(void) fini_outbox_execute(&standing_statement, values, NULL, 0);
	table = SPI_tuptable;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Standing   *standing = &standings[DatumGetInt64(SPI_getbinval(table->vals[i], table->tupdesc, 1, &isnull)) - 1];
		char	   *operation = fini_outbox_column(i, 2, into);
		Datum		late = SPI_getbinval(table->vals[i], table->tupdesc, 4, &isnull);

		standing->under_way = !isnull && DatumGetBool(late);
		standing->record_id = fini_outbox_column(i, 3, into);
		standing->withdrawn = operation != NULL && strcmp(operation, "invalidate") == 0;
		standing->stands = operation != NULL && !standing->withdrawn;
		standing->under_way |= DatumGetBool(SPI_getbinval(table->vals[i], table->tupdesc, 5, &isnull));
	}
	SPI_freetuptable(table);
}

static void
report(Run *run, const char *kind, const char *own_ref, const char *record_id,
	   const char *field, const char *local, const char *remote)
{
	const char *texts[] = {kind, own_ref, record_id, field, local, remote};
	Datum		values[7];
	char		nulls[7];

	values[0] = Int64GetDatum(run->id);
	nulls[0] = ' ';
	for (size_t i = 0; i < lengthof(texts); i++)
	{
		nulls[i + 1] = texts[i] == NULL ? 'n' : ' ';
		values[i + 1] = texts[i] == NULL ? (Datum) 0 : CStringGetTextDatum(texts[i]);
	}
	(void) fini_outbox_execute(&discrepancy_statement, values, nulls, 0);
	run->discrepancies++;
}

static char *
trimmed(char *text)
{
	char	   *end;

	while (*text == ' ')
		text++;
	end = text + strlen(text);
	while (end > text && end[-1] == ' ')
		*--end = '\0';
	return text;
}
