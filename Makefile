# Every target needs nothing but Python 3.11 and make; the first one that runs sets .venv up.

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
RECENT := import sys; sys.exit(sys.version_info < (3, 11))

.NOTPARALLEL:
.PHONY: help install launcher venv demo s3-demo test test-fast lint format bench gpu sweep image up submit down clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## create .venv and install everything in it

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

# The stamp is written last, so whatever was interrupted is taken up again; pip keeps what is already right.
$(INSTALLED): pyproject.toml constraints.txt
	$(create_venv)
	@echo "Installing the packages of constraints.txt into $(VENV): some minutes and 6 GB the first time."
	@$(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[test,lint]'
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

test: $(INSTALLED) ## run all tests; ARGS="tests/unit -k order" runs some
	@$(PY) -m pytest $(ARGS)

test-fast: $(INSTALLED) ## run the unit tests
	@$(PY) -m pytest tests/unit $(ARGS)

lint: $(INSTALLED) ## check style, types and which way imports go
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-logo

format: $(INSTALLED) ## put code into the one style
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

sweep: $(INSTALLED) ## search hyper-parameters; ARGS="--preset mixture --trials 12"
	@$(PY) -m tuning.sweep $(ARGS)

bench: $(INSTALLED) ## measure training steps against the usual public way
	@$(PY) -m tests.bench.step $(ARGS)

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
