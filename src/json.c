/*
 * json.c
 *		JSON text copied through, with the values of chosen fields replaced.
 *
 * One pass over the text, which is checked on its way (json_token.c) as strictly as
 * PostgreSQL's own parser does.  That one, with a call and an allocation for each field, took
 * as long as the encryption; and it would raise errors that quote the text.
 * For a scalar under a chosen name: copy the text up to the value, append the
 * replacement, go on behind it.  Text between two replacements is copied in one
 * piece, whatever it holds.  Escapes are resolved only in what is compared or
 * replaced: a payload may well carry escapes of characters that the database
 * encoding lacks to FINI.
 *
 * All text here is UTF-8, which fini_encoding_to_utf8 has made of it.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "compat.h"
#include "encoding.h"
#include "error.h"
#include "json.h"
#include "json_token.h"

typedef struct ChosenName
{
	const char *text;			/* UTF-8 */
	Size		len;
} ChosenName;

typedef struct Transform
{
	const FiniJsonRules *rules;
	FiniBuffer *dst;
	FiniJsonParser parser;
	const char *copied;			/* input before this is in dst */
	ChosenName *chosen;
	uint64		chosen_lengths; /* bit n: some chosen name has n bytes; bit 63: 63 or more */
	FiniBuffer *scratch;		/* a name or value with its escapes resolved */
} Transform;

static void choose_names(Transform *transform);
static uint64 length_bit(Size len);
static void scan(Transform *transform);
static int	chosen_name(Transform *transform);
static void replace_value(Transform *transform, int name);
static const char *string_meaning(Transform *transform, int name, Size *len);
static FiniJsonUnescaped unescape(Transform *transform, const char *src, Size len);
static void copy_until(Transform *transform, const char *end);
static void refuse(const Transform *transform, FiniJsonEvent why) pg_attribute_noreturn();

void
fini_json_transform(const char *json, Size len, const FiniJsonRules *rules, FiniBuffer *dst)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "fini JSON",
											   ALLOCSET_SMALL_SIZES);
	Transform	transform;

	MemoryContextSwitchTo(work);

	if (len >= MaxAllocSize)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s of %zu bytes is too long", rules->subject, len)));

	transform.rules = rules;
	transform.dst = dst;
	fini_json_begin(&transform.parser, json, len);
	transform.copied = json;
	transform.scratch = fini_buffer_create(256);
	choose_names(&transform);

	scan(&transform);
	copy_until(&transform, json + len);

	MemoryContextSwitchTo(caller);
	MemoryContextDelete(work);
}

void
fini_json_append_string(FiniBuffer *dst, const char *text, Size len)
{
	static const char digits[] = "0123456789abcdef";
	const char *end = text + len;
	const char *run = text;
	const char *p = text;

	/* most need no escape */
	while (p < end && (unsigned char) *p >= 0x20 && *p != '"' && *p != '\\')
		p++;
	if (p == end)
	{
		char	   *room = fini_buffer_extend(dst, len + 2);

		room[0] = '"';
		memcpy(room + 1, text, len);
		room[len + 1] = '"';
		return;
	}
	fini_buffer_append_char(dst, '"');
	for (; p < end; p++)
	{
		unsigned char c = (unsigned char) *p;
		char		escape[6];

		if (c >= 0x20 && c != '"' && c != '\\')
			continue;

		fini_buffer_append(dst, run, p - run);
		run = p + 1;
		if (c == '"' || c == '\\')
		{
			escape[0] = '\\';
			escape[1] = (char) c;
			fini_buffer_append(dst, escape, 2);
		}
		else
		{
			memcpy(escape, "\\u00", 4);	/* NOLINT(bugprone-not-null-terminated-result) */
			escape[4] = digits[c >> 4];
			escape[5] = digits[c & 0x0f];
			fini_buffer_append(dst, escape, 6);
		}
	}
	fini_buffer_append(dst, run, end - run);
	fini_buffer_append_char(dst, '"');
}

Datum
fini_json_to_jsonb(const char *text, Size len, const char *subject)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *terminated = fini_secret_alloc(len + 1);
	volatile Datum result = (Datum) 0;

	memcpy(terminated, text, len);
	terminated[len] = '\0';

	PG_TRY();
	{
		result = DirectFunctionCall1(jsonb_in, CStringGetDatum(terminated));
	}
	PG_CATCH();
	{
		int			sqlerrcode = geterrcode();

		if (ERRCODE_TO_CATEGORY(sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();

		/* raised anew rather than swallowed, so that nothing needs rolling back here */
		MemoryContextSwitchTo(caller);
		FlushErrorState();
		ereport(ERROR,
				(errcode(FINI_ERRCODE_UNREADABLE),
				 errmsg("%s cannot be represented as jsonb", subject),
				 errdetail("PostgreSQL's own message would quote it; its SQLSTATE is %s.",
						   unpack_sql_state(sqlerrcode))));
	}
	PG_END_TRY();

	return result;
}

static void
choose_names(Transform *transform)
{
	int			n = transform->rules->nnames;
	int			i;

	transform->chosen_lengths = 0;
	transform->chosen = palloc(sizeof(ChosenName) * Max(n, 1));
	for (i = 0; i < n; i++)
	{
		const char *name = transform->rules->names[i];
		ChosenName *chosen = &transform->chosen[i];

		chosen->text = fini_encoding_to_utf8(name, strlen(name), &chosen->len);
		if (chosen->text == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
					 errmsg("field name \"%s\" has no equivalent in UTF-8", name)));
		transform->chosen_lengths |= length_bit(chosen->len);
	}
}

static uint64
length_bit(Size len)
{
	return UINT64CONST(1) << Min(len, 63);
}

static void
scan(Transform *transform)
{
	int			name = -1;		/* of the field whose value comes next; -1: not chosen */

	for (;;)
	{
		FiniJsonEvent event = fini_json_next(&transform->parser);

		switch (event)
		{
			case FINI_JSON_EVENT_NAME:
				name = chosen_name(transform);
				break;
			case FINI_JSON_EVENT_BEGIN:
				CHECK_FOR_INTERRUPTS();
				/* FALLTHROUGH */
			case FINI_JSON_EVENT_SCALAR:
				if (name >= 0 && transform->parser.text.token != FINI_JSON_TOKEN_NULL)
					replace_value(transform, name);
				name = -1;
				break;
			case FINI_JSON_EVENT_END:
				break;
			case FINI_JSON_EVENT_DONE:
				return;
			case FINI_JSON_EVENT_MALFORMED:
			case FINI_JSON_EVENT_TOO_DEEP:
				refuse(transform, event);
		}
	}
}

/*
 * Which of the chosen names does the string in hand mean?  -1: none.
 */
static int
chosen_name(Transform *transform)
{
	const char *start = transform->parser.text.start + 1;
	Size		len = transform->parser.text.next - 1 - start;
	int			i;

	if (transform->parser.text.escaped)
	{
		if (unescape(transform, start, len) != FINI_JSON_UNESCAPED)
			return -1;
		start = transform->scratch->data;
		len = transform->scratch->len;
	}

	if ((transform->chosen_lengths & length_bit(len)) == 0)
		return -1;
	for (i = 0; i < transform->rules->nnames; i++)
	{
		if (transform->chosen[i].len == len &&
			memcmp(transform->chosen[i].text, start, len) == 0)
			return i;
	}

	return -1;
}

/* the first token of the value is in hand */
static void
replace_value(Transform *transform, int name)
{
	FiniJsonKind kind;
	const char *value = NULL;
	Size		len = 0;

	if (transform->parser.text.token == FINI_JSON_TOKEN_STRING)
	{
		kind = FINI_JSON_STRING;
		value = string_meaning(transform, name, &len);
	}
	else if (transform->parser.text.token == FINI_JSON_TOKEN_SCALAR)
	{
		kind = FINI_JSON_SCALAR;
		value = transform->parser.text.start;
		len = transform->parser.text.next - transform->parser.text.start;
	}
	else
		kind = FINI_JSON_NESTED;

	copy_until(transform, transform->parser.text.start);
	if (transform->rules->replace(transform->rules->arg, name, kind, value, len,
								  transform->dst))
	{
		if (kind == FINI_JSON_NESTED)
			elog(ERROR, "only scalars can be replaced");
		transform->copied = transform->parser.text.next;
	}
}

/*
 * What the string token in hand means: a piece of the input when it has no
 * escapes, else in transform->scratch.
 */
static const char *
string_meaning(Transform *transform, int name, Size *len)
{
	const char *start = transform->parser.text.start + 1;
	FiniJsonUnescaped outcome;

	*len = transform->parser.text.next - 1 - start;
	if (!transform->parser.text.escaped)
		return start;

	outcome = unescape(transform, start, *len);
	if (outcome != FINI_JSON_UNESCAPED)
		ereport(ERROR,
				(errcode(transform->rules->sqlerrcode),
				 errmsg("field \"%s\" of the %s holds an escape that stands for no character",
						transform->rules->names[name], transform->rules->subject),
				 outcome == FINI_JSON_HOLDS_NUL ?
				 errdetail("\\u0000 cannot be converted to text.") :
				 errdetail("One half of a surrogate pair stands without the other.")));

	*len = transform->scratch->len;
	return transform->scratch->data;
}

/* into transform->scratch */
static FiniJsonUnescaped
unescape(Transform *transform, const char *src, Size len)
{
	FiniJsonUnescaped outcome;
	Size		meaning = 0;
	char	   *dst;

	fini_buffer_truncate(transform->scratch, 0);
	dst = fini_buffer_extend(transform->scratch, len);
	outcome = fini_json_unescape(src, len, false, dst, &meaning);
	fini_buffer_truncate(transform->scratch, meaning);
	return outcome;
}

static void
copy_until(Transform *transform, const char *end)
{
	fini_buffer_append(transform->dst, transform->copied, end - transform->copied);
	transform->copied = end;
}

static void
refuse(const Transform *transform, FiniJsonEvent why)
{
	if (why == FINI_JSON_EVENT_TOO_DEEP)
		ereport(ERROR,
				(errcode(transform->rules->sqlerrcode),
				 errmsg("%s is nested too deeply", transform->rules->subject),
				 errdetail("At most %d levels of objects and arrays are accepted.", FINI_JSON_MAX_DEPTH)));
	ereport(ERROR,
			(errcode(transform->rules->sqlerrcode),
			 errmsg("%s is not valid JSON", transform->rules->subject),
			 errdetail("The error is at or behind byte %zu.",
					   (Size) (transform->parser.text.start - transform->parser.text.json) + 1)));
}
