/*
 * store.c
 *		Records, and the ways to find them.
 *
 * A record is one allocation; its fields are kept as the compact JSON text that dump and
 * query give out again, because a sandbox holds millions of them.  `records` maps a
 * record's number to it, buckets list the numbers of an IPO, and two hash tables find
 * numbers: by record ID, and by IPO and ownRef (the head of a chain).
 */
#include "store.h"

#include "index.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct RefKey
{
	const char *ipo_id;
	const char *own_ref;
} RefKey;

static void collect_ref(RecordList *list, const char *ipo_id, const char *own_ref);
static void collect(RecordList *list, Record *record);
static Record *make_record(const RecordParts *parts, uint32_t number);
static void attach(Record *record, bool in_bucket, bool by_id, bool by_ref);
static void detach(Record *record, bool by_id, bool by_ref);
static size_t active_in_chain(uint32_t head);
static Bucket *make_bucket(const char *ipo_id);
static void enter_bucket(Bucket *bucket, uint32_t number);
static void next_record_id(char *dst, size_t size);
static uint32_t find_ref(const char *ipo_id, const char *own_ref);
static uint64_t hash_ref(const char *ipo_id, const char *own_ref);
static uint64_t hash_by_id(uint32_t number);
static uint64_t hash_by_ref(uint32_t number);
static bool matches_id(uint32_t number, const void *key);
static bool matches_ref(uint32_t number, const void *key);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Record **records;
static uint32_t nrecords;		/* numbers given out, removed ones included */
static uint32_t records_cap;
static int64_t present;
static int64_t active;
static int64_t duplicates;		/* ownRefs with more than one active record */
static uint64_t next_id;
static Bucket **buckets;
static size_t nbuckets;
static Index by_id = {.hash = hash_by_id};
static Index by_ref = {.hash = hash_by_ref};

void
gw_store_lock(void)
{
	pthread_mutex_lock(&lock);
}

void
gw_store_unlock(void)
{
	pthread_mutex_unlock(&lock);
}

/* Record IDs begin where no earlier run of a gateway is likely to have ended. */
void
gw_store_init(void)
{
	next_id = (uint64_t) time(NULL) * 1000000;
}

/* Forgets everything but where record IDs go on: none is given twice. */
void
gw_store_reset(void)
{
	uint32_t	i;
	size_t		b;

	for (i = 0; i < nrecords; i++)
	{
		if (records[i] != NULL)
			free(records[i]->later);
		free(records[i]);
	}
	for (b = 0; b < nbuckets; b++)
	{
		free(buckets[b]->ipo_id);
		free(buckets[b]->numbers);
		free(buckets[b]);
	}
	free(records);
	free(buckets);
	records = NULL;
	buckets = NULL;
	nrecords = records_cap = 0;
	nbuckets = 0;
	present = active = duplicates = 0;
	gw_index_clear(&by_id);
	gw_index_clear(&by_ref);
	gw_store_reset_requests();
}

Record *
gw_store_add(const RecordParts *parts)
{
	Record	   *record;

	if (nrecords == records_cap)
	{
		records_cap = records_cap ? records_cap * 2 : 1024;
		records = realloc(records, (size_t) records_cap * sizeof(Record *));
		if (records == NULL)
			abort();
	}
	record = make_record(parts, nrecords);
	records[nrecords++] = record;
	present++;
	attach(record, true, true, true);
	return record;
}

/* A new record in the old one's place, with its history; the old pointer is gone. */
Record *
gw_store_replace(Record *record, const RecordParts *parts)
{
	Record	   *new = make_record(parts, record->number);
	bool		other_bucket = new->bucket != record->bucket;
	bool		other_id = strcmp(gw_record_id(new), gw_record_id(record)) != 0;
	bool		other_ref = other_bucket || strcmp(gw_record_own_ref(new), gw_record_own_ref(record)) != 0;

	detach(record, other_id, other_ref);
	new->nevents = record->nevents;
	new->first = record->first;
	new->later = record->later;
	new->next_same = other_ref ? GW_INDEX_NONE : record->next_same;
	records[record->number] = new;
	free(record);
	attach(new, other_bucket, other_id, other_ref);
	return new;
}

void
gw_store_set_status(Record *record, int status)
{
	detach(record, false, false);
	record->status = status;
	attach(record, false, false, false);
}

void
gw_store_remove(Record *record)
{
	detach(record, true, true);
	records[record->number] = NULL;
	present--;
	free(record->later);
	free(record);
}

Record *
gw_store_by_id(const char *record_id)
{
	uint32_t	number = gw_index_find(&by_id, gw_index_hash(record_id, strlen(record_id), 1), matches_id, record_id);

	return number == GW_INDEX_NONE ? NULL : records[number];
}

/*
 * The records of a record ID, or of an ownRef (in one IPO, or in all with ipo_id NULL).
 * The list is the caller's to free, its pointers are good while the lock is held.
 */
RecordList
gw_store_named(const char *ipo_id, const char *record_id, const char *own_ref)
{
	RecordList	list = {NULL, 0};
	size_t		i;

	if (record_id != NULL)
	{
		Record	   *record = gw_store_by_id(record_id);

		if (record != NULL && (own_ref == NULL || strcmp(own_ref, gw_record_own_ref(record)) == 0) &&
			(ipo_id == NULL || strcmp(ipo_id, record->bucket->ipo_id) == 0))
			collect(&list, record);
	}
	else if (own_ref != NULL && ipo_id != NULL)
		collect_ref(&list, ipo_id, own_ref);
	else if (own_ref != NULL)
	{
		for (i = 0; i < nbuckets; i++)
			collect_ref(&list, buckets[i]->ipo_id, own_ref);
	}
	return list;
}

bool
gw_store_has_active(const char *ipo_id, const char *own_ref)
{
	return active_in_chain(find_ref(ipo_id, own_ref)) > 0;
}

/* The records of an IPO, or NULL when it never had one. */
Bucket *
gw_store_bucket(const char *ipo_id)
{
	size_t		i;

	for (i = 0; i < nbuckets; i++)
		if (strcmp(buckets[i]->ipo_id, ipo_id) == 0)
			return buckets[i];
	return NULL;
}

/* The first position of a bucket whose number is not below the given one. */
size_t
gw_store_from(const Bucket *bucket, uint32_t number)
{
	size_t		low = 0;
	size_t		high = bucket->n;

	while (low < high)
	{
		size_t		middle = low + (high - low) / 2;

		if (bucket->numbers[middle] < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* NULL where a record was removed or moved to another IPO. */
Record *
gw_store_at(const Bucket *bucket, size_t position)
{
	Record	   *record = records[bucket->numbers[position]];

	return record != NULL && record->bucket == bucket ? record : NULL;
}

Record *
gw_store_number(uint32_t number)
{
	return number < nrecords ? records[number] : NULL;
}

uint32_t
gw_store_end(void)
{
	return nrecords;
}

void
gw_store_totals(int64_t *record_count, int64_t *active_count, int64_t *duplicate_count)
{
	*record_count = present;
	*active_count = active;
	*duplicate_count = duplicates;
}

static void
collect_ref(RecordList *list, const char *ipo_id, const char *own_ref)
{
	uint32_t	number;

	for (number = find_ref(ipo_id, own_ref); number != GW_INDEX_NONE; number = records[number]->next_same)
		collect(list, records[number]);
}

static void
collect(RecordList *list, Record *record)
{
	list->records = realloc(list->records, (list->n + 1) * sizeof(Record *));
	if (list->records == NULL)
		abort();
	list->records[list->n++] = record;
}

static Record *
make_record(const RecordParts *parts, uint32_t number)
{
	char		id_room[24];
	const char *record_id = parts->record_id;
	const char *own_ref = parts->own_ref ? parts->own_ref : "";
	size_t		id_len;
	size_t		ref_len = strlen(own_ref);
	Record	   *record;
	char	   *at;

	if (record_id == NULL)
	{
		next_record_id(id_room, sizeof(id_room));
		record_id = id_room;
	}
	id_len = strlen(record_id);
	record = gw_alloc(sizeof(Record) + id_len + ref_len + parts->text_len + 3);
	record->bucket = gw_store_bucket(parts->ipo_id);
	if (record->bucket == NULL)
		record->bucket = make_bucket(parts->ipo_id);
	record->number = number;
	record->next_same = GW_INDEX_NONE;
	record->status = parts->status;
	record->record_id_len = (uint32_t) id_len;
	record->own_ref_len = (uint32_t) ref_len;
	record->text_len = (uint32_t) parts->text_len;
	at = memcpy(record->data, record_id, id_len + 1);
	at = memcpy(at + id_len + 1, own_ref, ref_len + 1);
	memcpy(at + ref_len + 1, parts->text, parts->text_len);
	return record;
}

/* Enters a record, which stands in `records`, into the indexes asked for and the counts. */
static void
attach(Record *record, bool in_bucket, bool in_by_id, bool in_by_ref)
{
	bool		is_active = record->status != GW_STATUS_INVALIDATED;

	if (in_bucket)
		enter_bucket(record->bucket, record->number);
	if (in_by_id)
		gw_index_insert(&by_id, record->number);
	if (in_by_ref && record->own_ref_len > 0)
	{
		uint32_t	head = find_ref(record->bucket->ipo_id, gw_record_own_ref(record));

		if (head == GW_INDEX_NONE)
			gw_index_insert(&by_ref, record->number);
		else
		{
			record->next_same = records[head]->next_same;
			records[head]->next_same = record->number;
		}
	}
	record->bucket->by_status[record->status]++;
	if (is_active)
	{
		active++;
		if (record->own_ref_len > 0 &&
			active_in_chain(find_ref(record->bucket->ipo_id, gw_record_own_ref(record))) == 2)
			duplicates++;
	}
}

/* The opposite.  A bucket keeps the number; gw_store_at() sees that it means nothing. */
static void
detach(Record *record, bool from_by_id, bool from_by_ref)
{
	uint32_t	head = GW_INDEX_NONE;

	if (record->own_ref_len > 0)
		head = find_ref(record->bucket->ipo_id, gw_record_own_ref(record));
	record->bucket->by_status[record->status]--;
	if (record->status != GW_STATUS_INVALIDATED)
	{
		active--;
		if (active_in_chain(head) == 2)
			duplicates--;
	}
	if (from_by_id)
		gw_index_replace(&by_id, record->number, GW_INDEX_NONE);
	if (from_by_ref && head == record->number)
		gw_index_replace(&by_ref, head, record->next_same);
	else if (from_by_ref && head != GW_INDEX_NONE)
	{
		Record	   *before = records[head];

		while (before->next_same != record->number)
			before = records[before->next_same];
		before->next_same = record->next_same;
	}
}

static size_t
active_in_chain(uint32_t head)
{
	size_t		n = 0;

	for (; head != GW_INDEX_NONE; head = records[head]->next_same)
		n += records[head]->status != GW_STATUS_INVALIDATED;
	return n;
}

static Bucket *
make_bucket(const char *ipo_id)
{
	Bucket	   *bucket = gw_alloc(sizeof(Bucket));

	bucket->ipo_id = gw_strdup(ipo_id);
	buckets = realloc(buckets, (nbuckets + 1) * sizeof(Bucket *));
	if (buckets == NULL)
		abort();
	buckets[nbuckets++] = bucket;
	return bucket;
}

static void
enter_bucket(Bucket *bucket, uint32_t number)
{
	size_t		at = gw_store_from(bucket, number);

	if (at < bucket->n && bucket->numbers[at] == number)
		return;
	if (bucket->n == bucket->cap)
	{
		bucket->cap = bucket->cap ? bucket->cap * 2 : 1024;
		bucket->numbers = realloc(bucket->numbers, bucket->cap * sizeof(uint32_t));
		if (bucket->numbers == NULL)
			abort();
	}
	memmove(bucket->numbers + at + 1, bucket->numbers + at, (bucket->n - at) * sizeof(uint32_t));
	bucket->numbers[at] = number;
	bucket->n++;
}

static void
next_record_id(char *dst, size_t size)
{
	do
		snprintf(dst, size, "%016lluA", (unsigned long long) (next_id++ % UINT64_C(10000000000000000)));
	while (gw_store_by_id(dst) != NULL);
}

static uint32_t
find_ref(const char *ipo_id, const char *own_ref)
{
	RefKey		key = {ipo_id, own_ref};

	return gw_index_find(&by_ref, hash_ref(ipo_id, own_ref), matches_ref, &key);
}

static uint64_t
hash_ref(const char *ipo_id, const char *own_ref)
{
	return gw_index_hash(own_ref, strlen(own_ref), gw_index_hash(ipo_id, strlen(ipo_id), 2));
}

static uint64_t
hash_by_id(uint32_t number)
{
	return gw_index_hash(gw_record_id(records[number]), records[number]->record_id_len, 1);
}

static uint64_t
hash_by_ref(uint32_t number)
{
	return hash_ref(records[number]->bucket->ipo_id, gw_record_own_ref(records[number]));
}

static bool
matches_id(uint32_t number, const void *key)
{
	return strcmp(gw_record_id(records[number]), key) == 0;
}

static bool
matches_ref(uint32_t number, const void *key)
{
	const RefKey *ref = key;

	return strcmp(gw_record_own_ref(records[number]), ref->own_ref) == 0 &&
		strcmp(records[number]->bucket->ipo_id, ref->ipo_id) == 0;
}
