/*
 * identity.h
 *		Whose rights a piece of work runs with.
 *
 * fini's own tables are read and written as the extension's owner; a user's
 * table as that table's owner, in a security-restricted operation with a
 * pinned search_path.  An error needs no clean-up: aborting the transaction or
 * subtransaction restores user and settings.
 */
#ifndef FINI_IDENTITY_H
#define FINI_IDENTITY_H

#include "postgres.h"

typedef struct FiniIdentity
{
	Oid			user;
	int			context;
	int			guc_level;		/* 0: the search_path is as it was */
	bool		of_user;
} FiniIdentity;

/* the extension's owner; InvalidOid when the extension is not there */
extern Oid	fini_identity_extension_owner(void);

/* run as the extension's owner until the matching leave */
extern void fini_identity_enter_extension(FiniIdentity *saved);

/*
 * Run as the owner of a function, as SECURITY DEFINER would; the search_path is
 * pinned when SQL is about to run, since that costs more than many a statement.
 */
extern void fini_identity_enter_function(FiniIdentity *saved, Oid function);
extern void fini_identity_pin_path(FiniIdentity *saved);

/* run as the owner of a user's table until the matching leave */
extern void fini_identity_enter_owner(FiniIdentity *saved, Oid owner);	/* in a worker, watched: user_code.h */

extern void fini_identity_leave(const FiniIdentity *saved);

#endif							/* FINI_IDENTITY_H */
