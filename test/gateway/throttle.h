/*
 * throttle.h
 *		The company's request limit: an exact sliding window.
 *
 * Own lock; any thread may call.
 */
#ifndef GW_THROTTLE_H
#define GW_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

extern bool gw_throttle_admit(long *retry_after);
extern int64_t gw_throttle_peak(void);
extern void gw_throttle_reset(void);

#endif
