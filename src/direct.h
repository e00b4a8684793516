/*
 * direct.h
 *		What all direct calls share.
 */
#ifndef FINI_DIRECT_H
#define FINI_DIRECT_H

#include "postgres.h"

#include "utils/array.h"

#include "call.h"
#include "shared.h"

/* this database's slot; raises an error on a standby and where no worker serves */
extern FiniSlotShared *fini_direct_begin(void);

/* raise FINI_ERRCODE_NOT_ARMED unless this cluster may change things at FINI */
extern void fini_direct_require_armed(void);

/* perform a call and raise what it ended in, unless it was processed */
extern void fini_direct_perform(FiniCall *call, FiniSlotShared *slot);

/*
 * Keep the statement out of the server log while the caller's frame lives and
 * an error is raised in it: its literals may be personal data.  With the
 * number of an entry, the error says which it is about.  The callback is the
 * caller's; fini_direct_hide_end takes it off again, errors do so themselves.
 */
typedef struct FiniDirectHide
{
	ErrorContextCallback callback;
	int			entry;			/* from 1; 0: none in particular */
} FiniDirectHide;

extern void fini_direct_hide_begin(FiniDirectHide *hide);
extern void fini_direct_hide_end(FiniDirectHide *hide);

/* a text array without nulls as C strings */
extern char **fini_direct_texts(ArrayType *array, const char *what, int *n);

#endif							/* FINI_DIRECT_H */
