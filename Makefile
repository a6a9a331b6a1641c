# Everything is set up in .venv by the first target that needs it: the demo's part, and on top of it that of all others.

# Not every python3.x on the path need run: a version manager's shim may stand for one that is not installed.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,$(shell \
	$(p) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(p))))
BIN := .venv/bin
DEMO := .venv/ready
ALL := .venv/ready-test
# One thread: reruns give the same bits, and small tensors run faster.
RUN := OMP_NUM_THREADS=1 $(BIN)/python
# Processes that share the tests, file by file; each takes up to 2 GB.
WORKERS ?= 2

.PHONY: demo test check lint format docs accuracy bench gpu resolve torture clean

demo: $(DEMO)
	$(RUN) examples/demo.py

test: $(ALL)
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# All that a change must pass.
check: lint resolve test

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(ALL)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(ALL)
	$(RUN) -m sphinx -W --keep-going -q docs docs/_build/html

accuracy: $(ALL)
	$(RUN) benchmarks/accuracy.py

bench: $(ALL)
	$(RUN) benchmarks/speed.py

gpu: $(ALL)
	$(RUN) benchmarks/gpu.py --out build/gpu

# Asks the package index whether a fresh machine, of another kind too, could be set up so.
resolve: $(ALL)
	$(BIN)/python .ci/resolve.py

# The long form of tests/hostile: about an hour on one core.
torture: $(ALL)
	$(RUN) benchmarks/torture.py $(ARGS)

clean:
	rm -rf .venv build dist docs/_build *.egg-info src/*.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Two rules, each made once: targets run side by side (make -j) share them. .ci/resolve.py names the same extras.
$(DEMO): pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error Python 3.11 or newer with its venv module is needed; found none. \
		On Debian: apt-get install python3-venv))
	@echo "Setting up .venv, once; this may take some minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq -c constraints.txt pip setuptools wheel
	@$(BIN)/python -m pip install -qq -c constraints.txt --no-build-isolation -e '.[numba,rich,study]'
	@touch $(DEMO)

$(ALL): $(DEMO)
	@echo "Adding what tests, checks, docs and benchmarks need to .venv, once; this may take some minutes"
	@$(BIN)/python -m pip install -qq -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $(ALL)
