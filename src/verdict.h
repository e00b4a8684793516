/*
 * verdict.h
 *		What an answer, or its absence, means for what was sent
 *		(the table of protocol.md section 4).
 */
#ifndef FINI_VERDICT_H
#define FINI_VERDICT_H

#include "postgres.h"

#include "answer.h"
#include "http.h"

typedef enum FiniVerdict
{
	FINI_VERDICT_PROCESSED,		/* look at the entries */
	FINI_VERDICT_REJECTED,		/* refused as a whole, for what its entries say; not processed */
	FINI_VERDICT_WRONG,			/* refused as a whole, for how we asked; not processed */
	FINI_VERDICT_NEW_TOKEN,		/* not processed; get a new token, then again */
	FINI_VERDICT_NEW_KEY,		/* not processed; read crypto/meta, then again */
	FINI_VERDICT_LATER,			/* not processed; back off, then again */
	FINI_VERDICT_STOP,			/* not processed; nothing more to this endpoint */
	FINI_VERDICT_DOUBT			/* unknown whether it was processed */
} FiniVerdict;

/*
 * Judge a completed request.  answer is NULL when there was none that can be
 * read.  *code and *message say why in a few words, for tables and messages;
 * they point into the answer, to constants, or into the request.
 */
extern FiniVerdict fini_verdict_of(const FiniHttpRequest *http, const FiniAnswer *answer,
								   const char **code, const char **message);

#endif							/* FINI_VERDICT_H */
