# From nothing, with Python 3.11 or later, pip and git: `make demo` asks the default model about an image, `make test`
# runs the whole check. Both set up .venv first, once, and again when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check check-bare test-floors clean

help:
	@echo 'make demo    set up .venv and answer a question about an image'
	@echo 'make test    set up .venv and run every check'
	@echo 'make check   run every check in the .venv that is there'
	@echo 'make check-bare   run the tests that use system programs as if there were none'
	@echo 'make test-floors  run the quick tests with the lowest versions that pyproject.toml allows'
	@echo 'make clean   remove .venv, caches and build outputs'
	@echo 'make PYTHON=python3.12 demo   choose the Python that .venv is made from'

demo: $(VENV)/.installed
	@echo '$$ mmdiff ask examples/shapes.png "what color is the circle?"'
	@$(BIN)/mmdiff ask examples/shapes.png "what color is the circle?"

test: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory check

check:
	@echo '== ruff';           $(BIN)/ruff check && $(BIN)/ruff format --check
	@echo '== mypy';           $(BIN)/mypy
	@echo '== import-linter';  $(BIN)/lint-imports --no-logo
	@echo '== pytest';         $(BIN)/pytest -q -n 2

# The tests that use programs and recordings of the system where it has them, with those hidden.
check-bare:
	@$(BIN)/pytest -q --bare -m 'not long' tests/audio/test_people.py tests/audio/test_vad.py tests/eval/test_speech.py \
		tests/serve/http/test_page.py tests/serve/test_pages.py tests/test_portability.py tests/training/tiny/test_speech.py
	@$(BIN)/pytest -q --bare tests/test_tiny.py -k 'hears or spoken'

# An environment of its own: some 6 GB, since the index serves the CUDA build of old releases of PyTorch.
FLOORS := .venv-floors
test-floors: $(BIN)/python
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv venv -q --seed --clear $(FLOORS)
	$(BIN)/uv pip install -q --python $(FLOORS)/bin/python --resolution lowest-direct -e '.[test]'
	@$(BIN)/uv pip list --python $(FLOORS)/bin/python
	@$(FLOORS)/bin/mmdiff --version
	$(FLOORS)/bin/pytest -q -n 2 -m 'not slow and not long'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'mmdiff needs Python 3.11 or later, and "$(PYTHON)" is not one. Name one: make PYTHON=python3.12 demo' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '"$(PYTHON)" cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

# Holds everything that `make demo` needs too, so that one does not set up again after the other.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) $(FLOORS) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
