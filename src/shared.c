/*
 * shared.c
 *		Allocation of shared memory, slots, and waking a worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "compat.h"
#include "error.h"
#include "settings.h"
#include "shared.h"
#include "stat.h"
#include "throttle.h"

#define TRANCHE_NAME	"fini"

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static FiniSlotShared *slots = NULL;
static LWLockPadded *locks = NULL;
static int	slot_count = 0;
static bool preloaded = false;

static FiniSlotShared *my_slot = NULL;
static bool is_worker = false;
static bool wake_at_commit = false;
static bool work_at_commit = false;
static bool xact_callback_registered = false;

static void request_memory(void);
static void startup_memory(void);
static List *database_names(void);
static void set_worker_latch(FiniSlotShared *slot);
static void prepare_for_commit(void);
static void on_transaction_end(XactEvent event, void *arg);

void
fini_shared_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	preloaded = true;
	slot_count = list_length(database_names());
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_memory;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_memory;
}

bool
fini_shared_available(void)
{
	return preloaded && slots != NULL;
}

int
fini_shared_slots(void)
{
	return slot_count;
}

FiniSlotShared *
fini_shared_slot(int index)
{
	Assert(index >= 0 && index < slot_count);
	return &slots[index];
}

LWLock *
fini_shared_slot_lock(const FiniSlotShared *slot)
{
	return &locks[1 + (slot - slots)].lock;
}

FiniSlotShared *
fini_shared_my_slot(void)
{
	char	   *name;

	if (my_slot != NULL || !fini_shared_available() || !OidIsValid(MyDatabaseId))
		return my_slot;

	/*
	 * By name, because the slot exists before a worker has learnt the OID.  A
	 * database renamed while we are connected cannot happen.
	 */
	name = get_database_name(MyDatabaseId);
	if (name == NULL)
		return NULL;
	for (int i = 0; i < slot_count; i++)
	{
		if (strcmp(slots[i].database, name) == 0)
			my_slot = &slots[i];
	}
	pfree(name);
	return my_slot;
}

void
fini_shared_set_my_slot(FiniSlotShared *slot)
{
	my_slot = slot;
	is_worker = true;
}

/*
 * A completed request that somebody else took out of the event loop would be
 * lost to the queue, and what the worker waits for itself never comes.
 */
void
fini_shared_refuse_worker(void)
{
	if (is_worker)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("fini's worker makes no direct calls, nor does it wait for itself"),
				 errdetail("Code of an attached table, such as a trigger on its outcomes, has called it."),
				 errhint("Let the trigger note what there is to do, and call from a session.")));
}

FiniSlotShared *
fini_shared_require_slot(void)
{
	FiniSlotShared *slot = fini_shared_my_slot();

	if (!fini_shared_available())
		ereport(ERROR,
				(errcode(FINI_ERRCODE_NO_WORKER),
				 errmsg("fini is not loaded by the server"),
				 errhint("Add fini to shared_preload_libraries and restart the server.")));
	if (slot == NULL)
		ereport(ERROR,
				(errcode(FINI_ERRCODE_NO_WORKER),
				 errmsg("no fini worker serves this database"),
				 errhint("Add the database to fini.databases and restart the server.")));
	return slot;
}

void
fini_shared_wake(FiniSlotShared *slot)
{
	/* told already, and it has not looked yet: one system call saved */
	if (pg_atomic_exchange_u32(&slot->wake, 1) == 0)
		set_worker_latch(slot);
}

void
fini_shared_wake_at_commit(void)
{
	prepare_for_commit();
	/* looked up now: at commit there is no transaction any more to do it in */
	wake_at_commit = fini_shared_my_slot() != NULL;
}

void
fini_shared_work_at_commit(void)
{
	prepare_for_commit();
	work_at_commit = fini_shared_my_slot() != NULL;
}

void
fini_shared_note_error(FiniSlotShared *slot, const char *message)
{
	int			len = pg_mbcliplen(message, (int) strlen(message), sizeof(slot->last_error) - 1);

	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	strlcpy(slot->last_error, message, len + 1);
	slot->last_error_at = GetCurrentTimestamp();
	LWLockRelease(fini_shared_slot_lock(slot));
}

void
fini_shared_note_settled(void)
{
	FiniSlotShared *slot = fini_shared_my_slot();

	if (slot == NULL)
		return;
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->settled_at = GetCurrentTimestamp();
	LWLockRelease(fini_shared_slot_lock(slot));
}

void
fini_shared_endpoint_stopped(FiniSlotShared *slot, int endpoint)
{
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->stopped |= UINT32_C(1) << endpoint;
	LWLockRelease(fini_shared_slot_lock(slot));
}

void
fini_shared_endpoints_resumed(FiniSlotShared *slot)
{
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->stopped = 0;
	LWLockRelease(fini_shared_slot_lock(slot));
}

static void
request_memory(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(add_size(mul_size(slot_count, sizeof(FiniSlotShared)),
									add_size(fini_stat_shmem_size(slot_count), fini_version_shmem_size())));
	RequestNamedLWLockTranche(TRANCHE_NAME, 1 + slot_count);
}

static void
startup_memory(void)
{
	bool		found;
	ListCell   *cell;
	int			i = 0;

	if (previous_startup_hook)
		previous_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	locks = GetNamedLWLockTranche(TRANCHE_NAME);
	slots = ShmemInitStruct("fini slots",
							Max(1, mul_size(slot_count, sizeof(FiniSlotShared))), &found);
	if (!found)
	{
		memset(slots, 0, mul_size(slot_count, sizeof(FiniSlotShared)));
		foreach(cell, database_names())
		{
			FiniSlotShared *slot = &slots[i++];

			strlcpy(slot->database, (char *) lfirst(cell), NAMEDATALEN);
			pg_atomic_init_u32(&slot->wake, 0);
			pg_atomic_init_u32(&slot->work, 0);
			pg_atomic_init_u32(&slot->resume, 0);
			pg_atomic_init_u32(&slot->leave, 0);
			pg_atomic_init_u32(&slot->held_up_by, InvalidOid);
			ConditionVariableInit(&slot->changed);
			slot->worker_procno = -1;
			slot->database_seen = true; /* the first attempt goes straight there */
		}
	}
	fini_throttle_startup(slot_count, &locks[0].lock);
	fini_stat_shmem_startup(slot_count);
	fini_version_shmem_startup();
	LWLockRelease(AddinShmemInitLock);
	if (!IsUnderPostmaster)
		fini_stat_file_startup();
}

/* fini.databases as a list of distinct names; its check hook has parsed it before */
static List *
database_names(void)
{
	List	   *names = NIL;
	List	   *distinct = NIL;
	ListCell   *cell;

	if (!SplitIdentifierString(pstrdup(fini_guc_databases), ',', &names))
		return NIL;
	foreach(cell, names)
	{
		char	   *name = lfirst(cell);
		bool		seen = false;
		ListCell   *other;

		foreach(other, distinct)
			seen |= strcmp(lfirst(other), name) == 0;
		if (!seen)
			distinct = lappend(distinct, name);
	}
	return distinct;
}

static void
set_worker_latch(FiniSlotShared *slot)
{
	int			procno;

	LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
	procno = slot->worker_pid != 0 ? slot->worker_procno : -1;
	LWLockRelease(fini_shared_slot_lock(slot));

	/*
	 * Should the worker have just gone and the number have a new owner, that
	 * process wakes for nothing, which every process must bear.
	 */
	if (procno >= 0)
		SetLatch(&GetPGProcByNumber(procno)->procLatch);
}

static void
prepare_for_commit(void)
{
	if (xact_callback_registered)
		return;
	RegisterXactCallback(on_transaction_end, NULL);
	xact_callback_registered = true;
}

/*
 * Registered once per process.  A prepared transaction is committed by
 * another process later, which wakes nobody: the worker looks by itself from
 * time to time.
 */
static void
on_transaction_end(XactEvent event, void *arg)
{
	FiniSlotShared *slot;

	if (!wake_at_commit && !work_at_commit)
		return;
	/* also after a rollback: it may have held queue rows that the worker passed over */
	if ((event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT) && (slot = my_slot) != NULL)
	{
		if (wake_at_commit)
			fini_shared_wake(slot);
		else if (pg_atomic_exchange_u32(&slot->work, 1) == 0)
			set_worker_latch(slot);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		wake_at_commit = work_at_commit = false;
}
