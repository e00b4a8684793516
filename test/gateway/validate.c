/*
 * validate.c
 *		What FINI would look at in one application, so that users meet natural rejections.
 */
#include "validate.h"

#include <string.h>

#define MAX_QUANTITY_DIGITS 15

static Refusal check_applicant(const json_t *applicant);
static bool quantity_ok(const json_t *quantity);
static bool filled(const json_t *object, const char *name);

/* The decrypted and trimmed entry; IPO and record are looked at by the caller. */
Refusal
gw_validate_application(const json_t *entry)
{
	json_t	   *id_list = json_object_get(entry, "idList");
	json_t	   *applicant;
	size_t		i;

	if (!quantity_ok(json_object_get(entry, "appQuantity")))
		return (Refusal) {REJECT_QUANTITY, "appQuantity is not a positive whole number"};
	if (!json_is_array(id_list) || json_array_size(id_list) == 0)
		return (Refusal) {REJECT_ID_LIST, "idList is missing or empty"};
	json_array_foreach(id_list, i, applicant)
	{
		Refusal		refusal = check_applicant(applicant);

		if (refusal.code != NULL)
			return refusal;
	}
	return (Refusal) {NULL, NULL};
}

/*
 * True when the text is an HKID with the right check digit: one or two letters, six
 * digits and the check digit, which may stand in brackets.  A number of another form
 * is left alone: *looks_like_one tells.
 */
bool
gw_validate_hkid(const char *number, bool *looks_like_one)
{
	char		plain[12];
	size_t		n = 0;
	size_t		letters = 0;
	int			sum;
	size_t		i;
	const char *at = number;

	*looks_like_one = false;
	while (n < 2 && ((*at >= 'A' && *at <= 'Z') || (*at >= 'a' && *at <= 'z')))
		plain[n++] = (char) (*at++ & ~0x20);
	letters = n;
	while (n < letters + 6 && *at >= '0' && *at <= '9')
		plain[n++] = *at++;
	if (letters == 0 || n != letters + 6)
		return false;
	if (at[0] == '(' && at[1] != '\0' && at[2] == ')' && at[3] == '\0')
		plain[n++] = at[1];
	else if (at[0] != '\0' && at[1] == '\0')
		plain[n++] = at[0];
	else
		return false;
	if (plain[n - 1] == 'a')
		plain[n - 1] = 'A';
	if (plain[n - 1] != 'A' && (plain[n - 1] < '0' || plain[n - 1] > '9'))
		return false;
	*looks_like_one = true;

	/* a lone letter is preceded by a space, which counts 36 */
	sum = letters == 1 ? 36 * 9 : 0;
	for (i = 0; i < n; i++)
	{
		int			weight = (int) (n - i);
		int			value = plain[i] <= '9' ? plain[i] - '0' : plain[i] - 'A' + 10;

		sum += weight * value;
	}
	return sum % 11 == 0;
}

static Refusal
check_applicant(const json_t *applicant)
{
	const char *type = gw_json_string(applicant, "idType");
	bool		looks_like_one;

	if (!filled(applicant, "idType"))
		return (Refusal) {REJECT_ID_TYPE, "idType is missing"};
	if (!filled(applicant, "idNum"))
		return (Refusal) {REJECT_ID_NUM, "idNum is missing"};
	if (!filled(applicant, "fullNameEng") && !filled(applicant, "fullNameChi"))
		return (Refusal) {REJECT_NAME, "fullNameEng and fullNameChi are both missing"};
	if (strcmp(type, "HKID") == 0 &&
		!gw_validate_hkid(gw_json_string(applicant, "idNum"), &looks_like_one) && looks_like_one)
		return (Refusal) {REJECT_HKID, "idNum has a wrong check digit"};
	return (Refusal) {NULL, NULL};
}

static bool
quantity_ok(const json_t *quantity)
{
	const char *text = json_string_value(quantity);

	if (json_is_integer(quantity))
		return json_integer_value(quantity) > 0 && json_integer_value(quantity) < INT64_C(1000000000000000);
	return text != NULL && gw_is_digits(text) && strlen(text) <= MAX_QUANTITY_DIGITS &&
		strspn(text, "0") < strlen(text);
}

static bool
filled(const json_t *object, const char *name)
{
	const char *text = gw_json_string(object, name);

	return text != NULL && *text != '\0';
}
