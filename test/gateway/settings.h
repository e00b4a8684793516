/*
 * settings.h
 *		What the command line and the administration port set; the gateway's clock
 *		and log.
 *
 * Fields marked atomic change while the gateway runs; all others are written by
 * main() before the first thread starts and only read afterwards.
 */
#ifndef GW_SETTINGS_H
#define GW_SETTINGS_H

#include "text.h"

#include <stdatomic.h>

#define GW_MAX_AUDIENCES 8
#define GW_MAX_PERSONAL 32

/* Entitlements, as bits. */
#define GW_ENTITLED_SUBSCRIPTIONS 1
#define GW_ENTITLED_FUNDING 2

typedef struct Settings
{
	int			port;
	int			admin_port;
	const char *cert_file;
	const char *key_file;
	const char *client_ca_file;
	const char *self_signed_file;
	const char *agent_jwks_file;
	const char *agent_public_file;
	const char *machine_jwks_file;
	const char *machine_public_file;
	const char *agent_issuer;
	const char *agent_subject;
	const char *machine_id;
	const char *token_path;
	const char *audiences[GW_MAX_AUDIENCES];
	_Atomic int naudiences;		/* with --port 0 set when the port is known */
	const char *personal[GW_MAX_PERSONAL];	/* names of the encrypted fields */
	int			npersonal;
	const char *log_file;

	_Atomic int64_t clock_skew_ms;
	_Atomic int64_t token_lifetime_ms;
	_Atomic int64_t timestamp_window_ms;
	_Atomic int64_t rate_limit; /* 0: none */
	_Atomic int64_t rate_window_us;
	_Atomic int64_t latency_ms;
	_Atomic int64_t max_page_size;
	_Atomic int entitled;
	_Atomic bool record_ids_active_only;
	_Atomic bool forget_fields;
} Settings;

extern Settings gw_settings;

extern void gw_settings_parse(int argc, char **argv);
extern bool gw_settings_entitle(const char *name, int *bits);

extern int64_t gw_clock_ms(void);
extern int64_t gw_clock_monotonic_us(void);
extern void gw_clock_text(char *dst, size_t size);
extern bool gw_clock_sleep(int64_t ms);
extern void gw_clock_stop(void);

extern bool gw_log_open(void);
extern void gw_log(const char *format,...) __attribute__((format(printf, 1, 2)));

#endif
