/*
 * keys.c
 *		Our own key pairs: the two profiles' private keys, JWK sets, assertions.
 *
 * A key is read from its file for each use, parsed, used and freed, all in a
 * memory context of that call; the bytes of the file are cleansed with it.
 * No path and nothing of a file's content gets into an error.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include "lib/stringinfo.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "base64.h"
#include "cipher.h"
#include "encoding.h"
#include "error.h"
#include "keys.h"
#include "secret.h"
#include "settings.h"

#define MIN_RSA_BITS		2048
#define MAX_KEY_FILE		((off_t) 64 * 1024)

static void describe_key(EVP_PKEY *pkey, StringInfo e, StringInfo n, StringInfo kid);
static EVP_PKEY *profile_key(FiniProfile profile);
static const char *profile_name(FiniProfile profile);
static const char *key_file(FiniProfile profile);
static const char *required(const char *value, const char *setting);
static const char *load_key(const char *path, EVP_PKEY **pkey, const char **hint);
static const char *read_private_file(const char *path, char **data, Size *len,
									 const char **hint);
static const char *file_defect(int fd, off_t *size, const char **hint);
static void append_base64url(StringInfo dst, const void *src, Size len);
static void append_key_number(StringInfo dst, EVP_PKEY *pkey, const char *param);
static void append_signature(StringInfo dst, EVP_PKEY *pkey, const char *signed_text, Size len);
static int	no_passphrase(char *buf, int size, int rwflag, void *asked);
static void free_pkey(void *arg);
static void free_bio(void *arg);
static void free_bn(void *arg);
static void free_md_ctx(void *arg);

char *
fini_keys_assertion(FiniProfile profile, const char *audience)
{
	static const char header[] = "{\"typ\":\"JWT\",\"alg\":\"RS256\"}";
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work;
	const char *issuer;
	const char *subject;
	EVP_PKEY   *pkey;
	StringInfoData claims;
	StringInfoData jwt;
	const char *utf8;
	Size		utf8_len;
	char	   *result;

	if (profile == FINI_PROFILE_AGENT)
	{
		issuer = required(fini_guc_agent_issuer, "fini.agent_issuer");
		subject = required(fini_guc_agent_subject, "fini.agent_subject");
	}
	else
	{
		issuer = required(fini_guc_machine_id, "fini.machine_id");
		subject = issuer;
	}

	work = AllocSetContextCreate(caller, "fini assertion", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(work);
	pkey = profile_key(profile);

	initStringInfo(&claims);
	appendStringInfoString(&claims, "{\"aud\":");
	escape_json(&claims, audience);
	appendStringInfoString(&claims, ",\"iss\":");
	escape_json(&claims, issuer);
	appendStringInfo(&claims, ",\"exp\":" INT64_FORMAT ",\"sub\":",
					 (int64) time(NULL) + fini_guc_assertion_lifetime);
	escape_json(&claims, subject);
	appendStringInfoChar(&claims, '}');

	utf8 = fini_encoding_to_utf8(claims.data, claims.len, &utf8_len);
	if (utf8 == NULL)
		ereport(ERROR,
				(errcode(FINI_ERRCODE_NOT_CONFIGURED),
				 errmsg("settings of the %s profile hold characters that have no equivalent in UTF-8",
						profile_name(profile))));

	initStringInfo(&jwt);
	append_base64url(&jwt, header, sizeof(header) - 1);
	appendStringInfoChar(&jwt, '.');
	append_base64url(&jwt, utf8, utf8_len);
	append_signature(&jwt, pkey, jwt.data, jwt.len);

	MemoryContextSwitchTo(caller);
	result = fini_secret_alloc(jwt.len + 1);
	memcpy(result, jwt.data, jwt.len + 1);
	fini_secret_cleanse(jwt.data, jwt.len);
	MemoryContextDelete(work);

	return result;
}

/*
 * The set of one key, members in the order of protocol.md section 1; palloc'd.
 */
char *
fini_keys_jwks(FiniProfile profile, int64 expires)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "fini JWK set", ALLOCSET_SMALL_SIZES);
	FiniProfile other = (profile == FINI_PROFILE_AGENT) ? FINI_PROFILE_MACHINE : FINI_PROFILE_AGENT;
	EVP_PKEY   *pkey;
	StringInfoData e;
	StringInfoData n;
	StringInfoData kid;
	char	   *result;

	MemoryContextSwitchTo(work);
	pkey = profile_key(profile);

	/* a profile may be registered before the other one has a key */
	if (key_file(other)[0] != '\0' && EVP_PKEY_eq(pkey, profile_key(other)) == 1)
		ereport(ERROR,
				(errcode(FINI_ERRCODE_NOT_CONFIGURED),
				 errmsg("agent and machine profile have the same key"),
				 errdetail("FINI requires a key pair of its own for each profile."),
				 errhint("Generate another key for one of fini.agent_key_file and fini.machine_key_file.")));

	describe_key(pkey, &e, &n, &kid);

	MemoryContextSwitchTo(caller);
	result = psprintf("{\"keys\":[{\"kty\":\"RSA\",\"e\":\"%s\",\"use\":\"sig\",\"kid\":\"%s\",\"alg\":\"RS256\",\"n\":\"%s\",\"exp\":" INT64_FORMAT "}]}",
					  e.data, kid.data, n.data, expires);
	MemoryContextDelete(work);

	return result;
}

char *
fini_keys_thumbprint(FiniProfile profile, char **problem, const char **hint)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work;
	const char *path = key_file(profile);
	const char *defect = "It is not set.";
	StringInfoData e;
	StringInfoData n;
	StringInfoData kid;
	EVP_PKEY   *pkey;
	char	   *result = NULL;

	*problem = NULL;
	*hint = NULL;
	work = AllocSetContextCreate(caller, "fini key thumbprint", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(work);
	if (path[0] != '\0')
		defect = load_key(path, &pkey, hint);
	if (defect == NULL)
		describe_key(pkey, &e, &n, &kid);
	MemoryContextSwitchTo(caller);
	if (defect != NULL)
		*problem = pstrdup(defect);
	else
		result = pstrdup(kid.data);
	MemoryContextDelete(work);

	return result;
}

char *
fini_keys_check_file(const char *path, const char **hint)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "fini key file", ALLOCSET_SMALL_SIZES);
	EVP_PKEY   *pkey;
	const char *defect;
	char	   *result = NULL;

	*hint = NULL;
	MemoryContextSwitchTo(work);
	defect = load_key(path, &pkey, hint);
	MemoryContextSwitchTo(caller);
	if (defect != NULL)
		result = pstrdup(defect);
	MemoryContextDelete(work);

	return result;
}

/*
 * Exponent and modulus as JWK has them, and the thumbprint of RFC 7638:
 * required members only, in lexical order, no white space.
 */
static void
describe_key(EVP_PKEY *pkey, StringInfo e, StringInfo n, StringInfo kid)
{
	StringInfoData canonical;
	uint8		digest[EVP_MAX_MD_SIZE];
	unsigned int digest_len = 0;

	initStringInfo(e);
	append_key_number(e, pkey, OSSL_PKEY_PARAM_RSA_E);
	initStringInfo(n);
	append_key_number(n, pkey, OSSL_PKEY_PARAM_RSA_N);

	initStringInfo(&canonical);
	appendStringInfo(&canonical, "{\"e\":\"%s\",\"kty\":\"RSA\",\"n\":\"%s\"}", e->data, n->data);
	if (EVP_Digest(canonical.data, canonical.len, digest, &digest_len, EVP_sha256(), NULL) != 1)
		fini_cipher_failed("compute a key's thumbprint");
	initStringInfo(kid);
	append_base64url(kid, digest, digest_len);
}

/*
 * The private key of a profile, freed with CurrentMemoryContext.
 */
static EVP_PKEY *
profile_key(FiniProfile profile)
{
	const char *path = key_file(profile);
	const char *hint = NULL;
	const char *defect;
	EVP_PKEY   *pkey;

	(void) required(path, profile == FINI_PROFILE_AGENT ?
					"fini.agent_key_file" : "fini.machine_key_file");
	defect = load_key(path, &pkey, &hint);
	if (defect != NULL)
		ereport(ERROR,
				(errcode(FINI_ERRCODE_NOT_CONFIGURED),
				 errmsg("private key of the %s profile cannot be used", profile_name(profile)),
				 errdetail("%s", defect),
				 hint ? errhint("%s", hint) : 0));

	return pkey;
}

static const char *
profile_name(FiniProfile profile)
{
	return profile == FINI_PROFILE_AGENT ? "agent" : "machine";
}

/* never NULL */
static const char *
key_file(FiniProfile profile)
{
	const char *path = (profile == FINI_PROFILE_AGENT) ?
		fini_guc_agent_key_file : fini_guc_machine_key_file;

	return path ? path : "";
}

static const char *
required(const char *value, const char *setting)
{
	if (value == NULL || value[0] == '\0')
		ereport(ERROR,
				(errcode(FINI_ERRCODE_NOT_CONFIGURED),
				 errmsg("%s is not set", setting),
				 errhint("Set it with ALTER DATABASE ... SET %s = '...'.", setting)));
	return value;
}

/*
 * Read and check a private key, freed with CurrentMemoryContext.  NULL when it
 * can serve, else why not.
 */
static const char *
load_key(const char *path, EVP_PKEY **pkey, const char **hint)
{
	char	   *data = NULL;
	Size		len = 0;
	const char *defect;
	BIO		   *bio;
	bool		asked = false;

	defect = read_private_file(path, &data, &len, hint);
	if (defect != NULL)
		return defect;

	bio = BIO_new_mem_buf(data, (int) len);
	if (bio == NULL)
		fini_cipher_failed("read a private key");
	fini_secret_on_reset(free_bio, bio);

	*pkey = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, &asked);
	if (*pkey == NULL)
	{
		ERR_clear_error();
		*hint = "Generate a key with \"openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048\", without a passphrase.";
		return asked ? "The private key is protected by a passphrase." :
			"The file holds no private key in PEM form.";
	}
	fini_secret_on_reset(free_pkey, *pkey);

	*hint = "Generate a key with \"openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048\".";
	if (!EVP_PKEY_is_a(*pkey, "RSA"))
		return "The private key is not an RSA key.";
	if (EVP_PKEY_get_bits(*pkey) < MIN_RSA_BITS)
		return "The private key has less than 2048 bits.";

	*hint = NULL;
	return NULL;
}

/*
 * A private file's bytes, cleansed with CurrentMemoryContext.  NULL, or why
 * not.  Nothing between open and close may raise an error.
 */
static const char *
read_private_file(const char *path, char **data, Size *len, const char **hint)
{
	char	   *buf = fini_secret_alloc(MAX_KEY_FILE);
	off_t		size = 0;
	const char *defect;
	ssize_t		got = 0;
	int			fd;

	/* O_NONBLOCK, or opening a named pipe would wait for its writer */
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
	{
		*hint = "It must be readable by the operating system user that runs the server.";
		return psprintf("The file cannot be opened: %m.");
	}

	defect = file_defect(fd, &size, hint);
	*len = 0;
	while (defect == NULL && *len < (Size) size)
	{
		got = read(fd, buf + *len, (Size) size - *len);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			defect = "The file cannot be read.";
		if (got <= 0)
			break;
		*len += got;
	}
	close(fd);

	*data = buf;
	return defect;
}

/*
 * Judged on the open file, so that it cannot be exchanged in between.  The
 * rule is that of PostgreSQL's ssl_key_file.
 */
static const char *
file_defect(int fd, off_t *size, const char **hint)
{
	struct stat st;
	mode_t		forbidden = S_IRWXG | S_IRWXO;

	if (fstat(fd, &st) != 0)
		return "The file's status cannot be read.";
	if (!S_ISREG(st.st_mode))
		return "It is not a regular file.";
	if (st.st_uid != geteuid() && st.st_uid != 0)
	{
		*hint = "It must be owned by the operating system user that runs the server, or by root.";
		return "The file is owned by somebody else.";
	}
	if (st.st_uid != geteuid())
		forbidden = S_IWGRP | S_IXGRP | S_IRWXO;
	if ((st.st_mode & forbidden) != 0)
	{
		*hint = "Permissions should be 0600 or less if the server's user owns the file, or 0640 or less if root does.";
		return "The file is open to group or others.";
	}
	if (st.st_size > MAX_KEY_FILE)
		return "The file is too large for a private key.";

	*size = st.st_size;
	return NULL;
}

static void
append_base64url(StringInfo dst, const void *src, Size len)
{
	enlargeStringInfo(dst, (int) FINI_BASE64_LEN(len) + 1);
	dst->len += (int) fini_base64_encode_url(src, len, dst->data + dst->len);
	dst->data[dst->len] = '\0';
}

/*
 * A number of the public key as JWK has it: base64url of its big-endian bytes,
 * as many as it takes.
 */
static void
append_key_number(StringInfo dst, EVP_PKEY *pkey, const char *param)
{
	BIGNUM	   *number = NULL;
	uint8	   *bytes;

	if (EVP_PKEY_get_bn_param(pkey, param, &number) != 1)
		fini_cipher_failed("read a public key");
	fini_secret_on_reset(free_bn, number);

	bytes = palloc(BN_num_bytes(number) + 1);
	append_base64url(dst, bytes, BN_bn2bin(number, bytes));
}

/*
 * Append a dot and the RS256 signature of signed_text, which may be dst's own.
 */
static void
append_signature(StringInfo dst, EVP_PKEY *pkey, const char *signed_text, Size len)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint8	   *signature;
	size_t		signature_len = EVP_PKEY_get_size(pkey);

	if (ctx == NULL)
		fini_cipher_failed("sign an assertion");
	fini_secret_on_reset(free_md_ctx, ctx);

	/* an RSA key signs with PKCS#1 v1.5 unless told otherwise, and that is RS256 */
	signature = palloc(signature_len);
	if (EVP_DigestSignInit_ex(ctx, NULL, "SHA256", NULL, NULL, pkey, NULL) != 1 ||
		EVP_DigestSign(ctx, signature, &signature_len,
					   (const uint8 *) signed_text, len) != 1)
		fini_cipher_failed("sign an assertion");

	appendStringInfoChar(dst, '.');
	append_base64url(dst, signature, signature_len);
}

/* OpenSSL would ask on the terminal otherwise */
static int
no_passphrase(char *buf, int size, int rwflag, void *asked)
{
	*(bool *) asked = true;
	return -1;
}

static void
free_pkey(void *arg)
{
	EVP_PKEY_free(arg);
}

static void
free_bio(void *arg)
{
	BIO_free_all(arg);
}

static void
free_bn(void *arg)
{
	BN_clear_free(arg);
}

static void
free_md_ctx(void *arg)
{
	EVP_MD_CTX_free(arg);
}
