/*
 * validate.h
 *		What FINI would look at in one application.
 *
 * Pure functions of the entry; no state, no lock.
 */
#ifndef GW_VALIDATE_H
#define GW_VALIDATE_H

#include "envelope.h"

/* The codes of rejected entries: the sandbox's own, FINI's are not public. */
#define REJECT_REQUEST_ID "400100"
#define REJECT_IPO_UNKNOWN "400101"
#define REJECT_IPO_CLOSED "400102"
#define REJECT_QUANTITY "400103"
#define REJECT_ID_LIST "400104"
#define REJECT_ID_TYPE "400105"
#define REJECT_ID_NUM "400106"
#define REJECT_NAME "400107"
#define REJECT_HKID "400108"
#define REJECT_RECORD_UNKNOWN "400110"
#define REJECT_RECORD_INVALIDATED "400111"
#define REJECT_RECORD_OTHER "400112"
#define REJECT_ON_PURPOSE "400120"
#define REJECT_TRANSACTION "400131"
#define REJECT_CONTRADICTION "400132"
#define REJECT_FUNDING_STATUS "400133"

extern Refusal gw_validate_application(const json_t *entry);
extern bool gw_validate_hkid(const char *number, bool *looks_like_one);

#endif
