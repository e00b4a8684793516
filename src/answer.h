/*
 * answer.h
 *		Reading what the gateway answered (protocol.md section 4).
 *
 * Everything found lives in the memory context that was current when the
 * answer was parsed, and points into its text.  Nothing here raises an error for what the gateway sent:
 * an answer that cannot be read is one of the cases to be told apart.
 */
#ifndef FINI_ANSWER_H
#define FINI_ANSWER_H

#include "postgres.h"

#include "blank.h"
#include "json_value.h"

#define FINI_MAX_CODE		32
#define FINI_MAX_TEXT		400		/* bytes of a gateway's message that we keep */
#define FINI_MAX_RECORD_ID	64

typedef struct FiniAnswer
{
	const FiniValue *json;		/* the whole answer; an object */
	const char *code;			/* never NULL */
	const char *message;		/* never NULL */
	const char *next_cursor;	/* NULL: no further page */
	bool		exception;		/* the whole request was rejected */
	const char *exception_code;
	const char *exception_message;
	int			entries;		/* elements of data, when it is an array; -1 otherwise */
	const FiniValue **data;		/* these, or NULL */
} FiniAnswer;

typedef struct FiniAnswerEntry
{
	int			number;			/* its requestID; -1 when it has none of use */
	const char *record_id;		/* NULL when absent or no plausible identifier */
	const char *own_ref;
	bool		rejected;
	const char *error_code;
	const char *error_message;
} FiniAnswerEntry;

/* JSON text in the database encoding; NULL when it is no JSON object with a code */
extern FiniAnswer *fini_answer_parse(const char *text, Size len);

/* is data what a page of a query has: an array, or nothing (null, {} or absent)? */
extern bool fini_answer_is_page(const FiniAnswer *answer);

/* element i of data as an object; false when it is none */
extern bool fini_answer_object(const FiniAnswer *answer, int i, const FiniValue **object);

/* element i of an answer to add, change, invalidate or confirm */
extern bool fini_answer_entry(const FiniAnswer *answer, int i, FiniAnswerEntry *entry);

/* texts of refusals may quote what was sent: once they have been cleaned, what they were is cleansed */
extern void fini_answer_entry_done(FiniAnswerEntry *entry);
extern void fini_answer_done(FiniAnswer *answer);

/*
 * A gateway's text for tables, logs and messages: clipped, control characters
 * replaced, and encrypted fields, personal values and secrets of what was sent
 * blanked out.  These may be NULL where none was sent; else see
 * fini_call_clean_text.
 */
extern char *fini_answer_clean_text(const char *text, const FiniBlanker *sent);

#endif							/* FINI_ANSWER_H */
