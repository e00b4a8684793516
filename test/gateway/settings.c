/*
 * settings.c
 *		The command line.
 */
#include "settings.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

Settings	gw_settings = {
	.token_path = "/openam/oauth2/eu/access_token",
	.personal = {"idType", "idCountryJurisdiction", "idNum", "fullNameEng", "fullNameChi"},
	.npersonal = 5,
	.token_lifetime_ms = 30000,
	.timestamp_window_ms = 300000,
	.rate_limit = 480,
	.rate_window_us = 60000000,
	.max_page_size = 1000,
	.entitled = GW_ENTITLED_SUBSCRIPTIONS | GW_ENTITLED_FUNDING,
};

enum
{
	OPT_PORT = 256, OPT_ADMIN_PORT, OPT_CERT, OPT_KEY, OPT_CLIENT_CA, OPT_SELF_SIGNED,
	OPT_AGENT_JWKS, OPT_AGENT_PUBLIC, OPT_MACHINE_JWKS, OPT_MACHINE_PUBLIC,
	OPT_AGENT_ISSUER, OPT_AGENT_SUBJECT, OPT_MACHINE_ID, OPT_TOKEN_PATH, OPT_TOKEN_AUD,
	OPT_TOKEN_LIFETIME, OPT_CLOCK_SKEW, OPT_TIMESTAMP_WINDOW, OPT_RATE_LIMIT,
	OPT_RATE_WINDOW, OPT_LATENCY, OPT_ENTITLE, OPT_ENCRYPTED_FIELDS, OPT_LOG, OPT_HELP
};

static const struct option options[] = {
	{"port", required_argument, NULL, OPT_PORT},
	{"admin-port", required_argument, NULL, OPT_ADMIN_PORT},
	{"cert", required_argument, NULL, OPT_CERT},
	{"key", required_argument, NULL, OPT_KEY},
	{"client-ca", required_argument, NULL, OPT_CLIENT_CA},
	{"self-signed", required_argument, NULL, OPT_SELF_SIGNED},
	{"agent-jwks", required_argument, NULL, OPT_AGENT_JWKS},
	{"agent-public", required_argument, NULL, OPT_AGENT_PUBLIC},
	{"machine-jwks", required_argument, NULL, OPT_MACHINE_JWKS},
	{"machine-public", required_argument, NULL, OPT_MACHINE_PUBLIC},
	{"agent-issuer", required_argument, NULL, OPT_AGENT_ISSUER},
	{"agent-subject", required_argument, NULL, OPT_AGENT_SUBJECT},
	{"machine-id", required_argument, NULL, OPT_MACHINE_ID},
	{"token-path", required_argument, NULL, OPT_TOKEN_PATH},
	{"token-aud", required_argument, NULL, OPT_TOKEN_AUD},
	{"token-lifetime", required_argument, NULL, OPT_TOKEN_LIFETIME},
	{"clock-skew", required_argument, NULL, OPT_CLOCK_SKEW},
	{"timestamp-window", required_argument, NULL, OPT_TIMESTAMP_WINDOW},
	{"rate-limit", required_argument, NULL, OPT_RATE_LIMIT},
	{"rate-window", required_argument, NULL, OPT_RATE_WINDOW},
	{"latency", required_argument, NULL, OPT_LATENCY},
	{"entitle", required_argument, NULL, OPT_ENTITLE},
	{"encrypted-fields", required_argument, NULL, OPT_ENCRYPTED_FIELDS},
	{"log", required_argument, NULL, OPT_LOG},
	{"help", no_argument, NULL, OPT_HELP},
	{NULL, 0, NULL, 0}
};

static const char help[] =
"fini-gateway: a sandbox in place of HKEX's FINI API Gateway\n"
"\n"
"Usage: fini-gateway OPTION...\n"
"\n"
"Listens on loopback only, runs in the foreground, ends on SIGTERM or SIGINT.  When\n"
"ready it prints one line: {\"port\":N,\"admin_port\":N,\"url\":\"https://localhost:N\"}\n"
"\n"
"Network:\n"
"  --port N               HTTPS port of the gateway (0, the default: any free one)\n"
"  --admin-port N         HTTP port of the administration (0, the default: any free one)\n"
"  --cert FILE            certificate chain, PEM\n"
"  --key FILE             its private key, PEM\n"
"  --self-signed FILE     instead of both: make a certificate for localhost at start,\n"
"                         and write it to FILE for the client to trust\n"
"  --client-ca FILE       demand client certificates issued by these, PEM\n"
"  --latency MS           wait so long before each answer (0)\n"
"\n"
"Who may come in:\n"
"  --agent-jwks FILE      registered JWK set of the agent profile\n"
"  --agent-public FILE    or its public key as PEM\n"
"  --machine-jwks FILE    registered JWK set of the machine profile\n"
"  --machine-public FILE  or its public key as PEM\n"
"  --agent-issuer URL     iss of the agent assertion\n"
"  --agent-subject ID     sub of the agent assertion, e.g. CP00010\n"
"  --machine-id UUID      iss and sub of the machine assertion\n"
"  --token-path PATH      path of the token endpoint (/openam/oauth2/eu/access_token)\n"
"  --token-aud URL        aud to demand, may be given several times\n"
"                         (https://localhost:PORT and the token path)\n"
"  --entitle LIST         of subscriptions, funding (both)\n"
"\n"
"Rules:\n"
"  --token-lifetime S     seconds an access token lives (30)\n"
"  --clock-skew MS        this gateway's clock minus the real one (0)\n"
"  --timestamp-window MS  how far X-FINI-TIMESTAMP may be off (300000)\n"
"  --rate-limit N         requests in a window (480; 0: no limit)\n"
"  --rate-window S        length of that sliding window, decimals allowed (60)\n"
"  --encrypted-fields L   names of the personal fields, separated by commas\n"
"\n"
"  --log FILE             diagnostics (default: standard error)\n"
"  --help                 this text\n";

static int64_t number(const char *name, const char *text, int64_t low, int64_t high);
static int64_t seconds(const char *name, const char *text, int64_t unit);
static int	split(char *list, const char **items, int max);
static void fail(const char *format, const char *what);
static void check(void);

/* Reads the command line into gw_settings; a wrong one ends the program. */
void
gw_settings_parse(int argc, char **argv)
{
	Settings   *s = &gw_settings;
	int			c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (c)
		{
			case OPT_PORT:
				s->port = (int) number("--port", optarg, 0, 65535);
				break;
			case OPT_ADMIN_PORT:
				s->admin_port = (int) number("--admin-port", optarg, 0, 65535);
				break;
			case OPT_CERT:
				s->cert_file = optarg;
				break;
			case OPT_KEY:
				s->key_file = optarg;
				break;
			case OPT_CLIENT_CA:
				s->client_ca_file = optarg;
				break;
			case OPT_SELF_SIGNED:
				s->self_signed_file = optarg;
				break;
			case OPT_AGENT_JWKS:
				s->agent_jwks_file = optarg;
				break;
			case OPT_AGENT_PUBLIC:
				s->agent_public_file = optarg;
				break;
			case OPT_MACHINE_JWKS:
				s->machine_jwks_file = optarg;
				break;
			case OPT_MACHINE_PUBLIC:
				s->machine_public_file = optarg;
				break;
			case OPT_AGENT_ISSUER:
				s->agent_issuer = optarg;
				break;
			case OPT_AGENT_SUBJECT:
				s->agent_subject = optarg;
				break;
			case OPT_MACHINE_ID:
				s->machine_id = optarg;
				break;
			case OPT_TOKEN_PATH:
				s->token_path = optarg;
				break;
			case OPT_TOKEN_AUD:
				if (s->naudiences == GW_MAX_AUDIENCES)
					fail("too many of %s", "--token-aud");
				s->audiences[s->naudiences++] = optarg;
				break;
			case OPT_TOKEN_LIFETIME:
				s->token_lifetime_ms = seconds("--token-lifetime", optarg, 1000);
				break;
			case OPT_CLOCK_SKEW:
				s->clock_skew_ms = number("--clock-skew", optarg, -INT64_C(1000000000000), INT64_C(1000000000000));
				break;
			case OPT_TIMESTAMP_WINDOW:
				s->timestamp_window_ms = number("--timestamp-window", optarg, 0, INT64_C(1000000000000));
				break;
			case OPT_RATE_LIMIT:
				s->rate_limit = number("--rate-limit", optarg, 0, 100000000);
				break;
			case OPT_RATE_WINDOW:
				s->rate_window_us = seconds("--rate-window", optarg, 1000000);
				break;
			case OPT_LATENCY:
				s->latency_ms = number("--latency", optarg, 0, 86400000);
				break;
			case OPT_ENTITLE:
				{
					const char *names[8];
					int			n = split(optarg, names, 8);
					int			bits = 0;

					for (int i = 0; i < n; i++)
						if (!gw_settings_entitle(names[i], &bits))
							fail("unknown entitlement \"%s\"", names[i]);
					s->entitled = bits;
					break;
				}
			case OPT_ENCRYPTED_FIELDS:
				s->npersonal = split(optarg, s->personal, GW_MAX_PERSONAL);
				break;
			case OPT_LOG:
				s->log_file = optarg;
				break;
			case OPT_HELP:
				fputs(help, stdout);
				exit(0);
			default:
				fputs("Try --help.\n", stderr);
				exit(2);
		}
	}
	if (optind < argc)
		fail("unexpected argument \"%s\"", argv[optind]);
	check();
}

/* Adds the bit of a named entitlement; false when there is no such name. */
bool
gw_settings_entitle(const char *name, int *bits)
{
	if (strcmp(name, "subscriptions") == 0)
		*bits |= GW_ENTITLED_SUBSCRIPTIONS;
	else if (strcmp(name, "funding") == 0)
		*bits |= GW_ENTITLED_FUNDING;
	else
		return false;
	return true;
}

static void
check(void)
{
	Settings   *s = &gw_settings;

	if ((s->cert_file == NULL) != (s->key_file == NULL))
		fail("%s go together", "--cert and --key");
	if ((s->cert_file == NULL) == (s->self_signed_file == NULL))
		fail("give either %s", "--cert and --key, or --self-signed");
	if ((s->agent_jwks_file == NULL) == (s->agent_public_file == NULL))
		fail("give either %s", "--agent-jwks or --agent-public");
	if ((s->machine_jwks_file == NULL) == (s->machine_public_file == NULL))
		fail("give either %s", "--machine-jwks or --machine-public");
	if (s->agent_issuer == NULL)
		fail("%s is missing", "--agent-issuer");
	if (s->agent_subject == NULL)
		fail("%s is missing", "--agent-subject");
	if (s->machine_id == NULL)
		fail("%s is missing", "--machine-id");
	if (s->token_path[0] != '/')
		fail("%s must start with a slash", "--token-path");
}

static int64_t
number(const char *name, const char *text, int64_t low, int64_t high)
{
	char	   *end;
	long long	value = strtoll(text, &end, 10);

	if (end == text || *end != '\0' || value < low || value > high)
		fail("%s needs a whole number within its range", name);
	return value;
}

/* Seconds with decimals, in units of 1/unit second. */
static int64_t
seconds(const char *name, const char *text, int64_t unit)
{
	char	   *end;
	double		value = strtod(text, &end);

	if (end == text || *end != '\0' || !(value > 0 && value < 1e7))
		fail("%s needs a positive number of seconds", name);
	return (int64_t) (value * (double) unit + 0.5);
}

static int
split(char *list, const char **items, int max)
{
	char	   *rest = NULL;
	char	   *item;
	int			n = 0;

	for (item = strtok_r(list, ",", &rest); item != NULL; item = strtok_r(NULL, ",", &rest))
	{
		if (n == max)
			fail("too many items in \"%s\"", list);
		items[n++] = item;
	}
	return n;
}

static void
fail(const char *format, const char *what)
{
	fputs("fini-gateway: ", stderr);
	fprintf(stderr, format, what);
	fputs("\nTry --help.\n", stderr);
	exit(2);
}
