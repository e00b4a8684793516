/*
 * token.c
 *		The shared access token: asking for it, and refusing it.
 *
 * Freshness is judged on the monotonic clock.  A token counts from before its
 * request left.  While somebody uses it, the worker replaces it when what is
 * left of its life falls below the refresh margin (never more than a third of
 * the life); processes use it until a smaller rest is left, so that they do
 * not notice the replacement.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "error.h"
#include "settings.h"
#include "throttle.h"
#include "token.h"
#include "wait.h"

/* longer than the worker takes to notice a change of settings */
#define OTHER_SETTINGS_US	INT64CONST(3000000)

static bool copy_fresh(FiniSlotShared *slot, FiniAccess *dst, bool with_key, int64 now);
static void raise_failure(FiniSlotShared *slot);

void
fini_token_wait(FiniSlotShared *slot, FiniAccess *dst, bool with_key, int timeout_ms)
{
	int64		deadline = fini_monotonic_us() + (int64) timeout_ms * 1000;
	LWLock	   *lock = fini_shared_slot_lock(slot);
	uint8		fingerprint[FINI_FINGERPRINT_LEN];
	uint64		serial;
	bool		worker_runs;
	bool		failed;
	bool		failing;
	bool		other_settings;
	int64		other_since_us = 0;
	int64		held_us;

	fini_settings_require();
	if (fini_token_peek(slot, dst, with_key))
		return;

	fini_settings_fingerprint(fingerprint);
	LWLockAcquire(lock, LW_SHARED);
	serial = slot->fetch_serial;
	LWLockRelease(lock);

	ConditionVariablePrepareToSleep(&slot->changed);
	for (;;)
	{
		int64		left = deadline - fini_monotonic_us();

		if (fini_token_peek(slot, dst, with_key))
			break;
		fini_shared_wake(slot);
		LWLockAcquire(lock, LW_SHARED);
		worker_runs = slot->worker_pid != 0 && slot->worker_state != FINI_WORKER_WAITING;
		failing = slot->fetch_sqlstate != 0;
		failed = failing && slot->fetch_serial != serial;
		other_settings = worker_runs && !slot->settings_changed &&
			memcmp(slot->fingerprint, fingerprint, sizeof(fingerprint)) != 0;
		LWLockRelease(lock);

		if (failed && !other_settings)
			raise_failure(slot);
		if (!other_settings)
			other_since_us = 0;
		else if (other_since_us == 0)
			other_since_us = fini_monotonic_us();
		/* nor does the worker fetch one as long as the gateway wants nobody to send */
		(void) fini_throttle_in_use(&held_us);
		if (left <= 0 || held_us > left || (other_settings && fini_monotonic_us() - other_since_us > OTHER_SETTINGS_US))
		{
			if (!worker_runs)
				ereport(ERROR,
						(errcode(FINI_ERRCODE_NO_WORKER),
						 errmsg("the fini worker of this database is not running"),
						 errhint("Look for its last message in the server log. A server whose max_worker_processes is too low says \"too many background workers\" when it starts.")));
			if (other_settings)
				ereport(ERROR,
						(errcode(FINI_ERRCODE_NOT_CONFIGURED),
						 errmsg("the fini settings of this session differ from those of the worker"),
						 errdetail("A token fetched under other settings is not used."),
						 errhint("Set them with ALTER DATABASE or in the server's configuration, and reconnect.")));
			/* the worker pauses after an attempt that says more than we could */
			if (failing)
				raise_failure(slot);
			if (held_us > 0)
				ereport(ERROR,
						(errcode(FINI_ERRCODE_THROTTLED),
						 errmsg("the gateway wants nothing to be sent for another " INT64_FORMAT " s", (held_us + 999999) / 1000000),
						 errdetail("It answered a request of this company with HTTP 429; there is no access token, and none can be fetched."),
						 errhint("Try again later; nothing was sent.")));
			ereport(ERROR,
					(errcode(FINI_ERRCODE_TOKEN_REFUSED),
					 errmsg("no access token within %d ms", timeout_ms),
					 errhint("See fini.status for the worker's last error.")));
		}
		/* woken by the worker; or look again in case it went away */
		ConditionVariableTimedSleep(&slot->changed, Max(1, Min(left / 1000, 1000)),
									fini_wait_event(FINI_WAIT_TOKEN));
	}
	ConditionVariableCancelSleep();
}

bool
fini_token_peek(FiniSlotShared *slot, FiniAccess *dst, bool with_key)
{
	int64		now = fini_monotonic_us();
	bool		fresh;

	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->token_wanted_us = now;
	if (with_key)
		slot->key_wanted_us = now;
	fresh = copy_fresh(slot, dst, with_key, now);
	LWLockRelease(fini_shared_slot_lock(slot));

	/* outside the lock: hashing the settings takes longer than copying */
	if (fresh && MyProcPid != slot->worker_pid)
	{
		uint8		mine[FINI_FINGERPRINT_LEN];
		uint8		theirs[FINI_FINGERPRINT_LEN];

		fini_settings_fingerprint(mine);
		LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
		memcpy(theirs, slot->fingerprint, sizeof(theirs));
		fresh = slot->token_generation == dst->token_generation;
		LWLockRelease(fini_shared_slot_lock(slot));
		fresh = fresh && memcmp(mine, theirs, sizeof(mine)) == 0;
	}
	if (!fresh)
		fini_secret_cleanse(dst, sizeof(*dst));
	return fresh;
}

void
fini_token_refused(FiniSlotShared *slot, uint64 token_generation)
{
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	if (slot->token_generation == token_generation)
	{
		fini_secret_cleanse(slot->token, sizeof(slot->token));
		slot->token_expires_us = 0;
	}
	LWLockRelease(fini_shared_slot_lock(slot));
	fini_shared_wake(slot);
}

void
fini_token_key_refused(FiniSlotShared *slot, uint64 key_generation)
{
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	if (slot->key_generation == key_generation)
		slot->public_key_len = 0;
	LWLockRelease(fini_shared_slot_lock(slot));
	fini_shared_wake(slot);
}

char *
fini_token_failure(FiniSlotShared *slot)
{
	char		text[2 * FINI_MAX_MESSAGE + 2] = "";

	LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
	if (slot->fetch_sqlstate != 0)
		snprintf(text, sizeof(text), "%s%s%s", slot->fetch_error,
				 slot->fetch_detail[0] != '\0' ? ": " : "", slot->fetch_detail);
	LWLockRelease(fini_shared_slot_lock(slot));
	return text[0] != '\0' ? pstrdup(text) : NULL;
}

/* lock held; by what is left of its life a token is fresh or not */
static bool
copy_fresh(FiniSlotShared *slot, FiniAccess *dst, bool with_key, int64 now)
{
	int64		life = slot->token_expires_us - slot->token_fetched_us;

	if (slot->token[0] == '\0' || slot->token_expires_us - now < Min(life / 5, 2000000))
		return false;
	if (with_key && slot->public_key_len == 0)
		return false;
	strlcpy(dst->token, slot->token, sizeof(dst->token));
	dst->token_generation = slot->token_generation;
	dst->public_key_len = slot->public_key_len;
	memcpy(dst->public_key, slot->public_key, slot->public_key_len);
	dst->key_generation = slot->key_generation;
	dst->clock_offset_ms = slot->clock_offset_ms;
	return true;
}

static void
raise_failure(FiniSlotShared *slot)
{
	char		error[FINI_MAX_MESSAGE];
	char		detail[FINI_MAX_MESSAGE];
	int			sqlstate;

	LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
	strlcpy(error, slot->fetch_error, sizeof(error));
	strlcpy(detail, slot->fetch_detail, sizeof(detail));
	sqlstate = slot->fetch_sqlstate;
	LWLockRelease(fini_shared_slot_lock(slot));
	ereport(ERROR,
			(errcode(sqlstate != 0 ? sqlstate : FINI_ERRCODE_TOKEN_REFUSED),
			 errmsg("%s", error),
			 detail[0] != '\0' ? errdetail("%s", detail) : 0));
}
