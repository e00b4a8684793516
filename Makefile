# fini: HKEX FINI from inside PostgreSQL
#
#	make			the extension		make install		into the PostgreSQL of $(PG_CONFIG)
#	make demo		10,000 applications to a sandbox gateway and back, on a throw-away server
#	make test		every test, on throw-away servers; TESTS="t/name.pl sql/name.sql" for some
#	make matrix		every test, and with the PostgreSQL of other Debian suites, too (CONTRIBUTING.md)
#	make newcomer	the README's quick start and docs/monitoring.md, word by word, in an empty Debian
#	make deb		Debian packages, into dist/		make deb-try	the same, tried in a clean Debian
#	make bench		measurements, in a quarter of an hour: BENCH="--only drain" for one part (docs/performance.md)
#	make bench-quick	the same in two minutes		make bench-size	10,000,000 submissions: SIZE=2000000 for less
#	make torture	kills and faults without end: TORTURE="--seed 7 --kills 200 --operations 50000" (docs/torture.md)
#	make size		an IPO of 1,000,000 applications: SIZE=20000 for less, SIZED=t/070_reconcile.pl for a part (docs/testing.md)
#	make gateway	the sandbox gateway	make installcheck	regression tests on a server of one's own
#	make fuzz		the parsers under libFuzzer		make fuzz-smoke	the same for a minute (docs/testing.md)
#	make soak		half an hour of mixed load and faults, and nothing may grow: SOAK="--minutes 5" (docs/testing.md)
#	make coverage	lines and branches of the code that the suite runs
#	make sqlsmith	random statements by each role	make sqlsmith-smoke	the same in a minute
#	make test-asan	the suite under AddressSanitizer	make test-valgrind	its core under valgrind
#	make lint		gcc, clang, clang-tidy, cppcheck, scan-build, shellcheck, perl -c: no finding, or it fails
#
# demo, test and bench install the Debian packages that are missing, as root or through sudo.

EXTENSION = fini
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" "$(CURDIR)/fini.control")
MODULE_big = fini
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA = fini--$(EXTVERSION).sql
REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))
ISOLATION = $(patsubst specs/%.spec,%,$(sort $(wildcard specs/*.spec)))
EXTRA_CLEAN = tmp_check output_iso

PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter
# warnings are errors in make test and make lint, not for whoever installs with a newer compiler
ifeq ($(WERROR),1)
PG_CFLAGS += -Werror
endif
SHLIB_LINK = -lcurl -lssl -lcrypto
# hardened whatever PostgreSQL was built with (t/096_hardening.pl); checked functions need an optimizing build
PG_CFLAGS += -fstack-protector-strong
PG_CPPFLAGS = $(if $(filter -O1 -O2 -O3 -Os,$(CFLAGS)),-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
ifeq ($(shell uname -s),Linux)
SHLIB_LINK += -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack
endif

.DEFAULT_GOAL = all
PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
$(OBJS): $(wildcard src/*.h) Makefile
# at the end of the line, as from version 16 on PGXS hides what tests of inner modules link to
$(OBJS): override CFLAGS += -fvisibility=default
clean: clean-gateway
else
# a fresh machine: demo, test and bench install what is missing, the rest says what it is
all install installcheck clean:
	@echo "pg_config with pgxs not found: run test/setup, or set PG_CONFIG" >&2; exit 1
endif

run = PG_CONFIG='$(PG_CONFIG)' MAKE='$(MAKE)'

demo:
	@$(run) test/demo/run
test:
	@$(run) test/run $(TESTS)
matrix:
	@$(run) test/matrix
newcomer:
	@$(run) test/newcomer
deb:
	@$(run) packaging/deb
deb-try:
	@$(run) packaging/deb-try
bench:
	@$(run) test/bench/run $(BENCH)
bench-quick:
	@$(run) test/bench/run --quick $(BENCH)
bench-size: SIZE = 10000000
bench-size:
	@$(run) test/bench/run --only size --size $(SIZE)
torture:
	@$(run) test/torture/run $(TORTURE)
fuzz:
	@$(run) test/fuzz/run $(FUZZ)
fuzz-smoke:
	@$(run) test/fuzz/run --smoke
soak:
	@$(run) test/soak/run $(SOAK)
coverage:
	@$(run) test/coverage/run $(TESTS)
sqlsmith:
	@$(run) test/sqlsmith/run $(SQLSMITH)
sqlsmith-smoke:
	@$(run) FINI_SKIP=1 test/sqlsmith/run --queries 600
test-asan:
	@$(run) test/sanitizer/run $(TESTS)
test-valgrind:
	@$(run) test/sanitizer/run --valgrind $(TESTS)
SIZE = 1000000
SIZED = t/065_precheck.pl t/070_reconcile.pl t/071_reconcile_meanwhile.pl t/074_deadline.pl
size:
	@$(run) FINI_PRECHECK_ROWS=$(SIZE) FINI_RECONCILE_ROWS=$(SIZE) FINI_RECONCILE_ORDER=record_id \
		FINI_RECONCILE_MEANWHILE=$$(($(SIZE) / 50)) FINI_DEADLINE_ROWS=$$(($(SIZE) / 5)) \
		FINI_TEST_DEADLINE=14400 PG_TEST_TIMEOUT_DEFAULT=7200 test/run $(SIZED)
gateway:
	+@$(MAKE) -C test/gateway RELEASE=$(if $(filter 1,$(WERROR)),0,1)
clean-gateway:
	+@$(MAKE) -C test/gateway clean
lint:
	@$(run) test/lint

.PHONY: all install installcheck clean demo test matrix newcomer deb deb-try bench bench-quick bench-size torture size fuzz fuzz-smoke sqlsmith sqlsmith-smoke test-asan test-valgrind coverage soak gateway clean-gateway lint
