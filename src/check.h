/*
 * check.h
 *		What the parts of fini.check share.
 *
 * fini.check finds faults; it raises no error for one.  Each item is one row:
 * true when all is well, false when not, null when it could not be tested or
 * does not matter here.  A detail says what is the case and what to do about
 * it, in whole sentences, and holds no secret; paths of key files are for those
 * who may see these settings.
 *
 * It makes a token request of its own, under the settings of the session that
 * calls it, so that it needs neither a worker nor what a worker found a while
 * ago.  The token is used for its own few requests and goes with them.
 */
#ifndef FINI_CHECK_H
#define FINI_CHECK_H

#include "postgres.h"

#include "funcapi.h"

#include "http.h"
#include "keys.h"
#include "shared.h"

typedef enum FiniCheckResult
{
	FINI_CHECK_GOOD,
	FINI_CHECK_BAD,
	FINI_CHECK_OPEN				/* not tested, or of no concern */
} FiniCheckResult;

typedef struct FiniCheck
{
	ReturnSetInfo *rsinfo;
	FiniSlotShared *slot;		/* NULL: no worker for this database */
	bool		subscriptions_needed;	/* this database has applications to send */
	bool		funding_needed; /* or funding to confirm */

	/* found by earlier items, for later ones; each names the item that says more, NULL when all is well */
	const char *no_network;		/* nothing can be sent at all */
	const char *no_token;		/* no token can be asked for */
} FiniCheck;

/* check.c: add a row; the format's result is the detail */
extern void fini_check_put(FiniCheck *check, const char *item, FiniCheckResult result, const char *format,...) __attribute__((format(printf, 4, 5)));

/* the item was not tested, because of what another one found */
extern void fini_check_skip(FiniCheck *check, const char *item, const char *because_of);

/* check_files.c: key files, certificates, authorities */
extern void fini_check_files(FiniCheck *check);

/* check_probe.c: everything that needs the network */
extern void fini_check_probe(FiniCheck *check);

/* check_advice.c: what to do about a request that was not answered, and about a refusal of the token service */
extern const char *fini_check_transport_advice(FiniHttpFailure failure);
extern const char *fini_check_token_advice(const char *error, const char *description);

/* what to do about a message-level code of the gateway; "" for those that say all themselves */
extern const char *fini_check_code_advice(const char *code);

#endif							/* FINI_CHECK_H */
