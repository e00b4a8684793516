/*
 * throttle.c
 *		The sliding window of requests, in shared memory.
 *
 * A company's window is an array of stamps: the time at which a ticket ceases
 * to be in use, or IN_USE.  An entry is free when its stamp is older than the
 * window.  Tickets of processes that end without giving them back are stamped
 * by a shared-memory exit callback; when a process is killed outright the
 * server re-initialises all shared memory.
 *
 * The window outlives a restart of the server, orderly or not: it lies in a
 * file of the data directory, mapped by the postmaster and inherited by every
 * process, and stamps are of the clock that counts from the machine's boot.
 * After a reboot the file's boot identifier differs and the window is empty.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "error.h"
#include "http.h"
#include "settings.h"
#include "throttle.h"
#include "wait.h"

#define MAX_TICKETS		9600	/* upper bound of fini.rate_limit */
#define MAX_COMPANY		64
#define IN_USE			PG_INT64_MAX
#define LONG_AGO		1			/* zero would say that the entry was never used */
#define WORTH_TELLING_US	INT64CONST(1000000)
#define TELL_AGAIN_US		INT64CONST(10000000)
#define EXTRA_COMPANIES 4		/* sessions may try settings of their own */

typedef struct Entry
{
	int64		stamp;			/* monotonic microseconds; 0: never used */
	int			pid;			/* holder while IN_USE */
	uint32		generation;
	bool		interactive;
} Entry;

typedef struct CompanyShared
{
	char		subject[MAX_COMPANY];	/* "": unused */
	int64		last_use;
	int64		held_until;		/* after a 429 */
	int			waiting_interactive;
	int64		bulk_waits_until;	/* the queue has been turned away until then */
	Entry		entry[MAX_TICKETS];
} CompanyShared;

typedef struct WindowShared
{
	uint32		magic;			/* layout */
	char		boot_id[40];
	CompanyShared company[FLEXIBLE_ARRAY_MEMBER];
} WindowShared;

#define WINDOW_FILE		"fini.throttle" /* in the data directory */
#define WINDOW_MAGIC	0x46494E32

static WindowShared *window_memory = NULL;
static CompanyShared *companies = NULL;
static int	company_count = 0;
static LWLock *throttle_lock = NULL;
static bool exit_callback_registered = false;
static int	counted_in = -1;	/* the company whose waiting_interactive counts us */

static void *map_window(Size size);
static void read_boot_id(char *dst, Size size);
static int	find_company(int64 now);
static void stop_counting(void);
static void tell_wait(int64 wait);
static void end_ticket(FiniTicket *ticket, int64 stamp);
static bool has_turn(const CompanyShared *company, FiniThrottleClass class, int limit, int live, int live_interactive, int64 now);
static int	share_kept(int limit);
static int	compare_stamps(const void *a, const void *b);
static void release_at_exit(int code, Datum arg);

/*
 * Runs in the postmaster when it starts, and again when it re-initialises
 * shared memory after a crash of a backend: the mapping is kept, and whoever
 * held a ticket is gone.
 */
void
fini_throttle_startup(int databases, LWLock *lock)
{
	Size		size;
	char		boot_id[sizeof(window_memory->boot_id)];
	int64		now = fini_monotonic_us();

	throttle_lock = lock;
	company_count = databases + EXTRA_COMPANIES;
	size = offsetof(WindowShared, company) + mul_size(company_count, sizeof(CompanyShared));
	if (window_memory == NULL)
		window_memory = map_window(size);
	companies = window_memory->company;

	read_boot_id(boot_id, sizeof(boot_id));
	if (window_memory->magic != WINDOW_MAGIC || strcmp(window_memory->boot_id, boot_id) != 0)
	{
		memset(window_memory, 0, size);
		window_memory->magic = WINDOW_MAGIC;
		strlcpy(window_memory->boot_id, boot_id, sizeof(window_memory->boot_id));
	}
	for (int c = 0; c < company_count; c++)
	{
		companies[c].waiting_interactive = 0;
		companies[c].bulk_waits_until = 0;
		companies[c].subject[MAX_COMPANY - 1] = '\0';
		for (int i = 0; i < MAX_TICKETS; i++)
		{
			if (companies[c].entry[i].stamp > now)	/* in use, or nonsense */
				companies[c].entry[i].stamp = now;
		}
	}
}

int64
fini_throttle_take(FiniThrottleClass class, FiniTicket *ticket)
{
	int64		now = fini_monotonic_us();
	int64		window = (int64) fini_guc_rate_window * 1000;
	int			limit = fini_guc_rate_limit;
	int64		wait = 0;
	int64		earliest = PG_INT64_MAX;
	int			live = 0;
	int			live_interactive = 0;
	int			free_entry = -1;
	CompanyShared *company;

	ticket->company = -1;
	ticket->taken_us = now;
	if (!exit_callback_registered)
	{
		before_shmem_exit(release_at_exit, 0);
		exit_callback_registered = true;
	}

	LWLockAcquire(throttle_lock, LW_EXCLUSIVE);
	ticket->entry = find_company(now);
	company = &companies[ticket->entry];
	company->last_use = now;

	if (company->held_until > now)
		wait = company->held_until - now;
	else if (limit > 0)
	{
		for (int i = 0; i < MAX_TICKETS; i++)
		{
			int64		stamp = company->entry[i].stamp;

			if (stamp == IN_USE || (stamp != 0 && stamp + window > now))
			{
				live++;
				live_interactive += company->entry[i].interactive;
				if (stamp != IN_USE)
					earliest = Min(earliest, stamp + window);
			}
			else if (free_entry < 0)
				free_entry = i;
			if (stamp == 0 && free_entry >= 0)
				break;			/* entries are used from the front */
		}
		if (free_entry < 0 || !has_turn(company, class, limit, live, live_interactive, now))
		{
			/* all in use: the end of one of them is not far, but unknown */
			wait = earliest == PG_INT64_MAX ? 10000 : Max(earliest - now, 1000);
			/* it may be only a matter of whose turn it is */
			if (live < limit - (class == FINI_THROTTLE_BULK ? share_kept(limit) : 0))
				wait = Min(wait, 10000);
			if (class == FINI_THROTTLE_BULK)
				company->bulk_waits_until = now + wait + 100000;
		}
	}

	if (wait == 0 && limit > 0)
	{
		company->entry[free_entry].stamp = IN_USE;
		company->entry[free_entry].pid = MyProcPid;
		company->entry[free_entry].interactive = class == FINI_THROTTLE_INTERACTIVE;
		company->entry[free_entry].generation++;
		ticket->company = ticket->entry;
		ticket->entry = free_entry;
		ticket->generation = company->entry[free_entry].generation;
	}
	LWLockRelease(throttle_lock);
	return wait;
}

bool
fini_throttle_wait(FiniTicket *ticket, int max_wait_ms)
{
	int64		deadline = fini_monotonic_us() + (int64) max_wait_ms * 1000;
	int64		wait = fini_throttle_take(FINI_THROTTLE_INTERACTIVE, ticket);
	int			company;

	if (wait == 0)
		return false;

	/* from here on the queue lets us go first */
	LWLockAcquire(throttle_lock, LW_EXCLUSIVE);
	company = find_company(fini_monotonic_us());
	companies[company].waiting_interactive++;
	counted_in = company;
	LWLockRelease(throttle_lock);

	PG_TRY();
	{
		while (wait > 0)
		{
			if (fini_monotonic_us() + wait > deadline)
				ereport(ERROR,
						(errcode(FINI_ERRCODE_THROTTLED),
						 errmsg("the throttle leaves no room for this call within fini.request_timeout"),
						 errdetail("The next request could leave in " INT64_FORMAT " ms; %d requests are allowed in %d ms.",
								   wait / 1000, fini_guc_rate_limit, fini_guc_rate_window),
						 errhint("Try again later; nothing was sent.")));
			tell_wait(wait);
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 Max(1, Min(wait / 1000 + 1, 1000)), fini_wait_event(FINI_WAIT_THROTTLE));
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
			wait = fini_throttle_take(FINI_THROTTLE_INTERACTIVE, ticket);
		}
	}
	PG_FINALLY();
	{
		LWLockAcquire(throttle_lock, LW_EXCLUSIVE);
		stop_counting();
		LWLockRelease(throttle_lock);
	}
	PG_END_TRY();
	return true;
}

void
fini_throttle_give_back(FiniTicket *ticket)
{
	end_ticket(ticket, fini_monotonic_us());
}

void
fini_throttle_cancel(FiniTicket *ticket)
{
	end_ticket(ticket, LONG_AGO);
}

void
fini_throttle_hold(int64 duration_us)
{
	int64		now = fini_monotonic_us();
	CompanyShared *company;

	LWLockAcquire(throttle_lock, LW_EXCLUSIVE);
	company = &companies[find_company(now)];
	company->held_until = Max(company->held_until, now + duration_us);
	LWLockRelease(throttle_lock);
}

void
fini_throttle_resume(void)
{
	LWLockAcquire(throttle_lock, LW_EXCLUSIVE);
	companies[find_company(fini_monotonic_us())].held_until = 0;
	LWLockRelease(throttle_lock);
}

int
fini_throttle_in_use(int64 *held_us)
{
	int64		now = fini_monotonic_us();
	int64		window = (int64) fini_guc_rate_window * 1000;
	CompanyShared *company;
	int			live = 0;

	LWLockAcquire(throttle_lock, LW_EXCLUSIVE);
	company = &companies[find_company(now)];
	for (int i = 0; i < MAX_TICKETS && company->entry[i].stamp != 0; i++)
		live += company->entry[i].stamp == IN_USE || company->entry[i].stamp + window > now;
	if (held_us != NULL)
		*held_us = Max(company->held_until - now, 0);
	LWLockRelease(throttle_lock);
	return live;
}

int64
fini_throttle_forecast(int limit, int64 window_us, int64 held_us, int64 n, int64 *closed)
{
	int64	   *stamps = palloc(sizeof(int64) * MAX_TICKETS);
	int64		now = fini_monotonic_us();
	int64		cycle = window_us + held_us;
	int			share = limit - share_kept(limit);
	int			live = 0;
	int64		place;
	int64		leaves;

	*closed = 0;
	LWLockAcquire(throttle_lock, LW_SHARED);
	for (int c = 0; c < company_count; c++)
	{
		if (companies[c].last_use == 0 || strncmp(companies[c].subject, fini_guc_agent_subject, MAX_COMPANY - 1) != 0)
			continue;
		*closed = Max(companies[c].held_until - now, 0);
		for (int i = 0; i < MAX_TICKETS && companies[c].entry[i].stamp != 0; i++)
		{
			int64		stamp = companies[c].entry[i].stamp;

			if (stamp == IN_USE)
				stamps[live++] = cycle;
			else if (stamp + window_us > now)
				stamps[live++] = stamp + window_us - now;
		}
		break;
	}
	LWLockRelease(throttle_lock);
	if (limit == 0 || n <= 0)
	{
		pfree(stamps);
		return *closed;
	}

	/* the places as they become free, the first "share" of them; then the same again, one cycle later */
	qsort(stamps, live, sizeof(int64), compare_stamps);
	place = (n - 1) % share;
	leaves = place < share - live ? 0 : stamps[place - (share - live)];
	pfree(stamps);
	return Max(*closed, leaves) + (n - 1) / share * cycle;
}

/*
 * The file, mapped and as large as asked (new parts are zero); or, where it
 * cannot be had, memory that outlives a crash but not a restart.
 */
static void *
map_window(Size size)
{
	int			fd = open(WINDOW_FILE, O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR);
	void	   *memory = MAP_FAILED;

	/* with its blocks: a hole that cannot be filled later would end in SIGBUS */
	if (fd >= 0 && posix_fallocate(fd, 0, size) == 0)
		memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not map file \"%s\": %m", WINDOW_FILE),
				 errdetail("The count of requests sent will not outlive a restart of the server.")));
		memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	}
	if (fd >= 0)
		close(fd);
	if (memory == MAP_FAILED)
		ereport(FATAL,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not map memory for the throttle of fini: %m")));
	return memory;
}

static void
read_boot_id(char *dst, Size size)
{
	FILE	   *file = AllocateFile("/proc/sys/kernel/random/boot_id", "r");

	memset(dst, 0, size);
	if (file != NULL)
	{
		if (fgets(dst, (int) size, file) == NULL)
			dst[0] = '\0';
		FreeFile(file);
	}
}

/* our company's index, taking over the longest unused place for a new one; lock held */
static int
find_company(int64 now)
{
	int			oldest = 0;

	for (int i = 0; i < company_count; i++)
	{
		if (companies[i].last_use != 0 &&
			strncmp(companies[i].subject, fini_guc_agent_subject, MAX_COMPANY - 1) == 0)
			return i;
		if (companies[i].last_use < companies[oldest].last_use)
			oldest = i;
	}
	memset(&companies[oldest], 0, sizeof(CompanyShared));
	strlcpy(companies[oldest].subject, fini_guc_agent_subject, MAX_COMPANY);
	companies[oldest].last_use = now;
	return oldest;
}

/* we wait no more; lock held */
static void
stop_counting(void)
{
	if (counted_in >= 0 && companies[counted_in].waiting_interactive > 0)
		companies[counted_in].waiting_interactive--;
	counted_in = -1;
}

/* for how long, to whoever waits; not for every page of a long list */
static void
tell_wait(int64 wait)
{
	static int64 told_us = 0;
	int64		now = fini_monotonic_us();

	if (wait < WORTH_TELLING_US || (told_us != 0 && now - told_us < TELL_AGAIN_US))
		return;
	told_us = now;
	ereport(NOTICE,
			(errmsg("waiting for the throttle: the next request can leave in " INT64_FORMAT " s", (wait + 999999) / 1000000),
			 errdetail("%d requests are allowed in %d ms.", fini_guc_rate_limit, fini_guc_rate_window)));
}

static void
end_ticket(FiniTicket *ticket, int64 stamp)
{
	Entry	   *entry;

	if (ticket->company < 0)
		return;
	LWLockAcquire(throttle_lock, LW_EXCLUSIVE);
	entry = &companies[ticket->company].entry[ticket->entry];
	if (entry->stamp == IN_USE && entry->generation == ticket->generation)
		entry->stamp = stamp;
	LWLockRelease(throttle_lock);
	ticket->company = -1;
}

/*
 * The queue leaves a small share to the others, and lets those that wait go
 * first; but while the queue waits, the others together get half the window.
 */
static bool
has_turn(const CompanyShared *company, FiniThrottleClass class, int limit, int live, int live_interactive, int64 now)
{
	bool		others_had_half = live_interactive >= Max(1, limit / 2);

	if (class == FINI_THROTTLE_BULK)
		return live < limit - share_kept(limit) && (company->waiting_interactive == 0 || others_had_half);
	/* beyond half, what the queue waits for is its; but not the places that it may not take */
	return live < limit && (!others_had_half || company->bulk_waits_until < now || live >= limit - share_kept(limit));
}

/*
 * What the queue leaves to direct calls and token fetches: one request in
 * forty, at least one, but never all.
 */
static int
share_kept(int limit)
{
	return limit <= 1 ? 0 : Max(1, limit / 40);
}

static int
compare_stamps(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x > y) - (x < y);
}

/* a process that ends while it waits, or with tickets in hand: they count from now */
static void
release_at_exit(int code, Datum arg)
{
	int64		now = fini_monotonic_us();

	LWLockAcquire(throttle_lock, LW_EXCLUSIVE);
	stop_counting();
	for (int c = 0; c < company_count; c++)
	{
		for (int i = 0; i < MAX_TICKETS && companies[c].entry[i].stamp != 0; i++)
		{
			if (companies[c].entry[i].stamp == IN_USE && companies[c].entry[i].pid == MyProcPid)
				companies[c].entry[i].stamp = now;
		}
	}
	LWLockRelease(throttle_lock);
}
