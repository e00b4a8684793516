/*
 * attach.c
 *		fini.attach, fini.detach and fini.submit.
 *
 * attach and detach run as their caller, who must own the table: the triggers
 * are created with his rights.  Only the row in fini.attachment is written as
 * the extension's owner.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "answer.h"
#include "compat.h"
#include "identity.h"
#include "outbox.h"
#include "source.h"

PG_FUNCTION_INFO_V1(fini_sql_attach);
PG_FUNCTION_INFO_V1(fini_sql_detach);
PG_FUNCTION_INFO_V1(fini_sql_submit);

static const char *const standard_fields[] = {"ownRef", "ipoID", "idList", "idType", "idCountryJurisdiction",
"idNum", "fullNameEng", "fullNameChi", "appQuantity", "firmID", "extra"};

static void check_relation(Relation rel);
static Jsonb *resolve_fields(Relation rel, Jsonb *fields);
static Jsonb *resolve_outcome(Relation rel, Jsonb *outcome, Jsonb *fields);
static void check_field(Relation rel, const char *name, const char *column);
static void check_own_ref(Relation rel, const char *column);
static void require_fields(Relation rel, Jsonb *fields);
static bool has_unique_index(Relation rel, AttrNumber attnum);
static Form_pg_attribute find_column(Relation rel, const char *column);
static bool is_mapped(Jsonb *fields, const char *column);
static void push_pair(JsonbParseState **state, const char *key, const char *value);
static void execute(const char *sql);
static void create_triggers(Relation rel, bool live);
static void drop_triggers(Relation rel);
static void store_attachment(Oid relid, Jsonb *fields, Jsonb *outcome, bool live);
static void submit_batch(void *arg, int n, char **own_refs, char **ipo_ids);

Datum
fini_sql_attach(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	Jsonb	   *fields = PG_GETARG_JSONB_P(1);
	Jsonb	   *outcome = PG_GETARG_JSONB_P(2);
	bool		live = PG_GETARG_BOOL(3);
	Relation	rel;

	rel = relation_open(relid, ShareRowExclusiveLock);
	check_relation(rel);
	fields = resolve_fields(rel, fields);
	outcome = resolve_outcome(rel, outcome, fields);

	SPI_connect();
	drop_triggers(rel);
	create_triggers(rel, live);
	store_attachment(relid, fields, outcome, live);
	SPI_finish();
	relation_close(rel, NoLock);
	PG_RETURN_VOID();
}

Datum
fini_sql_detach(PG_FUNCTION_ARGS)
{
	static FiniStatement open_statement = {
		.sql = "SELECT FROM fini.submission s WHERE s.relation = $1 AND s.state IN ('queued', 'sending', 'unknown')",
		.nargs = 1, .types = {OIDOID}
	};
	static FiniStatement cancel_statement = {
		.sql = "SELECT fini.cancel($1::regclass)",
		.nargs = 1, .types = {OIDOID}
	};
	static FiniStatement forget_statement = {
		.sql = "DELETE FROM fini.attachment WHERE relation = $1",
		.nargs = 1, .types = {OIDOID}
	};
	Oid			relid = PG_GETARG_OID(0);
	bool		force = PG_GETARG_BOOL(1);
	Datum		values[1] = {ObjectIdGetDatum(relid)};
	Relation	rel;
	FiniIdentity saved;

	rel = relation_open(relid, ShareRowExclusiveLock);
	if (!fini_compat_owns_relation(relid))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, RelationGetRelationName(rel));

	SPI_connect();
	fini_identity_enter_extension(&saved);
	(void) fini_outbox_execute(&open_statement, values, NULL, 1);
	if (SPI_processed > 0 && !force)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("operations of table \"%s\" are still open", RelationGetRelationName(rel)),
				 errhint("Wait for them with fini.wait, or force it: what is queued is cancelled then, and what is being sent ends without being written back.")));
	if (SPI_processed > 0)
		(void) fini_outbox_execute(&cancel_statement, values, NULL, 0);
	(void) fini_outbox_execute(&forget_statement, values, NULL, 0);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not attached", RelationGetRelationName(rel))));
	fini_identity_leave(&saved);
	drop_triggers(rel);
	SPI_finish();
	relation_close(rel, NoLock);
	PG_RETURN_VOID();
}

/* SECURITY DEFINER: runs as the extension's owner, reads the table as its owner */
Datum
fini_sql_submit(PG_FUNCTION_ARGS)
{
	static FiniStatement lock_statement = {
		.sql = "SELECT FROM fini.attachment WHERE relation = $1 FOR UPDATE",
		.nargs = 1, .types = {OIDOID}
	};
	Datum		values[1];
	int64		submitted = 0;
	FiniSource *source;
	void	   *arg[2];

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the relation must not be null")));
	values[0] = PG_GETARG_DATUM(0);

	SPI_connect();
	/* one at a time: two would both find the same rows never sent */
	(void) fini_outbox_execute(&lock_statement, values, NULL, 0);
	source = fini_source_open(PG_GETARG_OID(0));
	arg[0] = source;
	arg[1] = &submitted;
	fini_source_scan(source, PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1)), submit_batch, arg);
	SPI_finish();
	PG_RETURN_INT64(submitted);
}

/* an ordinary, permanent table of one's own; every refusal with its reason */
static void
check_relation(Relation rel)
{
	const char *name = RelationGetRelationName(rel);
	const char *reason = NULL;
	const char *hint = "Attach an ordinary table.";

	switch (rel->rd_rel->relkind)
	{
		case RELKIND_RELATION:
			break;
		case RELKIND_VIEW:
			reason = "Its rows are not stored, so nothing tells when they change.";
			hint = "Attach the table beneath the view.";
			break;
		case RELKIND_MATVIEW:
			reason = "A materialized view has no triggers and takes no outcomes.";
			hint = "Attach a table beneath the view.";
			break;
		case RELKIND_FOREIGN_TABLE:
			reason = "Its rows live elsewhere and can change without a trigger here.";
			hint = "Attach the table where it is stored, or copy the rows into a local one.";
			break;
		case RELKIND_PARTITIONED_TABLE:
			reason = "Partitioned tables are not supported.";
			break;
		default:
			reason = "It is not a table.";
			break;
	}
	if (reason == NULL && rel->rd_rel->relispartition)
	{
		reason = "It is a partition: rows that come through its parent fire no trigger of its own.";
		hint = "Attach a table that is no partition.";
	}
	else if (reason == NULL && rel->rd_rel->relhassubclass && has_subclass(RelationGetRelid(rel)))
		reason = "Other tables inherit from it.";
	if (reason == NULL && rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
	{
		reason = "A temporary table is out of the worker's sight, and ends with its session.";
		hint = "Attach a permanent table.";
	}
	if (reason == NULL && rel->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
	{
		reason = "An unlogged table is empty after a crash, when its applications still stand at FINI.";
		hint = "Use ALTER TABLE ... SET LOGGED first.";
	}
	if (reason == NULL && IsCatalogRelation(rel))
		reason = "It is a system catalog.";
	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot attach \"%s\"", name),
				 errdetail("%s", reason),
				 errhint("%s", hint)));
	if (!fini_compat_owns_relation(RelationGetRelid(rel)))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, name);
}

/* the mapping in force: what was given, and standard columns for what was not */
static Jsonb *
resolve_fields(Relation rel, Jsonb *fields)
{
	JsonbParseState *state = NULL;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;
	Jsonb	   *resolved;

	if (!JB_ROOT_IS_OBJECT(fields))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the fields must be a JSON object"),
				 errhint("Map FINI's names to columns, as in {\"ownRef\": \"client_ref\"}.")));

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	it = JsonbIteratorInit(&fields->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
		{
			char	   *column;

			if (value.type != jbvString)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("the field \"%s\" is not mapped to a column name", name),
						 errhint("Give the column's name as a JSON string.")));
			column = pnstrdup(value.val.string.val, value.val.string.len);
			check_field(rel, name, column);
			push_pair(&state, name, column);
		}
	}
	for (size_t i = 0; i < lengthof(standard_fields); i++)
	{
		const char *column = fini_source_standard_column(standard_fields[i]);

		if (find_column(rel, column) != NULL && !is_mapped(fields, column) &&
			fini_answer_field(&fields->root, standard_fields[i]) == NULL)
		{
			check_field(rel, standard_fields[i], column);
			push_pair(&state, standard_fields[i], column);
		}
	}
	resolved = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	require_fields(rel, resolved);
	return resolved;
}

static Jsonb *
resolve_outcome(Relation rel, Jsonb *outcome, Jsonb *fields)
{
	static const char *const keys[][2] = {
		{FINI_OUTCOME_RECORD_ID, "record_id"},
		{FINI_OUTCOME_STATE, "fini_state"},
		{FINI_OUTCOME_ERROR, "fini_error"},
	};
	JsonbParseState *state = NULL;
	int			known = 0;

	if (!JB_ROOT_IS_OBJECT(outcome))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the outcome must be a JSON object"),
				 errhint("Map record_id, state and error to columns.")));

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (size_t i = 0; i < lengthof(keys); i++)
	{
		char	   *given = fini_answer_field(&outcome->root, keys[i][0]);
		const char *column = given != NULL ? given : keys[i][1];
		Form_pg_attribute attr = find_column(rel, column);

		known += given != NULL;
		if (given == NULL && (attr == NULL || is_mapped(fields, column)))
			continue;
		if (attr == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" does not exist", column, RelationGetRelationName(rel))));
		if (attr->atttypid != TEXTOID && attr->atttypid != VARCHAROID)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("outcome column \"%s\" must be of type text or varchar", column)));
		if (attr->attgenerated != '\0')
			ereport(ERROR,
					(errcode(ERRCODE_GENERATED_ALWAYS),
					 errmsg("outcome column \"%s\" is generated and cannot be written", column)));
		if (is_mapped(fields, column))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("outcome column \"%s\" is also mapped to a field", column),
					 errdetail("Writing an outcome would ask for a change.")));
		push_pair(&state, keys[i][0], column);
	}
	if (known != (int) JB_ROOT_COUNT(outcome))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the outcome has a key that is not known"),
				 errhint("The keys are record_id, state and error, each with a column name.")));
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

static void
check_field(Relation rel, const char *name, const char *column)
{
	Form_pg_attribute attr = find_column(rel, column);
	Oid			type;

	if (strcmp(name, "requestID") == 0 || strcmp(name, "recordID") == 0 || name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the field \"%s\" cannot be mapped", name),
				 errhint("It is set by fini; the record ID is written to an outcome column.")));
	if (attr == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", column, RelationGetRelationName(rel)),
				 errdetail("It is mapped to the field \"%s\".", name)));

	type = getBaseType(attr->atttypid);
	switch (fini_source_field_kind(name))
	{
		case FINI_FIELD_OWN_REF:
			check_own_ref(rel, column);
			break;
		case FINI_FIELD_IPO_ID:
			if (type != TEXTOID && type != VARCHAROID && type != BPCHAROID && type != INT4OID && type != INT8OID)
				ereport(ERROR,
						(errcode(ERRCODE_DATATYPE_MISMATCH),
						 errmsg("column \"%s\" cannot hold ipoID", column),
						 errdetail("Its type is %s.", format_type_be(attr->atttypid)),
						 errhint("Use text, varchar, integer or bigint.")));
			break;
		case FINI_FIELD_ID_LIST:
		case FINI_FIELD_EXTRA:
			if (type != JSONBOID && type != JSONOID)
				ereport(ERROR,
						(errcode(ERRCODE_DATATYPE_MISMATCH),
						 errmsg("column \"%s\" cannot hold %s", column, name),
						 errdetail("Its type is %s.", format_type_be(attr->atttypid)),
						 errhint("Use jsonb or json.")));
			break;
		default:
			break;
	}
}

static void
check_own_ref(Relation rel, const char *column)
{
	Form_pg_attribute attr = find_column(rel, column);
	Oid			type = getBaseType(attr->atttypid);

	if (type != TEXTOID && type != VARCHAROID && type != UUIDOID && type != INT4OID && type != INT8OID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" cannot hold ownRef", column),
				 errdetail("Its type is %s.", format_type_be(attr->atttypid)),
				 errhint("Use text, varchar, uuid, integer or bigint.")));
	if (!attr->attnotnull)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("column \"%s\", mapped to ownRef, may be null", column),
				 errhint("Use ALTER TABLE ... ALTER COLUMN ... SET NOT NULL.")));
	if (!has_unique_index(rel, attr->attnum))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("column \"%s\", mapped to ownRef, is not unique by itself", column),
				 errdetail("FINI's records are matched to rows by it."),
				 errhint("Make it the primary key or give it a unique constraint that is not deferrable.")));
}

/* an application needs a name of its own, an IPO, a quantity and an applicant */
static void
require_fields(Relation rel, Jsonb *fields)
{
	static const char *const required[] = {"ownRef", "ipoID", "appQuantity"};

	for (size_t i = 0; i < lengthof(required); i++)
	{
		if (fini_answer_field(&fields->root, required[i]) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("no column of table \"%s\" is mapped to %s", RelationGetRelationName(rel), required[i]),
					 errhint("Map one in fields, or name one %s.", fini_source_standard_column(required[i]))));
	}
	if (fini_answer_field(&fields->root, "idNum") == NULL && fini_answer_field(&fields->root, "idList") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no column of table \"%s\" is mapped to an applicant", RelationGetRelationName(rel)),
				 errhint("Map idNum and the other personal fields, or idList.")));
}

static bool
has_unique_index(Relation rel, AttrNumber attnum)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *cell;
	bool		found = false;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);
		Form_pg_index form = index->rd_index;

		found |= form->indisunique && form->indimmediate && form->indisvalid && form->indnkeyatts == 1 &&
			form->indkey.values[0] == attnum && RelationGetIndexPredicate(index) == NIL;
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	return found;
}

static Form_pg_attribute
find_column(Relation rel, const char *column)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, i);

		if (!attr->attisdropped && strcmp(NameStr(attr->attname), column) == 0)
			return attr;
	}
	return NULL;
}

/* is the column the value of any key? */
static bool
is_mapped(Jsonb *fields, const char *column)
{
	JsonbIterator *it = JsonbIteratorInit(&fields->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_VALUE && value.type == jbvString && value.val.string.len == (int) strlen(column) &&
			strncmp(value.val.string.val, column, value.val.string.len) == 0)
			return true;
	}
	return false;
}

static void
push_pair(JsonbParseState **state, const char *key, const char *value)
{
	JsonbValue	pair;

	pair.type = jbvString;
	pair.val.string.val = pstrdup(key);
	pair.val.string.len = (int) strlen(key);
	pushJsonbValue(state, WJB_KEY, &pair);
	pair.val.string.val = pstrdup(value);
	pair.val.string.len = (int) strlen(value);
	pushJsonbValue(state, WJB_VALUE, &pair);
}

static void
execute(const char *sql)
{
	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute: %s", sql);
}

static void
create_triggers(Relation rel, bool live)
{
	const char *table = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												   RelationGetRelationName(rel));

	execute(psprintf("CREATE TRIGGER fini_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION fini.capture()", table));
	if (!live)
		return;
	execute(psprintf("CREATE TRIGGER fini_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS fini_new"
					 " FOR EACH STATEMENT EXECUTE FUNCTION fini.capture()", table));
	execute(psprintf("CREATE TRIGGER fini_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS fini_old NEW TABLE AS fini_new"
					 " FOR EACH STATEMENT EXECUTE FUNCTION fini.capture()", table));
	execute(psprintf("CREATE TRIGGER fini_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS fini_old"
					 " FOR EACH STATEMENT EXECUTE FUNCTION fini.capture()", table));
}

static void
drop_triggers(Relation rel)
{
	static const char *const names[] = {"fini_truncate", "fini_insert", "fini_update", "fini_delete"};
	const char *table = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												   RelationGetRelationName(rel));

	for (size_t i = 0; i < lengthof(names); i++)
	{
		bool		exists = false;

		/* DROP ... IF EXISTS would say so in a notice */
		for (int t = 0; rel->trigdesc != NULL && t < rel->trigdesc->numtriggers; t++)
			exists |= strcmp(rel->trigdesc->triggers[t].tgname, names[i]) == 0;
		if (exists)
			execute(psprintf("DROP TRIGGER %s ON %s", names[i], table));
	}
}

static void
store_attachment(Oid relid, Jsonb *fields, Jsonb *outcome, bool live)
{
	static FiniStatement store_statement = {
		.sql = "INSERT INTO fini.attachment (relation, fields, outcome, live, attached_by) VALUES ($1, $2, $3, $4, $5)"
		" ON CONFLICT (relation) DO UPDATE SET fields = excluded.fields, outcome = excluded.outcome, live = excluded.live,"
		" attached_by = excluded.attached_by, attached_at = clock_timestamp()",
		.nargs = 5, .types = {OIDOID, JSONBOID, JSONBOID, BOOLOID, OIDOID}
	};
	Datum		values[5] = {ObjectIdGetDatum(relid), JsonbPGetDatum(fields), JsonbPGetDatum(outcome),
	BoolGetDatum(live), ObjectIdGetDatum(GetUserId())};
	FiniIdentity saved;

	fini_identity_enter_extension(&saved);
	(void) fini_outbox_execute(&store_statement, values, NULL, 0);
	fini_identity_leave(&saved);
}

static void
submit_batch(void *arg, int n, char **own_refs, char **ipo_ids)
{
	void	  **args = arg;
	FiniSource *source = args[0];
	int64	   *submitted = args[1];

	*submitted += fini_outbox_submit(source->relid, n, own_refs, ipo_ids);
}
