/*
 * source_cache.c
 *		Descriptions of attached tables that are kept between transactions.
 *
 * To look a mapping up and to find its columns costs a single INSERT more than
 * the insertion of what it asks for.  What is kept is dropped when PostgreSQL's
 * own cache drops the table's description: that happens with any change of its
 * columns, owner, name or indexes, and, by a trigger on fini.attachment, with
 * any change of its mapping.  A schema that gets another name and fini.attachment
 * itself, emptied or dropped, drop everything.
 *
 * A description may be in use when it is dropped (any lock that is taken can
 * bring the news), so it goes with the transaction.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "compat.h"
#include "source_cache.h"

PG_FUNCTION_INFO_V1(fini_sql_attachment_changed);

typedef struct CachedSource
{
	Oid			relid;
	MemoryContext context;		/* NULL: nothing */
	bool		stale;
	FiniSource *source;
} CachedSource;

static HTAB *cache = NULL;
static Oid	attachment_table = InvalidOid;
static uint64 generation = 0;	/* grows with everything that is invalidated */
static uint64 begun_at = 0;
static MemoryContext being_made = NULL;

static void on_relation(Datum arg, Oid relid);
static void on_schema(Datum arg, int cache_id, uint32 hash_value);
static void make_all_stale(void);
static void drop_later(CachedSource *entry);
static void changed(HeapTuple tuple, TupleDesc desc);

FiniSource *
fini_source_cached(Oid relid)
{
	CachedSource *entry = cache != NULL ? hash_search(cache, &relid, HASH_FIND, NULL) : NULL;
	FiniSource *source;

	if (entry == NULL || entry->context == NULL)
		return NULL;
	if (entry->stale)
	{
		drop_later(entry);
		return NULL;
	}
	source = palloc(sizeof(FiniSource));
	*source = *entry->source;
	return source;
}

MemoryContext
fini_source_begin_cached(void)
{
	if (cache == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(CachedSource)};

		cache = hash_create("fini sources", 16, &ctl, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(on_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, on_schema, (Datum) 0);
	}
	attachment_table = get_relname_relid("attachment", get_namespace_oid("fini", false));
	begun_at = generation;

	/* until it is done, an error takes it along */
	being_made = AllocSetContextCreate(CurrentMemoryContext, "fini source", ALLOCSET_SMALL_SIZES);
	return being_made;
}

void
fini_source_end_cached(Oid relid, FiniSource *source)
{
	CachedSource *entry;
	FiniSource *kept;
	bool		found;

	if (begun_at != generation)
		return;
	entry = hash_search(cache, &relid, HASH_ENTER, &found);
	if (found && entry->context != NULL)
		drop_later(entry);

	/* the caller may set members of his own */
	kept = MemoryContextAlloc(being_made, sizeof(FiniSource));
	*kept = *source;
	MemoryContextSetParent(being_made, CacheMemoryContext);
	entry->context = being_made;
	entry->source = kept;
	entry->stale = false;
}

/* fini._attachment_changed(): trigger of fini.attachment, for each row */
Datum
fini_sql_attachment_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("fini._attachment_changed can only be called as a trigger")));
	if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) || RelationGetDescr(trigger->tg_relation)->natts < 1 ||
		TupleDescAttr(RelationGetDescr(trigger->tg_relation), 0)->atttypid != REGCLASSOID)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("fini._attachment_changed is for the rows of fini.attachment")));
	changed(trigger->tg_trigtuple, RelationGetDescr(trigger->tg_relation));
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		changed(trigger->tg_newtuple, RelationGetDescr(trigger->tg_relation));
	return PointerGetDatum(NULL);
}

static void
on_relation(Datum arg, Oid relid)
{
	generation++;
	if (!OidIsValid(relid) || relid == attachment_table)
		make_all_stale();
	else
	{
		CachedSource *entry = hash_search(cache, &relid, HASH_FIND, NULL);

		if (entry != NULL)
			entry->stale = true;
	}
}

static void
on_schema(Datum arg, int cache_id, uint32 hash_value)
{
	generation++;
	make_all_stale();
}

static void
make_all_stale(void)
{
	HASH_SEQ_STATUS status;
	CachedSource *entry;

	hash_seq_init(&status, cache);
	while ((entry = hash_seq_search(&status)) != NULL)
		entry->stale = true;
}

static void
drop_later(CachedSource *entry)
{
	MemoryContextSetParent(entry->context, TopTransactionContext);
	entry->context = NULL;
	entry->source = NULL;
}

/* all sessions hear of it when this commits, this one at its next command */
static void
changed(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Oid			relid = DatumGetObjectId(heap_getattr(tuple, 1, desc, &isnull));

	if (!isnull && SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		CacheInvalidateRelcacheByRelid(relid);
}
