/*
 * source_fetch.h
 *		Rows of a user's table, by own_ref, without the executor; for source.c
 *		alone.
 */
#ifndef FINI_SOURCE_FETCH_H
#define FINI_SOURCE_FETCH_H

#include "postgres.h"

#include "source.h"

/* the row of own_refs[i]: its values in the order of source->fields, which last until this returns, and its place */
typedef void (*FiniSourceFetched) (void *arg, int i, const Datum *values, const bool *nulls, const ItemPointerData *tid);

/*
 * Call fn for those of these own_refs that have a row, in any order, as the
 * table's owner, whose identity the caller has taken on.  False, and nothing is
 * done: the table is one that only a statement does justice to.
 */
extern bool fini_source_fetch(FiniSource *source, int n, const char *const *own_refs, FiniSourceFetched fn, void *arg);

#endif							/* FINI_SOURCE_FETCH_H */
