/*
 * http_sockets.c
 *		The sockets that libcurl waits for, and the wait-event set over them.
 *
 * There are two lists.  One is what libcurl waits for now, told by its
 * CURLMOPT_SOCKETFUNCTION; these we poll, and sleep over.  The other is the
 * connections that are open, idle ones included, told by the callbacks that
 * open and close them.  No function here runs libcurl.
 */
#include "postgres.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "http_private.h"

/* sockets that we keep in view: those of fini.max_in_flight, and more */
#define MAX_SOCKETS				256

/* most sockets that one transfer can wait for: racing connection attempts, its resolver */
#define SOCKETS_PER_TRANSFER	8

/* a little longer than libcurl waits for the other side to agree that a connection is closed */
#define CLOSING_US				INT64CONST(2100000)

typedef struct LoopSocket
{
	curl_socket_t fd;
	int			what;			/* CURL_POLL_IN, _OUT, _INOUT */
	int64		closing_us;		/* being closed: when to have libcurl look at it again (monotonic); 0: not so */
} LoopSocket;

static LoopSocket *sockets = NULL;
static struct pollfd *polls = NULL;
static int	socket_count = 0;
static bool readable = false;	/* the only one is, as the wait-event set has just said */
static int	socket_room = 0;

static WaitEventSet *wait_set = NULL;
static LoopSocket *waited = NULL;	/* what is in it, in its order */
static int	waited_count = 0;
static bool wait_set_stale = true;	/* it must not be used again, whatever is in it */

/* of a connection; they stay as they are while it is open */
typedef struct OpenSocket
{
	curl_socket_t fd;			/* CURL_SOCKET_BAD: not known */
	int			local_port;		/* 0: not asked for yet */
	int			remote_port;
} OpenSocket;

static int	open_sockets = 0;	/* by libcurl */
static OpenSocket opened[MAX_SOCKETS];	/* the first of them */
static int	reported_sockets = 0;	/* to fd.c */

static void prepare_wait_set(void);
static bool holds_the_same_sockets(void);
static bool is_connection(curl_socket_t fd);
static uint32 wait_events(int what);
static int	port_of(curl_socket_t fd, int (*name) (int fd, struct sockaddr *address, socklen_t *len));

/* for so many transfers, so that no callback ever has to allocate */
void
fini_sockets_make_room(int transfers)
{
	int			need = socket_count + transfers * SOCKETS_PER_TRANSFER;	/* some may be of connections that are being closed */
	int			room = Max(need, 2 * socket_room);

	if (need <= socket_room)
		return;
	if (sockets == NULL)
		sockets = MemoryContextAlloc(TopMemoryContext, room * sizeof(LoopSocket));
	else
		sockets = repalloc(sockets, room * sizeof(LoopSocket));
	if (waited == NULL)
		waited = MemoryContextAlloc(TopMemoryContext, room * sizeof(LoopSocket));
	else
		waited = repalloc(waited, room * sizeof(LoopSocket));
	if (polls == NULL)
		polls = MemoryContextAlloc(TopMemoryContext, room * sizeof(struct pollfd));
	else
		polls = repalloc(polls, room * sizeof(struct pollfd));
	socket_room = room;
}

/* libcurl waits for a socket now, or for something else of it, or no more; the result is one of CURLMOPT_SOCKETFUNCTION */
int
fini_sockets_changed(curl_socket_t fd, int what, bool closing)
{
	int			i = 0;

	readable = false;
	while (i < socket_count && sockets[i].fd != fd)
		i++;

	if (what == CURL_POLL_REMOVE || what == CURL_POLL_NONE)
	{
		if (i < socket_count)
		{
			sockets[i] = sockets[--socket_count];
			if (!is_connection(fd))
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
		sockets[i].closing_us = 0;
	}
	if (!closing)
		sockets[i].closing_us = 0;
	else if (sockets[i].closing_us == 0)
		sockets[i].closing_us = fini_monotonic_us() + CLOSING_US;
	sockets[i].what = what;
	return 0;
}

/* for how many does libcurl wait? */
int
fini_sockets_count(void)
{
	return socket_count;
}

/*
 * There are more than transfers.  Not every version of libcurl tells which one
 * is being closed, so all are looked at when it would be time: for the others,
 * nothing comes of it.
 */
void
fini_sockets_suspect(void)
{
	int64		due_us = fini_monotonic_us() + CLOSING_US;

	for (int i = 0; i < socket_count; i++)
	{
		if (sockets[i].closing_us == 0)
			sockets[i].closing_us = due_us;
	}
}

/* one that has been closing for so long that libcurl would give it up; false: none (any more) */
bool
fini_sockets_next_closing(curl_socket_t *fd)
{
	for (int i = 0; i < socket_count; i++)
	{
		int64		now_us = sockets[i].closing_us != 0 ? fini_monotonic_us() : 0;

		if (now_us > 0 && now_us >= sockets[i].closing_us)
		{
			sockets[i].closing_us = now_us + CLOSING_US;
			*fd = sockets[i].fd;
			return true;
		}
	}
	return false;
}

/* when there will be one; PG_INT64_MAX: never */
int64
fini_sockets_closing_due(void)
{
	int64		due = PG_INT64_MAX;

	for (int i = 0; i < socket_count; i++)
	{
		if (sockets[i].closing_us != 0)
			due = Min(due, sockets[i].closing_us);
	}
	return due;
}

/* Which are ready?  Returns how many fini_sockets_seen() can be asked about; 0: none is. */
int
fini_sockets_look(void)
{
	for (int i = 0; i < socket_count; i++)
	{
		polls[i].fd = sockets[i].fd;
		polls[i].events = ((sockets[i].what & CURL_POLL_IN) ? POLLIN : 0) |
			((sockets[i].what & CURL_POLL_OUT) ? POLLOUT : 0);
		polls[i].revents = 0;
	}
	if (readable)
	{
		readable = false;
		polls[0].revents = POLLIN;
		return socket_count;
	}
	return socket_count > 0 && poll(polls, socket_count, 0) > 0 ? socket_count : 0;
}

/* libcurl's events of the i-th, as it was then: libcurl changes the list as it goes, but not this */
int
fini_sockets_seen(int i, curl_socket_t *fd)
{
	*fd = polls[i].fd;
	return ((polls[i].revents & (POLLIN | POLLHUP)) ? CURL_CSELECT_IN : 0) |
		((polls[i].revents & POLLOUT) ? CURL_CSELECT_OUT : 0) |
		((polls[i].revents & (POLLERR | POLLNVAL)) ? CURL_CSELECT_ERR : 0);
}

/* sleep until one is ready, time is up (-1: never) or the latch is set; true for the latch */
bool
fini_sockets_wait(long timeout_ms, uint32 wait_event_info)
{
	WaitEvent	event;

	prepare_wait_set();
	if (WaitEventSetWait(wait_set, timeout_ms, &event, 1, wait_event_info) != 1)
		return false;
	/* one answer is what a session waits for: no need to ask poll(2) as well */
	readable = socket_count == 1 && sockets[0].what == CURL_POLL_IN && event.events == WL_SOCKET_READABLE;
	return (event.events & WL_LATCH_SET) != 0;
}

/* libcurl's multi handle is gone, and waits for nothing */
void
fini_sockets_forget(void)
{
	socket_count = 0;
	readable = false;
	wait_set_stale = true;
}

/* the process ends */
void
fini_sockets_end(void)
{
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = NULL;
	wait_set_stale = true;
}

/* tell fd.c how many there are */
void
fini_sockets_report(void)
{
	for (; reported_sockets < open_sockets; reported_sockets++)
		ReserveExternalFD();
	for (; reported_sockets > open_sockets; reported_sockets--)
		ReleaseExternalFD();
}

/* libcurl opened or closed a socket; fd.c hears of it once libcurl is off the stack */
void
fini_sockets_opened(curl_socket_t fd)
{
	if (open_sockets < MAX_SOCKETS)
		opened[open_sockets] = (OpenSocket) {.fd = fd};
	open_sockets++;
	wait_set_stale = true;
}

void
fini_sockets_closed(curl_socket_t fd)
{
	int			known = Min(open_sockets, MAX_SOCKETS);

	for (int i = 0; i < known; i++)
	{
		if (opened[i].fd != fd)
			continue;
		opened[i] = opened[known - 1];
		/* of those beyond the list, if any, none is known to take its place */
		opened[known - 1].fd = CURL_SOCKET_BAD;
		break;
	}
	open_sockets--;
	wait_set_stale = true;
}

/* libcurl tells a callback the ports of a connection, but not its socket; CURL_SOCKET_BAD: not found */
curl_socket_t
fini_sockets_of(int local_port, int remote_port)
{
	for (int i = 0; i < Min(open_sockets, MAX_SOCKETS); i++)
	{
		OpenSocket *socket = &opened[i];

		if (socket->fd == CURL_SOCKET_BAD)
			continue;
		if (socket->local_port <= 0 || socket->remote_port <= 0)
		{
			socket->local_port = port_of(socket->fd, getsockname);
			socket->remote_port = port_of(socket->fd, getpeername);
		}
		if (socket->local_port == local_port && socket->remote_port == remote_port)
			return socket->fd;
	}
	return CURL_SOCKET_BAD;
}

/*
 * Bring the wait-event set up to date.  Sockets cannot be taken out of one,
 * so it is built anew when they differ from those in it; a mere change of
 * direction is passed on.  libcurl lets go of a connection's socket after each
 * transfer and takes it up again for the next one: then the set is still good.
 * It is not once a socket has been closed, whose number another one could have
 * now; libcurl tells of those that are connections, and sockets of any other
 * kind make it stale when they go.  A set half built by an error is stale and
 * freed next time.
 */
static void
prepare_wait_set(void)
{
	int			first = IsUnderPostmaster ? 2 : 1;	/* position of the first socket */
	int			i;

	if (wait_set != NULL && (wait_set_stale || !holds_the_same_sockets()))
	{
		WaitEventSet *old = wait_set;

		wait_set = NULL;
		FreeWaitEventSet(old);
	}
	if (wait_set == NULL)
	{
		wait_set_stale = true;
		wait_set = fini_compat_wait_event_set(first + socket_count);
		AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		if (IsUnderPostmaster)
			AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		for (i = 0; i < socket_count; i++)
		{
			AddWaitEventToSet(wait_set, wait_events(sockets[i].what), sockets[i].fd, NULL, NULL);
			waited[i] = sockets[i];
		}
		waited_count = socket_count;
		wait_set_stale = false;
	}
	for (i = 0; i < socket_count; i++)
	{
		if (waited[i].what != sockets[i].what)
			ModifyWaitEvent(wait_set, first + i, wait_events(sockets[i].what), NULL);
		waited[i].what = sockets[i].what;
	}
}

static bool
holds_the_same_sockets(void)
{
	if (waited_count != socket_count)
		return false;
	for (int i = 0; i < socket_count; i++)
	{
		if (waited[i].fd != sockets[i].fd)
			return false;
	}
	return true;
}

/* a socket whose opening and closing we hear of */
static bool
is_connection(curl_socket_t fd)
{
	for (int i = 0; i < Min(open_sockets, MAX_SOCKETS); i++)
	{
		if (opened[i].fd == fd)
			return true;
	}
	return false;
}

static uint32
wait_events(int what)
{
	return ((what & CURL_POLL_IN) ? WL_SOCKET_READABLE : 0) | ((what & CURL_POLL_OUT) ? WL_SOCKET_WRITEABLE : 0);
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
