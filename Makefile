# demo and check need only Python; test also installs system packages when it runs as root on Debian. Never sudo.
SHELL := /bin/sh
BIN := .venv/bin
PYTEST_ARGS ?=
TEST_WORKERS ?= 3
export PYTHON
DRIVER ?= process
# MicroVMs are emulated in all that is made here unless it says otherwise: a KVM device that opens promises nothing.
ACCEL ?= tcg
export FOREGLOW_ACCEL = $(ACCEL)
export DRIVER

.PHONY: help demo check test soak soak-traces bench picture system environment lock clean

help:
	@echo "make demo       the story in the terminal: deploy, invoke cold, learn, prewarm, show why (DEMO_ARGS=--keep leaves it running, DRIVER=microvm)"
	@echo "make test       everything; PYTEST_ARGS selects, TEST_WORKERS=0: one after the other"
	@echo "make check      ruff, mypy, import rules"
	@echo "make bench      all benchmarks; make bench-warm, bench-cold, bench-microvm, bench-chain, bench-page, bench-code,"
	@echo "                bench-planner, bench-replay, bench-live, bench-burst, bench-release, bench-tunnels, bench-scaling, bench-keeping: one topic"
	@echo "make picture    the README's picture of the page"
	@echo "make soak       what takes long; make soak-traces: 10,000 spans a second for 10 minutes"
	@echo "make clean      removes .venv and caches"

demo: .venv/.made-run
	@$(BIN)/python examples/demo.py --driver $(DRIVER) $(DEMO_ARGS)

check: .venv/.made-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: system .venv/.made-dev
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

soak: system .venv/.made-dev
	FULL=1 $(BIN)/python -m pytest -o faulthandler_timeout=7200 $(PYTEST_ARGS)

bench: system .venv/.made-dev
	$(BIN)/python -m benchmarks all

bench-%: system .venv/.made-dev
	$(BIN)/python -m benchmarks $*

# Ten minutes of spans, a third of whose traces never complete; SOAK_ARGS="--seconds 60 --rate 5000" for less.
soak-traces: .venv/.made-dev
	@$(BIN)/python -m benchmarks.soak_traces $(SOAK_ARGS)

# docs/images/page.png again, out of the browser tests.
picture: system .venv/.made-dev
	$(BIN)/python -m pytest -q tests/browser -k "chosen_by_keyboard" --pictures build/pictures
	cp build/pictures/graph-chosen-light.png docs/images/page.png

environment: .venv/.made-dev

system:
	@sh scripts/system-packages.sh

.venv/.made-run: requirements.lock requirements-build.lock pyproject.toml scripts/environment.sh
	@sh scripts/environment.sh run

.venv/.made-dev: requirements-dev.lock requirements-build.lock pyproject.toml scripts/environment.sh
	@sh scripts/environment.sh dev

LOCK = $(BIN)/uv pip compile pyproject.toml --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links

# The lock files, from pyproject.toml. Both hold the same versions.
lock: .venv/.made-dev
	$(LOCK) --extra dev --upgrade -o requirements-dev.lock
	$(LOCK) -c requirements-dev.lock -o requirements.lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build
