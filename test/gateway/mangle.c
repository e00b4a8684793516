/*
 * mangle.c
 *		What each fault does to a call and its answer.
 */
#include "fault.h"

#include "settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HANG_MS 60000
#define BIG_ID_BYTES (1024 * 1024)
#define OVERSIZE_BYTES (64 * 1024 * 1024)

static void plain_status(const Fault *fault, Reply *reply);
static void plain_code(const Fault *fault, Reply *reply);
static void set_body(Reply *reply, const char *text);
static void set_own_body(const Fault *fault, Reply *reply, const char *preset);
static void spoil_utf8(Reply *reply);
static void fill(Reply *reply, size_t bytes);

/* Instead of processing the call; with FAULT_DROP_BEFORE and the like there is no answer. */
void
gw_fault_before(const Fault *fault, Reply *reply)
{
	switch (fault->action)
	{
		case FAULT_HANG_BEFORE:
			gw_clock_sleep(gw_fault_number(fault, "ms", HANG_MS));
			reply->manner = SEND_NOTHING;
			break;
		case FAULT_STATUS_BEFORE:
			plain_status(fault, reply);
			break;
		case FAULT_CODE_BEFORE:
			plain_code(fault, reply);
			break;
		case FAULT_REDIRECT:
			reply->status = (unsigned) gw_fault_number(fault, "status", 302);
			reply->location = gw_strdup(gw_fault_string(fault, "location", "https://localhost:1/"));
			set_body(reply, "");
			break;
		default:
			reply->manner = SEND_NOTHING;
			break;
	}
}

/* Between the checks and the processing. */
void
gw_fault_delay(const Fault *fault)
{
	if (fault->action == FAULT_DELAY)
		gw_clock_sleep(gw_fault_number(fault, "ms", 1000));
}

/* Whether reject-entries takes this entry; *rejected counts those taken. */
bool
gw_fault_rejects(const Fault *fault, const char *own_ref, json_int_t *rejected)
{
	json_t	   *own_refs;
	json_t	   *item;
	size_t		i;
	bool		listed = false;

	if (fault->action != FAULT_REJECT_ENTRIES)
		return false;
	own_refs = json_object_get(fault->arguments, "ownRefs");
	json_array_foreach(own_refs, i, item)
	{
		if (own_ref != NULL && json_is_string(item) && strcmp(json_string_value(item), own_ref) == 0)
			listed = true;
	}
	if (own_refs != NULL && !listed)
		return false;
	if (*rejected >= gw_fault_number(fault, "n", own_refs ? INT32_MAX : 1))
		return false;
	(*rejected)++;
	return true;
}

/* What befalls the first ciphertext of an answer. */
Damage
gw_fault_damage(const Fault *fault)
{
	switch (fault->action)
	{
		case FAULT_TAMPER:
			return DAMAGE_FLIP;
		case FAULT_TRUNCATE_CIPHERTEXT:
			return DAMAGE_SHORTEN;
		case FAULT_BAD_PREFIX:
			return DAMAGE_PREFIX;
		default:
			return DAMAGE_NONE;
	}
}

/* Faults in the entries of an answer, before it becomes text. */
void
gw_fault_reshape(const Fault *fault, json_t *answer)
{
	json_t	   *data = json_object_get(answer, "data");
	json_int_t	n = gw_fault_number(fault, "n", 1);
	json_int_t	k;
	size_t		i;
	json_t	   *item;

	if (!json_is_array(data))
		return;
	switch (fault->action)
	{
		case FAULT_DROP_ENTRIES:
			for (k = 0; k < n && json_array_size(data) > 0; k++)
				json_array_remove(data, 0);
			break;
		case FAULT_EXTRA_ENTRIES:
			for (k = 0; k < n; k++)
			{
				char		id[48];
				char		own_ref[48];

				snprintf(id, sizeof(id), "%016lldA", INT64_C(9999999999999999) - (long long) k);
				snprintf(own_ref, sizeof(own_ref), "nobody-asked-%lld", (long long) k);
				json_array_append_new(data, json_pack("{sI ss ss ss s[]}", "requestID", (json_int_t) (1000001 + k),
													  "recordID", id, "ownRef", own_ref, "subFlowStatus", "10",
													  "exception"));
			}
			break;
		case FAULT_REORDER:
			{
				json_t	   *reversed = json_array();

				for (i = json_array_size(data); i > 0; i--)
					json_array_append(reversed, json_array_get(data, i - 1));
				json_object_set_new(answer, "data", reversed);
				break;
			}
		case FAULT_REQUEST_ID_STRING:
			json_array_foreach(data, i, item)
			{
				json_t	   *id = json_object_get(item, "requestID");
				char		text[24];

				if (!json_is_integer(id))
					continue;
				snprintf(text, sizeof(text), "%lld", (long long) json_integer_value(id));
				json_object_set_new(item, "requestID", json_string(text));
			}
			break;
		case FAULT_BIG_RECORD_ID:
			{
				size_t		bytes = (size_t) gw_fault_number(fault, "bytes", BIG_ID_BYTES);
				char	   *id = gw_alloc(bytes + 1);

				memset(id, '7', bytes);
				item = json_array_get(data, 0);
				if (json_is_object(item))
					json_object_set_new(item, "recordID", json_string(id));
				free(id);
				break;
			}
		default:
			break;
	}
}

/* Faults in the finished answer and the way it is sent. */
void
gw_fault_after(const Fault *fault, Reply *reply)
{
	switch (fault->action)
	{
		case FAULT_DROP_AFTER:
			reply->manner = SEND_NOTHING;
			break;
		case FAULT_HANG_AFTER:
			gw_clock_sleep(gw_fault_number(fault, "ms", HANG_MS));
			reply->manner = SEND_NOTHING;
			break;
		case FAULT_STATUS_AFTER:
			plain_status(fault, reply);
			break;
		case FAULT_CODE_AFTER:
			plain_code(fault, reply);
			break;
		case FAULT_TRUNCATE:
			reply->manner = SEND_HALF;
			break;
		case FAULT_GARBAGE:
			set_own_body(fault, reply, "<html>\x01\x02 this is no JSON {{{ ]] \"");
			break;
		case FAULT_WRONG_SHAPE:
			set_own_body(fault, reply, "{\"code\":\"0\",\"message\":{},\"data\":{\"unexpected\":[\"shape\",1,null]},\"timestamp\":12}");
			break;
		case FAULT_INVALID_UTF8:
			spoil_utf8(reply);
			break;
		case FAULT_TRICKLE:
			reply->manner = SEND_SLOWLY;
			reply->pause_ms = gw_fault_number(fault, "ms", 10);
			break;
		case FAULT_OVERSIZE:
			fill(reply, (size_t) gw_fault_number(fault, "bytes", OVERSIZE_BYTES));
			break;
		default:
			break;
	}
}

static void
plain_status(const Fault *fault, Reply *reply)
{
	reply->status = (unsigned) gw_fault_number(fault, "status", 503);
	reply->retry_after = (long) gw_fault_number(fault, "retryAfter", 0);
	set_own_body(fault, reply, "");
}

static void
plain_code(const Fault *fault, Reply *reply)
{
	const char *code = gw_fault_string(fault, "code", "411999");
	const char *message = gw_fault_string(fault, "message", "fault injected by the sandbox");
	json_t	   *answer = json_pack("{ss ss s[] s[{ss ss}]}", "code", code, "message", message, "data",
								   "exception", "recordErrorCode", code, "recordErrorMsg", message);

	reply->status = (unsigned) gw_fault_number(fault, "status", 200);
	set_body(reply, "");
	gw_buf_json(&reply->body, answer);
	json_decref(answer);
}

static void
set_body(Reply *reply, const char *text)
{
	reply->body.len = 0;
	gw_buf_puts(&reply->body, text);
}

/* The fault's "body", a string or any other JSON, else the preset. */
static void
set_own_body(const Fault *fault, Reply *reply, const char *preset)
{
	json_t	   *body = json_object_get(fault->arguments, "body");

	set_body(reply, body == NULL ? preset : json_is_string(body) ? json_string_value(body) : "");
	if (body != NULL && !json_is_string(body))
		gw_buf_json(&reply->body, body);
}

/* Two bytes that no UTF-8 has, inside the last string of the answer. */
static void
spoil_utf8(Reply *reply)
{
	Buf			spoilt = {0};
	const char *body = reply->body.data ? reply->body.data : "";
	const char *quote = strrchr(body, '"');
	size_t		before = quote ? (size_t) (quote - body) : reply->body.len;

	gw_buf_append(&spoilt, body, before);
	gw_buf_append(&spoilt, "\xC3\xFF", 2);
	gw_buf_append(&spoilt, body + before, reply->body.len - before);
	gw_buf_free(&reply->body);
	reply->body = spoilt;
}

static void
fill(Reply *reply, size_t bytes)
{
	set_body(reply, "{\"code\":\"0\",\"message\":\"");
	gw_buf_reserve(&reply->body, bytes + 16);
	memset(reply->body.data + reply->body.len, 'x', bytes);
	reply->body.len += bytes;
	gw_buf_puts(&reply->body, "\",\"data\":[]}");
}
