/*
 * query.h
 *		Paging through subscriptions/query and funding/query.
 */
#ifndef FINI_QUERY_H
#define FINI_QUERY_H

#include "postgres.h"

#include "call.h"

#define FINI_QUERY_PAGE		1000	/* the most FINI gives at once */

/* the call for one page of subscriptions; ipo_id, record_ids, status and cursor may be NULL */
extern FiniCall *fini_query_page(const char *ipo_id, int n, char *const *record_ids, const char *status,
								 const char *cursor);

/* the call for one page of funding */
extern FiniCall *fini_query_funding_page(const char *ipo_id, const char *cursor);

/* a cursor that cannot be the next one: it did not move, or is longer than any can be */
extern bool fini_query_cursor_stuck(const char *cursor, const char *next);

#endif							/* FINI_QUERY_H */
