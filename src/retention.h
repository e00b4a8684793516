/*
 * retention.h
 *		What has ended goes after fini.retention: the worker's share in it.
 *
 * The rules are in fini--1.0.sql, under Retention.  Called by the worker's
 * loop, outside any transaction.
 */
#ifndef FINI_RETENTION_H
#define FINI_RETENTION_H

#include "postgres.h"

#include "shared.h"

/* delete a little, if it is time; milliseconds until it wants to be called again, -1: never */
extern long fini_retention_service(FiniSlotShared *slot);

#endif							/* FINI_RETENTION_H */
