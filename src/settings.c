/*
 * settings.c
 *		Every setting of the extension, and what is derived from them.
 *
 * All but fini.databases can be set for a database, by a superuser: one
 * database acts for one FINI participant profile.  The variables belong to
 * PostgreSQL's settings machinery and change under SET and reload; whoever
 * needs a value beyond the current statement copies it.
 */
#include "postgres.h"

#include <openssl/evp.h>

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "error.h"
#include "secret.h"
#include "settings.h"
#include "settings_check.h"

#define TOKEN_PATH	"/openam/oauth2/eu/access_token"

char	   *fini_guc_databases = NULL;
char	   *fini_guc_base_url = NULL;
char	   *fini_guc_token_url = NULL;
char	   *fini_guc_agent_issuer = NULL;
char	   *fini_guc_agent_subject = NULL;
char	   *fini_guc_agent_key_file = NULL;
char	   *fini_guc_machine_id = NULL;
char	   *fini_guc_machine_key_file = NULL;
char	   *fini_guc_client_assertion_type = NULL;
int			fini_guc_assertion_lifetime = 300;
char	   *fini_guc_firm_id = NULL;
char	   *fini_guc_ca_file = NULL;
char	   *fini_guc_client_cert_file = NULL;
char	   *fini_guc_client_key_file = NULL;
char	   *fini_guc_pinned_public_key = NULL;
char	   *fini_guc_proxy = NULL;
int			fini_guc_connect_timeout = 10000;
int			fini_guc_request_timeout = 60000;
int			fini_guc_rate_limit = 60;
int			fini_guc_rate_window = 60000;
int			fini_guc_batch_size = 1000;
int			fini_guc_max_in_flight = 4;
int			fini_guc_max_attempts = 100;
int			fini_guc_table_timeout = 30000;
int			fini_guc_deadline_margin = 2000;
int			fini_guc_reconcile_share = 50;
int			fini_guc_reconcile_retention = 90 * 24 * 60;
int			fini_guc_retention = 0;
char	   *fini_guc_encrypted_fields = NULL;
char	   *fini_guc_authorised_status = NULL;
char	   *fini_guc_invalidated_status = NULL;
char	   *fini_guc_hkid_types = NULL;
int			fini_guc_token_refresh_margin = 10000;

/* fini.encrypted_fields parsed: owned by the settings machinery */
static const FiniFieldList *encrypted_fields = NULL;

static void define_identity(void);
static void define_connection(void);
static void define_traffic(void);
static void define_content(void);
static void define_string(const char *name, const char *shown, const char *detail,
						  char **variable, const char *value, int flags, GucStringCheckHook check);
static void define_int(const char *name, const char *shown, const char *detail,
					   int *variable, int value, int min, int max, int flags);
static void assign_encrypted_fields(const char *newval, void *extra);
static void require(const char *name, const char *value);
static void compute_fingerprint(uint8 dst[32]);
static void digest_string(EVP_MD_CTX *context, const char *value, bool *ok);

void
fini_settings_init(void)
{
	/*
	 * Loaded later, by a session that only wants a building block, the library
	 * has no workers and PostgreSQL allows no PGC_POSTMASTER setting; a value
	 * in the configuration is shown then, and without effect.
	 */
	DefineCustomStringVariable("fini.databases",
							   "Databases for which a FINI worker runs.",
							   "A comma-separated list of database names; each gets one background worker and a place in "
							   "shared memory. The databases need not exist yet. Needs fini in shared_preload_libraries.",
							   &fini_guc_databases, "",
							   process_shared_preload_libraries_in_progress ? PGC_POSTMASTER : PGC_SIGHUP,
							   GUC_LIST_INPUT, fini_settings_check_databases, NULL, NULL);
	define_identity();
	define_connection();
	define_traffic();
	define_content();
	MarkGUCPrefixReserved("fini");
}

char *
fini_settings_token_url(void)
{
	if (fini_guc_token_url[0] != '\0')
		return pstrdup(fini_guc_token_url);
	if (fini_guc_base_url[0] != '\0')
		return psprintf("%s%s", fini_guc_base_url, TOKEN_PATH);
	return pstrdup("");
}

/*
 * A path that does not start with a slash could change the host that the
 * URL names ("@elsewhere"), and the access token would go there.
 */
char *
fini_settings_url(const char *path)
{
	const char *c;

	for (c = path; *c != '\0' && *c != '#'; c++)
	{
		if ((unsigned char) *c <= 0x20 || (unsigned char) *c >= 0x7f || *c == '\\')
			break;
	}
	if (path[0] != '/' || *c != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid path of a FINI endpoint"),
				 errdetail("The path must start with a slash and consist of printable ASCII characters without spaces, backslashes and \"#\"."),
				 errhint("Percent-encode other characters.")));
	require("fini.base_url", fini_guc_base_url);
	return psprintf("%s%s", fini_guc_base_url, path);
}

void
fini_settings_require(void)
{
	require("fini.base_url", fini_guc_base_url);
	require("fini.agent_issuer", fini_guc_agent_issuer);
	require("fini.agent_subject", fini_guc_agent_subject);
	require("fini.agent_key_file", fini_guc_agent_key_file);
	require("fini.machine_id", fini_guc_machine_id);
	require("fini.machine_key_file", fini_guc_machine_key_file);

	if (strcmp(fini_guc_authorised_status, fini_guc_invalidated_status) == 0)
		ereport(ERROR,
				(errcode(FINI_ERRCODE_NOT_CONFIGURED),
				 errmsg("fini.authorised_status and fini.invalidated_status are the same"),
				 errhint("Set each to the code that FINI's guide lists as subFlowStatus.")));
	if ((fini_guc_client_cert_file[0] == '\0') != (fini_guc_client_key_file[0] == '\0'))
		ereport(ERROR,
				(errcode(FINI_ERRCODE_NOT_CONFIGURED),
				 errmsg("only one of fini.client_cert_file and fini.client_key_file is set"),
				 errhint("A client certificate needs both; without one, set neither.")));
}

/*
 * Asked for twice by each call, and hashing takes a microsecond or two: so the
 * last one is kept, with the settings that it was made of.
 */
void
fini_settings_fingerprint(uint8 dst[32])
{
	static char **const parts[] = {
		&fini_guc_base_url, &fini_guc_token_url, &fini_guc_agent_issuer, &fini_guc_agent_subject, &fini_guc_agent_key_file,
		&fini_guc_machine_id, &fini_guc_machine_key_file, &fini_guc_client_assertion_type, &fini_guc_ca_file,
		&fini_guc_client_cert_file, &fini_guc_client_key_file, &fini_guc_pinned_public_key, &fini_guc_proxy
	};
	static char *noted[lengthof(parts)];
	static uint8 kept[32];

	if (fini_settings_differ(lengthof(parts), parts, noted))
	{
		compute_fingerprint(kept);
		fini_settings_note(lengthof(parts), parts, noted);
	}
	memcpy(dst, kept, sizeof(kept));
}

bool
fini_settings_differ(int n, char **const *settings, char *const *noted)
{
	for (int i = 0; i < n; i++)
	{
		if (noted[i] == NULL || strcmp(noted[i], *settings[i]) != 0)
			return true;
	}
	return false;
}

void
fini_settings_note(int n, char **const *settings, char **noted)
{
	/* the first one last: until all are noted, none is */
	for (int i = 0; i < n; i++)
	{
		char	   *old = noted[i];

		noted[i] = NULL;
		if (old != NULL)
		{
			/* a proxy's password, maybe */
			fini_secret_cleanse(old, strlen(old));
			pfree(old);
		}
	}
	for (int i = n - 1; i >= 0; i--)
		noted[i] = MemoryContextStrdup(TopMemoryContext, *settings[i]);
}

int
fini_settings_encrypted_fields(const char *const **names)
{
	*names = encrypted_fields->names;
	return encrypted_fields->count;
}

/* who we are */
static void
define_identity(void)
{
	define_string("fini.agent_issuer", "Issuer of the agent profile, a URL.",
				  "The \"iss\" claim of the agent's assertion, as registered in HKEX Client Connect.",
				  &fini_guc_agent_issuer, "", 0, fini_settings_check_identity);
	define_string("fini.agent_subject", "Company ID in HKEX Client Connect, such as CP00010.",
				  "The \"sub\" claim of the agent's assertion.",
				  &fini_guc_agent_subject, "", 0, fini_settings_check_identity);
	define_string("fini.agent_key_file", "File with the private key of the agent profile.",
				  "An absolute path on the database server: an RSA key in PEM form without passphrase, private to the "
				  "server's user. Register its public half as fini.jwks('agent', ...) prints it.",
				  &fini_guc_agent_key_file, "", GUC_SUPERUSER_ONLY, fini_settings_check_profile_key_file);
	define_string("fini.machine_id", "UUID of the machine profile.",
				  "The \"iss\" and \"sub\" claims of the machine's assertion, as shown in HKEX Client Connect.",
				  &fini_guc_machine_id, "", 0, fini_settings_check_identity);
	define_string("fini.machine_key_file", "File with the private key of the machine profile.",
				  "As fini.agent_key_file, but another key: the two profiles must not share one.",
				  &fini_guc_machine_key_file, "", GUC_SUPERUSER_ONLY, fini_settings_check_profile_key_file);
	define_string("fini.client_assertion_type", "Value of client_assertion_type in token requests.",
				  "HKEX's documents print it in several ways; change it when the token service refuses the default.",
				  &fini_guc_client_assertion_type, "urn:ietf:params:oauth:grant-type:jwt-bearer", 0,
				  fini_settings_check_assertion_type);
	define_int("fini.assertion_lifetime", "How long an assertion sent to the token service is valid.",
			   "FINI accepts up to 30 minutes. A short life limits the use of a stolen assertion; a long one tolerates "
			   "a clock that is off.",
			   &fini_guc_assertion_lifetime, 300, 1, 1800, GUC_UNIT_S);
	define_int("fini.token_refresh_margin", "How long before its end an access token is replaced.",
			   "Should exceed the time a token request takes. It is limited to a part of the token's life.",
			   &fini_guc_token_refresh_margin, 10000, 0, 600000, GUC_UNIT_MS);
}

/* where FINI is, and how we get there */
static void
define_connection(void)
{
	define_string("fini.base_url", "URL of the FINI API gateway, without a path of an endpoint.",
				  "Must start with https://. While it is empty, nothing is sent from this database.",
				  &fini_guc_base_url, "", 0, fini_settings_check_base_url);
	define_string("fini.token_url", "URL of the token service.",
				  "When empty, fini.base_url with " TOKEN_PATH " appended. It is the audience of the assertions as well.",
				  &fini_guc_token_url, "", 0, fini_settings_check_token_url);
	define_string("fini.ca_file", "File with the certificate authorities that may vouch for the gateway.",
				  "An absolute path to certificates in PEM form; they replace the system's, also for an https proxy. "
				  "When empty, the system's authorities count. Verification cannot be switched off.",
				  &fini_guc_ca_file, "", 0, fini_settings_check_certificate_file);
	define_string("fini.client_cert_file", "File with our TLS client certificate and its chain.",
				  "An absolute path, PEM form; needs fini.client_key_file. Leave it empty unless the gateway asks for one.",
				  &fini_guc_client_cert_file, "", 0, fini_settings_check_certificate_file);
	define_string("fini.client_key_file", "File with the private key of our TLS client certificate.",
				  "An absolute path, PEM form without passphrase, private to the server's user.",
				  &fini_guc_client_key_file, "", GUC_SUPERUSER_ONLY, fini_settings_check_client_key_file);
	define_string("fini.pinned_public_key", "Digests of the public keys that the gateway may show.",
				  "\"sha256//\" and the base64 form of the SHA-256 digest of the key; several separated by semicolons. "
				  "Checked on top of the certificate. Add the next key before the gateway changes its own.",
				  &fini_guc_pinned_public_key, "", 0, fini_settings_check_pin);
	define_string("fini.proxy", "URL of a proxy to reach the gateway through.",
				  "http:// or https://, with user and password if it wants them. When empty, connections are direct, "
				  "whatever the server's environment says.",
				  &fini_guc_proxy, "", GUC_SUPERUSER_ONLY, fini_settings_check_proxy);
	define_int("fini.connect_timeout", "Longest time to establish a connection, name resolution and TLS included.",
			   "A request that could not be sent for this reason is sent later.",
			   &fini_guc_connect_timeout, 10000, 100, 600000, GUC_UNIT_MS);
	define_int("fini.request_timeout", "Longest time for one request, from start to the end of the answer.",
			   "When it passes after the request was sent, it is unknown whether FINI processed it, and the worker has "
			   "to find out; so be generous.",
			   &fini_guc_request_timeout, 60000, 100, 3600000, GUC_UNIT_MS);
}

/* how much at a time */
static void
define_traffic(void)
{
	define_int("fini.rate_limit", "Most requests in one fini.rate_window.",
			   "Counted over all processes and databases of the server that act for one company. FINI recommends 60 in 60 "
			   "seconds and refuses more than 480. 0 means no limit, for tests only.",
			   &fini_guc_rate_limit, 60, 0, 9600, 0);
	define_int("fini.rate_window", "Length of the sliding window of fini.rate_limit.",
			   "Change it only together with fini.rate_limit.",
			   &fini_guc_rate_window, 60000, 1000, 3600000, GUC_UNIT_MS);
	define_int("fini.batch_size", "Most entries in one request.",
			   "FINI takes up to 1000. Smaller batches fail in smaller parts, but use up the rate limit sooner.",
			   &fini_guc_batch_size, 1000, 1, 1000, 0);
	define_int("fini.max_in_flight", "Most requests that the worker has under way at once.",
			   "Raise it when answers are slow and fini.rate_limit is not used up.",
			   &fini_guc_max_in_flight, 4, 1, 64, 0);
	define_int("fini.deadline_margin", "How long before an IPO's deadline the worker stops sending for it.",
			   "Long enough for a request to arrive: what leaves before must not reach FINI after the deadline.",
			   &fini_guc_deadline_margin, 2000, 0, 600000, GUC_UNIT_MS);
	define_int("fini.max_attempts", "Sendings in a row that were not processed, after which the worker gives a request up.",
			   "Its operations are failed then, and fini.retry puts them back. Pauses between sendings grow up to half a minute.",
			   &fini_guc_max_attempts, 100, 1, 1000000, 0);
	define_int("fini.table_timeout", "Longest time for which an attached table may hold up the worker.",
			   "For reading some rows of it, or writing some outcomes, its owner's triggers and policies included. One worker "
			   "serves all tables; what takes longer is cancelled, and the rows are tried again or say so.",
			   &fini_guc_table_timeout, 30000, 100, 3600000, GUC_UNIT_MS);
	define_int("fini.reconcile_share", "Part of fini.rate_limit that fini.start_reconcile may use, in percent.",
			   "While the queue holds more than can be sent, it is one request in ten.",
			   &fini_guc_reconcile_share, 50, 1, 100, 0);
	define_int("fini.reconcile_retention", "How long reconciliation runs and what they found are kept.",
			   "Older ones go when a later run ends. 0 keeps them.",
			   &fini_guc_reconcile_retention, 90 * 24 * 60, 0, 10 * 365 * 24 * 60, GUC_UNIT_MIN);
	define_int("fini.retention", "How long what has ended is kept in fini's own tables.",
			   "The worker deletes older rows little by little, as fini.purge does. 0 keeps them until fini.purge is called.",
			   &fini_guc_retention, 0, 0, 10 * 365 * 24 * 60, GUC_UNIT_MIN);
}

/* what is in a request */
static void
define_content(void)
{
	define_string("fini.firm_id", "firmID of applications whose row has none.",
				  "\"00000\" unless HKEX gave the firm another ID.",
				  &fini_guc_firm_id, "00000", 0, fini_settings_check_firm_id);
	DefineCustomStringVariable("fini.encrypted_fields",
							   "Names of the fields that are encrypted end to end, wherever they stand in a request.",
							   "A comma-separated list in FINI's spelling, capitals included. A field that is missing here "
							   "is sent without the inner encryption.",
							   &fini_guc_encrypted_fields,
							   "idType,idCountryJurisdiction,idNum,fullNameEng,fullNameChi",
							   PGC_SUSET, GUC_LIST_INPUT,
							   fini_settings_check_fields, assign_encrypted_fields, NULL);
	define_string("fini.authorised_status", "subFlowStatus of a record that stands.",
				  "FINI's code of one or two characters.",
				  &fini_guc_authorised_status, "10", 0, fini_settings_check_status);
	define_string("fini.invalidated_status", "subFlowStatus of a record that has been invalidated.",
				  "FINI's code of one or two characters.",
				  &fini_guc_invalidated_status, "20", 0, fini_settings_check_status);
	define_string("fini.hkid_types", "Values of idType that stand for a Hong Kong identity card.",
				  "A comma-separated list; capitals do not matter. The numbers of such documents have a check digit, which "
				  "fini.precheck looks at.",
				  &fini_guc_hkid_types, "HKID", 0, fini_settings_check_hkid_types);
}

static void
define_string(const char *name, const char *shown, const char *detail,
			  char **variable, const char *value, int flags, GucStringCheckHook check)
{
	DefineCustomStringVariable(name, shown, detail, variable, value, PGC_SUSET, flags, check, NULL, NULL);
}

static void
define_int(const char *name, const char *shown, const char *detail,
		   int *variable, int value, int min, int max, int flags)
{
	DefineCustomIntVariable(name, shown, detail, variable, value, min, max, PGC_SUSET, flags, NULL, NULL, NULL);
}

static void
assign_encrypted_fields(const char *newval, void *extra)
{
	encrypted_fields = extra;
}

/* the database's name is quoted for the hint's command; outside a database there is none */
static void
require(const char *name, const char *value)
{
	char	   *database = NULL;

	if (value[0] != '\0')
		return;
	if (IsTransactionState())
		database = get_database_name(MyDatabaseId);
	ereport(ERROR,
			(errcode(FINI_ERRCODE_NOT_CONFIGURED),
			 errmsg("%s is not set", name),
			 database != NULL ?
			 errhint("Set it with ALTER DATABASE %s SET %s = '...'.", quote_identifier(database), name) :
			 errhint("Set it with ALTER DATABASE ... SET %s = '...'.", name)));
}

/* the length goes first, so that no two lists of values read the same */
static void
compute_fingerprint(uint8 dst[32])
{
	char	   *token_url = fini_settings_token_url();
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	unsigned int len = 0;
	bool		ok = context != NULL && EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1;

	/* nothing from here to the release of the context can raise an error */
	digest_string(context, fini_guc_base_url, &ok);
	digest_string(context, token_url, &ok);
	digest_string(context, fini_guc_agent_issuer, &ok);
	digest_string(context, fini_guc_agent_subject, &ok);
	digest_string(context, fini_guc_agent_key_file, &ok);
	digest_string(context, fini_guc_machine_id, &ok);
	digest_string(context, fini_guc_machine_key_file, &ok);
	digest_string(context, fini_guc_client_assertion_type, &ok);
	digest_string(context, fini_guc_ca_file, &ok);
	digest_string(context, fini_guc_client_cert_file, &ok);
	digest_string(context, fini_guc_client_key_file, &ok);
	digest_string(context, fini_guc_pinned_public_key, &ok);
	digest_string(context, fini_guc_proxy, &ok);
	ok = ok && EVP_DigestFinal_ex(context, dst, &len) == 1 && len == 32;
	EVP_MD_CTX_free(context);
	pfree(token_url);
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not compute the fingerprint of the settings")));
}

static void
digest_string(EVP_MD_CTX *context, const char *value, bool *ok)
{
	uint32		len = pg_hton32((uint32) strlen(value));

	*ok = *ok && EVP_DigestUpdate(context, &len, sizeof(len)) == 1 &&
		EVP_DigestUpdate(context, value, strlen(value)) == 1;
}
