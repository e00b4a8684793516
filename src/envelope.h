/*
 * envelope.h
 *		End-to-end encryption of personal data (protocol.md section 2).
 *
 * An envelope carries the secrets of one request: its data key and IV, which
 * are never used for a second request, and what goes into the X-FINI headers.
 * Whoever creates it keeps it until the answer has been opened; it is
 * cleansed when its memory context goes.
 */
#ifndef FINI_ENVELOPE_H
#define FINI_ENVELOPE_H

#include "postgres.h"

#include "cipher.h"
#include "secret.h"

#define FINI_REQUEST_ID_LEN	32	/* hex digits */

typedef struct FiniEnvelope
{
	uint8		data_key[FINI_DATA_KEY_LEN];
	uint8		iv[FINI_IV_LEN];
	char		request_id[FINI_REQUEST_ID_LEN + 1];
	char		signature[FINI_SIGNATURE_LEN + 1];
	int64		timestamp_ms;
	char	   *encrypted_key;	/* base64, NUL-terminated */
	FiniBuffer *body;			/* UTF-8, exactly what is sent */
} FiniEnvelope;

/* 32 random hex digits into dst (room for FINI_REQUEST_ID_LEN + 1) */
extern void fini_envelope_request_id(char *dst);

/*
 * Seal a payload (JSON text in the database encoding) in a new envelope in
 * CurrentMemoryContext.  request_id NULL: a fresh one.  public_key: SPKI DER.
 * clock_offset_ms: gateway's clock minus ours.  Raises
 * ERRCODE_INVALID_PARAMETER_VALUE for a payload that cannot be sealed, with
 * nothing of it in the message.
 *
 * Sealing and opening convert between encodings: see encoding.h on what that
 * takes in a database that is not UTF8.
 */
extern FiniEnvelope *fini_envelope_seal(const char *payload, Size len,
										const char *request_id,
										const uint8 *public_key, Size public_key_len,
										int64 clock_offset_ms);

/*
 * Open an answer: JSON text in UTF-8 as it came, personal fields decrypted,
 * returned in UTF-8 as well, in CurrentMemoryContext: what to do about
 * characters that the database lacks is for the caller to say.  Raises
 * FINI_ERRCODE_UNREADABLE when it is no JSON or no UTF-8, and
 * FINI_ERRCODE_ENVELOPE when a field does not decrypt.  A personal field
 * without the prefix stays as it is.
 */
extern FiniBuffer *fini_envelope_open(FiniEnvelope *env, const char *answer, Size len);

/*
 * The two transformations alone.  The sealed text is appended to dst, in UTF-8,
 * fini_envelope_sealed_size() being room enough as a rule; the opened one comes
 * back in the database encoding; characters that it lacks are
 * FINI_ERRCODE_UNREADABLE.
 */
extern void fini_envelope_encrypt_fields(const uint8 *data_key, const uint8 *iv,
										 const char *payload, Size len, FiniBuffer *dst);
extern Size fini_envelope_sealed_size(Size len);
extern FiniBuffer *fini_envelope_decrypt_fields(const uint8 *data_key, const uint8 *iv,
												const char *answer, Size len);

/* Is this a personal field, by fini.encrypted_fields? */
extern bool fini_envelope_is_personal(const char *name, Size len);

/*
 * Decode base64 SPKI DER (of crypto/meta) into dst and check it: RSA, 2048 to
 * 8192 bits.  Returns its length.  Raises FINI_ERRCODE_ENVELOPE for anything
 * else, or when it is longer than dst_size.
 */
extern int	fini_envelope_decode_public_key(const char *base64, Size len, uint8 *dst, Size dst_size);

#endif							/* FINI_ENVELOPE_H */
