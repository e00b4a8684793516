/*
 * attach.h
 *		The checks behind fini.attach (attach_mapping.c).
 *
 * All run as the user who attaches, with the relation open and locked; what
 * they return lives in CurrentMemoryContext, and every refusal is an error.
 */
#ifndef FINI_ATTACH_H
#define FINI_ATTACH_H

#include "postgres.h"

#include "catalog/pg_attribute.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"

/* is it an ordinary, permanent table whose every change its own triggers see? */
extern void fini_attach_check_relation(Relation rel);

/* the fields in force: what was given, and standard columns for what was not */
extern Jsonb *fini_attach_fields(Relation rel, Jsonb *fields);

/* the same for the outcome columns */
extern Jsonb *fini_attach_outcome(Relation rel, Jsonb *outcome, Jsonb *fields);

/* a user column by its name; NULL when there is none */
extern Form_pg_attribute fini_attach_column(Relation rel, const char *column);

#endif							/* FINI_ATTACH_H */
