/*
 * version.h
 *		Which version this library is, whether the SQL objects go with it, and
 *		whether a newer file waits for a restart.
 *
 * A library goes with the objects of its own version only.  Between the
 * installation of a new version, the server's restart and ALTER EXTENSION
 * they differ; the worker waits then, see docs/operations.md.
 */
#ifndef FINI_VERSION_H
#define FINI_VERSION_H

#include "postgres.h"

/* that of the SQL objects it was made with: default_version of fini.control, see t/081_versions.pl */
#define FINI_VERSION "1.0"
#define FINI_MAX_VERSION 32

extern const char *fini_version_library(void);

/* of the extension in this database, palloc'd; NULL where it does not exist.  In a transaction. */
extern char *fini_version_objects(void);

/* shared memory for what the server's library file was when the server started */
extern Size fini_version_shmem_size(void);
extern void fini_version_shmem_startup(void);

/* has the library file been replaced since?  False where that cannot be told */
extern bool fini_version_replaced(void);

#endif							/* FINI_VERSION_H */
