/*
 * deadline.c
 *		Deadlines of IPOs, in the worker.
 *
 * A request is held back at three places: no operation of an IPO whose deadline
 * has passed is claimed, by what fini.deadline says in that very transaction; a
 * request that has waited for token, throttle or connection is looked at again
 * before it is sealed; and libcurl asks once more when it is connected and
 * about to send the first byte.
 *
 * What is still queued then is failed a thousand at a time, between requests of
 * other IPOs, so that neither a transaction nor the worker's loop becomes long.
 * That is done on an armed cluster only: elsewhere the outbox may be older than
 * FINI, and what it calls queued may stand there.  For the same reason
 * operations of another timeline are claimed after the deadline as well: not to
 * be sent, but to be looked for, as everything in doubt is.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "deadline.h"
#include "error.h"
#include "pace.h"
#include "settings.h"
#include "trouble.h"

#define LOOK_AHEAD_US	INT64CONST(2000000)
#define LOOK_AHEAD_COST 50		/* at most one part in so many of the time */
#define RETRY_US		INT64CONST(2000000) /* what somebody else has locked */

/* the estimate has to come back by so much before the warning is taken back */
#define MIN_SLACK_US	INT64CONST(1000000)
#define SLACK_PARTS		20		/* of the time left */

static MemoryContext deadlines_context = NULL;
static List *deadlines = NIL;

/* monotonic */
static int64 fail_due_us = 0;
static int64 look_ahead_due_us = 0;

/* how far the group whose operations are being failed has been gone through */
static char failing_ipo[256];
static FiniOperation failing_operation;
static int64 failing_after;

/* deadlines as they are read */
typedef struct Deadlines
{
	FiniSlotShared *slot;
	MemoryContext context;
	List	   *list;
} Deadlines;

/* what is queued after its deadline */
typedef struct Late
{
	FiniSlotShared *slot;
	MemoryContext context;
	int			failed;
} Late;

static void stop_flight(void *arg);
static void stop_flights(FiniSlotShared *slot);
static int	fail_late(FiniSlotShared *slot);
static void fail_some(void *arg);
static int	fail_group(const FiniGroup *group, int64 doubt_below);
static void look_ahead(FiniSlotShared *slot);
static void judge_outlooks(void *arg);
static void judge_outlook(FiniSlotShared *slot, const FiniDeadline *deadline);
static int64 time_left(FiniSlotShared *slot, TimestampTz deadline);
static void read_deadlines(void *arg);

bool
fini_deadline_look(FiniSlotShared *slot)
{
	char		doing[FINI_TROUBLE_NAME] = "read the deadlines of IPOs";
	Deadlines	now = {.slot = slot};

	fini_pace_publish(slot);
	now.context = AllocSetContextCreate(TopMemoryContext, "fini deadlines", ALLOCSET_SMALL_SIZES);
	if (!fini_trouble_guard(slot, doing, read_deadlines, &now))
	{
		/* those that are known go on being kept */
		MemoryContextDelete(now.context);
		return false;
	}
	if (deadlines_context != NULL)
		MemoryContextDelete(deadlines_context);
	deadlines_context = now.context;
	deadlines = now.list;
	fail_due_us = 0;
	return true;
}

long
fini_deadline_service(FiniSlotShared *slot)
{
	int64		now = fini_monotonic_us();
	int64		due = PG_INT64_MAX;
	bool		passed = false;
	bool		open = false;
	ListCell   *cell;

	foreach(cell, deadlines)
	{
		FiniDeadline *deadline = lfirst(cell);
		int64		left = time_left(slot, deadline->deadline);

		if (left <= 0)
			passed = true;
		else
			due = Min(due, now + left);
		open |= deadline->open;
	}
	if (passed)
	{
		stop_flights(slot);
		if (now >= fail_due_us)
			fail_due_us = fail_late(slot) > 0 ? now : now + RETRY_US;
		due = Min(due, fail_due_us);
	}
	if (open)
	{
		if (now >= look_ahead_due_us)
		{
			look_ahead(slot);
			now = fini_monotonic_us();
		}
		due = Min(due, look_ahead_due_us);
	}
	return due == PG_INT64_MAX ? -1 : (long) (Min(Max(due - now, 0), INT64CONST(60000000)) / 1000 + (due > now ? 1 : 0));
}

int64
fini_deadline_left(FiniSlotShared *slot, const char *ipo_id)
{
	ListCell   *cell;

	foreach(cell, deadlines)
	{
		FiniDeadline *deadline = lfirst(cell);

		if (strcmp(deadline->ipo_id, ipo_id) == 0)
			return time_left(slot, deadline->deadline);
	}
	return PG_INT64_MAX;
}

bool
fini_deadline_allows(FiniSlotShared *slot, const FiniGroup *group, int64 doubt_below)
{
	/* in doubt by its age: claiming it is how it comes to be looked for */
	if (group->first_id <= doubt_below)
		return true;
	return group->deadline == 0 || time_left(slot, group->deadline) > 0;
}

void
fini_deadline_stop(FiniSlotShared *slot, FiniFlight *flight)
{
	MemoryContext old = MemoryContextSwitchTo(flight->context);

	if (flight->doubted && flight->call == NULL)
		flight->call = fini_call_create(fini_outbox_endpoint(flight->batch.operation), NULL);
	MemoryContextSwitchTo(old);
	if (!fini_flight_guard(slot, flight, "end what is too late of request", stop_flight, flight))
	{
		flight->not_before_us = Max(flight->not_before_us, fini_trouble_retry_us());
		/* should the deadline move, what is sent has a payload and the ID that it had */
		if (flight->call != NULL && flight->call->payload == NULL)
		{
			fini_call_free(flight->call);
			flight->call = NULL;
		}
		return;
	}
	if (flight->batch.count == 0)
		fini_flight_end(flight);
	fini_flight_settled(slot);
}

/* may be undone and repeated */
static void
stop_flight(void *arg)
{
	FiniFlight *flight = arg;

	MemoryContextSwitchTo(flight->step);
	if (flight->doubted)
	{
		strlcpy(flight->call->code, "deadline", sizeof(flight->call->code));
		strlcpy(flight->call->message, "the IPO's deadline passed while it was in doubt", sizeof(flight->call->message));
		fini_outbox_doubt(&flight->batch, flight->call);
		flight->state = FINI_FLIGHT_DOUBT;
		flight->not_before_us = 0;
	}
	else
	{
		fini_outbox_late(&flight->batch);
		fini_outbox_settle(&flight->batch, NULL);
		fini_outbox_missed(&flight->batch);
		flight->batch.count = 0;
	}
}

/* those that wait for their turn to be sent, or sent again */
static void
stop_flights(FiniSlotShared *slot)
{
	List	   *late = NIL;
	ListCell   *cell;

	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->state == FINI_FLIGHT_READY && fini_deadline_left(slot, flight->batch.ipo_id) <= 0)
			late = lappend(late, flight);
	}
	foreach(cell, late)
		fini_deadline_stop(slot, lfirst(cell));
	list_free(late);
}

/* a batch of what is queued after its deadline; how many */
static int
fail_late(FiniSlotShared *slot)
{
	char		doing[FINI_TROUBLE_NAME] = "fail what is queued after its deadline";
	Late		late = {.slot = slot};

	late.context = AllocSetContextCreate(CurrentMemoryContext, "fini late operations", ALLOCSET_DEFAULT_SIZES);
	if (!fini_trouble_guard(slot, doing, fail_some, &late))
	{
		failing_ipo[0] = '\0';
		late.failed = 0;
	}
	MemoryContextDelete(late.context);
	if (late.failed > 0)
		fini_flight_settled(slot);
	return late.failed;
}

static void
fail_some(void *arg)
{
	Late	   *late = arg;
	FiniPermission permission;
	ListCell   *cell;

	MemoryContextSwitchTo(late->context);
	if (!fini_outbox_may_send().armed)
		return;
	/* what is in doubt since a promotion must be known before anything is judged */
	fini_outbox_adopt_timeline();
	permission = fini_outbox_may_send();
	foreach(cell, fini_outbox_groups(late->context))
	{
		FiniGroup  *group = lfirst(cell);

		if (group->deadline != 0 && time_left(late->slot, group->deadline) <= 0)
			late->failed = fail_group(group, permission.doubt_below);
		if (late->failed > 0)
			break;
	}
}

/* goes on where it left off, past what has just been deleted; from the beginning again once it is through */
static int
fail_group(const FiniGroup *group, int64 doubt_below)
{
	int			failed;

	if (group->operation != failing_operation || strcmp(group->ipo_id, failing_ipo) != 0)
	{
		strlcpy(failing_ipo, group->ipo_id, sizeof(failing_ipo));
		failing_operation = group->operation;
		failing_after = 0;
	}
	failing_after = Max(failing_after, doubt_below);
	failed = fini_outbox_fail_late(group, &failing_after);
	if (failed == 0)
		failing_ipo[0] = '\0';
	return failed;
}

/* what fini.progress says of deadlines to come */
static void
look_ahead(FiniSlotShared *slot)
{
	int64		begin = fini_monotonic_us();
	char		doing[FINI_TROUBLE_NAME] = "look ahead to the deadlines of IPOs";
	Deadlines	outlook = {.slot = slot};

	fini_pace_publish(slot);
	outlook.context = AllocSetContextCreate(CurrentMemoryContext, "fini outlook", ALLOCSET_DEFAULT_SIZES);
	(void) fini_trouble_guard(slot, doing, judge_outlooks, &outlook);
	MemoryContextDelete(outlook.context);
	look_ahead_due_us = fini_monotonic_us() + Max(LOOK_AHEAD_US, (fini_monotonic_us() - begin) * LOOK_AHEAD_COST);
}

static void
judge_outlooks(void *arg)
{
	Deadlines  *outlook = arg;
	ListCell   *cell;

	foreach(cell, fini_outbox_outlook(outlook->context))
		judge_outlook(outlook->slot, lfirst(cell));
}

static void
judge_outlook(FiniSlotShared *slot, const FiniDeadline *deadline)
{
	TimestampTz last = deadline->deadline - (int64) fini_guc_deadline_margin * 1000;
	int64		left = time_left(slot, deadline->deadline);
	int64		slack = Max(MIN_SLACK_US, left / SLACK_PARTS);

	if (left <= 0)
	{
		/* what is in doubt, or locked by somebody, is still to come */
		if (deadline->operations > 0 || !fini_outbox_deadline_event(deadline, "deadline_passed", deadline->missed > 0, true))
			return;
		ereport(LOG,
				(errmsg("fini: the deadline of IPO %s has passed, " INT64_FORMAT " operations were not sent",
						deadline->ipo_id, deadline->missed)));
		fini_shared_wake(slot);
	}
	else if (!deadline->warned && deadline->finish > last)
	{
		if (fini_outbox_deadline_event(deadline, "deadline_at_risk", true, false))
			ereport(WARNING,
					(errcode(FINI_ERRCODE_DEADLINE),
					 errmsg("fini: not all operations of IPO %s are expected to be sent before its deadline: estimated finish %s, deadline %s",
							deadline->ipo_id, pstrdup(timestamptz_to_str(deadline->finish)),
							pstrdup(timestamptz_to_str(deadline->deadline)))));
	}
	else if (deadline->warned && deadline->finish + slack <= last)
	{
		if (fini_outbox_deadline_event(deadline, "deadline_on_time", false, false))
			ereport(LOG,
					(errmsg("fini: all operations of IPO %s are expected to be sent before its deadline again",
							deadline->ipo_id)));
	}
}

static int64
time_left(FiniSlotShared *slot, TimestampTz deadline)
{
	return deadline - (int64) fini_guc_deadline_margin * 1000 - fini_pace_gateway_now(slot);
}

static void
read_deadlines(void *arg)
{
	Deadlines  *now = arg;

	now->list = fini_outbox_deadlines(now->context);
}
