/*
 * backoff.h
 *		How long to wait after failures in a row.
 */
#ifndef FINI_BACKOFF_H
#define FINI_BACKOFF_H

#include "postgres.h"

/*
 * Microseconds to wait after so many failures in a row (at least one):
 * min_us after the first, twice as long after each further one up to max_us,
 * a quarter more or less by chance, so that workers of several databases, and
 * several servers, spread.
 */
extern int64 fini_backoff_us(int failures, int64 min_us, int64 max_us);

#endif							/* FINI_BACKOFF_H */
