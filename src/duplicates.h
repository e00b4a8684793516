/*
 * duplicates.h
 *		Applications with a document that another application of the IPO has,
 *		kept from FINI where a table was attached with precheck.
 *
 * For the worker alone: what it remembers is in its own memory, and goes with
 * it.
 */
#ifndef FINI_DUPLICATES_H
#define FINI_DUPLICATES_H

#include "postgres.h"

#include "outbox.h"
#include "source.h"

/* what has to be looked at when rows of the source are read to be sent; in the caller's SPI connection */
extern void fini_duplicates_prepare(FiniSource *source);

/*
 * Reject those members of a claimed batch whose documents others have, and
 * remember the documents of those that will be sent.
 */
extern void fini_duplicates_judge(FiniBatch *batch);

#endif							/* FINI_DUPLICATES_H */
