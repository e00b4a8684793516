/*
 * blank.h
 *		Personal values and secrets of what was sent, blanked out of FINI's texts.
 *
 * FINI's messages may quote what they are about, also another entry of the same
 * request.  They are kept in tables, shown and logged; so every personal value
 * of the request is overwritten with stars where it stands in them, whichever
 * the case of its letters, and without the spaces around it: FINI trims.
 */
#ifndef FINI_BLANK_H
#define FINI_BLANK_H

#include "postgres.h"

#include "json_value.h"

typedef struct FiniBlanker FiniBlanker;

/* in CurrentMemoryContext; what is added has to live as long */
extern FiniBlanker *fini_blank_create(void);

/* the personal values within a value, at any depth */
extern void fini_blank_add_values(FiniBlanker *blanker, const FiniValue *value);

/* a token or an assertion; shorter than three bytes it is left alone */
extern void fini_blank_add(FiniBlanker *blanker, const char *text, int len);

/*
 * Overwrite them in copy, the first len bytes of text.  They are looked for in
 * the text as it came, so that what a shorter value has blanked out does not
 * hide a longer one, and one that is cut off is found.
 */
extern void fini_blank(const FiniBlanker *blanker, char *copy, int len, const char *text);

#endif							/* FINI_BLANK_H */
