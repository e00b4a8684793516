/*
 * settings_check.h
 *		The check hooks of settings.c.
 *
 * A hook refuses with a detail that says what is wrong and a hint that says
 * what to do.  Hooks for files look at the file itself only while a person is
 * setting the value (SET, ALTER DATABASE, ALTER ROLE, ALTER SYSTEM): a file
 * that vanished later must neither stop the server nor warn every session.
 */
#ifndef FINI_SETTINGS_CHECK_H
#define FINI_SETTINGS_CHECK_H

#include "postgres.h"

#include <time.h>

#include "utils/guc.h"

/* what the check hook of fini.encrypted_fields hands to its assign hook: one guc_malloc'd block */
typedef struct FiniFieldList
{
	int			count;
	const char *names[FLEXIBLE_ARRAY_MEMBER];
} FiniFieldList;

extern bool fini_settings_check_databases(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_base_url(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_token_url(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_identity(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_hkid_types(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_assertion_type(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_firm_id(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_pin(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_proxy(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_fields(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_status(char **newval, void **extra, GucSource source);

/* settings_file.c */
extern bool fini_settings_check_profile_key_file(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_client_key_file(char **newval, void **extra, GucSource source);
extern bool fini_settings_check_certificate_file(char **newval, void **extra, GucSource source);

/*
 * What these find, for whoever wants to know later: NULL, or what is wrong,
 * without paths.  Bytes read go with CurrentMemoryContext.  expires is that of
 * the certificate, left alone when it has none.
 */
extern const char *fini_settings_client_key_problem(const char *path, const char **hint);
extern const char *fini_settings_certificate_problem(const char *path, const char **hint);
extern const char *fini_settings_client_pair_problem(const char *certificate_path, const char *key_path,
													 const char **hint, time_t *expires);

#endif							/* FINI_SETTINGS_CHECK_H */
