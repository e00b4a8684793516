/*
 * subscription.c
 *		Batches of add, change and invalidate.
 *
 * check: envelope, JSON, batch size, decryption, trimming, and of each entry whatever can
 * be judged by itself.  process: under the store's lock, in one step, the request ID is
 * taken and every entry applied; a request ID seen before refuses all of it (411002).
 */
#include "subscription.h"

#include "ipo.h"
#include "settings.h"
#include "stats.h"
#include "store.h"
#include "validate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BATCH 1000

/* One entry between check and answer; strings are the body's unless said otherwise. */
typedef struct Entry
{
	const char *request_id;		/* as sent, or NULL */
	const char *own_ref;
	const char *ipo_id;
	const char *record_id;
	json_t	   *fields;			/* to store; borrowed from the body */
	char	   *text;			/* malloc'd: an add's fields, else the record's ownRef */
	Refusal		refusal;		/* code NULL: accepted */
	char		new_id[24];		/* adds only */
	int			status;
} Entry;

typedef void (*Apply) (Entry *entry, uint32_t request, int64_t now, int64_t counts[COUNTERS]);

static void read_entry(Entry *entry, json_t *source, json_t *seen, const char *endpoint);
static json_t *storable(json_t *source);
static void process(Call *call, Apply apply);
static void apply_add(Entry *entry, uint32_t request, int64_t now, int64_t counts[COUNTERS]);
static void apply_change(Entry *entry, uint32_t request, int64_t now, int64_t counts[COUNTERS]);
static void apply_invalidate(Entry *entry, uint32_t request, int64_t now, int64_t counts[COUNTERS]);
static Record *active_record(Entry *entry, int64_t counts[COUNTERS]);
static Refusal check_ipo(const char *ipo_id);
static json_t *answer_entry(const Entry *entry);

/* ownRefs that POST /config wants rejected, under the store's lock; an object as a set */
static json_t *reject_refs;

bool
gw_subscription_check_batch(Call *call)
{
	json_t	   *data;
	json_t	   *seen;
	Refusal		refusal;
	size_t		i;

	if (!gw_api_parse_body(call))
		return false;
	data = json_object_get(call->body, "data");
	if (!json_is_array(data) || json_array_size(data) < 1 || json_array_size(data) > MAX_BATCH)
		return gw_api_refuse(call, 400, "405904", "data is not a list of 1 to %d entries", MAX_BATCH);
	refusal = gw_envelope_open(&call->envelope, data);
	if (refusal.code != NULL)
		return gw_api_refuse(call, 400, refusal.code, "%s", refusal.message);
	gw_json_trim(data);
	call->nentries = json_array_size(data);
	call->entries = gw_alloc(call->nentries * sizeof(Entry));
	seen = json_object();
	for (i = 0; i < call->nentries; i++)
		read_entry(&call->entries[i], json_array_get(data, i), seen, call->name);
	json_decref(seen);
	return true;
}

void
gw_subscription_process_add(Call *call)
{
	process(call, apply_add);
}

void
gw_subscription_process_change(Call *call)
{
	process(call, apply_change);
}

void
gw_subscription_process_invalidate(Call *call)
{
	process(call, apply_invalidate);
}

void
gw_subscription_release(Call *call)
{
	size_t		i;

	for (i = 0; i < call->nentries; i++)
		free(call->entries[i].text);
	free(call->entries);
}

/* An array of strings (copied), or NULL for none. */
void
gw_subscription_reject_refs(json_t *own_refs)
{
	json_t	   *set = json_object();
	json_t	   *item;
	size_t		i;

	json_array_foreach(own_refs, i, item)
		json_object_set_new(set, json_string_value(item), json_true());
	gw_store_lock();
	json_decref(reject_refs);
	reject_refs = set;
	gw_store_unlock();
}

/* Takes an entry apart and judges what can be judged of it alone. */
static void
read_entry(Entry *entry, json_t *source, json_t *seen, const char *endpoint)
{
	bool		is_add = strcmp(endpoint, "subscriptions/add") == 0;

	if (!json_is_object(source))
	{
		entry->refusal = (Refusal) {REJECT_REQUEST_ID, "the entry is not an object"};
		return;
	}
	entry->request_id = gw_json_string(source, "requestID");
	entry->own_ref = gw_json_string(source, "ownRef");
	entry->ipo_id = gw_json_string(source, "ipoID");
	entry->record_id = is_add ? NULL : gw_json_string(source, "recordID");
	entry->fields = source;
	if (entry->request_id == NULL || strlen(entry->request_id) > 18 || !gw_is_digits(entry->request_id))
		entry->refusal = (Refusal) {REJECT_REQUEST_ID, "requestID is not a string of digits"};
	else if (json_object_get(seen, entry->request_id) != NULL)
		entry->refusal = (Refusal) {REJECT_REQUEST_ID, "requestID is used twice in one request"};
	else
	{
		json_object_set_new(seen, entry->request_id, json_true());
		if (!is_add && (entry->record_id == NULL || *entry->record_id == '\0'))
			entry->refusal = (Refusal) {REJECT_RECORD_UNKNOWN, "recordID is missing"};
		else if (is_add)
			entry->refusal = gw_validate_application(source);
	}
	if (entry->refusal.code == NULL && is_add)
	{
		json_t	   *stored = storable(source);
		Buf			text = {0};

		gw_buf_json(&text, stored);
		entry->text = text.data;
		json_decref(stored);
	}
}

/* A copy, the caller's, without what is not the client's to say. */
static json_t *
storable(json_t *source)
{
	static const char *const ours[] = {"requestID", "recordID", "subFlowStatus", "_history"};
	json_t	   *copy = json_copy(source);
	size_t		i;

	for (i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		json_object_del(copy, ours[i]);
	return copy;
}

static void
process(Call *call, Apply apply)
{
	int64_t		counts[COUNTERS] = {0};
	int64_t		now = gw_clock_ms();
	json_int_t	rejected_by_fault = 0;
	uint32_t	request;
	json_t	   *data;
	size_t		i;
	int			c;

	gw_store_lock();
	if (!gw_store_claim_request(call->envelope.request_id, &request))
	{
		gw_store_unlock();
		gw_stats_add(COUNT_REPEATED_IDS, 1);
		gw_api_refuse(call, 400, "411002", "duplicate request ID");
		return;
	}
	for (i = 0; i < call->nentries; i++)
	{
		Entry	   *entry = &call->entries[i];

		if (entry->refusal.code == NULL && entry->own_ref != NULL &&
			json_object_get(reject_refs, entry->own_ref) != NULL)
			entry->refusal = (Refusal) {REJECT_ON_PURPOSE, "rejected by the sandbox's configuration"};
		if (entry->refusal.code == NULL && gw_fault_rejects(&call->fault, entry->own_ref, &rejected_by_fault))
			entry->refusal = (Refusal) {gw_fault_string(&call->fault, "code", REJECT_ON_PURPOSE),
			gw_fault_string(&call->fault, "message", "rejected by an injected fault")};
		if (entry->refusal.code == NULL)
			apply(entry, request, now, counts);
		counts[COUNT_ENTRIES]++;
		if (entry->refusal.code != NULL)
			counts[COUNT_REJECTED]++;
	}
	gw_store_unlock();

	for (c = 0; c < COUNTERS; c++)
		if (counts[c] != 0)
			gw_stats_add((Counter) c, counts[c]);
	data = json_array();
	for (i = 0; i < call->nentries; i++)
		json_array_append_new(data, answer_entry(&call->entries[i]));
	gw_api_answer(call, data, (int64_t) call->nentries, "0");
	if (call->fault.action == FAULT_REJECT_ENTRIES)
		call->reply->status = (unsigned) gw_fault_number(&call->fault, "status", 200);
}

static void
apply_add(Entry *entry, uint32_t request, int64_t now, int64_t counts[COUNTERS])
{
	RecordParts parts = {
		.ipo_id = entry->ipo_id,
		.own_ref = entry->own_ref,
		.status = GW_STATUS_AUTHORISED,
		.text = entry->text,
	};
	Record	   *record;
	Buf			brief = {0};

	entry->refusal = check_ipo(entry->ipo_id);
	if (entry->refusal.code != NULL)
		return;
	if (gw_settings.forget_fields)
	{
		json_t	   *fields = json_pack("{ss ss?}", "ipoID", entry->ipo_id, "ownRef", entry->own_ref);

		gw_buf_json(&brief, fields);
		json_decref(fields);
		parts.text = brief.data;
	}
	parts.text_len = strlen(parts.text);
	if (entry->own_ref != NULL && *entry->own_ref != '\0' &&
		gw_store_has_active(entry->ipo_id, entry->own_ref))
		counts[COUNT_DUPLICATE_ADDS]++;
	record = gw_store_add(&parts);
	gw_record_event(record, 'a', request, now);
	snprintf(entry->new_id, sizeof(entry->new_id), "%s", gw_record_id(record));
	entry->record_id = entry->new_id;
	entry->status = record->status;
	counts[COUNT_ACCEPTED]++;
	gw_buf_free(&brief);
}

/* The fields sent take the place of the record's; the others stay. */
static void
apply_change(Entry *entry, uint32_t request, int64_t now, int64_t counts[COUNTERS])
{
	Record	   *record = active_record(entry, counts);
	json_t	   *fields;
	json_t	   *sent;
	Buf			text = {0};

	if (record == NULL)
		return;
	if (entry->ipo_id != NULL && strcmp(entry->ipo_id, record->bucket->ipo_id) != 0)
		entry->refusal = (Refusal) {REJECT_RECORD_OTHER, "the record belongs to another ipoID"};
	else if (entry->own_ref != NULL && strcmp(entry->own_ref, gw_record_own_ref(record)) != 0)
		entry->refusal = (Refusal) {REJECT_RECORD_OTHER, "the record belongs to another ownRef"};
	else
		entry->refusal = check_ipo(record->bucket->ipo_id);
	if (entry->refusal.code != NULL)
		return;

	fields = json_loadb(gw_record_text(record), record->text_len, 0, NULL);
	sent = storable(entry->fields);
	json_object_update(fields, sent);
	json_decref(sent);
	entry->refusal = gw_validate_application(fields);
	if (entry->refusal.code == NULL)
	{
		RecordParts parts = {
			.record_id = gw_record_id(record),
			.ipo_id = record->bucket->ipo_id,
			.own_ref = gw_record_own_ref(record),
			.status = record->status,
		};

		gw_buf_json(&text, fields);
		parts.text = text.data;
		parts.text_len = text.len;
		record = gw_store_replace(record, &parts);
		gw_record_event(record, 'c', request, now);
		entry->status = record->status;
		counts[COUNT_CHANGED]++;
		gw_buf_free(&text);
	}
	json_decref(fields);
}

static void
apply_invalidate(Entry *entry, uint32_t request, int64_t now, int64_t counts[COUNTERS])
{
	Record	   *record = active_record(entry, counts);

	if (record == NULL)
		return;
	gw_store_set_status(record, GW_STATUS_INVALIDATED);
	gw_record_event(record, 'i', request, now);
	entry->status = record->status;
	counts[COUNT_INVALIDATED]++;
}

/* The record that an entry means, or NULL and the entry rejected. */
static Record *
active_record(Entry *entry, int64_t counts[COUNTERS])
{
	Record	   *record = gw_store_by_id(entry->record_id);

	if (record == NULL)
		entry->refusal = (Refusal) {REJECT_RECORD_UNKNOWN, "recordID is unknown"};
	else if (record->status == GW_STATUS_INVALIDATED)
	{
		entry->refusal = (Refusal) {REJECT_RECORD_INVALIDATED, "the record is invalidated already"};
		record = NULL;
	}
	if (record == NULL)
		counts[COUNT_OUT_OF_ORDER]++;
	else if (entry->own_ref == NULL)
		entry->own_ref = entry->text = gw_strdup(gw_record_own_ref(record));
	return record;
}

static Refusal
check_ipo(const char *ipo_id)
{
	if (ipo_id == NULL || !gw_ipo_exists(ipo_id))
		return (Refusal) {REJECT_IPO_UNKNOWN, "ipoID is missing or unknown"};
	if (!gw_ipo_is_open(ipo_id))
		return (Refusal) {REJECT_IPO_CLOSED, "the IPO is not open for applications"};
	return (Refusal) {NULL, NULL};
}

/* requestID comes back as a number; a fault can make it a string again. */
static json_t *
answer_entry(const Entry *entry)
{
	json_t	   *answer = json_object();
	json_t	   *exception = json_array();
	bool		ok = entry->refusal.code == NULL;
	char		status[8];

	if (entry->request_id != NULL && gw_is_digits(entry->request_id) && strlen(entry->request_id) <= 18)
		json_object_set_new_nocheck(answer, "requestID", json_integer(strtoll(entry->request_id, NULL, 10)));
	else
		json_object_set_new_nocheck(answer, "requestID", entry->request_id ? json_string(entry->request_id) : json_null());
	json_object_set_new_nocheck(answer, "recordID", entry->record_id ? json_string(entry->record_id) : json_null());
	json_object_set_new_nocheck(answer, "ownRef", entry->own_ref ? json_string(entry->own_ref) : json_null());
	snprintf(status, sizeof(status), "%02d", entry->status);
	json_object_set_new_nocheck(answer, "subFlowStatus", ok ? json_string_nocheck(status) : json_null());
	if (!ok)
		json_array_append_new(exception, json_pack("{ss ss}", "recordErrorCode", entry->refusal.code,
												   "recordErrorMsg", entry->refusal.message));
	json_object_set_new_nocheck(answer, "exception", exception);
	return answer;
}
