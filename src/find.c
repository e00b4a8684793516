/*
 * find.c
 *		Finding out what became of requests in doubt.
 *
 * A member is found
 * - added, when an active record carries its own_ref that no other operation of
 *   that own_ref accounts for;
 * - changed, when its record says what its row says;
 * - invalidated, when its record has that status.
 *
 * A look goes through up to three phases, and ends as soon as all that is
 * looked for has been found:
 * - changes and withdrawals know their records, and ask for these by ID.  A
 *   record that is given has said what there is to say;
 * - adds are most likely among the newest records: the pages from where the
 *   records of the IPO ended at the last look.  The cursor of that last page
 *   is kept in fini.look, for looks are mostly needed after a crash.  It only
 *   saves requests: should it lead nowhere, or the gateway not take it any
 *   more, the last phase finds what there is;
 * - all pages, from the first one.  Only what this has not found is absent.
 *   Then flight_end.c has it sent again under the same request ID.
 *
 * Pages that do not end would keep a look going for ever; it is given up and
 * begun again later.
 *
 * What the database refuses is asked for again later: a look that it does not
 * let begin, and a page whose records cannot be judged, though not what they
 * had shown by then.  Where the records end it need not tell.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "backoff.h"
#include "compat.h"
#include "error.h"
#include "find.h"
#include "find_look.h"
#include "flight.h"
#include "query.h"
#include "settings.h"
#include "tail.h"
#include "throttle.h"
#include "token.h"
#include "trouble.h"

#define MIN_PAUSE_US	INT64CONST(250000)
#define MAX_PAUSE_US	INT64CONST(15000000)
#define MAX_FAILURES	3		/* of pages in a row; then from the beginning again */
#define FAR_AWAY_MS		1000	/* until a token is there, which wakes the worker anyway */

/* a page that has come */
typedef struct Arrival
{
	FiniSlotShared *slot;
	FiniLook   *look;
	bool		ended;			/* and with it the phase */
} Arrival;

static List *looks = NIL;
static bool stopped = false;	/* refused for good; until fini.resume */

static FiniLook *look_of(const char *ipo_id);
static void begin_look(FiniSlotShared *slot, const char *ipo_id, int failures, int64 not_before_us);
static void end_look(FiniSlotShared *slot, FiniLook *look, bool complete);
static void end_phase(FiniSlotShared *slot, FiniLook *look);
static void page_failed(FiniSlotShared *slot, FiniLook *look);
static void stop(FiniSlotShared *slot, const FiniCall *call);
static void send_page(FiniSlotShared *slot, FiniLook *look);
static void open_page(void *arg);
static void keep_tail(void *arg);

void
fini_find_service(FiniSlotShared *slot)
{
	int64		now = fini_monotonic_us();
	ListCell   *cell;

	if (stopped)
		return;
	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->state == FINI_FLIGHT_DOUBT && now >= flight->not_before_us && !flight->looked_for &&
			look_of(flight->batch.ipo_id) == NULL)
			begin_look(slot, flight->batch.ipo_id, 0, 0);
	}
	foreach(cell, looks)
	{
		FiniLook   *look = lfirst(cell);

		if (look->call == NULL && now >= look->not_before_us)
			send_page(slot, look);
	}
}

bool
fini_find_completed(FiniSlotShared *slot, FiniHttpRequest *http)
{
	char		doing[FINI_TROUBLE_NAME];
	FiniLook   *look = NULL;
	Arrival		page = {.slot = slot};
	ListCell   *cell;

	foreach(cell, looks)
	{
		FiniLook   *candidate = lfirst(cell);

		if (candidate->call != NULL && http == &candidate->call->http)
			look = candidate;
	}
	if (look == NULL)
		return false;

	page.look = look;
	snprintf(doing, sizeof(doing), "take a page of what is in doubt of IPO \"%s\"", look->ipo_id);
	fini_trouble_clip(doing);
	if (!fini_trouble_guard(slot, doing, open_page, &page))
		look->not_before_us = fini_trouble_retry_us();
	fini_call_free(look->call);
	look->call = NULL;
	if (look->ends_at != NULL)
	{
		strlcpy(doing, "note where the records of an IPO end", sizeof(doing));
		(void) fini_trouble_guard(slot, doing, keep_tail, look);
		look->ends_at = NULL;
	}
	if (look->failures > 0)
		look->not_before_us = Max(look->not_before_us,
								  fini_monotonic_us() + fini_backoff_us(look->failures, MIN_PAUSE_US, MAX_PAUSE_US));
	if (look->failures > MAX_FAILURES)
		end_look(slot, look, false);
	else if (page.ended)
		end_phase(slot, look);
	return true;
}

long
fini_find_timeout(void)
{
	int64		now = fini_monotonic_us();
	int64		due = PG_INT64_MAX;
	ListCell   *cell;

	if (stopped)
		return -1;
	foreach(cell, looks)
	{
		FiniLook   *look = lfirst(cell);

		if (look->call == NULL)
			due = Min(due, look->not_before_us);
	}
	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->state == FINI_FLIGHT_DOUBT && !flight->looked_for && look_of(flight->batch.ipo_id) == NULL)
			due = Min(due, flight->not_before_us);
	}
	return due == PG_INT64_MAX ? -1 : (long) (Max(due - now, 0) / 1000 + (due > now ? 1 : 0));
}

bool
fini_find_busy(void)
{
	ListCell   *cell;

	foreach(cell, looks)
	{
		if (((FiniLook *) lfirst(cell))->call != NULL)
			return true;
	}
	return false;
}

void
fini_find_resume(void)
{
	ListCell   *cell;

	stopped = false;
	foreach(cell, looks)
		((FiniLook *) lfirst(cell))->not_before_us = 0;
}

static FiniLook *
look_of(const char *ipo_id)
{
	ListCell   *cell;

	foreach(cell, looks)
	{
		FiniLook   *look = lfirst(cell);

		if (strcmp(look->ipo_id, ipo_id) == 0)
			return look;
	}
	return NULL;
}

static void
begin_look(FiniSlotShared *slot, const char *ipo_id, int failures, int64 not_before_us)
{
	FiniLook   *look = fini_look_begin(slot, ipo_id, failures, not_before_us);
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	if (look != NULL)
		looks = lappend(looks, look);
	MemoryContextSwitchTo(old);
}

static void
end_phase(FiniSlotShared *slot, FiniLook *look)
{
	if (look->open == 0 || look->phase == FINI_LOOK_ALL)
		end_look(slot, look, true);
	else
		fini_look_next_phase(look);
}

/* complete: flights go on by what was found; else they are looked for again, from the beginning */
static void
end_look(FiniSlotShared *slot, FiniLook *look, bool complete)
{
	MemoryContext old = MemoryContextSwitchTo(look->context);
	List	   *looked = NIL;
	ListCell   *cell;

	looks = list_delete_ptr(looks, look);
	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->looked_for && strcmp(flight->batch.ipo_id, look->ipo_id) == 0)
			looked = lappend(looked, flight);
	}
	foreach(cell, looked)
	{
		FiniFlight *flight = lfirst(cell);

		flight->looked_for = false;
		if (complete)
			fini_flight_looked(slot, flight);
	}
	if (!complete)
		begin_look(slot, look->ipo_id, look->failures, look->not_before_us);
	MemoryContextSwitchTo(old);
	fini_look_free(look);
}

/* no usable page; in a transaction */
static void
page_failed(FiniSlotShared *slot, FiniLook *look)
{
	FiniCall   *call = look->call;

	if (call->verdict == FINI_VERDICT_STOP)
	{
		stop(slot, call);
		return;
	}

	/* a cursor of old, or an ID, that FINI does not take is nothing to insist on */
	if (look->phase != FINI_LOOK_ALL &&
		(call->verdict == FINI_VERDICT_REJECTED || call->verdict == FINI_VERDICT_WRONG))
	{
		look->phase = FINI_LOOK_ALL;
		memset(&look->pages, 0, sizeof(look->pages));
		return;
	}
	look->failures++;
	if (look->failures == 1 && call->verdict != FINI_VERDICT_NEW_KEY && call->verdict != FINI_VERDICT_NEW_TOKEN)
		ereport(LOG,
				(errmsg("fini: could not look for what is in doubt of IPO \"%s\"", look->ipo_id),
				 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message)));
	fini_shared_note_error(slot, psprintf("subscriptions/query failed, code %s: %s", call->code, call->message));
}

static void
stop(FiniSlotShared *slot, const FiniCall *call)
{
	stopped = true;
	fini_shared_endpoint_stopped(slot, call->endpoint);
	fini_shared_note_error(slot, psprintf("%s stopped, code %s: %s", fini_endpoint(call->endpoint)->name,
										  call->code, call->message));
	ereport(LOG,
			(errcode(FINI_ERRCODE_NOT_ENTITLED),
			 errmsg("fini: stopped using %s", fini_endpoint(call->endpoint)->name),
			 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message),
			 errhint("What is in doubt stays so. Mend the cause and call fini.resume().")));
}

static void
send_page(FiniSlotShared *slot, FiniLook *look)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini page", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	FiniAccess *access = fini_secret_alloc(sizeof(FiniAccess));
	FiniTicket	ticket;
	int64		wait = (int64) FAR_AWAY_MS * 1000;

	if (fini_token_peek(slot, access, true) &&
		(wait = fini_throttle_take(FINI_THROTTLE_INTERACTIVE, &ticket)) == 0)
	{
		int			records = look->phase == FINI_LOOK_RECORDS ? Min(FINI_QUERY_PAGE, look->records - look->first_record) : 0;

		MemoryContextSwitchTo(look->context);
		look->call = fini_query_page(look->ipo_id, records, records > 0 ? look->record_ids + look->first_record : NULL,
									 NULL, look->pages.cursor[0] != '\0' ? look->pages.cursor : NULL);
		look->call->ticket = ticket;
		fini_call_send(look->call, access);
	}
	else
		look->not_before_us = fini_monotonic_us() + wait;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

static void
open_page(void *arg)
{
	Arrival    *page = arg;
	FiniLook   *look = page->look;
	FiniCall   *call = look->call;

	MemoryContextSwitchTo(call->attempt);	/* which goes with the page */
	fini_call_finish(call, page->slot);
	if (call->verdict == FINI_VERDICT_PROCESSED && fini_answer_is_page(call->answer))
		page->ended = fini_look_take_page(look, call->answer);
	else
		page_failed(page->slot, look);
}

static void
keep_tail(void *arg)
{
	FiniLook   *look = arg;

	fini_tail_keep(look->ipo_id, look->tail, look->ends_at);
}
