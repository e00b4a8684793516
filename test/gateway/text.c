/*
 * text.c
 *		Growing buffers, base64 and hex.
 *
 * The decoders are exact: no white space, no missing or superfluous padding, no
 * bits set that belong to no byte.  A lenient gateway would hide a client's defects.
 */
#include "text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int	append_chunk(const char *chunk, size_t len, void *buf);
static ssize_t decode(uint8_t *dst, const char *src, size_t len, const int8_t *values);
static const int8_t *decoding_table(bool url);
static int	hex_value(char c, bool lower_only);

static const char base64_digits[] =
"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char base64url_digits[] =
"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/* Zeroed memory, the caller's to free. */
void *
gw_alloc(size_t size)
{
	void	   *p = calloc(1, size ? size : 1);

	if (p == NULL)
	{
		fputs("fini-gateway: out of memory\n", stderr);
		abort();
	}
	return p;
}

char *
gw_strdup(const char *text)
{
	size_t		len = strlen(text) + 1;

	return memcpy(gw_alloc(len), text, len);
}

/* Makes room for `more` bytes and the closing NUL. */
void
gw_buf_reserve(Buf *buf, size_t more)
{
	size_t		need = buf->len + more + 1;
	char	   *p;

	if (need <= buf->cap)
		return;
	if (need < buf->cap * 2)
		need = buf->cap * 2;
	if (need < 256)
		need = 256;
	p = realloc(buf->data, need);
	if (p == NULL)
	{
		fputs("fini-gateway: out of memory\n", stderr);
		abort();
	}
	buf->data = p;
	buf->cap = need;
}

void
gw_buf_append(Buf *buf, const void *data, size_t len)
{
	gw_buf_reserve(buf, len);
	if (len > 0)
		memcpy(buf->data + buf->len, data, len);
	buf->len += len;
	buf->data[buf->len] = '\0';
}

void
gw_buf_puts(Buf *buf, const char *text)
{
	gw_buf_append(buf, text, strlen(text));
}

void
gw_buf_printf(Buf *buf, const char *format,...)
{
	va_list		args;
	va_list		again;
	int			len;

	va_start(args, format);
	va_copy(again, args);
	len = vsnprintf(NULL, 0, format, args);
	va_end(args);
	gw_buf_reserve(buf, (size_t) len);
	vsnprintf(buf->data + buf->len, (size_t) len + 1, format, again);
	va_end(again);
	buf->len += (size_t) len;
}

/* Appends the compact text of a JSON value. */
void
gw_buf_json(Buf *buf, const json_t *value)
{
	json_dump_callback(value, append_chunk, buf, JSON_COMPACT | JSON_ENCODE_ANY);
}

static int
append_chunk(const char *chunk, size_t len, void *buf)
{
	gw_buf_append(buf, chunk, len);
	return 0;
}

void
gw_buf_free(Buf *buf)
{
	free(buf->data);
	memset(buf, 0, sizeof(*buf));
}

/* Appends a whole file; false (errno set) when it cannot be read. */
bool
gw_buf_read_file(Buf *buf, const char *path)
{
	FILE	   *file = fopen(path, "rb");
	char		chunk[8192];
	size_t		n;
	bool		ok;

	if (file == NULL)
		return false;
	while ((n = fread(chunk, 1, sizeof(chunk), file)) > 0)
		gw_buf_append(buf, chunk, n);
	ok = !ferror(file);
	fclose(file);
	return ok;
}

/* Writes padded base64 and a NUL, returns its length. */
size_t
gw_base64_encode(char *dst, const uint8_t *src, size_t len)
{
	char	   *out = dst;
	size_t		i;

	for (i = 0; i + 2 < len; i += 3)
	{
		uint32_t	v = (uint32_t) src[i] << 16 | (uint32_t) src[i + 1] << 8 | src[i + 2];

		*out++ = base64_digits[v >> 18];
		*out++ = base64_digits[v >> 12 & 63];
		*out++ = base64_digits[v >> 6 & 63];
		*out++ = base64_digits[v & 63];
	}
	if (i < len)
	{
		uint32_t	v = (uint32_t) src[i] << 16 | (i + 1 < len ? (uint32_t) src[i + 1] << 8 : 0);

		*out++ = base64_digits[v >> 18];
		*out++ = base64_digits[v >> 12 & 63];
		*out++ = i + 1 < len ? base64_digits[v >> 6 & 63] : '=';
		*out++ = '=';
	}
	*out = '\0';
	return (size_t) (out - dst);
}

/* The bytes' number, or -1 when it is no exact base64. */
ssize_t
gw_base64_decode(uint8_t *dst, const char *src, size_t len)
{
	if (len % 4 != 0)
		return -1;
	if (len > 0 && src[len - 1] == '=')
		len--;
	if (len > 0 && len % 4 == 3 && src[len - 1] == '=')
		len--;
	return decode(dst, src, len, decoding_table(false));
}

/* The same without padding and for the URL alphabet, as JWT and JWK have it. */
ssize_t
gw_base64url_decode(uint8_t *dst, const char *src, size_t len)
{
	return decode(dst, src, len, decoding_table(true));
}

size_t
gw_base64url_encode(char *dst, const uint8_t *src, size_t len)
{
	size_t		n = gw_base64_encode(dst, src, len);
	size_t		i;

	while (n > 0 && dst[n - 1] == '=')
		n--;
	dst[n] = '\0';
	for (i = 0; i < n; i++)
	{
		if (dst[i] == '+')
			dst[i] = '-';
		else if (dst[i] == '/')
			dst[i] = '_';
	}
	return n;
}

static ssize_t
decode(uint8_t *dst, const char *src, size_t len, const int8_t *values)
{
	uint8_t    *out = dst;
	uint32_t	v = 0;
	size_t		i;

	if (len % 4 == 1)
		return -1;
	for (i = 0; i < len; i++)
	{
		int			digit = values[(unsigned char) src[i]];

		if (digit < 0)
			return -1;
		v = v << 6 | (uint32_t) digit;
		if (i % 4 == 3)
		{
			*out++ = (uint8_t) (v >> 16);
			*out++ = (uint8_t) (v >> 8);
			*out++ = (uint8_t) v;
			v = 0;
		}
	}
	if (len % 4 == 2)
	{
		if (v & 0xF)
			return -1;
		*out++ = (uint8_t) (v >> 4);
	}
	else if (len % 4 == 3)
	{
		if (v & 0x3)
			return -1;
		*out++ = (uint8_t) (v >> 10);
		*out++ = (uint8_t) (v >> 2);
	}
	return out - dst;
}

static const int8_t *
decoding_table(bool url)
{
	static __thread int8_t tables[2][256];
	static __thread bool ready;

	if (!ready)
	{
		int			i;

		memset(tables, -1, sizeof(tables));
		for (i = 0; i < 64; i++)
		{
			tables[0][(unsigned char) base64_digits[i]] = (int8_t) i;
			tables[1][(unsigned char) base64url_digits[i]] = (int8_t) i;
		}
		ready = true;
	}
	return tables[url];
}

/* Writes 2 * len lower-case digits and a NUL. */
void
gw_hex_encode(char *dst, const uint8_t *src, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	size_t		i;

	for (i = 0; i < len; i++)
	{
		dst[2 * i] = digits[src[i] >> 4];
		dst[2 * i + 1] = digits[src[i] & 15];
	}
	dst[2 * len] = '\0';
}

/* Reads 2 * len digits; false when one is none. */
bool
gw_hex_decode(uint8_t *dst, const char *src, size_t len, bool lower_only)
{
	size_t		i;

	for (i = 0; i < len; i++)
	{
		int			high = hex_value(src[2 * i], lower_only);
		int			low = high < 0 ? -1 : hex_value(src[2 * i + 1], lower_only);

		if (low < 0)
			return false;
		dst[i] = (uint8_t) (high << 4 | low);
	}
	return true;
}

static int
hex_value(char c, bool lower_only)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (!lower_only && c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF. */
bool
gw_is_utf8(const uint8_t *text, size_t len)
{
	size_t		i = 0;

	while (i < len)
	{
		uint8_t		c = text[i];
		size_t		more;
		uint8_t		low = 0x80;
		uint8_t		high = 0xBF;

		if (c < 0x80)
		{
			i++;
			continue;
		}
		if (c >= 0xC2 && c <= 0xDF)
			more = 1;
		else if (c >= 0xE0 && c <= 0xEF)
			more = 2;
		else if (c >= 0xF0 && c <= 0xF4)
			more = 3;
		else
			return false;
		if (c == 0xE0)
			low = 0xA0;
		else if (c == 0xED)
			high = 0x9F;
		else if (c == 0xF0)
			low = 0x90;
		else if (c == 0xF4)
			high = 0x8F;
		if (len - i <= more)
			return false;
		for (i++; more > 0; i++, more--)
		{
			if (text[i] < low || text[i] > high)
				return false;
			low = 0x80;
			high = 0xBF;
		}
	}
	return true;
}

/* One or more decimal digits and nothing else. */
bool
gw_is_digits(const char *text)
{
	return *text != '\0' && text[strspn(text, "0123456789")] == '\0';
}
