/*
 * settings_file.c
 *		Check hooks of settings that name a file: keys and certificates.
 *
 * The path must always be absolute.  The file itself is looked at only while
 * a person is setting the value, see settings_check.h; so the part that may
 * raise errors and use OpenSSL runs in backends alone.  No path of a key file
 * appears in a text of ours.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "access/parallel.h"
#include "storage/fd.h"
#include "tcop/pquery.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "keys.h"
#include "secret.h"
#include "settings_check.h"

#define MAX_PEM_FILE	(4L * 1024 * 1024)

typedef const char *(*FileProblem) (const char *path, const char **hint);

static bool check_file(const char *path, GucSource source, FileProblem problem_of);
static bool set_by_person(GucSource source);
static const char *profile_key_problem(const char *path, const char **hint);
static const char *read_pem(const char *path, bool private, BIO **bio, const char **hint);
static int	no_password(char *buf, int size, int rwflag, void *arg);

/* the agent's or the machine's private key */
bool
fini_settings_check_profile_key_file(char **newval, void **extra, GucSource source)
{
	return check_file(*newval, source, profile_key_problem);
}

/* the private key of our TLS client certificate, of any type */
bool
fini_settings_check_client_key_file(char **newval, void **extra, GucSource source)
{
	return check_file(*newval, source, fini_settings_client_key_problem);
}

/* one or more certificates: authorities, or our own with its chain */
bool
fini_settings_check_certificate_file(char **newval, void **extra, GucSource source)
{
	return check_file(*newval, source, fini_settings_certificate_problem);
}

static bool
check_file(const char *path, GucSource source, FileProblem problem_of)
{
	MemoryContext context;
	MemoryContext oldcontext;
	const char *problem;
	const char *hint = NULL;

	if (path[0] == '\0')
		return true;
	if (!is_absolute_path(path))
	{
		GUC_check_errdetail("The path is not absolute.");
		GUC_check_errhint("Give the whole path of a file on the database server.");
		return false;
	}
	if (!set_by_person(source))
		return true;

	/* what was read, keys above all, goes with this context */
	context = AllocSetContextCreate(CurrentMemoryContext, "fini settings file", ALLOCSET_SMALL_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	problem = problem_of(path, &hint);
	MemoryContextSwitchTo(oldcontext);

	/* the texts are copied here, so they may go with the context as well */
	if (problem != NULL)
	{
		GUC_check_errdetail("%s", problem);
		if (hint != NULL)
			GUC_check_errhint("%s", hint);
	}
	MemoryContextDelete(context);
	return problem == NULL;
}

/*
 * SET, ALTER DATABASE or ALTER ROLE have sources of their own.  ALTER SYSTEM
 * checks as if the value came from the file, but unlike a reload it is a
 * running statement.  A parallel worker restores what its leader has checked.
 */
static bool
set_by_person(GucSource source)
{
	if (InitializingParallelWorker)
		return false;
	return source >= PGC_S_INTERACTIVE || (source == PGC_S_FILE && ActivePortal != NULL);
}

/* these return NULL, or what is wrong; all in CurrentMemoryContext */

static const char *
profile_key_problem(const char *path, const char **hint)
{
	return fini_keys_check_file(path, hint);
}

const char *
fini_settings_client_key_problem(const char *path, const char **hint)
{
	BIO		   *bio = NULL;
	EVP_PKEY   *key;
	const char *problem = read_pem(path, true, &bio, hint);

	if (problem != NULL)
		return problem;
	key = PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL);
	BIO_free(bio);
	ERR_clear_error();
	if (key == NULL)
	{
		*hint = "The file must hold a private key in PEM form, without a passphrase.";
		return "The file holds no usable private key.";
	}
	EVP_PKEY_free(key);
	return NULL;
}

const char *
fini_settings_certificate_problem(const char *path, const char **hint)
{
	BIO		   *bio = NULL;
	X509	   *certificate;
	int			count = 0;
	unsigned long error;
	const char *problem = read_pem(path, false, &bio, hint);

	if (problem != NULL)
		return problem;
	ERR_clear_error();
	while ((certificate = PEM_read_bio_X509(bio, NULL, no_password, NULL)) != NULL)
	{
		X509_free(certificate);
		count++;
	}
	BIO_free(bio);
	error = ERR_peek_last_error();
	ERR_clear_error();

	/* the end of a good file shows as one more certificate that does not start */
	if (count > 0 && ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE)
		return NULL;
	*hint = "The file must hold one or more certificates in PEM form (-----BEGIN CERTIFICATE-----).";
	return count == 0 ? "The file holds no certificate." : "The file holds a damaged certificate.";
}

const char *
fini_settings_client_pair_problem(const char *certificate_path, const char *key_path, const char **hint, time_t *expires)
{
	BIO		   *certificate_bio = NULL;
	BIO		   *key_bio = NULL;
	X509	   *certificate = NULL;
	EVP_PKEY   *key = NULL;
	struct tm	end;
	const char *problem = read_pem(certificate_path, false, &certificate_bio, hint);

	if (problem == NULL)
		problem = read_pem(key_path, true, &key_bio, hint);
	if (problem == NULL)
	{
		/* the first one is ours */
		certificate = PEM_read_bio_X509(certificate_bio, NULL, no_password, NULL);
		key = PEM_read_bio_PrivateKey(key_bio, NULL, no_password, NULL);
		if (certificate == NULL || key == NULL || X509_check_private_key(certificate, key) != 1)
		{
			*hint = "Set fini.client_cert_file and fini.client_key_file to files that were made for each other.";
			problem = "Certificate and private key do not belong together.";
		}
		else if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &end) == 1)
			*expires = timegm(&end);
	}
	ERR_clear_error();
	X509_free(certificate);
	EVP_PKEY_free(key);
	BIO_free(certificate_bio);
	BIO_free(key_bio);
	return problem;
}

/*
 * Read a file into memory for OpenSSL.  On success *bio is the caller's to
 * free, over memory that is cleansed with CurrentMemoryContext.  A private
 * file must be ours or root's, under the same rule as PostgreSQL's
 * ssl_key_file.
 */
static const char *
read_pem(const char *path, bool private, BIO **bio, const char **hint)
{
	struct stat st;
	FILE	   *file;
	char	   *data;
	size_t		len;
	char	   *problem;

	*hint = "It must be readable by the operating system user that runs the server.";
	if (stat(path, &st) != 0)
		return psprintf("The file cannot be opened: %m.");
	if (!S_ISREG(st.st_mode))
	{
		*hint = "Give the whole path of a file on the database server.";
		return "It is not a regular file.";
	}
	if (private && st.st_uid != geteuid() && st.st_uid != 0)
	{
		*hint = "Make the operating system user that runs the server its owner.";
		return "The file belongs to another user.";
	}
	if (private && (st.st_mode & (st.st_uid == geteuid() ? S_IRWXG | S_IRWXO : S_IWGRP | S_IXGRP | S_IRWXO)) != 0)
	{
		*hint = "Permissions should be 0600 or less if the server's user owns the file, or 0640 or less if root does.";
		return "The file is open to group or others.";
	}
	if (st.st_size > MAX_PEM_FILE)
	{
		*hint = "Give a file with certificates or a key in PEM form.";
		return "The file is too large.";
	}

	file = AllocateFile(path, "r");
	if (file == NULL)
		return psprintf("The file cannot be opened: %m.");
	setvbuf(file, NULL, _IONBF, 0); /* no second copy that nobody cleanses */
	data = fini_secret_alloc((Size) st.st_size + 1);
	len = fread(data, 1, (size_t) st.st_size, file);
	if (ferror(file))
	{
		problem = psprintf("The file cannot be read: %m.");
		FreeFile(file);
		return problem;
	}
	FreeFile(file);

	*hint = NULL;
	*bio = BIO_new_mem_buf(data, (int) len);
	if (*bio == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	return NULL;
}

/* never ask on a terminal */
static int
no_password(char *buf, int size, int rwflag, void *arg)
{
	return 0;
}
