/*
 * outbox.h
 *		The durable outbox: all that C does in SQL with fini.submission, fini.queue
 *		and fini.request.
 *
 * Every function runs inside the caller's transaction and SPI connection, as
 * the extension's owner (or the worker).  Members and texts handed out live in
 * the memory context given.
 *
 * An operation in state queued is listed by exactly one row of fini.queue, and
 * whoever locks or changes its row in fini.submission owns it.  An operation in
 * state sending or unknown is a member of exactly one open row of fini.request.
 * One worker per database claims, so that two operations of one own_ref are
 * never under way at once.
 */
#ifndef FINI_OUTBOX_H
#define FINI_OUTBOX_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "executor/spi.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

#include "call.h"
#include "endpoint.h"
#include "source.h"

typedef enum FiniOperation
{
	FINI_OPERATION_ADD,
	FINI_OPERATION_CHANGE,
	FINI_OPERATION_INVALIDATE
} FiniOperation;

extern const char *fini_outbox_operation_name(FiniOperation operation);
extern FiniOperation fini_outbox_operation(const char *name);
extern FiniEndpointId fini_outbox_endpoint(FiniOperation operation);

/* an operation that has been claimed */
typedef struct FiniMember
{
	int64		id;
	ItemPointerData place;		/* of its row in fini.submission when it was claimed; or invalid */
	Oid			relid;
	const char *own_ref;
	const char *record_id;		/* to change or invalidate; NULL for an add */
	int			attempts;
	bool		stray;			/* about a record that is not its row's */
	bool		after_refusal;	/* a change: what came before it was refused, so there is something to add again */
	FiniRow		row;			/* what is sent for it; see source.h */

	/* what stands for the own_ref by an earlier operation; operation NULL: nothing */
	const char *standing_operation;
	const char *standing_record_id;
	Oid			standing_relid;

	/* how it ends; set by the worker, written by fini_outbox_settle */
	const char *state;			/* NULL: stays as it is */
	const char *new_record_id;
	const char *error_code;
	const char *error_message;
	FiniOperation requeue_as;	/* with state queued */
	int64		delay_us;		/* with state queued: not before that much later */
	bool		looked_absent;	/* a look at FINI did not find it */
} FiniMember;

/* a claimed batch: one request */
typedef struct FiniBatch
{
	char		request_id[FINI_REQUEST_ID_LEN + 1];
	const char *ipo_id;
	FiniOperation operation;
	int			count;
	FiniMember *members;
	int64		taken;			/* so many left the queue when it was claimed, those that are not for it included */
} FiniBatch;

/* something claimable: an IPO and an operation */
typedef struct FiniGroup
{
	const char *ipo_id;
	FiniOperation operation;
	int64		first_id;
	TimestampTz deadline;		/* of the IPO; 0: none */
} FiniGroup;

/* the last of an own_ref's operations s: a sort of few, while without the sum the primary key might be walked backwards */
#define FINI_LAST_OPERATION "ORDER BY s.id + 0 DESC LIMIT 1"

/* --- enqueueing (outbox_enqueue.c) --- */

/* the mapping of an attached table; false when it is not attached */
extern bool fini_outbox_attachment(Oid relid, Jsonb **fields, Jsonb **outcome);

/* rows that have come into being */
extern void fini_outbox_inserted(Oid relid, int n, char **own_refs, char **ipo_ids);

/* rows of which something mapped has changed, own_ref and ipo_id have not */
extern void fini_outbox_updated(Oid relid, int n, char **own_refs, char **ipo_ids);

/* rows whose own_ref or ipo_id has changed; raises an error for what has been sent */
extern void fini_outbox_moved(Oid relid, int n, char **old_refs, char **own_refs, char **ipo_ids);

/* rows that have gone, which withdraws their applications */
extern void fini_outbox_deleted(Oid relid, int n, char **own_refs);

/* enqueue those of the rows that were never sent; how many */
extern int64 fini_outbox_submit(Oid relid, int n, char **own_refs, char **ipo_ids);

/* does anything of the table stand, or is on its way, at FINI? */
extern bool fini_outbox_stands(Oid relid);

/* --- the worker's side (outbox_claim.c, outbox_settle.c) --- */

/* what the database allows */
typedef struct FiniPermission
{
	bool		armed;
	bool		paused;
	int64		doubt_below;	/* operations up to this one are looked for before they are sent */
} FiniPermission;

extern FiniPermission fini_outbox_may_send(void);

/* on a new timeline, what is open is in doubt from now on */
extern void fini_outbox_adopt_timeline(void);

/*
 * What could be claimed: the IPO with the earliest deadline first, those
 * without one last, then the oldest (outbox_groups.c).
 */
extern List *fini_outbox_groups(MemoryContext into);

/* from where on the queue of a group is worth looking at, and that this is further on */
extern int64 fini_outbox_low_end(const char *ipo_id, FiniOperation operation);
extern void fini_outbox_raise_low_end(const char *ipo_id, FiniOperation operation, int64 below);

/* or that it is further on but for many that had to be passed over, which has cost so much */
extern void fini_outbox_passed_over(const char *ipo_id, FiniOperation operation, int64 below, int64 cost_us);

/*
 * Microseconds until the next deferred operation becomes due, or until a look
 * at the whole queue does that the last one did without; -1: none.
 */
extern int64 fini_outbox_next_due(void);

/* take some of what is no longer queued off the lists; true: they have not all been gone through (outbox_list.c) */
extern bool fini_outbox_tidy(void);

/* claim up to limit operations for a new request; count 0: nothing to be had */
extern void fini_outbox_claim(FiniBatch *batch, int limit, MemoryContext into);

/* a member as the outbox has it, from a row of fini.submission (see outbox_store.h) */
extern void fini_outbox_member(TupleTableSlot *row, FiniMember *member, MemoryContext into);

/* requests that a former worker left open, as FiniBatch: all of them are in doubt now */
extern List *fini_outbox_recover(MemoryContext into);

/*
 * Read, or read again, the rows of the members that have no state yet.  What
 * cannot be sent gets its state: a bad row alone, all rows of a table that
 * cannot be read.
 */
extern void fini_outbox_read_rows(FiniBatch *batch, MemoryContext into);

/* the request has not got a usable answer; or, without a call, may have been sent in another life */
extern void fini_outbox_doubt(const FiniBatch *batch, const FiniCall *call);

/* it was not processed, and will be sent again: why, for whoever looks */
extern void fini_outbox_postponed(const FiniBatch *batch, const FiniCall *call);

/* it is being sent again */
extern void fini_outbox_resend(const FiniBatch *batch, const char *new_request_id);

/*
 * Write how the members that have a state ended, into the outbox and back into
 * their tables, and close the request unless some stay open.  call may be NULL
 * (nothing was sent).
 */
extern void fini_outbox_settle(FiniBatch *batch, const FiniCall *call);

/* does another operation of the own_ref already account for this record? */
extern bool fini_outbox_knows_record(const char *own_ref, const char *record_id, int64 except_id);

/* --- deadlines (outbox_deadline.c), for deadline.c --- */

/* a row of fini.deadline */
typedef struct FiniDeadline
{
	const char *ipo_id;
	TimestampTz deadline;
	bool		open;			/* not yet told that it has passed */

	/* of fini_outbox_outlook only */
	TimestampTz finish;			/* DT_NOBEGIN: nothing is open */
	bool		warned;			/* told that it is at risk, last */
	int64		missed;			/* operations that it has failed */
	int64		operations;		/* that are open */
} FiniDeadline;

extern List *fini_outbox_deadlines(MemoryContext into);

/* those that have not passed, with what fini.progress says of them */
extern List *fini_outbox_outlook(MemoryContext into);

/*
 * Fail up to a thousand queued operations of the group with ids greater than
 * *after, which moves on; how many have left the queue, cancelled ones included.
 */
extern int	fini_outbox_fail_late(const FiniGroup *group, int64 *after);

/* members without a state have missed the deadline; note how many have, when that is settled */
extern void fini_outbox_late(FiniBatch *batch);
extern void fini_outbox_missed(const FiniBatch *batch);

/* notify, and remember; false when somebody is moving the deadline, or has */
extern bool fini_outbox_deadline_event(const FiniDeadline *deadline, const char *event, bool warned, bool passed);

/* --- counts of ended operations (outbox_tally.c) --- */

/* count those of a batch that is being settled */
extern void fini_outbox_tally(const FiniBatch *batch, bool decided_by_fini);

/* so many that the queue listed were not queued any more, and are no longer listed */
extern void fini_outbox_tally_gone(const char *ipo_id, int64 n);

/* old rows of fini.tally become one */
extern void fini_outbox_fold_tally(void);

/* --- outcomes into the users' rows (outbox_write_back.c) --- */

/* those of a batch that has been settled; in the worker */
extern void fini_outbox_write_batch(const FiniBatch *batch);

/* as the outbox has them; in a user's session */
extern void fini_outbox_write_back(int n, const int64 *ids);

/* try again what a lock kept from being written back; in the worker */
extern void fini_outbox_write_late(void);

/* --- shared by them (outbox.c) --- */

/*
 * A statement prepared at its first use.  It is planned for index scans, and
 * anew each time it is executed: the outbox may have been empty a moment ago,
 * and a plan made then would go through all of it now.  Statements whose plan
 * cannot depend on sizes keep the first one.
 */
typedef struct FiniStatement
{
	const char *sql;
	int			nargs;
	Oid			types[8];
	bool		keep_plan;
	SPIPlanPtr	plan;
} FiniStatement;

extern int	fini_outbox_execute(FiniStatement *statement, Datum *values, const char *nulls, long limit);

/*
 * Execute a statement on a user's table, planned for index scans as well; but
 * the planner's settings are back in place when it runs, for it may run a
 * user's triggers.  Its plan is kept, for there are few different texts.
 */
extern int	fini_outbox_execute_kept(const char *sql, int nargs, Oid *types, Datum *values);

extern Datum fini_outbox_text_array(int n, char *const *texts);
extern Datum fini_outbox_int8_array(int n, const int64 *values);

/* the numbers of a bigint[], nulls left out; how many.  And for qsort */
extern int	fini_outbox_int8s(Datum array, int64 **ids);
extern int	fini_outbox_compare_ids(const void *a, const void *b);

/* column of a result row as text in the context, NULL when null */
extern char *fini_outbox_column(uint64 row, int column, MemoryContext into);

#endif							/* FINI_OUTBOX_H */
