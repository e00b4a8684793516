/*
 * call.c
 *		One call of the gateway.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "call.h"
#include "compat.h"
#include "encoding.h"
#include "error.h"
#include "settings.h"
#include "stat.h"
#include "wait.h"

#define AUTHORIZATION	"Authorization: Bearer "

static void prepare(FiniCall *call, FiniAccess *access);
static void judge(FiniCall *call);
static FiniAnswer *read_answer(FiniCall *call, const char **problem);
static FiniBuffer *open_answer(FiniCall *call, const char **problem);
static void count(const FiniCall *call);

FiniCall *
fini_call_create(FiniEndpointId endpoint, const char *path)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini call",
												  ALLOCSET_DEFAULT_SIZES);
	FiniCall   *call = MemoryContextAllocZero(context, sizeof(FiniCall));

	call->context = context;
	call->attempt = AllocSetContextCreate(context, "fini call attempt", ALLOCSET_DEFAULT_SIZES);
	call->endpoint = endpoint;
	call->path = path != NULL ? MemoryContextStrdup(context, path) : fini_endpoint(endpoint)->path;
	call->sealed = fini_endpoint(endpoint)->sealed;
	call->ticket.company = -1;
	if (call->sealed)
		fini_envelope_request_id(call->request_id);
	return call;
}

void
fini_call_send(FiniCall *call, FiniAccess *access)
{
	MemoryContext old;

	prepare(call, access);
	old = MemoryContextSwitchTo(call->attempt);
	fini_http_start(&call->http);
	MemoryContextSwitchTo(old);
}

void
fini_call_finish(FiniCall *call, FiniSlotShared *slot)
{
	MemoryContext old;

	/* where there was no memory for it once it is tried again */
	if (call->reading != NULL)
		MemoryContextDelete(call->reading);
	call->reading = NULL;
	call->answer = NULL;
	call->sent = NULL;
	call->reading = AllocSetContextCreate(call->attempt, "fini call answer", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(call->reading);

	fini_throttle_give_back(&call->ticket);
	call->http_status = call->http.outcome == FINI_HTTP_ANSWERED ? call->http.status : 0;
	call->retry_after_us = 0;
	judge(call);
	count(call);

	if (call->http_status == 429 || (call->http_status == 503 && call->http.retry_after > 0))
	{
		/* a gateway that does not say how long is given a second */
		call->retry_after_us = (int64) Min(Max(call->http.retry_after, 1), 3600) * 1000000;
		if (call->http_status == 429)
			fini_throttle_hold(call->retry_after_us);
	}
	if (call->verdict == FINI_VERDICT_NEW_TOKEN && slot != NULL)
		fini_token_refused(slot, call->token_generation);
	if (call->verdict == FINI_VERDICT_NEW_KEY && slot != NULL)
		fini_token_key_refused(slot, call->key_generation);
	MemoryContextSwitchTo(old);
}

/* what was sent is looked at once, for the first text; what cannot be looked at cannot be blanked either */
char *
fini_call_clean_text(FiniCall *call, const char *text)
{
	if (call->sent == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(call->attempt);
		FiniBlanker *sent = fini_blank_create();
		const FiniValue *payload = NULL;

		/* the first header: see fini_call_headers */
		fini_blank_add(sent, call->http.headers[0] + strlen(AUTHORIZATION),
					   (int) strlen(call->http.headers[0] + strlen(AUTHORIZATION)));
		if (call->sealed && call->payload != NULL)
		{
			payload = fini_value_read(call->payload->data, call->payload->len);
			if (payload != NULL)
				fini_blank_add_values(sent, payload);
		}
		MemoryContextSwitchTo(old);
		if (call->sealed && call->payload != NULL && payload == NULL)
			return pstrdup("withheld: what was sent is too large to be looked for in it");
		call->sent = sent;
	}
	return fini_answer_clean_text(text, call->sent);
}

void
fini_call_free(FiniCall *call)
{
	fini_http_abandon(&call->http);
	fini_throttle_give_back(&call->ticket);
	MemoryContextDelete(call->context);
}

void
fini_call_perform(FiniCall *call, FiniSlotShared *slot)
{
	MemoryContext old = MemoryContextSwitchTo(call->context);
	FiniAccess *access = fini_secret_alloc(sizeof(FiniAccess));

	PG_TRY();
	{
		for (;;)
		{
			fini_token_wait(slot, access, call->sealed, fini_guc_request_timeout);

			/* the throttle may take longer than the token lives */
			if (fini_throttle_wait(&call->ticket, fini_guc_request_timeout) &&
				!fini_token_peek(slot, access, call->sealed))
			{
				fini_throttle_cancel(&call->ticket);
				continue;
			}
			prepare(call, access);
			MemoryContextSwitchTo(call->attempt);
			fini_http_perform(&call->http, fini_wait_event(FINI_WAIT_GATEWAY));
			MemoryContextSwitchTo(call->context);
			fini_call_finish(call, slot);
			if ((call->verdict != FINI_VERDICT_NEW_TOKEN && call->verdict != FINI_VERDICT_NEW_KEY) ||
				call->sendings > 1)
				break;
		}
	}
	PG_CATCH();
	{
		fini_http_abandon(&call->http);
		fini_throttle_give_back(&call->ticket);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
}

void
fini_call_raise(FiniCall *call)
{
	const char *name = fini_endpoint(call->endpoint)->name;
	const char *target = call->endpoint == FINI_ENDPOINT_OTHER ? call->path : name;
	char		detail[FINI_MAX_TEXT + 256];

	snprintf(detail, sizeof(detail), "HTTP status %d, code %s: %s%s%s%s", call->http_status,
			 call->code, call->message,
			 call->sealed ? " (request ID " : "", call->sealed ? call->request_id : "",
			 call->sealed ? ")" : "");

	switch (call->verdict)
	{
		case FINI_VERDICT_DOUBT:
			if (!fini_endpoint(call->endpoint)->changes || call->payload == NULL)
				ereport(ERROR,
						(errcode(FINI_ERRCODE_UNREADABLE),
						 errmsg("no usable answer from %s", target),
						 errdetail("%s", detail)));
			ereport(ERROR,
					(errcode(FINI_ERRCODE_IN_DOUBT),
					 errmsg("it is not known whether FINI processed this call of %s", target),
					 errdetail("%s", detail),
					 errhint("Find out by a query before sending it again: what was sent may stand at FINI.")));
			break;
		case FINI_VERDICT_LATER:
			if (call->http_status == 429)
				ereport(ERROR,
						(errcode(FINI_ERRCODE_THROTTLED),
						 errmsg("the gateway is throttling %s", target),
						 errdetail("%s", detail),
						 errhint("Nothing was processed. Try again later, and compare fini.rate_limit with what the company is allowed.")));
			ereport(ERROR,
					(errcode(FINI_ERRCODE_TRANSPORT),
					 errmsg("could not reach %s", target),
					 errdetail("%s", detail),
					 errhint("Nothing was processed. Check fini.base_url, the network and the TLS settings.")));
			break;
		case FINI_VERDICT_STOP:
			if (call->http_status == 403 || call->http_status == 404)
				ereport(ERROR,
						(errcode(FINI_ERRCODE_NOT_ENTITLED),
						 errmsg("this participant is not entitled to %s", target),
						 errdetail("%s", detail),
						 errhint("Nothing was processed. Check the entitlements in HKEX Client Connect and fini.base_url.")));
			/* FALLTHROUGH */
		case FINI_VERDICT_NEW_TOKEN:
		case FINI_VERDICT_NEW_KEY:
		case FINI_VERDICT_REJECTED:
		case FINI_VERDICT_WRONG:
			ereport(ERROR,
					(errcode(FINI_ERRCODE_REFUSED),
					 errmsg("FINI refused the call of %s", target),
					 errdetail("%s", detail)));
			break;
		case FINI_VERDICT_PROCESSED:
			ereport(ERROR,
					(errcode(FINI_ERRCODE_UNREADABLE),
					 errmsg("the answer of %s has an unexpected shape", target),
					 errdetail("%s", detail)));
			break;
	}
	pg_unreachable();
}

const char **
fini_call_headers(const FiniAccess *access, const FiniEnvelope *envelope)
{
	const char **headers = palloc0(sizeof(char *) * 10);
	Size		size = strlen(access->token) + 32;
	char	   *authorization = fini_secret_alloc(size);
	int			n = 0;

	snprintf(authorization, size, AUTHORIZATION "%s", access->token);
	headers[n++] = authorization;
	headers[n++] = "Accept: application/json";
	headers[n++] = "Accept-Language: en-US";
	if (envelope != NULL)
	{
		headers[n++] = psprintf("X-FINI-ENCRYPTED-KEY: %s", envelope->encrypted_key);
		headers[n++] = psprintf("X-FINI-REQUEST-ID: %s", envelope->request_id);
		headers[n++] = psprintf("X-FINI-TIMESTAMP: " INT64_FORMAT, envelope->timestamp_ms);
		headers[n++] = psprintf("X-FINI-SIGNATURE: %s", envelope->signature);
		headers[n++] = "X-FINI-ENCRYPTION-CLIENT: YES";
	}
	headers[n] = NULL;
	return headers;
}

char *
fini_call_url_encode(const char *text)
{
	static const char hex[] = "0123456789ABCDEF";
	char	   *dst = palloc(strlen(text) * 3 + 1);
	char	   *out = dst;

	for (const unsigned char *p = (const unsigned char *) text; *p != '\0'; p++)
	{
		if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ||
			strchr("-._~", *p) != NULL)
			*out++ = (char) *p;
		else
		{
			*out++ = '%';
			*out++ = hex[*p >> 4];
			*out++ = hex[*p & 15];
		}
	}
	*out = '\0';
	return dst;
}

/* seal, and fill the HTTP request in; the ticket is given back on error */
static void
prepare(FiniCall *call, FiniAccess *access)
{
	MemoryContext old;

	/* the last attempt's leavings */
	MemoryContextReset(call->attempt);
	call->reading = NULL;
	call->envelope = NULL;
	call->sent = NULL;
	call->answer = NULL;
	old = MemoryContextSwitchTo(call->attempt);

	PG_TRY();
	{
		memset(&call->http, 0, sizeof(call->http));
		call->http.owner = call;
		call->http.url = fini_settings_url(call->path);
		call->http.content_type = "application/json";
		call->http.timeout_ms = call->timeout_ms;
		call->http.send_until_us = call->send_until_us;
		if (call->sealed)
		{
			/* one that is sealed though its endpoint's calls are not */
			if (call->request_id[0] == '\0')
				fini_envelope_request_id(call->request_id);
			call->envelope = fini_envelope_seal(call->payload->data, call->payload->len,
												call->request_id,
												access->public_key, access->public_key_len,
												access->clock_offset_ms);
			call->http.body = call->envelope->body->data;
			call->http.body_len = call->envelope->body->len;
		}
		else if (call->payload != NULL)
		{
			call->http.body = fini_encoding_to_utf8(call->payload->data, call->payload->len,
													&call->http.body_len);
			if (call->http.body == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
						 errmsg("the request has a character without equivalent in UTF-8")));
		}
		call->http.headers = fini_call_headers(access, call->envelope);
		call->token_generation = access->token_generation;
		call->key_generation = access->key_generation;
		call->sendings++;
	}
	PG_CATCH();
	{
		fini_throttle_give_back(&call->ticket);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
}

/* open and parse the answer, and set verdict, code and message */
static void
judge(FiniCall *call)
{
	const char *problem = "";
	const char *code;
	const char *message;

	if (call->http.outcome == FINI_HTTP_ANSWERED)
		call->answer = read_answer(call, &problem);
	call->verdict = fini_verdict_of(&call->http, call->answer, &code, &message);
	if (message[0] == '\0' && call->answer == NULL)
		message = problem;

	strlcpy(call->code, call->answer == NULL || strcmp(code, "0") == 0 ? code : fini_call_clean_text(call, code), sizeof(call->code));
	strlcpy(call->message, message[0] == '\0' ? message :
			call->http.outcome != FINI_HTTP_ANSWERED || message == problem ? fini_answer_clean_text(message, NULL) :
			fini_call_clean_text(call, message), sizeof(call->message));
	if (call->answer != NULL)
		fini_answer_done(call->answer);
}

/* NULL, and what is the matter, when it cannot be read */
static FiniAnswer *
read_answer(FiniCall *call, const char **problem)
{
	FiniBuffer *body = call->http.answer;
	FiniAnswer *answer = NULL;
	const char *text;
	Size		len;
	bool		replaced;

	if (body->len == 0)
	{
		*problem = "the answer is empty";
		return NULL;
	}
	if (!fini_encoding_is_utf8(body->data, body->len))
	{
		*problem = "the answer is not valid UTF-8";
		return NULL;
	}
	if (call->sealed)
	{
		/* what became of the entries of a change stands in the clear */
		FiniBuffer *opened = open_answer(call, problem);

		if (opened == NULL && !fini_endpoint(call->endpoint)->changes)
			return NULL;
		if (opened != NULL)
			body = opened;
	}

	text = fini_encoding_from_utf8(body->data, body->len, &len);
	if (text != NULL)
		answer = fini_answer_parse(text, len);
	if (answer != NULL)
		return answer;

	text = fini_encoding_json_from_utf8(body->data, body->len, &len, &replaced);
	answer = fini_answer_parse(text, len);
	if (answer == NULL && (*problem)[0] == '\0')
		*problem = "the answer is not the JSON object that it should be";
	if (answer != NULL && replaced && call->exact)
	{
		*problem = psprintf("the answer holds characters that have no equivalent in encoding \"%s\"",
							GetDatabaseEncodingName());
		return NULL;
	}
	return answer;
}

/* NULL, and what is the matter, when the answer's own bytes do not open; interrupts go on */
static FiniBuffer *
open_answer(FiniCall *call, const char **problem)
{
	FiniBuffer *volatile opened = NULL;
	const char *volatile reason = "";

	PG_TRY();
	{
		opened = fini_envelope_open(call->envelope, call->http.answer->data, call->http.answer->len);
	}
	PG_CATCH();
	{
		if (geterrcode() == FINI_ERRCODE_ENVELOPE)
			reason = "the encrypted fields of the answer do not open with the key of this request";
		else if (geterrcode() == FINI_ERRCODE_UNREADABLE)
			reason = "the answer is not the JSON object that it should be, or a field of it is no text when decrypted";
		else
			PG_RE_THROW();
		MemoryContextSwitchTo(call->reading);
		FlushErrorState();
	}
	PG_END_TRY();
	*problem = reason;
	return opened;
}

static void
count(const FiniCall *call)
{
	FiniStatCall stat = {0};

	stat.endpoint = call->endpoint;
	stat.error = call->verdict != FINI_VERDICT_PROCESSED;
	stat.retry = call->sendings > 1;
	stat.throttled = call->http_status == 429;
	stat.entries = call->entries;
	stat.bytes = call->http.bytes_out + call->http.bytes_in;
	stat.duration_us = call->http.duration_us;
	fini_stat_count(&stat);
}
