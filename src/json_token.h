/*
 * json_token.h
 *		Tokens of JSON text, for json.c.
 */
#ifndef FINI_JSON_TOKEN_H
#define FINI_JSON_TOKEN_H

#include "postgres.h"

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
	const char *start;
	const char *next;			/* at first where the text begins */
} FiniJsonText;

/* the next token; false when there is none that is well-formed: start is where it would have begun */
extern bool fini_json_next_token(FiniJsonText *text);

#endif							/* FINI_JSON_TOKEN_H */
