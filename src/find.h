/*
 * find.h
 *		Finding out what became of requests in doubt (design.md section 3).
 *
 * One scan at a time: it pages through subscriptions/query for one IPO and
 * serves every flight of that IPO that is in doubt when it starts.
 */
#ifndef FINI_FIND_H
#define FINI_FIND_H

#include "postgres.h"

#include "http.h"
#include "shared.h"

/* start or continue a scan if there is something in doubt */
extern void fini_find_service(FiniSlotShared *slot);

/* a page arrived; false when the request is not ours */
extern bool fini_find_completed(FiniSlotShared *slot, FiniHttpRequest *http);

/* milliseconds until it wants to be called again; -1: it waits for nothing but what wakes the worker anyway */
extern long fini_find_timeout(void);

/* is a page under way? */
extern bool fini_find_busy(void);

#endif							/* FINI_FIND_H */
