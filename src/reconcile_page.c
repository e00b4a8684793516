/*
 * reconcile_page.c
 *		A page of records, compared with their rows while both are in memory.
 *
 * Personal data is held for one page only.  A record that its row knows and
 * that says what the row says leaves nothing but the number of the operation
 * that accounts for it; everything else becomes a candidate, to be judged when
 * all pages have been seen: what is under way now need not differ then.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compare.h"
#include "error.h"
#include "outbox.h"
#include "query.h"
#include "reconcile.h"
#include "settings.h"
#include "source.h"
#include "textmap.h"

/* the fields of a candidate that are texts */
typedef enum CandidateText
{
	KIND,
	OWN_REF,
	RECORD_ID,
	FIELD,
	LOCAL,
	REMOTE,
	CANDIDATE_TEXTS
} CandidateText;

/* what a page leaves */
typedef struct Findings
{
	int64	   *seen;			/* operations whose record is there */
	int			nseen;
	char	  **texts[CANDIDATE_TEXTS];
	int64	   *standing;		/* the operation that stands for the candidate's row; 0: none */
	int			n;
	int			size;
} Findings;

/* an own_ref of the page: its row, and what the outbox says of it */
typedef struct Subject
{
	const char *own_ref;		/* as FiniTextmap wants it, first */
	int			index;
} Subject;

typedef struct Standing
{
	bool		under_way;
	int64		id;				/* of the operation that stands; 0: none does */
	TimestampTz settled_at;
	bool		withdrawn;		/* it is an accepted invalidate */
	const char *record_id;
} Standing;

typedef struct RecordPage
{
	int			n;
	const FiniValue **records;
	int		   *subjects;		/* of each record */
	int			nsubjects;
	char	  **own_refs;
	FiniRow    *rows;
	Standing   *standings;
} RecordPage;

/* OFFSET 0: own_ref by own_ref, whatever statistics say of a table that was filled a minute ago */
static FiniStatement standing_statement = {
	.sql = "SELECT u.n, s.id, s.settled_at, s.operation = 'invalidate', s.record_id, s.state = 'accepted' AND NOT s.stray,"
	" " FINI_RECONCILE_TOUCHED("s", "$3")
	" FROM ROWS FROM (unnest($1)) WITH ORDINALITY AS u(r, n),"
	" LATERAL (SELECT * FROM fini.submission o WHERE o.own_ref = u.r AND o.relation = $2 OFFSET 0) s",
	.nargs = 3, .types = {TEXTARRAYOID, OIDOID, TIMESTAMPTZOID}
};

/* 256 operations to a bucket: few rows where records come in the order of their operations, and short ones where not */
static FiniStatement seen_statement = {
	.sql = "INSERT INTO fini.reconcile_seen (run_id, bucket, operations)"
	" SELECT $1, u.id >> 8, array_agg(u.id) FROM unnest($2) AS u(id) GROUP BY u.id >> 8",
	.nargs = 2, .types = {INT8OID, INT8ARRAYOID}, .keep_plan = true
};

static FiniStatement candidate_statement = {
	.sql = "INSERT INTO fini.reconcile_candidate (run_id, key, kind, own_ref, record_id, field, local, remote, standing)"
	" SELECT $1, " FINI_RECONCILE_KEY("coalesce(nullif(c.own_ref, ''), c.record_id, '')") ","
	" c.kind, c.own_ref, c.record_id, c.field, c.local, c.remote, nullif(c.standing, 0)"
	" FROM ROWS FROM (unnest($2), unnest($3), unnest($4), unnest($5), unnest($6), unnest($7), unnest($8))"
	" AS c(kind, own_ref, record_id, field, local, remote, standing)",
	.nargs = 8, .types = {INT8OID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID},
	.keep_plan = true
};

static void read_page(FiniReconcile *run, const FiniAnswer *answer, RecordPage *page);
static void read_standings(FiniReconcile *run, RecordPage *page);
static void judge_record(FiniReconcile *run, const RecordPage *page, int i, Findings *findings);
static void add_candidate(Findings *findings, const char *kind, const char *own_ref, const char *record_id,
						  const FiniDifference *difference, int64 standing);
static void store(FiniReconcile *run, Findings *findings);
static char *identifier(const FiniValue *record, const char *name);

void
fini_reconcile_take_page(FiniReconcile *run, const FiniAnswer *answer)
{
	MemoryContext old = MemoryContextSwitchTo(run->piece);
	FiniPageTurn turn = fini_query_turn(&run->pages, answer);
	Findings	findings = {0};
	RecordPage	page = {0};

	if (turn == FINI_PAGES_STUCK)
		ereport(ERROR,
				(errcode(FINI_ERRCODE_UNREADABLE),
				 errmsg("the pages of subscriptions/query do not end")));
	if (answer->data != NULL && answer->entries > 0)
	{
		read_page(run, answer, &page);
		for (int i = 0; i < page.n; i++)
			judge_record(run, &page, i, &findings);
		store(run, &findings);
	}
	run->remote += page.n;
	if (turn == FINI_PAGES_END)
	{
		run->phase = FINI_RECONCILE_ROWS;
		run->reached = 0;
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(run->piece);
}

static void
read_page(FiniReconcile *run, const FiniAnswer *answer, RecordPage *page)
{
	HTAB	   *map = fini_textmap_create("own_refs of a page", answer->entries, sizeof(Subject), run->piece);
	FiniSource *source = fini_source_open(run->relid);

	MemoryContextSwitchTo(run->piece);
	page->n = answer->entries;
	page->records = palloc(sizeof(FiniValue *) * page->n);
	page->subjects = palloc(sizeof(int) * page->n);
	page->own_refs = palloc(sizeof(char *) * page->n);
	for (int i = 0; i < page->n; i++)
	{
		Subject    *subject;
		char	   *own_ref;
		bool		found;

		/* to pass over what cannot be read would make its row look missing */
		if (!fini_answer_object(answer, i, &page->records[i]))
			ereport(ERROR,
					(errcode(FINI_ERRCODE_UNREADABLE),
					 errmsg("a page of subscriptions/query holds something that is no record")));
		own_ref = identifier(page->records[i], "ownRef");
		subject = fini_textmap_enter(map, own_ref != NULL ? own_ref : "", &found);
		if (!found)
		{
			subject->index = page->nsubjects;
			page->own_refs[page->nsubjects++] = unconstify(char *, subject->own_ref);
		}
		page->subjects[i] = subject->index;
	}
	page->rows = palloc0(sizeof(FiniRow) * page->nsubjects);
	page->standings = palloc0(sizeof(Standing) * page->nsubjects);
	fini_source_read(source, page->nsubjects, (const char *const *) page->own_refs, page->rows, run->piece);
	MemoryContextSwitchTo(run->piece);
	read_standings(run, page);
}

/* the last operation that FINI accepted for the row, and whether anything is under way */
static void
read_standings(FiniReconcile *run, RecordPage *page)
{
	Datum		values[3] = {fini_outbox_text_array(page->nsubjects, page->own_refs), ObjectIdGetDatum(run->relid),
	TimestampTzGetDatum(run->started_at)};
	SPITupleTable *table;

	fini_reconcile_execute(&standing_statement, values, NULL);
	table = SPI_tuptable;
	for (uint64 i = 0; i < table->numvals; i++)
	{
		Datum		columns[7];
		bool		nulls[7];
		Standing   *standing;

		heap_deform_tuple(table->vals[i], table->tupdesc, columns, nulls);
		standing = &page->standings[DatumGetInt64(columns[0]) - 1];
		standing->under_way |= !nulls[6] && DatumGetBool(columns[6]);
		if (!DatumGetBool(columns[5]) || nulls[2])
			continue;
		if (standing->id != 0 && (standing->settled_at > DatumGetTimestampTz(columns[2]) ||
								  (standing->settled_at == DatumGetTimestampTz(columns[2]) && standing->id > DatumGetInt64(columns[1]))))
			continue;
		standing->id = DatumGetInt64(columns[1]);
		standing->settled_at = DatumGetTimestampTz(columns[2]);
		standing->withdrawn = DatumGetBool(columns[3]);
		standing->record_id = nulls[4] ? NULL : TextDatumGetCString(columns[4]);
	}
	SPI_freetuptable(table);
}

static void
judge_record(FiniReconcile *run, const RecordPage *page, int i, Findings *findings)
{
	const FiniValue *record = page->records[i];
	const char *own_ref = page->own_refs[page->subjects[i]];
	const FiniRow *row = &page->rows[page->subjects[i]];
	const Standing *standing = &page->standings[page->subjects[i]];
	const char *record_id = identifier(record, "recordID");
	FiniDifference status = {"subFlowStatus", NULL, fini_value_member_text(record, "subFlowStatus")};
	bool		active = status.remote == NULL || strcmp(status.remote, fini_guc_invalidated_status) != 0;
	bool		has_row = row->found && strcmp(row->ipo_id, run->ipo_id) == 0;
	bool		known;
	List	   *differences = NIL;
	ListCell   *cell;

	if (standing->under_way)
		return;					/* and will not be judged in the end */
	if (record_id != NULL && strlen(record_id) > FINI_MAX_RECORD_ID)
		record_id = NULL;
	known = record_id != NULL && standing->record_id != NULL && strcmp(record_id, standing->record_id) == 0;

	if (!active)
	{
		/* in order unless the row thinks that it stands */
		status.local = "accepted";
		if (has_row && standing->id != 0 && !standing->withdrawn && known)
			add_candidate(findings, "status_differs", own_ref, record_id, &status, standing->id);
	}
	else if (standing->withdrawn && (known || has_row))
	{
		status.local = "withdrawn";
		add_candidate(findings, "status_differs", own_ref, record_id, &status, standing->id);
	}
	else if (has_row && known)
	{
		if (findings->seen == NULL)
			findings->seen = palloc(sizeof(int64) * page->n);
		findings->seen[findings->nseen++] = standing->id;
		differences = fini_compare_entry(row->entry, row->entry_len, record, false);
		foreach(cell, differences)
			add_candidate(findings, "field_differs", own_ref, record_id, lfirst(cell), standing->id);
		run->matched += differences == NIL;
	}
	else
	{
		/* which of them is the row's, and which is one too many, shows when all have been seen */
		FiniDifference other = {NULL, standing->record_id, NULL};

		add_candidate(findings, has_row ? "other" : "foreign", own_ref, record_id, &other, standing->id);
	}
}

static void
add_candidate(Findings *findings, const char *kind, const char *own_ref, const char *record_id,
			  const FiniDifference *difference, int64 standing)
{
	const char *texts[CANDIDATE_TEXTS] = {kind, own_ref, record_id, difference->field, difference->local, difference->remote};

	if (findings->n == findings->size)
	{
		int			size = findings->size > 0 ? findings->size * 2 : 64;

		for (int t = 0; t < CANDIDATE_TEXTS; t++)
			findings->texts[t] = findings->size == 0 ? palloc(sizeof(char *) * size) :
				repalloc(findings->texts[t], sizeof(char *) * size);
		findings->standing = findings->size == 0 ? palloc(sizeof(int64) * size) :
			repalloc(findings->standing, sizeof(int64) * size);
		findings->size = size;
	}
	for (int t = 0; t < CANDIDATE_TEXTS; t++)
		findings->texts[t][findings->n] = unconstify(char *, texts[t]);
	findings->standing[findings->n++] = standing;
}

static void
store(FiniReconcile *run, Findings *findings)
{
	Datum		values[CANDIDATE_TEXTS + 2] = {Int64GetDatum(run->run_id)};

	if (findings->nseen > 0)
	{
		values[1] = fini_outbox_int8_array(findings->nseen, findings->seen);
		fini_reconcile_execute(&seen_statement, values, NULL);
	}
	if (findings->n > 0)
	{
		for (int t = 0; t < CANDIDATE_TEXTS; t++)
			values[t + 1] = fini_outbox_text_array(findings->n, findings->texts[t]);
		values[CANDIDATE_TEXTS + 1] = fini_outbox_int8_array(findings->n, findings->standing);
		fini_reconcile_execute(&candidate_statement, values, NULL);
	}
}

/* trimmed, as FINI trims */
static char *
identifier(const FiniValue *record, const char *name)
{
	char	   *text = fini_value_member_text(record, name);
	char	   *end;

	if (text == NULL)
		return NULL;
	while (*text == ' ')
		text++;
	end = text + strlen(text);
	while (end > text && end[-1] == ' ')
		*--end = '\0';
	return text;
}
