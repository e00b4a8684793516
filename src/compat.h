/*
 * compat.h
 *		Every difference between the supported PostgreSQL majors (15 to 18).
 *
 * No other file tests PG_VERSION_NUM.
 */
#ifndef FINI_COMPAT_H
#define FINI_COMPAT_H

#include "postgres.h"

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "fini supports PostgreSQL 15 to 18"
#endif

/* functions that do not return: 18 has pg_noreturn, which stands elsewhere */
#if PG_VERSION_NUM >= 180000
#define pg_attribute_noreturn()	__attribute__((noreturn))
#endif

/*
 * Memory that the settings machinery frees: its own allocator is for it
 * alone before 16, and malloc underneath.
 */
#include "utils/guc.h"

#if PG_VERSION_NUM >= 160000
#define fini_compat_guc_malloc(size)	guc_malloc(LOG, (size))
#else
#define fini_compat_guc_malloc(size)	malloc(size)
#endif

/* A wait-event set that lives until FreeWaitEventSet. */
#include "storage/latch.h"
#include "utils/memutils.h"

#if PG_VERSION_NUM >= 170000
#define fini_compat_wait_event_set(nevents)	CreateWaitEventSet(NULL, (nevents))
#else
#define fini_compat_wait_event_set(nevents)	CreateWaitEventSet(TopMemoryContext, (nevents))
#endif

/* VARDATA_ANY and its kin left postgres.h with 16. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* Does the current user own the relation? */
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "utils/acl.h"

#if PG_VERSION_NUM >= 160000
#define fini_compat_owns_relation(relid)	object_ownercheck(RelationRelationId, (relid), GetUserId())
#else
#define fini_compat_owns_relation(relid)	pg_class_ownercheck((relid), GetUserId())
#endif

/* May the current user look up things in the schema? */
#include "catalog/pg_namespace.h"

#if PG_VERSION_NUM >= 160000
#define fini_compat_may_use_schema(schema) \
	(object_aclcheck(NamespaceRelationId, (schema), GetUserId(), ACL_USAGE) == ACLCHECK_OK)
#else
#define fini_compat_may_use_schema(schema)	(pg_namespace_aclcheck((schema), GetUserId(), ACL_USAGE) == ACLCHECK_OK)
#endif

/* Wait events with names of their own, from 17 on. */
#include "utils/wait_event.h"

#if PG_VERSION_NUM >= 170000
#define fini_compat_wait_event(name)	WaitEventExtensionNew(name)
#else
#define fini_compat_wait_event(name)	((uint32) PG_WAIT_EXTENSION)
#endif

/* This process's number among all, by which others find its latch. */
#include "storage/proc.h"

#if PG_VERSION_NUM >= 170000
#define fini_compat_my_proc_number()		MyProcNumber
#else
#define fini_compat_my_proc_number()		(MyProc->pgprocno)
#endif

/*
 * Indexes of a table that is written to without the executor: which an update
 * concerns (16 knows of those that only summarize), and how a scan begins.
 */
#include "access/genam.h"
#include "access/tableam.h"
#include "executor/executor.h"

#if PG_VERSION_NUM >= 160000
typedef TU_UpdateIndexes FiniCompatUpdateIndexes;
#define FINI_COMPAT_ALL_INDEXES				TU_All
#define fini_compat_any_index(which)		((which) != TU_None)
#define fini_compat_insert_index_tuples(result, slot, estate, update, which) \
	ExecInsertIndexTuples((result), (slot), (estate), (update), false, NULL, NIL, (which) == TU_Summarizing)
#else
typedef bool FiniCompatUpdateIndexes;
#define FINI_COMPAT_ALL_INDEXES				true
#define fini_compat_any_index(which)		(which)
#define fini_compat_insert_index_tuples(result, slot, estate, update, which) \
	ExecInsertIndexTuples((result), (slot), (estate), (update), false, NULL, NIL)
#endif
#if PG_VERSION_NUM >= 180000
#define fini_compat_index_beginscan(table, index, snapshot, nkeys) \
	index_beginscan((table), (index), (snapshot), NULL, (nkeys), 0)
#else
#define fini_compat_index_beginscan(table, index, snapshot, nkeys) \
	index_beginscan((table), (index), (snapshot), (nkeys), 0)
#endif

/* does a database let sessions in? One that is left from an interrupted DROP DATABASE has a connection limit of its own since 15.4. */
#define fini_compat_database_is_open(database)	((database)->datallowconn && (database)->datconnlimit != -2)

#endif							/* FINI_COMPAT_H */
