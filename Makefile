# Every target needs nothing but Python 3.11 and make; the first one that runs sets .venv up.

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
RECENT := import sys; sys.exit(sys.version_info < (3, 11))

.NOTPARALLEL:
.PHONY: help install launcher venv demo s3-demo test test-fast lint format docs sbom audit bench gpu sweep image up submit \
    down clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## create .venv and install everything in it; HASHED=1 checks each file

venv: install

define create_venv
	@if ! { $(PY) -c '$(RECENT)' && $(PY) -m pip --version; } >/dev/null 2>&1; then \
	    for python in $(PYTHON) python3.11 python3; do \
	        if $$python -c '$(RECENT)' 2>/dev/null; then break; fi; \
	        python=; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "ali_dist needs Python 3.11 or newer, but neither python3.11 nor python3 is that:" \
	            "install it, or name one with make PYTHON=/path/to/python." >&2; \
	        exit 1; \
	    fi; \
	    echo "Creating $(VENV) with $$($$python --version)."; \
	    $$python -m venv --clear $(VENV) || exit 1; \
	fi
endef

# With HASHED=1 nothing is installed but the files of hashes.txt; of what follows, our own package is all that is left.
ifdef HASHED
INSTALL_HASHED := $(PY) -m pip install -qq --disable-pip-version-check --require-hashes --no-deps --requirement hashes.txt
IN_PLACE := --no-index --no-build-isolation
endif

# The stamp is written last, so whatever was interrupted is taken up again; pip keeps what is already right.
$(INSTALLED): pyproject.toml constraints.txt
	$(create_venv)
	@echo "Installing the packages of constraints.txt into $(VENV): some minutes and 6 GB the first time."
	@$(INSTALL_HASHED)
	@$(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[test,lint]' $(IN_PLACE)
	@touch $@

# Tools that neither train nor test stay out of .venv: those of the extra docs are in .venv/docs, for example.
LIST_EXTRA := import sys, tomllib; \
    print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")

$(VENV)/%/.installed: pyproject.toml constraints.txt
	$(create_venv)
	@$(PY) -m venv --clear $(@D)
	@$(PY) -c '$(LIST_EXTRA)' $* > $(@D)/requirements.txt
	@$(@D)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
	    --requirement $(@D)/requirements.txt
	@touch $@

launcher: ## create .venv with no more than `python -m cluster` needs (no PyTorch): to train elsewhere
	$(create_venv)
	@[ -e $(INSTALLED) ] || $(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
	    'ray[default]' boto3 pyyaml

demo: $(INSTALLED) ## train on real digits on this machine (a few minutes), with pictures
	@$(PY) -m ali_dist.train --run.name demo $(ARGS)
	@echo "Pictures: runs/demo/images. Report: runs/demo/report.html"

s3-demo: $(INSTALLED) ## the same with 2 Ray workers, data and checkpoints in an S3 server on this machine
	@$(PY) -m tests.helpers.swift .swift/demo --bucket ali -- sh -c '\
	    $(PY) -m ali_dist.prepare digits s3://ali/digits && \
	    $(PY) -m ali_dist.train --data.url s3://ali/digits --run.dir s3://ali/runs --run.name s3-demo \
	        --scale.workers 2 $(ARGS)'
	@echo "Data, checkpoints and pictures are in the S3 server's folder; to look, start it again with"
	@echo "$(PY) -m tests.helpers.swift .swift/demo, which prints the AWS_* variables to use."

# Tests of units and docs run on all cores. The others start processes of their own, which take longer beside each other
# than one after the other.
UNITS := tests/unit tests/docs
ON_ALL_CORES := --numprocesses auto --maxprocesses 8 --dist loadfile

test: $(INSTALLED) ## run all tests; ARGS="tests/unit -k order" runs some
ifdef ARGS
	@$(PY) -m pytest --durations=25 $(ARGS)
else
	@code=0; \
	$(PY) -m pytest $(ON_ALL_CORES) --durations=40 $(UNITS) || code=$$?; \
	$(PY) -m pytest --durations=25 $(addprefix --ignore=,$(UNITS)) || code=$$?; \
	exit $$code
endif

test-fast: $(INSTALLED) ## run the tests of units and docs on all cores
	@$(PY) -m pytest $(ON_ALL_CORES) $(UNITS) $(ARGS)

lint: $(INSTALLED) ## check style, types and which way imports go
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-logo

format: $(INSTALLED) ## put code into the one style
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs: $(VENV)/docs/.installed ## build the documentation's site, which must have no dead link, into build/site
	@NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict
	@echo "Open build/site/index.html"

sbom: $(INSTALLED) $(VENV)/supply/.installed ## write what is installed, as CycloneDX JSON, into build/sbom.json
	@mkdir -p build
	@$(VENV)/supply/bin/cyclonedx-py environment --pyproject pyproject.toml --output-format JSON \
	    --output-reproducible --output-file build/sbom.json $(PY)
	@echo "Written: build/sbom.json"

audit: $(VENV)/supply/.installed ## ask the public advisories whether a pinned version has a known hole
	@$(VENV)/supply/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict $(ARGS)

sweep: $(INSTALLED) ## search hyper-parameters; ARGS="--preset mixture --trials 12"
	@$(PY) -m tuning.sweep $(ARGS)

bench: $(INSTALLED) ## compare a small set of speed ratios with the recorded ones; ARGS=--record writes new records
	@$(PY) -m tests.bench.ratios $(ARGS)

gpu: ## measure everything on this machine's GPU, without installing anything; ARGS="--budget 300"
	@if [ -x $(PY) ]; then python=$(PY); else python=python3; fi; $$python -m tests.gpu.check $(ARGS)

CLUSTER := cluster/local.yaml

image: ## build the container image with docker
	@docker build --build-arg REVISION="$$(git rev-parse HEAD)" --tag ali-dist:0.1.0 .

up: $(INSTALLED) ## start a cluster; CLUSTER=cluster/local.yaml
	@$(PY) -m cluster up $(CLUSTER)

submit: $(INSTALLED) ## train on it, with this folder's code; ARGS="--preset cifar10 --run.dir s3://bucket/runs"
	@$(PY) -m cluster submit $(CLUSTER) --follow -- python -m ali_dist.train $(ARGS)

down: $(INSTALLED) ## end it
	@$(PY) -m cluster down $(CLUSTER)

clean: ## remove caches and build products; .venv, .swift, runs and data stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis .coverage
	@find . \( -path ./$(VENV) -o -path ./.swift \) -prune -o -name __pycache__ -prune -exec rm -rf {} +
