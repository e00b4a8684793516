/*
 * outbox_list.c
 *		What a row of fini.queue lists, and operations taken from it by users.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_list.h"

PG_FUNCTION_INFO_V1(fini_sql_take);

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
			continue;			/* somebody has deleted it */
		if (fini_store_text_is(operation, FINI_SUBMISSION_STATE, "queued"))
			return operation;
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
