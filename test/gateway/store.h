/*
 * store.h
 *		What the gateway accepted: records, found by record ID and by IPO and ownRef, and
 *		the request IDs that were processed.
 *
 * One lock, taken by the caller with gw_store_lock() around everything else here, so that
 * a batch is one step for all others.  Record pointers are good until gw_store_unlock().
 * IPO and funding rows (ipo.c) live under the same lock.
 */
#ifndef GW_STORE_H
#define GW_STORE_H

#include "text.h"

#define GW_STATUS_AUTHORISED 10
#define GW_STATUS_INVALIDATED 20
#define GW_STATUS_ANY (-1)
#define GW_RECORD_ID_LEN 17		/* of an ID made here: 16 digits, A */
#define GW_NO_REQUEST UINT32_MAX	/* planted by the administration */

typedef struct Event
{
	int64_t		at_ms;
	uint32_t	request;		/* number of a processed request */
	char		op;				/* 'a'dd, 'c'hange, 'i'nvalidate */
} Event;

/* All records of one IPO, oldest first. */
typedef struct Bucket
{
	char	   *ipo_id;
	uint32_t   *numbers;		/* ascending; some may have left */
	size_t		n;
	size_t		cap;
	size_t		by_status[100];
} Bucket;

typedef struct Record
{
	Bucket	   *bucket;
	uint32_t	number;			/* position in the store, ascending with age */
	uint32_t	next_same;		/* another of the same IPO and ownRef */
	uint32_t	record_id_len;
	uint32_t	own_ref_len;	/* 0: none */
	uint32_t	text_len;
	uint32_t	nevents;
	Event		first;
	Event	   *later;			/* nevents - 1 of them */
	int			status;
	char		data[];			/* record ID, ownRef, text; a NUL after each */
} Record;

/* What a record is made of; the store copies it. */
typedef struct RecordParts
{
	const char *record_id;		/* NULL: a new one */
	const char *ipo_id;
	const char *own_ref;		/* NULL or empty: none */
	int			status;
	const char *text;			/* compact JSON object: all fields but recordID, subFlowStatus */
	size_t		text_len;
} RecordParts;

typedef struct RecordList
{
	Record	  **records;
	size_t		n;
} RecordList;

extern void gw_store_lock(void);
extern void gw_store_unlock(void);
extern void gw_store_init(void);
extern void gw_store_reset(void);

extern Record *gw_store_add(const RecordParts *parts);
extern Record *gw_store_replace(Record *record, const RecordParts *parts);
extern void gw_store_set_status(Record *record, int status);
extern void gw_store_remove(Record *record);

extern Record *gw_store_by_id(const char *record_id);
extern RecordList gw_store_named(const char *ipo_id, const char *record_id, const char *own_ref);
extern bool gw_store_has_active(const char *ipo_id, const char *own_ref);
extern Bucket *gw_store_bucket(const char *ipo_id);
extern size_t gw_store_from(const Bucket *bucket, uint32_t number);
extern Record *gw_store_at(const Bucket *bucket, size_t position);
extern Record *gw_store_number(uint32_t number);
extern uint32_t gw_store_end(void);
extern void gw_store_totals(int64_t *records, int64_t *active, int64_t *duplicates);

/* in request.c */
extern bool gw_store_knows_request(const uint8_t id[16]);
extern bool gw_store_claim_request(const uint8_t id[16], uint32_t *request);
extern const uint8_t *gw_store_request(uint32_t request);
extern void gw_store_reset_requests(void);

/* in record.c */
extern const char *gw_record_id(const Record *record);
extern const char *gw_record_own_ref(const Record *record);
extern const char *gw_record_text(const Record *record);
extern void gw_record_event(Record *record, char op, uint32_t request, int64_t at_ms);
extern void gw_record_render(const Record *record, Buf *out);

#endif
