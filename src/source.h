/*
 * source.h
 *		A user's table as a source of applications, and as the place where
 *		outcomes are written back.
 *
 * A FiniSource is for one piece of work inside one transaction: it follows
 * whatever happened to the table and the mapping since the last time.  Most of
 * it is kept from one time to the next (source_cache.c), so only its own members
 * may be set, not what they point to.
 */
#ifndef FINI_SOURCE_H
#define FINI_SOURCE_H

#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "nodes/pg_list.h"
#include "storage/itemptr.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"

#include "secret.h"

/* keys of an attachment's outcome object */
#define FINI_OUTCOME_RECORD_ID	"record_id"
#define FINI_OUTCOME_STATE		"state"
#define FINI_OUTCOME_ERROR		"error"

typedef enum FiniFieldKind
{
	FINI_FIELD_OWN_REF,
	FINI_FIELD_IPO_ID,
	FINI_FIELD_QUANTITY,
	FINI_FIELD_FIRM_ID,
	FINI_FIELD_PERSONAL,		/* one of the five, for a single applicant */
	FINI_FIELD_ID_LIST,
	FINI_FIELD_EXTRA,			/* an object of further fields */
	FINI_FIELD_OTHER			/* passed through */
} FiniFieldKind;

typedef struct FiniField
{
	const char *name;			/* FINI's */
	const char *column;
	FiniFieldKind kind;
	AttrNumber	attnum;
	Oid			type;			/* base type */
	int16		length;			/* of its values in bytes; -1: each has its own */
	FmgrInfo	output;			/* looked up at its first use */
} FiniField;

typedef struct FiniSource
{
	Oid			relid;
	Oid			owner;
	char	   *table;			/* quoted, qualified, with ONLY where it has no partitions */
	bool		partitioned;
	bool		unique;			/* own_ref is unique by an index; else only within a partition */
	List	   *fields;			/* of FiniField; own_ref first, ipo_id second */
	FiniField  *own_ref;
	FiniField  *ipo_id;
	const char *record_id_column;	/* NULL: not written back */
	const char *state_column;
	const char *error_column;
	int			error_limit;	/* characters it takes; 0: any number */

	/* set by who reads rows to send them */
	bool		documents;		/* their documents are wanted */
	bool		precheck;		/* what fini.precheck would find is a problem, too */
} FiniSource;

/* one row, ready to be sent or with the reason why it cannot be */
typedef struct FiniRow
{
	bool		found;
	ItemPointerData tid;		/* where it was; invalid where that says nothing */
	const char *ipo_id;
	const char *entry;			/* the entry's members without braces: "ipoID":…,…; NULL: too large */
	Size		entry_len;
	bool		has_json;		/* parts of it are the user's JSON */
	const char *problem;		/* NULL: fine; else a local error code */
	const char *problem_text;
	bool		prechecked;		/* of a source with precheck */
	List	   *documents;		/* of FiniDocument */
} FiniRow;

/* an outcome for one row; NULL leaves the column alone, "" clears it */
typedef struct FiniOutcome
{
	const char *own_ref;
	ItemPointerData tid;		/* where its row was last seen, or invalid */
	const char *record_id;
	const char *state;
	const char *error;
} FiniOutcome;

/* FINI's name to the standard column of that meaning, NULL when there is none */
extern const char *fini_source_standard_column(const char *field);
extern FiniFieldKind fini_source_field_kind(const char *field);

/*
 * The source of an attached table.  Raises an error when the table is not
 * attached, has gone, or no longer has what the mapping names.
 */
extern FiniSource *fini_source_open(Oid relid);

/* the same, but NULL when it is not attached */
extern FiniSource *fini_source_try_open(Oid relid);

/*
 * The same if it is known already, else NULL: without SQL.  For a table that the
 * caller has opened, and locked in this transaction, or one of its partitions.
 */
extern FiniSource *fini_source_known(Oid relid, Relation opened);

/*
 * Read rows by own_ref, as the table's owner: rows[i] for own_refs[i], what
 * they point to in the context given.  In the caller's SPI connection, under a
 * new snapshot; locks no row.
 */
extern void fini_source_read(FiniSource *source, int n, const char *const *own_refs, FiniRow *rows,
							 MemoryContext into);

/*
 * One of these own_refs that more than one row of the table has, NULL when none
 * has; as the table's owner.  Only partitioned tables can have one, see
 * FiniSource.unique.
 */
extern char *fini_source_find_twice(FiniSource *source, int n, char **own_refs);

/* is there a row with this own_ref and ipo_id? as the table's owner */
extern bool fini_source_has_row(FiniSource *source, const char *own_ref, const char *ipo_id);

/* which of these own_refs have a row, whatever it says; as the table's owner */
extern void fini_source_find_rows(FiniSource *source, int n, char *const *own_refs, bool *present);

/* write outcomes back, as the table's owner; in the caller's SPI connection */
extern void fini_source_write_back(FiniSource *source, int n, const FiniOutcome *outcomes);

/*
 * Call fn with own_refs and ipo_ids of the table's rows, some thousand at a
 * time, read as the table's owner; fn has its caller's rights (source_scan.c).
 */
typedef void (*FiniSourceBatch) (void *arg, int n, char **own_refs, char **ipo_ids);
extern void fini_source_scan(FiniSource *source, const char *ipo_id, FiniSourceBatch fn, void *arg);

/* how many rows the table has for an IPO, as the table's owner */
extern int64 fini_source_count(FiniSource *source, const char *ipo_id);

/* the same with all columns of source->fields, in their order */
typedef void (*FiniSourceRows) (void *arg, FiniSource *source, SPITupleTable *rows, int n);
extern void fini_source_scan_rows(FiniSource *source, const char *ipo_id, FiniSourceRows fn, void *arg);

/* could the output of this type be this text? */
extern bool fini_source_is_possible(Oid type, const char *own_ref);

/* the attached table that a table belongs to: its topmost partitioned one, or itself */
extern Oid	fini_source_root(Relation rel);

/* has the table a unique index on this column alone, in force at once and for all rows? */
extern bool fini_source_is_unique(Relation rel, AttrNumber attnum);

/*
 * Has the trigger that is running been fired by our own write-back to this
 * table?  Not so for what users' triggers do in its course.
 */
extern bool fini_source_is_write_back(Oid relid);

#endif							/* FINI_SOURCE_H */
