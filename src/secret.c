/*
 * secret.c
 *		Memory and OpenSSL objects that must not outlive their use.
 *
 * All of it hangs on reset callbacks of memory contexts, which PostgreSQL
 * calls exactly once, newest first, while the context's memory still exists:
 * at a reset or deletion of the context or of one of its parents, so also when
 * an error unwinds.  A callback must not be registered for memory that may be
 * freed earlier; that is why each one here lives in the chunk it cares for,
 * and why those chunks may not be pfree'd.
 *
 * There is no process-wide state.  Any module may call in.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "secret.h"

typedef struct SecretChunk
{
	MemoryContextCallback callback;
	Size		size;
} SecretChunk;

typedef struct ResetAction
{
	MemoryContextCallback callback;
	void		(*fn) (void *);
	void	   *arg;
} ResetAction;

typedef struct GuardedBuffer
{
	FiniBuffer	buffer;
	MemoryContextCallback callback;
} GuardedBuffer;

/* a block is a secret chunk; what does not fit gets one of its own */
struct FiniSecretPool
{
	MemoryContext context;
	Size		block;			/* size of the last block */
	char	   *next;			/* free room in it */
	char	   *end;
};

#define MIN_BUFFER_SIZE		64
#define MIN_POOL_BLOCK		((Size) 4096)
#define MAX_POOL_BLOCK		((Size) 65536)

static void cleanse_chunk(void *arg);
static void run_action(void *arg);
static void cleanse_buffer(void *arg);

/*
 * Memory for a secret, uninitialised.
 */
void *
fini_secret_alloc(Size size)
{
	SecretChunk *chunk;

	if (size > MaxAllocSize - MAXALIGN(sizeof(SecretChunk)))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("secret of %zu bytes is too large", size)));

	chunk = palloc(MAXALIGN(sizeof(SecretChunk)) + size);
	chunk->size = size;
	chunk->callback.func = cleanse_chunk;
	chunk->callback.arg = chunk;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &chunk->callback);

	return (char *) chunk + MAXALIGN(sizeof(SecretChunk));
}

FiniSecretPool *
fini_secret_pool_create(void)
{
	FiniSecretPool *pool = palloc0(sizeof(FiniSecretPool));

	pool->context = CurrentMemoryContext;
	return pool;
}

char *
fini_secret_pool_copy(FiniSecretPool *pool, const char *data, Size len)
{
	char	   *piece;

	if (len >= (Size) (pool->end - pool->next))
	{
		MemoryContext old = MemoryContextSwitchTo(pool->context);
		Size		size;

		pool->block = pool->block == 0 ? MIN_POOL_BLOCK : Min(pool->block * 2, MAX_POOL_BLOCK);
		size = Max(pool->block, len + 1);
		pool->next = fini_secret_alloc(size);
		pool->end = pool->next + size;
		MemoryContextSwitchTo(old);
	}
	piece = pool->next;
	memcpy(piece, data, len);
	piece[len] = '\0';
	pool->next += len + 1;
	return piece;
}

/*
 * When out of memory, fn(arg) runs before the error goes out: a caller has
 * handed over what it just created, whatever happens.
 */
void
fini_secret_on_reset(void (*fn) (void *), void *arg)
{
	ResetAction *action;

	action = MemoryContextAllocExtended(CurrentMemoryContext, sizeof(ResetAction),
										MCXT_ALLOC_NO_OOM);
	if (action == NULL)
	{
		fn(arg);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	}

	action->fn = fn;
	action->arg = arg;
	action->callback.func = run_action;
	action->callback.arg = action;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &action->callback);
}

/* as lasting as OPENSSL_cleanse, which takes several times as long for a buffer of libcurl's */
void
fini_secret_cleanse(void *ptr, Size size)
{
	explicit_bzero(ptr, size);
}

/*
 * An empty buffer in CurrentMemoryContext with room for size_hint bytes.
 */
FiniBuffer *
fini_buffer_create(Size size_hint)
{
	GuardedBuffer *guarded = palloc(sizeof(GuardedBuffer));
	FiniBuffer *buf = &guarded->buffer;

	if (size_hint >= MaxAllocSize)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("buffer of %zu bytes is too large", size_hint)));

	buf->context = CurrentMemoryContext;
	buf->size = Max(size_hint + 1, MIN_BUFFER_SIZE);
	buf->data = palloc(buf->size);
	buf->data[0] = '\0';
	buf->len = 0;
	buf->used = 0;

	guarded->callback.func = cleanse_buffer;
	guarded->callback.arg = buf;
	MemoryContextRegisterResetCallback(buf->context, &guarded->callback);

	return buf;
}

/*
 * Make room for `more` bytes and the NUL.  Not repalloc, which could leave a
 * copy behind.
 */
void
fini_buffer_grow(FiniBuffer *buf, Size more)
{
	Size		need;
	Size		size;
	char	   *data;

	if (more >= MaxAllocSize || buf->len + more >= MaxAllocSize)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("out of memory"),
				 errdetail("Cannot enlarge a buffer containing %zu bytes by %zu more bytes.",
						   buf->len, more)));

	need = buf->len + more + 1;
	size = Min(buf->size * 2, MaxAllocSize);
	if (size < need)
		size = need;

	data = MemoryContextAlloc(buf->context, size);
	memcpy(data, buf->data, buf->len + 1);
	fini_secret_cleanse(buf->data, buf->used);
	pfree(buf->data);
	buf->data = data;
	buf->size = size;
	buf->used = buf->len;
}

/*
 * Shorten to len bytes.  What is cut off is cleansed with the rest, later.
 */
void
fini_buffer_truncate(FiniBuffer *buf, Size len)
{
	Assert(len <= buf->len);
	buf->len = len;
	buf->data[len] = '\0';
}

char *
fini_buffer_release(FiniBuffer *buf)
{
	char	   *data = buf->data;

	buf->data = NULL;
	buf->len = 0;
	buf->size = 0;
	buf->used = 0;
	return data;
}

static void
cleanse_chunk(void *arg)
{
	SecretChunk *chunk = arg;

	fini_secret_cleanse((char *) chunk + MAXALIGN(sizeof(SecretChunk)), chunk->size);
}

static void
run_action(void *arg)
{
	ResetAction *action = arg;

	action->fn(action->arg);
}

static void
cleanse_buffer(void *arg)
{
	FiniBuffer *buf = arg;

	if (buf->data != NULL)
		fini_secret_cleanse(buf->data, buf->used);
}
