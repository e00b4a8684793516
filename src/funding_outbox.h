/*
 * funding_outbox.h
 *		All that C does in SQL with fini.funding_confirmation.
 *
 * As in outbox.h, every function runs inside the worker's transaction and SPI
 * connection.  None waits for a lock: a row that a session holds is passed
 * over and stays open, so that it is taken up again later.
 */
#ifndef FINI_FUNDING_OUTBOX_H
#define FINI_FUNDING_OUTBOX_H

#include "postgres.h"

#include "envelope.h"

/* a confirmation that is open */
typedef struct FiniConfirmation
{
	int64		id;
	const char *transaction_ref;
	const char *status;			/* that it asks for */
	bool		doubted;		/* it may have been sent before */
	bool		quiet;			/* and that is longer ago than a request can take */
	int			attempts;		/* sendings */
	const char *seen;			/* its status at FINI by the last look; NULL: FINI does not list it */

	/* how it ends, or in which state it goes on; NULL: not decided */
	const char *state;
	const char *error_code;
	const char *error_message;
	int64		delay_us;		/* with an open state: not before that much later */
} FiniConfirmation;

typedef struct FiniConfirmations
{
	const char *ipo_id;			/* NULL: FINI names none */
	char		request_id[FINI_REQUEST_ID_LEN + 1];	/* of our own, FINI does not see it */
	int			count;
	FiniConfirmation *members;
} FiniConfirmations;

/* what a former worker was sending may have arrived */
extern void fini_funding_outbox_recover(void);

/* up to limit open confirmations of the IPO whose turn it is; false: none is due */
extern bool fini_funding_outbox_next(FiniConfirmations *batch, int limit, MemoryContext into);

/* microseconds until the next deferred one becomes due; -1: none */
extern int64 fini_funding_outbox_next_due(void);

/* they are about to be sent; those that are not to be had any more leave the batch */
extern void fini_funding_outbox_claim(FiniConfirmations *batch);

/* write what has been decided, and announce what has ended */
extern void fini_funding_outbox_settle(const FiniConfirmations *batch);

#endif							/* FINI_FUNDING_OUTBOX_H */
