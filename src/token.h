/*
 * token.h
 *		Access token, gateway public key and clock difference, kept in shared
 *		memory for a whole database and fetched by its worker alone.
 *
 * A token belongs to the settings it was fetched under: a process whose
 * settings have another fingerprint does not get it.
 */
#ifndef FINI_TOKEN_H
#define FINI_TOKEN_H

#include "postgres.h"

#include "answer.h"
#include "http.h"
#include "shared.h"

/* what one call needs, copied out of shared memory; a secret */
typedef struct FiniAccess
{
	char		token[FINI_MAX_TOKEN];
	uint64		token_generation;
	uint8		public_key[FINI_MAX_PUBLIC_KEY];
	int			public_key_len;
	uint64		key_generation;
	int64		clock_offset_ms;
} FiniAccess;

/*
 * For backends: wait, interruptibly, until the worker has what is needed.
 * Raises FINI_ERRCODE_TOKEN_REFUSED and kin with what the worker met, or
 * FINI_ERRCODE_NO_WORKER.
 */
extern void fini_token_wait(FiniSlotShared *slot, FiniAccess *dst, bool with_key, int timeout_ms);

/* note a use, and copy what is there; false when it is missing or about to expire */
extern bool fini_token_peek(FiniSlotShared *slot, FiniAccess *dst, bool with_key);

/* the gateway refused this one: forget it, if it is still the one in place */
extern void fini_token_refused(FiniSlotShared *slot, uint64 token_generation);
extern void fini_token_key_refused(FiniSlotShared *slot, uint64 key_generation);

/* for the worker: start what has to be fetched; milliseconds until it wants to be called again, -1: none */
extern long fini_token_service(FiniSlotShared *slot);

/* for the worker: a request ended; false when it is not one of ours */
extern bool fini_token_completed(FiniSlotShared *slot, FiniHttpRequest *req);

/* for the worker: settings changed, or it starts: what was fetched under others goes */
extern void fini_token_settings_changed(FiniSlotShared *slot);

/*
 * Fill in the request for a token, all of it in CurrentMemoryContext; raises
 * FINI_ERRCODE_NOT_CONFIGURED for settings and key files.  Its owner is the
 * FiniBlanker of what it holds.  Besides the worker
 * only fini.check sends it, and shares what it gets with nobody.
 */
extern void fini_token_request(FiniHttpRequest *http);

/*
 * Public key (DER, into FINI_MAX_PUBLIC_KEY bytes) and the gateway's clock out
 * of an answer of crypto/meta; false when they are not there or not usable.
 */
extern bool fini_token_read_key(const FiniAnswer *answer, uint8 *der, int *der_len, int64 *server_ms);

/* our own clock, in epoch milliseconds */
extern int64 fini_token_clock_ms(void);

/* fits, and can stand in a header */
extern bool fini_token_plausible(const char *token);

/* for the worker: fini.resume, so nothing waits for its pause to end */
extern void fini_token_resume(void);

/* for the worker: the last fetch failed and why, into a palloc'd text; NULL when it went well */
extern char *fini_token_failure(FiniSlotShared *slot);

#endif							/* FINI_TOKEN_H */
