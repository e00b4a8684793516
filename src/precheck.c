/*
 * precheck.c
 *		fini.precheck: what FINI, or the worker, would refuse of a table's rows.
 *
 * One pass over the rows of the IPO, and one over those of the other attached
 * tables.  Each row says by itself what is wrong with it.  For documents that
 * are used twice, a digest of each is put into a sort together with the row's
 * name, and those that come out side by side are the ones; so memory is
 * bounded by work_mem, whatever the size, and what spills to disk holds no
 * personal value.
 *
 * The outbox is asked only of rows that have something the matter: what has
 * been withdrawn is of no interest any more, and what was rejected stands in
 * nobody's way.
 *
 * Runs as the extension's owner; tables are read as their owners.  What comes
 * out names rows, fields and tables, never values, so it may be seen by whoever
 * may read the outbox.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/tuplesort.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "applicant.h"
#include "compat.h"
#include "entry.h"
#include "identity.h"
#include "source.h"
#include "standing.h"

PG_FUNCTION_INFO_V1(fini_sql_precheck);

/* rows are asked about so many at a time; and others that share a document are named up to so many */
#define PORTION			1000
#define NAMED			3

/* something to tell, if the row is of interest */
typedef struct Finding
{
	const char *own_ref;
	const char *code;
	const char *text;
} Finding;

/* a row that has a document, among those that have the same */
typedef struct Holder
{
	Oid			relid;
	const char *own_ref;
	int			group;
	bool		counts;
} Holder;

typedef struct Precheck
{
	ReturnSetInfo *result;
	Oid			relid;			/* the table asked for */
	Tuplesortstate *documents;
	ResourceOwner owner;		/* of its temporary files: not that of a subtransaction */
	TupleTableSlot *slot;		/* digest, table, own_ref */
	MemoryContext portion;		/* of findings or holders, until they are told */
	List	   *findings;
	List	   *holders;
	int			group;
} Precheck;

static void begin_sort(Precheck *check);
static Oid	less_than(Oid type);
static void scan_table(Precheck *check, Oid relid, const char *ipo_id);
static void scan_other(Precheck *check, Oid relid, const char *ipo_id);
static void take_rows(void *arg, FiniSource *source, SPITupleTable *rows, int n);
static void put_documents(Precheck *check, Oid relid, const char *own_ref, List *documents);
static void add_finding(Precheck *check, const char *own_ref, const char *code, const char *text);
static void tell_findings(Precheck *check);
static void read_groups(Precheck *check);
static void add_holder(Precheck *check, Oid relid, const char *own_ref);
static void end_group(Precheck *check);
static void tell_holders(Precheck *check);
static void ask_standing(Precheck *check, Holder **holders, int n);
static void tell_holder(Precheck *check, Holder **group, int n, int self);
static void tell(Precheck *check, const char *own_ref, const char *code, const char *text);

Datum
fini_sql_precheck(PG_FUNCTION_ARGS)
{
	Precheck	check = {0};
	char	   *ipo_id = text_to_cstring(PG_GETARG_TEXT_PP(1));
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	check.result = (ReturnSetInfo *) fcinfo->resultinfo;
	check.relid = PG_GETARG_OID(0);
	SPI_connect();
	begin_sort(&check);
	scan_table(&check, check.relid, ipo_id);
	tell_findings(&check);
	foreach(cell, fini_standing_tables(CurrentMemoryContext))
	{
		if (lfirst_oid(cell) != check.relid)
			scan_other(&check, lfirst_oid(cell), ipo_id);
	}
	tuplesort_performsort(check.documents);
	read_groups(&check);
	tuplesort_end(check.documents);
	ExecDropSingleTupleTableSlot(check.slot);
	SPI_finish();
	return (Datum) 0;
}

static void
begin_sort(Precheck *check)
{
	TupleDesc	desc = CreateTemplateTupleDesc(3);
	AttrNumber	keys[] = {1, 2, 3};
	Oid			operators[] = {less_than(UUIDOID), less_than(OIDOID), less_than(TEXTOID)};
	Oid			collations[] = {InvalidOid, InvalidOid, C_COLLATION_OID};
	bool		nulls_first[] = {false, false, false};

	TupleDescInitEntry(desc, 1, "document", UUIDOID, -1, 0);
	TupleDescInitEntry(desc, 2, "relation", OIDOID, -1, 0);
	TupleDescInitEntry(desc, 3, "own_ref", TEXTOID, -1, 0);
	check->documents = tuplesort_begin_heap(desc, lengthof(keys), keys, operators, collations, nulls_first,
											work_mem, NULL, TUPLESORT_NONE);
	check->owner = CurrentResourceOwner;
	check->slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	check->portion = AllocSetContextCreate(CurrentMemoryContext, "fini precheck", ALLOCSET_DEFAULT_SIZES);
}

static Oid
less_than(Oid type)
{
	return lookup_type_cache(type, TYPECACHE_LT_OPR)->lt_opr;
}

static void
scan_table(Precheck *check, Oid relid, const char *ipo_id)
{
	FiniSource *source = fini_source_open(relid);

	/* no row of a table of numbers is of an IPO that is no number */
	if (fini_source_is_possible(source->ipo_id->type, ipo_id))
		fini_source_scan_rows(source, ipo_id, take_rows, check);
}

/* in a subtransaction: whatever is wrong with another table is no reason to say nothing of this one */
static void
scan_other(Precheck *check, Oid relid, const char *ipo_id)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		scan_table(check, relid, ipo_id);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		int			sqlstate = geterrcode();

		/* an error's text may quote values */
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (sqlstate == ERRCODE_QUERY_CANCELED || sqlstate == ERRCODE_ADMIN_SHUTDOWN)
			ereport(ERROR,
					(errcode(sqlstate),
					 errmsg("canceled while reading table \"%s\"", get_rel_name(relid))));
		ereport(WARNING,
				(errcode(sqlstate),
				 errmsg("attached table \"%s\" cannot be read (SQLSTATE %s)", get_rel_name(relid), unpack_sql_state(sqlstate)),
				 errdetail("Its documents are not compared.")));
	}
	PG_END_TRY();
}

static void
take_rows(void *arg, FiniSource *source, SPITupleTable *rows, int n)
{
	Precheck   *check = arg;
	bool		asked = source->relid == check->relid;
	FiniEntryMaker *maker = fini_entry_maker_create();
	Datum	   *values = palloc(sizeof(Datum) * rows->tupdesc->natts);
	bool	   *nulls = palloc(sizeof(bool) * rows->tupdesc->natts);
	FiniIdentity saved;

	/* output functions are the table's owner's affair */
	fini_identity_enter_owner(&saved, source->owner);
	for (int i = 0; i < n; i++)
	{
		char	   *own_ref = SPI_getvalue(rows->vals[i], rows->tupdesc, 1);
		List	   *problems;
		List	   *documents;
		ListCell   *cell;

		heap_deform_tuple(rows->vals[i], rows->tupdesc, values, nulls);
		if (asked)
		{
			FiniRow		row = {0};

			fini_entry_build(maker, source, values, nulls, &row);
			if (row.problem != NULL)
				add_finding(check, own_ref, row.problem, row.problem_text);
		}
		fini_applicant_check(source, values, nulls, &problems, &documents);
		foreach(cell, problems)
		{
			FiniProblem *problem = lfirst(cell);

			if (asked)
				add_finding(check, own_ref, problem->code, problem->text);
		}
		put_documents(check, source->relid, own_ref, documents);
	}
	fini_identity_leave(&saved);
	if (list_length(check->findings) >= PORTION)
		tell_findings(check);
}

static void
put_documents(Precheck *check, Oid relid, const char *own_ref, List *documents)
{
	ResourceOwner owner = CurrentResourceOwner;
	ListCell   *cell;

	foreach(cell, documents)
	{
		FiniDocument *document = lfirst(cell);

		StaticAssertStmt(FINI_DOCUMENT_LEN == UUID_LEN, "a digest must fit into a uuid");
		ExecClearTuple(check->slot);
		check->slot->tts_values[0] = PointerGetDatum(document->digest);
		check->slot->tts_values[1] = ObjectIdGetDatum(relid);
		check->slot->tts_values[2] = CStringGetTextDatum(own_ref);
		memset(check->slot->tts_isnull, 0, sizeof(bool) * 3);
		ExecStoreVirtualTuple(check->slot);
		CurrentResourceOwner = check->owner;
		tuplesort_puttupleslot(check->documents, check->slot);
		CurrentResourceOwner = owner;
	}
}

static void
add_finding(Precheck *check, const char *own_ref, const char *code, const char *text)
{
	MemoryContext old = MemoryContextSwitchTo(check->portion);
	Finding    *finding = palloc(sizeof(Finding));

	finding->own_ref = pstrdup(own_ref);
	finding->code = code;
	finding->text = pstrdup(text);
	check->findings = lappend(check->findings, finding);
	MemoryContextSwitchTo(old);
}

/* what has been withdrawn may be as it is */
static void
tell_findings(Precheck *check)
{
	int			n = list_length(check->findings);
	char	  **own_refs = palloc(sizeof(char *) * Max(1, n));
	FiniStanding *standings = palloc(sizeof(FiniStanding) * Max(1, n));

	for (int i = 0; i < n; i++)
		own_refs[i] = unconstify(char *, ((Finding *) list_nth(check->findings, i))->own_ref);
	fini_standing_read(check->relid, n, own_refs, standings);
	for (int i = 0; i < n; i++)
	{
		Finding    *finding = list_nth(check->findings, i);

		if (standings[i] != FINI_STANDING_WITHDRAWN)
			tell(check, finding->own_ref, finding->code, finding->text);
	}
	check->findings = NIL;
	MemoryContextReset(check->portion);
}

/* groups of rows that have one document; sorted by table and own_ref within each */
static void
read_groups(Precheck *check)
{
	TupleTableSlot *before = MakeSingleTupleTableSlot(check->slot->tts_tupleDescriptor, &TTSOpsMinimalTuple);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(check->slot->tts_tupleDescriptor, &TTSOpsMinimalTuple);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini precheck group", ALLOCSET_SMALL_SIZES);
	bool		in_group = false;

	while (tuplesort_gettupleslot(check->documents, true, true, slot, NULL))
	{
		TupleTableSlot *spare = before;
		MemoryContext old = MemoryContextSwitchTo(context);
		bool		same = false;

		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(slot);
		if (!TTS_EMPTY(before))
			same = memcmp(DatumGetPointer(before->tts_values[0]), DatumGetPointer(slot->tts_values[0]), UUID_LEN) == 0;
		if (in_group && !same)
			end_group(check);
		if (same)
		{
			if (!in_group)
				add_holder(check, DatumGetObjectId(before->tts_values[1]), TextDatumGetCString(before->tts_values[2]));
			add_holder(check, DatumGetObjectId(slot->tts_values[1]), TextDatumGetCString(slot->tts_values[2]));
		}
		in_group = same;
		before = slot;
		slot = spare;
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	if (in_group)
		end_group(check);
	tell_holders(check);
	ExecDropSingleTupleTableSlot(before);
	ExecDropSingleTupleTableSlot(slot);
}

static void
add_holder(Precheck *check, Oid relid, const char *own_ref)
{
	MemoryContext old = MemoryContextSwitchTo(check->portion);
	Holder	   *holder = palloc0(sizeof(Holder));

	holder->relid = relid;
	holder->own_ref = pstrdup(own_ref);
	holder->group = check->group;
	check->holders = lappend(check->holders, holder);
	MemoryContextSwitchTo(old);
}

static void
end_group(Precheck *check)
{
	check->group++;
	if (list_length(check->holders) >= PORTION)
		tell_holders(check);
}

static void
tell_holders(Precheck *check)
{
	int			n = list_length(check->holders);
	Holder	  **holders = palloc(sizeof(Holder *) * Max(1, n));
	int			end;

	for (int i = 0; i < n; i++)
		holders[i] = list_nth(check->holders, i);
	ask_standing(check, holders, n);
	for (int begin = 0; begin < n; begin = end)
	{
		int			counting = 0;

		for (end = begin; end < n && holders[end]->group == holders[begin]->group; end++)
		{
			/* those that count come first */
			if (holders[end]->counts)
			{
				Holder	   *holder = holders[end];

				holders[end] = holders[begin + counting];
				holders[begin + counting++] = holder;
			}
		}
		for (int i = 0; i < counting && counting > 1; i++)
			tell_holder(check, holders + begin, counting, i);
	}
	check->holders = NIL;
	MemoryContextReset(check->portion);
	pfree(holders);
}

/* table by table */
static void
ask_standing(Precheck *check, Holder **holders, int n)
{
	char	  **own_refs = palloc(sizeof(char *) * Max(1, n));
	int		   *positions = palloc(sizeof(int) * Max(1, n));
	FiniStanding *standings = palloc(sizeof(FiniStanding) * Max(1, n));
	List	   *asked = NIL;

	for (int i = 0; i < n; i++)
	{
		Oid			relid = holders[i]->relid;
		int			count = 0;

		if (list_member_oid(asked, relid))
			continue;
		asked = lappend_oid(asked, relid);
		for (int j = i; j < n; j++)
		{
			if (holders[j]->relid != relid)
				continue;
			positions[count] = j;
			own_refs[count++] = unconstify(char *, holders[j]->own_ref);
		}
		fini_standing_read(relid, count, own_refs, standings);
		for (int j = 0; j < count; j++)
			holders[positions[j]]->counts = standings[j] == FINI_STANDING_NONE || standings[j] == FINI_STANDING_SENT;
	}
	pfree(own_refs);
	pfree(positions);
	pfree(standings);
}

static void
tell_holder(Precheck *check, Holder **group, int n, int self)
{
	StringInfoData text;
	int			named = 0;

	if (group[self]->relid != check->relid)
		return;
	initStringInfo(&text);
	appendStringInfoString(&text, "idNum is also that of");
	for (int i = 0; i < n && named < NAMED; i++)
	{
		if (i == self)
			continue;
		appendStringInfo(&text, "%s own_ref \"%s\"", named > 0 ? "," : "", group[i]->own_ref);
		if (group[i]->relid != check->relid)
			appendStringInfo(&text, " of table %s",
							 quote_qualified_identifier(get_namespace_name(get_rel_namespace(group[i]->relid)), get_rel_name(group[i]->relid)));
		named++;
	}
	if (n - 1 > named)
		appendStringInfo(&text, " and %d more", n - 1 - named);
	tell(check, group[self]->own_ref, "duplicate_document", text.data);
	pfree(text.data);
}

static void
tell(Precheck *check, const char *own_ref, const char *code, const char *text)
{
	Datum		values[3] = {CStringGetTextDatum(own_ref), CStringGetTextDatum(code), CStringGetTextDatum(text)};
	bool		nulls[3] = {false, false, false};

	tuplestore_putvalues(check->result->setResult, check->result->setDesc, values, nulls);
	for (int i = 0; i < 3; i++)
		pfree(DatumGetPointer(values[i]));
}
