/*
 * fini_test.c
 *		SQL functions that reach into fini.so, for tests of its inner modules.
 *
 * Loaded by the tests only, by path, into a server that has preloaded fini:
 * PostgreSQL loads libraries with their symbols global, so those of fini.so
 * resolve.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "backoff.h"
#include "http.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(fini_test_backoff);
PG_FUNCTION_INFO_V1(fini_test_http);
PG_FUNCTION_INFO_V1(fini_test_perform);
PG_FUNCTION_INFO_V1(fini_test_abandon);
PG_FUNCTION_INFO_V1(fini_test_leave);
PG_FUNCTION_INFO_V1(fini_test_running);
PG_FUNCTION_INFO_V1(fini_test_reset);
PG_FUNCTION_INFO_V1(fini_test_reset_running);

static FiniHttpRequest *make_request(const char *url, const char *body, int max_answer, int timeout_ms);
static int	text_array(ArrayType *array, char ***values);
static void append_result(StringInfo out, const FiniHttpRequest *req, int index);
static void start_and_drive(FiniHttpRequest *req, int ms);

/* (failures int, min_us bigint, max_us bigint) -> bigint */
Datum
fini_test_backoff(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(fini_backoff_us(PG_GETARG_INT32(0), PG_GETARG_INT64(1), PG_GETARG_INT64(2)));
}

/*
 * (urls text[], bodies text[], max_answer int, timeout_ms int) -> json: all at
 * once, an array of results in the order of completion, "index" from 1.  A null
 * body or none: GET.
 */
Datum
fini_test_http(PG_FUNCTION_ARGS)
{
	char	  **urls;
	char	  **bodies;
	int			count = text_array(PG_GETARG_ARRAYTYPE_P(0), &urls);
	int			body_count = text_array(PG_GETARG_ARRAYTYPE_P(1), &bodies);
	FiniHttpRequest **reqs = palloc(count * sizeof(FiniHttpRequest *));
	StringInfoData out;
	int			i;
	int			left;

	initStringInfo(&out);
	appendStringInfoChar(&out, '[');
	for (i = 0; i < count; i++)
	{
		reqs[i] = make_request(urls[i], i < body_count ? bodies[i] : NULL, PG_GETARG_INT32(2), PG_GETARG_INT32(3));
		reqs[i]->owner = (void *) (intptr_t) (i + 1);
		fini_http_start(reqs[i]);
	}
	for (left = count; left > 0;)
	{
		FiniHttpRequest *req = fini_http_next(-1, PG_WAIT_EXTENSION);

		if (req == NULL)
			continue;
		append_result(&out, req, (int) (intptr_t) req->owner);
		if (--left > 0)
			appendStringInfoChar(&out, ',');
	}
	appendStringInfoChar(&out, ']');
	PG_RETURN_TEXT_P(cstring_to_text(out.data));
}

/* (url text, body text) -> json: one request through fini_http_perform */
Datum
fini_test_perform(PG_FUNCTION_ARGS)
{
	FiniHttpRequest *req = make_request(text_to_cstring(PG_GETARG_TEXT_PP(0)),
										PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1)), 0, 0);
	StringInfoData out;

	fini_http_perform(req, PG_WAIT_EXTENSION);
	initStringInfo(&out);
	append_result(&out, req, 1);
	PG_RETURN_TEXT_P(cstring_to_text(out.data));
}

/* (url text, ms int) -> int: start, drive for a while, abandon; requests left running */
Datum
fini_test_abandon(PG_FUNCTION_ARGS)
{
	FiniHttpRequest *req = make_request(text_to_cstring(PG_GETARG_TEXT_PP(0)), "{}", 0, 0);

	start_and_drive(req, PG_GETARG_INT32(1));
	fini_http_abandon(req);
	fini_http_abandon(req);
	PG_RETURN_INT32(fini_http_running());
}

/* the same, but the memory context of the request goes instead of a call to abandon it */
Datum
fini_test_leave(PG_FUNCTION_ARGS)
{
	char	   *url = text_to_cstring(PG_GETARG_TEXT_PP(0));
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini test", ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	int			before;

	start_and_drive(make_request(pstrdup(url), "{}", 0, 0), PG_GETARG_INT32(1));
	MemoryContextSwitchTo(oldcontext);
	before = fini_http_running();
	MemoryContextDelete(context);
	PG_RETURN_INT32(before * 10 + fini_http_running());
}

Datum
fini_test_running(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(fini_http_running());
}

Datum
fini_test_reset(PG_FUNCTION_ARGS)
{
	fini_http_reset();
	PG_RETURN_VOID();
}

/*
 * (url text) -> json: a request, a reset while it runs, a second request, and
 * when both have completed a third; their results in this order
 */
Datum
fini_test_reset_running(PG_FUNCTION_ARGS)
{
	char	   *url = text_to_cstring(PG_GETARG_TEXT_PP(0));
	FiniHttpRequest *first = make_request(url, NULL, 0, 0);
	FiniHttpRequest *second = make_request(url, NULL, 0, 0);
	FiniHttpRequest *third = make_request(url, NULL, 0, 0);
	StringInfoData out;

	start_and_drive(first, 50);
	fini_http_reset();
	fini_http_perform(second, PG_WAIT_EXTENSION);
	while (fini_http_running() > 0)
		fini_http_next(-1, PG_WAIT_EXTENSION);
	fini_http_perform(third, PG_WAIT_EXTENSION);

	initStringInfo(&out);
	appendStringInfoChar(&out, '[');
	append_result(&out, first, 1);
	appendStringInfoChar(&out, ',');
	append_result(&out, second, 2);
	appendStringInfoChar(&out, ',');
	append_result(&out, third, 3);
	appendStringInfoChar(&out, ']');
	PG_RETURN_TEXT_P(cstring_to_text(out.data));
}

static FiniHttpRequest *
make_request(const char *url, const char *body, int max_answer, int timeout_ms)
{
	static const char *headers[] = {"Authorization: Bearer secret-of-the-test", "Accept: application/json", NULL};
	FiniHttpRequest *req = palloc0(sizeof(FiniHttpRequest));

	req->url = url;
	req->body = body;
	req->body_len = body != NULL ? strlen(body) : 0;
	req->content_type = "application/json";
	req->headers = headers;
	req->max_answer = max_answer;
	req->timeout_ms = timeout_ms;
	return req;
}

static int
text_array(ArrayType *array, char ***values)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	int			i;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	*values = palloc0((count + 1) * sizeof(char *));
	for (i = 0; i < count; i++)
	{
		if (!nulls[i])
			(*values)[i] = TextDatumGetCString(elements[i]);
	}
	return count;
}

static void
append_result(StringInfo out, const FiniHttpRequest *req, int index)
{
	static const char *const outcomes[] = {"answered", "not sent", "in doubt", "too large"};

	appendStringInfo(out, "{\"index\":%d,\"outcome\":\"%s\",\"status\":%d,\"retry_after\":%d,\"bytes_out\":" INT64_FORMAT
					 ",\"bytes_in\":" INT64_FORMAT ",\"ms\":" INT64_FORMAT ",\"error\":",
					 index, outcomes[req->outcome], req->status, req->retry_after, req->bytes_out, req->bytes_in,
					 req->duration_us / 1000);
	escape_json(out, req->error);
	appendStringInfoString(out, ",\"answer\":");
	if (req->answer == NULL)
		appendStringInfoString(out, "null");
	else if (req->answer->len > 1000)
		appendStringInfo(out, "\"%zu bytes\"", req->answer->len);
	else
		escape_json(out, req->answer->data);
	appendStringInfoChar(out, '}');
}

static void
start_and_drive(FiniHttpRequest *req, int ms)
{
	int64		until = fini_monotonic_us() + (int64) ms * 1000;
	int64		left;

	fini_http_start(req);
	while ((left = until - fini_monotonic_us()) > 0)
	{
		if (fini_http_next(left / 1000 + 1, PG_WAIT_EXTENSION) != NULL)
			elog(ERROR, "the request completed");
	}
}
