/*
 * funding.h
 *		The worker's confirmations of funding: looked for at FINI, sent, settled.
 *
 * State lives in the worker's memory; what has to survive it is in
 * fini.funding_confirmation before the first byte leaves.  Functions here open
 * transactions of their own, and none is open while the network is awaited.
 */
#ifndef FINI_FUNDING_H
#define FINI_FUNDING_H

#include "postgres.h"

#include "http.h"
#include "shared.h"

/* look, claim and send what can be */
extern void fini_funding_dispatch(FiniSlotShared *slot);

/* a request ended; false when it is not ours */
extern bool fini_funding_completed(FiniSlotShared *slot, FiniHttpRequest *http);

/* an answer that the database would not take when it came */
extern void fini_funding_settle_late(FiniSlotShared *slot);

/* there may be something new; what was stopped may be used again */
extern void fini_funding_work_arrived(void);
extern void fini_funding_resume(void);

/* milliseconds until something of ours becomes due, -1: nothing will by itself */
extern long fini_funding_timeout(void);

/* is a request under way? */
extern bool fini_funding_busy(void);

#endif							/* FINI_FUNDING_H */
