/*
 * fini.c
 *		Entry point of the library: the list of modules to initialise.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "settings.h"
#include "shared.h"
#include "worker.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	fini_settings_init();
	fini_shared_init();
	fini_worker_init();
}
