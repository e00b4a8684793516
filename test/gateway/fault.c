/*
 * fault.c
 *		The list of planted faults, and choosing the one that strikes.
 *
 * At most one fault strikes a call at each stage: the first of the list whose endpoint
 * and text in the body fit, that is not used up, has nothing left to skip and wins its throw
 * of the dice.
 */
#include "fault.h"

#include "stats.h"

#include <gnutls/crypto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct Planted
{
	FaultAction action;
	json_t	   *arguments;		/* as given */
	const char *endpoint;		/* inside arguments, as is match */
	const char *match;			/* NULL, or what the body has to contain */
	json_int_t	left;			/* -1: for ever */
	json_int_t	skip;
	double		probability;
	json_int_t	hits;
} Planted;

static bool check_one(const json_t *item, Planted *planted, const char **problem);
static bool fits(const char *pattern, const char *endpoint);
static bool contains(const Buf *body, const char *text);
static double dice(void);
static FaultStage stage_of(FaultAction action);

static const char *const names[FAULT_ACTIONS] = {
	[FAULT_NONE] = "none",
	[FAULT_DROP_BEFORE] = "drop-before",
	[FAULT_HANG_BEFORE] = "hang-before",
	[FAULT_STATUS_BEFORE] = "status-before",
	[FAULT_CODE_BEFORE] = "code-before",
	[FAULT_REDIRECT] = "redirect",
	[FAULT_DROP_AFTER] = "drop-after",
	[FAULT_HANG_AFTER] = "hang-after",
	[FAULT_STATUS_AFTER] = "status-after",
	[FAULT_CODE_AFTER] = "code-after",
	[FAULT_TRUNCATE] = "truncate",
	[FAULT_GARBAGE] = "garbage",
	[FAULT_WRONG_SHAPE] = "wrong-shape",
	[FAULT_INVALID_UTF8] = "invalid-utf8",
	[FAULT_TRICKLE] = "trickle",
	[FAULT_DELAY] = "delay",
	[FAULT_REJECT_ENTRIES] = "reject-entries",
	[FAULT_DROP_ENTRIES] = "drop-entries",
	[FAULT_EXTRA_ENTRIES] = "extra-entries",
	[FAULT_REORDER] = "reorder",
	[FAULT_REQUEST_ID_NUMBER] = "request-id-number",
	[FAULT_REQUEST_ID_STRING] = "request-id-string",
	[FAULT_BIG_RECORD_ID] = "big-record-id",
	[FAULT_TAMPER] = "tamper",
	[FAULT_TRUNCATE_CIPHERTEXT] = "truncate-ciphertext",
	[FAULT_BAD_PREFIX] = "bad-prefix",
	[FAULT_OVERSIZE] = "oversize",
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Planted *planted;
static size_t nplanted;

/* Appends all faults of an array (or one object), or none of them when one is wrong. */
bool
gw_fault_plant(const json_t *list, const char **problem)
{
	size_t		n = json_is_array(list) ? json_array_size(list) : 1;
	Planted    *more = gw_alloc(n * sizeof(Planted));
	size_t		i;

	for (i = 0; i < n; i++)
	{
		if (!check_one(json_is_array(list) ? json_array_get(list, i) : list, &more[i], problem))
		{
			free(more);
			return false;
		}
	}
	pthread_mutex_lock(&lock);
	planted = realloc(planted, (nplanted + n + 1) * sizeof(Planted));
	if (planted == NULL)
		abort();
	for (i = 0; i < n; i++)
	{
		more[i].arguments = json_deep_copy(more[i].arguments);
		more[i].endpoint = gw_json_string(more[i].arguments, "endpoint");
		more[i].match = gw_json_string(more[i].arguments, "match");
		planted[nplanted++] = more[i];
	}
	pthread_mutex_unlock(&lock);
	free(more);
	return true;
}

/* The planted faults with their hits and what is left of them; the caller's. */
json_t *
gw_fault_list(void)
{
	json_t	   *list = json_array();
	size_t		i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < nplanted; i++)
	{
		json_t	   *item = json_deep_copy(planted[i].arguments);

		json_object_set_new(item, "hits", json_integer(planted[i].hits));
		json_object_set_new(item, "left", json_integer(planted[i].left));
		json_array_append_new(list, item);
	}
	pthread_mutex_unlock(&lock);
	return list;
}

void
gw_fault_clear(void)
{
	size_t		i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < nplanted; i++)
		json_decref(planted[i].arguments);
	free(planted);
	planted = NULL;
	nplanted = 0;
	pthread_mutex_unlock(&lock);
}

/* The fault that strikes now (counted as a hit), or FAULT_NONE. */
Fault
gw_fault_pick(const char *endpoint, const Buf *body, FaultStage stage)
{
	Fault		fault = {FAULT_NONE, NULL};
	size_t		i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < nplanted && fault.action == FAULT_NONE; i++)
	{
		Planted    *one = &planted[i];

		if (one->left == 0 || stage_of(one->action) != stage || !fits(one->endpoint, endpoint) ||
			(one->match != NULL && !contains(body, one->match)))
			continue;
		if (one->skip > 0)
		{
			one->skip--;
			continue;
		}
		if (one->probability < 1 && dice() >= one->probability)
			continue;
		if (one->left > 0)
			one->left--;
		one->hits++;
		fault.action = one->action;
		fault.arguments = json_deep_copy(one->arguments);
	}
	pthread_mutex_unlock(&lock);
	if (fault.action != FAULT_NONE)
		gw_stats_fault(names[fault.action]);
	return fault;
}

void
gw_fault_release(Fault *fault)
{
	json_decref(fault->arguments);
	*fault = (Fault) {FAULT_NONE, NULL};
}

/* An argument of the fault. */
const char *
gw_fault_string(const Fault *fault, const char *name, const char *preset)
{
	const char *text = gw_json_string(fault->arguments, name);

	return text ? text : preset;
}

json_int_t
gw_fault_number(const Fault *fault, const char *name, json_int_t preset)
{
	json_t	   *value = json_object_get(fault->arguments, name);

	return json_is_integer(value) ? json_integer_value(value) : preset;
}

static bool
check_one(const json_t *item, Planted *one, const char **problem)
{
	static const char *const numbers[] = {"count", "skip", "ms", "status", "retryAfter", "n", "bytes"};
	const char *action = gw_json_string(item, "action");
	json_t	   *value;
	size_t		i;

	if (gw_json_string(item, "endpoint") == NULL)
	{
		*problem = "a fault without an endpoint";
		return false;
	}
	memset(one, 0, sizeof(*one));
	for (i = 1; i < FAULT_ACTIONS && action != NULL; i++)
		if (strcmp(names[i], action) == 0)
			one->action = (FaultAction) i;
	if (one->action == FAULT_NONE)
	{
		*problem = "a fault without a known action";
		return false;
	}
	for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
	{
		value = json_object_get(item, numbers[i]);
		if (value != NULL && (!json_is_integer(value) || json_integer_value(value) < (i == 0 ? -1 : 0)))
		{
			*problem = "count, skip, ms, status, retryAfter, n and bytes are whole numbers";
			return false;
		}
	}
	value = json_object_get(item, "status");
	if (value != NULL && (json_integer_value(value) < 200 || json_integer_value(value) > 599))
	{
		*problem = "a status is between 200 and 599";
		return false;
	}
	value = json_object_get(item, "probability");
	if (value != NULL && (!json_is_number(value) || json_number_value(value) < 0 || json_number_value(value) > 1))
	{
		*problem = "a probability is between 0 and 1";
		return false;
	}
	one->probability = value ? json_number_value(value) : 1;
	value = json_object_get(item, "count");
	one->left = value ? json_integer_value(value) : 1;
	one->skip = json_integer_value(json_object_get(item, "skip"));
	one->arguments = (json_t *) item;
	return true;
}

/* "*", "family/" and a star, or the very name. */
static bool
fits(const char *pattern, const char *endpoint)
{
	size_t		len = strlen(pattern);

	if (len > 0 && pattern[len - 1] == '*')
		return strncmp(pattern, endpoint, len - 1) == 0;
	return strcmp(pattern, endpoint) == 0;
}

static bool
contains(const Buf *body, const char *text)
{
	return body->len > 0 && strstr(body->data, text) != NULL;
}

static double
dice(void)
{
	uint32_t	value;

	gnutls_rnd(GNUTLS_RND_NONCE, &value, sizeof(value));
	return value / 4294967296.0;
}

static FaultStage
stage_of(FaultAction action)
{
	return action <= FAULT_REDIRECT ? STAGE_BEFORE : STAGE_PROCESS;
}
