# sanitizer.sh: sourced after stage.sh by test/sanitizer/run and test/fuzz/run; POSIX sh.
#
# Builds of the extension and the gateway under AddressSanitizer and UndefinedBehaviorSanitizer, put into
# a stage. PostgreSQL itself is Debian's: the runtime is preloaded into its servers.

# shellcheck shell=sh disable=SC2154,SC2034,SC2016,SC2086

# clang with its runtimes; sets $runtimes, to be preloaded, and $fuzzer
sanitizer_setup()
{
	"$top/test/setup" also clang llvm
	major=$(clang --version | sed -n 's/.*version \([0-9]*\)\..*/\1/p' | head -n 1)
	"$top/test/setup" also "libclang-rt-$major-dev"
	runtimes="$(sanitizer_runtime "asan-$(uname -m).so") $stage/bin/no_messages.so"
	fuzzer=$(sanitizer_runtime "fuzzer_no_main-$(uname -m).a")
}

sanitizer_runtime()
{
	found=$(clang -print-file-name="lib/linux/libclang_rt.$1")
	[ -f "$found" ] || found=$(clang -print-file-name="libclang_rt.$1")
	[ -f "$found" ] || { echo "clang's runtime $1 is not there" >&2; exit 1; }
	echo "$found"
}

# sanitizer_extension SANITIZERS LIBRARIES FILE...: these sources as the stage's fini.so
sanitizer_extension()
{
	sanitizers=$1
	libraries=$2
	shift 2
	mkdir -p "$stage/objects"
	printf '%s\n' "$@" | xargs -P "$(nproc)" -I FILE sh -c 'clang -std=gnu99 -D_GNU_SOURCE -g -O1 -fPIC -fno-strict-aliasing -fwrapv \
		-fno-omit-frame-pointer -Wall -Wno-unused-parameter -fsanitize="$1" -fno-sanitize-recover=undefined \
		-I"$2/src" -isystem "$3" -c "$5" -o "$4/$(basename "$5" .c).o"' \
		sh "$sanitizers" "$top" "$("$config" --includedir-server)" "$stage/objects" FILE || return 1
	library=$stage/root$("$config" --pkglibdir)/fini.so
	clang -shared -shared-libasan -fsanitize=address,undefined -o "$library" "$stage"/objects/*.o $libraries -lcurl -lcrypto || return 1
	chmod 755 "$library"
	clang -shared -fPIC -O1 -o "$stage/bin/no_messages.so" "$top/test/sanitizer/no_messages.c"
}

sanitizer_gateway()
{
	mkdir -p "$stage/gateway"
	cp "$top"/test/gateway/Makefile "$top"/test/gateway/*.[ch] "$stage/gateway/"
	${MAKE:-make} -s -C "$stage/gateway" CC=clang CFLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined' || return 1
	cp "$stage/gateway/fini-gateway" "$stage/bin/"
}

# sanitizer_server COMMAND...: from now on the stage's servers are started by way of this command; what a test
# preloads into them comes after $preload
sanitizer_server()
{
	mv "$bindir/postgres" "$bindir/postgres.real"
	{
		echo '#!/bin/sh'
		[ -z "${preload:-}" ] || echo "export LD_PRELOAD=\"$preload\${LD_PRELOAD:+ \$LD_PRELOAD}\""
		echo "exec $* \"\${0%/*}/postgres.real\" \"\$@\""
	} >"$bindir/postgres"

	# a restart takes the program's name from what the last start wrote down, which is the real one
	mv "$bindir/pg_ctl" "$bindir/pg_ctl.real"
	cat >"$bindir/pg_ctl" <<-'END'
		#!/bin/sh
		here=${0%/*}
		[ "$here" != "$0" ] || here=$(dirname "$(command -v "$0")")
		case " $* " in
			*" restart "*|*" start "*) exec "$here/pg_ctl.real" -p "$here/postgres" "$@" ;;
			*) exec "$here/pg_ctl.real" "$@" ;;
		esac
	END
	chmod 755 "$bindir/postgres" "$bindir/pg_ctl"
}
