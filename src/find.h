/*
 * find.h
 *		Finding out what became of requests in doubt (design.md section 3).
 *
 * One look at a time for each IPO; it serves every flight of that IPO that is
 * in doubt when it starts, and holds up no other IPO's.
 */
#ifndef FINI_FIND_H
#define FINI_FIND_H

#include "postgres.h"

#include "http.h"
#include "shared.h"

/* start or continue looks for what is in doubt */
extern void fini_find_service(FiniSlotShared *slot);

/* a page arrived; false when the request is not ours */
extern bool fini_find_completed(FiniSlotShared *slot, FiniHttpRequest *http);

/* milliseconds until it wants to be called again; -1: it waits for nothing but what wakes the worker anyway */
extern long fini_find_timeout(void);

/* is a page under way? */
extern bool fini_find_busy(void);

/* fini.resume: queries may be used again if they were stopped, and nothing waits for its pause to end */
extern void fini_find_resume(void);

#endif							/* FINI_FIND_H */
