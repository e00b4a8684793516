/*
 * applicant.c
 *		The applicants of a row: what is missing, check digits, documents.
 *
 * A document is its type, its country and its number, in capitals and without
 * spaces around.  A Hong Kong identity card is its number alone, without spaces
 * and brackets: its country has one name with one broker and another with the
 * next.
 */
#include "postgres.h"

#include <openssl/evp.h>

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "applicant.h"
#include "compat.h"
#include "entry.h"
#include "jsonb.h"
#include "settings.h"

#define HKID_DIGITS		6

/* one applicant's fields, trimmed; NULL when absent or empty */
typedef struct Applicant
{
	int			number;			/* among the joint applicants, from 1; 0: the only one, from columns */
	const char *type;
	const char *country;
	const char *id;
	const char *name_eng;
	const char *name_chi;
} Applicant;

static void check_row(FiniSource *source, const Datum *values, const bool *nulls, List **problems, List **documents);
static void from_columns(FiniSource *source, const Datum *values, const bool *nulls, List **problems, List **documents);
static bool from_list(FiniField *field, Datum value, bool isnull, List **problems, List **documents);
static void check_applicant(const Applicant *applicant, List **problems, List **documents);
static void note(List **problems, const Applicant *applicant, const FiniProblem *problem);
static void add_document(const Applicant *applicant, bool is_hkid, List **problems, List **documents);
static bool is_hkid_type(const char *type);
static char *bare_hkid(const char *text);
static const char *hkid_fault(const char *bare);
static char *trimmed(char *text);
static char *capitals(const char *text);
static void make_digest(const char *type, const char *country, const char *number, FiniDocument *document);

/* however large the row is, what comes back is small */
void
fini_applicant_check(FiniSource *source, const Datum *values, const bool *nulls, List **problems, List **documents)
{
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext, "fini applicants", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	List	   *all_problems = NIL;
	List	   *all_documents = NIL;
	ListCell   *cell;

	check_row(source, values, nulls, &all_problems, &all_documents);
	MemoryContextSwitchTo(old);
	if (problems != NULL)
	{
		*problems = NIL;
		foreach(cell, all_problems)
		{
			FiniProblem *problem = palloc(sizeof(FiniProblem));

			problem->code = ((FiniProblem *) lfirst(cell))->code;
			problem->text = pstrdup(((FiniProblem *) lfirst(cell))->text);
			*problems = lappend(*problems, problem);
		}
	}
	if (documents != NULL)
	{
		*documents = NIL;
		foreach(cell, all_documents)
		{
			FiniDocument *document = palloc(sizeof(FiniDocument));

			*document = *(FiniDocument *) lfirst(cell);
			*documents = lappend(*documents, document);
		}
	}
	MemoryContextDelete(work);
}

bool
fini_applicant_has_document(List *documents, const FiniDocument *document)
{
	ListCell   *cell;

	foreach(cell, documents)
	{
		if (memcmp(((FiniDocument *) lfirst(cell))->digest, document->digest, FINI_DOCUMENT_LEN) == 0)
			return true;
	}
	return false;
}

static void
check_row(FiniSource *source, const Datum *values, const bool *nulls, List **problems, List **documents)
{
	ListCell   *cell;
	int			column = -1;

	foreach(cell, source->fields)
	{
		FiniField  *field = lfirst(cell);

		column++;
		if (field->kind == FINI_FIELD_ID_LIST && from_list(field, values[column], nulls[column], problems, documents))
			return;
	}
	from_columns(source, values, nulls, problems, documents);
}

static void
from_columns(FiniSource *source, const Datum *values, const bool *nulls, List **problems, List **documents)
{
	Applicant	applicant = {0};
	ListCell   *cell;
	int			column = -1;

	foreach(cell, source->fields)
	{
		FiniField  *field = lfirst(cell);
		const char **member;
		bool		fits;

		column++;
		if (field->kind != FINI_FIELD_PERSONAL)
			continue;
		member = strcmp(field->name, "idType") == 0 ? &applicant.type :
			strcmp(field->name, "idCountryJurisdiction") == 0 ? &applicant.country :
			strcmp(field->name, "idNum") == 0 ? &applicant.id :
			strcmp(field->name, "fullNameEng") == 0 ? &applicant.name_eng : &applicant.name_chi;
		*member = trimmed(fini_entry_limited_text(field, values[column], nulls[column], &fits));
		/* what is too large is told with the entry, too */
		if (!fits)
			return;
	}
	/* that there is none at all is told with the entry */
	if (applicant.type || applicant.country || applicant.id || applicant.name_eng || applicant.name_chi)
		check_applicant(&applicant, problems, documents);
}

/* false: the column is null, and the others count.  What is no list of applicants is told with the entry */
static bool
from_list(FiniField *field, Datum value, bool isnull, List **problems, List **documents)
{
	Jsonb	   *list;
	char	   *text;
	bool		fits;

	if (isnull)
		return false;
	text = fini_entry_limited_text(field, value, false, &fits);
	if (!fits)
		return true;
	list = field->type == JSONBOID ? DatumGetJsonbP(value) : fini_jsonb_read(text, strlen(text));
	if (list == NULL || !JB_ROOT_IS_ARRAY(list) || JB_ROOT_IS_SCALAR(list))
		return true;
	for (uint32 i = 0; i < JB_ROOT_COUNT(list); i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(&list->root, i);
		JsonbContainer *object;
		Applicant	applicant = {.number = (int) i + 1};

		if (element->type != jbvBinary || !JsonContainerIsObject(element->val.binary.data))
			continue;
		object = element->val.binary.data;
		applicant.type = trimmed(fini_jsonb_field(object, "idType"));
		applicant.country = trimmed(fini_jsonb_field(object, "idCountryJurisdiction"));
		applicant.id = trimmed(fini_jsonb_field(object, "idNum"));
		applicant.name_eng = trimmed(fini_jsonb_field(object, "fullNameEng"));
		applicant.name_chi = trimmed(fini_jsonb_field(object, "fullNameChi"));
		check_applicant(&applicant, problems, documents);
	}
	return true;
}

static void
check_applicant(const Applicant *applicant, List **problems, List **documents)
{
	bool		is_hkid = applicant->type != NULL && is_hkid_type(applicant->type);
	FiniProblem problem;

	if (applicant->type == NULL)
	{
		problem.code = "no_id_type";
		problem.text = "idType is missing";
		note(problems, applicant, &problem);
	}
	if (applicant->country == NULL)
	{
		problem.code = "no_country";
		problem.text = "idCountryJurisdiction is missing";
		note(problems, applicant, &problem);
	}
	if (applicant->name_eng == NULL && applicant->name_chi == NULL)
	{
		problem.code = "no_name";
		problem.text = "fullNameEng and fullNameChi are missing";
		note(problems, applicant, &problem);
	}
	if (applicant->id == NULL)
	{
		problem.code = "no_id_number";
		problem.text = "idNum is missing";
		note(problems, applicant, &problem);
		return;
	}
	if (is_hkid)
	{
		problem.code = "bad_hkid";
		problem.text = hkid_fault(bare_hkid(applicant->id));
		if (problem.text != NULL)
			note(problems, applicant, &problem);
	}
	add_document(applicant, is_hkid, problems, documents);
}

static void
note(List **problems, const Applicant *applicant, const FiniProblem *problem)
{
	FiniProblem *noted = palloc(sizeof(FiniProblem));

	noted->code = problem->code;
	noted->text = applicant->number > 0 ? psprintf("%s (applicant %d)", problem->text, applicant->number) : problem->text;
	*problems = lappend(*problems, noted);
}

static void
add_document(const Applicant *applicant, bool is_hkid, List **problems, List **documents)
{
	FiniDocument *document = palloc(sizeof(FiniDocument));
	FiniProblem problem;
	char	   *bare = is_hkid ? bare_hkid(applicant->id) : NULL;

	if (bare != NULL)
		make_digest("HKID", "", bare, document);
	else
		make_digest(applicant->type != NULL ? capitals(applicant->type) : "",
					applicant->country != NULL ? capitals(applicant->country) : "", capitals(applicant->id), document);
	if (!fini_applicant_has_document(*documents, document))
		*documents = lappend(*documents, document);
	else
	{
		problem.code = "duplicate_document";
		problem.text = "idNum is also that of another applicant of this application";
		note(problems, applicant, &problem);
	}
}

/* one of fini.hkid_types */
static bool
is_hkid_type(const char *type)
{
	const char *list = fini_guc_hkid_types;
	Size		len = strlen(type);

	while (*list != '\0')
	{
		Size		skip = strspn(list, ", ");
		Size		item;

		list += skip;
		item = strcspn(list, ",");
		while (item > 0 && list[item - 1] == ' ')
			item--;
		if (item == len && item > 0 && pg_strncasecmp(list, type, len) == 0)
			return true;
		list += strcspn(list, ",");
	}
	return false;
}

/* letters, digits and check digit, in capitals; NULL when the brackets are not where they belong */
static char *
bare_hkid(const char *text)
{
	char	   *bare = palloc(strlen(text) + 1);
	Size		len = 0;

	for (const char *c = text; *c != '\0'; c++)
	{
		if (*c != ' ')
			bare[len++] = (char) pg_ascii_toupper((unsigned char) *c);
	}
	/* a pair of them, round the last character */
	if (len >= 3 && bare[len - 3] == '(' && bare[len - 1] == ')')
	{
		bare[len - 3] = bare[len - 2];
		len -= 2;
	}
	bare[len] = '\0';
	return strpbrk(bare, "()") == NULL ? bare : NULL;
}

/*
 * One or two letters, six digits, and a check digit that makes the sum of all,
 * each times its weight, a multiple of 11: weights 9 to 1, letters count 10 to
 * 35, and the place of a first letter that is not there counts 36.  A stands
 * for 10 as the check digit.
 */
static const char *
hkid_fault(const char *bare)
{
	Size		letters = 0;
	Size		len = bare != NULL ? strlen(bare) : 0;
	int			sum;
	int			weight;

	while (letters < len && bare[letters] >= 'A' && bare[letters] <= 'Z')
		letters++;
	if (letters < 1 || letters > 2 || len != letters + HKID_DIGITS + 1 ||
		strspn(bare + letters, "0123456789") < HKID_DIGITS ||
		(bare[len - 1] != 'A' && (bare[len - 1] < '0' || bare[len - 1] > '9')))
		return "idNum does not have the form of a Hong Kong identity card's number";
	sum = letters == 1 ? 36 * 9 : 0;
	weight = letters == 1 ? 8 : 9;
	for (const char *c = bare; *c != '\0'; c++)
		sum += (*c >= 'A' ? *c - 'A' + 10 : *c - '0') * weight--;
	return sum % 11 == 0 ? NULL : "the check digit of idNum is wrong";
}

/* in place; NULL for nothing */
static char *
trimmed(char *text)
{
	char	   *end;

	if (text == NULL)
		return NULL;
	while (*text == ' ')
		text++;
	end = text + strlen(text);
	while (end > text && end[-1] == ' ')
		*--end = '\0';
	return *text != '\0' ? text : NULL;
}

/* of the ASCII letters: the others are left as they are, in any encoding */
static char *
capitals(const char *text)
{
	char	   *copy = pstrdup(text);

	for (char *c = copy; *c != '\0'; c++)
		*c = (char) pg_ascii_toupper((unsigned char) *c);
	return copy;
}

static void
make_digest(const char *type, const char *country, const char *number, FiniDocument *document)
{
	static uint8 key[32];
	static EVP_MD_CTX *context = NULL;	/* for good: one a process */
	uint8		digest[EVP_MAX_MD_SIZE];

	if (context == NULL)
	{
		if (!pg_strong_random(key, sizeof(key)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate a random key")));
		context = EVP_MD_CTX_new();
	}
	/* the NULs between keep the parts apart */
	if (context == NULL || EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1 ||
		EVP_DigestUpdate(context, key, sizeof(key)) != 1 ||
		EVP_DigestUpdate(context, type, strlen(type) + 1) != 1 ||
		EVP_DigestUpdate(context, country, strlen(country) + 1) != 1 ||
		EVP_DigestUpdate(context, number, strlen(number) + 1) != 1 ||
		EVP_DigestFinal_ex(context, digest, NULL) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not compute the digest of a document")));
	memcpy(document->digest, digest, FINI_DOCUMENT_LEN);
}
