/*
 * json_values.c
 *		What json_value.c and answer.c read has to be what jsonb_in makes of it.
 *
 * Changed bytes mostly make JSON malformed; so the first byte says whether the
 * others are the text, or choose what it is made of.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "answer.h"
#include "fuzz.h"
#include "json_token.h"
#include "json_value.h"
#include "jsonb.h"

typedef struct Choices
{
	const char *next;
	const char *end;
	StringInfoData text;
} Choices;

/* what names and strings are made of, and other scalars; what is no JSON, or none for jsonb, comes last */
#define GOOD_PIECES		34
#define GOOD_SCALARS	20

static const char *const pieces[] = {
	"code", "data", "exception", "requestID", "recordID", "ownRef", "recordErrorCode", "recordErrorMsg", "message", "nextCursor",
	"0", "1", "12", "", "", "a", "b", "aa", " ", "\303\251", "\360\240\256\267", "\\u0061", "c\\u006fde", "\\u00e9", "\\ud842\\udfb7", "\\/", "\\\"", "\\\\",
	"\\b\\f\\n\\r\\t", "0123456789abcdef", "01234567", "\177", "\\uFFFF", "1000000000000000000000000000000000000000000000000000000000000001A",
	"\\u0000", "\\ud842", "\\udfb7", "\\ud842\\ud842", "\\x", "\\", "\"", "\t", "\\u12g4", "\303", "\\u12"
};
static const char *const scalars[] = {
	"null", "true", "false", "0", "-0", "1", "12", "123456", "1234567", "1.0", "1.50", "-0.0e-1", "1e0", "1E2", "12e+03", "1e99", "1e000099", "5e-7", "0e0",
	"12345678901234567890123456789012345678901234567890", "1e100", "1e0100", "01", "-", "1.", "1e", "+1", "nul", "True", "nulls", "1x"
};

static int	choice(Choices *choices, int n);
static void make_value(Choices *choices, int depth);
static void make_string(Choices *choices);
static void compare_readings(const char *data, Size len);
static int	depth_of(const char *data, Size len);
static void agree(const FiniValue *value, const JsonbValue *other);
static void agree_on_object(const FiniValue *value, JsonbContainer *other);
static void agree_on_answer(const FiniAnswer *answer, Jsonb *json);
static void agree_on_exception(JsonbContainer *object, bool exception, const char *code, const char *message);
static bool same_text(const char *a, const char *b);
static JsonbValue *field(JsonbContainer *object, const char *name);

void
fuzz_json_values(const char *data, Size len)
{
	Choices		choices = {.next = data + 1, .end = data + len};
	char	   *exact;

	if (len < 1)
		return;
	if (data[0] & 1)
	{
		compare_readings(data + 1, len - 1);
		return;
	}
	initStringInfo(&choices.text);
	if (data[0] & 2)
	{
		appendStringInfoString(&choices.text, "{\"code\":\"0\",\"data\":");
		make_value(&choices, 0);
		appendStringInfoString(&choices.text, ",\"exception\":");
		make_value(&choices, 0);
		appendStringInfoChar(&choices.text, '}');
	}
	else
		make_value(&choices, 0);
	/* of exactly its size, with the NUL that jsonb_in wants */
	exact = malloc(choices.text.len + 1);
	memcpy(exact, choices.text.data, choices.text.len + 1);
	compare_readings(exact, choices.text.len);
	free(exact);
}

/* what there is no byte for is the first */
static int
choice(Choices *choices, int n)
{
	return choices->next < choices->end ? (uint8) *choices->next++ % n : 0;
}

static void
make_value(Choices *choices, int depth)
{
	int			kind = depth > 20 ? 0 : choice(choices, 16);
	int			n = kind >= 6 ? choice(choices, 9) : 0;
	bool		object = kind < 12;

	if (kind < 3)
	{
		int			scalar = choice(choices, 256);

		appendStringInfoString(&choices->text, scalars[scalar >= 250 ? scalar % (int) lengthof(scalars) : scalar % GOOD_SCALARS]);
		return;
	}
	if (kind < 6)
	{
		make_string(choices);
		return;
	}
	appendStringInfoChar(&choices->text, object ? '{' : '[');
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			appendStringInfoChar(&choices->text, ',');
		if (object)
		{
			make_string(choices);
			appendStringInfoChar(&choices->text, ':');
		}
		make_value(choices, depth + 1);
	}
	appendStringInfoChar(&choices->text, object ? '}' : ']');
	if (choice(choices, 256) == 255)
		appendStringInfoChar(&choices->text, " ,:]}[{\t\001x"[choice(choices, 10)]);
}

static void
make_string(Choices *choices)
{
	int			n = choice(choices, 16) - 12;

	appendStringInfoChar(&choices->text, '"');
	do
	{
		int			piece = choice(choices, 256);

		appendStringInfoString(&choices->text, pieces[piece >= 250 ? piece % (int) lengthof(pieces) : piece % GOOD_PIECES]);
	} while (--n > 0);
	appendStringInfoChar(&choices->text, '"');
}

static void
compare_readings(const char *data, Size len)
{
	Jsonb	   *json = fini_jsonb_read(data, len);
	const FiniValue *value = fini_value_read(data, len);
	FiniAnswer *answer = fini_answer_parse(data, len);
	JsonbValue	root = {.type = jbvBinary};
	Jsonb	   *again;

	/* ours does not go as deep */
	if (json != NULL && value == NULL)
		must(depth_of(data, len) > FINI_JSON_MAX_DEPTH);
	if (value == NULL)
	{
		must(answer == NULL);
		return;
	}
	must(json != NULL);
	again = fini_value_jsonb(value);
	must(again != NULL && VARSIZE(again) == VARSIZE(json) && memcmp(again, json, VARSIZE(json)) == 0);
	if (JB_ROOT_IS_SCALAR(json))
	{
		agree(value, getIthJsonbValueFromContainer(&json->root, 0));
		must(answer == NULL);
		return;
	}
	root.val.binary.data = &json->root;
	agree(value, &root);
	if (answer != NULL)
		agree_on_answer(answer, json);
	else if (JB_ROOT_IS_OBJECT(json))
	{
		char	   *code = fini_jsonb_field(&json->root, "code");

		must(code == NULL || strlen(code) >= FINI_MAX_CODE);
	}
}

/* of brackets that stand in no string */
static int
depth_of(const char *data, Size len)
{
	int			depth = 0;
	int			deepest = 0;
	bool		quoted = false;

	for (Size i = 0; i < len; i++)
	{
		if (quoted && data[i] == '\\')
			i++;
		else if (data[i] == '"')
			quoted = !quoted;
		else if (!quoted && (data[i] == '[' || data[i] == '{'))
			deepest = Max(deepest, ++depth);
		else if (!quoted && (data[i] == ']' || data[i] == '}'))
			depth--;
	}
	return deepest;
}

static void
agree(const FiniValue *value, const JsonbValue *other)
{
	Size		len = 0;
	const char *text = fini_value_scalar(value, &len);
	const char *theirs;
	const FiniValue *element = value + 1;

	switch (other->type)
	{
		case jbvNull:
			must(value->kind == FINI_VALUE_NULL && text == NULL && value->size == 1);
			break;
		case jbvBool:
			theirs = other->val.boolean ? "true" : "false";
			must(value->kind == FINI_VALUE_BOOLEAN && len == strlen(theirs) && memcmp(text, theirs, len) == 0);
			break;
		case jbvNumeric:
			theirs = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(other->val.numeric)));
			must(value->kind == FINI_VALUE_NUMBER && len == strlen(theirs) && memcmp(text, theirs, len) == 0);
			break;
		case jbvString:
			must(value->kind == FINI_VALUE_STRING && len == (Size) other->val.string.len && memcmp(text, other->val.string.val, len) == 0);
			must(strcmp(fini_value_text(value), pnstrdup(text, len)) == 0 && memchr(text, '\0', len) == NULL);
			break;
		case jbvBinary:
			must(text == NULL);
			if (JsonContainerIsObject(other->val.binary.data))
			{
				agree_on_object(value, other->val.binary.data);
				break;
			}
			must(value->kind == FINI_VALUE_ARRAY && value->count == JsonContainerSize(other->val.binary.data));
			for (uint32 i = 0; i < value->count; i++)
			{
				agree(element, getIthJsonbValueFromContainer(other->val.binary.data, i));
				element += element->size;
			}
			must(element == value + value->size);
			break;
		default:
			must(false);
	}
}

static void
agree_on_object(const FiniValue *value, JsonbContainer *other)
{
	JsonbIterator *it = JsonbIteratorInit(other);
	JsonbIteratorToken token;
	JsonbValue	member;
	uint32		n;
	uint32		i = 0;
	const FiniValue **members;

	must(value->kind == FINI_VALUE_OBJECT);
	members = fini_value_members(value, &n);
	must(n == JsonContainerSize(other) && n <= value->count);
	while ((token = JsonbIteratorNext(&it, &member, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			must(members[i]->kind == FINI_VALUE_NAME && members[i]->len == (uint32) member.val.string.len);
			must(memcmp(members[i]->text, member.val.string.val, members[i]->len) == 0);
			must(fini_value_member(value, pnstrdup(member.val.string.val, member.val.string.len)) == members[i] + 1);
		}
		else if (token == WJB_VALUE)
			agree(members[i++] + 1, &member);
	}
	must(i == n);
}

/* answer.c, as it would be read from jsonb */
static void
agree_on_answer(const FiniAnswer *answer, Jsonb *json)
{
	JsonbContainer *root = &json->root;
	JsonbValue *data = field(root, "data");
	bool		list = data != NULL && data->type == jbvBinary && JsonContainerIsArray(data->val.binary.data);
	char	   *cursor = fini_jsonb_field(root, "nextCursor");
	char	   *message = fini_jsonb_field(root, "message");

	must(JB_ROOT_IS_OBJECT(json));
	must(same_text(answer->code, fini_jsonb_field(root, "code")));
	must(same_text(answer->message, message != NULL ? message : ""));
	must(same_text(answer->next_cursor, cursor == NULL || cursor[0] == '\0' || strcmp(cursor, "0") == 0 ? NULL : cursor));
	agree_on_exception(root, answer->exception, answer->exception_code, answer->exception_message);
	must(answer->entries == (list ? (int) JsonContainerSize(data->val.binary.data) : -1));
	must(fini_answer_is_page(answer) == (list || data == NULL || data->type == jbvNull ||
										 (data->type == jbvBinary && JsonContainerSize(data->val.binary.data) == 0)));
	for (int i = 0; i < answer->entries; i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(data->val.binary.data, i);
		JsonbContainer *object = element->type == jbvBinary ? element->val.binary.data : NULL;
		FiniAnswerEntry entry;
		char	   *number;
		char	   *record_id;

		must(fini_answer_entry(answer, i, &entry) == (object != NULL && JsonContainerIsObject(object)));
		if (object == NULL || !JsonContainerIsObject(object))
		{
			must(entry.number == -1 && entry.record_id == NULL && entry.own_ref == NULL && !entry.rejected);
			continue;
		}
		number = fini_jsonb_field(object, "requestID");
		must(entry.number == (number != NULL && number[0] >= '1' && number[0] <= '9' && strlen(number) <= 6 &&
							  strspn(number, "0123456789") == strlen(number) ? atoi(number) : -1));
		record_id = fini_jsonb_field(object, "recordID");
		must(same_text(entry.record_id, record_id != NULL && record_id[0] != '\0' && strlen(record_id) <= FINI_MAX_RECORD_ID ? record_id : NULL));
		must(same_text(entry.own_ref, fini_jsonb_field(object, "ownRef")));
		agree_on_exception(object, entry.rejected, entry.error_code, entry.error_message);
	}
}

static void
agree_on_exception(JsonbContainer *object, bool exception, const char *code, const char *message)
{
	JsonbValue *first = field(object, "exception");
	char	   *theirs = NULL;

	if (first != NULL && first->type == jbvBinary && JsonContainerIsArray(first->val.binary.data))
		first = getIthJsonbValueFromContainer(first->val.binary.data, 0);
	else if (first != NULL && first->type != jbvBinary)
		first = NULL;
	if (first == NULL || (first->type == jbvBinary && JsonContainerIsObject(first->val.binary.data) && JsonContainerSize(first->val.binary.data) == 0))
	{
		must(!exception && code[0] == '\0' && message[0] == '\0');
		return;
	}
	must(exception);
	if (first->type == jbvBinary)
		theirs = fini_jsonb_field(first->val.binary.data, "recordErrorCode");
	must(strlen(code) < FINI_MAX_CODE && strncmp(code, theirs != NULL ? theirs : "", strlen(code)) == 0);
	must(theirs == NULL || strlen(theirs) >= FINI_MAX_CODE || strlen(code) == strlen(theirs));
	theirs = first->type == jbvBinary ? fini_jsonb_field(first->val.binary.data, "recordErrorMsg") : NULL;
	must(same_text(message, theirs != NULL ? theirs : ""));
}

static bool
same_text(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static JsonbValue *
field(JsonbContainer *object, const char *name)
{
	return getKeyJsonValueFromContainer(object, name, (int) strlen(name), NULL);
}
