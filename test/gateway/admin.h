/*
 * admin.h
 *		The administration port: statistics, dump, faults, configuration, planted records.
 *
 * Keeps no state of its own; the modules it steers have their locks.
 */
#ifndef GW_ADMIN_H
#define GW_ADMIN_H

#include "http.h"

/* An administration call: its arguments, and the answer to make. */
typedef struct AdminCall
{
	Request    *request;
	Reply	   *reply;
	json_t	   *body;			/* parsed, or NULL when it is no JSON */
} AdminCall;

extern void gw_admin_finish(Request *request, Reply *reply);
extern void gw_admin_answer(AdminCall *call, json_t *answer);
extern void gw_admin_refuse(AdminCall *call, const char *problem);

/* in planting.c */
extern void gw_admin_dump(AdminCall *call);
extern void gw_admin_load_records(AdminCall *call);
extern void gw_admin_delete_records(AdminCall *call);
extern void gw_admin_patch_records(AdminCall *call);

#endif
