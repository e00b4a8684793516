/*
 * wait.h
 *		What processes of ours wait for, as pg_stat_activity shows it.
 *
 * Servers from PostgreSQL 17 on show the names; older ones "Extension".
 */
#ifndef FINI_WAIT_H
#define FINI_WAIT_H

#include "postgres.h"

typedef enum FiniWait
{
	FINI_WAIT_WORKER,			/* FiniWorker: the worker has nothing under way */
	FINI_WAIT_GATEWAY,			/* FiniGateway: an answer from FINI */
	FINI_WAIT_TOKEN,			/* FiniToken: the worker, which fetches token and key */
	FINI_WAIT_THROTTLE,			/* FiniThrottle: room under fini.rate_limit */
	FINI_WAIT_SETTLE			/* FiniSettle: fini.wait */
} FiniWait;

/* the wait_event_info of it; may be called wherever a process is about to wait */
extern uint32 fini_wait_event(FiniWait what);

#endif							/* FINI_WAIT_H */
