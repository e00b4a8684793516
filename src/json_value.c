/*
 * json_value.c
 *		JSON text read once, its values found by name and place.
 *
 * One pass over the text with the tokens and the grammar of json_token.c, in
 * place of jsonb: that takes several times as long to make, and is searched
 * once for most of what it holds.  Whoever sends the text may well mean harm:
 * nothing here recurses, and memory is bounded.
 */
#include "postgres.h"

#include <limits.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#include "json_token.h"
#include "json_value.h"
#include "jsonb.h"
#include "secret.h"

/* what is room for at first, and at least: FINI's answers have a value or name for each ten bytes or more */
#define BYTES_A_VALUE		10
#define MIN_VALUES			64
#define MAX_FIRST_VALUES	32768

/* characters of a number that numeric has room for, whatever they are */
#define ORDINARY_NUMBER		1000

#define NONE				PG_UINT32_MAX

typedef struct Reader
{
	FiniJsonParser parser;
	FiniValue  *values;
	uint32		n;
	uint32		size;
	FiniBuffer *meanings;		/* of strings with escapes; it never grows, so they stay where they are; NULL: none yet */
} Reader;

static Jsonb *make_jsonb(const void *outermost);
static bool is_composite(const FiniValue *value);
static void set_scalar(JsonbValue *scalar, const FiniValue *value);
static Numeric number(const FiniValue *value);
static bool read_values(Reader *reader);
static FiniValue *add(Reader *reader, FiniValueKind kind);
static bool set_string(Reader *reader, FiniValue *value);
static FiniValueKind kind_of_token(const FiniJsonText *text);
static bool is_possible_number(const char *text, Size len);
static int	compare_members(const void *a, const void *b);

const FiniValue *
fini_value_read(const char *text, Size len)
{
	Reader		reader;

	if (len > INT_MAX || !pg_verify_mbstr(GetDatabaseEncoding(), text, (int) len, true))
		return NULL;
	fini_json_begin(&reader.parser, text, len);
	reader.n = 0;
	reader.size = (uint32) Min(len / BYTES_A_VALUE + MIN_VALUES, MAX_FIRST_VALUES);
	reader.values = palloc(sizeof(FiniValue) * reader.size);
	reader.meanings = NULL;
	if (read_values(&reader))
		return reader.values;
	pfree(reader.values);
	return NULL;
}

const FiniValue *
fini_value_member(const FiniValue *object, const char *name)
{
	const FiniValue *found = NULL;
	const FiniValue *member = object + 1;
	Size		len = strlen(name);

	if (object->kind != FINI_VALUE_OBJECT)
		return NULL;
	for (uint32 i = 0; i < object->count; i++)
	{
		if (member->len == len && memcmp(member->text, name, len) == 0)
			found = member + 1;
		member += 1 + member[1].size;
	}
	return found;
}

/* as jsonb has them, so that it takes no more than sorting, however many there are */
const FiniValue **
fini_value_members(const FiniValue *object, uint32 *n)
{
	const FiniValue **members = palloc(sizeof(FiniValue *) * Max(1, object->count));
	const FiniValue *member = object + 1;
	uint32		kept = 0;

	for (uint32 i = 0; i < object->count; i++)
	{
		members[i] = member;
		member += 1 + member[1].size;
	}
	qsort(members, object->count, sizeof(FiniValue *), compare_members);
	for (uint32 i = 0; i < object->count; i++)
	{
		if (i + 1 == object->count || fini_value_compare_names(members[i], members[i + 1]) != 0)
			members[kept++] = members[i];
	}
	*n = kept;
	return members;
}

int
fini_value_compare_names(const FiniValue *a, const FiniValue *b)
{
	if (a->len != b->len)
		return a->len < b->len ? -1 : 1;
	return memcmp(a->text, b->text, a->len);
}

const char *
fini_value_scalar(const FiniValue *value, Size *len)
{
	const char *text = value->text;

	*len = value->len;
	switch (value->kind)
	{
		case FINI_VALUE_NAME:
		case FINI_VALUE_STRING:
		case FINI_VALUE_BOOLEAN:
			return text;
		case FINI_VALUE_NUMBER:
			for (Size i = 0; i < *len; i++)
			{
				if (text[i] >= '0' && text[i] <= '9')
					continue;
				/* a sign, a fraction or an exponent: -0 is 0, and 1e2 is 100 */
				text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(number(value))));
				*len = strlen(text);
				break;
			}
			return text;
		case FINI_VALUE_NULL:
		case FINI_VALUE_OBJECT:
		case FINI_VALUE_ARRAY:
			break;
	}
	return NULL;
}

char *
fini_value_text(const FiniValue *value)
{
	Size		len;
	const char *text = fini_value_scalar(value, &len);

	return text != NULL ? pnstrdup(text, len) : NULL;
}

char *
fini_value_member_text(const FiniValue *object, const char *name)
{
	const FiniValue *value = fini_value_member(object, name);

	return value != NULL ? fini_value_text(value) : NULL;
}

Jsonb *
fini_value_jsonb(const FiniValue *value)
{
	return fini_jsonb_make(make_jsonb, value);
}

/* as jsonb_in does of text, which has been read here already; nothing recurses */
static Jsonb *
make_jsonb(const void *outermost)
{
	const FiniValue *nest[FINI_JSON_MAX_DEPTH];
	const FiniValue *value = outermost;
	int			depth = 0;
	JsonbParseState *state = NULL;
	JsonbValue *made;
	JsonbValue	scalar;

	if (!is_composite(value))
	{
		set_scalar(&scalar, value);
		return JsonbValueToJsonb(&scalar);
	}
	do
	{
		if (is_composite(value))
		{
			CHECK_FOR_INTERRUPTS();
			made = pushJsonbValue(&state, value->kind == FINI_VALUE_OBJECT ? WJB_BEGIN_OBJECT : WJB_BEGIN_ARRAY, NULL);
			nest[depth++] = value;
		}
		else
		{
			set_scalar(&scalar, value);
			made = pushJsonbValue(&state, value->kind == FINI_VALUE_NAME ? WJB_KEY :
								  nest[depth - 1]->kind == FINI_VALUE_OBJECT ? WJB_VALUE : WJB_ELEM, &scalar);
		}
		value++;
		for (; depth > 0 && value == nest[depth - 1] + nest[depth - 1]->size; depth--)
			made = pushJsonbValue(&state, nest[depth - 1]->kind == FINI_VALUE_OBJECT ? WJB_END_OBJECT : WJB_END_ARRAY, NULL);
	} while (depth > 0);
	return JsonbValueToJsonb(made);
}

static bool
is_composite(const FiniValue *value)
{
	return value->kind == FINI_VALUE_OBJECT || value->kind == FINI_VALUE_ARRAY;
}

/* a name or a value that is not composite, pointing into its text */
static void
set_scalar(JsonbValue *scalar, const FiniValue *value)
{
	switch (value->kind)
	{
		case FINI_VALUE_NAME:
		case FINI_VALUE_STRING:
			/* jsonb_in refuses it as well, and pushJsonbValue does not look */
			if (value->len > JENTRY_OFFLENMASK)
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						 errmsg("string too long to represent as jsonb string")));
			scalar->type = jbvString;
			scalar->val.string.val = unconstify(char *, value->text);
			scalar->val.string.len = (int) value->len;
			break;
		case FINI_VALUE_NUMBER:
			scalar->type = jbvNumeric;
			scalar->val.numeric = number(value);
			break;
		case FINI_VALUE_BOOLEAN:
			scalar->type = jbvBool;
			scalar->val.boolean = value->text[0] == 't';
			break;
		case FINI_VALUE_NULL:
		case FINI_VALUE_OBJECT:
		case FINI_VALUE_ARRAY:
			scalar->type = jbvNull;
			break;
	}
}

static Numeric
number(const FiniValue *value)
{
	return DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(pnstrdup(value->text, value->len)),
											   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

/* an object or array that has not ended has in its size which one it is in */
static bool
read_values(Reader *reader)
{
	uint32		within = NONE;
	uint32		counted = 0;

	for (;;)
	{
		FiniJsonEvent event = fini_json_next(&reader->parser);
		FiniValue  *value;
		uint32		at = reader->n;

		switch (event)
		{
			case FINI_JSON_EVENT_NAME:
				if (!set_string(reader, add(reader, FINI_VALUE_NAME)))
					return false;
				break;
			case FINI_JSON_EVENT_SCALAR:
			case FINI_JSON_EVENT_BEGIN:
				if (++counted > FINI_JSONB_MAX_VALUES)
					return false;
				value = add(reader, kind_of_token(&reader->parser.text));
				if (within != NONE)
					reader->values[within].count++;
				if (event == FINI_JSON_EVENT_BEGIN)
				{
					CHECK_FOR_INTERRUPTS();
					value->size = within;
					within = at;
				}
				else if ((value->kind == FINI_VALUE_STRING && !set_string(reader, value)) ||
						 (value->kind == FINI_VALUE_NUMBER && !is_possible_number(value->text, value->len)))
					return false;
				break;
			case FINI_JSON_EVENT_END:
				value = &reader->values[within];
				/* as is_bounded in jsonb.c counts */
				counted += value->count == 0;
				at = within;
				within = value->size;
				value->size = reader->n - at;
				value->len = (uint32) (reader->parser.text.next - value->text);
				break;
			case FINI_JSON_EVENT_DONE:
				return counted <= FINI_JSONB_MAX_VALUES;
			case FINI_JSON_EVENT_MALFORMED:
			case FINI_JSON_EVENT_TOO_DEEP:
				return false;
		}
	}
}

/* the token in hand; the pointer holds until the next one */
static FiniValue *
add(Reader *reader, FiniValueKind kind)
{
	const FiniJsonText *text = &reader->parser.text;
	FiniValue  *value;

	if (reader->n == reader->size)
	{
		reader->size *= 2;
		reader->values = repalloc(reader->values, sizeof(FiniValue) * reader->size);
	}
	value = &reader->values[reader->n++];
	value->text = text->start;
	value->len = (uint32) (text->next - text->start);
	value->size = 1;
	value->count = 0;
	value->kind = kind;
	return value;
}

/* what the string means; false: nothing that text could hold */
static bool
set_string(Reader *reader, FiniValue *value)
{
	FiniJsonText *text = &reader->parser.text;
	Size		meaning;
	Size		before;
	char	   *dst;

	value->text++;
	value->len -= 2;
	if (!text->escaped)
		return true;
	if (reader->meanings == NULL)
		reader->meanings = fini_buffer_create(text->end - text->json);
	before = reader->meanings->len;
	dst = fini_buffer_extend(reader->meanings, value->len);
	if (fini_json_unescape(value->text, value->len, true, dst, &meaning) != FINI_JSON_UNESCAPED)
		return false;
	fini_buffer_truncate(reader->meanings, before + meaning);
	value->text = dst;
	value->len = (uint32) meaning;
	return true;
}

static FiniValueKind
kind_of_token(const FiniJsonText *text)
{
	switch (*text->start)
	{
		case '{':
			return FINI_VALUE_OBJECT;
		case '[':
			return FINI_VALUE_ARRAY;
		case '"':
			return FINI_VALUE_STRING;
		case 'n':
			return FINI_VALUE_NULL;
		case 't':
		case 'f':
			return FINI_VALUE_BOOLEAN;
		default:
			return FINI_VALUE_NUMBER;
	}
}

/* well-formed it is */
static bool
is_possible_number(const char *text, Size len)
{
	char	   *copy;
	bool		possible;

	for (Size i = 0; i < len; i++)
	{
		if (text[i] != 'e' && text[i] != 'E')
			continue;
		i++;
		if (text[i] == '+' || text[i] == '-')
			i++;
		while (i < len && text[i] == '0')
			i++;
		if (len > i && len - i > FINI_JSONB_MAX_EXPONENT)
			return false;
	}
	if (len <= ORDINARY_NUMBER)
		return true;
	copy = pnstrdup(text, len);
	possible = fini_jsonb_read(copy, len) != NULL;
	pfree(copy);
	return possible;
}

static int
compare_members(const void *a, const void *b)
{
	const FiniValue *left = *(const FiniValue *const *) a;
	const FiniValue *right = *(const FiniValue *const *) b;
	int			order = fini_value_compare_names(left, right);

	return order != 0 ? order : left < right ? -1 : 1;
}
