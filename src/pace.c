/*
 * pace.c
 *		Measuring the pace of the queue, and estimating its end.
 *
 * Two things bound the pace, and the slower counts.  The throttle's bound is
 * exact: its stamps say when the next requests may leave, and after them the
 * same sequence repeats with each window.  The other is what FINI has been
 * seen to take, which knows of slow answers, of requests that fail, of other
 * traffic of the company and of a gateway that allows less than we think.
 *
 * That is measured only while there is a backlog, for a queue that is empty
 * most of the time says nothing of how fast it could be.  The time goes into
 * buckets, of which the last BUCKETS count, two windows of the throttle in
 * all, so that its bursts even out.  A bucket in which nothing was decided is
 * not closed: the longer FINI is silent, the slower the pace becomes, without
 * what was known before being forgotten.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "utils/timestamp.h"

#include "http.h"
#include "pace.h"
#include "settings.h"
#include "throttle.h"

#define BUCKETS			24
#define MIN_BUCKET_US	INT64CONST(250000)
#define LONGEST_US		(INT64CONST(3650) * 86400 * 1000000)

typedef struct Bucket
{
	int64		us;
	int64		operations;
} Bucket;

/* the worker's; the bucket that is open is in the slot */
static Bucket ring[BUCKETS];
static int	next_bucket = 0;

PG_FUNCTION_INFO_V1(fini_sql_gateway_now);
PG_FUNCTION_INFO_V1(fini_sql_pace);
PG_FUNCTION_INFO_V1(fini_sql_estimate);

static void close_bucket(FiniSlotShared *slot, int64 now);
static FiniPaceShared current_pace(void);
static int64 estimate(const FiniPaceShared *pace, int64 operations, int64 requests);

void
fini_pace_publish(FiniSlotShared *slot)
{
	FiniPaceShared *pace = &slot->pace;
	int64		window_us = (int64) fini_guc_rate_window * 1000;

	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	/* what was measured under another throttle says nothing */
	if (pace->batch_size != fini_guc_batch_size || pace->rate_limit != fini_guc_rate_limit || pace->rate_window_us != window_us)
	{
		memset(ring, 0, sizeof(ring));
		pace->closed_us = 0;
		pace->closed_operations = 0;
		pace->open_since_us = fini_monotonic_us();
		pace->open_operations = 0;
	}
	pace->batch_size = fini_guc_batch_size;
	pace->rate_limit = fini_guc_rate_limit;
	pace->rate_window_us = window_us;
	pace->margin_us = (int64) fini_guc_deadline_margin * 1000;
	LWLockRelease(fini_shared_slot_lock(slot));
}

void
fini_pace_backlog(FiniSlotShared *slot, bool more)
{
	int64		now = fini_monotonic_us();

	if (slot->pace.backlog == more)
		return;
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	/* a bucket cut short says too little: a few requests may have been decided all at once, or none yet */
	slot->pace.backlog = more;
	slot->pace.open_since_us = now;
	slot->pace.open_operations = 0;
	LWLockRelease(fini_shared_slot_lock(slot));
}

void
fini_pace_settled(FiniSlotShared *slot, int operations)
{
	int64		now = fini_monotonic_us();

	if (slot == NULL || !slot->pace.backlog || operations == 0)
		return;
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->pace.open_operations += operations;
	if (now - slot->pace.open_since_us >= Max(slot->pace.rate_window_us * 2 / BUCKETS, MIN_BUCKET_US))
		close_bucket(slot, now);
	LWLockRelease(fini_shared_slot_lock(slot));
}

void
fini_pace_request(FiniSlotShared *slot, const FiniTicket *ticket)
{
	int64		held_us = fini_monotonic_us() - ticket->taken_us;

	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->pace.held_us += (held_us - slot->pace.held_us) / (slot->pace.held_us == 0 ? 1 : 8);
	LWLockRelease(fini_shared_slot_lock(slot));
}

TimestampTz
fini_pace_gateway_now(FiniSlotShared *slot)
{
	TimestampTz now = GetCurrentTimestamp();

	if (slot != NULL)
	{
		LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
		if (slot->key_fetched_at != 0)
			now += slot->clock_offset_ms * 1000;
		LWLockRelease(fini_shared_slot_lock(slot));
	}
	return now;
}

Datum
fini_sql_gateway_now(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(fini_pace_gateway_now(fini_shared_my_slot()));
}

/* fini._pace(): what the queue works with: batch_size, and how long before a deadline sending ends */
Datum
fini_sql_pace(PG_FUNCTION_ARGS)
{
	FiniPaceShared pace = current_pace();
	Interval   *margin = palloc0(sizeof(Interval));
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	margin->time = pace.margin_us;
	values[0] = Int32GetDatum(pace.batch_size);
	values[1] = IntervalPGetDatum(margin);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* fini._estimate(operations, requests): how long from now until so many are decided */
Datum
fini_sql_estimate(PG_FUNCTION_ARGS)
{
	FiniPaceShared pace = current_pace();
	Interval   *result = palloc0(sizeof(Interval));

	result->time = estimate(&pace, PG_GETARG_INT64(0), PG_GETARG_INT64(1));
	PG_RETURN_INTERVAL_P(result);
}

/* lock held */
static void
close_bucket(FiniSlotShared *slot, int64 now)
{
	FiniPaceShared *pace = &slot->pace;
	Bucket	   *bucket = &ring[next_bucket];

	next_bucket = (next_bucket + 1) % BUCKETS;
	pace->closed_us -= bucket->us;
	pace->closed_operations -= bucket->operations;
	bucket->us = now - pace->open_since_us;
	bucket->operations = pace->open_operations;
	pace->closed_us += bucket->us;
	pace->closed_operations += bucket->operations;
	pace->open_since_us = now;
	pace->open_operations = 0;
}

/* what is published; where no worker has published anything, the settings of this session */
static FiniPaceShared
current_pace(void)
{
	FiniSlotShared *slot = fini_shared_my_slot();
	FiniPaceShared pace = {0};

	if (slot != NULL)
	{
		LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
		pace = slot->pace;
		LWLockRelease(fini_shared_slot_lock(slot));
	}
	if (pace.batch_size == 0)
	{
		pace.batch_size = fini_guc_batch_size;
		pace.rate_limit = fini_guc_rate_limit;
		pace.rate_window_us = (int64) fini_guc_rate_window * 1000;
		pace.margin_us = (int64) fini_guc_deadline_margin * 1000;
	}
	return pace;
}

static int64
estimate(const FiniPaceShared *pace, int64 operations, int64 requests)
{
	int64		closed;
	int64		throttled = fini_throttle_forecast(pace->rate_limit, pace->rate_window_us, pace->held_us, requests, &closed);
	int64		us = pace->closed_us;
	int64		decided = pace->closed_operations;
	double		measured = 0;

	if (pace->backlog)
	{
		us += fini_monotonic_us() - pace->open_since_us;
		decided += pace->open_operations;
	}
	if (decided > 0 && us > 0)
		measured = (double) operations * (double) us / (double) decided;
	return (int64) Min(Max((double) throttled + (double) pace->held_us, (double) closed + measured), (double) LONGEST_US);
}
