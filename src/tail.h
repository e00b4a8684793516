/*
 * tail.h
 *		Where FINI's records of an IPO ended when they were last looked through:
 *		the cursor of that last page, in fini.look.
 *
 * For find.c, inside its transactions.  Nothing depends on it but how many
 * requests a look takes.
 */
#ifndef FINI_TAIL_H
#define FINI_TAIL_H

#include "postgres.h"

/* in the context given; NULL when it is not known */
extern char *fini_tail_of(const char *ipo_id, MemoryContext into);

/* known: what fini_tail_of gave; cursor NULL: the first page, which needs no note */
extern void fini_tail_keep(const char *ipo_id, const char *known, const char *cursor);

#endif							/* FINI_TAIL_H */
