/*
 * http_handle.c
 *		libcurl's easy handles: what is the same for all requests, and one
 *		handle that is kept from one request to the next.
 *
 * To make a handle, give it its options and free it is a good part of what a
 * short request costs.  So one is kept, for a request at a time.  The options
 * given here follow from constants and from the settings of the connection;
 * when these change, fini_handle_forget lets go of the handle.  The rest, which
 * http_transfer.c gives, is given anew for each request.
 *
 * A handle that is kept must hold no secret of a request that has ended.  So
 * it is only one that has brought a request without a body to a good end; the
 * headers, the token among them, are ours, and libcurl frees its copy of
 * them, cleansed as all of its memory, when the transfer is done.  Versions of
 * which that is not known keep no handle.  The headers of the answer stay with
 * the handle until the next request: one with a cookie is not kept.
 */
#include "postgres.h"

#include <openssl/ssl.h>

#include "http_private.h"
#include "settings.h"

/*
 * Gateways drop idle connections after a while of their own, and a request
 * sent into that moment ends in doubt; so do not use old ones.
 */
#define MAX_IDLE_S			30L
#define MAX_CONNECTION_AGE_S	600L	/* then look at the certificate again */
#define MAX_CA_CACHE_S		60L

/* from 8.7 on, what of the headers could not be sent at once stays behind in a buffer of the handle */
#define KEEPS_WHAT_IT_SENT	0x080700

static CURL *kept = NULL;		/* it has all options that are given here */
static bool kept_in_use = false;

static bool is_worth_keeping(const FiniHttpRequest *req);
static CURLcode set_options(CURL *easy);
static CURLcode set_tls_options(CURL *easy);
static CURLcode harden_tls(CURL *easy, void *context, void *arg);

/* a handle for a request; NULL, and why, where there is none.  Raises no error. */
CURL *
fini_handle_open(const FiniHttpRequest *req, CURLcode *problem)
{
	CURL	   *easy;
	bool		keep = !kept_in_use && is_worth_keeping(req);

	*problem = CURLE_OK;
	if (keep && kept != NULL)
	{
		kept_in_use = true;
		return kept;
	}
	easy = curl_easy_init();
	*problem = easy != NULL ? set_options(easy) : CURLE_OUT_OF_MEMORY;
	if (*problem != CURLE_OK)
	{
		curl_easy_cleanup(easy);
		return NULL;
	}
	if (keep)
	{
		kept = easy;
		kept_in_use = true;
	}
	return easy;
}

/* the request has ended, well or not; what it was given to point to may go then */
void
fini_handle_close(CURL *easy, bool well)
{
	if (easy == kept)
	{
		kept_in_use = false;
		if (well)
			return;
		kept = NULL;
	}
	curl_easy_cleanup(easy);
}

/* settings have changed, or the process ends; a handle in use goes when its request ends */
void
fini_handle_forget(void)
{
	if (!kept_in_use)
		curl_easy_cleanup(kept);
	kept = NULL;
	kept_in_use = false;
}

static bool
is_worth_keeping(const FiniHttpRequest *req)
{
	static int	leaves_nothing = -1;

	if (leaves_nothing < 0)
		leaves_nothing = curl_version_info(CURLVERSION_NOW)->version_num < KEEPS_WHAT_IT_SENT;
	return leaves_nothing == 1 && req->body == NULL;
}

static CURLcode
set_options(CURL *easy)
{
	CURLcode	rc = set_tls_options(easy);

	SET(CURLOPT_USERAGENT, "fini-postgresql/1.0");

	/* nothing but this one exchange: no redirects, no other protocol, nothing from environment or home */
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PROTOCOLS_STR, "https");
	SET(CURLOPT_REDIR_PROTOCOLS_STR, "https");
	SET(CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SET(CURLOPT_PROXY, fini_guc_proxy);
	SET(CURLOPT_NOPROXY, "");
	SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_QUICK_EXIT, 1L);

	SET(CURLOPT_TCP_NODELAY, 1L);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_MAXAGE_CONN, MAX_IDLE_S);
	SET(CURLOPT_MAXLIFETIME_CONN, MAX_CONNECTION_AGE_S);

	if (rc == CURLE_OK)
		rc = fini_transfer_set_callbacks(easy);
	return rc;
}

static CURLcode
set_tls_options(CURL *easy)
{
	CURLcode	rc = CURLE_OK;

	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_PROXY_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_PROXY_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_PROXY_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_SSL_SESSIONID_CACHE, 0L);	/* every connection looks at the certificate */
	SET(CURLOPT_CA_CACHE_TIMEOUT, MAX_CA_CACHE_S);
	if (fini_guc_ca_file[0] != '\0')
	{
		/* these authorities alone: the system's directory would count beside the file */
		SET(CURLOPT_CAINFO, fini_guc_ca_file);
		SET(CURLOPT_CAPATH, NULL);
		SET(CURLOPT_PROXY_CAINFO, fini_guc_ca_file);
		SET(CURLOPT_PROXY_CAPATH, NULL);
	}
	if (fini_guc_client_cert_file[0] != '\0')
		SET(CURLOPT_SSLCERT, fini_guc_client_cert_file);
	if (fini_guc_client_key_file[0] != '\0')
	{
		SET(CURLOPT_SSLKEY, fini_guc_client_key_file);
		SET(CURLOPT_KEYPASSWD, ""); /* never ask on a terminal */
	}
	if (fini_guc_pinned_public_key[0] != '\0')
		SET(CURLOPT_PINNEDPUBLICKEY, fini_guc_pinned_public_key);

	/* where libcurl has another TLS library than OpenSSL, there is no such context */
	if (rc == CURLE_OK)
		rc = curl_easy_setopt(easy, CURLOPT_SSL_CTX_FUNCTION, harden_tls);
	return rc == CURLE_NOT_BUILT_IN || rc == CURLE_UNKNOWN_OPTION ? CURLE_OK : rc;
}

/*
 * libcurl's CURLOPT_SSL_CTX_FUNCTION.  A connection is what it was when its
 * certificate was looked at: a server that wants to negotiate anew, perhaps
 * with another one, loses it.  And what has been decrypted does not stay in
 * OpenSSL's buffers.  Nor is a record read before it is wanted, as newer versions
 * of libcurl would have it: has_something_to_read could not see it there.
 */
static CURLcode
harden_tls(CURL *easy, void *context, void *arg)
{
	SSL_CTX_set_read_ahead((SSL_CTX *) context, 0);
	(void) SSL_CTX_set_options((SSL_CTX *) context, SSL_OP_NO_RENEGOTIATION | SSL_OP_CLEANSE_PLAINTEXT);
	return CURLE_OK;
}
