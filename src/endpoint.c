/*
 * endpoint.c
 *		The table of endpoints.
 */
#include "postgres.h"

#include "endpoint.h"

static const FiniEndpoint endpoints[FINI_ENDPOINT_COUNT] = {
	[FINI_ENDPOINT_TOKEN] = {"token", NULL, true, false, false},
	[FINI_ENDPOINT_CRYPTO_META] = {"crypto/meta", "/api/crypto/meta", false, false, false},
	[FINI_ENDPOINT_IPO_LIST] = {"ipos/list", "/api/ipos/list/v1", false, false, false},
	[FINI_ENDPOINT_IPO_REFDATA] = {"ipos/refdata", "/api/ipos/refdata/v1", false, false, false},
	[FINI_ENDPOINT_ADD] = {"subscriptions/add", "/api/eipo/subscriptions/add/v1", true, true, true},
	[FINI_ENDPOINT_CHANGE] = {"subscriptions/change", "/api/eipo/subscriptions/change/v1", true, true, true},
	[FINI_ENDPOINT_INVALIDATE] = {"subscriptions/invalidate", "/api/eipo/subscriptions/invalidate/v1", true, true, true},
	[FINI_ENDPOINT_QUERY] = {"subscriptions/query", "/api/eipo/subscriptions/query/v1", true, true, false},
	[FINI_ENDPOINT_FUNDING_CONFIRM] = {"funding/confirm", "/api/eipo/funding/confirm/v1", true, false, true},
	[FINI_ENDPOINT_FUNDING_QUERY] = {"funding/query", "/api/eipo/funding/query/v1", true, false, false},
	/* what fini.call reaches may change anything */
	[FINI_ENDPOINT_OTHER] = {"other", NULL, true, false, true},
};

const FiniEndpoint *
fini_endpoint(FiniEndpointId id)
{
	return &endpoints[id];
}

FiniEndpointId
fini_endpoint_of_path(const char *path)
{
	Size		len = strcspn(path, "?");

	for (int i = 0; i < FINI_ENDPOINT_COUNT; i++)
	{
		if (endpoints[i].path != NULL && strlen(endpoints[i].path) == len &&
			strncmp(endpoints[i].path, path, len) == 0)
			return i;
	}
	return FINI_ENDPOINT_OTHER;
}
