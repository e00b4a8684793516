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
 * Runs as the extension's owner: no user code is called.  Not by SECURITY DEFINER
 * with a search_path, whose setting and undoing cost a single INSERT a fifth of
 * all that is done for it; the path is pinned when SQL is about to run.  What
 * INSERT needs of a table that is known runs none.
 *
 * On a replica (see attach_triggers.c) the change has been made elsewhere and
 * stands: nothing can be refused any more, for an error would only stop the
 * replication.
 *
 * Writing an outcome back fires these triggers too.  That statement of ours
 * asks for nothing, even if a trigger of the user's stamps a mapped column on
 * its way (a change would bring another outcome, and so on for ever); what
 * users' triggers do in its course by statements of their own counts like
 * anything else.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "utils/datum.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "identity.h"
#include "outbox.h"
#include "source.h"

PG_FUNCTION_INFO_V1(fini_sql_capture);

/* when the last transaction began that was seen to delete on a replica */
static TimestampTz deleting_since = 0;

/* rows are handed over in portions, so that memory stays bounded */
#define PORTION		20000

/* what the trigger has to know of the table; valid for one call */
typedef struct Mapping
{
	FiniSource *source;			/* the attached table: this one, or what it is a partition of */
	AttrNumber	own_ref;		/* numbers in the trigger's table */
	AttrNumber	ipo_id;
	Bitmapset  *mapped;			/* of all mapped columns, in the trigger's table as well; for an UPDATE */
	bool		by_row;			/* a row-level trigger */
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

static void truncated(Relation rel, Oid attached);
static void capture(TriggerData *trigger, FiniSource *source);
static void read_mapping(TriggerData *trigger, FiniSource *source, Mapping *mapping);
static void find_output(Oid type, FmgrInfo *output);
static bool is_former_partition(TriggerData *trigger);
static bool on_replica(void);
static void capture_rows(TriggerData *trigger, Tuplestorestate *table, Rows *rows);
static void capture_updates(TriggerData *trigger, Mapping *mapping);
static void compare_rows(TupleTableSlot *before, TupleTableSlot *after, Rows *changed, Rows *moved);
static void begin_rows(Rows *rows, Mapping *mapping, Change change);
static void add_row(Rows *rows, TupleTableSlot *before, TupleTableSlot *after);
static void hand_over(Rows *rows);
static void moved_on_replica(Rows *rows);
static void refuse_twice(Rows *rows);
static bool has_only_moved(Rows *rows);
static void rejoin(Rows *rows);
static char *column_text(TupleTableSlot *slot, AttrNumber attnum, FmgrInfo *output);
static TupleTableSlot *slot_of_tuple(TriggerData *trigger, HeapTuple tuple);

Datum
fini_sql_capture(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	FiniIdentity saved;
	FiniSource *source = NULL;
	Oid			attached;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("fini.capture can only be called as a trigger")));

	attached = fini_source_root(trigger->tg_relation);
	if (is_former_partition(trigger) ||
		(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) && fini_source_is_write_back(attached)))
		return PointerGetDatum(NULL);

	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
	{
		fini_identity_enter_function(&saved, fcinfo->flinfo->fn_oid);
		fini_identity_pin_path(&saved);
		truncated(trigger->tg_relation, attached);
		fini_identity_leave(&saved);
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
		tuplestore_tuple_count(trigger->tg_oldtable ? trigger->tg_oldtable : trigger->tg_newtable) == 0)
		return PointerGetDatum(NULL);

	fini_identity_enter_function(&saved, fcinfo->flinfo->fn_oid);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) && TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event))
		source = fini_source_known(attached, trigger->tg_relation);
	if (source != NULL && source->unique)
		capture(trigger, source);
	else
	{
		fini_identity_pin_path(&saved);
		SPI_connect();
		capture(trigger, fini_source_open(attached));
		SPI_finish();
	}
	fini_identity_leave(&saved);
	return PointerGetDatum(NULL);
}

static void
capture(TriggerData *trigger, FiniSource *source)
{
	Mapping		mapping;
	Rows		rows;

	read_mapping(trigger, source, &mapping);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		capture_updates(trigger, &mapping);
	else
	{
		bool		inserted = TRIGGER_FIRED_BY_INSERT(trigger->tg_event);

		begin_rows(&rows, &mapping, inserted ? INSERTED : DELETED);
		capture_rows(trigger, inserted ? trigger->tg_newtable : trigger->tg_oldtable, &rows);
	}
}

/*
 * A TRUNCATE that has been replicated goes through: an error would stop the
 * replication for good.  Withdrawing everything would be an answer that nobody
 * asked for, so the applications stand, and the log says so.
 */
static void
truncated(Relation rel, Oid attached)
{
	SPI_connect();
	if (fini_outbox_stands(attached))
	{
		if (on_replica())
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg("fini: table \"%s\" is truncated by replication while applications of it stand at FINI",
							RelationGetRelationName(rel)),
					 errhint("They stand on. Withdraw them with fini.invalidate, or bring the rows back, and leave truncate out of the publication.")));
		else
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot truncate table \"%s\" while applications of it stand at FINI",
							RelationGetRelationName(rel)),
					 rel->rd_rel->relispartition ?
					 errhint("Delete the rows, which withdraws them, or take the partition out of the attached table first, with ALTER TABLE ... DETACH PARTITION.") :
					 errhint("Delete the rows, which withdraws them, or detach the table first.")));
	}
	SPI_finish();
}

/* partitions need not have their columns in the order of the attached table */
static void
read_mapping(TriggerData *trigger, FiniSource *source, Mapping *mapping)
{
	Oid			relid = RelationGetRelid(trigger->tg_relation);
	bool		same = relid == source->relid;
	ListCell   *cell;

	mapping->source = source;
	mapping->own_ref = same ? source->own_ref->attnum : get_attnum(relid, source->own_ref->column);
	mapping->ipo_id = same ? source->ipo_id->attnum : get_attnum(relid, source->ipo_id->column);
	mapping->by_row = TRIGGER_FIRED_FOR_ROW(trigger->tg_event);
	mapping->mapped = NULL;
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		foreach(cell, source->fields)
		{
			FiniField  *field = lfirst(cell);

			mapping->mapped = bms_add_member(mapping->mapped, same ? field->attnum : get_attnum(relid, field->column));
		}
	}
	find_output(source->own_ref->type, &mapping->own_ref_output);
	find_output(source->ipo_id->type, &mapping->ipo_id_output);
}

static void
find_output(Oid type, FmgrInfo *output)
{
	Oid			function = F_TEXTOUT;
	bool		varlena;

	/* what it nearly always is need not be looked up */
	if (type != TEXTOID)
		getTypeOutputInfo(type, &function, &varlena);
	fmgr_info(function, output);
}

/* a trigger that was placed on a partition, whose table is one no more */
static bool
is_former_partition(TriggerData *trigger)
{
	return trigger->tg_trigger->tgnargs > 0 && !trigger->tg_relation->rd_rel->relispartition;
}

static bool
on_replica(void)
{
	return SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA;
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
		/* a row on its way to another partition that a trigger there did not let in */
		if (tuplestore_tuple_count(trigger->tg_oldtable) != tuplestore_tuple_count(trigger->tg_newtable))
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg("an update of table \"%s\" has lost rows on their way to another partition",
							RelationGetRelationName(trigger->tg_relation)),
					 errdetail("A BEFORE INSERT trigger of the partition returned null."),
					 errhint("Delete rows that are to go, which withdraws their applications.")));
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
	Oid			relid = rows->mapping->source->relid;

	if (rows->n > 0)
	{
		switch (rows->change)
		{
			case INSERTED:
				refuse_twice(rows);
				rejoin(rows);
				fini_outbox_inserted(relid, rows->n, rows->own_refs, rows->ipo_ids);
				break;
			case UPDATED:
				fini_outbox_updated(relid, rows->n, rows->own_refs, rows->ipo_ids);
				break;
			case MOVED:
				refuse_twice(rows);
				if (on_replica())
					moved_on_replica(rows);
				else
					fini_outbox_moved(relid, rows->n, rows->old_refs, rows->own_refs, rows->ipo_ids);
				break;
			case DELETED:
				if (!has_only_moved(rows))
				{
					fini_outbox_deleted(relid, rows->n, rows->own_refs);
					if (on_replica())
						deleting_since = GetCurrentTransactionStartTimestamp();
				}
				break;
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(rows->context);
	rows->n = 0;
}

/*
 * What has been sent cannot change its own_ref or ipo_id, and what has been
 * replicated cannot be refused: so it is what the hint of that error says, an
 * application withdrawn and a new one.
 */
static void
moved_on_replica(Rows *rows)
{
	Oid			relid = rows->mapping->source->relid;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool refused = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		fini_outbox_moved(relid, rows->n, rows->old_refs, rows->own_refs, rows->ipo_ids);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() != ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		refused = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (refused)
	{
		fini_outbox_deleted(relid, rows->n, rows->old_refs);
		fini_outbox_inserted(relid, rows->n, rows->own_refs, rows->ipo_ids);
	}
}

/*
 * An own_ref in two partitions, where no index forbids it.  Two transactions at
 * once do not see each other's; the worker finds that out before it sends.
 */
static void
refuse_twice(Rows *rows)
{
	FiniSource *source = rows->mapping->source;
	char	   *twice;

	if (source->unique || on_replica())
		return;
	twice = fini_source_find_twice(source, rows->n, rows->own_refs);
	if (twice != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("two rows of table %s have the own_ref \"%s\"", source->table, twice),
				 errdetail("They are in different partitions, where the table's unique constraint does not see it.")));
}

/*
 * To row-level triggers a row that changes its partition has been deleted
 * there and inserted here.  Then an add is enqueued on top of what stands, which
 * the worker makes a change.
 */
static bool
has_only_moved(Rows *rows)
{
	return rows->mapping->source->partitioned && rows->mapping->by_row &&
		fini_source_has_row(rows->mapping->source, rows->own_refs[0], rows->ipo_ids[0]);
}

/*
 * A row that changed its partition where it was published arrives as deleted and
 * inserted, in one transaction: the withdrawal is taken back, and what is
 * inserted becomes a change of what stands.
 */
static void
rejoin(Rows *rows)
{
	static FiniStatement rejoin_statement = {
		.sql = "SELECT fini.cancel($1, ARRAY[l.own_ref]) FROM (SELECT s.own_ref, s.ipo_id, s.operation, s.state, s.created_at"
		"  FROM fini.submission s WHERE s.own_ref = $2 AND s.relation = $1 AND NOT s.stray " FINI_LAST_OPERATION ") l"
		" WHERE l.operation = 'invalidate' AND l.state = 'queued' AND l.ipo_id = $3 AND l.created_at = now()",
		.nargs = 3, .types = {REGCLASSOID, TEXTOID, TEXTOID}
	};
	Datum		values[3];

	if (!rows->mapping->by_row || !on_replica() || deleting_since != GetCurrentTransactionStartTimestamp())
		return;
	values[0] = ObjectIdGetDatum(rows->mapping->source->relid);
	for (int i = 0; i < rows->n; i++)
	{
		values[1] = CStringGetTextDatum(rows->own_refs[i]);
		values[2] = CStringGetTextDatum(rows->ipo_ids[i]);
		(void) fini_outbox_execute(&rejoin_statement, values, NULL, 0);
	}
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
