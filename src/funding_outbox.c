/*
 * funding_outbox.c
 *		All that C does in SQL with fini.funding_confirmation.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/async.h"
#include "utils/builtins.h"
#include "utils/json.h"

#include "compat.h"
#include "funding_outbox.h"
#include "outbox.h"
#include "settings.h"

#define CHANNEL		"fini"

static FiniStatement recover_statement = {
	.sql = "UPDATE fini.funding_confirmation c SET state = 'unknown', error_code = 'worker_lost',"
	" error_message = 'the worker ended before an answer came'"
	" WHERE c.id = ANY (ARRAY(SELECT l.id FROM fini.funding_confirmation l WHERE l.state IN ('queued', 'sending', 'unknown')"
	"  AND l.state = 'sending' FOR UPDATE SKIP LOCKED))",
};

/* the partial indexes hold what is open, and nothing else is looked at */
static FiniStatement next_statement = {
	.sql = "WITH first AS (SELECT ipo_id FROM fini.funding_confirmation WHERE state IN ('queued', 'sending', 'unknown')"
	"  AND (not_before IS NULL OR not_before <= clock_timestamp()) ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)"
	" SELECT c.id, c.transaction_ref, c.status, c.state <> 'queued', c.attempts,"
	"  coalesce(clock_timestamp() >= c.sent_at + $2 * interval '1 millisecond', true), c.ipo_id"
	" FROM fini.funding_confirmation c, first"
	" WHERE c.state IN ('queued', 'sending', 'unknown') AND c.ipo_id IS NOT DISTINCT FROM first.ipo_id"
	"  AND (c.not_before IS NULL OR c.not_before <= clock_timestamp()) ORDER BY c.id LIMIT $1"
	" FOR UPDATE OF c SKIP LOCKED",
	.nargs = 2, .types = {INT8OID, INT4OID}
};

static FiniStatement next_due_statement = {
	.sql = "SELECT (extract(epoch FROM min(not_before) - clock_timestamp()) * 1000000)::bigint FROM fini.funding_confirmation"
	" WHERE state IN ('queued', 'sending', 'unknown') AND not_before > clock_timestamp()",
};

static FiniStatement claim_statement = {
	.sql = "UPDATE fini.funding_confirmation c SET state = 'sending', request_id = $2, attempts = c.attempts + 1,"
	" sent_at = clock_timestamp(), not_before = NULL, error_code = NULL, error_message = NULL"
	" WHERE c.id = ANY (ARRAY(SELECT l.id FROM fini.funding_confirmation l WHERE l.id = ANY ($1)"
	"  AND l.state IN ('queued', 'sending', 'unknown') FOR UPDATE SKIP LOCKED))"
	" RETURNING c.id",
	.nargs = 2, .types = {INT8ARRAYOID, TEXTOID}
};

static FiniStatement settle_statement = {
	.sql = "UPDATE fini.funding_confirmation c SET state = v.state, error_code = nullif(v.code, ''), error_message = nullif(v.message, ''),"
	" not_before = CASE WHEN v.delay > 0 THEN clock_timestamp() + v.delay * interval '1 microsecond' END,"
	" settled_at = CASE WHEN v.state NOT IN ('queued', 'sending', 'unknown') THEN clock_timestamp() END"
	" FROM ROWS FROM (unnest($1), unnest($2), unnest($3), unnest($4), unnest($5)) AS v(id, state, code, message, delay)"
	" WHERE c.id = v.id AND c.id = ANY (ARRAY(SELECT l.id FROM fini.funding_confirmation l WHERE l.id = ANY ($1)"
	"  AND l.state IN ('queued', 'sending', 'unknown') FOR UPDATE SKIP LOCKED))",
	.nargs = 5, .types = {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID}
};

static void announce(const FiniConfirmations *batch);

void
fini_funding_outbox_recover(void)
{
	(void) fini_outbox_execute(&recover_statement, NULL, NULL, 0);
}

bool
fini_funding_outbox_next(FiniConfirmations *batch, int limit, MemoryContext into)
{
	Datum		values[2] = {Int64GetDatum(limit), Int32GetDatum(fini_guc_request_timeout)};
	TupleDesc	desc;
	bool		isnull;

	(void) fini_outbox_execute(&next_statement, values, NULL, 0);
	memset(batch, 0, sizeof(*batch));
	if (SPI_processed == 0)
		return false;

	desc = SPI_tuptable->tupdesc;
	batch->count = (int) SPI_processed;
	batch->members = MemoryContextAllocZero(into, sizeof(FiniConfirmation) * batch->count);
	batch->ipo_id = fini_outbox_column(0, 7, into);
	for (int i = 0; i < batch->count; i++)
	{
		FiniConfirmation *member = &batch->members[i];
		HeapTuple	tuple = SPI_tuptable->vals[i];

		member->id = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
		member->transaction_ref = fini_outbox_column(i, 2, into);
		member->status = fini_outbox_column(i, 3, into);
		member->doubted = DatumGetBool(SPI_getbinval(tuple, desc, 4, &isnull));
		member->attempts = DatumGetInt32(SPI_getbinval(tuple, desc, 5, &isnull));
		member->quiet = DatumGetBool(SPI_getbinval(tuple, desc, 6, &isnull));
	}
	return true;
}

int64
fini_funding_outbox_next_due(void)
{
	bool		isnull;
	Datum		due;

	(void) fini_outbox_execute(&next_due_statement, NULL, NULL, 1);
	due = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? -1 : Max(DatumGetInt64(due), 0);
}

void
fini_funding_outbox_claim(FiniConfirmations *batch)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	Datum		values[2];
	int			n = 0;

	fini_envelope_request_id(batch->request_id);
	for (int i = 0; i < batch->count; i++)
		ids[i] = batch->members[i].id;
	values[0] = fini_outbox_int8_array(batch->count, ids);
	values[1] = CStringGetTextDatum(batch->request_id);
	(void) fini_outbox_execute(&claim_statement, values, NULL, 0);

	for (int i = 0; i < batch->count; i++)
	{
		for (uint64 row = 0; row < SPI_processed; row++)
		{
			bool		isnull;

			if (DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, 1, &isnull)) != batch->members[i].id)
				continue;
			batch->members[n] = batch->members[i];
			batch->members[n++].attempts++;
			break;
		}
	}
	batch->count = n;
}

void
fini_funding_outbox_settle(const FiniConfirmations *batch)
{
	int64	   *ids = palloc(sizeof(int64) * Max(1, batch->count));
	int64	   *delays = palloc(sizeof(int64) * Max(1, batch->count));
	char	  **texts[3];
	Datum		values[5];
	int			n = 0;

	for (size_t t = 0; t < lengthof(texts); t++)
		texts[t] = palloc(sizeof(char *) * Max(1, batch->count));
	for (int i = 0; i < batch->count; i++)
	{
		const FiniConfirmation *member = &batch->members[i];

		if (member->state == NULL)
			continue;
		ids[n] = member->id;
		delays[n] = member->delay_us;
		texts[0][n] = unconstify(char *, member->state);
		texts[1][n] = unconstify(char *, member->error_code);
		texts[2][n++] = unconstify(char *, member->error_message);
	}
	if (n == 0)
		return;
	values[0] = fini_outbox_int8_array(n, ids);
	for (size_t t = 0; t < lengthof(texts); t++)
		values[t + 1] = fini_outbox_text_array(n, texts[t]);
	values[4] = fini_outbox_int8_array(n, delays);
	(void) fini_outbox_execute(&settle_statement, values, NULL, 0);
	announce(batch);
}

/* one notification for what has ended: {"event":"funding","ipo_id":…,"accepted":n,"rejected":n,"failed":n} */
static void
announce(const FiniConfirmations *batch)
{
	static const char *const states[] = {"accepted", "rejected", "failed"};
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
	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"event\":\"funding\",\"ipo_id\":");
	if (batch->ipo_id != NULL)
		escape_json(&payload, batch->ipo_id);
	else
		appendStringInfoString(&payload, "null");
	for (size_t s = 0; s < lengthof(states); s++)
		appendStringInfo(&payload, ",\"%s\":%d", states[s], counts[s]);
	appendStringInfoChar(&payload, '}');
	/* an IPO's name of unreasonable length is no reason for an error */
	if (payload.len < 4000)
		Async_Notify(CHANNEL, payload.data);
}
