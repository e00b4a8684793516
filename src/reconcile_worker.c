/*
 * reconcile_worker.c
 *		Runs of fini.start_reconcile, a piece at a time between the queue's requests.
 *
 * Pages give way to the queue.  While there is nothing to submit, they come at
 * an even pace that leaves a part of the throttle's window free for what may
 * come (fini.reconcile_share).  While the queue holds more than can be sent,
 * one page goes for every so many requests of the queue, so that a run always
 * comes to its end.
 *
 * Nothing of a run is kept in memory but its number and the page under way;
 * each piece reads the run's row, locks it, and commits with it.  What goes
 * wrong with a piece is noted there, and tried again after a pause; refusals
 * that trying again cannot mend end the run.  One whose row cannot be read or
 * written is held back as long as other work that the database refuses.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "compat.h"
#include "error.h"
#include "flight.h"
#include "query.h"
#include "reconcile.h"
#include "reconcile_worker.h"
#include "settings.h"
#include "throttle.h"
#include "token.h"
#include "trouble.h"

#define QUEUE_SHARE			9	/* requests of the queue for each page, while it has a backlog */
#define LONGEST_WAIT_US		INT64CONST(60000000)	/* for a queue that has a backlog and sends nothing */
#define LOOK_US				INT64CONST(1000000) /* looks at fini.reconcile_run are no closer */
#define MIN_PAUSE_US		INT64CONST(1000000) /* after a failure; doubled each time */
#define MAX_PAUSE_US		INT64CONST(60000000)
#define MAX_LOCAL_FAILURES	5	/* in a row, of what is not FINI's */

typedef enum PieceResult
{
	PIECE_DONE,
	PIECE_LAST,
	PIECE_NOT_OURS				/* the run has ended, or somebody holds its row */
} PieceResult;

/* what the database can refuse for a run */
typedef enum RunWork
{
	TAKE_UP,
	READ_PAGE,
	NOTE_FAILURE
} RunWork;

static const char *const run_works[] = {"take up", "read a page for", "note what went wrong with"};

typedef struct Piece
{
	FiniCall   *page;			/* NULL: a slice */
	PieceResult result;
} Piece;

typedef struct Failure
{
	const char *reason;
	bool		final;			/* it ends the run */
	int			limit;			/* as so many of them in a row do; 0: no number does */
	int			failures;		/* with this one; 0: the run is not ours any more */
} Failure;

/* a page that has come */
typedef struct Arrival
{
	FiniSlotShared *slot;
	FiniCall   *page;
} Arrival;

static int64 run_id = 0;		/* the run that is our turn; 0: none */
static FiniReconcilePhase phase;
static MemoryContext page_context = NULL;
static FiniCall *call = NULL;	/* the page under way */
static bool arrived = true;		/* there may be a run that we do not know of */
static int64 looked_us = 0;
static int64 due_us = 0;		/* when a run that pauses goes on; 0: none does */
static int64 page_sent_us = 0;
static int64 sends_before = 0;	/* of the queue, up to the last page */
static int64 throttle_until_us = 0;

static void look(FiniSlotShared *slot);
static void next_run(void *arg);
static int64 held_back(int64 id);
static bool guard(FiniSlotShared *slot, RunWork work, void (*body) (void *arg), void *arg);
static bool has_turn(bool first);
static int64 pace_us(void);
static void send_page(FiniSlotShared *slot);
static void make_call(void *arg);
static void finish_call(void *arg);
static void take_answer(FiniSlotShared *slot, FiniCall *page);
static void do_piece(FiniSlotShared *slot, FiniCall *page);
static void try_piece(void *arg);
static void piece_failed(FiniSlotShared *slot, const char *reason, bool final, int limit);
static void note_failure(void *arg);
static void drop_run(void);

void
fini_reconcile_arrived(void)
{
	arrived = true;
}

void
fini_reconcile_service(FiniSlotShared *slot, bool first)
{
	int64		now = fini_monotonic_us();

	throttle_until_us = 0;
	if (call != NULL)
		return;
	if (run_id == 0 && (arrived || (due_us != 0 && now >= due_us)) && now - looked_us >= LOOK_US)
		look(slot);
	if (run_id == 0 || !has_turn(first))
		return;
	if (phase == FINI_RECONCILE_PAGES)
		send_page(slot);
	else if (!first)
		do_piece(slot, NULL);
}

bool
fini_reconcile_completed(FiniSlotShared *slot, FiniHttpRequest *http)
{
	FiniCall   *page = call;
	Arrival		arrival = {.slot = slot, .page = page};
	MemoryContext old;

	if (page == NULL || http != &page->http)
		return false;
	call = NULL;
	old = MemoryContextSwitchTo(page_context);
	if (!guard(slot, READ_PAGE, finish_call, &arrival))
		drop_run();				/* it is asked for again */
	else
		take_answer(slot, page);
	fini_call_free(page);
	MemoryContextSwitchTo(old);
	MemoryContextReset(page_context);
	return true;
}

bool
fini_reconcile_busy(void)
{
	return run_id != 0;
}

long
fini_reconcile_timeout(void)
{
	int64		now = fini_monotonic_us();
	int64		due = 0;

	if (call != NULL)
		return -1;
	if (run_id == 0)
	{
		if (arrived)
			due = looked_us + LOOK_US;
		else if (due_us != 0)
			due = Max(due_us, looked_us + LOOK_US);
		else
			return -1;
	}
	else if (phase != FINI_RECONCILE_PAGES)
		return fini_flight_backlog() ? 10 : 0;
	else if (fini_flight_backlog())
		due = page_sent_us + LONGEST_WAIT_US;	/* the queue's requests wake us before */
	else if (throttle_until_us != 0)
		due = throttle_until_us;
	else if (page_sent_us + pace_us() > now)
		due = page_sent_us + pace_us();
	else
		return 1000;			/* the token is on its way, which wakes us */
	return (long) (Max(due - now, 0) / 1000 + (due > now));
}

/* which run is next? */
static void
look(FiniSlotShared *slot)
{
	char		doing[FINI_TROUBLE_NAME] = "look for reconciliation runs";
	int64		wait_us = 0;

	arrived = false;
	looked_us = fini_monotonic_us();
	due_us = 0;
	if (!fini_trouble_guard(slot, doing, next_run, &wait_us))
	{
		run_id = 0;
		wait_us = fini_trouble_retry_us() - looked_us;
	}
	if (wait_us > 0)
		due_us = looked_us + wait_us;
}

/* take it up, or tell when there will be one */
static void
next_run(void *arg)
{
	int64	   *wait_us = arg;
	int64		next = fini_reconcile_next(held_back, wait_us);

	if (next == 0)
		*wait_us = 0;
	else if (*wait_us == 0)
	{
		FiniReconcile *run = fini_reconcile_load(next);

		if (run != NULL)
		{
			run_id = next;
			phase = run->phase;
		}
		else
			*wait_us = LOOK_US;	/* somebody is about to end it */
	}
}

/* microseconds */
static int64
held_back(int64 id)
{
	int64		until_us = 0;

	for (size_t i = 0; i < lengthof(run_works); i++)
	{
		char		doing[FINI_TROUBLE_NAME];

		snprintf(doing, sizeof(doing), "%s reconciliation run " INT64_FORMAT, run_works[i], id);
		if (fini_trouble_waits(doing))
			until_us = Max(until_us, fini_trouble_retry_us());
	}
	return Max(0, until_us - fini_monotonic_us());
}

static bool
guard(FiniSlotShared *slot, RunWork work, void (*body) (void *arg), void *arg)
{
	char		doing[FINI_TROUBLE_NAME];

	snprintf(doing, sizeof(doing), "%s reconciliation run " INT64_FORMAT, run_works[work], run_id);
	return fini_trouble_guard(slot, doing, body, arg);
}

static bool
has_turn(bool first)
{
	int64		since = fini_monotonic_us() - page_sent_us;

	if (fini_flight_backlog())
		return first ? fini_flight_sends() - sends_before >= QUEUE_SHARE || since >= LONGEST_WAIT_US :
			phase != FINI_RECONCILE_PAGES;
	return !first && (phase != FINI_RECONCILE_PAGES || since >= pace_us());
}

/* between pages, so that the queue finds the rest of the window free */
static int64
pace_us(void)
{
	if (fini_guc_rate_limit <= 0)
		return 0;
	return (int64) fini_guc_rate_window * 1000 * 100 / ((int64) fini_guc_rate_limit * fini_guc_reconcile_share);
}

/* the run's row says with which page to go on */
static void
send_page(FiniSlotShared *slot)
{
	MemoryContext old = CurrentMemoryContext;
	FiniAccess *access;
	FiniTicket	ticket;
	int64		wait;

	if (page_context == NULL)
		page_context = AllocSetContextCreate(TopMemoryContext, "fini reconcile call", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(page_context);
	access = fini_secret_alloc(sizeof(FiniAccess));
	if (fini_token_peek(slot, access, true))
	{
		wait = fini_throttle_take(FINI_THROTTLE_BULK, &ticket);
		if (wait > 0)
			throttle_until_us = fini_monotonic_us() + wait;
		else
		{
			FiniCall   *page = NULL;

			if (guard(slot, TAKE_UP, make_call, &page))
				call = page;
			if (call != NULL)
			{
				call->ticket = ticket;
				page_sent_us = fini_monotonic_us();
				sends_before = fini_flight_sends();
				fini_call_send(call, access);
			}
			else
			{
				fini_throttle_cancel(&ticket);
				drop_run();
			}
		}
	}
	fini_secret_cleanse(access, sizeof(*access));
	MemoryContextSwitchTo(old);
	if (call == NULL)
		MemoryContextReset(page_context);
}

static void
make_call(void *arg)
{
	FiniReconcile *run;

	MemoryContextSwitchTo(page_context);
	run = fini_reconcile_load(run_id);
	MemoryContextSwitchTo(page_context);
	if (run != NULL)
		*(FiniCall **) arg = fini_query_page(run->ipo_id, 0, NULL, NULL, run->pages.n > 0 ? run->pages.cursor : NULL);
}

static void
finish_call(void *arg)
{
	Arrival    *arrival = arg;

	MemoryContextSwitchTo(page_context);
	fini_call_finish(arrival->page, arrival->slot);
}

static void
take_answer(FiniSlotShared *slot, FiniCall *page)
{
	switch (page->verdict)
	{
		case FINI_VERDICT_PROCESSED:
			if (fini_answer_is_page(page->answer))
				do_piece(slot, page);
			else
				piece_failed(slot, "the answer is no page of records", false, 0);
			break;
		case FINI_VERDICT_STOP:
		case FINI_VERDICT_REJECTED:
		case FINI_VERDICT_WRONG:
			piece_failed(slot, psprintf("subscriptions/query was refused: HTTP status %d, code %s: %s",
										page->http_status, page->code, page->message), true, 0);
			break;
		default:
			piece_failed(slot, psprintf("subscriptions/query failed: HTTP status %d, code %s: %s",
										page->http_status, page->code, page->message), false, 0);
			break;
	}
}

/* one page, or one slice */
static void
do_piece(FiniSlotShared *slot, FiniCall *page)
{
	Piece		piece = {.page = page};
	ErrorData  *error = fini_trouble_try(try_piece, &piece);

	if (error != NULL)
	{
		/* the run's table is somebody's, and so is the text of what went wrong with it */
		piece_failed(slot, psprintf("a piece of the comparison failed with SQLSTATE %s", unpack_sql_state(error->sqlerrcode)),
					 false, MAX_LOCAL_FAILURES);
		FreeErrorData(error);
		return;
	}
	if (piece.result != PIECE_DONE)
		drop_run();
	if (piece.result == PIECE_LAST)
		fini_flight_settled(slot);
}

static void
try_piece(void *arg)
{
	Piece	   *piece = arg;
	FiniReconcile *run = fini_reconcile_load(run_id);
	bool		last = false;

	/* one that was cancelled, and perhaps another process's by now */
	piece->result = PIECE_NOT_OURS;
	if (run == NULL || (piece->page != NULL && run->phase != FINI_RECONCILE_PAGES))
		return;
	if (piece->page != NULL)
		fini_reconcile_take_page(run, piece->page->answer);
	else
		last = fini_reconcile_judge(run);
	fini_reconcile_save(run);
	if (last)
		fini_reconcile_end(run_id, "finished", NULL);
	phase = run->phase;
	piece->result = last ? PIECE_LAST : PIECE_DONE;
}

/* again after a pause; for good when that can help no more. limit 0: any number of times */
static void
piece_failed(FiniSlotShared *slot, const char *reason, bool final, int limit)
{
	Failure		failure = {.reason = reason, .final = final, .limit = limit};

	if (guard(slot, NOTE_FAILURE, note_failure, &failure))
	{
		if (failure.failures == 1 || failure.final)
			ereport(LOG,
					(errmsg("fini: reconciliation run " INT64_FORMAT " %s", run_id,
							failure.final ? "failed" : "was interrupted and goes on after a pause"),
					 errdetail("%s", reason)));
		if (failure.failures > 0)
			fini_shared_note_error(slot, psprintf("reconciliation run " INT64_FORMAT ": %s", run_id, reason));
		fini_flight_settled(slot);
	}
	drop_run();
}

static void
note_failure(void *arg)
{
	Failure    *failure = arg;
	FiniReconcile *run = fini_reconcile_load(run_id);

	if (run == NULL)
		return;
	failure->failures = run->failures + 1;
	failure->final |= failure->failures == failure->limit;
	if (failure->final)
		fini_reconcile_end(run_id, "failed", failure->reason);
	else
		fini_reconcile_postpone(run_id, failure->reason, Min(MIN_PAUSE_US << Min(run->failures, 8), MAX_PAUSE_US));
}

/* the next look finds it again, or another */
static void
drop_run(void)
{
	run_id = 0;
	arrived = true;
}
