/*
 * compare.c
 *		Comparing an entry with a record.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#include "answer.h"
#include "compare.h"
#include "compat.h"
#include "envelope.h"

/* what identifies the entry, and is compared by whoever matches records */
static const char *const identifiers[] = {"ownRef", "requestID", "recordID"};

/* fields that every record has: one that lacks them says something else */
static const char *const essential[] = {"idList", "appQuantity", "ipoID"};

static void compare_values(const char *field, const JsonbValue *local, const JsonbValue *remote, List **differences);
static void compare_objects(JsonbContainer *local, JsonbContainer *remote, bool lenient, List **differences);
static void compare_arrays(const char *field, JsonbContainer *local, JsonbContainer *remote, List **differences);
static char *text_of(const JsonbValue *value);
static bool is_empty(const JsonbValue *value);
static bool is_listed(const char *field, const char *const *list, int n);
static void add_difference(List **differences, const char *field, const char *local, const char *remote);

List *
fini_compare_entry(const char *members, Size len, JsonbContainer *record, bool strict)
{
	List	   *differences = NIL;
	StringInfoData text;
	Jsonb	   *local;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	appendBinaryStringInfo(&text, members, (int) len);
	appendStringInfoChar(&text, '}');
	local = fini_answer_to_jsonb(text.data, text.len);
	fini_secret_cleanse(text.data, text.len);
	if (local == NULL || !JsonContainerIsObject(record))
		add_difference(&differences, "", NULL, NULL);
	else
		compare_objects(&local->root, record, !strict, &differences);
	return differences;
}

static void
compare_objects(JsonbContainer *local, JsonbContainer *remote, bool lenient, List **differences)
{
	JsonbIterator *it = JsonbIteratorInit(local);
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *field = NULL;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		JsonbValue *other;

		if (token == WJB_KEY)
			field = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE && field != NULL &&
				 !(lenient && is_listed(field, identifiers, lengthof(identifiers))))
		{
			other = getKeyJsonValueFromContainer(remote, field, (int) strlen(field), NULL);
			/* FINI may keep a field of ours and not tell */
			if (other == NULL && lenient && !is_listed(field, essential, lengthof(essential)))
				continue;
			compare_values(field, &value, other, differences);
		}
	}
}

static void
compare_values(const char *field, const JsonbValue *local, const JsonbValue *remote, List **differences)
{
	char	   *local_text;
	char	   *remote_text;

	if (is_empty(local) && (remote == NULL || is_empty(remote)))
		return;
	if (remote != NULL && local->type == jbvBinary && remote->type == jbvBinary)
	{
		JsonbContainer *a = local->val.binary.data;
		JsonbContainer *b = remote->val.binary.data;

		if (JsonContainerIsArray(a) && JsonContainerIsArray(b))
		{
			compare_arrays(field, a, b, differences);
			return;
		}
		if (JsonContainerIsObject(a) && JsonContainerIsObject(b))
		{
			compare_objects(a, b, false, differences);
			return;
		}
	}
	local_text = text_of(local);
	remote_text = remote != NULL ? text_of(remote) : NULL;
	if (local_text == NULL || remote_text == NULL || strcmp(local_text, remote_text) != 0)
		add_difference(differences, field, local_text, remote_text);
}

static void
compare_arrays(const char *field, JsonbContainer *local, JsonbContainer *remote, List **differences)
{
	uint32		n = JsonContainerSize(local);

	if (n != JsonContainerSize(remote))
	{
		add_difference(differences, field, psprintf("%u elements", n), psprintf("%u elements", JsonContainerSize(remote)));
		return;
	}
	for (uint32 i = 0; i < n; i++)
		compare_values(field, getIthJsonbValueFromContainer(local, i), getIthJsonbValueFromContainer(remote, i), differences);
}

/* a scalar as trimmed text; NULL for null and for what is no scalar */
static char *
text_of(const JsonbValue *value)
{
	char	   *text;
	char	   *end;

	switch (value->type)
	{
		case jbvString:
			text = pnstrdup(value->val.string.val, value->val.string.len);
			break;
		case jbvNumeric:
			text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
			break;
		case jbvBool:
			text = pstrdup(value->val.boolean ? "true" : "false");
			break;
		default:
			return NULL;
	}
	while (*text == ' ')
		text++;
	end = text + strlen(text);
	while (end > text && end[-1] == ' ')
		*--end = '\0';
	return text;
}

/* null, "", [] and {} are how answers say that there is nothing */
static bool
is_empty(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return true;
		case jbvString:
			return text_of(value)[0] == '\0';
		case jbvBinary:
			return JsonContainerSize(value->val.binary.data) == 0;
		default:
			return false;
	}
}

static bool
is_listed(const char *field, const char *const *list, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (strcmp(list[i], field) == 0)
			return true;
	}
	return false;
}

static void
add_difference(List **differences, const char *field, const char *local, const char *remote)
{
	FiniDifference *difference;
	ListCell   *cell;
	bool		personal = fini_envelope_is_personal(field, strlen(field));

	foreach(cell, *differences)
	{
		if (strcmp(((FiniDifference *) lfirst(cell))->field, field) == 0)
			return;
	}
	difference = palloc(sizeof(FiniDifference));
	difference->field = pstrdup(field);
	difference->local = personal || local == NULL ? NULL : pstrdup(local);
	difference->remote = personal || remote == NULL ? NULL : pstrdup(remote);
	*differences = lappend(*differences, difference);
}
