/*
 * user_code.h
 *		How long the code of an attached table may hold up the worker.
 *
 * Triggers, policies, generated columns and domains of a table are its
 * owner's, and the worker runs them when it reads rows and writes outcomes.
 * What goes wrong in them is the table's affair (they run in subtransactions),
 * but one worker serves all tables, so none may keep it: after
 * fini.table_timeout the code is cancelled, and when it catches that and goes on,
 * again; the third time the worker ends, and its successor leaves the tables of
 * this owner alone for a while.
 *
 * Code can also leave things to the session that runs it.  PostgreSQL refuses
 * most of that in a security-restricted operation; advisory locks of the session
 * are taken away afterwards.
 *
 * State: one process's, and the list of owners in its slot.  Everything here
 * does nothing outside a worker.
 */
#ifndef FINI_USER_CODE_H
#define FINI_USER_CODE_H

#include "postgres.h"

#include "shared.h"

/* for the worker, once connected: this process is watched from now on */
extern void fini_user_code_watch(FiniSlotShared *slot);

/* is this a worker's process? */
extern bool fini_user_code_is_watched(void);

/*
 * Around whatever may run an owner's code; they nest.  The first raises
 * ERRCODE_QUERY_CANCELED for an owner who is left alone.  An abort of the
 * (sub)transaction that it began in ends it too.
 */
extern void fini_user_code_begin(Oid owner);
extern void fini_user_code_end(void);

/* for the worker, outside transactions: locks of the session that code has left */
extern void fini_user_code_tidy(void);

#endif							/* FINI_USER_CODE_H */
