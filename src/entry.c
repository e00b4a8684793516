/*
 * entry.c
 *		From a row to an entry.
 *
 * Locally refused is only what cannot be an application at all, so that FINI
 * would have to refuse it too, or what would harm the other entries of its
 * batch.  The codes are words: FINI's own are numbers.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "compat.h"
#include "encoding.h"
#include "entry.h"
#include "json.h"
#include "jsonb.h"
#include "settings.h"

#define MAX_IPO_ID		20
#define MAX_QUANTITY	18		/* digits */
#define MAX_ENTRY		65536	/* bytes; a thousand of them must fit into one request, and into memory */

/* a value of this many bytes has more than MAX_ENTRY as text, whatever its type: a number of two bytes has a dozen in jsonb */
#define MAX_VALUE		((Size) 16 * MAX_ENTRY)

struct FiniEntryMaker
{
	FiniSecretPool *entries;
	FiniBuffer *entry;			/* the one that is being built */
	FiniBuffer *applicant;
	FiniRow    *row;			/* its row */
	bool		too_large;
	MemoryContext work;			/* of what one row takes */
};

static void append_fields(FiniEntryMaker *maker, FiniSource *source, const Datum *values, const bool *nulls);
static char *column_text(FiniEntryMaker *maker, FiniField *field, Datum value, bool isnull);
static void too_large(FiniEntryMaker *maker);
static char *output_text(FiniField *field, Datum value);
static bool numbers_fit(Jsonb *json);
static void append_field(FiniEntryMaker *maker, FiniField *field, const char *text);
static void append_applicant(FiniEntryMaker *maker, FiniSource *source, const Datum *values, const bool *nulls);
static void append_id_list(FiniEntryMaker *maker, FiniField *field, Datum value);
static void append_extra(FiniEntryMaker *maker, FiniSource *source, const char *text);
static bool is_own_field(FiniSource *source, const JsonbValue *name);
static void append_quantity(FiniEntryMaker *maker, const char *text);
static void append_raw(FiniBuffer *dst, const char *name, const char *json);
static bool is_list_of_objects(Jsonb *json);
static void check_sealable(FiniRow *row);
static bool note_nested(void *arg, int name, FiniJsonKind kind, const char *value, Size len, FiniBuffer *dst);
static void problem(FiniRow *row, const char *code, const char *text);

FiniEntryMaker *
fini_entry_maker_create(void)
{
	FiniEntryMaker *maker = palloc0(sizeof(FiniEntryMaker));

	maker->entries = fini_secret_pool_create();
	maker->entry = fini_buffer_create(1024);
	maker->applicant = fini_buffer_create(512);
	maker->work = AllocSetContextCreate(CurrentMemoryContext, "fini entry", ALLOCSET_DEFAULT_SIZES);
	return maker;
}

void
fini_entry_build(FiniEntryMaker *maker, FiniSource *source, const Datum *values, const bool *nulls, FiniRow *row)
{
	MemoryContext old = MemoryContextSwitchTo(maker->work);

	row->found = true;
	maker->row = row;
	maker->too_large = false;
	fini_buffer_truncate(maker->entry, 0);
	append_fields(maker, source, values, nulls);
	if (maker->entry->len > MAX_ENTRY)
		too_large(maker);
	if (!maker->too_large)
	{
		row->entry = fini_secret_pool_copy(maker->entries, maker->entry->data, maker->entry->len);
		row->entry_len = maker->entry->len;
	}

	/* one entry that cannot be sent must not hold up a whole batch */
	if (row->problem == NULL)
		check_sealable(row);

	MemoryContextSwitchTo(old);
	row->ipo_id = pstrdup(row->ipo_id);
	if (row->problem != NULL)
		row->problem_text = pstrdup(row->problem_text);
	MemoryContextReset(maker->work);
}

char *
fini_entry_column_text(FiniField *field, Datum value, bool isnull)
{
	if (isnull)
		return NULL;
	if (field->type == TEXTOID || field->type == VARCHAROID)
		return TextDatumGetCString(value);
	if (!OidIsValid(field->output.fn_oid))
	{
		Oid			output;
		bool		varlena;

		getTypeOutputInfo(field->type, &output, &varlena);
		fmgr_info_cxt(output, &field->output, GetMemoryChunkContext(field));
	}
	return OutputFunctionCall(&field->output, value);
}

char *
fini_entry_limited_text(FiniField *field, Datum value, bool isnull, bool *fits)
{
	char	   *text = NULL;

	*fits = true;
	if (isnull)
		return NULL;
	if (field->length != -1 || (toast_raw_datum_size(value) <= MAX_VALUE && (field->type != JSONBOID || numbers_fit(DatumGetJsonbP(value)))))
		text = output_text(field, value);
	*fits = text != NULL && strlen(text) <= MAX_ENTRY;
	return *fits ? text : NULL;
}

void
fini_entry_append(FiniBuffer *dst, const char *name, const char *value)
{
	if (dst->len > 0)
		fini_buffer_append_char(dst, ',');
	fini_json_append_string(dst, name, strlen(name));
	fini_buffer_append_char(dst, ':');
	if (value == NULL)
		fini_buffer_append(dst, "null", 4);
	else
		fini_json_append_string(dst, value, strlen(value));
}

void
fini_entry_append_raw(FiniBuffer *dst, const char *name, const FiniBuffer *inner, char open, char close)
{
	if (dst->len > 0)
		fini_buffer_append_char(dst, ',');
	fini_json_append_string(dst, name, strlen(name));
	fini_buffer_append_char(dst, ':');
	fini_buffer_append_char(dst, open);
	fini_buffer_append(dst, inner->data, inner->len);
	fini_buffer_append_char(dst, close);
}

void
fini_entry_append_element(FiniBuffer *dst, const char *value)
{
	if (dst->len > 0)
		fini_buffer_append_char(dst, ',');
	fini_json_append_string(dst, value, strlen(value));
}

static void
append_fields(FiniEntryMaker *maker, FiniSource *source, const Datum *values, const bool *nulls)
{
	ListCell   *cell;
	int			column = -1;
	bool		has_quantity = false;
	bool		has_firm = false;
	const char *extra = NULL;

	maker->row->ipo_id = "";
	foreach(cell, source->fields)
	{
		FiniField  *field = lfirst(cell);
		char	   *text;

		column++;
		if (field->kind == FINI_FIELD_PERSONAL || field->kind == FINI_FIELD_ID_LIST)
			continue;			/* together, below */
		text = column_text(maker, field, values[column], nulls[column]);
		switch (field->kind)
		{
			case FINI_FIELD_IPO_ID:
				maker->row->ipo_id = text != NULL ? text : "";
				append_field(maker, field, text);
				break;
			case FINI_FIELD_QUANTITY:
				has_quantity = true;
				append_quantity(maker, text);
				break;
			case FINI_FIELD_EXTRA:
				extra = text;
				break;
			case FINI_FIELD_FIRM_ID:
				has_firm = true;
				fini_entry_append(maker->entry, "firmID", text != NULL ? text : fini_guc_firm_id);
				break;
			default:
				append_field(maker, field, text);
				break;
		}
	}
	append_applicant(maker, source, values, nulls);
	if (!has_quantity)
		append_quantity(maker, NULL);
	if (!has_firm)
		fini_entry_append(maker->entry, "firmID", fini_guc_firm_id);
	if (extra != NULL)
		append_extra(maker, source, extra);
}

static char *
column_text(FiniEntryMaker *maker, FiniField *field, Datum value, bool isnull)
{
	bool		fits;
	char	   *text = fini_entry_limited_text(field, value, isnull, &fits);

	if (!fits)
		too_large(maker);
	return text;
}

static void
too_large(FiniEntryMaker *maker)
{
	maker->too_large = true;
	problem(maker->row, "unsealable", "the entry is larger than 64 kB");
}

/*
 * NULL when the text is beyond what PostgreSQL has room for.  Output functions
 * of PostgreSQL's own types leave nothing behind that would have to be rolled
 * back.
 */
static char *
output_text(FiniField *field, Datum value)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile text = NULL;

	if (field->length != -1 || field->type == TEXTOID || field->type == VARCHAROID || field->type >= FirstNormalObjectId)
		return fini_entry_column_text(field, value, false);
	PG_TRY();
	{
		text = fini_entry_column_text(field, value, false);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return text;
}

/* a small jsonb can hold many a number with a large exponent, and all of them are written out */
static bool
numbers_fit(Jsonb *json)
{
	JsonbIterator *it = JsonbIteratorInit(&json->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	Size		len = 0;

	while (len <= MAX_ENTRY && (token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		if ((token == WJB_VALUE || token == WJB_ELEM) && value.type == jbvNumeric)
		{
			char	   *digits = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value.val.numeric)));

			len += strlen(digits);
			pfree(digits);
		}
	}
	return len <= MAX_ENTRY;
}

static void
append_field(FiniEntryMaker *maker, FiniField *field, const char *text)
{
	switch (field->kind)
	{
		case FINI_FIELD_OWN_REF:
			/* FINI trims, so two references could become one */
			if (text == NULL || text[0] == '\0' || text[0] == ' ' || text[strlen(text) - 1] == ' ')
				problem(maker->row, "bad_own_ref", "the own_ref is empty, or begins or ends with a space");
			break;
		case FINI_FIELD_IPO_ID:
			if (text == NULL || text[0] == '\0' || text[0] == ' ' || text[strlen(text) - 1] == ' ' ||
				pg_mbstrlen(text) > MAX_IPO_ID)
				problem(maker->row, "bad_ipo_id", "the ipo_id is empty, longer than 20 characters, or begins or ends with a space");
			break;
		default:
			break;
	}
	if (text != NULL && field->type == BOOLOID)
		append_raw(maker->entry, field->name, text[0] == 't' ? "true" : "false");
	else if (text != NULL && (field->type == JSONBOID || field->type == JSONOID))
	{
		if (fini_jsonb_read(text, strlen(text)) == NULL)
			problem(maker->row, "bad_field", psprintf("the value for %s is no JSON that can be sent", field->name));
		maker->row->has_json = true;
		append_raw(maker->entry, field->name, text);
	}
	else
		fini_entry_append(maker->entry, field->name, text);
}

/* idList: from the id_list column where it holds something, else from the five columns */
static void
append_applicant(FiniEntryMaker *maker, FiniSource *source, const Datum *values, const bool *nulls)
{
	ListCell   *cell;
	FiniBuffer *applicant = maker->applicant;
	bool		anything = false;
	int			column = -1;

	fini_buffer_truncate(applicant, 0);
	foreach(cell, source->fields)
	{
		FiniField  *field = lfirst(cell);
		char	   *text;

		column++;
		if (field->kind != FINI_FIELD_ID_LIST && field->kind != FINI_FIELD_PERSONAL)
			continue;
		if (field->kind == FINI_FIELD_ID_LIST && !nulls[column])
		{
			append_id_list(maker, field, values[column]);
			return;
		}
		if (field->kind == FINI_FIELD_PERSONAL)
		{
			text = column_text(maker, field, values[column], nulls[column]);
			anything |= text != NULL && text[0] != '\0';
			fini_entry_append(applicant, field->name, text);
		}
	}
	if (!anything)
	{
		problem(maker->row, "no_applicant", "the row names no applicant");
		return;
	}
	if (maker->entry->len > 0)
		fini_buffer_append_char(maker->entry, ',');
	fini_buffer_append(maker->entry, "\"idList\":[{", 11);
	fini_buffer_append(maker->entry, applicant->data, applicant->len);
	fini_buffer_append(maker->entry, "}]", 2);
}

static void
append_id_list(FiniEntryMaker *maker, FiniField *field, Datum value)
{
	const char *text = column_text(maker, field, value, false);
	Jsonb	   *json;

	if (text == NULL)
		return;
	json = field->type == JSONBOID ? DatumGetJsonbP(value) : fini_jsonb_read(text, strlen(text));
	if (json == NULL || !is_list_of_objects(json))
		problem(maker->row, "bad_id_list", "the id_list is no array of applicants");
	else if (JB_ROOT_COUNT(json) == 0)
		problem(maker->row, "no_applicant", "the id_list names no applicant");
	else
	{
		maker->row->has_json = true;
		append_raw(maker->entry, "idList", text);
	}
}

/* the members of an object join those of the entry; FINI takes the first of a repeated field, so none may repeat */
static void
append_extra(FiniEntryMaker *maker, FiniSource *source, const char *text)
{
	Jsonb	   *json = fini_jsonb_read(text, strlen(text));
	const char *open = strchr(text, '{');
	const char *close = strrchr(text, '}');

	if (json == NULL || !JB_ROOT_IS_OBJECT(json) || open == NULL || close == NULL)
		problem(maker->row, "bad_extra", "the further fields are no JSON object");
	else if (JB_ROOT_COUNT(json) > 0)
	{
		JsonbIterator *it = JsonbIteratorInit(&json->root);
		JsonbIteratorToken token;
		JsonbValue	value;

		while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
		{
			if (token == WJB_KEY && is_own_field(source, &value))
				problem(maker->row, "bad_extra", "the further fields repeat a field of the entry");
		}
		maker->row->has_json = true;
		if (maker->entry->len > 0)
			fini_buffer_append_char(maker->entry, ',');
		fini_buffer_append(maker->entry, open + 1, close - open - 1);
	}
}

static bool
is_own_field(FiniSource *source, const JsonbValue *name)
{
	static const char *const always[] = {"requestID", "recordID", "idList", "appQuantity", "firmID"};
	ListCell   *cell;

	for (size_t i = 0; i < lengthof(always); i++)
	{
		if (name->val.string.len == (int) strlen(always[i]) &&
			memcmp(name->val.string.val, always[i], name->val.string.len) == 0)
			return true;
	}
	foreach(cell, source->fields)
	{
		FiniField  *field = lfirst(cell);

		if (field->kind != FINI_FIELD_EXTRA && name->val.string.len == (int) strlen(field->name) &&
			memcmp(name->val.string.val, field->name, name->val.string.len) == 0)
			return true;
	}
	return false;
}

/* a positive whole number, as FINI wants it: digits in a string */
static void
append_quantity(FiniEntryMaker *maker, const char *text)
{
	Size		digits = text != NULL ? strspn(text, "0123456789") : 0;
	const char *rest = text != NULL ? text + digits : "";
	char	   *whole;

	if (digits > 0 && rest[0] == '.')
		rest += 1 + strspn(rest + 1, "0");
	if (digits == 0 || digits > MAX_QUANTITY || rest[0] != '\0' || strspn(text, "0") == digits)
	{
		problem(maker->row, "bad_quantity", "the quantity is no positive whole number of at most 18 digits");
		return;
	}
	whole = pnstrdup(text, digits);
	fini_entry_append(maker->entry, "appQuantity", whole);
}

static void
append_raw(FiniBuffer *dst, const char *name, const char *json)
{
	if (dst->len > 0)
		fini_buffer_append_char(dst, ',');
	fini_json_append_string(dst, name, strlen(name));
	fini_buffer_append_char(dst, ':');
	fini_buffer_append(dst, json, strlen(json));
}

static bool
is_list_of_objects(Jsonb *json)
{
	if (!JB_ROOT_IS_ARRAY(json) || JB_ROOT_IS_SCALAR(json))
		return false;
	for (uint32 i = 0; i < JB_ROOT_COUNT(json); i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(&json->root, i);

		if (element->type != jbvBinary || !JsonContainerIsObject(element->val.binary.data))
			return false;
	}
	return true;
}

/*
 * What the envelope would refuse.  A user's JSON is looked at as it will be
 * sent: in jsonb, a repeated key would hide its first value.
 */
static void
check_sealable(FiniRow *row)
{
	MemoryContext context = CurrentMemoryContext;
	FiniBuffer *object;
	FiniJsonRules rules = {0};
	const char *utf8;
	Size		len;
	bool		nested = false;

	utf8 = fini_encoding_to_utf8(row->entry, row->entry_len, &len);
	if (utf8 == NULL)
	{
		problem(row, "bad_encoding", "a character of the row has no equivalent in UTF-8");
		return;
	}
	if (!row->has_json)
		return;
	object = fini_buffer_create(len + 2);
	fini_buffer_append(object, "{", 1);
	fini_buffer_append(object, utf8, len);
	fini_buffer_append(object, "}", 1);

	rules.nnames = fini_settings_encrypted_fields(&rules.names);
	rules.replace = note_nested;
	rules.arg = &nested;
	rules.subject = "entry";
	rules.sqlerrcode = ERRCODE_INVALID_PARAMETER_VALUE;
	PG_TRY();
	{
		fini_json_transform(object->data, object->len, &rules, fini_buffer_create(object->len));
		if (nested)
			problem(row, "unsealable", "a personal field holds an object or an array");
	}
	PG_CATCH();
	{
		/*
		 * It allocates memory and nothing else, so no subtransaction is needed.
		 * Nesting beyond the stack is the entry's fault too.
		 */
		MemoryContextSwitchTo(context);
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION && geterrcode() != ERRCODE_STATEMENT_TOO_COMPLEX)
			PG_RE_THROW();
		FlushErrorState();
		problem(row, "unsealable", "its JSON cannot be read, or is nested too deeply");
	}
	PG_END_TRY();
}

static bool
note_nested(void *arg, int name, FiniJsonKind kind, const char *value, Size len, FiniBuffer *dst)
{
	if (kind == FINI_JSON_NESTED)
		*(bool *) arg = true;
	return false;
}

/* the first one found is the one told */
static void
problem(FiniRow *row, const char *code, const char *text)
{
	if (row->problem != NULL)
		return;
	row->problem = code;
	row->problem_text = text;
}
