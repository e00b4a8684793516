/*
 * flight_looked.c
 *		What becomes of a request that was in doubt and has been looked for.
 *
 * What is absent goes again under the same request ID, so that a first copy
 * still on its way and the second cannot both count.  What has once been in
 * doubt keeps its request ID until nothing of it can count any more.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compare.h"
#include "compat.h"
#include "deadline.h"
#include "flight.h"
#include "settings.h"
#include "trouble.h"

#define ABSENCES_FOR_NEW_ID	2

typedef struct Look
{
	FiniSlotShared *slot;
	FiniFlight *flight;
	bool		again;			/* once more, later */
} Look;

static void judge(void *arg);
static bool is_lost(const FiniFlight *flight);
static void give_up_lost(FiniFlight *flight);
static bool judge_late(FiniFlight *flight);
static bool must_look_again(FiniFlight *flight);

void
fini_flight_looked(FiniSlotShared *slot, FiniFlight *flight)
{
	Look		look = {.slot = slot, .flight = flight};

	if (!fini_flight_guard(slot, flight, "settle what was found of request", judge, &look))
	{
		fini_flight_look_again(flight);
		flight->not_before_us = fini_trouble_retry_us();
		return;
	}

	if (flight->call != NULL)
		fini_call_free(flight->call);
	flight->call = NULL;
	flight->state = look.again ? FINI_FLIGHT_DOUBT : FINI_FLIGHT_READY;
	/* a gateway that leaves every request in doubt is not asked in a tight loop */
	flight->not_before_us = look.again ? fini_monotonic_us() + (int64) fini_guc_request_timeout * 1000 :
		flight->failures > 1 ? fini_monotonic_us() + fini_flight_pause(flight->failures) : 0;
	if (flight->batch.count == 0)
		fini_flight_end(flight);
	fini_flight_settled(slot);
}

void
fini_flight_look_again(FiniFlight *flight)
{
	for (int i = 0; i < flight->batch.count; i++)
	{
		/* what the rows said may have been thrown away by now */
		flight->batch.members[i].state = NULL;
		memset(&flight->batch.members[i].row, 0, sizeof(FiniRow));
	}
}

bool
fini_flight_is_record_of(const FiniMember *member, FiniOperation operation, const FiniValue *record, const char *record_id)
{
	char	   *status = fini_value_member_text(record, "subFlowStatus");

	switch (operation)
	{
		case FINI_OPERATION_ADD:
			return (status == NULL || strcmp(status, fini_guc_invalidated_status) != 0) &&
				!fini_outbox_knows_record(member->own_ref, record_id, member->id);
		case FINI_OPERATION_CHANGE:
			return member->record_id != NULL && strcmp(member->record_id, record_id) == 0 && member->row.entry != NULL &&
				fini_compare_entry(member->row.entry, member->row.entry_len, record, true) == NIL;
		case FINI_OPERATION_INVALIDATE:
			return member->record_id != NULL && strcmp(member->record_id, record_id) == 0 &&
				status != NULL && strcmp(status, fini_guc_invalidated_status) == 0;
	}
	return false;
}

/*
 * What had been read before goes: a look can be repeated as often as the
 * database refuses its end.  No member may keep what lies there, as those of a
 * table that cannot be read now stay as they are.
 */
void
fini_flight_read_rows(FiniFlight *flight)
{
	for (int i = 0; i < flight->batch.count; i++)
		memset(&flight->batch.members[i].row, 0, sizeof(FiniRow));
	if (flight->rows == NULL)
		flight->rows = AllocSetContextCreate(flight->context, "fini flight rows", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(flight->rows);
	fini_outbox_read_rows(&flight->batch, flight->rows);
}

/* what a look has found has its outcome, what it has not is sent again, or given up */
static void
judge(void *arg)
{
	Look	   *look = arg;
	FiniSlotShared *slot = look->slot;
	FiniFlight *flight = look->flight;
	char		request_id[FINI_REQUEST_ID_LEN + 1];
	bool		again = false;

	MemoryContextSwitchTo(flight->step);
	fini_outbox_settle(&flight->batch, NULL);
	fini_flight_keep_open_members(flight);
	if (flight->batch.count > 0)
	{
		/* absent: what is sent now is what the rows say now */
		fini_flight_read_rows(flight);
		if (fini_deadline_left(slot, flight->batch.ipo_id) <= 0)
			again = judge_late(flight);
		again = must_look_again(flight) || again;
		fini_outbox_settle(&flight->batch, NULL);
		fini_outbox_missed(&flight->batch);
		fini_flight_keep_open_members(flight);
	}
	if (flight->batch.count > 0 && !again && flight->failures >= fini_guc_max_attempts)
	{
		/* a gateway that answers nothing but doubt; a last copy may still be on its way */
		again = !flight->looked_in_vain;
		flight->looked_in_vain = true;
		if (!again)
			give_up_lost(flight);
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
	look->again = again;
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
		flight->batch.members[i].error_message = "FINI may have taken the request but shows no record of it; look there before it is retried";
	}
	fini_outbox_settle(&flight->batch, NULL);
	flight->batch.count = 0;
}

/*
 * Absent, and too late to be sent again: failed, after a second look.  But what
 * FINI says it has taken is looked for as long as without a deadline (true:
 * once more), and must not be called absent when it shows no trace even then.
 */
static bool
judge_late(FiniFlight *flight)
{
	if (flight->taken)
	{
		flight->absences++;
		if (!is_lost(flight))
			return true;
		give_up_lost(flight);
	}
	fini_outbox_late(&flight->batch);
	return false;
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
