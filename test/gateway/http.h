/*
 * http.h
 *		The HTTP servers (gateway and administration) on libmicrohttpd.
 *
 * One thread per connection.  `begin` runs when the headers are read, `finish` when
 * the body is complete; both run in the connection's thread, and a Request and its
 * Reply belong to that thread alone.
 */
#ifndef GW_HTTP_H
#define GW_HTTP_H

#include "text.h"

struct MHD_Connection;

typedef struct Request
{
	struct MHD_Connection *connection;
	char	   *method;
	char	   *path;
	Buf			body;
	bool		too_large;
	int			verdict;		/* what begin() found: 0 or an HTTP status */
	long		retry_after;	/* with verdict 429 */
	const char *verdict_message;
} Request;

/* How a reply reaches the client. */
typedef enum Manner
{
	SEND_WHOLE,
	SEND_NOTHING,				/* close the connection */
	SEND_HALF,					/* promise all of it, close after half */
	SEND_SLOWLY					/* byte by byte, pause_ms between */
} Manner;

/* Produces more of a body of unknown length; 0 ends it. */
typedef size_t (*ReplyMore) (void *state, char *dst, size_t max);

typedef struct Reply
{
	unsigned	status;
	Buf			body;
	const char *content_type;
	long		retry_after;	/* 0: no such header */
	char	   *location;		/* malloc'd, or NULL */
	Manner		manner;
	int64_t		pause_ms;
	ReplyMore	more;			/* instead of body */
	void	   *more_state;
	void		(*more_free) (void *state);
} Reply;

typedef struct ServerOptions
{
	int			port;
	const char *certificate;	/* PEM texts; NULL: plain HTTP */
	const char *key;
	const char *client_ca;		/* NULL: no client certificates */
	size_t		max_body;
	void		(*begin) (Request *request);	/* may be NULL */
	void		(*finish) (Request *request, Reply *reply);
} ServerOptions;

typedef struct Server Server;

extern Server *gw_http_start(const ServerOptions *options);
extern int	gw_http_port(Server *server);
extern void gw_http_stop(Server *server);
extern const char *gw_http_header(Request *request, const char *name);
extern const char *gw_http_query(Request *request, const char *name);

#endif
