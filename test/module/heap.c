/*
 * heap.c
 *		How much memory this process holds, for tests that look for leaks; the switch of failing.c; a signal at a moment.
 */
#include "postgres.h"

#include <dirent.h>
#include <dlfcn.h>
#include <malloc.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "failing.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(fini_test_heap);
PG_FUNCTION_INFO_V1(fini_test_files);
PG_FUNCTION_INFO_V1(fini_test_fail);
PG_FUNCTION_INFO_V1(fini_test_failed);
PG_FUNCTION_INFO_V1(fini_test_interrupt);

/* bytes that malloc has given out: PostgreSQL's memory contexts, libcurl's and OpenSSL's objects */
Datum
fini_test_heap(PG_FUNCTION_ARGS)
{
	struct mallinfo2 info = mallinfo2();

	PG_RETURN_INT64((int64) info.uordblks + (int64) info.hblkhd);
}

/* open file descriptors, without those of PostgreSQL's own files, which it keeps as long as it likes */
Datum
fini_test_files(PG_FUNCTION_ARGS)
{
	DIR		   *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	int32		n = 0;

	while (dir != NULL && (entry = readdir(dir)) != NULL)
	{
		char		name[MAXPGPATH] = "";

		if (readlinkat(dirfd(dir), entry->d_name, name, sizeof(name) - 1) > 0 && strncmp(name, DataDir, strlen(DataDir)) == 0)
			continue;
		n++;
	}
	if (dir != NULL)
		closedir(dir);
	PG_RETURN_INT32(n);
}

static FailControl *
control(void)
{
	FailControl **at = dlsym(RTLD_DEFAULT, "fini_fail_control");

	if (at == NULL || *at == NULL)
		elog(ERROR, "failing.so is not preloaded");
	return *at;
}

/* (pid, family, nth, all_after): from now on that one fails in that process; pid 0: nothing does */
Datum
fini_test_fail(PG_FUNCTION_ARGS)
{
	FailControl *set = control();

	set->pid = 0;
	set->family = PG_GETARG_INT32(1);
	set->nth = PG_GETARG_INT64(2);
	set->all_after = PG_GETARG_BOOL(3);
	set->count = 0;
	set->failed = 0;
	memset(set->name, 0, sizeof(set->name));
	set->pid = PG_GETARG_INT32(0);
	PG_RETURN_VOID();
}

/* stops it, and says how many calls there were, how many failed, and which the last of these was */
Datum
fini_test_failed(PG_FUNCTION_ARGS)
{
	FailControl *set = control();

	set->pid = 0;
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("%lld %lld %s", (long long) set->count, (long long) set->failed, set->name)));
}

/* (signal, microseconds): this process gets it after that time, wherever it is then; 0 microseconds: it does not any more */
Datum
fini_test_interrupt(PG_FUNCTION_ARGS)
{
	static timer_t timer;
	static int	armed_for = 0;
	int			signal = PG_GETARG_INT32(0);
	int64		us = PG_GETARG_INT64(1);
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL,.sigev_signo = signal};
	struct itimerspec when = {.it_value = {.tv_sec = us / 1000000,.tv_nsec = us % 1000000 * 1000}};

	if (armed_for != signal)
	{
		if (armed_for != 0)
			timer_delete(timer);
		armed_for = 0;
		if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0)
			elog(ERROR, "timer_create: %m");
		armed_for = signal;
	}
	if (timer_settime(timer, 0, &when, NULL) != 0)
		elog(ERROR, "timer_settime: %m");
	PG_RETURN_VOID();
}
