/*
 * textmap.h
 *		Hash tables keyed by C strings that somebody else owns.
 *
 * An entry begins with the pointer to its key, which must live as long as the
 * table.
 */
#ifndef FINI_TEXTMAP_H
#define FINI_TEXTMAP_H

#include "postgres.h"

#include "utils/hsearch.h"

extern HTAB *fini_textmap_create(const char *name, long size_hint, Size entry_size, MemoryContext context);

/* NULL when there is none */
extern void *fini_textmap_find(HTAB *map, const char *key);

/* the entry of the key, made when there was none: then all but the key is to be filled in */
extern void *fini_textmap_enter(HTAB *map, const char *key, bool *found);

#endif							/* FINI_TEXTMAP_H */
