/*
 * main.c
 *		Start and end of the sandbox gateway.
 */
#include "admin.h"
#include "api.h"
#include "certificate.h"
#include "ipo.h"
#include "jwk.h"
#include "settings.h"
#include "store.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_API_BODY ((size_t) 64 * 1024 * 1024)
#define MAX_ADMIN_BODY ((size_t) 2 * 1024 * 1024 * 1024)

static void load_keys(void);
static void load_certificate(Buf *certificate, Buf *key);
static void read_or_die(Buf *text, const char *file);
static void set_audience(int port);
static void wait_for_end(void);
static void die(const char *what, const char *why) __attribute__((noreturn));

int
main(int argc, char **argv)
{
	Buf			certificate = {0};
	Buf			key = {0};
	Buf			client_ca = {0};
	Server	   *api;
	Server	   *admin;
	ServerOptions options;
	sigset_t	signals;

	gw_settings_parse(argc, argv);
	if (!gw_log_open())
		die(gw_settings.log_file, strerror(errno));

	/* every thread inherits this mask; wait_for_end() takes the signals */
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);

	if (gnutls_global_init() < 0)
		die("GnuTLS", "cannot be initialised");
	json_object_seed(0);
	load_keys();
	load_certificate(&certificate, &key);
	if (gw_settings.client_ca_file != NULL)
		read_or_die(&client_ca, gw_settings.client_ca_file);
	if (!gw_envelope_rotate_key())
		die("the gateway's key pair", "cannot be made");
	gw_store_init();
	gw_ipo_preload();

	options = (ServerOptions) {
		.port = gw_settings.port,
		.certificate = certificate.data,
		.key = key.data,
		.client_ca = client_ca.data,
		.max_body = MAX_API_BODY,
		.begin = gw_api_begin,
		.finish = gw_api_finish,
	};
	if (gw_settings.port != 0)
		set_audience(gw_settings.port);
	api = gw_http_start(&options);
	if (api == NULL)
		die("the gateway's port", "cannot be served (port taken, or certificate and key unusable)");
	options = (ServerOptions) {
		.port = gw_settings.admin_port,
		.max_body = MAX_ADMIN_BODY,
		.finish = gw_admin_finish,
	};
	admin = gw_http_start(&options);
	if (admin == NULL)
		die("the administration's port", "cannot be served");
	set_audience(gw_http_port(api));
	printf("{\"port\":%d,\"admin_port\":%d,\"url\":\"https://localhost:%d\"}\n",
		   gw_http_port(api), gw_http_port(admin), gw_http_port(api));
	fflush(stdout);
	wait_for_end();

	gw_clock_stop();
	gw_http_stop(api);
	gw_http_stop(admin);
	gw_store_reset();
	gw_fault_clear();
	gw_buf_free(&certificate);
	gw_buf_free(&key);
	gw_buf_free(&client_ca);
	return 0;
}

static void
load_keys(void)
{
	if (!gw_jwk_load(PROFILE_AGENT, gw_settings.agent_jwks_file, gw_settings.agent_public_file))
		die("the agent profile's key", "cannot be registered");
	if (!gw_jwk_load(PROFILE_MACHINE, gw_settings.machine_jwks_file, gw_settings.machine_public_file))
		die("the machine profile's key", "cannot be registered");
	if (!gw_jwk_distinct())
		die("agent and machine profile", "share a key");
}

static void
load_certificate(Buf *certificate, Buf *key)
{
	FILE	   *file;
	bool		ok;

	if (gw_settings.cert_file != NULL)
	{
		read_or_die(certificate, gw_settings.cert_file);
		read_or_die(key, gw_settings.key_file);
		return;
	}
	if (!gw_certificate_make(certificate, key))
		die("the certificate", "cannot be made");
	file = fopen(gw_settings.self_signed_file, "w");
	ok = file != NULL && fwrite(certificate->data, 1, certificate->len, file) == certificate->len;
	if (file == NULL || fclose(file) != 0 || !ok)
		die(gw_settings.self_signed_file, strerror(errno));
}

static void
read_or_die(Buf *text, const char *file)
{
	if (!gw_buf_read_file(text, file))
		die(file, strerror(errno));
	if (text->len == 0)
		die(file, "is empty");
}

/* The token URL by which clients reach us, unless the command line says otherwise. */
static void
set_audience(int port)
{
	static char audience[1024];

	if (gw_settings.naudiences > 0)
		return;
	snprintf(audience, sizeof(audience), "https://localhost:%d%s", port, gw_settings.token_path);
	gw_settings.audiences[0] = audience;
	gw_settings.naudiences = 1;
}

static void
wait_for_end(void)
{
	sigset_t	signals;
	int			which;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigwait(&signals, &which);
}

static void
die(const char *what, const char *why)
{
	gw_log("%s: %s", what, why);
	exit(1);
}
