/*
 * api.c
 *		One call of the gateway: who may come in, which endpoint it is, where faults strike.
 *
 * Token and throttle are judged when the headers arrive, everything else when the body
 * is complete.  The token endpoint stands before the company's throttle and counts
 * nothing against it; every call under /api/ with a valid token counts.
 */
#include "api.h"

#include "ipo.h"
#include "settings.h"
#include "stats.h"
#include "store.h"
#include "subscription.h"
#include "throttle.h"
#include "token.h"

#include <nettle/memops.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void process_meta(Call *call);
static const Endpoint *find_endpoint(const char *path);
static void run(Call *call);
static bool admitted(Call *call);
static bool sealed_properly(Call *call);
static bool has_type(const char *accept, const char *type);

static const Endpoint endpoints[] = {
	{"token", "POST", NULL, 0, false, gw_token_check, gw_token_process},
	{"crypto/meta", "GET", "/api/crypto/meta", 0, false, NULL, process_meta},
	{"ipos/list", "GET", "/api/ipos/list/v1", 0, false, NULL, gw_ipo_process_list},
	{"ipos/refdata", "GET", "/api/ipos/refdata/v1", 0, false, NULL, gw_ipo_process_refdata},
	{"subscriptions/add", "POST", "/api/eipo/subscriptions/add/v1", GW_ENTITLED_SUBSCRIPTIONS, true,
	gw_subscription_check_batch, gw_subscription_process_add},
	{"subscriptions/change", "POST", "/api/eipo/subscriptions/change/v1", GW_ENTITLED_SUBSCRIPTIONS, true,
	gw_subscription_check_batch, gw_subscription_process_change},
	{"subscriptions/invalidate", "POST", "/api/eipo/subscriptions/invalidate/v1", GW_ENTITLED_SUBSCRIPTIONS, true,
	gw_subscription_check_batch, gw_subscription_process_invalidate},
	{"subscriptions/query", "POST", "/api/eipo/subscriptions/query/v1", GW_ENTITLED_SUBSCRIPTIONS, true,
	gw_query_check, gw_query_process},
	{"funding/confirm", "POST", "/api/eipo/funding/confirm/v1", GW_ENTITLED_FUNDING, false,
	gw_funding_check_confirm, gw_funding_process_confirm},
	{"funding/query", "POST", "/api/eipo/funding/query/v1", GW_ENTITLED_FUNDING, false,
	gw_funding_check_query, gw_funding_process_query},
};

#define ENDPOINTS (sizeof(endpoints) / sizeof(endpoints[0]))

/* At the headers: token, then throttle.  The verdict waits for the body. */
void
gw_api_begin(Request *request)
{
	if (strncmp(request->path, "/api/", 5) != 0)
		return;
	request->verdict_message = gw_token_verify(gw_http_header(request, "Authorization"));
	if (request->verdict_message != NULL)
		request->verdict = 401;
	else if (!gw_throttle_admit(&request->retry_after))
	{
		request->verdict = 429;
		request->verdict_message = "too many requests";
	}
}

void
gw_api_finish(Request *request, Reply *reply)
{
	Call		call = {.request = request, .reply = reply};

	call.endpoint = find_endpoint(request->path);
	call.name = call.endpoint ? call.endpoint->name : "unknown";
	gw_stats_request(call.name);
	gw_clock_sleep(gw_settings.latency_ms);

	call.fault = gw_fault_pick(call.name, &request->body, STAGE_BEFORE);
	if (call.fault.action != FAULT_NONE)
		gw_fault_before(&call.fault, reply);
	else if (admitted(&call) && (!call.endpoint->sealed || sealed_properly(&call)) &&
			 (call.endpoint->check == NULL || call.endpoint->check(&call)))
		run(&call);

	gw_fault_release(&call.fault);
	gw_subscription_release(&call);
	gw_envelope_release(&call.envelope);
	json_decref(call.body);
}

bool
gw_api_refuse(Call *call, unsigned http, const char *code, const char *format,...)
{
	char		message[256];
	va_list		args;
	json_t	   *answer;

	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	gw_stats_refusal(call->name, http, code, message);
	answer = json_pack("{ss ss s[] s[{ss ss}]}", "code", code, "message", message, "data",
					   "exception", "recordErrorCode", code, "recordErrorMsg", message);
	call->reply->status = http;
	call->reply->body.len = 0;
	gw_buf_json(&call->reply->body, answer);
	json_decref(answer);
	return false;
}

bool
gw_api_parse_body(Call *call)
{
	call->body = gw_json_parse(call->request->body.data, call->request->body.len);
	if (!json_is_object(call->body))
		return gw_api_refuse(call, 400, "400900", "the request body is not a JSON object");
	return true;
}

void
gw_api_answer(Call *call, json_t *data, int64_t total, const char *next_cursor)
{
	char		timestamp[32];
	json_t	   *answer;

	gw_clock_text(timestamp, sizeof(timestamp));
	answer = json_pack("{ss ss so sI ss ss s[]}", "code", "0", "message", "", "data", data,
					   "totalSize", (json_int_t) total, "timestamp", timestamp,
					   "nextCursor", next_cursor, "exception");
	gw_fault_reshape(&call->fault, answer);
	gw_buf_json(&call->reply->body, answer);
	json_decref(answer);
}

static void
process_meta(Call *call)
{
	Buf		   *body = &call->reply->body;

	gw_buf_puts(body, "{\"code\":\"0\",\"message\":\"\",\"data\":{\"publicKey\":\"");
	gw_envelope_public_key(body);
	gw_buf_printf(body, "\",\"serverTimestamp\":%lld}}", (long long) gw_clock_ms());
	gw_stats_add(COUNT_META, 1);
}

static const Endpoint *
find_endpoint(const char *path)
{
	size_t		i;

	for (i = 0; i < ENDPOINTS; i++)
	{
		const char *of = endpoints[i].path ? endpoints[i].path : gw_settings.token_path;

		if (strcmp(of, path) == 0)
			return &endpoints[i];
	}
	return NULL;
}

/*
 * Processes a call that nothing speaks against.  A sealed call whose ID was processed
 * before is refused ahead of any fault; process() looks again, in the store's lock.
 */
static void
run(Call *call)
{
	if (call->endpoint->sealed)
	{
		bool		known;

		gw_store_lock();
		known = gw_store_knows_request(call->envelope.request_id);
		gw_store_unlock();
		if (known)
		{
			gw_stats_add(COUNT_REPEATED_IDS, 1);
			gw_api_refuse(call, 400, "411002", "duplicate request ID");
			return;
		}
	}
	call->fault = gw_fault_pick(call->name, &call->request->body, STAGE_PROCESS);
	gw_fault_delay(&call->fault);
	call->endpoint->process(call);
	gw_fault_after(&call->fault, call->reply);
}

/* What any call must get right, whatever its endpoint. */
static bool
admitted(Call *call)
{
	Request    *request = call->request;
	const char *language = gw_http_header(request, "Accept-Language");

	if (request->verdict != 0)
	{
		char		code[8];

		snprintf(code, sizeof(code), "%d", request->verdict);
		call->reply->retry_after = request->retry_after;
		return gw_api_refuse(call, (unsigned) request->verdict, code, "%s", request->verdict_message);
	}
	if (call->endpoint == NULL)
		return gw_api_refuse(call, 404, "404", "no such endpoint");
	if (strcmp(call->endpoint->method, request->method) != 0)
		return gw_api_refuse(call, 405, "405", "this endpoint wants %s", call->endpoint->method);
	if (call->endpoint->path == NULL)
		return true;
	if ((call->endpoint->entitlement & ~gw_settings.entitled) != 0)
		return gw_api_refuse(call, 403, "403", "not entitled");
	if (!has_type(gw_http_header(request, "Accept"), "application/json"))
		return gw_api_refuse(call, 406, "406", "Accept is not application/json");
	if (language == NULL || strcmp(language, "en-US") != 0)
		return gw_api_refuse(call, 406, "406", "Accept-Language is not en-US");
	return true;
}

static bool
sealed_properly(Call *call)
{
	Refusal		refusal = gw_envelope_check(call->request, &call->envelope);

	if (refusal.code != NULL)
		return gw_api_refuse(call, 400, refusal.code, "%s", refusal.message);
	return true;
}

static bool
has_type(const char *accept, const char *type)
{
	return accept != NULL && strcmp(accept, type) == 0;
}
