/*
 * cipher.c
 *		The cryptography of an envelope: field cipher, wrapped key, signature.
 *
 * All fields of a request share one data key and one IV (protocol.md section
 * 2), so one EVP_CIPHER_CTX serves them all: its key schedule is computed once
 * and each field only sets the IV again.  A field costs no allocation; its
 * bytes pass through one scratch buffer per cipher.
 *
 * Under one key and IV equal values have equal ciphertexts, by the protocol.
 * Two of the five fields of an application, type and country of its document,
 * are nearly always one of a handful of short codes; a small direct-mapped memo
 * of short values spares the cipher most of them, which is a third of its work.
 *
 * OpenSSL objects are handed to fini_secret_on_reset as soon as they exist.
 * Functions that need them only while they run do so in a memory context of
 * their own, so that a long-lived caller's context does not collect them.
 */
#include "postgres.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "utils/memutils.h"

#include "base64.h"
#include "cipher.h"
#include "error.h"

#define MEMO_SLOTS			64	/* a power of two */
#define MEMO_MAX_LEN		16
#define MEMO_FIELD_LEN \
	(FINI_ENC_PREFIX_LEN + FINI_BASE64_LEN((size_t) MEMO_MAX_LEN + FINI_TAG_LEN))

typedef struct MemoSlot
{
	uint64		value[MEMO_MAX_LEN / sizeof(uint64)];	/* zero-padded */
	uint8		len;
	uint8		field_len;		/* 0: slot is empty */
	char		field[MEMO_FIELD_LEN];
} MemoSlot;

struct FiniCipher
{
	EVP_CIPHER_CTX *ctx;
	uint8		iv[FINI_IV_LEN];
	bool		encrypt;
	FiniBuffer *scratch;		/* ciphertext and tag of the field in hand */
	MemoSlot	memo[MEMO_SLOTS];	/* of short values already encrypted */
};

#define MIN_RSA_BITS		2048
#define MAX_RSA_BITS		8192

/* far beyond any field, and small enough for OpenSSL's int lengths */
#define MAX_FIELD_LEN		((Size) 512 * 1024 * 1024)

/* base64(data key) # base64(IV) */
#define KEY_TEXT_LEN \
	(FINI_BASE64_LEN(FINI_DATA_KEY_LEN) + 1 + FINI_BASE64_LEN(FINI_IV_LEN))

static void encrypt_value(FiniCipher *cipher, const char *plaintext, Size len,
						  FiniBuffer *dst);
static bool decrypt_bytes(FiniCipher *cipher, uint8 *data, int len, uint8 *tag, char *dst);
static EVP_PKEY *parse_public_key(const uint8 *der, Size len);
static const char *public_key_defect(EVP_PKEY *pkey);
static void undecryptable(const char *detail) pg_attribute_noreturn();
static void unusable_public_key(const char *detail) pg_attribute_noreturn();
static void free_cipher_ctx(void *arg);
static void free_cipher(void *arg);
static void free_mac_ctx(void *arg);
static void free_mac(void *arg);
static void free_pkey_ctx(void *arg);
static void free_pkey(void *arg);

FiniCipher *
fini_cipher_create(const uint8 *data_key, const uint8 *iv, bool encrypt)
{
	FiniCipher *cipher = fini_secret_alloc(sizeof(FiniCipher));
	EVP_CIPHER *aes;

	memset(cipher, 0, sizeof(FiniCipher));
	memcpy(cipher->iv, iv, FINI_IV_LEN);
	cipher->encrypt = encrypt;
	cipher->scratch = fini_buffer_create(256);

	aes = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	if (aes == NULL)
		fini_cipher_failed("find AES-256-GCM");
	fini_secret_on_reset(free_cipher, aes);

	cipher->ctx = EVP_CIPHER_CTX_new();
	if (cipher->ctx == NULL)
		fini_cipher_failed("set up a cipher");
	fini_secret_on_reset(free_cipher_ctx, cipher->ctx);

	/* 12 bytes is GCM's own IV length; the IV comes with each field */
	if (EVP_CipherInit_ex2(cipher->ctx, aes, data_key, NULL, encrypt ? 1 : 0, NULL) != 1)
		fini_cipher_failed("set up a cipher");

	return cipher;
}

void
fini_cipher_encrypt(FiniCipher *cipher, const char *plaintext, Size len, FiniBuffer *dst)
{
	uint64		value[MEMO_MAX_LEN / sizeof(uint64)] = {0, 0};
	MemoSlot   *slot;
	Size		start = dst->len;

	Assert(cipher->encrypt);
	if (len > MEMO_MAX_LEN)
	{
		encrypt_value(cipher, plaintext, len, dst);
		return;
	}

	memcpy(value, plaintext, len);
	slot = &cipher->memo[((value[0] ^ value[1]) * UINT64CONST(0x9e3779b97f4a7c15)) >> 58 &
						 (MEMO_SLOTS - 1)];
	if (slot->field_len == 0 || slot->len != len ||
		slot->value[0] != value[0] || slot->value[1] != value[1])
	{
		encrypt_value(cipher, plaintext, len, dst);
		memcpy(slot->value, value, sizeof(value));
		slot->len = (uint8) len;
		slot->field_len = (uint8) (dst->len - start);
		memcpy(slot->field, dst->data + start, slot->field_len);
	}
	else
		fini_buffer_append(dst, slot->field, slot->field_len);
	fini_secret_cleanse(value, sizeof(value));
}

/*
 * However a ciphertext is broken, the error reads the same; a missing prefix
 * says so, since then it is none at all.
 */
void
fini_cipher_decrypt(FiniCipher *cipher, const char *field, Size len, FiniBuffer *dst)
{
	uint8	   *sealed;
	Size		sealed_len = 0;
	Size		start = dst->len;
	char	   *plaintext;

	Assert(!cipher->encrypt);
	if (len < FINI_ENC_PREFIX_LEN || memcmp(field, FINI_ENC_PREFIX, FINI_ENC_PREFIX_LEN) != 0)
		undecryptable("It does not start with \"" FINI_ENC_PREFIX "\".");
	field += FINI_ENC_PREFIX_LEN;
	len -= FINI_ENC_PREFIX_LEN;

	fini_buffer_truncate(cipher->scratch, 0);
	sealed = (uint8 *) fini_buffer_extend(cipher->scratch, FINI_BASE64_MAX_DECODED(len));
	if (!fini_base64_decode(field, len, sealed, &sealed_len) ||
		sealed_len < FINI_TAG_LEN || sealed_len > MAX_FIELD_LEN)
		undecryptable(NULL);
	sealed_len -= FINI_TAG_LEN;

	plaintext = fini_buffer_extend(dst, sealed_len);
	if (!decrypt_bytes(cipher, sealed, (int) sealed_len, sealed + sealed_len, plaintext))
	{
		/* what did not pass the check must not be seen */
		fini_secret_cleanse(plaintext, sealed_len);
		fini_buffer_truncate(dst, start);
		undecryptable(NULL);
	}
}

char *
fini_cipher_wrap(const uint8 *data_key, const uint8 *iv,
				 const uint8 *public_key, Size public_key_len)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "fini wrapped key",
											   ALLOCSET_SMALL_SIZES);
	char	   *text;
	Size		text_len;
	EVP_PKEY   *pkey;
	EVP_PKEY_CTX *ctx;
	uint8		wrapped[MAX_RSA_BITS / 8];
	size_t		wrapped_len = sizeof(wrapped);
	char	   *result;

	MemoryContextSwitchTo(work);

	text = fini_secret_alloc(KEY_TEXT_LEN);
	text_len = fini_base64_encode(data_key, FINI_DATA_KEY_LEN, text);
	text[text_len++] = '#';
	text_len += fini_base64_encode(iv, FINI_IV_LEN, text + text_len);

	pkey = parse_public_key(public_key, public_key_len);
	ctx = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
	if (ctx == NULL)
		fini_cipher_failed("wrap a data key");
	fini_secret_on_reset(free_pkey_ctx, ctx);

	if (EVP_PKEY_encrypt_init(ctx) != 1 ||
		EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PADDING) != 1 ||
		EVP_PKEY_encrypt(ctx, wrapped, &wrapped_len, (const uint8 *) text, text_len) != 1)
		fini_cipher_failed("wrap a data key");

	MemoryContextSwitchTo(caller);
	result = palloc(FINI_BASE64_LEN(wrapped_len) + 1);
	result[fini_base64_encode(wrapped, wrapped_len, result)] = '\0';
	MemoryContextDelete(work);

	return result;
}

void
fini_cipher_sign(const uint8 *data_key, const char *body, Size len,
				 const char *request_id, int64 timestamp_ms, char *dst)
{
	static const char digits[] = "0123456789abcdef";
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "fini signature",
											   ALLOCSET_SMALL_SIZES);
	EVP_MAC    *hmac;
	EVP_MAC_CTX *ctx;
	OSSL_PARAM	params[2];
	char		sha256[] = "SHA256";
	char		timestamp[32];
	uint8		mac[FINI_SIGNATURE_LEN / 2];
	size_t		mac_len = 0;
	size_t		i;

	MemoryContextSwitchTo(work);

	snprintf(timestamp, sizeof(timestamp), INT64_FORMAT, timestamp_ms);
	params[0] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, sha256, 0);
	params[1] = OSSL_PARAM_construct_end();

	hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	if (hmac == NULL)
		fini_cipher_failed("find HMAC");
	fini_secret_on_reset(free_mac, hmac);

	ctx = EVP_MAC_CTX_new(hmac);
	if (ctx == NULL)
		fini_cipher_failed("sign a request");
	fini_secret_on_reset(free_mac_ctx, ctx);

	if (EVP_MAC_init(ctx, data_key, FINI_DATA_KEY_LEN, params) != 1 ||
		EVP_MAC_update(ctx, (const uint8 *) body, len) != 1 ||
		EVP_MAC_update(ctx, (const uint8 *) request_id, strlen(request_id)) != 1 ||
		EVP_MAC_update(ctx, (const uint8 *) timestamp, strlen(timestamp)) != 1 ||
		EVP_MAC_final(ctx, mac, &mac_len, sizeof(mac)) != 1)
		fini_cipher_failed("sign a request");
	if (mac_len != sizeof(mac))
		elog(ERROR, "HMAC-SHA256 made %zu bytes", mac_len);

	for (i = 0; i < sizeof(mac); i++)
	{
		dst[2 * i] = digits[mac[i] >> 4];
		dst[2 * i + 1] = digits[mac[i] & 0x0f];
	}
	dst[FINI_SIGNATURE_LEN] = '\0';

	MemoryContextSwitchTo(caller);
	MemoryContextDelete(work);
}

int
fini_cipher_decode_public_key(const char *base64, Size len, uint8 *dst, Size dst_size)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work;
	uint8	   *der;
	Size		der_len = 0;

	/* an 8192-bit key takes 1.4 kB of base64 */
	if (len > 4096)
		unusable_public_key("It is too long.");

	work = AllocSetContextCreate(caller, "fini public key", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(work);

	der = palloc(FINI_BASE64_MAX_DECODED(len) + 1);
	if (!fini_base64_decode(base64, len, der, &der_len))
		unusable_public_key("It is not base64.");
	(void) parse_public_key(der, der_len);
	if (der_len > dst_size)
		unusable_public_key("It is too long.");
	memcpy(dst, der, der_len);

	MemoryContextSwitchTo(caller);
	MemoryContextDelete(work);

	return (int) der_len;
}

void
fini_cipher_random(uint8 *dst, Size len)
{
	if (RAND_priv_bytes(dst, (int) len) != 1)
		fini_cipher_failed("make random bytes");
}

void
fini_cipher_failed(const char *what)
{
	const char *reason = ERR_reason_error_string(ERR_peek_last_error());

	ERR_clear_error();
	ereport(ERROR,
			(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
			 errmsg("could not %s", what),
			 reason ? errdetail("OpenSSL reports: %s.", reason) : 0));
}

static void
encrypt_value(FiniCipher *cipher, const char *plaintext, Size len, FiniBuffer *dst)
{
	uint8	   *sealed;
	int			written = 0;
	int			final = 0;
	char	   *room;

	if (len > MAX_FIELD_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a field of %zu bytes is too long to be encrypted", len)));

	fini_buffer_truncate(cipher->scratch, 0);
	sealed = (uint8 *) fini_buffer_extend(cipher->scratch, len + FINI_TAG_LEN);

	if (EVP_EncryptInit_ex2(cipher->ctx, NULL, NULL, cipher->iv, NULL) != 1 ||
		(len > 0 && EVP_EncryptUpdate(cipher->ctx, sealed, &written,
									  (const uint8 *) plaintext, (int) len) != 1) ||
		EVP_EncryptFinal_ex(cipher->ctx, sealed + written, &final) != 1 ||
		EVP_CIPHER_CTX_ctrl(cipher->ctx, EVP_CTRL_AEAD_GET_TAG, FINI_TAG_LEN,
							sealed + len) != 1)
		fini_cipher_failed("encrypt a field");
	if ((Size) written + (Size) final != len)
		elog(ERROR, "AES-256-GCM made %d bytes of %zu", written + final, len);

	room = fini_buffer_extend(dst, FINI_ENC_PREFIX_LEN + FINI_BASE64_LEN(len + FINI_TAG_LEN));
	memcpy(room, FINI_ENC_PREFIX, FINI_ENC_PREFIX_LEN);
	fini_base64_encode(sealed, len + FINI_TAG_LEN, room + FINI_ENC_PREFIX_LEN);
}

/*
 * Decrypt len bytes into dst.  False when the tag does not fit.
 */
static bool
decrypt_bytes(FiniCipher *cipher, uint8 *data, int len, uint8 *tag, char *dst)
{
	int			written = 0;
	int			final = 0;

	if (EVP_DecryptInit_ex2(cipher->ctx, NULL, NULL, cipher->iv, NULL) != 1 ||
		(len > 0 && EVP_DecryptUpdate(cipher->ctx, (uint8 *) dst, &written, data, len) != 1) ||
		EVP_CIPHER_CTX_ctrl(cipher->ctx, EVP_CTRL_AEAD_SET_TAG, FINI_TAG_LEN, tag) != 1)
		fini_cipher_failed("decrypt a field");

	if (EVP_DecryptFinal_ex(cipher->ctx, (uint8 *) dst + written, &final) != 1)
	{
		ERR_clear_error();
		return false;
	}

	return written + final == len;
}

/*
 * An RSA public key of a permitted size, freed with CurrentMemoryContext.
 */
static EVP_PKEY *
parse_public_key(const uint8 *der, Size len)
{
	const uint8 *end = der;
	EVP_PKEY   *pkey;
	const char *defect;

	pkey = d2i_PUBKEY(NULL, &end, (long) len);
	if (pkey == NULL)
	{
		ERR_clear_error();
		unusable_public_key("It is not the DER form of a public key.");
	}
	fini_secret_on_reset(free_pkey, pkey);

	if (end != der + len)
		unusable_public_key("Bytes follow the key.");
	defect = public_key_defect(pkey);
	if (defect != NULL)
		unusable_public_key(defect);

	return pkey;
}

static const char *
public_key_defect(EVP_PKEY *pkey)
{
	BIGNUM	   *exponent = NULL;
	bool		encrypts;
	int			bits;

	if (!EVP_PKEY_is_a(pkey, "RSA"))
		return "It is not an RSA key.";
	bits = EVP_PKEY_get_bits(pkey);
	if (bits < MIN_RSA_BITS || bits > MAX_RSA_BITS)
		return "It must have between 2048 and 8192 bits.";

	/* the power of 1 is no encryption, and that of an even number cannot be undone */
	if (EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_E, &exponent) != 1)
		fini_cipher_failed("read a public key");
	encrypts = BN_is_odd(exponent) && !BN_is_one(exponent);
	BN_free(exponent);
	return encrypts ? NULL : "Its exponent must be odd, and greater than 1.";
}

static void
undecryptable(const char *detail)
{
	ereport(ERROR,
			(errcode(FINI_ERRCODE_ENVELOPE),
			 errmsg("encrypted field cannot be decrypted"),
			 errdetail("%s", detail ? detail :
					   "It is not an intact ciphertext under this data key and IV.")));
}

static void
unusable_public_key(const char *detail)
{
	ereport(ERROR,
			(errcode(FINI_ERRCODE_ENVELOPE),
			 errmsg("public key cannot be used"),
			 errdetail("%s", detail),
			 errhint("It is the publicKey that FINI's crypto/meta gives: base64 of an RSA key's SubjectPublicKeyInfo.")));
}

static void
free_cipher_ctx(void *arg)
{
	EVP_CIPHER_CTX_free(arg);
}

static void
free_cipher(void *arg)
{
	EVP_CIPHER_free(arg);
}

static void
free_mac_ctx(void *arg)
{
	EVP_MAC_CTX_free(arg);
}

static void
free_mac(void *arg)
{
	EVP_MAC_free(arg);
}

static void
free_pkey_ctx(void *arg)
{
	EVP_PKEY_CTX_free(arg);
}

static void
free_pkey(void *arg)
{
	EVP_PKEY_free(arg);
}
