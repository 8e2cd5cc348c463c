# Every target works in a fresh clone and changes nothing outside of it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := .venv/.installed
# The package pins pandas<2 and Python<3.13; both are stale, without these pins it works.
GEOBENCH := geobench==1.0.0

.PHONY: install quickstart test test-slow check bench golden clean

install: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), sys.version' || \
		{ echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; run make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv  # none yet, or half of one
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --ignore-requires-python $(GEOBENCH)
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

quickstart: install
	$(BIN)/python eval/quickstart.py

test: install
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

golden: install
	$(BIN)/python -m pytest tests/test_golden_curves.py --update-curves

clean:
	rm -rf .venv build runs/quickstart data/quickstart *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
