/*
 * calls CA-FILE TOKEN-URL FORM-FILE URL
 *		The peer of direct calls: a bare loop of libcurl requests.
 *
 * Fetches an access token by posting FORM-FILE to TOKEN-URL.  Then, for each
 * number N on a line of standard input, gets URL N times with the headers that
 * the extension sends, and prints "seconds seconds-of-CPU" of that loop.  All
 * over one connection, which is kept alive and was used before.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <curl/curl.h>

typedef struct Answer
{
	char		text[65536];
	size_t		len;
} Answer;

static char token_header[8192] = "Authorization: Bearer ";
static Answer answer;

static void get_token(CURL *curl, const char *url, const char *form_file);
static size_t collect(char *data, size_t size, size_t n, void *into);
static void request(CURL *curl);
static void fail(const char *what);
static double now(clockid_t which);

int
main(int argc, char **argv)
{
	CURL	   *curl;
	struct curl_slist *headers = NULL;
	char		line[32];

	if (argc != 5)
	{
		fprintf(stderr, "usage: calls CA-FILE TOKEN-URL FORM-FILE URL\n");
		return 2;
	}
	curl_global_init(CURL_GLOBAL_DEFAULT);
	curl = curl_easy_init();
	if (curl == NULL)
		fail("set-up");
	curl_easy_setopt(curl, CURLOPT_CAINFO, argv[1]);
	curl_easy_setopt(curl, CURLOPT_PROXY, "");
	curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, collect);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
	get_token(curl, argv[2], argv[3]);

	headers = curl_slist_append(headers, token_header);
	headers = curl_slist_append(headers, "Accept: application/json");
	headers = curl_slist_append(headers, "Accept-Language: en-US");
	curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_URL, argv[4]);
	request(curl);
	while (fgets(line, sizeof(line), stdin) != NULL)
	{
		long		n = atol(line);
		double		start = now(CLOCK_MONOTONIC);
		double		cpu = now(CLOCK_PROCESS_CPUTIME_ID);

		for (long i = 0; i < n; i++)
			request(curl);
		printf("%.6f %.6f\n", now(CLOCK_MONOTONIC) - start, now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
		fflush(stdout);
	}

	curl_slist_free_all(headers);
	curl_easy_cleanup(curl);
	return 0;
}

static void
get_token(CURL *curl, const char *url, const char *form_file)
{
	static char form[16384];
	FILE	   *file = fopen(form_file, "rb");
	size_t		len;
	char	   *token;
	char	   *end;

	if (file == NULL)
		fail(form_file);
	len = fread(form, 1, sizeof(form) - 1, file);
	fclose(file);
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long) len);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, form);
	request(curl);
	token = strstr(answer.text, "\"access_token\":\"");
	if (token == NULL)
		fail("the token");
	token += strlen("\"access_token\":\"");
	end = strchr(token, '"');
	if (end == NULL || strlen(token_header) + (size_t) (end - token) >= sizeof(token_header))
		fail("the token");
	strncat(token_header, token, (size_t) (end - token));
}

static size_t
collect(char *data, size_t size, size_t n, void *into)
{
	Answer	   *to = into;
	size_t		len = size * n;

	if (to->len + len < sizeof(to->text))
	{
		memcpy(to->text + to->len, data, len);
		to->len += len;
		to->text[to->len] = '\0';
	}
	return len;
}

static void
request(CURL *curl)
{
	long		status = 0;
	CURLcode	code;

	answer.len = 0;
	answer.text[0] = '\0';
	code = curl_easy_perform(curl);
	if (code != CURLE_OK)
		fail(curl_easy_strerror(code));
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200)
		fail(answer.text);
}

static double
now(clockid_t which)
{
	struct timespec t;

	clock_gettime(which, &t);
	return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

static void
fail(const char *what)
{
	fprintf(stderr, "calls: %s\n", what);
	exit(1);
}
