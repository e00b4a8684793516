/*
 * database.c
 *		The worker's database: whether it can be had, and its settings.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "commands/dbcommands.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/syscache.h"

#include "compat.h"
#include "database.h"
#include "trouble.h"

bool
fini_database_is_open(const char *name)
{
	Oid			database;
	HeapTuple	tuple;
	bool		open = false;

	StartTransactionCommand();
	database = get_database_oid(name, true);
	tuple = OidIsValid(database) ? SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database)) : NULL;
	if (HeapTupleIsValid(tuple))
	{
		open = fini_compat_database_is_open((Form_pg_database) GETSTRUCT(tuple));
		ReleaseSysCache(tuple);
	}
	CommitTransactionCommand();
	return open;
}

void
fini_database_prepare_session(void)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"application_name", "fini worker"},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"statement_timeout", "0"},
		{"lock_timeout", FINI_TROUBLE_LOCK_TIMEOUT},
		{"idle_in_transaction_session_timeout", "0"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
	};

	for (size_t i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);

	/* a claim must be on disk before its first byte leaves, whatever the users make do with */
	if (synchronous_commit < SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
		SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
}

uint32
fini_database_settings(void)
{
	uint32		hash = 1;
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(MyDatabaseId));
	scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (((Form_pg_db_role_setting) GETSTRUCT(tuple))->setrole == InvalidOid)
			hash = hash_combine(hash, hash_bytes((unsigned char *) tuple->t_data + tuple->t_data->t_hoff,
												 tuple->t_len - tuple->t_data->t_hoff));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return hash != 0 ? hash : 1;
}
