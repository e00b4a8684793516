/*
 * tidy.c
 *		Old rows of fini.tally become one, and what has been cancelled leaves the
 *		queue's lists.
 *
 * Neither needs an armed cluster, a token or a place under the throttle.  A
 * claim takes off the lists what it comes by; this is for where none does.
 */
#include "postgres.h"

#include "compat.h"
#include "outbox.h"
#include "tidy.h"
#include "trouble.h"

#define FOLD_US			INT64CONST(60000000)

/* between two slices: so long, or so many times what the last one took */
#define TIDY_US			INT64CONST(100000)
#define TIDY_PARTS		20

static int64 fold_due_us = 0;
static int64 tidy_due_us = 0;
static bool tidying = false;	/* there is more to be gone through */

static void fold_tally(void *arg);
static void tidy_lists(void *arg);

long
fini_tidy_service(FiniSlotShared *slot)
{
	int64		begin = fini_monotonic_us();

	if (begin >= fold_due_us)
	{
		char		doing[FINI_TROUBLE_NAME] = "add up fini.tally";

		(void) fini_trouble_guard(slot, doing, fold_tally, NULL);
		fold_due_us = fini_monotonic_us() + FOLD_US;
		begin = fini_monotonic_us();
	}
	if (begin >= tidy_due_us)
	{
		char		doing[FINI_TROUBLE_NAME] = "take what was cancelled out of the queue";

		tidying = false;
		(void) fini_trouble_guard(slot, doing, tidy_lists, &tidying);
		tidy_due_us = fini_monotonic_us() + Max(TIDY_US, (fini_monotonic_us() - begin) * TIDY_PARTS);
	}
	return tidying ? (long) (Max(tidy_due_us - fini_monotonic_us(), 0) / 1000 + 1) : -1;
}

static void
fold_tally(void *arg)
{
	fini_outbox_fold_tally();
}

static void
tidy_lists(void *arg)
{
	bool	   *more = arg;

	*more = fini_outbox_tidy();
}
