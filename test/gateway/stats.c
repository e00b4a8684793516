/*
 * stats.c
 *		Counters and the last refusals.
 */
#include "stats.h"

#include "settings.h"

#include <pthread.h>
#include <string.h>

#define KEPT_REFUSALS 1000

static void count(json_t **table, const char *name);

static const char *const counter_names[COUNTERS] = {
	"entries", "accepted", "rejected", "changed", "invalidated", "out_of_order",
	"duplicate_adds", "tokens", "meta", "repeated_request_ids",
	"confirmed", "confirmed_again", "contradicted"
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t counters[COUNTERS];
static json_t *requests;		/* by endpoint */
static json_t *refusals;		/* by code */
static json_t *faults;			/* by action */
static json_t *last_refusals;	/* array, oldest first */

void
gw_stats_add(Counter counter, int64_t n)
{
	pthread_mutex_lock(&lock);
	counters[counter] += n;
	pthread_mutex_unlock(&lock);
}

void
gw_stats_request(const char *endpoint)
{
	pthread_mutex_lock(&lock);
	count(&requests, endpoint);
	pthread_mutex_unlock(&lock);
}

/* Counts, remembers and logs; the message holds no personal data. */
void
gw_stats_refusal(const char *endpoint, unsigned http, const char *code, const char *message)
{
	pthread_mutex_lock(&lock);
	count(&refusals, code);
	if (last_refusals == NULL)
		last_refusals = json_array();
	if (json_array_size(last_refusals) == KEPT_REFUSALS)
		json_array_remove(last_refusals, 0);
	json_array_append_new(last_refusals,
						  json_pack("{sI ss si ss ss}", "at", (json_int_t) gw_clock_ms(), "endpoint", endpoint,
									"http", (int) http, "code", code, "message", message));
	pthread_mutex_unlock(&lock);
	gw_log("refused %s: %u, code %s, %s", endpoint, http, code, message);
}

void
gw_stats_fault(const char *action)
{
	pthread_mutex_lock(&lock);
	count(&faults, action);
	pthread_mutex_unlock(&lock);
}

void
gw_stats_reset(void)
{
	json_t	  **tables[] = {&requests, &refusals, &faults, &last_refusals};
	size_t		i;

	pthread_mutex_lock(&lock);
	memset(counters, 0, sizeof(counters));
	for (i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
	{
		json_decref(*tables[i]);
		*tables[i] = NULL;
	}
	pthread_mutex_unlock(&lock);
}

/* A new object, the caller's. */
json_t *
gw_stats_report(void)
{
	json_t	   *report = json_object();
	int			i;

	pthread_mutex_lock(&lock);
	json_object_set_new(report, "requests", requests ? json_deep_copy(requests) : json_object());
	for (i = 0; i < COUNTERS; i++)
		json_object_set_new(report, counter_names[i], json_integer(counters[i]));
	json_object_set_new(report, "refusals", refusals ? json_deep_copy(refusals) : json_object());
	json_object_set_new(report, "faults", faults ? json_deep_copy(faults) : json_object());
	pthread_mutex_unlock(&lock);
	return report;
}

/* A new array, the caller's. */
json_t *
gw_stats_refusals(void)
{
	json_t	   *copy;

	pthread_mutex_lock(&lock);
	copy = last_refusals ? json_deep_copy(last_refusals) : json_array();
	pthread_mutex_unlock(&lock);
	return copy;
}

/* Caller holds the lock. */
static void
count(json_t **table, const char *name)
{
	if (*table == NULL)
		*table = json_object();
	json_object_set_new(*table, name,
						json_integer(json_integer_value(json_object_get(*table, name)) + 1));
}
