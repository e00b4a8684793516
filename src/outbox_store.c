/*
 * outbox_store.c
 *		Rows of fini.submission and fini.queue, read and written one by one.
 *
 * What is done for every record (enqueueing an add, claiming, settling) cost
 * more in the executor than in the tables: plans, function scans, joins, tuple
 * stores.  Here it is the table and index access methods alone, as COPY and the
 * apply worker of logical replication use them.
 *
 * Nothing of this runs users' code, and rights are not looked at: whoever calls
 * acts for the extension's owner.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_store.h"

#define SCHEMA			"fini"

/* so many ids beyond the one that is looked for are read along the index at once */
#define NEIGHBOURS		50

static const char *const submission_columns[] = {
	"id", "relation", "own_ref", "ipo_id", "operation", "state", "record_id", "request_id", "attempts", "error_code",
	"error_message", "not_before", "created_at", "sent_at", "settled_at", "stray"
};
static const char *const queue_columns[] = {"ipo_id", "operation", "id", "not_before", "n", "ids"};

static void open_own_table(FiniStoreTable *table, const char *name, bool is_queue);
static Relation index_on(FiniStoreTable *table, Oid method, const char *const *columns, int ncolumns);
static void changed_meanwhile(void) pg_attribute_noreturn();
static void begin_queue_scan(FiniStore *store, int nkeys, ScanKey keys);
static void make_room(FiniStore *store, BlockNumber block);
static bool next_row(FiniStore *store, IndexScanDesc scan, TupleTableSlot *slot);
static void missing(const char *what) pg_attribute_noreturn();

FiniStore *
fini_store_open(void)
{
	static const char *const id[] = {"id"};
	static const char *const own_ref[] = {"own_ref"};
	static const char *const group[] = {"ipo_id", "operation", "id"};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini store", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	FiniStore  *store = palloc0(sizeof(FiniStore));

	store->context = context;
	open_own_table(&store->submission, "submission", false);
	open_own_table(&store->queue, "queue", true);
	store->snapshot = RegisterSnapshot(GetLatestSnapshot());
	store->by_id = fini_compat_index_beginscan(store->submission.rel, index_on(&store->submission, BTREE_AM_OID, id, lengthof(id)),
											   store->snapshot, 2);
	store->found = fini_store_slot(&store->submission);
	store->seen = fini_store_slot(&store->submission);
	store->blocks = RelationGetNumberOfBlocks(store->submission.rel);
	store->pruned = InvalidBlockNumber;
	store->found_until = PG_INT64_MIN;
	store->by_own_ref = fini_compat_index_beginscan(store->submission.rel, index_on(&store->submission, HASH_AM_OID, own_ref, lengthof(own_ref)),
													store->snapshot, 1);
	store->in_queue = fini_compat_index_beginscan(store->queue.rel, index_on(&store->queue, BTREE_AM_OID, group, lengthof(group)),
												  store->snapshot, 3);
	MemoryContextSwitchTo(old);
	return store;
}

void
fini_store_close(FiniStore *store)
{
	index_endscan(store->by_id);
	index_endscan(store->by_own_ref);
	index_endscan(store->in_queue);
	UnregisterSnapshot(store->snapshot);
	fini_store_close_table(&store->queue);
	fini_store_close_table(&store->submission);
	MemoryContextDelete(store->context);
	CommandCounterIncrement();
}

void
fini_store_open_table(FiniStoreTable *table, Relation rel)
{
	table->rel = rel;
	table->estate = CreateExecutorState();
	table->result = makeNode(ResultRelInfo);
	InitResultRelInfo(table->result, rel, 0, NULL, 0);
	ExecOpenIndices(table->result, false);
	table->edited = fini_store_slot(table);
}

void
fini_store_close_table(FiniStoreTable *table)
{
	/* the slots hold pins */
	ExecResetTupleTable(table->estate->es_tupleTable, false);
	ExecCloseIndices(table->result);
	table_close(table->rel, NoLock);
	FreeExecutorState(table->estate);
}

TupleTableSlot *
fini_store_slot(FiniStoreTable *table)
{
	return table_slot_create(table->rel, &table->estate->es_tupleTable);
}

/*
 * Operations are looked for in the order of their ids, and most are one
 * another's neighbours: a step along the index is a fraction of a descent.
 */
TupleTableSlot *
fini_store_find(FiniStore *store, int64 id)
{
	TupleTableSlot *slot = store->found;

	if (store->found_until < id || store->found_id > id)
	{
		ScanKeyData keys[2];

		store->found_until = id + NEIGHBOURS;
		ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(id));
		ScanKeyInit(&keys[1], 1, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(store->found_until));
		index_rescan(store->by_id, keys, 2, NULL, 0);
		store->found_id = PG_INT64_MIN;
	}
	while (store->found_id < id)
	{
		bool		isnull;

		if (!next_row(store, store->by_id, slot))
		{
			/* the scan is at its end, and would begin anew */
			store->found_until = PG_INT64_MIN;
			return NULL;
		}
		store->found_id = DatumGetInt64(slot_getattr(slot, FINI_SUBMISSION_ID + 1, &isnull));
	}
	return store->found_id == id ? slot : NULL;
}

TupleTableSlot *
fini_store_find_at(FiniStore *store, int64 id, const ItemPointerData *place)
{
	TupleTableSlot *slot = store->seen;
	ItemPointerData tid = *place;
	bool		isnull;

	if (ItemPointerIsValid(&tid) && ItemPointerGetBlockNumber(&tid) < store->blocks)
	{
		make_room(store, ItemPointerGetBlockNumber(&tid));
		if (table_tuple_fetch_row_version(store->submission.rel, &tid, store->snapshot, slot) &&
			DatumGetInt64(slot_getattr(slot, FINI_SUBMISSION_ID + 1, &isnull)) == id)
			return slot;
	}
	return fini_store_find(store, id);
}

void
fini_store_begin_own_ref(FiniStore *store, Datum own_ref)
{
	ScanKeyData key;

	ScanKeyEntryInitialize(&key, 0, 1, HTEqualStrategyNumber, TEXTOID, store->by_own_ref->indexRelation->rd_indcollation[0],
						   F_TEXTEQ, own_ref);
	index_rescan(store->by_own_ref, &key, 1, NULL, 0);
	store->own_ref = own_ref;
}

bool
fini_store_next_of_own_ref(FiniStore *store, TupleTableSlot *slot)
{
	bool		isnull;

	/* the index knows but a hash value */
	while (next_row(store, store->by_own_ref, slot))
	{
		if (DatumGetBool(DirectFunctionCall2Coll(texteq, store->by_own_ref->indexRelation->rd_indcollation[0], store->own_ref,
												 slot_getattr(slot, FINI_SUBMISSION_OWN_REF + 1, &isnull))))
			return true;
	}
	return false;
}

void
fini_store_begin_queue(FiniStore *store, const char *ipo_id, const char *operation, int64 after)
{
	Relation	index = store->in_queue->indexRelation;
	ScanKeyData keys[3];
	MemoryContext old = MemoryContextSwitchTo(store->context);

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, TEXTOID, index->rd_indcollation[0], F_TEXTEQ,
						   CStringGetTextDatum(ipo_id));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, TEXTOID, index->rd_indcollation[1], F_TEXTEQ,
						   CStringGetTextDatum(operation));
	ScanKeyEntryInitialize(&keys[2], 0, 3, BTGreaterStrategyNumber, INT8OID, InvalidOid, F_INT8GT, Int64GetDatum(after));
	begin_queue_scan(store, 3, keys);
	MemoryContextSwitchTo(old);
}

void
fini_store_begin_ipos(FiniStore *store, const char *after, const char *before)
{
	Relation	index = store->in_queue->indexRelation;
	ScanKeyData keys[2];
	int			n = 0;
	MemoryContext old = MemoryContextSwitchTo(store->context);

	if (after != NULL)
		ScanKeyEntryInitialize(&keys[n++], 0, 1, BTGreaterStrategyNumber, TEXTOID, index->rd_indcollation[0], F_TEXT_GT,
							   CStringGetTextDatum(after));
	if (before != NULL)
		ScanKeyEntryInitialize(&keys[n++], 0, 1, BTLessStrategyNumber, TEXTOID, index->rd_indcollation[0], F_TEXT_LT,
							   CStringGetTextDatum(before));
	begin_queue_scan(store, n, keys);
	MemoryContextSwitchTo(old);
}

bool
fini_store_next_in_queue(FiniStore *store, TupleTableSlot *slot)
{
	return next_row(store, store->in_queue, slot);
}

Datum
fini_store_column(TupleTableSlot *slot, int column, bool *isnull)
{
	return slot_getattr(slot, column + 1, isnull);
}

char *
fini_store_text(TupleTableSlot *slot, int column, MemoryContext into)
{
	MemoryContext old = MemoryContextSwitchTo(into);
	bool		isnull;
	Datum		value = slot_getattr(slot, column + 1, &isnull);
	char	   *string = isnull ? NULL : TextDatumGetCString(value);

	MemoryContextSwitchTo(old);
	return string;
}

bool
fini_store_text_is(TupleTableSlot *slot, int column, const char *text)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column + 1, &isnull);
	struct varlena *varlena;

	if (isnull)
		return false;
	varlena = PG_DETOAST_DATUM_PACKED(value);
	return VARSIZE_ANY_EXHDR(varlena) == strlen(text) && memcmp(VARDATA_ANY(varlena), text, strlen(text)) == 0;
}

void
fini_store_list(FiniStore *store, TupleTableSlot *slot, int n, const int64 *ids)
{
	FiniStoreTable *queue = &store->queue;
	TupleTableSlot *edited;
	TM_FailureData failure;

	/* nobody changes it but the worker, who is one */
	if (table_tuple_delete(queue->rel, &slot->tts_tid, GetCurrentCommandId(true), store->snapshot, InvalidSnapshot, false,
						   &failure, false) != TM_Ok)
		changed_meanwhile();
	if (n == 0)
		return;
	edited = fini_store_edit(queue, slot);
	fini_store_set(edited, FINI_QUEUE_ID, Int64GetDatum(ids[0]), false);
	fini_store_set(edited, FINI_QUEUE_N, Int32GetDatum(n), false);
	fini_store_set(edited, FINI_QUEUE_IDS, n > 1 ? fini_outbox_int8_array(n, ids) : (Datum) 0, n == 1);
	ExecStoreVirtualTuple(edited);
	table_tuple_insert(queue->rel, edited, GetCurrentCommandId(true), 0, NULL);
	list_free(fini_compat_insert_index_tuples(queue->result, edited, queue->estate, false, FINI_COMPAT_ALL_INDEXES));
	ResetPerTupleExprContext(queue->estate);
	ExecClearTuple(edited);
}

TM_Result
fini_store_lock(FiniStore *store, TupleTableSlot *slot, bool wait)
{
	TM_FailureData failure;
	ItemPointerData tid = slot->tts_tid;

	return table_tuple_lock(store->submission.rel, &tid, store->snapshot, store->seen, GetCurrentCommandId(true),
							LockTupleNoKeyExclusive, wait ? LockWaitBlock : LockWaitSkip, 0, &failure);
}

TupleTableSlot *
fini_store_edit(FiniStoreTable *table, TupleTableSlot *slot)
{
	TupleTableSlot *edited = table->edited;
	int			natts = slot->tts_tupleDescriptor->natts;

	slot_getallattrs(slot);
	ExecClearTuple(edited);
	memcpy(edited->tts_values, slot->tts_values, natts * sizeof(Datum));
	memcpy(edited->tts_isnull, slot->tts_isnull, natts * sizeof(bool));
	return edited;
}

void
fini_store_set(TupleTableSlot *edited, int column, Datum value, bool isnull)
{
	edited->tts_values[column] = value;
	edited->tts_isnull[column] = isnull;
}

void
fini_store_set_text(TupleTableSlot *edited, int column, const char *text)
{
	fini_store_set(edited, column, text != NULL ? CStringGetTextDatum(text) : (Datum) 0, text == NULL);
}

/*
 * Nobody else changes an operation that is open and that we own, unless he
 * writes to our tables by himself.
 */
void
fini_store_write(FiniStore *store, TupleTableSlot *slot, ItemPointer place)
{
	ItemPointerData tid = slot->tts_tid;

	ExecStoreVirtualTuple(store->submission.edited);
	if (fini_store_replace(&store->submission, &tid, store->snapshot) != TM_Ok)
		changed_meanwhile();
	if (place != NULL)
		*place = tid;
}

TM_Result
fini_store_replace(FiniStoreTable *table, ItemPointer tid, Snapshot snapshot)
{
	TM_FailureData failure;
	LockTupleMode lockmode;
	FiniCompatUpdateIndexes indexes;
	TM_Result	result = table_tuple_update(table->rel, tid, table->edited, GetCurrentCommandId(true), snapshot,
											InvalidSnapshot, true, &failure, &lockmode, &indexes);

	if (result == TM_Ok && fini_compat_any_index(indexes))
		list_free(fini_compat_insert_index_tuples(table->result, table->edited, table->estate, true, indexes));
	ResetPerTupleExprContext(table->estate);
	*tid = table->edited->tts_tid;
	ExecClearTuple(table->edited);
	return result;
}

Oid
fini_store_relid(const char *kind, const char *name)
{
	Oid			relid = get_relname_relid(name, get_namespace_oid(SCHEMA, false));

	if (!OidIsValid(relid))
		missing(psprintf("%s %s", kind, name));
	return relid;
}

void
fini_store_check_columns(Relation rel, bool is_queue)
{
	const char *const *columns = is_queue ? queue_columns : submission_columns;
	int			ncolumns = is_queue ? lengthof(queue_columns) : lengthof(submission_columns);
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < ncolumns; i++)
	{
		if (i >= desc->natts || strcmp(NameStr(TupleDescAttr(desc, i)->attname), columns[i]) != 0)
			missing(psprintf("column %s of table %s", columns[i], RelationGetRelationName(rel)));
	}
}

static void
open_own_table(FiniStoreTable *table, const char *name, bool is_queue)
{
	table->rel = table_open(fini_store_relid("table", name), RowExclusiveLock);
	fini_store_check_columns(table->rel, is_queue);
	fini_store_open_table(table, table->rel);
}

/* the index of this kind that begins with these columns and holds all rows */
static Relation
index_on(FiniStoreTable *table, Oid method, const char *const *columns, int ncolumns)
{
	for (int i = 0; i < table->result->ri_NumIndices; i++)
	{
		Relation	index = table->result->ri_IndexRelationDescs[i];
		bool		fits = index->rd_index->indnkeyatts >= ncolumns && index->rd_index->indisvalid &&
			index->rd_rel->relam == method && RelationGetIndexPredicate(index) == NIL;

		for (int c = 0; c < ncolumns && fits; c++)
		{
			AttrNumber	attnum = index->rd_index->indkey.values[c];

			fits = attnum > 0 && strcmp(NameStr(TupleDescAttr(RelationGetDescr(table->rel), attnum - 1)->attname), columns[c]) == 0;
		}
		if (fits)
			return index;
	}
	missing(psprintf("index on column %s of table %s", columns[0], RelationGetRelationName(table->rel)));
}

static void
changed_meanwhile(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("an operation was changed by somebody else while fini worked on it")));
}

static void
begin_queue_scan(FiniStore *store, int nkeys, ScanKey keys)
{
	if (store->in_queue->numberOfKeys != nkeys)
	{
		Relation	index = store->in_queue->indexRelation;

		index_endscan(store->in_queue);
		store->in_queue = fini_compat_index_beginscan(store->queue.rel, index, store->snapshot, nkeys);
	}
	index_rescan(store->in_queue, keys, nkeys, NULL, 0);
}

/*
 * A look-up through an index removes the versions from a page that nobody can
 * see any more; one by its place does not.  But a row's next version is to
 * find room beside it, or else it goes into every index.  Rows move when that
 * is done, so no slot of ours may hold one of the page: then it is left.
 */
static void
make_room(FiniStore *store, BlockNumber block)
{
	Buffer		buffer;

	if (block == store->pruned || store->submission.rel->rd_rel->relam != HEAP_TABLE_AM_OID)
		return;
	store->pruned = block;
	buffer = ReadBuffer(store->submission.rel, block);
	heap_page_prune_opt(store->submission.rel, buffer);
	ReleaseBuffer(buffer);
}

/* a scan keeps what it allocates on its way */
static bool
next_row(FiniStore *store, IndexScanDesc scan, TupleTableSlot *slot)
{
	MemoryContext old = MemoryContextSwitchTo(store->context);
	bool		found = index_getnext_slot(scan, ForwardScanDirection, slot);

	MemoryContextSwitchTo(old);
	return found;
}

static void
missing(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the schema fini lacks its %s", what),
			 errhint("Update the extension with ALTER EXTENSION fini UPDATE, or create again what was dropped.")));
}
