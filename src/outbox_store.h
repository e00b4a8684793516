/*
 * outbox_store.h
 *		Rows of fini.submission and fini.queue, read and written one by one
 *		without the executor: for what is done to every record.
 *
 * A FiniStore is opened for one piece of work within a transaction and closed
 * after it; an error takes it along.  It sees the outbox as it was committed
 * when the store was opened, and nothing that it has written itself.
 *
 * It keeps all indexes of the two tables, and is no friend of anything else that
 * somebody may put on them: triggers of theirs do not fire for it.
 */
#ifndef FINI_OUTBOX_STORE_H
#define FINI_OUTBOX_STORE_H

#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* columns of the tables, as fini--1.0.sql has them; checked when a store is opened */
enum
{
	FINI_SUBMISSION_ID,
	FINI_SUBMISSION_RELATION,
	FINI_SUBMISSION_OWN_REF,
	FINI_SUBMISSION_IPO_ID,
	FINI_SUBMISSION_OPERATION,
	FINI_SUBMISSION_STATE,
	FINI_SUBMISSION_RECORD_ID,
	FINI_SUBMISSION_REQUEST_ID,
	FINI_SUBMISSION_ATTEMPTS,
	FINI_SUBMISSION_ERROR_CODE,
	FINI_SUBMISSION_ERROR_MESSAGE,
	FINI_SUBMISSION_NOT_BEFORE,
	FINI_SUBMISSION_CREATED_AT,
	FINI_SUBMISSION_SENT_AT,
	FINI_SUBMISSION_SETTLED_AT,
	FINI_SUBMISSION_STRAY
};

enum
{
	FINI_QUEUE_IPO_ID,
	FINI_QUEUE_OPERATION,
	FINI_QUEUE_ID,
	FINI_QUEUE_NOT_BEFORE,
	FINI_QUEUE_N,
	FINI_QUEUE_IDS
};

/* a table that is written to */
typedef struct FiniStoreTable
{
	Relation	rel;
	EState	   *estate;
	ResultRelInfo *result;		/* with its indexes */
	TupleTableSlot *edited;		/* a row that is about to be written */
} FiniStoreTable;

typedef struct FiniStore
{
	MemoryContext context;
	Snapshot	snapshot;
	FiniStoreTable submission;
	FiniStoreTable queue;
	IndexScanDesc by_id;		/* into fini.submission; see fini_store_find */
	TupleTableSlot *found;
	int64		found_id;
	int64		found_until;
	TupleTableSlot *seen;		/* see fini_store_find_at */
	BlockNumber blocks;
	BlockNumber pruned;			/* the last block that was looked at by place */
	IndexScanDesc by_own_ref;
	Datum		own_ref;		/* that it looks for */
	IndexScanDesc in_queue;		/* in the order of its groups and ids */
} FiniStore;

extern FiniStore *fini_store_open(void);

/* what was written is visible to statements that follow */
extern void fini_store_close(FiniStore *store);

/* --- reading; what comes back is in the slot, until the next row is put there --- */

extern TupleTableSlot *fini_store_slot(FiniStoreTable *table);

/* an operation; its row stays until the next one is looked for.  NULL: there is none */
extern TupleTableSlot *fini_store_find(FiniStore *store, int64 id);

/* the same; it may still be at the place where it was last seen, which may be invalid */
extern TupleTableSlot *fini_store_find_at(FiniStore *store, int64 id, const ItemPointerData *place);

/* all operations of an own_ref, which has to stay, in no order: begin, then next until it gives false */
extern void fini_store_begin_own_ref(FiniStore *store, Datum own_ref);
extern bool fini_store_next_of_own_ref(FiniStore *store, TupleTableSlot *slot);

/* the queue of a group, by id, from the first id that is greater than after */
extern void fini_store_begin_queue(FiniStore *store, const char *ipo_id, const char *operation, int64 after);

/* or that of all IPOs between two, which may be NULL, themselves left out */
extern void fini_store_begin_ipos(FiniStore *store, const char *after, const char *before);
extern bool fini_store_next_in_queue(FiniStore *store, TupleTableSlot *slot);

/* a column of a row that has been read; NULL, zero or false where it is null, see isnull */
extern Datum fini_store_column(TupleTableSlot *slot, int column, bool *isnull);
extern char *fini_store_text(TupleTableSlot *slot, int column, MemoryContext into);
extern bool fini_store_text_is(TupleTableSlot *slot, int column, const char *text);

/* --- writing --- */

/* in the place of a row of the queue, one that lists these, or none */
extern void fini_store_list(FiniStore *store, TupleTableSlot *slot, int n, const int64 *ids);

/* lock an operation: TM_WouldBlock unless we may wait, TM_Updated when somebody has changed it since the store was opened */
extern TM_Result fini_store_lock(FiniStore *store, TupleTableSlot *slot, bool wait);

/* a copy of the row, to set columns of and to write in its place; slot stays as it is until then */
extern TupleTableSlot *fini_store_edit(FiniStoreTable *table, TupleTableSlot *slot);
extern void fini_store_set(TupleTableSlot *edited, int column, Datum value, bool isnull);
extern void fini_store_set_text(TupleTableSlot *edited, int column, const char *text);	/* NULL: null */
extern void fini_store_write(FiniStore *store, TupleTableSlot *slot, ItemPointer place);	/* NULL, or where it is now */

/*
 * For any table (source_place.c): opened with its indexes, the relation closed
 * with it; and the edited row put in the place of the one that is there, with
 * index entries where it needs them.
 */
extern void fini_store_open_table(FiniStoreTable *table, Relation rel);
extern void fini_store_close_table(FiniStoreTable *table);
extern TM_Result fini_store_replace(FiniStoreTable *table, ItemPointer tid, Snapshot snapshot);	/* tid: where it is then */

/* --- the tables themselves, for who opens them by himself (outbox_append.c) --- */

/* a relation of ours by its name, and are a table's columns those above?  An error says what is missing */
extern Oid	fini_store_relid(const char *kind, const char *name);
extern void fini_store_check_columns(Relation rel, bool is_queue);

#endif							/* FINI_OUTBOX_STORE_H */
