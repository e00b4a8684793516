/*
 * textmap.c
 *		Hash tables keyed by C strings.
 */
#include "postgres.h"

#include "common/hashfn.h"

#include "textmap.h"

static uint32 hash_text(const void *key, Size size);
static int	match_text(const void *a, const void *b, Size size);

HTAB *
fini_textmap_create(const char *name, long size_hint, Size entry_size, MemoryContext context)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(const char *);
	ctl.entrysize = entry_size;
	ctl.hash = hash_text;
	ctl.match = match_text;
	ctl.hcxt = context;
	return hash_create(name, size_hint, &ctl, HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
}

void *
fini_textmap_find(HTAB *map, const char *key)
{
	return hash_search(map, &key, HASH_FIND, NULL);
}

void *
fini_textmap_enter(HTAB *map, const char *key, bool *found)
{
	return hash_search(map, &key, HASH_ENTER, found);
}

static uint32
hash_text(const void *key, Size size)
{
	const char *text = *(const char *const *) key;

	return DatumGetUInt32(hash_any((const unsigned char *) text, (int) strlen(text)));
}

static int
match_text(const void *a, const void *b, Size size)
{
	return strcmp(*(const char *const *) a, *(const char *const *) b);
}
