/*
 * certificate.c
 *		A self-signed certificate for localhost, made at start and gone with the process.
 */
#include "certificate.h"

#include <gnutls/crypto.h>
#include <gnutls/x509.h>
#include <string.h>
#include <time.h>

#define LIFE_SECONDS (30 * 24 * 3600)

static bool fill_in(gnutls_x509_crt_t certificate, gnutls_x509_privkey_t key);
static bool to_pem(gnutls_x509_crt_t certificate, gnutls_x509_privkey_t key, Buf *certificate_pem, Buf *key_pem);

/* Appends both as PEM; false when GnuTLS cannot. */
bool
gw_certificate_make(Buf *certificate_pem, Buf *key_pem)
{
	gnutls_x509_privkey_t key;
	gnutls_x509_crt_t certificate;
	bool		ok;

	gnutls_x509_privkey_init(&key);
	gnutls_x509_crt_init(&certificate);
	ok = gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0) >= 0 &&
		fill_in(certificate, key) && to_pem(certificate, key, certificate_pem, key_pem);
	gnutls_x509_crt_deinit(certificate);
	gnutls_x509_privkey_deinit(key);
	return ok;
}

/* It is its own authority, so that a client can name it as its CA file. */
static bool
fill_in(gnutls_x509_crt_t certificate, gnutls_x509_privkey_t key)
{
	static const unsigned char loopback[4] = {127, 0, 0, 1};
	unsigned char serial[16];
	time_t		now = time(NULL);

	if (gnutls_rnd(GNUTLS_RND_NONCE, serial, sizeof(serial)) < 0)
		return false;
	serial[0] &= 0x7F;
	return gnutls_x509_crt_set_version(certificate, 3) >= 0 &&
		gnutls_x509_crt_set_serial(certificate, serial, sizeof(serial)) >= 0 &&
		gnutls_x509_crt_set_activation_time(certificate, now - 3600) >= 0 &&
		gnutls_x509_crt_set_expiration_time(certificate, now + LIFE_SECONDS) >= 0 &&
		gnutls_x509_crt_set_dn(certificate, "CN=localhost,O=fini sandbox gateway", NULL) >= 0 &&
		gnutls_x509_crt_set_key(certificate, key) >= 0 &&
		gnutls_x509_crt_set_basic_constraints(certificate, 1, -1) >= 0 &&
		gnutls_x509_crt_set_key_usage(certificate, GNUTLS_KEY_DIGITAL_SIGNATURE | GNUTLS_KEY_KEY_CERT_SIGN) >= 0 &&
		gnutls_x509_crt_set_subject_alt_name(certificate, GNUTLS_SAN_DNSNAME, "localhost", strlen("localhost"),
											 GNUTLS_FSAN_SET) >= 0 &&
		gnutls_x509_crt_set_subject_alt_name(certificate, GNUTLS_SAN_IPADDRESS, loopback, sizeof(loopback),
											 GNUTLS_FSAN_APPEND) >= 0 &&
		gnutls_x509_crt_sign2(certificate, certificate, key, GNUTLS_DIG_SHA256, 0) >= 0;
}

static bool
to_pem(gnutls_x509_crt_t certificate, gnutls_x509_privkey_t key, Buf *certificate_pem, Buf *key_pem)
{
	gnutls_datum_t out;

	if (gnutls_x509_crt_export2(certificate, GNUTLS_X509_FMT_PEM, &out) < 0)
		return false;
	gw_buf_append(certificate_pem, out.data, out.size);
	gnutls_free(out.data);
	if (gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &out) < 0)
		return false;
	gw_buf_append(key_pem, out.data, out.size);
	gnutls_free(out.data);
	return true;
}
