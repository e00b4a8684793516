/*
 * index.h
 *		A hash table of numbers: it finds the number of a thing that others store.
 *
 * The table holds 32-bit numbers only; its user supplies hash and comparison.  No lock
 * of its own: the store's guards it.
 */
#ifndef GW_INDEX_H
#define GW_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GW_INDEX_NONE UINT32_MAX

typedef struct Index
{
	uint32_t   *slots;
	size_t		cap;			/* a power of two */
	size_t		used;			/* slots ever taken, removed ones included */
	uint64_t	(*hash) (uint32_t number);	/* of a stored thing */
} Index;

typedef bool (*IndexMatches) (uint32_t number, const void *key);

extern uint32_t gw_index_find(const Index *index, uint64_t hash, IndexMatches matches, const void *key);
extern void gw_index_insert(Index *index, uint32_t number);
extern void gw_index_replace(Index *index, uint32_t number, uint32_t by);
extern void gw_index_clear(Index *index);
extern uint64_t gw_index_hash(const void *data, size_t len, uint64_t seed);

#endif
