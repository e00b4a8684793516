/*
 * encoding.h
 *		Between the database encoding and UTF-8, which all of FINI speaks.
 *
 * PostgreSQL's own conversion calls raise errors that print the bytes in
 * question, and personal data belongs in no error; these report by result.
 *
 * In a database that is neither UTF8 nor SQL_ASCII the first conversion in a
 * process looks it up, outside a transaction in one of its own.
 */
#ifndef FINI_ENCODING_H
#define FINI_ENCODING_H

#include "postgres.h"

#include "secret.h"

/* look it up now, in a transaction, where nothing is under way that an error would harm */
extern void fini_encoding_prepare(void);

/*
 * Text of the database in UTF-8: src itself when there is nothing to convert,
 * else a secret of CurrentMemoryContext.  NULL when a character has no
 * equivalent (or, in an SQL_ASCII database, when it is not UTF-8).
 */
extern const char *fini_encoding_to_utf8(const char *src, Size len, Size *utf8_len);

/*
 * The same the other way, for valid UTF-8.
 */
extern const char *fini_encoding_from_utf8(const char *utf8, Size len, Size *text_len);

/*
 * The same for one character, to dst, which has room for so many bytes: its
 * length, 0 when it has no equivalent.  That is so beyond ASCII in an SQL_ASCII
 * database, as for PostgreSQL's JSON.
 */
extern int fini_encoding_character_from_utf8(const char *utf8, int len, char *dst, int room);

/*
 * The same for JSON text, whatever it holds: what the database cannot hold, be
 * it written out or as an escape (also \u0000 and halves of surrogate pairs),
 * is replaced by the character below, as a JSON escape; *replaced tells whether
 * anything was.  Always a copy.
 */
#define FINI_ENCODING_REPLACEMENT	'\x1a'

extern const char *fini_encoding_json_from_utf8(const char *json, Size len, Size *text_len, bool *replaced);

/* is it UTF-8 without NUL? */
extern bool fini_encoding_is_utf8(const char *bytes, Size len);

#endif							/* FINI_ENCODING_H */
