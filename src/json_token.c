/*
 * json_token.c
 *		Tokens of JSON text: what PostgreSQL's lexer takes, no more and no less.
 *
 * No locale, no allocation, no error is raised.  Bytes above 0x7f are taken as
 * they are: that they are UTF-8 has been seen to before.
 */
#include "postgres.h"

#include "json_token.h"

#define IS_DIGIT(c)			((c) >= '0' && (c) <= '9')

/* what PostgreSQL's parser takes for part of a word */
#define IS_WORD_CHAR(c)		(((c) >= 'a' && (c) <= 'z') || ((c) >= 'A' && (c) <= 'Z') || IS_DIGIT(c) || (c) == '_' || IS_HIGHBIT_SET(c))

static const char *string_end(const FiniJsonText *text, const char *p);
static bool are_hex(const char *p, int n);
static const char *number_end(const FiniJsonText *text, const char *p);
static bool is_word(const FiniJsonText *text, const char *end, const char *word);

bool
fini_json_next_token(FiniJsonText *text)
{
	const char *p = text->next;
	const char *end = text->end;

	while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r'))
		p++;
	text->start = p;
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

/* behind the quote that ends a string; NULL: malformed */
static const char *
string_end(const FiniJsonText *text, const char *p)
{
	const char *end = text->end;

	for (; p < end; p++)
	{
		unsigned char c = (unsigned char) *p;

		if (c == '"')
			return p + 1;
		if (c < 0x20)
			break;
		if (c != '\\')
			continue;
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
	}
	return NULL;
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
