/*
 * check_advice.c
 *		What others tell us, explained: failures of the network, refusals of the
 *		token service, codes of the gateway.
 */
#include "postgres.h"

#include "check.h"

typedef struct Advice
{
	const char *said;
	const char *advice;
} Advice;

/* the texts of protocol.md section 1; the longer ones first, as one begins like another */
static const Advice token_texts[] = {
	{"JWT assertion is expired or invalid",
	"An assertion was too old when it arrived, or a claim of it is not what was registered: "
	"compare fini.agent_issuer, fini.agent_subject, fini.machine_id and fini.token_url with HKEX Client Connect, and this server's clock with NTP."},
	{"JWT has expired",
	"This server's clock is behind FINI's, or fini.assertion_lifetime is shorter than the way there: "
	"keep the clock by NTP, or raise fini.assertion_lifetime."},
	{"JWT expiration time is unreasonable",
	"FINI takes assertions that end within 30 minutes: this server's clock is ahead of FINI's, or fini.assertion_lifetime is too long. "
	"Keep the clock by NTP, or lower fini.assertion_lifetime."},
	{"JWT assertion is not valid",
	"The signature or a claim does not fit what is registered: the key is not registered for this profile or its registration has ended "
	"(register what fini.jwks prints), agent and machine key are exchanged, or one of fini.agent_issuer, fini.agent_subject, fini.machine_id and "
	"fini.token_url (the audience) is not what HKEX Client Connect shows."},
	{"JWT could not parse",
	"The assertions did not arrive as they were sent: look for a proxy that changes requests, and for a fini.token_url that is no token service. "
	"If neither is the cause, it is a defect: report it."},
	{"client assertion type",
	"Set fini.client_assertion_type to another of the forms that HKEX prints: urn:ietf:params:oauth:grant-type:jwt-bearer, "
	"urn:ietf:params:oauth:assertion-type:jwt-bearer or urn:ietf:params:oauth:client-assertion-type:jwt-bearer."},
};

/* OAuth's own words, for descriptions that we do not know */
static const Advice token_errors[] = {
	{"invalid_client",
	"The machine's assertion was refused: compare fini.machine_id, the machine's registered key and fini.client_assertion_type with HKEX Client Connect."},
	{"invalid_grant",
	"The agent's assertion was refused: compare fini.agent_issuer, fini.agent_subject and the agent's registered key with HKEX Client Connect."},
	{"unauthorized_client", "The profiles are not allowed to use the API: ask HKEX to enable them."},
	{"access_denied", "The profiles are not allowed to use the API: ask HKEX to enable them."},
	{"unsupported_grant_type", "This is not FINI's token service: check fini.token_url."},
	{"invalid_request", "The token service did not understand the request: check fini.token_url, and fini.client_assertion_type."},
	{"invalid_scope", "The profiles have no scope at FINI: ask HKEX."},
};

/* protocol.md section 4 */
static const Advice codes[] = {
	{"411004", " This server's clock and FINI's disagree: see clock."},
	{"411007", " The gateway's public key has just changed: try again."},
	{"411008", " The gateway's public key has just changed (try again), or something on the way changes requests."},
	{"411011", " The gateway's public key has just changed: try again."},
	{"4110", " Our envelope is not what the gateway wants: a defect, or a change of FINI's protocol. Report it."},
};

static const Advice *find(const Advice *list, size_t n, const char *said, bool anywhere);

const char *
fini_check_transport_advice(FiniHttpFailure failure)
{
	switch (failure)
	{
		case FINI_HTTP_FAILURE_NAME:
			return "Check the host in fini.base_url and fini.token_url, and this server's name service.";
		case FINI_HTTP_FAILURE_PROXY:
			return "Check fini.proxy.";
		case FINI_HTTP_FAILURE_CONNECT:
			return "Check host and port in fini.base_url and fini.token_url, firewalls and the leased line; fini.proxy if there is no direct way.";
		case FINI_HTTP_FAILURE_TIMEOUT:
			return "Nobody answered in time: check firewalls and the leased line, and whether fini.proxy is needed.";
		case FINI_HTTP_FAILURE_CERTIFICATE:
			return "Nobody whom this server trusts vouches for the certificate: set fini.ca_file to the authorities that sign the gateway's. "
				"If they are the right ones, somebody else answers in its place.";
		case FINI_HTTP_FAILURE_CERTIFICATE_EXPIRED:
			return "The certificate of the gateway, or of an authority on the way to it, is not valid now: compare this server's clock with NTP; "
				"if it is right, the certificate's owner has to renew it.";
		case FINI_HTTP_FAILURE_CERTIFICATE_NAME:
			return "The certificate was made out to another host: check the host in fini.base_url and fini.token_url. "
				"If it is right, somebody else answers in its place.";
		case FINI_HTTP_FAILURE_PIN:
			return "The certificate is in order, but its key is not in fini.pinned_public_key: ask HKEX for the digest of the new key before adding it.";
		case FINI_HTTP_FAILURE_CA_FILE:
			return "See tls_files.";
		case FINI_HTTP_FAILURE_CLIENT_CERTIFICATE:
			return "Certificate and key have to belong together: see tls_files.";
		case FINI_HTTP_FAILURE_TLS:
			return "No TLS 1.2 or later could be agreed on: check that the port speaks TLS, and whether the gateway asks for a client certificate "
				"(fini.client_cert_file, fini.client_key_file).";
		default:
			return "Check what is between this server and the gateway, and whether the gateway asks for a client certificate.";
	}
}

const char *
fini_check_token_advice(const char *error, const char *description)
{
	const Advice *advice = find(token_texts, lengthof(token_texts), description, true);

	if (advice == NULL)
		advice = find(token_errors, lengthof(token_errors), error, false);
	return advice != NULL ? advice->advice :
		"Compare all of fini.agent_*, fini.machine_* and fini.token_url with HKEX Client Connect, or ask HKEX.";
}

const char *
fini_check_code_advice(const char *code)
{
	const Advice *advice = find(codes, lengthof(codes), code, false);

	return advice != NULL ? advice->advice : "";
}

/* the first whose text stands in what was said: anywhere, or at its beginning; letters' case does not matter */
static const Advice *
find(const Advice *list, size_t n, const char *said, bool anywhere)
{
	for (size_t i = 0; i < n; i++)
	{
		size_t		len = strlen(list[i].said);

		for (const char *at = said; *at != '\0' && (at == said || anywhere); at++)
		{
			if (pg_strncasecmp(at, list[i].said, len) == 0)
				return &list[i];
		}
	}
	return NULL;
}
