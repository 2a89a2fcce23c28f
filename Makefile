# Trilake. `make help` lists what there is; what a target needs and is not there yet, it sets up first, once.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
# Tests mostly wait for servers; each worker has its own (tests/conftest.py).
WORKERS ?= 2
# In how many parts the tests run that only `make test-nightly` runs as a whole: one part with each commit.
PARTS := 6
BIN := $(VENV)/bin
REQUIREMENTS := plugins/trilake/platform/requirements
LOCKS := $(addprefix $(REQUIREMENTS)/, bootstrap.txt development.txt jdk.txt)
LOCK = $(BIN)/uv pip compile --quiet pyproject.toml --generate-hashes --no-emit-index-url --no-header \
  --python-version 3.11
FETCHED := $(foreach set, spark/image platform/embedded/s3proxy, plugins/trilake/$(set)/ivy.xml plugins/trilake/$(set)/jars.sha256)
# Set up is what these say: a stamp carries the digest of their content in its name, so neither a checkout's new times
# nor a second `make` sets up again, and a changed lock does.
STAMP := $(VENV)/.trilake/$(shell cat pyproject.toml $(LOCKS) $(FETCHED) .ci/setup 2>/dev/null | sha256sum | cut -c1-16)

##@ The platform on this machine

.PHONY: demo
demo: $(STAMP) ## Start the platform, run a year of flights through it, tell what happened
	@$(BIN)/trilake demo

.PHONY: up
up: $(STAMP) ## Start the platform; what runs is left alone
	@$(BIN)/trilake up

.PHONY: down
down: ## End every process of the platform; its data is kept
	@if [ -x $(BIN)/trilake ]; then $(BIN)/trilake down; fi

.PHONY: clean
clean: down ## End the platform and remove its data (.trilake) and what tools left; the set-up stays
	@home="$${TRILAKE_HOME:-.trilake}"; if [ -d "$$home/run" ]; then rm -rf "$$home"; fi
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
	@find dags plugins spark_jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

##@ The three hosts on this machine, in Docker

.PHONY: replica
replica: $(STAMP) ## Build, start and set up the replica; what runs is left alone
	@$(BIN)/trilake replica

.PHONY: replica-down
replica-down: ## End the replica's containers; its data is kept
	@if [ -x $(BIN)/trilake ]; then $(BIN)/trilake replica --down; fi

##@ Working on it

.PHONY: setup
setup: $(STAMP) ## Virtual environment, jars, Java: as locked, once

.PHONY: test
test: $(STAMP) ## Every quick test that needs neither Docker nor Kubernetes
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not nightly" $(PYTEST)

.PHONY: test-slow
test-slow: $(STAMP) ## What shows the promises that take long: the demo on the whole platform, jobs in Spark sessions
	@$(BIN)/python -m pytest -m "slow and not nightly" $(PYTEST)

.PHONY: test-nightly
test-nightly: $(STAMP) ## Every test that needs neither Docker nor Kubernetes, and more examples of each (an hour)
	@TRILAKE_SCHEDULES=$(or $(SCHEDULES),100) $(BIN)/python -m pytest --hypothesis-profile nightly --timeout 3600 $(PYTEST)

.PHONY: test-part
test-part: $(STAMP) ## A part of what test-nightly alone runs, as the commit picks it; TURN=n: the one of that turn
	@$(BIN)/python -m pytest -m nightly --part $(or $(TURN),HEAD)/$(PARTS) $(PYTEST)

.PHONY: test-schedules
test-schedules: $(STAMP) ## 1,000 new schedules of publishers that die, wait and meet (10 to 20 min; SCHEDULES=n)
	@TRILAKE_SCHEDULES=$(or $(SCHEDULES),1000) $(BIN)/python -m pytest --timeout 7200 -s tests/product/publication/test_publication_schedules.py

.PHONY: test-faults
test-faults: $(STAMP) ## 40 faults in the middle of runs (an hour; SCHEDULES=n, SEED=s: n of them, from the seed s on)
	@$(BIN)/python -m pytest -v --timeout 1800 tests/faults $(if $(SCHEDULES),--schedules $(SCHEDULES)) $(if $(SEED),--seed $(SEED)) $(PYTEST)

.PHONY: test-kubernetes
test-kubernetes: $(STAMP) ## What needs a real Kubernetes, on the one that KUBECONFIG names; FULL=1: what takes long too
	@TRILAKE_TURN=$(TURN) $(BIN)/python -m pytest --timeout 3600 $(if $(FULL),,-m "not full") tests/kubernetes $(PYTEST)

.PHONY: test-replica
test-replica: $(STAMP) ## What needs Docker: network and VPN; TRILAKE_REPLICA=<project>: a whole replica that runs, too
	@TRILAKE_TURN=$(TURN) TRILAKE_FULL=$(FULL) $(BIN)/python -m pytest --timeout 3600 $(if $(FULL),,-m "not full") tests/replica $(PYTEST)

# Shell scripts are known by their first line, as some have no suffix. The other linters find their files by name.
SCRIPTS = $(shell find .ci * -type f -not -name '*.py*' -exec awk 'FNR == 1 && /^\#!.*sh$$/ { print FILENAME } { nextfile }' {} +)

.PHONY: lint
lint: $(STAMP) ## ruff, mypy --strict, import layers; shell scripts, Dockerfiles, workflows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/shellcheck --external-sources --check-sourced $(SCRIPTS)
	@$(BIN)/hadolint $$(find * -name Dockerfile)
	@$(BIN)/zizmor --offline --quiet .github

.PHONY: lock
lock: $(STAMP) ## Write the locks of the package from pyproject.toml; what is locked stays where it can
	@$(LOCK) --extra airflow --extra spark --extra embedded --extra demo --group dev -o $(REQUIREMENTS)/development.txt
	@$(LOCK) --extra airflow --extra demo --group build --constraint $(REQUIREMENTS)/development.txt -o $(REQUIREMENTS)/airflow.txt
	@$(LOCK) --extra airflow --extra spark --extra embedded --group project --constraint $(REQUIREMENTS)/development.txt -o $(REQUIREMENTS)/project.txt
	@$(LOCK) --extra spark --constraint $(REQUIREMENTS)/development.txt -o $(REQUIREMENTS)/spark.txt

.PHONY: bench
bench: $(STAMP) ## Measure against the bare and the official way, on the platform of `make demo`; writes benchmarks/RESULTS.md
	@$(BIN)/trilake up >/dev/null
	@$(BIN)/python benchmarks

.PHONY: format
format: $(STAMP) ## Let ruff format and mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP):
	@PYTHON="$(PYTHON)" .ci/setup "$(VENV)"
	@mkdir -p $(dir $@) && rm -f $(dir $@)* && touch $@
