/*
 * worker.h
 *		The background worker: one for each database in fini.databases.
 */
#ifndef FINI_WORKER_H
#define FINI_WORKER_H

#include "postgres.h"

#include "compat.h"

/* to be called from _PG_init: registers the workers */
extern void fini_worker_init(void);

/* their entry point, found by name */
extern PGDLLEXPORT void fini_worker_main(Datum slot_index) pg_attribute_noreturn();

#endif							/* FINI_WORKER_H */
