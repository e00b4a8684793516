/*
 * http_loop.c
 *		libcurl's multi interface on PostgreSQL's wait-event sets.
 *
 * libcurl tells through callbacks which sockets it waits for and when its
 * next timer is due.  We sleep in a wait-event set over these, the process
 * latch and postmaster death; awake, we ask poll(2) which sockets are ready
 * and pass those to libcurl.  The wait-event set only ends the sleep: when the
 * latch is set it reports nothing but the latch, so a busy latch would starve
 * the network if its word were all we had.
 *
 * libcurl starts threads for name resolution.  They inherit the signal mask,
 * and PostgreSQL's handlers must run in the main thread alone: so every
 * signal is blocked while libcurl is on the stack.
 */
#include "postgres.h"

#include <malloc.h>
#include <signal.h>
#include <sys/socket.h>

#include "storage/latch.h"

#include "http_private.h"
#include "settings.h"

/*
 * CURLMOPT_QUICK_EXIT: do not wait for names that are still being looked up.
 * By number, as the headers may be older than the library that is loaded; a
 * library without it never waits.
 */
#define MULTI_QUICK_EXIT	((CURLMoption) (CURLOPTTYPE_LONG + 21))

static CURLM *multi = NULL;
static dlist_head running = DLIST_STATIC_INIT(running);
static dlist_head done = DLIST_STATIC_INIT(done);
static int	transfer_count = 0;
static bool some_to_add = false;	/* not all that run have been added */
static int64 timer_due_us = -1; /* -1: none */
static bool close_when_idle = false;

static int	socket_changed(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg);
static void add_transfers(void);
static void collect_finished(void);
static void finish(FiniTransfer *transfer, CURLcode result);
static int	running_count(void);
static void spoil_connection(CURL *easy);
static void give_up(CURLMcode problem);
static void close_multi(void);
static int	timer_changed(CURLM *handle, long timeout_ms, void *arg);
static void free_cleansed(void *memory);
static void *realloc_cleansed(void *memory, size_t size);
static void enter_libcurl(sigset_t *saved);
static void leave_libcurl(const sigset_t *saved);

/* make ready for a transfer; raises an error when out of memory */
void
fini_loop_open(void)
{
	static bool library_ready = false;
	static int	max_connects = 0;
	sigset_t	saved;
	bool		ok;

	fini_sockets_make_room(transfer_count + 1);
	if (multi != NULL && max_connects == fini_guc_max_in_flight)
		return;
	enter_libcurl(&saved);
	if (!library_ready)
		library_ready = curl_global_init_mem(CURL_GLOBAL_DEFAULT, malloc, free_cleansed, realloc_cleansed,
											 strdup, calloc) == CURLE_OK;
	if (library_ready && multi == NULL && (multi = curl_multi_init()) != NULL)
	{
		ok = curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, socket_changed) == CURLM_OK &&
			curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, timer_changed) == CURLM_OK &&
			curl_multi_setopt(multi, CURLMOPT_PIPELINING, (long) CURLPIPE_NOTHING) == CURLM_OK;
		if (!ok)
			close_multi();
	}
	if (multi != NULL)
	{
		curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) fini_guc_max_in_flight);
		(void) curl_multi_setopt(multi, MULTI_QUICK_EXIT, 1L);
		max_connects = fini_guc_max_in_flight;
	}
	leave_libcurl(&saved);

	if (multi == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not initialise libcurl")));
}

/* the process ends; there is no transfer left */
void
fini_loop_close(void)
{
	fini_loop_close_connections();
	fini_sockets_end();
}

/* at once, or as soon as no transfer is left; until then new ones get new connections */
void
fini_loop_close_connections(void)
{
	sigset_t	saved;

	close_when_idle = transfer_count > 0;
	if (multi == NULL || close_when_idle)
		return;
	enter_libcurl(&saved);
	close_multi();
	leave_libcurl(&saved);
}

bool
fini_loop_needs_fresh_connection(void)
{
	return close_when_idle;
}

/* take over a transfer; raises no error.  libcurl gets it when the loop is driven next, since entering it costs system calls. */
void
fini_loop_add(FiniTransfer *transfer)
{
	dlist_push_tail(&running, &transfer->node);
	transfer_count++;
	some_to_add = true;
}

/*
 * Let go of a transfer, finished or not; one in the middle takes its connection
 * with it.  With the last one go the connections that the other side has not
 * let us close: nobody is here to wait for it.
 */
void
fini_loop_remove(FiniTransfer *transfer)
{
	if (transfer->added && !transfer->finished)
	{
		sigset_t	saved;

		enter_libcurl(&saved);
		curl_multi_remove_handle(multi, transfer->easy);
		leave_libcurl(&saved);
	}
	dlist_delete(&transfer->node);
	transfer_count--;
	if (transfer_count == 0 && (close_when_idle || fini_sockets_count() > 0))
		fini_loop_close_connections();
}

/* the transfer of a request, or any transfer when req is NULL; NULL when there is none */
FiniTransfer *
fini_loop_find(const FiniHttpRequest *req)
{
	dlist_iter	iter;
	FiniTransfer *transfer = fini_loop_finished(req);

	if (transfer != NULL)
		return transfer;
	dlist_foreach(iter, &running)
	{
		transfer = dlist_container(FiniTransfer, node, iter.cur);
		if (req == NULL || transfer->req == req)
			return transfer;
	}
	return NULL;
}

/* the same among those that finished, the first to finish first */
FiniTransfer *
fini_loop_finished(const FiniHttpRequest *wanted)
{
	dlist_iter	iter;

	dlist_foreach(iter, &done)
	{
		FiniTransfer *transfer = dlist_container(FiniTransfer, node, iter.cur);

		if (wanted == NULL || transfer->req == wanted)
			return transfer;
	}
	return NULL;
}

int
fini_loop_count(void)
{
	return transfer_count;
}

/* do what can be done without waiting; raises no error */
void
fini_loop_drive(void)
{
	sigset_t	saved;
	CURLMcode	problem = CURLM_OK;
	curl_socket_t closing;
	int64		due_us;
	int			count;
	int			left;

	if (dlist_is_empty(&running))
		return;
	count = fini_sockets_look();
	due_us = Min(timer_due_us < 0 ? PG_INT64_MAX : timer_due_us, fini_sockets_closing_due());
	if (!some_to_add && count == 0 && (due_us == PG_INT64_MAX || fini_monotonic_us() < due_us))
		return;
	enter_libcurl(&saved);
	add_transfers();
	for (int i = 0; i < count && problem == CURLM_OK; i++)
	{
		curl_socket_t fd;
		int			events = fini_sockets_seen(i, &fd);

		if (events != 0)
			problem = curl_multi_socket_action(multi, fd, events, &left);
	}
	/* libcurl gives a connection that is being closed two seconds, and sets no timer for them */
	while (problem == CURLM_OK && fini_sockets_next_closing(&closing))
		problem = curl_multi_socket_action(multi, closing, 0, &left);
	/* a connection that has failed is shut down before the timer gives it to the next transfer */
	collect_finished();
	if (problem == CURLM_OK && timer_due_us >= 0 && fini_monotonic_us() >= timer_due_us)
	{
		timer_due_us = -1;
		problem = curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &left);
	}
	collect_finished();
	if (problem != CURLM_OK)
		give_up(problem);
	leave_libcurl(&saved);
}

/*
 * Sleep until a socket is ready, libcurl's timer or until_us (PG_INT64_MAX:
 * never) is due, or the latch is set; true for the latch, which the caller
 * resets.  Ends the process when the postmaster is gone.
 */
bool
fini_loop_wait(int64 until_us, uint32 wait_event_info)
{
	int64		now_us = fini_monotonic_us();
	long		timeout_ms = -1;

	until_us = Min(until_us, fini_sockets_closing_due());
	if (timer_due_us >= 0)
		until_us = Min(until_us, timer_due_us);
	if (until_us != PG_INT64_MAX)
		timeout_ms = (long) Min((Max(until_us - now_us, 0) + 999) / 1000, INT_MAX);

	return fini_sockets_wait(timeout_ms, wait_event_info);
}

/*
 * libcurl's CURLMOPT_SOCKETFUNCTION.  A handle that is none of ours is its own,
 * and has to do with a connection that is being closed: newer versions wait for
 * the other side to agree.
 */
static int
socket_changed(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	dlist_iter	iter;
	bool		ours = false;

	dlist_foreach(iter, &running)
		ours |= dlist_container(FiniTransfer, node, iter.cur)->easy == easy;
	return fini_sockets_changed(fd, what, !ours);
}

/* with libcurl entered; what cannot start is finished at once */
static void
add_transfers(void)
{
	dlist_mutable_iter iter;

	if (!some_to_add)
		return;
	some_to_add = false;
	dlist_foreach_modify(iter, &running)
	{
		FiniTransfer *transfer = dlist_container(FiniTransfer, node, iter.cur);

		if (transfer->added)
			continue;
		transfer->added = true;
		if (curl_multi_add_handle(multi, transfer->easy) != CURLM_OK)
			finish(transfer, CURLE_FAILED_INIT);
	}
}

static void
collect_finished(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		dlist_mutable_iter iter;

		/* found by its handle: nothing that could fail, as who is not told of its end would wait for ever */
		dlist_foreach_modify(iter, &running)
		{
			FiniTransfer *transfer = dlist_container(FiniTransfer, node, iter.cur);

			if (message->msg == CURLMSG_DONE && transfer->easy == message->easy_handle)
			{
				finish(transfer, message->data.result);
				break;
			}
		}
	}
}

static void
finish(FiniTransfer *transfer, CURLcode result)
{
	if (result != CURLE_OK)
		spoil_connection(transfer->easy);
	curl_multi_remove_handle(multi, transfer->easy);	/* its connection is free for the next */
	if (fini_transfer_begin_anew(transfer) && curl_multi_add_handle(multi, transfer->easy) == CURLM_OK)
		return;
	transfer->result = result;
	transfer->finished = true;
	dlist_delete(&transfer->node);
	dlist_push_tail(&done, &transfer->node);
	if (fini_sockets_count() > running_count())
		fini_sockets_suspect();
}

static int
running_count(void)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &running)
		n++;
	return n;
}

/*
 * libcurl can keep a connection on which a request could not be sent.  The next
 * one could be taken for sent without having left, since what TLS makes of it
 * then is anybody's guess.  A socket that has ended is seen before it is used.
 */
static void
spoil_connection(CURL *easy)
{
	curl_socket_t fd;

	if (curl_easy_getinfo(easy, CURLINFO_ACTIVESOCKET, &fd) == CURLE_OK && fd != CURL_SOCKET_BAD)
		(void) shutdown(fd, SHUT_RDWR);
}

/* libcurl itself is in trouble: every transfer ends as it stands, and we start anew */
static void
give_up(CURLMcode problem)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &running)
	{
		FiniTransfer *transfer = dlist_container(FiniTransfer, node, iter.cur);

		strlcpy(transfer->message, curl_multi_strerror(problem), sizeof(transfer->message));
		finish(transfer, CURLE_ABORTED_BY_CALLBACK);
	}
	close_when_idle = true;
}

/* with libcurl entered */
static void
close_multi(void)
{
	curl_multi_cleanup(multi);
	multi = NULL;
	timer_due_us = -1;
	fini_sockets_forget();
}

/* libcurl's CURLMOPT_TIMERFUNCTION */
static int
timer_changed(CURLM *handle, long timeout_ms, void *arg)
{
	timer_due_us = timeout_ms < 0 ? -1 : fini_monotonic_us() + (int64) timeout_ms * 1000;
	return 0;
}

/*
 * libcurl's memory.  Headers with the token, forms with assertions, bodies and
 * answers pass through buffers of its own, which it gives back as they are.
 * Where another library of this process has set libcurl up before, they are
 * left so.
 */
static void
free_cleansed(void *memory)
{
	if (memory != NULL)
		fini_secret_cleanse(memory, malloc_usable_size(memory));
	free(memory);
}

static void *
realloc_cleansed(void *memory, size_t size)
{
	size_t		before = memory != NULL ? malloc_usable_size(memory) : 0;
	void	   *moved;

	/* in its place where it shrinks, or has grown already */
	if (memory != NULL && size > 0 && size <= before)
		return memory;
	moved = malloc(size);
	if (moved == NULL)
		return NULL;
	if (memory != NULL)
	{
		memcpy(moved, memory, Min(before, size));
		free_cleansed(memory);
	}
	return moved;
}

static void
enter_libcurl(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, saved);
}

static void
leave_libcurl(const sigset_t *saved)
{
	sigprocmask(SIG_SETMASK, saved, NULL);
	fini_sockets_report();
}
