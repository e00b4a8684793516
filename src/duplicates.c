/*
 * duplicates.c
 *		Applications with a document that another application of the IPO has.
 *
 * Personal data lives in the users' tables and nowhere else, so there is no
 * table of documents, not even of digests: a Hong Kong identity card's number
 * is soon guessed from one.  The worker remembers, for each IPO that it sends
 * for, a hash of every document that stands at FINI or is on its way, with the
 * name of its row: some 60 bytes a document, in its own memory.  The first time
 * it meets an IPO it fills that register from the users' tables.
 *
 * The register only says where to look.  An application is rejected when the
 * other one stands, by the outbox, and its row says that it has the document, at
 * this moment.  What is there no longer is dropped from the register when it is
 * met.  So nothing has to be kept in step, and a claim that was rolled back does
 * no harm.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "applicant.h"
#include "compat.h"
#include "duplicates.h"
#include "identity.h"
#include "standing.h"

/* IPOs remembered at once; the one not used for longest makes room */
#define REGISTERS		8

/* a document, with its row's table and name; no table: there is none any more */
typedef struct Entry
{
	uint64		hash;			/* 0: free */
	Oid			relid;
	uint32		chunk;
	uint32		name;
} Entry;

#define NAMES_CHUNK		((Size) 1024 * 1024)

typedef struct Register
{
	char	   *ipo_id;
	TimestampTz attachments;	/* when any table was last attached: others may have come */
	uint64		used_at;
	MemoryContext context;
	Entry	   *entries;		/* open addressing; a power of two of them */
	uint64		size;
	uint64		used;
	char	  **chunks;			/* names one after the other */
	uint32		nchunks;
	uint32		chunk_used;
} Register;

static Register *registers[REGISTERS];
static uint64 uses = 0;

/* what fini.attachment says, for the claim at hand */
static bool any_precheck = false;
static TimestampTz last_attached = 0;

static FiniStatement precheck_statement = {
	.sql = "SELECT coalesce(bool_or(precheck) FILTER (WHERE relation = $1), false), coalesce(bool_or(precheck), false), max(attached_at)"
	" FROM fini.attachment",
	.nargs = 1, .types = {OIDOID}, .keep_plan = true
};

static FiniStatement sent_before_statement = {
	.sql = "SELECT FROM fini.submission s WHERE s.ipo_id = $1 AND s.state IN ('sending', 'unknown', 'accepted') AND s.id <> ALL ($2) LIMIT 1",
	.nargs = 2, .types = {TEXTOID, INT8ARRAYOID}
};

static void judge_member(Register *reg, FiniBatch *batch, FiniMember *member);
static bool holds(FiniBatch *batch, FiniMember *member, Oid relid, const char *own_ref, FiniDocument *document);
static Register *find_register(FiniBatch *batch);
static Register *make_register(const char *ipo_id);
static void fill_register(Register *reg, FiniBatch *batch);
static void fill_from_table(Register *reg, Oid relid);
static void fill_from_rows(void *arg, FiniSource *source, SPITupleTable *rows, int n);
static void remember(Register *reg, const FiniDocument *document, Oid relid, const char *own_ref);
static void grow(Register *reg);
static void keep_name(Register *reg, Entry *entry, const char *name);
static const char *name_of(Register *reg, const Entry *entry);
static uint64 hash_of(const FiniDocument *document);

void
fini_duplicates_prepare(FiniSource *source)
{
	Datum		values[1] = {ObjectIdGetDatum(source->relid)};
	HeapTuple	tuple;
	bool		isnull;

	(void) fini_outbox_execute(&precheck_statement, values, NULL, 1);
	tuple = SPI_tuptable->vals[0];
	source->precheck = DatumGetBool(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &isnull));
	source->documents = any_precheck = DatumGetBool(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 2, &isnull));
	last_attached = DatumGetTimestampTz(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 3, &isnull));
	SPI_freetuptable(SPI_tuptable);
}

void
fini_duplicates_judge(FiniBatch *batch)
{
	Register   *reg = NULL;

	if (batch->operation == FINI_OPERATION_INVALIDATE || !any_precheck)
		return;
	for (int i = 0; i < batch->count; i++)
	{
		FiniMember *member = &batch->members[i];

		if (member->state != NULL || member->row.documents == NIL)
			continue;
		if (reg == NULL)
			reg = find_register(batch);
		judge_member(reg, batch, member);
	}
}

static void
judge_member(Register *reg, FiniBatch *batch, FiniMember *member)
{
	ListCell   *cell;

	foreach(cell, member->row.documents)
	{
		FiniDocument *document = lfirst(cell);
		uint64		hash = hash_of(document);
		bool		known = false;

		for (uint64 i = hash & (reg->size - 1); reg->entries[i].hash != 0; i = (i + 1) & (reg->size - 1))
		{
			Entry	   *entry = &reg->entries[i];
			const char *own_ref;

			if (entry->hash != hash || !OidIsValid(entry->relid))
				continue;
			own_ref = name_of(reg, entry);
			if (entry->relid == member->relid && strcmp(own_ref, member->own_ref) == 0)
			{
				known = true;
				continue;
			}
			if (!holds(batch, member, entry->relid, own_ref, document))
			{
				entry->relid = InvalidOid;
				continue;
			}
			if (!member->row.prechecked)
				continue;
			member->state = "rejected";
			member->error_code = "duplicate_document";
			member->error_message = entry->relid == member->relid ?
				psprintf("idNum is also that of own_ref \"%s\"", own_ref) :
				psprintf("idNum is also that of own_ref \"%s\" of table %s", own_ref,
						 quote_qualified_identifier(get_namespace_name(get_rel_namespace(entry->relid)), get_rel_name(entry->relid)));
			return;
		}
		if (!known)
			remember(reg, document, member->relid, member->own_ref);
	}
}

/*
 * Does the application stand, and has it the document?  Of this batch, stands
 * what comes before the member and will be sent; what follows has yet to be
 * judged.
 */
static bool
holds(FiniBatch *batch, FiniMember *member, Oid relid, const char *own_ref, FiniDocument *document)
{
	char	   *names[1] = {unconstify(char *, own_ref)};
	FiniStanding standing;
	volatile bool found = false;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	for (int i = 0; i < batch->count; i++)
	{
		FiniMember *other = &batch->members[i];

		if (other->relid == relid && strcmp(other->own_ref, own_ref) == 0)
			return other < member && other->state == NULL && fini_applicant_has_document(other->row.documents, document);
	}
	fini_standing_read(relid, 1, names, &standing);
	if (standing != FINI_STANDING_SENT)
		return false;

	/* in a subtransaction: whatever is wrong with that table is its own affair */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		FiniSource *source = fini_source_open(relid);
		FiniRow		row;

		source->documents = true;
		fini_source_read(source, 1, &own_ref, &row, context);
		found = row.found && fini_applicant_has_document(row.documents, document);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return found;
}

static Register *
find_register(FiniBatch *batch)
{
	int			oldest = 0;

	for (int i = 0; i < REGISTERS; i++)
	{
		Register   *reg = registers[i];

		if (reg != NULL && strcmp(reg->ipo_id, batch->ipo_id) == 0 && reg->attachments == last_attached)
		{
			reg->used_at = ++uses;
			return reg;
		}
		/* one of before a table was attached is made anew */
		if (reg == NULL || strcmp(reg->ipo_id, batch->ipo_id) == 0)
			oldest = i;
		else if (registers[oldest] != NULL && strcmp(registers[oldest]->ipo_id, batch->ipo_id) != 0 &&
				 reg->used_at < registers[oldest]->used_at)
			oldest = i;
	}
	if (registers[oldest] != NULL)
	{
		MemoryContextDelete(registers[oldest]->context);
		registers[oldest] = NULL;
	}
	{
		Register   *reg = make_register(batch->ipo_id);

		/* it goes with the transaction until it is whole */
		fill_register(reg, batch);
		MemoryContextSetParent(reg->context, TopMemoryContext);
		registers[oldest] = reg;
		return reg;
	}
}

static Register *
make_register(const char *ipo_id)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini documents", ALLOCSET_DEFAULT_SIZES);
	Register   *reg = MemoryContextAllocZero(context, sizeof(Register));

	reg->context = context;
	reg->ipo_id = MemoryContextStrdup(context, ipo_id);
	reg->attachments = last_attached;
	reg->used_at = ++uses;
	reg->size = 1024;
	reg->entries = MemoryContextAllocZero(context, sizeof(Entry) * reg->size);
	return reg;
}

/* most IPOs begin with nothing that has been sent */
static void
fill_register(Register *reg, FiniBatch *batch)
{
	int64	   *ids = palloc(sizeof(int64) * batch->count);
	Datum		values[2];
	ListCell   *cell;

	for (int i = 0; i < batch->count; i++)
		ids[i] = batch->members[i].id;
	values[0] = CStringGetTextDatum(reg->ipo_id);
	values[1] = fini_outbox_int8_array(batch->count, ids);
	(void) fini_outbox_execute(&sent_before_statement, values, NULL, 1);
	if (SPI_processed == 0)
		return;
	foreach(cell, fini_standing_tables(CurrentMemoryContext))
		fill_from_table(reg, lfirst_oid(cell));
}

/* in a subtransaction, as above */
static void
fill_from_table(Register *reg, Oid relid)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		FiniSource *source = fini_source_open(relid);

		if (fini_source_is_possible(source->ipo_id->type, reg->ipo_id))
			fini_source_scan_rows(source, reg->ipo_id, fill_from_rows, reg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		int			sqlstate = geterrcode();

		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		ereport(LOG,
				(errcode(sqlstate),
				 errmsg("fini: the documents of table %s cannot be read, and are not compared (SQLSTATE %s)",
						get_rel_name(relid) ? get_rel_name(relid) : psprintf("with OID %u", relid), unpack_sql_state(sqlstate))));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

static void
fill_from_rows(void *arg, FiniSource *source, SPITupleTable *rows, int n)
{
	Register   *reg = arg;
	char	  **own_refs = palloc(sizeof(char *) * n);
	List	  **documents = palloc(sizeof(List *) * n);
	FiniStanding *standings = palloc(sizeof(FiniStanding) * n);
	Datum	   *values = palloc(sizeof(Datum) * rows->tupdesc->natts);
	bool	   *nulls = palloc(sizeof(bool) * rows->tupdesc->natts);
	FiniIdentity saved;

	fini_identity_enter_owner(&saved, source->owner);
	for (int i = 0; i < n; i++)
	{
		own_refs[i] = SPI_getvalue(rows->vals[i], rows->tupdesc, 1);
		heap_deform_tuple(rows->vals[i], rows->tupdesc, values, nulls);
		fini_applicant_check(source, values, nulls, NULL, &documents[i]);
	}
	fini_identity_leave(&saved);
	fini_standing_read(source->relid, n, own_refs, standings);
	for (int i = 0; i < n; i++)
	{
		ListCell   *cell;

		if (standings[i] != FINI_STANDING_SENT)
			continue;
		foreach(cell, documents[i])
			remember(reg, lfirst(cell), source->relid, own_refs[i]);
	}
}

static void
remember(Register *reg, const FiniDocument *document, Oid relid, const char *own_ref)
{
	uint64		hash = hash_of(document);
	uint64		i;

	/* what can never be sent is not looked for either */
	if (strlen(own_ref) >= NAMES_CHUNK)
		return;
	if (reg->used * 4 >= reg->size * 3)
		grow(reg);
	for (i = hash & (reg->size - 1); reg->entries[i].hash != 0; i = (i + 1) & (reg->size - 1))
	{
		if (reg->entries[i].hash == hash && !OidIsValid(reg->entries[i].relid))
			break;
	}
	if (reg->entries[i].hash == 0)
		reg->used++;
	reg->entries[i].hash = hash;
	reg->entries[i].relid = relid;
	keep_name(reg, &reg->entries[i], own_ref);
}

/* twice as many places; what has been dropped stays behind */
static void
grow(Register *reg)
{
	Entry	   *before = reg->entries;
	uint64		size = reg->size;

	reg->entries = MemoryContextAllocExtended(reg->context, sizeof(Entry) * size * 2, MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	reg->size = size * 2;
	reg->used = 0;
	for (uint64 i = 0; i < size; i++)
	{
		uint64		j;

		if (before[i].hash == 0 || !OidIsValid(before[i].relid))
			continue;
		for (j = before[i].hash & (reg->size - 1); reg->entries[j].hash != 0; j = (j + 1) & (reg->size - 1))
			;
		reg->entries[j] = before[i];
		reg->used++;
	}
	pfree(before);
}

static void
keep_name(Register *reg, Entry *entry, const char *name)
{
	uint32		len = (uint32) strlen(name) + 1;

	if (reg->nchunks == 0 || reg->chunk_used + len > NAMES_CHUNK)
	{
		MemoryContext old = MemoryContextSwitchTo(reg->context);

		if (reg->nchunks == 0)
			reg->chunks = palloc(sizeof(char *));
		else
			reg->chunks = repalloc(reg->chunks, sizeof(char *) * (reg->nchunks + 1));
		reg->chunks[reg->nchunks] = palloc(NAMES_CHUNK);
		reg->nchunks++;
		reg->chunk_used = 0;
		MemoryContextSwitchTo(old);
	}
	entry->chunk = reg->nchunks - 1;
	entry->name = reg->chunk_used;
	memcpy(reg->chunks[entry->chunk] + entry->name, name, len);
	reg->chunk_used += len;
}

static const char *
name_of(Register *reg, const Entry *entry)
{
	return reg->chunks[entry->chunk] + entry->name;
}

/* the digest is as good as random already; 0 means a free place */
static uint64
hash_of(const FiniDocument *document)
{
	uint64		hash;

	memcpy(&hash, document->digest, sizeof(hash));
	return hash != 0 ? hash : 1;
}
