/*
 * entry.h
 *		From a row of a user's table to an entry of a request (protocol.md
 *		section 3), or to the reason why there is none.
 */
#ifndef FINI_ENTRY_H
#define FINI_ENTRY_H

#include "postgres.h"

#include "source.h"

/* what entries are made with, for any number of rows; it and their entries live in the context it was made in */
typedef struct FiniEntryMaker FiniEntryMaker;

extern FiniEntryMaker *fini_entry_maker_create(void);

/*
 * Build the entry of a row whose values come in the order of source->fields.
 * What else the row points to lives in CurrentMemoryContext, and is small however
 * large the row is.  Raises no error for what it holds: a problem becomes
 * row->problem.
 */
extern void fini_entry_build(FiniEntryMaker *maker, FiniSource *source, const Datum *values, const bool *nulls, FiniRow *row);

/* a column's value as its type's output function has it; NULL for null */
extern char *fini_entry_column_text(FiniField *field, Datum value, bool isnull);

/* the same for what users write; NULL, and it does not fit, when it is larger than an entry may be: then it is not even fetched */
extern char *fini_entry_limited_text(FiniField *field, Datum value, bool isnull, bool *fits);

/* append "name":"value" (value in JSON quotes), with a comma before it unless it is the first */
extern void fini_entry_append(FiniBuffer *dst, const char *name, const char *value);

/* append "name":, then the inner text between the brackets given */
extern void fini_entry_append_raw(FiniBuffer *dst, const char *name, const FiniBuffer *inner, char open, char close);

/* append a string as an array's next element */
extern void fini_entry_append_element(FiniBuffer *dst, const char *value);

#endif							/* FINI_ENTRY_H */
