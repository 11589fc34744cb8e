# `make demo` and `make test` set up what they need: a virtual environment with the pinned versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# Empty is unset: lint and tests start hundreds of processes, and bytecode that is kept saves each most of a second.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install demo demo-digits test test-long test-fast fuzz stress bench league lint style pages docs types format clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## a .venv with the l2d command

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'l2d needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## the whole job on real patients, in l2d-demo-support2/
	$(BIN)/l2d demo support2

demo-digits: install  ## the same for object detection, on semi-synthetic scenes, in l2d-demo-digits/
	$(BIN)/l2d demo digits

test: install  ## the tests, as CI runs them (nine minutes on two quiet cores)
	$(BIN)/python -m pytest -n logical --dist loadfile -m "not long"

test-long: install  ## the tests of tests/long.txt, which take five seconds or more each
	$(BIN)/python -m pytest -n logical --dist load -m long

test-fast: install  ## all tests except those in tests/slow.txt: for while you work
	$(BIN)/python -m pytest -n logical --dist loadfile -m "not slow and not long"

FUZZ_ROUNDS ?= 10
fuzz: install  ## examples that the tests have not seen yet, new ones at each call; rounds: make fuzz FUZZ_ROUNDS=100
	for round in $$(seq $(FUZZ_ROUNDS)); do \
	  $(BIN)/python -m pytest -q -n logical -m hypothesis --hypothesis-profile=fuzz || exit 1; \
	done

stress: install  ## the long reliability lane (a quarter of an hour); prints the table of docs/reliability.md
	$(BIN)/python tests/reliability/stress.py

bench: install  ## speed against peers, three benchmarks; prints the tables of benchmarks/README.md
	$(BIN)/python benchmarks/average_precision.py
	$(BIN)/python benchmarks/grid_training.py --rows 20000
	$(BIN)/python benchmarks/streaming.py

league: install  ## which rejector decides best on real tables (20 minutes); the table of benchmarks/README.md
	$(BIN)/python benchmarks/league.py

lint: style pages types  ## style, spelling, imports going one way, the documentation, and types

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell

SITE = $(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet --conf-dir docs .
pages: install
	$(BIN)/python docs/reference.py --check
	$(SITE) -b dummy build/site.check

docs: install  ## the documentation as a site: build/site/docs/index.html
	$(SITE) build/site

types: install  ## types, of all modules but those that pyproject.toml still lists
	mkdir -p build/types
	ln -sfn ../.. build/types/l2d  # the root is the package: mypy finds it by that name here
	$(BIN)/python -m mypy

format: install  ## let ruff format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and the demo's folder
	rm -rf .venv l2d-demo-support2 l2d-demo-digits build ./*.egg-info
