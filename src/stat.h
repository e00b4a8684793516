/*
 * stat.h
 *		Counters and latencies of each endpoint, in shared memory.
 *
 * A database's counters are under a spinlock of their own, held for a few
 * additions; written by whoever made a request, read by fini.stat_endpoint.
 * They outlive a clean restart of the server in a file (stat_file.c).
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

#define FINI_STAT_BUCKETS	100

typedef struct FiniStatCounters
{
	int64		calls;
	int64		errors;
	int64		retries;
	int64		throttled;
	int64		entries;
	int64		bytes;
	int64		total_us;
	int64		histogram[FINI_STAT_BUCKETS];
} FiniStatCounters;

extern Size fini_stat_shmem_size(int databases);
extern void fini_stat_shmem_startup(int databases);

extern void fini_stat_count(const FiniStatCall *call);

/* of a database's slot, without a lock: while no other process runs */
extern FiniStatCounters *fini_stat_counters(int database, FiniEndpointId endpoint);

/*
 * In the postmaster, when memory has been set up, outside any lock: take over
 * what the last clean shutdown left, and leave it again at the next (stat_file.c).
 */
extern void fini_stat_file_startup(void);

#endif							/* FINI_STAT_H */
