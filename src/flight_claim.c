/*
 * flight_claim.c
 *		Which operations make the next request.
 *
 * The first group (IPO and operation) that may be sent and gives something.
 * A group that already has as many requests on their way, in doubt or waiting
 * to be sent again as may be under way at once gets no further ones: it must
 * not take the others' places.  Nor does one whose claim the database refused
 * hold up the others.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "deadline.h"
#include "flight.h"
#include "pace.h"
#include "settings.h"
#include "trouble.h"

#define CLAIM	"claim operations"	/* of no group yet */

typedef struct Claim
{
	FiniSlotShared *slot;
	FiniFlight *flight;
	char		doing[FINI_TROUBLE_NAME];
	bool		claimed;		/* anything was taken out of the queue */
	int64		next_due_us;	/* when it is worth another try; PG_INT64_MAX: when something comes */
} Claim;

/* what a look at the queue has shown */
typedef struct QueueLook
{
	MemoryContext context;
	bool		empty;
	int64		due;			/* if so: microseconds until something deferred is due, -1: nothing is */
} QueueLook;

static void look_at_queue(void *arg);
static void claim(void *arg);
static bool may_claim(Claim *what, const FiniGroup *group, int64 doubt_below, int64 now);
static int	flights_of(const FiniGroup *group);
static bool claim_group(FiniFlight *flight, const FiniGroup *group);
static int	batch_limit(FiniOperation operation);

bool
fini_flight_queue_is_empty(FiniSlotShared *slot, int64 *next_due_us)
{
	char		doing[FINI_TROUBLE_NAME] = "look at the queue";
	QueueLook	look = {.context = CurrentMemoryContext, .due = -1};

	/* as good as empty, until it is looked at again */
	if (!fini_trouble_guard(slot, doing, look_at_queue, &look))
	{
		*next_due_us = fini_trouble_retry_us();
		return true;
	}
	if (look.empty)
		*next_due_us = look.due < 0 ? 0 : fini_monotonic_us() + look.due;
	return look.empty;
}

bool
fini_flight_claim(FiniSlotShared *slot, FiniFlight **dst, int64 *next_due_us)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "fini flight", ALLOCSET_DEFAULT_SIZES);
	FiniFlight *flight = MemoryContextAllocZero(context, sizeof(FiniFlight));
	Claim		what = {.slot = slot, .flight = flight, .doing = CLAIM, .next_due_us = PG_INT64_MAX};
	bool		done;

	flight->context = context;
	flight->state = FINI_FLIGHT_READY;
	*dst = NULL;
	done = fini_trouble_guard(slot, what.doing, claim, &what);

	/* a batch that is full says that there is more; one that is not says nothing */
	if (!done || !what.claimed)
		fini_pace_backlog(slot, false);
	else if (flight->batch.count >= batch_limit(flight->batch.operation))
		fini_pace_backlog(slot, true);

	/* a group that was refused waits, the others need not */
	if (!done)
		what.next_due_us = strcmp(what.doing, CLAIM) == 0 ? fini_trouble_retry_us() : fini_monotonic_us();
	if (!done || !what.claimed)
		*next_due_us = what.next_due_us == PG_INT64_MAX ? 0 : what.next_due_us;
	if (done && flight->batch.count > 0)
		*dst = flight;
	else
		MemoryContextDelete(context);
	return done && what.claimed;
}

static void
look_at_queue(void *arg)
{
	QueueLook  *look = arg;

	look->empty = fini_outbox_groups(look->context) == NIL;
	if (look->empty)
		look->due = fini_outbox_next_due();
}

static void
claim(void *arg)
{
	Claim	   *what = arg;
	FiniFlight *flight = what->flight;
	FiniPermission permission = fini_outbox_may_send();
	int64		now = fini_monotonic_us();

	if (permission.armed && !permission.paused)
	{
		ListCell   *cell;

		foreach(cell, fini_outbox_groups(flight->context))
		{
			FiniGroup  *group = lfirst(cell);
			char		doing[FINI_TROUBLE_NAME];

			if (!may_claim(what, group, permission.doubt_below, now))
				continue;
			snprintf(doing, sizeof(doing), "claim %s operations of IPO \"%s\"", fini_outbox_operation_name(group->operation), group->ipo_id);
			fini_trouble_clip(doing);
			if (fini_trouble_waits(doing))
			{
				what->next_due_us = Min(what->next_due_us, fini_trouble_retry_us());
				continue;
			}
			fini_trouble_rename(what->doing, doing);
			what->claimed = claim_group(flight, group);
			if (what->claimed)
				break;
		}
	}
	for (int i = 0; i < flight->batch.count && flight->state == FINI_FLIGHT_READY; i++)
	{
		if (flight->batch.members[i].id <= permission.doubt_below)
		{
			flight->state = FINI_FLIGHT_DOUBT;
			flight->doubted = true;
			fini_outbox_doubt(&flight->batch, NULL);
		}
	}
	if (!what->claimed)
	{
		int64		due = fini_outbox_next_due();

		if (due >= 0)
			what->next_due_us = Min(what->next_due_us, now + due);
	}
}

static bool
may_claim(Claim *what, const FiniGroup *group, int64 doubt_below, int64 now)
{
	FiniEndpointState *endpoint = fini_flight_endpoint(group->operation);

	if (endpoint->stopped || !fini_deadline_allows(what->slot, group, doubt_below) ||
		flights_of(group) >= fini_guc_max_in_flight)
		return false;
	if (now >= endpoint->not_before_us)
		return true;
	what->next_due_us = Min(what->next_due_us, endpoint->not_before_us);
	return false;
}

static int
flights_of(const FiniGroup *group)
{
	ListCell   *cell;
	int			n = 0;

	foreach(cell, fini_flight_list())
	{
		const FiniBatch *batch = &((FiniFlight *) lfirst(cell))->batch;

		n += batch->operation == group->operation && strcmp(batch->ipo_id, group->ipo_id) == 0;
	}
	return n;
}

/* true when anything was taken out of the queue */
static bool
claim_group(FiniFlight *flight, const FiniGroup *group)
{
	flight->batch.ipo_id = group->ipo_id;
	flight->batch.operation = group->operation;
	flight->batch.count = 0;
	fini_outbox_claim(&flight->batch, batch_limit(group->operation), flight->context);
	return flight->batch.taken > 0;
}

static int
batch_limit(FiniOperation operation)
{
	int			limit = fini_flight_endpoint(operation)->batch_limit;

	return limit > 0 ? limit : fini_guc_batch_size;
}
