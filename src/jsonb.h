/*
 * jsonb.h
 *		JSON of users as jsonb, and fields of it.
 */
#ifndef FINI_JSONB_H
#define FINI_JSONB_H

#include "postgres.h"

#include "utils/jsonb.h"

/* of an answer, a request or a column; far beyond a page of 1000 records, and what is made of them fits into memory */
#define FINI_JSONB_MAX_VALUES	1000000

/* digits of a number's exponent: 1e131071 is nine bytes of JSON, and a text of 128 kB */
#define FINI_JSONB_MAX_EXPONENT	2

/*
 * JSON text in the database encoding, a NUL behind it, to jsonb, or NULL:
 * raises nothing for what the text says, nor for bytes that are no text.
 */
extern Jsonb *fini_jsonb_read(const char *text, Size len);

/*
 * What make makes of arg, or NULL where that raises an error other than an
 * interrupt's or for want of memory.  make may do nothing but allocate.
 */
extern Jsonb *fini_jsonb_make(Jsonb *(*make) (const void *arg), const void *arg);

/* a field of an object as text: string, number or boolean; NULL when absent, null or composite */
extern char *fini_jsonb_field(JsonbContainer *object, const char *name);

#endif							/* FINI_JSONB_H */
