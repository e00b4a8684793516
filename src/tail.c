/*
 * tail.c
 *		Where the records of an IPO ended: fini.look.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "outbox.h"
#include "tail.h"

static FiniStatement read_statement = {
	.sql = "SELECT cursor FROM fini.look WHERE ipo_id = $1",
	.nargs = 1, .types = {TEXTOID}, .keep_plan = true
};

static FiniStatement keep_statement = {
	.sql = "INSERT INTO fini.look AS l (ipo_id, cursor) VALUES ($1, $2)"
	" ON CONFLICT (ipo_id) DO UPDATE SET cursor = excluded.cursor, looked_at = clock_timestamp()",
	.nargs = 2, .types = {TEXTOID, TEXTOID}, .keep_plan = true
};

char *
fini_tail_of(const char *ipo_id, MemoryContext into)
{
	Datum		values[1] = {CStringGetTextDatum(ipo_id)};

	(void) fini_outbox_execute(&read_statement, values, NULL, 1);
	return SPI_processed == 1 ? fini_outbox_column(0, 1, into) : NULL;
}

void
fini_tail_keep(const char *ipo_id, const char *known, const char *cursor)
{
	Datum		values[2];

	if (cursor == NULL || (known != NULL && strcmp(known, cursor) == 0))
		return;
	values[0] = CStringGetTextDatum(ipo_id);
	values[1] = CStringGetTextDatum(cursor);
	(void) fini_outbox_execute(&keep_statement, values, NULL, 0);
}
