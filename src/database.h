/*
 * database.h
 *		What a worker has to know of its database, and sets for its own session.
 */
#ifndef FINI_DATABASE_H
#define FINI_DATABASE_H

#include "postgres.h"

/* does it exist, and let sessions in? In a transaction of its own; needs no database */
extern bool fini_database_is_open(const char *name);

/* settings of the session that our SQL and the outcomes' texts rely on */
extern void fini_database_prepare_session(void);

/* a hash over what ALTER DATABASE ... SET says of ours; never 0; in the caller's transaction */
extern uint32 fini_database_settings(void);

#endif							/* FINI_DATABASE_H */
