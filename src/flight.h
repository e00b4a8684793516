/*
 * flight.h
 *		The worker's requests under way: from claim to settle.
 *
 * A flight is a claimed batch with what is known of its request.  All flights
 * live in the worker's memory; what has to survive it is in fini.request and
 * fini.submission before the first byte leaves.  Functions here open
 * transactions of their own, and none is open while the network is awaited.
 */
#ifndef FINI_FLIGHT_H
#define FINI_FLIGHT_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "call.h"
#include "outbox.h"
#include "shared.h"

typedef enum FiniFlightState
{
	FINI_FLIGHT_READY,			/* to be sent as soon as token, throttle and not_before_us allow */
	FINI_FLIGHT_SENT,
	FINI_FLIGHT_UNSETTLED,		/* answered, but the database has not taken that yet */
	FINI_FLIGHT_DOUBT			/* to be found out, not before not_before_us */
} FiniFlightState;

typedef struct FiniFlight
{
	MemoryContext context;
	FiniBatch	batch;
	MemoryContext rows;			/* of rows that were read again; NULL: none */
	MemoryContext step;			/* of the guarded step at hand; goes with it when it is refused, with the flight when it is not */
	FiniCall   *call;			/* NULL until its payload is built */
	FiniFlightState state;
	bool		unread;			/* nobody has looked at the answer yet */
	int64		not_before_us;
	int			failures;		/* sendings in a row that were not processed */
	bool		taken;			/* FINI said 411002: this request ID has been used */
	int64		taken_us;		/* since when */
	int			absences;		/* looks that did not find it since then */
	bool		answered;		/* FINI has answered, and left these members out */
	bool		refused;		/* FINI refused it when it was sent again after a doubt */
	bool		renewed;		/* it goes under its second request ID */
	bool		doubted;		/* a copy sent earlier may have been, or may yet be, processed */
	bool		looked_in_vain; /* a look since the last sending found no record, and something that cannot be sent */
	bool		looked_for;		/* part of the scan under way */
} FiniFlight;

/* take over what a former worker left open, before anything is claimed; false: to be tried again */
extern bool fini_flight_recover(FiniSlotShared *slot);

/* may anything be sent, by what the database says? not where it says nothing */
extern bool fini_flight_may_send(FiniSlotShared *slot);

/* outcomes that a table would not take when it was time */
extern void fini_flight_write_late(FiniSlotShared *slot);

/* answers that the database would not take when they came */
extern void fini_flight_settle_late(FiniSlotShared *slot);

/* send what is ready and claim what can be claimed */
extern void fini_flight_dispatch(FiniSlotShared *slot);

/* what is known of an endpoint, from one request to the next */
typedef struct FiniEndpointState
{
	bool		stopped;		/* refused for good; until fini.resume */
	int			failures;		/* in a row */
	int64		not_before_us;
	int			batch_limit;	/* halved when a whole batch is refused; 0: fini.batch_size */
} FiniEndpointState;

extern FiniEndpointState *fini_flight_endpoint(FiniOperation operation);

/* a request ended; false when it is not one of ours */
extern bool fini_flight_completed(FiniSlotShared *slot, FiniHttpRequest *http);

/* there is something new in the queue; endpoints that were stopped may be used again */
extern void fini_flight_work_arrived(void);
extern void fini_flight_resume_endpoints(void);

/* milliseconds until something of ours becomes due, -1: nothing will by itself */
extern long fini_flight_timeout(void);

/* how many flights there are, and how many of them wait for an answer */
extern int	fini_flight_count(void);
extern int	fini_flight_sent(void);

/* the throttle turned the last dispatch away, and would do so now */
extern bool fini_flight_throttled(void);

/* for what gives way to the queue: after the last dispatch, was there more to send; and how many were sent in all */
extern bool fini_flight_backlog(void);
extern int64 fini_flight_sends(void);

/* for find.c: all flights */
extern List *fini_flight_list(void);

/* for find.c, in a transaction: does this record show that the operation was processed? */
extern bool fini_flight_is_record_of(const FiniMember *member, FiniOperation operation, const FiniValue *record,
									 const char *record_id);

/* for find.c and flight_looked.c, in a transaction: what the members' rows say now, until they are read again */
extern void fini_flight_read_rows(FiniFlight *flight);

/* for find.c and flight_looked.c: nothing of what a look has found, or read of the rows, is known any more */
extern void fini_flight_look_again(FiniFlight *flight);

/* for find.c: a look has ended; members that were found have their state, the others were absent */
extern void fini_flight_looked(FiniSlotShared *slot, FiniFlight *flight);

/*
 * For flight.c: claim what makes a request; false when nothing was taken out
 * of the queue, and when it is worth another try (0: when something comes).
 * *flight is NULL when nothing of it is to be sent.
 */
extern bool fini_flight_claim(FiniSlotShared *slot, FiniFlight **flight, int64 *next_due_us);

/* and if so, when it is worth another look (0: when something comes) */
extern bool fini_flight_queue_is_empty(FiniSlotShared *slot, int64 *next_due_us);

/*
 * For flight.c: read the answer to a request, and write what became of it; what
 * the database refuses stays unsettled.
 */
extern void fini_flight_conclude(FiniSlotShared *slot, FiniFlight *flight);

/* for flight.c and flight_end.c: the flight whose request this is, NULL when it is none */
extern FiniFlight *fini_flight_of(const FiniHttpRequest *http);

/* for flight.c: the payload cannot be sealed; the message is our own and quotes no values */
extern void fini_flight_set_aside(FiniSlotShared *slot, FiniFlight *flight, const char *message);

/*
 * fini_trouble_guard for what concerns one flight: when it fails, the flight
 * is as before, but for rows that were read again.
 */
extern bool fini_flight_guard(FiniSlotShared *slot, FiniFlight *flight, const char *what, void (*body) (void *arg), void *arg);

/* microseconds to wait after so many failures in a row */
extern int64 fini_flight_pause(int failures);

/* members that have ended leave the batch */
extern void fini_flight_keep_open_members(FiniFlight *flight);

/* the flight is over */
extern void fini_flight_end(FiniFlight *flight);

/* something was settled: what waited for it may go now, and whoever waits in fini.wait looks again */
extern void fini_flight_settled(FiniSlotShared *slot);

/* a transaction with an SPI connection and a snapshot */
extern void fini_flight_begin(void);
extern void fini_flight_commit(void);

#endif							/* FINI_FLIGHT_H */
