/*
 * funding.c
 *		Confirmations of funding, from queue to outcome.
 *
 * A confirmation carries no envelope and so no request ID by which FINI could
 * tell a second copy from a first one.  What makes it safe to send again is
 * that it says what shall be, not what to do: two copies leave what one would.
 * What must not happen is that it contradicts what has been decided at FINI
 * meanwhile, by a copy of ours, by a direct call, or by a person there.  So
 * every batch is looked for first (funding/query of its IPO), whether it is
 * new, in doubt, or came with a restore:
 *
 * - has the status that it asks for: accepted, and nothing is sent;
 * - has the other one: rejected, code contradiction;
 * - else it is claimed, committed and sent.
 *
 * A request that may have been processed and has no usable answer makes its
 * members unknown, which means that they begin again with a look.
 *
 * One request at a time is under way: a bank confirms a participant's whole
 * list with one entry, so that an IPO has a few hundred of them.
 *
 * What an answer means is decided in memory, once (funding_judge.c).  Should the
 * database refuse to have it written, it stays in hand until it is; nothing
 * else of the lane goes on meanwhile, for it would be a matter of that table.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "entry.h"
#include "flight.h"
#include "funding.h"
#include "funding_judge.h"
#include "funding_outbox.h"
#include "query.h"
#include "settings.h"
#include "throttle.h"
#include "token.h"
#include "trouble.h"

#define CLAIM			"claim confirmations of funding"	/* work that the database can refuse */

static FiniFundingLane lane;
static bool recovered = false;	/* what a former worker left has been taken over */
static bool work = true;		/* there may be something open */
static int64 next_due_us = 0;	/* when something deferred becomes due; 0: nothing */
static int64 throttle_until_us = 0;

/* what is next */
typedef struct TakeUp
{
	MemoryContext context;
	bool		found;
	int64		due;			/* if not: microseconds until something deferred is due, -1: nothing is */
} TakeUp;

static void recover(void *arg);
static bool take_up(FiniSlotShared *slot);
static void read_next(void *arg);
static void put_down(void);
static bool begin_call(FiniSlotShared *slot, FiniAccess *access, FiniTicket *ticket);
static bool claim(FiniSlotShared *slot);
static void claim_batch(void *arg);
static FiniCall *build(void);
static void conclude(FiniSlotShared *slot);
static void finish_call(void *arg);
static void settle(void *arg);

void
fini_funding_dispatch(FiniSlotShared *slot)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini funding dispatch", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	FiniAccess *access = fini_secret_alloc(sizeof(FiniAccess));
	char		doing[FINI_TROUBLE_NAME] = "take over confirmations of funding";

	throttle_until_us = 0;
	if (next_due_us != 0 && fini_monotonic_us() >= next_due_us)
		work = true;
	if (!recovered)
		recovered = fini_trouble_guard(slot, doing, recover, NULL);
	while (recovered && lane.hand.step == FINI_FUNDING_HELD && !lane.stopped && fini_monotonic_us() >= lane.not_before_us)
	{
		FiniTicket	ticket;
		int64		wait;

		if (lane.hand.context == NULL && (!work || !take_up(slot)))
			break;

		/* what was seen before a long pause is not to be relied on */
		if (lane.hand.looked_us != 0 &&
			fini_monotonic_us() - lane.hand.looked_us > ((int64) fini_guc_rate_window + fini_guc_request_timeout) * 1000)
		{
			put_down();
			continue;
		}
		/* token first, then the ticket, then the claim: nothing claimed has to wait */
		if (!fini_token_peek(slot, access, false))
			break;
		wait = fini_throttle_take(FINI_THROTTLE_BULK, &ticket);
		if (wait > 0)
		{
			throttle_until_us = fini_monotonic_us() + wait;
			break;
		}
		if (!begin_call(slot, access, &ticket))
		{
			fini_throttle_cancel(&ticket);
			break;
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

bool
fini_funding_completed(FiniSlotShared *slot, FiniHttpRequest *http)
{
	if (lane.hand.step != FINI_FUNDING_SENT || http != &lane.hand.call->http)
		return false;
	lane.hand.step = FINI_FUNDING_ANSWERED;
	conclude(slot);
	return true;
}

void
fini_funding_settle_late(FiniSlotShared *slot)
{
	if (lane.hand.step == FINI_FUNDING_ANSWERED || lane.hand.step == FINI_FUNDING_JUDGED)
		conclude(slot);
}

void
fini_funding_work_arrived(void)
{
	work = true;
}

void
fini_funding_resume(void)
{
	lane.stopped = false;
	memset(lane.failures, 0, sizeof(lane.failures));
	lane.not_before_us = 0;
	lane.batch_limit = 0;
	work = true;
}

long
fini_funding_timeout(void)
{
	int64		now = fini_monotonic_us();
	int64		due = next_due_us;

	if (lane.hand.step != FINI_FUNDING_HELD || lane.stopped)
		return -1;
	if (lane.hand.context != NULL || work)
	{
		/* what only waits for a token is woken by that */
		int64		when = Max(lane.not_before_us, throttle_until_us);

		if (when > now)
			due = due == 0 ? when : Min(due, when);
	}
	return due == 0 ? -1 : (long) (Max(due - now, 0) / 1000 + 1);
}

bool
fini_funding_busy(void)
{
	return lane.hand.step == FINI_FUNDING_SENT;
}

/* what a former worker left */
static void
recover(void *arg)
{
	fini_funding_outbox_recover();
}

/* take the confirmations whose turn it is in hand; false: there are none, or they cannot be read now */
static bool
take_up(FiniSlotShared *slot)
{
	char		doing[FINI_TROUBLE_NAME] = "take up confirmations of funding";
	TakeUp		taken = {.due = -1};

	/* what could not be claimed need not be looked for before that is worth another try */
	if (fini_trouble_waits(CLAIM))
	{
		work = false;
		next_due_us = fini_trouble_retry_us();
		return false;
	}
	taken.context = AllocSetContextCreate(TopMemoryContext, "fini funding", ALLOCSET_DEFAULT_SIZES);
	if (!fini_trouble_guard(slot, doing, read_next, &taken))
	{
		memset(&lane.hand, 0, sizeof(lane.hand));
		taken.found = false;
		taken.due = Max(0, fini_trouble_retry_us() - fini_monotonic_us());
	}
	next_due_us = taken.due < 0 ? 0 : fini_monotonic_us() + taken.due;
	if (!taken.found)
	{
		work = false;
		MemoryContextDelete(taken.context);
		return false;
	}
	lane.hand.context = taken.context;
	fini_funding_seek(&lane);
	return true;
}

static void
read_next(void *arg)
{
	TakeUp	   *taken = arg;

	taken->found = fini_funding_outbox_next(&lane.hand.batch, lane.batch_limit > 0 ? Min(lane.batch_limit, fini_guc_batch_size) : fini_guc_batch_size,
											taken->context);
	if (!taken->found)
		taken->due = fini_funding_outbox_next_due();
}

/* what is still open is taken up again when its turn comes */
static void
put_down(void)
{
	if (lane.hand.context != NULL)
		MemoryContextDelete(lane.hand.context);
	memset(&lane.hand, 0, sizeof(lane.hand));
	work = true;
}

/* the next page, or the confirmations themselves; false: nothing was begun */
static bool
begin_call(FiniSlotShared *slot, FiniAccess *access, FiniTicket *ticket)
{
	MemoryContext old = MemoryContextSwitchTo(lane.hand.context);
	FiniCall   *call;

	if (lane.hand.looked_us == 0)
		call = fini_query_funding_page(lane.hand.batch.ipo_id, lane.hand.pages.n > 0 ? lane.hand.pages.cursor : NULL);
	else if (claim(slot))
		call = build();
	else
	{
		MemoryContextSwitchTo(old);
		put_down();
		return false;
	}
	call->ticket = *ticket;
	ticket->company = -1;
	lane.hand.call = call;
	lane.hand.step = FINI_FUNDING_SENT;
	fini_call_send(call, access);
	MemoryContextSwitchTo(old);
	return true;
}

/* durable before the first byte leaves; false: nothing may be sent, or nothing is left, or it cannot be written now */
static bool
claim(FiniSlotShared *slot)
{
	char		doing[FINI_TROUBLE_NAME] = CLAIM;

	if (!fini_trouble_guard(slot, doing, claim_batch, NULL))
		return false;
	fini_funding_seek(&lane);
	return lane.hand.batch.count > 0;
}

static void
claim_batch(void *arg)
{
	FiniPermission permission;

	MemoryContextSwitchTo(lane.hand.context);
	permission = fini_outbox_may_send();
	if (permission.armed && !permission.paused)
		fini_funding_outbox_claim(&lane.hand.batch);
	else
		lane.hand.batch.count = 0;
}

/* what FINI has listed can be sent back to it: no character of it lacks an equivalent in UTF-8 */
static FiniCall *
build(void)
{
	FiniCall   *call = fini_call_create(FINI_ENDPOINT_FUNDING_CONFIRM, NULL);
	MemoryContext old = MemoryContextSwitchTo(call->context);

	call->entries = lane.hand.batch.count;
	call->payload = fini_buffer_create(64 + (Size) lane.hand.batch.count * 80);
	fini_buffer_append(call->payload, "{\"data\":[", 9);
	for (int i = 0; i < lane.hand.batch.count; i++)
	{
		FiniBuffer *entry = fini_buffer_create(96);

		fini_entry_append(entry, "transactionRef", lane.hand.batch.members[i].transaction_ref);
		fini_entry_append(entry, "preFundingStatus", lane.hand.batch.members[i].status);
		fini_buffer_append(call->payload, i > 0 ? ",{" : "{", i > 0 ? 2 : 1);
		fini_buffer_append(call->payload, entry->data, entry->len);
		fini_buffer_append(call->payload, "}", 1);
	}
	fini_buffer_append(call->payload, "]}", 2);
	MemoryContextSwitchTo(old);
	return call;
}

/* what an answer, or its absence, means is written; what the database refuses is kept, and comes here again */
static void
conclude(FiniSlotShared *slot)
{
	char		reading[FINI_TROUBLE_NAME] = "read an answer on funding";
	char		settling[FINI_TROUBLE_NAME] = "settle confirmations of funding";
	int			n = 0;

	if (lane.hand.step == FINI_FUNDING_ANSWERED)
	{
		MemoryContext old;

		if (!fini_trouble_guard(slot, reading, finish_call, slot))
			return;
		old = MemoryContextSwitchTo(lane.hand.context);
		fini_funding_judge(slot, &lane);
		MemoryContextSwitchTo(old);
		lane.hand.step = FINI_FUNDING_JUDGED;
	}
	if (!fini_trouble_guard(slot, settling, settle, NULL))
		return;

	/* what has been decided leaves; after a sending, that is everything */
	for (int i = 0; i < lane.hand.batch.count; i++)
	{
		if (lane.hand.batch.members[i].state == NULL)
			lane.hand.batch.members[n++] = lane.hand.batch.members[i];
	}
	if (n < lane.hand.batch.count)
		fini_flight_settled(slot);
	lane.hand.batch.count = n;
	fini_call_free(lane.hand.call);
	lane.hand.call = NULL;
	lane.hand.step = FINI_FUNDING_HELD;
	if (n == 0)
		put_down();
}

/* an answer may be more than there is memory for */
static void
finish_call(void *arg)
{
	MemoryContextSwitchTo(lane.hand.context);
	fini_call_finish(lane.hand.call, arg);
}

static void
settle(void *arg)
{
	fini_funding_outbox_settle(&lane.hand.batch);
}
