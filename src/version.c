/*
 * version.c
 *		Versions of library and SQL objects; has the library's file been
 *		replaced since the server loaded it?
 *
 * All processes have the code that the postmaster loaded, whatever lies on
 * disk by now; after an upgrade of the package they keep it until the server
 * is restarted.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#include "compat.h"
#include "version.h"

#define LABEL "fini library "

typedef struct LibraryShared
{
	bool		known;
	uint64		inode;
	int64		modified;
	int64		size;
} LibraryShared;

static LibraryShared *library = NULL;

/* with a label, so that `strings` finds it in a file; volatile keeps the two together there */
static const char *volatile labelled = LABEL FINI_VERSION;

static bool look(LibraryShared *dst);

const char *
fini_version_library(void)
{
	return labelled + strlen(LABEL);
}

char *
fini_version_objects(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("fini"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		datum = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(rel), &isnull);

		if (!isnull)
			version = TextDatumGetCString(datum);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return version;
}

Size
fini_version_shmem_size(void)
{
	return sizeof(LibraryShared);
}

/* runs in the postmaster; a re-initialisation after a crash loads nothing anew, and keeps what was seen */
void
fini_version_shmem_startup(void)
{
	static LibraryShared loaded;
	static bool looked = false;
	bool		found;

	library = ShmemInitStruct("fini library", sizeof(LibraryShared), &found);
	if (found)
		return;
	if (!looked)
		loaded.known = look(&loaded);
	looked = true;
	*library = loaded;
}

bool
fini_version_replaced(void)
{
	LibraryShared now;

	return library != NULL && library->known && look(&now) &&
		(now.inode != library->inode || now.modified != library->modified || now.size != library->size);
}

static bool
look(LibraryShared *dst)
{
	char		path[MAXPGPATH];
	struct stat st;

	snprintf(path, sizeof(path), "%s/fini%s", pkglib_path, DLSUFFIX);
	if (stat(path, &st) != 0)
		return false;
	dst->inode = (uint64) st.st_ino;
	dst->modified = (int64) st.st_mtime;
	dst->size = (int64) st.st_size;
	return true;
}
