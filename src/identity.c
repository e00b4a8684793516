/*
 * identity.c
 *		Whose rights a piece of work runs with.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_proc.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "compat.h"
#include "identity.h"
#include "user_code.h"

static void enter(FiniIdentity *saved, Oid user, int context);
static void become(FiniIdentity *saved, Oid user, int context);

Oid
fini_identity_extension_owner(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			owner = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("fini"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return owner;
}

void
fini_identity_enter_extension(FiniIdentity *saved)
{
	Oid			owner = fini_identity_extension_owner();

	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"fini\" does not exist in this database")));
	saved->of_user = false;
	enter(saved, owner, SECURITY_LOCAL_USERID_CHANGE);
}

void
fini_identity_enter_owner(FiniIdentity *saved, Oid owner)
{
	fini_user_code_begin(owner);
	saved->of_user = true;
	enter(saved, owner, SECURITY_RESTRICTED_OPERATION);
}

void
fini_identity_enter_function(FiniIdentity *saved, Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	saved->of_user = false;
	become(saved, owner, SECURITY_LOCAL_USERID_CHANGE);
}

void
fini_identity_pin_path(FiniIdentity *saved)
{
	saved->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

void
fini_identity_leave(const FiniIdentity *saved)
{
	if (saved->guc_level > 0)
		AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->user, saved->context);
	if (saved->of_user)
		fini_user_code_end();
}

static void
enter(FiniIdentity *saved, Oid user, int context)
{
	become(saved, user, context);
	fini_identity_pin_path(saved);
}

static void
become(FiniIdentity *saved, Oid user, int context)
{
	GetUserIdAndSecContext(&saved->user, &saved->context);
	SetUserIdAndSecContext(user, saved->context | context);
	saved->guc_level = 0;
}
