/*
 * backoff.c
 *		Doubling pauses with jitter and a ceiling.
 */
#include "postgres.h"

#include "common/pg_prng.h"

#include "backoff.h"

int64
fini_backoff_us(int failures, int64 min_us, int64 max_us)
{
	int64		pause = min_us;

	for (int i = 1; i < failures && pause < max_us; i++)
		pause *= 2;
	return (int64) ((double) Min(pause, max_us) * (0.75 + 0.5 * pg_prng_double(&pg_global_prng_state)));
}
