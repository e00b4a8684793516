/*
 * stat.c
 *		Counters and latency histograms; fini.stat_endpoint and stat_reset.
 *
 * A histogram has four buckets to the octave, so a percentile read from it is
 * within a fifth of the truth, whatever its size, at 100 counters an endpoint.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/builtins.h"

#include "compat.h"
#include "stat.h"

#define BUCKETS			FINI_STAT_BUCKETS
#define FIRST_OCTAVE	6		/* bucket 0 is below 64 us; the last begins at 31 minutes */

typedef struct StatShared
{
	slock_t		mutex;
	FiniStatCounters endpoint[FINI_ENDPOINT_COUNT];
} StatShared;

static StatShared *stats = NULL;

PG_FUNCTION_INFO_V1(fini_sql_stat_endpoint);
PG_FUNCTION_INFO_V1(fini_sql_stat_reset);

static StatShared *my_stats(void);
static int	bucket_of(int64 us);
static double bucket_start(int bucket);
static double percentile_ms(const FiniStatCounters *counters, double fraction);

Size
fini_stat_shmem_size(int databases)
{
	return mul_size(Max(1, databases), sizeof(StatShared));
}

void
fini_stat_shmem_startup(int databases)
{
	bool		found;

	stats = ShmemInitStruct("fini statistics", fini_stat_shmem_size(databases), &found);
	if (!found)
	{
		memset(stats, 0, fini_stat_shmem_size(databases));
		for (int i = 0; i < databases; i++)
			SpinLockInit(&stats[i].mutex);
	}
}

FiniStatCounters *
fini_stat_counters(int database, FiniEndpointId endpoint)
{
	return &stats[database].endpoint[endpoint];
}

void
fini_stat_count(const FiniStatCall *call)
{
	StatShared *mine = my_stats();
	FiniStatCounters *counters;

	if (mine == NULL)
		return;
	counters = &mine->endpoint[call->endpoint];
	SpinLockAcquire(&mine->mutex);
	counters->calls++;
	counters->errors += call->error;
	counters->retries += call->retry;
	counters->throttled += call->throttled;
	counters->entries += call->entries;
	counters->bytes += call->bytes;
	counters->total_us += call->duration_us;
	counters->histogram[bucket_of(call->duration_us)]++;
	SpinLockRelease(&mine->mutex);
}

/* fini._stat_endpoint(): one row for each endpoint called since the last reset */
Datum
fini_sql_stat_endpoint(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	StatShared *mine = my_stats();

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; mine != NULL && i < FINI_ENDPOINT_COUNT; i++)
	{
		FiniStatCounters c;
		Datum		values[11];
		bool		nulls[11] = {false};
		int			col = 0;

		SpinLockAcquire(&mine->mutex);
		c = mine->endpoint[i];
		SpinLockRelease(&mine->mutex);
		if (c.calls == 0)
			continue;

		values[col++] = CStringGetTextDatum(fini_endpoint(i)->name);
		values[col++] = Int64GetDatum(c.calls);
		values[col++] = Int64GetDatum(c.errors);
		values[col++] = Int64GetDatum(c.retries);
		values[col++] = Int64GetDatum(c.throttled);
		values[col++] = Int64GetDatum(c.entries);
		values[col++] = Int64GetDatum(c.bytes);
		values[col++] = Float8GetDatum((double) c.total_us / (double) c.calls / 1000.0);
		values[col++] = Float8GetDatum(percentile_ms(&c, 0.50));
		values[col++] = Float8GetDatum(percentile_ms(&c, 0.95));
		values[col++] = Float8GetDatum(percentile_ms(&c, 0.99));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

Datum
fini_sql_stat_reset(PG_FUNCTION_ARGS)
{
	StatShared *mine = my_stats();

	PreventCommandDuringRecovery("fini.stat_reset()");
	if (mine != NULL)
	{
		SpinLockAcquire(&mine->mutex);
		memset(mine->endpoint, 0, sizeof(mine->endpoint));
		SpinLockRelease(&mine->mutex);
	}
	PG_RETURN_VOID();
}

static StatShared *
my_stats(void)
{
	FiniSlotShared *slot = fini_shared_my_slot();

	return slot != NULL ? &stats[slot - fini_shared_slot(0)] : NULL;
}

static int
bucket_of(int64 us)
{
	int			octave;
	int			bucket;

	if (us < (1 << FIRST_OCTAVE))
		return 0;
	octave = pg_leftmost_one_pos64((uint64) us);
	bucket = 1 + (octave - FIRST_OCTAVE) * 4 + (int) ((us >> (octave - 2)) & 3);
	return Min(bucket, BUCKETS - 1);
}

/* the shortest duration, in microseconds, that a bucket counts */
static double
bucket_start(int bucket)
{
	int			octave;

	if (bucket == 0)
		return 0;
	octave = FIRST_OCTAVE + (bucket - 1) / 4;
	return (double) (UINT64CONST(1) << octave) * (1.0 + ((bucket - 1) % 4) / 4.0);
}

/* milliseconds that the given fraction of calls took at most, interpolated within a bucket */
static double
percentile_ms(const FiniStatCounters *counters, double fraction)
{
	double		wanted = fraction * (double) counters->calls;
	double		below = 0;

	for (int i = 0; i < BUCKETS; i++)
	{
		double		here = (double) counters->histogram[i];

		if (here > 0 && below + here >= wanted)
		{
			double		start = bucket_start(i);

			return (start + (bucket_start(i + 1) - start) * (wanted - below) / here) / 1000.0;
		}
		below += here;
	}
	return bucket_start(BUCKETS - 1) / 1000.0;
}
