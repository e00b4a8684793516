/*
 * attach.h
 *		The checks behind fini.attach (attach_mapping.c), and the triggers that it
 *		places (attach_triggers.c).
 *
 * All run as the user who attaches, with the relation open and locked; what
 * they return lives in CurrentMemoryContext, and every refusal is an error.
 */
#ifndef FINI_ATTACH_H
#define FINI_ATTACH_H

#include "postgres.h"

#include "catalog/pg_attribute.h"
#include "storage/lockdefs.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"

/* is it an ordinary, permanent table whose every change its own triggers see? */
extern void fini_attach_check_relation(Relation rel);

/* may this table be a partition, at any depth, of an attached one? in the caller's SPI connection */
extern void fini_attach_check_partition(Oid relid, Oid root);

/* the fields in force: what was given, and standard columns for what was not */
extern Jsonb *fini_attach_fields(Relation rel, Jsonb *fields);

/* the same for the outcome columns */
extern Jsonb *fini_attach_outcome(Relation rel, Jsonb *outcome, Jsonb *fields);

/* a user column by its name; NULL when there is none */
extern Form_pg_attribute fini_attach_column(Relation rel, const char *column);

/*
 * Drop the triggers that are not wanted and create those that are missing, on
 * the table, which is locked, and all its partitions; in the caller's SPI
 * connection, and with the table closed.
 */
extern void fini_attach_place_triggers(Oid relid, bool attached, bool live, bool replicated);

/* the lock that placing these triggers takes, so that nothing stronger is asked for later */
extern LOCKMODE fini_attach_lock(Oid relid, bool live, bool replicated);

#endif							/* FINI_ATTACH_H */
