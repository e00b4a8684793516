/*
 * funding.c
 *		funding/confirm and funding/query, over the rows of ipo.c.
 */
#include "ipo.h"

#include "settings.h"
#include "stats.h"
#include "store.h"
#include "validate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIRMED "20"
#define DECLINED "30"

static json_t *confirm_one(Call *call, json_t *entry, json_int_t *rejected_by_fault);
static Refusal judge(const char *reference, const char *status, json_t *row);

bool
gw_funding_check_confirm(Call *call)
{
	json_t	   *data;

	if (!gw_api_parse_body(call))
		return false;
	data = json_object_get(call->body, "data");
	if (!json_is_array(data) || json_array_size(data) < 1 || json_array_size(data) > 1000)
		return gw_api_refuse(call, 400, "405904", "data is not a list of 1 to 1000 entries");
	gw_json_trim(data);
	return true;
}

/* Confirming again what is confirmed changes nothing; the contrary is an exception. */
void
gw_funding_process_confirm(Call *call)
{
	json_t	   *data = json_object_get(call->body, "data");
	json_t	   *answers = json_array();
	json_t	   *entry;
	json_int_t	rejected = 0;
	size_t		i;

	gw_store_lock();
	json_array_foreach(data, i, entry)
		json_array_append_new(answers, confirm_one(call, entry, &rejected));
	gw_store_unlock();
	gw_stats_add(COUNT_ENTRIES, (int64_t) json_array_size(data));
	gw_api_answer(call, answers, (int64_t) json_array_size(data), "0");
}

bool
gw_funding_check_query(Call *call)
{
	json_t	   *data;
	json_t	   *size;
	const char *cursor;

	if (!gw_api_parse_body(call))
		return false;
	data = json_object_get(call->body, "data");
	size = json_object_get(call->body, "size");
	cursor = gw_json_string(call->body, "nextCursor");
	if (data != NULL && !json_is_object(data) && !json_is_null(data))
		return gw_api_refuse(call, 400, "400901", "data is not an object");
	if (size != NULL && !json_is_null(size) &&
		(!json_is_integer(size) || json_integer_value(size) < 1 || json_integer_value(size) > 1000))
		return gw_api_refuse(call, 400, "401900", "size is not a number from 1 to 1000");
	if (cursor == NULL || strlen(cursor) > 18 || !gw_is_digits(cursor))
		return gw_api_refuse(call, 400, "400905", "nextCursor is missing or none of this gateway's");
	return true;
}

void
gw_funding_process_query(Call *call)
{
	const char *ipo_id = gw_json_string(json_object_get(call->body, "data"), "ipoID");
	json_t	   *size_field = json_object_get(call->body, "size");
	size_t		size = json_is_integer(size_field) ? (size_t) json_integer_value(size_field) : 100;
	size_t		from = strtoul(gw_json_string(call->body, "nextCursor"), NULL, 10);
	json_t	   *rows = gw_ipo_rows("transactionRef");
	json_t	   *data = json_array();
	json_t	   *row;
	size_t		total = 0;
	size_t		i;
	char		cursor[24];

	if (size > (size_t) gw_settings.max_page_size)
		size = (size_t) gw_settings.max_page_size;
	json_array_foreach(rows, i, row)
	{
		const char *of = gw_json_string(row, "ipoID");

		if (ipo_id != NULL && *ipo_id != '\0' && (of == NULL || strcmp(of, ipo_id) != 0))
			continue;
		if (total >= from && total - from < size)
			json_array_append(data, row);
		total++;
	}
	snprintf(cursor, sizeof(cursor), "%zu", from < total && total - from > size ? from + size : 0);
	gw_api_answer(call, data, (int64_t) total, cursor);
	json_decref(rows);
}

/* Caller holds the store's lock. */
static json_t *
confirm_one(Call *call, json_t *entry, json_int_t *rejected_by_fault)
{
	const char *reference = gw_json_string(entry, "transactionRef");
	const char *status = gw_json_string(entry, "preFundingStatus");
	json_t	   *row = reference ? gw_ipo_find("transactionRef", reference) : NULL;
	json_t	   *answer = json_object();
	json_t	   *exception = json_array();
	Refusal		refusal = judge(reference, status, row);

	if (refusal.code == NULL && gw_fault_rejects(&call->fault, reference, rejected_by_fault))
		refusal = (Refusal) {gw_fault_string(&call->fault, "code", REJECT_ON_PURPOSE),
		gw_fault_string(&call->fault, "message", "rejected by an injected fault")};
	if (refusal.code == NULL)
	{
		const char *before = gw_json_string(row, "preFundingStatus");

		gw_stats_add(before != NULL && strcmp(before, status) == 0 ? COUNT_CONFIRMED_AGAIN : COUNT_CONFIRMED, 1);
		json_object_set_new(row, "preFundingStatus", json_string(status));
	}
	else
	{
		gw_stats_add(COUNT_REJECTED, 1);
		if (strcmp(refusal.code, REJECT_CONTRADICTION) == 0)
			gw_stats_add(COUNT_CONTRADICTED, 1);
		json_array_append_new(exception, json_pack("{ss ss}", "recordErrorCode", refusal.code,
												   "recordErrorMsg", refusal.message));
		status = gw_json_string(row, "preFundingStatus");
	}
	if (json_object_get(entry, "requestID") != NULL)
		json_object_set(answer, "requestID", json_object_get(entry, "requestID"));
	json_object_set_new(answer, "transactionRef", reference ? json_string(reference) : json_null());
	json_object_set_new(answer, "preFundingStatus", status ? json_string(status) : json_null());
	json_object_set_new(answer, "exception", exception);
	return answer;
}

static Refusal
judge(const char *reference, const char *status, json_t *row)
{
	const char *now = gw_json_string(row, "preFundingStatus");
	bool		decided;

	if (reference == NULL || row == NULL)
		return (Refusal) {REJECT_TRANSACTION, "transactionRef is missing or unknown"};
	if (status == NULL || (strcmp(status, CONFIRMED) != 0 && strcmp(status, DECLINED) != 0))
		return (Refusal) {REJECT_FUNDING_STATUS, "preFundingStatus is neither 20 nor 30"};
	decided = now != NULL && (strcmp(now, CONFIRMED) == 0 || strcmp(now, DECLINED) == 0);
	if (decided && strcmp(now, status) != 0)
		return (Refusal) {REJECT_CONTRADICTION, "the contrary has been confirmed already"};
	return (Refusal) {NULL, NULL};
}
