/*
 * json.c
 *		JSON as the gateway reads it: of a repeated field the first counts, spaces
 *		around strings do not, and a number too large for the machine stays as text.
 *
 * jansson does all of the work for ordinary input.  It refuses repeated names and
 * overflowing numbers; only then is the text rewritten without them and read again.
 */
#include "text.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 1000

typedef struct Scan
{
	const char *at;
	const char *end;
} Scan;

static bool tidy_value(Scan *scan, Buf *out, int depth);
static bool tidy_object(Scan *scan, Buf *out, int depth);
static bool tidy_array(Scan *scan, Buf *out, int depth);
static bool tidy_number(Scan *scan, Buf *out);
static bool skip_string(Scan *scan);
static void skip_space(Scan *scan);
static bool at_char(Scan *scan, char c);
static void emit(Buf *out, const char *from, const char *to);

/* The value, the caller's to release, or NULL when the text is no JSON. */
json_t *
gw_json_parse(const char *text, size_t len)
{
	json_error_t error;
	json_t	   *value = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
	enum json_error_code code;

	if (value != NULL)
		return value;
	code = json_error_code(&error);
	if (code == json_error_duplicate_key || code == json_error_numeric_overflow)
	{
		Scan		scan = {text, text + len};
		Buf			tidied = {0};

		if (tidy_value(&scan, &tidied, 0))
		{
			gw_buf_append(&tidied, scan.at, (size_t) (scan.end - scan.at));
			value = json_loadb(tidied.data, tidied.len, JSON_REJECT_DUPLICATES, &error);
		}
		gw_buf_free(&tidied);
	}
	return value;
}

/* Removes leading and trailing spaces from every string of a value, in place. */
void
gw_json_trim(json_t *value)
{
	const char *name;
	json_t	   *item;
	size_t		i;

	switch (json_typeof(value))
	{
		case JSON_STRING:
			{
				const char *text = json_string_value(value);
				size_t		len = json_string_length(value);

				if (len > 0 && (text[0] == ' ' || text[len - 1] == ' '))
				{
					char	   *copy = gw_strdup(text);
					char	   *start = copy;

					while (len > 0 && copy[len - 1] == ' ')
						len--;
					while (len > 0 && *start == ' ')
					{
						start++;
						len--;
					}
					json_string_setn_nocheck(value, start, len);
					free(copy);
				}
				break;
			}
		case JSON_OBJECT:
			json_object_foreach(value, name, item)
				gw_json_trim(item);
			break;
		case JSON_ARRAY:
			json_array_foreach(value, i, item)
				gw_json_trim(item);
			break;
		default:
			break;
	}
}

/* The text of a field that is a string, else NULL; the object's memory. */
const char *
gw_json_string(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

/*
 * The tidy_ functions copy one value to `out` (nowhere when it is NULL), and return
 * false where the text is no JSON; what they let pass jansson still judges.
 */
static bool
tidy_value(Scan *scan, Buf *out, int depth)
{
	const char *start;

	skip_space(scan);
	start = scan->at;
	if (depth > MAX_DEPTH || start == scan->end)
		return false;
	if (*start == '{')
		return tidy_object(scan, out, depth);
	if (*start == '[')
		return tidy_array(scan, out, depth);
	if (*start == '-' || (*start >= '0' && *start <= '9'))
		return tidy_number(scan, out);
	if (*start == '"')
	{
		if (!skip_string(scan))
			return false;
	}
	else
	{
		while (scan->at < scan->end && *scan->at >= 'a' && *scan->at <= 'z')
			scan->at++;
		if (scan->at == start)
			return false;
	}
	emit(out, start, scan->at);
	return true;
}

static bool
tidy_object(Scan *scan, Buf *out, int depth)
{
	json_t	   *seen = json_object();
	bool		first = true;
	bool		ok = false;

	scan->at++;
	emit(out, "{", NULL);
	skip_space(scan);
	if (at_char(scan, '}'))
		ok = true;
	while (!ok)
	{
		const char *name_start;
		size_t		name_len;
		json_t	   *name;
		bool		repeated;

		skip_space(scan);
		name_start = scan->at;
		if (!skip_string(scan))
			break;
		name_len = (size_t) (scan->at - name_start);
		/* compare names as values: an escape does not make a name another one */
		name = json_loadb(name_start, name_len, JSON_DECODE_ANY, NULL);
		if (name == NULL)
			break;
		repeated = json_object_get(seen, json_string_value(name)) != NULL;
		json_object_set_new(seen, json_string_value(name), json_true());
		json_decref(name);
		skip_space(scan);
		if (!at_char(scan, ':'))
			break;
		if (!repeated)
		{
			if (!first)
				emit(out, ",", NULL);
			emit(out, name_start, name_start + name_len);
			emit(out, ":", NULL);
			first = false;
		}
		if (!tidy_value(scan, repeated ? NULL : out, depth + 1))
			break;
		skip_space(scan);
		if (at_char(scan, '}'))
			ok = true;
		else if (!at_char(scan, ','))
			break;
	}
	json_decref(seen);
	emit(out, "}", NULL);
	return ok;
}

static bool
tidy_array(Scan *scan, Buf *out, int depth)
{
	scan->at++;
	emit(out, "[", NULL);
	skip_space(scan);
	if (at_char(scan, ']'))
	{
		emit(out, "]", NULL);
		return true;
	}
	for (;;)
	{
		if (!tidy_value(scan, out, depth + 1))
			return false;
		skip_space(scan);
		if (at_char(scan, ']'))
		{
			emit(out, "]", NULL);
			return true;
		}
		if (!at_char(scan, ','))
			return false;
		emit(out, ",", NULL);
	}
}

/* A number that does not fit becomes a string of its digits. */
static bool
tidy_number(Scan *scan, Buf *out)
{
	const char *start = scan->at;
	json_error_t error;
	json_t	   *number;
	bool		overflow;

	while (scan->at < scan->end && *scan->at != '\0' && strchr("+-.eE0123456789", *scan->at) != NULL)
		scan->at++;
	number = json_loadb(start, (size_t) (scan->at - start), JSON_DECODE_ANY, &error);
	overflow = number == NULL && json_error_code(&error) == json_error_numeric_overflow;
	if (number == NULL && !overflow)
		return false;
	json_decref(number);
	if (overflow)
		emit(out, "\"", NULL);
	emit(out, start, scan->at);
	if (overflow)
		emit(out, "\"", NULL);
	return true;
}

static bool
skip_string(Scan *scan)
{
	if (!at_char(scan, '"'))
		return false;
	while (scan->at < scan->end)
	{
		char		c = *scan->at++;

		if (c == '"')
			return true;
		if (c == '\\' && scan->at < scan->end)
			scan->at++;
	}
	return false;
}

static void
skip_space(Scan *scan)
{
	while (scan->at < scan->end && (*scan->at == ' ' || *scan->at == '\t' ||
									*scan->at == '\n' || *scan->at == '\r'))
		scan->at++;
}

static bool
at_char(Scan *scan, char c)
{
	if (scan->at == scan->end || *scan->at != c)
		return false;
	scan->at++;
	return true;
}

/* `to` NULL: all of a C string. */
static void
emit(Buf *out, const char *from, const char *to)
{
	if (out != NULL)
		gw_buf_append(out, from, to ? (size_t) (to - from) : strlen(from));
}
