/*
 * trouble.h
 *		Work of the worker that the database refuses: a full disk, a lock held for
 *		too long, whatever it is.
 *
 * Work has a name.  What was refused waits, longer each time, and everything
 * else goes on; the log has one line for it, fini.status its last error.  The
 * process goes on as well: the answers that it knows, and the requests that
 * are under way, would be in doubt without it.  What a lock has kept out for
 * as long as the worker waits for one is tried again for a moment only, since
 * nothing is sent or received meanwhile.
 */
#ifndef FINI_TROUBLE_H
#define FINI_TROUBLE_H

#include "postgres.h"

#include "shared.h"

#define FINI_TROUBLE_NAME	128

/* how long the worker waits for a lock */
#define FINI_TROUBLE_LOCK_TIMEOUT	"5s"

/*
 * Run body(arg) in a transaction of its own, with an SPI connection and a
 * snapshot.  The error that ended it, in the current memory context; NULL: it
 * has been committed.
 */
extern ErrorData *fini_trouble_try(void (*body) (void *arg), void *arg);

/*
 * The same for work that the database can refuse at any time.  False when the database refused it, or it has to wait since an
 * earlier refusal; then what body has changed in memory is the caller's to put
 * right.  work, FINI_TROUBLE_NAME bytes, completes "could not"; body may make
 * it more precise.
 */
extern bool fini_trouble_guard(FiniSlotShared *slot, char *work, void (*body) (void *arg), void *arg);

/*
 * body knows better what it is about to do: from now on the work is called so.
 * Within body only.
 */
extern void fini_trouble_rename(char *work, const char *name);

/* a name that was cut off ends where a character does */
extern void fini_trouble_clip(char *work);

/* does work of this name have to wait? */
extern bool fini_trouble_waits(const char *work);

/* monotonic: when the work that was refused, or found to be waiting, last is worth another try */
extern int64 fini_trouble_retry_us(void);

/* milliseconds until something need not wait any more, -1: nothing waits */
extern long fini_trouble_timeout(void);

/* fini.resume: nothing waits any more */
extern void fini_trouble_resume(void);

#endif							/* FINI_TROUBLE_H */
