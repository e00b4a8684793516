/*
 * source_scan.c
 *		Going through all rows of a user's table, for one IPO or for all.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "compat.h"
#include "identity.h"
#include "source.h"

#define SCAN_BATCH	5000

typedef struct BatchScan
{
	FiniSourceBatch fn;
	void	   *arg;
} BatchScan;

static void scan(FiniSource *source, const char *columns, const char *ipo_id, FiniSourceRows fn, void *arg);
static void hand_batch(void *arg, FiniSource *source, SPITupleTable *rows, int n);

void
fini_source_scan(FiniSource *source, const char *ipo_id, FiniSourceBatch fn, void *arg)
{
	BatchScan	batch = {fn, arg};

	scan(source, psprintf("%s, %s", quote_identifier(source->own_ref->column), quote_identifier(source->ipo_id->column)),
		 ipo_id, hand_batch, &batch);
}

void
fini_source_scan_rows(FiniSource *source, const char *ipo_id, FiniSourceRows fn, void *arg)
{
	StringInfoData columns;
	ListCell   *cell;

	initStringInfo(&columns);
	foreach(cell, source->fields)
		appendStringInfo(&columns, "%s%s", columns.len > 0 ? ", " : "", quote_identifier(((FiniField *) lfirst(cell))->column));
	scan(source, columns.data, ipo_id, fn, arg);
}

static void
scan(FiniSource *source, const char *columns, const char *ipo_id, FiniSourceRows fn, void *arg)
{
	MemoryContext context;
	StringInfoData sql;
	FiniIdentity saved;
	Portal		portal;
	Oid			types[1];
	Datum		args[1];

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s FROM %s", columns, source->table);
	if (ipo_id != NULL)
		appendStringInfo(&sql, " WHERE %s = $1", quote_identifier(source->ipo_id->column));
	types[0] = source->ipo_id->type;
	if (ipo_id != NULL)
	{
		Oid			input;
		Oid			ioparam;

		getTypeInputInfo(source->ipo_id->type, &input, &ioparam);
		args[0] = OidInputFunctionCall(input, unconstify(char *, ipo_id), ioparam, -1);
	}

	fini_identity_enter_owner(&saved, source->owner);
	portal = SPI_cursor_open_with_args(NULL, sql.data, ipo_id != NULL ? 1 : 0, types, args, NULL, false, 0);
	/* goes with the portal, whatever the caller does to the context he came in */
	context = AllocSetContextCreate(portal->portalContext, "fini scan", ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		SPITupleTable *rows;
		MemoryContext old;
		int			n;

		SPI_cursor_fetch(portal, true, SCAN_BATCH);
		n = (int) SPI_processed;
		if (n == 0)
			break;
		rows = SPI_tuptable;

		/* what the caller does is its own work, with its own rights */
		fini_identity_leave(&saved);
		old = MemoryContextSwitchTo(context);
		fn(arg, source, rows, n);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
		fini_identity_enter_owner(&saved, source->owner);
		SPI_freetuptable(rows);
	}
	SPI_cursor_close(portal);
	fini_identity_leave(&saved);
}

static void
hand_batch(void *arg, FiniSource *source, SPITupleTable *rows, int n)
{
	BatchScan  *batch = arg;
	char	  **own_refs = palloc(sizeof(char *) * n);
	char	  **ipo_ids = palloc(sizeof(char *) * n);

	for (int i = 0; i < n; i++)
	{
		own_refs[i] = SPI_getvalue(rows->vals[i], rows->tupdesc, 1);
		ipo_ids[i] = SPI_getvalue(rows->vals[i], rows->tupdesc, 2);
		if (ipo_ids[i] == NULL)
			ipo_ids[i] = "";
	}
	batch->fn(batch->arg, n, own_refs, ipo_ids);
}
