/*
 * outbox_settle.c
 *		How operations and requests end, or are sent again.
 *
 * The outcome goes into fini.submission and fini.request, and into the user's
 * row (outbox_write_back.c), in one transaction.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/async.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_store.h"
#include "shared.h"

#define CHANNEL		"fini"

static FiniStatement requeue_statement = {
	.sql = "WITH v AS MATERIALIZED (SELECT * FROM ROWS FROM (unnest($1), unnest($2), unnest($3), unnest($4), unnest($5))"
	"  AS v(id, operation, delay, code, message)),"
	" again AS (UPDATE fini.submission s SET state = 'queued', operation = v.operation, error_code = nullif(v.code, ''),"
	"  error_message = nullif(v.message, ''), not_before = CASE WHEN v.delay > 0 THEN clock_timestamp() + v.delay * interval '1 microsecond' END"
	"  FROM v WHERE s.id = v.id RETURNING s.id, s.ipo_id, s.operation, s.not_before)"
	" INSERT INTO fini.queue (ipo_id, operation, id, not_before) SELECT ipo_id, operation, id, not_before FROM again",
	.nargs = 5, .types = {INT8ARRAYOID, TEXTARRAYOID, INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
};

static FiniStatement answered_statement = {
	.sql = "UPDATE fini.request SET state = CASE WHEN cardinality($6) > 0 THEN state ELSE 'answered' END,"
	" http_status = nullif($2, 0), code = $3, message = $4,"
	" duration = $5 * interval '1 microsecond', members = $6 WHERE request_id = $1",
	.nargs = 6, .types = {TEXTOID, INT4OID, TEXTOID, TEXTOID, INT8OID, INT8ARRAYOID}
};

static FiniStatement members_statement = {
	.sql = "UPDATE fini.request SET members = $2, state = CASE WHEN cardinality($2) > 0 THEN state ELSE 'found_out' END"
	" WHERE request_id = $1",
	.nargs = 2, .types = {TEXTOID, INT8ARRAYOID}
};

static FiniStatement doubt_request_statement = {
	.sql = "UPDATE fini.request SET state = 'unknown', http_status = nullif($2, 0), code = $3, message = $4,"
	" duration = $5 * interval '1 microsecond' WHERE request_id = $1",
	.nargs = 5, .types = {TEXTOID, INT4OID, TEXTOID, TEXTOID, INT8OID}
};

static FiniStatement doubt_members_statement = {
	.sql = "UPDATE fini.submission s SET state = 'unknown', error_code = $2, error_message = $3"
	" FROM unnest($1) AS m(id) WHERE s.id = m.id AND s.state IN ('sending', 'unknown')",
	.nargs = 3, .types = {INT8ARRAYOID, TEXTOID, TEXTOID}
};

static FiniStatement postponed_request_statement = {
	.sql = "UPDATE fini.request SET attempts = attempts + 1, http_status = nullif($2, 0), code = $3, message = $4 WHERE request_id = $1",
	.nargs = 4, .types = {TEXTOID, INT4OID, TEXTOID, TEXTOID}
};

static FiniStatement postponed_members_statement = {
	.sql = "UPDATE fini.submission s SET attempts = attempts + 1, error_code = $2, error_message = $3"
	" FROM unnest($1) AS m(id) WHERE s.id = m.id AND s.state IN ('sending', 'unknown')",
	.nargs = 3, .types = {INT8ARRAYOID, TEXTOID, TEXTOID}
};

static FiniStatement resend_request_statement = {
	.sql = "UPDATE fini.request SET state = 'sending', request_id = $2, attempts = attempts + 1 WHERE request_id = $1",
	.nargs = 2, .types = {TEXTOID, TEXTOID}
};

static FiniStatement resend_members_statement = {
	.sql = "UPDATE fini.submission s SET state = 'sending', request_id = $2, attempts = attempts + 1, sent_at = clock_timestamp()"
	" FROM unnest($1) AS m(id) WHERE s.id = m.id AND s.state IN ('sending', 'unknown')",
	.nargs = 2, .types = {INT8ARRAYOID, TEXTOID}
};

static FiniStatement knows_statement = {
	.sql = "SELECT FROM fini.submission WHERE own_ref = $1 AND record_id = $2 AND id <> $3 LIMIT 1",
	.nargs = 3, .types = {TEXTOID, TEXTOID, INT8OID}
};

static void settle_final(FiniBatch *batch);
static const char *text_or_null(const char *text);
static void requeue(FiniBatch *batch);
static void close_request(FiniBatch *batch, const FiniCall *call);
static void announce(FiniBatch *batch);
static int	member_ids(const FiniBatch *batch, bool open_only, int64 *ids);

void
fini_outbox_settle(FiniBatch *batch, const FiniCall *call)
{
	bool		anything = call != NULL;

	for (int i = 0; i < batch->count && !anything; i++)
		anything = batch->members[i].state != NULL;
	if (!anything)
		return;
	settle_final(batch);
	fini_outbox_tally(batch, call != NULL);
	requeue(batch);
	if (call != NULL)
		close_request(batch, call);
	else
	{
		int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
		Datum		values[2] = {CStringGetTextDatum(batch->request_id), 0};

		values[1] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
		(void) fini_outbox_execute(&members_statement, values, NULL, 0);
	}
	fini_outbox_write_batch(batch);
	announce(batch);
}

void
fini_outbox_doubt(const FiniBatch *batch, const FiniCall *call)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	Datum		values[5];
	const char *code = call != NULL ? call->code : "new_timeline";
	const char *message = call != NULL ? call->message : "";

	values[0] = CStringGetTextDatum(batch->request_id);
	values[1] = Int32GetDatum(call != NULL ? call->http_status : 0);
	values[2] = CStringGetTextDatum(code);
	values[3] = CStringGetTextDatum(message);
	values[4] = Int64GetDatum(call != NULL ? call->http.duration_us : 0);
	(void) fini_outbox_execute(&doubt_request_statement, values, NULL, 0);

	values[0] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
	values[1] = CStringGetTextDatum(code);
	values[2] = CStringGetTextDatum(message[0] != '\0' ? message : "it is being found out whether FINI has it");
	(void) fini_outbox_execute(&doubt_members_statement, values, NULL, 0);
}

void
fini_outbox_postponed(const FiniBatch *batch, const FiniCall *call)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	Datum		values[4];

	values[0] = CStringGetTextDatum(batch->request_id);
	values[1] = Int32GetDatum(call->http_status);
	values[2] = CStringGetTextDatum(call->code);
	values[3] = CStringGetTextDatum(call->message);
	(void) fini_outbox_execute(&postponed_request_statement, values, NULL, 0);
	values[0] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
	values[1] = CStringGetTextDatum(call->code);
	values[2] = CStringGetTextDatum(call->message);
	(void) fini_outbox_execute(&postponed_members_statement, values, NULL, 0);
}

void
fini_outbox_resend(const FiniBatch *batch, const char *new_request_id)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	Datum		values[2];

	values[0] = CStringGetTextDatum(batch->request_id);
	values[1] = CStringGetTextDatum(new_request_id);
	(void) fini_outbox_execute(&resend_request_statement, values, NULL, 0);
	values[0] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
	(void) fini_outbox_execute(&resend_members_statement, values, NULL, 0);
}

bool
fini_outbox_knows_record(const char *own_ref, const char *record_id, int64 except_id)
{
	Datum		values[3] = {CStringGetTextDatum(own_ref), CStringGetTextDatum(record_id), Int64GetDatum(except_id)};

	(void) fini_outbox_execute(&knows_statement, values, NULL, 1);
	return SPI_processed > 0;
}

static void
settle_final(FiniBatch *batch)
{
	FiniStore  *store = NULL;
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext, "fini settle", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;

	for (int i = 0; i < batch->count; i++)
	{
		FiniMember *member = &batch->members[i];
		const char *record_id = member->new_record_id ? member->new_record_id : member->record_id;
		TupleTableSlot *row;
		TupleTableSlot *edited;

		if (member->state == NULL || strcmp(member->state, "queued") == 0)
			continue;
		if (store == NULL)
		{
			store = fini_store_open();
			MemoryContextSwitchTo(work);
		}
		row = fini_store_find_at(store, member->id, &member->place);
		if (row == NULL)
			continue;
		edited = fini_store_edit(&store->submission, row);
		fini_store_set_text(edited, FINI_SUBMISSION_STATE, member->state);
		/* an accepted change or invalidate says which record it was */
		if (record_id != NULL)
			fini_store_set_text(edited, FINI_SUBMISSION_RECORD_ID, record_id);
		fini_store_set_text(edited, FINI_SUBMISSION_ERROR_CODE, text_or_null(member->error_code));
		fini_store_set_text(edited, FINI_SUBMISSION_ERROR_MESSAGE, text_or_null(member->error_message));
		fini_store_set(edited, FINI_SUBMISSION_SETTLED_AT, TimestampTzGetDatum(GetCurrentTimestamp()), false);
		fini_store_write(store, row, NULL);
		MemoryContextReset(work);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
	if (store != NULL)
		fini_store_close(store);
}

static const char *
text_or_null(const char *text)
{
	return text != NULL && text[0] != '\0' ? text : NULL;
}

static void
requeue(FiniBatch *batch)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	int64	   *delays = palloc(sizeof(int64) * Max(1, batch->count));
	char	  **operations = palloc(sizeof(char *) * Max(1, batch->count));
	char	  **codes = palloc(sizeof(char *) * Max(1, batch->count));
	char	  **messages = palloc(sizeof(char *) * Max(1, batch->count));
	Datum		values[5];
	int			n = 0;

	for (int i = 0; i < batch->count; i++)
	{
		FiniMember *member = &batch->members[i];

		if (member->state == NULL || strcmp(member->state, "queued") != 0)
			continue;
		ids[n] = member->id;
		delays[n] = member->delay_us;
		operations[n] = unconstify(char *, fini_outbox_operation_name(member->requeue_as));
		codes[n] = unconstify(char *, member->error_code);
		messages[n++] = unconstify(char *, member->error_message);
	}
	if (n == 0)
		return;
	values[0] = fini_outbox_int8_array(n, ids);
	values[1] = fini_outbox_text_array(n, operations);
	values[2] = fini_outbox_int8_array(n, delays);
	values[3] = fini_outbox_text_array(n, codes);
	values[4] = fini_outbox_text_array(n, messages);
	(void) fini_outbox_execute(&requeue_statement, values, NULL, 0);
}

static void
close_request(FiniBatch *batch, const FiniCall *call)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	Datum		values[6];

	values[0] = CStringGetTextDatum(batch->request_id);
	values[1] = Int32GetDatum(call->http_status);
	values[2] = CStringGetTextDatum(call->code);
	values[3] = CStringGetTextDatum(call->message);
	values[4] = Int64GetDatum(call->http.duration_us);
	values[5] = fini_outbox_int8_array(member_ids(batch, true, ids), ids);
	(void) fini_outbox_execute(&answered_statement, values, NULL, 0);
}

/* one notification for each request: {"ipo_id":…, "operation":…, "request_id":…, "accepted":n, …} */
static void
announce(FiniBatch *batch)
{
	static const char *const states[] = {"accepted", "rejected", "failed", "cancelled"};
	int			counts[lengthof(states)] = {0};
	int			total = 0;
	StringInfoData payload;

	for (int i = 0; i < batch->count; i++)
	{
		for (size_t s = 0; s < lengthof(states); s++)
		{
			if (batch->members[i].state != NULL && strcmp(batch->members[i].state, states[s]) == 0)
			{
				counts[s]++;
				total++;
			}
		}
	}
	if (total == 0)
		return;
	fini_shared_note_settled();
	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"event\":\"settled\",\"ipo_id\":");
	escape_json(&payload, batch->ipo_id);
	appendStringInfo(&payload, ",\"operation\":\"%s\",\"request_id\":\"%s\"",
					 fini_outbox_operation_name(batch->operation), batch->request_id);
	for (size_t s = 0; s < lengthof(states); s++)
		appendStringInfo(&payload, ",\"%s\":%d", states[s], counts[s]);
	appendStringInfoChar(&payload, '}');
	/* an IPO's name of unreasonable length is no reason for an error */
	if (payload.len < 4000)
		Async_Notify(CHANNEL, payload.data);
}

static int
member_ids(const FiniBatch *batch, bool open_only, int64 *ids)
{
	int			n = 0;

	for (int i = 0; i < batch->count; i++)
	{
		if (!open_only || batch->members[i].state == NULL)
			ids[n++] = batch->members[i].id;
	}
	return n;
}
