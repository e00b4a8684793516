/*
 * stat_file.c
 *		Counters of fini.stat_endpoint outlive a clean restart of the server.
 *
 * As pg_stat_statements does it: the postmaster writes a file at shutdown, and
 * reads and removes it at the next start, so that a crash finds none and no
 * count is taken over twice.  A database is known by its name, an endpoint by
 * its own; what neither the settings nor the library know any more is dropped.
 * A file that is not whole, or of another layout, is dropped with a line in the
 * log.
 */
#include "postgres.h"

#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"

#include "compat.h"
#include "stat.h"

#define STAT_FILE		PGSTAT_STAT_PERMANENT_DIRECTORY "/fini.stat"
#define STAT_FORMAT		0x46494E01	/* changes with the layout below */
#define ENDPOINT_LEN	32
#define MAX_RECORDS		65536

typedef struct FileHeader
{
	uint32		format;
	uint32		record_size;
	uint32		records;
	pg_crc32c	crc;			/* of the records */
} FileHeader;

typedef struct FileRecord
{
	char		database[NAMEDATALEN];
	char		endpoint[ENDPOINT_LEN];
	FiniStatCounters counters;
} FileRecord;

static void write_file(int code, Datum arg);
static void read_file(void);
static FileRecord *read_records(FILE *file, uint32 *n);
static uint32 collect(FileRecord *records);
static void take_over(const FileRecord *record);

void
fini_stat_file_startup(void)
{
	on_shmem_exit(write_file, (Datum) 0);
	read_file();
}

/* on_shmem_exit: not after a crash, when memory may be anything */
static void
write_file(int code, Datum arg)
{
	FileHeader	header = {.format = STAT_FORMAT, .record_size = sizeof(FileRecord)};
	FileRecord *records;
	FILE	   *file;

	if (code != 0 || fini_shared_slots() == 0)
		return;
	records = calloc((size_t) fini_shared_slots() * FINI_ENDPOINT_COUNT, sizeof(FileRecord));
	if (records == NULL)
		return;
	header.records = collect(records);
	INIT_CRC32C(header.crc);
	COMP_CRC32C(header.crc, records, header.records * sizeof(FileRecord));
	FIN_CRC32C(header.crc);

	file = header.records > 0 ? AllocateFile(STAT_FILE ".tmp", PG_BINARY_W) : NULL;
	if (file != NULL)
	{
		bool		ok = fwrite(&header, sizeof(header), 1, file) == 1 &&
			fwrite(records, sizeof(FileRecord), header.records, file) == header.records;

		if (FreeFile(file) != 0 || !ok)
		{
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not write file \"%s\": %m", STAT_FILE ".tmp")));
			unlink(STAT_FILE ".tmp");
		}
		else
			(void) durable_rename(STAT_FILE ".tmp", STAT_FILE, LOG);
	}
	else if (header.records > 0)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", STAT_FILE ".tmp")));
	free(records);
}

static void
read_file(void)
{
	FILE	   *file = AllocateFile(STAT_FILE, PG_BINARY_R);
	FileRecord *records;
	uint32		n;

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", STAT_FILE)));
		return;
	}
	records = read_records(file, &n);
	FreeFile(file);
	if (records == NULL)
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("fini: ignoring file \"%s\"", STAT_FILE),
				 errdetail("It is not whole, or of another version. Counters of fini.stat_endpoint begin at zero.")));
	else
	{
		for (uint32 i = 0; i < n; i++)
			take_over(&records[i]);
		free(records);
	}
	unlink(STAT_FILE);
}

/* the caller frees them; NULL: not a file of ours, or a damaged one */
static FileRecord *
read_records(FILE *file, uint32 *n)
{
	FileHeader	header;
	FileRecord *records;
	pg_crc32c	crc;

	if (fread(&header, sizeof(header), 1, file) != 1 || header.format != STAT_FORMAT ||
		header.record_size != sizeof(FileRecord) || header.records == 0 || header.records > MAX_RECORDS)
		return NULL;
	records = calloc(header.records, sizeof(FileRecord));
	if (records == NULL)
		return NULL;
	if (fread(records, sizeof(FileRecord), header.records, file) == header.records && fgetc(file) == EOF)
	{
		INIT_CRC32C(crc);
		COMP_CRC32C(crc, records, header.records * sizeof(FileRecord));
		FIN_CRC32C(crc);
		if (EQ_CRC32C(crc, header.crc))
		{
			*n = header.records;
			return records;
		}
	}
	free(records);
	return NULL;
}

/* of every database and endpoint that has been called; how many */
static uint32
collect(FileRecord *records)
{
	uint32		n = 0;

	for (int i = 0; i < fini_shared_slots(); i++)
	{
		for (int e = 0; e < FINI_ENDPOINT_COUNT; e++)
		{
			const FiniStatCounters *counters = fini_stat_counters(i, e);

			if (counters->calls == 0)
				continue;
			strlcpy(records[n].database, fini_shared_slot(i)->database, sizeof(records[n].database));
			strlcpy(records[n].endpoint, fini_endpoint(e)->name, sizeof(records[n].endpoint));
			records[n++].counters = *counters;
		}
	}
	return n;
}

static void
take_over(const FileRecord *record)
{
	for (int i = 0; i < fini_shared_slots(); i++)
	{
		if (strncmp(record->database, fini_shared_slot(i)->database, NAMEDATALEN) != 0)
			continue;
		for (int e = 0; e < FINI_ENDPOINT_COUNT; e++)
		{
			if (strncmp(record->endpoint, fini_endpoint(e)->name, ENDPOINT_LEN) == 0)
				*fini_stat_counters(i, e) = record->counters;
		}
	}
}
