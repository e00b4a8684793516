/*
 * source_cache.h
 *		Descriptions of attached tables that are kept between transactions; for
 *		source.c alone.
 */
#ifndef FINI_SOURCE_CACHE_H
#define FINI_SOURCE_CACHE_H

#include "postgres.h"

#include "source.h"

/* a copy in the current context whose parts stay until the end of the transaction; NULL: not known, or not any more */
extern FiniSource *fini_source_cached(Oid relid);

/*
 * A context to make a description in, from before its mapping is read, and the
 * end of that.  When something is invalidated in between, it is used and not kept.
 */
extern MemoryContext fini_source_begin_cached(void);
extern void fini_source_end_cached(Oid relid, FiniSource *source);

#endif							/* FINI_SOURCE_CACHE_H */
