/*
 * find_look.h
 *		One look for what is in doubt of an IPO: what it looks for, how far it has
 *		come, and what its pages show.
 *
 * For find.c, which has the looks and their pages.
 */
#ifndef FINI_FIND_LOOK_H
#define FINI_FIND_LOOK_H

#include "postgres.h"

#include "utils/hsearch.h"

#include "call.h"
#include "query.h"
#include "shared.h"

typedef enum FiniLookPhase
{
	FINI_LOOK_RECORDS,
	FINI_LOOK_NEWEST,
	FINI_LOOK_ALL
} FiniLookPhase;

/* a look for everything that was in doubt for one IPO when it began */
typedef struct FiniLook
{
	MemoryContext context;		/* of all of it */
	char	   *ipo_id;
	HTAB	   *sought;
	int			open;			/* members not decided; of these, adds */
	int			open_adds;
	FiniLookPhase phase;
	char	  **record_ids;		/* what FINI_LOOK_RECORDS asks for, a page of IDs at a time */
	int			records;
	int			first_record;	/* of the page */
	char	   *tail;			/* where FINI_LOOK_NEWEST begins; NULL: not known */
	FiniPages	pages;			/* their cursor is that of the page that comes next, or is under way; "": the first */
	char	   *ends_at;		/* to be noted for the next look; NULL: nothing */
	FiniCall   *call;			/* the page under way; NULL: none */
	int			failures;		/* in a row; they outlive the look's being begun again */
	int64		not_before_us;
} FiniLook;

/*
 * Begin a look for everything that is in doubt for the IPO, and due; NULL when
 * the database refuses that, and then the flights are not due before that is
 * worth another try, nor before not_before_us.
 */
extern FiniLook *fini_look_begin(FiniSlotShared *slot, const char *ipo_id, int failures, int64 not_before_us);

/* the phase is over, and something is still to be looked for */
extern void fini_look_next_phase(FiniLook *look);

/*
 * A page has come, in a transaction; true: the phase is over.  Should that fail,
 * the page can be taken again: what it had shown by then stays known.
 */
extern bool fini_look_take_page(FiniLook *look, FiniAnswer *answer);

/* a look that has ended */
extern void fini_look_free(FiniLook *look);

#endif							/* FINI_FIND_LOOK_H */
