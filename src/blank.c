/*
 * blank.c
 *		Personal values of what was sent, blanked out of FINI's texts.
 *
 * A request has thousands of values, and as many entries may be rejected, each
 * with a text: so values are found by their first bytes.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "blank.h"
#include "envelope.h"

/* shorter values blank out more than they protect */
#define MIN_BLANKED		3

#define HEADS			4096	/* a power of two */

typedef struct Value
{
	const char *text;
	int			len;
	struct Value *next;			/* with the same first bytes */
} Value;

struct FiniBlanker
{
	Value	   *heads[HEADS];
};

static uint32 head_of(const char *text);

FiniBlanker *
fini_blank_create(void)
{
	return palloc0(sizeof(FiniBlanker));
}

void
fini_blank_add_values(FiniBlanker *blanker, const FiniValue *value)
{
	for (uint32 i = 0; i + 1 < value->size; i++)
	{
		const FiniValue *member = &value[i + 1];
		const char *text;
		Size		len;

		if (value[i].kind != FINI_VALUE_NAME || (member->kind != FINI_VALUE_STRING && member->kind != FINI_VALUE_NUMBER) ||
			!fini_envelope_is_personal(value[i].text, value[i].len))
			continue;
		text = fini_value_scalar(member, &len);
		fini_blank_add(blanker, text, (int) len);
	}
}

void
fini_blank(const FiniBlanker *blanker, char *copy, int len, const char *text)
{
	Size		left = strlen(text);

	/* from character to character: in some encodings a value's bytes can stand across two others */
	for (int at = 0; at < len && left - at >= MIN_BLANKED; at += pg_mblen(text + at))
	{
		for (const Value *value = blanker->heads[head_of(text + at)]; value != NULL; value = value->next)
		{
			if (pg_strncasecmp(text + at, value->text, value->len) == 0)
				memset(copy + at, '*', Min(value->len, len - at));
		}
	}
}

void
fini_blank_add(FiniBlanker *blanker, const char *text, int len)
{
	Value	   *value;
	Value	  **head;

	for (; len > 0 && text[0] == ' '; len--)
		text++;
	while (len > 0 && text[len - 1] == ' ')
		len--;
	if (len < MIN_BLANKED)
		return;
	head = &blanker->heads[head_of(text)];
	/* types and countries of documents are the same in most entries */
	for (value = *head; value != NULL; value = value->next)
	{
		if (value->len == len && memcmp(value->text, text, len) == 0)
			return;
	}
	value = palloc(sizeof(Value));
	value->text = text;
	value->len = len;
	value->next = *head;
	*head = value;
}

/* of a text's first bytes, whichever the case of their letters */
static uint32
head_of(const char *text)
{
	uint32		hash = 0;

	for (int i = 0; i < MIN_BLANKED; i++)
		hash = hash * 31 + pg_tolower((unsigned char) text[i]);
	return hash & (HEADS - 1);
}
