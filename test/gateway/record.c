/*
 * record.c
 *		One record: its parts, its history, its line in a dump.
 *
 * Callers hold the store's lock.
 */
#include "store.h"

#include <stdlib.h>
#include <string.h>

const char *
gw_record_id(const Record *record)
{
	return record->data;
}

const char *
gw_record_own_ref(const Record *record)
{
	return record->data + record->record_id_len + 1;
}

const char *
gw_record_text(const Record *record)
{
	return gw_record_own_ref(record) + record->own_ref_len + 1;
}

/* One line of the dump: the record, decrypted, and its history. */
void
gw_record_render(const Record *record, Buf *out)
{
	json_t	   *id = json_string(gw_record_id(record));
	const char *text = gw_record_text(record);
	uint32_t	i;

	gw_buf_puts(out, "{\"recordID\":");
	gw_buf_json(out, id);
	json_decref(id);
	gw_buf_printf(out, ",\"subFlowStatus\":\"%02d\"%s", record->status, record->text_len > 2 ? "," : "");
	gw_buf_append(out, text + 1, record->text_len - 2);
	gw_buf_puts(out, ",\"_history\":[");
	for (i = 0; i < record->nevents; i++)
	{
		const Event *event = i == 0 ? &record->first : &record->later[i - 1];
		char		request[33] = "";

		if (event->request != GW_NO_REQUEST)
			gw_hex_encode(request, gw_store_request(event->request), 16);
		gw_buf_printf(out, "%s{\"op\":\"%s\",\"at\":%lld,\"requestID\":\"%s\"}", i ? "," : "",
					  event->op == 'a' ? "add" : event->op == 'c' ? "change" : "invalidate",
					  (long long) event->at_ms, request);
	}
	gw_buf_puts(out, "]}\n");
}

/* Adds to the history. */
void
gw_record_event(Record *record, char op, uint32_t request, int64_t at_ms)
{
	Event	   *event = &record->first;

	if (record->nevents > 0)
	{
		record->later = realloc(record->later, record->nevents * sizeof(Event));
		if (record->later == NULL)
			abort();
		event = &record->later[record->nevents - 1];
	}
	*event = (Event) {.at_ms = at_ms, .request = request, .op = op};
	record->nevents++;
}
