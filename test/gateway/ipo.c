/*
 * ipo.c
 *		IPO rows and funding rows, kept as JSON objects by their key, and ipos/list and
 *		ipos/refdata.
 */
#include "ipo.h"

#include "settings.h"
#include "store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_ipo(int i);
static void add_funding(int i);
static json_t **table(const char *key);

/* Objects from ipoID, or transactionRef, to row; under the store's lock. */
static json_t *ipos;
static json_t *funding;

#define EXAMPLES 8

static const struct
{
	const char *ipo_id;
	const char *stock_code;
	const char *isin;
	const char *status;
	const char *issuer;
	const char *price;
}			examples[EXAMPLES] = {
	{"1234", "09991", "KYG9991A1012", "25", "Harbour Light Holdings Limited", "12.50"},
	{"1235", "09992", "HK0000999225", "30", "Lion Rock Robotics Limited", "7.88"},
	{"1236", "09993", "CNE1000099P3", "25", "Pearl River Pharma Co., Ltd.", "23.40"},
	{"1237", "09994", "KYG9994D1047", "45", "Peak Tram Semiconductor Inc.", "31.00"},
	{"1238", "09995", "KYG9995E1054", "60", "Star Ferry Logistics Limited", "4.16"},
	{"1239", "09996", "HK0000999662", "70", "Kowloon Walled Games Limited", "18.20"},
	{"1240", "09997", "BMG9997G1071", "30", "Lantau Clean Energy Limited", "2.75"},
	{"1241", "09998", "CNE1000098Q8", "25", "Victoria Genomics Co., Ltd.", "45.60"},
};

/* The examples that every gateway starts with. */
void
gw_ipo_preload(void)
{
	int			i;

	gw_store_lock();
	for (i = 0; i < EXAMPLES; i++)
	{
		add_ipo(i);
		add_funding(i);
	}
	gw_store_unlock();
}

bool
gw_ipo_exists(const char *ipo_id)
{
	return json_object_get(ipos, ipo_id) != NULL;
}

/* Open for applications: status 25 or 30. */
bool
gw_ipo_is_open(const char *ipo_id)
{
	const char *status = gw_json_string(json_object_get(ipos, ipo_id), "status");

	return status != NULL && (strcmp(status, "25") == 0 || strcmp(status, "30") == 0);
}

/* The row itself, not a copy, or NULL. */
json_t *
gw_ipo_find(const char *key, const char *id)
{
	return json_object_get(*table(key), id);
}

/* Merges an array of objects into the rows by "ipoID" or "transactionRef"; all or none. */
bool
gw_ipo_upsert(const json_t *rows, const char *key, const char **problem)
{
	json_t	   *row;
	size_t		i;

	if (!json_is_array(rows))
	{
		*problem = "not an array";
		return false;
	}
	json_array_foreach(rows, i, row)
	{
		const char *id = gw_json_string(row, key);

		if (id == NULL || *id == '\0' || strlen(id) > 20)
		{
			*problem = "a row without its key";
			return false;
		}
	}
	gw_store_lock();
	json_array_foreach(rows, i, row)
	{
		json_t	   *old = json_object_get(*table(key), gw_json_string(row, key));
		json_t	   *copy = json_deep_copy(row);

		if (old == NULL)
			json_object_set_new(*table(key), gw_json_string(row, key), copy);
		else
		{
			json_object_update(old, copy);
			json_decref(copy);
		}
	}
	gw_store_unlock();
	return true;
}

/* False when there is no such row. */
bool
gw_ipo_remove(const char *key, const char *id)
{
	bool		found;

	gw_store_lock();
	found = json_object_del(*table(key), id) == 0;
	gw_store_unlock();
	return found;
}

/* All rows, in the order they came; the caller's. */
json_t *
gw_ipo_rows(const char *key)
{
	json_t	   *list = json_array();
	json_t	   *row;
	const char *id;

	gw_store_lock();
	json_object_foreach(*table(key), id, row)
		json_array_append_new(list, json_deep_copy(row));
	gw_store_unlock();
	return list;
}

void
gw_ipo_process_list(Call *call)
{
	static const char *const shown[] = {"ipoID", "stkCode", "isin", "status"};
	const char *size_text = gw_http_query(call->request, "size");
	const char *cursor_text = gw_http_query(call->request, "nextCursor");
	json_t	   *rows;
	json_t	   *data;
	size_t		size = size_text ? (size_t) strtoul(size_text, NULL, 10) : 100;
	size_t		from = cursor_text ? (size_t) strtoul(cursor_text, NULL, 10) : 0;
	size_t		n;
	size_t		i;
	size_t		k;
	char		cursor[24];

	if (size_text != NULL && (!gw_is_digits(size_text) || strlen(size_text) > 4 || size < 1 || size > 1000))
	{
		gw_api_refuse(call, 400, "401900", "size is not a number from 1 to 1000");
		return;
	}
	if (cursor_text != NULL && (!gw_is_digits(cursor_text) || strlen(cursor_text) > 18))
	{
		gw_api_refuse(call, 400, "400905", "nextCursor is none of this gateway's");
		return;
	}
	if (size > (size_t) gw_settings.max_page_size)
		size = (size_t) gw_settings.max_page_size;
	rows = gw_ipo_rows("ipoID");
	n = json_array_size(rows);
	data = json_array();
	for (i = from; i < n && i - from < size; i++)
	{
		json_t	   *row = json_object();

		for (k = 0; k < 4; k++)
			json_object_set(row, shown[k], json_object_get(json_array_get(rows, i), shown[k]));
		json_array_append_new(data, row);
	}
	snprintf(cursor, sizeof(cursor), "%zu", i < n ? i : 0);
	gw_api_answer(call, data, (int64_t) n, cursor);
	json_decref(rows);
}

/* What the list shows, and all of the row's "refdata" beside it. */
void
gw_ipo_process_refdata(Call *call)
{
	const char *ipo_id = gw_http_query(call->request, "ipoID");
	json_t	   *row;
	json_t	   *refdata;

	gw_store_lock();
	row = ipo_id ? json_deep_copy(json_object_get(ipos, ipo_id)) : NULL;
	gw_store_unlock();
	if (row == NULL)
	{
		gw_api_refuse(call, 400, "400101", "ipoID is missing or unknown");
		return;
	}
	refdata = json_incref(json_object_get(row, "refdata"));
	json_object_del(row, "refdata");
	if (json_is_object(refdata))
		json_object_update(row, refdata);
	json_decref(refdata);
	gw_api_answer(call, row, 1, "0");
}

static void
add_ipo(int i)
{
	json_t	   *row = json_pack("{ss ss ss ss s{ss ss si ss ss s[{ss ss}]}}",
								"ipoID", examples[i].ipo_id, "stkCode", examples[i].stock_code,
								"isin", examples[i].isin, "status", examples[i].status, "refdata",
								"issuerName", examples[i].issuer, "offerPrice", examples[i].price,
								"boardLot", 500, "currency", "HKD", "offerType", "Public Offer",
								"permittedQuantities", "quantity", "500", "amount", "6312.50");

	json_object_set_new(*table("ipoID"), examples[i].ipo_id, row);
}

static void
add_funding(int i)
{
	char		reference[16];

	snprintf(reference, sizeof(reference), "%013d", 100000001 + i);
	json_object_set_new(*table("transactionRef"), reference,
						json_pack("{ss ss ss ss ss ss}", "transactionRef", reference,
								  "ipoID", examples[i].ipo_id, "preFundingStatus", "10",
								  "participantID", "B01234", "currency", "HKD", "amount", "1250000.00"));
}

static json_t **
table(const char *key)
{
	json_t	  **which = strcmp(key, "ipoID") == 0 ? &ipos : &funding;

	if (*which == NULL)
		*which = json_object();
	return which;
}
