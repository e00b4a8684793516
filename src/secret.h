/*
 * secret.h
 *		Memory and OpenSSL objects that must not outlive their use.
 *
 * Everything here is tied to a memory context: when the context is reset or
 * deleted, by success or by error, secrets are cleansed and OpenSSL objects
 * freed.  Nothing handed out here may be pfree'd by the caller, unless it says so.
 */
#ifndef FINI_SECRET_H
#define FINI_SECRET_H

#include "postgres.h"
#include "utils/palloc.h"

/* palloc in CurrentMemoryContext; cleansed when that context goes */
extern void *fini_secret_alloc(Size size);

/* for many small secrets: a pool in CurrentMemoryContext, whose pieces lie in few blocks; cleansed when that context goes */
typedef struct FiniSecretPool FiniSecretPool;

extern FiniSecretPool *fini_secret_pool_create(void);
extern char *fini_secret_pool_copy(FiniSecretPool *pool, const char *data, Size len); /* with a NUL behind it */

/* run fn(arg) when CurrentMemoryContext goes; for EVP_PKEY_free and the like */
extern void fini_secret_on_reset(void (*fn) (void *), void *arg);

/* cleanse now */
extern void fini_secret_cleanse(void *ptr, Size size);

/* a growable byte buffer, cleansed when it grows and when its context goes */
typedef struct FiniBuffer
{
	char	   *data;			/* always NUL-terminated behind len */
	Size		len;
	Size		size;			/* allocated, the NUL included */
	Size		used;			/* the most that len ever was: what there is to cleanse */
	MemoryContext context;
} FiniBuffer;

extern FiniBuffer *fini_buffer_create(Size size_hint);
extern void fini_buffer_grow(FiniBuffer *buf, Size more);	/* room for so many bytes more; the three below see to it */
extern void fini_buffer_truncate(FiniBuffer *buf, Size len);

/* the bytes become the caller's, in the buffer's context: not cleansed, may be pfree'd; the buffer is of no more use */
extern char *fini_buffer_release(FiniBuffer *buf);

/*
 * Room for len bytes at the end, counted as used.  They are uninitialised, and
 * the pointer holds until the buffer grows.
 */
static inline char *
fini_buffer_extend(FiniBuffer *buf, Size len)
{
	char	   *room;

	/* data is NUL-terminated, so one byte of size is never free */
	if (unlikely(len >= buf->size - buf->len))
		fini_buffer_grow(buf, len);

	room = buf->data + buf->len;
	buf->len += len;
	buf->used = Max(buf->used, buf->len);
	buf->data[buf->len] = '\0';
	return room;
}

static inline void
fini_buffer_append(FiniBuffer *buf, const void *data, Size len)
{
	if (len > 0)
		memcpy(fini_buffer_extend(buf, len), data, len);
}

static inline void
fini_buffer_append_char(FiniBuffer *buf, char c)
{
	*fini_buffer_extend(buf, 1) = c;
}

#endif							/* FINI_SECRET_H */
