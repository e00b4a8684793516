/*
 * check_files.c
 *		fini.check: key files of the two profiles, certificates of TLS.
 */
#include "postgres.h"

#include <time.h>

#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "check.h"
#include "compat.h"
#include "settings.h"
#include "settings_check.h"

#define SOON_DAYS	28L			/* before a certificate ends */

PG_FUNCTION_INFO_V1(fini_sql_key_id);

static char *check_key(FiniCheck *check, FiniProfile profile);
static void check_tls_files(FiniCheck *check);
static const char *path_for_reader(const char *path);

void
fini_check_files(FiniCheck *check)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fini check files", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	char	   *agent = check_key(check, FINI_PROFILE_AGENT);
	char	   *machine = check_key(check, FINI_PROFILE_MACHINE);

	if (agent == NULL || machine == NULL)
		fini_check_skip(check, "key_pair", agent == NULL ? "agent_key" : "machine_key");
	else if (strcmp(agent, machine) == 0)
	{
		check->no_token = "key_pair";
		fini_check_put(check, "key_pair", FINI_CHECK_BAD,
					   "Agent and machine profile have the same key: FINI requires a key pair of its own for each. "
					   "Generate another for one of fini.agent_key_file and fini.machine_key_file, and register it.");
	}
	else
		fini_check_put(check, "key_pair", FINI_CHECK_GOOD, "Agent and machine profile have keys of their own.");
	check_tls_files(check);

	/* with what was read of the keys */
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* fini._key_id(profile): the thumbprint of the key that the settings name; null when it cannot be had */
Datum
fini_sql_key_id(PG_FUNCTION_ARGS)
{
	char	   *profile = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *problem;
	const char *hint;
	char	   *id = fini_keys_thumbprint(strcmp(profile, "agent") == 0 ? FINI_PROFILE_AGENT : FINI_PROFILE_MACHINE,
										  &problem, &hint);

	if (id == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(id));
}

/* the key's thumbprint, NULL when it cannot serve */
static char *
check_key(FiniCheck *check, FiniProfile profile)
{
	bool		agent = profile == FINI_PROFILE_AGENT;
	const char *item = agent ? "agent_key" : "machine_key";
	const char *setting = agent ? "fini.agent_key_file" : "fini.machine_key_file";
	const char *path = agent ? fini_guc_agent_key_file : fini_guc_machine_key_file;
	char	   *problem;
	const char *hint;
	char	   *id = fini_keys_thumbprint(profile, &problem, &hint);

	if (id != NULL)
	{
		fini_check_put(check, item, FINI_CHECK_GOOD, "The key %scan be used; its kid is %s.", path_for_reader(path), id);
		return id;
	}
	check->no_token = item;
	if (path[0] == '\0')
		fini_check_put(check, item, FINI_CHECK_BAD,
					   "%s is not set. Generate a key with \"openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048\", register what fini.jwks prints, and set it.",
					   setting);
	else
		fini_check_put(check, item, FINI_CHECK_BAD, "The file %sof %s cannot be used. %s%s%s",
					   path_for_reader(path), setting, problem, hint != NULL ? " " : "", hint != NULL ? hint : "");
	return NULL;
}

static void
check_tls_files(FiniCheck *check)
{
	const char *item = "tls_files";
	const char *hint = NULL;
	const char *problem = NULL;
	const char *what = "fini.ca_file";
	time_t		expires = 0;
	time_t		now = time(NULL);
	bool		pair = fini_guc_client_cert_file[0] != '\0' && fini_guc_client_key_file[0] != '\0';

	if (fini_guc_ca_file[0] != '\0')
		problem = fini_settings_certificate_problem(fini_guc_ca_file, &hint);
	if (problem == NULL && fini_guc_client_cert_file[0] != '\0')
	{
		what = "fini.client_cert_file";
		problem = fini_settings_certificate_problem(fini_guc_client_cert_file, &hint);
	}
	if (problem == NULL && fini_guc_client_key_file[0] != '\0')
	{
		what = "fini.client_key_file";
		problem = fini_settings_client_key_problem(fini_guc_client_key_file, &hint);
	}
	if (problem == NULL && pair)
	{
		what = "the client certificate";
		problem = fini_settings_client_pair_problem(fini_guc_client_cert_file, fini_guc_client_key_file, &hint, &expires);
	}

	if (problem != NULL)
		fini_check_put(check, item, FINI_CHECK_BAD, "What is wrong with %s: %s%s%s", what, problem,
					   hint != NULL ? " " : "", hint != NULL ? hint : "");
	else if (expires != 0 && expires <= now)
		fini_check_put(check, item, FINI_CHECK_BAD, "Our TLS client certificate has expired. Set a new one with its key.");
	else if (expires != 0 && expires - now < SOON_DAYS * 86400)
		fini_check_put(check, item, FINI_CHECK_BAD, "Our TLS client certificate expires in %d days. Set a new one with its key.",
					   (int) ((expires - now) / 86400));
	else
		fini_check_put(check, item, FINI_CHECK_GOOD, "%s; %s.",
					   fini_guc_ca_file[0] != '\0' ? "fini.ca_file can be used" : "The system's authorities vouch for the gateway",
					   pair ? "so can the client certificate" : "no client certificate is set");
}

/* a path is a setting that only some may see */
static const char *
path_for_reader(const char *path)
{
	if (superuser() || has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_SETTINGS))
		return psprintf("\"%s\" ", path);
	return "";
}
