/*
 * keys.h
 *		Our own key pairs: the two profiles' private keys, JWK sets, assertions.
 *
 * Private keys are read from their files each time they are used, which is a
 * few times a minute at most, and live in memory for one call only.
 */
#ifndef FINI_KEYS_H
#define FINI_KEYS_H

#include "postgres.h"

typedef enum FiniProfile
{
	FINI_PROFILE_AGENT,
	FINI_PROFILE_MACHINE
} FiniProfile;

/* a signed assertion (compact JWT) for the profile, from the settings; palloc'd secret */
extern char *fini_keys_assertion(FiniProfile profile, const char *audience);

/* the JWK set to register; expires in epoch seconds */
extern char *fini_keys_jwks(FiniProfile profile, int64 expires);

/*
 * Can this file serve as a private key?  NULL when it can, else a palloc'd
 * reason without the path.  Checks: regular file, owned by us or root, no
 * group or other access (as PostgreSQL's ssl_key_file: 0640 allowed when
 * owned by root), PEM, RSA, at least 2048 bits.  *hint gets advice.
 */
extern char *fini_keys_check_file(const char *path, const char **hint);

/*
 * The thumbprint (RFC 7638) of a profile's key, under which it is registered;
 * palloc'd.  NULL when its file is not set or cannot serve; *problem then says
 * why, without the path, and *hint has advice or is NULL.
 */
extern char *fini_keys_thumbprint(FiniProfile profile, char **problem, const char **hint);

#endif							/* FINI_KEYS_H */
