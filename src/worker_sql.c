/*
 * worker_sql.c
 *		What SQL can ask of the worker and see of it.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "http.h"
#include "shared.h"
#include "wait.h"

PG_FUNCTION_INFO_V1(fini_sql_wake);
PG_FUNCTION_INFO_V1(fini_sql_primary);
PG_FUNCTION_INFO_V1(fini_sql_cluster);
PG_FUNCTION_INFO_V1(fini_sql_worker);
PG_FUNCTION_INFO_V1(fini_sql_resume_endpoints);
PG_FUNCTION_INFO_V1(fini_sql_wait_for_settle);

/* fini._wake(): at commit; without a worker it does nothing, so that scripts run anywhere */
Datum
fini_sql_wake(PG_FUNCTION_ARGS)
{
	if (fini_shared_my_slot() != NULL)
		fini_shared_wake_at_commit();
	PG_RETURN_VOID();
}

/* fini._primary(function): before a write, whose own error would not say so plainly */
Datum
fini_sql_primary(PG_FUNCTION_ARGS)
{
	PreventCommandDuringRecovery(psprintf("fini.%s()", text_to_cstring(PG_GETARG_TEXT_PP(0))));
	PG_RETURN_VOID();
}

Datum
fini_sql_resume_endpoints(PG_FUNCTION_ARGS)
{
	FiniSlotShared *slot = fini_shared_my_slot();

	if (slot != NULL)
		pg_atomic_write_u32(&slot->resume, 1);
	PG_RETURN_VOID();
}

/*
 * fini._wait_for_settle(serial, timeout_ms): the serial of settled work as soon
 * as it differs from the one given, or when the time is up.
 */
Datum
fini_sql_wait_for_settle(PG_FUNCTION_ARGS)
{
	int64		known = PG_GETARG_INT64(0);
	int64		deadline = fini_monotonic_us() + (int64) PG_GETARG_INT32(1) * 1000;
	FiniSlotShared *slot = fini_shared_require_slot();
	int64		serial;

	fini_shared_refuse_worker();
	ConditionVariablePrepareToSleep(&slot->changed);
	for (;;)
	{
		int64		left = deadline - fini_monotonic_us();

		LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
		serial = (int64) slot->settled_serial;
		LWLockRelease(fini_shared_slot_lock(slot));
		if (serial != known || left <= 0)
			break;
		(void) ConditionVariableTimedSleep(&slot->changed, Max(1, left / 1000), fini_wait_event(FINI_WAIT_SETTLE));
	}
	ConditionVariableCancelSleep();
	PG_RETURN_INT64(serial);
}

/*
 * fini._cluster(): the system identifier, where the data lies (its path and the
 * inode of a file that is never written again, which a copy does not share),
 * the timeline (null during recovery), and whether this server streamed from a
 * primary when it was a standby.
 */
Datum
fini_sql_cluster(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false};
	struct stat st;
	const char *conninfo = GetConfigOption("primary_conninfo", true, false);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (stat("PG_VERSION", &st) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s\": %m", "PG_VERSION")));
	values[0] = Int64GetDatum((int64) GetSystemIdentifier());
	values[1] = CStringGetTextDatum(psprintf("%s:%llu", DataDir, (unsigned long long) st.st_ino));
	nulls[2] = RecoveryInProgress();
	values[2] = nulls[2] ? (Datum) 0 : Int32GetDatum((int32) GetWALInsertionTimeLine());
	values[3] = BoolGetDatum(conninfo != NULL && conninfo[0] != '\0');
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* fini._worker(): one row, nulls where there is nothing to tell */
Datum
fini_sql_worker(PG_FUNCTION_ARGS)
{
	static const char *const states[] = {"stopped", "waiting", "idle", "busy"};
	FiniSlotShared *slot = fini_shared_my_slot();
	TupleDesc	desc;
	Datum		values[7];
	bool		nulls[7];
	char		last_error[FINI_MAX_MESSAGE];

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	memset(nulls, true, sizeof(nulls));
	if (slot != NULL)
	{
		LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
		values[0] = Int32GetDatum(slot->worker_pid);
		nulls[0] = slot->worker_pid == 0;
		values[1] = PointerGetDatum(states[slot->worker_state]);
		values[2] = TimestampTzGetDatum(slot->token_expires_at);
		nulls[2] = slot->token[0] == '\0' || slot->token_expires_us < fini_monotonic_us();
		values[3] = TimestampTzGetDatum(slot->key_fetched_at);
		nulls[3] = slot->public_key_len == 0;
		values[4] = Int64GetDatum(slot->clock_offset_ms);
		nulls[4] = slot->key_fetched_at == 0;
		strlcpy(last_error, slot->last_error, sizeof(last_error));
		values[6] = TimestampTzGetDatum(slot->last_error_at);
		nulls[6] = last_error[0] == '\0';
		LWLockRelease(fini_shared_slot_lock(slot));

		nulls[1] = false;
		values[1] = CStringGetTextDatum((const char *) DatumGetPointer(values[1]));
		if (!nulls[4])
		{
			Interval   *difference = palloc0(sizeof(Interval));

			difference->time = DatumGetInt64(values[4]) * 1000;
			values[4] = IntervalPGetDatum(difference);
		}
		nulls[5] = nulls[6];
		values[5] = CStringGetTextDatum(last_error);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
