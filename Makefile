# The commands of the course. `make help` lists them.
PYTHON ?= python3
SEEDS ?= 20
BIN := .venv/bin

# Nothing is written outside .venv, _build and _site, and no personal configuration leaks into a lesson.
export PYTHONPYCACHEPREFIX := $(CURDIR)/_build/pycache
export IPYTHONDIR := $(CURDIR)/_build/ipython
export MPLCONFIGDIR := $(CURDIR)/_build/matplotlib
export RUFF_CACHE_DIR := $(CURDIR)/_build/ruff
export HYPOTHESIS_STORAGE_DIRECTORY := $(CURDIR)/_build/hypothesis
# nbdev_test runs several kernels at once: one thread each, or they fight for the cores.
OFFLINE := OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/tools/offline

.PHONY: help env run test store site lab sweep bench clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: .venv/ready ## make .venv as constraints.txt says: the only step that downloads anything

.venv/ready: settings.ini constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("initnotes needs Python 3.11 or later, found %d.%d: make PYTHON=python3.11 …" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	for v in $$(sed -n 's/^fastcore_peers *= *//p' settings.ini); do \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/peers/fastcore-$$v fastcore==$$v || exit 1; done
	touch $@

run: env ## execute every notebook; end with a summary and the sources' figures
	@$(BIN)/python tools/notebooks.py run

test: env ## prove it: exports, lint, nbdev_test, stored outputs, pytest, the site in a browser
	$(BIN)/python tools/instep.py
	$(BIN)/ruff check --quiet --select E9,F63,F7,F82 initnotes tools tests
	$(OFFLINE) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test
	$(BIN)/python tools/notebooks.py compare
	$(BIN)/python tools/readme.py --check
	$(BIN)/python -m pytest tests --quiet -o cache_dir=_build/pytest --ignore tests/benchmarks

store: env ## after editing a notebook: export, execute, keep outputs, renew README and index
	$(BIN)/nbdev_export
	$(BIN)/python tools/notebooks.py store
	$(BIN)/python tools/readme.py

site: env ## the course as web pages, in _site: nothing is executed
	$(BIN)/python tools/website.py

lab: env ## open the course in JupyterLab
	$(BIN)/jupyter lab nbs

sweep: env ## run all notebooks for INITNOTES_SEED = 0 … SEEDS-1
	@$(BIN)/python tools/notebooks.py sweep --seeds $(SEEDS)

bench: env ## measure what DESIGN promises, as ratios
	@for b in $$(ls tests/benchmarks/*.py | grep -v ratios); do $(BIN)/python $$b || exit 1; done

clean: ## remove the environment and everything built
	rm -rf .venv _build _site
