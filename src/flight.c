/*
 * flight.c
 *		Flights from claim to sending.
 *
 * Token first, then the throttle's ticket, then the claim: what has been
 * claimed does not wait, and a batch holds all that had come by the time it
 * left.  Claiming is in flight_claim.c, what becomes of a request in
 * flight_end.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "deadline.h"
#include "entry.h"
#include "error.h"
#include "flight.h"
#include "settings.h"
#include "throttle.h"
#include "token.h"
#include "trouble.h"

static List *flights = NIL;
static FiniEndpointState endpoint_states[FINI_OPERATION_INVALIDATE + 1];
static bool work = true;		/* the queue may hold something claimable */
static int64 next_due_us = 0;	/* when something deferred becomes due; 0: nothing */
static int64 throttle_until_us = 0;
static int64 sends = 0;

typedef struct Recovery
{
	MemoryContext context;
	List	   *batches;
} Recovery;

static void recover(void *arg);
static void read_permission(void *arg);
static void write_late(void *arg);
static bool claim(FiniSlotShared *slot, FiniAccess *access, FiniTicket *ticket);
static void send_flight(FiniSlotShared *slot, FiniFlight *flight, FiniAccess *access, FiniTicket *ticket);
static FiniBuffer *build_payload(FiniFlight *flight);

bool
fini_flight_recover(FiniSlotShared *slot)
{
	char		doing[FINI_TROUBLE_NAME] = "take over what a former worker left";
	Recovery	recovery = {0};
	ListCell   *cell;

	recovery.context = AllocSetContextCreate(TopMemoryContext, "fini recovered", ALLOCSET_DEFAULT_SIZES);
	if (!fini_trouble_guard(slot, doing, recover, &recovery))
	{
		MemoryContextDelete(recovery.context);
		return false;
	}

	foreach(cell, recovery.batches)
	{
		FiniBatch  *batch = lfirst(cell);
		MemoryContext context = AllocSetContextCreate(TopMemoryContext, "fini flight", ALLOCSET_DEFAULT_SIZES);
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		FiniFlight *flight = MemoryContextAllocZero(context, sizeof(FiniFlight));

		flight->context = context;
		flight->batch = *batch; /* members stay in the context of all that was recovered */
		flight->state = FINI_FLIGHT_DOUBT;
		flight->doubted = true;
		flights = lappend(flights, flight);
		MemoryContextSwitchTo(old);
	}
	if (recovery.batches != NIL)
		ereport(LOG,
				(errmsg("fini: %d requests of a former worker are in doubt and will be found out", list_length(recovery.batches))));
	return true;
}

bool
fini_flight_may_send(FiniSlotShared *slot)
{
	char		doing[FINI_TROUBLE_NAME] = "see whether requests may be sent";
	FiniPermission permission = {0};

	return fini_trouble_guard(slot, doing, read_permission, &permission) && permission.armed && !permission.paused;
}

void
fini_flight_write_late(FiniSlotShared *slot)
{
	char		doing[FINI_TROUBLE_NAME] = "write late outcomes to their tables";

	(void) fini_trouble_guard(slot, doing, write_late, NULL);
}

void
fini_flight_settle_late(FiniSlotShared *slot)
{
	List	   *unsettled = NIL;
	ListCell   *cell;

	foreach(cell, flights)
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->state == FINI_FLIGHT_UNSETTLED)
			unsettled = lappend(unsettled, flight);
	}
	foreach(cell, unsettled)
		fini_flight_conclude(slot, lfirst(cell));
	list_free(unsettled);
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
			FiniEndpointState *endpoint = &endpoint_states[flight->batch.operation];

			under_way += flight->state == FINI_FLIGHT_SENT || flight->state == FINI_FLIGHT_UNSETTLED;
			if (ready == NULL && flight->state == FINI_FLIGHT_READY && !endpoint->stopped &&
				now >= flight->not_before_us && now >= endpoint->not_before_us)
				ready = flight;
		}
		if (under_way >= fini_guc_max_in_flight || (ready == NULL && !work))
			break;

		/* a look at an empty queue is no use of the token, which lapses when nobody calls */
		if (ready == NULL && flights == NIL && fini_flight_queue_is_empty(slot, &next_due_us))
		{
			work = false;
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

void
fini_flight_work_arrived(void)
{
	work = true;
}

void
fini_flight_resume_endpoints(void)
{
	ListCell   *cell;

	memset(endpoint_states, 0, sizeof(endpoint_states));
	foreach(cell, flights)
	{
		FiniFlight *flight = lfirst(cell);

		/* what is in doubt waits for its own reasons */
		if (flight->state == FINI_FLIGHT_READY)
			flight->not_before_us = 0;
	}
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

		if (flight->state == FINI_FLIGHT_SENT || flight->state == FINI_FLIGHT_UNSETTLED)
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

bool
fini_flight_backlog(void)
{
	return work || throttle_until_us != 0;
}

bool
fini_flight_throttled(void)
{
	return throttle_until_us > fini_monotonic_us();
}

int64
fini_flight_sends(void)
{
	return sends;
}

List *
fini_flight_list(void)
{
	return flights;
}

FiniFlight *
fini_flight_of(const FiniHttpRequest *http)
{
	ListCell   *cell;

	foreach(cell, flights)
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->state == FINI_FLIGHT_SENT && http == &flight->call->http)
			return flight;
	}
	return NULL;
}

FiniEndpointState *
fini_flight_endpoint(FiniOperation operation)
{
	return &endpoint_states[operation];
}

void
fini_flight_end(FiniFlight *flight)
{
	if (flight->call != NULL)
		fini_call_free(flight->call);
	flights = list_delete_ptr(flights, flight);
	MemoryContextDelete(flight->context);
}

void
fini_flight_settled(FiniSlotShared *slot)
{
	work = true;
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->settled_serial++;
	LWLockRelease(fini_shared_slot_lock(slot));
	ConditionVariableBroadcast(&slot->changed);
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
}

static void
recover(void *arg)
{
	Recovery   *recovery = arg;

	fini_outbox_adopt_timeline();
	recovery->batches = fini_outbox_recover(recovery->context);
}

static void
read_permission(void *arg)
{
	*(FiniPermission *) arg = fini_outbox_may_send();
}

static void
write_late(void *arg)
{
	fini_outbox_write_late();
}

/* claim something, and send it; false: nothing to be had */
static bool
claim(FiniSlotShared *slot, FiniAccess *access, FiniTicket *ticket)
{
	FiniFlight *flight;
	MemoryContext old;

	if (!fini_flight_claim(slot, &flight, &next_due_us))
	{
		work = false;
		return false;
	}
	/* rows that were refused locally, or put back as something else, are work done as well */
	if (flight == NULL)
	{
		fini_throttle_cancel(ticket);
		fini_flight_settled(slot);
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

static void
send_flight(FiniSlotShared *slot, FiniFlight *flight, FiniAccess *access, FiniTicket *ticket)
{
	MemoryContext old;
	ErrorData  *volatile error = NULL;
	int64		left = fini_deadline_left(slot, flight->batch.ipo_id);

	if (left <= 0)
	{
		fini_throttle_cancel(ticket);
		fini_deadline_stop(slot, flight);
		return;
	}
	old = MemoryContextSwitchTo(flight->context);
	if (flight->call == NULL)
	{
		flight->call = fini_call_create(fini_outbox_endpoint(flight->batch.operation), NULL);
		strlcpy(flight->call->request_id, flight->batch.request_id, sizeof(flight->call->request_id));
		flight->call->entries = flight->batch.count;
		MemoryContextSwitchTo(flight->call->context);
		flight->call->payload = build_payload(flight);
		MemoryContextSwitchTo(flight->context);
	}
	flight->call->send_until_us = left == PG_INT64_MAX ? 0 : fini_monotonic_us() + left;
	flight->call->ticket = *ticket;
	ticket->company = -1;
	PG_TRY();
	{
		fini_call_send(flight->call, access);
		sends++;
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
		fini_flight_set_aside(slot, flight, error->message);
	MemoryContextSwitchTo(old);
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
			fini_buffer_append(payload, member->row.entry, member->row.entry_len);
		}
		fini_buffer_append(payload, "}", 1);
	}
	fini_buffer_append(payload, "]}", 2);
	return payload;
}
