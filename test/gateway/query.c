/*
 * query.c
 *		subscriptions/query: pages of records, oldest first, encrypted again.
 *
 * A cursor is the number of the record that the next page begins with: records that come
 * or change meanwhile never make a page repeat or skip one.  Texts are copied under the
 * store's lock; parsing and encrypting them is done without it.
 */
#include "subscription.h"

#include "settings.h"
#include "stats.h"
#include "store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SIZE 1000
#define DEFAULT_SIZE 100
#define MAX_TEXT 20

/* The question, taken apart; strings are the body's. */
typedef struct Question
{
	const char *ipo_id;			/* or NULL */
	json_t	   *record_ids;		/* or NULL */
	int			status;			/* or GW_STATUS_ANY */
	size_t		size;
	uint32_t	cursor;
} Question;

/* One page: each record as JSON text, and where to go on. */
typedef struct Page
{
	Buf			texts;			/* NUL-terminated, one after another */
	size_t		n;
	int64_t		total;
	uint32_t	next;			/* 0: none */
} Page;

static bool read_question(Call *call, Question *question);
static void select_by_ipo(const Question *question, Page *page);
static void select_by_ids(const Question *question, Page *page);
static bool wanted(const Question *question, const Record *record);
static void take(Page *page, const Record *record);
static int	compare_numbers(const void *a, const void *b);
static json_t *present(json_t *field);

bool
gw_query_check(Call *call)
{
	Question	question = {0};

	return gw_api_parse_body(call) && read_question(call, &question);
}

void
gw_query_process(Call *call)
{
	Question	question = {0};
	Page		page = {0};
	Damage		damage = gw_fault_damage(&call->fault);
	uint32_t	request;
	json_t	   *data;
	char		cursor[16];
	size_t		at = 0;

	if (!read_question(call, &question))
		return;
	gw_store_lock();
	if (!gw_store_claim_request(call->envelope.request_id, &request))
	{
		gw_store_unlock();
		gw_stats_add(COUNT_REPEATED_IDS, 1);
		gw_api_refuse(call, 400, "411002", "duplicate request ID");
		return;
	}
	if (question.record_ids != NULL)
		select_by_ids(&question, &page);
	else
		select_by_ipo(&question, &page);
	gw_store_unlock();

	data = json_array();
	while (at < page.texts.len)
	{
		size_t		len = strlen(page.texts.data + at);

		json_array_append_new(data, json_loadb(page.texts.data + at, len, 0, NULL));
		at += len + 1;
	}
	gw_buf_free(&page.texts);
	gw_envelope_seal(&call->envelope, data, &damage);
	snprintf(cursor, sizeof(cursor), "%u", page.next);
	gw_api_answer(call, data, page.total, cursor);
}

/* False: refused. */
static bool
read_question(Call *call, Question *question)
{
	json_t	   *data = json_object_get(call->body, "data");
	json_t	   *size = present(json_object_get(call->body, "size"));
	const char *cursor = gw_json_string(call->body, "nextCursor");
	json_t	   *ipo_id;
	json_t	   *status;
	json_t	   *item;
	size_t		i;

	if (!json_is_object(data))
		return gw_api_refuse(call, 400, "400901", "data is not an object");
	ipo_id = present(json_object_get(data, "ipoID"));
	question->record_ids = present(json_object_get(data, "recordID"));
	status = present(json_object_get(data, "subFlowStatus"));
	question->ipo_id = json_string_value(ipo_id);
	question->status = GW_STATUS_ANY;
	question->size = DEFAULT_SIZE;

	if (ipo_id != NULL && (question->ipo_id == NULL || strlen(question->ipo_id) > MAX_TEXT))
		return gw_api_refuse(call, 400, "400902", "ipoID is not a string of at most %d", MAX_TEXT);
	if (question->record_ids != NULL &&
		(!json_is_array(question->record_ids) || json_array_size(question->record_ids) > MAX_SIZE))
		return gw_api_refuse(call, 400, "400903", "recordID is not a list of at most %d", MAX_SIZE);
	json_array_foreach(question->record_ids, i, item)
	{
		if (!json_is_string(item))
			return gw_api_refuse(call, 400, "400903", "recordID holds something that is no string");
	}
	if (ipo_id == NULL && question->record_ids == NULL)
		return gw_api_refuse(call, 400, "400902", "neither ipoID nor recordID is given");
	if (status != NULL)
	{
		const char *text = json_string_value(status);

		if (text == NULL || strlen(text) != 2 || !gw_is_digits(text))
			return gw_api_refuse(call, 400, "400904", "subFlowStatus is not a string of two digits");
		question->status = atoi(text);
	}
	if (size != NULL)
	{
		if (!json_is_integer(size) || json_integer_value(size) < 1 || json_integer_value(size) > MAX_SIZE)
			return gw_api_refuse(call, 400, "401900", "size is not a number from 1 to %d", MAX_SIZE);
		question->size = (size_t) json_integer_value(size);
	}
	if (question->size > (size_t) gw_settings.max_page_size)
		question->size = (size_t) gw_settings.max_page_size;
	if (cursor == NULL || strlen(cursor) > MAX_TEXT || !gw_is_digits(cursor) ||
		strtoull(cursor, NULL, 10) >= UINT32_MAX)
		return gw_api_refuse(call, 400, "400905", "nextCursor is missing or none of this gateway's");
	question->cursor = (uint32_t) strtoull(cursor, NULL, 10);
	return true;
}

/* Caller holds the store's lock. */
static void
select_by_ipo(const Question *question, Page *page)
{
	const Bucket *bucket = gw_store_bucket(question->ipo_id);
	size_t		at;
	int			s;

	if (bucket == NULL)
		return;
	for (s = 0; s < 100; s++)
		if (question->status == GW_STATUS_ANY || question->status == s)
			page->total += (int64_t) bucket->by_status[s];
	for (at = gw_store_from(bucket, question->cursor); at < bucket->n; at++)
	{
		const Record *record = gw_store_at(bucket, at);

		if (record == NULL || !wanted(question, record))
			continue;
		if (page->n == question->size)
		{
			page->next = record->number;
			return;
		}
		take(page, record);
	}
}

/* Caller holds the store's lock. */
static void
select_by_ids(const Question *question, Page *page)
{
	uint32_t   *numbers = gw_alloc(json_array_size(question->record_ids) * sizeof(uint32_t));
	size_t		n = 0;
	size_t		i;
	json_t	   *item;

	json_array_foreach(question->record_ids, i, item)
	{
		const Record *record = gw_store_by_id(json_string_value(item));

		if (record != NULL && wanted(question, record))
			numbers[n++] = record->number;
	}
	qsort(numbers, n, sizeof(uint32_t), compare_numbers);
	for (i = 0; i < n; i++)
	{
		if (i > 0 && numbers[i] == numbers[i - 1])
			continue;
		page->total++;
		if (numbers[i] < question->cursor || page->next != 0)
			continue;
		if (page->n == question->size)
			page->next = numbers[i];
		else
			take(page, gw_store_number(numbers[i]));
	}
	free(numbers);
}

static bool
wanted(const Question *question, const Record *record)
{
	if (question->ipo_id != NULL && strcmp(record->bucket->ipo_id, question->ipo_id) != 0)
		return false;
	if (question->record_ids != NULL && gw_settings.record_ids_active_only &&
		record->status == GW_STATUS_INVALIDATED)
		return false;
	return question->status == GW_STATUS_ANY || record->status == question->status;
}

static void
take(Page *page, const Record *record)
{
	json_t	   *id = json_string(gw_record_id(record));

	gw_buf_puts(&page->texts, "{\"recordID\":");
	gw_buf_json(&page->texts, id);
	gw_buf_printf(&page->texts, ",\"subFlowStatus\":\"%02d\"%s", record->status, record->text_len > 2 ? "," : "");
	gw_buf_append(&page->texts, gw_record_text(record) + 1, record->text_len - 1);
	gw_buf_append(&page->texts, "", 1);
	page->n++;
	json_decref(id);
}

static int
compare_numbers(const void *a, const void *b)
{
	uint32_t	x = *(const uint32_t *) a;
	uint32_t	y = *(const uint32_t *) b;

	return (x > y) - (x < y);
}

/* A field that is there and not empty, else NULL. */
static json_t *
present(json_t *field)
{
	if (field == NULL || json_is_null(field) ||
		(json_is_string(field) && json_string_length(field) == 0) ||
		(json_is_array(field) && json_array_size(field) == 0))
		return NULL;
	return field;
}
