# Ship's verbs. Each one first installs what it needs, and says nothing about what is already there.
#
#   make demo     an agent fixes a bug in a sample repository, live, on this machine
#   make up       start Ship and print the link to open
#   make setup    system packages, Python environment, web app
#   make check    linters, types, layers, the web app's checks
#   make test     every test
#   make chaos    kill, halt and cut off every part under load for ten minutes, then hold every log against its clients
#   make machine  the sandbox host in a virtual machine: limits by cgroup v2, a reboot, a power cut
#   make bench    measure, print tables and JSON
#   make fix      let the formatters and linters mend what they can
#   make wheel    one installable file, proved in an empty environment
#   make lock     pin the Python dependencies anew

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.SUFFIXES:
.DELETE_ON_ERROR:
.PHONY: help setup demo up check check-python check-web test chaos machine bench fix wheel lock clean system system-for-tests system-for-machine

BIN := .venv/bin
# How many processes run the tests: `auto` is one for each core, 0 none but pytest's own.
PROCESSES ?= auto
NODE := $(CURDIR)/scripts/with-node.sh

PYTHON_READY := .venv/.ship-dependencies
SHIP_READY := .venv/.ship-installed
WEB_MODULES := web/node_modules/.ship-installed
WEB_APP := src/ship/web_dist/index.html
WEB_SOURCES := $(shell find web -path web/node_modules -prune -o -type f -print 2>/dev/null)

help:
	@sed -n 's/^#   make/  make/p' Makefile

setup: $(SHIP_READY) $(WEB_APP)

demo: setup
	@$(BIN)/ship demo $(ARGS)

up: setup
	@$(BIN)/ship up $(ARGS)

check: check-python check-web

check-python: $(SHIP_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/lint.py

check-web: $(WEB_MODULES)
	cd web && $(NODE) npm run --silent check

test: setup system-for-tests
	$(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: setup system-for-tests
	@$(BIN)/python -m tests.chaos $(ARGS)

machine: setup system-for-machine
	$(BIN)/pytest tests/machine $(ARGS)

bench: setup
	@$(BIN)/python scripts/bench.py $(ARGS)

fix: $(SHIP_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: setup
	@scripts/wheel.sh

lock: | system
	@scripts/lock.sh

clean:
	rm -rf .venv .tools build dist web/node_modules src/ship/web_dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

system:
	@scripts/system-packages.sh

system-for-tests:
	@scripts/system-packages.sh --tests

system-for-machine:
	@scripts/system-packages.sh --machine

$(PYTHON_READY): requirements.lock scripts/python-environment.sh | system
	@scripts/python-environment.sh
	@touch $@

$(SHIP_READY): $(PYTHON_READY) pyproject.toml
	@$(BIN)/pip install --quiet --no-input --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(WEB_MODULES): web/package-lock.json $(PYTHON_READY)
	@echo "Installing the web app's packages"
	@cd web && $(NODE) npm ci --no-audit --no-fund --no-update-notifier --loglevel=error
	@touch $@

$(WEB_APP): $(WEB_MODULES) $(WEB_SOURCES)
	@echo "Building the web app"
	@cd web && $(NODE) npm run --silent build -- --logLevel=warn
	@touch $@
