/*
 * reconcile_worker.h
 *		The worker's share in reconciling: runs that fini.start_reconcile began.
 *
 * One run at a time, one page under way at a time; how far it has come is in
 * fini.reconcile_run.  Called by the worker's loop, outside any transaction.
 */
#ifndef FINI_RECONCILE_WORKER_H
#define FINI_RECONCILE_WORKER_H

#include "postgres.h"

#include "http.h"
#include "shared.h"

/* somebody has called: there may be a new run, or one may have been ended */
extern void fini_reconcile_arrived(void);

/*
 * Go on with a run if it is its turn.  Called before the queue is served
 * (first), when it does something only if the queue has had its share since
 * the last page, and after it.
 */
extern void fini_reconcile_service(FiniSlotShared *slot, bool first);

/* a page arrived; false when the request is not ours */
extern bool fini_reconcile_completed(FiniSlotShared *slot, FiniHttpRequest *http);

/* milliseconds until it wants to be called again; -1: it waits for nothing but what wakes the worker anyway */
extern long fini_reconcile_timeout(void);

/* is there a run that it is at? */
extern bool fini_reconcile_busy(void);

#endif							/* FINI_RECONCILE_WORKER_H */
