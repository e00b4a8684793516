/*
 * admin.c
 *		The administration port's calls, except those on records (planting.c).
 */
#include "admin.h"

#include "envelope.h"
#include "fault.h"
#include "ipo.h"
#include "settings.h"
#include "stats.h"
#include "store.h"
#include "subscription.h"
#include "throttle.h"
#include "token.h"

#include <math.h>
#include <string.h>

typedef struct Setting
{
	const char *name;
	_Atomic int64_t *where;
	double		unit;			/* where holds value * unit */
	double		low;
	double		high;
} Setting;

typedef struct Switch
{
	const char *name;
	_Atomic bool *where;
} Switch;

static void show_stats(AdminCall *call);
static void show_funding(AdminCall *call);
static void show_ipos(AdminCall *call);
static void show_refusals(AdminCall *call);
static void show_faults(AdminCall *call);
static void reset(AdminCall *call);
static void load_ipos(AdminCall *call);
static void load_funding(AdminCall *call);
static void remove_ipo(AdminCall *call);
static void remove_funding(AdminCall *call);
static void plant_faults(AdminCall *call);
static void clear_faults(AdminCall *call);
static void configure(AdminCall *call);
static const char *check_config(const json_t *config, int *entitled);
static const Setting *find_setting(const char *name);
static const Switch *find_switch(const char *name);
static bool strings_only(const json_t *list);
static void rotate_key(AdminCall *call);
static void expire_tokens(AdminCall *call);

static const struct
{
	const char *method;
	const char *path;
	void		(*act) (AdminCall *call);
}			calls[] = {
	{"GET", "/stats", show_stats},
	{"GET", "/dump", gw_admin_dump},
	{"GET", "/funding", show_funding},
	{"GET", "/ipos", show_ipos},
	{"GET", "/refusals", show_refusals},
	{"GET", "/faults", show_faults},
	{"POST", "/reset", reset},
	{"POST", "/ipos", load_ipos},
	{"POST", "/funding", load_funding},
	{"DELETE", "/ipos", remove_ipo},
	{"DELETE", "/funding", remove_funding},
	{"POST", "/faults", plant_faults},
	{"DELETE", "/faults", clear_faults},
	{"POST", "/config", configure},
	{"POST", "/rotate-key", rotate_key},
	{"POST", "/expire-tokens", expire_tokens},
	{"POST", "/records", gw_admin_load_records},
	{"DELETE", "/records", gw_admin_delete_records},
	{"PATCH", "/records", gw_admin_patch_records},
};

static const Setting settings[] = {
	{"clockSkew", &gw_settings.clock_skew_ms, 1, -1e12, 1e12},
	{"tokenLifetime", &gw_settings.token_lifetime_ms, 1000, 0.001, 1e7},
	{"latency", &gw_settings.latency_ms, 1, 0, 86400000},
	{"rateLimit", &gw_settings.rate_limit, 1, 0, 1e8},
	{"rateWindow", &gw_settings.rate_window_us, 1000000, 0.000001, 1e7},
	{"timestampWindow", &gw_settings.timestamp_window_ms, 1, 0, 1e12},
	{"maxPageSize", &gw_settings.max_page_size, 1, 1, 1000},
};

static const Switch switches[] = {
	{"recordIDActiveOnly", &gw_settings.record_ids_active_only},
	{"forgetFields", &gw_settings.forget_fields},
};

#define CALLS (sizeof(calls) / sizeof(calls[0]))
#define SETTINGS (sizeof(settings) / sizeof(settings[0]))
#define SWITCHES (sizeof(switches) / sizeof(switches[0]))

void
gw_admin_finish(Request *request, Reply *reply)
{
	AdminCall	call = {.request = request, .reply = reply};
	bool		known_path = false;
	size_t		i;

	for (i = 0; i < CALLS; i++)
	{
		if (strcmp(calls[i].path, request->path) != 0)
			continue;
		known_path = true;
		if (strcmp(calls[i].method, request->method) == 0)
			break;
	}
	if (i < CALLS)
	{
		if (calls[i].act != gw_admin_load_records)
			call.body = json_loadb(request->body.data, request->body.len, 0, NULL);
		calls[i].act(&call);
		json_decref(call.body);
		return;
	}
	gw_admin_refuse(&call, known_path ? "no such method here" : "no such call");
	reply->status = known_path ? 405 : 404;
}

/* Sends an answer (taken over). */
void
gw_admin_answer(AdminCall *call, json_t *answer)
{
	gw_buf_json(&call->reply->body, answer);
	json_decref(answer);
}

void
gw_admin_refuse(AdminCall *call, const char *problem)
{
	call->reply->status = 400;
	gw_admin_answer(call, json_pack("{ss}", "error", problem));
}

static void
show_stats(AdminCall *call)
{
	json_t	   *report = gw_stats_report();
	int64_t		records;
	int64_t		active;
	int64_t		duplicates;

	gw_store_lock();
	gw_store_totals(&records, &active, &duplicates);
	gw_store_unlock();
	json_object_set_new(report, "records", json_integer(records));
	json_object_set_new(report, "active", json_integer(active));
	json_object_set_new(report, "duplicates", json_integer(duplicates));
	json_object_set_new(report, "peak_in_window", json_integer(gw_throttle_peak()));
	gw_admin_answer(call, report);
}

static void
show_funding(AdminCall *call)
{
	gw_admin_answer(call, gw_ipo_rows("transactionRef"));
}

static void
show_ipos(AdminCall *call)
{
	gw_admin_answer(call, gw_ipo_rows("ipoID"));
}

static void
show_refusals(AdminCall *call)
{
	gw_admin_answer(call, gw_stats_refusals());
}

static void
show_faults(AdminCall *call)
{
	gw_admin_answer(call, gw_fault_list());
}

static void
reset(AdminCall *call)
{
	gw_fault_clear();
	gw_store_lock();
	gw_store_reset();
	gw_store_unlock();
	gw_stats_reset();
	gw_throttle_reset();
	gw_admin_answer(call, json_object());
}

static void
load_ipos(AdminCall *call)
{
	const char *problem;

	if (!gw_ipo_upsert(call->body, "ipoID", &problem))
		gw_admin_refuse(call, problem);
	else
		gw_admin_answer(call, json_object());
}

static void
load_funding(AdminCall *call)
{
	const char *problem;

	if (!gw_ipo_upsert(call->body, "transactionRef", &problem))
		gw_admin_refuse(call, problem);
	else
		gw_admin_answer(call, json_object());
}

static void
remove_ipo(AdminCall *call)
{
	const char *id = gw_http_query(call->request, "ipoID");

	if (id == NULL || !gw_ipo_remove("ipoID", id))
		gw_admin_refuse(call, "no such ipoID");
	else
		gw_admin_answer(call, json_object());
}

static void
remove_funding(AdminCall *call)
{
	const char *id = gw_http_query(call->request, "transactionRef");

	if (id == NULL || !gw_ipo_remove("transactionRef", id))
		gw_admin_refuse(call, "no such transactionRef");
	else
		gw_admin_answer(call, json_object());
}

static void
plant_faults(AdminCall *call)
{
	const char *problem = "not JSON";

	if (call->body == NULL || !gw_fault_plant(call->body, &problem))
		gw_admin_refuse(call, problem);
	else
		gw_admin_answer(call, json_object());
}

static void
clear_faults(AdminCall *call)
{
	gw_fault_clear();
	gw_admin_answer(call, json_object());
}

/* All of the settings given, or none when one of them is wrong. */
static void
configure(AdminCall *call)
{
	int			entitled = 0;
	const char *problem = check_config(call->body, &entitled);
	const char *name;
	json_t	   *value;

	if (problem != NULL)
	{
		gw_admin_refuse(call, problem);
		return;
	}
	json_object_foreach(call->body, name, value)
	{
		const Setting *setting = find_setting(name);

		if (setting != NULL)
			*setting->where = (int64_t) llround(json_number_value(value) * setting->unit);
		else if (strcmp(name, "entitle") == 0)
			gw_settings.entitled = entitled;
		else if (strcmp(name, "rejectOwnRefs") == 0)
			gw_subscription_reject_refs(value);
		else
			*find_switch(name)->where = json_is_true(value);
	}
	gw_admin_answer(call, json_object());
}

static const char *
check_config(const json_t *config, int *entitled)
{
	const char *name;
	json_t	   *value;
	json_t	   *item;
	size_t		i;

	if (!json_is_object(config))
		return "not an object";
	json_object_foreach((json_t *) config, name, value)
	{
		const Setting *setting = find_setting(name);

		if (setting != NULL)
		{
			if (!json_is_number(value) || json_number_value(value) < setting->low ||
				json_number_value(value) > setting->high)
				return "a number outside its range";
		}
		else if (strcmp(name, "entitle") == 0)
		{
			if (!strings_only(value))
				return "entitle is not a list of names";
			json_array_foreach(value, i, item)
			{
				if (!gw_settings_entitle(json_string_value(item), entitled))
					return "an unknown entitlement";
			}
		}
		else if (strcmp(name, "rejectOwnRefs") == 0)
		{
			if (!strings_only(value))
				return "rejectOwnRefs is not a list of strings";
		}
		else if (find_switch(name) == NULL || !json_is_boolean(value))
			return "an unknown setting";
	}
	return NULL;
}

static const Setting *
find_setting(const char *name)
{
	size_t		i;

	for (i = 0; i < SETTINGS; i++)
		if (strcmp(settings[i].name, name) == 0)
			return &settings[i];
	return NULL;
}

static const Switch *
find_switch(const char *name)
{
	size_t		i;

	for (i = 0; i < SWITCHES; i++)
		if (strcmp(switches[i].name, name) == 0)
			return &switches[i];
	return NULL;
}

static bool
strings_only(const json_t *list)
{
	json_t	   *item;
	size_t		i;

	if (!json_is_array(list))
		return false;
	json_array_foreach(list, i, item)
	{
		if (!json_is_string(item))
			return false;
	}
	return true;
}

static void
rotate_key(AdminCall *call)
{
	if (!gw_envelope_rotate_key())
		gw_admin_refuse(call, "a key could not be made");
	else
		gw_admin_answer(call, json_object());
}

static void
expire_tokens(AdminCall *call)
{
	gw_token_expire();
	gw_admin_answer(call, json_object());
}
