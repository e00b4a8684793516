# stage.sh: sourced by test/run, test/demo/run and the benchmarks; POSIX sh.
#
# A stage is a throw-away folder with all that servers need, readable by the account that they run as:
#
#	$stage/root		a private PostgreSQL installation with the extension (test/prefix); $bindir its programs
#	$stage/tree		a copy of the repository's files, without what was built
#	$stage/bin		the gateway
#	$stage/work		for the server's account alone: data directories, keys, sockets, logs
#
# The repository itself may lie where that account cannot look. Building happens there, as whoever calls.
# The path is short, since the path of a unix socket has to fit into 107 bytes.

# shellcheck shell=sh disable=SC2086,SC2016,SC2034,SC2046

top=$(cd "$(dirname "$0")" && while [ ! -f fini.control ] && [ "$PWD" != / ]; do cd ..; done && pwd)
stage=
child=

# install what is missing, build, and fill the stage; traps are set to undo it all
stage_make()
{
	trap 'stage_end $?' EXIT
	trap 'stage_signal INT 130' INT
	trap 'stage_signal TERM 143' TERM
	trap 'stage_signal HUP 129' HUP

	"$top/test/setup" packages || exit 1
	account=$("$top/test/setup" account)
	config=${PG_CONFIG:-pg_config}

	# the caller's ways to a server of his own do not lead to ours
	unset $(env | sed -n 's/^\(PG[A-Z]*\)=.*/\1/p') PSQLRC PSQL_PAGER PAGER

	umask 022
	base=/tmp
	[ -w "$base" ] || base=${TMPDIR:-/var/tmp}
	stage=$(mktemp -d "$base/fini-XXXXXX")
	chmod 755 "$stage"
	mkdir "$stage/bin" "$stage/tree" "$stage/work" "$stage/work/tmp"

	stage_quietly "building the extension" ${MAKE:-make} -s -C "$top" PG_CONFIG="$config" with_llvm=no WERROR="${WERROR:-0}" all || exit 1
	stage_quietly "building the gateway" ${MAKE:-make} -s -C "$top" WERROR="${WERROR:-0}" gateway || exit 1
	cp "$top/test/gateway/fini-gateway" "$stage/bin/"
	PG_CONFIG="$config" stage_quietly "making a private installation" "$top/test/prefix" "$stage/root" || exit 1
	bindir=$stage/root$("$config" --bindir)
	pgxs=$stage/root$("$config" --pgxs)
	pgxs=${pgxs%/makefiles/*}

	old_bindir=
	if [ -n "${FINI_OLD_PG_CONFIG:-}" ]; then
		stage_old
	fi
	(cd "$top" && tar -cf - --exclude='*.o' --exclude='*.bc' --exclude='*.so' --exclude=fini-gateway \
		$(ls -d Makefile README.md CONTRIBUTING.md CHANGELOG LICENSE META.json fini.control fini--*.sql src test sql expected specs docs monitoring packaging 2>/dev/null)) | (cd "$stage/tree" && tar -xof -)
	chmod -R u+rwX,go+rX "$stage/tree" "$stage/bin"
	if [ -n "$account" ]; then
		chown -R "$account" "$stage/work"
	fi
	chmod 700 "$stage/work"
}

# a private installation of another major version, for the tests of upgrading
stage_old()
{
	mkdir "$stage/old-tree"
	(cd "$top" && tar -cf - --exclude='*.o' --exclude='*.bc' --exclude='*.so' Makefile fini.control fini--*.sql src test/prefix) |
		(cd "$stage/old-tree" && tar -xof -)
	stage_quietly "building the extension for the other version" \
		${MAKE:-make} -s -C "$stage/old-tree" PG_CONFIG="$FINI_OLD_PG_CONFIG" with_llvm=no all || exit 1
	PG_CONFIG="$FINI_OLD_PG_CONFIG" stage_quietly "making a private installation of the other version" \
		"$stage/old-tree/test/prefix" "$stage/old" || exit 1
	rm -rf "$stage/old-tree"
	old_bindir=$stage/old$("$FINI_OLD_PG_CONFIG" --bindir)
}

# run a command as the servers' account, in the work folder, with the private installation first in PATH;
# its exit status comes back
stage_run()
{
	set -- env HOME="$stage/work" TMPDIR="$stage/work/tmp" PATH="$bindir:$PATH" LC_ALL=C.UTF-8 LANG=C.UTF-8 \
		PG_CONFIG="$(command -v "$config")" FINI_STAGE="$stage" FINI_GATEWAY="$stage/bin/fini-gateway" FINI_TEST_KEYS="$stage/work/keys" \
		PG_REGRESS="$pgxs/test/regress/pg_regress" PERL5LIB="$stage/tree/test/t:$pgxs/test/perl${PERL5LIB:+:$PERL5LIB}" \
		TESTDIR="$stage/work" TESTDATADIR="$stage/work/data" TESTLOGDIR="$stage/work/log" \
		PG_TEST_PORT_DIR="$stage/work/ports" FINI_OLD_BINDIR="$old_bindir" "$@"
	if [ -n "$account" ]; then
		if command -v setpriv >/dev/null 2>&1; then
			set -- setpriv --reuid="$account" --regid="$(id -g "$account")" --clear-groups "$@"
		else
			set -- su -s /bin/sh "$account" -c 'cd "$1" && shift && exec "$@"' sh "$stage/work" "$@"
		fi
	fi

	# in the background, since a trap waits for a command in the foreground to end
	( cd "$stage/work" && exec "$@" ) <&0 &
	child=$!
	status=0
	wait "$child" || status=$?
	child=
	return "$status"
}

# run a command and show what it said only if it fails
stage_quietly()
{
	what=$1
	shift
	if ! "$@" >"$stage/said" 2>&1; then
		cat "$stage/said" >&2
		echo "$what failed" >&2
		return 1
	fi
	rm -f "$stage/said"
}

# a signal: hand it on, give the child time to end what it started, and leave
stage_signal()
{
	trap '' INT TERM HUP
	if [ -n "$child" ]; then
		kill -TERM "$child" 2>/dev/null || :
		wait "$child" 2>/dev/null || :
	fi
	exit "$2"
}

# processes that run a program of the stage, or in one of its folders, whoever started them
stage_processes()
{
	for process in /proc/[0-9]*; do
		case $(readlink "$process/exe" "$process/cwd" 2>/dev/null) in
			*"$stage"/*) echo "${process#/proc/}" ;;
		esac
	done
}

# end whatever still runs and remove the stage; complains, and fails, when there was something
stage_end()
{
	status=$1
	set +e
	trap - EXIT
	trap '' INT TERM HUP
	[ -n "$stage" ] || exit "$status"

	left=$(stage_processes)
	if [ -n "$left" ]; then
		if [ "$status" -eq 0 ]; then
			echo "still running at the end:" >&2
			ps -o pid=,args= -p "$(echo $left | tr ' ' ,)" >&2 || :
			status=1
		fi
		kill -QUIT $left 2>/dev/null || :
		tries=0
		while [ -n "$(stage_processes)" ] && [ "$tries" -lt 50 ]; do
			sleep 0.1
			tries=$((tries + 1))
		done
		left=$(stage_processes)
		[ -z "$left" ] || kill -KILL $left 2>/dev/null || :
	fi
	rm -rf "$stage"
	exit "$status"
}
