/*
 * json_token.h
 *		Tokens of JSON text and their grammar, for json.c and json_value.c.
 */
#ifndef FINI_JSON_TOKEN_H
#define FINI_JSON_TOKEN_H

#include "postgres.h"

/* no payload or answer nests deeper than a handful */
#define FINI_JSON_MAX_DEPTH		1000

typedef enum FiniJsonToken
{
	FINI_JSON_TOKEN_END,
	FINI_JSON_TOKEN_STRING,
	FINI_JSON_TOKEN_SCALAR,		/* a number, true or false */
	FINI_JSON_TOKEN_NULL,
	FINI_JSON_TOKEN_PUNCTUATION /* the character that stands there */
} FiniJsonToken;

typedef struct FiniJsonText
{
	const char *json;
	const char *end;
	FiniJsonToken token;		/* the one in hand, from start up to next */
	bool		escaped;		/* it is a string that holds escapes */
	const char *start;
	const char *next;			/* at first where the text begins */
} FiniJsonText;

/* the next token; false when there is none that is well-formed: start is where it would have begun */
extern bool fini_json_next_token(FiniJsonText *text);

/* what a text consists of, one after the other; its first token is in hand */
typedef enum FiniJsonEvent
{
	FINI_JSON_EVENT_NAME,		/* of a member, whose value is next */
	FINI_JSON_EVENT_SCALAR,		/* a value that is no object and no array */
	FINI_JSON_EVENT_BEGIN,		/* an object or an array begins */
	FINI_JSON_EVENT_END,		/* ... ends */
	FINI_JSON_EVENT_DONE,		/* nothing more comes, and nothing is missing */
	FINI_JSON_EVENT_MALFORMED,
	FINI_JSON_EVENT_TOO_DEEP
} FiniJsonEvent;

/* what may come next */
typedef enum FiniJsonExpected
{
	FINI_JSON_ANY_VALUE,
	FINI_JSON_VALUE_OR_END,		/* of an array that has just begun */
	FINI_JSON_NAME,
	FINI_JSON_NAME_OR_END,		/* of an object that has just begun */
	FINI_JSON_COLON,
	FINI_JSON_COMMA_OR_END,		/* after a value */
	FINI_JSON_NOTHING			/* after the outermost */
} FiniJsonExpected;

typedef struct FiniJsonParser
{
	FiniJsonText text;
	FiniJsonExpected expected;
	int			depth;
	char		nest[FINI_JSON_MAX_DEPTH];	/* '{' or '[', outermost first */
} FiniJsonParser;

extern void fini_json_begin(FiniJsonParser *parser, const char *json, Size len);
extern FiniJsonEvent fini_json_next(FiniJsonParser *parser);

typedef enum FiniJsonUnescaped
{
	FINI_JSON_UNESCAPED,
	FINI_JSON_HOLDS_NUL,
	FINI_JSON_HOLDS_LONE_SURROGATE,
	FINI_JSON_HOLDS_UNTRANSLATABLE
} FiniJsonUnescaped;

/*
 * The meaning of a string's inside, which has been found well-formed: to dst,
 * which has room for len bytes, and its length.  Escapes become UTF-8 or, if
 * local, text of the database encoding; all else stays.
 */
extern FiniJsonUnescaped fini_json_unescape(const char *src, Size len, bool local, char *dst, Size *dst_len);

#endif							/* FINI_JSON_TOKEN_H */
