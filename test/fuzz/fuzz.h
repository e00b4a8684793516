/*
 * fuzz.h
 *		A target: one parser of what others wrote, and what must hold of it.
 *
 * A target gets the input in memory of exactly its size, so that a sanitizer
 * sees the first byte read behind it.  It may raise errors and need free
 * nothing: the memory context goes after each execution.  What must never
 * happen is stated with must().
 */
#ifndef FINI_FUZZ_H
#define FINI_FUZZ_H

#include "postgres.h"

typedef void (*FuzzTarget) (const char *data, Size len);

typedef struct FuzzTargetEntry
{
	const char *name;
	FuzzTarget	run;
	bool		needs_rollback; /* holds relations or plans: each execution is a subtransaction */
	const char *purpose;
} FuzzTargetEntry;

/* ends with an entry without a name */
extern const FuzzTargetEntry fuzz_targets[];

/* http_headers.c */
extern void fuzz_http_headers(const char *data, Size len);

/* json_values.c */
extern void fuzz_json_values(const char *data, Size len);

/* a promise of the code under test: a fuzzer's finding when it is broken */
#define must(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "broken: %s (%s:%d)\n", #condition, __FILE__, __LINE__); \
			abort(); \
		} \
	} while (0)

#endif							/* FINI_FUZZ_H */
