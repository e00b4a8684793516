/*
 * outbox_append.c
 *		New operations, and their places in the queue, by the access methods alone.
 *
 * Of a single INSERT most is what surrounds it.  So names are not looked up,
 * columns not compared and indexes not described again for each statement: an
 * executor's state would cost as much as writing the two rows.  Everything that
 * is kept goes with any news of the tables, their indexes or the sequence; the
 * news arrive with the locks that are taken first, as they do for the
 * executor.  Relations are opened and locked each time.
 *
 * Indexes that need an expression, a condition or anything else that is not
 * known here are filled by the executor's own function, with the search_path
 * pinned: functions of somebody's may run.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "commands/sequence.h"
#include "executor/executor.h"
#include "nodes/primnodes.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "identity.h"
#include "outbox.h"
#include "outbox_append.h"
#include "outbox_store.h"

/* rows that are handed to the table at once, and listed by one row of the queue */
#define ROWS_AT_ONCE	1000

/* IPOs of which the operations are gathered for that */
#define MAX_RUNS		64

/* a table with more indexes is left to the executor */
#define MAX_INDEXES		8

typedef struct KnownIndex
{
	Oid			relid;
	IndexInfo  *info;
	IndexUniqueCheck unique;
} KnownIndex;

/* what is kept of a table */
typedef struct Known
{
	Oid			relid;
	bool		plain;			/* all its indexes are below */
	int			nindexes;		/* those that take entries */
	KnownIndex	indexes[MAX_INDEXES];
} Known;

static struct
{
	bool		found;			/* OIDs are right */
	bool		described;		/* and the indexes */
	uint64		news;			/* grows with all that is invalidated */
	MemoryContext context;		/* of what the descriptions point to */
	Oid			sequence;
	Known		submission;
	Known		queue;
}			known;

/* operations of an IPO that are to be listed by one row of the queue */
typedef struct Run
{
	const char *ipo_id;
	int			n;
	int			room;
	int64	   *ids;
} Run;

/* what one call has to enqueue */
typedef struct Enqueued
{
	Datum		operation;
	MemoryContext context;
	int			nruns;
	int			last;			/* the run of the last operation: the next may be of the same */
	Run			runs[MAX_RUNS];
} Enqueued;

/* a table that is being written to */
typedef struct Opened
{
	Known		known;			/* as it was when it was opened */
	Relation	rel;
	Relation	indexes[MAX_INDEXES];
	FiniStoreTable executor;	/* unless it is plain */
	TupleTableSlot **slots;
} Opened;

static bool is_given(bool is_queue, AttrNumber attnum);
static void fill_operation(TupleTableSlot *slot, Datum id, Oid relid, Datum own_ref, Datum ipo_id, Datum operation, Datum state, Datum now);
static void list_operation(Opened *queue, Enqueued *enqueued, const char *ipo_id, int64 id);
static Run *run_of(Enqueued *enqueued, const char *ipo_id);
static void write_runs(Opened *queue, Enqueued *enqueued);
static void fill_queued(TupleTableSlot *slot, const Run *run, Datum operation);
static void open_tables(Opened *submission, Opened *queue);
static void find(void);
static void describe(Known *table, Relation rel);
static bool takes_new_rows(const IndexInfo *info, bool is_queue);
static bool describe_index(KnownIndex *index, Relation rel, IndexInfo *info);
static bool has_own_functions(Relation rel);
static void open_indexes(Opened *table);
static void make_slots(Opened *table, int n);
static void close_table(Opened *table, int n);
static void insert_rows(Opened *table, int n);
static void insert_entries(Opened *table, TupleTableSlot *slot);
static void on_relation(Datum arg, Oid relid);
static bool concerns(const Known *table, Oid relid);
static void on_schema(Datum arg, int cache_id, uint32 hash_value);
static void forget(void);

void
fini_append(Oid relid, const char *operation, int n, char **own_refs, char **ipo_ids)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini new operations", ALLOCSET_DEFAULT_SIZES);
	MemoryContext rows = n > ROWS_AT_ONCE ? AllocSetContextCreate(context, "fini portion", ALLOCSET_DEFAULT_SIZES) : context;
	MemoryContext old = MemoryContextSwitchTo(context);
	int			at_once = Min(n, ROWS_AT_ONCE);
	Enqueued	enqueued = {.operation = CStringGetTextDatum(operation), .context = context};
	Datum		state = CStringGetTextDatum("queued");
	Datum		now = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	Oid			sequence;
	Opened		submission;
	Opened		queue;
	FiniIdentity saved;
	bool		plain;

	open_tables(&submission, &queue);
	plain = submission.known.plain && queue.known.plain;
	if (!plain)
		fini_identity_enter_extension(&saved);
	sequence = known.sequence;
	make_slots(&submission, at_once);
	make_slots(&queue, 1);
	MemoryContextSwitchTo(rows);
	for (int i = 0; i < n;)
	{
		int			filled;

		for (filled = 0; filled < at_once && i < n; filled++, i++)
		{
			int64		id = nextval_internal(sequence, false);

			fill_operation(submission.slots[filled], Int64GetDatum(id), relid, CStringGetTextDatum(own_refs[i]),
						   CStringGetTextDatum(ipo_ids[i]), enqueued.operation, state, now);
			list_operation(&queue, &enqueued, ipo_ids[i], id);
		}
		insert_rows(&submission, filled);
		if (rows != context)
			MemoryContextReset(rows);
		CHECK_FOR_INTERRUPTS();
	}
	write_runs(&queue, &enqueued);
	if (!plain)
		fini_identity_leave(&saved);
	MemoryContextSwitchTo(context);
	close_table(&queue, 1);
	close_table(&submission, at_once);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	CommandCounterIncrement();
}

/* may there be anything in this column of a new row?  As fill_operation and fill_queued have it */
static bool
is_given(bool is_queue, AttrNumber attnum)
{
	int			column = attnum - 1;

	if (is_queue)
		return column != FINI_QUEUE_NOT_BEFORE;
	return (column >= FINI_SUBMISSION_ID && column <= FINI_SUBMISSION_STATE) || column == FINI_SUBMISSION_ATTEMPTS ||
		column == FINI_SUBMISSION_CREATED_AT || column == FINI_SUBMISSION_STRAY;
}

static void
fill_operation(TupleTableSlot *slot, Datum id, Oid relid, Datum own_ref, Datum ipo_id, Datum operation, Datum state, Datum now)
{
	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, sizeof(bool) * slot->tts_tupleDescriptor->natts);
	fini_store_set(slot, FINI_SUBMISSION_ID, id, false);
	fini_store_set(slot, FINI_SUBMISSION_RELATION, ObjectIdGetDatum(relid), false);
	fini_store_set(slot, FINI_SUBMISSION_OWN_REF, own_ref, false);
	fini_store_set(slot, FINI_SUBMISSION_IPO_ID, ipo_id, false);
	fini_store_set(slot, FINI_SUBMISSION_OPERATION, operation, false);
	fini_store_set(slot, FINI_SUBMISSION_STATE, state, false);
	fini_store_set(slot, FINI_SUBMISSION_ATTEMPTS, Int32GetDatum(0), false);
	fini_store_set(slot, FINI_SUBMISSION_CREATED_AT, now, false);
	fini_store_set(slot, FINI_SUBMISSION_STRAY, BoolGetDatum(false), false);
	ExecStoreVirtualTuple(slot);
}

/* ids come in their order, and so they are listed */
static void
list_operation(Opened *queue, Enqueued *enqueued, const char *ipo_id, int64 id)
{
	Run		   *run = run_of(enqueued, ipo_id);

	if (run == NULL || run->n == ROWS_AT_ONCE)
	{
		write_runs(queue, enqueued);
		run = run_of(enqueued, ipo_id);
	}
	if (run->n == run->room)
	{
		run->room = run->room == 0 ? 1 : Min(run->room * 4, ROWS_AT_ONCE);
		run->ids = run->ids == NULL ? MemoryContextAlloc(enqueued->context, sizeof(int64) * run->room) :
			repalloc(run->ids, sizeof(int64) * run->room);
	}
	run->ids[run->n++] = id;
}

/* NULL: there are too many */
static Run *
run_of(Enqueued *enqueued, const char *ipo_id)
{
	Run		   *run;

	for (int i = 0; i < enqueued->nruns; i++)
	{
		int			at = (enqueued->last + i) % enqueued->nruns;

		if (strcmp(enqueued->runs[at].ipo_id, ipo_id) == 0)
		{
			enqueued->last = at;
			return &enqueued->runs[at];
		}
	}
	if (enqueued->nruns == MAX_RUNS)
		return NULL;
	enqueued->last = enqueued->nruns;
	run = &enqueued->runs[enqueued->nruns++];
	run->ipo_id = ipo_id;
	run->n = 0;
	return run;
}

static void
write_runs(Opened *queue, Enqueued *enqueued)
{
	for (int i = 0; i < enqueued->nruns; i++)
	{
		fill_queued(queue->slots[0], &enqueued->runs[i], enqueued->operation);
		insert_rows(queue, 1);
	}
	enqueued->nruns = enqueued->last = 0;
}

static void
fill_queued(TupleTableSlot *slot, const Run *run, Datum operation)
{
	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, sizeof(bool) * slot->tts_tupleDescriptor->natts);
	fini_store_set(slot, FINI_QUEUE_IPO_ID, CStringGetTextDatum(run->ipo_id), false);
	fini_store_set(slot, FINI_QUEUE_OPERATION, operation, false);
	fini_store_set(slot, FINI_QUEUE_ID, Int64GetDatum(run->ids[0]), false);
	fini_store_set(slot, FINI_QUEUE_N, Int32GetDatum(run->n), false);
	if (run->n > 1)
		fini_store_set(slot, FINI_QUEUE_IDS, fini_outbox_int8_array(run->n, run->ids), false);
	ExecStoreVirtualTuple(slot);
}

/*
 * The tables' locks come first: with them arrives what others have changed, and
 * from then on nobody takes an index away or expects entries in a new one
 * without waiting for us.
 */
static void
open_tables(Opened *submission, Opened *queue)
{
	static bool registered = false;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(on_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, on_schema, (Datum) 0);
		registered = true;
	}
	if (!known.found)
		find();
	submission->rel = table_open(known.submission.relid, RowExclusiveLock);
	queue->rel = table_open(known.queue.relid, RowExclusiveLock);
	if (!known.described)
	{
		uint64		before = known.news;

		/* what an index of somebody's calls might have led here again: the old description goes with the transaction */
		if (known.context != NULL)
			MemoryContextSetParent(known.context, TopTransactionContext);
		known.context = NULL;
		known.context = AllocSetContextCreate(CacheMemoryContext, "fini outbox", ALLOCSET_SMALL_SIZES);
		describe(&known.submission, submission->rel);
		describe(&known.queue, queue->rel);
		/* else it is good for this once */
		known.described = before == known.news;
	}
	submission->known = known.submission;
	queue->known = known.queue;
	open_indexes(submission);
	open_indexes(queue);
}

static void
find(void)
{
	uint64		before = known.news;

	known.submission.relid = fini_store_relid("table", "submission");
	known.queue.relid = fini_store_relid("table", "queue");
	known.sequence = fini_store_relid("sequence", "submission_id_seq");
	known.found = before == known.news;
}

static void
describe(Known *table, Relation rel)
{
	bool		is_queue = table == &known.queue;
	MemoryContext old = MemoryContextSwitchTo(known.context);
	ListCell   *cell;

	fini_store_check_columns(rel, is_queue);
	table->plain = true;
	table->nindexes = 0;
	foreach(cell, RelationGetIndexList(rel))
	{
		Relation	index = index_open(lfirst_oid(cell), RowExclusiveLock);
		IndexInfo  *info = BuildIndexInfo(index);

		if (info->ii_ReadyForInserts && takes_new_rows(info, is_queue))
		{
			if (table->nindexes == MAX_INDEXES)
				table->plain = false;
			else
				table->plain &= describe_index(&table->indexes[table->nindexes++], index, info);
		}
		index_close(index, RowExclusiveLock);
	}
	MemoryContextSwitchTo(old);
}

/* an index of rows in which something is not null, which in new ones always is, need not be opened */
static bool
takes_new_rows(const IndexInfo *info, bool is_queue)
{
	ListCell   *cell;

	foreach(cell, info->ii_Predicate)
	{
		NullTest   *test = lfirst(cell);
		Var		   *column = IsA(test, NullTest) ? (Var *) test->arg : NULL;

		if (column != NULL && IsA(column, Var) && column->varattno > 0 && test->nulltesttype == IS_NOT_NULL && !test->argisrow &&
			!is_given(is_queue, column->varattno))
			return false;
	}
	return true;
}

/* false: it takes more than is known here */
static bool
describe_index(KnownIndex *index, Relation rel, IndexInfo *info)
{
	index->relid = RelationGetRelid(rel);
	index->info = info;
	index->unique = info->ii_Unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO;
	return info->ii_Predicate == NIL && info->ii_Expressions == NIL && info->ii_ExclusionOps == NULL &&
		(!info->ii_Unique || rel->rd_index->indimmediate) &&
		(rel->rd_rel->relam == BTREE_AM_OID || rel->rd_rel->relam == HASH_AM_OID) && !has_own_functions(rel);
}

/* are its keys compared, or hashed, by functions that are not PostgreSQL's?  They are the first of both access methods */
static bool
has_own_functions(Relation rel)
{
	bool		own = false;

	for (AttrNumber i = 1; i <= IndexRelationGetNumberOfKeyAttributes(rel); i++)
		own |= index_getprocid(rel, i, 1) >= FirstNormalObjectId;
	return own;
}

static void
open_indexes(Opened *table)
{
	if (!table->known.plain)
		fini_store_open_table(&table->executor, table->rel);
	for (int i = 0; table->known.plain && i < table->known.nindexes; i++)
		table->indexes[i] = index_open(table->known.indexes[i].relid, RowExclusiveLock);
}

static void
make_slots(Opened *table, int n)
{
	table->slots = palloc(sizeof(TupleTableSlot *) * n);
	for (int i = 0; i < n; i++)
		table->slots[i] = table_slot_create(table->rel, NULL);
}

/* the tables' locks stay */
static void
close_table(Opened *table, int n)
{
	for (int i = 0; i < n; i++)
		ExecDropSingleTupleTableSlot(table->slots[i]);
	if (table->known.plain)
	{
		for (int i = 0; i < table->known.nindexes; i++)
			index_close(table->indexes[i], RowExclusiveLock);
		table_close(table->rel, NoLock);
	}
	else
		fini_store_close_table(&table->executor);
}

static void
insert_rows(Opened *table, int n)
{
	CommandId	command = GetCurrentCommandId(true);

	if (n == 1)
		table_tuple_insert(table->rel, table->slots[0], command, 0, NULL);
	else
		table_multi_insert(table->rel, table->slots, n, command, 0, NULL);
	for (int i = 0; i < n; i++)
	{
		if (table->known.plain)
			insert_entries(table, table->slots[i]);
		else
		{
			list_free(fini_compat_insert_index_tuples(table->executor.result, table->slots[i], table->executor.estate, false,
													  FINI_COMPAT_ALL_INDEXES));
			ResetPerTupleExprContext(table->executor.estate);
		}
	}
}

static void
insert_entries(Opened *table, TupleTableSlot *slot)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	for (int i = 0; i < table->known.nindexes; i++)
	{
		const KnownIndex *index = &table->known.indexes[i];

		FormIndexDatum(index->info, slot, NULL, values, isnull);
		index_insert(table->indexes[i], values, isnull, &slot->tts_tid, table->rel, index->unique, false, index->info);
	}
}

/* news may come with any lock: what is in use stays where it is until the next time */
static void
on_relation(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == known.sequence || concerns(&known.submission, relid) || concerns(&known.queue, relid))
		forget();
}

static bool
concerns(const Known *table, Oid relid)
{
	bool		does = relid == table->relid;

	for (int i = 0; i < table->nindexes && !does; i++)
		does = relid == table->indexes[i].relid;
	return does;
}

static void
on_schema(Datum arg, int cache_id, uint32 hash_value)
{
	forget();
}

static void
forget(void)
{
	known.found = known.described = false;
	known.news++;
}
