/*
 * api.h
 *		One call of the gateway on its way through access checks, faults and endpoint.
 *
 * A Call lives on the stack of its connection's thread.  An endpoint has two halves:
 * check() finds every reason to refuse and changes nothing; process() does what was
 * asked.  Faults "before" strike ahead of check(), all others at process(), so that
 * a refused call uses up no fault meant for a processed one.
 */
#ifndef GW_API_H
#define GW_API_H

#include "envelope.h"
#include "fault.h"
#include "http.h"

struct Entry;

typedef struct Call
{
	Request    *request;
	Reply	   *reply;
	const struct Endpoint *endpoint;
	const char *name;			/* of the endpoint, for statistics and faults */
	Fault		fault;			/* FAULT_NONE when no fault strikes */
	json_t	   *body;			/* parsed by check(), or NULL */
	Envelope	envelope;		/* of sealed calls */
	struct Entry *entries;		/* of subscription batches */
	size_t		nentries;
} Call;

typedef struct Endpoint
{
	const char *name;
	const char *method;
	const char *path;			/* NULL: gw_settings.token_path */
	int			entitlement;	/* 0: everyone's */
	bool		sealed;			/* comes under an envelope */
	bool		(*check) (Call *call);	/* false: refused, reply made; may be NULL */
	void		(*process) (Call *call);
} Endpoint;

extern void gw_api_begin(Request *request);
extern void gw_api_finish(Request *request, Reply *reply);

/* For endpoints: a message-level refusal; always false. */
extern bool gw_api_refuse(Call *call, unsigned http, const char *code, const char *format,...)
			__attribute__((format(printf, 4, 5)));

/* For endpoints: parses the request's body into call->body, refusing what is no object. */
extern bool gw_api_parse_body(Call *call);

/* For endpoints: `data` (taken over) in an answer envelope of code "0". */
extern void gw_api_answer(Call *call, json_t *data, int64_t total, const char *next_cursor);

#endif
