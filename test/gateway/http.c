/*
 * http.c
 *		The HTTP servers on libmicrohttpd: collecting requests, sending replies well
 *		or, when a fault asks for it, badly.
 */
#include "http.h"

#include "settings.h"

#include <arpa/inet.h>
#include <gnutls/gnutls.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define TLS_PRIORITIES "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
#define IDLE_SECONDS 300

struct Server
{
	struct MHD_Daemon *daemon;
	ServerOptions options;
};

/* A body that is sent in a manner of its own; owned by its MHD response. */
typedef struct Slow
{
	char	   *data;
	size_t		len;			/* of data */
	size_t		cut;			/* give up here */
	size_t		step;
	int64_t		pause_ms;
} Slow;

static enum MHD_Result handle(void *cls, struct MHD_Connection *connection, const char *url,
							  const char *method, const char *version, const char *upload,
							  size_t *upload_size, void **state);
static Request *start_request(Server *server, struct MHD_Connection *connection, const char *url,
							  const char *method);
static void free_request(void *cls, struct MHD_Connection *connection, void **state,
						 enum MHD_RequestTerminationCode how);
static void on_connection(void *cls, struct MHD_Connection *connection, void **state,
						  enum MHD_ConnectionNotificationCode what);
static enum MHD_Result send_reply(Request *request, Reply *reply);
static struct MHD_Response *make_response(Reply *reply);
static ssize_t read_slow(void *state, uint64_t at, char *dst, size_t max);
static void free_slow(void *state);
static ssize_t read_more(void *state, uint64_t at, char *dst, size_t max);
static void free_more(void *state);

/* A running server, or NULL when the port or the certificate is not usable. */
Server *
gw_http_start(const ServerOptions *options)
{
	Server	   *server = gw_alloc(sizeof(Server));
	struct sockaddr_in address = {0};
	struct MHD_OptionItem tls[5];
	int			n = 0;
	unsigned	flags = MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL;

	server->options = *options;
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t) options->port);
	if (options->certificate != NULL)
	{
		flags |= MHD_USE_TLS;
		tls[n++] = (struct MHD_OptionItem) {MHD_OPTION_HTTPS_MEM_CERT, 0, (void *) options->certificate};
		tls[n++] = (struct MHD_OptionItem) {MHD_OPTION_HTTPS_MEM_KEY, 0, (void *) options->key};
		tls[n++] = (struct MHD_OptionItem) {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *) TLS_PRIORITIES};
		if (options->client_ca != NULL)
			tls[n++] = (struct MHD_OptionItem) {MHD_OPTION_HTTPS_MEM_TRUST, 0, (void *) options->client_ca};
	}
	tls[n] = (struct MHD_OptionItem) {MHD_OPTION_END, 0, NULL};
	server->daemon = MHD_start_daemon(flags, (uint16_t) options->port, NULL, NULL, handle, server,
									  MHD_OPTION_SOCK_ADDR, (struct sockaddr *) &address,
									  MHD_OPTION_ARRAY, tls,
									  MHD_OPTION_LISTENING_ADDRESS_REUSE, 1u,
									  MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t) (128 * 1024),
									  MHD_OPTION_CONNECTION_TIMEOUT, (unsigned) IDLE_SECONDS,
									  MHD_OPTION_NOTIFY_COMPLETED, free_request, NULL,
									  MHD_OPTION_NOTIFY_CONNECTION, on_connection, server,
									  MHD_OPTION_END);
	if (server->daemon == NULL)
	{
		free(server);
		return NULL;
	}
	return server;
}

int
gw_http_port(Server *server)
{
	return MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_BIND_PORT)->port;
}

/* Ends all connections; naps must have been ended by gw_clock_stop() before. */
void
gw_http_stop(Server *server)
{
	MHD_stop_daemon(server->daemon);
	free(server);
}

/* A header's or a query argument's value, or NULL; the connection's memory. */
const char *
gw_http_header(Request *request, const char *name)
{
	return MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, name);
}

const char *
gw_http_query(Request *request, const char *name)
{
	return MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, name);
}

static enum MHD_Result
handle(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
	   const char *version, const char *upload, size_t *upload_size, void **state)
{
	Server	   *server = cls;
	Request    *request = *state;
	Reply		reply = {.status = 200, .content_type = "application/json"};

	(void) version;
	if (request == NULL)
	{
		*state = start_request(server, connection, url, method);
		return MHD_YES;
	}
	if (*upload_size > 0)
	{
		if (request->body.len + *upload_size > server->options.max_body)
			request->too_large = true;
		else
			gw_buf_append(&request->body, upload, *upload_size);
		*upload_size = 0;
		return MHD_YES;
	}
	if (request->too_large)
	{
		reply.status = 413;
		gw_buf_puts(&reply.body, "{\"code\":\"413\",\"message\":\"request body too large\"}");
	}
	else
		server->options.finish(request, &reply);
	return send_reply(request, &reply);
}

static Request *
start_request(Server *server, struct MHD_Connection *connection, const char *url, const char *method)
{
	Request    *request = gw_alloc(sizeof(Request));
	const char *length;

	request->connection = connection;
	request->method = gw_strdup(method);
	request->path = gw_strdup(url);
	length = gw_http_header(request, "Content-Length");
	if (length != NULL)
	{
		unsigned long long n = strtoull(length, NULL, 10);

		if (n <= server->options.max_body)
			gw_buf_reserve(&request->body, (size_t) n);
	}
	gw_buf_append(&request->body, "", 0);
	if (server->options.begin != NULL)
		server->options.begin(request);
	return request;
}

static void
free_request(void *cls, struct MHD_Connection *connection, void **state,
			 enum MHD_RequestTerminationCode how)
{
	Request    *request = *state;

	(void) cls;
	(void) connection;
	(void) how;
	if (request == NULL)
		return;
	gw_buf_free(&request->body);
	free(request->method);
	free(request->path);
	free(request);
	*state = NULL;
}

/* Before the handshake: no Nagle delays, and a client certificate where demanded. */
static void
on_connection(void *cls, struct MHD_Connection *connection, void **state,
			  enum MHD_ConnectionNotificationCode what)
{
	Server	   *server = cls;
	const union MHD_ConnectionInfo *info;
	int			on = 1;

	(void) state;
	if (what != MHD_CONNECTION_NOTIFY_STARTED)
		return;
	info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	if (info != NULL)
		setsockopt(info->connect_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (server->options.client_ca == NULL)
		return;
	info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
	if (info != NULL)
	{
		gnutls_session_t session = (gnutls_session_t) info->tls_session;

		gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
		gnutls_session_set_verify_cert(session, NULL, 0);
	}
}

/* Queues the reply and releases it; MHD_NO makes libmicrohttpd close the connection. */
static enum MHD_Result
send_reply(Request *request, Reply *reply)
{
	struct MHD_Response *response;
	enum MHD_Result result = MHD_NO;
	char		seconds[24];

	response = make_response(reply);
	if (response != NULL)
	{
		if (reply->content_type != NULL)
			MHD_add_response_header(response, "Content-Type", reply->content_type);
		if (reply->retry_after > 0)
		{
			snprintf(seconds, sizeof(seconds), "%ld", reply->retry_after);
			MHD_add_response_header(response, "Retry-After", seconds);
		}
		if (reply->location != NULL)
			MHD_add_response_header(response, "Location", reply->location);
		result = MHD_queue_response(request->connection, reply->status, response);
		MHD_destroy_response(response);
	}
	free(reply->location);
	return result;
}

/* Takes over the reply's body; NULL when nothing is to be sent. */
static struct MHD_Response *
make_response(Reply *reply)
{
	Slow	   *slow;

	if (reply->manner == SEND_NOTHING)
	{
		gw_buf_free(&reply->body);
		if (reply->more != NULL)
			reply->more_free(reply->more_state);
		return NULL;
	}
	if (reply->more != NULL)
	{
		Reply	   *copy = gw_alloc(sizeof(Reply));

		*copy = *reply;
		return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 256 * 1024, read_more, copy, free_more);
	}
	if (reply->manner == SEND_WHOLE || reply->body.len == 0)
	{
		gw_buf_append(&reply->body, "", 0);
		return MHD_create_response_from_buffer(reply->body.len, reply->body.data, MHD_RESPMEM_MUST_FREE);
	}
	slow = gw_alloc(sizeof(Slow));
	slow->data = reply->body.data;
	slow->len = reply->body.len;
	slow->cut = reply->manner == SEND_HALF ? reply->body.len / 2 : reply->body.len;
	slow->step = reply->manner == SEND_HALF ? reply->body.len : 1;
	slow->pause_ms = reply->manner == SEND_HALF ? 0 : reply->pause_ms;
	return MHD_create_response_from_callback(slow->len, 32 * 1024, read_slow, slow, free_slow);
}

static ssize_t
read_slow(void *state, uint64_t at, char *dst, size_t max)
{
	Slow	   *slow = state;
	size_t		n;

	if (at >= slow->cut || !gw_clock_sleep(slow->pause_ms))
		return MHD_CONTENT_READER_END_WITH_ERROR;
	n = slow->cut - (size_t) at;
	if (n > slow->step)
		n = slow->step;
	if (n > max)
		n = max;
	memcpy(dst, slow->data + at, n);
	return (ssize_t) n;
}

static void
free_slow(void *state)
{
	Slow	   *slow = state;

	free(slow->data);
	free(slow);
}

static ssize_t
read_more(void *state, uint64_t at, char *dst, size_t max)
{
	Reply	   *reply = state;
	size_t		n = reply->more(reply->more_state, dst, max);

	(void) at;
	return n == 0 ? MHD_CONTENT_READER_END_OF_STREAM : (ssize_t) n;
}

static void
free_more(void *state)
{
	Reply	   *reply = state;

	reply->more_free(reply->more_state);
	free(reply);
}
