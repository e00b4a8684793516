/*
 * deadline.h
 *		Deadlines of IPOs, in the worker: nothing is sent after one, and whoever
 *		listens hears in time when not all will be.
 *
 * What is decided here rests on FINI's clock: ours and the difference that
 * crypto/meta gave, where it is known.  Sending ends fini.deadline_margin before
 * the deadline, so that nothing reaches FINI after it.
 */
#ifndef FINI_DEADLINE_H
#define FINI_DEADLINE_H

#include "postgres.h"

#include "flight.h"
#include "outbox.h"
#include "shared.h"

/*
 * Read them again, and what the worker works with: whenever the worker looks at what has changed.  When the database refuses, what is
 * too late is not known, and nothing may be sent until it is.
 */
extern bool fini_deadline_look(FiniSlotShared *slot);

/*
 * Fail what has missed its deadline, a bounded number at a time, and look ahead
 * every few seconds.  Milliseconds until it wants to be called again; -1: none.
 */
extern long fini_deadline_service(FiniSlotShared *slot);

/* microseconds for which requests of the IPO may still leave; zero or less: none may; PG_INT64_MAX: no deadline */
extern int64 fini_deadline_left(FiniSlotShared *slot, const char *ipo_id);

/* may operations of the group be claimed?  Its deadline, if any, was read just now */
extern bool fini_deadline_allows(FiniSlotShared *slot, const FiniGroup *group, int64 doubt_below);

/*
 * The flight must not be sent any more.  What was certainly never processed
 * ends as failed; what may have been is looked for first.
 */
extern void fini_deadline_stop(FiniSlotShared *slot, FiniFlight *flight);

#endif							/* FINI_DEADLINE_H */
