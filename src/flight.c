/*
 * flight.c
 *		From claim to settle.
 *
 * A request is always in one of three conditions: certainly not processed
 * (then it goes again under the same request ID, after a pause), processed
 * (then each entry has an outcome), or in doubt (then find.c looks for it, and
 * what is absent goes again under the same request ID, so that a first copy
 * still on its way and the second cannot both count).
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "entry.h"
#include "error.h"
#include "flight.h"
#include "settings.h"
#include "throttle.h"
#include "token.h"

#define MIN_PAUSE_US		INT64CONST(200000)
#define MAX_PAUSE_US		INT64CONST(30000000)
#define ABSENCES_FOR_NEW_ID	2

/* what is known of an endpoint, from one request to the next */
typedef struct EndpointState
{
	bool		stopped;		/* refused for good; until fini.resume */
	int			failures;		/* in a row */
	int64		not_before_us;
	int			batch_limit;	/* halved when a whole batch is refused; 0: fini.batch_size */
} EndpointState;

static List *flights = NIL;
static EndpointState endpoint_states[FINI_OPERATION_INVALIDATE + 1];
static bool work = true;		/* the queue may hold something claimable */
static int64 next_due_us = 0;	/* when something deferred becomes due; 0: nothing */
static int64 throttle_until_us = 0;

static bool queue_is_empty(void);
static bool claim(FiniSlotShared *slot, FiniAccess *access, FiniTicket *ticket);
static bool claim_group(FiniFlight *flight, const FiniGroup *group);
static void send_flight(FiniSlotShared *slot, FiniFlight *flight, FiniAccess *access, FiniTicket *ticket);
static void set_aside(FiniSlotShared *slot, FiniFlight *flight, const char *message);
static FiniBuffer *build_payload(FiniFlight *flight);
static void take_outcomes(FiniFlight *flight);
static FiniMember *member_of_entry(FiniFlight *flight, const FiniAnswerEntry *entry);
static JsonbContainer *entry_sent(FiniFlight *flight, int index);
static void refuse_batch(FiniFlight *flight);
static void put_back(FiniFlight *flight, const char *code, const char *message);
static void pause_flight(FiniFlight *flight, EndpointState *endpoint);
static void give_up_after_limit(FiniFlight *flight);
static bool is_lost(const FiniFlight *flight);
static void give_up_lost(FiniFlight *flight);
static int64 pause_after(int failures);
static bool must_look_again(FiniFlight *flight);
static void keep_open_members(FiniFlight *flight);
static void end_flight(FiniFlight *flight);
static void settled(FiniSlotShared *slot);

void
fini_flight_recover(void)
{
	MemoryContext context;
	List	   *batches;
	ListCell   *cell;

	context = AllocSetContextCreate(TopMemoryContext, "fini recovered", ALLOCSET_DEFAULT_SIZES);
	fini_flight_begin();
	fini_outbox_adopt_timeline();
	batches = fini_outbox_recover(context);
	fini_flight_commit();

	foreach(cell, batches)
	{
		FiniBatch  *batch = lfirst(cell);
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		FiniFlight *flight;

		context = AllocSetContextCreate(TopMemoryContext, "fini flight", ALLOCSET_DEFAULT_SIZES);
		flight = MemoryContextAllocZero(context, sizeof(FiniFlight));
		flight->context = context;
		flight->batch = *batch; /* members stay in the context of all that was recovered */
		flight->state = FINI_FLIGHT_DOUBT;
		flight->doubted = true;
		flights = lappend(flights, flight);
		MemoryContextSwitchTo(old);
	}
	if (batches != NIL)
		ereport(LOG,
				(errmsg("fini: %d requests of a former worker are in doubt and will be found out", list_length(batches))));
}

bool
fini_flight_may_send(void)
{
	FiniPermission permission;

	fini_flight_begin();
	permission = fini_outbox_may_send();
	fini_flight_commit();
	return permission.armed && !permission.paused;
}

void
fini_flight_write_late(void)
{
	fini_flight_begin();
	fini_outbox_write_late();
	fini_flight_commit();
}

void
fini_flight_dispatch(FiniSlotShared *slot)
{
	FiniAccess *access;
	int64		now = fini_monotonic_us();
	MemoryContext context;
	MemoryContext old;

	if (next_due_us != 0 && now >= next_due_us)
		work = true;
	throttle_until_us = 0;

	context = AllocSetContextCreate(CurrentMemoryContext, "fini dispatch", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	access = fini_secret_alloc(sizeof(FiniAccess));

	for (;;)
	{
		FiniFlight *ready = NULL;
		FiniTicket	ticket;
		int			under_way = 0;
		ListCell   *cell;
		int64		wait;

		now = fini_monotonic_us();
		foreach(cell, flights)
		{
			FiniFlight *flight = lfirst(cell);
			EndpointState *endpoint = &endpoint_states[flight->batch.operation];

			under_way += flight->state != FINI_FLIGHT_DOUBT;
			if (ready == NULL && flight->state == FINI_FLIGHT_READY && !endpoint->stopped &&
				now >= flight->not_before_us && now >= endpoint->not_before_us)
				ready = flight;
		}
		if (ready == NULL && (!work || under_way >= fini_guc_max_in_flight ||
							  list_length(flights) >= 2 * fini_guc_max_in_flight))
			break;

		/* a look at an empty queue is no use of the token, which lapses when nobody calls */
		if (ready == NULL && flights == NIL && queue_is_empty())
		{
			work = false;
			next_due_us = 0;
			break;
		}

		/* token first, then the ticket, then the claim: nothing claimed has to wait */
		if (!fini_token_peek(slot, access, true))
			break;
		wait = fini_throttle_take(FINI_THROTTLE_BULK, &ticket);
		if (wait > 0)
		{
			throttle_until_us = now + wait;
			break;
		}
		if (ready != NULL)
			send_flight(slot, ready, access, &ticket);
		else if (!claim(slot, access, &ticket))
		{
			fini_throttle_cancel(&ticket);
			break;
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

bool
fini_flight_completed(FiniSlotShared *slot, FiniHttpRequest *http)
{
	FiniFlight *flight = NULL;
	EndpointState *endpoint;
	FiniCall   *call;
	ListCell   *cell;
	MemoryContext old;

	foreach(cell, flights)
	{
		FiniFlight *candidate = lfirst(cell);

		if (candidate->state == FINI_FLIGHT_SENT && http == &candidate->call->http)
			flight = candidate;
	}
	if (flight == NULL)
		return false;

	call = flight->call;
	endpoint = &endpoint_states[flight->batch.operation];
	old = MemoryContextSwitchTo(flight->context);

	/* opening the answer may have to look up an encoding conversion */
	fini_flight_begin();
	MemoryContextSwitchTo(flight->context);
	fini_call_finish(call, slot);
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
			keep_open_members(flight);
			if (flight->batch.count > 0)
			{
				/* entries that the answer does not account for */
				strlcpy(call->code, "no_entry", sizeof(call->code));
				strlcpy(call->message, "the answer does not account for this entry", sizeof(call->message));
				fini_outbox_doubt(&flight->batch, call);
				flight->state = FINI_FLIGHT_DOUBT;
				flight->answered = true;
				flight->not_before_us = 0;
			}
			break;
		case FINI_VERDICT_REJECTED:
		case FINI_VERDICT_WRONG:
			endpoint->failures = 0;
			endpoint->batch_limit = Max(1, flight->batch.count / 2);
			refuse_batch(flight);
			fini_outbox_settle(&flight->batch, call);
			flight->batch.count = 0;
			work = true;
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
			fini_shared_note_error(slot, psprintf("%s stopped, code %s: %s", fini_endpoint(call->endpoint)->name,
												  call->code, call->message));
			ereport(LOG,
					(errcode(FINI_ERRCODE_NOT_ENTITLED),
					 errmsg("fini: stopped using %s", fini_endpoint(call->endpoint)->name),
					 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message),
					 errhint("Its operations stay queued. Mend the cause and call fini.resume().")));
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
			flight->not_before_us = flight->taken ? fini_monotonic_us() + pause_after(flight->failures) : 0;
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
			flight->failures++;
			pause_flight(flight, endpoint);
			fini_outbox_postponed(&flight->batch, call);
			if (endpoint->failures == 1)
				ereport(LOG,
						(errcode(FINI_ERRCODE_TRANSPORT),
						 errmsg("fini: %s is not to be had now", fini_endpoint(call->endpoint)->name),
						 errdetail("HTTP status %d, code %s: %s", call->http_status, call->code, call->message)));
			fini_shared_note_error(slot, psprintf("%s not to be had, code %s: %s", fini_endpoint(call->endpoint)->name,
												  call->code, call->message));
			give_up_after_limit(flight);
			break;
	}
	fini_flight_commit();
	MemoryContextSwitchTo(old);
	if (flight->batch.count == 0)
		end_flight(flight);
	settled(slot);
	return true;
}

void
fini_flight_work_arrived(void)
{
	work = true;
}

void
fini_flight_resume_endpoints(void)
{
	memset(endpoint_states, 0, sizeof(endpoint_states));
	work = true;
}

long
fini_flight_timeout(void)
{
	int64		now = fini_monotonic_us();
	int64		due = next_due_us;
	ListCell   *cell;

	if (throttle_until_us != 0)
		due = due == 0 ? throttle_until_us : Min(due, throttle_until_us);
	foreach(cell, flights)
	{
		FiniFlight *flight = lfirst(cell);
		int64		when;

		if (flight->state == FINI_FLIGHT_SENT)
			continue;
		when = Max(flight->not_before_us, endpoint_states[flight->batch.operation].not_before_us);
		/* one that only waits for a token or a look is woken by that */
		if (when > now)
			due = due == 0 ? when : Min(due, when);
	}
	for (size_t i = 0; i < lengthof(endpoint_states); i++)
	{
		if (endpoint_states[i].not_before_us > now)
			due = due == 0 ? endpoint_states[i].not_before_us : Min(due, endpoint_states[i].not_before_us);
	}
	return due == 0 ? -1 : (long) (Max(due - now, 0) / 1000 + 1);
}

int
fini_flight_count(void)
{
	return list_length(flights);
}

int
fini_flight_sent(void)
{
	ListCell   *cell;
	int			n = 0;

	foreach(cell, flights)
		n += ((FiniFlight *) lfirst(cell))->state == FINI_FLIGHT_SENT;
	return n;
}

List *
fini_flight_list(void)
{
	return flights;
}

void
fini_flight_looked(FiniSlotShared *slot, FiniFlight *flight)
{
	MemoryContext old = MemoryContextSwitchTo(flight->context);
	char		request_id[FINI_REQUEST_ID_LEN + 1];
	bool		again = false;

	fini_flight_begin();
	fini_outbox_settle(&flight->batch, NULL);
	keep_open_members(flight);
	if (flight->batch.count > 0)
	{
		/* absent: what is sent now is what the rows say now */
		if (flight->rows == NULL)
			flight->rows = AllocSetContextCreate(flight->context, "fini flight rows", ALLOCSET_DEFAULT_SIZES);
		MemoryContextReset(flight->rows);
		fini_outbox_read_rows(&flight->batch, flight->rows);
		again = must_look_again(flight);
		fini_outbox_settle(&flight->batch, NULL);
		keep_open_members(flight);
	}
	if (flight->batch.count > 0 && !again)
	{
		strlcpy(request_id, flight->batch.request_id, sizeof(request_id));
		flight->absences++;
		if (is_lost(flight))
		{
			if (flight->answered || flight->renewed)
				give_up_lost(flight);
			else
			{
				/* it cannot count any more, and did not: under a new ID, once */
				fini_envelope_request_id(request_id);
				flight->renewed = true;
				flight->taken = false;
				flight->absences = 0;
			}
		}
	}
	if (flight->batch.count > 0 && !again)
	{
		fini_outbox_resend(&flight->batch, request_id);
		strlcpy(flight->batch.request_id, request_id, sizeof(request_id));
	}
	fini_flight_commit();
	MemoryContextSwitchTo(old);

	if (flight->call != NULL)
		fini_call_free(flight->call);
	flight->call = NULL;
	flight->looked_for = false;
	flight->state = again ? FINI_FLIGHT_DOUBT : FINI_FLIGHT_READY;
	/* a gateway that leaves every request in doubt is not asked in a tight loop */
	flight->not_before_us = again ? fini_monotonic_us() + (int64) fini_guc_request_timeout * 1000 :
		flight->failures > 1 ? fini_monotonic_us() + pause_after(flight->failures) : 0;
	if (flight->batch.count == 0)
		end_flight(flight);
	settled(slot);
}

void
fini_flight_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	/* what is sent has to be in the log first, even where synchronous_commit is off */
	ForceSyncCommit();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
fini_flight_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(true);
}

static bool
queue_is_empty(void)
{
	MemoryContext old = CurrentMemoryContext;
	bool		empty;

	fini_flight_begin();
	empty = fini_outbox_groups(old) == NIL;
	fini_flight_commit();
	MemoryContextSwitchTo(old);
	return empty;
}

/* claim from the first group that gives something, and send it; false: nothing to be had */
static bool
claim(FiniSlotShared *slot, FiniAccess *access, FiniTicket *ticket)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "fini flight", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;
	FiniFlight *flight = MemoryContextAllocZero(context, sizeof(FiniFlight));
	FiniPermission permission;
	bool		claimed = false;
	int64		now = fini_monotonic_us();

	flight->context = context;
	flight->state = FINI_FLIGHT_READY;

	fini_flight_begin();
	permission = fini_outbox_may_send();
	if (permission.armed && !permission.paused)
	{
		List	   *groups = fini_outbox_groups(context);
		ListCell   *cell;

		foreach(cell, groups)
		{
			FiniGroup  *group = lfirst(cell);
			EndpointState *endpoint = &endpoint_states[group->operation];

			if (!endpoint->stopped && now >= endpoint->not_before_us)
				claimed = claim_group(flight, group);
			if (claimed)
				break;
		}
	}
	for (int i = 0; i < flight->batch.count && flight->state == FINI_FLIGHT_READY; i++)
	{
		if (flight->batch.members[i].id <= permission.doubt_below)
		{
			flight->state = FINI_FLIGHT_DOUBT;
			fini_outbox_doubt(&flight->batch, NULL);
		}
	}
	if (!claimed)
	{
		int64		due = fini_outbox_next_due();

		next_due_us = due < 0 ? 0 : now + due;
		work = false;
	}
	fini_flight_commit();
	MemoryContextSwitchTo(old);

	/* rows that were refused locally, or put back as something else, are work done as well */
	if (!claimed)
	{
		MemoryContextDelete(context);
		return false;
	}
	if (flight->batch.count == 0)
	{
		MemoryContextDelete(context);
		fini_throttle_cancel(ticket);
		settled(slot);
		return true;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	flights = lappend(flights, flight);
	MemoryContextSwitchTo(old);
	if (flight->state == FINI_FLIGHT_DOUBT)
		fini_throttle_cancel(ticket);
	else
		send_flight(slot, flight, access, ticket);
	return true;
}

/* true when anything was taken out of the queue */
static bool
claim_group(FiniFlight *flight, const FiniGroup *group)
{
	EndpointState *endpoint = &endpoint_states[group->operation];
	int			limit = endpoint->batch_limit > 0 ? endpoint->batch_limit : fini_guc_batch_size;

	flight->batch.ipo_id = group->ipo_id;
	flight->batch.operation = group->operation;
	flight->batch.count = 0;
	fini_outbox_claim(&flight->batch, limit, flight->context);
	return flight->batch.members != NULL;
}

static void
send_flight(FiniSlotShared *slot, FiniFlight *flight, FiniAccess *access, FiniTicket *ticket)
{
	MemoryContext old = MemoryContextSwitchTo(flight->context);
	ErrorData  *volatile error = NULL;

	if (flight->call == NULL)
	{
		flight->call = fini_call_create(fini_outbox_endpoint(flight->batch.operation), NULL);
		strlcpy(flight->call->request_id, flight->batch.request_id, sizeof(flight->call->request_id));
		flight->call->entries = flight->batch.count;
		MemoryContextSwitchTo(flight->call->context);
		flight->call->payload = build_payload(flight);
		MemoryContextSwitchTo(flight->context);
	}
	flight->call->ticket = *ticket;
	ticket->company = -1;
	PG_TRY();
	{
		fini_call_send(flight->call, access);
		flight->state = FINI_FLIGHT_SENT;
		flight->looked_in_vain = false;
	}
	PG_CATCH();
	{
		/* an interrupt, memory, a defect: not the payload's fault */
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		MemoryContextSwitchTo(flight->context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	if (error != NULL)
		set_aside(slot, flight, error->message);
	MemoryContextSwitchTo(old);
}

/*
 * The payload cannot be sealed.  The texts of such errors are our own and quote
 * no values.  As when FINI refuses a whole request, smaller ones follow until
 * the entry at fault is alone.
 */
static void
set_aside(FiniSlotShared *slot, FiniFlight *flight, const char *message)
{
	EndpointState *endpoint = &endpoint_states[flight->batch.operation];

	strlcpy(flight->call->code, "unsealable", sizeof(flight->call->code));
	strlcpy(flight->call->message, message, sizeof(flight->call->message));
	endpoint->batch_limit = Max(1, flight->batch.count / 2);
	fini_flight_begin();
	MemoryContextSwitchTo(flight->context);
	refuse_batch(flight);
	fini_outbox_settle(&flight->batch, NULL);
	fini_flight_commit();
	end_flight(flight);
	settled(slot);
}

/* {"data":[{"requestID":"1",…},…]}, entries numbered in the order of the members */
static FiniBuffer *
build_payload(FiniFlight *flight)
{
	FiniBuffer *payload = fini_buffer_create(64 + (Size) flight->batch.count * 512);

	fini_buffer_append(payload, "{\"data\":[", 9);
	for (int i = 0; i < flight->batch.count; i++)
	{
		FiniMember *member = &flight->batch.members[i];
		char		number[32];
		int			len = snprintf(number, sizeof(number), "%s{\"requestID\":\"%d\"", i > 0 ? "," : "", i + 1);

		fini_buffer_append(payload, number, len);
		if (flight->batch.operation != FINI_OPERATION_ADD)
			fini_entry_append(payload, "recordID", member->record_id);
		if (flight->batch.operation != FINI_OPERATION_INVALIDATE)
		{
			fini_buffer_append(payload, ",", 1);
			fini_buffer_append(payload, member->row.entry->data, member->row.entry->len);
		}
		fini_buffer_append(payload, "}", 1);
	}
	fini_buffer_append(payload, "]}", 2);
	return payload;
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
			continue;
		if (entry.rejected)
		{
			member->state = "rejected";
			member->error_code = entry.error_code[0] != '\0' ? entry.error_code : "rejected";
			member->error_message = fini_answer_clean_text(entry.error_message,
														   entry_sent(flight, (int) (member - flight->batch.members)));
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

/* what was sent for a member, to blank its personal values from FINI's texts */
static JsonbContainer *
entry_sent(FiniFlight *flight, int index)
{
	FiniRow    *row = &flight->batch.members[index].row;
	StringInfoData text;
	Jsonb	   *json;

	if (row->entry == NULL)
		return NULL;
	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	appendBinaryStringInfo(&text, row->entry->data, (int) row->entry->len);
	appendStringInfoChar(&text, '}');
	json = fini_answer_to_jsonb(text.data, text.len);
	return json != NULL ? &json->root : NULL;
}

/*
 * The whole request was refused and nothing processed.  One entry alone is
 * rejected for good; several go again in smaller requests, until those that
 * are at fault are alone.
 */
static void
refuse_batch(FiniFlight *flight)
{
	FiniCall   *call = flight->call;

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
pause_flight(FiniFlight *flight, EndpointState *endpoint)
{
	int64		pause;

	endpoint->failures++;
	pause = Max(pause_after(endpoint->failures), flight->call->retry_after_us);
	endpoint->not_before_us = Max(endpoint->not_before_us, fini_monotonic_us() + pause);
	flight->not_before_us = endpoint->not_before_us;
}

/* what was never processed, however often it was sent, is the operator's */
static void
give_up_after_limit(FiniFlight *flight)
{
	if (flight->failures < fini_guc_max_attempts)
		return;
	for (int i = 0; i < flight->batch.count; i++)
	{
		flight->batch.members[i].state = "failed";
		flight->batch.members[i].error_code = flight->call->code;
		flight->batch.members[i].error_message = flight->call->message;
	}
	fini_outbox_settle(&flight->batch, flight->call);
	flight->batch.count = 0;
}

/*
 * FINI says that it has taken this request, but shows no trace of it, however
 * often we look, and for longer than a request can take.
 */
static bool
is_lost(const FiniFlight *flight)
{
	return flight->taken && flight->absences >= ABSENCES_FOR_NEW_ID &&
		fini_monotonic_us() - flight->taken_us >= (int64) fini_guc_request_timeout * 1000;
}

/* sending it once more could make a second application of one that we only fail to see */
static void
give_up_lost(FiniFlight *flight)
{
	for (int i = 0; i < flight->batch.count; i++)
	{
		flight->batch.members[i].state = "failed";
		flight->batch.members[i].error_code = "not_found";
		flight->batch.members[i].error_message = "FINI has taken the request but shows no record of it; look there before it is retried";
	}
	fini_outbox_settle(&flight->batch, NULL);
	flight->batch.count = 0;
}

/* doubling, with jitter so that workers of several databases spread */
static int64
pause_after(int failures)
{
	int64		pause = Min(MIN_PAUSE_US << Min(failures - 1, 10), MAX_PAUSE_US);

	return (int64) (pause * (0.75 + 0.5 * pg_prng_double(&pg_global_prng_state)));
}

/*
 * What a look did not find is not given up, and not put back to go under
 * another request ID, before a second look, as long after the first as a
 * request can take: nothing takes the request ID from a copy that may still
 * be on its way.  A table that cannot be read now may be readable by then.
 */
static bool
must_look_again(FiniFlight *flight)
{
	bool		again = false;

	if (flight->looked_in_vain)
		return false;
	for (int i = 0; i < flight->batch.count; i++)
	{
		FiniMember *member = &flight->batch.members[i];

		if (member->state == NULL)
			continue;
		member->state = NULL;
		member->error_code = NULL;
		member->error_message = NULL;
		again = true;
	}
	flight->looked_in_vain = again;
	return again;
}

/* members that have ended leave the batch */
static void
keep_open_members(FiniFlight *flight)
{
	int			n = 0;

	for (int i = 0; i < flight->batch.count; i++)
	{
		if (flight->batch.members[i].state == NULL)
			flight->batch.members[n++] = flight->batch.members[i];
	}
	flight->batch.count = n;
}

static void
end_flight(FiniFlight *flight)
{
	if (flight->call != NULL)
		fini_call_free(flight->call);
	flights = list_delete_ptr(flights, flight);
	MemoryContextDelete(flight->context);
}

/* what waited for this may go now; and whoever waits in fini.wait looks again */
static void
settled(FiniSlotShared *slot)
{
	work = true;
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->settled_serial++;
	LWLockRelease(fini_shared_slot_lock(slot));
	ConditionVariableBroadcast(&slot->changed);
}
