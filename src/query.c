/*
 * query.c
 *		Pages of subscriptions/query and funding/query.
 */
#include "postgres.h"

#include "entry.h"
#include "query.h"

/* the largest offer so far, all brokers together, is 14,200 pages of the smallest usual size */
#define MAX_PAGES	20000

static void end_query(FiniCall *call, const char *cursor);

FiniCall *
fini_query_page(const char *ipo_id, int n, char *const *record_ids, const char *status, const char *cursor)
{
	FiniCall   *call = fini_call_create(FINI_ENDPOINT_QUERY, NULL);
	MemoryContext old = MemoryContextSwitchTo(call->context);
	FiniBuffer *data = fini_buffer_create(256);

	call->payload = fini_buffer_create(256);
	if (ipo_id != NULL)
		fini_entry_append(data, "ipoID", ipo_id);
	if (n > 0)
	{
		FiniBuffer *list = fini_buffer_create((Size) n * 24);

		for (int i = 0; i < n; i++)
			fini_entry_append_element(list, record_ids[i]);
		fini_entry_append_raw(data, "recordID", list, '[', ']');
	}
	if (status != NULL)
		fini_entry_append(data, "subFlowStatus", status);
	fini_entry_append_raw(call->payload, "data", data, '{', '}');
	end_query(call, cursor);
	MemoryContextSwitchTo(old);
	return call;
}

FiniCall *
fini_query_funding_page(const char *ipo_id, const char *cursor)
{
	FiniCall   *call = fini_call_create(FINI_ENDPOINT_FUNDING_QUERY, NULL);
	MemoryContext old = MemoryContextSwitchTo(call->context);
	FiniBuffer *data = fini_buffer_create(256);

	call->payload = fini_buffer_create(256);
	if (ipo_id != NULL)
		fini_entry_append(data, "ipoID", ipo_id);
	fini_entry_append_raw(call->payload, "data", data, '{', '}');
	end_query(call, cursor);
	MemoryContextSwitchTo(old);
	return call;
}

/*
 * Rounds are found as Brent does: the mark moves on to where we are whenever
 * the number of pages is a power of two, so that whatever goes round comes back
 * to it within twice the length of what was gone so far.
 */
FiniPageTurn
fini_query_turn(FiniPages *pages, const FiniAnswer *answer)
{
	const char *next = answer->next_cursor;

	pages->n++;
	if (next == NULL)
		return FINI_PAGES_END;
	if (answer->entries <= 0 || strlen(next) > FINI_MAX_CURSOR || pages->n >= MAX_PAGES ||
		strcmp(next, pages->cursor) == 0 || strcmp(next, pages->mark) == 0)
		return FINI_PAGES_STUCK;
	if ((pages->n & (pages->n - 1)) == 0)
		strlcpy(pages->mark, next, sizeof(pages->mark));
	strlcpy(pages->cursor, next, sizeof(pages->cursor));
	return FINI_PAGES_MORE;
}

/* size and cursor, and braces around it all */
static void
end_query(FiniCall *call, const char *cursor)
{
	FiniBuffer *members = call->payload;
	char		tail[96];
	int			len;

	call->payload = fini_buffer_create(members->len + 96);
	len = snprintf(tail, sizeof(tail), ",\"size\":%d,", FINI_QUERY_PAGE);
	fini_buffer_append(call->payload, "{", 1);
	fini_buffer_append(call->payload, members->data, members->len);
	fini_buffer_append(call->payload, tail, len);
	members = fini_buffer_create(64);
	fini_entry_append(members, "nextCursor", cursor != NULL ? cursor : "0");
	fini_buffer_append(call->payload, members->data, members->len);
	fini_buffer_append(call->payload, "}", 1);
}
