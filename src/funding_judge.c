/*
 * funding_judge.c
 *		What an answer on funding means.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "backoff.h"
#include "compat.h"
#include "error.h"
#include "funding_judge.h"
#include "settings.h"
#include "textmap.h"

#define MIN_PAUSE_US	INT64CONST(200000)
#define MAX_PAUSE_US	INT64CONST(30000000)
#define MAX_LOOKS		3		/* pages in a row that were not to be had, until others have their turn */

#define CONFIRM			"20"
#define REJECT			"30"

/* members that are looked for, by their reference */
typedef struct Sought
{
	const char *transaction_ref;
	FiniConfirmation *member;
} Sought;

static bool take_page(FiniFundingLane *lane, FiniAnswer *answer);
static void judge_look(FiniFundingLane *lane);
static void look_failed(FiniSlotShared *slot, FiniFundingLane *lane, const FiniCall *call);
static void confirm_ended(FiniSlotShared *slot, FiniFundingLane *lane, const FiniCall *call);
static void take_outcomes(FiniFundingLane *lane, FiniAnswer *answer);
static void go_on(FiniConfirmation *member, const char *code, const char *message, int64 delay_us);
static void stop(FiniSlotShared *slot, FiniFundingLane *lane, const FiniCall *call);
static void pause_for(FiniFundingLane *lane, const FiniCall *call, bool looking);
static int64 pause_after(int n);

void
fini_funding_seek(FiniFundingLane *lane)
{
	lane->hand.sought = fini_textmap_create("funding in hand", lane->hand.batch.count, sizeof(Sought), lane->hand.context);
	for (int i = 0; i < lane->hand.batch.count; i++)
	{
		Sought	   *sought = fini_textmap_enter(lane->hand.sought, lane->hand.batch.members[i].transaction_ref, NULL);

		sought->member = &lane->hand.batch.members[i];
	}
}

void
fini_funding_judge(FiniSlotShared *slot, FiniFundingLane *lane)
{
	FiniCall   *call = lane->hand.call;

	if (lane->hand.looked_us != 0)
		confirm_ended(slot, lane, call);
	else if (call->verdict != FINI_VERDICT_PROCESSED || !fini_answer_is_page(call->answer))
		look_failed(slot, lane, call);
	else if (take_page(lane, call->answer))
	{
		lane->failures[true] = 0;
		judge_look(lane);
		lane->hand.looked_us = fini_monotonic_us();
	}
}

/* true after the last page */
static bool
take_page(FiniFundingLane *lane, FiniAnswer *answer)
{
	for (int i = 0; i < answer->entries; i++)
	{
		const FiniValue *row;
		char	   *reference;
		char	   *status;
		Sought	   *sought;

		if (!fini_answer_object(answer, i, &row) ||
			(reference = fini_value_member_text(row, "transactionRef")) == NULL ||
			(sought = fini_textmap_find(lane->hand.sought, reference)) == NULL)
			continue;
		status = fini_value_member_text(row, "preFundingStatus");
		sought->member->seen = status != NULL ? MemoryContextStrdup(lane->hand.context, status) : NULL;
	}
	/* pages that do not end: what has been seen by now is taken, the rest is FINI's to judge */
	return fini_query_turn(&lane->hand.pages, answer) != FINI_PAGES_MORE;
}

static void
judge_look(FiniFundingLane *lane)
{
	for (int i = 0; i < lane->hand.batch.count; i++)
	{
		FiniConfirmation *member = &lane->hand.batch.members[i];

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
look_failed(FiniSlotShared *slot, FiniFundingLane *lane, const FiniCall *call)
{
	if (call->verdict == FINI_VERDICT_STOP)
	{
		stop(slot, lane, call);
		return;
	}
	pause_for(lane, call, true);
	if (lane->failures[true] == 1 && call->verdict != FINI_VERDICT_NEW_TOKEN)
		ereport(LOG,
				(errcode(FINI_ERRCODE_TRANSPORT),
				 errmsg("fini: %s is not to be had now", fini_endpoint(call->endpoint)->name),
				 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message)));
	fini_shared_note_error(slot, psprintf("%s not to be had, code %s: %s", fini_endpoint(call->endpoint)->name,
										  call->code, call->message));
	for (int i = 0; i < lane->hand.batch.count && lane->failures[true] > MAX_LOOKS; i++)
		go_on(&lane->hand.batch.members[i], call->code, call->message, pause_after(lane->failures[true]));
}

static void
confirm_ended(FiniSlotShared *slot, FiniFundingLane *lane, const FiniCall *call)
{
	FiniConfirmations *batch = &lane->hand.batch;

	switch (call->verdict)
	{
		case FINI_VERDICT_PROCESSED:
			lane->failures[false] = 0;
			if (lane->batch_limit > 0)
				lane->batch_limit *= 2;
			if (lane->batch_limit >= fini_guc_batch_size)
				lane->batch_limit = 0;
			take_outcomes(lane, call->answer);
			break;
		case FINI_VERDICT_REJECTED:
		case FINI_VERDICT_WRONG:

			/*
			 * The whole request was refused and nothing processed.  One entry
			 * alone is rejected for good; several go again in smaller requests.
			 */
			lane->failures[false] = 0;
			lane->batch_limit = Max(1, batch->count / 2);
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
			stop(slot, lane, call);
			break;
		case FINI_VERDICT_DOUBT:
			pause_for(lane, call, false);
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
			pause_for(lane, call, false);
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
take_outcomes(FiniFundingLane *lane, FiniAnswer *answer)
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
			(sought = fini_textmap_find(lane->hand.sought, reference)) == NULL)
			continue;
		member = sought->member;
		if (member->state != NULL)
			continue;
		status = fini_value_member_text(object, "preFundingStatus");
		if (entry.rejected)
		{
			member->state = "rejected";
			member->error_code = entry.error_code[0] != '\0' ? fini_call_clean_text(lane->hand.call, entry.error_code) : "rejected";
			member->error_message = fini_call_clean_text(lane->hand.call, entry.error_message);
			fini_answer_entry_done(&entry);
		}
		else if (status == NULL || strcmp(status, member->status) == 0)
			member->state = "accepted";
	}
	for (int i = 0; i < lane->hand.batch.count; i++)
	{
		FiniConfirmation *member = &lane->hand.batch.members[i];

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
stop(FiniSlotShared *slot, FiniFundingLane *lane, const FiniCall *call)
{
	const char *name = fini_endpoint(call->endpoint)->name;

	lane->stopped = true;
	fini_shared_endpoint_stopped(slot, call->endpoint);
	for (int i = 0; i < lane->hand.batch.count; i++)
		go_on(&lane->hand.batch.members[i], call->code, call->message, 0);
	fini_shared_note_error(slot, psprintf("%s stopped, code %s: %s", name, call->code, call->message));
	ereport(LOG,
			(errcode(FINI_ERRCODE_NOT_ENTITLED),
			 errmsg("fini: stopped using %s", name),
			 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message),
			 errhint("Confirmations of funding stay queued. Mend the cause and call fini.resume().")));
}

/* a refused token is replaced at once, and what is in doubt looked for; the second time in a row, after a pause */
static void
pause_for(FiniFundingLane *lane, const FiniCall *call, bool looking)
{
	bool		first = ++lane->failures[looking] == 1 &&
		(call->verdict == FINI_VERDICT_NEW_TOKEN || (call->verdict == FINI_VERDICT_DOUBT && !looking));

	if (!first)
		lane->not_before_us = fini_monotonic_us() + Max(pause_after(lane->failures[looking]), call->retry_after_us);
}

static int64
pause_after(int n)
{
	return fini_backoff_us(n, MIN_PAUSE_US, MAX_PAUSE_US);
}
