/*
 * flight_end.c
 *		What becomes of a request that was answered, or not.
 *
 * A request is always in one of three conditions: certainly not processed
 * (then it goes again under the same request ID, after a pause), processed
 * (then each entry has an outcome), or in doubt (then find.c looks for it, and
 * flight_looked.c has what follows).
 *
 * All of it is one transaction, after one in which the answer is read.  Should
 * the database refuse either, the answer is kept, and written when it can be.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "backoff.h"
#include "compat.h"
#include "deadline.h"
#include "error.h"
#include "flight.h"
#include "pace.h"
#include "settings.h"
#include "trouble.h"

#define MIN_PAUSE_US	INT64CONST(200000)
#define MAX_PAUSE_US	INT64CONST(30000000)

typedef struct Ending
{
	FiniSlotShared *slot;
	FiniFlight *flight;
} Ending;

static bool read_answer(FiniSlotShared *slot, FiniFlight *flight);
static void finish_call(void *arg);
static void conclude(void *arg);
static void tell(FiniSlotShared *slot, const FiniCall *call, const FiniEndpointState *endpoint);
static void take_outcomes(FiniFlight *flight);
static FiniMember *member_of_entry(FiniFlight *flight, const FiniAnswerEntry *entry);
static void set_aside(void *arg);
static void refuse(FiniFlight *flight);
static void put_back(FiniFlight *flight, const char *code, const char *message);
static void pause_flight(FiniFlight *flight, FiniEndpointState *endpoint);
static void give_up_after_limit(FiniFlight *flight);

bool
fini_flight_completed(FiniSlotShared *slot, FiniHttpRequest *http)
{
	FiniFlight *flight = fini_flight_of(http);

	if (flight == NULL)
		return false;
	flight->state = FINI_FLIGHT_UNSETTLED;
	flight->unread = true;
	fini_flight_conclude(slot, flight);
	return true;
}

void
fini_flight_conclude(FiniSlotShared *slot, FiniFlight *flight)
{
	FiniEndpointState *endpoint = fini_flight_endpoint(flight->batch.operation);
	FiniEndpointState endpoint_before = *endpoint;
	Ending		ending = {.slot = slot, .flight = flight};
	char		code[sizeof(flight->call->code)];
	char		message[sizeof(flight->call->message)];

	if (flight->unread && !read_answer(slot, flight))
		return;
	memcpy(code, flight->call->code, sizeof(code));
	memcpy(message, flight->call->message, sizeof(message));
	if (!fini_flight_guard(slot, flight, "settle request", conclude, &ending))
	{
		*endpoint = endpoint_before;
		memcpy(flight->call->code, code, sizeof(code));
		memcpy(flight->call->message, message, sizeof(message));
		return;
	}
	tell(slot, flight->call, endpoint);
	if (flight->batch.count == 0)
		fini_flight_end(flight);
	fini_flight_settled(slot);
}

bool
fini_flight_guard(FiniSlotShared *slot, FiniFlight *flight, const char *what, void (*body) (void *arg), void *arg)
{
	char		doing[FINI_TROUBLE_NAME];
	FiniFlight	flight_before = *flight;
	Size		size = sizeof(FiniMember) * flight->batch.count;
	FiniMember *members;
	bool		done;

	snprintf(doing, sizeof(doing), "%s %s", what, flight->batch.request_id);
	if (fini_trouble_waits(doing))
		return false;
	members = MemoryContextAlloc(flight->context, Max(1, size));
	memcpy(members, flight->batch.members, size);
	flight->step = AllocSetContextCreate(flight->context, "fini flight step", ALLOCSET_SMALL_SIZES);
	done = fini_trouble_guard(slot, doing, body, arg);
	if (!done)
	{
		MemoryContext rows = flight->rows;
		MemoryContext step = flight->step;

		*flight = flight_before;
		flight->rows = rows;
		memcpy(flight->batch.members, members, size);
		MemoryContextDelete(step);
	}
	pfree(members);
	return done;
}

/*
 * As when FINI refuses a whole request, smaller ones follow until the entry at
 * fault is alone; but not before an earlier copy, of rows that could be sealed,
 * has had its time and been looked for.
 */
void
fini_flight_set_aside(FiniSlotShared *slot, FiniFlight *flight, const char *message)
{
	FiniEndpointState *endpoint = fini_flight_endpoint(flight->batch.operation);
	FiniEndpointState endpoint_before = *endpoint;

	strlcpy(flight->call->code, "unsealable", sizeof(flight->call->code));
	strlcpy(flight->call->message, message, sizeof(flight->call->message));
	if (!fini_flight_guard(slot, flight, "set aside request", set_aside, flight))
	{
		*endpoint = endpoint_before;
		flight->not_before_us = fini_trouble_retry_us();
		return;
	}
	if (flight->batch.count == 0)
		fini_flight_end(flight);
	fini_flight_settled(slot);
}

int64
fini_flight_pause(int failures)
{
	return fini_backoff_us(failures, MIN_PAUSE_US, MAX_PAUSE_US);
}

void
fini_flight_keep_open_members(FiniFlight *flight)
{
	int			n = 0;

	for (int i = 0; i < flight->batch.count; i++)
	{
		if (flight->batch.members[i].state == NULL)
			flight->batch.members[n++] = flight->batch.members[i];
	}
	flight->batch.count = n;
}

/* an answer may be more than there is memory for: false, and it is kept */
static bool
read_answer(FiniSlotShared *slot, FiniFlight *flight)
{
	char		doing[FINI_TROUBLE_NAME];
	Ending		ending = {.slot = slot, .flight = flight};

	snprintf(doing, sizeof(doing), "read the answer to request %s", flight->batch.request_id);
	if (!fini_trouble_guard(slot, doing, finish_call, &ending))
		return false;
	fini_pace_request(slot, &flight->call->ticket);
	flight->unread = false;
	return true;
}

static void
finish_call(void *arg)
{
	Ending	   *ending = arg;

	MemoryContextSwitchTo(ending->flight->context);
	fini_call_finish(ending->flight->call, ending->slot);
}

/* what the answer, or its absence, means for each member; may be undone and repeated */
static void
conclude(void *arg)
{
	Ending	   *ending = arg;
	FiniSlotShared *slot = ending->slot;
	FiniFlight *flight = ending->flight;
	FiniEndpointState *endpoint = fini_flight_endpoint(flight->batch.operation);
	FiniCall   *call = flight->call;

	MemoryContextSwitchTo(flight->step);
	flight->state = FINI_FLIGHT_READY;
	if (call->verdict == FINI_VERDICT_PROCESSED)
		take_outcomes(flight);

	switch (call->verdict)
	{
		case FINI_VERDICT_PROCESSED:
			endpoint->failures = 0;
			endpoint->not_before_us = 0;
			if (endpoint->batch_limit > 0)
				endpoint->batch_limit *= 2;
			if (endpoint->batch_limit >= fini_guc_batch_size)
				endpoint->batch_limit = 0;
			fini_outbox_settle(&flight->batch, call);
			fini_flight_keep_open_members(flight);
			if (flight->batch.count > 0)
			{
				/* entries that the answer does not account for */
				strlcpy(call->code, "no_entry", sizeof(call->code));
				strlcpy(call->message, "the answer does not account for this entry", sizeof(call->message));
				fini_outbox_doubt(&flight->batch, call);
				flight->state = FINI_FLIGHT_DOUBT;
				flight->doubted = true;
				flight->answered = true;
				flight->not_before_us = 0;
			}
			break;
		case FINI_VERDICT_REJECTED:
		case FINI_VERDICT_WRONG:
			endpoint->failures = 0;
			if (flight->doubted && !flight->refused)
			{
				/* an earlier copy may still count: it is refused when a look finds nothing later either */
				flight->refused = true;
				flight->state = FINI_FLIGHT_DOUBT;
				flight->not_before_us = fini_monotonic_us() + (int64) fini_guc_request_timeout * 1000;
				fini_outbox_doubt(&flight->batch, call);
				break;
			}
			refuse(flight);
			fini_outbox_settle(&flight->batch, call);
			flight->batch.count = 0;
			break;
		case FINI_VERDICT_STOP:
			endpoint->stopped = true;
			if (flight->doubted)
			{
				/* an earlier copy may still count: it keeps its request ID */
				flight->state = FINI_FLIGHT_DOUBT;
				fini_outbox_doubt(&flight->batch, call);
			}
			else
			{
				put_back(flight, call->code, call->message);
				fini_outbox_settle(&flight->batch, call);
				flight->batch.count = 0;
			}
			break;
		case FINI_VERDICT_DOUBT:
			flight->state = FINI_FLIGHT_DOUBT;
			flight->doubted = true;
			/* only looks after FINI has said so tell whether it is there */
			if (strcmp(call->code, "411002") != 0)
				flight->taken = false;
			else if (!flight->taken)
			{
				flight->taken = true;
				flight->taken_us = fini_monotonic_us();
				flight->absences = 0;
			}
			flight->failures++;
			flight->not_before_us = flight->taken ? fini_monotonic_us() + fini_flight_pause(flight->failures) : 0;
			/* a gateway that asks for time is not asked questions either */
			if (call->retry_after_us > 0)
				flight->not_before_us = Max(flight->not_before_us, fini_monotonic_us() + Min(call->retry_after_us, MAX_PAUSE_US));
			fini_outbox_doubt(&flight->batch, call);
			fini_shared_note_error(slot, psprintf("%s in doubt, code %s: %s", fini_endpoint(call->endpoint)->name,
												  call->code, call->message));
			break;
		case FINI_VERDICT_NEW_TOKEN:
		case FINI_VERDICT_NEW_KEY:
			/* once at once; then it is not the token's or the key's fault */
			if (++flight->failures > 1)
				pause_flight(flight, endpoint);
			fini_outbox_postponed(&flight->batch, call);
			give_up_after_limit(flight);
			break;
		case FINI_VERDICT_LATER:
			/* the connection came too late for the deadline: nobody else need wait for that */
			if (call->http.outcome == FINI_HTTP_NOT_SENT && fini_deadline_left(slot, flight->batch.ipo_id) <= 0)
				break;
			flight->failures++;
			pause_flight(flight, endpoint);
			fini_outbox_postponed(&flight->batch, call);
			fini_shared_note_error(slot, psprintf("%s not to be had, code %s: %s", fini_endpoint(call->endpoint)->name,
												  call->code, call->message));
			give_up_after_limit(flight);
			break;
	}
}

/* what the operator is to know, once it is settled; may be all there is left of the flight */
static void
tell(FiniSlotShared *slot, const FiniCall *call, const FiniEndpointState *endpoint)
{
	const char *name = fini_endpoint(call->endpoint)->name;

	if (call->verdict == FINI_VERDICT_STOP)
	{
		fini_shared_endpoint_stopped(slot, call->endpoint);
		fini_shared_note_error(slot, psprintf("%s stopped, code %s: %s", name, call->code, call->message));
		ereport(LOG,
				(errcode(FINI_ERRCODE_NOT_ENTITLED),
				 errmsg("fini: stopped using %s", name),
				 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message),
				 errhint("Its operations stay queued. Mend the cause and call fini.resume().")));
	}
	else if (call->verdict == FINI_VERDICT_LATER && endpoint->failures == 1)
		ereport(LOG,
				(errcode(FINI_ERRCODE_TRANSPORT),
				 errmsg("fini: %s is not to be had now", name),
				 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message)));
}

/* give each member that the answer accounts for its outcome; the first account counts */
static void
take_outcomes(FiniFlight *flight)
{
	FiniAnswer *answer = flight->call->answer;

	for (int i = 0; i < answer->entries; i++)
	{
		FiniAnswerEntry entry;
		FiniMember *member;

		if (!fini_answer_entry(answer, i, &entry) || (member = member_of_entry(flight, &entry)) == NULL ||
			member->state != NULL)
		{
			fini_answer_entry_done(&entry);
			continue;
		}
		if (entry.rejected)
		{
			member->state = "rejected";
			member->error_code = entry.error_code[0] != '\0' ? fini_call_clean_text(flight->call, entry.error_code) : "rejected";
			member->error_message = fini_call_clean_text(flight->call, entry.error_message);
			fini_answer_entry_done(&entry);
		}
		else if (entry.record_id != NULL || flight->batch.operation != FINI_OPERATION_ADD)
		{
			/* an answer about another record is no answer */
			if (entry.record_id != NULL && member->record_id != NULL && strcmp(entry.record_id, member->record_id) != 0)
				continue;
			member->state = "accepted";
			member->new_record_id = entry.record_id != NULL ? entry.record_id : member->record_id;
		}
	}
}

/* by the number we gave, checked against the own_ref where the answer has it; or by own_ref alone */
static FiniMember *
member_of_entry(FiniFlight *flight, const FiniAnswerEntry *entry)
{
	if (entry->number >= 1 && entry->number <= flight->batch.count)
	{
		FiniMember *member = &flight->batch.members[entry->number - 1];

		if (entry->own_ref != NULL && entry->own_ref[0] != '\0' && strcmp(entry->own_ref, member->own_ref) != 0)
			return NULL;
		return member;
	}
	if (entry->number < 0 && entry->own_ref != NULL)
	{
		for (int i = 0; i < flight->batch.count; i++)
		{
			if (strcmp(entry->own_ref, flight->batch.members[i].own_ref) == 0)
				return &flight->batch.members[i];
		}
	}
	return NULL;
}

/* may be undone and repeated */
static void
set_aside(void *arg)
{
	FiniFlight *flight = arg;

	MemoryContextSwitchTo(flight->step);
	if (flight->doubted && !flight->refused)
	{
		flight->refused = true;
		flight->state = FINI_FLIGHT_DOUBT;
		flight->not_before_us = fini_monotonic_us() + (int64) fini_guc_request_timeout * 1000;
		fini_outbox_doubt(&flight->batch, flight->call);
	}
	else
	{
		refuse(flight);
		fini_outbox_settle(&flight->batch, NULL);
		flight->batch.count = 0;
	}
}

/*
 * The whole request was refused and nothing processed.  One entry alone is
 * rejected for good; several go again in smaller requests, until those that
 * are at fault are alone.
 */
static void
refuse(FiniFlight *flight)
{
	FiniCall   *call = flight->call;
	FiniEndpointState *endpoint = fini_flight_endpoint(flight->batch.operation);

	endpoint->batch_limit = Max(1, flight->batch.count / 2);
	if (flight->batch.count > 1)
		put_back(flight, call->code, call->message);
	else
	{
		flight->batch.members[0].state = "rejected";
		flight->batch.members[0].error_code = call->code;
		flight->batch.members[0].error_message = call->message;
	}
}

static void
put_back(FiniFlight *flight, const char *code, const char *message)
{
	for (int i = 0; i < flight->batch.count; i++)
	{
		FiniMember *member = &flight->batch.members[i];

		member->state = "queued";
		member->requeue_as = flight->batch.operation;
		member->error_code = code;
		member->error_message = message;
	}
}

static void
pause_flight(FiniFlight *flight, FiniEndpointState *endpoint)
{
	int64		pause;

	endpoint->failures++;
	pause = Max(fini_flight_pause(endpoint->failures), flight->call->retry_after_us);
	endpoint->not_before_us = Max(endpoint->not_before_us, fini_monotonic_us() + pause);
	flight->not_before_us = endpoint->not_before_us;
}

/* what was never processed, however often it was sent, is the operator's */
static void
give_up_after_limit(FiniFlight *flight)
{
	if (flight->failures < fini_guc_max_attempts)
		return;
	if (flight->doubted)
	{
		/* an earlier copy may still count: looks decide, see fini_flight_looked */
		flight->state = FINI_FLIGHT_DOUBT;
		fini_outbox_doubt(&flight->batch, flight->call);
		return;
	}
	for (int i = 0; i < flight->batch.count; i++)
	{
		flight->batch.members[i].state = "failed";
		flight->batch.members[i].error_code = flight->call->code;
		flight->batch.members[i].error_message = flight->call->message;
	}
	fini_outbox_settle(&flight->batch, flight->call);
	flight->batch.count = 0;
}
