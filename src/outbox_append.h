/*
 * outbox_append.h
 *		New operations into fini.submission and fini.queue, without the executor.
 *
 * What is known of the two tables is kept by each process until PostgreSQL says
 * that something about them, or about one of their indexes, has changed.
 */
#ifndef FINI_OUTBOX_APPEND_H
#define FINI_OUTBOX_APPEND_H

#include "postgres.h"

/* add operations of one kind, and queue them; statements that follow see them.  Needs no SPI connection */
extern void fini_append(Oid relid, const char *operation, int n, char **own_refs, char **ipo_ids);

#endif							/* FINI_OUTBOX_APPEND_H */
