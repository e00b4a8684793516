/*
 * funding_judge.h
 *		What an answer on funding means for the confirmations in hand.
 *
 * For funding.c, whose lane it is.  All of it happens in memory, and needs
 * the database for nothing.
 */
#ifndef FINI_FUNDING_JUDGE_H
#define FINI_FUNDING_JUDGE_H

#include "postgres.h"

#include "utils/hsearch.h"

#include "call.h"
#include "funding_outbox.h"
#include "query.h"
#include "shared.h"

typedef enum FiniFundingStep
{
	FINI_FUNDING_HELD,			/* nothing is under way */
	FINI_FUNDING_SENT,
	FINI_FUNDING_ANSWERED,		/* the answer has not been read yet */
	FINI_FUNDING_JUDGED			/* what it means has not been written yet */
} FiniFundingStep;

typedef struct FiniFundingLane
{
	/* in hand: a batch that is looked for, then sent */
	struct
	{
		MemoryContext context;	/* NULL: nothing */
		FiniConfirmations batch;
		HTAB	   *sought;
		FiniPages	pages;		/* of the look */
		int64		looked_us;	/* when the last page had been read; 0: it has not been */
		FiniFundingStep step;
		FiniCall   *call;		/* NULL while it is only held */
	}			hand;

	bool		stopped;		/* refused for good; until fini.resume */
	int			failures[2];	/* in a row, of confirmations and of looks */
	int			batch_limit;	/* halved when a whole batch is refused; 0: fini.batch_size */
	int64		not_before_us;
} FiniFundingLane;

/* find the members of the batch in hand by their reference */
extern void fini_funding_seek(FiniFundingLane *lane);

/* the answer that has been read: members that it decides get their state; in the context of what is in hand */
extern void fini_funding_judge(FiniSlotShared *slot, FiniFundingLane *lane);

#endif							/* FINI_FUNDING_JUDGE_H */
