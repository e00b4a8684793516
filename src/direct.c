/*
 * direct.c
 *		The direct calls: SQL functions that call the gateway from their session.
 *
 * They run in their caller's transaction, which stays open while they wait;
 * the documentation says so.  Calls that only read work as soon as token and
 * key are to be had.  Calls that change something at FINI need the cluster to
 * be armed.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "call.h"
#include "compat.h"
#include "direct.h"
#include "encoding.h"
#include "entry.h"
#include "error.h"
#include "identity.h"
#include "outbox.h"
#include "query.h"

#define IPO_PAGE		100

PG_FUNCTION_INFO_V1(fini_sql_ipo_list);
PG_FUNCTION_INFO_V1(fini_sql_ipo_refdata);
PG_FUNCTION_INFO_V1(fini_sql_subscription_query);
PG_FUNCTION_INFO_V1(fini_sql_funding_query);
PG_FUNCTION_INFO_V1(fini_sql_call);

typedef void (*PageRow) (ReturnSetInfo *rsinfo, FiniCall *call, const FiniValue *record);
typedef FiniCall *(*PageCall) (void *arg, const char *cursor);

typedef struct SubscriptionPage
{
	char	   *ipo_id;
	int			n;
	char	  **record_ids;
	char	   *status;
} SubscriptionPage;

static void each_page(FunctionCallInfo fcinfo, PageCall make, void *arg, PageRow put);
static FiniCall *ipo_page(void *arg, const char *cursor);
static FiniCall *subscription_page(void *arg, const char *cursor);
static FiniCall *funding_page(void *arg, const char *cursor);
static void put_ipo(ReturnSetInfo *rsinfo, FiniCall *call, const FiniValue *record);
static void put_subscription(ReturnSetInfo *rsinfo, FiniCall *call, const FiniValue *record);
static void put_funding(ReturnSetInfo *rsinfo, FiniCall *call, const FiniValue *record);
static void hide_statement(void *arg);
static bool is_path(const char *path);
static bool holds_personal_field(JsonbContainer *body);
static char *url_encode(const char *text);
static bool is_given(const FiniValue *value);
static Jsonb *jsonb_of(FiniCall *call, const FiniValue *value);
static Datum text_or_null(const char *text, bool *isnull);
static Datum numeric_or_null(const char *text, bool *isnull);

FiniSlotShared *
fini_direct_begin(void)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("fini cannot call the gateway during recovery"),
				 errhint("Call it on the primary.")));
	fini_shared_refuse_worker();
	return fini_shared_require_slot();
}

void
fini_direct_require_armed(void)
{
	FiniIdentity saved;
	bool		armed;

	SPI_connect();
	fini_identity_enter_extension(&saved);
	armed = fini_outbox_may_send().armed;
	fini_identity_leave(&saved);
	SPI_finish();
	if (!armed)
		ereport(ERROR,
				(errcode(FINI_ERRCODE_NOT_ARMED),
				 errmsg("this cluster is not armed: nothing may be changed at FINI from here"),
				 errdetail("A restored or upgraded copy starts disarmed, so that it cannot submit real applications."),
				 errhint("If this cluster is meant to submit, call fini.arm().")));
}

void
fini_direct_perform(FiniCall *call, FiniSlotShared *slot)
{
	fini_call_perform(call, slot);
	if (call->verdict != FINI_VERDICT_PROCESSED)
		fini_call_raise(call);
}

void
fini_direct_hide_begin(FiniDirectHide *hide)
{
	hide->entry = 0;
	hide->callback.callback = hide_statement;
	hide->callback.arg = hide;
	hide->callback.previous = error_context_stack;
	error_context_stack = &hide->callback;
}

void
fini_direct_hide_end(FiniDirectHide *hide)
{
	error_context_stack = hide->callback.previous;
}

Datum
fini_sql_ipo_list(PG_FUNCTION_ARGS)
{
	each_page(fcinfo, ipo_page, NULL, put_ipo);
	return (Datum) 0;
}

Datum
fini_sql_ipo_refdata(PG_FUNCTION_ARGS)
{
	char	   *ipo_id = text_to_cstring(PG_GETARG_TEXT_PP(0));
	FiniSlotShared *slot = fini_direct_begin();
	MemoryContext into = CurrentMemoryContext;
	FiniCall   *call;
	const FiniValue *data;
	Jsonb	   *json;

	call = fini_call_create(FINI_ENDPOINT_IPO_REFDATA,
							psprintf("%s?ipoID=%s", fini_endpoint(FINI_ENDPOINT_IPO_REFDATA)->path,
									 url_encode(ipo_id)));
	call->exact = true;
	fini_direct_perform(call, slot);
	MemoryContextSwitchTo(into);
	data = fini_value_member(call->answer->json, "data");
	json = is_given(data) ? jsonb_of(call, data) : NULL;
	fini_call_free(call);
	if (json == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(json);
}

Datum
fini_sql_subscription_query(PG_FUNCTION_ARGS)
{
	SubscriptionPage page = {0};
	char	  **record_ids = NULL;
	int			n = 0;

	if (!PG_ARGISNULL(0))
		page.ipo_id = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (!PG_ARGISNULL(1))
		record_ids = fini_direct_texts(PG_GETARG_ARRAYTYPE_P(1), "record_ids", &n);
	if (!PG_ARGISNULL(2))
		page.status = text_to_cstring(PG_GETARG_TEXT_PP(2));
	if (page.ipo_id == NULL && PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an ipo_id or record_ids are needed"),
				 errhint("Name the IPO, or the records to look for.")));

	if (PG_ARGISNULL(1))
	{
		each_page(fcinfo, subscription_page, &page, put_subscription);
		return (Datum) 0;
	}
	if (n == 0)
		InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i += FINI_QUERY_PAGE)
	{
		page.record_ids = record_ids + i;
		page.n = Min(FINI_QUERY_PAGE, n - i);
		each_page(fcinfo, subscription_page, &page, put_subscription);
	}
	return (Datum) 0;
}

Datum
fini_sql_funding_query(PG_FUNCTION_ARGS)
{
	each_page(fcinfo, funding_page, PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0)), put_funding);
	return (Datum) 0;
}

Datum
fini_sql_call(PG_FUNCTION_ARGS)
{
	FiniSlotShared *slot = fini_direct_begin();
	MemoryContext into = CurrentMemoryContext;
	char	   *path;
	bool		sealed;
	FiniEndpointId endpoint;
	FiniDirectHide hide;
	FiniCall   *call;
	Jsonb	   *json;

	fini_direct_hide_begin(&hide);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the path must not be null")));
	path = text_to_cstring(PG_GETARG_TEXT_PP(0));
	sealed = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	if (!is_path(path))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is no path of the gateway", path),
				 errhint("Give the path as in /api/ipos/list/v1?size=5&nextCursor=0, with other characters than ASCII's percent-encoded.")));
	if (sealed && PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a sealed call needs a body")));
	if (!sealed && !PG_ARGISNULL(1) && holds_personal_field(&PG_GETARG_JSONB_P(1)->root))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("personal data is sent in a sealed body only"),
				 errdetail("The body has a field that fini.encrypted_fields names."),
				 errhint("Call with sealed => true.")));

	endpoint = fini_endpoint_of_path(path);
	if (!PG_ARGISNULL(1) && fini_endpoint(endpoint)->changes)
		fini_direct_require_armed();

	call = fini_call_create(endpoint, path);
	call->sealed = sealed;
	/* the answer of a call that has changed something is worth more than each of its characters */
	call->exact = PG_ARGISNULL(1) || !fini_endpoint(endpoint)->changes;
	if (!PG_ARGISNULL(1))
	{
		char	   *body = JsonbToCString(NULL, &PG_GETARG_JSONB_P(1)->root, VARSIZE(PG_GETARG_JSONB_P(1)));
		MemoryContext old = MemoryContextSwitchTo(call->context);

		call->payload = fini_buffer_create(strlen(body) + 1);
		fini_buffer_append(call->payload, body, strlen(body));
		MemoryContextSwitchTo(old);
	}
	fini_direct_perform(call, slot);
	MemoryContextSwitchTo(into);
	json = jsonb_of(call, call->answer->json);
	fini_call_free(call);
	fini_direct_hide_end(&hide);
	PG_RETURN_JSONB_P(json);
}

char **
fini_direct_texts(ArrayType *array, const char *what, int *n)
{
	Datum	   *values;
	bool	   *nulls;
	char	  **texts;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, n);
	texts = palloc(sizeof(char *) * Max(1, *n));
	for (int i = 0; i < *n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain nulls", what)));
		texts[i] = TextDatumGetCString(values[i]);
	}
	return texts;
}

/* from the first page to the last, each in a context of its own */
static void
each_page(FunctionCallInfo fcinfo, PageCall make, void *arg, PageRow put)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	FiniSlotShared *slot = fini_direct_begin();
	MemoryContext outer = CurrentMemoryContext;
	FiniPages	pages = {0};
	FiniPageTurn turn;

	if (rsinfo->setResult == NULL)
		InitMaterializedSRF(fcinfo, 0);
	do
	{
		FiniCall   *call = make(arg, pages.n > 0 ? pages.cursor : NULL);

		call->exact = true;
		fini_direct_perform(call, slot);
		MemoryContextSwitchTo(call->attempt);
		if (!fini_answer_is_page(call->answer))
			fini_call_raise(call);
		for (int i = 0; i < call->answer->entries; i++)
		{
			const FiniValue *record;

			if (!fini_answer_object(call->answer, i, &record))
				fini_call_raise(call);
			put(rsinfo, call, record);
		}
		MemoryContextSwitchTo(outer);
		turn = fini_query_turn(&pages, call->answer);
		if (turn == FINI_PAGES_STUCK)
			ereport(ERROR,
					(errcode(FINI_ERRCODE_UNREADABLE),
					 errmsg("the pages of %s do not end", fini_endpoint(call->endpoint)->name),
					 errdetail("The gateway's next cursor does not lead to a next page.")));
		fini_call_free(call);
	} while (turn == FINI_PAGES_MORE);
}

static FiniCall *
ipo_page(void *arg, const char *cursor)
{
	return fini_call_create(FINI_ENDPOINT_IPO_LIST,
							psprintf("%s?size=%d&nextCursor=%s", fini_endpoint(FINI_ENDPOINT_IPO_LIST)->path,
									 IPO_PAGE, cursor != NULL ? url_encode(cursor) : "0"));
}

static FiniCall *
subscription_page(void *arg, const char *cursor)
{
	SubscriptionPage *page = arg;

	return fini_query_page(page->ipo_id, page->n, page->record_ids, page->status, cursor);
}

static FiniCall *
funding_page(void *arg, const char *cursor)
{
	return fini_query_funding_page(arg, cursor);
}

static void
put_ipo(ReturnSetInfo *rsinfo, FiniCall *call, const FiniValue *record)
{
	Datum		values[5];
	bool		nulls[5] = {false};

	values[0] = text_or_null(fini_value_member_text(record, "ipoID"), &nulls[0]);
	values[1] = text_or_null(fini_value_member_text(record, "stkCode"), &nulls[1]);
	values[2] = text_or_null(fini_value_member_text(record, "isin"), &nulls[2]);
	values[3] = text_or_null(fini_value_member_text(record, "status"), &nulls[3]);
	values[4] = JsonbPGetDatum(jsonb_of(call, record));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static void
put_subscription(ReturnSetInfo *rsinfo, FiniCall *call, const FiniValue *record)
{
	Datum		values[7];
	bool		nulls[7] = {false};
	const FiniValue *id_list = fini_value_member(record, "idList");

	values[0] = text_or_null(fini_value_member_text(record, "recordID"), &nulls[0]);
	values[1] = text_or_null(fini_value_member_text(record, "ipoID"), &nulls[1]);
	values[2] = text_or_null(fini_value_member_text(record, "ownRef"), &nulls[2]);
	values[3] = numeric_or_null(fini_value_member_text(record, "appQuantity"), &nulls[3]);
	values[4] = text_or_null(fini_value_member_text(record, "subFlowStatus"), &nulls[4]);
	nulls[5] = !is_given(id_list);
	values[5] = nulls[5] ? (Datum) 0 : JsonbPGetDatum(jsonb_of(call, id_list));
	values[6] = JsonbPGetDatum(jsonb_of(call, record));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static void
put_funding(ReturnSetInfo *rsinfo, FiniCall *call, const FiniValue *record)
{
	Datum		values[4];
	bool		nulls[4] = {false};

	values[0] = text_or_null(fini_value_member_text(record, "transactionRef"), &nulls[0]);
	values[1] = text_or_null(fini_value_member_text(record, "ipoID"), &nulls[1]);
	values[2] = text_or_null(fini_value_member_text(record, "preFundingStatus"), &nulls[2]);
	values[3] = JsonbPGetDatum(jsonb_of(call, record));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static void
hide_statement(void *arg)
{
	FiniDirectHide *hide = arg;

	errhidestmt(true);
	if (hide->entry > 0)
		errcontext("entry %d", hide->entry);
}

/* printable ASCII that leads to the gateway and nowhere else */
static bool
is_path(const char *path)
{
	Size		end = strcspn(path, "?");

	for (const unsigned char *p = (const unsigned char *) path; *p != '\0'; p++)
	{
		if (*p <= ' ' || *p >= 0x7f || *p == '#' || *p == '\\')
			return false;
	}
	for (Size i = 0; i + 1 < end; i++)
	{
		if (strncmp(path + i, "//", 2) == 0 || strncmp(path + i, "..", 2) == 0)
			return false;
	}
	return path[0] == '/';
}

/* with a value: null stays null on the wire */
static bool
holds_personal_field(JsonbContainer *body)
{
	JsonbIterator *it = JsonbIteratorInit(body);
	JsonbIteratorToken token;
	JsonbValue	value;
	bool		personal = false;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		if (personal && !(token == WJB_VALUE && value.type == jbvNull))
			return true;
		personal = token == WJB_KEY && fini_envelope_is_personal(value.val.string.val, value.val.string.len);
	}
	return false;
}

/* of text in the database encoding */
static char *
url_encode(const char *text)
{
	Size		len;
	const char *utf8 = fini_encoding_to_utf8(text, strlen(text), &len);

	if (utf8 == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("a character of the argument has no equivalent in UTF-8")));
	return fini_call_url_encode(utf8);
}

static bool
is_given(const FiniValue *value)
{
	return value != NULL && value->kind != FINI_VALUE_NULL;
}

/* what the call has done it has done: an answer that this server has no room for is one that cannot be read */
static Jsonb *
jsonb_of(FiniCall *call, const FiniValue *value)
{
	Jsonb	   *json = fini_value_jsonb(value);

	if (json == NULL)
	{
		call->verdict = FINI_VERDICT_DOUBT;
		strlcpy(call->code, "unreadable", sizeof(call->code));
		strlcpy(call->message, "the answer cannot be represented as jsonb", sizeof(call->message));
		fini_call_raise(call);
	}
	return json;
}

static Datum
text_or_null(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text != NULL ? CStringGetTextDatum(text) : (Datum) 0;
}

/* a plain decimal number; what is none stays visible in raw */
static Datum
numeric_or_null(const char *text, bool *isnull)
{
	*isnull = text == NULL || text[0] == '\0' || strlen(text) > 100 || strspn(text, "0123456789.") != strlen(text) ||
		strchr(text, '.') != strrchr(text, '.') || strspn(text, ".") == strlen(text);
	if (*isnull)
		return (Datum) 0;
	return DirectFunctionCall3(numeric_in, CStringGetDatum(text), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
}
