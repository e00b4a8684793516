/*
 * base64.h
 *		Base64 of RFC 4648: encoders, and a decoder that takes nothing else.
 *
 * Pure functions on the caller's memory; they raise no errors.
 */
#ifndef FINI_BASE64_H
#define FINI_BASE64_H

#include "postgres.h"

/* characters that n bytes become, padding included; no NUL is written */
#define FINI_BASE64_LEN(n)		(((n) + 2) / 3 * 4)

/* bytes that n characters become, at most */
#define FINI_BASE64_MAX_DECODED(n)	((n) / 4 * 3)

/* standard alphabet, padded; dst has room for FINI_BASE64_LEN(len); returns the number of characters */
extern Size fini_base64_encode(const uint8 *src, Size len, char *dst);

/* URL alphabet, no padding (RFC 7515) */
extern Size fini_base64_encode_url(const uint8 *src, Size len, char *dst);

/*
 * Standard alphabet, exactly: padded, nothing before, between or behind, and
 * unused bits zero.  dst has room for FINI_BASE64_MAX_DECODED(len).  False when
 * src is anything else; dst may have been written to then.
 */
extern bool fini_base64_decode(const char *src, Size len, uint8 *dst, Size *dst_len);

#endif							/* FINI_BASE64_H */
