/*
 * jwk.c
 *		The registered public keys of the two profiles: reading what was registered as
 *		HKEX would look at it, and verifying RS256 signatures by it.
 */
#include "jwk.h"

#include "settings.h"

#include <errno.h>
#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_KEYS 16
#define MAX_LIFE_MS (INT64_C(365) * 24 * 3600 * 1000)

typedef struct Key
{
	gnutls_pubkey_t key;
	int64_t		expires_ms;		/* INT64_MAX for a bare PEM key */
} Key;

static struct
{
	Key			keys[MAX_KEYS];
	int			nkeys;
}			profiles[2];

static bool load_jwk(Profile profile, const char *file, const json_t *jwk);
static bool check_thumbprint(const json_t *jwk);
static bool add_key(Profile profile, const char *file, gnutls_pubkey_t key, int64_t expires_ms);
static bool complain(const char *file, const char *what);
static bool key_id(gnutls_pubkey_t key, uint8_t id[32]);

/* Reads a JWK set or a PEM key; false, with the reason in the log, when it will not do. */
bool
gw_jwk_load(Profile profile, const char *jwks_file, const char *pem_file)
{
	const char *file = jwks_file ? jwks_file : pem_file;
	Buf			text = {0};
	bool		ok = false;

	if (!gw_buf_read_file(&text, file))
		ok = complain(file, strerror(errno));
	else if (jwks_file != NULL)
	{
		json_t	   *set = gw_json_parse(text.data ? text.data : "", text.len);
		json_t	   *keys = json_object_get(set, "keys");
		json_t	   *jwk;
		size_t		i;

		if (!json_is_array(keys) || json_array_size(keys) == 0)
			ok = complain(file, "not a JWK set: no array \"keys\" with a key in it");
		else
		{
			ok = true;
			json_array_foreach(keys, i, jwk)
				ok = ok && load_jwk(profile, file, jwk);
		}
		json_decref(set);
	}
	else
	{
		gnutls_datum_t pem = {(unsigned char *) text.data, (unsigned) text.len};
		gnutls_pubkey_t key;

		gnutls_pubkey_init(&key);
		if (text.len == 0 || gnutls_pubkey_import(key, &pem, GNUTLS_X509_FMT_PEM) < 0)
		{
			ok = complain(file, "not a public key in PEM");
			gnutls_pubkey_deinit(key);
		}
		else
			ok = add_key(profile, file, key, INT64_MAX);
	}
	gw_buf_free(&text);
	return ok;
}

/* The two profiles must not share a key. */
bool
gw_jwk_distinct(void)
{
	int			i;
	int			j;

	for (i = 0; i < profiles[0].nkeys; i++)
		for (j = 0; j < profiles[1].nkeys; j++)
		{
			uint8_t		a[32];
			uint8_t		b[32];

			if (!key_id(profiles[0].keys[i].key, a) || !key_id(profiles[1].keys[j].key, b) ||
				memcmp(a, b, 32) == 0)
				return false;
		}
	return true;
}

/* True when one of the profile's unexpired keys made the signature. */
bool
gw_jwk_verify(Profile profile, const char *signed_text, size_t signed_len,
			  const uint8_t *signature, size_t signature_len)
{
	gnutls_datum_t text = {(unsigned char *) signed_text, (unsigned) signed_len};
	gnutls_datum_t sig = {(unsigned char *) signature, (unsigned) signature_len};
	int64_t		now = gw_clock_ms();
	int			i;

	for (i = 0; i < profiles[profile].nkeys; i++)
	{
		Key		   *key = &profiles[profile].keys[i];

		if (key->expires_ms > now &&
			gnutls_pubkey_verify_data2(key->key, GNUTLS_SIGN_RSA_SHA256, 0, &text, &sig) >= 0)
			return true;
	}
	return false;
}

static bool
load_jwk(Profile profile, const char *file, const json_t *jwk)
{
	static const char *const expected[][2] = {{"kty", "RSA"}, {"use", "sig"}, {"alg", "RS256"}};
	const char *n = gw_json_string(jwk, "n");
	const char *e = gw_json_string(jwk, "e");
	json_t	   *expires = json_object_get(jwk, "exp");
	int64_t		expires_ms;
	gnutls_datum_t modulus = {0};
	gnutls_datum_t exponent = {0};
	gnutls_pubkey_t key;
	ssize_t		nlen;
	ssize_t		elen;
	bool		ok;
	size_t		i;

	for (i = 0; i < 3; i++)
	{
		const char *value = gw_json_string(jwk, expected[i][0]);

		if (value == NULL || strcmp(value, expected[i][1]) != 0)
			return complain(file, "a key whose kty, use and alg are not RSA, sig and RS256");
	}
	if (!json_is_integer(expires))
		return complain(file, "a key without an integer exp");
	expires_ms = (int64_t) json_integer_value(expires) * 1000;
	if (expires_ms <= gw_clock_ms())
		return complain(file, "a key whose exp is past");
	if (expires_ms >= gw_clock_ms() + MAX_LIFE_MS)
		return complain(file, "a key whose exp is a year away or more");
	if (n == NULL || e == NULL)
		return complain(file, "a key without n or e");
	if (!check_thumbprint(jwk))
		gw_log("%s: a kid that is not the key's RFC 7638 thumbprint", file);

	modulus.data = gw_alloc(GW_BASE64_DECODED(strlen(n)));
	exponent.data = gw_alloc(GW_BASE64_DECODED(strlen(e)));
	nlen = gw_base64url_decode(modulus.data, n, strlen(n));
	elen = gw_base64url_decode(exponent.data, e, strlen(e));
	modulus.size = (unsigned) (nlen < 0 ? 0 : nlen);
	exponent.size = (unsigned) (elen < 0 ? 0 : elen);
	gnutls_pubkey_init(&key);
	if (nlen <= 0 || elen <= 0 || modulus.data[0] == 0 ||
		gnutls_pubkey_import_rsa_raw(key, &modulus, &exponent) < 0)
	{
		ok = complain(file, "a key whose n or e is not exact base64url");
		gnutls_pubkey_deinit(key);
	}
	else
		ok = add_key(profile, file, key, expires_ms);
	free(modulus.data);
	free(exponent.data);
	return ok;
}

/* RFC 7638: SHA-256 over the required members, sorted, without spaces. */
static bool
check_thumbprint(const json_t *jwk)
{
	const char *kid = gw_json_string(jwk, "kid");
	uint8_t		digest[32];
	char		text[48];
	Buf			canonical = {0};
	bool		same;

	gw_buf_printf(&canonical, "{\"e\":\"%s\",\"kty\":\"RSA\",\"n\":\"%s\"}",
				  gw_json_string(jwk, "e"), gw_json_string(jwk, "n"));
	gnutls_hash_fast(GNUTLS_DIG_SHA256, canonical.data, canonical.len, digest);
	gw_base64url_encode(text, digest, sizeof(digest));
	same = kid != NULL && strcmp(kid, text) == 0;
	gw_buf_free(&canonical);
	return same;
}

/* Takes over the key, whatever comes back. */
static bool
add_key(Profile profile, const char *file, gnutls_pubkey_t key, int64_t expires_ms)
{
	unsigned	bits = 0;
	const char *problem = NULL;

	if (gnutls_pubkey_get_pk_algorithm(key, &bits) != GNUTLS_PK_RSA)
		problem = "a key that is no RSA key";
	else if (bits != 2048)
		problem = "a key that has not 2048 bits";
	else if (profiles[profile].nkeys == MAX_KEYS)
		problem = "too many keys";
	if (problem != NULL)
	{
		gnutls_pubkey_deinit(key);
		return complain(file, problem);
	}
	profiles[profile].keys[profiles[profile].nkeys++] = (Key) {key, expires_ms};
	return true;
}

static bool
complain(const char *file, const char *what)
{
	gw_log("%s: %s", file, what);
	return false;
}

static bool
key_id(gnutls_pubkey_t key, uint8_t id[32])
{
	size_t		size = 32;

	return gnutls_pubkey_get_key_id(key, GNUTLS_KEYID_USE_SHA256, id, &size) >= 0;
}
