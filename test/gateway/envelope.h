/*
 * envelope.h
 *		End-to-end encryption of personal data: the gateway's key pair, the headers of
 *		a sealed request, its fields and those of the answer.
 *
 * The key pair is guarded by a lock of this module.  An Envelope belongs to the thread
 * of its call; gw_envelope_release() wipes it.
 */
#ifndef GW_ENVELOPE_H
#define GW_ENVELOPE_H

#include "http.h"

#include <nettle/gcm.h>

/* Why a request is refused; code NULL: it is not.  Messages are constants. */
typedef struct Refusal
{
	const char *code;
	const char *message;
} Refusal;

typedef struct Envelope
{
	struct gcm_aes256_ctx cipher;
	uint8_t		iv[12];
	uint8_t		request_id[16];
	Buf			scratch;		/* one decrypted or encrypted field */
} Envelope;

/* What a fault does to the first ciphertext of an answer. */
typedef enum Damage
{
	DAMAGE_NONE,
	DAMAGE_FLIP,				/* one byte of it */
	DAMAGE_SHORTEN,				/* shorter than a tag */
	DAMAGE_PREFIX				/* not %enc_% */
} Damage;

extern bool gw_envelope_rotate_key(void);
extern void gw_envelope_public_key(Buf *base64);
extern Refusal gw_envelope_check(Request *request, Envelope *envelope);
extern Refusal gw_envelope_open(Envelope *envelope, json_t *value);
extern void gw_envelope_seal(Envelope *envelope, json_t *value, Damage *damage);
extern void gw_envelope_release(Envelope *envelope);

#endif
