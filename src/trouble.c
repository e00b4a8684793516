/*
 * trouble.c
 *		Work that the database refuses.
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "backoff.h"
#include "flight.h"
#include "http.h"
#include "trouble.h"

#define MIN_PAUSE_US	INT64CONST(250000)
#define MAX_PAUSE_US	INT64CONST(30000000)
#define TELL_AGAIN_US	INT64CONST(600000000)
#define LOCKED_OUT_TIMEOUT	"200ms"	/* for a lock that has been waited for in vain */

typedef struct Trouble
{
	char		work[FINI_TROUBLE_NAME];
	int			failures;		/* in a row */
	int			sqlstate;		/* of the last one */
	int64		not_before_us;
} Trouble;

static List *troubles = NIL;
static int	told_sqlstate = 0;	/* of the last line in the log; 0: none since everything went well */
static int64 told_us = 0;
static int64 retry_us = 0;		/* of what was refused or found waiting last */

static Trouble *find(const char *work);
static bool is_locked_out(const char *work);
static void set_lock_timeout(const char *timeout);
static void note(FiniSlotShared *slot, const char *work, const ErrorData *error);
static void forget(int64 now);
static bool may_be_quoted(int sqlstate);
static void over(const char *work);

bool
fini_trouble_guard(FiniSlotShared *slot, char *work, void (*body) (void *arg), void *arg)
{
	bool		locked_out = is_locked_out(work);
	char		called[FINI_TROUBLE_NAME];
	ErrorData  *error;

	if (fini_trouble_waits(work))
		return false;
	strlcpy(called, work, sizeof(called));
	if (locked_out)
		set_lock_timeout(LOCKED_OUT_TIMEOUT);
	error = fini_trouble_try(body, arg);
	if (locked_out)
		set_lock_timeout(FINI_TROUBLE_LOCK_TIMEOUT);
	if (error != NULL)
	{
		note(slot, work, error);
		FreeErrorData(error);
		return false;
	}
	if (troubles != NIL)
	{
		over(work);
		over(called);
	}
	return true;
}

void
fini_trouble_rename(char *work, const char *name)
{
	strlcpy(work, name, FINI_TROUBLE_NAME);
	/* until the end of the transaction */
	if (is_locked_out(work))
		(void) set_config_option("lock_timeout", LOCKED_OUT_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_LOCAL, true, 0, false);
}

ErrorData *
fini_trouble_try(void (*body) (void *arg), void *arg)
{
	MemoryContext old = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		fini_flight_begin();
		body(arg);
		fini_flight_commit();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	/* an error of this would not be a refusal: the transaction has been committed */
	if (error == NULL)
		pgstat_report_stat(true);
	return error;
}

void
fini_trouble_clip(char *work)
{
	work[pg_mbcliplen(work, (int) strlen(work), FINI_TROUBLE_NAME - 1)] = '\0';
}

bool
fini_trouble_waits(const char *work)
{
	Trouble    *trouble = troubles != NIL ? find(work) : NULL;

	if (trouble == NULL || fini_monotonic_us() >= trouble->not_before_us)
		return false;
	retry_us = trouble->not_before_us;
	return true;
}

int64
fini_trouble_retry_us(void)
{
	return retry_us;
}

long
fini_trouble_timeout(void)
{
	int64		now = fini_monotonic_us();
	int64		due = PG_INT64_MAX;
	ListCell   *cell;

	/* what is due already has been tried again, or will be when it comes up */
	foreach(cell, troubles)
	{
		Trouble    *trouble = lfirst(cell);

		if (trouble->not_before_us > now)
			due = Min(due, trouble->not_before_us);
	}
	return due == PG_INT64_MAX ? -1 : (long) ((due - now) / 1000 + 1);
}

void
fini_trouble_resume(void)
{
	ListCell   *cell;

	foreach(cell, troubles)
		((Trouble *) lfirst(cell))->not_before_us = 0;
}

static Trouble *
find(const char *work)
{
	ListCell   *cell;

	foreach(cell, troubles)
	{
		Trouble    *trouble = lfirst(cell);

		if (strcmp(trouble->work, work) == 0)
			return trouble;
	}
	return NULL;
}

/* has a lock been waited for in vain? */
static bool
is_locked_out(const char *work)
{
	Trouble    *trouble = troubles != NIL ? find(work) : NULL;

	return trouble != NULL && trouble->sqlstate == ERRCODE_LOCK_NOT_AVAILABLE;
}

/* outside transactions, so that no rollback undoes it */
static void
set_lock_timeout(const char *timeout)
{
	SetConfigOption("lock_timeout", timeout, PGC_SUSET, PGC_S_OVERRIDE);
}

static void
note(FiniSlotShared *slot, const char *work, const ErrorData *error)
{
	Trouble    *trouble;
	const char *reason = may_be_quoted(error->sqlerrcode) ? error->message : "the database refused it";
	int64		now = fini_monotonic_us();

	forget(now);
	trouble = find(work);
	if (trouble == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		trouble = palloc0(sizeof(Trouble));
		strlcpy(trouble->work, work, sizeof(trouble->work));
		troubles = lappend(troubles, trouble);
		MemoryContextSwitchTo(old);
	}
	trouble->failures++;
	trouble->sqlstate = error->sqlerrcode;
	trouble->not_before_us = now + fini_backoff_us(trouble->failures, MIN_PAUSE_US, MAX_PAUSE_US);
	retry_us = trouble->not_before_us;

	fini_shared_note_error(slot, psprintf("could not %s: %s (SQLSTATE %s)", work, reason, unpack_sql_state(error->sqlerrcode)));
	if (error->sqlerrcode == told_sqlstate && now - told_us < TELL_AGAIN_US)
		return;
	told_sqlstate = error->sqlerrcode;
	told_us = now;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("fini: could not %s: %s", work, reason),
			 errdetail("SQLSTATE %s. It is tried again until it succeeds, later each time.", unpack_sql_state(error->sqlerrcode)),
			 errhint("The same error of other work is not logged for ten minutes; fini.status has the last one.")));
}

/* what has not been tried again for a long time is done with: its IPO or its request has gone */
static void
forget(int64 now)
{
	ListCell   *cell;

	foreach(cell, troubles)
	{
		Trouble    *trouble = lfirst(cell);

		if (now - trouble->not_before_us > TELL_AGAIN_US)
		{
			troubles = foreach_delete_current(troubles, cell);
			pfree(trouble);
		}
	}
}

/* a text that tells of the server and its objects, and of no values */
static bool
may_be_quoted(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES):
		case ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR):
		case ERRCODE_TO_CATEGORY(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE):
		case ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION):
		case ERRCODE_TO_CATEGORY(ERRCODE_TRANSACTION_ROLLBACK):
		case ERRCODE_TO_CATEGORY(ERRCODE_INVALID_TRANSACTION_STATE):
		case ERRCODE_TO_CATEGORY(ERRCODE_INTERNAL_ERROR):
		case ERRCODE_TO_CATEGORY(ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION):
			return true;
		default:
			return false;
	}
}

static void
over(const char *work)
{
	Trouble    *trouble = find(work);

	if (trouble == NULL)
		return;
	troubles = list_delete_ptr(troubles, trouble);
	pfree(trouble);
	if (troubles == NIL)
		told_sqlstate = 0;
}
