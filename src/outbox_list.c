/*
 * outbox_list.c
 *		What a row of fini.queue lists, operations taken from it by users, and what
 *		they leave behind.
 *
 * A claim takes what has been cancelled off the lists as it comes by.  Where
 * nothing is claimed, or not for long, they are tidied: a slice at a time, and
 * for a small part of the time.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_list.h"

PG_FUNCTION_INFO_V1(fini_sql_take);

/* a slice of tidying ends after so many that are listed */
#define TIDIED_AT_ONCE	50000

/* IPOs of which something is listed that is not queued any more */
static FiniStatement untidy_statement = {
	.sql = "SELECT ipo_id FROM fini.tally WHERE state = 'queued' GROUP BY ipo_id HAVING sum(n) <> 0 ORDER BY ipo_id",
	.keep_plan = true
};

/* where the next slice begins; ipo_id NULL: at the beginning */
static struct
{
	char	   *ipo_id;
	int			operation;
	int64		after;
}			reached;

static bool tidy_ipo(FiniStore *store, const char *ipo_id, int64 *seen, int64 *gone);
static void remember(const char *ipo_id, int operation, int64 after);
static int	take(int n, int64 *ids, int64 *taken, int *ntaken);

void
fini_list_begin(FiniList *list, FiniStore *store, TupleTableSlot *queued)
{
	bool		isnull;
	Datum		ids = fini_store_column(queued, FINI_QUEUE_IDS, &isnull);

	memset(list, 0, sizeof(*list));
	list->store = store;
	list->queued = queued;
	if (isnull)
	{
		list->n = 1;
		list->ids = palloc(sizeof(int64));
		list->ids[0] = DatumGetInt64(fini_store_column(queued, FINI_QUEUE_ID, &isnull));
	}
	else
		list->n = fini_outbox_int8s(ids, &list->ids);
}

TupleTableSlot *
fini_list_next(FiniList *list)
{
	while (list->next < list->n)
	{
		TupleTableSlot *operation = fini_store_find(list->store, list->ids[list->next++]);

		if (operation == NULL)
			fini_list_keep(list);	/* somebody has written to our tables, and may not be through with it */
		else if (fini_store_text_is(operation, FINI_SUBMISSION_STATE, "queued"))
			return operation;
		else
			list->gone++;
	}
	return NULL;
}

void
fini_list_keep(FiniList *list)
{
	list->ids[list->kept++] = list->ids[list->next - 1];
}

int64
fini_list_end(FiniList *list)
{
	int			left = list->n - list->next;
	int64		first;

	if (list->kept < list->next)
	{
		memmove(list->ids + list->kept, list->ids + list->next, sizeof(int64) * left);
		fini_store_list(list->store, list->queued, list->kept + left, list->ids);
	}
	first = list->kept + left > 0 ? list->ids[0] : PG_INT64_MAX;
	pfree(list->ids);
	return first;
}

bool
fini_outbox_tidy(void)
{
	int64		seen = 0;
	int			n;
	int			first = 0;
	const char **ipo_ids;
	FiniStore  *store;

	(void) fini_outbox_execute(&untidy_statement, NULL, NULL, 0);
	n = (int) SPI_processed;
	ipo_ids = palloc(sizeof(char *) * Max(1, n));
	for (int i = 0; i < n; i++)
	{
		ipo_ids[i] = fini_outbox_column(i, 1, CurrentMemoryContext);
		if (reached.ipo_id != NULL && strcmp(ipo_ids[i], reached.ipo_id) == 0)
			first = i;
	}
	SPI_freetuptable(SPI_tuptable);
	if (n == 0 || reached.ipo_id == NULL || strcmp(ipo_ids[first], reached.ipo_id) != 0)
		remember(NULL, 0, PG_INT64_MIN);

	for (int i = first; i < n; i++)
	{
		int64		gone = 0;
		bool		through;

		store = fini_store_open();
		through = tidy_ipo(store, ipo_ids[i], &seen, &gone);
		fini_store_close(store);
		fini_outbox_tally_gone(ipo_ids[i], gone);
		if (!through)
			break;
	}
	return reached.ipo_id != NULL;
}

/* false: the slice is at its end */
static bool
tidy_ipo(FiniStore *store, const char *ipo_id, int64 *seen, int64 *gone)
{
	TupleTableSlot *queued = fini_store_slot(&store->queue);

	for (int operation = reached.operation; operation <= FINI_OPERATION_INVALIDATE; operation++)
	{
		fini_store_begin_queue(store, ipo_id, fini_outbox_operation_name(operation), reached.after);
		while (fini_store_next_in_queue(store, queued))
		{
			FiniList	list;
			bool		isnull;

			CHECK_FOR_INTERRUPTS();
			fini_list_begin(&list, store, queued);
			while (fini_list_next(&list) != NULL)
				fini_list_keep(&list);
			*seen += list.n;
			*gone += list.gone;
			(void) fini_list_end(&list);
			if (*seen >= TIDIED_AT_ONCE || *gone >= FINI_LIST_MOST_GONE)
			{
				remember(ipo_id, operation, DatumGetInt64(fini_store_column(queued, FINI_QUEUE_ID, &isnull)));
				return false;
			}
		}
		reached.after = PG_INT64_MIN;
	}
	remember(NULL, 0, PG_INT64_MIN);
	return true;
}

/* outlives the transaction; what does not commit is found untidy again, at the latest the next time round */
static void
remember(const char *ipo_id, int operation, int64 after)
{
	char	   *kept = ipo_id != NULL ? MemoryContextStrdup(TopMemoryContext, ipo_id) : NULL;

	if (reached.ipo_id != NULL)
		pfree(reached.ipo_id);
	reached.ipo_id = kept;
	reached.operation = operation;
	reached.after = after;
}

/*
 * fini._take(ids): those that are queued, and from now on ours, until the end
 * of the transaction.
 *
 * Not by SELECT FOR UPDATE: what the worker has begun to send meanwhile would be
 * locked as well, and settling it would have to wait for this transaction.
 */
Datum
fini_sql_take(PG_FUNCTION_ARGS)
{
	int64	   *ids;
	int64	   *taken;
	int			n = fini_outbox_int8s(PG_GETARG_DATUM(0), &ids);
	int			ntaken = 0;

	/* in one order, so that two of us do not wait for each other */
	qsort(ids, n, sizeof(int64), fini_outbox_compare_ids);
	taken = palloc(sizeof(int64) * Max(1, n));
	while (n > 0)
		n = take(n, ids, taken, &ntaken);
	PG_RETURN_DATUM(fini_outbox_int8_array(ntaken, taken));
}

/* those that were changed while we waited for them have to be looked at again: they are moved to the front; how many */
static int
take(int n, int64 *ids, int64 *taken, int *ntaken)
{
	FiniStore  *store = fini_store_open();
	int			again = 0;

	for (int i = 0; i < n; i++)
	{
		TupleTableSlot *operation = fini_store_find(store, ids[i]);

		CHECK_FOR_INTERRUPTS();
		if (operation == NULL || !fini_store_text_is(operation, FINI_SUBMISSION_STATE, "queued"))
			continue;
		switch (fini_store_lock(store, operation, true))
		{
			case TM_Ok:
				taken[(*ntaken)++] = ids[i];
				break;
			case TM_Updated:
				ids[again++] = ids[i];
				break;
			default:
				break;
		}
	}
	fini_store_close(store);
	return again;
}
