/*
 * http_post.c
 *		post_signed(ca_file, url, signature, body): for servers that have no pgsql-http.
 *
 * As small as such a function can be, so that the hand-rolled peer is measured
 * with its HTTP requests everywhere: one libcurl handle and its connection for
 * the whole session, which is what pgsql-http does too.  Part peer measures
 * both where both are to be had.
 */
#include "postgres.h"

#include <curl/curl.h>

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(post_signed);

static size_t
collect(char *data, size_t size, size_t n, void *into)
{
	appendBinaryStringInfo((StringInfo) into, data, (int) (size * n));
	return size * n;
}

Datum
post_signed(PG_FUNCTION_ARGS)
{
	static CURL *curl = NULL;
	char	   *ca_file = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *url = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *signature = text_to_cstring(PG_GETARG_TEXT_PP(2));
	char	   *body = text_to_cstring(PG_GETARG_TEXT_PP(3));
	struct curl_slist *headers = NULL;
	StringInfoData answer;
	CURLcode	code;
	long		status = 0;

	initStringInfo(&answer);
	if (curl == NULL && (curl = curl_easy_init()) == NULL)
		elog(ERROR, "no libcurl");
	curl_easy_reset(curl);
	headers = curl_slist_append(headers, psprintf("X-FINI-SIGNATURE: %s", signature));
	headers = curl_slist_append(headers, "Content-Type: application/json");
	headers = curl_slist_append(headers, "Expect:");
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_CAINFO, ca_file);
	curl_easy_setopt(curl, CURLOPT_PROXY, "");
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long) strlen(body));
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, collect);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
	code = curl_easy_perform(curl);
	curl_slist_free_all(headers);
	if (code != CURLE_OK)
		elog(ERROR, "libcurl: %s", curl_easy_strerror(code));
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200)
		elog(ERROR, "HTTP status %ld", status);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(answer.data, answer.len));
}
