/*
 * attach_triggers.c
 *		The triggers of attached tables, and how they follow partitions.
 *
 * Whatever a session does is seen by statement-level triggers, which do not
 * fire under session_replication_role = replica.  What arrives by logical
 * replication fires row-level triggers only, and only those enabled for
 * replicas: a replicated table has one that fires there and nowhere else.  So
 * no change is seen by both.
 *
 * A statement fires the statement-level triggers of the table that it names.
 * So each partition has them too, with an argument that tells them apart:
 * without it a table that was a partition once would complain.  Row-level
 * triggers are copied to partitions by PostgreSQL itself.
 *
 * An event trigger gives new partitions their triggers, as the extension's
 * owner: whoever may add a partition need not know of fini.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "attach.h"
#include "compat.h"
#include "identity.h"
#include "outbox.h"
#include "source.h"

PG_FUNCTION_INFO_V1(fini_sql_follow_partitions);

#define REPLICA_TRIGGER		"fini_replica"

typedef struct TriggerKind
{
	const char *name;
	const char *definition;
	bool		live;			/* for live tables only */
	bool		replica;		/* for replicated tables only, and fires for replicas only */
	bool		row;			/* PostgreSQL copies it to partitions */
} TriggerKind;

static const TriggerKind kinds[] =
{
	{"fini_truncate", "BEFORE TRUNCATE ON %s FOR EACH STATEMENT", false, false, false},
	{"fini_insert", "AFTER INSERT ON %s REFERENCING NEW TABLE AS fini_new FOR EACH STATEMENT", true, false, false},
	{"fini_update", "AFTER UPDATE ON %s REFERENCING OLD TABLE AS fini_old NEW TABLE AS fini_new FOR EACH STATEMENT", true, false, false},
	{"fini_delete", "AFTER DELETE ON %s REFERENCING OLD TABLE AS fini_old FOR EACH STATEMENT", true, false, false},
	{REPLICA_TRIGGER, "AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW", true, true, true},
	{"fini_replica_truncate", "BEFORE TRUNCATE ON %s FOR EACH STATEMENT", true, true, false},
};

static void place_tree(Oid relid, LOCKMODE lock, bool attached, bool live, bool replicated);
static void place(Oid relid, bool is_partition, bool attached, bool live, bool replicated);
static Oid	capture_function(void);
static void follow(Oid root);
static void release_former_partitions(void);
static void execute(const char *sql);

void
fini_attach_place_triggers(Oid relid, bool attached, bool live, bool replicated)
{
	place_tree(relid, fini_attach_lock(relid, live, replicated), attached, live, replicated);
}

/* dropping triggers takes the strongest lock; asking for it later could end in a deadlock */
LOCKMODE
fini_attach_lock(Oid relid, bool live, bool replicated)
{
	bool		drops = !live || (!replicated && OidIsValid(get_trigger_oid(relid, REPLICA_TRIGGER, true)));

	return drops ? AccessExclusiveLock : ShareRowExclusiveLock;
}

/* event trigger at the end of DDL that may have given an attached table partitions, or taken some */
Datum
fini_sql_follow_partitions(PG_FUNCTION_ARGS)
{
	static FiniStatement roots_statement = {
		.sql = "SELECT a.relation::oid FROM fini.attachment a JOIN pg_catalog.pg_class c ON c.oid = a.relation WHERE c.relkind = 'p'"
	};
	static FiniStatement commands_statement = {
		.sql = "SELECT DISTINCT objid FROM pg_catalog.pg_event_trigger_ddl_commands()"
		" WHERE classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND object_type = 'table'"
	};
	MemoryContext context = CurrentMemoryContext;
	List	   *roots = NIL;
	List	   *touched = NIL;
	ListCell   *cell;
	FiniIdentity saved;
	bool		isnull;

	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("fini._follow_partitions can only be called as an event trigger")));
	fini_identity_enter_extension(&saved);
	SPI_connect();
	(void) fini_outbox_execute(&roots_statement, NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		roots = lappend_oid(roots, DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull)));
		MemoryContextSwitchTo(old);
	}
	if (roots != NIL)
	{
		(void) fini_outbox_execute(&commands_statement, NULL, NULL, 0);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			Relation	rel = try_relation_open(DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull)),
												NoLock);
			MemoryContext old;

			if (rel == NULL)
				continue;
			old = MemoryContextSwitchTo(context);
			if (list_member_oid(roots, fini_source_root(rel)))
				touched = list_append_unique_oid(touched, fini_source_root(rel));
			MemoryContextSwitchTo(old);
			relation_close(rel, NoLock);
		}
		foreach(cell, touched)
			follow(lfirst_oid(cell));
		if (touched != NIL)
			release_former_partitions();
	}
	SPI_finish();
	fini_identity_leave(&saved);
	PG_RETURN_NULL();
}

static void
place_tree(Oid relid, LOCKMODE lock, bool attached, bool live, bool replicated)
{
	ListCell   *cell;

	foreach(cell, find_all_inheritors(relid, lock, NULL))
	{
		Oid			member = lfirst_oid(cell);

		if (attached && member != relid)
			fini_attach_check_partition(member, relid);
		place(member, member != relid, attached, live, replicated);
	}
}

/*
 * The relation is locked.  What is there already stays, so that a new mapping
 * does not have to wait for the table's readers.
 */
static void
place(Oid relid, bool is_partition, bool attached, bool live, bool replicated)
{
	Oid			capture = capture_function();
	Relation	rel = relation_open(relid, NoLock);
	const char *table = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												   RelationGetRelationName(rel));
	List	   *commands = NIL;
	ListCell   *cell;

	for (size_t i = 0; i < lengthof(kinds); i++)
	{
		const TriggerKind *kind = &kinds[i];
		bool		wanted = attached && (live || !kind->live) && (replicated || !kind->replica);
		char		wanted_enabled = kind->replica ? TRIGGER_FIRES_ON_REPLICA : TRIGGER_FIRES_ON_ORIGIN;
		bool		exists = false;
		bool		fits = false;

		if (is_partition && kind->row)
			continue;
		/* a user's own trigger of that name is not ours to drop */
		for (int t = 0; rel->trigdesc != NULL && t < rel->trigdesc->numtriggers; t++)
		{
			Trigger    *trigger = &rel->trigdesc->triggers[t];

			if (strcmp(trigger->tgname, kind->name) == 0 && trigger->tgfoid == capture)
			{
				exists = true;
				fits = trigger->tgenabled == wanted_enabled && (trigger->tgnargs > 0) == is_partition;
			}
		}
		if (exists && !(wanted && fits))
			commands = lappend(commands, psprintf("DROP TRIGGER %s ON %s", kind->name, table));
		if (wanted && !fits)
		{
			commands = lappend(commands, psprintf("CREATE TRIGGER %s %s EXECUTE FUNCTION fini.capture(%s)",
												  kind->name, psprintf(kind->definition, table), is_partition ? "'partition'" : ""));
			if (kind->replica)
				commands = lappend(commands, psprintf("ALTER TABLE %s ENABLE REPLICA TRIGGER %s", table, kind->name));
		}
	}

	/* ALTER TABLE does not do with a table that is in use */
	relation_close(rel, NoLock);
	foreach(cell, commands)
		execute(lfirst(cell));
}

static Oid
capture_function(void)
{
	return LookupFuncName(list_make2(makeString("fini"), makeString("capture")), 0, NULL, false);
}

static void
follow(Oid root)
{
	static FiniStatement attachment_statement = {
		.sql = "SELECT live, replicated FROM fini.attachment WHERE relation = $1",
		.nargs = 1, .types = {OIDOID}
	};
	Datum		values[1] = {ObjectIdGetDatum(root)};
	bool		live;
	bool		replicated;
	bool		isnull;

	(void) fini_outbox_execute(&attachment_statement, values, NULL, 1);
	if (SPI_processed == 0)
		return;
	live = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	replicated = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	LockRelationOid(root, AccessShareLock);
	/* nobody has to wait for this but who uses the new partition, and that is locked already */
	place_tree(root, AccessShareLock, true, live, replicated);
}

/* they fire no more anyway, but they would stay for ever */
static void
release_former_partitions(void)
{
	static FiniStatement former_statement = {
		.sql = "SELECT DISTINCT t.tgrelid FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid"
		" WHERE t.tgfoid = $1 AND t.tgargs = 'partition\\000'::bytea AND NOT c.relispartition",
		.nargs = 1, .types = {OIDOID}
	};
	Datum		values[1] = {ObjectIdGetDatum(capture_function())};
	SPITupleTable *table;
	uint64		n;

	(void) fini_outbox_execute(&former_statement, values, NULL, 0);
	table = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			relid = DatumGetObjectId(SPI_getbinval(table->vals[i], table->tupdesc, 1, &isnull));
		ListCell   *cell;

		LockRelationOid(relid, AccessExclusiveLock);
		if (get_rel_name(relid) == NULL)
			continue;
		/* it may have partitions of its own, which were ours as well */
		foreach(cell, find_all_inheritors(relid, AccessExclusiveLock, NULL))
			place(lfirst_oid(cell), true, false, false, false);
	}
}

static void
execute(const char *sql)
{
	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute: %s", sql);
}
