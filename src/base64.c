/*
 * base64.c
 *		Base64 of RFC 4648: encoders, and a decoder that takes nothing else.
 *
 * PostgreSQL's own coder changed its types between majors, and its decoder
 * skips white space; ciphertexts and keys have exactly one spelling here.
 */
#include "postgres.h"

#include "base64.h"

static const char standard_alphabet[64 + 1] =
"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char url_alphabet[64 + 1] =
"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/* 0 to 63, or -1 */
static const int8 standard_value[256] = {
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 62, -1, -1, -1, 63,
	52, 53, 54, 55, 56, 57, 58, 59, 60, 61, -1, -1, -1, -1, -1, -1,
	-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
	15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, -1, -1, -1, -1, -1,
	-1, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40,
	41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1
};

static inline Size encode(const uint8 *src, Size len, char *dst,
						  const char *alphabet, bool pad);

Size
fini_base64_encode(const uint8 *src, Size len, char *dst)
{
	return encode(src, len, dst, standard_alphabet, true);
}

Size
fini_base64_encode_url(const uint8 *src, Size len, char *dst)
{
	return encode(src, len, dst, url_alphabet, false);
}

bool
fini_base64_decode(const char *src, Size len, uint8 *dst, Size *dst_len)
{
	const uint8 *in = (const uint8 *) src;
	uint8	   *out = dst;
	Size		quads = len / 4;
	int			padding = 0;

	if (len % 4 != 0)
		return false;
	if (len > 0 && in[len - 1] == '=')
	{
		padding = (in[len - 2] == '=') ? 2 : 1;
		quads--;
	}

	for (; quads > 0; quads--, in += 4)
	{
		int			a = standard_value[in[0]];
		int			b = standard_value[in[1]];
		int			c = standard_value[in[2]];
		int			d = standard_value[in[3]];

		if ((a | b | c | d) < 0)
			return false;
		*out++ = (uint8) (a << 2 | b >> 4);
		*out++ = (uint8) ((b & 0x0f) << 4 | c >> 2);
		*out++ = (uint8) ((c & 0x03) << 6 | d);
	}

	if (padding > 0)
	{
		int			a = standard_value[in[0]];
		int			b = standard_value[in[1]];
		int			c = (padding == 1) ? standard_value[in[2]] : 0;

		if ((a | b | c) < 0)
			return false;

		/* the bits that fall off must be zero, or one value had several spellings */
		if ((padding == 1) ? (c & 0x03) != 0 : (b & 0x0f) != 0)
			return false;
		*out++ = (uint8) (a << 2 | b >> 4);
		if (padding == 1)
			*out++ = (uint8) ((b & 0x0f) << 4 | c >> 2);
	}

	*dst_len = out - dst;
	return true;
}

static inline Size
encode(const uint8 *src, Size len, char *dst, const char *alphabet, bool pad)
{
	char	   *out = dst;

	for (; len >= 3; len -= 3, src += 3)
	{
		uint32		bits = (uint32) src[0] << 16 | (uint32) src[1] << 8 | src[2];

		out[0] = alphabet[bits >> 18];
		out[1] = alphabet[bits >> 12 & 0x3f];
		out[2] = alphabet[bits >> 6 & 0x3f];
		out[3] = alphabet[bits & 0x3f];
		out += 4;
	}

	if (len > 0)
	{
		uint32		bits = (uint32) src[0] << 16 | (len == 2 ? (uint32) src[1] << 8 : 0);

		*out++ = alphabet[bits >> 18];
		*out++ = alphabet[bits >> 12 & 0x3f];
		if (len == 2)
			*out++ = alphabet[bits >> 6 & 0x3f];
		else if (pad)
			*out++ = '=';
		if (pad)
			*out++ = '=';
	}

	return out - dst;
}
