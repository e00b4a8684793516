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
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "backoff.h"
#include "compat.h"
#include "error.h"
#include "find.h"
#include "flight.h"
#include "query.h"
#include "settings.h"
#include "tail.h"
#include "textmap.h"
#include "throttle.h"
#include "token.h"
#include "trouble.h"

#define MIN_PAUSE_US	INT64CONST(250000)
#define MAX_PAUSE_US	INT64CONST(15000000)
#define MAX_FAILURES	3		/* of pages in a row; then from the beginning again */
#define FAR_AWAY_MS		1000	/* until a token is there, which wakes the worker anyway */

/* members that are looked for, by their own_ref */
typedef struct Sought
{
	const char *own_ref;
	FiniFlight *flight;
	FiniMember *member;
	bool		decided;		/* found, or its record says otherwise */
} Sought;

typedef enum LookPhase
{
	LOOK_RECORDS,
	LOOK_NEWEST,
	LOOK_ALL
} LookPhase;

/* a look for everything that was in doubt for one IPO when it began */
typedef struct Look
{
	MemoryContext context;		/* of all of it */
	char	   *ipo_id;
	HTAB	   *sought;
	int			open;			/* members not decided; of these, adds */
	int			open_adds;
	LookPhase	phase;
	char	  **record_ids;		/* what LOOK_RECORDS asks for, a page of IDs at a time */
	int			records;
	int			first_record;	/* of the page */
	char	   *tail;			/* where LOOK_NEWEST begins; NULL: not known */
	FiniPages	pages;			/* their cursor is that of the page that comes next, or is under way; "": the first */
	char	   *ends_at;		/* to be noted for the next look; NULL: nothing */
	FiniCall   *call;			/* the page under way; NULL: none */
	int			failures;		/* in a row; they outlive the look's being begun again */
	int64		not_before_us;
} Look;

static List *looks = NIL;
static bool stopped = false;	/* refused for good; until fini.resume */

static Look *look_of(const char *ipo_id);
static void begin_look(const char *ipo_id, int failures, int64 not_before_us);
static void seek(Look *look, FiniFlight *flight);
static void next_phase(Look *look);
static void end_look(FiniSlotShared *slot, Look *look, bool complete);
static void end_phase(FiniSlotShared *slot, Look *look);
static void page_failed(FiniSlotShared *slot, Look *look);
static void stop(FiniSlotShared *slot, const FiniCall *call);
static void send_page(FiniSlotShared *slot, Look *look);
static bool take_page(Look *look, FiniAnswer *answer);
static void keep_tail(void *arg);
static void take_record(Look *look, const FiniValue *record);

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
			begin_look(flight->batch.ipo_id, 0, 0);
	}
	foreach(cell, looks)
	{
		Look	   *look = lfirst(cell);

		if (look->call == NULL && now >= look->not_before_us)
			send_page(slot, look);
	}
}

bool
fini_find_completed(FiniSlotShared *slot, FiniHttpRequest *http)
{
	Look	   *look = NULL;
	FiniCall   *call;
	bool		ended = false;
	ListCell   *cell;

	foreach(cell, looks)
	{
		Look	   *candidate = lfirst(cell);

		if (candidate->call != NULL && http == &candidate->call->http)
			look = candidate;
	}
	if (look == NULL)
		return false;

	call = look->call;
	fini_flight_begin();
	MemoryContextSwitchTo(call->attempt);	/* which goes with the page */
	fini_call_finish(call, slot);
	if (call->verdict == FINI_VERDICT_PROCESSED && fini_answer_is_page(call->answer))
		ended = take_page(look, call->answer);
	else
		page_failed(slot, look);
	fini_flight_commit();

	fini_call_free(call);
	look->call = NULL;
	if (look->ends_at != NULL)
	{
		char		doing[FINI_TROUBLE_NAME] = "note where the records of an IPO end";

		(void) fini_trouble_guard(slot, doing, keep_tail, look);
		look->ends_at = NULL;
	}
	if (look->failures > 0)
		look->not_before_us = fini_monotonic_us() + fini_backoff_us(look->failures, MIN_PAUSE_US, MAX_PAUSE_US);
	if (look->failures > MAX_FAILURES)
		end_look(slot, look, false);
	else if (ended)
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
		Look	   *look = lfirst(cell);

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
		if (((Look *) lfirst(cell))->call != NULL)
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
		((Look *) lfirst(cell))->not_before_us = 0;
}

static Look *
look_of(const char *ipo_id)
{
	ListCell   *cell;

	foreach(cell, looks)
	{
		Look	   *look = lfirst(cell);

		if (strcmp(look->ipo_id, ipo_id) == 0)
			return look;
	}
	return NULL;
}

/* seek everything that is in doubt for the IPO, and due */
static void
begin_look(const char *ipo_id, int failures, int64 not_before_us)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "fini look", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Look	   *look = palloc0(sizeof(Look));
	int64		now = fini_monotonic_us();
	ListCell   *cell;

	look->context = context;
	look->ipo_id = pstrdup(ipo_id);
	look->failures = failures;
	look->not_before_us = not_before_us;
	look->sought = fini_textmap_create("own_refs in doubt", 1024, sizeof(Sought), context);

	fini_flight_begin();
	MemoryContextSwitchTo(context);
	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->state == FINI_FLIGHT_DOUBT && now >= flight->not_before_us && strcmp(flight->batch.ipo_id, ipo_id) == 0)
			seek(look, flight);
	}
	look->tail = fini_tail_of(ipo_id, context);
	fini_flight_commit();

	look->phase = LOOK_RECORDS;
	if (look->records == 0)
		next_phase(look);
	MemoryContextSwitchTo(TopMemoryContext);
	looks = lappend(looks, look);
	MemoryContextSwitchTo(old);
}

/* in a transaction */
static void
seek(Look *look, FiniFlight *flight)
{
	FiniBatch  *batch = &flight->batch;

	flight->looked_for = true;
	/* what a change in doubt should say is what its row says */
	if (batch->operation == FINI_OPERATION_CHANGE && batch->count > 0 && batch->members[0].row.entry == NULL)
	{
		fini_flight_read_rows(flight);
		/* a row that cannot be read now is judged after the look */
		for (int i = 0; i < batch->count; i++)
			batch->members[i].state = NULL;
	}
	if (batch->operation != FINI_OPERATION_ADD)
	{
		if (look->record_ids == NULL)
			look->record_ids = palloc(sizeof(char *) * Max(1, batch->count));
		else
			look->record_ids = repalloc_huge(look->record_ids, sizeof(char *) * (look->records + Max(1, batch->count)));
	}
	for (int i = 0; i < batch->count; i++)
	{
		/* two operations of one own_ref are never under way at once */
		Sought	   *sought = fini_textmap_enter(look->sought, batch->members[i].own_ref, NULL);

		sought->flight = flight;
		sought->member = &batch->members[i];
		sought->decided = false;
		look->open++;
		look->open_adds += batch->operation == FINI_OPERATION_ADD;
		if (batch->operation != FINI_OPERATION_ADD && batch->members[i].record_id != NULL)
			look->record_ids[look->records++] = pstrdup(batch->members[i].record_id);
	}
}

/* the phase is over, and something is still to be looked for */
static void
next_phase(Look *look)
{
	memset(&look->pages, 0, sizeof(look->pages));
	if (look->phase == LOOK_RECORDS && look->tail != NULL && look->open_adds > 0)
	{
		look->phase = LOOK_NEWEST;
		strlcpy(look->pages.cursor, look->tail, sizeof(look->pages.cursor));
	}
	else
		look->phase = LOOK_ALL;
}

static void
end_phase(FiniSlotShared *slot, Look *look)
{
	if (look->open == 0 || look->phase == LOOK_ALL)
		end_look(slot, look, true);
	else
		next_phase(look);
}

/* complete: flights go on by what was found; else they are looked for again, from the beginning */
static void
end_look(FiniSlotShared *slot, Look *look, bool complete)
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
		begin_look(look->ipo_id, look->failures, look->not_before_us);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(look->context);
}

/* no usable page; in a transaction */
static void
page_failed(FiniSlotShared *slot, Look *look)
{
	FiniCall   *call = look->call;

	if (call->verdict == FINI_VERDICT_STOP)
	{
		stop(slot, call);
		return;
	}

	/* a cursor of old, or an ID, that FINI does not take is nothing to insist on */
	if (look->phase != LOOK_ALL &&
		(call->verdict == FINI_VERDICT_REJECTED || call->verdict == FINI_VERDICT_WRONG))
	{
		look->phase = LOOK_ALL;
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
send_page(FiniSlotShared *slot, Look *look)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini page", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	FiniAccess *access = fini_secret_alloc(sizeof(FiniAccess));
	FiniTicket	ticket;
	int64		wait = (int64) FAR_AWAY_MS * 1000;

	if (fini_token_peek(slot, access, true) &&
		(wait = fini_throttle_take(FINI_THROTTLE_INTERACTIVE, &ticket)) == 0)
	{
		int			records = look->phase == LOOK_RECORDS ? Min(FINI_QUERY_PAGE, look->records - look->first_record) : 0;

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

/* in a transaction; true: the phase is over */
static bool
take_page(Look *look, FiniAnswer *answer)
{
	char		cursor[FINI_MAX_CURSOR + 1];
	FiniPageTurn turn;
	bool		ended;

	for (int i = 0; i < answer->entries; i++)
	{
		const FiniValue *record;

		if (fini_answer_object(answer, i, &record))
			take_record(look, record);
	}

	strlcpy(cursor, look->pages.cursor, sizeof(cursor));
	turn = fini_query_turn(&look->pages, answer);
	if (turn == FINI_PAGES_STUCK && look->open > 0)
	{
		/* only pages that lead nowhere from the beginning leave nothing else to try */
		if (look->phase != LOOK_ALL)
			return true;
		if (look->failures++ == 0)
			ereport(LOG,
					(errmsg("fini: could not look for what is in doubt of IPO \"%s\"", look->ipo_id),
					 errdetail("The pages of subscriptions/query do not end.")));
		return false;
	}
	look->failures = 0;
	ended = look->open == 0 || turn == FINI_PAGES_END;
	/* of a look that ended early only if it tells more than what is known */
	if (ended && look->phase != LOOK_RECORDS &&
		(turn == FINI_PAGES_END || look->phase == LOOK_NEWEST || look->tail == NULL))
		look->ends_at = cursor[0] != '\0' ? MemoryContextStrdup(look->context, cursor) : NULL;

	/* the next IDs */
	if (look->phase == LOOK_RECORDS && turn == FINI_PAGES_END)
	{
		memset(&look->pages, 0, sizeof(look->pages));
		look->first_record += FINI_QUERY_PAGE;
		ended = look->open == 0 || look->first_record >= look->records;
	}
	return ended;
}

static void
keep_tail(void *arg)
{
	Look	   *look = arg;

	fini_tail_keep(look->ipo_id, look->tail, look->ends_at);
}

static void
take_record(Look *look, const FiniValue *record)
{
	char	   *own_ref = fini_value_member_text(record, "ownRef");
	char	   *record_id = fini_value_member_text(record, "recordID");
	Sought	   *sought;
	FiniMember *member;
	bool		adding;

	if (own_ref == NULL || record_id == NULL || strlen(record_id) > FINI_MAX_RECORD_ID)
		return;
	sought = fini_textmap_find(look->sought, own_ref);
	if (sought == NULL || sought->decided)
		return;
	member = sought->member;
	adding = sought->flight->batch.operation == FINI_OPERATION_ADD;
	if (fini_flight_is_record_of(member, sought->flight->batch.operation, record, record_id))
	{
		member->state = "accepted";
		member->new_record_id = MemoryContextStrdup(sought->flight->context, record_id);
	}
	else if (adding || member->record_id == NULL || strcmp(member->record_id, record_id) != 0)
		return;					/* another record of that own_ref */
	sought->decided = true;
	look->open--;
	look->open_adds -= adding;
}
