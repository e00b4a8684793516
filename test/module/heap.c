/*
 * heap.c
 *		How much memory this process holds, for tests that look for leaks.
 */
#include "postgres.h"

#include <dirent.h>
#include <malloc.h>

#include "fmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(fini_test_heap);
PG_FUNCTION_INFO_V1(fini_test_files);

/* bytes that malloc has given out: PostgreSQL's memory contexts, libcurl's and OpenSSL's objects */
Datum
fini_test_heap(PG_FUNCTION_ARGS)
{
	struct mallinfo2 info = mallinfo2();

	PG_RETURN_INT64((int64) info.uordblks + (int64) info.hblkhd);
}

/* open file descriptors */
Datum
fini_test_files(PG_FUNCTION_ARGS)
{
	DIR		   *dir = opendir("/proc/self/fd");
	int32		n = 0;

	while (dir != NULL && readdir(dir) != NULL)
		n++;
	if (dir != NULL)
		closedir(dir);
	PG_RETURN_INT32(n);
}
