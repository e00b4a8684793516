/*
 * answer.c
 *		Reading what the gateway answered.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "answer.h"
#include "compat.h"
#include "encoding.h"
#include "envelope.h"

/* of an answer or request; far beyond a page of 1000 records, and what jsonb makes of them fits into memory */
#define MAX_VALUES		1000000
#define MAX_ENTRIES		100000

/* digits of a number's exponent: 1e131071 is nine bytes of JSON, and a text of 128 kB */
#define MAX_EXPONENT	2

static bool is_bounded(const char *json);
static JsonbValue *find_field(JsonbContainer *object, const char *name);
static char *scalar_text(const JsonbValue *value);
static bool first_exception(JsonbContainer *object, const char **code, const char **message);

FiniAnswer *
fini_answer_parse(const char *text, Size len)
{
	FiniAnswer *answer;
	JsonbValue *data;
	char	   *cursor;
	char	   *code;
	char	   *message;
	Jsonb	   *json = fini_answer_to_jsonb(text, len);

	if (json == NULL || !JB_ROOT_IS_OBJECT(json))
		return NULL;
	code = fini_answer_field(&json->root, "code");
	if (code == NULL || strlen(code) >= FINI_MAX_CODE)
		return NULL;

	answer = palloc0(sizeof(FiniAnswer));
	answer->json = json;
	answer->code = code;
	message = fini_answer_field(&json->root, "message");
	answer->message = message != NULL ? message : "";
	cursor = fini_answer_field(&json->root, "nextCursor");
	if (cursor != NULL && cursor[0] != '\0' && strcmp(cursor, "0") != 0)
		answer->next_cursor = cursor;
	answer->exception = first_exception(&json->root, &answer->exception_code,
										&answer->exception_message);
	answer->entries = -1;
	data = find_field(&json->root, "data");
	if (data != NULL && data->type == jbvBinary && JsonContainerIsArray(data->val.binary.data) &&
		!JsonContainerIsScalar(data->val.binary.data))
	{
		answer->data = data->val.binary.data;
		answer->entries = JsonContainerSize(answer->data);
		if (answer->entries > MAX_ENTRIES)
			return NULL;
	}
	return answer;
}

bool
fini_answer_is_page(const FiniAnswer *answer)
{
	JsonbValue *data = find_field(&answer->json->root, "data");

	return answer->data != NULL || data == NULL || data->type == jbvNull ||
		(data->type == jbvBinary && JsonContainerIsObject(data->val.binary.data) &&
		 JsonContainerSize(data->val.binary.data) == 0);
}

bool
fini_answer_object(const FiniAnswer *answer, int i, JsonbContainer **object)
{
	JsonbValue *value = getIthJsonbValueFromContainer(answer->data, i);

	if (value == NULL || value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		return false;
	*object = value->val.binary.data;
	return true;
}

bool
fini_answer_entry(const FiniAnswer *answer, int i, FiniAnswerEntry *entry)
{
	JsonbContainer *object;
	char	   *number;

	memset(entry, 0, sizeof(*entry));
	entry->number = -1;
	if (!fini_answer_object(answer, i, &object))
		return false;

	number = fini_answer_field(object, "requestID");
	if (number != NULL && number[0] >= '1' && number[0] <= '9' &&
		strlen(number) <= 6 && strspn(number, "0123456789") == strlen(number))
		entry->number = atoi(number);
	entry->record_id = fini_answer_field(object, "recordID");
	if (entry->record_id != NULL &&
		(entry->record_id[0] == '\0' || strlen(entry->record_id) > FINI_MAX_RECORD_ID))
		entry->record_id = NULL;
	entry->own_ref = fini_answer_field(object, "ownRef");
	entry->rejected = first_exception(object, &entry->error_code, &entry->error_message);
	return true;
}

char *
fini_answer_field(JsonbContainer *object, const char *name)
{
	JsonbValue *value = find_field(object, name);

	return value != NULL ? scalar_text(value) : NULL;
}

Jsonb *
fini_answer_field_jsonb(JsonbContainer *object, const char *name)
{
	JsonbValue *value = find_field(object, name);

	return value != NULL && value->type != jbvNull ? JsonbValueToJsonb(value) : NULL;
}

Jsonb *
fini_answer_jsonb(JsonbContainer *object)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbParseState *state = NULL;
	JsonbIteratorToken token;
	JsonbValue	value;
	JsonbValue *result = NULL;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
		result = pushJsonbValue(&state, token, token < WJB_BEGIN_ARRAY ? &value : NULL);
	return JsonbValueToJsonb(result);
}

/*
 * jsonb_in allocates memory and nothing else, so that its error can be caught
 * without a subtransaction.  The error must not get out: it quotes the text.
 */
Jsonb *
fini_answer_to_jsonb(const char *text, Size len)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb	   *volatile json = NULL;

	/* jsonb_in takes the encoding for granted; an embedded NUL, invalid too, would hide what follows */
	if (len > INT_MAX || !pg_verify_mbstr(GetDatabaseEncoding(), text, (int) len, true) || !is_bounded(text))
		return NULL;
	PG_TRY();
	{
		json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		/* out of memory, a cancel: not the text's fault */
		if (geterrcode() == ERRCODE_QUERY_CANCELED || geterrcode() == ERRCODE_OUT_OF_MEMORY ||
			geterrcode() == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		FlushErrorState();
		json = NULL;
	}
	PG_END_TRY();
	return json;
}

char *
fini_answer_clean_text(const char *text, const FiniBlanker *sent)
{
	char	   *copy;
	int			kept;

	if (text == NULL)
		return pstrdup("");
	kept = pg_mbcliplen(text, (int) strlen(text), FINI_MAX_TEXT);
	copy = pnstrdup(text, kept);
	if (sent != NULL)
		fini_blank(sent, copy, kept, text);
	/* an encrypted field is as good as personal, whoever quotes it */
	for (char *field = copy; (field = strstr(field, FINI_ENC_PREFIX)) != NULL;)
	{
		field += FINI_ENC_PREFIX_LEN;
		for (; *field != '\0' && (isalnum((unsigned char) *field) || strchr("+/=", *field) != NULL); field++)
			*field = '*';
	}
	for (char *p = copy; *p != '\0'; p++)
	{
		if (*p == FINI_ENCODING_REPLACEMENT)
			*p = '?';
		else if ((unsigned char) *p < ' ' || *p == 0x7f)
			*p = ' ';
	}
	return copy;
}

/*
 * A small text can ask for much memory: by millions of values, each of which
 * is a struct while jsonb is being made of it, or by numbers with an exponent,
 * which are written out.  Well-formed it need not be.
 */
static bool
is_bounded(const char *json)
{
	int64		values = 1;

	for (const char *c = json; *c != '\0'; c++)
	{
		if (*c == '"')
		{
			for (c++; *c != '"' && *c != '\0'; c++)
			{
				if (*c == '\\' && c[1] != '\0')
					c++;
			}
			if (*c == '\0')
				break;
		}
		else if (*c == ',' || *c == '[' || *c == '{')
			values++;
		else if ((*c == 'e' || *c == 'E') && c > json && c[-1] >= '0' && c[-1] <= '9')
		{
			c += 1 + (c[1] == '+' || c[1] == '-');
			c += strspn(c, "0");
			if (strspn(c, "0123456789") > MAX_EXPONENT)
				return false;
			c--;
		}
	}
	return values <= MAX_VALUES;
}

static JsonbValue *
find_field(JsonbContainer *object, const char *name)
{
	if (!JsonContainerIsObject(object))
		return NULL;
	return getKeyJsonValueFromContainer(object, name, (int) strlen(name), NULL);
}

static char *
scalar_text(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		default:
			return NULL;
	}
}

/* is there an exception, and what does its first element say? */
static bool
first_exception(JsonbContainer *object, const char **code, const char **message)
{
	JsonbValue *list = find_field(object, "exception");
	JsonbValue *first = list;

	*code = *message = "";
	if (list == NULL || list->type != jbvBinary)
		return false;
	if (JsonContainerIsArray(list->val.binary.data))
	{
		if (JsonContainerSize(list->val.binary.data) == 0)
			return false;
		first = getIthJsonbValueFromContainer(list->val.binary.data, 0);
	}
	if (first->type == jbvBinary && JsonContainerIsObject(first->val.binary.data))
	{
		char	   *text;

		/* an empty object is how some answers say "nothing" */
		if (JsonContainerSize(first->val.binary.data) == 0)
			return false;
		text = fini_answer_field(first->val.binary.data, "recordErrorCode");
		if (text != NULL)
		{
			text[pg_mbcliplen(text, (int) strlen(text), FINI_MAX_CODE - 1)] = '\0';
			*code = text;
		}
		text = fini_answer_field(first->val.binary.data, "recordErrorMsg");
		if (text != NULL)
			*message = text;
	}
	return true;
}
