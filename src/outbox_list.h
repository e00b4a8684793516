/*
 * outbox_list.h
 *		What a row of fini.queue lists: gone through, and what cannot be taken kept.
 *
 * Rows of the queue are written by whoever enqueues, and changed by the worker
 * alone.  They say where to look, no more: whether an operation is queued is
 * what its own row says, and whoever changes or locks that row owns it.
 */
#ifndef FINI_OUTBOX_LIST_H
#define FINI_OUTBOX_LIST_H

#include "postgres.h"

#include "outbox_store.h"

/* a look at the queue ends after so many that are not queued any more: it is one transaction */
#define FINI_LIST_MOST_GONE		20000

typedef struct FiniList
{
	FiniStore  *store;
	TupleTableSlot *queued;		/* the row of the queue */
	int64	   *ids;
	int			n;
	int			next;			/* to be looked at */
	int			kept;			/* so many of those before it stay listed; they are moved to the front */
	int			gone;			/* so many were not queued any more: cancelled, as a rule */
} FiniList;

extern void fini_list_begin(FiniList *list, FiniStore *store, TupleTableSlot *queued);

/*
 * The next operation that is queued, as far as the store sees; NULL: none.  Unless
 * it is kept it is not listed any more once the list has ended.
 */
extern TupleTableSlot *fini_list_next(FiniList *list);
extern void fini_list_keep(FiniList *list);

/* write what is still listed, those not looked at among it; the first of them, or PG_INT64_MAX */
extern int64 fini_list_end(FiniList *list);

#endif							/* FINI_OUTBOX_LIST_H */
