/*
 * applicant.h
 *		What can be seen of a row's applicants before FINI sees them: what is
 *		missing, check digits, and which identity documents they name.
 *
 * Documents are told apart by digests under a key that this process made up and
 * never tells: they are good for comparing within the process, and say nothing
 * to anybody else.  Nothing that comes out of here holds a personal value.
 */
#ifndef FINI_APPLICANT_H
#define FINI_APPLICANT_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "source.h"

#define FINI_DOCUMENT_LEN	16

typedef struct FiniDocument
{
	uint8		digest[FINI_DOCUMENT_LEN];
} FiniDocument;

typedef struct FiniProblem
{
	const char *code;
	const char *text;			/* names fields, and no values */
} FiniProblem;

/*
 * The problems of the applicants of a row whose values come in the order of
 * source->fields, as a List of FiniProblem; and their documents, as a List of
 * FiniDocument.  Either pointer may be NULL.  Both live in
 * CurrentMemoryContext.  Raises no error for what the row holds.
 */
extern void fini_applicant_check(FiniSource *source, const Datum *values, const bool *nulls,
								 List **problems, List **documents);

/* is the document in the list? */
extern bool fini_applicant_has_document(List *documents, const FiniDocument *document);

#endif							/* FINI_APPLICANT_H */
