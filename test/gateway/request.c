/*
 * request.c
 *		The request IDs that were processed: each counts once, for ever.
 *
 * Callers hold the store's lock.
 */
#include "store.h"

#include "index.h"

#include <stdlib.h>
#include <string.h>

static uint64_t hash_by_request(uint32_t number);
static bool matches_request(uint32_t number, const void *key);

static uint8_t (*requests)[16];
static uint32_t nrequests;
static uint32_t cap;
static Index by_request = {.hash = hash_by_request};

bool
gw_store_knows_request(const uint8_t id[16])
{
	return gw_index_find(&by_request, gw_index_hash(id, 16, 0), matches_request, id) != GW_INDEX_NONE;
}

/* Takes a request ID for ever; false when it was taken before. */
bool
gw_store_claim_request(const uint8_t id[16], uint32_t *request)
{
	if (gw_store_knows_request(id))
		return false;
	if (nrequests == cap)
	{
		cap = cap ? cap * 2 : 1024;
		requests = realloc(requests, (size_t) cap * 16);
		if (requests == NULL)
			abort();
	}
	memcpy(requests[nrequests], id, 16);
	*request = nrequests++;
	gw_index_insert(&by_request, *request);
	return true;
}

/* The ID behind a number that gw_store_claim_request() gave. */
const uint8_t *
gw_store_request(uint32_t request)
{
	return requests[request];
}

void
gw_store_reset_requests(void)
{
	free(requests);
	requests = NULL;
	nrequests = cap = 0;
	gw_index_clear(&by_request);
}

static uint64_t
hash_by_request(uint32_t number)
{
	return gw_index_hash(requests[number], 16, 0);
}

static bool
matches_request(uint32_t number, const void *key)
{
	return memcmp(requests[number], key, 16) == 0;
}
