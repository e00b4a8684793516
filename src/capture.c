/*
 * capture.c
 *		The trigger function of attached tables.
 *
 * Statement-level triggers with transition tables see a whole statement at
 * once; row-level triggers (which somebody may place himself, where there are
 * no transition tables) see one row.  Both end in the same few statements on
 * the outbox.  Nothing but the columns own_ref and ipo_id is read, with their
 * output functions; other columns are only compared, as bytes.
 *
 * Runs as the extension's owner (SECURITY DEFINER): no user code is called.
 *
 * Writing an outcome back fires these triggers too.  That statement of ours
 * asks for nothing, even if a trigger of the user's stamps a mapped column on
 * its way (a change would bring another outcome, and so on for ever); what
 * users' triggers do in its course by statements of their own counts like
 * anything else.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "utils/datum.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "outbox.h"
#include "source.h"

PG_FUNCTION_INFO_V1(fini_sql_capture);

/* rows are handed over in portions, so that memory stays bounded */
#define PORTION		20000

/* what the trigger has to know of the table; valid for one call */
typedef struct Mapping
{
	Oid			relid;
	AttrNumber	own_ref;
	AttrNumber	ipo_id;
	Bitmapset  *mapped;			/* attribute numbers of all mapped columns */
	FmgrInfo	own_ref_output;
	FmgrInfo	ipo_id_output;
} Mapping;

typedef enum Change
{
	INSERTED,
	UPDATED,
	MOVED,
	DELETED
} Change;

/* rows collected for one kind of change, in memory of their own that is reset after each portion */
typedef struct Rows
{
	Mapping    *mapping;
	Change		change;
	MemoryContext context;
	int			n;
	char	  **old_refs;
	char	  **own_refs;
	char	  **ipo_ids;
} Rows;

static void read_mapping(Relation rel, Mapping *mapping);
static void capture_rows(TriggerData *trigger, Tuplestorestate *table, Rows *rows);
static void capture_updates(TriggerData *trigger, Mapping *mapping);
static void compare_rows(TupleTableSlot *before, TupleTableSlot *after, Rows *changed, Rows *moved);
static void begin_rows(Rows *rows, Mapping *mapping, Change change);
static void add_row(Rows *rows, TupleTableSlot *before, TupleTableSlot *after);
static void hand_over(Rows *rows);
static char *column_text(TupleTableSlot *slot, AttrNumber attnum, FmgrInfo *output);
static TupleTableSlot *slot_of_tuple(TriggerData *trigger, HeapTuple tuple);

Datum
fini_sql_capture(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Mapping		mapping;
	Rows		rows;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("fini.capture can only be called as a trigger")));

	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) && fini_source_is_write_back(RelationGetRelid(trigger->tg_relation)))
		return PointerGetDatum(NULL);

	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
	{
		SPI_connect();
		if (fini_outbox_stands(RelationGetRelid(trigger->tg_relation)))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot truncate table \"%s\" while applications of it stand at FINI",
							RelationGetRelationName(trigger->tg_relation)),
					 errhint("Delete the rows, which withdraws them, or detach the table first.")));
		SPI_finish();
		return PointerGetDatum(NULL);
	}
	if (!TRIGGER_FIRED_AFTER(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("fini.capture must be fired after the change")));
	if (TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event) &&
		((!TRIGGER_FIRED_BY_DELETE(trigger->tg_event) && trigger->tg_newtable == NULL) ||
		 (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) && trigger->tg_oldtable == NULL)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("statement-level trigger \"%s\" lacks its transition tables", trigger->tg_trigger->tgname),
				 errhint("Declare REFERENCING NEW TABLE for INSERT, OLD TABLE for DELETE, and both for UPDATE.")));

	/* a statement that touched nothing */
	if (TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event) &&
		tuplestore_tuple_count(trigger->tg_newtable ? trigger->tg_newtable : trigger->tg_oldtable) == 0)
		return PointerGetDatum(NULL);

	SPI_connect();
	read_mapping(trigger->tg_relation, &mapping);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		capture_updates(trigger, &mapping);
	else
	{
		bool		inserted = TRIGGER_FIRED_BY_INSERT(trigger->tg_event);

		begin_rows(&rows, &mapping, inserted ? INSERTED : DELETED);
		capture_rows(trigger, inserted ? trigger->tg_newtable : trigger->tg_oldtable, &rows);
	}
	SPI_finish();
	return PointerGetDatum(NULL);
}

static void
read_mapping(Relation rel, Mapping *mapping)
{
	FiniSource *source = fini_source_open(RelationGetRelid(rel));
	ListCell   *cell;
	Oid			output;
	bool		varlena;

	mapping->relid = source->relid;
	mapping->own_ref = source->own_ref->attnum;
	mapping->ipo_id = source->ipo_id->attnum;
	mapping->mapped = NULL;
	foreach(cell, source->fields)
		mapping->mapped = bms_add_member(mapping->mapped, ((FiniField *) lfirst(cell))->attnum);
	getTypeOutputInfo(source->own_ref->type, &output, &varlena);
	fmgr_info(output, &mapping->own_ref_output);
	getTypeOutputInfo(source->ipo_id->type, &output, &varlena);
	fmgr_info(output, &mapping->ipo_id_output);
}

static void
capture_rows(TriggerData *trigger, Tuplestorestate *table, Rows *rows)
{
	TupleTableSlot *slot;

	if (TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
	{
		slot = slot_of_tuple(trigger, trigger->tg_trigtuple);
		add_row(rows, NULL, slot);
	}
	else
	{
		slot = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation), &TTSOpsMinimalTuple);
		while (tuplestore_gettupleslot(table, true, false, slot))
			add_row(rows, NULL, slot);
	}
	ExecDropSingleTupleTableSlot(slot);
	hand_over(rows);
}

/*
 * The executor puts the two versions of each updated row into the transition
 * tables one right after the other, so the n-th old row belongs to the n-th
 * new one.
 */
static void
capture_updates(TriggerData *trigger, Mapping *mapping)
{
	Rows		changed;
	Rows		moved;
	TupleTableSlot *before;
	TupleTableSlot *after;

	begin_rows(&changed, mapping, UPDATED);
	begin_rows(&moved, mapping, MOVED);
	if (TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
	{
		before = slot_of_tuple(trigger, trigger->tg_trigtuple);
		after = slot_of_tuple(trigger, trigger->tg_newtuple);
		compare_rows(before, after, &changed, &moved);
	}
	else
	{
		before = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation), &TTSOpsMinimalTuple);
		after = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation), &TTSOpsMinimalTuple);
		if (tuplestore_tuple_count(trigger->tg_oldtable) != tuplestore_tuple_count(trigger->tg_newtable))
			elog(ERROR, "transition tables of different length");
		while (tuplestore_gettupleslot(trigger->tg_oldtable, true, false, before) &&
			   tuplestore_gettupleslot(trigger->tg_newtable, true, false, after))
			compare_rows(before, after, &changed, &moved);
	}
	ExecDropSingleTupleTableSlot(before);
	ExecDropSingleTupleTableSlot(after);
	hand_over(&changed);
	hand_over(&moved);
}

static void
compare_rows(TupleTableSlot *before, TupleTableSlot *after, Rows *changed, Rows *moved)
{
	Mapping    *mapping = changed->mapping;
	TupleDesc	desc = before->tts_tupleDescriptor;
	bool		differs = false;
	bool		renamed = false;
	int			attnum = -1;

	while ((attnum = bms_next_member(mapping->mapped, attnum)) >= 0)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, attnum - 1);
		bool		null_before;
		bool		null_after;
		Datum		value_before = slot_getattr(before, attnum, &null_before);
		Datum		value_after = slot_getattr(after, attnum, &null_after);

		if (null_before != null_after ||
			(!null_before && !datum_image_eq(value_before, value_after, attr->attbyval, attr->attlen)))
		{
			differs = true;
			renamed |= attnum == mapping->own_ref || attnum == mapping->ipo_id;
		}
	}
	if (renamed)
		add_row(moved, before, after);
	else if (differs)
		add_row(changed, NULL, after);
}

static void
begin_rows(Rows *rows, Mapping *mapping, Change change)
{
	rows->mapping = mapping;
	rows->change = change;
	rows->context = AllocSetContextCreate(CurrentMemoryContext, "fini captured rows", ALLOCSET_DEFAULT_SIZES);
	rows->n = 0;
}

/* before: the version whose own_ref has changed, NULL when it has not */
static void
add_row(Rows *rows, TupleTableSlot *before, TupleTableSlot *after)
{
	MemoryContext old = MemoryContextSwitchTo(rows->context);

	/* most statements touch one row */
	if (rows->n == 0)
	{
		rows->old_refs = palloc(sizeof(char *));
		rows->own_refs = palloc(sizeof(char *));
		rows->ipo_ids = palloc(sizeof(char *));
	}
	else if (rows->n == 1)
	{
		rows->old_refs = repalloc(rows->old_refs, sizeof(char *) * PORTION);
		rows->own_refs = repalloc(rows->own_refs, sizeof(char *) * PORTION);
		rows->ipo_ids = repalloc(rows->ipo_ids, sizeof(char *) * PORTION);
	}
	rows->old_refs[rows->n] = before == NULL ? NULL :
		column_text(before, rows->mapping->own_ref, &rows->mapping->own_ref_output);
	rows->own_refs[rows->n] = column_text(after, rows->mapping->own_ref, &rows->mapping->own_ref_output);
	rows->ipo_ids[rows->n] = column_text(after, rows->mapping->ipo_id, &rows->mapping->ipo_id_output);
	rows->n++;
	MemoryContextSwitchTo(old);
	if (rows->n == PORTION)
		hand_over(rows);
}

/* a portion, or what there is, to the outbox */
static void
hand_over(Rows *rows)
{
	MemoryContext old = MemoryContextSwitchTo(rows->context);
	Oid			relid = rows->mapping->relid;

	if (rows->n > 0)
	{
		switch (rows->change)
		{
			case INSERTED:
				fini_outbox_inserted(relid, rows->n, rows->own_refs, rows->ipo_ids);
				break;
			case UPDATED:
				fini_outbox_updated(relid, rows->n, rows->own_refs, rows->ipo_ids);
				break;
			case MOVED:
				fini_outbox_moved(relid, rows->n, rows->old_refs, rows->own_refs, rows->ipo_ids);
				break;
			case DELETED:
				fini_outbox_deleted(relid, rows->n, rows->own_refs);
				break;
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(rows->context);
	rows->n = 0;
}

/* an empty text for null: it will be rejected with a reason when its turn comes */
static char *
column_text(TupleTableSlot *slot, AttrNumber attnum, FmgrInfo *output)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, attnum, &isnull);

	return isnull ? pstrdup("") : OutputFunctionCall(output, value);
}

static TupleTableSlot *
slot_of_tuple(TriggerData *trigger, HeapTuple tuple)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation), &TTSOpsHeapTuple);

	return ExecStoreHeapTuple(tuple, slot, false);
}
