/*
 * http.c
 *		The transport's interface: requests in, completed requests out.
 *
 * Errors in PostgreSQL are jumps, and a caller's memory can vanish under a
 * request that still runs.  So each started request has a guard in the memory
 * context that was current then: when the context goes, the transfer is taken
 * from libcurl before it can read or write what is gone.
 */
#include "postgres.h"

#include <time.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "http_private.h"
#include "settings.h"

struct FiniTransferGuard
{
	MemoryContextCallback callback;
	FiniTransfer *transfer;		/* NULL: ended before its context */
};

static FiniHttpRequest *wait_for(const FiniHttpRequest *wanted, long timeout_ms, uint32 wait_event_info);
static void end_transfer(FiniTransfer *transfer);
static void guard_fired(void *arg);
static void initialise(void);
static void process_exits(int code, Datum arg);
static void watch_connection_settings(void);

static bool initialised = false;

void
fini_http_start(FiniHttpRequest *req)
{
	FiniTransferGuard *guard;
	FiniTransfer *transfer;

	initialise();
	watch_connection_settings();

	req->outcome = FINI_HTTP_NOT_SENT;
	req->status = 0;
	req->answer = NULL;
	req->retry_after = -1;
	req->error[0] = '\0';
	req->failure = FINI_HTTP_FAILURE_NONE;
	req->duration_us = 0;
	req->bytes_out = 0;
	req->bytes_in = 0;
	req->started_us = fini_monotonic_us();

	guard = palloc(sizeof(FiniTransferGuard));
	fini_loop_open();
	transfer = fini_transfer_create(req, fini_loop_needs_fresh_connection());

	/* the loop owns it from here, and nothing below can fail */
	fini_loop_add(transfer);
	transfer->context = CurrentMemoryContext;
	transfer->guard = guard;
	guard->transfer = transfer;
	guard->callback.func = guard_fired;
	guard->callback.arg = guard;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &guard->callback);
}

FiniHttpRequest *
fini_http_next(long timeout_ms, uint32 wait_event_info)
{
	return wait_for(NULL, timeout_ms, wait_event_info);
}

void
fini_http_perform(FiniHttpRequest *req, uint32 wait_event_info)
{
	fini_http_start(req);
	PG_TRY();
	{
		/* the latch may have been set for anything: interrupts were looked at */
		while (wait_for(req, -1, wait_event_info) == NULL)
			;
	}
	PG_CATCH();
	{
		fini_http_abandon(req);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * Looked up rather than followed through a pointer in the request: its
 * transfer may have ended with its memory context before.
 */
void
fini_http_abandon(FiniHttpRequest *req)
{
	FiniTransfer *transfer = fini_loop_find(req);

	if (transfer != NULL)
		end_transfer(transfer);
}

int
fini_http_running(void)
{
	return fini_loop_count();
}

void
fini_http_reset(void)
{
	if (!initialised)
		return;
	fini_handle_forget();
	fini_loop_close_connections();
}

int64
fini_monotonic_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/*
 * Return a finished request (the wanted one, or any when wanted is NULL), or
 * NULL when the latch was set or time is up.  When the latch was set and a
 * request finished too, the request is returned and the latch set again, so
 * that the caller learns of both.
 */
static FiniHttpRequest *
wait_for(const FiniHttpRequest *wanted, long timeout_ms, uint32 wait_event_info)
{
	int64		until_us = timeout_ms < 0 ? PG_INT64_MAX : fini_monotonic_us() + (int64) timeout_ms * 1000;
	bool		latch_set = false;

	initialise();
	for (;;)
	{
		FiniTransfer *transfer;

		CHECK_FOR_INTERRUPTS();
		fini_loop_drive();
		transfer = fini_loop_finished(wanted);
		if (transfer != NULL)
		{
			FiniHttpRequest *req = transfer->req;

			if (latch_set)
				SetLatch(MyLatch);
			fini_transfer_complete(transfer);	/* may fail: the transfer is still listed then */
			end_transfer(transfer);
			return req;
		}
		if (latch_set || (until_us != PG_INT64_MAX && fini_monotonic_us() >= until_us))
			return NULL;
		if (fini_loop_wait(until_us, wait_event_info))
		{
			ResetLatch(MyLatch);
			latch_set = true;
		}
	}
}

/* take a transfer from the loop and free it; the request itself is not touched */
static void
end_transfer(FiniTransfer *transfer)
{
	if (transfer->guard != NULL)
		transfer->guard->transfer = NULL;
	fini_loop_remove(transfer);
	fini_transfer_destroy(transfer);
}

static void
guard_fired(void *arg)
{
	FiniTransferGuard *guard = arg;

	if (guard->transfer != NULL)
		end_transfer(guard->transfer);
}

static void
initialise(void)
{
	if (initialised)
		return;
	Assert(IsUnderPostmaster || !IsPostmasterEnvironment);
	before_shmem_exit(process_exits, (Datum) 0);
	initialised = true;
}

/* runs before the last transaction's memory goes, whose guards then find nothing to do */
static void
process_exits(int code, Datum arg)
{
	FiniTransfer *transfer;

	while ((transfer = fini_loop_find(NULL)) != NULL)
		end_transfer(transfer);
	fini_handle_forget();
	fini_loop_close();
}

/* a connection made under other settings must not carry the next request */
static void
watch_connection_settings(void)
{
	static char **const settings[] = {
		&fini_guc_ca_file, &fini_guc_client_cert_file, &fini_guc_client_key_file, &fini_guc_pinned_public_key, &fini_guc_proxy
	};
	static char *noted[lengthof(settings)];

	if (!fini_settings_differ(lengthof(settings), settings, noted))
		return;
	fini_http_reset();
	fini_settings_note(lengthof(settings), settings, noted);
}
