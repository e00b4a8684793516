/*
 * token_fetch.c
 *		The worker's side of token.h: fetching the token and the public key.
 *
 * One fetch at a time, run by the worker's event loop like any other request:
 * the token first, then crypto/meta under it.  After a failure the next
 * attempt waits, twice as long each time up to MAX_BACKOFF.
 */
#include "postgres.h"

#include <sys/time.h>

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "backoff.h"
#include "call.h"
#include "compat.h"
#include "envelope.h"
#include "error.h"
#include "keys.h"
#include "settings.h"
#include "stat.h"
#include "throttle.h"
#include "token.h"

#define GRANT_TYPE		"urn:ietf:params:oauth:grant-type:jwt-bearer"
#define KEY_LIFE_US		INT64CONST(600000000)	/* the clock difference drifts: read it again */
#define MIN_BACKOFF_US	INT64CONST(250000)
#define MAX_BACKOFF_US	INT64CONST(15000000)
#define FETCH_TIMEOUT	15000	/* ms */
#define MAX_HOLD_SECONDS	3600
#define MAX_TOKEN_LIFE	86400	/* s */

typedef struct Fetch
{
	MemoryContext context;		/* of everything of one fetch; NULL: none under way */
	bool		for_key;		/* crypto/meta, else the token */
	FiniHttpRequest http;
	FiniTicket	ticket;
	int64		sent_at_ms;		/* wall clock, for the difference */
} Fetch;

static Fetch fetch;
/* of the token and of the key: that one is to be had says nothing of the other */
static int	failures[2];		/* in a row */
static int64 not_before_us[2];

static bool start_fetch(FiniSlotShared *slot, bool for_key);
static bool prepare_key_request(FiniSlotShared *slot);
static void end_fetch(void);
static void take_token(FiniSlotShared *slot);
static void keep_token(FiniSlotShared *slot, const char *token, int64 life_us);
static void take_key(FiniSlotShared *slot);
static void fail(FiniSlotShared *slot, int sqlstate, const char *error, const char *detail);
static void succeed(FiniSlotShared *slot);

long
fini_token_service(FiniSlotShared *slot)
{
	int64		now = fini_monotonic_us();
	int64		life;
	int64		margin;
	int64		refresh_at;
	bool		need_token;
	bool		need_key;
	bool		have_token;

	if (fetch.context != NULL)
		return -1;

	LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
	life = slot->token_expires_us - slot->token_fetched_us;
	margin = Min((int64) fini_guc_token_refresh_margin * 1000, life / 3);
	refresh_at = slot->token_expires_us - margin;
	have_token = slot->token[0] != '\0' && slot->token_expires_us > now;
	/* used since it was fetched: worth keeping fresh */
	need_token = slot->token_wanted_us > slot->token_fetched_us &&
		(!have_token || now >= refresh_at) &&
		now - slot->token_wanted_us < Max(life, (int64) fini_guc_request_timeout * 1000);
	need_key = slot->key_wanted_us > slot->key_fetched_us &&
		(slot->public_key_len == 0 || now - slot->key_fetched_us > KEY_LIFE_US) &&
		now - slot->key_wanted_us < Max(life, (int64) fini_guc_request_timeout * 1000);
	LWLockRelease(fini_shared_slot_lock(slot));

	if (need_token || (need_key && have_token))
	{
		int64		due = not_before_us[!need_token];

		/* a key that cannot be had is no reason to keep fetching tokens for it */
		if (need_token && need_key)
			due = Max(due, not_before_us[1]);
		if (now < due)
			return (long) ((due - now) / 1000 + 1);
		if (!start_fetch(slot, !need_token))
			return 10;
		return -1;
	}
	if (have_token && now < refresh_at)
		return (long) ((refresh_at - now) / 1000 + 1);
	return -1;
}

bool
fini_token_completed(FiniSlotShared *slot, FiniHttpRequest *req)
{
	FiniStatCall stat = {0};

	if (fetch.context == NULL || req != &fetch.http)
		return false;
	fini_throttle_give_back(&fetch.ticket);

	stat.endpoint = fetch.for_key ? FINI_ENDPOINT_CRYPTO_META : FINI_ENDPOINT_TOKEN;
	stat.error = req->outcome != FINI_HTTP_ANSWERED || req->status != 200;
	stat.throttled = req->outcome == FINI_HTTP_ANSWERED && req->status == 429;
	stat.duration_us = req->duration_us;
	stat.bytes = req->bytes_in + req->bytes_out;
	fini_stat_count(&stat);
	if (stat.throttled)
		fini_throttle_hold((int64) Min(Max(req->retry_after, 1), MAX_HOLD_SECONDS) * 1000000);

	if (fetch.for_key)
		take_key(slot);
	else
		take_token(slot);
	end_fetch();
	return true;
}

void
fini_token_settings_changed(FiniSlotShared *slot)
{
	uint8		fingerprint[FINI_FINGERPRINT_LEN];

	fini_settings_fingerprint(fingerprint);
	if (fetch.context != NULL)
	{
		fini_http_abandon(&fetch.http);
		fini_throttle_give_back(&fetch.ticket);
		end_fetch();
	}
	memset(failures, 0, sizeof(failures));
	memset(not_before_us, 0, sizeof(not_before_us));
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	if (memcmp(slot->fingerprint, fingerprint, sizeof(fingerprint)) != 0)
	{
		memcpy(slot->fingerprint, fingerprint, sizeof(fingerprint));
		fini_secret_cleanse(slot->token, sizeof(slot->token));
		slot->token_expires_us = slot->token_fetched_us = 0;
		slot->public_key_len = 0;
		slot->key_fetched_us = 0;
		slot->fetch_sqlstate = 0;
	}
	LWLockRelease(fini_shared_slot_lock(slot));
	ConditionVariableBroadcast(&slot->changed);
}

void
fini_token_resume(void)
{
	memset(not_before_us, 0, sizeof(not_before_us));
}

void
fini_token_request(FiniHttpRequest *http)
{
	static const char *headers[] = {"Accept: application/json", "Accept-Language: en-US", NULL};
	char	   *url;
	char	   *type;
	char	   *agent;
	char	   *machine;
	FiniBuffer *body;
	FiniBlanker *sent = fini_blank_create();

	fini_settings_require();
	url = fini_settings_token_url();
	agent = fini_keys_assertion(FINI_PROFILE_AGENT, url);
	machine = fini_keys_assertion(FINI_PROFILE_MACHINE, url);
	type = fini_call_url_encode(fini_guc_client_assertion_type);

	body = fini_buffer_create(4096);
	fini_buffer_append(body, "grant_type=", 11);
	fini_buffer_append(body, fini_call_url_encode(GRANT_TYPE), strlen(fini_call_url_encode(GRANT_TYPE)));
	fini_buffer_append(body, "&assertion=", 11);
	fini_buffer_append(body, agent, strlen(agent));
	fini_buffer_append(body, "&client_assertion_type=", 23);
	fini_buffer_append(body, type, strlen(type));
	fini_buffer_append(body, "&client_assertion=", 18);
	fini_buffer_append(body, machine, strlen(machine));

	http->url = url;
	http->body = body->data;
	http->body_len = body->len;
	http->content_type = "application/x-www-form-urlencoded";

	/* a refusal may quote them */
	fini_blank_add(sent, agent, (int) strlen(agent));
	fini_blank_add(sent, machine, (int) strlen(machine));
	http->owner = sent;
	http->headers = headers;
}

bool
fini_token_plausible(const char *token)
{
	Size		len = strlen(token);

	if (len == 0 || len >= FINI_MAX_TOKEN)
		return false;
	for (Size i = 0; i < len; i++)
	{
		if (token[i] <= ' ' || token[i] >= 0x7f)
			return false;
	}
	return true;
}

bool
fini_token_read_key(const FiniAnswer *answer, uint8 *der, int *der_len, int64 *server_ms)
{
	MemoryContext caller = CurrentMemoryContext;
	const FiniValue *data = fini_value_member(answer->json, "data");
	char	   *key = NULL;
	char	   *server_time = NULL;
	volatile int len = 0;

	if (data != NULL)
	{
		key = fini_value_member_text(data, "publicKey");
		server_time = fini_value_member_text(data, "serverTimestamp");
	}
	if (key == NULL || server_time == NULL ||
		strspn(server_time, "0123456789") != strlen(server_time) || strlen(server_time) > 15)
		return false;
	PG_TRY();
	{
		len = fini_envelope_decode_public_key(key, strlen(key), der, FINI_MAX_PUBLIC_KEY);
	}
	PG_CATCH();
	{
		FlushErrorState();
		MemoryContextSwitchTo(caller);
	}
	PG_END_TRY();
	*der_len = len;
	*server_ms = strtoll(server_time, NULL, 10);
	return len > 0;
}

/*
 * False when the throttle has no room just now.  What goes wrong while the
 * request is prepared (a setting, a key file) ends the attempt as a failure.
 */
static bool
start_fetch(FiniSlotShared *slot, bool for_key)
{
	MemoryContext old = CurrentMemoryContext;

	if (fini_throttle_take(FINI_THROTTLE_INTERACTIVE, &fetch.ticket) > 0)
		return false;

	fetch.context = AllocSetContextCreate(TopMemoryContext, "fini token", ALLOCSET_SMALL_SIZES);
	fetch.for_key = for_key;
	memset(&fetch.http, 0, sizeof(fetch.http));
	MemoryContextSwitchTo(fetch.context);
	PG_TRY();
	{
		bool		ready = true;

		if (for_key)
			ready = prepare_key_request(slot);
		else
			fini_token_request(&fetch.http);
		if (ready)
		{
			fetch.http.max_answer = (Size) 1024 * 1024;
			fetch.http.timeout_ms = Min(FETCH_TIMEOUT, fini_guc_request_timeout);
			fetch.sent_at_ms = fini_token_clock_ms();
			fini_http_start(&fetch.http);
		}
		else
		{
			fini_throttle_give_back(&fetch.ticket);
			end_fetch();
		}
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(fetch.context);
		error = CopyErrorData();
		FlushErrorState();
		fini_throttle_give_back(&fetch.ticket);
		fail(slot, error->sqlerrcode, error->message, error->detail);
		end_fetch();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return true;
}

/* false when the token has gone in the meantime */
static bool
prepare_key_request(FiniSlotShared *slot)
{
	FiniAccess *access = fini_secret_alloc(sizeof(FiniAccess));

	/*
	 * A peek notes a use of the token; here that is the one that wanted the
	 * key.
	 */
	if (!fini_token_peek(slot, access, false))
		return false;
	fetch.http.url = fini_settings_url(fini_endpoint(FINI_ENDPOINT_CRYPTO_META)->path);
	fetch.http.headers = fini_call_headers(access, NULL);
	fetch.http.owner = fini_blank_create();
	fini_blank_add(fetch.http.owner, access->token, (int) strlen(access->token));
	return true;
}

static void
end_fetch(void)
{
	MemoryContext context = fetch.context;

	fetch.context = NULL;
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextDelete(context);
}

static void
take_token(FiniSlotShared *slot)
{
	FiniHttpRequest *http = &fetch.http;
	const FiniValue *json;
	char	   *token;

	MemoryContextSwitchTo(fetch.context);
	if (http->outcome != FINI_HTTP_ANSWERED)
	{
		fail(slot, FINI_ERRCODE_TRANSPORT, "could not reach the token endpoint", http->error);
		return;
	}
	json = fini_value_read(http->answer->data, http->answer->len);
	if (json == NULL || json->kind != FINI_VALUE_OBJECT)
	{
		fail(slot, FINI_ERRCODE_TOKEN_REFUSED, "the token endpoint's answer cannot be read",
			 psprintf("HTTP status %d.", http->status));
		return;
	}
	token = fini_value_member_text(json, "access_token");
	if (http->status != 200 || token == NULL)
	{
		char	   *error = fini_value_member_text(json, "error");
		char	   *description = fini_value_member_text(json, "error_description");

		fail(slot, FINI_ERRCODE_TOKEN_REFUSED, "the token endpoint refused an access token",
			 psprintf("%s: %s (HTTP status %d).",
					  error ? fini_answer_clean_text(error, http->owner) : "no reason",
					  description ? fini_answer_clean_text(description, http->owner) : "no description",
					  http->status));
	}
	else
	{
		char	   *expires_in = fini_value_member_text(json, "expires_in");
		double		life = expires_in != NULL ? strtod(expires_in, NULL) : 0;

		if (!fini_token_plausible(token) || !(life >= 1 && life <= MAX_TOKEN_LIFE))
			fail(slot, FINI_ERRCODE_TOKEN_REFUSED, "the token endpoint's answer cannot be used",
				 "The token or its expires_in is not plausible.");
		else
		{
			keep_token(slot, token, (int64) (life * 1000000.0));
			succeed(slot);
		}
	}

	/* a token that was not taken is one all the same */
	if (token != NULL)
		fini_secret_cleanse(token, strlen(token));
}

static void
keep_token(FiniSlotShared *slot, const char *token, int64 life_us)
{
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	strlcpy(slot->token, token, sizeof(slot->token));
	slot->token_generation++;
	slot->token_fetched_us = fetch.http.started_us;
	slot->token_expires_us = fetch.http.started_us + life_us;
	slot->token_expires_at = GetCurrentTimestamp() + (slot->token_expires_us - fini_monotonic_us());
	LWLockRelease(fini_shared_slot_lock(slot));
}

static void
take_key(FiniSlotShared *slot)
{
	FiniHttpRequest *http = &fetch.http;
	FiniAnswer *answer;
	uint8		der[FINI_MAX_PUBLIC_KEY];
	int			der_len;
	int64		server_ms;

	MemoryContextSwitchTo(fetch.context);
	if (http->outcome != FINI_HTTP_ANSWERED)
	{
		fail(slot, FINI_ERRCODE_TRANSPORT, "could not read crypto/meta", http->error);
		return;
	}
	if (http->status == 401)
		fini_token_refused(slot, slot->token_generation);
	answer = fini_answer_parse(http->answer->data, http->answer->len);
	if (http->status != 200 || answer == NULL || strcmp(answer->code, "0") != 0)
	{
		fail(slot, http->status == 403 || http->status == 404 ? FINI_ERRCODE_NOT_ENTITLED : FINI_ERRCODE_TOKEN_REFUSED,
			 "the gateway refused crypto/meta",
			 psprintf("HTTP status %d, code %s: %s", http->status,
					  answer ? fini_answer_clean_text(answer->code, http->owner) : "none",
					  answer ? fini_answer_clean_text(answer->message, http->owner) : "no message"));
		return;
	}
	if (!fini_token_read_key(answer, der, &der_len, &server_ms))
	{
		fail(slot, FINI_ERRCODE_ENVELOPE, "the gateway's public key or clock cannot be used",
			 "crypto/meta answered with something that is no RSA key of 2048 to 8192 bits, or no timestamp.");
		return;
	}

	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	memcpy(slot->public_key, der, der_len);
	slot->public_key_len = der_len;
	slot->key_generation++;
	slot->key_fetched_us = http->started_us;
	slot->key_fetched_at = GetCurrentTimestamp();
	/* the gateway looked at its clock in the middle of the round trip, as far as we know */
	slot->clock_offset_ms = server_ms - (fetch.sent_at_ms + http->duration_us / 2000);
	LWLockRelease(fini_shared_slot_lock(slot));
	succeed(slot);
}

static void
fail(FiniSlotShared *slot, int sqlstate, const char *error, const char *detail)
{
	int			n = ++failures[fetch.for_key];

	not_before_us[fetch.for_key] = fini_monotonic_us() + fini_backoff_us(n, MIN_BACKOFF_US, MAX_BACKOFF_US);

	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->fetch_serial++;
	slot->fetch_sqlstate = sqlstate;
	strlcpy(slot->fetch_error, error, sizeof(slot->fetch_error));
	strlcpy(slot->fetch_detail, detail ? detail : "", sizeof(slot->fetch_detail));
	LWLockRelease(fini_shared_slot_lock(slot));
	fini_shared_note_error(slot, psprintf("%s: %s", error, detail ? detail : ""));
	ConditionVariableBroadcast(&slot->changed);

	/* once for each run of failures */
	if (n == 1)
		ereport(LOG,
				(errcode(sqlstate),
				 errmsg("fini: %s", error),
				 detail ? errdetail("%s", detail) : 0));
}

static void
succeed(FiniSlotShared *slot)
{
	failures[fetch.for_key] = 0;
	not_before_us[fetch.for_key] = 0;
	LWLockAcquire(fini_shared_slot_lock(slot), LW_EXCLUSIVE);
	slot->fetch_serial++;
	slot->fetch_sqlstate = 0;
	LWLockRelease(fini_shared_slot_lock(slot));
	ConditionVariableBroadcast(&slot->changed);
}

int64
fini_token_clock_ms(void)
{
	struct timeval tv;

	gettimeofday(&tv, NULL);
	return (int64) tv.tv_sec * 1000 + tv.tv_usec / 1000;
}
