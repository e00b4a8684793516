/*
 * outbox_claim.c
 *		Taking operations out of the queue, and taking over what a former worker
 *		had taken out.
 *
 * A claim never waits for a lock: an operation that somebody else is working on
 * is passed over.  It takes the first operation of an own_ref only, and none
 * while another one is under way.  What stands at FINI by then, not what stood
 * when the operation was asked for, decides what it becomes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "duplicates.h"
#include "error.h"
#include "outbox.h"
#include "outbox_list.h"
#include "outbox_store.h"

/* so many that have to be passed over are looked at by each claim */
#define MANY_PASSED		1000

static FiniStatement may_send_statement = {
	.sql = "SELECT armed, paused, doubt_below FROM fini._may_send",
	.keep_plan = true
};

static FiniStatement adopt_statement = {
	.sql = "SELECT fini._adopt_timeline()",
	.keep_plan = true
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
	" RETURNING s.id, s.relation::oid, s.own_ref, s.record_id, s.attempts, s.stray",
	.nargs = 1, .types = {INT8ARRAYOID}
};

/* what other operations of its own_ref say about one */
typedef struct Kin
{
	bool		blocks;			/* another is under way, or queued before it */
	const char *standing_operation;
	const char *standing_record_id;
	Oid			standing_relid;
	TimestampTz standing_since;
	int64		standing_id;
	bool		after_refusal;
	int64		before_id;
} Kin;

static void take_from_queue(FiniBatch *batch, int limit, MemoryContext into);
static void look_at_kin(FiniStore *store, TupleTableSlot *own, TupleTableSlot *other, Kin *kin, MemoryContext into);
static void note_kin(TupleTableSlot *own, TupleTableSlot *other, Kin *kin, MemoryContext into);
static void make_place(FiniBatch *batch, int *room, int limit, MemoryContext into);
static bool start_member(FiniStore *store, TupleTableSlot *row, const Kin *kin, const char *request_id, FiniMember *member,
						 MemoryContext into);
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

/*
 * The batch comes with ipo_id and operation set.  On return its members are
 * those to be sent; the others have been settled within this transaction.
 */
void
fini_outbox_claim(FiniBatch *batch, int limit, MemoryContext into)
{
	Datum		values[6];
	int64	   *ids;
	int			to_send = 0;

	fini_envelope_request_id(batch->request_id);
	take_from_queue(batch, limit, into);
	if (batch->count == 0)
		return;

	resolve(batch);
	if (batch->operation != FINI_OPERATION_ADD)
		keep_record_ids(batch);
	fini_outbox_read_rows(batch, into);
	fini_duplicates_judge(batch);
	fini_outbox_settle(batch, NULL);

	/* the rest is the request */
	ids = palloc(sizeof(int64) * batch->count);
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

void
fini_outbox_member(TupleTableSlot *row, FiniMember *member, MemoryContext into)
{
	bool		isnull;

	member->id = DatumGetInt64(fini_store_column(row, FINI_SUBMISSION_ID, &isnull));
	member->relid = DatumGetObjectId(fini_store_column(row, FINI_SUBMISSION_RELATION, &isnull));
	member->own_ref = fini_store_text(row, FINI_SUBMISSION_OWN_REF, into);
	member->record_id = fini_store_text(row, FINI_SUBMISSION_RECORD_ID, into);
	member->attempts = DatumGetInt32(fini_store_column(row, FINI_SUBMISSION_ATTEMPTS, &isnull));
	member->stray = DatumGetBool(fini_store_column(row, FINI_SUBMISSION_STRAY, &isnull));
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

/*
 * The first operations of the group that may go now, up to limit: they are
 * marked as being sent, and leave the queue.
 */
static void
take_from_queue(FiniBatch *batch, int limit, MemoryContext into)
{
	FiniStore  *store = fini_store_open();
	TupleTableSlot *queued = fini_store_slot(&store->queue);
	TupleTableSlot *other = fini_store_slot(&store->submission);
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext, "fini claim", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	TimestampTz now = GetCurrentTransactionStartTimestamp();
	int64		low_end = fini_outbox_low_end(batch->ipo_id, batch->operation);
	int64		begin = fini_monotonic_us();
	int64		left = PG_INT64_MAX;	/* the first that stays in the queue */
	int64		seen = low_end; /* up to here there is nothing that was not looked at */
	int64		passed = 0;
	int64		gone = 0;
	int			room = 0;

	fini_store_begin_queue(store, batch->ipo_id, fini_outbox_operation_name(batch->operation), low_end);
	while (batch->count < limit && gone < FINI_LIST_MOST_GONE && fini_store_next_in_queue(store, queued))
	{
		bool		isnull;
		Datum		not_before = fini_store_column(queued, FINI_QUEUE_NOT_BEFORE, &isnull);
		bool		later = !isnull && DatumGetTimestampTz(not_before) > now;
		int64		id = DatumGetInt64(fini_store_column(queued, FINI_QUEUE_ID, &isnull));
		int64		first_left;
		FiniList	list;
		TupleTableSlot *own;

		CHECK_FOR_INTERRUPTS();
		if (later)
		{
			left = Min(left, id);
			seen = id;
			passed++;
			continue;
		}
		MemoryContextReset(work);
		fini_list_begin(&list, store, queued);
		while (batch->count < limit && (own = fini_list_next(&list)) != NULL)
		{
			Kin			kin = {0};

			make_place(batch, &room, limit, into);
			look_at_kin(store, own, other, &kin, into);
			if (!kin.blocks && start_member(store, own, &kin, batch->request_id, &batch->members[batch->count], into))
				batch->count++;
			else
				fini_list_keep(&list);
		}
		seen = list.next == list.n ? id : id - 1;
		passed += list.kept;
		gone += list.gone;
		first_left = fini_list_end(&list);
		left = Min(left, first_left);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
	fini_store_close(store);
	if (passed > MANY_PASSED)
		fini_outbox_passed_over(batch->ipo_id, batch->operation, seen,
								(fini_monotonic_us() - begin) * passed / (passed + batch->count + gone));
	else
		fini_outbox_raise_low_end(batch->ipo_id, batch->operation, Min(seen, left - 1));
	fini_outbox_tally_gone(batch->ipo_id, gone);
	batch->taken = batch->count + gone;
}

/* for one more member */
static void
make_place(FiniBatch *batch, int *room, int limit, MemoryContext into)
{
	FiniMember *members;

	if (batch->count < *room)
		return;
	*room = *room == 0 ? Min(limit, 64) : Min(limit, *room * 4);
	members = MemoryContextAllocZero(into, sizeof(FiniMember) * *room);
	if (batch->count > 0)
		memcpy(members, batch->members, sizeof(FiniMember) * batch->count);
	batch->members = members;
}

static void
look_at_kin(FiniStore *store, TupleTableSlot *own, TupleTableSlot *other, Kin *kin, MemoryContext into)
{
	bool		isnull;

	fini_store_begin_own_ref(store, fini_store_column(own, FINI_SUBMISSION_OWN_REF, &isnull));
	while (!kin->blocks && fini_store_next_of_own_ref(store, other))
		note_kin(own, other, kin, into);
}

static void
note_kin(TupleTableSlot *own, TupleTableSlot *other, Kin *kin, MemoryContext into)
{
	bool		isnull;
	int64		own_id = DatumGetInt64(fini_store_column(own, FINI_SUBMISSION_ID, &isnull));
	int64		id = DatumGetInt64(fini_store_column(other, FINI_SUBMISSION_ID, &isnull));
	Oid			relid;
	TimestampTz since;

	if (id == own_id)
		return;
	if (fini_store_text_is(other, FINI_SUBMISSION_STATE, "sending") || fini_store_text_is(other, FINI_SUBMISSION_STATE, "unknown") ||
		(id < own_id && fini_store_text_is(other, FINI_SUBMISSION_STATE, "queued")))
	{
		kin->blocks = true;
		return;
	}
	relid = DatumGetObjectId(fini_store_column(other, FINI_SUBMISSION_RELATION, &isnull));

	/* what stands: accepted, the last of that IPO */
	since = DatumGetTimestampTz(fini_store_column(other, FINI_SUBMISSION_SETTLED_AT, &isnull));
	if (isnull)
		since = DT_NOEND;
	if (fini_store_text_is(other, FINI_SUBMISSION_STATE, "accepted") &&
		!DatumGetBool(fini_store_column(other, FINI_SUBMISSION_STRAY, &isnull)) &&
		(kin->standing_operation == NULL || since > kin->standing_since ||
		 (since == kin->standing_since && id > kin->standing_id)))
	{
		char	   *ipo_id = fini_store_text(own, FINI_SUBMISSION_IPO_ID, CurrentMemoryContext);

		if (fini_store_text_is(other, FINI_SUBMISSION_IPO_ID, ipo_id))
		{
			kin->standing_operation = fini_store_text(other, FINI_SUBMISSION_OPERATION, into);
			kin->standing_record_id = fini_store_text(other, FINI_SUBMISSION_RECORD_ID, into);
			kin->standing_relid = relid;
			kin->standing_since = since;
			kin->standing_id = id;
		}
	}

	/* what came right before it, for the same row */
	if (id < own_id && id > kin->before_id &&
		relid == DatumGetObjectId(fini_store_column(own, FINI_SUBMISSION_RELATION, &isnull)))
	{
		kin->before_id = id;
		kin->after_refusal = !fini_store_text_is(other, FINI_SUBMISSION_OPERATION, "invalidate") &&
			(fini_store_text_is(other, FINI_SUBMISSION_STATE, "rejected") || fini_store_text_is(other, FINI_SUBMISSION_STATE, "failed"));
	}
}

/* from now on it is being sent; false: somebody else works on it */
static bool
start_member(FiniStore *store, TupleTableSlot *row, const Kin *kin, const char *request_id, FiniMember *member, MemoryContext into)
{
	TupleTableSlot *edited;
	bool		isnull;
	int			attempts = DatumGetInt32(fini_store_column(row, FINI_SUBMISSION_ATTEMPTS, &isnull)) + 1;

	/* an update cannot be told not to wait; what is locked it need not wait for */
	if (fini_store_lock(store, row, false) != TM_Ok)
		return false;
	edited = fini_store_edit(&store->submission, row);
	fini_store_set_text(edited, FINI_SUBMISSION_STATE, "sending");
	fini_store_set_text(edited, FINI_SUBMISSION_REQUEST_ID, request_id);
	fini_store_set(edited, FINI_SUBMISSION_ATTEMPTS, Int32GetDatum(attempts), false);
	fini_store_set(edited, FINI_SUBMISSION_SENT_AT, TimestampTzGetDatum(GetCurrentTimestamp()), false);
	fini_store_set_text(edited, FINI_SUBMISSION_NOT_BEFORE, NULL);
	fini_store_set_text(edited, FINI_SUBMISSION_ERROR_CODE, NULL);
	fini_store_set_text(edited, FINI_SUBMISSION_ERROR_MESSAGE, NULL);
	fini_store_write(store, row, &member->place);

	fini_outbox_member(row, member, into);
	member->attempts = attempts;
	member->standing_operation = kin->standing_operation;
	member->standing_record_id = kin->standing_record_id;
	member->standing_relid = kin->standing_relid;
	member->after_refusal = kin->after_refusal;
	return true;
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

		member->id = DatumGetInt64(SPI_getbinval(tuple, table->tupdesc, 1, &isnull));
		member->relid = DatumGetObjectId(SPI_getbinval(tuple, table->tupdesc, 2, &isnull));
		member->own_ref = fini_outbox_column(i, 3, into);
		member->record_id = fini_outbox_column(i, 4, into);
		member->attempts = DatumGetInt32(SPI_getbinval(tuple, table->tupdesc, 5, &isnull));
		member->stray = DatumGetBool(SPI_getbinval(tuple, table->tupdesc, 6, &isnull));
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
	MemoryContext old;
	char	   *text;

	/* whatever its SQLSTATE, a text that a function of the user's has raised may quote values */
	harmless = harmless && !(error->funcname != NULL && strcmp(error->funcname, "exec_stmt_raise") == 0);
	old = MemoryContextSwitchTo(into);
	text = psprintf("the table cannot be read (SQLSTATE %s)%s%s", unpack_sql_state(error->sqlerrcode),
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
