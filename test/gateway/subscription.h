/*
 * subscription.h
 *		The subscription endpoints: batches of add, change and invalidate, and query.
 *
 * Everything about an entry that needs no record is done outside the store's lock.
 */
#ifndef GW_SUBSCRIPTION_H
#define GW_SUBSCRIPTION_H

#include "api.h"

extern bool gw_subscription_check_batch(Call *call);
extern void gw_subscription_process_add(Call *call);
extern void gw_subscription_process_change(Call *call);
extern void gw_subscription_process_invalidate(Call *call);
extern void gw_subscription_release(Call *call);

extern bool gw_query_check(Call *call);
extern void gw_query_process(Call *call);

extern void gw_subscription_reject_refs(json_t *own_refs);

#endif
