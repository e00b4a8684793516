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
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "backoff.h"
#include "compat.h"
#include "entry.h"
#include "error.h"
#include "flight.h"
#include "funding.h"
#include "funding_outbox.h"
#include "query.h"
#include "settings.h"
#include "textmap.h"
#include "throttle.h"
#include "token.h"
#include "trouble.h"

#define MIN_PAUSE_US	INT64CONST(200000)
#define MAX_PAUSE_US	INT64CONST(30000000)
#define MAX_LOOKS		3		/* pages in a row that were not to be had, until others have their turn */

#define CLAIM			"claim confirmations of funding"	/* work that the database can refuse */

#define CONFIRM			"20"
#define REJECT			"30"

/* members that are looked for, by their reference */
typedef struct Sought
{
	const char *transaction_ref;
	FiniConfirmation *member;
} Sought;

/* what is in hand: a batch that is looked for, then sent */
static struct
{
	MemoryContext context;		/* NULL: nothing */
	FiniConfirmations batch;
	HTAB	   *sought;
	FiniPages	pages;			/* of the look */
	int64		looked_us;		/* when the last page had been read; 0: it has not been */
	FiniCall   *call;			/* under way; NULL: none */
} hand;

static bool recovered = false;	/* what a former worker left has been taken over */
static bool stopped = false;	/* refused for good; until fini.resume */
static bool work = true;		/* there may be something open */
static int	failures[2] = {0};	/* in a row, of confirmations and of looks */
static int	batch_limit = 0;	/* halved when a whole batch is refused; 0: fini.batch_size */
static int64 not_before_us = 0;
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
static void seek(void);
static void put_down(void);
static bool begin_call(FiniSlotShared *slot, FiniAccess *access, FiniTicket *ticket);
static bool claim(FiniSlotShared *slot);
static void claim_batch(void *arg);
static FiniCall *build(void);
static bool take_page(FiniAnswer *answer);
static void judge_look(void);
static void look_failed(FiniSlotShared *slot, FiniCall *call);
static void take_outcomes(FiniAnswer *answer);
static void confirm_ended(FiniSlotShared *slot, FiniCall *call);
static void go_on(FiniConfirmation *member, const char *code, const char *message, int64 delay_us);
static void stop(FiniSlotShared *slot, const FiniCall *call);
static void pause_for(const FiniCall *call, bool looking);
static int64 pause_after(int n);

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
	while (recovered && hand.call == NULL && !stopped && fini_monotonic_us() >= not_before_us)
	{
		FiniTicket	ticket;
		int64		wait;

		if (hand.context == NULL && (!work || !take_up(slot)))
			break;

		/* what was seen before a long pause is not to be relied on */
		if (hand.looked_us != 0 &&
			fini_monotonic_us() - hand.looked_us > ((int64) fini_guc_rate_window + fini_guc_request_timeout) * 1000)
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
	FiniCall   *call = hand.call;
	bool		looking = hand.looked_us == 0;
	int			n = 0;

	if (call == NULL || http != &call->http)
		return false;

	/* reading the answer may have to look up an encoding conversion */
	fini_flight_begin();
	MemoryContextSwitchTo(hand.context);
	fini_call_finish(call, slot);
	if (!looking)
		confirm_ended(slot, call);
	else if (call->verdict != FINI_VERDICT_PROCESSED || !fini_answer_is_page(call->answer))
		look_failed(slot, call);
	else if (take_page(call->answer))
	{
		failures[true] = 0;
		judge_look();
		hand.looked_us = fini_monotonic_us();
	}
	fini_funding_outbox_settle(&hand.batch);
	fini_flight_commit();

	/* what has been decided leaves; after a sending, that is everything */
	for (int i = 0; i < hand.batch.count; i++)
	{
		if (hand.batch.members[i].state == NULL)
			hand.batch.members[n++] = hand.batch.members[i];
	}
	if (n < hand.batch.count)
		fini_flight_settled(slot);
	hand.batch.count = n;
	fini_call_free(call);
	hand.call = NULL;
	if (hand.batch.count == 0)
		put_down();
	return true;
}

void
fini_funding_work_arrived(void)
{
	work = true;
}

void
fini_funding_resume(void)
{
	stopped = false;
	memset(failures, 0, sizeof(failures));
	not_before_us = 0;
	batch_limit = 0;
	work = true;
}

long
fini_funding_timeout(void)
{
	int64		now = fini_monotonic_us();
	int64		due = next_due_us;

	if (hand.call != NULL || stopped)
		return -1;
	if (hand.context != NULL || work)
	{
		/* what only waits for a token is woken by that */
		int64		when = Max(not_before_us, throttle_until_us);

		if (when > now)
			due = due == 0 ? when : Min(due, when);
	}
	return due == 0 ? -1 : (long) (Max(due - now, 0) / 1000 + 1);
}

bool
fini_funding_busy(void)
{
	return hand.call != NULL;
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
		next_due_us = fini_monotonic_us() + Max(1, fini_trouble_timeout()) * 1000;
		return false;
	}
	taken.context = AllocSetContextCreate(TopMemoryContext, "fini funding", ALLOCSET_DEFAULT_SIZES);
	if (!fini_trouble_guard(slot, doing, read_next, &taken))
	{
		memset(&hand, 0, sizeof(hand));
		taken.found = false;
		taken.due = Max(1, fini_trouble_timeout()) * 1000;
	}
	next_due_us = taken.due < 0 ? 0 : fini_monotonic_us() + taken.due;
	if (!taken.found)
	{
		work = false;
		MemoryContextDelete(taken.context);
		return false;
	}
	hand.context = taken.context;
	memset(&hand.pages, 0, sizeof(hand.pages));
	hand.looked_us = 0;
	seek();
	return true;
}

static void
read_next(void *arg)
{
	TakeUp	   *taken = arg;

	taken->found = fini_funding_outbox_next(&hand.batch, batch_limit > 0 ? Min(batch_limit, fini_guc_batch_size) : fini_guc_batch_size,
											taken->context);
	if (!taken->found)
		taken->due = fini_funding_outbox_next_due();
}

/* members by their reference */
static void
seek(void)
{
	hand.sought = fini_textmap_create("funding in hand", hand.batch.count, sizeof(Sought), hand.context);
	for (int i = 0; i < hand.batch.count; i++)
	{
		Sought	   *sought = fini_textmap_enter(hand.sought, hand.batch.members[i].transaction_ref, NULL);

		sought->member = &hand.batch.members[i];
	}
}

/* what is still open is taken up again when its turn comes */
static void
put_down(void)
{
	if (hand.context != NULL)
		MemoryContextDelete(hand.context);
	memset(&hand, 0, sizeof(hand));
	work = true;
}

/* the next page, or the confirmations themselves; false: nothing was begun */
static bool
begin_call(FiniSlotShared *slot, FiniAccess *access, FiniTicket *ticket)
{
	MemoryContext old = MemoryContextSwitchTo(hand.context);
	FiniCall   *call;

	if (hand.looked_us == 0)
		call = fini_query_funding_page(hand.batch.ipo_id, hand.pages.n > 0 ? hand.pages.cursor : NULL);
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
	hand.call = call;
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
	seek();
	return hand.batch.count > 0;
}

static void
claim_batch(void *arg)
{
	FiniPermission permission;

	MemoryContextSwitchTo(hand.context);
	permission = fini_outbox_may_send();
	if (permission.armed && !permission.paused)
		fini_funding_outbox_claim(&hand.batch);
	else
		hand.batch.count = 0;
}

/* what FINI has listed can be sent back to it: no character of it lacks an equivalent in UTF-8 */
static FiniCall *
build(void)
{
	FiniCall   *call = fini_call_create(FINI_ENDPOINT_FUNDING_CONFIRM, NULL);
	MemoryContext old = MemoryContextSwitchTo(call->context);

	call->entries = hand.batch.count;
	call->payload = fini_buffer_create(64 + (Size) hand.batch.count * 80);
	fini_buffer_append(call->payload, "{\"data\":[", 9);
	for (int i = 0; i < hand.batch.count; i++)
	{
		FiniBuffer *entry = fini_buffer_create(96);

		fini_entry_append(entry, "transactionRef", hand.batch.members[i].transaction_ref);
		fini_entry_append(entry, "preFundingStatus", hand.batch.members[i].status);
		fini_buffer_append(call->payload, i > 0 ? ",{" : "{", i > 0 ? 2 : 1);
		fini_buffer_append(call->payload, entry->data, entry->len);
		fini_buffer_append(call->payload, "}", 1);
	}
	fini_buffer_append(call->payload, "]}", 2);
	MemoryContextSwitchTo(old);
	return call;
}

/* true after the last page */
static bool
take_page(FiniAnswer *answer)
{
	for (int i = 0; i < answer->entries; i++)
	{
		const FiniValue *row;
		char	   *reference;
		char	   *status;
		Sought	   *sought;

		if (!fini_answer_object(answer, i, &row) ||
			(reference = fini_value_member_text(row, "transactionRef")) == NULL ||
			(sought = fini_textmap_find(hand.sought, reference)) == NULL)
			continue;
		status = fini_value_member_text(row, "preFundingStatus");
		sought->member->seen = status != NULL ? MemoryContextStrdup(hand.context, status) : NULL;
	}
	/* pages that do not end: what has been seen by now is taken, the rest is FINI's to judge */
	return fini_query_turn(&hand.pages, answer) != FINI_PAGES_MORE;
}

static void
judge_look(void)
{
	for (int i = 0; i < hand.batch.count; i++)
	{
		FiniConfirmation *member = &hand.batch.members[i];

		if (member->seen != NULL && strcmp(member->seen, member->status) == 0)
			member->state = "accepted";
		else if (member->seen != NULL && (strcmp(member->seen, CONFIRM) == 0 || strcmp(member->seen, REJECT) == 0))
		{
			member->state = "rejected";
			member->error_code = "contradiction";
			member->error_message = "FINI has the other status; it is not contradicted";
		}
		else if (member->attempts >= fini_guc_max_attempts && !member->quiet)
			/* the last copy may still be on its way */
			go_on(member, "in_doubt", "it is being found out whether FINI has it", (int64) fini_guc_request_timeout * 1000);
		else if (member->attempts >= fini_guc_max_attempts)
		{
			member->state = "failed";
			member->error_code = "not_found";
			member->error_message = "sent as often as fini.max_attempts allows, and FINI does not show it";
		}
	}
}

/* the same page again after a pause; after some of them, others have their turn first */
static void
look_failed(FiniSlotShared *slot, FiniCall *call)
{
	if (call->verdict == FINI_VERDICT_STOP)
	{
		stop(slot, call);
		return;
	}
	pause_for(call, true);
	if (failures[true] == 1 && call->verdict != FINI_VERDICT_NEW_TOKEN)
		ereport(LOG,
				(errcode(FINI_ERRCODE_TRANSPORT),
				 errmsg("fini: %s is not to be had now", fini_endpoint(call->endpoint)->name),
				 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message)));
	fini_shared_note_error(slot, psprintf("%s not to be had, code %s: %s", fini_endpoint(call->endpoint)->name,
										  call->code, call->message));
	for (int i = 0; i < hand.batch.count && failures[true] > MAX_LOOKS; i++)
		go_on(&hand.batch.members[i], call->code, call->message, pause_after(failures[true]));
}

static void
confirm_ended(FiniSlotShared *slot, FiniCall *call)
{
	FiniConfirmations *batch = &hand.batch;

	switch (call->verdict)
	{
		case FINI_VERDICT_PROCESSED:
			failures[false] = 0;
			if (batch_limit > 0)
				batch_limit *= 2;
			if (batch_limit >= fini_guc_batch_size)
				batch_limit = 0;
			take_outcomes(call->answer);
			break;
		case FINI_VERDICT_REJECTED:
		case FINI_VERDICT_WRONG:

			/*
			 * The whole request was refused and nothing processed.  One entry
			 * alone is rejected for good; several go again in smaller requests.
			 */
			failures[false] = 0;
			batch_limit = Max(1, batch->count / 2);
			for (int i = 0; i < batch->count; i++)
			{
				if (batch->count > 1)
					go_on(&batch->members[i], call->code, call->message, 0);
				else
				{
					batch->members[i].state = "rejected";
					batch->members[i].error_code = call->code;
					batch->members[i].error_message = call->message;
				}
			}
			break;
		case FINI_VERDICT_STOP:
			stop(slot, call);
			break;
		case FINI_VERDICT_DOUBT:
			pause_for(call, false);
			for (int i = 0; i < batch->count; i++)
			{
				batch->members[i].doubted = true;
				go_on(&batch->members[i], call->code, call->message, 0);
			}
			fini_shared_note_error(slot, psprintf("%s in doubt, code %s: %s", fini_endpoint(call->endpoint)->name,
												  call->code, call->message));
			break;
		case FINI_VERDICT_NEW_TOKEN:
		case FINI_VERDICT_NEW_KEY:
		case FINI_VERDICT_LATER:
			pause_for(call, false);
			for (int i = 0; i < batch->count; i++)
			{
				go_on(&batch->members[i], call->code, call->message, 0);
				/* what was never processed, however often it was sent, is the operator's */
				if (!batch->members[i].doubted && batch->members[i].attempts >= fini_guc_max_attempts)
					batch->members[i].state = "failed";
			}
			if (call->verdict == FINI_VERDICT_LATER)
				fini_shared_note_error(slot, psprintf("%s not to be had, code %s: %s", fini_endpoint(call->endpoint)->name,
													  call->code, call->message));
			break;
	}
}

/* the first account of a reference counts; what the answer leaves out, or is not clear about, is looked for */
static void
take_outcomes(FiniAnswer *answer)
{
	for (int i = 0; i < answer->entries; i++)
	{
		FiniAnswerEntry entry;
		const FiniValue *object;
		char	   *reference;
		char	   *status;
		Sought	   *sought;
		FiniConfirmation *member;

		if (!fini_answer_entry(answer, i, &entry) || !fini_answer_object(answer, i, &object) ||
			(reference = fini_value_member_text(object, "transactionRef")) == NULL ||
			(sought = fini_textmap_find(hand.sought, reference)) == NULL)
			continue;
		member = sought->member;
		if (member->state != NULL)
			continue;
		status = fini_value_member_text(object, "preFundingStatus");
		if (entry.rejected)
		{
			member->state = "rejected";
			member->error_code = entry.error_code[0] != '\0' ? entry.error_code : "rejected";
			member->error_message = fini_answer_clean_text(entry.error_message, NULL);
		}
		else if (status == NULL || strcmp(status, member->status) == 0)
			member->state = "accepted";
	}
	for (int i = 0; i < hand.batch.count; i++)
	{
		FiniConfirmation *member = &hand.batch.members[i];

		if (member->state != NULL)
			continue;
		member->doubted = true;
		go_on(member, "no_entry", "the answer does not account for this entry", member->attempts > 1 ? pause_after(member->attempts) : 0);
	}
}

/* it stays open, and begins again with a look */
static void
go_on(FiniConfirmation *member, const char *code, const char *message, int64 delay_us)
{
	member->state = member->doubted ? "unknown" : "queued";
	member->error_code = code;
	member->error_message = message;
	member->delay_us = delay_us;
}

/* not entitled, or our request is not what FINI wants: this queue stops, others go on */
static void
stop(FiniSlotShared *slot, const FiniCall *call)
{
	const char *name = fini_endpoint(call->endpoint)->name;

	stopped = true;
	fini_shared_endpoint_stopped(slot, call->endpoint);
	for (int i = 0; i < hand.batch.count; i++)
		go_on(&hand.batch.members[i], call->code, call->message, 0);
	fini_shared_note_error(slot, psprintf("%s stopped, code %s: %s", name, call->code, call->message));
	ereport(LOG,
			(errcode(FINI_ERRCODE_NOT_ENTITLED),
			 errmsg("fini: stopped using %s", name),
			 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message),
			 errhint("Confirmations of funding stay queued. Mend the cause and call fini.resume().")));
}

/* a refused token is replaced at once, and what is in doubt looked for; the second time in a row, after a pause */
static void
pause_for(const FiniCall *call, bool looking)
{
	bool		first = ++failures[looking] == 1 &&
		(call->verdict == FINI_VERDICT_NEW_TOKEN || (call->verdict == FINI_VERDICT_DOUBT && !looking));

	if (!first)
		not_before_us = fini_monotonic_us() + Max(pause_after(failures[looking]), call->retry_after_us);
}

static int64
pause_after(int n)
{
	return fini_backoff_us(n, MIN_PAUSE_US, MAX_PAUSE_US);
}
