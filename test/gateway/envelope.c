/*
 * envelope.c
 *		End-to-end encryption of personal data, the gateway's side of it.
 *
 * One reason, one code.  protocol.md names what 411002, 411004, 411007, 411008 and
 * 411011 mean; the others, known only as "our envelope is wrong", are dealt out here:
 *
 *		411001	X-FINI-REQUEST-ID missing or not 32 hex digits
 *		411003	X-FINI-TIMESTAMP missing or not a number
 *		411004	X-FINI-TIMESTAMP too far from this gateway's clock
 *		411005	X-FINI-ENCRYPTED-KEY missing
 *		411006	X-FINI-ENCRYPTED-KEY not base64 of an RSA block, or not "key#iv" inside
 *		411007	X-FINI-ENCRYPTED-KEY made for another public key
 *		411008	X-FINI-SIGNATURE does not fit
 *		411009	X-FINI-SIGNATURE missing or not 64 lower-case hex digits
 *		411010	X-FINI-ENCRYPTION-CLIENT missing or not YES
 *		411011	a field cannot be decrypted
 *		411999	a personal field that is not encrypted
 *
 * 411002 (request ID taken) is store.c's to find, at the moment of processing.
 */
#include "envelope.h"

#include "settings.h"

#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <nettle/bignum.h>
#include <nettle/hmac.h>
#include <nettle/memops.h>
#include <nettle/rsa.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "%enc_%"
#define PREFIX_LEN 6
#define KEY_LEN 32
#define IV_LEN 12
#define TAG_LEN 16
#define RSA_LEN 256
#define WRAPPED_LEN (44 + 1 + 16)	/* base64(key) # base64(IV) */

/*
 * Retired keys stay allocated: a call may still be using one.  Unwrapping is nettle's
 * plain RSA: GnuTLS hides its timing at twice the cost, and this key guards nothing.
 */
typedef struct GatewayKey
{
	struct rsa_private_key private_key;
	char	   *public_key;		/* base64 of the SPKI DER */
	struct GatewayKey *retired;
} GatewayKey;

static GatewayKey *make_key(void);
static bool copy_private(gnutls_privkey_t from, struct rsa_private_key *to);
static GatewayKey *current_key(void);
static Refusal unwrap(const char *header, uint8_t key[KEY_LEN], uint8_t iv[IV_LEN]);
static bool parse_wrapped(const char *text, size_t len, uint8_t key[KEY_LEN], uint8_t iv[IV_LEN]);
static bool looks_printable(const char *text, size_t len);
static bool signature_fits(const Request *request, const uint8_t key[KEY_LEN], const char *request_id,
						   const char *timestamp, const uint8_t signature[32]);
static bool is_personal(const char *name);
static Refusal open_field(Envelope *envelope, json_t *field);
static json_t *seal_field(Envelope *envelope, const char *text, size_t len, Damage damage);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GatewayKey *gateway_key;

/* Makes the first or a new key pair; false when GnuTLS cannot. */
bool
gw_envelope_rotate_key(void)
{
	GatewayKey *key = make_key();

	if (key == NULL)
		return false;
	pthread_mutex_lock(&lock);
	key->retired = gateway_key;
	gateway_key = key;
	pthread_mutex_unlock(&lock);
	return true;
}

void
gw_envelope_public_key(Buf *base64)
{
	gw_buf_puts(base64, current_key()->public_key);
}

/* Checks the headers over the exact body; fills the envelope when they are right. */
Refusal
gw_envelope_check(Request *request, Envelope *envelope)
{
	const char *wrapped = gw_http_header(request, "X-FINI-ENCRYPTED-KEY");
	const char *request_id = gw_http_header(request, "X-FINI-REQUEST-ID");
	const char *timestamp = gw_http_header(request, "X-FINI-TIMESTAMP");
	const char *signature_text = gw_http_header(request, "X-FINI-SIGNATURE");
	const char *client = gw_http_header(request, "X-FINI-ENCRYPTION-CLIENT");
	uint8_t		key[KEY_LEN];
	uint8_t		signature[32];
	Refusal		refusal;
	int64_t		off;

	if (client == NULL || strcmp(client, "YES") != 0)
		return (Refusal) {"411010", "X-FINI-ENCRYPTION-CLIENT is not YES"};
	if (request_id == NULL || strlen(request_id) != 32 ||
		!gw_hex_decode(envelope->request_id, request_id, 16, false))
		return (Refusal) {"411001", "X-FINI-REQUEST-ID is not 32 hex digits"};
	if (timestamp == NULL || strlen(timestamp) > 15 || !gw_is_digits(timestamp))
		return (Refusal) {"411003", "X-FINI-TIMESTAMP is not a number"};
	if (signature_text == NULL || strlen(signature_text) != 64 ||
		!gw_hex_decode(signature, signature_text, 32, true))
		return (Refusal) {"411009", "X-FINI-SIGNATURE is not 64 lower-case hex digits"};
	if (wrapped == NULL)
		return (Refusal) {"411005", "X-FINI-ENCRYPTED-KEY is missing"};
	off = strtoll(timestamp, NULL, 10) - gw_clock_ms();
	if (off > gw_settings.timestamp_window_ms || -off > gw_settings.timestamp_window_ms)
		return (Refusal) {"411004", "timestamp expired"};
	refusal = unwrap(wrapped, key, envelope->iv);
	if (refusal.code != NULL)
		return refusal;
	if (signature_fits(request, key, request_id, timestamp, signature))
		gcm_aes256_set_key(&envelope->cipher, key);
	else
		refusal = (Refusal) {"411008", "signature does not match"};
	gnutls_memset(key, 0, sizeof(key));
	return refusal;
}

/* Decrypts every personal field of a value in place, wherever it stands. */
Refusal
gw_envelope_open(Envelope *envelope, json_t *value)
{
	Refusal		refusal = {NULL, NULL};
	json_t	   *item;
	size_t		i;

	if (json_is_array(value))
	{
		json_array_foreach(value, i, item)
		{
			if (json_is_object(item) || json_is_array(item))
				refusal = gw_envelope_open(envelope, item);
			if (refusal.code != NULL)
				break;
		}
	}
	else if (json_is_object(value))
	{
		void	   *at;

		for (at = json_object_iter(value); at != NULL; at = json_object_iter_next(value, at))
		{
			item = json_object_iter_value(at);
			if (is_personal(json_object_iter_key(at)))
			{
				if (!json_is_null(item))
					refusal = open_field(envelope, item);
			}
			else if (json_is_object(item) || json_is_array(item))
				refusal = gw_envelope_open(envelope, item);
			if (refusal.code != NULL)
				break;
		}
	}
	return refusal;
}

/* The opposite, for answers; the first field may be damaged on request. */
void
gw_envelope_seal(Envelope *envelope, json_t *value, Damage *damage)
{
	json_t	   *item;
	size_t		i;

	if (json_is_array(value))
	{
		json_array_foreach(value, i, item)
			gw_envelope_seal(envelope, item, damage);
	}
	else if (json_is_object(value))
	{
		void	   *at;

		for (at = json_object_iter(value); at != NULL; at = json_object_iter_next(value, at))
		{
			item = json_object_iter_value(at);
			if (is_personal(json_object_iter_key(at)) && json_is_string(item))
			{
				json_object_iter_set_new(value, at,
										 seal_field(envelope, json_string_value(item),
													json_string_length(item), *damage));
				*damage = DAMAGE_NONE;
			}
			else
				gw_envelope_seal(envelope, item, damage);
		}
	}
}

void
gw_envelope_release(Envelope *envelope)
{
	if (envelope->scratch.data != NULL)
		gnutls_memset(envelope->scratch.data, 0, envelope->scratch.cap);
	gw_buf_free(&envelope->scratch);
	gnutls_memset(&envelope->cipher, 0, sizeof(envelope->cipher));
}

static GatewayKey *
make_key(void)
{
	GatewayKey *key = gw_alloc(sizeof(GatewayKey));
	gnutls_privkey_t private_key;
	gnutls_pubkey_t public_key;
	gnutls_datum_t der = {NULL, 0};
	bool		ok;

	gnutls_privkey_init(&private_key);
	gnutls_pubkey_init(&public_key);
	ok = gnutls_privkey_generate(private_key, GNUTLS_PK_RSA, 2048, 0) >= 0 &&
		copy_private(private_key, &key->private_key) &&
		gnutls_pubkey_import_privkey(public_key, private_key, 0, 0) >= 0 &&
		gnutls_pubkey_export2(public_key, GNUTLS_X509_FMT_DER, &der) >= 0;
	gnutls_pubkey_deinit(public_key);
	gnutls_privkey_deinit(private_key);
	if (!ok)
	{
		free(key);
		return NULL;
	}
	key->public_key = gw_alloc(GW_BASE64_LENGTH(der.size) + 1);
	gw_base64_encode(key->public_key, der.data, der.size);
	gnutls_free(der.data);
	return key;
}

static bool
copy_private(gnutls_privkey_t from, struct rsa_private_key *to)
{
	enum {N, E, D, P, Q, U, E1, E2, PARTS};
	gnutls_datum_t part[PARTS];
	int			i;

	if (gnutls_privkey_export_rsa_raw(from, &part[N], &part[E], &part[D], &part[P], &part[Q],
									  &part[U], &part[E1], &part[E2]) < 0)
		return false;
	rsa_private_key_init(to);
	nettle_mpz_set_str_256_u(to->d, part[D].size, part[D].data);
	nettle_mpz_set_str_256_u(to->p, part[P].size, part[P].data);
	nettle_mpz_set_str_256_u(to->q, part[Q].size, part[Q].data);
	nettle_mpz_set_str_256_u(to->a, part[E1].size, part[E1].data);
	nettle_mpz_set_str_256_u(to->b, part[E2].size, part[E2].data);
	nettle_mpz_set_str_256_u(to->c, part[U].size, part[U].data);
	for (i = 0; i < PARTS; i++)
	{
		gnutls_memset(part[i].data, 0, part[i].size);
		gnutls_free(part[i].data);
	}
	return rsa_private_key_prepare(to) == 1;
}

static GatewayKey *
current_key(void)
{
	GatewayKey *key;

	pthread_mutex_lock(&lock);
	key = gateway_key;
	pthread_mutex_unlock(&lock);
	return key;
}

static Refusal
unwrap(const char *header, uint8_t key[KEY_LEN], uint8_t iv[IV_LEN])
{
	Refusal		refusal = {NULL, NULL};
	uint8_t		block[GW_BASE64_DECODED(GW_BASE64_LENGTH(RSA_LEN))];
	char		text[RSA_LEN];
	size_t		len = sizeof(text);
	mpz_t		number;
	int			ok;

	if (strlen(header) != GW_BASE64_LENGTH(RSA_LEN) ||
		gw_base64_decode(block, header, strlen(header)) != RSA_LEN)
		return (Refusal) {"411006", "X-FINI-ENCRYPTED-KEY is not base64 of 256 bytes"};
	nettle_mpz_init_set_str_256_u(number, RSA_LEN, block);
	ok = rsa_decrypt(&current_key()->private_key, &len, (uint8_t *) text, number);
	mpz_clear(number);
	if (!ok)
		return (Refusal) {"411007", "data key was not wrapped with the current public key"};
	if (!parse_wrapped(text, len, key, iv))
	{
		/* with a wrong key the padding is right once in a while, the text never */
		if (looks_printable(text, len))
			refusal = (Refusal) {"411006", "wrapped text is not base64(data key) # base64(IV)"};
		else
			refusal = (Refusal) {"411007", "data key was not wrapped with the current public key"};
	}
	gnutls_memset(text, 0, sizeof(text));
	return refusal;
}

static bool
parse_wrapped(const char *text, size_t len, uint8_t key[KEY_LEN], uint8_t iv[IV_LEN])
{
	uint8_t		key_room[GW_BASE64_DECODED(44)];
	uint8_t		iv_room[GW_BASE64_DECODED(16)];
	bool		ok;

	ok = len == WRAPPED_LEN && text[44] == '#' &&
		gw_base64_decode(key_room, text, 44) == KEY_LEN &&
		gw_base64_decode(iv_room, text + 45, 16) == IV_LEN;
	if (ok)
	{
		memcpy(key, key_room, KEY_LEN);
		memcpy(iv, iv_room, IV_LEN);
	}
	gnutls_memset(key_room, 0, sizeof(key_room));
	return ok;
}

static bool
looks_printable(const char *text, size_t len)
{
	size_t		i;

	for (i = 0; i < len; i++)
		if (text[i] < ' ' || text[i] > '~')
			return false;
	return true;
}

/* HMAC-SHA256 over body, request ID and timestamp, each exactly as sent. */
static bool
signature_fits(const Request *request, const uint8_t key[KEY_LEN], const char *request_id,
			   const char *timestamp, const uint8_t signature[32])
{
	struct hmac_sha256_ctx hmac;
	uint8_t		digest[32];

	hmac_sha256_set_key(&hmac, KEY_LEN, key);
	hmac_sha256_update(&hmac, request->body.len, (const uint8_t *) request->body.data);
	hmac_sha256_update(&hmac, strlen(request_id), (const uint8_t *) request_id);
	hmac_sha256_update(&hmac, strlen(timestamp), (const uint8_t *) timestamp);
	hmac_sha256_digest(&hmac, sizeof(digest), digest);
	gnutls_memset(&hmac, 0, sizeof(hmac));
	return memeql_sec(digest, signature, sizeof(digest));
}

static bool
is_personal(const char *name)
{
	int			i;

	for (i = 0; i < gw_settings.npersonal; i++)
		if (strcmp(name, gw_settings.personal[i]) == 0)
			return true;
	return false;
}

/* "%enc_%" base64(ciphertext, tag) becomes the text it hides. */
static Refusal
open_field(Envelope *envelope, json_t *field)
{
	const char *text = json_string_value(field);
	size_t		len = json_string_length(field);
	uint8_t		digest[TAG_LEN];
	uint8_t    *bytes;
	ssize_t		n;

	if (text == NULL || len < PREFIX_LEN || memcmp(text, PREFIX, PREFIX_LEN) != 0)
		return (Refusal) {"411999", "a personal field is not encrypted"};
	envelope->scratch.len = 0;
	gw_buf_reserve(&envelope->scratch, GW_BASE64_DECODED(len));
	bytes = (uint8_t *) envelope->scratch.data;
	n = gw_base64_decode(bytes, text + PREFIX_LEN, len - PREFIX_LEN);
	if (n < TAG_LEN)
		return (Refusal) {"411011", "a personal field is not base64 of a ciphertext and its tag"};
	n -= TAG_LEN;
	gcm_aes256_set_iv(&envelope->cipher, IV_LEN, envelope->iv);
	gcm_aes256_decrypt(&envelope->cipher, (size_t) n, bytes, bytes);
	gcm_aes256_digest(&envelope->cipher, TAG_LEN, digest);
	if (!memeql_sec(digest, bytes + n, TAG_LEN))
		return (Refusal) {"411011", "a personal field cannot be decrypted"};
	if (!gw_is_utf8(bytes, (size_t) n) || memchr(bytes, 0, (size_t) n) != NULL)
		return (Refusal) {"411011", "a personal field is no UTF-8 text when decrypted"};
	json_string_setn_nocheck(field, (char *) bytes, (size_t) n);
	return (Refusal) {NULL, NULL};
}

static json_t *
seal_field(Envelope *envelope, const char *text, size_t len, Damage damage)
{
	Buf		   *out = &envelope->scratch;
	uint8_t    *sealed = gw_alloc(len + TAG_LEN);
	size_t		n = len + TAG_LEN;
	json_t	   *field;

	gcm_aes256_set_iv(&envelope->cipher, IV_LEN, envelope->iv);
	gcm_aes256_encrypt(&envelope->cipher, len, sealed, (const uint8_t *) text);
	gcm_aes256_digest(&envelope->cipher, TAG_LEN, sealed + len);
	if (damage == DAMAGE_FLIP)
		sealed[0] ^= 0x01;
	if (damage == DAMAGE_SHORTEN)
		n = TAG_LEN - 1;
	out->len = 0;
	gw_buf_reserve(out, PREFIX_LEN + GW_BASE64_LENGTH(n));
	memcpy(out->data, damage == DAMAGE_PREFIX ? "%enc-%" : PREFIX, PREFIX_LEN);
	out->len = PREFIX_LEN + gw_base64_encode(out->data + PREFIX_LEN, sealed, n);
	field = json_stringn_nocheck(out->data, out->len);
	free(sealed);
	return field;
}
