/*
 * standing.h
 *		How applications stand, by what the outbox says of them.
 */
#ifndef FINI_STANDING_H
#define FINI_STANDING_H

#include "postgres.h"

#include "nodes/pg_list.h"

typedef enum FiniStanding
{
	FINI_STANDING_NONE,			/* never sent, but may be: not enqueued, queued as an add, cancelled, or given up */
	FINI_STANDING_SENT,			/* at FINI, or on its way there */
	FINI_STANDING_REJECTED,
	FINI_STANDING_WITHDRAWN		/* at FINI, or on its way there */
} FiniStanding;

/*
 * standings[i] for own_refs[i] of the table.  In the caller's SPI connection,
 * as the extension's owner.
 */
extern void fini_standing_read(Oid relid, int n, char **own_refs, FiniStanding *standings);

/* attached tables, as a List of OIDs in the context given */
extern List *fini_standing_tables(MemoryContext into);

#endif							/* FINI_STANDING_H */
