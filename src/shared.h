/*
 * shared.h
 *		What all processes of the cluster share about each fini database.
 *
 * One FiniSlot for each name in fini.databases, made when the server starts.
 * Slots hold values only, never pointers; the fields below a slot's lock are
 * read and written under that LWLock, and no I/O happens while it is held.
 * The database's worker owns the slot: it alone writes the token, the public
 * key and the worker fields.  Backends read, and write what they want.
 */
#ifndef FINI_SHARED_H
#define FINI_SHARED_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"

#include "version.h"

#define FINI_MAX_TOKEN			4096
#define FINI_MAX_PUBLIC_KEY		2048
#define FINI_MAX_MESSAGE		512
#define FINI_FINGERPRINT_LEN	32
#define FINI_WORKER_LASTS_MS	60000	/* a worker that has run for so long did not fail at its start */
#define FINI_LEFT_ALONE			8

typedef enum FiniWorkerState
{
	FINI_WORKER_STOPPED,		/* no process */
	FINI_WORKER_WAITING,		/* the database or the extension does not exist yet */
	FINI_WORKER_IDLE,
	FINI_WORKER_BUSY
} FiniWorkerState;

/* how fast the queue moves: pace.c */
typedef struct FiniPaceShared
{
	/* what the worker works with; batch_size 0: nothing published yet */
	int			batch_size;
	int			rate_limit;
	int64		rate_window_us;
	int64		margin_us;

	/* what FINI has decided while there was a backlog, in buckets closed and in the open one */
	int64		closed_us;
	int64		closed_operations;
	bool		backlog;
	int64		open_since_us;	/* monotonic */
	int64		open_operations;

	int64		held_us;		/* for which a request holds its ticket, on average */
} FiniPaceShared;

typedef struct FiniSlotShared
{
	/* fixed when the server starts */
	char		database[NAMEDATALEN];

	/* no lock needed */
	pg_atomic_uint32 wake;		/* set: the worker has been told to look at once */
	pg_atomic_uint32 work;		/* set: it has been told that the queue has new rows */
	pg_atomic_uint32 resume;	/* set: endpoints that were stopped may be used again */
	pg_atomic_uint32 leave;		/* set: the worker shall disconnect (DROP DATABASE) */
	pg_atomic_uint32 held_up_by;	/* owner of tables whose code made the last worker end; see user_code.h */
	ConditionVariable changed;	/* token, key, worker state or settled serial changed */

	/* everything below: under the slot's lock */
	Oid			database_oid;	/* while a worker is connected */
	bool		database_seen;	/* the last connection attempt succeeded, or a look found it */
	int			worker_pid;
	int			worker_procno;
	FiniWorkerState worker_state;
	TimestampTz worker_started_at;
	TimestampTz last_start_at;	/* of a worker that reached its database */
	int			starts;			/* of workers that did not live long */
	uint64		settled_serial; /* grows with every settle, for fini.wait */
	TimestampTz settled_at;		/* an operation ended */
	char		worker_version[FINI_MAX_VERSION];	/* of the library that the worker runs */
	bool		settings_changed;	/* the worker has seen that, and starts again as soon as nothing is under way */
	uint32		stopped;		/* endpoints not used until fini.resume, as bits 1 << FiniEndpointId */

	/* access token and public key, with the settings they belong to */
	uint8		fingerprint[FINI_FINGERPRINT_LEN];
	uint64		token_generation;
	char		token[FINI_MAX_TOKEN];	/* "": none */
	int64		token_fetched_us;	/* monotonic, before the request left */
	int64		token_expires_us;	/* monotonic */
	TimestampTz token_expires_at;
	uint64		key_generation;
	int			public_key_len; /* 0: none */
	uint8		public_key[FINI_MAX_PUBLIC_KEY];
	int64		clock_offset_ms;	/* gateway's clock minus ours */
	int64		key_fetched_us;
	TimestampTz key_fetched_at;

	/* who wants what, and how the last attempt to get it ended */
	int64		token_wanted_us;	/* monotonic, last use */
	int64		key_wanted_us;
	uint64		fetch_serial;	/* attempts ended, well or badly */
	int			fetch_sqlstate; /* of the last attempt; 0: it went well */
	char		fetch_error[FINI_MAX_MESSAGE];
	char		fetch_detail[FINI_MAX_MESSAGE];

	char		last_error[FINI_MAX_MESSAGE];
	TimestampTz last_error_at;

	Oid			left_alone[FINI_LEFT_ALONE];	/* owners whose tables the worker does not touch, and until when */
	int64		left_alone_until_us[FINI_LEFT_ALONE];

	FiniPaceShared pace;
} FiniSlotShared;

/* to be called from _PG_init: reserves and later initialises the memory */
extern void fini_shared_init(void);

/* was the library loaded by shared_preload_libraries? */
extern bool fini_shared_available(void);

extern int	fini_shared_slots(void);
extern FiniSlotShared *fini_shared_slot(int index);
extern LWLock *fini_shared_slot_lock(const FiniSlotShared *slot);

/* the slot of the current database, or NULL when it is not in fini.databases */
extern FiniSlotShared *fini_shared_my_slot(void);

/* for a worker, which knows its slot and looks nothing up outside a transaction */
extern void fini_shared_set_my_slot(FiniSlotShared *slot);

/* the same as fini_shared_my_slot, raising FINI_ERRCODE_NO_WORKER with advice when there is none */
extern FiniSlotShared *fini_shared_require_slot(void);

/* raise an error in a worker: code of users that it runs must not use its event loop, nor wait for it */
extern void fini_shared_refuse_worker(void);

/* tell a slot's worker that there is work; cheap when it has been told already */
extern void fini_shared_wake(FiniSlotShared *slot);

/* wake this database's worker when the current transaction commits */
extern void fini_shared_wake_at_commit(void);

/* the same for new rows of the queue alone: a worker that can send none of them just now takes its time */
extern void fini_shared_work_at_commit(void);

/* note an error for fini.status; no secrets, no personal data */
extern void fini_shared_note_error(FiniSlotShared *slot, const char *message);

/* for the worker: operations have ended, which fini.check looks at */
extern void fini_shared_note_settled(void);

/* for the worker: an endpoint is not used any more until fini.resume; all of them are again */
extern void fini_shared_endpoint_stopped(FiniSlotShared *slot, int endpoint);
extern void fini_shared_endpoints_resumed(FiniSlotShared *slot);

#endif							/* FINI_SHARED_H */
