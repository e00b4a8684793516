/*
 * version.c
 *		Has the library's file been replaced since the server loaded it?
 *
 * All processes have the code that the postmaster loaded, whatever lies on
 * disk by now; after an upgrade of the package they keep it until the server
 * is restarted.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "miscadmin.h"
#include "storage/shmem.h"

#include "version.h"

typedef struct LibraryShared
{
	bool		known;
	uint64		inode;
	int64		modified;
	int64		size;
} LibraryShared;

static LibraryShared *library = NULL;

static bool look(LibraryShared *dst);

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
