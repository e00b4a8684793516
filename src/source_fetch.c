/*
 * source_fetch.c
 *		Rows of a user's table, by own_ref, without the executor.
 *
 * Nearly all tables hold their rows in a heap, under an ordinary unique index on
 * own_ref.  There a row is one descent of that index, under the snapshot that a
 * statement would have, and what the executor adds to it costs as much again.
 *
 * What one statement inserted it also enqueued, in the same order: most rows lie
 * behind the one that was asked for before.  So they are looked for there first,
 * among the rows of the page that the snapshot sees and those of the next ones,
 * which costs a tenth of a descent.  A row that is visible and has the own_ref
 * is the right one, since own_ref is unique and a snapshot sees no row in two
 * versions; if none is found the index decides.  Where rows lie in another order
 * than they are asked for, that is tried ever more seldom, and the others are put
 * off: in the end the index is asked for all of them, in its own order.
 *
 * Everything that the rewriter, the planner or the executor would make more of
 * is left to a statement (source.c): see is_plain and serves.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "entry.h"
#include "source.h"
#include "source_fetch.h"
#include "textmap.h"

/* a row is looked for among so many behind the last one, on so many pages: rows of other IPOs may lie between */
#define NEIGHBOURS		32
#define PAGES			3

/* rows that were not there, one after another; from the second on, ever more are put off: 1, 2, 4, to 128 */
#define MOST_MISSES		9

/* what own_ref can be, and how PostgreSQL orders and compares it */
typedef struct OwnRefType
{
	Oid			type;
	RegProcedure order;
	RegProcedure equals;
} OwnRefType;

static const OwnRefType own_ref_types[] = {
	{TEXTOID, F_BTTEXTCMP, F_TEXTEQ},
	{VARCHAROID, F_BTTEXTCMP, F_TEXTEQ},
	{UUIDOID, F_UUID_CMP, F_UUID_EQ},
	{INT4OID, F_BTINT4CMP, F_INT4EQ},
	{INT8OID, F_BTINT8CMP, F_INT8EQ},
};

/* an own_ref that has been put off */
typedef struct Later
{
	const char *own_ref;		/* as fini_textmap wants it, first */
	int			index;
} Later;

typedef struct Fetch
{
	FiniSource *source;
	const OwnRefType *type;
	Relation	rel;
	Relation	index;
	Snapshot	snapshot;
	FmgrInfo	equals;
	TupleTableSlot *slot;		/* the row that was found last */
	IndexScanDesc scan;			/* NULL until the index is needed */

	/* a page that is pinned, and which of its versions of rows the snapshot sees */
	Buffer		buffer;
	BlockNumber block;
	OffsetNumber visible[MaxHeapTuplesPerPage];
	int			nvisible;
	int			next;
	HeapTupleData tuple;		/* in the slot, if it was found there */

	ItemPointerData last;		/* where the last row was; invalid: none yet */
	BlockNumber blocks;			/* of the table; 0: not asked yet */
	int			misses;
	int			left_of_pause;		/* so many are yet put off */

	HTAB	   *later;			/* NULL: none */
	Datum	   *put_off;		/* their values */
	int			nput_off;

	/* who gets the rows, and a row's values */
	FiniSourceFetched fn;
	void	   *arg;
	Datum	   *values;
	bool	   *nulls;
} Fetch;

static bool is_plain(FiniSource *source, Relation rel);
static const OwnRefType *own_ref_type(Oid type);
static Relation open_index(FiniSource *source, const OwnRefType *type, Relation rel);
static bool may_serve(Form_pg_index form, AttrNumber attnum);
static bool serves(Relation index, const OwnRefType *type, Form_pg_attribute own_ref);
static void hand_rows(Fetch *fetch, int n, const char *const *own_refs);
static void hand_row(Fetch *fetch, int i);
static bool put_off(Fetch *fetch, int n, const char *own_ref, Datum value, int i);
static void hand_later(Fetch *fetch);
static char *own_ref_text(Fetch *fetch);
static bool find_row(Fetch *fetch, Datum own_ref);
static bool find_behind(Fetch *fetch, Datum own_ref);
static void look_at_page(Fetch *fetch, BlockNumber block);
static bool version_at(Fetch *fetch, OffsetNumber offset, HeapTuple tuple);
static bool is_wanted(Fetch *fetch, Datum own_ref);
static void ask_index(Fetch *fetch, int flags, Datum argument);

bool
fini_source_fetch(FiniSource *source, int n, const char *const *own_refs, FiniSourceFetched fn, void *arg)
{
	const OwnRefType *type = own_ref_type(source->own_ref->type);
	Relation	rel = source->partitioned || type == NULL ? NULL : try_relation_open(source->relid, AccessShareLock);
	Relation	index;
	Fetch	   *fetch;
	MemoryContext context;
	MemoryContext old;

	if (rel == NULL)
		return false;
	index = is_plain(source, rel) ? open_index(source, type, rel) : NULL;
	if (index == NULL)
	{
		relation_close(rel, NoLock);
		return false;
	}
	context = AllocSetContextCreate(CurrentMemoryContext, "fini fetch", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	fetch = palloc0(sizeof(Fetch));
	fetch->source = source;
	fetch->rel = rel;
	fetch->index = index;
	fetch->type = type;
	fmgr_info(type->equals, &fetch->equals);
	fetch->fn = fn;
	fetch->arg = arg;
	fetch->values = palloc(sizeof(Datum) * list_length(source->fields));
	fetch->nulls = palloc(sizeof(bool) * list_length(source->fields));
	fetch->slot = table_slot_create(rel, NULL);

	/* as for a statement that may write: it sees what its own transaction did before */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	fetch->snapshot = GetActiveSnapshot();
	hand_rows(fetch, n, own_refs);
	hand_later(fetch);
	if (fetch->scan != NULL)
		index_endscan(fetch->scan);
	PopActiveSnapshot();

	ExecDropSingleTupleTableSlot(fetch->slot);
	if (BufferIsValid(fetch->buffer))
		ReleaseBuffer(fetch->buffer);
	index_close(index, NoLock);
	relation_close(rel, NoLock);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return true;
}

/*
 * Nobody but us would do anything to a statement that reads it, or see it: no
 * policies, no hook that looks at permissions, no columns that are computed when
 * they are read, no locks of ranges of the index.  And the owner may read it:
 * whoever may not, or sees another table than he has attached, gets the error of
 * the statement.
 */
static bool
is_plain(FiniSource *source, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	ListCell   *cell;

	if (rel->rd_rel->relkind != RELKIND_RELATION || rel->rd_rel->relam != HEAP_TABLE_AM_OID ||
		rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP || IsolationIsSerializable() || ExecutorCheckPerms_hook != NULL ||
		check_enable_rls(RelationGetRelid(rel), InvalidOid, true) == RLS_ENABLED ||
		pg_class_aclcheck(RelationGetRelid(rel), GetUserId(), ACL_SELECT) != ACLCHECK_OK ||
		!fini_compat_may_use_schema(RelationGetNamespace(rel)))
		return false;
	foreach(cell, source->fields)
	{
		FiniField  *field = lfirst(cell);
		Form_pg_attribute attr;

		if (field->attnum <= 0 || field->attnum > desc->natts)
			return false;
		attr = TupleDescAttr(desc, field->attnum - 1);
		if (attr->attisdropped || strcmp(NameStr(attr->attname), field->column) != 0 ||
			(attr->attgenerated != '\0' && attr->attgenerated != ATTRIBUTE_GENERATED_STORED))
			return false;
	}
	return true;
}

static const OwnRefType *
own_ref_type(Oid type)
{
	for (size_t i = 0; i < lengthof(own_ref_types); i++)
	{
		if (own_ref_types[i].type == type)
			return &own_ref_types[i];
	}
	return NULL;
}

/* locked until the transaction ends; others are not even opened, for somebody may hold them locked */
static Relation
open_index(FiniSource *source, const OwnRefType *type, Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	Relation	found = NULL;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
		bool		candidate = HeapTupleIsValid(tuple) && may_serve((Form_pg_index) GETSTRUCT(tuple), source->own_ref->attnum);

		if (HeapTupleIsValid(tuple))
			ReleaseSysCache(tuple);
		if (!candidate)
			continue;
		found = index_open(lfirst_oid(cell), AccessShareLock);
		if (may_serve(found->rd_index, source->own_ref->attnum) &&
			serves(found, type, TupleDescAttr(RelationGetDescr(rel), source->own_ref->attnum - 1)))
			break;
		index_close(found, AccessShareLock);
		found = NULL;
	}
	list_free(indexes);
	return found;
}

static bool
may_serve(Form_pg_index form, AttrNumber attnum)
{
	return form->indisunique && form->indimmediate && form->indisvalid && form->indnkeyatts == 1 && form->indkey.values[0] == attnum;
}

/* all rows are in it, compared as = compares them; and our snapshot may use it, as the planner would say */
static bool
serves(Relation index, const OwnRefType *type, Form_pg_attribute own_ref)
{
	return index->rd_rel->relam == BTREE_AM_OID && RelationGetIndexPredicate(index) == NIL &&
		index_getprocid(index, 1, BTORDER_PROC) == type->order && index->rd_indcollation[0] == own_ref->attcollation &&
		(!OidIsValid(own_ref->attcollation) || get_collation_isdeterministic(own_ref->attcollation)) &&
		(!index->rd_index->indcheckxmin ||
		 TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data), TransactionXmin));
}

static void
hand_rows(Fetch *fetch, int n, const char *const *own_refs)
{
	FiniSource *source = fetch->source;
	FmgrInfo	input;
	Oid			function;
	Oid			ioparam;

	getTypeInputInfo(source->own_ref->type, &function, &ioparam);
	fmgr_info(function, &input);
	for (int i = 0; i < n; i++)
	{
		Datum		own_ref;

		CHECK_FOR_INTERRUPTS();
		/* what FINI has under an own_ref need not be one of this table's type */
		if (!fini_source_is_possible(source->own_ref->type, own_refs[i]))
			continue;
		own_ref = InputFunctionCall(&input, unconstify(char *, own_refs[i]), ioparam, -1);
		if (fetch->left_of_pause > 0 && put_off(fetch, n, own_refs[i], own_ref, i))
			continue;
		/* a number can be written in several ways, and only one of them is the row's own_ref */
		if (find_row(fetch, own_ref) && (fetch->type->equals == F_TEXTEQ || strcmp(own_ref_text(fetch), own_refs[i]) == 0))
			hand_row(fetch, i);
	}
}

static void
hand_row(Fetch *fetch, int i)
{
	ListCell   *cell;
	int			column = 0;

	foreach(cell, fetch->source->fields)
	{
		fetch->values[column] = slot_getattr(fetch->slot, ((FiniField *) lfirst(cell))->attnum, &fetch->nulls[column]);
		column++;
	}
	fetch->fn(fetch->arg, i, fetch->values, fetch->nulls, &fetch->slot->tts_tid);
}

/* false: this own_ref has been put off already */
static bool
put_off(Fetch *fetch, int n, const char *own_ref, Datum value, int i)
{
	Later	   *later;
	bool		found;

	if (fetch->later == NULL)
	{
		fetch->later = fini_textmap_create("own_refs put off", n, sizeof(Later), CurrentMemoryContext);
		fetch->put_off = palloc(sizeof(Datum) * n);
	}
	later = fini_textmap_enter(fetch->later, own_ref, &found);
	if (found)
		return false;
	later->index = i;
	fetch->put_off[fetch->nput_off++] = value;
	fetch->left_of_pause--;
	/* the next one that is not put off is far away */
	ItemPointerSetInvalid(&fetch->last);
	return true;
}

/* the index sorts them, and goes through its pages in their order */
static void
hand_later(Fetch *fetch)
{
	Oid			type = fetch->source->own_ref->type;
	int16		typlen;
	bool		typbyval;
	char		typalign;

	if (fetch->nput_off == 0)
		return;
	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	ask_index(fetch, SK_SEARCHARRAY, PointerGetDatum(construct_array(fetch->put_off, fetch->nput_off, type, typlen, typbyval, typalign)));
	while (index_getnext_slot(fetch->scan, ForwardScanDirection, fetch->slot))
	{
		Later	   *later = fini_textmap_find(fetch->later, own_ref_text(fetch));

		CHECK_FOR_INTERRUPTS();
		if (later != NULL)
			hand_row(fetch, later->index);
	}
}

/* of the row in the slot */
static char *
own_ref_text(Fetch *fetch)
{
	bool		isnull;
	Datum		value = slot_getattr(fetch->slot, fetch->source->own_ref->attnum, &isnull);

	return fini_entry_column_text(fetch->source->own_ref, value, false);
}

/* into the slot; false: there is none that the snapshot sees */
static bool
find_row(Fetch *fetch, Datum own_ref)
{
	bool		behind = ItemPointerIsValid(&fetch->last) && find_behind(fetch, own_ref);
	bool		found = behind;

	if (!behind)
	{
		ask_index(fetch, 0, own_ref);
		found = index_getnext_slot(fetch->scan, ForwardScanDirection, fetch->slot);
	}
	if (behind)
	{
		pgstat_count_heap_fetch(fetch->rel);
		fetch->misses = 0;
	}
	else if (ItemPointerIsValid(&fetch->last) || !found)
	{
		fetch->misses = Min(fetch->misses + 1, MOST_MISSES);
		fetch->left_of_pause = (1 << fetch->misses) / 4;
	}
	if (found)
		fetch->last = fetch->slot->tts_tid;
	return found;
}

static bool
find_behind(Fetch *fetch, Datum own_ref)
{
	BlockNumber block = ItemPointerGetBlockNumber(&fetch->last);
	OffsetNumber offset = ItemPointerGetOffsetNumber(&fetch->last);
	int			pages = 1;

	if (!BufferIsValid(fetch->buffer) || fetch->block != block)
		look_at_page(fetch, block);
	if (fetch->next == 0 || fetch->visible[fetch->next - 1] != offset)
	{
		fetch->next = 0;
		while (fetch->next < fetch->nvisible && fetch->visible[fetch->next] <= offset)
			fetch->next++;
	}
	for (int tried = 0; tried < NEIGHBOURS; tried++)
	{
		while (fetch->next == fetch->nvisible)
		{
			if (fetch->blocks == 0)
				fetch->blocks = RelationGetNumberOfBlocks(fetch->rel);
			if (++pages > PAGES || fetch->block + 1 >= fetch->blocks)
				return false;
			look_at_page(fetch, fetch->block + 1);
		}
		(void) version_at(fetch, fetch->visible[fetch->next++], &fetch->tuple);
		ExecStoreBufferHeapTuple(&fetch->tuple, fetch->slot, fetch->buffer);
		if (is_wanted(fetch, own_ref))
			return true;
	}
	return false;
}

/* as a sequential scan does it: once its versions have been looked at, under the lock, the pin keeps them where they are */
static void
look_at_page(Fetch *fetch, BlockNumber block)
{
	OffsetNumber lines;

	fetch->nvisible = 0;
	fetch->next = 0;
	fetch->block = block;
	fetch->buffer = ReleaseAndReadBuffer(fetch->buffer, fetch->rel, block);
	heap_page_prune_opt(fetch->rel, fetch->buffer);
	LockBuffer(fetch->buffer, BUFFER_LOCK_SHARE);
	lines = (OffsetNumber) PageGetMaxOffsetNumber(BufferGetPage(fetch->buffer));
	for (OffsetNumber offset = FirstOffsetNumber; offset <= lines && fetch->nvisible < MaxHeapTuplesPerPage; offset++)
	{
		HeapTupleData tuple;

		if (version_at(fetch, offset, &tuple) && HeapTupleSatisfiesVisibility(&tuple, fetch->snapshot, fetch->buffer))
			fetch->visible[fetch->nvisible++] = offset;
	}
	LockBuffer(fetch->buffer, BUFFER_LOCK_UNLOCK);
}

/* a version of a row on the page; false: there is none */
static bool
version_at(Fetch *fetch, OffsetNumber offset, HeapTuple tuple)
{
	Page		page = BufferGetPage(fetch->buffer);
	ItemId		item = PageGetItemId(page, offset);

	if (!ItemIdIsNormal(item))
		return false;
	tuple->t_data = (HeapTupleHeader) PageGetItem(page, item);
	tuple->t_len = ItemIdGetLength(item);
	tuple->t_tableOid = RelationGetRelid(fetch->rel);
	/* ItemPointerSet narrows without saying so */
	tuple->t_self.ip_blkid.bi_hi = (uint16) (fetch->block >> 16);
	tuple->t_self.ip_blkid.bi_lo = (uint16) (fetch->block & 0xffff);
	tuple->t_self.ip_posid = offset;
	return true;
}

/* byte by byte, which is what a deterministic collation comes to */
static bool
is_wanted(Fetch *fetch, Datum own_ref)
{
	bool		isnull;
	Datum		value = slot_getattr(fetch->slot, fetch->source->own_ref->attnum, &isnull);

	return !isnull && DatumGetBool(FunctionCall2Coll(&fetch->equals, C_COLLATION_OID, value, own_ref));
}

/* for an own_ref, or with SK_SEARCHARRAY for those of an array */
static void
ask_index(Fetch *fetch, int flags, Datum argument)
{
	ScanKeyData key;

	if (fetch->scan == NULL)
		fetch->scan = fini_compat_index_beginscan(fetch->rel, fetch->index, fetch->snapshot, 1);
	ScanKeyEntryInitialize(&key, flags, 1, BTEqualStrategyNumber, InvalidOid, fetch->index->rd_indcollation[0], fetch->type->equals,
						   argument);
	index_rescan(fetch->scan, &key, 1, NULL, 0);
}
