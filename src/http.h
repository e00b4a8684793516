/*
 * http.h
 *		HTTPS through libcurl's multi interface on PostgreSQL's wait-event sets.
 *
 * One event loop per process (worker or backend), made at first use and kept:
 * it owns the connections.  Requests are started, run while their process
 * waits in fini_http_next, and come back completed in any order.  Every wait
 * ends on the process latch, on postmaster death (the process exits) and on
 * the time given; CHECK_FOR_INTERRUPTS runs at points where libcurl is not on
 * the stack.  Nothing here raises an error from within a libcurl callback.
 *
 * A request is sent once at most.  libcurl would repeat one, POST included,
 * whose kept-alive connection breaks before an answer came; here that is
 * prevented, and the request ends in doubt.  Who may repeat it (because it
 * changes nothing) does so above, through the throttle.
 *
 * Settings (TLS files, pin, proxy, time-outs) are read when a request starts;
 * when those of the connection changed, old connections are not used again.
 */
#ifndef FINI_HTTP_H
#define FINI_HTTP_H

#include "postgres.h"

#include "secret.h"

typedef enum FiniHttpOutcome
{
	FINI_HTTP_ANSWERED,			/* a complete answer: see status */
	FINI_HTTP_NOT_SENT,			/* certainly not processed: name, connection, TLS, proxy, bad file */
	FINI_HTTP_IN_DOUBT,			/* some of the request left us, no complete answer came */
	FINI_HTTP_TOO_LARGE			/* answer beyond max_answer, or its headers beyond 256 kB; in doubt as well */
} FiniHttpOutcome;

/* what kept a request from being answered, for advice */
typedef enum FiniHttpFailure
{
	FINI_HTTP_FAILURE_NONE,
	FINI_HTTP_FAILURE_NAME,		/* host name */
	FINI_HTTP_FAILURE_PROXY,
	FINI_HTTP_FAILURE_CONNECT,	/* refused, unreachable */
	FINI_HTTP_FAILURE_TIMEOUT,
	FINI_HTTP_FAILURE_CERTIFICATE,	/* nobody whom we trust vouches for it */
	FINI_HTTP_FAILURE_CERTIFICATE_EXPIRED,
	FINI_HTTP_FAILURE_CERTIFICATE_NAME, /* it is another host's */
	FINI_HTTP_FAILURE_PIN,
	FINI_HTTP_FAILURE_CA_FILE,
	FINI_HTTP_FAILURE_CLIENT_CERTIFICATE,
	FINI_HTTP_FAILURE_TLS,
	FINI_HTTP_FAILURE_OTHER
} FiniHttpFailure;

typedef struct FiniHttpRequest FiniHttpRequest;

struct FiniHttpRequest
{
	/*
	 * Filled by the caller, the rest zeroed; all of it must live until the
	 * request completed or was abandoned, or as long as the memory context
	 * that was current at start: a request left behind is abandoned with it.
	 */
	const char *url;
	const char *body;			/* NULL: GET; else POST */
	Size		body_len;
	const char *content_type;	/* of the body */
	const char **headers;		/* NULL-terminated array of "Name: value"; secrets allowed */
	Size		max_answer;		/* 0: FINI_HTTP_MAX_ANSWER */
	int			timeout_ms;		/* 0: fini.request_timeout */
	int64		send_until_us;	/* monotonic: not sent when its first byte has not left by then; 0: no limit */
	void	   *owner;			/* the caller's */

	/* filled on completion */
	FiniHttpOutcome outcome;
	int			status;			/* HTTP status when answered */
	FiniBuffer *answer;			/* body when answered, else NULL; in the context that was current at start */
	int			retry_after;	/* seconds; -1 when absent (both forms of the header understood) */
	char		error[256];		/* what failed, without secrets; "" when answered */
	FiniHttpFailure failure;
	int64		started_us;		/* monotonic */
	int64		duration_us;
	int64		bytes_out;		/* of the body */
	int64		bytes_in;		/* of the answer's body */
};

#define FINI_HTTP_MAX_ANSWER	((Size) 64 * 1024 * 1024)

/* start; never blocks, raises only when out of memory or for a header with a line break */
extern void fini_http_start(FiniHttpRequest *req);

/*
 * Drive all started requests and return one that completed, or NULL when the
 * latch was set or timeout_ms passed (-1: no limit; 0: just poll).  The latch
 * is reset here when NULL is returned for it.  wait_event_info as for WaitLatch.
 */
extern FiniHttpRequest *fini_http_next(long timeout_ms, uint32 wait_event_info);

/* drop a request at once, its connection with it; safe in error cleanup; no-op when not running */
extern void fini_http_abandon(FiniHttpRequest *req);

/*
 * One request from start to completion, interruptibly; abandons it and
 * re-raises when interrupted.  For backends.
 */
extern void fini_http_perform(FiniHttpRequest *req, uint32 wait_event_info);

/* how many are started and not yet returned */
extern int	fini_http_running(void);

/* close idle connections and forget TLS sessions: after a change of settings */
extern void fini_http_reset(void);

/* libcurl's URL parser: an https URL without credentials, query or fragment? NULL when fine, else why not */
extern const char *fini_http_check_url(const char *url);

/* likewise for a proxy: an http or https URL, perhaps with credentials, and nothing behind the host */
extern const char *fini_http_check_proxy(const char *url);

extern int64 fini_monotonic_us(void);

#endif							/* FINI_HTTP_H */
