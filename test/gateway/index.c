/*
 * index.c
 *		A hash table of numbers, open addressing, linear probing.
 */
#include "index.h"

#include "text.h"

#include <stdlib.h>
#include <string.h>

#define EMPTY UINT32_MAX
#define REMOVED (UINT32_MAX - 1)

static void grow(Index *index);
static void place(Index *index, uint32_t number);

/* The number of the thing with this key, or GW_INDEX_NONE. */
uint32_t
gw_index_find(const Index *index, uint64_t hash, IndexMatches matches, const void *key)
{
	size_t		i;

	if (index->cap == 0)
		return GW_INDEX_NONE;
	for (i = hash & (index->cap - 1); index->slots[i] != EMPTY; i = (i + 1) & (index->cap - 1))
		if (index->slots[i] != REMOVED && matches(index->slots[i], key))
			return index->slots[i];
	return GW_INDEX_NONE;
}

/* The caller knows that it is not there yet. */
void
gw_index_insert(Index *index, uint32_t number)
{
	if ((index->used + 1) * 4 > index->cap * 3)
		grow(index);
	place(index, number);
}

/* Puts another number of the same key in its place, or GW_INDEX_NONE: removes it. */
void
gw_index_replace(Index *index, uint32_t number, uint32_t by)
{
	size_t		i;

	for (i = index->hash(number) & (index->cap - 1); index->slots[i] != EMPTY; i = (i + 1) & (index->cap - 1))
	{
		if (index->slots[i] == number)
		{
			index->slots[i] = by == GW_INDEX_NONE ? REMOVED : by;
			return;
		}
	}
}

void
gw_index_clear(Index *index)
{
	free(index->slots);
	index->slots = NULL;
	index->cap = 0;
	index->used = 0;
}

/* FNV-1a with a final mix: good enough for identifiers of one's own tests. */
uint64_t
gw_index_hash(const void *data, size_t len, uint64_t seed)
{
	const uint8_t *bytes = data;
	uint64_t	h = UINT64_C(14695981039346656037) ^ seed;
	size_t		i;

	for (i = 0; i < len; i++)
		h = (h ^ bytes[i]) * UINT64_C(1099511628211);
	h ^= h >> 32;
	h *= UINT64_C(0x9E3779B97F4A7C15);
	return h ^ h >> 29;
}

static void
grow(Index *index)
{
	uint32_t   *old = index->slots;
	size_t		old_cap = index->cap;
	size_t		i;

	index->cap = old_cap ? old_cap * 2 : 1024;
	index->slots = gw_alloc(index->cap * sizeof(uint32_t));
	memset(index->slots, 0xFF, index->cap * sizeof(uint32_t));
	index->used = 0;
	for (i = 0; i < old_cap; i++)
		if (old[i] != EMPTY && old[i] != REMOVED)
			place(index, old[i]);
	free(old);
}

static void
place(Index *index, uint32_t number)
{
	size_t		i = index->hash(number) & (index->cap - 1);

	while (index->slots[i] != EMPTY)
		i = (i + 1) & (index->cap - 1);
	index->slots[i] = number;
	index->used++;
}
