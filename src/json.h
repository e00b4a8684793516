/*
 * json.h
 *		JSON text copied through, with the values of chosen fields replaced.
 *
 * Payloads and answers hold personal data, and PostgreSQL's JSON errors quote
 * their input; nothing that is raised here does.
 */
#ifndef FINI_JSON_H
#define FINI_JSON_H

#include "postgres.h"

#include "secret.h"

typedef enum FiniJsonKind
{
	FINI_JSON_STRING,			/* value: what the string means, escapes resolved */
	FINI_JSON_SCALAR,			/* a number, true or false; value: as written */
	FINI_JSON_NESTED			/* an object or an array; no value */
} FiniJsonKind;

/*
 * Called for each value that stands under one of the chosen names and is not
 * null.  Either appends the replacement, quotes included, to dst and returns
 * true, or leaves dst alone and returns false: the value is copied then, and
 * an object or array searched for further chosen fields.  May raise errors.
 */
typedef bool (*FiniJsonReplace) (void *arg, int name, FiniJsonKind kind,
								 const char *value, Size len, FiniBuffer *dst);

typedef struct FiniJsonRules
{
	const char *const *names;	/* in the database encoding; compared with a name's meaning, escapes resolved */
	int			nnames;
	FiniJsonReplace replace;
	void	   *arg;
	const char *subject;		/* in error messages: "payload" */
	int			sqlerrcode;		/* of what is wrong with the text */
} FiniJsonRules;

/*
 * Append json (UTF-8) to dst with the chosen fields replaced, at any depth and
 * as often as they come, and every other byte as it is.
 */
extern void fini_json_transform(const char *json, Size len, const FiniJsonRules *rules,
								FiniBuffer *dst);

/* append a JSON string, quoted and escaped, of UTF-8 text */
extern void fini_json_append_string(FiniBuffer *dst, const char *text, Size len);

/*
 * jsonb of JSON text in the database encoding, in CurrentMemoryContext.  Raises
 * FINI_ERRCODE_UNREADABLE, naming the subject, for what jsonb cannot hold.
 */
extern Datum fini_json_to_jsonb(const char *text, Size len, const char *subject);

#endif							/* FINI_JSON_H */
