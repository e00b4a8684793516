/*
 * find_look.c
 *		One look for what is in doubt of an IPO.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "find_look.h"
#include "flight.h"
#include "tail.h"
#include "textmap.h"
#include "trouble.h"

/* members that are looked for, by their own_ref */
typedef struct Sought
{
	const char *own_ref;
	FiniFlight *flight;
	FiniMember *member;
	bool		decided;		/* found, or its record says otherwise */
} Sought;

static void seek_all(void *arg);
static void seek(FiniLook *look, FiniFlight *flight);
static void not_begun(const char *ipo_id, int64 not_before_us);
static void read_tail(void *arg);
static void take_record(FiniLook *look, const FiniValue *record);

FiniLook *
fini_look_begin(FiniSlotShared *slot, const char *ipo_id, int failures, int64 not_before_us)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "fini look", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	char		doing[FINI_TROUBLE_NAME];
	FiniLook   *look = palloc0(sizeof(FiniLook));

	look->context = context;
	look->ipo_id = pstrdup(ipo_id);
	look->failures = failures;
	look->not_before_us = not_before_us;
	look->sought = fini_textmap_create("own_refs in doubt", 1024, sizeof(Sought), context);

	snprintf(doing, sizeof(doing), "begin to look for what is in doubt of IPO \"%s\"", ipo_id);
	fini_trouble_clip(doing);
	if (fini_trouble_guard(slot, doing, seek_all, look))
	{
		strlcpy(doing, "read where the records of an IPO end", sizeof(doing));
		(void) fini_trouble_guard(slot, doing, read_tail, look);
		look->phase = FINI_LOOK_RECORDS;
		if (look->records == 0)
			fini_look_next_phase(look);
	}
	else
	{
		not_begun(ipo_id, Max(not_before_us, fini_trouble_retry_us()));
		fini_look_free(look);
		look = NULL;
	}
	MemoryContextSwitchTo(old);
	return look;
}

void
fini_look_next_phase(FiniLook *look)
{
	memset(&look->pages, 0, sizeof(look->pages));
	if (look->phase == FINI_LOOK_RECORDS && look->tail != NULL && look->open_adds > 0)
	{
		look->phase = FINI_LOOK_NEWEST;
		strlcpy(look->pages.cursor, look->tail, sizeof(look->pages.cursor));
	}
	else
		look->phase = FINI_LOOK_ALL;
}

bool
fini_look_take_page(FiniLook *look, FiniAnswer *answer)
{
	char		cursor[FINI_MAX_CURSOR + 1];
	FiniPageTurn turn;
	bool		ended;

	for (int i = 0; i < answer->entries; i++)
	{
		const FiniValue *record;

		if (fini_answer_object(answer, i, &record))
			take_record(look, record);
	}

	strlcpy(cursor, look->pages.cursor, sizeof(cursor));
	turn = fini_query_turn(&look->pages, answer);
	if (turn == FINI_PAGES_STUCK && look->open > 0)
	{
		/* only pages that lead nowhere from the beginning leave nothing else to try */
		if (look->phase != FINI_LOOK_ALL)
			return true;
		if (look->failures++ == 0)
			ereport(LOG,
					(errmsg("fini: could not look for what is in doubt of IPO \"%s\"", look->ipo_id),
					 errdetail("The pages of subscriptions/query do not end.")));
		return false;
	}
	look->failures = 0;
	ended = look->open == 0 || turn == FINI_PAGES_END;
	/* of a look that ended early only if it tells more than what is known */
	if (ended && look->phase != FINI_LOOK_RECORDS &&
		(turn == FINI_PAGES_END || look->phase == FINI_LOOK_NEWEST || look->tail == NULL))
		look->ends_at = cursor[0] != '\0' ? MemoryContextStrdup(look->context, cursor) : NULL;

	/* the next IDs */
	if (look->phase == FINI_LOOK_RECORDS && turn == FINI_PAGES_END)
	{
		memset(&look->pages, 0, sizeof(look->pages));
		look->first_record += FINI_QUERY_PAGE;
		ended = look->open == 0 || look->first_record >= look->records;
	}
	return ended;
}

void
fini_look_free(FiniLook *look)
{
	MemoryContextDelete(look->context);
}

static void
seek_all(void *arg)
{
	FiniLook   *look = arg;
	int64		now = fini_monotonic_us();
	ListCell   *cell;

	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->state == FINI_FLIGHT_DOUBT && now >= flight->not_before_us && strcmp(flight->batch.ipo_id, look->ipo_id) == 0)
			seek(look, flight);
	}
}

/* in a transaction */
static void
seek(FiniLook *look, FiniFlight *flight)
{
	FiniBatch  *batch = &flight->batch;

	flight->looked_for = true;
	/* what a change in doubt should say is what its row says */
	if (batch->operation == FINI_OPERATION_CHANGE && batch->count > 0 && batch->members[0].row.entry == NULL)
	{
		fini_flight_read_rows(flight);
		/* a row that cannot be read now is judged after the look */
		for (int i = 0; i < batch->count; i++)
			batch->members[i].state = NULL;
	}
	MemoryContextSwitchTo(look->context);
	if (batch->operation != FINI_OPERATION_ADD)
	{
		if (look->record_ids == NULL)
			look->record_ids = palloc(sizeof(char *) * Max(1, batch->count));
		else
			look->record_ids = repalloc_huge(look->record_ids, sizeof(char *) * (look->records + Max(1, batch->count)));
	}
	for (int i = 0; i < batch->count; i++)
	{
		/* two operations of one own_ref are never under way at once */
		Sought	   *sought = fini_textmap_enter(look->sought, batch->members[i].own_ref, NULL);

		sought->flight = flight;
		sought->member = &batch->members[i];
		sought->decided = false;
		look->open++;
		look->open_adds += batch->operation == FINI_OPERATION_ADD;
		if (batch->operation != FINI_OPERATION_ADD && batch->members[i].record_id != NULL)
			look->record_ids[look->records++] = pstrdup(batch->members[i].record_id);
	}
}

/* what could not be looked for waits, as does what had not been come to */
static void
not_begun(const char *ipo_id, int64 not_before_us)
{
	ListCell   *cell;

	foreach(cell, fini_flight_list())
	{
		FiniFlight *flight = lfirst(cell);

		if (flight->state != FINI_FLIGHT_DOUBT || strcmp(flight->batch.ipo_id, ipo_id) != 0)
			continue;
		if (flight->looked_for)
			fini_flight_look_again(flight);
		flight->looked_for = false;
		flight->not_before_us = Max(flight->not_before_us, not_before_us);
	}
}

static void
read_tail(void *arg)
{
	FiniLook   *look = arg;

	look->tail = fini_tail_of(look->ipo_id, look->context);
}

static void
take_record(FiniLook *look, const FiniValue *record)
{
	char	   *own_ref = fini_value_member_text(record, "ownRef");
	char	   *record_id = fini_value_member_text(record, "recordID");
	Sought	   *sought;
	FiniMember *member;
	bool		adding;

	if (own_ref == NULL || record_id == NULL || strlen(record_id) > FINI_MAX_RECORD_ID)
		return;
	sought = fini_textmap_find(look->sought, own_ref);
	if (sought == NULL || sought->decided)
		return;
	member = sought->member;
	adding = sought->flight->batch.operation == FINI_OPERATION_ADD;
	if (fini_flight_is_record_of(member, sought->flight->batch.operation, record, record_id))
	{
		member->state = "accepted";
		member->new_record_id = MemoryContextStrdup(sought->flight->context, record_id);
	}
	else if (adding || member->record_id == NULL || strcmp(member->record_id, record_id) != 0)
		return;					/* another record of that own_ref */
	sought->decided = true;
	look->open--;
	look->open_adds -= adding;
}
