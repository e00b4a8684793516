/*
 * compare.h
 *		Does a record at FINI say what we would send?
 */
#ifndef FINI_COMPARE_H
#define FINI_COMPARE_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "json_value.h"

typedef struct FiniDifference
{
	const char *field;			/* FINI's name */
	const char *local;			/* NULL for personal fields, and where there is none */
	const char *remote;
} FiniDifference;

/*
 * The differences between the members of an entry (without braces, as in
 * FiniRow) and a record, as FiniDifference, each field once; NIL when there
 * are none.  Members that are too large (NULL) differ, by no field's name.
 * Texts are compared trimmed, as FINI trims; null, empty and absent are the same;
 * what only FINI knows does not count.  Strictly, a field that the record does not
 * show differs; otherwise FINI may keep it and not tell.
 */
extern List *fini_compare_entry(const char *members, Size len, const FiniValue *record, bool strict);

#endif							/* FINI_COMPARE_H */
