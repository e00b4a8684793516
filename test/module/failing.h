/*
 * failing.h
 *		What failing.c (preloaded) and heap.c (SQL functions) share.
 */
#ifndef FINI_TEST_FAILING_H
#define FINI_TEST_FAILING_H

#include <stdint.h>

enum
{
	FAIL_MALLOC = 1,
	FAIL_CRYPTO = 2,
	FAIL_CURL = 3
};

typedef struct FailControl
{
	volatile int32_t pid;		/* where calls are counted; 0: nowhere */
	volatile int32_t family;
	volatile int64_t nth;		/* which of them fails; 0: none */
	volatile int32_t all_after; /* and all after it? */
	volatile int64_t count;
	volatile int64_t failed;
	char		name[64];		/* what failed last */
} FailControl;

#endif							/* FINI_TEST_FAILING_H */
