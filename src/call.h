/*
 * call.h
 *		One call of the gateway: seal, send, open, judge.
 *
 * The worker makes many at once (create, send, and when http.h returns it:
 * finish); a backend makes one and waits (perform).  Everything of a call is in
 * its own memory context and is cleansed with it.
 */
#ifndef FINI_CALL_H
#define FINI_CALL_H

#include "postgres.h"

#include "answer.h"
#include "compat.h"
#include "endpoint.h"
#include "envelope.h"
#include "http.h"
#include "shared.h"
#include "throttle.h"
#include "token.h"
#include "verdict.h"

typedef struct FiniCall
{
	MemoryContext context;
	FiniEndpointId endpoint;
	const char *path;			/* with query string */
	bool		sealed;
	bool		exact;			/* an answer with characters that the database lacks is none; else they are replaced */
	FiniBuffer *payload;		/* JSON in the database encoding; NULL: GET */
	int			entries;		/* for the statistics */
	char		request_id[FINI_REQUEST_ID_LEN + 1];	/* kept over repetitions */
	int			sendings;
	int			timeout_ms;		/* 0: fini.request_timeout */
	int64		send_until_us;	/* monotonic; not sent when it has not begun to leave by then; 0: no limit */

	/* while it is under way */
	MemoryContext attempt;		/* of the last sending and its answer */
	MemoryContext reading;		/* within it: what was made of the answer; NULL: nothing yet */
	FiniHttpRequest http;
	FiniTicket	ticket;			/* taken by the caller before fini_call_send */
	FiniEnvelope *envelope;
	FiniBlanker *sent;			/* token, and personal values of the payload; NULL: not looked at yet */
	uint64		token_generation;
	uint64		key_generation;

	/* when it has ended */
	FiniVerdict verdict;
	FiniAnswer *answer;			/* NULL: none that can be read */
	char		code[FINI_MAX_CODE];
	char		message[FINI_MAX_TEXT + 1];
	int			http_status;	/* 0: no answer */
	int64		retry_after_us; /* asked for by the gateway; 0: not */
} FiniCall;

/* a new call in a new context below the current one; takes the payload over (may be NULL) */
extern FiniCall *fini_call_create(FiniEndpointId endpoint, const char *path);

/* start sending; the ticket has been taken.  Raises what sealing raises, the ticket given back */
extern void fini_call_send(FiniCall *call, FiniAccess *access);

/* after fini_http_next returned call->http: judge; refused tokens and keys are reported on the way, unless slot is NULL */
extern void fini_call_finish(FiniCall *call, FiniSlotShared *slot);

/*
 * A text of the gateway's answer to it, as fini_answer_clean_text has it, in
 * the current memory context, for tables, logs and messages.
 */
extern char *fini_call_clean_text(FiniCall *call, const char *text);

/* end it, wherever it is */
extern void fini_call_free(FiniCall *call);

/*
 * For backends: from waiting for token and throttle to the verdict, with one
 * repetition after a refused token or key.
 */
extern void fini_call_perform(FiniCall *call, FiniSlotShared *slot);

/* raise the error that a verdict other than PROCESSED stands for; does not return */
extern void fini_call_raise(FiniCall *call) pg_attribute_noreturn();

/* headers every call carries, and those of the envelope if there is one; NULL-terminated */
extern const char **fini_call_headers(const FiniAccess *access, const FiniEnvelope *envelope);

/* percent-encoded for a query string or form */
extern char *fini_call_url_encode(const char *text);

#endif							/* FINI_CALL_H */
