/*
 * outbox_claim.c
 *		Taking operations out of the queue, and taking over what a former worker
 *		had taken out.
 *
 * A claim never waits for a lock: a queue row that somebody else is working on
 * is passed over.  Its statements are simple on purpose: without statistics, a
 * join with what another part of a statement returns can turn quadratic.  It takes the first operation of an own_ref only, and none
 * while another one is under way.  What stands at FINI by then, not what stood
 * when the operation was asked for, decides what it becomes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "duplicates.h"
#include "error.h"
#include "outbox.h"

static FiniStatement may_send_statement = {
	.sql = "SELECT armed, paused, doubt_below FROM fini._may_send()",
	.keep_plan = true
};

static FiniStatement adopt_statement = {
	.sql = "SELECT fini._adopt_timeline()",
	.keep_plan = true
};

/* one step along the index for each group, however many rows it has */
static FiniStatement groups_statement = {
	.sql = "WITH RECURSIVE g AS ("
	" (SELECT ipo_id, operation, id FROM fini.queue ORDER BY ipo_id, operation, id LIMIT 1)"
	" UNION ALL"
	" SELECT n.* FROM g, LATERAL (SELECT q.ipo_id, q.operation, q.id FROM fini.queue q"
	"  WHERE (q.ipo_id, q.operation) > (g.ipo_id, g.operation) ORDER BY q.ipo_id, q.operation, q.id LIMIT 1) n)"
	" SELECT g.ipo_id, g.operation, g.id, d.deadline FROM g LEFT JOIN fini.deadline d ON d.ipo_id = g.ipo_id"
	" ORDER BY d.deadline NULLS LAST, g.id"
};

static FiniStatement next_due_statement = {
	.sql = "SELECT (extract(epoch FROM not_before - clock_timestamp()) * 1000000)::bigint FROM fini.queue"
	" WHERE not_before > clock_timestamp() ORDER BY not_before LIMIT 1"
};

static FiniStatement pick_statement = {
	.sql = "SELECT q.id, q.ctid FROM fini.queue q JOIN fini.submission s ON s.id = q.id"
	" WHERE q.ipo_id = $1 AND q.operation = $2 AND (q.not_before IS NULL OR q.not_before <= now())"
	"  AND NOT EXISTS (SELECT FROM fini.submission p WHERE p.own_ref = s.own_ref AND p.id <> s.id"
	"   AND (p.state IN ('sending', 'unknown') OR (p.state = 'queued' AND p.id < s.id)))"
	" ORDER BY q.id LIMIT $3 FOR UPDATE OF q SKIP LOCKED",
	.nargs = 3, .types = {TEXTOID, TEXTOID, INT8OID}
};

static FiniStatement claim_statement = {
	.sql = "WITH gone AS (DELETE FROM fini.queue WHERE ctid = ANY ($1))"
	" UPDATE fini.submission s SET state = 'sending', request_id = $3, attempts = s.attempts + 1,"
	"  sent_at = clock_timestamp(), not_before = NULL, error_code = NULL, error_message = NULL"
	" WHERE s.id = ANY ($2)"
	" RETURNING s.id, s.relation::oid, s.own_ref, s.record_id, s.attempts,"
	"  (SELECT ARRAY[p.operation, p.record_id, p.relation::oid::text] FROM fini.submission p WHERE p.own_ref = s.own_ref"
	"   AND p.ipo_id = s.ipo_id AND p.id <> s.id AND p.state = 'accepted' AND NOT p.stray"
	"   ORDER BY p.settled_at DESC, p.id DESC LIMIT 1), s.stray,"
	"  CASE WHEN s.operation = 'change' THEN (SELECT p.operation <> 'invalidate' AND p.state IN ('rejected', 'failed')"
	"   FROM fini.submission p WHERE p.own_ref = s.own_ref AND p.relation = s.relation AND p.id < s.id ORDER BY p.id DESC LIMIT 1) END",
	.nargs = 3, .types = {TIDARRAYOID, INT8ARRAYOID, TEXTOID}
};

static FiniStatement record_ids_statement = {
	.sql = "UPDATE fini.submission s SET record_id = v.record_id FROM ROWS FROM (unnest($1), unnest($2)) AS v(id, record_id)"
	" WHERE s.id = v.id AND s.record_id IS DISTINCT FROM v.record_id",
	.nargs = 2, .types = {INT8ARRAYOID, TEXTARRAYOID}
};

static FiniStatement request_statement = {
	.sql = "INSERT INTO fini.request (request_id, endpoint, entries, attempts, state, ipo_id, operation, members)"
	" VALUES ($1, $2, $3, 1, 'sending', $4, $5, $6)",
	.nargs = 6, .types = {TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTOID, INT8ARRAYOID}, .keep_plan = true
};

static FiniStatement orphans_statement = {
	.sql = "UPDATE fini.request SET state = 'unknown', code = coalesce(code, 'worker_lost'),"
	" message = coalesce(nullif(message, ''), 'the worker ended before an answer came')"
	" WHERE state IN ('sending', 'unknown') AND operation IS NOT NULL RETURNING request_id, ipo_id, operation, members",
};

static FiniStatement orphan_members_statement = {
	.sql = "UPDATE fini.submission s SET state = 'unknown', error_code = 'in_doubt',"
	" error_message = 'it is being found out whether FINI has it'"
	" FROM unnest($1) AS m(id) WHERE s.id = m.id AND s.state IN ('sending', 'unknown')"
	" RETURNING s.id, s.relation::oid, s.own_ref, s.record_id, s.attempts, NULL::text[], s.stray, NULL::boolean",
	.nargs = 1, .types = {INT8ARRAYOID}
};

static void members_from_result(FiniBatch *batch, MemoryContext into);
static void resolve(FiniBatch *batch);
static void keep_record_ids(FiniBatch *batch);
static void read_table(FiniBatch *batch, Oid relid, MemoryContext into);
static void judge_row(FiniBatch *batch, FiniMember *member);
static void table_unreadable(FiniBatch *batch, Oid relid, ErrorData *error, MemoryContext into);

FiniPermission
fini_outbox_may_send(void)
{
	FiniPermission permission = {0};
	bool		isnull;

	(void) fini_outbox_execute(&may_send_statement, NULL, NULL, 1);
	if (SPI_processed == 1)
	{
		HeapTuple	tuple = SPI_tuptable->vals[0];

		permission.armed = DatumGetBool(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &isnull));
		permission.paused = DatumGetBool(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 2, &isnull));
		permission.doubt_below = DatumGetInt64(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 3, &isnull));
	}
	return permission;
}

void
fini_outbox_adopt_timeline(void)
{
	(void) fini_outbox_execute(&adopt_statement, NULL, NULL, 0);
}

List *
fini_outbox_groups(MemoryContext into)
{
	List	   *groups = NIL;

	(void) fini_outbox_execute(&groups_statement, NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(into);
		FiniGroup  *group = palloc(sizeof(FiniGroup));
		Datum		deadline;
		bool		isnull;

		group->ipo_id = fini_outbox_column(i, 1, into);
		group->operation = fini_outbox_operation(fini_outbox_column(i, 2, into));
		group->first_id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3, &isnull));
		deadline = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 4, &isnull);
		group->deadline = isnull ? 0 : DatumGetTimestampTz(deadline);
		groups = lappend(groups, group);
		MemoryContextSwitchTo(old);
	}
	return groups;
}

int64
fini_outbox_next_due(void)
{
	bool		isnull;

	(void) fini_outbox_execute(&next_due_statement, NULL, NULL, 1);
	if (SPI_processed == 0)
		return -1;
	return Max(1000, DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)));
}

/*
 * The batch comes with ipo_id and operation set.  On return its members are
 * those to be sent; the others have been settled within this transaction.
 */
void
fini_outbox_claim(FiniBatch *batch, int limit, MemoryContext into)
{
	Datum		values[6];
	int64	   *ids;
	Datum	   *tids;
	bool		isnull;
	int			picked;
	int			to_send = 0;

	fini_envelope_request_id(batch->request_id);
	values[0] = CStringGetTextDatum(batch->ipo_id);
	values[1] = CStringGetTextDatum(fini_outbox_operation_name(batch->operation));
	values[2] = Int64GetDatum(limit);
	(void) fini_outbox_execute(&pick_statement, values, NULL, 0);
	if (SPI_processed == 0)
		return;
	picked = (int) SPI_processed;
	ids = palloc(sizeof(int64) * picked);
	tids = palloc(sizeof(Datum) * picked);
	for (int i = 0; i < picked; i++)
	{
		ids[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		/* locked by us, so it stays where it is */
		tids[i] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull);
	}
	values[0] = PointerGetDatum(construct_array(tids, picked, TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT));
	values[1] = fini_outbox_int8_array(picked, ids);
	values[2] = CStringGetTextDatum(batch->request_id);
	(void) fini_outbox_execute(&claim_statement, values, NULL, 0);
	members_from_result(batch, into);

	resolve(batch);
	if (batch->operation != FINI_OPERATION_ADD)
		keep_record_ids(batch);
	fini_outbox_read_rows(batch, into);
	fini_duplicates_judge(batch);
	fini_outbox_settle(batch, NULL);

	/* the rest is the request */
	for (int i = 0; i < batch->count; i++)
	{
		if (batch->members[i].state != NULL)
			continue;
		ids[to_send] = batch->members[i].id;
		batch->members[to_send++] = batch->members[i];
	}
	batch->count = to_send;
	if (to_send == 0)
		return;
	values[0] = CStringGetTextDatum(batch->request_id);
	values[1] = CStringGetTextDatum(fini_endpoint(fini_outbox_endpoint(batch->operation))->name);
	values[2] = Int32GetDatum(to_send);
	values[3] = CStringGetTextDatum(batch->ipo_id);
	values[4] = CStringGetTextDatum(fini_outbox_operation_name(batch->operation));
	values[5] = fini_outbox_int8_array(to_send, ids);
	(void) fini_outbox_execute(&request_statement, values, NULL, 0);
}

List *
fini_outbox_recover(MemoryContext into)
{
	List	   *batches = NIL;
	SPITupleTable *requests;
	uint64		n;

	(void) fini_outbox_execute(&orphans_statement, NULL, NULL, 0);
	requests = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		FiniBatch  *batch = MemoryContextAllocZero(into, sizeof(FiniBatch));
		MemoryContext old;
		char	   *request_id = SPI_getvalue(requests->vals[i], requests->tupdesc, 1);
		Datum		values[1];
		bool		isnull;

		strlcpy(batch->request_id, request_id, sizeof(batch->request_id));
		batch->operation = fini_outbox_operation(SPI_getvalue(requests->vals[i], requests->tupdesc, 3));
		values[0] = SPI_getbinval(requests->vals[i], requests->tupdesc, 4, &isnull);
		old = MemoryContextSwitchTo(into);
		batch->ipo_id = SPI_getvalue(requests->vals[i], requests->tupdesc, 2);
		MemoryContextSwitchTo(old);
		if (isnull)
			continue;

		(void) fini_outbox_execute(&orphan_members_statement, values, NULL, 0);
		members_from_result(batch, into);
		old = MemoryContextSwitchTo(into);
		batches = lappend(batches, batch);
		MemoryContextSwitchTo(old);
	}
	return batches;
}

void
fini_outbox_read_rows(FiniBatch *batch, MemoryContext into)
{
	if (batch->operation == FINI_OPERATION_INVALIDATE)
		return;					/* needs nothing but the record ID */
	for (int i = 0; i < batch->count; i++)
	{
		bool		seen = false;

		/* one read for each table; a batch seldom has more than one */
		for (int j = 0; j < i && !seen; j++)
			seen = batch->members[j].relid == batch->members[i].relid;
		if (!seen)
			read_table(batch, batch->members[i].relid, into);
	}
	for (int i = 0; i < batch->count; i++)
	{
		if (batch->members[i].state == NULL)
			judge_row(batch, &batch->members[i]);
	}
}

static void
members_from_result(FiniBatch *batch, MemoryContext into)
{
	SPITupleTable *table = SPI_tuptable;

	batch->count = (int) SPI_processed;
	batch->members = MemoryContextAllocZero(into, sizeof(FiniMember) * Max(1, batch->count));
	for (int i = 0; i < batch->count; i++)
	{
		FiniMember *member = &batch->members[i];
		HeapTuple	tuple = table->vals[i];
		bool		isnull;
		Datum		standing;

		member->id = DatumGetInt64(SPI_getbinval(tuple, table->tupdesc, 1, &isnull));
		member->relid = DatumGetObjectId(SPI_getbinval(tuple, table->tupdesc, 2, &isnull));
		member->own_ref = fini_outbox_column(i, 3, into);
		member->record_id = fini_outbox_column(i, 4, into);
		member->attempts = DatumGetInt32(SPI_getbinval(tuple, table->tupdesc, 5, &isnull));
		member->stray = DatumGetBool(SPI_getbinval(tuple, table->tupdesc, 7, &isnull));
		member->after_refusal = DatumGetBool(SPI_getbinval(tuple, table->tupdesc, 8, &isnull)) && !isnull;
		standing = SPI_getbinval(tuple, table->tupdesc, 6, &isnull);
		if (!isnull)
		{
			MemoryContext old = MemoryContextSwitchTo(into);
			Datum	   *parts;
			bool	   *nulls;
			int			n;

			deconstruct_array(DatumGetArrayTypeP(standing), TEXTOID, -1, false, TYPALIGN_INT, &parts, &nulls, &n);
			member->standing_operation = TextDatumGetCString(parts[0]);
			member->standing_record_id = nulls[1] ? NULL : TextDatumGetCString(parts[1]);
			member->standing_relid = atooid(TextDatumGetCString(parts[2]));
			MemoryContextSwitchTo(old);
		}
	}
}

/* what each member becomes, in the face of what stands by now */
static void
resolve(FiniBatch *batch)
{
	for (int i = 0; i < batch->count; i++)
	{
		FiniMember *member = &batch->members[i];
		bool		stands = member->standing_operation != NULL &&
			strcmp(member->standing_operation, "invalidate") != 0;

		switch (batch->operation)
		{
			case FINI_OPERATION_ADD:
				if (stands && member->standing_relid != member->relid)
				{
					member->state = "rejected";
					member->error_code = "own_ref_taken";
					member->error_message = "an application of another table stands at FINI under this own_ref";
				}
				else if (stands)
				{
					member->state = "queued";
					member->requeue_as = FINI_OPERATION_CHANGE;
				}
				break;
			case FINI_OPERATION_CHANGE:
				if (member->record_id == NULL && stands)
					member->record_id = member->standing_record_id;
				if (member->record_id == NULL && member->standing_operation != NULL && !member->after_refusal)
				{
					member->state = "cancelled";
					member->error_code = "withdrawn";
					member->error_message = "the application has been withdrawn";
				}
				else if (member->record_id == NULL)
				{
					member->state = "queued";
					member->requeue_as = FINI_OPERATION_ADD;
				}
				break;
			case FINI_OPERATION_INVALIDATE:
				if (member->record_id == NULL && stands)
					member->record_id = member->standing_record_id;
				if (member->record_id == NULL)
				{
					member->state = "cancelled";
					member->error_code = "never_added";
					member->error_message = "nothing stands at FINI that could be withdrawn";
				}
				break;
		}
	}
}

/* which record it is about has to be known to whoever takes the request over */
static void
keep_record_ids(FiniBatch *batch)
{
	int64	   *ids = palloc(sizeof(int64) * batch->count);
	char	  **record_ids = palloc(sizeof(char *) * batch->count);
	Datum		values[2];
	int			n = 0;

	for (int i = 0; i < batch->count; i++)
	{
		if (batch->members[i].state != NULL)
			continue;
		ids[n] = batch->members[i].id;
		record_ids[n++] = unconstify(char *, batch->members[i].record_id);
	}
	if (n == 0)
		return;
	values[0] = fini_outbox_int8_array(n, ids);
	values[1] = fini_outbox_text_array(n, record_ids);
	(void) fini_outbox_execute(&record_ids_statement, values, NULL, 0);
}

/* in a subtransaction: whatever is wrong with one table is its own affair */
static void
read_table(FiniBatch *batch, Oid relid, MemoryContext into)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	const char **own_refs = palloc(sizeof(char *) * batch->count);
	int		   *positions = palloc(sizeof(int) * batch->count);
	FiniRow    *rows;
	int			n = 0;

	for (int i = 0; i < batch->count; i++)
	{
		if (batch->members[i].relid == relid && batch->members[i].state == NULL)
		{
			own_refs[n] = batch->members[i].own_ref;
			positions[n++] = i;
		}
	}
	if (n == 0)
		return;
	rows = palloc(sizeof(FiniRow) * n);

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		FiniSource *source = fini_source_open(relid);

		fini_duplicates_prepare(source);
		fini_source_read(source, n, own_refs, rows, into);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(old);
		CurrentResourceOwner = owner;
		for (int i = 0; i < n; i++)
			batch->members[positions[i]].row = rows[i];
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(into);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(old);
		CurrentResourceOwner = owner;
		table_unreadable(batch, relid, error, into);
	}
	PG_END_TRY();
}

static void
judge_row(FiniBatch *batch, FiniMember *member)
{
	if (!member->row.found)
	{
		member->state = "failed";
		member->error_code = "row_missing";
		member->error_message = "the row is not there, or not visible to the table's owner";
	}
	else if (member->row.problem != NULL)
	{
		member->state = "rejected";
		member->error_code = member->row.problem;
		member->error_message = member->row.problem_text;
	}
	else if (strcmp(member->row.ipo_id, batch->ipo_id) != 0)
	{
		member->state = "failed";
		member->error_code = "row_moved";
		member->error_message = "the row's ipo_id was changed behind the triggers";
	}
}

/*
 * Errors that may pass (a lock, memory, a serialization) defer the rows; others
 * set them aside.  An error's text may quote values: only our own texts, and
 * those that name objects, are kept.
 */
static void
table_unreadable(FiniBatch *batch, Oid relid, ErrorData *error, MemoryContext into)
{
	int			class = ERRCODE_TO_CATEGORY(error->sqlerrcode);
	bool		passing = class == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) ||
		class == ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE) ||
		error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE || error->sqlerrcode == ERRCODE_QUERY_CANCELED;
	bool		harmless = class == ERRCODE_TO_CATEGORY(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE) ||
		class == ERRCODE_TO_CATEGORY(ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION);
	MemoryContext old = MemoryContextSwitchTo(into);
	char	   *text = psprintf("the table cannot be read (SQLSTATE %s)%s%s", unpack_sql_state(error->sqlerrcode),
								harmless ? ": " : "", harmless ? error->message : "");

	MemoryContextSwitchTo(old);
	for (int i = 0; i < batch->count; i++)
	{
		FiniMember *member = &batch->members[i];

		if (member->relid != relid || member->state != NULL)
			continue;
		member->state = passing && member->attempts < 10 ? "queued" : "failed";
		member->requeue_as = batch->operation;
		member->delay_us = passing ? INT64CONST(1000000) << Min(member->attempts, 5) : 0;
		member->error_code = "table_unreadable";
		member->error_message = text;
	}
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("fini: rows of table %s set aside: %s",
					get_rel_name(relid) ? get_rel_name(relid) : psprintf("with OID %u", relid), text)));
}
