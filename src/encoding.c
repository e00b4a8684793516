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
#include "miscadmin.h"
#include "utils/memutils.h"

#include "encoding.h"

static FmgrInfo to_utf8;
static FmgrInfo from_utf8;

/* bytes that are converted at once where some may have no equivalent */
#define PIECE	4096

static const char replacement[] = "\\u001a";

static bool append_converted(FiniBuffer *dst, const char *src, Size len, FiniBuffer *room);
static Size escaped_character(const char *src, Size len, char *utf8);
static bool hex4(const char *src, Size len, uint32 *code);
static bool needs_conversion(void);
static const char *convert(FmgrInfo *conversion, int src_encoding, int dst_encoding,
						   const char *src, Size len, Size *dst_len);
static void look_up(void);
static void look_up_one(FmgrInfo *conversion, int src_encoding, int dst_encoding);

void
fini_encoding_prepare(void)
{
	if (needs_conversion())
		look_up();
}

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

int
fini_encoding_character_from_utf8(const char *utf8, int len, char *dst, int room)
{
	char		converted[4 * MAX_CONVERSION_GROWTH + 1];
	int			n = len;

	if (GetDatabaseEncoding() == PG_SQL_ASCII && IS_HIGHBIT_SET(utf8[0]))
		return 0;
	if (needs_conversion())
	{
		look_up();
		if (DatumGetInt32(FunctionCall6(&from_utf8, Int32GetDatum(PG_UTF8), Int32GetDatum(GetDatabaseEncoding()),
										CStringGetDatum(utf8), CStringGetDatum(converted),
										Int32GetDatum(len), BoolGetDatum(true))) != len)
			return 0;
		utf8 = converted;
		n = (int) strlen(converted);
	}
	if (n > room)
		return 0;
	memcpy(dst, utf8, n);
	return n;
}

const char *
fini_encoding_json_from_utf8(const char *json, Size len, Size *text_len, bool *replaced)
{
	FiniBuffer *dst = fini_buffer_create(len);
	FiniBuffer *room = fini_buffer_create((Size) PIECE * MAX_CONVERSION_GROWTH);
	const char *end = json + len;

	*replaced = false;
	while (json < end)
	{
		const char *backslash = memchr(json, '\\', end - json);
		char		utf8[5];
		Size		taken;

		CHECK_FOR_INTERRUPTS();
		if (backslash == NULL)
			backslash = end;
		*replaced |= append_converted(dst, json, backslash - json, room);
		json = backslash;
		if (json == end)
			break;

		taken = escaped_character(json, end - json, utf8);
		if (taken == 0)
		{
			/* an escape of ASCII, or none: as it is, with the character behind the backslash */
			taken = json + 1 < end && !IS_HIGHBIT_SET(json[1]) ? 2 : 1;
			fini_buffer_append(dst, json, taken);
		}
		else if (utf8[0] == '\0')
		{
			fini_buffer_append(dst, replacement, strlen(replacement));
			*replaced = true;
		}
		else
			*replaced |= append_converted(dst, utf8, strlen(utf8), room);
		json += taken;
	}
	*text_len = dst->len;
	return dst->data;
}

bool
fini_encoding_is_utf8(const char *bytes, Size len)
{
	return len <= INT_MAX && pg_verify_mbstr(PG_UTF8, bytes, (int) len, true);
}

/* valid UTF-8, with replacements for what has no equivalent; was there any? */
static bool
append_converted(FiniBuffer *dst, const char *src, Size len, FiniBuffer *room)
{
	bool		replaced = false;

	if (!needs_conversion())
	{
		fini_buffer_append(dst, src, len);
		return false;
	}
	look_up();
	while (len > 0)
	{
		Size		piece = len <= PIECE ? len : (Size) pg_encoding_mbcliplen(PG_UTF8, src, (int) Min(len, (Size) 2 * PIECE), PIECE);
		Size		taken = DatumGetInt32(FunctionCall6(&from_utf8,
														Int32GetDatum(PG_UTF8),
														Int32GetDatum(GetDatabaseEncoding()),
														CStringGetDatum(src),
														CStringGetDatum(room->data),
														Int32GetDatum((int32) piece),
														BoolGetDatum(true)));

		fini_buffer_append(dst, room->data, strlen(room->data));
		if (taken < piece)
		{
			fini_buffer_append(dst, replacement, strlen(replacement));
			taken += pg_utf_mblen((const unsigned char *) src + taken);
			replaced = true;
		}
		src += taken;
		len -= taken;
	}
	return replaced;
}

/*
 * The character that an escape beyond ASCII stands for, and how many bytes the
 * escape has; "" for one that stands for no character.  0: it is another
 * escape.
 */
static Size
escaped_character(const char *src, Size len, char *utf8)
{
	uint32		code;
	uint32		second;
	Size		taken = 6;

	if (!hex4(src, len, &code) || (code > 0 && code < 0x80))
		return 0;
	utf8[0] = '\0';
	if (code == 0 || is_utf16_surrogate_second(code))
		return taken;
	if (is_utf16_surrogate_first(code))
	{
		if (!hex4(src + taken, len - taken, &second) || !is_utf16_surrogate_second(second))
			return taken;
		code = surrogate_pair_to_codepoint(code, second);
		taken *= 2;
	}
	unicode_to_utf8(code, (unsigned char *) utf8);
	utf8[pg_utf_mblen((unsigned char *) utf8)] = '\0';
	return taken;
}

/* is it a \u and four digits? */
static bool
hex4(const char *src, Size len, uint32 *code)
{
	if (len < 6 || src[0] != '\\' || src[1] != 'u')
		return false;
	*code = 0;
	for (int i = 2; i < 6; i++)
	{
		if (!isxdigit((unsigned char) src[i]))
			return false;
		*code = *code << 4 | (uint32) (src[i] <= '9' ? src[i] - '0' : (src[i] | 0x20) - 'a' + 10);
	}
	return true;
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

/* in a transaction of its own where there is none: the worker has none between its steps */
static void
look_up(void)
{
	MemoryContext caller = CurrentMemoryContext;
	bool		alone = !IsTransactionState();

	if (OidIsValid(to_utf8.fn_oid) && OidIsValid(from_utf8.fn_oid))
		return;

	if (alone)
		StartTransactionCommand();
	look_up_one(&to_utf8, GetDatabaseEncoding(), PG_UTF8);
	look_up_one(&from_utf8, PG_UTF8, GetDatabaseEncoding());
	if (alone)
		CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
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
