# `make chat` and `make test` are all that a fresh machine needs: the virtual environment is made on the way.

# The first of them that is new enough; `make test PYTHON=/opt/python/bin/python3` chooses another.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
PORT ?= 8000
BIN := .venv/bin

.PHONY: help chat test lint coverage bench conformance clean

help:
	@echo 'make chat    serve the example chat on every core (make chat PORT=9000)'
	@echo 'make test    run every test'
	@echo 'make lint    ruff, mypy, import-linter'
	@echo 'make coverage every branch of the pure modules is taken by the unit tests'
	@echo 'make bench   measure against plain websockets (takes minutes)'
	@echo 'make conformance  run every case of the Autobahn|Testsuite (takes minutes, needs Python 2.7)'
	@echo 'make clean   remove the virtual environment and every cache'

chat: .venv/.installed
	@echo 'Open the address of the line "listening on" in two tabs; Ctrl-C stops the chat; make chat PORT=9000 takes another port.'
	@exec $(BIN)/python -m wscluster serve examples.chat.handlers:chat --port $(PORT)

test: .venv/.installed-dev
	$(BIN)/python -m pytest $(TESTS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: .venv/.installed-dev
	$(BIN)/coverage run -m pytest -q tests/unit
	$(BIN)/coverage report

bench: .venv/.installed-dev
	$(BIN)/python -m benchmarks

conformance: .venv/.installed-dev
	$(BIN)/python -m tests.conformance $(CASES)

clean:
	rm -rf .venv .conformance build dist wscluster.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made:
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed: install it, or say where it is with PYTHON=…' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo 'Python 3.11 or newer is needed, and $(PYTHON) is not: say where one is with PYTHON=…' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo '$(PYTHON) cannot make a virtual environment: on Debian and Ubuntu, apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# The stamps tell when pyproject.toml has changed since.
.venv/.installed: pyproject.toml | .venv/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch .venv/.installed $@
