/*
 * ipo.h
 *		The IPOs and the funding of designated banks: rows, endpoints, preloaded examples.
 *
 * Rows live under the store's lock.  gw_ipo_exists(), gw_ipo_is_open() and gw_ipo_find()
 * are for callers that hold it; all others take it themselves.
 */
#ifndef GW_IPO_H
#define GW_IPO_H

#include "api.h"

extern void gw_ipo_preload(void);
extern bool gw_ipo_exists(const char *ipo_id);
extern bool gw_ipo_is_open(const char *ipo_id);
extern json_t *gw_ipo_find(const char *key, const char *id);
extern bool gw_ipo_upsert(const json_t *rows, const char *key, const char **problem);
extern bool gw_ipo_remove(const char *key, const char *id);
extern json_t *gw_ipo_rows(const char *key);

extern void gw_ipo_process_list(Call *call);
extern void gw_ipo_process_refdata(Call *call);
extern bool gw_funding_check_confirm(Call *call);
extern void gw_funding_process_confirm(Call *call);
extern bool gw_funding_check_query(Call *call);
extern void gw_funding_process_query(Call *call);

#endif
