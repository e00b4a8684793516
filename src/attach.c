/*
 * attach.c
 *		fini.attach, fini.detach and fini.submit.
 *
 * attach and detach run as their caller, who must own the table: the triggers
 * are created with his rights.  Only the row in fini.attachment is written as
 * the extension's owner.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "attach.h"
#include "compat.h"
#include "identity.h"
#include "jsonb.h"
#include "outbox.h"
#include "source.h"

PG_FUNCTION_INFO_V1(fini_sql_attach);
PG_FUNCTION_INFO_V1(fini_sql_detach);
PG_FUNCTION_INFO_V1(fini_sql_submit);

static void check_owner(Oid relid);
static void check_identity_kept(Relation rel, Jsonb *fields);
static void store_attachment(Oid relid, Jsonb *fields, Jsonb *outcome, bool live, bool precheck, bool replicated);
static void submit_batch(void *arg, int n, char **own_refs, char **ipo_ids);

Datum
fini_sql_attach(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	Jsonb	   *fields = PG_GETARG_JSONB_P(1);
	Jsonb	   *outcome = PG_GETARG_JSONB_P(2);
	bool		live = PG_GETARG_BOOL(3);
	bool		precheck = PG_GETARG_BOOL(4);
	bool		replicated = PG_GETARG_BOOL(5);
	Relation	rel;

	PreventCommandDuringRecovery("fini.attach()");
	if (replicated && !live)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a table cannot be replicated without being live"),
				 errhint("Attach it live, or enqueue its rows with fini.submit.")));
	/* whoever does not own a table shall not lock it either */
	check_owner(relid);
	rel = try_relation_open(relid, fini_attach_lock(relid, live, replicated));
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	fini_attach_check_relation(rel);
	check_owner(relid);
	fields = fini_attach_fields(rel, fields);
	outcome = fini_attach_outcome(rel, outcome, fields);

	SPI_connect();
	check_identity_kept(rel, fields);
	relation_close(rel, NoLock);
	fini_attach_place_triggers(relid, true, live, replicated);
	store_attachment(relid, fields, outcome, live, precheck, replicated);
	SPI_finish();
	PG_RETURN_VOID();
}

Datum
fini_sql_detach(PG_FUNCTION_ARGS)
{
	static FiniStatement open_statement = {
		.sql = "SELECT FROM fini.submission s WHERE s.relation = $1 AND s.state IN ('queued', 'sending', 'unknown')",
		.nargs = 1, .types = {OIDOID}
	};
	static FiniStatement cancel_statement = {
		.sql = "SELECT fini.cancel($1::regclass)",
		.nargs = 1, .types = {OIDOID}
	};
	static FiniStatement forget_statement = {
		.sql = "DELETE FROM fini.attachment WHERE relation = $1",
		.nargs = 1, .types = {OIDOID}
	};
	Oid			relid = PG_GETARG_OID(0);
	bool		force = PG_GETARG_BOOL(1);
	Datum		values[1] = {ObjectIdGetDatum(relid)};
	Relation	rel;
	char	   *name;
	Jsonb	   *fields;
	Jsonb	   *outcome;
	FiniIdentity saved;

	PreventCommandDuringRecovery("fini.detach()");
	/* of a table that has been dropped, only the attachment is left */
	check_owner(relid);
	rel = try_relation_open(relid, AccessExclusiveLock);
	if (rel != NULL)
		check_owner(relid);
	name = rel != NULL ? pstrdup(RelationGetRelationName(rel)) : psprintf("%u", relid);

	SPI_connect();
	fini_identity_enter_extension(&saved);
	if (!fini_outbox_attachment(relid, &fields, &outcome))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not attached", name)));
	(void) fini_outbox_execute(&open_statement, values, NULL, 1);
	if (SPI_processed > 0 && !force)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("operations of table \"%s\" are still open", name),
				 errhint("Wait for them with fini.wait, or force it: what is queued is cancelled then, and what is being sent ends without being written back.")));
	if (SPI_processed > 0)
		(void) fini_outbox_execute(&cancel_statement, values, NULL, 0);
	(void) fini_outbox_execute(&forget_statement, values, NULL, 0);
	fini_identity_leave(&saved);
	if (rel != NULL)
	{
		relation_close(rel, NoLock);
		fini_attach_place_triggers(relid, false, false, false);
	}
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * SECURITY DEFINER: runs as the extension's owner, reads the table as its owner.
 *
 * One at a time, for two would both find the same rows never sent: the update
 * of the attachment's row makes the second wait.  While the table is live, its
 * writers have to be waited for and kept out: a change made by one whose
 * trigger found nothing enqueued yet must be there when the row is read.
 */
Datum
fini_sql_submit(PG_FUNCTION_ARGS)
{
	static FiniStatement lock_statement = {
		.sql = "UPDATE fini.attachment SET live = live WHERE relation = $1 RETURNING live",
		.nargs = 1, .types = {OIDOID}
	};
	Datum		values[1];
	bool		isnull;
	int64		submitted = 0;
	FiniSource *source;
	void	   *arg[2];

	PreventCommandDuringRecovery("fini.submit()");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the relation must not be null")));
	values[0] = PG_GETARG_DATUM(0);

	SPI_connect();
	(void) fini_outbox_execute(&lock_statement, values, NULL, 0);
	if (SPI_processed > 0 && DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)))
		LockRelationOid(PG_GETARG_OID(0), ShareLock);
	source = fini_source_open(PG_GETARG_OID(0));
	arg[0] = source;
	arg[1] = &submitted;
	fini_source_scan(source, PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1)), submit_batch, arg);
	SPI_finish();
	PG_RETURN_INT64(submitted);
}

static void
check_owner(Oid relid)
{
	char	   *name = get_rel_name(relid);

	if (name != NULL && !fini_compat_owns_relation(relid))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(relid)), name);
}

/*
 * What has been sent is known by its own_ref and ipo_id: they must not come
 * from other columns all of a sudden.  A column that was renamed has its name
 * in the old mapping only.
 */
static void
check_identity_kept(Relation rel, Jsonb *fields)
{
	static const char *const identity[] = {"ownRef", "ipoID"};
	Jsonb	   *old_fields;
	Jsonb	   *old_outcome;
	FiniIdentity saved;

	fini_identity_enter_extension(&saved);
	if (fini_outbox_attachment(RelationGetRelid(rel), &old_fields, &old_outcome))
	{
		for (size_t i = 0; i < lengthof(identity); i++)
		{
			char	   *before = fini_jsonb_field(&old_fields->root, identity[i]);
			char	   *after = fini_jsonb_field(&fields->root, identity[i]);

			if (strcmp(before, after) != 0 && fini_attach_column(rel, before) != NULL && fini_outbox_stands(RelationGetRelid(rel)))
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("%s cannot be mapped to another column while applications of table \"%s\" stand at FINI",
								identity[i], RelationGetRelationName(rel)),
						 errdetail("It is mapped to \"%s\"; what has been sent is known by it.", before),
						 errhint("Withdraw the applications first, with fini.invalidate.")));
		}
	}
	fini_identity_leave(&saved);
}

static void
store_attachment(Oid relid, Jsonb *fields, Jsonb *outcome, bool live, bool precheck, bool replicated)
{
	static FiniStatement store_statement = {
		.sql = "INSERT INTO fini.attachment (relation, fields, outcome, live, precheck, replicated, attached_by) VALUES ($1, $2, $3, $4, $5, $6, $7)"
		" ON CONFLICT (relation) DO UPDATE SET fields = excluded.fields, outcome = excluded.outcome, live = excluded.live,"
		" precheck = excluded.precheck, replicated = excluded.replicated, attached_by = excluded.attached_by, attached_at = clock_timestamp()",
		.nargs = 7, .types = {OIDOID, JSONBOID, JSONBOID, BOOLOID, BOOLOID, BOOLOID, OIDOID}
	};
	Datum		values[7] = {ObjectIdGetDatum(relid), JsonbPGetDatum(fields), JsonbPGetDatum(outcome),
	BoolGetDatum(live), BoolGetDatum(precheck), BoolGetDatum(replicated), ObjectIdGetDatum(GetUserId())};
	FiniIdentity saved;

	fini_identity_enter_extension(&saved);
	(void) fini_outbox_execute(&store_statement, values, NULL, 0);
	fini_identity_leave(&saved);
}

static void
submit_batch(void *arg, int n, char **own_refs, char **ipo_ids)
{
	void	  **args = arg;
	FiniSource *source = args[0];
	int64	   *submitted = args[1];

	*submitted += fini_outbox_submit(source->relid, n, own_refs, ipo_ids);
}
