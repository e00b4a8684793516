/*
 * source_open.c
 *		What an attached table is, by its mapping and its columns as they are now.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/partition.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "jsonb.h"
#include "outbox.h"
#include "source.h"
#include "source_cache.h"

static const struct
{
	const char *field;
	const char *column;
	FiniFieldKind kind;
}			standard_fields[] =
{
	{"ownRef", "own_ref", FINI_FIELD_OWN_REF},
	{"ipoID", "ipo_id", FINI_FIELD_IPO_ID},
	{"idList", "id_list", FINI_FIELD_ID_LIST},
	{"idType", "id_type", FINI_FIELD_PERSONAL},
	{"idCountryJurisdiction", "id_country_jurisdiction", FINI_FIELD_PERSONAL},
	{"idNum", "id_num", FINI_FIELD_PERSONAL},
	{"fullNameEng", "full_name_eng", FINI_FIELD_PERSONAL},
	{"fullNameChi", "full_name_chi", FINI_FIELD_PERSONAL},
	{"appQuantity", "app_quantity", FINI_FIELD_QUANTITY},
	{"firmID", "firm_id", FINI_FIELD_FIRM_ID},
	{"extra", "extra", FINI_FIELD_EXTRA},
};

static FiniSource *describe(Relation rel, Jsonb *fields, Jsonb *outcome);
static void add_field(FiniSource *source, Relation rel, const char *name, const char *column);
static const char *outcome_column(Relation rel, Jsonb *outcome, const char *key);
static AttrNumber column_number(Relation rel, const char *column);

const char *
fini_source_standard_column(const char *field)
{
	for (size_t i = 0; i < lengthof(standard_fields); i++)
	{
		if (strcmp(standard_fields[i].field, field) == 0)
			return standard_fields[i].column;
	}
	return NULL;
}

FiniFieldKind
fini_source_field_kind(const char *field)
{
	for (size_t i = 0; i < lengthof(standard_fields); i++)
	{
		if (strcmp(standard_fields[i].field, field) == 0)
			return standard_fields[i].kind;
	}
	return FINI_FIELD_OTHER;
}

FiniSource *
fini_source_open(Oid relid)
{
	FiniSource *source = fini_source_try_open(relid);

	if (source == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s is not attached",
						get_rel_name(relid) ? quote_identifier(get_rel_name(relid)) : psprintf("with OID %u", relid)),
				 errhint("Attach it with fini.attach.")));
	return source;
}

FiniSource *
fini_source_try_open(Oid relid)
{
	FiniSource *source;
	Relation	rel;

	/* the lock keeps columns and owner as they are until the end of the transaction; it also tells the cache what is new */
	rel = try_relation_open(relid, AccessShareLock);
	source = fini_source_cached(relid);
	if (source == NULL)
	{
		Jsonb	   *fields;
		Jsonb	   *outcome;
		MemoryContext context = fini_source_begin_cached();
		MemoryContext old;

		if (!fini_outbox_attachment(relid, &fields, &outcome))
		{
			MemoryContextDelete(context);
			if (rel != NULL)
				relation_close(rel, AccessShareLock);
			return NULL;
		}
		if (rel == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_TABLE),
					 errmsg("attached table with OID %u does not exist any more", relid)));
		if (rel->rd_rel->relkind != RELKIND_RELATION && rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("\"%s\" is not an ordinary table any more", RelationGetRelationName(rel)),
					 errhint("Detach it and attach a table.")));
		old = MemoryContextSwitchTo(context);
		source = describe(rel, fields, outcome);
		MemoryContextSwitchTo(old);
		fini_source_end_cached(relid, source);
	}
	if (rel != NULL)
		relation_close(rel, NoLock);
	return source;
}

FiniSource *
fini_source_known(Oid relid, Relation opened)
{
	if (RelationGetRelid(opened) != relid)
		LockRelationOid(relid, AccessShareLock);
	return fini_source_cached(relid);
}

Oid
fini_source_root(Relation rel)
{
	return rel->rd_rel->relispartition ? llast_oid(get_partition_ancestors(RelationGetRelid(rel))) : RelationGetRelid(rel);
}

bool
fini_source_is_unique(Relation rel, AttrNumber attnum)
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

/* what the mapping makes of the table, in the current context */
static FiniSource *
describe(Relation rel, Jsonb *fields, Jsonb *outcome)
{
	FiniSource *source = palloc0(sizeof(FiniSource));
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;

	source->relid = RelationGetRelid(rel);
	source->owner = rel->rd_rel->relowner;
	source->partitioned = rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE;
	source->table = psprintf("%s%s", source->partitioned ? "" : "ONLY ",
							 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
														RelationGetRelationName(rel)));

	it = JsonbIteratorInit(&fields->root);
	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE && name != NULL && value.type == jbvString)
			add_field(source, rel, name, pnstrdup(value.val.string.val, value.val.string.len));
	}
	if (source->own_ref == NULL || source->ipo_id == NULL)
		elog(ERROR, "attachment of table %u maps no own_ref or ipo_id", source->relid);
	source->unique = !source->partitioned || fini_source_is_unique(rel, source->own_ref->attnum);
	source->record_id_column = outcome_column(rel, outcome, FINI_OUTCOME_RECORD_ID);
	source->state_column = outcome_column(rel, outcome, FINI_OUTCOME_STATE);
	source->error_column = outcome_column(rel, outcome, FINI_OUTCOME_ERROR);
	if (source->error_column != NULL)
	{
		int32		typmod = TupleDescAttr(RelationGetDescr(rel), column_number(rel, source->error_column) - 1)->atttypmod;

		source->error_limit = typmod >= (int32) VARHDRSZ ? typmod - (int32) VARHDRSZ : 0;
	}
	return source;
}

static void
add_field(FiniSource *source, Relation rel, const char *name, const char *column)
{
	FiniField  *field = palloc0(sizeof(FiniField));

	field->name = name;
	field->column = column;
	field->kind = fini_source_field_kind(name);
	field->attnum = column_number(rel, column);
	field->type = getBaseType(TupleDescAttr(RelationGetDescr(rel), field->attnum - 1)->atttypid);
	field->length = TupleDescAttr(RelationGetDescr(rel), field->attnum - 1)->attlen;
	if (field->kind == FINI_FIELD_OWN_REF)
	{
		source->own_ref = field;
		source->fields = lcons(field, source->fields);
		return;
	}
	if (field->kind == FINI_FIELD_IPO_ID)
		source->ipo_id = field;
	source->fields = lappend(source->fields, field);
}

static const char *
outcome_column(Relation rel, Jsonb *outcome, const char *key)
{
	char	   *column = fini_jsonb_field(&outcome->root, key);

	if (column != NULL)
		(void) column_number(rel, column);
	return column;
}

static AttrNumber
column_number(Relation rel, const char *column)
{
	AttrNumber	attnum = get_attnum(RelationGetRelid(rel), column);

	if (attnum <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist any more", column, RelationGetRelationName(rel)),
				 errhint("Attach the table again with a mapping that fits.")));
	return attnum;
}
