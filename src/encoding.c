/*
 * encoding.c
 *		Between the database encoding and UTF-8, which all of FINI speaks.
 *
 * A database's encoding never changes, so each process looks its two
 * conversion functions up once and keeps them.  They are C functions over
 * constant tables; calling them needs no catalog.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "encoding.h"

static FmgrInfo to_utf8;
static FmgrInfo from_utf8;

static bool needs_conversion(void);
static const char *convert(FmgrInfo *conversion, int src_encoding, int dst_encoding,
						   const char *src, Size len, Size *dst_len);
static void look_up(void);
static void look_up_one(FmgrInfo *conversion, int src_encoding, int dst_encoding);

const char *
fini_encoding_to_utf8(const char *src, Size len, Size *utf8_len)
{
	*utf8_len = len;
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		return fini_encoding_is_utf8(src, len) ? src : NULL;
	if (!needs_conversion())
		return src;
	return convert(&to_utf8, GetDatabaseEncoding(), PG_UTF8, src, len, utf8_len);
}

const char *
fini_encoding_from_utf8(const char *utf8, Size len, Size *text_len)
{
	*text_len = len;
	if (!needs_conversion())
		return utf8;
	return convert(&from_utf8, PG_UTF8, GetDatabaseEncoding(), utf8, len, text_len);
}

bool
fini_encoding_is_utf8(const char *bytes, Size len)
{
	return len <= INT_MAX && pg_verify_mbstr(PG_UTF8, bytes, (int) len, true);
}

static bool
needs_conversion(void)
{
	return GetDatabaseEncoding() != PG_UTF8 && GetDatabaseEncoding() != PG_SQL_ASCII;
}

/*
 * Run a conversion function in its no-error mode: it returns how many bytes it
 * took, which is fewer than all when it met a character it cannot convert.
 */
static const char *
convert(FmgrInfo *conversion, int src_encoding, int dst_encoding,
		const char *src, Size len, Size *dst_len)
{
	FiniBuffer *dst;
	Size		room;
	int			taken;

	if (len >= MaxAllocSize / MAX_CONVERSION_GROWTH)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("text of %zu bytes is too long for encoding conversion", len)));
	look_up();

	room = len * MAX_CONVERSION_GROWTH;
	dst = fini_buffer_create(room);
	taken = DatumGetInt32(FunctionCall6(conversion,
										Int32GetDatum(src_encoding),
										Int32GetDatum(dst_encoding),
										CStringGetDatum(src),
										CStringGetDatum(dst->data),
										Int32GetDatum((int32) len),
										BoolGetDatum(true)));
	if (taken < 0 || (Size) taken != len)
		return NULL;

	*dst_len = strlen(dst->data);
	return dst->data;
}

static void
look_up(void)
{
	if (OidIsValid(to_utf8.fn_oid) && OidIsValid(from_utf8.fn_oid))
		return;
	if (!IsTransactionState())
		elog(ERROR, "encoding conversion looked up outside a transaction");

	look_up_one(&to_utf8, GetDatabaseEncoding(), PG_UTF8);
	look_up_one(&from_utf8, PG_UTF8, GetDatabaseEncoding());
}

static void
look_up_one(FmgrInfo *conversion, int src_encoding, int dst_encoding)
{
	Oid			proc = FindDefaultConversionProc(src_encoding, dst_encoding);

	if (!OidIsValid(proc))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("default conversion function for encoding \"%s\" to \"%s\" does not exist",
						pg_encoding_to_char(src_encoding),
						pg_encoding_to_char(dst_encoding))));
	fmgr_info_cxt(proc, conversion, TopMemoryContext);
}
