/*
 * outbox_groups.c
 *		What the queue holds: groups of operations, by IPO and kind, and where the
 *		first one of each is.
 *
 * The worker looks before each claim.  What it has taken out of the queue stays
 * in the index until nobody can see it any more and it is cleaned away; while
 * somebody holds an old snapshot, that is never, and a look from the beginning
 * has to pass all that has ever been claimed.  So the low end of each group is
 * remembered, and looks begin there.
 *
 * That is no more than a guess: the order of ids is not the order of commits,
 * and what is put back comes with its old id.  So from time to time a look
 * begins at the beginning, the more often the less it costs: as a rule always,
 * and never for more than a fiftieth of the time.  An operation below the
 * remembered end is found that much later, and nothing is concluded from not
 * seeing it: whether another of its own_ref comes first is asked elsewhere.
 *
 * The same goes for what a claim has to pass over because somebody holds it
 * locked, or it is not due.  A few are looked at each time.  When they are many,
 * the end moves past them, and they are looked at again for no more than a fifth
 * of the time.
 *
 * All of this is the worker's, and goes with its process.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_store.h"

/* a look from the beginning is due when it would take at most this part of the time */
#define PARTS			50

/* the same for what has been passed over */
#define PARTS_PASSED	5

/* IPOs that are remembered; with more, all are forgotten */
#define MAX_IPOS		256

#define KINDS			(FINI_OPERATION_INVALIDATE + 1)

typedef struct LowEnd
{
	int64		below;			/* what is up to here was taken, or was not there */
	int64		looked_us;		/* when a look last began at the beginning; 0: never */
	int64		cost_us;		/* of that */
} LowEnd;

typedef struct KnownIpo
{
	char	   *ipo_id;
	LowEnd		ends[KINDS];
} KnownIpo;

static List *known = NIL;		/* of KnownIpo, in the order of the index */
static MemoryContext known_context = NULL;
static int64 look_again_us = 0; /* when a look from the beginning becomes due that has been left out; 0: none */

static FiniStatement deadlines_statement = {
	.sql = "SELECT ipo_id, deadline FROM fini.deadline",
	.keep_plan = true
};

static FiniStatement next_due_statement = {
	.sql = "SELECT (extract(epoch FROM not_before - clock_timestamp()) * 1000000)::bigint FROM fini.queue"
	" WHERE not_before > clock_timestamp() ORDER BY not_before LIMIT 1"
};

static void discover(FiniStore *store, TupleTableSlot *slot);
static bool first_of(FiniStore *store, TupleTableSlot *slot, KnownIpo *ipo, FiniOperation operation, int64 *first_id);
static void set_deadlines(List *groups);
static int	compare_groups(const ListCell *a, const ListCell *b);
static LowEnd *low_end(const char *ipo_id, FiniOperation operation);

List *
fini_outbox_groups(MemoryContext into)
{
	FiniStore  *store = fini_store_open();
	TupleTableSlot *slot = fini_store_slot(&store->queue);
	List	   *groups = NIL;
	ListCell   *cell;
	MemoryContext old;

	look_again_us = 0;
	discover(store, slot);
	foreach(cell, known)
	{
		KnownIpo   *ipo = lfirst(cell);

		for (int operation = 0; operation < KINDS; operation++)
		{
			FiniGroup  *group;
			int64		first_id;

			if (!first_of(store, slot, ipo, operation, &first_id))
				continue;
			old = MemoryContextSwitchTo(into);
			group = palloc0(sizeof(FiniGroup));
			group->ipo_id = pstrdup(ipo->ipo_id);
			group->operation = operation;
			group->first_id = first_id;
			groups = lappend(groups, group);
			MemoryContextSwitchTo(old);
		}
	}
	fini_store_close(store);
	if (groups != NIL)
	{
		set_deadlines(groups);
		list_sort(groups, compare_groups);
	}
	return groups;
}

int64
fini_outbox_low_end(const char *ipo_id, FiniOperation operation)
{
	LowEnd	   *end = low_end(ipo_id, operation);

	return end != NULL ? end->below : PG_INT64_MIN;
}

void
fini_outbox_raise_low_end(const char *ipo_id, FiniOperation operation, int64 below)
{
	LowEnd	   *end = low_end(ipo_id, operation);

	if (end != NULL)
		end->below = Max(end->below, below);
}

void
fini_outbox_passed_over(const char *ipo_id, FiniOperation operation, int64 below, int64 cost_us)
{
	LowEnd	   *end = low_end(ipo_id, operation);

	if (end == NULL)
		return;
	end->below = Max(end->below, below);
	end->looked_us = fini_monotonic_us();
	end->cost_us = cost_us * PARTS_PASSED / PARTS;
}

int64
fini_outbox_next_due(void)
{
	int64		due = -1;

	(void) fini_outbox_execute(&next_due_statement, NULL, NULL, 1);
	if (SPI_processed > 0)
	{
		bool		isnull;

		due = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	if (look_again_us != 0)
	{
		int64		until = look_again_us - fini_monotonic_us();

		due = due < 0 ? until : Min(due, until);
		due = Max(due, 0);
	}
	return due < 0 ? -1 : Max(1000, due);
}

/* IPOs of the queue that are not known yet: they lie between those that are */
static void
discover(FiniStore *store, TupleTableSlot *slot)
{
	const char *after = NULL;
	int			position = 0;

	if (list_length(known) >= MAX_IPOS)
	{
		MemoryContextReset(known_context);
		known = NIL;
	}
	if (known_context == NULL)
		known_context = AllocSetContextCreate(TopMemoryContext, "fini groups", ALLOCSET_SMALL_SIZES);
	while (position <= list_length(known))
	{
		KnownIpo   *next = position < list_length(known) ? list_nth(known, position) : NULL;

		fini_store_begin_ipos(store, after, next != NULL ? next->ipo_id : NULL);
		if (fini_store_next_in_queue(store, slot))
		{
			MemoryContext old = MemoryContextSwitchTo(known_context);

			next = palloc0(sizeof(KnownIpo));
			next->ipo_id = fini_store_text(slot, FINI_QUEUE_IPO_ID, known_context);
			for (int operation = 0; operation < KINDS; operation++)
				next->ends[operation].below = PG_INT64_MIN;
			known = list_insert_nth(known, position, next);
			MemoryContextSwitchTo(old);
		}
		if (next != NULL)
			after = next->ipo_id;
		position++;
	}
}

/* the first operation of a group, as far as a look is due; false: none */
static bool
first_of(FiniStore *store, TupleTableSlot *slot, KnownIpo *ipo, FiniOperation operation, int64 *first_id)
{
	LowEnd	   *end = &ipo->ends[operation];
	int64		begin = fini_monotonic_us();
	int64		due = end->looked_us == 0 ? begin : end->looked_us + end->cost_us * PARTS;
	bool		from_beginning = begin >= due;
	bool		found;
	bool		isnull;

	fini_store_begin_queue(store, ipo->ipo_id, fini_outbox_operation_name(operation), from_beginning ? PG_INT64_MIN : end->below);
	found = fini_store_next_in_queue(store, slot);
	if (found)
		*first_id = DatumGetInt64(fini_store_column(slot, FINI_QUEUE_ID, &isnull));
	if (from_beginning)
	{
		end->looked_us = fini_monotonic_us();
		end->cost_us = end->looked_us - begin;
		end->below = found ? *first_id - 1 : end->below;
	}
	else if (!found)
		look_again_us = look_again_us == 0 ? due : Min(look_again_us, due);
	return found;
}

static void
set_deadlines(List *groups)
{
	(void) fini_outbox_execute(&deadlines_statement, NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *ipo_id = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		ListCell   *cell;

		foreach(cell, groups)
		{
			FiniGroup  *group = lfirst(cell);
			bool		isnull;

			if (strcmp(group->ipo_id, ipo_id) == 0)
				group->deadline = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
		}
		pfree(ipo_id);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* the earliest deadline first, those without one last, then the oldest */
static int
compare_groups(const ListCell *a, const ListCell *b)
{
	const FiniGroup *one = lfirst(a);
	const FiniGroup *other = lfirst(b);

	if (one->deadline != other->deadline)
	{
		if (one->deadline == 0 || other->deadline == 0)
			return one->deadline == 0 ? 1 : -1;
		return one->deadline < other->deadline ? -1 : 1;
	}
	return one->first_id < other->first_id ? -1 : one->first_id > other->first_id;
}

static LowEnd *
low_end(const char *ipo_id, FiniOperation operation)
{
	ListCell   *cell;

	foreach(cell, known)
	{
		KnownIpo   *ipo = lfirst(cell);

		if (strcmp(ipo->ipo_id, ipo_id) == 0)
			return &ipo->ends[operation];
	}
	return NULL;
}
