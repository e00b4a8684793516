/*
 * fuzz.c
 *		libFuzzer inside a PostgreSQL backend: fini_fuzz(target, arguments).
 *
 * The code under test uses palloc, ereport and PostgreSQL's JSON; imitations
 * of these would be what is tested.  So the fuzzer is linked into a build of
 * fini.so and driven from a single-user backend (test/fuzz/run).  libFuzzer
 * ends the process when it is done.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "fuzz.h"

extern int	LLVMFuzzerRunDriver(int *argc, char ***argv, int (*callback) (const uint8 *data, size_t size));

PG_FUNCTION_INFO_V1(fini_sql_fuzz);

static const FuzzTargetEntry *target;
static MemoryContext context;

static int	execute(const uint8 *data, size_t size);
static void execute_in_subtransaction(const char *data, Size len);

Datum
fini_sql_fuzz(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum	   *texts;
	bool	   *nulls;
	int			n;
	char	  **argv;

	for (target = fuzz_targets; target->name != NULL && strcmp(target->name, name) != 0; target++)
		;
	if (target->name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no fuzz target \"%s\"", name)));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &texts, &nulls, &n);
	argv = palloc(sizeof(char *) * (n + 2));
	argv[0] = name;
	for (int i = 0; i < n; i++)
		argv[i + 1] = TextDatumGetCString(texts[i]);
	argv[++n] = NULL;
	context = AllocSetContextCreate(CurrentMemoryContext, "fuzz", ALLOCSET_DEFAULT_SIZES);
	PG_RETURN_INT32(LLVMFuzzerRunDriver(&n, &argv, execute));
}

static int
execute(const uint8 *data, size_t size)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	char	   *copy = malloc(size + 1);

	memcpy(copy, data, size);
	copy[size] = '\0';			/* as behind every FiniBuffer */
	PG_TRY();
	{
		if (target->needs_rollback)
			execute_in_subtransaction(copy, size);
		else
			target->run(copy, size);
	}
	PG_CATCH();
	{
		/* bad input is refused with an error; what cannot happen must not */
		MemoryContextSwitchTo(context);
		must(geterrcode() != ERRCODE_INTERNAL_ERROR);
		must(geterrcode() != ERRCODE_OUT_OF_MEMORY);
		FlushErrorState();
	}
	PG_END_TRY();
	free(copy);
	MemoryContextSwitchTo(old);
	MemoryContextReset(context);
	return 0;
}

static void
execute_in_subtransaction(const char *data, Size len)
{
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		target->run(data, len);
	}
	PG_FINALLY();
	{
		MemoryContextSwitchTo(context);
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_END_TRY();
}
