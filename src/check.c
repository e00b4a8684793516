/*
 * check.c
 *		fini.check: what can be seen without leaving the server.
 *
 * fini.check itself is SQL (fini--1.0.sql): it puts these rows and those on
 * versions, registered keys, arming and the queue into their documented order.
 */
#include "postgres.h"

#include <stdarg.h>

#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "check.h"
#include "compat.h"
#include "endpoint.h"
#include "envelope.h"
#include "settings.h"
#include "throttle.h"
#include "token.h"

#define FINI_CEILING		480		/* requests of a company in 60 s, protocol.md section 4 */
#define FINI_RECOMMENDED	60		/* of one machine */

PG_FUNCTION_INFO_V1(fini_sql_check);
PG_FUNCTION_INFO_V1(fini_sql_check_worker);

static void check_server(FiniCheck *check);
static void check_library(FiniCheck *check);
static void check_worker(FiniCheck *check);
static void check_settings(FiniCheck *check);
static void complain(StringInfo text, const char *format,...) __attribute__((format(printf, 2, 3)));
static void check_throttle(FiniCheck *check);

/* fini._check(subscriptions_needed, funding_needed): item, ok, detail; in no particular order */
Datum
fini_sql_check(PG_FUNCTION_ARGS)
{
	FiniCheck	check = {0};

	fini_shared_refuse_worker();
	InitMaterializedSRF(fcinfo, 0);
	check.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	check.slot = fini_shared_my_slot();
	check.subscriptions_needed = PG_GETARG_BOOL(0);
	check.funding_needed = PG_GETARG_BOOL(1);

	check_server(&check);
	check_library(&check);
	check_worker(&check);
	check_settings(&check);
	fini_check_files(&check);
	check_throttle(&check);
	fini_check_probe(&check);
	return (Datum) 0;
}

/*
 * fini._check_worker(): what the items on versions and the queue need to know
 * of shared memory.
 */
Datum
fini_sql_check_worker(PG_FUNCTION_ARGS)
{
	FiniSlotShared *slot = fini_shared_my_slot();
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(fini_version_library());
	values[1] = BoolGetDatum(fini_version_replaced());
	nulls[2] = nulls[3] = nulls[4] = nulls[5] = true;
	if (slot != NULL)
	{
		char		version[FINI_MAX_VERSION];
		TimestampTz settled_at;
		uint32		stopped;
		StringInfoData names;
		char	   *failure = fini_token_failure(slot);

		LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
		strlcpy(version, slot->worker_version, sizeof(version));
		nulls[2] = slot->worker_pid == 0;
		settled_at = slot->settled_at;
		stopped = slot->stopped;
		LWLockRelease(fini_shared_slot_lock(slot));

		initStringInfo(&names);
		for (int i = 0; i < FINI_ENDPOINT_COUNT; i++)
		{
			if ((stopped & (UINT32_C(1) << i)) != 0)
				appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "", fini_endpoint(i)->name);
		}
		values[2] = CStringGetTextDatum(version);
		values[3] = CStringGetTextDatum(names.data);
		nulls[3] = names.len == 0;
		values[4] = TimestampTzGetDatum(settled_at);
		nulls[4] = settled_at == 0;
		values[5] = failure != NULL ? CStringGetTextDatum(failure) : (Datum) 0;
		nulls[5] = failure == NULL;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

void
fini_check_put(FiniCheck *check, const char *item, FiniCheckResult result, const char *format,...)
{
	Datum		values[3];
	bool		nulls[3] = {false};
	char		text[2048];
	va_list		args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	values[0] = CStringGetTextDatum(item);
	values[1] = BoolGetDatum(result == FINI_CHECK_GOOD);
	nulls[1] = result == FINI_CHECK_OPEN;
	values[2] = CStringGetTextDatum(text);
	tuplestore_putvalues(check->rsinfo->setResult, check->rsinfo->setDesc, values, nulls);
}

void
fini_check_skip(FiniCheck *check, const char *item, const char *because_of)
{
	fini_check_put(check, item, FINI_CHECK_OPEN, "Not tested: see %s.", because_of);
}

static void
check_server(FiniCheck *check)
{
	if (!RecoveryInProgress())
	{
		fini_check_put(check, "server", FINI_CHECK_GOOD, "This server is no standby.");
		return;
	}
	check->no_network = "server";
	fini_check_put(check, "server", FINI_CHECK_BAD,
				   "This server is a standby: nothing is sent from here before it is promoted.");
}

static void
check_library(FiniCheck *check)
{
	if (!fini_shared_available())
	{
		if (check->no_network == NULL)
			check->no_network = "library";
		fini_check_put(check, "library", FINI_CHECK_BAD,
					   "The server has not loaded fini. Add fini to shared_preload_libraries and restart the server.");
	}
	else if (check->slot == NULL)
		fini_check_put(check, "library", FINI_CHECK_BAD,
					   "This database is not in fini.databases, so that no worker serves it. Add it and restart the server.");
	else
		fini_check_put(check, "library", FINI_CHECK_GOOD, "The server has loaded fini, and this database is in fini.databases.");
}

static void
check_worker(FiniCheck *check)
{
	FiniSlotShared *slot = check->slot;
	FiniWorkerState state;
	int			pid;
	int			starts;
	bool		recent;

	if (slot == NULL)
	{
		fini_check_skip(check, "worker", "library");
		return;
	}
	LWLockAcquire(fini_shared_slot_lock(slot), LW_SHARED);
	pid = slot->worker_pid;
	state = slot->worker_state;
	starts = slot->starts;
	recent = !TimestampDifferenceExceeds(slot->last_start_at, GetCurrentTimestamp(), FINI_WORKER_LASTS_MS);
	LWLockRelease(fini_shared_slot_lock(slot));

	if (pid == 0 && RecoveryInProgress())
		fini_check_skip(check, "worker", "server");
	else if (pid == 0)
		fini_check_put(check, "worker", FINI_CHECK_BAD,
					   "No worker is running for this database%s. Its last words are in the server's log, in lines with \"fini\"; "
					   "the server starts it again by itself unless max_worker_processes is used up.",
					   starts > 1 ? psprintf("; it has failed %d times shortly after its start", starts) : "");
	else if (state == FINI_WORKER_WAITING)
		fini_check_put(check, "worker", FINI_CHECK_BAD,
					   "The worker (process %d) is starting, or waits for database or extension. It looks every ten seconds: try again then.",
					   pid);
	else if (starts > 3 && recent)
		fini_check_put(check, "worker", FINI_CHECK_BAD,
					   "The worker (process %d) keeps failing: it has been started %d times in a row. Its last words are in the server's log.",
					   pid, starts);
	else
		fini_check_put(check, "worker", FINI_CHECK_GOOD, "The worker is process %d.", pid);
}

static void
check_settings(FiniCheck *check)
{
	static const struct
	{
		const char *name;
		char	  **value;
	}			required[] = {
		{"fini.base_url", &fini_guc_base_url},
		{"fini.agent_issuer", &fini_guc_agent_issuer},
		{"fini.agent_subject", &fini_guc_agent_subject},
		{"fini.agent_key_file", &fini_guc_agent_key_file},
		{"fini.machine_id", &fini_guc_machine_id},
		{"fini.machine_key_file", &fini_guc_machine_key_file},
	};
	static const char *const personal[] = {"idType", "idCountryJurisdiction", "idNum", "fullNameEng", "fullNameChi"};
	StringInfoData missing;
	StringInfoData problems;

	initStringInfo(&missing);
	initStringInfo(&problems);
	for (size_t i = 0; i < lengthof(required); i++)
	{
		if ((*required[i].value)[0] == '\0')
			appendStringInfo(&missing, "%s%s", missing.len > 0 ? ", " : "", required[i].name);
	}
	if (missing.len > 0)
	{
		complain(&problems, "Not set: %s. Set them with ALTER DATABASE ... SET, and reconnect.", missing.data);
		check->no_token = "settings";
	}
	if (fini_guc_base_url[0] == '\0' && check->no_network == NULL)
		check->no_network = "settings";
	if (strcmp(fini_guc_authorised_status, fini_guc_invalidated_status) == 0)
	{
		complain(&problems, "fini.authorised_status and fini.invalidated_status are the same: set each to the code that FINI's guide lists as subFlowStatus.");
		check->no_token = "settings";
	}
	if ((fini_guc_client_cert_file[0] == '\0') != (fini_guc_client_key_file[0] == '\0'))
	{
		complain(&problems, "Only one of fini.client_cert_file and fini.client_key_file is set: a client certificate needs both; without one, set neither.");
		check->no_token = "settings";
	}
	if (fini_guc_connect_timeout > fini_guc_request_timeout)
		complain(&problems, "fini.connect_timeout is longer than fini.request_timeout, which ends a request before: raise the latter.");
	for (size_t i = 0; i < lengthof(personal); i++)
	{
		if (!fini_envelope_is_personal(personal[i], strlen(personal[i])))
			complain(&problems, "fini.encrypted_fields lacks %s: FINI demands that it is encrypted. RESET brings the usual list back.", personal[i]);
	}
	if (check->slot != NULL)
	{
		uint8		mine[FINI_FINGERPRINT_LEN];
		bool		differ;

		fini_settings_fingerprint(mine);
		LWLockAcquire(fini_shared_slot_lock(check->slot), LW_SHARED);
		differ = check->slot->worker_pid != 0 && check->slot->worker_state != FINI_WORKER_WAITING &&
			memcmp(mine, check->slot->fingerprint, sizeof(mine)) != 0;
		LWLockRelease(fini_shared_slot_lock(check->slot));
		if (differ)
			complain(&problems, "The settings of this session differ from those of the worker, so that direct calls get no token: "
					 "set them with ALTER DATABASE or in the server's configuration, not for a role or session, and reconnect.");
	}
	if (problems.len > 0)
		fini_check_put(check, "settings", FINI_CHECK_BAD, "%s", problems.data);
	else
		fini_check_put(check, "settings", FINI_CHECK_GOOD, "Everything needed is set, and nothing contradicts.");
}

/* one more sentence */
static void
complain(StringInfo text, const char *format,...)
{
	char		sentence[512];
	va_list		args;

	va_start(args, format);
	vsnprintf(sentence, sizeof(sentence), format, args);
	va_end(args);
	appendStringInfo(text, "%s%s", text->len > 0 ? " " : "", sentence);
}

/* the limit is compared as a rate, whatever the window */
static void
check_throttle(FiniCheck *check)
{
	double		a_minute = fini_guc_rate_limit * 60000.0 / fini_guc_rate_window;
	char		use[96] = "";

	if (fini_shared_available())
	{
		int64		held_us;
		int			n = fini_throttle_in_use(&held_us);

		if (held_us > 0)
			snprintf(use, sizeof(use), " The gateway has asked for a pause of " INT64_FORMAT " more seconds (429).",
					 held_us / 1000000 + 1);
		else if (fini_guc_rate_limit > 0)
			snprintf(use, sizeof(use), " %d of %d places are taken now.", n, fini_guc_rate_limit);
	}
	if (fini_guc_rate_limit == 0)
		fini_check_put(check, "throttle", FINI_CHECK_BAD,
					   "fini.rate_limit is 0: requests are not limited, which is for tests only. FINI refuses more than %d a minute.%s",
					   FINI_CEILING, use);
	else if (fini_guc_rate_limit > FINI_CEILING || a_minute > FINI_CEILING)
		fini_check_put(check, "throttle", FINI_CHECK_BAD,
					   "fini.rate_limit allows %d requests in %d s: FINI refuses more than %d a minute for a company. Lower it.%s",
					   fini_guc_rate_limit, fini_guc_rate_window / 1000, FINI_CEILING, use);
	else
		fini_check_put(check, "throttle", FINI_CHECK_GOOD, "%d requests in %d s are allowed%s.%s",
					   fini_guc_rate_limit, fini_guc_rate_window / 1000,
					   a_minute > FINI_RECOMMENDED ? ", more than the 60 a minute that FINI recommends for one machine" : "", use);
}
