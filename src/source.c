/*
 * source.c
 *		Reading a user's table, and writing outcomes back into it.
 *
 * Nothing here trusts the table: its owner may have changed anything since it
 * was attached.  Values are read with output functions, never with casts in
 * SQL (a cast may be the user's code), and every statement runs with the
 * owner's rights.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

#include "applicant.h"
#include "entry.h"
#include "identity.h"
#include "outbox.h"
#include "source.h"
#include "source_fetch.h"
#include "source_place.h"
#include "textmap.h"

/* the write-back that is running: its table, and the depth of triggers that it was started at */
static Oid	writing_to = InvalidOid;
static int	writing_at_depth = 0;

/* rows that are being read */
typedef struct Reading
{
	FiniSource *source;
	FiniRow    *rows;
	FiniEntryMaker *maker;
	MemoryContext into;
} Reading;

typedef struct OwnRefIndex
{
	const char *own_ref;
	int			index;
} OwnRefIndex;

static ArrayType *typed_array(const FiniField *field, int n, const char *const *texts);
static void read_by_statement(Reading *reading, int n, const char *const *own_refs);
static void take_row(void *arg, int i, const Datum *values, const bool *nulls, const ItemPointerData *tid);
static void check_applicants(FiniSource *source, const Datum *values, const bool *nulls, FiniRow *row);
static void problem(FiniRow *row, const char *code, const char *text);
static void write_by_own_ref(FiniSource *source, int n, const FiniOutcome *outcomes);
static int	trigger_depth(void);
static HTAB *index_by_own_ref(int n, const char *const *own_refs);
static void append_assignment(StringInfo sql, const char *column, const char *alias);

void
fini_source_read(FiniSource *source, int n, const char *const *own_refs, FiniRow *rows,
				 MemoryContext into)
{
	MemoryContext old = MemoryContextSwitchTo(into);
	Reading		reading = {source, rows, fini_entry_maker_create(), into};
	FiniIdentity saved;

	MemoryContextSwitchTo(old);
	memset(rows, 0, sizeof(FiniRow) * n);
	fini_identity_enter_owner(&saved, source->owner);
	if (!fini_source_fetch(source, n, own_refs, take_row, &reading))
		read_by_statement(&reading, n, own_refs);
	fini_identity_leave(&saved);
}

char *
fini_source_find_twice(FiniSource *source, int n, char **own_refs)
{
	MemoryContext into = CurrentMemoryContext;
	const char *column = quote_identifier(source->own_ref->column);
	Oid			types[1] = {get_array_type(source->own_ref->type)};
	Datum		args[1];
	FiniIdentity saved;
	char	   *twice = NULL;

	args[0] = PointerGetDatum(typed_array(source->own_ref, n, (const char *const *) own_refs));
	fini_identity_enter_owner(&saved, source->owner);
	if (fini_outbox_execute_kept(psprintf("SELECT %s FROM %s WHERE %s = ANY ($1) GROUP BY %s HAVING count(*) > 1 LIMIT 1",
										  column, source->table, column, column), 1, types, args) != SPI_OK_SELECT)
		elog(ERROR, "could not read table %s", source->table);
	if (SPI_processed > 0)
		twice = fini_outbox_column(0, 1, into);
	SPI_freetuptable(SPI_tuptable);
	fini_identity_leave(&saved);
	return twice;
}

bool
fini_source_has_row(FiniSource *source, const char *own_ref, const char *ipo_id)
{
	Oid			types[1] = {get_array_type(source->own_ref->type)};
	Datum		args[1];
	FiniIdentity saved;
	bool		found = false;

	args[0] = PointerGetDatum(typed_array(source->own_ref, 1, &own_ref));
	fini_identity_enter_owner(&saved, source->owner);
	if (fini_outbox_execute_kept(psprintf("SELECT %s FROM %s WHERE %s = ANY ($1)", quote_identifier(source->ipo_id->column),
										  source->table, quote_identifier(source->own_ref->column)), 1, types, args) != SPI_OK_SELECT)
		elog(ERROR, "could not read table %s", source->table);
	for (uint64 i = 0; i < SPI_processed && !found; i++)
	{
		char	   *text = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);

		found = strcmp(text != NULL ? text : "", ipo_id) == 0;
	}
	SPI_freetuptable(SPI_tuptable);
	fini_identity_leave(&saved);
	return found;
}

void
fini_source_find_rows(FiniSource *source, int n, char *const *own_refs, bool *present)
{
	const char *column = quote_identifier(source->own_ref->column);
	HTAB	   *index = index_by_own_ref(n, (const char *const *) own_refs);
	const char **possible = palloc(sizeof(char *) * Max(1, n));
	Oid			types[1] = {get_array_type(source->own_ref->type)};
	Datum		args[1];
	FiniIdentity saved;
	int			count = 0;

	for (int i = 0; i < n; i++)
	{
		present[i] = false;
		/* the column may have had another type when the operation was asked for */
		if (fini_source_is_possible(source->own_ref->type, own_refs[i]))
			possible[count++] = own_refs[i];
	}
	args[0] = PointerGetDatum(typed_array(source->own_ref, count, possible));
	fini_identity_enter_owner(&saved, source->owner);
	if (fini_outbox_execute_kept(psprintf("SELECT %s FROM %s WHERE %s = ANY ($1)", column, source->table, column),
								 1, types, args) != SPI_OK_SELECT)
		elog(ERROR, "could not read table %s", source->table);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *text = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		OwnRefIndex *found = text != NULL ? fini_textmap_find(index, text) : NULL;

		if (found != NULL)
			present[found->index] = true;
	}
	SPI_freetuptable(SPI_tuptable);
	fini_identity_leave(&saved);
	hash_destroy(index);
}

/*
 * Where the rows were seen not long ago, most of them still are; the others
 * are looked for by own_ref.
 */
void
fini_source_write_back(FiniSource *source, int n, const FiniOutcome *outcomes)
{
	FiniIdentity saved;
	FiniOutcome *rest;
	bool	   *written;
	int			nrest = 0;

	if (n == 0 || (source->record_id_column == NULL && source->state_column == NULL &&
				   source->error_column == NULL))
		return;
	written = palloc0(sizeof(bool) * n);
	fini_identity_enter_owner(&saved, source->owner);
	fini_source_write_places(source, n, outcomes, written);
	fini_identity_leave(&saved);
	rest = palloc(sizeof(FiniOutcome) * n);
	for (int i = 0; i < n; i++)
	{
		if (!written[i])
			rest[nrest++] = outcomes[i];
	}
	if (nrest > 0)
		write_by_own_ref(source, nrest, rest);
}

int64
fini_source_count(FiniSource *source, const char *ipo_id)
{
	StringInfoData sql;
	FiniIdentity saved;
	Oid			types[1] = {source->ipo_id->type};
	Datum		args[1];
	Oid			input;
	Oid			ioparam;
	int64		count;
	bool		isnull;
	int			rc;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT count(*) FROM %s WHERE %s = $1", source->table, quote_identifier(source->ipo_id->column));
	getTypeInputInfo(source->ipo_id->type, &input, &ioparam);
	args[0] = OidInputFunctionCall(input, unconstify(char *, ipo_id), ioparam, -1);

	fini_identity_enter_owner(&saved, source->owner);
	rc = SPI_execute_with_args(sql.data, 1, types, args, NULL, false, 0);
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "could not count the rows of table %s: %s", source->table, SPI_result_code_string(rc));
	count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	fini_identity_leave(&saved);
	return count;
}

bool
fini_source_is_write_back(Oid relid)
{
	return relid == writing_to && trigger_depth() == writing_at_depth + 1;
}

/* what source_fetch.c leaves */
static void
read_by_statement(Reading *reading, int n, const char *const *own_refs)
{
	FiniSource *source = reading->source;
	HTAB	   *index = index_by_own_ref(n, own_refs);
	const char **possible = palloc(sizeof(char *) * Max(1, n));
	StringInfoData sql;
	ListCell   *cell;
	Datum	   *values;
	bool	   *nulls;
	int			natts;
	int			count = 0;
	Oid			types[1] = {get_array_type(source->own_ref->type)};
	Datum		args[1];
	int			rc;

	initStringInfo(&sql);
	foreach(cell, source->fields)
	{
		FiniField  *field = lfirst(cell);

		appendStringInfo(&sql, "%s%s", cell == list_head(source->fields) ? "SELECT " : ", ",
						 quote_identifier(field->column));
	}
	/* a place says nothing without its partition */
	if (!source->partitioned)
		appendStringInfoString(&sql, ", ctid");
	appendStringInfo(&sql, " FROM %s WHERE %s = ANY ($1)", source->table,
					 quote_identifier(source->own_ref->column));
	for (int i = 0; i < n; i++)
	{
		/* what FINI has under an own_ref need not be one of this table's type */
		if (fini_source_is_possible(source->own_ref->type, own_refs[i]))
			possible[count++] = own_refs[i];
	}
	args[0] = PointerGetDatum(typed_array(source->own_ref, count, possible));

	rc = fini_outbox_execute_kept(sql.data, 1, types, args);
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "could not read table %s: %s", source->table, SPI_result_code_string(rc));
	natts = SPI_tuptable->tupdesc->natts;
	values = palloc(sizeof(Datum) * natts);
	nulls = palloc(sizeof(bool) * natts);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *own_ref = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		OwnRefIndex *found = own_ref ? fini_textmap_find(index, own_ref) : NULL;
		FiniRow    *row;

		if (found == NULL)
			continue;
		row = &reading->rows[found->index];
		/* which of the two was meant cannot be told, and what stands at FINI is known by own_ref alone */
		if (row->found)
		{
			problem(row, "own_ref_twice", "another row, in another partition of the table, has the same own_ref");
			continue;
		}
		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, values, nulls);
		take_row(reading, found->index, values, nulls,
				 source->partitioned ? NULL : (ItemPointer) DatumGetPointer(values[natts - 1]));
	}
	SPI_freetuptable(SPI_tuptable);
	hash_destroy(index);
}

/* tid: NULL where that says nothing */
static void
take_row(void *arg, int i, const Datum *values, const bool *nulls, const ItemPointerData *tid)
{
	Reading    *reading = arg;
	FiniRow    *row = &reading->rows[i];
	MemoryContext old = MemoryContextSwitchTo(reading->into);

	fini_entry_build(reading->maker, reading->source, values, nulls, row);
	if (tid != NULL)
		row->tid = *tid;
	if (reading->source->documents)
		check_applicants(reading->source, values, nulls, row);
	MemoryContextSwitchTo(old);
}

/* texts as an array of the field's type */
static ArrayType *
typed_array(const FiniField *field, int n, const char *const *texts)
{
	Datum	   *values = palloc(sizeof(Datum) * n);
	Oid			input;
	Oid			ioparam;
	int16		typlen;
	bool		typbyval;
	char		typalign;
	FmgrInfo	finfo;

	getTypeInputInfo(field->type, &input, &ioparam);
	fmgr_info(input, &finfo);
	for (int i = 0; i < n; i++)
		values[i] = InputFunctionCall(&finfo, unconstify(char *, texts[i]), ioparam, -1);
	get_typlenbyvalalign(field->type, &typlen, &typbyval, &typalign);
	return construct_array(values, n, field->type, typlen, typbyval, typalign);
}

bool
fini_source_is_possible(Oid type, const char *own_ref)
{
	Size		len = strlen(own_ref);
	const char *digits = own_ref[0] == '-' ? own_ref + 1 : own_ref;
	long long	number;

	switch (type)
	{
		case UUIDOID:
			return len == 36 && strspn(own_ref, "0123456789abcdef-") == len &&
				own_ref[8] == '-' && own_ref[13] == '-' && own_ref[18] == '-' && own_ref[23] == '-' &&
				strspn(own_ref, "-") == 0 && strchr(strchr(strchr(strchr(own_ref, '-') + 1, '-') + 1, '-') + 1, '-') == strrchr(own_ref, '-');
		case INT4OID:
		case INT8OID:
			if (digits[0] == '\0' || strspn(digits, "0123456789") != strlen(digits))
				return false;
			errno = 0;
			number = strtoll(own_ref, NULL, 10);
			return errno == 0 && (type == INT8OID || (number >= PG_INT32_MIN && number <= PG_INT32_MAX));
		default:
			return true;
	}
}

static void
check_applicants(FiniSource *source, const Datum *values, const bool *nulls, FiniRow *row)
{
	List	   *problems;

	fini_applicant_check(source, values, nulls, &problems, &row->documents);
	row->prechecked = source->precheck;
	if (source->precheck && row->problem == NULL && problems != NIL)
	{
		row->problem = ((FiniProblem *) linitial(problems))->code;
		row->problem_text = ((FiniProblem *) linitial(problems))->text;
	}
}

static void
problem(FiniRow *row, const char *code, const char *text)
{
	row->problem = code;
	row->problem_text = text;
}

static void
write_by_own_ref(FiniSource *source, int n, const FiniOutcome *outcomes)
{
	StringInfoData sql;
	FiniIdentity saved;
	Datum	   *column[3];
	bool	   *nulls[3];
	const char **own_refs;
	Oid			types[4];
	Datum		args[4];
	int			dims[1] = {n};
	int			lbs[1] = {1};
	Oid			outer_table = writing_to;
	int			outer_depth = writing_at_depth;
	int			rc;

	own_refs = palloc(sizeof(char *) * n);
	for (int i = 0; i < n; i++)
		own_refs[i] = outcomes[i].own_ref;
	for (int c = 0; c < 3; c++)
	{
		column[c] = palloc(sizeof(Datum) * n);
		nulls[c] = palloc(sizeof(bool) * n);
		for (int i = 0; i < n; i++)
		{
			const char *text = c == 0 ? outcomes[i].record_id : c == 1 ? outcomes[i].state : outcomes[i].error;

			nulls[c][i] = text == NULL;
			column[c][i] = text != NULL ? CStringGetTextDatum(text) : (Datum) 0;
		}
		types[c + 1] = TEXTARRAYOID;
		args[c + 1] = PointerGetDatum(construct_md_array(column[c], nulls[c], 1, dims, lbs,
														 TEXTOID, -1, false, TYPALIGN_INT));
	}
	types[0] = get_array_type(source->own_ref->type);
	args[0] = PointerGetDatum(typed_array(source->own_ref, n, own_refs));

	initStringInfo(&sql);
	appendStringInfo(&sql, "UPDATE %s AS t SET ", source->table);
	append_assignment(&sql, source->record_id_column, "v.r");
	append_assignment(&sql, source->state_column, "v.s");
	append_assignment(&sql, source->error_column,
					  source->error_limit > 0 ? psprintf("left(v.e, %d)", source->error_limit) : "v.e");
	sql.len -= 2;				/* the last comma */
	sql.data[sql.len] = '\0';
	appendStringInfo(&sql, " FROM ROWS FROM (unnest($1), unnest($2), unnest($3), unnest($4)) AS v(k, r, s, e) WHERE t.%s = v.k",
					 quote_identifier(source->own_ref->column));

	fini_identity_enter_owner(&saved, source->owner);
	writing_to = source->relid;
	writing_at_depth = trigger_depth();
	PG_TRY();
	{
		rc = fini_outbox_execute_kept(sql.data, 4, types, args);
	}
	PG_FINALLY();
	{
		/* a trigger of that statement may have written back in its turn */
		writing_to = outer_table;
		writing_at_depth = outer_depth;
	}
	PG_END_TRY();
	if (rc != SPI_OK_UPDATE)
		elog(ERROR, "could not write to table %s: %s", source->table, SPI_result_code_string(rc));
	fini_identity_leave(&saved);
}

static int
trigger_depth(void)
{
	return DatumGetInt32(OidFunctionCall0(F_PG_TRIGGER_DEPTH));
}

static HTAB *
index_by_own_ref(int n, const char *const *own_refs)
{
	HTAB	   *index = fini_textmap_create("own_refs", n, sizeof(OwnRefIndex), CurrentMemoryContext);

	for (int i = 0; i < n; i++)
		((OwnRefIndex *) fini_textmap_enter(index, own_refs[i], NULL))->index = i;
	return index;
}

/* NULL leaves a column alone, an empty text clears it */
static void
append_assignment(StringInfo sql, const char *column, const char *alias)
{
	if (column == NULL)
		return;
	appendStringInfo(sql, "%s = CASE WHEN %s IS NULL THEN t.%s ELSE nullif(%s, '') END, ",
					 quote_identifier(column), alias, quote_identifier(column), alias);
}
