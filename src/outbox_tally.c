/*
 * outbox_tally.c
 *		fini.tally: how many operations of each IPO have ended in which state.
 *
 * Counting a million rows each time somebody looks would be slow, and one row
 * per IPO that everybody updates would make every session wait for every other.
 * So whoever changes a final state adds a row with the difference, in the same
 * transaction, and the sum of an IPO's rows is its count.  The worker folds old
 * rows together; young ones also say how many were decided in the last minute.
 *
 * What is queued is counted by fini.queue.  But a cancelled operation stays
 * listed there until the worker comes by: meanwhile it is taken off by a row of
 * state queued.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "compat.h"
#include "outbox.h"
#include "pace.h"

static FiniStatement tally_statement = {
	.sql = "INSERT INTO fini.tally (ipo_id, state, n) SELECT $1, v.state, v.n"
	" FROM ROWS FROM (unnest($2), unnest($3)) AS v(state, n) WHERE v.n <> 0",
	.nargs = 3, .types = {TEXTOID, TEXTARRAYOID, INT8ARRAYOID}, .keep_plan = true
};

static FiniStatement fold_statement = {
	.sql = "WITH gone AS (DELETE FROM fini.tally WHERE at < clock_timestamp() - interval '2 minutes'"
	"  AND (SELECT count(*) > $1 FROM fini.tally WHERE at < clock_timestamp() - interval '2 minutes' AND at > '-infinity')"
	"  RETURNING ipo_id, state, n)"
	" INSERT INTO fini.tally (ipo_id, state, n, at)"
	" SELECT ipo_id, state, sum(n), '-infinity' FROM gone GROUP BY ipo_id, state HAVING sum(n) <> 0",
	.nargs = 1, .types = {INT8OID}
};

static FiniStatement gone_statement = {
	.sql = "INSERT INTO fini.tally (ipo_id, state, n) VALUES ($1, 'queued', $2)",
	.nargs = 2, .types = {TEXTOID, INT8OID}, .keep_plan = true
};

#define ROWS_TO_FOLD	200

void
fini_outbox_tally(const FiniBatch *batch, bool decided_by_fini)
{
	static const char *const states[] = {"accepted", "rejected", "cancelled", "failed"};
	int64		counts[lengthof(states)] = {0};
	int			total = 0;
	Datum		values[3];

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
	values[0] = CStringGetTextDatum(batch->ipo_id);
	values[1] = fini_outbox_text_array(lengthof(states), (char *const *) states);
	values[2] = fini_outbox_int8_array(lengthof(states), counts);
	(void) fini_outbox_execute(&tally_statement, values, NULL, 0);
	fini_pace_settled(fini_shared_my_slot(), (int) (counts[0] + (decided_by_fini ? counts[1] : 0)));
}

void
fini_outbox_tally_gone(const char *ipo_id, int64 n)
{
	Datum		values[2] = {CStringGetTextDatum(ipo_id), Int64GetDatum(n)};

	if (n > 0)
		(void) fini_outbox_execute(&gone_statement, values, NULL, 0);
}

void
fini_outbox_fold_tally(void)
{
	Datum		values[1] = {Int64GetDatum(ROWS_TO_FOLD)};

	(void) fini_outbox_execute(&fold_statement, values, NULL, 0);
}
