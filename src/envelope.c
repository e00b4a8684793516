/*
 * envelope.c
 *		End-to-end encryption of personal data (protocol.md section 2).
 *
 * Sealing and opening are one pass each of json.c over the text, with a
 * cipher behind it; what stands in which field is decided here:
 *
 *	value of a personal field	sealing				opening
 *	null						stays				stays
 *	string						encrypted			decrypted if it has the prefix, else stays
 *	number, true, false			its text encrypted	stays
 *	object, array				refused				stays, searched for personal fields
 *
 * Sealing must let nothing personal pass in clear; opening takes what FINI
 * says, which has empty values as null, [] or {} (protocol.md section 4).
 *
 * No process-wide state.  Called by the worker and by backends.
 */
#include "postgres.h"

#include <sys/time.h>

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "encoding.h"
#include "envelope.h"
#include "error.h"
#include "json.h"
#include "settings.h"

typedef struct FieldWork
{
	FiniCipher *cipher;
	const char *const *names;
	FiniBuffer *plaintext;		/* of the field being opened */
} FieldWork;

static void transform_fields(const uint8 *data_key, const uint8 *iv, bool encrypt,
							 const char *json, Size len, FiniBuffer *dst);
static FiniBuffer *open_fields(const uint8 *data_key, const uint8 *iv, const char *answer, Size len);
static bool encrypt_value(void *arg, int name, FiniJsonKind kind,
						  const char *value, Size len, FiniBuffer *dst);
static bool decrypt_value(void *arg, int name, FiniJsonKind kind,
						  const char *value, Size len, FiniBuffer *dst);

void
fini_envelope_request_id(char *dst)
{
	static const char digits[] = "0123456789abcdef";
	uint8		bytes[FINI_REQUEST_ID_LEN / 2];
	size_t		i;

	fini_cipher_random(bytes, sizeof(bytes));
	for (i = 0; i < sizeof(bytes); i++)
	{
		dst[2 * i] = digits[bytes[i] >> 4];
		dst[2 * i + 1] = digits[bytes[i] & 0x0f];
	}
	dst[FINI_REQUEST_ID_LEN] = '\0';
}

FiniEnvelope *
fini_envelope_seal(const char *payload, Size len, const char *request_id,
				   const uint8 *public_key, Size public_key_len, int64 clock_offset_ms)
{
	FiniEnvelope *env = fini_secret_alloc(sizeof(FiniEnvelope));
	struct timeval now;

	memset(env, 0, sizeof(FiniEnvelope));
	if (request_id == NULL)
		fini_envelope_request_id(env->request_id);
	else
	{
		if (strlen(request_id) != FINI_REQUEST_ID_LEN)
			elog(ERROR, "request ID of %zu characters", strlen(request_id));
		strlcpy(env->request_id, request_id, sizeof(env->request_id));
	}

	fini_cipher_random(env->data_key, FINI_DATA_KEY_LEN);
	fini_cipher_random(env->iv, FINI_IV_LEN);
	env->body = fini_buffer_create(fini_envelope_sealed_size(len));
	fini_envelope_encrypt_fields(env->data_key, env->iv, payload, len, env->body);
	env->encrypted_key = fini_cipher_wrap(env->data_key, env->iv, public_key, public_key_len);

	gettimeofday(&now, NULL);
	env->timestamp_ms = (int64) now.tv_sec * 1000 + now.tv_usec / 1000 + clock_offset_ms;
	fini_cipher_sign(env->data_key, env->body->data, env->body->len,
					 env->request_id, env->timestamp_ms, env->signature);

	return env;
}

FiniBuffer *
fini_envelope_open(FiniEnvelope *env, const char *answer, Size len)
{
	return open_fields(env->data_key, env->iv, answer, len);
}

/* a ciphertext is a third longer than its plaintext, and 30 characters */
Size
fini_envelope_sealed_size(Size len)
{
	return Min(len * 2, MaxAllocSize / 2);
}

void
fini_envelope_encrypt_fields(const uint8 *data_key, const uint8 *iv,
							 const char *payload, Size len, FiniBuffer *dst)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "fini seal", ALLOCSET_SMALL_SIZES);
	const char *utf8;
	Size		utf8_len;

	MemoryContextSwitchTo(work);

	utf8 = fini_encoding_to_utf8(payload, len, &utf8_len);
	if (utf8 == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("payload holds characters that have no equivalent in UTF-8")));
	transform_fields(data_key, iv, true, utf8, utf8_len, dst);

	MemoryContextSwitchTo(caller);
	MemoryContextDelete(work);
}

FiniBuffer *
fini_envelope_decrypt_fields(const uint8 *data_key, const uint8 *iv,
							 const char *answer, Size len)
{
	FiniBuffer *opened = open_fields(data_key, iv, answer, len);
	FiniBuffer *result;
	const char *text;
	Size		text_len;

	text = fini_encoding_from_utf8(opened->data, opened->len, &text_len);
	if (text == NULL)
		ereport(ERROR,
				(errcode(FINI_ERRCODE_UNREADABLE),
				 errmsg("answer holds characters that have no equivalent in encoding \"%s\"",
						GetDatabaseEncodingName())));
	if (text == opened->data)
		return opened;

	result = fini_buffer_create(text_len);
	fini_buffer_append(result, text, text_len);
	return result;
}

bool
fini_envelope_is_personal(const char *name, Size len)
{
	const char *const *names;
	int			n = fini_settings_encrypted_fields(&names);
	int			i;

	for (i = 0; i < n; i++)
	{
		if (strlen(names[i]) == len && memcmp(names[i], name, len) == 0)
			return true;
	}

	return false;
}

int
fini_envelope_decode_public_key(const char *base64, Size len, uint8 *dst, Size dst_size)
{
	return fini_cipher_decode_public_key(base64, len, dst, dst_size);
}

static FiniBuffer *
open_fields(const uint8 *data_key, const uint8 *iv, const char *answer, Size len)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "fini open", ALLOCSET_SMALL_SIZES);
	FiniBuffer *opened;

	if (!fini_encoding_is_utf8(answer, len))
		ereport(ERROR,
				(errcode(FINI_ERRCODE_UNREADABLE),
				 errmsg("answer is not valid UTF-8")));

	/* decrypted fields are shorter, unless all of them needs escapes */
	opened = fini_buffer_create(len);
	MemoryContextSwitchTo(work);
	transform_fields(data_key, iv, false, answer, len, opened);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(work);

	return opened;
}

/*
 * Append the JSON text to dst with its personal fields encrypted or decrypted.
 * CurrentMemoryContext collects the working memory.
 */
static void
transform_fields(const uint8 *data_key, const uint8 *iv, bool encrypt,
				 const char *json, Size len, FiniBuffer *dst)
{
	FieldWork	work;
	FiniJsonRules rules;

	rules.nnames = fini_settings_encrypted_fields(&rules.names);
	rules.replace = encrypt ? encrypt_value : decrypt_value;
	rules.arg = &work;
	rules.subject = encrypt ? "payload" : "answer";
	rules.sqlerrcode = encrypt ? ERRCODE_INVALID_PARAMETER_VALUE : FINI_ERRCODE_UNREADABLE;

	work.cipher = fini_cipher_create(data_key, iv, encrypt);
	work.names = rules.names;
	work.plaintext = encrypt ? NULL : fini_buffer_create(256);

	fini_json_transform(json, len, &rules, dst);
}

static bool
encrypt_value(void *arg, int name, FiniJsonKind kind,
			  const char *value, Size len, FiniBuffer *dst)
{
	FieldWork  *work = arg;

	if (kind == FINI_JSON_NESTED)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("personal field \"%s\" of the payload holds an object or an array",
						work->names[name]),
				 errhint("Only strings, numbers, booleans and null can be encrypted.")));

	fini_buffer_append(dst, "\"", 1);
	fini_cipher_encrypt(work->cipher, value, len, dst);
	fini_buffer_append(dst, "\"", 1);

	return true;
}

static bool
decrypt_value(void *arg, int name, FiniJsonKind kind,
			  const char *value, Size len, FiniBuffer *dst)
{
	FieldWork  *work = arg;

	if (kind != FINI_JSON_STRING || len < FINI_ENC_PREFIX_LEN ||
		memcmp(value, FINI_ENC_PREFIX, FINI_ENC_PREFIX_LEN) != 0)
		return false;

	fini_buffer_truncate(work->plaintext, 0);
	fini_cipher_decrypt(work->cipher, value, len, work->plaintext);
	if (!fini_encoding_is_utf8(work->plaintext->data, work->plaintext->len))
		ereport(ERROR,
				(errcode(FINI_ERRCODE_UNREADABLE),
				 errmsg("field \"%s\" of the answer decrypts to something that is not text",
						work->names[name]),
				 errdetail("It is not valid UTF-8, or holds a NUL character.")));
	fini_json_append_string(dst, work->plaintext->data, work->plaintext->len);

	return true;
}
