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
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "http_private.h"
#include "settings.h"

/* sockets that we keep in view: those of fini.max_in_flight, and more */
#define MAX_SOCKETS				256

/* most sockets that one transfer can wait for: racing connection attempts, its resolver */
#define SOCKETS_PER_TRANSFER	8

/*
 * CURLMOPT_QUICK_EXIT: do not wait for names that are still being looked up.
 * By number, as the headers may be older than the library that is loaded; a
 * library without it never waits.
 */
#define MULTI_QUICK_EXIT	((CURLMoption) (CURLOPTTYPE_LONG + 21))

typedef struct LoopSocket
{
	curl_socket_t fd;
	int			what;			/* CURL_POLL_IN, _OUT, _INOUT */
	int			position;		/* in the wait-event set */
	bool		moved;			/* "what" differs from what the set has */
} LoopSocket;

static CURLM *multi = NULL;
static dlist_head running = DLIST_STATIC_INIT(running);
static dlist_head done = DLIST_STATIC_INIT(done);
static int	transfer_count = 0;
static int64 timer_due_us = -1; /* -1: none */
static bool close_when_idle = false;

static LoopSocket *sockets = NULL;
static struct pollfd *polls = NULL;
static int	socket_count = 0;
static int	socket_room = 0;

static WaitEventSet *wait_set = NULL;
static bool wait_set_stale = true;	/* the set of sockets changed */

static int	open_sockets = 0;	/* by libcurl */
static curl_socket_t open_fds[MAX_SOCKETS]; /* the first of them */
static int	reported_sockets = 0;	/* to fd.c */

static int	port_of(curl_socket_t fd, int (*name) (int fd, struct sockaddr *address, socklen_t *len));
static void make_room(void);
static void collect_finished(void);
static void finish(FiniTransfer *transfer, CURLcode result);
static void give_up(CURLMcode problem);
static void close_multi(void);
static void prepare_wait_set(void);
static uint32 wait_events(int what);
static int	socket_changed(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg);
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
	sigset_t	saved;
	bool		ok;

	make_room();
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
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = NULL;
	wait_set_stale = true;
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

/* take over a transfer; raises no error: what cannot start is finished at once */
void
fini_loop_add(FiniTransfer *transfer)
{
	sigset_t	saved;
	CURLMcode	problem;

	dlist_push_tail(&running, &transfer->node);
	transfer_count++;
	enter_libcurl(&saved);
	problem = curl_multi_add_handle(multi, transfer->easy);
	if (problem != CURLM_OK)
		finish(transfer, CURLE_FAILED_INIT);
	leave_libcurl(&saved);
}

/* let go of a transfer, finished or not; one in the middle takes its connection with it */
void
fini_loop_remove(FiniTransfer *transfer)
{
	sigset_t	saved;

	enter_libcurl(&saved);
	curl_multi_remove_handle(multi, transfer->easy);
	dlist_delete(&transfer->node);
	transfer_count--;
	leave_libcurl(&saved);
	if (transfer_count == 0 && close_when_idle)
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
	int			count = socket_count;
	int			left;
	int			i;

	if (dlist_is_empty(&running))
		return;
	for (i = 0; i < count; i++)
	{
		polls[i].fd = sockets[i].fd;
		polls[i].events = ((sockets[i].what & CURL_POLL_IN) ? POLLIN : 0) |
			((sockets[i].what & CURL_POLL_OUT) ? POLLOUT : 0);
		polls[i].revents = 0;
	}
	if (count > 0 && poll(polls, count, 0) <= 0)
		count = 0;

	/* libcurl changes the list of sockets as it goes, but not polls */
	enter_libcurl(&saved);
	for (i = 0; i < count && problem == CURLM_OK; i++)
	{
		int			events = ((polls[i].revents & (POLLIN | POLLHUP)) ? CURL_CSELECT_IN : 0) |
			((polls[i].revents & POLLOUT) ? CURL_CSELECT_OUT : 0) |
			((polls[i].revents & (POLLERR | POLLNVAL)) ? CURL_CSELECT_ERR : 0);

		if (events != 0)
			problem = curl_multi_socket_action(multi, polls[i].fd, events, &left);
	}
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
	WaitEvent	event;
	int64		now_us = fini_monotonic_us();
	long		timeout_ms = -1;

	if (timer_due_us >= 0)
		until_us = Min(until_us, timer_due_us);
	if (until_us != PG_INT64_MAX)
		timeout_ms = (long) Min((Max(until_us - now_us, 0) + 999) / 1000, INT_MAX);

	prepare_wait_set();
	return WaitEventSetWait(wait_set, timeout_ms, &event, 1, wait_event_info) == 1 &&
		(event.events & WL_LATCH_SET) != 0;
}

/* libcurl opened or closed a socket; fd.c hears of it once libcurl is off the stack */
void
fini_loop_socket_opened(curl_socket_t fd)
{
	if (open_sockets < MAX_SOCKETS)
		open_fds[open_sockets] = fd;
	open_sockets++;
}

void
fini_loop_socket_closed(curl_socket_t fd)
{
	int			known = Min(open_sockets, MAX_SOCKETS);

	for (int i = 0; i < known; i++)
	{
		if (open_fds[i] != fd)
			continue;
		open_fds[i] = open_fds[known - 1];
		/* of those beyond the list, if any, none is known to take its place */
		open_fds[known - 1] = CURL_SOCKET_BAD;
		break;
	}
	open_sockets--;
}

/* libcurl tells a callback the ports of a connection, but not its socket; CURL_SOCKET_BAD: not found */
curl_socket_t
fini_loop_socket_of(int local_port, int remote_port)
{
	for (int i = 0; i < Min(open_sockets, MAX_SOCKETS); i++)
	{
		if (open_fds[i] != CURL_SOCKET_BAD && port_of(open_fds[i], getsockname) == local_port &&
			port_of(open_fds[i], getpeername) == remote_port)
			return open_fds[i];
	}
	return CURL_SOCKET_BAD;
}

static int
port_of(curl_socket_t fd, int (*name) (int fd, struct sockaddr *address, socklen_t *len))
{
	struct sockaddr_storage address;
	socklen_t	len = sizeof(address);

	if (name(fd, (struct sockaddr *) &address, &len) != 0)
		return -1;
	return address.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *) &address)->sin6_port) :
		address.ss_family == AF_INET ? ntohs(((struct sockaddr_in *) &address)->sin_port) : -1;
}

/* so that no callback ever has to allocate */
static void
make_room(void)
{
	int			need = (transfer_count + 1) * SOCKETS_PER_TRANSFER;
	int			room = Max(need, 2 * socket_room);

	if (need <= socket_room)
		return;
	if (sockets == NULL)
		sockets = MemoryContextAlloc(TopMemoryContext, room * sizeof(LoopSocket));
	else
		sockets = repalloc(sockets, room * sizeof(LoopSocket));
	if (polls == NULL)
		polls = MemoryContextAlloc(TopMemoryContext, room * sizeof(struct pollfd));
	else
		polls = repalloc(polls, room * sizeof(struct pollfd));
	socket_room = room;
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
	curl_multi_remove_handle(multi, transfer->easy);	/* its connection is free for the next */
	if (fini_transfer_begin_anew(transfer) && curl_multi_add_handle(multi, transfer->easy) == CURLM_OK)
		return;
	transfer->result = result;
	dlist_delete(&transfer->node);
	dlist_push_tail(&done, &transfer->node);
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
	socket_count = 0;
	wait_set_stale = true;
}

/*
 * Bring the wait-event set up to date.  Sockets cannot be taken out of one,
 * so it is built anew when they come or go; a mere change of direction is
 * passed on.  A set half built by an error is stale and freed next time.
 */
static void
prepare_wait_set(void)
{
	int			i;

	if (wait_set != NULL && wait_set_stale)
	{
		WaitEventSet *old = wait_set;

		wait_set = NULL;
		FreeWaitEventSet(old);
	}
	if (wait_set == NULL)
	{
		wait_set_stale = true;
		wait_set = fini_compat_wait_event_set(socket_count + 2);
		AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		if (IsUnderPostmaster)
			AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		for (i = 0; i < socket_count; i++)
		{
			sockets[i].position = AddWaitEventToSet(wait_set, wait_events(sockets[i].what), sockets[i].fd, NULL, NULL);
			sockets[i].moved = false;
		}
		wait_set_stale = false;
	}
	for (i = 0; i < socket_count; i++)
	{
		if (sockets[i].moved)
			ModifyWaitEvent(wait_set, sockets[i].position, wait_events(sockets[i].what), NULL);
		sockets[i].moved = false;
	}
}

static uint32
wait_events(int what)
{
	return ((what & CURL_POLL_IN) ? WL_SOCKET_READABLE : 0) | ((what & CURL_POLL_OUT) ? WL_SOCKET_WRITEABLE : 0);
}

/* libcurl's CURLMOPT_SOCKETFUNCTION */
static int
socket_changed(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	int			i = 0;

	while (i < socket_count && sockets[i].fd != fd)
		i++;

	if (what == CURL_POLL_REMOVE || what == CURL_POLL_NONE)
	{
		if (i < socket_count)
		{
			sockets[i] = sockets[--socket_count];
			wait_set_stale = true;
		}
		return 0;
	}
	if (i == socket_count)
	{
		if (socket_count == socket_room)
			return -1;
		socket_count++;
		sockets[i].fd = fd;
		wait_set_stale = true;
	}
	sockets[i].what = what;
	sockets[i].moved = true;
	return 0;
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
	for (; reported_sockets < open_sockets; reported_sockets++)
		ReserveExternalFD();
	for (; reported_sockets > open_sockets; reported_sockets--)
		ReleaseExternalFD();
}
