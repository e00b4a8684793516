/*
 * source_place.c
 *		Outcomes written into rows that are still where they were read.
 *
 * Nearly all of them are, and their tables have nothing that only the executor
 * could do justice to.  Then a row is fetched by its place, its own_ref compared,
 * and its new version put in place, with its indexes and constraints: a third of
 * the work of an UPDATE.  Whatever cannot be done that way is left to one
 * (source.c): rows that have moved or that somebody is just changing, and tables
 * with triggers, rules, policies, partitions, generated columns, or columns that
 * are no plain text, and tables that have become a partition.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "entry.h"
#include "outbox_store.h"
#include "source.h"
#include "source_place.h"

static bool is_plain(FiniSource *source, Relation rel, AttrNumber *columns);
static bool takes_text(Relation rel, const char *column, AttrNumber *attnum);
static bool has_triggers(Relation rel);
static bool write_one(FiniSource *source, FiniStoreTable *table, TupleTableSlot *slot, const AttrNumber *columns, const FiniOutcome *outcome);

void
fini_source_write_places(FiniSource *source, int n, const FiniOutcome *outcomes, bool *written)
{
	Relation	rel = table_open(source->relid, RowExclusiveLock);
	AttrNumber	columns[3];
	FiniStoreTable table = {0};
	TupleTableSlot *slot;
	BlockNumber blocks;
	MemoryContext work;
	MemoryContext old;

	if (!is_plain(source, rel, columns))
	{
		table_close(rel, NoLock);
		return;
	}
	CheckCmdReplicaIdentity(rel, CMD_UPDATE);
	blocks = RelationGetNumberOfBlocks(rel);
	PushActiveSnapshot(GetLatestSnapshot());
	fini_store_open_table(&table, rel);
	slot = fini_store_slot(&table);
	work = AllocSetContextCreate(CurrentMemoryContext, "fini outcomes", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(work);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (ItemPointerIsValid(&outcomes[i].tid) && ItemPointerGetBlockNumber(&outcomes[i].tid) < blocks)
			written[i] = write_one(source, &table, slot, columns, &outcomes[i]);
		MemoryContextReset(work);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
	fini_store_close_table(&table);
	PopActiveSnapshot();
	CommandCounterIncrement();
}

/* columns: of record_id, state and error; 0: not written back */
static bool
is_plain(FiniSource *source, Relation rel, AttrNumber *columns)
{
	if (source->partitioned || rel->rd_rel->relispartition || rel->rd_rules != NULL || has_triggers(rel) ||
		check_enable_rls(RelationGetRelid(rel), InvalidOid, true) == RLS_ENABLED ||
		pg_class_aclcheck(RelationGetRelid(rel), GetUserId(), ACL_SELECT) != ACLCHECK_OK ||
		pg_class_aclcheck(RelationGetRelid(rel), GetUserId(), ACL_UPDATE) != ACLCHECK_OK)
		return false;
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		if (TupleDescAttr(RelationGetDescr(rel), i)->attgenerated != '\0')
			return false;
	}
	return takes_text(rel, source->record_id_column, &columns[0]) && takes_text(rel, source->state_column, &columns[1]) &&
		takes_text(rel, source->error_column, &columns[2]);
}

static bool
takes_text(Relation rel, const char *column, AttrNumber *attnum)
{
	Form_pg_attribute attr;

	*attnum = 0;
	if (column == NULL)
		return true;
	*attnum = get_attnum(RelationGetRelid(rel), column);
	if (*attnum <= 0)
		return false;
	attr = TupleDescAttr(RelationGetDescr(rel), *attnum - 1);
	return attr->atttypid == TEXTOID || (attr->atttypid == VARCHAROID && attr->atttypmod < 0);
}

/* that an update fires, but for our own, which has nothing to say to outcomes */
static bool
has_triggers(Relation rel)
{
	Oid			fini = get_namespace_oid("fini", false);

	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers; i++)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];

		if (TRIGGER_FOR_UPDATE(trigger->tgtype) && trigger->tgenabled != TRIGGER_DISABLED &&
			!(get_func_namespace(trigger->tgfoid) == fini && strcmp(get_func_name(trigger->tgfoid), "capture") == 0))
			return true;
	}
	return false;
}

/* false: it is not there any more, or somebody is changing it */
static bool
write_one(FiniSource *source, FiniStoreTable *table, TupleTableSlot *slot, const AttrNumber *columns, const FiniOutcome *outcome)
{
	const char *texts[3] = {outcome->record_id, outcome->state, outcome->error};
	ItemPointerData tid = outcome->tid;
	TupleTableSlot *edited;
	bool		isnull;
	Datum		own_ref;

	if (!table_tuple_fetch_row_version(table->rel, &tid, GetActiveSnapshot(), slot))
		return false;
	own_ref = slot_getattr(slot, source->own_ref->attnum, &isnull);
	if (isnull || strcmp(fini_entry_column_text(source->own_ref, own_ref, false), outcome->own_ref) != 0)
		return false;
	edited = fini_store_edit(table, slot);
	for (int c = 0; c < 3; c++)
	{
		if (columns[c] != 0 && texts[c] != NULL)
			fini_store_set_text(edited, columns[c] - 1, texts[c][0] != '\0' ? texts[c] : NULL);
	}
	ExecStoreVirtualTuple(edited);
	if (RelationGetDescr(table->rel)->constr != NULL)
		ExecConstraints(table->result, edited, table->estate);
	return fini_store_replace(table, &tid, GetActiveSnapshot()) == TM_Ok;
}
