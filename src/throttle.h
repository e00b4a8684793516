/*
 * throttle.h
 *		The sliding window of requests, one for each company in the cluster.
 *
 * FINI counts requests per company; a company is fini.agent_subject.  Every
 * process of every database takes a ticket before a request leaves and gives
 * it back when the request has ended.  A ticket counts from being taken until
 * one whole window after it was given back.  The gateway saw the request
 * somewhere in between, so that whatever the delays on the way, it never sees
 * more than the limit in any window.
 *
 * The state is under one LWLock, held for microseconds.
 */
#ifndef FINI_THROTTLE_H
#define FINI_THROTTLE_H

#include "postgres.h"

#include "storage/lwlock.h"

typedef enum FiniThrottleClass
{
	FINI_THROTTLE_BULK,			/* the worker's queue: leaves a share to the others */
	FINI_THROTTLE_INTERACTIVE	/* direct calls, tokens */
} FiniThrottleClass;

typedef struct FiniTicket
{
	int			company;		/* -1: none held */
	int			entry;
	uint32		generation;
	int64		taken_us;		/* monotonic; stays when it has been given back */
} FiniTicket;

extern void fini_throttle_startup(int databases, LWLock *lock);

/*
 * Take a ticket now: returns 0 and fills *ticket, or the microseconds after
 * which it is worth asking again.
 */
extern int64 fini_throttle_take(FiniThrottleClass class, FiniTicket *ticket);

/*
 * Take a ticket, waiting interruptibly.  Raises FINI_ERRCODE_THROTTLED when
 * the wait would pass max_wait_ms.
 */
extern bool fini_throttle_wait(FiniTicket *ticket, int max_wait_ms);

/* the request has ended; the ticket counts for one more window */
extern void fini_throttle_give_back(FiniTicket *ticket);

/* nothing was sent after all; the ticket does not count */
extern void fini_throttle_cancel(FiniTicket *ticket);

/* how many places of the window are taken, and for how long nobody may send after a 429; either may be NULL */
extern int	fini_throttle_in_use(int64 *held_us);

/*
 * Microseconds until the n-th request of the queue from now can leave, if the
 * queue has n of them and others little; a ticket is held for held_us.
 * *closed: how long nobody may send.
 */
extern int64 fini_throttle_forecast(int limit, int64 window_us, int64 held_us, int64 n, int64 *closed);

/* the gateway said 429: nobody of the company sends for this long */
extern void fini_throttle_hold(int64 duration_us);

/* fini.resume: that is over now */
extern void fini_throttle_resume(void);

#endif							/* FINI_THROTTLE_H */
