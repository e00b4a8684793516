/*
 * settings.h
 *		Every setting of the extension, with the hooks that check them.
 */
#ifndef FINI_SETTINGS_H
#define FINI_SETTINGS_H

#include "postgres.h"

extern char *fini_guc_databases;
extern char *fini_guc_base_url; /* without a trailing slash */
extern char *fini_guc_token_url;	/* "": derived, see fini_settings_token_url */
extern char *fini_guc_agent_issuer;
extern char *fini_guc_agent_subject;
extern char *fini_guc_agent_key_file;
extern char *fini_guc_machine_id;
extern char *fini_guc_machine_key_file;
extern char *fini_guc_client_assertion_type;
extern int	fini_guc_table_timeout;
extern int	fini_guc_assertion_lifetime;	/* s */
extern char *fini_guc_firm_id;
extern char *fini_guc_ca_file;
extern char *fini_guc_client_cert_file;
extern char *fini_guc_client_key_file;
extern char *fini_guc_pinned_public_key;
extern char *fini_guc_proxy;
extern int	fini_guc_connect_timeout;	/* ms */
extern int	fini_guc_request_timeout;	/* ms */
extern int	fini_guc_rate_limit;	/* requests per window; 0: none */
extern int	fini_guc_rate_window;	/* ms */
extern int	fini_guc_batch_size;
extern int	fini_guc_max_in_flight;
extern int	fini_guc_max_attempts;
extern int	fini_guc_deadline_margin;
extern int	fini_guc_reconcile_share;
extern int	fini_guc_reconcile_retention;
extern int	fini_guc_retention;
extern char *fini_guc_encrypted_fields;
extern char *fini_guc_authorised_status;
extern char *fini_guc_invalidated_status;
extern char *fini_guc_hkid_types;
extern int	fini_guc_token_refresh_margin;	/* ms */

extern void fini_settings_init(void);

/* the token URL in force; palloc'd */
extern char *fini_settings_token_url(void);

/* base_url + path; palloc'd */
extern char *fini_settings_url(const char *path);

/* raise FINI_ERRCODE_NOT_CONFIGURED naming the first required setting that is missing */
extern void fini_settings_require(void);

/*
 * 32 bytes over every setting that decides where a token comes from and goes
 * to: a token fetched under one fingerprint is never used under another.
 */
extern void fini_settings_fingerprint(uint8 dst[32]);

/*
 * For what is derived from settings and kept: does one of n settings differ
 * from what was noted of it (NULL: nothing yet)?  Whoever acts on that notes
 * them afterwards, so that an error on the way makes them differ again.
 */
extern bool fini_settings_differ(int n, char **const *settings, char *const *noted);
extern void fini_settings_note(int n, char **const *settings, char **noted);

/* fini.encrypted_fields, parsed by its check hook: n names */
extern int	fini_settings_encrypted_fields(const char *const **names);

#endif							/* FINI_SETTINGS_H */
