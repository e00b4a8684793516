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
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "utils/datum.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
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

/* rows collected for one kind of change */
typedef struct Rows
{
	int			n;
	char	  **old_refs;
	char	  **own_refs;
	char	  **ipo_ids;
} Rows;

static void read_mapping(Relation rel, Mapping *mapping);
static void capture_inserts(TriggerData *trigger, Mapping *mapping);
static void capture_deletes(TriggerData *trigger, Mapping *mapping);
static void capture_updates(TriggerData *trigger, Mapping *mapping);
static void compare_rows(Mapping *mapping, TupleTableSlot *before, TupleTableSlot *after, Rows *changed, Rows *moved);
static void init_rows(Rows *rows);
static void add_row(Rows *rows, Mapping *mapping, const char *old_ref, TupleTableSlot *slot);
static char *column_text(TupleTableSlot *slot, AttrNumber attnum, FmgrInfo *output);
static TupleTableSlot *slot_of_tuple(TriggerData *trigger, HeapTuple tuple);

Datum
fini_sql_capture(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Mapping		mapping;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("fini.capture can only be called as a trigger")));

	/* our own outcomes ask for nothing */
	if (fini_source_writing_back())
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
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		capture_inserts(trigger, &mapping);
	else if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		capture_deletes(trigger, &mapping);
	else
		capture_updates(trigger, &mapping);
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
capture_inserts(TriggerData *trigger, Mapping *mapping)
{
	Rows		rows;

	init_rows(&rows);
	if (TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		add_row(&rows, mapping, NULL, slot_of_tuple(trigger, trigger->tg_trigtuple));
	else
	{
		TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation), &TTSOpsMinimalTuple);

		while (tuplestore_gettupleslot(trigger->tg_newtable, true, false, slot))
		{
			add_row(&rows, mapping, NULL, slot);
			if (rows.n == PORTION)
			{
				fini_outbox_inserted(mapping->relid, rows.n, rows.own_refs, rows.ipo_ids);
				init_rows(&rows);
			}
		}
		ExecDropSingleTupleTableSlot(slot);
	}
	if (rows.n > 0)
		fini_outbox_inserted(mapping->relid, rows.n, rows.own_refs, rows.ipo_ids);
}

static void
capture_deletes(TriggerData *trigger, Mapping *mapping)
{
	Rows		rows;

	init_rows(&rows);
	if (TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		add_row(&rows, mapping, NULL, slot_of_tuple(trigger, trigger->tg_trigtuple));
	else
	{
		TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation), &TTSOpsMinimalTuple);

		while (tuplestore_gettupleslot(trigger->tg_oldtable, true, false, slot))
		{
			add_row(&rows, mapping, NULL, slot);
			if (rows.n == PORTION)
			{
				fini_outbox_deleted(mapping->relid, rows.n, rows.own_refs);
				init_rows(&rows);
			}
		}
		ExecDropSingleTupleTableSlot(slot);
	}
	if (rows.n > 0)
		fini_outbox_deleted(mapping->relid, rows.n, rows.own_refs);
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

	init_rows(&changed);
	init_rows(&moved);
	if (TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		compare_rows(mapping, slot_of_tuple(trigger, trigger->tg_trigtuple),
					 slot_of_tuple(trigger, trigger->tg_newtuple), &changed, &moved);
	else
	{
		TupleTableSlot *before = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation), &TTSOpsMinimalTuple);
		TupleTableSlot *after = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation), &TTSOpsMinimalTuple);

		if (tuplestore_tuple_count(trigger->tg_oldtable) != tuplestore_tuple_count(trigger->tg_newtable))
			elog(ERROR, "transition tables of different length");
		while (tuplestore_gettupleslot(trigger->tg_oldtable, true, false, before) &&
			   tuplestore_gettupleslot(trigger->tg_newtable, true, false, after))
		{
			compare_rows(mapping, before, after, &changed, &moved);
			if (changed.n == PORTION)
			{
				fini_outbox_updated(mapping->relid, changed.n, changed.own_refs, changed.ipo_ids);
				init_rows(&changed);
			}
			if (moved.n == PORTION)
			{
				fini_outbox_moved(mapping->relid, moved.n, moved.old_refs, moved.own_refs, moved.ipo_ids);
				init_rows(&moved);
			}
		}
		ExecDropSingleTupleTableSlot(before);
		ExecDropSingleTupleTableSlot(after);
	}
	if (changed.n > 0)
		fini_outbox_updated(mapping->relid, changed.n, changed.own_refs, changed.ipo_ids);
	if (moved.n > 0)
		fini_outbox_moved(mapping->relid, moved.n, moved.old_refs, moved.own_refs, moved.ipo_ids);
}

static void
compare_rows(Mapping *mapping, TupleTableSlot *before, TupleTableSlot *after, Rows *changed, Rows *moved)
{
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
		add_row(moved, mapping, column_text(before, mapping->own_ref, &mapping->own_ref_output), after);
	else if (differs)
		add_row(changed, mapping, NULL, after);
}

static void
init_rows(Rows *rows)
{
	rows->n = 0;
	rows->old_refs = NULL;
	rows->own_refs = NULL;
	rows->ipo_ids = NULL;
}

static void
add_row(Rows *rows, Mapping *mapping, const char *old_ref, TupleTableSlot *slot)
{
	/* most statements touch one row */
	if (rows->n == 0 || rows->n == 1)
	{
		int			size = rows->n == 0 ? 1 : PORTION;

		rows->old_refs = rows->n == 0 ? palloc(sizeof(char *) * size) : repalloc(rows->old_refs, sizeof(char *) * size);
		rows->own_refs = rows->n == 0 ? palloc(sizeof(char *) * size) : repalloc(rows->own_refs, sizeof(char *) * size);
		rows->ipo_ids = rows->n == 0 ? palloc(sizeof(char *) * size) : repalloc(rows->ipo_ids, sizeof(char *) * size);
	}
	rows->old_refs[rows->n] = unconstify(char *, old_ref);
	rows->own_refs[rows->n] = column_text(slot, mapping->own_ref, &mapping->own_ref_output);
	rows->ipo_ids[rows->n] = column_text(slot, mapping->ipo_id, &mapping->ipo_id_output);
	rows->n++;
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
