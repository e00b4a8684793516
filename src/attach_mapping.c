/*
 * attach_mapping.c
 *		What can be attached, and with which mapping.
 *
 * Every refusal has its reason, and a hint where the user can do something
 * about it.  The mapping that comes out names every column in use, so that a
 * standard column added later does not change what is sent.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/sysattr.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "attach.h"
#include "compat.h"
#include "identity.h"
#include "jsonb.h"
#include "outbox.h"
#include "source.h"

static const char *const standard_fields[] = {"ownRef", "ipoID", "idList", "idType", "idCountryJurisdiction",
"idNum", "fullNameEng", "fullNameChi", "appQuantity", "firmID", "extra"};

static void check_field(Relation rel, const char *name, const char *column);
static void check_own_ref(Relation rel, const char *column);
static void require_fields(Relation rel, Jsonb *fields);
static bool is_unique_in_partitions(Relation rel, AttrNumber attnum);
static bool is_partition_key(Relation rel, const char *column);
static bool is_mapped(Jsonb *fields, const char *column);
static void push_pair(JsonbParseState **state, const char *key, const char *value);

void
fini_attach_check_relation(Relation rel)
{
	const char *name = RelationGetRelationName(rel);
	const char *reason = NULL;
	const char *hint = "Attach an ordinary table.";

	switch (rel->rd_rel->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
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
		default:
			reason = "It is not a table.";
			break;
	}
	if (reason == NULL && rel->rd_rel->relispartition)
	{
		reason = "It is a partition: rows that come through its parent fire no trigger of its own.";
		hint = "Attach the table that it is a partition of.";
	}
	else if (reason == NULL && rel->rd_rel->relkind == RELKIND_RELATION && has_superclass(RelationGetRelid(rel)))
	{
		reason = "It inherits from another table: rows that are changed through that fire no trigger of its own.";
		hint = "Attach a table that inherits from none.";
	}
	else if (reason == NULL && rel->rd_rel->relkind == RELKIND_RELATION && find_inheritance_children(RelationGetRelid(rel), NoLock) != NIL)
	{
		reason = "Other tables inherit from it: their rows would pass for its own.";
		hint = "Attach a table that none inherits from.";
	}
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
	if (reason == NULL && (IsCatalogRelation(rel) || RelationGetNamespace(rel) == get_namespace_oid("fini", true)))
		reason = IsCatalogRelation(rel) ? "It is a system catalog." : "It is a table of the extension itself.";
	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot attach \"%s\"", name),
				 errdetail("%s", reason),
				 errhint("%s", hint)));
}

void
fini_attach_check_partition(Oid relid, Oid root)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Form_pg_class class;
	const char *reason = NULL;
	const char *hint = NULL;
	Jsonb	   *fields;
	Jsonb	   *outcome;
	FiniIdentity saved;
	bool		attached;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	class = (Form_pg_class) GETSTRUCT(tuple);
	/* not along the caller's search path, on which somebody may have put operators */
	fini_identity_enter_extension(&saved);
	attached = fini_outbox_attachment(relid, &fields, &outcome);
	fini_identity_leave(&saved);
	if (class->relpersistence == RELPERSISTENCE_UNLOGGED)
	{
		reason = "It is unlogged: empty after a crash, when its applications still stand at FINI.";
		hint = "Use ALTER TABLE ... SET LOGGED first.";
	}
	else if (attached)
	{
		reason = "It is attached itself.";
		hint = "Detach it first, with fini.detach. What it has sent stays known under its own name.";
	}
	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" cannot be a partition of the attached table \"%s\"",
						NameStr(class->relname), get_rel_name(root)),
				 errdetail("%s", reason),
				 errhint("%s", hint)));
	ReleaseSysCache(tuple);
}

Jsonb *
fini_attach_fields(Relation rel, Jsonb *fields)
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
		else if (token == WJB_VALUE && name != NULL)
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

		if (fini_attach_column(rel, column) != NULL && !is_mapped(fields, column) &&
			fini_jsonb_field(&fields->root, standard_fields[i]) == NULL)
		{
			check_field(rel, standard_fields[i], column);
			push_pair(&state, standard_fields[i], column);
		}
	}
	resolved = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	require_fields(rel, resolved);
	return resolved;
}

Jsonb *
fini_attach_outcome(Relation rel, Jsonb *outcome, Jsonb *fields)
{
	static const char *const keys[][2] = {
		{FINI_OUTCOME_RECORD_ID, "record_id"},
		{FINI_OUTCOME_STATE, "fini_state"},
		{FINI_OUTCOME_ERROR, "fini_error"},
	};
	const char *columns[lengthof(keys)] = {NULL};
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
		char	   *given = fini_jsonb_field(&outcome->root, keys[i][0]);
		const char *column = given != NULL ? given : keys[i][1];
		Form_pg_attribute attr = fini_attach_column(rel, column);

		known += given != NULL;
		if (given == NULL && (attr == NULL || is_mapped(fields, column)))
			continue;
		if (attr == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" does not exist", column, RelationGetRelationName(rel)),
					 errdetail("It is mapped to the outcome \"%s\".", keys[i][0])));
		if (attr->atttypid != TEXTOID && attr->atttypid != VARCHAROID)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("outcome column \"%s\" must be of type text or varchar", column),
					 errdetail("Its type is %s.", format_type_be(attr->atttypid))));
		if (attr->attgenerated != '\0')
			ereport(ERROR,
					(errcode(ERRCODE_GENERATED_ALWAYS),
					 errmsg("outcome column \"%s\" is generated and cannot be written", column),
					 errhint("Map another column, or none.")));
		if (is_partition_key(rel, column))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("outcome column \"%s\" is part of the partition key", column),
					 errdetail("Writing an outcome would move the row to another partition.")));
		if (is_mapped(fields, column))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("outcome column \"%s\" is also mapped to a field", column),
					 errdetail("Writing an outcome would ask for a change.")));
		for (size_t j = 0; j < i; j++)
		{
			if (columns[j] != NULL && strcmp(columns[j], column) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("column \"%s\" cannot take two outcomes", column)));
		}
		columns[i] = column;
		push_pair(&state, keys[i][0], column);
	}
	if (known != (int) JB_ROOT_COUNT(outcome))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the outcome has a key that is not known"),
				 errhint("The keys are record_id, state and error, each with a column name.")));
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

Form_pg_attribute
fini_attach_column(Relation rel, const char *column)
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

static void
check_field(Relation rel, const char *name, const char *column)
{
	Form_pg_attribute attr = fini_attach_column(rel, column);
	Oid			type;

	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a field without a name cannot be mapped")));
	if (strcmp(name, "requestID") == 0 || strcmp(name, "recordID") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the field \"%s\" cannot be mapped", name),
				 errhint("It is set by fini; the record ID is written to an outcome column.")));
	if (attr == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", column, RelationGetRelationName(rel)),
				 errdetail("It is mapped to the field \"%s\".", name)));

	/* a column computed when it is read never differs for a trigger */
	if (attr->attgenerated != '\0' && attr->attgenerated != ATTRIBUTE_GENERATED_STORED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\", mapped to the field \"%s\", is a virtual generated column", column, name),
				 errdetail("Triggers do not see its changes."),
				 errhint("Make it a stored one.")));

	type = getBaseType(attr->atttypid);
	switch (fini_source_field_kind(name))
	{
		case FINI_FIELD_OWN_REF:
			check_own_ref(rel, column);
			break;
		case FINI_FIELD_IPO_ID:
			if (type != TEXTOID && type != VARCHAROID && type != INT4OID && type != INT8OID)
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
	Form_pg_attribute attr = fini_attach_column(rel, column);
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
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE && !is_unique_in_partitions(rel, attr->attnum))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("column \"%s\", mapped to ownRef, is not unique in the partitions", column),
				 errdetail("FINI's records are matched to rows by it."),
				 errhint("Give the partitioned table a primary key or unique constraint of this column, followed by the partition key's where they differ.")));
	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE && !fini_source_is_unique(rel, attr->attnum))
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
		if (fini_jsonb_field(&fields->root, required[i]) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("no column of table \"%s\" is mapped to %s", RelationGetRelationName(rel), required[i]),
					 errhint("Map one in fields, or name one %s.", fini_source_standard_column(required[i]))));
	}
	if (fini_jsonb_field(&fields->root, "idNum") == NULL && fini_jsonb_field(&fields->root, "idList") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no column of table \"%s\" is mapped to an applicant", RelationGetRelationName(rel)),
				 errhint("Map idNum and the other personal fields, or idList.")));
}

/*
 * The unique constraint of a partitioned table has to hold its partition key
 * too: then own_ref is unique within a partition, and fini sees to the rest.
 * It has to come first, for rows are found by it.
 */
static bool
is_unique_in_partitions(Relation rel, AttrNumber attnum)
{
	List	   *indexes = RelationGetIndexList(rel);
	PartitionKey key = RelationGetPartitionKey(rel);
	ListCell   *cell;
	bool		found = false;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);
		Form_pg_index form = index->rd_index;
		bool		fits = form->indisunique && form->indimmediate && form->indisvalid &&
			form->indkey.values[0] == attnum && RelationGetIndexPredicate(index) == NIL;

		for (int i = 1; i < form->indnkeyatts; i++)
		{
			bool		in_key = false;

			for (int k = 0; k < key->partnatts; k++)
				in_key |= key->partattrs[k] != 0 && key->partattrs[k] == form->indkey.values[i];
			fits &= in_key;
		}
		found |= fits;
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	return found;
}

/* of the table, or of one of its partitions that are partitioned in their turn; an expression that uses it counts */
static bool
is_partition_key(Relation rel, const char *column)
{
	ListCell   *cell;
	bool		found = false;

	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return false;
	foreach(cell, find_all_inheritors(RelationGetRelid(rel), AccessShareLock, NULL))
	{
		Relation	member = relation_open(lfirst_oid(cell), NoLock);
		AttrNumber	attnum = get_attnum(RelationGetRelid(member), column);

		if (member->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
			found |= has_partition_attrs(member, bms_make_singleton(attnum - FirstLowInvalidHeapAttributeNumber), NULL);
		relation_close(member, NoLock);
	}
	return found;
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
