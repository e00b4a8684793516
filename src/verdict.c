/*
 * verdict.c
 *		From signals to verdicts.
 */
#include "postgres.h"

#include "verdict.h"

typedef struct CodeRule
{
	const char *code;
	FiniVerdict verdict;
} CodeRule;

/* FINI's message-level codes, whatever HTTP status they come with */
static const CodeRule code_rules[] = {
	{"411001", FINI_VERDICT_STOP},
	{"411002", FINI_VERDICT_DOUBT},
	{"411003", FINI_VERDICT_STOP},
	{"411004", FINI_VERDICT_NEW_KEY},
	{"411005", FINI_VERDICT_STOP},
	{"411006", FINI_VERDICT_STOP},
	{"411007", FINI_VERDICT_NEW_KEY},
	{"411008", FINI_VERDICT_NEW_KEY},
	{"411009", FINI_VERDICT_STOP},
	{"411010", FINI_VERDICT_STOP},
	{"411011", FINI_VERDICT_NEW_KEY},
	{"411999", FINI_VERDICT_STOP},
	{"401900", FINI_VERDICT_WRONG},
	{"405904", FINI_VERDICT_WRONG},
};

static const char *meaning_of_status(int status);
static FiniVerdict verdict_of_status(int status, const FiniAnswer *answer, const char **code, const char **message);

FiniVerdict
fini_verdict_of(const FiniHttpRequest *http, const FiniAnswer *answer,
				const char **code, const char **message)
{
	*code = "";
	*message = "";
	switch (http->outcome)
	{
		case FINI_HTTP_NOT_SENT:
			*code = "connection";
			*message = http->error;
			return FINI_VERDICT_LATER;
		case FINI_HTTP_IN_DOUBT:
		case FINI_HTTP_TOO_LARGE:
			*code = "no_answer";
			*message = http->error;
			return FINI_VERDICT_DOUBT;
		case FINI_HTTP_ANSWERED:
			break;
	}

	if (answer != NULL)
	{
		*code = answer->exception && answer->exception_code[0] != '\0' ? answer->exception_code : answer->code;
		*message = answer->exception && answer->exception_message[0] != '\0' ? answer->exception_message : answer->message;
		for (size_t i = 0; i < lengthof(code_rules); i++)
		{
			if (strcmp(code_rules[i].code, answer->code) == 0 ||
				strcmp(code_rules[i].code, *code) == 0)
				return code_rules[i].verdict;
		}
	}
	return verdict_of_status(http->status, answer, code, message);
}

static FiniVerdict
verdict_of_status(int status, const FiniAnswer *answer, const char **code, const char **message)
{
	static char status_text[16];

	if (**code == '\0' || strcmp(*code, "0") == 0)
	{
		snprintf(status_text, sizeof(status_text), "http_%d", status);
		*code = status_text;
	}
	if (**message == '\0')
		*message = meaning_of_status(status);
	switch (status)
	{
		case 401:
			return FINI_VERDICT_NEW_TOKEN;
		case 403:
		case 404:
			return FINI_VERDICT_STOP;
		case 429:
			return FINI_VERDICT_LATER;
		case 400:
			if (answer == NULL)
				return FINI_VERDICT_WRONG;
			/* entries with reasons of their own stand beside a refusal of the whole */
			if (!answer->exception && answer->entries > 0)
				return FINI_VERDICT_PROCESSED;
			return FINI_VERDICT_REJECTED;
		case 200:
		case 201:
		case 202:
			if (answer == NULL)
			{
				*code = "unreadable";
				return FINI_VERDICT_DOUBT;
			}
			if (strcmp(answer->code, "0") == 0 && !answer->exception)
			{
				*code = "0";
				return FINI_VERDICT_PROCESSED;
			}
			if (!answer->exception && answer->entries > 0)
				return FINI_VERDICT_PROCESSED;
			return FINI_VERDICT_REJECTED;
		default:

			/*
			 * 5xx may come from a proxy that has passed the request on.  What
			 * is left (a redirect, another 4xx) says that it was refused
			 * before anything was done, in a way that repeating won't mend.
			 */
			if (status >= 500 || status < 300)
				return FINI_VERDICT_DOUBT;
			return FINI_VERDICT_STOP;
	}
}

/* for answers that say no more; "" where what is the matter with the answer says it better */
static const char *
meaning_of_status(int status)
{
	if (status >= 300 && status < 400)
		return "the gateway redirects, which is not followed: the token goes to fini.base_url alone";
	switch (status)
	{
		case 401:
			return "the access token was not accepted";
		case 403:
			return "not entitled";
		case 404:
			return "no such endpoint";
		case 429:
			return "too many requests";
		default:
			return "";
	}
}
