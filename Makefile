# The commands of the course. `make help` lists them.
PYTHON ?= python3
SEEDS ?= 20
SETTINGS ?= portable-1 portable-2 avx2-1 avx2-2 native-1 native-2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# Nothing is written outside .venv, lab, _build and _site, and no personal configuration leaks into a lesson.
export PYTHONPYCACHEPREFIX := $(CURDIR)/_build/pycache
export IPYTHONDIR := $(CURDIR)/_build/ipython
export MPLCONFIGDIR := $(CURDIR)/_build/matplotlib
export RUFF_CACHE_DIR := $(CURDIR)/_build/ruff
export HYPOTHESIS_STORAGE_DIRECTORY := $(CURDIR)/_build/hypothesis
# Several kernels and test processes run at once: one thread each, or they fight for the cores.
ONE := OMP_NUM_THREADS=1
OFFLINE := PYTHONPATH=$(CURDIR)/tools/offline
PYTEST := $(BIN)/python -m pytest
NOTEBOOKS := $(BIN)/python tools/notebooks.py

.PHONY: help env run lab quick test proof nbdev processors store experiments site bundle sweep bench clean learn dev

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- the environment: the only step that downloads anything ----------------------------------
# Each stamp is written when its part is complete; the first one begins from nothing.

.venv/learn: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("initnotes needs Python 3.11 or later; $(PYTHON) is %d.%d. If you have a later one: make PYTHON=python3.12 $(MAKECMDGOALS)" % sys.version_info[:2])'
	@echo 'Making .venv: about 300 MB to download, a minute or two (on Linux, 3 GB more unless PyTorch is the CPU build: see README).'
	@$(PYTHON) -m venv --clear .venv || { echo 'No virtual environment could be made. On Debian and Ubuntu: apt install python3-venv; then the same make again.'; rm -rf .venv; exit 1; }
	$(PIP) -c constraints.txt -e '.[learn]'
	@touch $@

.venv/dev: .venv/learn
	@echo "Adding the maintainers' tools: about 150 MB more."
	$(PIP) -c constraints.txt -e '.[dev]'
	for v in $$(sed -n 's/^fastcore_peers *= *//p' settings.ini); do \
	  $(PIP) --quiet --no-deps --upgrade --target .venv/peers/fastcore-$$v fastcore==$$v || exit 1; done
	@touch $@

HEALTHY = @$(BIN)/python -c 'import torch, initnotes, sys; sys.exit(not initnotes.__file__.startswith("$(CURDIR)/"))' 2>/dev/null \
  || { echo 'The environment in .venv is broken, or that of another folder. Type: make clean, then the same make again.'; exit 1; }

learn: .venv/learn
	$(HEALTHY)

dev: .venv/dev
	$(HEALTHY)

env: dev ## make .venv as constraints.txt says, with the maintainers' tools

# ---- for learners ----------------------------------------------------------------------------

run: learn ## execute every lesson as this machine is
	@$(NOTEBOOKS) run

lab: learn ## open your own copies of the lessons, without their answers, in JupyterLab
	@$(BIN)/python tools/lab.py

# ---- for maintainers -------------------------------------------------------------------------

quick: dev ## in a minute: exports in step, lint, the library's tests that are not slow
	@$(BIN)/python tools/instep.py
	@$(BIN)/ruff check --quiet initnotes tools tests
	$(ONE) $(PYTEST) -n auto -m 'not slow and not notebooks and not site and not browser and not lab'

test: dev ## in five minutes: quick, slow tests, each notebook executed and compared once, the site
	@$(BIN)/python tools/instep.py
	@$(BIN)/ruff check --quiet initnotes tools tests
	@$(BIN)/python tools/readme.py --check
	$(ONE) $(PYTEST) -n auto -m 'not proof'

proof: dev ## in an hour: test, nbdev_test, other processors and seeds, every page and lesson in a browser
	@$(BIN)/python -c 'import shutil, sys; any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))) or sys.exit("make proof opens every page and lesson in a browser: install chromium or chrome (Debian, Ubuntu: apt install chromium), then the same make again")'
	$(MAKE) test HYPOTHESIS_PROFILE=random
	$(MAKE) nbdev
	$(MAKE) processors $(if $(ALL),,SETTINGS='portable-1 native-2')
	$(ONE) $(PYTEST) -n auto -m 'proof and not lab'
	$(PYTEST) -m lab
	$(NOTEBOOKS) sweep --seeds $(or $(PROOF_SEEDS),1-1)

nbdev: dev ## nbdev_test, as it is
	$(ONE) $(OFFLINE) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test

processors: dev ## every notebook under other instruction sets, with one thread and with two
	@$(NOTEBOOKS) processors --settings $(SETTINGS)

store: dev ## after editing a notebook: export, execute, keep outputs, renew README and index
	$(BIN)/nbdev_export
	$(NOTEBOOKS) store
	$(BIN)/python tools/readme.py

experiments: dev ## train what the tables in nbs/experiments do not hold yet: about half an hour for all
	@$(BIN)/python tools/experiments.py

site: dev ## the course as web pages, in _site: nothing is executed
	$(BIN)/python tools/website.py

bundle: site ## a release in one file, in _build: the site, the notebooks, the wheel
	$(BIN)/python tools/bundle.py

sweep: dev ## run all notebooks for INITNOTES_SEED = 0 … SEEDS-1
	@$(NOTEBOOKS) sweep --seeds $(SEEDS)

bench: dev ## measure what is promised about speed, as ratios
	@for b in $$(ls tests/benchmarks/*.py | grep -v ratios); do $(BIN)/python $$b || exit 1; done

clean: ## remove the environment and everything built; your lessons in lab/ stay
	rm -rf .venv _build _site
