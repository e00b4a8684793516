/*
 * reconcile.h
 *		Comparing a table with FINI's records of one IPO, piece by piece.
 *
 * A run goes through three phases: pages of records from FINI, compared with
 * their rows at once; then the outbox, for what should stand and was not seen;
 * then the candidates that the pages left, judged together.  Each piece (a
 * page, a slice of the outbox or of the candidates) is done in one transaction
 * with the note of how far the run has come, so that whoever takes it up goes
 * on where the last one ended.  fini.reconcile does all of it in its caller's
 * transaction (reconcile.c), fini.start_reconcile leaves it to the worker
 * (reconcile_worker.c).
 *
 * What is kept between the pieces is in tables of fini's: of a record that is
 * its row's only the number of the operation that accounts for it, of others
 * own_ref, record ID and what differs; no value of a personal field.
 *
 * Every function runs in the caller's transaction and SPI connection, as the
 * extension's owner or the worker.
 */
#ifndef FINI_RECONCILE_H
#define FINI_RECONCILE_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "answer.h"
#include "outbox.h"
#include "query.h"

typedef enum FiniReconcilePhase
{
	FINI_RECONCILE_PAGES,
	FINI_RECONCILE_ROWS,
	FINI_RECONCILE_CANDIDATES
} FiniReconcilePhase;

typedef struct FiniReconcile
{
	MemoryContext context;		/* of the run and its texts */
	MemoryContext piece;		/* reset for every piece */
	int64		run_id;
	Oid			relid;
	char	   *ipo_id;
	TimestampTz started_at;

	/* how far it has come */
	FiniReconcilePhase phase;
	FiniPages	pages;
	int64		reached;		/* of the phase's slices */
	int64		local;
	int64		remote;
	int64		matched;
	int64		discrepancies;
	int			failures;		/* pieces in a row that failed */
} FiniReconcile;

/* own_refs that FINI has and are no text that a table can hold share a key with none of ours */
#define FINI_RECONCILE_KEY(own_ref) "(hashtextextended(" own_ref ", 0) & 9223372036854775807)"

/* an operation that is open, or has ended or begun since the run began, keeps its own_ref from being judged */
#define FINI_RECONCILE_TOUCHED(s, started_at) \
	"(" s ".state IN ('queued', 'sending', 'unknown') OR " s ".created_at >= " started_at " OR " s ".settled_at >= " started_at ")"

/* --- the run's own row (reconcile_run.c) --- */

/*
 * Begin a run, its memory below the current context.  Raises an error when
 * the table is not attached, or the same is being compared already.
 */
extern FiniReconcile *fini_reconcile_begin(Oid relid, const char *ipo_id, bool background);

/*
 * The run of the worker's that is next, 0: none; how long until it is due.
 * held_back tells how long one waits for reasons that its row does not know.
 */
extern int64 fini_reconcile_next(int64 (*held_back) (int64 run_id), int64 *wait_us);

/* a run as its row has it, the row locked; NULL when it has ended or somebody holds it */
extern FiniReconcile *fini_reconcile_load(int64 run_id);

/* note how far it has come; failures are over */
extern void fini_reconcile_save(FiniReconcile *run);

/* a piece failed: why, and how long to wait; no personal data in the text */
extern void fini_reconcile_postpone(int64 run_id, const char *error, int64 pause_us);

/* it has ended: finished, or failed with the reason; its work tables are emptied, and it is announced */
extern void fini_reconcile_end(int64 run_id, const char *state, const char *error);

/* execute a statement, and come back to the memory context one was in, which SPI does not */
extern void fini_reconcile_execute(FiniStatement *statement, Datum *values, const char *nulls);

/* --- the pieces --- */

/*
 * A page has come (reconcile_page.c).  Raises FINI_ERRCODE_UNREADABLE when
 * it is none that can be gone on from.
 */
extern void fini_reconcile_take_page(FiniReconcile *run, const FiniAnswer *answer);

/* after the pages: the next slice (reconcile_judge.c); true when it was the last */
extern bool fini_reconcile_judge(FiniReconcile *run);

#endif							/* FINI_RECONCILE_H */
