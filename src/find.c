/*
 * find.c
 *		Finding out what became of requests in doubt.
 *
 * A member is found
 * - added, when an active record carries its own_ref that no other operation of
 *   that own_ref accounts for;
 * - changed, when its record says what its row says;
 * - invalidated, when its record has that status.
 * Everything else is absent, but only after the last page: then flight.c sends
 * it again under the same request ID.
 *
 * A cursor that does not move on would keep the scan going for ever; it is
 * given up and begun again later.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "compare.h"
#include "compat.h"
#include "find.h"
#include "flight.h"
#include "query.h"
#include "settings.h"
#include "textmap.h"
#include "throttle.h"
#include "token.h"

#define MIN_PAUSE_US	INT64CONST(250000)
#define MAX_PAUSE_US	INT64CONST(15000000)

/* members that are looked for, by their own_ref */
typedef struct Sought
{
	const char *own_ref;
	FiniFlight *flight;
	FiniMember *member;
} Sought;

typedef struct FindScan
{
	MemoryContext context;		/* NULL: none under way */
	const char *ipo_id;
	HTAB	   *sought;
	char	   *cursor;
	FiniCall   *call;			/* the page under way; NULL: none */
} FindScan;

static FindScan scan;
static int	failures = 0;
static int64 not_before_us = 0;

static void begin_scan(void);
static void end_scan(FiniSlotShared *slot, bool complete);
static void send_page(FiniSlotShared *slot);
static void take_page(FiniAnswer *answer);
static bool is_the_member(FiniMember *member, FiniOperation operation, JsonbContainer *record, const char *record_id);

void
fini_find_service(FiniSlotShared *slot)
{
	if (scan.call != NULL || fini_monotonic_us() < not_before_us)
		return;
	if (scan.context == NULL)
		begin_scan();
	if (scan.context != NULL)
		send_page(slot);
}

bool
fini_find_completed(FiniSlotShared *slot, FiniHttpRequest *http)
{
	FiniCall   *call = scan.call;
	bool		complete = false;
	char	   *next;

	if (call == NULL || http != &call->http)
		return false;

	fini_flight_begin();
	MemoryContextSwitchTo(scan.context);
	fini_call_finish(call, slot);
	if (call->verdict == FINI_VERDICT_PROCESSED && fini_answer_is_page(call->answer))
	{
		failures = 0;
		take_page(call->answer);
		next = call->answer->next_cursor ? MemoryContextStrdup(scan.context, call->answer->next_cursor) : NULL;
		complete = next == NULL;
		if (next != NULL && fini_query_cursor_stuck(scan.cursor, next))
			failures++;
		scan.cursor = next;
	}
	else
	{
		failures++;
		if (failures == 1 && call->verdict != FINI_VERDICT_NEW_KEY && call->verdict != FINI_VERDICT_NEW_TOKEN)
			ereport(LOG,
					(errmsg("fini: could not look for what is in doubt"),
					 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message)));
		fini_shared_note_error(slot, psprintf("subscriptions/query failed, code %s: %s", call->code, call->message));
	}
	fini_flight_commit();

	fini_call_free(call);
	scan.call = NULL;
	if (failures > 0)
		not_before_us = fini_monotonic_us() + Min(MIN_PAUSE_US << Min(failures - 1, 8), MAX_PAUSE_US);
	if (complete)
		end_scan(slot, true);
	else if (failures > 3)
		end_scan(slot, false);	/* from the first page again, some time later */
	return true;
}

long
fini_find_timeout(void)
{
	int64		now = fini_monotonic_us();
	long		timeout = -1;
	ListCell   *cell;

	if (scan.call != NULL)
		return -1;
	if (scan.context != NULL)
		return not_before_us > now ? (long) ((not_before_us - now) / 1000 + 1) : 20;
	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);
		int64		due = Max(flight->not_before_us, not_before_us);

		if (flight->state == FINI_FLIGHT_DOUBT)
			timeout = Max(0, timeout < 0 ? (long) ((due - now + 999) / 1000) : Min(timeout, (long) ((due - now + 999) / 1000)));
	}
	return timeout;
}

bool
fini_find_busy(void)
{
	return scan.call != NULL;
}

/* seek everything that is in doubt for the IPO of the first flight that is */
static void
begin_scan(void)
{
	ListCell   *cell;
	int64		now = fini_monotonic_us();
	const char *ipo_id = NULL;

	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->state != FINI_FLIGHT_DOUBT || now < flight->not_before_us)
			continue;
		if (ipo_id == NULL)
		{
			ipo_id = flight->batch.ipo_id;
			scan.context = AllocSetContextCreate(TopMemoryContext, "fini scan", ALLOCSET_DEFAULT_SIZES);
			scan.ipo_id = MemoryContextStrdup(scan.context, ipo_id);
			scan.cursor = NULL;
			scan.sought = fini_textmap_create("own_refs in doubt", 1024, sizeof(Sought), scan.context);
		}
		if (strcmp(flight->batch.ipo_id, ipo_id) != 0)
			continue;

		flight->looked_for = true;
		for (int i = 0; i < flight->batch.count; i++)
		{
			/* two operations of one own_ref are never under way at once */
			Sought	   *sought = fini_textmap_enter(scan.sought, flight->batch.members[i].own_ref, NULL);

			sought->flight = flight;
			sought->member = &flight->batch.members[i];
		}
		/* what a change in doubt should say is what its row says */
		if (flight->batch.operation == FINI_OPERATION_CHANGE && flight->batch.count > 0 &&
			flight->batch.members[0].row.entry == NULL)
		{
			fini_flight_begin();
			fini_outbox_read_rows(&flight->batch, flight->context);
			/* a row that cannot be read now is judged after the look */
			for (int i = 0; i < flight->batch.count; i++)
				flight->batch.members[i].state = NULL;
			fini_flight_commit();
		}
	}
}

static void
end_scan(FiniSlotShared *slot, bool complete)
{
	List	   *looked = NIL;
	ListCell   *cell;
	MemoryContext context = scan.context;

	MemoryContextSwitchTo(context);
	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->looked_for)
			looked = lappend(looked, flight);
	}
	foreach(cell, looked)
	{
		FiniFlight *flight = lfirst(cell);

		if (complete)
			fini_flight_looked(slot, flight);
		else
			flight->looked_for = false;
	}
	scan.context = NULL;
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextDelete(context);
}

static void
send_page(FiniSlotShared *slot)
{
	MemoryContext old = MemoryContextSwitchTo(scan.context);
	FiniAccess *access = fini_secret_alloc(sizeof(FiniAccess));
	FiniTicket	ticket;

	if (fini_token_peek(slot, access, true) &&
		fini_throttle_take(FINI_THROTTLE_INTERACTIVE, &ticket) == 0)
	{
		scan.call = fini_query_page(scan.ipo_id, 0, NULL, NULL, scan.cursor);
		scan.call->ticket = ticket;
		fini_call_send(scan.call, access);
	}
	fini_secret_cleanse(access, sizeof(*access));
	MemoryContextSwitchTo(old);
}

static void
take_page(FiniAnswer *answer)
{
	for (int i = 0; i < answer->entries; i++)
	{
		JsonbContainer *record;
		char	   *own_ref;
		Sought	   *sought;
		char	   *record_id;

		if (!fini_answer_object(answer, i, &record))
			continue;
		own_ref = fini_answer_field(record, "ownRef");
		record_id = fini_answer_field(record, "recordID");
		if (own_ref == NULL || record_id == NULL || strlen(record_id) > FINI_MAX_RECORD_ID)
			continue;
		sought = fini_textmap_find(scan.sought, own_ref);
		if (sought == NULL || sought->member->state != NULL ||
			!is_the_member(sought->member, sought->flight->batch.operation, record, record_id))
			continue;
		sought->member->state = "accepted";
		sought->member->new_record_id = MemoryContextStrdup(sought->flight->context, record_id);
	}
}

static bool
is_the_member(FiniMember *member, FiniOperation operation, JsonbContainer *record, const char *record_id)
{
	char	   *status = fini_answer_field(record, "subFlowStatus");

	switch (operation)
	{
		case FINI_OPERATION_ADD:
			return (status == NULL || strcmp(status, fini_guc_invalidated_status) != 0) &&
				!fini_outbox_knows_record(member->own_ref, record_id, member->id);
		case FINI_OPERATION_CHANGE:
			return member->record_id != NULL && strcmp(member->record_id, record_id) == 0 && member->row.entry != NULL &&
				fini_compare_entry(member->row.entry->data, member->row.entry->len, record, true) == NIL;
		case FINI_OPERATION_INVALIDATE:
			return member->record_id != NULL && strcmp(member->record_id, record_id) == 0 &&
				status != NULL && strcmp(status, fini_guc_invalidated_status) == 0;
	}
	return false;
}
