/*
 * planting.c
 *		The administration's calls on records: dump, load, delete, alter.
 */
#include "admin.h"

#include "store.h"

#include <stdlib.h>
#include <string.h>

#define DUMP_AT_ONCE 256		/* records rendered in one hold of the lock */
#define MAX_NAMED 1000			/* record IDs that an answer lists */

/* A dump on its way out. */
typedef struct Dump
{
	char	   *ipo_id;			/* NULL: all */
	bool		active_only;
	uint32_t	next;
	Buf			text;
	size_t		sent;
} Dump;

static size_t dump_more(void *state, char *dst, size_t max);
static void dump_free(void *state);
static void render_some(Dump *dump);
static json_t *read_records(const Buf *body);
static bool read_record(const json_t *item, RecordParts *parts, Buf *text);
static json_t *strip(const json_t *item);
static bool patch(Record *record, json_t *changes);
static RecordList asked_for(AdminCall *call);

void
gw_admin_dump(AdminCall *call)
{
	Dump	   *dump = gw_alloc(sizeof(Dump));
	const char *ipo_id = gw_http_query(call->request, "ipoID");
	const char *active = gw_http_query(call->request, "active");

	dump->ipo_id = ipo_id ? gw_strdup(ipo_id) : NULL;
	dump->active_only = active != NULL && strcmp(active, "1") == 0;
	call->reply->content_type = "application/x-ndjson";
	call->reply->more = dump_more;
	call->reply->more_free = dump_free;
	call->reply->more_state = dump;
}

/* Puts records straight into the store: a JSON array, or one object a line. */
void
gw_admin_load_records(AdminCall *call)
{
	json_t	   *items = read_records(&call->request->body);
	json_t	   *ids = json_array();
	json_t	   *item;
	size_t		i;
	size_t		n = 0;

	if (items == NULL)
	{
		gw_admin_refuse(call, "neither an array of objects nor one object a line");
		json_decref(ids);
		return;
	}
	gw_store_lock();
	json_array_foreach(items, i, item)
	{
		RecordParts parts;
		Buf			text = {0};

		if (!read_record(item, &parts, &text))
			break;
		if (parts.record_id != NULL && gw_store_by_id(parts.record_id) != NULL)
		{
			gw_buf_free(&text);
			break;
		}
		item = json_string(gw_record_id(gw_store_add(&parts)));
		if (n++ < MAX_NAMED)
			json_array_append(ids, item);
		json_decref(item);
		gw_buf_free(&text);
	}
	gw_store_unlock();
	if (n < json_array_size(items))
		call->reply->status = 400;
	gw_admin_answer(call, json_pack("{sI so}", "loaded", (json_int_t) n, "recordIDs", ids));
	if (n < json_array_size(items))
	{
		call->reply->body.len--;
		gw_buf_puts(&call->reply->body,
					",\"error\":\"a record without ipoID, with a bad subFlowStatus, or with a recordID there already\"}");
	}
	json_decref(items);
}

void
gw_admin_delete_records(AdminCall *call)
{
	RecordList	list;
	size_t		i;

	gw_store_lock();
	list = asked_for(call);
	for (i = 0; i < list.n; i++)
		gw_store_remove(list.records[i]);
	gw_store_unlock();
	free(list.records);
	gw_admin_answer(call, json_pack("{sI}", "removed", (json_int_t) list.n));
}

/* Lays the given fields over those of the records. */
void
gw_admin_patch_records(AdminCall *call)
{
	RecordList	list;
	size_t		altered = 0;

	if (!json_is_object(call->body))
	{
		gw_admin_refuse(call, "not an object");
		return;
	}
	gw_store_lock();
	list = asked_for(call);
	while (altered < list.n && patch(list.records[altered], call->body))
		altered++;
	gw_store_unlock();
	free(list.records);
	if (altered < list.n)
		gw_admin_refuse(call, "fields that make no record, or a recordID there already");
	else
		gw_admin_answer(call, json_pack("{sI}", "altered", (json_int_t) altered));
}

/* False: the record stays as it was.  Caller holds the store's lock. */
static bool
patch(Record *record, json_t *changes)
{
	json_t	   *fields = json_loadb(gw_record_text(record), record->text_len, 0, NULL);
	RecordParts parts;
	Buf			text = {0};
	bool		ok;

	json_object_set_new(fields, "recordID", json_string(gw_record_id(record)));
	json_object_set_new(fields, "subFlowStatus", json_sprintf("%02d", record->status));
	json_object_update(fields, changes);
	ok = read_record(fields, &parts, &text) && parts.record_id != NULL;
	if (ok)
	{
		Record	   *other = gw_store_by_id(parts.record_id);

		ok = other == NULL || other == record;
	}
	if (ok)
		gw_store_replace(record, &parts);
	gw_buf_free(&text);
	json_decref(fields);
	return ok;
}

static size_t
dump_more(void *state, char *dst, size_t max)
{
	Dump	   *dump = state;
	size_t		n;

	if (dump->sent == dump->text.len)
	{
		dump->text.len = 0;
		dump->sent = 0;
		render_some(dump);
	}
	n = dump->text.len - dump->sent;
	if (n > max)
		n = max;
	if (n > 0)
		memcpy(dst, dump->text.data + dump->sent, n);
	dump->sent += n;
	return n;
}

static void
dump_free(void *state)
{
	Dump	   *dump = state;

	gw_buf_free(&dump->text);
	free(dump->ipo_id);
	free(dump);
}

/* Leaves the text empty only at the end of the store. */
static void
render_some(Dump *dump)
{
	int			n = 0;

	gw_store_lock();
	while (dump->next < gw_store_end() && n < DUMP_AT_ONCE)
	{
		const Record *record = gw_store_number(dump->next++);

		if (record == NULL ||
			(dump->ipo_id != NULL && strcmp(record->bucket->ipo_id, dump->ipo_id) != 0) ||
			(dump->active_only && record->status == GW_STATUS_INVALIDATED))
			continue;
		gw_record_render(record, &dump->text);
		n++;
	}
	gw_store_unlock();
}

/* An array, the caller's, or NULL. */
static json_t *
read_records(const Buf *body)
{
	json_t	   *list = json_loadb(body->data, body->len, 0, NULL);
	const char *at = body->data;

	if (json_is_array(list))
		return list;
	json_decref(list);
	list = json_array();
	while (*at != '\0')
	{
		size_t		len = strcspn(at, "\n");
		json_t	   *item = json_loadb(at, len, 0, NULL);

		if (item == NULL && strspn(at, " \t\r") < len)
		{
			json_decref(list);
			return NULL;
		}
		if (item != NULL)
			json_array_append_new(list, item);
		at += len + (at[len] == '\n');
	}
	return list;
}

/* Parts pointing into item and text; false, nothing to release, when it is no record. */
static bool
read_record(const json_t *item, RecordParts *parts, Buf *text)
{
	const char *status = gw_json_string(item, "subFlowStatus");
	json_t	   *fields;

	*parts = (RecordParts) {
		.record_id = gw_json_string(item, "recordID"),
		.ipo_id = gw_json_string(item, "ipoID"),
		.own_ref = gw_json_string(item, "ownRef"),
		.status = status ? atoi(status) : GW_STATUS_AUTHORISED,
	};
	if (parts->ipo_id == NULL || (status != NULL && (strlen(status) != 2 || !gw_is_digits(status))))
		return false;
	fields = strip(item);
	gw_buf_json(text, fields);
	json_decref(fields);
	parts->text = text->data;
	parts->text_len = text->len;
	return true;
}

/* A copy, the caller's, of what a record's text holds. */
static json_t *
strip(const json_t *item)
{
	static const char *const apart[] = {"recordID", "subFlowStatus", "_history", "requestID"};
	json_t	   *copy = json_copy((json_t *) item);
	size_t		i;

	for (i = 0; i < sizeof(apart) / sizeof(apart[0]); i++)
		json_object_del(copy, apart[i]);
	return copy;
}

/* By ?recordID= or ?ownRef=, and ?ipoID= if given; with neither, none. */
static RecordList
asked_for(AdminCall *call)
{
	return gw_store_named(gw_http_query(call->request, "ipoID"), gw_http_query(call->request, "recordID"),
						  gw_http_query(call->request, "ownRef"));
}
