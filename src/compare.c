/*
 * compare.c
 *		Comparing an entry with a record.
 */
#include "postgres.h"

#include "compare.h"
#include "compat.h"
#include "envelope.h"

/* what identifies the entry, and is compared by whoever matches records */
static const char *const identifiers[] = {"ownRef", "requestID", "recordID"};

/* fields that every record has: one that lacks them says something else */
static const char *const essential[] = {"idList", "appQuantity", "ipoID"};

static void compare_objects(const FiniValue *local, const FiniValue *remote, bool lenient, List **differences);
static void compare_values(const FiniValue *field, const FiniValue *local, const FiniValue *remote, List **differences);
static void compare_arrays(const FiniValue *field, const FiniValue *local, const FiniValue *remote, List **differences);
static const char *trimmed(const FiniValue *value, Size *len);
static bool is_empty(const FiniValue *value);
static bool is_listed(const FiniValue *field, const char *const *list, int n);
static void add_difference(List **differences, const char *field, Size len, const char *local, const char *remote);

List *
fini_compare_entry(const char *members, Size len, const FiniValue *record, bool strict)
{
	List	   *differences = NIL;
	const FiniValue *local = NULL;

	if (members != NULL)
	{
		FiniBuffer *text = fini_buffer_create(len + 2);

		fini_buffer_append(text, "{", 1);
		fini_buffer_append(text, members, len);
		fini_buffer_append(text, "}", 1);
		local = fini_value_read(text->data, text->len);
	}
	if (local == NULL || record->kind != FINI_VALUE_OBJECT)
		add_difference(&differences, "", 0, NULL, NULL);
	else
		compare_objects(local, record, !strict, &differences);
	return differences;
}

static void
compare_objects(const FiniValue *local, const FiniValue *remote, bool lenient, List **differences)
{
	uint32		n;
	uint32		others;
	const FiniValue **members = fini_value_members(local, &n);
	const FiniValue **other = fini_value_members(remote, &others);
	const FiniValue **end = other + others;

	for (uint32 i = 0; i < n; i++)
	{
		const FiniValue *field = members[i];
		bool		there;

		while (other < end && fini_value_compare_names(*other, field) < 0)
			other++;
		there = other < end && fini_value_compare_names(*other, field) == 0;
		if (lenient && is_listed(field, identifiers, lengthof(identifiers)))
			continue;
		/* FINI may keep a field of ours and not tell */
		if (!there && lenient && !is_listed(field, essential, lengthof(essential)))
			continue;
		compare_values(field, field + 1, there ? *other + 1 : NULL, differences);
	}
}

static void
compare_values(const FiniValue *field, const FiniValue *local, const FiniValue *remote, List **differences)
{
	const char *ours;
	const char *theirs = NULL;
	Size		our_len;
	Size		their_len = 0;

	if (is_empty(local) && (remote == NULL || is_empty(remote)))
		return;
	if (remote != NULL && local->kind == FINI_VALUE_ARRAY && remote->kind == FINI_VALUE_ARRAY)
	{
		compare_arrays(field, local, remote, differences);
		return;
	}
	if (remote != NULL && local->kind == FINI_VALUE_OBJECT && remote->kind == FINI_VALUE_OBJECT)
	{
		compare_objects(local, remote, false, differences);
		return;
	}
	ours = trimmed(local, &our_len);
	if (remote != NULL)
		theirs = trimmed(remote, &their_len);
	if (ours == NULL || theirs == NULL || our_len != their_len || memcmp(ours, theirs, our_len) != 0)
		add_difference(differences, field->text, field->len, ours != NULL ? pnstrdup(ours, our_len) : NULL,
					   theirs != NULL ? pnstrdup(theirs, their_len) : NULL);
}

static void
compare_arrays(const FiniValue *field, const FiniValue *local, const FiniValue *remote, List **differences)
{
	const FiniValue *ours = local + 1;
	const FiniValue *theirs = remote + 1;

	if (local->count != remote->count)
	{
		add_difference(differences, field->text, field->len, psprintf("%u elements", local->count), psprintf("%u elements", remote->count));
		return;
	}
	for (uint32 i = 0; i < local->count; i++)
	{
		compare_values(field, ours, theirs, differences);
		ours += ours->size;
		theirs += theirs->size;
	}
}

/* a scalar as text without the spaces around it; NULL for null and for what is no scalar */
static const char *
trimmed(const FiniValue *value, Size *len)
{
	const char *text = fini_value_scalar(value, len);

	if (text == NULL)
		return NULL;
	for (; *len > 0 && *text == ' '; (*len)--)
		text++;
	while (*len > 0 && text[*len - 1] == ' ')
		(*len)--;
	return text;
}

/* null, "", [] and {} are how answers say that there is nothing */
static bool
is_empty(const FiniValue *value)
{
	Size		len;

	switch (value->kind)
	{
		case FINI_VALUE_NULL:
			return true;
		case FINI_VALUE_STRING:
			(void) trimmed(value, &len);
			return len == 0;
		case FINI_VALUE_OBJECT:
		case FINI_VALUE_ARRAY:
			return value->count == 0;
		default:
			return false;
	}
}

static bool
is_listed(const FiniValue *field, const char *const *list, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (strlen(list[i]) == field->len && memcmp(list[i], field->text, field->len) == 0)
			return true;
	}
	return false;
}

static void
add_difference(List **differences, const char *field, Size len, const char *local, const char *remote)
{
	FiniDifference *difference;
	ListCell   *cell;
	bool		personal = fini_envelope_is_personal(field, len);
	char	   *name = pnstrdup(field, len);

	foreach(cell, *differences)
	{
		if (strcmp(((FiniDifference *) lfirst(cell))->field, name) == 0)
			return;
	}
	difference = palloc(sizeof(FiniDifference));
	difference->field = name;
	difference->local = personal ? NULL : local;
	difference->remote = personal ? NULL : remote;
	*differences = lappend(*differences, difference);
}
