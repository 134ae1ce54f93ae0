# make demo: the main job on real servers.  make test: every test.  Both create .venv on the first run.
# make test-matrix: the same tests on every version that is promised; Debian's PostgreSQL 15 and Redis 7 where they are.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests start our programs hundreds of times: without the cache each would be compiled again.
export PYTHONDONTWRITEBYTECODE :=

CORES := $(shell getconf _NPROCESSORS_ONLN)
# Tests mostly wait: for servers, for leases that end.
PYTEST = $(BIN)/python -m pytest -n $(shell expr $(CORES) + 2) --dist worksteal --durations 40
POSTGRES_15 := $(wildcard /usr/lib/postgresql/15/bin)
REDIS_7 := $(wildcard /usr/bin/redis-server)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-oldest test-matrix chaos chaos-ci model check format bench clean

help:
	@echo "make demo    run the whole path on embedded servers, with kills in the middle (under a minute)"
	@echo "make test    run all tests"
	@echo "make test-oldest   run the tests that see most of the servers on PostgreSQL 16 and Redis 6.2"
	@echo "make test-matrix   run all tests on every supported version that is installed"
	@echo "make chaos   try to break every promise: SEEDS=1000 schedules of faults, JOBS=2 at a time"
	@echo "make model   the same of a simulated installation, thousands a minute: SCHEDULES=4000"
	@echo "make chaos-ci   a few short ones, and the mutants that must be caught"
	@echo "make check   format, lint, types, import contract"
	@echo "make format  format the code"
	@echo "make bench   run the benchmarks"

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/outbox demo

test: $(STAMP)
	$(PYTEST) $(ARGS)

test-oldest: $(STAMP)
	OUTBOX_TEST_POSTGRES=16 OUTBOX_TEST_REDIS=6.2 $(PYTEST) -m oldest tests/integration $(ARGS)

test-matrix: $(STAMP)
	$(PYTEST) $(ARGS)
	OUTBOX_TEST_POSTGRES=16 OUTBOX_TEST_REDIS=6.2 $(PYTEST) $(ARGS)
	$(if $(POSTGRES_15)$(REDIS_7),OUTBOX_TEST_POSTGRES=$(or $(POSTGRES_15),18) OUTBOX_TEST_REDIS=$(REDIS_7) $(PYTEST) $(ARGS))
	@echo "PostgreSQL 15: $(or $(POSTGRES_15),not installed). Redis 7: $(or $(REDIS_7),not installed)."

SEEDS ?= 100
JOBS ?= 2

SCHEDULES ?= 4000

chaos: model
	$(BIN)/python -m tests.chaos --seeds $(SEEDS) --jobs $(JOBS) $(ARGS)

model: $(STAMP)
	OUTBOX_MODEL_SCHEDULES=$(SCHEDULES) $(BIN)/python -m pytest -n $(JOBS) -k no_schedule tests/chaos/model

# Other schedules for each commit, and for one commit always the same.
chaos-ci: export OUTBOX_MODEL_SEED ?= $(shell printf %d 0x$$(git rev-parse --short=8 HEAD 2>/dev/null || echo 1))
chaos-ci: $(STAMP)
	$(MAKE) model SCHEDULES=200
	$(BIN)/python -m tests.chaos --seeds 20 --length 3 --mutants --jobs $(CORES) $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
