# Every target does its own set-up in $(VENV), once; pyproject.toml being newer does it again.
PYTHON ?= python3
VENV   ?= .venv

# What `pip install` is given for torch, options included: by default the version developed against. It is installed
# first and never replaced afterwards.
TORCH ?= torch==2.13.0
# For the detection tests; installed without dependencies, and only if TORCH has not brought a torchvision along.
TORCHVISION ?= torchvision==0.28.0

BUNDLE            := bundles/lung_ct_segmentation
QUICKSTART_ARGS   ?= --attack_names "['SMIA','PGD','GaussianNoise']" --eps_hu "[5,20,50]"
QUICKSTART_OUTPUT ?= $(BUNDLE)/eval/robustness
PYTEST_ARGS       ?= -n auto
OLDEST            ?= .venv-oldest
# What of the suite; empty for all of it.
OLDEST_TESTS      ?=
BENCH_ARGS        ?=
TABLE_ARGS        ?=

PY   := $(VENV)/bin/python
PIP  := $(PY) -m pip --disable-pip-version-check install --quiet
# pip's constraint that keeps the installed torch.
KEEP := --constraint $(VENV)/torch.txt
TEXT := $(wildcard monai_smia tests bundles benchmarks tutorials docs *.md *.cff *.toml Makefile)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv quickstart readme test test-slow test-oldest lint format docs peers bench robustness-table clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH="$(TORCH)"'

venv: $(VENV)/.test ## make the environment with everything that developing needs

quickstart: $(VENV)/.run ## attack the lung CT bundle on its own sample: a table and figures
	$(PY) -m monai.bundle run \
	  --config_file "['$(BUNDLE)/configs/train.json','$(BUNDLE)/configs/evaluate.json','$(BUNDLE)/configs/attack.json']" \
	  --meta_file $(BUNDLE)/configs/metadata.json --logging_file $(BUNDLE)/configs/logging.conf \
	  --bundle_root $(BUNDLE) $(QUICKSTART_ARGS)
	@echo "Table and figures are in $(QUICKSTART_OUTPUT):"
	@ls -1 $(QUICKSTART_OUTPUT)

readme: $(VENV)/.test ## measure the quickstart's numbers anew and write them into README, figure and bundle page
	OMP_NUM_THREADS=1 $(PY) -m benchmarks readme_numbers

test: lint ## lint, then run all tests (peer comparisons too after `make peers`)
	$(PY) -m pytest $(PYTEST_ARGS)

test-slow: $(VENV)/.test ## run the tests that take minutes and are left out of `make test`
	$(PY) -m pytest $(PYTEST_ARGS) -m slow

test-oldest: ## run all tests with the lowest versions that pyproject.toml allows (torch apart), in $(OLDEST)
	$(MAKE) VENV=$(OLDEST) $(OLDEST)/.oldest
	$(OLDEST)/bin/python -m pytest $(PYTEST_ARGS) $(OLDEST_TESTS)

lint: $(VENV)/.test ## ruff, mypy and codespell, changing nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell $(TEXT)

format: $(VENV)/.test ## let ruff fix and format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/.test ## build the documentation into docs/_build/html; a warning is an error
	$(PY) -m sphinx -b html -W --keep-going -j auto docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

peers: $(VENV)/.peers ## install the attack libraries that the tests and benchmarks compare with

bench: $(VENV)/.peers ## speed and strength side by side with the peers
	$(PY) -m benchmarks $(BENCH_ARGS)

robustness-table: $(VENV)/.test ## attack every bundle, standard and robust weights, into docs/robustness.md (resumes)
	$(PY) -m benchmarks robustness_table --write docs/robustness.md $(TABLE_ARGS)

clean: ## remove what builds, caches and runs left (the environment stays)
	rm -rf build dist docs/_build .mypy_cache .pytest_cache .ruff_cache runs bundles/*/eval bundles/*/runs
	find $(wildcard monai_smia tests bundles benchmarks tutorials) -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'error: Python 3.10 or newer is needed, "$(PYTHON)" is not; choose one with PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo 'error: "$(PYTHON)" cannot make virtual environments; install its venv module (Debian, Ubuntu: the' \
	    'package python3-venv) or choose another with PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.venv
	@echo 'Setting up $(VENV): torch first (once; it may take minutes)'
	$(PIP) $(TORCH)
	@$(PY) -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(VENV)/torch.txt
	@touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.torch
	$(PIP) $(KEEP) --editable ".[report]"
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.torch
	$(PIP) $(KEEP) --editable ".[report,test,dev]"
	@$(PY) -c 'from importlib.metadata import version; version("torchvision")' 2> /dev/null || \
	  $(PIP) --no-deps $(TORCHVISION)
	@touch $@ $(VENV)/.run

# The documentation builder is not a dependency of the package, so that it is as new as pip finds it.
$(VENV)/.oldest: pyproject.toml $(VENV)/.torch
	$(PY) -m benchmarks._oldest pyproject.toml > $(VENV)/oldest.txt
	$(PIP) $(KEEP) --constraint $(VENV)/oldest.txt --editable ".[report,test]"
	@$(PY) -c 'from importlib.metadata import version; version("torchvision")' 2> /dev/null || \
	  $(PIP) --no-deps $(TORCHVISION)
	@touch $@

# torchattacks pins an ancient requests, and adv-lib asks for visdom, which it only plots with and which does not install
# beside a recent setuptools: both come without their dependencies, which are there but for those.
$(VENV)/.peers: $(VENV)/.test
	$(PIP) $(KEEP) --editable ".[peers]"
	$(PIP) --no-deps "torchattacks>=3.5.1" "adv-lib>=0.2.8"
	@touch $@
