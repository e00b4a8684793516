/*
 * query.h
 *		Paging through subscriptions/query and funding/query.
 */
#ifndef FINI_QUERY_H
#define FINI_QUERY_H

#include "postgres.h"

#include "call.h"

#define FINI_QUERY_PAGE		1000	/* the most FINI gives at once */
#define FINI_MAX_CURSOR		20		/* characters, says FINI */

/* the call for one page of subscriptions; ipo_id, record_ids, status and cursor may be NULL */
extern FiniCall *fini_query_page(const char *ipo_id, int n, char *const *record_ids, const char *status,
								 const char *cursor);

/* the call for one page of funding */
extern FiniCall *fini_query_funding_page(const char *ipo_id, const char *cursor);

/* how far somebody has come through the pages; zeroed before the first */
typedef struct FiniPages
{
	int64		n;				/* read so far */
	char		cursor[FINI_MAX_CURSOR + 1];	/* of the next page */
	char		mark[FINI_MAX_CURSOR + 1];	/* one that was passed: to come back to it is to go round */
} FiniPages;

typedef enum FiniPageTurn
{
	FINI_PAGES_MORE,			/* the next one is at pages->cursor */
	FINI_PAGES_END,				/* that was the last */
	FINI_PAGES_STUCK			/* they do not end, whatever the gateway says */
} FiniPageTurn;

/*
 * A page has come.  A gateway whose cursor stands still, goes round, is longer
 * than any can be or comes with an empty page must not keep us for ever, and
 * neither must one that makes up new cursors without end.
 */
extern FiniPageTurn fini_query_turn(FiniPages *pages, const FiniAnswer *answer);

#endif							/* FINI_QUERY_H */
