/*
 * tidy.h
 *		Small housekeeping in the outbox, whether anything may be sent or not.
 *
 * Called by the worker's loop, outside any transaction.
 */
#ifndef FINI_TIDY_H
#define FINI_TIDY_H

#include "postgres.h"

#include "shared.h"

/* do a little, if it is time; milliseconds until it wants to be called again, -1: whenever somebody has called */
extern long fini_tidy_service(FiniSlotShared *slot);

#endif							/* FINI_TIDY_H */
