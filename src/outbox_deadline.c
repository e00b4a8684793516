/*
 * outbox_deadline.c
 *		The SQL of deadlines: which there are, what has missed one, and what
 *		fini.progress says of those to come.
 *
 * fini.deadline is written by fini.set_deadline and here.  The worker waits for
 * nobody who is just moving a deadline: it passes such a row over, and what it
 * would have noted there is void when that transaction commits.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/async.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_list.h"
#include "outbox_store.h"

#define CHANNEL		"fini"
#define LATE_BATCH	1000

static FiniStatement deadlines_statement = {
	.sql = "SELECT ipo_id, deadline, passed_at IS NULL FROM fini.deadline"
};

static FiniStatement missed_statement = {
	.sql = "UPDATE fini.deadline SET missed = missed + $2"
	" WHERE ipo_id = (SELECT d.ipo_id FROM fini.deadline d WHERE d.ipo_id = $1 FOR UPDATE SKIP LOCKED)",
	.nargs = 2, .types = {TEXTOID, INT8OID}
};

static FiniStatement outlook_statement = {
	.sql = "SELECT p.ipo_id, p.deadline, p.estimated_finish, d.warned_at IS NOT NULL, d.missed,"
	" p.queued + p.sending + p.unknown FROM fini.progress p JOIN fini.deadline d USING (ipo_id) WHERE d.passed_at IS NULL"
};

static FiniStatement mark_statement = {
	.sql = "UPDATE fini.deadline SET warned_at = CASE WHEN $3 THEN clock_timestamp() END,"
	" passed_at = CASE WHEN $4 THEN clock_timestamp() END"
	" WHERE ipo_id = (SELECT d.ipo_id FROM fini.deadline d WHERE d.ipo_id = $1 AND d.deadline = $2 FOR UPDATE SKIP LOCKED)",
	.nargs = 4, .types = {TEXTOID, TIMESTAMPTZOID, BOOLOID, BOOLOID}
};

static void append_time(StringInfo payload, const char *name, TimestampTz time);

List *
fini_outbox_deadlines(MemoryContext into)
{
	List	   *deadlines = NIL;

	(void) fini_outbox_execute(&deadlines_statement, NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(into);
		FiniDeadline *deadline = palloc0(sizeof(FiniDeadline));
		bool		isnull;

		deadline->ipo_id = fini_outbox_column(i, 1, into);
		deadline->deadline = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
		deadline->open = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3, &isnull));
		deadlines = lappend(deadlines, deadline);
		MemoryContextSwitchTo(old);
	}
	return deadlines;
}

/*
 * The operations come with their state set.  They were never part of a request:
 * what may have been has to be looked for first.
 */
int
fini_outbox_fail_late(const FiniGroup *group, int64 *after)
{
	FiniBatch	batch = {.ipo_id = group->ipo_id, .operation = group->operation};
	FiniStore  *store = fini_store_open();
	TupleTableSlot *queued = fini_store_slot(&store->queue);
	int64		gone = 0;

	batch.members = palloc0(sizeof(FiniMember) * LATE_BATCH);
	fini_store_begin_queue(store, group->ipo_id, fini_outbox_operation_name(group->operation), *after);
	while (batch.count < LATE_BATCH && gone < FINI_LIST_MOST_GONE && fini_store_next_in_queue(store, queued))
	{
		FiniList	list;
		TupleTableSlot *row;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		fini_list_begin(&list, store, queued);
		while (batch.count < LATE_BATCH && (row = fini_list_next(&list)) != NULL)
		{
			if (fini_store_lock(store, row, false) == TM_Ok)
				fini_outbox_member(row, &batch.members[batch.count++], CurrentMemoryContext);
			else
				fini_list_keep(&list);
		}
		/* what is left of a row comes again, with the first that was not looked at */
		if (list.next == list.n)
			*after = DatumGetInt64(fini_store_column(queued, FINI_QUEUE_ID, &isnull));
		(void) fini_list_end(&list);
		gone += list.gone;
	}
	fini_store_close(store);
	fini_outbox_tally_gone(group->ipo_id, gone);
	if (batch.count == 0)
		return (int) gone;
	fini_outbox_late(&batch);
	fini_outbox_settle(&batch, NULL);
	fini_outbox_missed(&batch);
	return batch.count + (int) gone;
}

void
fini_outbox_late(FiniBatch *batch)
{
	for (int i = 0; i < batch->count; i++)
	{
		if (batch->members[i].state != NULL)
			continue;
		batch->members[i].state = "failed";
		batch->members[i].error_code = "deadline";
		batch->members[i].error_message = "the IPO's deadline passed before it could be sent";
	}
}

void
fini_outbox_missed(const FiniBatch *batch)
{
	Datum		values[2];
	int64		missed = 0;

	for (int i = 0; i < batch->count; i++)
		missed += batch->members[i].state != NULL && batch->members[i].error_code != NULL &&
			strcmp(batch->members[i].error_code, "deadline") == 0;
	if (missed == 0)
		return;
	values[0] = CStringGetTextDatum(batch->ipo_id);
	values[1] = Int64GetDatum(missed);
	(void) fini_outbox_execute(&missed_statement, values, NULL, 0);
}

List *
fini_outbox_outlook(MemoryContext into)
{
	List	   *outlook = NIL;

	(void) fini_outbox_execute(&outlook_statement, NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(into);
		FiniDeadline *deadline = palloc0(sizeof(FiniDeadline));
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		Datum		finish;

		deadline->ipo_id = fini_outbox_column(i, 1, into);
		deadline->deadline = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull));
		finish = SPI_getbinval(tuple, desc, 3, &isnull);
		deadline->finish = isnull ? DT_NOBEGIN : DatumGetTimestampTz(finish);
		deadline->open = true;
		deadline->warned = DatumGetBool(SPI_getbinval(tuple, desc, 4, &isnull));
		deadline->missed = DatumGetInt64(SPI_getbinval(tuple, desc, 5, &isnull));
		deadline->operations = DatumGetInt64(SPI_getbinval(tuple, desc, 6, &isnull));
		outlook = lappend(outlook, deadline);
		MemoryContextSwitchTo(old);
	}
	return outlook;
}

bool
fini_outbox_deadline_event(const FiniDeadline *deadline, const char *event, bool warned, bool passed)
{
	Datum		values[4] = {CStringGetTextDatum(deadline->ipo_id), TimestampTzGetDatum(deadline->deadline),
	BoolGetDatum(warned), BoolGetDatum(passed)};
	StringInfoData payload;

	(void) fini_outbox_execute(&mark_statement, values, NULL, 0);
	if (SPI_processed == 0)
		return false;
	initStringInfo(&payload);
	appendStringInfo(&payload, "{\"event\":\"%s\",\"ipo_id\":", event);
	escape_json(&payload, deadline->ipo_id);
	append_time(&payload, "deadline", deadline->deadline);
	if (passed)
		appendStringInfo(&payload, ",\"failed\":" INT64_FORMAT, deadline->missed);
	else
		append_time(&payload, "estimated_finish", deadline->finish);
	appendStringInfoChar(&payload, '}');
	if (payload.len < 4000)
		Async_Notify(CHANNEL, payload.data);
	return true;
}

static void
append_time(StringInfo payload, const char *name, TimestampTz time)
{
	char		text[MAXDATELEN + 1];

	appendStringInfo(payload, ",\"%s\":", name);
	if (TIMESTAMP_NOT_FINITE(time))
		appendStringInfoString(payload, "null");
	else
		appendStringInfo(payload, "\"%s\"", JsonEncodeDateTime(text, TimestampTzGetDatum(time), TIMESTAMPTZOID, NULL));
}
