/*
 * outbox.c
 *		Statements of the outbox: preparing, executing, arrays in and texts out.
 *
 * At isolation levels above read committed a transaction's snapshot may be
 * older than the outbox: what has been sent since would look as if it never
 * had been, and a change or withdrawal of it would be lost.  So every statement
 * sees the outbox as it is now.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "outbox.h"
#include "textmap.h"

PG_FUNCTION_INFO_V1(fini_sql_is_mine);

/* a statement on a user's table, by its text and the types of its parameters; so many of them at most */
#define MAX_KEPT	100

typedef struct KeptPlan
{
	const char *key;			/* see kept_key */
	SPIPlanPtr	plan;
} KeptPlan;

static HTAB *kept_plans = NULL;
static int	kept_in_use = 0;

static char *kept_key(const char *sql, int nargs, const Oid *types);
static void forget_plans(void);
static void plan_for_indexes(void);

const char *
fini_outbox_operation_name(FiniOperation operation)
{
	static const char *const names[] = {"add", "change", "invalidate"};

	return names[operation];
}

FiniOperation
fini_outbox_operation(const char *name)
{
	return name[0] == 'a' ? FINI_OPERATION_ADD :
		name[0] == 'c' ? FINI_OPERATION_CHANGE : FINI_OPERATION_INVALIDATE;
}

FiniEndpointId
fini_outbox_endpoint(FiniOperation operation)
{
	static const FiniEndpointId endpoints[] = {FINI_ENDPOINT_ADD, FINI_ENDPOINT_CHANGE, FINI_ENDPOINT_INVALIDATE};

	return endpoints[operation];
}

int
fini_outbox_execute(FiniStatement *statement, Datum *values, const char *nulls, long limit)
{
	int			guc_level = NewGUCNestLevel();
	int			rc;

	plan_for_indexes();
	if (statement->plan == NULL)
	{
		statement->plan = SPI_prepare_cursor(statement->sql, statement->nargs, statement->types,
											 statement->keep_plan ? CURSOR_OPT_GENERIC_PLAN : CURSOR_OPT_CUSTOM_PLAN);
		if (statement->plan == NULL || SPI_keepplan(statement->plan) != 0)
			elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
	}
	rc = SPI_execute_snapshot(statement->plan, values, nulls,
							  IsolationUsesXactSnapshot() ? GetLatestSnapshot() : InvalidSnapshot,
							  InvalidSnapshot, false, true, limit);
	if (rc < 0)
		elog(ERROR, "could not execute: %s", SPI_result_code_string(rc));
	AtEOXact_GUC(false, guc_level);
	return rc;
}

int
fini_outbox_execute_kept(const char *sql, int nargs, Oid *types, Datum *values)
{
	int			guc_level = NewGUCNestLevel();
	char	   *key = kept_key(sql, nargs, types);
	KeptPlan   *kept;
	CachedPlan *planned;
	volatile int rc = 0;
	bool		found;

	plan_for_indexes();
	if (kept_plans != NULL && hash_get_num_entries(kept_plans) >= MAX_KEPT && kept_in_use == 0)
		forget_plans();
	if (kept_plans == NULL)
		kept_plans = fini_textmap_create("fini plans", MAX_KEPT, sizeof(KeptPlan), TopMemoryContext);
	kept = fini_textmap_find(kept_plans, key);
	if (kept == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare_cursor(sql, nargs, types, CURSOR_OPT_GENERIC_PLAN);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
		kept = fini_textmap_enter(kept_plans, MemoryContextStrdup(TopMemoryContext, key), &found);
		kept->plan = plan;
	}
	pfree(key);
	/* planned here, where that is needed, kept in the cache, found there again below */
	planned = SPI_plan_get_cached_plan(kept->plan);
	if (planned != NULL)
		ReleaseCachedPlan(planned, CurrentResourceOwner);
	AtEOXact_GUC(false, guc_level);

	kept_in_use++;
	PG_TRY();
	{
		rc = SPI_execute_plan(kept->plan, values, NULL, false, 0);
	}
	PG_FINALLY();
	{
		kept_in_use--;
	}
	PG_END_TRY();
	return rc;
}

Datum
fini_outbox_text_array(int n, char *const *texts)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(n, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(n, 1));
	int			dims[1] = {n};
	int			lbs[1] = {1};

	for (int i = 0; i < n; i++)
	{
		nulls[i] = texts[i] == NULL;
		values[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(texts[i]);
	}
	return PointerGetDatum(construct_md_array(values, nulls, 1, dims, lbs, TEXTOID, -1, false, TYPALIGN_INT));
}

Datum
fini_outbox_int8_array(int n, const int64 *values)
{
	Datum	   *datums = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		datums[i] = Int64GetDatum(values[i]);
	return PointerGetDatum(construct_array(datums, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

int
fini_outbox_int8s(Datum array, int64 **ids)
{
	ArrayType  *plain = DatumGetArrayTypeP(array);
	Datum	   *values;
	bool	   *nulls;
	int			n;
	int			count = 0;

	deconstruct_array(plain, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &values, &nulls, &n);
	*ids = palloc(sizeof(int64) * Max(1, n));
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i])
			(*ids)[count++] = DatumGetInt64(values[i]);
	}
	pfree(values);
	pfree(nulls);
	if ((Pointer) plain != DatumGetPointer(array))
		pfree(plain);
	return count;
}

int
fini_outbox_compare_ids(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x > y) - (x < y);
}

char *
fini_outbox_column(uint64 row, int column, MemoryContext into)
{
	MemoryContext old = MemoryContextSwitchTo(into);
	char	   *text = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	MemoryContextSwitchTo(old);
	return text;
}

/* fini._is_mine(xid): was it this transaction, savepoints included, that wrote the row? */
Datum
fini_sql_is_mine(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(TransactionIdIsCurrentTransactionId(PG_GETARG_TRANSACTIONID(0)));
}

/* the text is the same when a column has got another type, and a plan takes no other than it was made for */
static char *
kept_key(const char *sql, int nargs, const Oid *types)
{
	StringInfoData key;

	initStringInfo(&key);
	for (int i = 0; i < nargs; i++)
		appendStringInfo(&key, "%u ", types[i]);
	appendStringInfoString(&key, sql);
	return key.data;
}

static void
forget_plans(void)
{
	HASH_SEQ_STATUS status;
	KeptPlan   *kept;

	hash_seq_init(&status, kept_plans);
	while ((kept = hash_seq_search(&status)) != NULL)
	{
		const char *key = kept->key;

		SPI_freeplan(kept->plan);
		(void) hash_search(kept_plans, &key, HASH_REMOVE, NULL);
		pfree(unconstify(char *, key));
	}
}

/* in force while a plan is made, until the statement's end; no compiled code for milliseconds' work */
static void
plan_for_indexes(void)
{
	static const char *const off[] = {"enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_bitmapscan", "jit"};

	for (size_t i = 0; i < lengthof(off); i++)
		(void) set_config_option(off[i], "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}
