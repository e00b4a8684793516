/*
 * settings_check.c
 *		Check hooks of settings that name no file: URLs, identities, lists.
 *
 * They run in every process, the postmaster included, and must not raise
 * errors of their own there: what they need is parsed with what cannot throw,
 * out of memory aside.
 */
#include "postgres.h"

#include "utils/guc.h"
#include "utils/varlena.h"

#include "compat.h"
#include "http.h"
#include "settings_check.h"

#define MAX_IDENTITY	256
#define MAX_FIRM_ID		20
#define MAX_STATUS		2
#define MAX_FIELDS		64
#define MAX_FIELD_NAME	128

#define PIN_PREFIX		"sha256//"
#define PIN_DIGITS		43		/* base64 digits of 32 bytes, before one '=' */

static bool check_url(const char *url);
static bool check_printable(const char *value, int max_len, bool spaces);
static bool is_pin(const char *pin, size_t len);

/* a list of database names, as SplitIdentifierString reads it */
bool
fini_settings_check_databases(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names = NIL;
	bool		ok = SplitIdentifierString(copy, ',', &names);

	list_free(names);
	pfree(copy);
	if (!ok)
	{
		GUC_check_errdetail("List syntax is invalid.");
		GUC_check_errhint("Separate the names of databases by commas, and put a name with capitals or "
						  "other special characters in double quotes.");
	}
	return ok;
}

/* an https URL; trailing slashes are dropped, since paths are appended that start with one */
bool
fini_settings_check_base_url(char **newval, void **extra, GucSource source)
{
	size_t		len;

	if (!check_url(*newval))
		return false;
	for (len = strlen(*newval); len > 0 && (*newval)[len - 1] == '/'; len--)
		(*newval)[len - 1] = '\0';
	return true;
}

bool
fini_settings_check_token_url(char **newval, void **extra, GucSource source)
{
	return check_url(*newval);
}

/* issuer, subject and machine ID: claims of an assertion, taken as they are */
bool
fini_settings_check_identity(char **newval, void **extra, GucSource source)
{
	if (check_printable(*newval, MAX_IDENTITY, false))
		return true;
	GUC_check_errhint("Copy the value from the profile in HKEX Client Connect.");
	return false;
}

bool
fini_settings_check_hkid_types(char **newval, void **extra, GucSource source)
{
	if (check_printable(*newval, MAX_IDENTITY, true))
		return true;
	GUC_check_errhint("Give values of idType, separated by commas.");
	return false;
}

bool
fini_settings_check_assertion_type(char **newval, void **extra, GucSource source)
{
	if ((*newval)[0] == '\0')
		GUC_check_errdetail("The type must not be empty.");
	else if (check_printable(*newval, MAX_IDENTITY, false))
		return true;
	GUC_check_errhint("The usual value is \"urn:ietf:params:oauth:grant-type:jwt-bearer\".");
	return false;
}

bool
fini_settings_check_firm_id(char **newval, void **extra, GucSource source)
{
	if (check_printable(*newval, MAX_FIRM_ID, true))
		return true;
	GUC_check_errhint("Use \"00000\" unless HKEX gave the firm another ID.");
	return false;
}

/* one or several "sha256//<base64 of 32 bytes>", separated by semicolons */
bool
fini_settings_check_pin(char **newval, void **extra, GucSource source)
{
	const char *pin = *newval;

	while (*pin != '\0')
	{
		size_t		len = strcspn(pin, ";");

		if (!is_pin(pin, len) || (pin[len] == ';' && pin[len + 1] == '\0'))
		{
			GUC_check_errdetail("A pin is \"sha256//\" and the base64 form of a SHA-256 digest; several are separated by semicolons.");
			GUC_check_errhint("Compute it with: openssl s_client -connect HOST:443 </dev/null | openssl x509 -pubkey -noout "
							  "| openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64");
			return false;
		}
		pin += len;
		if (*pin == ';')
			pin++;
	}
	return true;
}

bool
fini_settings_check_proxy(char **newval, void **extra, GucSource source)
{
	const char *problem;

	if ((*newval)[0] == '\0')
		return true;
	problem = fini_http_check_proxy(*newval);
	if (problem == NULL)
		return true;
	GUC_check_errdetail("%s", problem);
	GUC_check_errhint("Give a URL such as \"http://proxy.example.com:3128\", or an empty string to connect directly.");
	return false;
}

/*
 * The names of personal fields.  Names are JSON's, so case matters and
 * nothing is folded.  *extra is the parsed list.
 */
bool
fini_settings_check_fields(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names = NIL;
	ListCell   *cell;
	const char *problem = NULL;
	Size		size;
	FiniFieldList *list = NULL;
	char	   *text;

	if (!SplitGUCList(copy, ',', &names))
		problem = "List syntax is invalid.";
	else if (names == NIL)
		problem = "An empty list would send personal data in clear.";
	else if (list_length(names) > MAX_FIELDS)
		problem = "The list has too many names.";

	size = offsetof(FiniFieldList, names) + list_length(names) * sizeof(char *);
	foreach(cell, names)
	{
		size_t		len = strlen(lfirst(cell));

		if (len == 0 || len > MAX_FIELD_NAME)
			problem = "A name is empty or too long.";
		size += len + 1;
	}

	if (problem != NULL)
	{
		GUC_check_errdetail("%s", problem);
		GUC_check_errhint("List FINI's names of the personal fields, separated by commas; \"RESET fini.encrypted_fields\" brings the usual ones back.");
	}
	else if ((list = fini_compat_guc_malloc(size)) != NULL)
	{
		list->count = 0;
		text = (char *) &list->names[list_length(names)];
		foreach(cell, names)
		{
			Size		len = strlen(lfirst(cell)) + 1;

			memcpy(text, lfirst(cell), len);
			list->names[list->count++] = text;
			text += len;
		}
		*extra = list;
	}
	list_free(names);
	pfree(copy);
	return list != NULL;
}

bool
fini_settings_check_status(char **newval, void **extra, GucSource source)
{
	if ((*newval)[0] == '\0')
		GUC_check_errdetail("The code must not be empty.");
	else if (check_printable(*newval, MAX_STATUS, false))
		return true;
	GUC_check_errhint("Give the code of one or two characters that FINI's guide lists as subFlowStatus.");
	return false;
}

/* "" (not configured) or a plain https URL; else sets detail and hint */
static bool
check_url(const char *url)
{
	const char *problem;

	if (url[0] == '\0')
		return true;
	problem = fini_http_check_url(url);
	if (problem == NULL)
		return true;
	GUC_check_errdetail("%s", problem);
	GUC_check_errhint("Give a URL such as \"https://fini.example.com\", or an empty string to leave it unset.");
	return false;
}

/* printable ASCII of at most max_len characters, without spaces unless told; else sets the detail */
static bool
check_printable(const char *value, int max_len, bool spaces)
{
	const char *c;

	if (strlen(value) > (size_t) max_len)
	{
		GUC_check_errdetail("The value may have at most %d characters.", max_len);
		return false;
	}
	for (c = value; *c != '\0'; c++)
	{
		if ((unsigned char) *c >= 0x7f || (unsigned char) *c < (spaces ? 0x20 : 0x21))
		{
			if (spaces)
				GUC_check_errdetail("The value may have printable ASCII characters only.");
			else
				GUC_check_errdetail("The value may have printable ASCII characters only, and no spaces.");
			return false;
		}
	}
	return true;
}

/*
 * The canonical form only: libcurl compares text with text, so that another
 * spelling of the same digest would never match.
 */
static bool
is_pin(const char *pin, size_t len)
{
	static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t		prefix = strlen(PIN_PREFIX);
	const char *digit = NULL;
	int			i;

	if (len != prefix + PIN_DIGITS + 1 || strncmp(pin, PIN_PREFIX, prefix) != 0)
		return false;
	for (i = 0; i < PIN_DIGITS; i++)
	{
		digit = strchr(base64, pin[prefix + i]);
		if (digit == NULL)
			return false;
	}
	return (digit - base64) % 4 == 0 && pin[prefix + PIN_DIGITS] == '=';
}
