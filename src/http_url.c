/*
 * http_url.c
 *		URLs as libcurl reads them, so that what a setting's check accepts and
 *		what is connected to cannot differ.
 *
 * Used by check hooks, in the postmaster too: nothing here raises an error,
 * and libcurl's URL functions need no initialisation of the library.
 */
#include "postgres.h"

#include <curl/curl.h>

#include "http.h"

static const char *check_parts(CURLU *handle, const char *url, bool proxy);
static bool has_part(CURLU *handle, CURLUPart part);
static const char *check_scheme(CURLU *handle, bool proxy);

const char *
fini_http_check_url(const char *url)
{
	CURLU	   *handle = curl_url();
	const char *problem = check_parts(handle, url, false);

	curl_url_cleanup(handle);
	return problem;
}

const char *
fini_http_check_proxy(const char *url)
{
	CURLU	   *handle = curl_url();
	const char *problem = check_parts(handle, url, true);

	curl_url_cleanup(handle);
	return problem;
}

static const char *
check_parts(CURLU *handle, const char *url, bool proxy)
{
	const char *c;
	const char *problem;
	char	   *path = NULL;

	if (handle == NULL)
		return "Out of memory.";
	for (c = url; *c != '\0'; c++)
	{
		if ((unsigned char) *c <= 0x20 || (unsigned char) *c >= 0x7f || *c == '\\')
			return "The URL has a character that must not stand in a URL.";
	}
	if (curl_url_set(handle, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) != CURLUE_OK)
		return "This is not a URL with a scheme and a host.";
	problem = check_scheme(handle, proxy);
	if (problem != NULL)
		return problem;
	/* libcurl would take a path for the host, if slashes are one too many or too few; "://" further on changes nothing */
	c = strchr(url, ':');
	if (c == NULL || strncmp(c, "://", 3) != 0 || c[3] == '/' || !has_part(handle, CURLUPART_HOST))
		return "The URL has no host.";
	/* libcurl does not show empty ones, as in https://@host */
	if (!proxy && memchr(c + 3, '@', strcspn(c + 3, "/")) != NULL)
		return "The URL must not hold credentials.";
	if (strchr(url, '?') != NULL || strchr(url, '#') != NULL)
		return "The URL must not have a query or a fragment.";
	if (proxy)
	{
		if (curl_url_get(handle, CURLUPART_PATH, &path, 0) == CURLUE_OK && strcmp(path, "/") != 0)
			problem = "The URL of a proxy must not have a path.";
		curl_free(path);
	}
	return problem;
}

static const char *
check_scheme(CURLU *handle, bool proxy)
{
	char	   *scheme = NULL;
	bool		ok;

	if (curl_url_get(handle, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK)
		return "The URL has no scheme.";
	ok = strcmp(scheme, "https") == 0 || (proxy && strcmp(scheme, "http") == 0);
	curl_free(scheme);
	if (ok)
		return NULL;
	return proxy ? "The URL must start with \"http://\" or \"https://\"." :
		"The URL must start with \"https://\".";
}

static bool
has_part(CURLU *handle, CURLUPart part)
{
	char	   *value = NULL;
	bool		present = curl_url_get(handle, part, &value, 0) == CURLUE_OK && value[0] != '\0';

	curl_free(value);
	return present;
}
