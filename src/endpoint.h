/*
 * endpoint.h
 *		The gateway's endpoints (protocol.md section 3).
 */
#ifndef FINI_ENDPOINT_H
#define FINI_ENDPOINT_H

#include "postgres.h"

typedef enum FiniEndpointId
{
	FINI_ENDPOINT_TOKEN,
	FINI_ENDPOINT_CRYPTO_META,
	FINI_ENDPOINT_IPO_LIST,
	FINI_ENDPOINT_IPO_REFDATA,
	FINI_ENDPOINT_ADD,
	FINI_ENDPOINT_CHANGE,
	FINI_ENDPOINT_INVALIDATE,
	FINI_ENDPOINT_QUERY,
	FINI_ENDPOINT_FUNDING_CONFIRM,
	FINI_ENDPOINT_FUNDING_QUERY,
	FINI_ENDPOINT_OTHER			/* fini.call */
} FiniEndpointId;

#define FINI_ENDPOINT_COUNT (FINI_ENDPOINT_OTHER + 1)

typedef struct FiniEndpoint
{
	const char *name;			/* as users see it */
	const char *path;			/* NULL: not fixed */
	bool		post;
	bool		sealed;			/* carries the envelope */
	bool		changes;		/* a call of it changes something at FINI */
} FiniEndpoint;

extern const FiniEndpoint *fini_endpoint(FiniEndpointId id);

/* the endpoint of a path, query string ignored; FINI_ENDPOINT_OTHER when unknown */
extern FiniEndpointId fini_endpoint_of_path(const char *path);

#endif							/* FINI_ENDPOINT_H */
