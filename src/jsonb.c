/*
 * jsonb.c
 *		JSON of users as jsonb, and fields of it.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "compat.h"
#include "jsonb.h"

static Jsonb *read_text(const void *text);
static bool is_bounded(const char *json);
static char *scalar_text(const JsonbValue *value);

Jsonb *
fini_jsonb_read(const char *text, Size len)
{
	/* jsonb_in takes the encoding for granted; an embedded NUL, invalid too, would hide what follows */
	if (len > INT_MAX || !pg_verify_mbstr(GetDatabaseEncoding(), text, (int) len, true) || !is_bounded(text))
		return NULL;
	return fini_jsonb_make(read_text, text);
}

/*
 * Nothing but memory is allocated, so that the error can be caught without a
 * subtransaction.  It must not get out: it quotes the text.
 */
Jsonb *
fini_jsonb_make(Jsonb *(*make) (const void *arg), const void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb	   *volatile json = NULL;

	PG_TRY();
	{
		json = make(arg);
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
fini_jsonb_field(JsonbContainer *object, const char *name)
{
	JsonbValue *value;

	if (!JsonContainerIsObject(object))
		return NULL;
	value = getKeyJsonValueFromContainer(object, name, (int) strlen(name), NULL);
	return value != NULL ? scalar_text(value) : NULL;
}

static Jsonb *
read_text(const void *text)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
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
			if (strspn(c, "0123456789") > FINI_JSONB_MAX_EXPONENT)
				return false;
			c--;
		}
	}
	return values <= FINI_JSONB_MAX_VALUES;
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
