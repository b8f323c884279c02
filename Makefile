# Two commands do everything from a fresh clone: `make test` and `make demo`.
# All paths are relative, so the checkout may lie under a path with spaces.

PYTHON ?= python3
WORKERS ?= 2

VERSION := import sys; print('Python %d.%d' % sys.version_info[:2])

PY := .venv/bin/python
# Through the module, not the script: a script's #! line breaks when the
# checkout moves.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test demo slow end-to-end fast lint types format clean

help:
	@echo 'make test        set up, then lint, types and the fast tests'
	@echo 'make demo        set up, then the demo'
	@echo 'make fast        the fast tests alone'
	@echo 'make end-to-end  whole runs and processes: kills, resumes, studies, imports'
	@echo 'make slow        the slow tests alone'
	@echo 'make lint        ruff: rules and format'
	@echo 'make types       mypy'
	@echo 'make format      rewrite the sources in the house format'
	@echo 'make clean       remove .venv, caches and build output (results/ stays)'
	@echo
	@echo 'PYTHON=$(PYTHON)  the interpreter that makes .venv (3.11 or newer)'
	@echo 'WORKERS=$(WORKERS)      test processes at a time'

# One after the other, cheapest first, also under make -j.
test: .venv/.installed
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory fast

demo: .venv/.installed
	.venv/bin/sparse-agents demo

fast: .venv/.installed
	$(PYTEST)

end-to-end: .venv/.installed
	$(PYTEST) -m 'end_to_end and not slow'

slow: .venv/.installed
	$(PYTEST) -m slow

lint: .venv/.installed
	$(PY) -m ruff check
	$(PY) -m ruff format --check

types: .venv/.installed
	$(PY) -m mypy

format: .venv/.installed
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip says nothing while it works, so dots tell that it is alive. The dots also
# end with the shell that started them: Ctrl-C does not reach a background loop.
.venv/.installed: pyproject.toml .venv/pyvenv.cfg
	@echo 'Installing into .venv. The first time this fetches a few GB and takes some minutes.'
	@(while sleep 5 && kill -0 $$$$ 2>/dev/null; do printf .; done) & dots=$$!; \
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'; status=$$?; \
	kill $$dots; echo; exit $$status
	@touch $@

.venv/pyvenv.cfg:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo 'Wanted: Python 3.11 or newer.'; \
	echo "Found:  $(PYTHON), $$("$(PYTHON)" -c "$(VERSION)" 2>/dev/null || echo 'which does not run')."; \
	echo 'To do:  name a newer one, as in: make test PYTHON=/path/to/python3.12'; \
	exit 1; } >&2
	@echo 'Making .venv.'
	@"$(PYTHON)" -m venv --clear .venv
