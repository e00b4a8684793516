/*
 * worker.c
 *		The life of a worker.
 *
 * It connects to its database, or waits until that exists; waits until the
 * extension exists; takes over what a former worker left; then runs one loop:
 * look at what the database allows, keep token and key fresh, find out what is
 * in doubt, send, and wait for its latch, its sockets or the next due moment.
 *
 * Whatever goes wrong beyond what the modules below handle ends the process.
 * The postmaster starts it again, and what was under way is then in doubt,
 * which is the one case that has to be right anyway.  A worker that keeps
 * failing pauses longer before it begins.
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "database.h"
#include "deadline.h"
#include "encoding.h"
#include "find.h"
#include "flight.h"
#include "funding.h"
#include "http.h"
#include "reconcile_worker.h"
#include "retention.h"
#include "settings.h"
#include "shared.h"
#include "throttle.h"
#include "tidy.h"
#include "token.h"
#include "trouble.h"
#include "user_code.h"
#include "version.h"
#include "wait.h"
#include "worker.h"

#define RESTART_SECONDS		1
#define LOOK_MS				10000	/* look at the queue although nobody called: prepared transactions */
#define LOOK_APART_MS		100		/* between looks at new rows while none of them could be sent */
#define WATCH_MS			2000	/* look for a database that does not exist yet */
#define MAX_PAUSE_MS		30000	/* before a worker that keeps failing begins again */

/* what the catalogs say of our database */
typedef struct CatalogLook
{
	Oid			extension;
	bool		fits;			/* its objects are of this library's version */
	uint32		settings;
} CatalogLook;

static FiniSlotShared *slot;
static char objects_version[64];	/* of the extension in our database, as of the last look */
static object_access_hook_type previous_access_hook = NULL;

static void on_object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg);
static void set_state(FiniWorkerState state);
static void report_activity(FiniWorkerState state, bool may_send);
static void claim_slot(void);
static void release_slot(int code, Datum arg);
static void watch_for_database(void) pg_attribute_noreturn();
static void pause_after_failures(void);
static void look_at_catalogs(void *arg);
static void tell_versions(void);
static void note_settings_changed(void);
static void start_again(void) pg_attribute_noreturn();
static bool look_is_due(int64 looked_us, bool may_send);
static long until_look_ms(int64 looked_us, bool may_send);
static void wait_for_wake(long timeout_ms);
static void take_requests(void);
static int64 until_trouble_us(void);
static void run(void) pg_attribute_noreturn();
static void leave_if_asked(void);
static void reload_configuration(void);
static long shortest(long a, long b);

void
fini_worker_init(void)
{
	BackgroundWorker worker = {0};

	if (!process_shared_preload_libraries_in_progress)
		return;

	/* pg_upgrade: what the old server did now would be lost, and the new one is not complete */
	if (IsBinaryUpgrade)
		return;
	previous_access_hook = object_access_hook;
	object_access_hook = on_object_access;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RESTART_SECONDS;
	strlcpy(worker.bgw_library_name, "fini", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "fini_worker_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, "fini worker", sizeof(worker.bgw_type));
	for (int i = 0; i < fini_shared_slots(); i++)
	{
		snprintf(worker.bgw_name, sizeof(worker.bgw_name), "fini worker %d", i + 1);
		worker.bgw_main_arg = Int32GetDatum(i);
		RegisterBackgroundWorker(&worker);
	}
}

void
fini_worker_main(Datum slot_index)
{
	bool		seen;

	slot = fini_shared_slot(DatumGetInt32(slot_index));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	claim_slot();

	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	seen = slot->database_seen;
	slot->database_seen = false;	/* until the connection stands */
	LWLockRelease(fini_shared_slot_lock(slot));
	if (!seen)
		watch_for_database();

	BackgroundWorkerInitializeConnection(slot->database, NULL, 0);
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->database_seen = true;
	slot->database_oid = MyDatabaseId;
	LWLockRelease(fini_shared_slot_lock(slot));

	fini_shared_set_my_slot(slot);
	pause_after_failures();
	fini_database_prepare_session();
	fini_user_code_watch(slot);
	run();
}

/*
 * Runs in whatever process drops or alters something.  A database's worker is
 * asked to go before DROP DATABASE counts connections; an extension's looks
 * again when that is dropped or updated, or its database's settings change.
 */
static void
on_object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (previous_access_hook)
		previous_access_hook(access, class_id, object_id, sub_id, arg);
	if ((access != OAT_DROP && access != OAT_POST_ALTER) || !fini_shared_available())
		return;
	if (OidIsValid(MyDatabaseId) &&
		(class_id == ExtensionRelationId || (class_id == DbRoleSettingRelationId && object_id == MyDatabaseId)) &&
		fini_shared_my_slot() != NULL)
		fini_shared_wake_at_commit();
	if (class_id != DatabaseRelationId || access != OAT_DROP)
		return;
	for (int i = 0; i < fini_shared_slots(); i++)
	{
		FiniSlotShared *candidate = fini_shared_slot(i);

		/* a stale answer does no harm: a worker that leaves for nothing comes back */
		if (candidate->database_oid == object_id)
		{
			pg_atomic_write_u32(&candidate->leave, 1);
			pg_atomic_write_u32(&candidate->wake, 0);
			fini_shared_wake(candidate);
		}
	}
}

/*
 * Each batch takes and gives back the same few megabytes.  Left to itself, the
 * C library would hand them to the kernel each time, and have every page
 * cleared when it asks for it again.
 */
static void
keep_memory(void)
{
#ifdef __GLIBC__
	(void) mallopt(M_MMAP_THRESHOLD, 8 * 1024 * 1024);
	(void) mallopt(M_TRIM_THRESHOLD, 16 * 1024 * 1024);
#endif
}

/* the loop */
static void
run(void)
{
	bool		recovered = false;
	bool		may_send = false;
	bool		fits = false;
	char		looking[FINI_TROUBLE_NAME] = "look for the extension";
	int64		looked_us = 0;
	int64		look_again_us = PG_INT64_MAX;	/* what keeps us from sending may be that the database refused to say */
	uint32		settings = 0;
	bool		settings_changed = false;
	Oid			extension = InvalidOid;
	MemoryContext loop_context = AllocSetContextCreate(TopMemoryContext, "fini worker loop", ALLOCSET_DEFAULT_SIZES);

	keep_memory();
	fini_token_settings_changed(slot);
	for (;;)
	{
		FiniHttpRequest *http;
		long		timeout = LOOK_MS;
		bool		quiet;

		MemoryContextReset(loop_context);
		MemoryContextSwitchTo(loop_context);
		CHECK_FOR_INTERRUPTS();
		fini_user_code_tidy();
		if (ConfigReloadPending)
			reload_configuration();
		leave_if_asked();

		if (look_is_due(looked_us, may_send) || fini_monotonic_us() >= look_again_us)
		{
			CatalogLook now = {.extension = extension, .fits = fits, .settings = settings};
			bool		well = fini_trouble_guard(slot, looking, look_at_catalogs, &now);

			/* what was known stays as it was when the database refuses to say */
			look_again_us = well ? PG_INT64_MAX : until_trouble_us();

			/*
			 * What a former extension had under way is nothing to its successor; after an
			 * update to a version that is not ours it is for a worker that knows it.
			 */
			fits = now.fits;
			if ((now.extension != extension || !fits) && (recovered || fini_flight_count() > 0))
				proc_exit(1);
			extension = now.extension;
			if (!OidIsValid(extension))
			{
				set_state(FINI_WORKER_WAITING);
				report_activity(FINI_WORKER_WAITING, false);
				looked_us = 0;
				wait_for_wake(LOOK_MS);
				continue;
			}
			if (settings == 0)
				settings = now.settings;
			else if (now.settings != settings && !settings_changed)
			{
				settings_changed = true;
				note_settings_changed();
			}
			looked_us = fini_monotonic_us();
			if (fits)
			{
				take_requests();
				may_send = fini_flight_may_send(slot);
				fini_flight_write_late(slot);
				may_send = fini_deadline_look(slot) && may_send;
				look_again_us = may_send && well ? PG_INT64_MAX : until_trouble_us();
				fini_flight_work_arrived();
				fini_funding_work_arrived();
				fini_reconcile_arrived();
			}
			else
				tell_versions();	/* tokens for direct calls are all that it does now */
		}

		timeout = shortest(timeout, fini_token_service(slot));
		if (fits)
		{
			timeout = shortest(timeout, fini_deadline_service(slot));
			timeout = shortest(timeout, fini_tidy_service(slot));
		}
		if (may_send)
		{
			if (!recovered)
				recovered = fini_flight_recover(slot);
		}
		if (recovered)
		{
			fini_flight_settle_late(slot);
			fini_funding_settle_late(slot);
		}
		if (settings_changed && fini_flight_sent() == 0 && !fini_find_busy() && !fini_funding_busy())
			start_again();
		if (may_send && recovered && !settings_changed)
		{
			fini_find_service(slot);
			fini_funding_dispatch(slot);
			fini_reconcile_service(slot, true);
			fini_flight_dispatch(slot);
			fini_reconcile_service(slot, false);
			timeout = shortest(timeout, fini_token_service(slot));
			timeout = shortest(timeout, fini_find_timeout());
			timeout = shortest(timeout, fini_flight_timeout());
			timeout = shortest(timeout, fini_funding_timeout());
			timeout = shortest(timeout, fini_reconcile_timeout());
		}
		if (fits)
			timeout = shortest(timeout, fini_retention_service(slot));
		timeout = shortest(timeout, fini_trouble_timeout());
		quiet = fini_flight_count() == 0 && fini_http_running() == 0;
		set_state(!fits ? FINI_WORKER_WAITING : quiet ? FINI_WORKER_IDLE : FINI_WORKER_BUSY);
		report_activity(slot->worker_state, may_send);

		/* a call that came while we looked has set the flag and the latch */
		if (pg_atomic_read_u32(&slot->wake) != 0)
			timeout = 0;
		else if (pg_atomic_read_u32(&slot->work) != 0)
			timeout = shortest(timeout, until_look_ms(looked_us, may_send));
		http = fini_http_next(timeout, fini_wait_event(quiet ? FINI_WAIT_WORKER : FINI_WAIT_GATEWAY));
		while (http != NULL)
		{
			MemoryContextSwitchTo(loop_context);
			if (!fini_token_completed(slot, http) && !fini_find_completed(slot, http) &&
				!fini_funding_completed(slot, http) && !fini_reconcile_completed(slot, http))
				(void) fini_flight_completed(slot, http);
			http = fini_http_next(0, fini_wait_event(FINI_WAIT_GATEWAY));
		}
	}
}

static void
set_state(FiniWorkerState state)
{
	if (slot->worker_state == state)
		return;
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->worker_state = state;
	LWLockRelease(fini_shared_slot_lock(slot));
	ConditionVariableBroadcast(&slot->changed);
}

/* for pg_stat_activity: what is under way, in words and numbers of ours alone */
static void
report_activity(FiniWorkerState state, bool may_send)
{
	static char reported[160] = "";
	char		activity[sizeof(reported)] = "";
	int			sent = fini_flight_sent();

	if (state == FINI_WORKER_WAITING)
		strlcpy(activity, "waiting for the extension", sizeof(activity));
	else
	{
		if (sent > 0)
			snprintf(activity, sizeof(activity), ", %d request%s under way", sent, sent == 1 ? "" : "s");
		if (fini_find_busy())
			strlcat(activity, ", finding out what is in doubt", sizeof(activity));
		if (fini_funding_busy())
			strlcat(activity, ", confirming funding", sizeof(activity));
		if (fini_reconcile_busy())
			strlcat(activity, ", reconciling", sizeof(activity));
		if (activity[0] == '\0')
			strlcat(activity, may_send ? ", idle" : ", not armed or paused", sizeof(activity));
		memmove(activity, activity + 2, strlen(activity + 2) + 1);
	}
	if (strcmp(activity, reported) == 0)
		return;
	strlcpy(reported, activity, sizeof(reported));
	pgstat_report_activity(state == FINI_WORKER_BUSY ? STATE_RUNNING : STATE_IDLE, activity);
}

static void
claim_slot(void)
{
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->worker_pid = MyProcPid;
	slot->worker_procno = fini_compat_my_proc_number();
	slot->worker_state = FINI_WORKER_WAITING;
	slot->worker_started_at = GetCurrentTimestamp();
	strlcpy(slot->worker_version, fini_version_library(), sizeof(slot->worker_version));
	slot->settings_changed = false;
	slot->stopped = 0;
	LWLockRelease(fini_shared_slot_lock(slot));
	before_shmem_exit(release_slot, 0);
	ConditionVariableBroadcast(&slot->changed);
}

/* only if it is still ours */
static void
release_slot(int code, Datum arg)
{
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	if (slot->worker_pid == MyProcPid)
	{
		slot->worker_pid = 0;
		slot->worker_procno = -1;
		slot->worker_state = FINI_WORKER_STOPPED;
		slot->database_oid = InvalidOid;
	}
	LWLockRelease(fini_shared_slot_lock(slot));
	ConditionVariableBroadcast(&slot->changed);
}

/*
 * The last attempt to connect failed, most likely because there is no such
 * database, or it lets nobody in.  Look at the shared catalogs until that has
 * changed, quietly; then end, for a process can connect to one database only.
 */
static void
watch_for_database(void)
{
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_activity(STATE_IDLE, "waiting for the database");
	while (!fini_database_is_open(slot->database))
		wait_for_wake(WATCH_MS);
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->database_seen = true;
	LWLockRelease(fini_shared_slot_lock(slot));
	proc_exit(1);
}

/* a worker that lived for less than a minute before this one failed: wait longer each time */
static void
pause_after_failures(void)
{
	int			failures;
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	if (TimestampDifferenceExceeds(slot->last_start_at, now, FINI_WORKER_LASTS_MS))
		slot->starts = 0;
	slot->last_start_at = now;
	failures = slot->starts++;
	LWLockRelease(fini_shared_slot_lock(slot));
	if (failures > 3)
		wait_for_wake(Min(MAX_PAUSE_MS, 500 << Min(failures - 3, 6)));
}

static void
look_at_catalogs(void *arg)
{
	CatalogLook now;
	char	   *version;

	now.extension = get_extension_oid("fini", true);
	version = OidIsValid(now.extension) ? fini_version_objects() : NULL;
	now.settings = fini_database_settings();
	strlcpy(objects_version, version != NULL ? version : "", sizeof(objects_version));
	now.fits = strcmp(objects_version, fini_version_library()) == 0;
	/* once, so that neither requests nor answers need the catalogs for it */
	fini_encoding_prepare();
	*(CatalogLook *) arg = now;
}

/* once for each version that does not fit */
static void
tell_versions(void)
{
	static char told[sizeof(objects_version)] = "";
	char	   *message;

	if (strcmp(objects_version, told) == 0)
		return;
	strlcpy(told, objects_version, sizeof(told));
	message = psprintf("the fini library is of version %s, the extension in this database of %s: nothing is sent",
					   fini_version_library(), objects_version);
	fini_shared_note_error(slot, message);
	ereport(LOG,
			(errmsg("fini: %s", message),
			 errhint("Restart the server after installing another version, then run ALTER EXTENSION fini UPDATE in database \"%s\".",
					 slot->database)));
}

/* sessions that have the new ones wait until we have them, too */
static void
note_settings_changed(void)
{
	ereport(LOG,
			(errmsg("fini: settings of database \"%s\" changed, the worker starts again", slot->database)));
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->settings_changed = true;
	LWLockRelease(fini_shared_slot_lock(slot));
}

/* for a process has ALTER DATABASE ... SET from its start; not a failure, so the next one pauses for nothing */
static void
start_again(void)
{
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->starts = 0;
	LWLockRelease(fini_shared_slot_lock(slot));
	proc_exit(1);
}

/* the flags go down before the look, so that no call is lost */
static bool
look_is_due(int64 looked_us, bool may_send)
{
	if (pg_atomic_read_u32(&slot->wake) == 0 && looked_us != 0 &&
		fini_monotonic_us() - looked_us <= (int64) LOOK_MS * 1000 &&
		(pg_atomic_read_u32(&slot->work) == 0 || until_look_ms(looked_us, may_send) > 0))
		return false;
	(void) pg_atomic_exchange_u32(&slot->wake, 0);
	(void) pg_atomic_exchange_u32(&slot->work, 0);
	return true;
}

/*
 * New rows are looked at right away, unless nothing can be sent just now: then
 * a look for each commit would cost as much as the commit did.  Who commits
 * meanwhile finds the flag set, and need not wake us either.
 */
static long
until_look_ms(int64 looked_us, bool may_send)
{
	int64		left_us = looked_us + (int64) LOOK_APART_MS * 1000 - fini_monotonic_us();

	return left_us <= 0 || (may_send && !fini_flight_throttled()) ? 0 : (long) ((left_us + 999) / 1000);
}

static void
wait_for_wake(long timeout_ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout_ms, fini_wait_event(FINI_WAIT_WORKER));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
		reload_configuration();
	if (OidIsValid(MyDatabaseId))
		leave_if_asked();
}

/* what backends have asked of us by flags */
static void
take_requests(void)
{
	if (pg_atomic_exchange_u32(&slot->resume, 0) != 0)
	{
		fini_trouble_resume();
		fini_throttle_resume();
		fini_token_resume();
		fini_find_resume();
		fini_flight_resume_endpoints();
		fini_funding_resume();
		fini_shared_endpoints_resumed(slot);
	}
}

/* when what the database refused is tried again; PG_INT64_MAX: it refused nothing */
static int64
until_trouble_us(void)
{
	long		timeout = fini_trouble_timeout();

	return timeout < 0 ? PG_INT64_MAX : fini_monotonic_us() + (int64) timeout * 1000;
}

/*
 * Somebody drops the database, and waits for its last connections to go.  The
 * next process looks at the catalogs until a database of this name is there.
 */
static void
leave_if_asked(void)
{
	if (pg_atomic_exchange_u32(&slot->leave, 0) == 0)
		return;
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->database_seen = false;
	LWLockRelease(fini_shared_slot_lock(slot));
	proc_exit(1);
}

static void
reload_configuration(void)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	if (OidIsValid(MyDatabaseId))
		fini_token_settings_changed(slot);
}

static long
shortest(long a, long b)
{
	if (a < 0)
		return b;
	if (b < 0)
		return a;
	return Min(a, b);
}
