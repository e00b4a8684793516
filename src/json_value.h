/*
 * json_value.h
 *		JSON text read once, its values found by name and place.
 *
 * What is read is an array of values in the order of the text: behind an object
 * stand its members, a name and a value each, behind an array its elements.
 * They point into the text, which has to live as long; only strings with
 * escapes have a copy of what they mean, which is cleansed with the memory
 * context that was current.
 *
 * It means what it would mean as jsonb: of members of one name the last one
 * counts, and a number reads as numeric writes it.
 */
#ifndef FINI_JSON_VALUE_H
#define FINI_JSON_VALUE_H

#include "postgres.h"

#include "utils/jsonb.h"

typedef enum FiniValueKind
{
	FINI_VALUE_NAME,			/* of the member whose value comes next */
	FINI_VALUE_STRING,
	FINI_VALUE_NUMBER,
	FINI_VALUE_BOOLEAN,
	FINI_VALUE_NULL,
	FINI_VALUE_OBJECT,
	FINI_VALUE_ARRAY
} FiniValueKind;

typedef struct FiniValue
{
	const char *text;			/* of a name or string: what it means; else as written */
	uint32		len;
	uint32		size;			/* itself and everything within it: what comes next is so far behind it */
	uint32		count;			/* members or elements */
	FiniValueKind kind;
} FiniValue;

/*
 * JSON text in the database encoding to values, the outermost first; NULL when
 * it is none, or none that jsonb could hold, or beyond all reason.  Raises no
 * error for what the text says, nor for bytes that are no text.
 */
extern const FiniValue *fini_value_read(const char *text, Size len);

/* the value of an object's member; NULL when there is none, or no object */
extern const FiniValue *fini_value_member(const FiniValue *object, const char *name);

/* the names of an object's members, the value of each behind it, sorted; of several of one name the last one */
extern const FiniValue **fini_value_members(const FiniValue *object, uint32 *n);

/* how the sorting compares two names */
extern int	fini_value_compare_names(const FiniValue *a, const FiniValue *b);

/* a string, number or boolean as text, without a NUL behind it; NULL when it is null or composite */
extern const char *fini_value_scalar(const FiniValue *value, Size *len);

/* a copy with a NUL */
extern char *fini_value_text(const FiniValue *value);

/* ... of an object's member; NULL when there is none, too */
extern char *fini_value_member_text(const FiniValue *object, const char *name);

/* NULL when the server's limits do not allow for it */
extern Jsonb *fini_value_jsonb(const FiniValue *value);

#endif							/* FINI_JSON_VALUE_H */
