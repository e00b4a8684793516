/*
 * pace.h
 *		How fast the queue moves, and when it will have been worked off.
 *
 * The worker measures what FINI takes, and publishes it with the settings it
 * works under in its slot, so that every session estimates from the same
 * figures.  The measuring side belongs to the worker; what is published is
 * under the slot's lock.
 */
#ifndef FINI_PACE_H
#define FINI_PACE_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "shared.h"
#include "throttle.h"

/* --- the worker's side --- */

/* the settings in force; cheap, to be called whenever they may have changed */
extern void fini_pace_publish(FiniSlotShared *slot);

/* the queue holds more than one request takes; or it has been worked off, or may not be worked off now */
extern void fini_pace_backlog(FiniSlotShared *slot, bool more);

/* FINI has decided so many operations; a request with this ticket has ended */
extern void fini_pace_settled(FiniSlotShared *slot, int operations);
extern void fini_pace_request(FiniSlotShared *slot, const FiniTicket *ticket);

/* --- for all --- */

/* now, by the gateway's clock as far as it is known; slot may be NULL */
extern TimestampTz fini_pace_gateway_now(FiniSlotShared *slot);

#endif							/* FINI_PACE_H */
