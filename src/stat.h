/*
 * stat.h
 *		Counters and latencies of each endpoint, in shared memory.
 *
 * A database's counters are under a spinlock of their own, held for a few
 * additions; written by whoever made a request, read by fini.stat_endpoint.
 */
#ifndef FINI_STAT_H
#define FINI_STAT_H

#include "postgres.h"

#include "endpoint.h"
#include "shared.h"

typedef struct FiniStatCall
{
	FiniEndpointId endpoint;
	bool		error;			/* no answer, or one that refused the request */
	bool		retry;			/* not the first sending */
	bool		throttled;		/* 429 */
	int			entries;
	int64		bytes;			/* both ways */
	int64		duration_us;
} FiniStatCall;

extern Size fini_stat_shmem_size(int databases);
extern void fini_stat_shmem_startup(int databases);

extern void fini_stat_count(const FiniStatCall *call);

#endif							/* FINI_STAT_H */
