/*
 * check_probe.c
 *		fini.check: host, TLS, token, clock and entitlements, by asking for them.
 *
 * Six requests at most, each with a ticket of the throttle: a token,
 * crypto/meta, and one harmless query of each family of endpoints: the first
 * IPO, a record that cannot be, the funding of one IPO.  Each may take PROBE_MS,
 * all of them ALL_MS; what is left then is not tested.  Interrupts end it at
 * any time.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "call.h"
#include "check.h"
#include "compat.h"
#include "entry.h"
#include "error.h"
#include "settings.h"
#include "stat.h"
#include "throttle.h"
#include "token.h"
#include "wait.h"

#define PROBE_MS		10000
#define ALL_MS			30000
#define MAX_CLOCK_MS	1000	/* further apart, the clocks are a fault */
#define NO_RECORD		"0000000000000000A"	/* the form of a record ID, but none is given */

typedef struct Probe
{
	FiniCheck  *check;
	FiniAccess *access;
	bool		have_token;
	bool		have_key;
	int64		until_us;
	const char *skipped;		/* why the last request was not made; NULL: it was */
	char		ipo_id[64];		/* some IPO's; "0": none known */
} Probe;

/* what a family's answer tells */
typedef enum Entitlement
{
	ENTITLED,
	REFUSED,
	UNTOLD						/* the row has been put */
} Entitlement;

static const char *const network_items[] = {
	"token_service", "token", "gateway", "public_key", "clock", "ipos", "subscriptions", "funding"
};

static bool probe_token(Probe *probe);
static void read_token(Probe *probe, FiniHttpRequest *http);
static void probe_gateway(Probe *probe);
static void read_meta(Probe *probe, FiniHttpRequest *http, int64 sent_at_ms);
static void put_clock(Probe *probe, int64 difference_ms);
static void probe_families(Probe *probe);
static Entitlement ask(Probe *probe, const char *item, FiniCall *call);
static void put_refused(Probe *probe, const char *item, const char *who, bool needed, bool other);
static void remember_ipo(Probe *probe, const FiniAnswer *answer);
static FiniCall *ipo_call(void);
static FiniCall *subscription_call(void);
static FiniCall *funding_call(Probe *probe);
static FiniCall *query_call(FiniEndpointId endpoint, FiniBuffer *data);
static bool perform(Probe *probe, FiniEndpointId endpoint, FiniHttpRequest *http);
static bool perform_call(Probe *probe, FiniCall *call);
static bool take_ticket(Probe *probe, FiniTicket *ticket);
static int	time_left_ms(Probe *probe);
static void put_unreachable(Probe *probe, const char *item, const FiniHttpRequest *http);
static bool same_origin(const char *a, const char *b);

void
fini_check_probe(FiniCheck *check)
{
	MemoryContext context;
	MemoryContext old;
	Probe		probe = {.check = check};

	if (check->no_network != NULL)
	{
		for (size_t i = 0; i < lengthof(network_items); i++)
			fini_check_skip(check, network_items[i], check->no_network);
		return;
	}
	context = AllocSetContextCreate(CurrentMemoryContext, "fini check", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	probe.access = fini_secret_alloc(sizeof(FiniAccess));
	memset(probe.access, 0, sizeof(FiniAccess));
	probe.until_us = fini_monotonic_us() + (int64) ALL_MS * 1000;
	strlcpy(probe.ipo_id, "0", sizeof(probe.ipo_id));

	/* not over a connection that was made when things were different */
	fini_http_reset();
	if (!probe_token(&probe) && same_origin(fini_guc_base_url, fini_settings_token_url()))
	{
		for (size_t i = 2; i < lengthof(network_items); i++)
			fini_check_skip(check, network_items[i], "token_service");
	}
	else
	{
		probe_gateway(&probe);
		probe_families(&probe);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* token_service and token; false when the service cannot be reached */
static bool
probe_token(Probe *probe)
{
	static const char *headers[] = {"Accept: application/json", "Accept-Language: en-US", NULL};
	FiniCheck  *check = probe->check;
	FiniHttpRequest http = {0};

	/* without keys there is nothing to ask for, but somebody to talk to */
	if (check->no_token == NULL)
		fini_token_request(&http);
	else
	{
		http.url = fini_settings_token_url();
		http.headers = headers;
	}
	http.max_answer = (Size) 1024 * 1024;
	if (!perform(probe, FINI_ENDPOINT_TOKEN, &http))
	{
		fini_check_put(check, "token_service", FINI_CHECK_OPEN, "Not tested: %s.", probe->skipped);
		fini_check_skip(check, "token", check->no_token != NULL ? check->no_token : "token_service");
		return true;
	}
	if (http.outcome != FINI_HTTP_ANSWERED)
	{
		put_unreachable(probe, "token_service", &http);
		fini_check_skip(check, "token", check->no_token != NULL ? check->no_token : "token_service");
		return false;
	}
	fini_check_put(check, "token_service", FINI_CHECK_GOOD, "It can be reached by TLS, and its certificate is in order.");
	if (check->no_token != NULL)
		fini_check_skip(check, "token", check->no_token);
	else
		read_token(probe, &http);
	return true;
}

static void
read_token(Probe *probe, FiniHttpRequest *http)
{
	FiniCheck  *check = probe->check;
	const FiniValue *json = fini_value_read(http->answer->data, http->answer->len);
	char	   *token = NULL;
	char	   *error = NULL;
	char	   *description = NULL;

	if (json != NULL)
	{
		token = fini_value_member_text(json, "access_token");
		error = fini_value_member_text(json, "error");
		description = fini_value_member_text(json, "error_description");
	}
	if (http->status == 200 && token != NULL && fini_token_plausible(token))
	{
		strlcpy(probe->access->token, token, sizeof(probe->access->token));
		fini_secret_cleanse(token, strlen(token));
		probe->have_token = true;
		/* no generation of the worker's: a refusal of ours says nothing of the shared one */
		probe->access->token_generation = PG_UINT64_MAX;
		fini_check_put(check, "token", FINI_CHECK_GOOD, "The token service grants an access token.");
	}
	else if (error != NULL || description != NULL)
	{
		error = error != NULL ? fini_answer_clean_text(error, http->owner) : "no error";
		description = description != NULL ? fini_answer_clean_text(description, http->owner) : "no description";
		fini_check_put(check, "token", FINI_CHECK_BAD, "The token service refuses: %s: %s (HTTP status %d).%s %s",
					   error, description, http->status,
					   strcmp(error, "invalid_client") == 0 ? " This is most likely about the machine's assertion." :
					   strcmp(error, "invalid_grant") == 0 ? " This is most likely about the agent's assertion." : "",
					   fini_check_token_advice(error, description));
	}
	else if (http->status == 429)
		fini_check_put(check, "token", FINI_CHECK_BAD,
					   "The token service throttles (HTTP status 429): other servers may use up what the company is allowed. Lower fini.rate_limit.");
	else if (http->status == 404 || (http->status >= 300 && http->status < 400) || http->status == 200)
		fini_check_put(check, "token", FINI_CHECK_BAD,
					   "This is no token service (HTTP status %d, no OAuth answer): check fini.base_url and fini.token_url.", http->status);
	else
		fini_check_put(check, "token", FINI_CHECK_BAD,
					   "The token service does not work (HTTP status %d, no OAuth answer): try again, then ask HKEX.", http->status);
}

/* gateway, public_key, clock */
static void
probe_gateway(Probe *probe)
{
	static const char *headers[] = {"Accept: application/json", "Accept-Language: en-US", NULL};
	FiniCheck  *check = probe->check;
	FiniHttpRequest http = {0};
	const char *because = "token";

	http.url = fini_settings_url(fini_endpoint(FINI_ENDPOINT_CRYPTO_META)->path);
	http.headers = probe->have_token ? fini_call_headers(probe->access, NULL) : headers;
	http.owner = fini_blank_create();
	fini_blank_add(http.owner, probe->access->token, (int) strlen(probe->access->token));
	http.max_answer = (Size) 1024 * 1024;
	if (!perform(probe, FINI_ENDPOINT_CRYPTO_META, &http))
	{
		fini_check_put(check, "gateway", FINI_CHECK_OPEN, "Not tested: %s.", probe->skipped);
		because = "gateway";
	}
	else if (http.outcome != FINI_HTTP_ANSWERED)
	{
		put_unreachable(probe, "gateway", &http);
		because = "gateway";
	}
	else
	{
		/* when it left, by the clock that it will be compared with */
		int64		sent_at_ms = fini_token_clock_ms() - (fini_monotonic_us() - http.started_us) / 1000;

		fini_check_put(check, "gateway", FINI_CHECK_GOOD, "It can be reached by TLS, and its certificate is in order.");
		if (probe->have_token)
		{
			read_meta(probe, &http, sent_at_ms);
			return;
		}
	}
	fini_check_skip(check, "public_key", because);
	fini_check_skip(check, "clock", because);
}

static void
read_meta(Probe *probe, FiniHttpRequest *http, int64 sent_at_ms)
{
	FiniCheck  *check = probe->check;
	FiniAnswer *answer = fini_answer_parse(http->answer->data, http->answer->len);
	int64		server_ms = 0;

	if (http->status == 200 && answer != NULL && strcmp(answer->code, "0") == 0)
	{
		if (fini_token_read_key(answer, probe->access->public_key, &probe->access->public_key_len, &server_ms))
		{
			int64		difference_ms = server_ms - (sent_at_ms + http->duration_us / 2000);

			probe->have_key = true;
			probe->access->key_generation = PG_UINT64_MAX;
			probe->access->clock_offset_ms = difference_ms;
			fini_check_put(check, "public_key", FINI_CHECK_GOOD, "The gateway gives its public key.");
			put_clock(probe, difference_ms);
			return;
		}
		fini_check_put(check, "public_key", FINI_CHECK_BAD,
					   "crypto/meta answers with something that is no RSA key of 2048 to 8192 bits, or no clock: a defect of the gateway, or a change of FINI's protocol. Report it.");
	}
	else if (http->status == 401)
		fini_check_put(check, "public_key", FINI_CHECK_BAD,
					   "The gateway refuses the token that its token service has just granted (HTTP status 401): check that fini.base_url and fini.token_url belong together.");
	else
		fini_check_put(check, "public_key", FINI_CHECK_BAD,
					   "The gateway refuses crypto/meta (HTTP status %d, code %s%s%s). Check fini.base_url and the entitlements in HKEX Client Connect.",
					   http->status, answer != NULL ? fini_answer_clean_text(answer->code, http->owner) : "none",
					   answer != NULL && answer->message[0] != '\0' ? ": " : "",
					   answer != NULL ? fini_answer_clean_text(answer->message, http->owner) : "");
	fini_check_skip(check, "clock", "public_key");
}

static void
put_clock(Probe *probe, int64 difference_ms)
{
	int64		distance = difference_ms < 0 ? -difference_ms : difference_ms;

	if (distance > MAX_CLOCK_MS)
		fini_check_put(probe->check, "clock", FINI_CHECK_BAD,
					   "The gateway's clock is %.3f s %s this server's. Requests are dated by the gateway's, but the assertions by this server's: keep it by NTP.",
					   (double) distance / 1000.0, difference_ms > 0 ? "ahead of" : "behind");
	else
		fini_check_put(probe->check, "clock", FINI_CHECK_GOOD, "The gateway's clock and this server's are %.3f s apart.",
					   (double) distance / 1000.0);
}

/* ipos, subscriptions, funding */
static void
probe_families(Probe *probe)
{
	FiniCheck  *check = probe->check;
	Entitlement subscriptions = UNTOLD;
	Entitlement funding;

	if (!probe->have_token)
	{
		fini_check_skip(check, "ipos", "token");
		fini_check_skip(check, "subscriptions", "token");
		fini_check_skip(check, "funding", "token");
		return;
	}
	if (ask(probe, "ipos", ipo_call()) == REFUSED)
		fini_check_put(check, "ipos", FINI_CHECK_BAD,
					   "Not entitled to IPO data (HTTP status 403), which every participant is: ask HKEX whether the profiles are enabled.");
	if (probe->have_key)
		subscriptions = ask(probe, "subscriptions", subscription_call());
	else
		fini_check_skip(check, "subscriptions", "public_key");
	funding = ask(probe, "funding", funding_call(probe));
	if (subscriptions == REFUSED)
		put_refused(probe, "subscriptions", "HKSCC Participants", check->subscriptions_needed, funding == ENTITLED);
	if (funding == REFUSED)
		put_refused(probe, "funding", "EIPO Designated Banks", check->funding_needed, subscriptions == ENTITLED);
}

/*
 * One query of a family.  Any answer that is about what was asked shows that
 * one may ask.
 */
static Entitlement
ask(Probe *probe, const char *item, FiniCall *call)
{
	FiniCheck  *check = probe->check;

	if (!perform_call(probe, call))
	{
		fini_check_put(check, item, FINI_CHECK_OPEN, "Not tested: %s.", probe->skipped);
		return UNTOLD;
	}
	if (call->http_status == 0)
		put_unreachable(probe, item, &call->http);
	else if (call->http_status == 403)
		return REFUSED;
	else if (call->http_status == 404)
		fini_check_put(check, item, FINI_CHECK_BAD,
					   "The gateway does not know these endpoints (HTTP status 404): check fini.base_url.");
	else if (call->http_status == 429)
		fini_check_put(check, item, FINI_CHECK_BAD,
					   "The gateway throttles (HTTP status 429): other servers may use up what the company is allowed. Lower fini.rate_limit.");
	else if (call->verdict == FINI_VERDICT_PROCESSED || call->verdict == FINI_VERDICT_REJECTED || call->verdict == FINI_VERDICT_WRONG)
	{
		if (call->endpoint == FINI_ENDPOINT_IPO_LIST && call->answer != NULL)
			remember_ipo(probe, call->answer);
		fini_check_put(check, item, FINI_CHECK_GOOD, "Entitled.");
		return ENTITLED;
	}
	else
		fini_check_put(check, item, FINI_CHECK_BAD, "No usable answer (HTTP status %d, code %s%s%s).%s", call->http_status,
					   call->code, call->message[0] != '\0' ? ": " : "", call->message,
					   call->verdict == FINI_VERDICT_NEW_TOKEN ?
					   " The gateway refuses the token that its token service has just granted." : fini_check_code_advice(call->code));
	return UNTOLD;
}

/* a broker is no bank, and the reverse: no fault where nothing here needs it */
static void
put_refused(Probe *probe, const char *item, const char *who, bool needed, bool other)
{
	if (needed || !other)
		fini_check_put(probe->check, item, FINI_CHECK_BAD,
					   "Not entitled (HTTP status 403): these endpoints are for %s%s. Ask HKEX, then call fini.resume().", who,
					   needed ? ", and this database needs them" : "");
	else
		fini_check_put(probe->check, item, FINI_CHECK_OPEN,
					   "Not entitled (HTTP status 403): these endpoints are for %s. Nothing in this database needs them.", who);
}

static void
remember_ipo(Probe *probe, const FiniAnswer *answer)
{
	const FiniValue *object;
	char	   *ipo_id;

	if (answer->entries > 0 && fini_answer_object(answer, 0, &object) &&
		(ipo_id = fini_value_member_text(object, "ipoID")) != NULL && strlen(ipo_id) < sizeof(probe->ipo_id))
		strlcpy(probe->ipo_id, ipo_id, sizeof(probe->ipo_id));
}

static FiniCall *
ipo_call(void)
{
	return fini_call_create(FINI_ENDPOINT_IPO_LIST, "/api/ipos/list/v1?size=1&nextCursor=0");
}

/* nobody's record: what comes back is nobody's personal data */
static FiniCall *
subscription_call(void)
{
	FiniBuffer *data = fini_buffer_create(64);
	FiniBuffer *list = fini_buffer_create(32);

	fini_entry_append_element(list, NO_RECORD);
	fini_entry_append_raw(data, "recordID", list, '[', ']');
	return query_call(FINI_ENDPOINT_QUERY, data);
}

static FiniCall *
funding_call(Probe *probe)
{
	FiniBuffer *data = fini_buffer_create(64);

	fini_entry_append(data, "ipoID", probe->ipo_id);
	return query_call(FINI_ENDPOINT_FUNDING_QUERY, data);
}

/* {"data":{…},"size":1,"nextCursor":"0"} */
static FiniCall *
query_call(FiniEndpointId endpoint, FiniBuffer *data)
{
	static const char tail[] = "},\"size\":1,\"nextCursor\":\"0\"}";
	FiniCall   *call = fini_call_create(endpoint, NULL);
	MemoryContext old = MemoryContextSwitchTo(call->context);

	call->payload = fini_buffer_create(128);
	fini_buffer_append(call->payload, "{\"data\":{", 9);
	fini_buffer_append(call->payload, data->data, data->len);
	fini_buffer_append(call->payload, tail, strlen(tail));
	MemoryContextSwitchTo(old);
	return call;
}

/* false when it was not made, for the reason in probe->skipped */
static bool
perform(Probe *probe, FiniEndpointId endpoint, FiniHttpRequest *http)
{
	FiniStatCall stat = {0};
	FiniTicket	ticket;

	if (!take_ticket(probe, &ticket))
		return false;
	http->timeout_ms = time_left_ms(probe);
	PG_TRY();
	{
		fini_http_perform(http, fini_wait_event(FINI_WAIT_GATEWAY));
	}
	PG_FINALLY();
	{
		fini_throttle_give_back(&ticket);
	}
	PG_END_TRY();

	stat.endpoint = endpoint;
	stat.error = http->outcome != FINI_HTTP_ANSWERED || http->status != 200;
	stat.throttled = http->outcome == FINI_HTTP_ANSWERED && http->status == 429;
	stat.duration_us = http->duration_us;
	stat.bytes = http->bytes_in + http->bytes_out;
	fini_stat_count(&stat);
	return true;
}

static bool
perform_call(Probe *probe, FiniCall *call)
{
	FiniHttpRequest *volatile ended = NULL;

	if (!take_ticket(probe, &call->ticket))
		return false;
	call->timeout_ms = time_left_ms(probe);
	PG_TRY();
	{
		fini_call_send(call, probe->access);
		while (ended != &call->http)
			ended = fini_http_next(-1, fini_wait_event(FINI_WAIT_GATEWAY));
		fini_call_finish(call, NULL);
	}
	PG_CATCH();
	{
		fini_http_abandon(&call->http);
		fini_throttle_give_back(&call->ticket);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return true;
}

/* wait for the throttle, as long as there is time; false when there is no room */
static bool
take_ticket(Probe *probe, FiniTicket *ticket)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool taken = true;

	probe->skipped = NULL;
	if (probe->until_us <= fini_monotonic_us())
	{
		probe->skipped = "what came before took all of half a minute";
		return false;
	}
	PG_TRY();
	{
		(void) fini_throttle_wait(ticket, (int) ((probe->until_us - fini_monotonic_us()) / 1000));
	}
	PG_CATCH();
	{
		if (geterrcode() != FINI_ERRCODE_THROTTLED)
			PG_RE_THROW();
		FlushErrorState();
		MemoryContextSwitchTo(caller);
		taken = false;
	}
	PG_END_TRY();
	if (!taken)
		probe->skipped = "the throttle leaves no room now, see throttle";
	return taken;
}

static int
time_left_ms(Probe *probe)
{
	int64		left = (probe->until_us - fini_monotonic_us()) / 1000;

	return (int) Min(Max(left, 100), Min(PROBE_MS, fini_guc_request_timeout));
}

static void
put_unreachable(Probe *probe, const char *item, const FiniHttpRequest *http)
{
	fini_check_put(probe->check, item, FINI_CHECK_BAD, "%s: %s. %s",
				   http->outcome == FINI_HTTP_NOT_SENT ? "It cannot be reached" : "It does not answer", http->error,
				   fini_check_transport_advice(http->failure));
}

/* scheme, host and port alike, in letters */
static bool
same_origin(const char *a, const char *b)
{
	Size		len = strlen("https://");

	if (strlen(a) < len || strlen(b) < len)
		return false;
	len += strcspn(a + len, "/");
	return strncmp(a, b, len) == 0 && (b[len] == '/' || b[len] == '\0');
}
