/*
 * token.h
 *		Access tokens: the token endpoint and the check of every other call's token.
 *
 * Own lock; any thread may call.
 */
#ifndef GW_TOKEN_H
#define GW_TOKEN_H

#include "api.h"

extern bool gw_token_check(Call *call);
extern void gw_token_process(Call *call);
extern const char *gw_token_verify(const char *authorization);
extern void gw_token_expire(void);

#endif
