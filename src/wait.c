/*
 * wait.c
 *		Wait events by name, looked up at the first use in each process.
 */
#include "postgres.h"

#include "compat.h"
#include "wait.h"

uint32
fini_wait_event(FiniWait what)
{
	static const char *const names[] = {
		[FINI_WAIT_WORKER] = "FiniWorker",
		[FINI_WAIT_GATEWAY] = "FiniGateway",
		[FINI_WAIT_TOKEN] = "FiniToken",
		[FINI_WAIT_THROTTLE] = "FiniThrottle",
		[FINI_WAIT_SETTLE] = "FiniSettle",
	};
	static uint32 events[lengthof(names)];

	Assert(what < lengthof(names) && names[what] != NULL);
	if (events[what] == 0)
		events[what] = fini_compat_wait_event(names[what]);
	return events[what];
}
