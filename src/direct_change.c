/*
 * direct_change.c
 *		The direct calls that change something at FINI: subscription_add, _change,
 *		_invalidate and funding_confirm.
 *
 * Any number of entries, in requests of up to fini.batch_size; one row for
 * each entry, in order.  A failure of the first request is an error.  Once a
 * request has been processed, an error would take the record IDs of its
 * entries away from the caller: then the entries of the request that failed,
 * and of those not sent any more, come back as rows with an error code.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "call.h"
#include "compat.h"
#include "direct.h"
#include "encoding.h"
#include "entry.h"
#include "error.h"
#include "json.h"
#include "jsonb.h"
#include "settings.h"
#include "textmap.h"

#define MAX_REQUEST		((Size) 64 * 1024 * 1024)

PG_FUNCTION_INFO_V1(fini_sql_subscription_add);
PG_FUNCTION_INFO_V1(fini_sql_subscription_change);
PG_FUNCTION_INFO_V1(fini_sql_subscription_invalidate);
PG_FUNCTION_INFO_V1(fini_sql_funding_confirm);

/* one entry of the caller's, and how it ended */
typedef struct Entry
{
	const char *members;		/* JSON members without braces and requestID */
	const char *key;			/* ownRef, or transactionRef: what an answer without number is matched by */
	const char *record_id;		/* what was to be changed */
	JsonbContainer *object;		/* as given; NULL when it was no object */
	bool		done;
	const char *request_id;
	const char *new_record_id;
	const char *status;
	const char *error_code;
	const char *error_message;
} Entry;

/* an application of the call, for finding it a second time */
typedef struct Seen
{
	const char *key;
	int			number;
} Seen;

static int	entries_of_jsonb(Jsonb *json, bool need_record_id, Entry **entries);
static void refuse_duplicates(int n, const Entry *entries);
static void run(FiniEndpointId endpoint, int n, Entry *entries, FiniDirectHide *hide);
static void check_entries(FiniEndpointId endpoint, int n, const Entry *entries, FiniDirectHide *hide);
static FiniCall *build(FiniEndpointId endpoint, int n, Entry *entries);
static void take(FiniCall *call, int n, Entry *entries);
static void fail_rest(FiniCall *call, int from, int sent, int n, Entry *entries);
static bool differ(const char *ours, const char *theirs);
static void return_subscriptions(FunctionCallInfo fcinfo, int n, const Entry *entries);
static Datum text_or_null(const char *text, bool *isnull);

Datum
fini_sql_subscription_add(PG_FUNCTION_ARGS)
{
	FiniDirectHide hide;
	Entry	   *entries;
	int			n;

	fini_direct_hide_begin(&hide);
	n = entries_of_jsonb(PG_GETARG_JSONB_P(0), false, &entries);
	refuse_duplicates(n, entries);
	run(FINI_ENDPOINT_ADD, n, entries, &hide);
	return_subscriptions(fcinfo, n, entries);
	fini_direct_hide_end(&hide);
	return (Datum) 0;
}

Datum
fini_sql_subscription_change(PG_FUNCTION_ARGS)
{
	FiniDirectHide hide;
	Entry	   *entries;
	int			n;

	fini_direct_hide_begin(&hide);
	n = entries_of_jsonb(PG_GETARG_JSONB_P(0), true, &entries);
	run(FINI_ENDPOINT_CHANGE, n, entries, &hide);
	return_subscriptions(fcinfo, n, entries);
	fini_direct_hide_end(&hide);
	return (Datum) 0;
}

Datum
fini_sql_subscription_invalidate(PG_FUNCTION_ARGS)
{
	FiniDirectHide hide;
	int			n;
	char	  **record_ids = fini_direct_texts(PG_GETARG_ARRAYTYPE_P(0), "record_ids", &n);
	Entry	   *entries = palloc0(sizeof(Entry) * Max(1, n));

	for (int i = 0; i < n; i++)
	{
		FiniBuffer *members = fini_buffer_create(64);

		fini_entry_append(members, "recordID", record_ids[i]);
		entries[i].members = members->data;
		entries[i].record_id = record_ids[i];
	}
	fini_direct_hide_begin(&hide);
	run(FINI_ENDPOINT_INVALIDATE, n, entries, &hide);
	return_subscriptions(fcinfo, n, entries);
	fini_direct_hide_end(&hide);
	return (Datum) 0;
}

Datum
fini_sql_funding_confirm(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	FiniDirectHide hide;
	int			n;
	char	  **refs = fini_direct_texts(PG_GETARG_ARRAYTYPE_P(0), "transaction_refs", &n);
	char	   *status = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Entry	   *entries = palloc0(sizeof(Entry) * Max(1, n));

	if (strcmp(status, "20") != 0 && strcmp(status, "30") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is no status that funding can be given", status),
				 errhint("20 confirms, 30 rejects.")));
	for (int i = 0; i < n; i++)
	{
		FiniBuffer *members = fini_buffer_create(96);

		fini_entry_append(members, "transactionRef", refs[i]);
		fini_entry_append(members, "preFundingStatus", status);
		entries[i].members = members->data;
		entries[i].key = refs[i];
	}
	fini_direct_hide_begin(&hide);
	run(FINI_ENDPOINT_FUNDING_CONFIRM, n, entries, &hide);
	fini_direct_hide_end(&hide);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum		values[4];
		bool		nulls[4];

		values[0] = text_or_null(entries[i].key, &nulls[0]);
		values[1] = text_or_null(entries[i].error_code == NULL && entries[i].status == NULL ? status : entries[i].status, &nulls[1]);
		values[2] = text_or_null(entries[i].error_code, &nulls[2]);
		values[3] = text_or_null(entries[i].error_message, &nulls[3]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* an array of objects; requestID is ours to give, recordID only where a record is changed */
static int
entries_of_jsonb(Jsonb *json, bool need_record_id, Entry **entries)
{
	int			n;

	if (!JB_ROOT_IS_ARRAY(json) || JB_ROOT_IS_SCALAR(json))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the entries must be a JSON array of objects"),
				 errhint("Each entry is an object with FINI's fields: ipoID, idList, appQuantity, firmID, ownRef.")));
	n = (int) JB_ROOT_COUNT(json);
	*entries = palloc0(sizeof(Entry) * Max(1, n));
	for (int i = 0; i < n; i++)
	{
		Entry	   *entry = &(*entries)[i];
		JsonbValue *value = getIthJsonbValueFromContainer(&json->root, i);
		JsonbIterator *it;
		JsonbIteratorToken token;
		JsonbValue	member;
		FiniBuffer *members = fini_buffer_create(512);
		char	   *name = NULL;

		if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("entry %d is not a JSON object", i + 1)));
		entry->object = value->val.binary.data;
		entry->key = fini_jsonb_field(entry->object, "ownRef");
		entry->record_id = need_record_id ? fini_jsonb_field(entry->object, "recordID") : NULL;
		if (need_record_id && (entry->record_id == NULL || entry->record_id[0] == '\0'))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("entry %d has no recordID", i + 1),
					 errhint("A change names the record that it changes.")));

		it = JsonbIteratorInit(entry->object);
		while ((token = JsonbIteratorNext(&it, &member, true)) != WJB_DONE)
		{
			if (token == WJB_KEY)
				name = pnstrdup(member.val.string.val, member.val.string.len);
			else if (token == WJB_VALUE && name != NULL && strcmp(name, "requestID") != 0)
			{
				Jsonb	   *one = JsonbValueToJsonb(&member);
				char	   *text = JsonbToCString(NULL, &one->root, VARSIZE(one));

				if (members->len > 0)
					fini_buffer_append(members, ",", 1);
				fini_json_append_string(members, name, strlen(name));
				fini_buffer_append(members, ":", 1);
				fini_buffer_append(members, text, strlen(text));
			}
		}
		if (entry->object != NULL && fini_jsonb_field(entry->object, "firmID") == NULL &&
			getKeyJsonValueFromContainer(entry->object, "firmID", 6, NULL) == NULL)
			fini_entry_append(members, "firmID", fini_guc_firm_id);
		entry->members = members->data;
	}
	return n;
}

/* FINI would take one application twice; there is no way back from both being rejected for it */
static void
refuse_duplicates(int n, const Entry *entries)
{
	HTAB	   *seen = fini_textmap_create("own_refs of a call", Max(1, n), sizeof(Seen), CurrentMemoryContext);

	for (int i = 0; i < n; i++)
	{
		const char *ipo_id = fini_jsonb_field(entries[i].object, "ipoID");
		Seen	   *one;
		bool		found;

		if (entries[i].key == NULL)
			continue;
		one = fini_textmap_enter(seen, psprintf("%s\n%s", ipo_id != NULL ? ipo_id : "", entries[i].key), &found);
		if (found)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("entries %d and %d have the same ownRef", one->number, i + 1),
					 errdetail("FINI would make two records of them."),
					 errhint("One application is one entry.")));
		one->number = i + 1;
	}
	hash_destroy(seen);
}

static void
run(FiniEndpointId endpoint, int n, Entry *entries, FiniDirectHide *hide)
{
	FiniSlotShared *slot = fini_direct_begin();

	fini_direct_require_armed();
	check_entries(endpoint, n, entries, hide);
	for (int from = 0; from < n; from += fini_guc_batch_size)
	{
		int			count = Min(fini_guc_batch_size, n - from);
		FiniCall   *volatile call = build(endpoint, count, entries + from);

		if (from == 0)
			fini_direct_perform(call, slot);
		else
		{
			MemoryContext old = CurrentMemoryContext;

			PG_TRY();
			{
				fini_call_perform(call, slot);
			}
			PG_CATCH();
			{
				/* what was done before is worth more than the error; a cancel is a cancel */
				if (geterrcode() == ERRCODE_QUERY_CANCELED || geterrcode() == ERRCODE_ADMIN_SHUTDOWN ||
					ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_TO_CATEGORY(FINI_ERRCODE_THROTTLED))
					PG_RE_THROW();
				MemoryContextSwitchTo(old);
				strlcpy(call->code, "not_sent", sizeof(call->code));
				strlcpy(call->message, "no token or no room under the throttle for this request", sizeof(call->message));
				call->verdict = FINI_VERDICT_LATER;
				FlushErrorState();
				ConditionVariableCancelSleep();
			}
			PG_END_TRY();
			if (call->verdict != FINI_VERDICT_PROCESSED)
			{
				fail_rest(call, from, count, n, entries);
				fini_call_free(call);
				return;
			}
		}
		take(call, count, entries + from);
		fini_call_free(call);
	}
}

/*
 * What cannot be sent is found before anything is: an error in the second
 * request would take the outcome of the first away.
 */
static void
check_entries(FiniEndpointId endpoint, int n, const Entry *entries, FiniDirectHide *hide)
{
	static const uint8 zeros[Max(FINI_DATA_KEY_LEN, FINI_IV_LEN)];
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext, "fini check", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	Size		size = 0;

	for (int i = 0; i < n; i++)
	{
		FiniBuffer *entry = fini_buffer_create(strlen(entries[i].members) + 3);
		Size		len;

		CHECK_FOR_INTERRUPTS();
		hide->entry = i + 1;
		fini_buffer_append(entry, "{", 1);
		fini_buffer_append(entry, entries[i].members, strlen(entries[i].members));
		fini_buffer_append(entry, "}", 1);
		if (fini_endpoint(endpoint)->sealed)
			fini_envelope_encrypt_fields(zeros, zeros, entry->data, entry->len,
										 fini_buffer_create(fini_envelope_sealed_size(entry->len)));
		else if (fini_encoding_to_utf8(entry->data, entry->len, &len) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
					 errmsg("the entry has a character without equivalent in UTF-8")));
		size = (i % fini_guc_batch_size == 0 ? 0 : size) + entry->len;
		if (size > MAX_REQUEST)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("the entries are too long for one request"),
					 errdetail("A request holds up to fini.batch_size entries and %d MB.", (int) (MAX_REQUEST / 1024 / 1024))));
		MemoryContextReset(work);
	}
	hide->entry = 0;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
}

static FiniCall *
build(FiniEndpointId endpoint, int n, Entry *entries)
{
	FiniCall   *call = fini_call_create(endpoint, NULL);
	MemoryContext old = MemoryContextSwitchTo(call->context);

	call->entries = n;
	call->payload = fini_buffer_create(64 + (Size) n * 512);
	fini_buffer_append(call->payload, "{\"data\":[", 9);
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			fini_buffer_append(call->payload, ",", 1);
		fini_buffer_append(call->payload, "{", 1);
		if (call->sealed)
		{
			char		number[32];

			fini_buffer_append(call->payload, number, snprintf(number, sizeof(number), "\"requestID\":\"%d\",", i + 1));
		}
		fini_buffer_append(call->payload, entries[i].members, strlen(entries[i].members));
		fini_buffer_append(call->payload, "}", 1);
	}
	fini_buffer_append(call->payload, "]}", 2);
	MemoryContextSwitchTo(old);
	return call;
}

/* match the answer's entries to ours: by number, else by key; what it leaves out is unknown */
static void
take(FiniCall *call, int n, Entry *entries)
{
	const char *request_id = call->sealed ? pstrdup(call->request_id) : NULL;

	for (int i = 0; i < call->answer->entries; i++)
	{
		FiniAnswerEntry answer;
		const FiniValue *object;
		Entry	   *entry = NULL;

		if (!fini_answer_entry(call->answer, i, &answer) || !fini_answer_object(call->answer, i, &object))
			continue;
		if (call->sealed && answer.number >= 1 && answer.number <= n)
			entry = &entries[answer.number - 1];
		else if (!call->sealed || answer.number < 0)
		{
			const char *key = call->endpoint == FINI_ENDPOINT_FUNDING_CONFIRM ?
				fini_value_member_text(object, "transactionRef") : answer.own_ref;

			for (int j = 0; j < n && key != NULL && entry == NULL; j++)
			{
				if (!entries[j].done && entries[j].key != NULL && strcmp(entries[j].key, key) == 0)
					entry = &entries[j];
			}
		}
		/* an answer about another application or record is none to this entry */
		if (entry == NULL || entry->done ||
			(call->sealed && differ(entry->key, answer.own_ref)) ||
			(!answer.rejected && differ(entry->record_id, answer.record_id)))
			continue;
		if (!answer.rejected && answer.record_id == NULL && call->endpoint == FINI_ENDPOINT_ADD)
			continue;
		entry->done = true;
		if (entry->key == NULL)
			entry->key = answer.own_ref;
		entry->status = fini_value_member_text(object, "preFundingStatus");
		if (answer.rejected)
		{
			entry->error_code = answer.error_code[0] != '\0' ? fini_call_clean_text(call, answer.error_code) : "rejected";
			entry->error_message = fini_call_clean_text(call, answer.error_message);
			fini_answer_entry_done(&answer);
		}
		else
			entry->new_record_id = answer.record_id != NULL ? pstrdup(answer.record_id) : entry->record_id;
	}
	for (int i = 0; i < n; i++)
	{
		entries[i].request_id = request_id;
		if (!entries[i].done)
		{
			entries[i].error_code = "unknown";
			entries[i].error_message = "the answer does not account for this entry; find out by a query before sending it again";
		}
	}
}

/* entries [from, from + sent) were in the request that failed, those behind it were not sent */
static void
fail_rest(FiniCall *call, int from, int sent, int n, Entry *entries)
{
	bool		doubt = call->verdict == FINI_VERDICT_DOUBT;

	for (int i = from; i < n; i++)
	{
		bool		tried = i < from + sent;

		entries[i].request_id = tried && call->sealed ? pstrdup(call->request_id) : NULL;
		entries[i].error_code = !tried ? "not_sent" : doubt ? "unknown" : pstrdup(call->code);
		entries[i].error_message = !tried ? "not sent, because a request before it failed" :
			psprintf("%s%s", call->message, doubt ? "; find out by a query before sending it again" : "");
	}
}

/* FINI trims what it is sent, and may leave out what we know */
static bool
differ(const char *ours, const char *theirs)
{
	const char *ours_end;
	const char *theirs_end;

	if (ours == NULL || theirs == NULL || theirs[0] == '\0')
		return false;
	ours += strspn(ours, " ");
	theirs += strspn(theirs, " ");
	for (ours_end = ours + strlen(ours); ours_end > ours && ours_end[-1] == ' '; ours_end--)
		;
	for (theirs_end = theirs + strlen(theirs); theirs_end > theirs && theirs_end[-1] == ' '; theirs_end--)
		;
	return ours_end - ours != theirs_end - theirs || memcmp(ours, theirs, ours_end - ours) != 0;
}

static void
return_subscriptions(FunctionCallInfo fcinfo, int n, const Entry *entries)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum		values[5];
		bool		nulls[5];

		values[0] = text_or_null(entries[i].request_id, &nulls[0]);
		values[1] = text_or_null(entries[i].key, &nulls[1]);
		values[2] = text_or_null(entries[i].new_record_id != NULL ? entries[i].new_record_id : entries[i].record_id, &nulls[2]);
		values[3] = text_or_null(entries[i].error_code, &nulls[3]);
		values[4] = text_or_null(entries[i].error_message, &nulls[4]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

static Datum
text_or_null(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text != NULL ? CStringGetTextDatum(text) : (Datum) 0;
}
