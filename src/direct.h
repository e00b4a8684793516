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

/* a text array without nulls as C strings */
extern char **fini_direct_texts(ArrayType *array, const char *what, int *n);

#endif							/* FINI_DIRECT_H */
