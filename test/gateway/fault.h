/*
 * fault.h
 *		Misbehaviour on demand.
 *
 * The list of planted faults has its own lock.  A picked Fault is a call's own copy.
 */
#ifndef GW_FAULT_H
#define GW_FAULT_H

#include "envelope.h"

typedef enum FaultAction
{
	FAULT_NONE,
	FAULT_DROP_BEFORE, FAULT_HANG_BEFORE, FAULT_STATUS_BEFORE, FAULT_CODE_BEFORE, FAULT_REDIRECT,
	FAULT_DROP_AFTER, FAULT_HANG_AFTER, FAULT_STATUS_AFTER, FAULT_CODE_AFTER,
	FAULT_TRUNCATE, FAULT_GARBAGE, FAULT_WRONG_SHAPE, FAULT_INVALID_UTF8, FAULT_TRICKLE,
	FAULT_DELAY, FAULT_REJECT_ENTRIES, FAULT_DROP_ENTRIES, FAULT_EXTRA_ENTRIES, FAULT_REORDER,
	FAULT_REQUEST_ID_NUMBER, FAULT_REQUEST_ID_STRING, FAULT_BIG_RECORD_ID,
	FAULT_TAMPER, FAULT_TRUNCATE_CIPHERTEXT, FAULT_BAD_PREFIX, FAULT_OVERSIZE,
	FAULT_ACTIONS
} FaultAction;

/* When a fault strikes: ahead of all checks, or once a call is about to be processed. */
typedef enum FaultStage
{
	STAGE_BEFORE,
	STAGE_PROCESS
} FaultStage;

typedef struct Fault
{
	FaultAction action;
	json_t	   *arguments;		/* one's own reference, or NULL */
} Fault;

extern bool gw_fault_plant(const json_t *list, const char **problem);
extern json_t *gw_fault_list(void);
extern void gw_fault_clear(void);

extern Fault gw_fault_pick(const char *endpoint, const Buf *body, FaultStage stage);
extern void gw_fault_release(Fault *fault);
extern void gw_fault_before(const Fault *fault, Reply *reply);
extern void gw_fault_delay(const Fault *fault);
extern bool gw_fault_rejects(const Fault *fault, const char *own_ref, json_int_t *rejected);
extern Damage gw_fault_damage(const Fault *fault);
extern void gw_fault_reshape(const Fault *fault, json_t *answer);
extern void gw_fault_after(const Fault *fault, Reply *reply);
extern const char *gw_fault_string(const Fault *fault, const char *name, const char *preset);
extern json_int_t gw_fault_number(const Fault *fault, const char *name, json_int_t preset);

#endif
