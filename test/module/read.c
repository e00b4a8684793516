/*
 * read.c
 *		Rows of an attached table, read by the one way or by the other (source_fetch.c, source.c).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "applicant.h"
#include "identity.h"
#include "source.h"
#include "source_fetch.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(fini_test_fetches);
PG_FUNCTION_INFO_V1(fini_test_read);
PG_FUNCTION_INFO_V1(fini_test_watch);

static bool permit(void);
static void ignore_row(void *arg, int i, const Datum *values, const bool *nulls, const ItemPointerData *tid);
static Datum row_text(const char *own_ref, const FiniRow *row);

/* (relation regclass) -> boolean: would it be read without the executor? */
Datum
fini_test_fetches(PG_FUNCTION_ARGS)
{
	FiniSource *source;
	FiniIdentity saved;
	bool		fetched;

	SPI_connect();
	source = fini_source_open(PG_GETARG_OID(0));
	fini_identity_enter_owner(&saved, source->owner);
	fetched = fini_source_fetch(source, 0, NULL, ignore_row, NULL);
	fini_identity_leave(&saved);
	SPI_finish();
	PG_RETURN_BOOL(fetched);
}

/*
 * (relation regclass, own_refs text[], by_statement boolean, places boolean) ->
 * text[]: all that is made of each row, and where it is
 */
Datum
fini_test_read(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	Datum	   *elements;
	int			n;
	const char **own_refs;
	FiniRow    *rows;
	FiniSource *source;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
	own_refs = palloc(sizeof(char *) * Max(n, 1));
	rows = palloc(sizeof(FiniRow) * Max(n, 1));
	for (int i = 0; i < n; i++)
		own_refs[i] = TextDatumGetCString(elements[i]);

	SPI_connect();
	source = fini_source_open(PG_GETARG_OID(0));
	source->documents = true;
	source->precheck = true;
	/* those have no other way, and no places */
	source->partitioned |= PG_GETARG_BOOL(2);
	fini_source_read(source, n, own_refs, rows, context);
	SPI_finish();
	for (int i = 0; i < n; i++)
	{
		if (!PG_GETARG_BOOL(3))
			ItemPointerSetInvalid(&rows[i].tid);
		elements[i] = row_text(own_refs[i], &rows[i]);
	}
	PG_RETURN_ARRAYTYPE_P(construct_array(elements, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* (boolean) -> void: somebody looks at the permissions of all statements, or nobody does */
Datum
fini_test_watch(PG_FUNCTION_ARGS)
{
	ExecutorCheckPerms_hook = PG_GETARG_BOOL(0) ? (ExecutorCheckPerms_hook_type) (void (*) (void)) permit : NULL;
	PG_RETURN_VOID();
}

/* what it is called with depends on the version */
static bool
permit(void)
{
	return true;
}

static void
ignore_row(void *arg, int i, const Datum *values, const bool *nulls, const ItemPointerData *tid)
{
}

static Datum
row_text(const char *own_ref, const FiniRow *row)
{
	StringInfoData text;
	ListCell   *cell;

	initStringInfo(&text);
	appendStringInfo(&text, "%s:", own_ref);
	if (row->found)
	{
		appendStringInfo(&text, " %s %.*s json %d prechecked %d", row->ipo_id, (int) row->entry_len,
						 row->entry != NULL ? row->entry : "",
						 row->has_json, row->prechecked);
		if (row->problem != NULL)
			appendStringInfo(&text, " %s: %s", row->problem, row->problem_text);
		foreach(cell, row->documents)
		{
			FiniDocument *document = lfirst(cell);

			appendStringInfoChar(&text, ' ');
			for (int i = 0; i < FINI_DOCUMENT_LEN; i++)
				appendStringInfo(&text, "%02x", document->digest[i]);
		}
		if (ItemPointerIsValid(&row->tid))
			appendStringInfo(&text, " (%u,%u)", ItemPointerGetBlockNumber(&row->tid), ItemPointerGetOffsetNumber(&row->tid));
	}
	return CStringGetTextDatum(text.data);
}
