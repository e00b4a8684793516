/*
 * source_place.h
 *		Outcomes written into rows that are still where they were read; for
 *		source.c alone.
 */
#ifndef FINI_SOURCE_PLACE_H
#define FINI_SOURCE_PLACE_H

#include "postgres.h"

#include "source.h"

/* as the table's owner, whose identity the caller has taken on; written: which of them are done */
extern void fini_source_write_places(FiniSource *source, int n, const FiniOutcome *outcomes, bool *written);

#endif							/* FINI_SOURCE_PLACE_H */
