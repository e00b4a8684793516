/*
 * blocks.c
 *		SQL entry points of the building blocks (design.md section 4).
 *
 * Nothing here touches the network or a table.  They serve stored procedures
 * that talk to FINI themselves, and let anybody prove the cryptography with
 * published vectors.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "cipher.h"
#include "compat.h"
#include "encoding.h"
#include "envelope.h"
#include "error.h"
#include "json.h"
#include "keys.h"

PG_FUNCTION_INFO_V1(fini_sql_encrypt_field);
PG_FUNCTION_INFO_V1(fini_sql_decrypt_field);
PG_FUNCTION_INFO_V1(fini_sql_encrypt_fields);
PG_FUNCTION_INFO_V1(fini_sql_decrypt_fields);
PG_FUNCTION_INFO_V1(fini_sql_wrap_key);
PG_FUNCTION_INFO_V1(fini_sql_sign);
PG_FUNCTION_INFO_V1(fini_sql_jwks);

/* "less than a year away" (protocol.md section 1), by the shortest year */
#define MAX_JWKS_LIFETIME	(INT64CONST(365) * USECS_PER_DAY)

static const uint8 *data_key_arg(bytea *arg);
static const uint8 *iv_arg(bytea *arg);
static void check_request_id(const char *request_id);
static const char *utf8_arg(text *arg, Size *len);
static text *text_from_utf8(const char *utf8, Size len);

/* encrypt_field(plaintext text, data_key bytea, iv bytea) returns text */
Datum
fini_sql_encrypt_field(PG_FUNCTION_ARGS)
{
	const uint8 *data_key = data_key_arg(PG_GETARG_BYTEA_PP(1));
	const uint8 *iv = iv_arg(PG_GETARG_BYTEA_PP(2));
	Size		len;
	const char *plaintext = utf8_arg(PG_GETARG_TEXT_PP(0), &len);
	FiniBuffer *field = fini_buffer_create(64);

	fini_cipher_encrypt(fini_cipher_create(data_key, iv, true), plaintext, len, field);

	PG_RETURN_TEXT_P(cstring_to_text_with_len(field->data, (int) field->len));
}

/* decrypt_field(ciphertext text, data_key bytea, iv bytea) returns text */
Datum
fini_sql_decrypt_field(PG_FUNCTION_ARGS)
{
	text	   *field = PG_GETARG_TEXT_PP(0);
	const uint8 *data_key = data_key_arg(PG_GETARG_BYTEA_PP(1));
	const uint8 *iv = iv_arg(PG_GETARG_BYTEA_PP(2));
	FiniBuffer *plaintext = fini_buffer_create(64);

	fini_cipher_decrypt(fini_cipher_create(data_key, iv, false),
						VARDATA_ANY(field), VARSIZE_ANY_EXHDR(field), plaintext);
	if (!fini_encoding_is_utf8(plaintext->data, plaintext->len))
		ereport(ERROR,
				(errcode(FINI_ERRCODE_UNREADABLE),
				 errmsg("field decrypts to something that is not text"),
				 errdetail("It is not valid UTF-8, or holds a NUL character.")));

	PG_RETURN_TEXT_P(text_from_utf8(plaintext->data, plaintext->len));
}

/* encrypt_fields(payload json, data_key bytea, iv bytea) returns text */
Datum
fini_sql_encrypt_fields(PG_FUNCTION_ARGS)
{
	text	   *payload = PG_GETARG_TEXT_PP(0);
	const uint8 *data_key = data_key_arg(PG_GETARG_BYTEA_PP(1));
	const uint8 *iv = iv_arg(PG_GETARG_BYTEA_PP(2));
	FiniBuffer *sealed = fini_buffer_create(fini_envelope_sealed_size(VARSIZE_ANY_EXHDR(payload)) + VARHDRSZ);

	(void) fini_buffer_extend(sealed, VARHDRSZ);
	fini_envelope_encrypt_fields(data_key, iv, VARDATA_ANY(payload), VARSIZE_ANY_EXHDR(payload), sealed);

	/* where nothing has to be converted, the text is returned where it stands */
	if (GetDatabaseEncoding() != PG_UTF8)
		PG_RETURN_TEXT_P(text_from_utf8(sealed->data + VARHDRSZ, sealed->len - VARHDRSZ));
	SET_VARSIZE(sealed->data, sealed->len);
	PG_RETURN_TEXT_P(fini_buffer_release(sealed));
}

/* decrypt_fields(payload json, data_key bytea, iv bytea) returns jsonb */
Datum
fini_sql_decrypt_fields(PG_FUNCTION_ARGS)
{
	Size		len;
	const char *payload = utf8_arg(PG_GETARG_TEXT_PP(0), &len);
	const uint8 *data_key = data_key_arg(PG_GETARG_BYTEA_PP(1));
	const uint8 *iv = iv_arg(PG_GETARG_BYTEA_PP(2));
	FiniBuffer *opened = fini_envelope_decrypt_fields(data_key, iv, payload, len);

	PG_RETURN_DATUM(fini_json_to_jsonb(opened->data, opened->len, "answer"));
}

/* wrap_key(data_key bytea, iv bytea, public_key text) returns text */
Datum
fini_sql_wrap_key(PG_FUNCTION_ARGS)
{
	const uint8 *data_key = data_key_arg(PG_GETARG_BYTEA_PP(0));
	const uint8 *iv = iv_arg(PG_GETARG_BYTEA_PP(1));
	text	   *base64 = PG_GETARG_TEXT_PP(2);
	uint8		public_key[2048];
	int			len;

	len = fini_cipher_decode_public_key(VARDATA_ANY(base64), VARSIZE_ANY_EXHDR(base64),
										public_key, sizeof(public_key));

	PG_RETURN_TEXT_P(cstring_to_text(fini_cipher_wrap(data_key, iv, public_key, len)));
}

/* sign(data_key bytea, body text, request_id text, timestamp_ms bigint) returns text */
Datum
fini_sql_sign(PG_FUNCTION_ARGS)
{
	const uint8 *data_key = data_key_arg(PG_GETARG_BYTEA_PP(0));
	Size		len;
	const char *body = utf8_arg(PG_GETARG_TEXT_PP(1), &len);
	char	   *request_id = text_to_cstring(PG_GETARG_TEXT_PP(2));
	int64		timestamp_ms = PG_GETARG_INT64(3);
	char		signature[FINI_SIGNATURE_LEN + 1];

	check_request_id(request_id);
	fini_cipher_sign(data_key, body, len, request_id, timestamp_ms, signature);

	PG_RETURN_TEXT_P(cstring_to_text(signature));
}

/* jwks(profile text, expires timestamptz) returns json */
Datum
fini_sql_jwks(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	TimestampTz expires = PG_GETARG_TIMESTAMPTZ(1);
	TimestampTz now = GetCurrentTransactionStartTimestamp();	/* as now() */
	FiniProfile profile;

	if (strcmp(name, "agent") == 0)
		profile = FINI_PROFILE_AGENT;
	else if (strcmp(name, "machine") == 0)
		profile = FINI_PROFILE_MACHINE;
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown profile \"%s\"", name),
				 errhint("The profiles are \"agent\" and \"machine\".")));

	if (expires <= now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expiry of the key set lies in the past"),
				 errhint("Give a time less than a year from now, such as now() + '11 months'.")));
	if (TIMESTAMP_NOT_FINITE(expires) || expires - now >= MAX_JWKS_LIFETIME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expiry of the key set is too far away"),
				 errdetail("FINI accepts keys that expire in less than a year."),
				 errhint("Give a time less than a year from now, such as now() + '11 months'.")));

	PG_RETURN_TEXT_P(cstring_to_text(fini_keys_jwks(profile,
													(int64) timestamptz_to_time_t(expires))));
}

static const uint8 *
data_key_arg(bytea *arg)
{
	if (VARSIZE_ANY_EXHDR(arg) != FINI_DATA_KEY_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("data key has %d bytes", (int) VARSIZE_ANY_EXHDR(arg)),
				 errhint("A data key has exactly %d bytes.", FINI_DATA_KEY_LEN)));
	return (const uint8 *) VARDATA_ANY(arg);
}

static const uint8 *
iv_arg(bytea *arg)
{
	if (VARSIZE_ANY_EXHDR(arg) != FINI_IV_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("IV has %d bytes", (int) VARSIZE_ANY_EXHDR(arg)),
				 errhint("An IV has exactly %d bytes.", FINI_IV_LEN)));
	return (const uint8 *) VARDATA_ANY(arg);
}

/*
 * What is signed is a plain concatenation, so that an ID of another form could
 * take digits of the timestamp for its own.
 */
static void
check_request_id(const char *request_id)
{
	if (strlen(request_id) != FINI_REQUEST_ID_LEN ||
		strspn(request_id, "0123456789abcdefABCDEF") != FINI_REQUEST_ID_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("request ID is not valid"),
				 errhint("A request ID is a GUID without hyphens: %d hexadecimal digits.",
						 FINI_REQUEST_ID_LEN)));
}

static const char *
utf8_arg(text *arg, Size *len)
{
	const char *utf8 = fini_encoding_to_utf8(VARDATA_ANY(arg), VARSIZE_ANY_EXHDR(arg), len);

	if (utf8 == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("argument holds characters that have no equivalent in UTF-8")));
	return utf8;
}

static text *
text_from_utf8(const char *utf8, Size len)
{
	Size		text_len;
	const char *result = fini_encoding_from_utf8(utf8, len, &text_len);

	if (result == NULL)
		ereport(ERROR,
				(errcode(FINI_ERRCODE_UNREADABLE),
				 errmsg("result holds characters that the encoding of this database does not have")));
	return cstring_to_text_with_len(result, (int) text_len);
}
