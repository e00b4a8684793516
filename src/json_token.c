/*
 * json_token.c
 *		Tokens of JSON text and their grammar: what PostgreSQL takes, no more
 *		and no less, but for the depth.
 *
 * No locale, no allocation, no error is raised.  Bytes above 0x7f are taken as
 * they are: that they are text has been seen to before.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "encoding.h"
#include "json_token.h"

#define IS_DIGIT(c)			((c) >= '0' && (c) <= '9')

/* what PostgreSQL's parser takes for part of a word */
#define IS_WORD_CHAR(c)		(((c) >= 'a' && (c) <= 'z') || ((c) >= 'A' && (c) <= 'Z') || IS_DIGIT(c) || (c) == '_' || IS_HIGHBIT_SET(c))

static const char *string_end(FiniJsonText *text, const char *p);
static const char *skip_plain(const char *p, const char *end);
static bool are_hex(const char *p, int n);
static const char *number_end(const FiniJsonText *text, const char *p);
static bool is_word(const FiniJsonText *text, const char *end, const char *word);
static FiniJsonEvent begin_nested(FiniJsonParser *parser, char c);
static FiniJsonEvent end_nested(FiniJsonParser *parser);
static FiniJsonUnescaped character_of(const char **src, const char *end, unsigned char *utf8);
static uint32 hex4(const char *src);

bool
fini_json_next_token(FiniJsonText *text)
{
	const char *p = text->next;
	const char *end = text->end;

	while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r'))
		p++;
	text->start = p;
	text->escaped = false;
	if (p == end)
	{
		text->token = FINI_JSON_TOKEN_END;
		text->next = p;
		return true;
	}
	switch (*p)
	{
		case '{':
		case '}':
		case '[':
		case ']':
		case ',':
		case ':':
			text->token = FINI_JSON_TOKEN_PUNCTUATION;
			text->next = p + 1;
			break;
		case '"':
			text->token = FINI_JSON_TOKEN_STRING;
			text->next = string_end(text, p + 1);
			break;
		case '-':
		case '0':
		case '1':
		case '2':
		case '3':
		case '4':
		case '5':
		case '6':
		case '7':
		case '8':
		case '9':
			text->token = FINI_JSON_TOKEN_SCALAR;
			text->next = number_end(text, p);
			break;
		default:
			while (p < end && IS_WORD_CHAR(*p))
				p++;
			text->next = p;
			text->token = is_word(text, p, "null") ? FINI_JSON_TOKEN_NULL : FINI_JSON_TOKEN_SCALAR;
			if (text->token == FINI_JSON_TOKEN_SCALAR && !is_word(text, p, "true") && !is_word(text, p, "false"))
				text->next = NULL;
			break;
	}
	return text->next != NULL;
}

void
fini_json_begin(FiniJsonParser *parser, const char *json, Size len)
{
	parser->text.json = json;
	parser->text.end = json + len;
	parser->text.next = json;
	parser->expected = FINI_JSON_ANY_VALUE;
	parser->depth = 0;
}

FiniJsonEvent
fini_json_next(FiniJsonParser *parser)
{
	for (;;)
	{
		FiniJsonToken token;
		char		c;

		if (!fini_json_next_token(&parser->text))
			return FINI_JSON_EVENT_MALFORMED;
		token = parser->text.token;
		c = token == FINI_JSON_TOKEN_PUNCTUATION ? *parser->text.start : '\0';
		switch (parser->expected)
		{
			case FINI_JSON_NAME_OR_END:
				if (c == '}')
					return end_nested(parser);
				/* FALLTHROUGH */
			case FINI_JSON_NAME:
				if (token != FINI_JSON_TOKEN_STRING)
					return FINI_JSON_EVENT_MALFORMED;
				parser->expected = FINI_JSON_COLON;
				return FINI_JSON_EVENT_NAME;
			case FINI_JSON_COLON:
				if (c != ':')
					return FINI_JSON_EVENT_MALFORMED;
				parser->expected = FINI_JSON_ANY_VALUE;
				break;
			case FINI_JSON_VALUE_OR_END:
				if (c == ']')
					return end_nested(parser);
				/* FALLTHROUGH */
			case FINI_JSON_ANY_VALUE:
				if (c == '{' || c == '[')
					return begin_nested(parser, c);
				if (c != '\0' || token == FINI_JSON_TOKEN_END)
					return FINI_JSON_EVENT_MALFORMED;
				parser->expected = parser->depth > 0 ? FINI_JSON_COMMA_OR_END : FINI_JSON_NOTHING;
				return FINI_JSON_EVENT_SCALAR;
			case FINI_JSON_COMMA_OR_END:
				if (c == (parser->nest[parser->depth - 1] == '{' ? '}' : ']'))
					return end_nested(parser);
				if (c != ',')
					return FINI_JSON_EVENT_MALFORMED;
				parser->expected = parser->nest[parser->depth - 1] == '{' ? FINI_JSON_NAME : FINI_JSON_ANY_VALUE;
				break;
			case FINI_JSON_NOTHING:
				return token == FINI_JSON_TOKEN_END ? FINI_JSON_EVENT_DONE : FINI_JSON_EVENT_MALFORMED;
		}
	}
}

FiniJsonUnescaped
fini_json_unescape(const char *src, Size len, bool local, char *dst, Size *dst_len)
{
	const char *end = src + len;
	char	   *out = dst;

	while (src < end)
	{
		const char *backslash = memchr(src, '\\', end - src);
		unsigned char utf8[4];
		FiniJsonUnescaped outcome;
		int			taken;

		if (backslash == NULL)
			backslash = end;
		memcpy(out, src, backslash - src);
		out += backslash - src;
		if (backslash == end)
			break;

		src = backslash;
		outcome = character_of(&src, end, utf8);
		if (outcome != FINI_JSON_UNESCAPED)
			return outcome;
		/* an escape beyond ASCII has at least as many bytes as a character of any encoding */
		taken = pg_utf_mblen(utf8);
		if (local && IS_HIGHBIT_SET(utf8[0]))
			taken = fini_encoding_character_from_utf8((char *) utf8, taken, out, (int) (src - backslash));
		else
			memcpy(out, utf8, taken);
		if (taken == 0)
			return FINI_JSON_HOLDS_UNTRANSLATABLE;
		out += taken;
	}
	*dst_len = out - dst;
	return FINI_JSON_UNESCAPED;
}

/* behind the quote that ends a string; NULL: malformed */
static const char *
string_end(FiniJsonText *text, const char *p)
{
	const char *end = text->end;

	for (p = skip_plain(p, end); p < end; p++)
	{
		unsigned char c = (unsigned char) *p;

		if (c == '"')
			return p + 1;
		if (c < 0x20)
			break;
		if (c != '\\')
			continue;
		text->escaped = true;
		if (++p == end)
			break;
		if (*p == 'u')
		{
			if (end - p <= 4 || !are_hex(p + 1, 4))
				break;
			p += 4;
		}
		else if (*p == '\0' || strchr("\"\\/bfnrt", *p) == NULL)
			break;
		p = skip_plain(p + 1, end) - 1;
	}
	return NULL;
}

/* eight bytes at a time, as long as none of them is a quote, a backslash or a control character */
static const char *
skip_plain(const char *p, const char *end)
{
	const uint64 ones = UINT64CONST(0x0101010101010101);
	const uint64 high = ones << 7;

	for (; end - p >= 8; p += 8)
	{
		uint64		bytes;
		uint64		quotes;
		uint64		backslashes;

		memcpy(&bytes, p, 8);
		quotes = bytes ^ ones * '"';
		backslashes = bytes ^ ones * '\\';
		/* x - y borrows into a byte's highest bit where the byte is less than y, or where a lower one has */
		if (((((quotes - ones) & ~quotes) | ((backslashes - ones) & ~backslashes) | ((bytes - ones * ' ') & ~bytes)) & high) != 0)
			break;
	}
	return p;
}

static bool
are_hex(const char *p, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (!IS_DIGIT(p[i]) && !(p[i] >= 'a' && p[i] <= 'f') && !(p[i] >= 'A' && p[i] <= 'F'))
			return false;
	}
	return true;
}

static const char *
number_end(const FiniJsonText *text, const char *p)
{
	const char *end = text->end;
	const char *digits;

	if (*p == '-')
		p++;
	digits = p;
	while (p < end && IS_DIGIT(*p))
		p++;
	if (p == digits || (*digits == '0' && p > digits + 1))
		return NULL;
	if (p < end && *p == '.')
	{
		digits = ++p;
		while (p < end && IS_DIGIT(*p))
			p++;
		if (p == digits)
			return NULL;
	}
	if (p < end && (*p == 'e' || *p == 'E'))
	{
		p++;
		if (p < end && (*p == '+' || *p == '-'))
			p++;
		digits = p;
		while (p < end && IS_DIGIT(*p))
			p++;
		if (p == digits)
			return NULL;
	}
	if (p < end && IS_WORD_CHAR(*p))
		return NULL;
	return p;
}

static bool
is_word(const FiniJsonText *text, const char *end, const char *word)
{
	Size		len = strlen(word);

	return (Size) (end - text->start) == len && memcmp(text->start, word, len) == 0;
}

static FiniJsonEvent
begin_nested(FiniJsonParser *parser, char c)
{
	if (parser->depth >= FINI_JSON_MAX_DEPTH)
		return FINI_JSON_EVENT_TOO_DEEP;
	parser->nest[parser->depth++] = c;
	parser->expected = c == '{' ? FINI_JSON_NAME_OR_END : FINI_JSON_VALUE_OR_END;
	return FINI_JSON_EVENT_BEGIN;
}

static FiniJsonEvent
end_nested(FiniJsonParser *parser)
{
	parser->expected = --parser->depth > 0 ? FINI_JSON_COMMA_OR_END : FINI_JSON_NOTHING;
	return FINI_JSON_EVENT_END;
}

/* of a well-formed escape, behind which *src is then */
static FiniJsonUnescaped
character_of(const char **src, const char *end, unsigned char *utf8)
{
	static const char letters[] = "bfnrt";
	static const char meanings[] = "\b\f\n\r\t";
	char		c = (*src)[1];
	const char *letter = strchr(letters, c);
	uint32		code;

	*src += 2;
	if (c != 'u')
	{
		/* else a quote, a slash or a backslash */
		utf8[0] = (unsigned char) (letter != NULL ? meanings[letter - letters] : c);
		return FINI_JSON_UNESCAPED;
	}
	code = hex4(*src);
	*src += 4;
	if (code == 0)
		return FINI_JSON_HOLDS_NUL;
	if (is_utf16_surrogate_second(code))
		return FINI_JSON_HOLDS_LONE_SURROGATE;
	if (is_utf16_surrogate_first(code))
	{
		uint32		second;

		if (end - *src < 6 || (*src)[0] != '\\' || (*src)[1] != 'u')
			return FINI_JSON_HOLDS_LONE_SURROGATE;
		second = hex4(*src + 2);
		if (!is_utf16_surrogate_second(second))
			return FINI_JSON_HOLDS_LONE_SURROGATE;
		*src += 6;
		code = surrogate_pair_to_codepoint(code, second);
	}
	unicode_to_utf8(code, utf8);
	return FINI_JSON_UNESCAPED;
}

static uint32
hex4(const char *src)
{
	uint32		code = 0;

	for (int i = 0; i < 4; i++)
		code = code << 4 | (uint32) (src[i] <= '9' ? src[i] - '0' : (src[i] | 0x20) - 'a' + 10);
	return code;
}
