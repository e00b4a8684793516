/*
 * reconcile.c
 *		fini.reconcile and fini.start_reconcile.
 *
 * The first does the whole run in its caller's session and transaction; the
 * second leaves it to the worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "direct.h"
#include "query.h"
#include "reconcile.h"

PG_FUNCTION_INFO_V1(fini_sql_reconcile);
PG_FUNCTION_INFO_V1(fini_sql_start_reconcile);

static void read_pages(FiniReconcile *run, FiniSlotShared *slot);
static void judge(FiniReconcile *run);
static Datum result_of(FunctionCallInfo fcinfo, const FiniReconcile *run);

Datum
fini_sql_reconcile(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	FiniSlotShared *slot;
	FiniReconcile *run;

	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("fini.reconcile would compare FINI of now with rows of before"),
				 errdetail("The transaction's isolation level does not let it see what is committed meanwhile."),
				 errhint("Call it at isolation level read committed.")));
	slot = fini_direct_begin();
	SPI_connect();
	MemoryContextSwitchTo(context);
	run = fini_reconcile_begin(PG_GETARG_OID(0), text_to_cstring(PG_GETARG_TEXT_PP(1)), false);
	SPI_finish();
	read_pages(run, slot);
	judge(run);
	return result_of(fcinfo, run);
}

Datum
fini_sql_start_reconcile(PG_FUNCTION_ARGS)
{
	FiniReconcile *run;
	int64		run_id;

	(void) fini_direct_begin();
	fini_direct_require_armed();
	SPI_connect();
	run = fini_reconcile_begin(PG_GETARG_OID(0), text_to_cstring(PG_GETARG_TEXT_PP(1)), true);
	run_id = run->run_id;
	SPI_finish();
	fini_shared_wake_at_commit();
	PG_RETURN_INT64(run_id);
}

/* every piece has an SPI connection of its own, and so leaves no memory behind */
static void
read_pages(FiniReconcile *run, FiniSlotShared *slot)
{
	while (run->phase == FINI_RECONCILE_PAGES)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);
		FiniCall   *call = fini_query_page(run->ipo_id, 0, NULL, NULL, run->pages.n > 0 ? run->pages.cursor : NULL);

		fini_direct_perform(call, slot);
		if (!fini_answer_is_page(call->answer))
			fini_call_raise(call);
		SPI_connect();
		fini_reconcile_take_page(run, call->answer);
		SPI_finish();
		fini_call_free(call);
		MemoryContextSwitchTo(old);
	}
}

static void
judge(FiniReconcile *run)
{
	bool		last = false;

	while (!last)
	{
		CHECK_FOR_INTERRUPTS();
		SPI_connect();
		last = fini_reconcile_judge(run);
		if (last)
		{
			fini_reconcile_save(run);
			fini_reconcile_end(run->run_id, "finished", NULL);
		}
		SPI_finish();
	}
}

/* run_id, local, remote, matched, discrepancies, started_at, finished_at; in the current context */
static Datum
result_of(FunctionCallInfo fcinfo, const FiniReconcile *run)
{
	int64		numbers[] = {run->run_id, run->local, run->remote, run->matched, run->discrepancies};
	Datum		columns[7];
	bool		nulls[7] = {false};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	for (size_t i = 0; i < lengthof(numbers); i++)
		columns[i] = Int64GetDatum(numbers[i]);
	columns[5] = TimestampTzGetDatum(run->started_at);
	columns[6] = TimestampTzGetDatum(GetCurrentTimestamp());
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), columns, nulls));
}
