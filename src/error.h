/*
 * error.h
 *		The SQLSTATEs that fini raises beside PostgreSQL's own: class IP.
 *
 * Conditions that PostgreSQL already has a code for (bad argument, missing
 * privilege, object in the wrong state) use PostgreSQL's.
 */
#ifndef FINI_ERROR_H
#define FINI_ERROR_H

#include "postgres.h"

#define FINI_ERRCODE_NOT_CONFIGURED		MAKE_SQLSTATE('I','P','0','0','1')	/* a setting is missing or unusable */
#define FINI_ERRCODE_NO_WORKER			MAKE_SQLSTATE('I','P','0','0','2')	/* the database has no running worker */
#define FINI_ERRCODE_TOKEN_REFUSED		MAKE_SQLSTATE('I','P','0','0','3')	/* no access token or public key to be had */
#define FINI_ERRCODE_TRANSPORT			MAKE_SQLSTATE('I','P','0','0','4')	/* not processed: connection, TLS, name */
#define FINI_ERRCODE_IN_DOUBT			MAKE_SQLSTATE('I','P','0','0','5')	/* may have been processed */
#define FINI_ERRCODE_REFUSED			MAKE_SQLSTATE('I','P','0','0','6')	/* FINI refused the whole request */
#define FINI_ERRCODE_NOT_ENTITLED		MAKE_SQLSTATE('I','P','0','0','7')	/* 403 or 404 */
#define FINI_ERRCODE_THROTTLED			MAKE_SQLSTATE('I','P','0','0','8')	/* the throttle would make the call wait too long, or 429 */
#define FINI_ERRCODE_ENVELOPE			MAKE_SQLSTATE('I','P','0','0','9')	/* ciphertext, key or signature unusable */
#define FINI_ERRCODE_UNREADABLE			MAKE_SQLSTATE('I','P','0','1','0')	/* answer not understood (of a call that changes nothing) */
#define FINI_ERRCODE_NOT_ARMED			MAKE_SQLSTATE('I','P','0','1','1')	/* this cluster may not submit */
#define FINI_ERRCODE_DEADLINE			MAKE_SQLSTATE('I','P','0','1','2')	/* only in the log: a deadline will not be met */

#endif							/* FINI_ERROR_H */
