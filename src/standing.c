/*
 * standing.c
 *		How applications stand, by what the outbox says of them.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"

#include "compat.h"
#include "outbox.h"
#include "standing.h"

/* of what was cancelled nothing is left but what came before */
static FiniStatement standing_statement = {
	.sql = "SELECT CASE WHEN l.operation = 'invalidate' THEN 'w' WHEN l.operation = 'add' AND l.state = 'queued' THEN 'n'"
	"  WHEN l.operation IS NOT NULL THEN 's' WHEN p.state = 'rejected' THEN 'r' ELSE 'n' END"
	" FROM ROWS FROM (unnest($2)) WITH ORDINALITY AS u(r, n)"
	" LEFT JOIN LATERAL (SELECT s.operation, s.state FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1"
	"  AND s.state IN ('queued', 'sending', 'unknown', 'accepted') AND NOT s.stray " FINI_LAST_OPERATION ") l ON true"
	" LEFT JOIN LATERAL (SELECT s.state FROM fini.submission s WHERE s.own_ref = u.r AND s.relation = $1"
	"  AND s.state <> 'cancelled' AND NOT s.stray " FINI_LAST_OPERATION ") p ON true ORDER BY u.n",
	.nargs = 2, .types = {OIDOID, TEXTARRAYOID}
};

static FiniStatement tables_statement = {
	.sql = "SELECT a.relation::oid FROM fini.attachment a JOIN pg_catalog.pg_class c ON c.oid = a.relation ORDER BY 1"
};

void
fini_standing_read(Oid relid, int n, char **own_refs, FiniStanding *standings)
{
	Datum		values[2] = {ObjectIdGetDatum(relid), fini_outbox_text_array(n, own_refs)};

	if (n == 0)
		return;
	(void) fini_outbox_execute(&standing_statement, values, NULL, 0);
	for (int i = 0; i < n; i++)
	{
		char	   *letter = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);

		standings[i] = letter[0] == 'w' ? FINI_STANDING_WITHDRAWN : letter[0] == 's' ? FINI_STANDING_SENT :
			letter[0] == 'r' ? FINI_STANDING_REJECTED : FINI_STANDING_NONE;
		pfree(letter);
	}
	SPI_freetuptable(SPI_tuptable);
}

List *
fini_standing_tables(MemoryContext into)
{
	List	   *tables = NIL;
	bool		isnull;

	(void) fini_outbox_execute(&tables_statement, NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(into);

		tables = lappend_oid(tables, DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull)));
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
	return tables;
}
