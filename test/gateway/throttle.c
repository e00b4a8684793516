/*
 * throttle.c
 *		The company's request limit: an exact sliding window.
 *
 * Two queues of arrival times.  `admitted` holds what counts against the limit: a
 * request is admitted when fewer than the limit were admitted during the window that
 * ends now.  `seen` holds refused requests as well and gives the peak that tells a
 * test how a client behaved.
 */
#include "throttle.h"

#include "settings.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct Times
{
	int64_t    *at;				/* ring of cap, a power of two */
	size_t		cap;
	size_t		first;
	size_t		n;
} Times;

static void push(Times *times, int64_t now);
static void forget(Times *times, int64_t until);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Times admitted;
static Times seen;
static size_t peak;

/* Counts a request; false with the seconds to wait when it is one too many. */
bool
gw_throttle_admit(long *retry_after)
{
	int64_t		limit = gw_settings.rate_limit;
	int64_t		window = gw_settings.rate_window_us;
	int64_t		now;
	bool		ok = true;

	pthread_mutex_lock(&lock);
	now = gw_clock_monotonic_us();
	forget(&seen, now - window);
	push(&seen, now);
	if (seen.n > peak)
		peak = seen.n;
	forget(&admitted, now - window);
	if (limit > 0 && admitted.n >= (size_t) limit)
	{
		int64_t		wait = admitted.at[(admitted.first + admitted.n - (size_t) limit) & (admitted.cap - 1)] + window - now;

		*retry_after = (long) ((wait + 999999) / 1000000);
		if (*retry_after < 1)
			*retry_after = 1;
		ok = false;
	}
	else
		push(&admitted, now);
	pthread_mutex_unlock(&lock);
	return ok;
}

int64_t
gw_throttle_peak(void)
{
	int64_t		value;

	pthread_mutex_lock(&lock);
	value = (int64_t) peak;
	pthread_mutex_unlock(&lock);
	return value;
}

void
gw_throttle_reset(void)
{
	pthread_mutex_lock(&lock);
	admitted.n = 0;
	seen.n = 0;
	peak = 0;
	pthread_mutex_unlock(&lock);
}

static void
push(Times *times, int64_t now)
{
	if (times->n == times->cap)
	{
		size_t		cap = times->cap ? times->cap * 2 : 1024;
		int64_t    *at = gw_alloc(cap * sizeof(int64_t));
		size_t		i;

		for (i = 0; i < times->n; i++)
			at[i] = times->at[(times->first + i) & (times->cap - 1)];
		free(times->at);
		times->at = at;
		times->cap = cap;
		times->first = 0;
	}
	times->at[(times->first + times->n++) & (times->cap - 1)] = now;
}

/* A request exactly one window ago no longer counts. */
static void
forget(Times *times, int64_t until)
{
	while (times->n > 0 && times->at[times->first] <= until)
	{
		times->first = (times->first + 1) & (times->cap - 1);
		times->n--;
	}
}
