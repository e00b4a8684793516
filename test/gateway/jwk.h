/*
 * jwk.h
 *		The registered public keys of the two profiles.
 *
 * Loaded by main() before the first thread; only read afterwards, without a lock.
 */
#ifndef GW_JWK_H
#define GW_JWK_H

#include "text.h"

typedef enum Profile
{
	PROFILE_AGENT,
	PROFILE_MACHINE
} Profile;

extern bool gw_jwk_load(Profile profile, const char *jwks_file, const char *pem_file);
extern bool gw_jwk_distinct(void);
extern bool gw_jwk_verify(Profile profile, const char *signed_text, size_t signed_len,
						  const uint8_t *signature, size_t signature_len);

#endif
