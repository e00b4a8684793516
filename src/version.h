/*
 * version.h
 *		Which version this library is, and whether a newer file waits for a restart.
 */
#ifndef FINI_VERSION_H
#define FINI_VERSION_H

#include "postgres.h"

/* that of the SQL objects it was made with: default_version of fini.control */
#define FINI_VERSION "1.0"
#define FINI_MAX_VERSION 32

/* shared memory for what the server's library file was when the server started */
extern Size fini_version_shmem_size(void);
extern void fini_version_shmem_startup(void);

/* has the library file been replaced since?  False where that cannot be told */
extern bool fini_version_replaced(void);

#endif							/* FINI_VERSION_H */
