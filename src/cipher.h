/*
 * cipher.h
 *		The cryptography of an envelope: field cipher, wrapped key, signature.
 *
 * Nothing here knows JSON, settings or requests.  Whatever fails inside
 * OpenSSL is an error, with OpenSSL's reason and without data.
 */
#ifndef FINI_CIPHER_H
#define FINI_CIPHER_H

#include "postgres.h"

#include "compat.h"
#include "secret.h"

#define FINI_DATA_KEY_LEN	32
#define FINI_IV_LEN			12
#define FINI_TAG_LEN		16
#define FINI_SIGNATURE_LEN	64	/* hex digits */
#define FINI_ENC_PREFIX		"%enc_%"
#define FINI_ENC_PREFIX_LEN (sizeof(FINI_ENC_PREFIX) - 1)

/* one direction under one data key and IV; lives in the context it was created in */
typedef struct FiniCipher FiniCipher;

extern FiniCipher *fini_cipher_create(const uint8 *data_key, const uint8 *iv, bool encrypt);

/* append prefix and base64 of the encrypted bytes and their tag */
extern void fini_cipher_encrypt(FiniCipher *cipher, const char *plaintext, Size len,
								FiniBuffer *dst);

/*
 * Append what a field with its prefix decrypts to.  Raises
 * FINI_ERRCODE_ENVELOPE when it is no intact ciphertext, dst then being as it was.
 */
extern void fini_cipher_decrypt(FiniCipher *cipher, const char *field, Size len,
								FiniBuffer *dst);

/* X-FINI-ENCRYPTED-KEY, palloc'd; public_key: SPKI DER */
extern char *fini_cipher_wrap(const uint8 *data_key, const uint8 *iv,
							  const uint8 *public_key, Size public_key_len);

/* X-FINI-SIGNATURE into dst (room for FINI_SIGNATURE_LEN + 1); body: UTF-8 */
extern void fini_cipher_sign(const uint8 *data_key, const char *body, Size len,
							 const char *request_id, int64 timestamp_ms, char *dst);

/* decode and check base64 SPKI DER of an RSA key: see fini_envelope_decode_public_key */
extern int	fini_cipher_decode_public_key(const char *base64, Size len,
										  uint8 *dst, Size dst_size);

/* bytes from OpenSSL's generator for secrets */
extern void fini_cipher_random(uint8 *dst, Size len);

/* raise what OpenSSL reports as the reason why it could not do `what`; empties its error queue */
extern void fini_cipher_failed(const char *what) pg_attribute_noreturn();

#endif							/* FINI_CIPHER_H */
