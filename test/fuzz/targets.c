/*
 * targets.c
 *		What is fuzzed, and what has to hold whatever the input says.
 *
 * Everything here is written by others: the gateway (answers, ciphertexts, its
 * public key, headers), a user (payloads, mappings, JSON columns) or an
 * operator (settings, key files).
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

#include "answer.h"
#include "attach.h"
#include "base64.h"
#include "blank.h"
#include "compare.h"
#include "encoding.h"
#include "envelope.h"
#include "fuzz.h"
#include "http.h"
#include "json.h"
#include "json_token.h"
#include "json_value.h"
#include "jsonb.h"
#include "keys.h"
#include "settings_check.h"
#include "verdict.h"

static void answer(const char *data, Size len);
static void verdict(const char *data, Size len);
static void transform(const char *data, Size len);
static void seal(const char *data, Size len);
static void open_answer(const char *data, Size len);
static void base64(const char *data, Size len);
static void public_key(const char *data, Size len);
static void key_file(const char *data, Size len);
static void mapping(const char *data, Size len);
static void settings(const char *data, Size len);
static void url(const char *data, Size len);
static void compare(const char *data, Size len);
static void encoding(const char *data, Size len);

const FuzzTargetEntry fuzz_targets[] = {
	{"answer", answer, false, "what the gateway answers: answer.c"},
	{"values", fuzz_json_values, false, "the same against jsonb: json_value.c, answer.c"},
	{"verdict", verdict, false, "what an answer and its status mean: verdict.c"},
	{"transform", transform, false, "JSON copied through: json.c"},
	{"seal", seal, false, "payloads encrypted and decrypted again: envelope.c"},
	{"open", open_answer, false, "ciphertexts in answers: envelope.c, cipher.c"},
	{"base64", base64, false, "the exact decoder: base64.c"},
	{"public_key", public_key, false, "the gateway's public key, DER: cipher.c"},
	{"key_file", key_file, false, "private key files, PEM: keys.c"},
	{"mapping", mapping, true, "mappings given to fini.attach: attach_mapping.c"},
	{"settings", settings, false, "check hooks of settings: settings_check.c"},
	{"url", url, false, "URLs of gateway and proxy: http_url.c"},
	{"http_headers", fuzz_http_headers, false, "header lines and body pieces: http_transfer.c"},
	{"compare", compare, false, "an entry against a record: compare.c"},
	{"encoding", encoding, false, "bytes on the way into the database: encoding.c"},
	{NULL, NULL, false, NULL}
};

static const uint8 data_key[FINI_DATA_KEY_LEN] = "YN5i4GiqgMKcOgr4oDDpIntc9866elb";
static const uint8 iv[FINI_IV_LEN] = "initialvect";

static bool is_clean(const char *text);
static bool keep_all(void *arg, int name, FiniJsonKind kind, const char *value, Size len, FiniBuffer *dst);
static bool replace_all(void *arg, int name, FiniJsonKind kind, const char *value, Size len, FiniBuffer *dst);

static void
answer(const char *data, Size len)
{
	FiniAnswer *read = fini_answer_parse(data, len);

	if (read == NULL)
		return;
	must(read->code != NULL && read->message != NULL);
	must(strlen(read->code) <= FINI_MAX_CODE);
	must(is_clean(fini_answer_clean_text(read->message, NULL)));
	(void) fini_answer_is_page(read);
	for (int i = -1; i <= Min(read->entries, 50); i++)
	{
		FiniAnswerEntry entry = {0};
		const FiniValue *object;
		FiniBlanker *sent;

		if (i >= 0 && fini_answer_entry(read, i, &entry))
		{
			must(i < read->entries);
			must(entry.record_id == NULL || strlen(entry.record_id) <= FINI_MAX_RECORD_ID);
		}
		if (i >= 0 && fini_answer_object(read, i, &object))
		{
			(void) fini_value_member_text(object, "ownRef");
			must(fini_value_jsonb(object) != NULL);
			sent = fini_blank_create();
			fini_blank_add_values(sent, object);
			must(is_clean(fini_answer_clean_text(read->message, sent)));
		}
	}
}

/* the status in the first two bytes, then the answer */
static void
verdict(const char *data, Size len)
{
	FiniHttpRequest http = {0};
	const char *code = NULL;
	const char *message = NULL;
	FiniAnswer *read;
	FiniVerdict judged;

	if (len < 2)
		return;
	http.outcome = FINI_HTTP_ANSWERED;
	http.status = 100 + ((uint8) data[0] * 256 + (uint8) data[1]) % 500;
	read = fini_answer_parse(data + 2, len - 2);
	judged = fini_verdict_of(&http, read, &code, &message);
	must(judged >= FINI_VERDICT_PROCESSED && judged <= FINI_VERDICT_DOUBT);

	/* only an answer that says so in both ways means that entries have outcomes */
	if (judged == FINI_VERDICT_PROCESSED)
		must(read != NULL && http.status >= 200 && http.status < 300 && strcmp(read->code, "0") == 0);
	/* no status of a gateway in trouble is a reason to take something for not processed */
	if (http.status >= 500)
		must(judged == FINI_VERDICT_DOUBT || read != NULL);
}

/* the tokens are those that PostgreSQL finds, up to the first that is none */
static void
agree_with_postgres(const char *data, Size len)
{
	FiniJsonText ours = {.json = data, .end = data + len, .next = data};
	char	   *copy = palloc(len + 1);
	JsonLexContext *theirs;

	/* its lexer knows UTF-8, and wants that: ours passes it by */
	if (!fini_encoding_is_utf8(data, len))
		return;
	memcpy(copy, data, len);
	copy[len] = '\0';
#if PG_VERSION_NUM >= 170000
	theirs = makeJsonLexContextCstringLen(NULL, copy, (int) len, PG_UTF8, false);
#else
	theirs = makeJsonLexContextCstringLen(copy, (int) len, PG_UTF8, false);
#endif
	for (;;)
	{
		bool		well_formed = json_lex(theirs) == JSON_SUCCESS;

		must(fini_json_next_token(&ours) == well_formed);
		if (!well_formed || theirs->token_type == JSON_TOKEN_END)
			break;
		must(ours.start - data == theirs->token_start - copy && ours.next - data == theirs->token_terminator - copy);
		must((ours.token == FINI_JSON_TOKEN_STRING) == (theirs->token_type == JSON_TOKEN_STRING));
		must((ours.token == FINI_JSON_TOKEN_NULL) == (theirs->token_type == JSON_TOKEN_NULL));
	}
}

static void
transform(const char *data, Size len)
{
	static const char *const names[] = {"idNum", "fullNameEng"};
	FiniJsonRules rules = {names, lengthof(names), keep_all, NULL, "payload", ERRCODE_INVALID_PARAMETER_VALUE};
	FiniBuffer *kept = fini_buffer_create(16);
	FiniBuffer *replaced = fini_buffer_create(16);

	agree_with_postgres(data, len);
	fini_json_transform(data, len, &rules, kept);
	must(kept->len == len && memcmp(kept->data, data, len) == 0);
	rules.replace = replace_all;
	fini_json_transform(data, len, &rules, replaced);

	/* what comes out is JSON again */
	fini_json_transform(replaced->data, replaced->len, &rules, kept);
}

static void
seal(const char *data, Size len)
{
	FiniBuffer *sealed;
	FiniBuffer *opened;

	if (!fini_encoding_is_utf8(data, len))
		return;
	sealed = fini_buffer_create(fini_envelope_sealed_size(len));
	fini_envelope_encrypt_fields(data_key, iv, data, len, sealed);
	opened = fini_envelope_decrypt_fields(data_key, iv, sealed->data, sealed->len);
	must(opened->len > 0 || len == 0);
}

static void
open_answer(const char *data, Size len)
{
	FiniBuffer *opened = fini_envelope_decrypt_fields(data_key, iv, data, len);

	must(fini_encoding_is_utf8(opened->data, opened->len));
}

static void
base64(const char *data, Size len)
{
	uint8	   *bytes = palloc(FINI_BASE64_MAX_DECODED(len) + 1);
	char	   *text = palloc(FINI_BASE64_LEN(len) + 1);
	uint8	   *again = palloc(len + 3);
	Size		n;

	if (fini_base64_decode(data, len, bytes, &n))
	{
		/* exactly one text stands for the bytes */
		must(n <= FINI_BASE64_MAX_DECODED(len));
		must(FINI_BASE64_LEN(n) == len);
		must(fini_base64_encode(bytes, n, text) == len && memcmp(text, data, len) == 0);
	}
	n = fini_base64_encode((const uint8 *) data, len, text);
	must(n == FINI_BASE64_LEN(len));
	must(fini_base64_decode(text, n, again, &n) && n == len && memcmp(again, data, len) == 0);
	must(fini_base64_encode_url((const uint8 *) data, len, text) <= FINI_BASE64_LEN(len));
}

/* DER, as base64 like in crypto/meta; what is accepted can be used */
static void
public_key(const char *data, Size len)
{
	char	   *text = palloc(FINI_BASE64_LEN(len) + 1);
	uint8		der[2048];
	Size		n = fini_base64_encode((const uint8 *) data, len, text);
	int			size = fini_envelope_decode_public_key(text, n, der, sizeof(der));

	must(size > 0 && (Size) size <= sizeof(der));
	must(fini_cipher_wrap(data_key, iv, der, size) != NULL);
}

/* a file in memory, written again for each execution */
static void
key_file(const char *data, Size len)
{
	static int	fd = -1;
	static char path[64];
	const char *hint = NULL;
	char	   *reason;

	if (fd < 0)
	{
		fd = memfd_create("key", 0);
		must(fd >= 0 && fchmod(fd, 0600) == 0);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	}
	must(ftruncate(fd, 0) == 0 && pwrite(fd, data, len, 0) == (ssize_t) len);
	reason = fini_keys_check_file(path, &hint);
	must(reason == NULL || (strstr(reason, path) == NULL && is_clean(reason)));
}

/* two JSON texts with a NUL between them: fields and outcome */
static void
mapping(const char *data, Size len)
{
	const char *split = memchr(data, '\0', len);
	Size		first = split != NULL ? (Size) (split - data) : len;
	Jsonb	   *fields = fini_jsonb_read(data, first);
	Jsonb	   *outcome = split != NULL ? fini_jsonb_read(split + 1, len - first - 1) : NULL;
	Relation	rel;

	if (fields == NULL)
		return;
	rel = table_openrv(makeRangeVar("public", "fuzzed", -1), AccessShareLock);
	fields = fini_attach_fields(rel, fields);
	if (outcome != NULL)
		outcome = fini_attach_outcome(rel, outcome, fields);
	must(JB_ROOT_IS_OBJECT(fields));
	table_close(rel, NoLock);
}

/* which hook in the first byte, the value behind it */
static void
settings(const char *data, Size len)
{
	static const GucStringCheckHook hooks[] = {
		fini_settings_check_databases, fini_settings_check_base_url, fini_settings_check_token_url,
		fini_settings_check_identity, fini_settings_check_assertion_type, fini_settings_check_firm_id,
		fini_settings_check_pin, fini_settings_check_proxy, fini_settings_check_fields, fini_settings_check_status
	};
	void	   *extra = NULL;
	char	   *value;

	if (len < 1)
		return;
	value = malloc(len);
	memcpy(value, data + 1, len - 1);
	value[len - 1] = '\0';
	GUC_check_errmsg_string = GUC_check_errdetail_string = GUC_check_errhint_string = NULL;
	if (!hooks[(uint8) data[0] % lengthof(hooks)] (&value, &extra, PGC_S_TEST))
		must(GUC_check_errdetail_string != NULL || GUC_check_errhint_string != NULL || GUC_check_errmsg_string != NULL);
	free(value);
	free(extra);
}

static void
url(const char *data, Size len)
{
	char	   *text = pnstrdup(data, len);
	const char *problem = fini_http_check_url(text);

	must(problem == NULL || is_clean(problem));
	if (problem == NULL)
	{
		/* nothing before the path can be a user's name or password */
		must(pg_strncasecmp(text, "https://", 8) == 0);
		must(memchr(text + 8, '@', strcspn(text + 8, "/?#")) == NULL);
	}
	problem = fini_http_check_proxy(text);
	must(problem == NULL || is_clean(problem));
}

/* an entry's members, a NUL, and a record */
static void
compare(const char *data, Size len)
{
	const char *split = memchr(data, '\0', len);
	const FiniValue *record;
	char	   *object;

	if (split == NULL || split == data)
		return;
	record = fini_value_read(split + 1, len - (split - data) - 1);
	object = psprintf("{%.*s}", (int) (split - data), data);
	if (record == NULL || record->kind != FINI_VALUE_OBJECT || fini_value_read(object, strlen(object)) == NULL)
		return;
	(void) fini_compare_entry(data, split - data, record, data[0] == '"');
	(void) fini_compare_entry(data, split - data, record, true);
}

static void
encoding(const char *data, Size len)
{
	bool		valid = fini_encoding_is_utf8(data, len);
	bool		replaced;
	Size		n;
	const char *text;

	must(valid == (memchr(data, '\0', len) == NULL && pg_verify_mbstr(PG_UTF8, data, (int) len, true)));
	if (!valid)
		return;
	text = fini_encoding_to_utf8(data, len, &n);
	must(text != NULL && n == len);
	text = fini_encoding_json_from_utf8(data, len, &n, &replaced);
	must(text != NULL && fini_encoding_is_utf8(text, n));
	must(replaced || n == len);
}

static bool
is_clean(const char *text)
{
	for (; *text != '\0'; text++)
	{
		if ((uint8) *text < ' ' || *text == 0x7f)
			return false;
	}
	return true;
}

static bool
keep_all(void *arg, int name, FiniJsonKind kind, const char *value, Size len, FiniBuffer *dst)
{
	return false;
}

static bool
replace_all(void *arg, int name, FiniJsonKind kind, const char *value, Size len, FiniBuffer *dst)
{
	must(name == 0 || name == 1);
	if (kind == FINI_JSON_NESTED)
		return false;			/* only scalars can be replaced */
	must(value != NULL && strnlen(value, len) <= len);
	fini_json_append_string(dst, "replaced", 8);
	return true;
}
