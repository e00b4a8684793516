/*
 * token.c
 *		Access tokens: two assertions in, one short-lived token out.
 *
 * Issued tokens stand in a list under `lock` until they expire.
 */
#include "token.h"

#include "jwk.h"
#include "settings.h"
#include "stats.h"

#include <gnutls/crypto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define TOKEN_BYTES 24
#define TOKEN_TEXT GW_BASE64_LENGTH(TOKEN_BYTES)
#define MAX_ASSERTION_MS (30 * 60 * 1000)

/* The texts of protocol.md section 1. */
#define MSG_EXPIRED_OR_INVALID "JWT assertion is expired or invalid"
#define MSG_EXPIRED "JWT has expired"
#define MSG_UNREASONABLE "JWT expiration time is unreasonable"
#define MSG_NOT_VALID "JWT assertion is not valid"
#define MSG_NOT_PARSED "JWT could not parse"

typedef struct Token
{
	char		text[TOKEN_TEXT + 1];
	int64_t		expires_us;		/* monotonic */
} Token;

static bool refuse(Call *call, unsigned http, const char *error, const char *description);
static char *form_value(const char *form, const char *name, bool *repeated);
static const char *check_assertion(Profile profile, const char *jwt);
static const char *check_claims(Profile profile, const json_t *claims);
static json_t *part(const char *text, size_t len);
static bool is(const json_t *object, const char *name, const char *value);
static void drop_expired(int64_t now);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Token *tokens;
static size_t ntokens;
static size_t cap;

/* The grant: all four parameters, both assertions. */
bool
gw_token_check(Call *call)
{
	static const char *const names[4] = {
		"grant_type", "assertion", "client_assertion_type", "client_assertion"
	};
	static const char *const types[3] = {
		"urn:ietf:params:oauth:grant-type:jwt-bearer",
		"urn:ietf:params:oauth:assertion-type:jwt-bearer",
		"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	};
	const char *type = gw_http_header(call->request, "Content-Type");
	const char *form = call->request->body.data;
	char	   *values[4] = {0};
	const char *problem;
	bool		ok = false;
	bool		complete = true;
	bool		known = false;
	int			i;

	for (i = 0; i < 4; i++)
	{
		bool		repeated = false;

		values[i] = form_value(form, names[i], &repeated);
		if (values[i] == NULL || repeated)
			complete = false;
	}
	for (i = 0; i < 3 && complete; i++)
		known = known || strcmp(values[2], types[i]) == 0;

	if (type == NULL || strncasecmp(type, "application/x-www-form-urlencoded", 33) != 0)
		refuse(call, 400, "invalid_request", "the request is not form-encoded");
	else if (!complete)
		refuse(call, 400, "invalid_request", "a parameter is missing or given twice");
	else if (strcmp(values[0], types[0]) != 0)
		refuse(call, 400, "unsupported_grant_type", "the grant type is not supported");
	else if (!known)
		refuse(call, 400, "invalid_client", "the client assertion type is not supported");
	else if ((problem = check_assertion(PROFILE_AGENT, values[1])) != NULL)
		refuse(call, 400, "invalid_grant", problem);
	else if ((problem = check_assertion(PROFILE_MACHINE, values[3])) != NULL)
		refuse(call, 401, "invalid_client", problem);
	else
		ok = true;
	for (i = 0; i < 4; i++)
		free(values[i]);
	return ok;
}

void
gw_token_process(Call *call)
{
	int64_t		lifetime_ms = gw_settings.token_lifetime_ms;
	int64_t		now = gw_clock_monotonic_us();
	uint8_t		random[TOKEN_BYTES];
	Token		token;
	json_t	   *answer;

	gnutls_rnd(GNUTLS_RND_NONCE, random, sizeof(random));
	gw_base64url_encode(token.text, random, sizeof(random));
	token.expires_us = now + lifetime_ms * 1000;

	pthread_mutex_lock(&lock);
	drop_expired(now);
	if (ntokens == cap)
	{
		cap = cap ? cap * 2 : 64;
		tokens = realloc(tokens, cap * sizeof(Token));
		if (tokens == NULL)
			abort();
	}
	tokens[ntokens++] = token;
	pthread_mutex_unlock(&lock);

	gw_stats_add(COUNT_TOKENS, 1);
	answer = json_pack("{ss ss ss sI}", "access_token", token.text, "scope", gw_settings.agent_subject,
					   "token_type", "Bearer", "expires_in", (json_int_t) (lifetime_ms / 1000));
	gw_buf_json(&call->reply->body, answer);
	json_decref(answer);
}

/* NULL when an Authorization header carries a live token, else what is wrong with it. */
const char *
gw_token_verify(const char *authorization)
{
	const char *problem = "access token is unknown or has expired";
	int64_t		now = gw_clock_monotonic_us();
	size_t		i;

	if (authorization == NULL)
		return "no Authorization header";
	if (strncmp(authorization, "Bearer ", 7) != 0)
		return "Authorization is not Bearer and a token";
	pthread_mutex_lock(&lock);
	for (i = ntokens; i > 0; i--)
	{
		if (strcmp(tokens[i - 1].text, authorization + 7) == 0)
		{
			if (tokens[i - 1].expires_us > now)
				problem = NULL;
			break;
		}
	}
	pthread_mutex_unlock(&lock);
	return problem;
}

void
gw_token_expire(void)
{
	pthread_mutex_lock(&lock);
	ntokens = 0;
	pthread_mutex_unlock(&lock);
}

static bool
refuse(Call *call, unsigned http, const char *error, const char *description)
{
	json_t	   *answer = json_pack("{ss ss}", "error", error, "error_description", description);

	gw_stats_refusal(call->name, http, error, description);
	call->reply->status = http;
	gw_buf_json(&call->reply->body, answer);
	json_decref(answer);
	return false;
}

/* The decoded value of a form's parameter, the caller's to free, or NULL. */
static char *
form_value(const char *form, const char *name, bool *repeated)
{
	char	   *value = NULL;
	size_t		name_len = strlen(name);

	while (*form != '\0')
	{
		size_t		len = strcspn(form, "&");

		if (len > name_len && form[name_len] == '=' && strncmp(form, name, name_len) == 0)
		{
			size_t		i;
			size_t		n = 0;

			if (value != NULL)
			{
				*repeated = true;
				return value;
			}
			value = gw_alloc(len);
			for (i = name_len + 1; i < len; i++)
			{
				uint8_t		byte = (uint8_t) form[i];

				if (form[i] == '+')
					byte = ' ';
				else if (form[i] == '%' && i + 2 < len && gw_hex_decode(&byte, form + i + 1, 1, false))
					i += 2;
				value[n++] = (char) byte;
			}
		}
		form += len + (form[len] == '&');
	}
	return value;
}

/* NULL when the JWT is what its profile must send, else one of the five texts. */
static const char *
check_assertion(Profile profile, const char *jwt)
{
	const char *dot1 = strchr(jwt, '.');
	const char *dot2 = dot1 ? strchr(dot1 + 1, '.') : NULL;
	const char *problem = NULL;
	uint8_t		signature[1024];
	ssize_t		signature_len;
	json_t	   *header;
	json_t	   *claims;

	if (dot2 == NULL || strchr(dot2 + 1, '.') != NULL || strlen(dot2 + 1) > 1024)
		return MSG_NOT_PARSED;
	signature_len = gw_base64url_decode(signature, dot2 + 1, strlen(dot2 + 1));
	header = part(jwt, (size_t) (dot1 - jwt));
	claims = part(dot1 + 1, (size_t) (dot2 - dot1 - 1));
	if (header == NULL || claims == NULL || signature_len <= 0)
		problem = MSG_NOT_PARSED;
	else if (json_object_size(header) != 2 || !is(header, "typ", "JWT") || !is(header, "alg", "RS256"))
		problem = MSG_NOT_VALID;
	else if (!gw_jwk_verify(profile, jwt, (size_t) (dot2 - jwt), signature, (size_t) signature_len))
		problem = MSG_NOT_VALID;
	else
		problem = check_claims(profile, claims);
	json_decref(header);
	json_decref(claims);
	return problem;
}

/* Exactly aud, iss, exp and sub, each what was registered. */
static const char *
check_claims(Profile profile, const json_t *claims)
{
	const char *issuer = profile == PROFILE_AGENT ? gw_settings.agent_issuer : gw_settings.machine_id;
	const char *subject = profile == PROFILE_AGENT ? gw_settings.agent_subject : gw_settings.machine_id;
	json_t	   *expires = json_object_get(claims, "exp");
	bool		for_us = false;
	int64_t		left_ms;
	int			i;

	if (json_object_size(claims) != 4 || !json_is_integer(expires))
		return MSG_EXPIRED_OR_INVALID;
	if (json_integer_value(expires) < 0 || json_integer_value(expires) > INT64_C(100000000000))
		return MSG_UNREASONABLE;
	left_ms = (int64_t) json_integer_value(expires) * 1000 - gw_clock_ms();
	if (left_ms <= 0)
		return MSG_EXPIRED;
	if (left_ms > MAX_ASSERTION_MS)
		return MSG_UNREASONABLE;
	for (i = 0; i < gw_settings.naudiences; i++)
		for_us = for_us || is(claims, "aud", gw_settings.audiences[i]);
	if (!for_us || !is(claims, "iss", issuer) || !is(claims, "sub", subject))
		return MSG_NOT_VALID;
	return NULL;
}

/* A JWT's part as an object, the caller's, or NULL. */
static json_t *
part(const char *text, size_t len)
{
	uint8_t    *bytes = gw_alloc(GW_BASE64_DECODED(len));
	ssize_t		n = gw_base64url_decode(bytes, text, len);
	json_t	   *value = n > 0 ? json_loadb((char *) bytes, (size_t) n, JSON_REJECT_DUPLICATES, NULL) : NULL;

	free(bytes);
	if (value != NULL && !json_is_object(value))
	{
		json_decref(value);
		value = NULL;
	}
	return value;
}

static bool
is(const json_t *object, const char *name, const char *value)
{
	const char *text = gw_json_string(object, name);

	return text != NULL && strcmp(text, value) == 0;
}

/* Caller holds the lock. */
static void
drop_expired(int64_t now)
{
	size_t		kept = 0;
	size_t		i;

	for (i = 0; i < ntokens; i++)
		if (tokens[i].expires_us > now)
			tokens[kept++] = tokens[i];
	ntokens = kept;
}
