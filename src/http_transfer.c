/*
 * http_transfer.c
 *		One HTTP transfer: its request, its callbacks, and what became of it.
 *
 * Whether a request may have been processed is decided by one fact: whether
 * libcurl has begun to send it.  It calls us just before it does
 * (CURLOPT_PREREQFUNCTION), after connecting and after the TLS handshake.
 * Had it not begun, nothing can have been processed; from then on, only a
 * complete answer tells.  The same callback stops libcurl from sending a
 * second time, as it would when a kept-alive connection breaks.
 *
 * The callbacks run with libcurl on the stack: no palloc, no error.
 */
#include "postgres.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <openssl/x509_vfy.h>

#include "http_private.h"
#include "secret.h"
#include "settings.h"

#define MAX_HEADER_BYTES	((Size) 256 * 1024)
#define MAX_RETRY_AFTER		86400	/* s */
#define FIRST_ROOM			((Size) 16 * 1024)

/*
 * What libcurl sends passes through a buffer of 64 kB, made for each request
 * and cleansed as a whole.  Without a body the least that libcurl takes will do.
 */
#define HEADERS_ROOM		16384L

static bool add_header(FiniTransfer *transfer, const char *header);
static CURLcode set_options(FiniTransfer *transfer, const FiniHttpRequest *req, bool fresh_connection);
static CURLcode set_pointers(CURL *easy, FiniTransfer *transfer, struct curl_slist *headers);
static size_t write_body(char *data, size_t size, size_t count, void *arg);
static bool make_room(FiniTransfer *transfer, Size len);
static size_t read_header(char *data, size_t size, size_t count, void *arg);
static int	parse_retry_after(const char *value, size_t len);
static int	before_sending(void *arg, char *remote_ip, char *local_ip, int remote_port, int local_port);
static bool has_something_to_read(curl_socket_t fd);
static void describe_failure(const FiniTransfer *transfer, char *dst, Size size);
static FiniHttpFailure failure_of(const FiniTransfer *transfer);
static bool names_setting(const char *message);

/* a transfer ready to be added to the loop; raises an error when out of memory */
FiniTransfer *
fini_transfer_create(FiniHttpRequest *req, bool fresh_connection)
{
	FiniTransfer *transfer;
	CURLcode	rc = CURLE_OUT_OF_MEMORY;
	bool		ok;
	char	   *content_type = NULL;
	const char **header;

	for (header = req->headers; header != NULL && *header != NULL; header++)
	{
		if (strpbrk(*header, "\r\n") != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("HTTP header contains a line break")));
	}
	if (req->body != NULL && req->content_type != NULL)
		content_type = psprintf("Content-Type: %s", req->content_type);

	/* no errors from here on */
	transfer = calloc(1, sizeof(FiniTransfer));
	ok = transfer != NULL && (transfer->easy = fini_handle_open(req, &rc)) != NULL;
	if (ok)
	{
		transfer->req = req;
		transfer->send_until_us = req->send_until_us;
		transfer->max = req->max_answer > 0 ? req->max_answer : FINI_HTTP_MAX_ANSWER;
		transfer->retry_after = -1;

		/* without "Expect: 100-continue" the body goes out at once */
		ok = add_header(transfer, "Expect:") && (content_type == NULL || add_header(transfer, content_type));
		for (header = req->headers; ok && header != NULL && *header != NULL; header++)
			ok = add_header(transfer, *header);
	}
	if (ok)
		rc = set_options(transfer, req, fresh_connection);
	else if (rc == CURLE_OK)
		rc = CURLE_OUT_OF_MEMORY;
	if (rc != CURLE_OK)
	{
		fini_transfer_destroy(transfer);
		if (rc == CURLE_OUT_OF_MEMORY)
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("out of memory")));
		elog(ERROR, "could not set an option of libcurl: %s", curl_easy_strerror(rc));
	}
	if (content_type != NULL)
		pfree(content_type);
	return transfer;
}

/* nothing has been sent, since the kept connection was no good: ready for a new one, once; false: it ends so */
bool
fini_transfer_begin_anew(FiniTransfer *transfer)
{
	if (!transfer->stale || transfer->fresh ||
		curl_easy_setopt(transfer->easy, CURLOPT_FORBID_REUSE, 0L) != CURLE_OK ||
		curl_easy_setopt(transfer->easy, CURLOPT_FRESH_CONNECT, 1L) != CURLE_OK)
		return false;
	transfer->stale = false;
	transfer->fresh = true;
	transfer->message[0] = '\0';
	return true;
}

/* fill in the request from its finished transfer; may raise an error for lack of memory */
void
fini_transfer_complete(FiniTransfer *transfer)
{
	FiniHttpRequest *req = transfer->req;
	curl_off_t	bytes = 0;
	long		status = 0;

	req->duration_us = fini_monotonic_us() - req->started_us;
	if (curl_easy_getinfo(transfer->easy, CURLINFO_SIZE_UPLOAD_T, &bytes) == CURLE_OK)
		req->bytes_out = bytes;
	req->bytes_in = transfer->len;
	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);

	if (transfer->result == CURLE_OK && transfer->sends == 1 && status >= 200)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(transfer->context);

		req->answer = fini_buffer_create(transfer->len + 1);
		if (transfer->len > 0)
			fini_buffer_append(req->answer, transfer->data, transfer->len);
		MemoryContextSwitchTo(oldcontext);
		req->outcome = FINI_HTTP_ANSWERED;
		req->status = (int) status;
		req->retry_after = transfer->retry_after;
		return;
	}

	if (transfer->too_large || transfer->result == CURLE_FILESIZE_EXCEEDED)
		req->outcome = FINI_HTTP_TOO_LARGE;
	else
		req->outcome = transfer->sends == 0 ? FINI_HTTP_NOT_SENT : FINI_HTTP_IN_DOUBT;
	describe_failure(transfer, req->error, sizeof(req->error));
	req->failure = failure_of(transfer);
}

/* free it, secrets cleansed; the loop has let go of it */
void
fini_transfer_destroy(FiniTransfer *transfer)
{
	struct curl_slist *header;

	if (transfer == NULL)
		return;
	if (transfer->easy != NULL)
	{
		bool		well = transfer->finished && transfer->result == CURLE_OK && !transfer->cookie;

		fini_handle_close(transfer->easy, well && set_pointers(transfer->easy, NULL, NULL) == CURLE_OK);
	}
	for (header = transfer->headers; header != NULL; header = header->next)
		fini_secret_cleanse(header->data, strlen(header->data));
	curl_slist_free_all(transfer->headers);
	if (transfer->data != NULL)
		fini_secret_cleanse(transfer->data, transfer->len);
	free(transfer->data);
	free(transfer);
}

/*
 * libcurl's CURLOPT_OPENSOCKETFUNCTION.  Once the request has been sent, a
 * new connection could only be for sending it again.
 */
curl_socket_t
fini_transfer_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	FiniTransfer *transfer = arg;
	curl_socket_t fd;

	if (transfer->sends > 0)
	{
		transfer->resend_refused = true;
		return CURL_SOCKET_BAD;
	}
	/* programs that the server starts must not inherit it */
	fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
	transfer->opened++;
	if (fd != CURL_SOCKET_BAD)
		fini_sockets_opened(fd);
	return fd;
}

/* libcurl's CURLOPT_CLOSESOCKETFUNCTION: also for connections that outlived their transfer */
int
fini_transfer_close_socket(void *arg, curl_socket_t fd)
{
	fini_sockets_closed(fd);
	return close(fd);
}

/* what a handle needs to serve any transfer */
CURLcode
fini_transfer_set_callbacks(CURL *easy)
{
	CURLcode	rc = CURLE_OK;

	SET(CURLOPT_WRITEFUNCTION, write_body);
	SET(CURLOPT_HEADERFUNCTION, read_header);
	SET(CURLOPT_PREREQFUNCTION, before_sending);
	SET(CURLOPT_OPENSOCKETFUNCTION, fini_transfer_open_socket);
	SET(CURLOPT_CLOSESOCKETFUNCTION, fini_transfer_close_socket);
	return rc;
}

static bool
add_header(FiniTransfer *transfer, const char *header)
{
	struct curl_slist *list = curl_slist_append(transfer->headers, header);

	if (list == NULL)
		return false;
	transfer->headers = list;
	return true;
}

/* what is this request's; the rest its handle has */
static CURLcode
set_options(FiniTransfer *transfer, const FiniHttpRequest *req, bool fresh_connection)
{
	CURL	   *easy = transfer->easy;
	CURLcode	rc = CURLE_OK;

	SET(CURLOPT_URL, req->url);
	if (req->body != NULL)
	{
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) req->body_len);
		SET(CURLOPT_POSTFIELDS, req->body);
	}
	else
		SET(CURLOPT_UPLOAD_BUFFERSIZE, HEADERS_ROOM);
	SET(CURLOPT_FRESH_CONNECT, fresh_connection ? 1L : 0L);
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long) fini_guc_connect_timeout);
	SET(CURLOPT_TIMEOUT_MS, (long) (req->timeout_ms > 0 ? req->timeout_ms : fini_guc_request_timeout));
	SET(CURLOPT_MAXFILESIZE_LARGE, (curl_off_t) transfer->max);
	if (rc == CURLE_OK)
		rc = set_pointers(easy, transfer, transfer->headers);
	return rc;
}

/* to what goes with the transfer; NULL: to nothing, as the handle outlives it */
static CURLcode
set_pointers(CURL *easy, FiniTransfer *transfer, struct curl_slist *headers)
{
	CURLcode	rc = CURLE_OK;

	SET(CURLOPT_HTTPHEADER, headers);
	SET(CURLOPT_ERRORBUFFER, transfer != NULL ? transfer->message : NULL);
	SET(CURLOPT_WRITEDATA, transfer);
	SET(CURLOPT_HEADERDATA, transfer);
	SET(CURLOPT_PREREQDATA, transfer);
	SET(CURLOPT_OPENSOCKETDATA, transfer);
	return rc;
}

/* libcurl's CURLOPT_WRITEFUNCTION: a result other than the length ends the transfer */
static size_t
write_body(char *data, size_t size, size_t count, void *arg)
{
	FiniTransfer *transfer = arg;
	Size		len = size * count;

	if (len > transfer->max - transfer->len)
	{
		transfer->too_large = true;
		return 0;
	}
	if (len > transfer->size - transfer->len && !make_room(transfer, len))
		return 0;
	memcpy(transfer->data + transfer->len, data, len);
	transfer->len += len;
	return len;
}

/* realloc would leave the old bytes behind */
static bool
make_room(FiniTransfer *transfer, Size len)
{
	Size		size = Max(transfer->len + len, Max(2 * transfer->size, FIRST_ROOM));
	char	   *data = malloc(size);

	if (data == NULL)
		return false;
	if (transfer->data != NULL)
	{
		memcpy(data, transfer->data, transfer->len);
		fini_secret_cleanse(transfer->data, transfer->len);
		free(transfer->data);
	}
	transfer->data = data;
	transfer->size = size;
	return true;
}

/* libcurl's CURLOPT_HEADERFUNCTION: one whole line, without NUL at its end */
static size_t
read_header(char *data, size_t size, size_t count, void *arg)
{
	static const char name[] = "Retry-After:";
	static const char cookie[] = "Set-Cookie";
	FiniTransfer *transfer = arg;
	Size		len = size * count;

	transfer->header_bytes += len;
	if (transfer->header_bytes > MAX_HEADER_BYTES)
	{
		transfer->too_large = true;
		return 0;
	}
	if (len > strlen(cookie) && pg_strncasecmp(data, cookie, strlen(cookie)) == 0)
		transfer->cookie = true;
	if (len > strlen(name) && pg_strncasecmp(data, name, strlen(name)) == 0)
		transfer->retry_after = parse_retry_after(data + strlen(name), len - strlen(name));
	return len;
}

/* seconds from now, for both forms of the header; -1 when it is neither */
static int
parse_retry_after(const char *value, size_t len)
{
	char		text[64];
	char	   *start = text;
	char	   *end;
	long		seconds;
	time_t		date;

	if (len >= sizeof(text))
		return -1;
	memcpy(text, value, len);
	text[len] = '\0';
	while (*start == ' ' || *start == '\t')
		start++;
	for (end = start + strlen(start); end > start && strchr(" \t\r\n", end[-1]) != NULL; end--)
		end[-1] = '\0';

	if (*start != '\0' && strspn(start, "0123456789") == strlen(start))
	{
		seconds = strtol(start, NULL, 10);	/* LONG_MAX for more digits than fit */
		return (int) Min(seconds, MAX_RETRY_AFTER);
	}
	date = curl_getdate(start, NULL);
	if (date == -1)
		return -1;
	return (int) Min(Max((int64) date - (int64) time(NULL), 0), MAX_RETRY_AFTER);
}

/* libcurl's CURLOPT_PREREQFUNCTION */
static int
before_sending(void *arg, char *remote_ip, char *local_ip, int remote_port, int local_port)
{
	FiniTransfer *transfer = arg;

	if (transfer->sends > 0)
	{
		transfer->resend_refused = true;
		return CURL_PREREQFUNC_ABORT;
	}
	if (transfer->opened == 0 && has_something_to_read(fini_sockets_of(local_port, remote_port)))
	{
		/* else libcurl would keep it for the next one */
		(void) curl_easy_setopt(transfer->easy, CURLOPT_FORBID_REUSE, 1L);
		transfer->stale = true;
		return CURL_PREREQFUNC_ABORT;
	}
	if (transfer->send_until_us != 0 && fini_monotonic_us() >= transfer->send_until_us)
	{
		transfer->too_late = true;
		return CURL_PREREQFUNC_ABORT;
	}
	transfer->sends++;
	return CURL_PREREQFUNC_OK;
}

/*
 * Between requests a gateway has nothing to say.  What it has sent all the same
 * would be taken for the answer to the next request, so the connection cannot
 * be used; nor can one whose end has just arrived.
 */
static bool
has_something_to_read(curl_socket_t fd)
{
	struct pollfd ready = {.fd = fd, .events = POLLIN};

	return fd != CURL_SOCKET_BAD && poll(&ready, 1, 0) > 0;
}

/*
 * What failed, in printable ASCII: libcurl's messages can quote a server's
 * certificate, in whatever bytes.
 */
static void
describe_failure(const FiniTransfer *transfer, char *dst, Size size)
{
	const char *general = curl_easy_strerror(transfer->result);
	char	   *c;

	if (transfer->resend_refused)
		strlcpy(dst, "the connection broke before an answer came", size);
	else if (transfer->too_late)
		strlcpy(dst, "the connection came too late for the deadline", size);
	else if (transfer->header_bytes > MAX_HEADER_BYTES)
		snprintf(dst, size, "the headers of the answer exceed %zu bytes", MAX_HEADER_BYTES);
	else if (transfer->too_large || transfer->result == CURLE_FILESIZE_EXCEEDED)
		snprintf(dst, size, "the answer exceeds %zu bytes", transfer->max);
	else if (transfer->result == CURLE_SSL_CERTPROBLEM)
		strlcpy(dst, "fini.client_cert_file or fini.client_key_file cannot be used", size);
	else if (transfer->result == CURLE_SSL_CACERT_BADFILE)
		strlcpy(dst, "fini.ca_file cannot be used", size);
	else if (transfer->result == CURLE_OK)
		strlcpy(dst, "the answer has no HTTP status", size);
	else if (transfer->message[0] == '\0' || names_setting(transfer->message))
		strlcpy(dst, general, size);
	else
		snprintf(dst, size, "%s: %s", general, transfer->message);

	for (c = dst; *c != '\0'; c++)
	{
		if ((unsigned char) *c < 0x20 || (unsigned char) *c >= 0x7f)
			*c = '?';
	}
}

/* the same in one word */
static FiniHttpFailure
failure_of(const FiniTransfer *transfer)
{
	long		verified = X509_V_OK;

	switch (transfer->result)
	{
		case CURLE_COULDNT_RESOLVE_HOST:
			return FINI_HTTP_FAILURE_NAME;
		case CURLE_COULDNT_RESOLVE_PROXY:
		case CURLE_PROXY:
			return FINI_HTTP_FAILURE_PROXY;
		case CURLE_COULDNT_CONNECT:
			return FINI_HTTP_FAILURE_CONNECT;
		case CURLE_OPERATION_TIMEDOUT:
			return FINI_HTTP_FAILURE_TIMEOUT;
		case CURLE_SSL_PINNEDPUBKEYNOTMATCH:
			return FINI_HTTP_FAILURE_PIN;
		case CURLE_SSL_CACERT_BADFILE:
			return FINI_HTTP_FAILURE_CA_FILE;
		case CURLE_SSL_CERTPROBLEM:
			return FINI_HTTP_FAILURE_CLIENT_CERTIFICATE;
		case CURLE_SSL_CONNECT_ERROR:
			return FINI_HTTP_FAILURE_TLS;
		case CURLE_PEER_FAILED_VERIFICATION:
			/* libcurl compares names before it looks at this */
			if (strstr(transfer->message, "subject name") != NULL)
				return FINI_HTTP_FAILURE_CERTIFICATE_NAME;
			if (curl_easy_getinfo(transfer->easy, CURLINFO_SSL_VERIFYRESULT, &verified) != CURLE_OK)
				return FINI_HTTP_FAILURE_CERTIFICATE;
			return verified == X509_V_ERR_CERT_HAS_EXPIRED || verified == X509_V_ERR_CERT_NOT_YET_VALID ?
				FINI_HTTP_FAILURE_CERTIFICATE_EXPIRED : FINI_HTTP_FAILURE_CERTIFICATE;
		default:
			return FINI_HTTP_FAILURE_OTHER;
	}
}

/* does a message of libcurl's quote a setting that only superusers may see? */
static bool
names_setting(const char *message)
{
	return (fini_guc_client_key_file[0] != '\0' && strstr(message, fini_guc_client_key_file) != NULL) ||
		(fini_guc_client_cert_file[0] != '\0' && strstr(message, fini_guc_client_cert_file) != NULL) ||
		(fini_guc_proxy[0] != '\0' && strstr(message, fini_guc_proxy) != NULL);
}
