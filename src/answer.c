/*
 * answer.c
 *		Reading what the gateway answered.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "answer.h"
#include "encoding.h"
#include "envelope.h"
#include "secret.h"

/* of an answer; far beyond a page of 1000 records */
#define MAX_ENTRIES		100000

static bool is_array(const FiniValue *value);
static bool is_object(const FiniValue *value);
static int	entry_number(const FiniValue *object);
static void cleanse_text(const char **text);
static bool first_exception(const FiniValue *object, const char **code, const char **message);

FiniAnswer *
fini_answer_parse(const char *text, Size len)
{
	FiniAnswer *answer;
	const FiniValue *json = fini_value_read(text, len);
	const FiniValue *data;
	char	   *cursor;
	char	   *code;
	char	   *message;

	if (!is_object(json))
		return NULL;
	code = fini_value_member_text(json, "code");
	if (code == NULL || strlen(code) >= FINI_MAX_CODE)
		return NULL;

	answer = palloc0(sizeof(FiniAnswer));
	answer->json = json;
	answer->code = code;
	message = fini_value_member_text(json, "message");
	answer->message = message != NULL ? message : "";
	cursor = fini_value_member_text(json, "nextCursor");
	if (cursor != NULL && cursor[0] != '\0' && strcmp(cursor, "0") != 0)
		answer->next_cursor = cursor;
	answer->exception = first_exception(json, &answer->exception_code, &answer->exception_message);
	answer->entries = -1;
	data = fini_value_member(json, "data");
	if (is_array(data))
	{
		if (data->count > MAX_ENTRIES)
			return NULL;
		answer->entries = (int) data->count;
		answer->data = palloc(sizeof(FiniValue *) * Max(1, data->count));
		for (int i = 0; i < answer->entries; i++)
			answer->data[i] = i == 0 ? data + 1 : answer->data[i - 1] + answer->data[i - 1]->size;
	}
	return answer;
}

bool
fini_answer_is_page(const FiniAnswer *answer)
{
	const FiniValue *data = fini_value_member(answer->json, "data");

	return data == NULL || data->kind == FINI_VALUE_ARRAY || data->kind == FINI_VALUE_NULL || (is_object(data) && data->count == 0);
}

bool
fini_answer_object(const FiniAnswer *answer, int i, const FiniValue **object)
{
	if (i < 0 || i >= answer->entries || !is_object(answer->data[i]))
		return false;
	*object = answer->data[i];
	return true;
}

bool
fini_answer_entry(const FiniAnswer *answer, int i, FiniAnswerEntry *entry)
{
	const FiniValue *object;

	memset(entry, 0, sizeof(*entry));
	entry->number = -1;
	if (!fini_answer_object(answer, i, &object))
		return false;

	entry->number = entry_number(object);
	entry->record_id = fini_value_member_text(object, "recordID");
	if (entry->record_id != NULL &&
		(entry->record_id[0] == '\0' || strlen(entry->record_id) > FINI_MAX_RECORD_ID))
		entry->record_id = NULL;
	entry->own_ref = fini_value_member_text(object, "ownRef");
	entry->rejected = first_exception(object, &entry->error_code, &entry->error_message);
	return true;
}

void
fini_answer_entry_done(FiniAnswerEntry *entry)
{
	cleanse_text(&entry->error_code);
	cleanse_text(&entry->error_message);
}

void
fini_answer_done(FiniAnswer *answer)
{
	cleanse_text(&answer->message);
	cleanse_text(&answer->exception_message);
}

static void
cleanse_text(const char **text)
{
	/* those that are empty need not be ours */
	if (*text != NULL && (*text)[0] != '\0')
		fini_secret_cleanse(unconstify(char *, *text), strlen(*text));
	*text = "";
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

static bool
is_array(const FiniValue *value)
{
	return value != NULL && value->kind == FINI_VALUE_ARRAY;
}

static bool
is_object(const FiniValue *value)
{
	return value != NULL && value->kind == FINI_VALUE_OBJECT;
}

/* its requestID; -1: none that we could have given */
static int
entry_number(const FiniValue *object)
{
	const FiniValue *value = fini_value_member(object, "requestID");
	const char *digits;
	Size		len;
	int			number = 0;

	if (value == NULL || (digits = fini_value_scalar(value, &len)) == NULL || len < 1 || len > 6 || digits[0] == '0')
		return -1;
	for (Size i = 0; i < len; i++)
	{
		if (digits[i] < '0' || digits[i] > '9')
			return -1;
		number = number * 10 + (digits[i] - '0');
	}
	return number;
}

/* is there an exception, and what does its first element say? */
static bool
first_exception(const FiniValue *object, const char **code, const char **message)
{
	const FiniValue *first = fini_value_member(object, "exception");

	*code = *message = "";
	if (!is_array(first) && !is_object(first))
		return false;
	/* an empty one is how some answers say "nothing", also within a list */
	if (first->count == 0)
		return false;
	if (is_array(first))
		first++;
	if (is_object(first))
	{
		char	   *text;

		if (first->count == 0)
			return false;
		text = fini_value_member_text(first, "recordErrorCode");
		if (text != NULL)
		{
			text[pg_mbcliplen(text, (int) strlen(text), FINI_MAX_CODE - 1)] = '\0';
			*code = text;
		}
		text = fini_value_member_text(first, "recordErrorMsg");
		if (text != NULL)
			*message = text;
	}
	return true;
}
