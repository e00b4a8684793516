/*
 * user_code.c
 *		How long the code of an attached table may hold up the worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "http.h"
#include "settings.h"
#include "user_code.h"

#define LAST_FIRING			3
#define LEFT_ALONE_US		INT64CONST(600000000)

static FiniSlotShared *watched = NULL;	/* NULL: no worker */
static TimeoutId timeout;
static int	depth = 0;
static int	level;				/* of the transaction that the outermost began in */
static Oid	running = InvalidOid;	/* whose code */
static bool tidy_needed = false;
static volatile sig_atomic_t fired = 0;

static void stop(void);
static void time_is_up(void);
static void on_subtransaction(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg);
static void on_transaction(XactEvent event, void *arg);
static void leave_alone(Oid owner);
static bool is_left_alone(Oid owner);

void
fini_user_code_watch(FiniSlotShared *slot)
{
	Oid			culprit = (Oid) pg_atomic_exchange_u32(&slot->held_up_by, InvalidOid);

	watched = slot;
	timeout = RegisterTimeout(USER_TIMEOUT, time_is_up);
	RegisterSubXactCallback(on_subtransaction, NULL);
	RegisterXactCallback(on_transaction, NULL);
	if (OidIsValid(culprit))
		leave_alone(culprit);
}

bool
fini_user_code_is_watched(void)
{
	return watched != NULL;
}

void
fini_user_code_begin(Oid owner)
{
	if (watched == NULL)
		return;
	if (depth == 0)
	{
		if (is_left_alone(owner))
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("tables of this owner are left alone, since their code has held up the worker")));
		level = GetCurrentTransactionNestLevel();
		running = owner;
		fired = 0;
		tidy_needed = true;
		enable_timeout_every(timeout, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), fini_guc_table_timeout),
							 fini_guc_table_timeout);
	}
	depth++;
}

void
fini_user_code_end(void)
{
	if (watched == NULL || depth == 0)
		return;
	if (--depth == 0)
		stop();
}

void
fini_user_code_tidy(void)
{
	if (!tidy_needed)
		return;
	tidy_needed = false;
	LockReleaseAll(USER_LOCKMETHOD, true);
}

static void
stop(void)
{
	disable_timeout(timeout, false);
	/* one that has fired at the last moment must not hit what comes next */
	if (fired > 0 && !ProcDiePending)
		QueryCancelPending = false;
	fired = 0;
	depth = 0;
}

/* in a signal handler */
static void
time_is_up(void)
{
	if (++fired < LAST_FIRING)
		QueryCancelPending = true;
	else
	{
		pg_atomic_write_u32(&watched->held_up_by, running);
		ProcDiePending = true;
	}
	InterruptPending = true;
	SetLatch(MyLatch);
}

static void
on_subtransaction(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	/* those of the code itself are deeper */
	if (event == SUBXACT_EVENT_ABORT_SUB && depth > 0 && GetCurrentTransactionNestLevel() <= level)
		stop();
}

static void
on_transaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT && depth > 0)
		stop();
}

/* the one that is left alone for least longer makes room */
static void
leave_alone(Oid owner)
{
	int			place = 0;

	LWLockAcquire(fini_shared_slot_lock(watched), LW_EXCLUSIVE);
	for (int i = 0; i < FINI_LEFT_ALONE; i++)
	{
		if (watched->left_alone_until_us[i] < watched->left_alone_until_us[place])
			place = i;
	}
	watched->left_alone[place] = owner;
	watched->left_alone_until_us[place] = fini_monotonic_us() + LEFT_ALONE_US;
	LWLockRelease(fini_shared_slot_lock(watched));
	ereport(LOG,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("fini: tables whose owner has OID %u are left alone for %d minutes", owner, (int) (LEFT_ALONE_US / 60000000)),
			 errdetail("Their code, such as a trigger or a policy, has held up the worker, and did not end when it was cancelled."),
			 errhint("Mend that code. What could not be read or written in the meantime says so in fini.submission.")));
}

static bool
is_left_alone(Oid owner)
{
	int64		now = fini_monotonic_us();
	bool		found = false;

	LWLockAcquire(fini_shared_slot_lock(watched), LW_SHARED);
	for (int i = 0; i < FINI_LEFT_ALONE; i++)
		found |= watched->left_alone[i] == owner && watched->left_alone_until_us[i] > now;
	LWLockRelease(fini_shared_slot_lock(watched));
	return found;
}
