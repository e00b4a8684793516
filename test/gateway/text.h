/*
 * text.h
 *		Bytes and text: growing buffers, base64, hex, strict JSON input.
 *
 * Nothing here keeps state or takes a lock; every module may call it.  Running out
 * of memory ends the program: a sandbox has nothing better to do.
 */
#ifndef GW_TEXT_H
#define GW_TEXT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A growing byte buffer, always followed by a NUL; all zeroes is an empty one. */
typedef struct Buf
{
	char	   *data;
	size_t		len;
	size_t		cap;
} Buf;

extern void *gw_alloc(size_t size);
extern char *gw_strdup(const char *text);
extern void gw_buf_reserve(Buf *buf, size_t more);
extern void gw_buf_append(Buf *buf, const void *data, size_t len);
extern void gw_buf_puts(Buf *buf, const char *text);
extern void gw_buf_printf(Buf *buf, const char *format,...) __attribute__((format(printf, 2, 3)));
extern void gw_buf_json(Buf *buf, const json_t *value);
extern void gw_buf_free(Buf *buf);
extern bool gw_buf_read_file(Buf *buf, const char *path);

/* Room that the encoders and decoders need at most. */
#define GW_BASE64_LENGTH(n) (((n) + 2) / 3 * 4)
#define GW_BASE64_DECODED(n) ((n) / 4 * 3 + 3)

extern size_t gw_base64_encode(char *dst, const uint8_t *src, size_t len);
extern ssize_t gw_base64_decode(uint8_t *dst, const char *src, size_t len);
extern ssize_t gw_base64url_decode(uint8_t *dst, const char *src, size_t len);
extern size_t gw_base64url_encode(char *dst, const uint8_t *src, size_t len);
extern void gw_hex_encode(char *dst, const uint8_t *src, size_t len);
extern bool gw_hex_decode(uint8_t *dst, const char *src, size_t len, bool lower_only);
extern bool gw_is_utf8(const uint8_t *text, size_t len);
extern bool gw_is_digits(const char *text);

extern json_t *gw_json_parse(const char *text, size_t len);
extern void gw_json_trim(json_t *value);
extern const char *gw_json_string(const json_t *object, const char *name);

#endif
