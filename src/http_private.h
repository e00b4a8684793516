/*
 * http_private.h
 *		What the parts of the transport share: http.c (interface),
 *		http_loop.c (event loop), http_sockets.c (what it waits for),
 *		http_transfer.c (one transfer), http_handle.c (libcurl's handles).
 *
 * All of it belongs to one process.  A transfer is our side of one request:
 * malloc'd, since libcurl's callbacks write to it and must not raise errors,
 * and since it must outlive the caller's memory until libcurl has let go.
 */
#ifndef FINI_HTTP_PRIVATE_H
#define FINI_HTTP_PRIVATE_H

#include "postgres.h"

#include <curl/curl.h>

#include "lib/ilist.h"

#include "http.h"

/* CURLOPT_QUICK_EXIT: without it a cancel waits for a hanging name server */
#if LIBCURL_VERSION_NUM < 0x075700
#error "fini needs libcurl 7.87 or later"
#endif

typedef struct FiniTransferGuard FiniTransferGuard;

typedef struct FiniTransfer
{
	dlist_node	node;			/* in the loop's list of running or of done ones */
	FiniHttpRequest *req;		/* may be gone once the guard has fired */
	FiniTransferGuard *guard;	/* of http.c */
	MemoryContext context;		/* for the answer */
	int64		send_until_us;	/* monotonic; 0: no limit */
	CURL	   *easy;
	struct curl_slist *headers;

	/* written by libcurl's callbacks */
	char	   *data;			/* the answer so far */
	Size		len;
	Size		size;
	Size		max;
	Size		header_bytes;
	int			retry_after;	/* seconds, -1: none */
	int			opened;			/* sockets; 0: it has a kept connection */
	int			sends;			/* how often libcurl began to send the request: 0 or 1 */
	bool		stale;			/* its kept connection was no good, and nothing has been sent */
	bool		fresh;			/* it was given a new one for that */
	bool		resend_refused; /* it wanted to once more */
	bool		too_large;
	bool		cookie;			/* the answer brought one, which libcurl keeps with the handle's other headers */
	bool		too_late;		/* it was about to send after the time given */
	char		message[CURL_ERROR_SIZE];

	bool		added;			/* libcurl has it, or had it */
	bool		finished;		/* libcurl has let go of it */
	CURLcode	result;			/* then */
} FiniTransfer;

/* set an option of "easy" unless one before it failed, as "rc" says */
#define SET(option, value) \
	do { if (rc == CURLE_OK) rc = curl_easy_setopt(easy, option, value); } while (0)

/* http_handle.c */
extern CURL *fini_handle_open(const FiniHttpRequest *req, CURLcode *problem);
extern void fini_handle_close(CURL *easy, bool well);
extern void fini_handle_forget(void);

/* http_transfer.c */
extern FiniTransfer *fini_transfer_create(FiniHttpRequest *req, bool fresh_connection);
extern bool fini_transfer_begin_anew(FiniTransfer *transfer);
extern void fini_transfer_complete(FiniTransfer *transfer);
extern void fini_transfer_destroy(FiniTransfer *transfer);
extern CURLcode fini_transfer_set_callbacks(CURL *easy);
extern curl_socket_t fini_transfer_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address);
extern int	fini_transfer_close_socket(void *arg, curl_socket_t fd);

/* http_loop.c */
extern void fini_loop_open(void);
extern void fini_loop_close(void);
extern void fini_loop_close_connections(void);
extern bool fini_loop_needs_fresh_connection(void);
extern void fini_loop_add(FiniTransfer *transfer);
extern void fini_loop_remove(FiniTransfer *transfer);
extern FiniTransfer *fini_loop_find(const FiniHttpRequest *req);
extern FiniTransfer *fini_loop_finished(const FiniHttpRequest *wanted);
extern int	fini_loop_count(void);
extern void fini_loop_drive(void);
extern bool fini_loop_wait(int64 until_us, uint32 wait_event_info);

/* http_sockets.c */
extern void fini_sockets_make_room(int transfers);
extern int	fini_sockets_changed(curl_socket_t fd, int what, bool closing);
extern int	fini_sockets_count(void);
extern void fini_sockets_suspect(void);
extern bool fini_sockets_next_closing(curl_socket_t *fd);
extern int64 fini_sockets_closing_due(void);
extern int	fini_sockets_look(void);
extern int	fini_sockets_seen(int i, curl_socket_t *fd);
extern bool fini_sockets_wait(long timeout_ms, uint32 wait_event_info);
extern void fini_sockets_forget(void);
extern void fini_sockets_end(void);
extern void fini_sockets_report(void);
extern void fini_sockets_opened(curl_socket_t fd);
extern void fini_sockets_closed(curl_socket_t fd);
extern curl_socket_t fini_sockets_of(int local_port, int remote_port);

#endif							/* FINI_HTTP_PRIVATE_H */
