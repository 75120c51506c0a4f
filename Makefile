# make demo   set up, survey Fashion-MNIST, print the path of the report
# make test   set up, run the tests
# make bench  set up with PyTorch and Opacus, time everything beside them
# make bench-gpu PART=1    the parts for an accelerator, 1 to 7
SHELL := /bin/bash
VENV ?= .venv
# the first Python that is recent enough; PYTHON=... chooses another
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo smoke test slow bench bench-gpu lint types doctest notebooks clean

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11, 3.12 or 3.13 is needed" >&2; exit 2; }
	@echo "setting up $(VENV) (a minute or two, 1 GB) ..." >&2
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(RUN) -m experiments.survey demo

smoke: $(READY)
	@$(RUN) -m experiments.survey smoke

test: $(READY)
	$(RUN) -m pytest -n 2 --max-worker-restart 0 --dist loadgroup -m "not slow"

slow: $(READY)
	$(RUN) -m pytest -m slow

$(VENV)/.bench: $(READY)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

bench: $(VENV)/.bench
	@$(RUN) -m experiments.speed full

# on the accelerator's machine, in an environment that has PyTorch for it already
PART ?= 1
bench-gpu:
	@$(or $(wildcard $(RUN)),python3) -m experiments.speed gpu$(PART) $(OPTIONS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY)
	$(RUN) -m mypy

doctest: $(READY)
	$(RUN) -m pytest -q --doctest-modules --doctest-glob=README.md ppds_jax README.md

notebooks: $(READY)
	$(RUN) -m notebooks.execute

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
