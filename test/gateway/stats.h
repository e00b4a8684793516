/*
 * stats.h
 *		What the gateway counts, and the last refusals.
 *
 * One lock of this module guards all of it; any thread may call.
 */
#ifndef GW_STATS_H
#define GW_STATS_H

#include "text.h"

typedef enum Counter
{
	COUNT_ENTRIES,				/* entries of processed batches */
	COUNT_ACCEPTED,				/* adds that became a record */
	COUNT_REJECTED,				/* entries answered with an exception */
	COUNT_CHANGED,
	COUNT_INVALIDATED,
	COUNT_OUT_OF_ORDER,			/* change or invalidate without an active record */
	COUNT_DUPLICATE_ADDS,		/* adds accepted while a record of that ownRef was active */
	COUNT_TOKENS,
	COUNT_META,
	COUNT_REPEATED_IDS,
	COUNT_CONFIRMED,			/* funding whose status a confirmation has changed */
	COUNT_CONFIRMED_AGAIN,		/* confirmations of what had that status already */
	COUNT_CONTRADICTED,			/* confirmations of the contrary, refused */
	COUNTERS
} Counter;

extern void gw_stats_add(Counter counter, int64_t n);
extern void gw_stats_request(const char *endpoint);
extern void gw_stats_refusal(const char *endpoint, unsigned http, const char *code, const char *message);
extern void gw_stats_fault(const char *action);
extern void gw_stats_reset(void);
extern json_t *gw_stats_report(void);
extern json_t *gw_stats_refusals(void);

#endif
