# Trilake. `make help` lists the targets. Each target first sets up what it needs, once.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
# Tests mostly wait for servers. Each worker has its own servers (tests/conftest.py).
WORKERS ?= 2
# The tests that only `make test-nightly` runs as a whole are split into this many parts. Each commit runs one part.
PARTS := 12
BIN := $(VENV)/bin
REQUIREMENTS := plugins/trilake/platform/requirements
LOCKS := $(addprefix $(REQUIREMENTS)/, bootstrap.txt development.txt jdk.txt)
LOCK = $(BIN)/uv pip compile --quiet pyproject.toml --generate-hashes --no-emit-index-url --no-header \
  --python-version 3.11
FETCHED := $(foreach set, spark/image platform/embedded/s3proxy, plugins/trilake/$(set)/ivy.xml plugins/trilake/$(set)/jars.sha256)
# The set-up depends on these files. The stamp's name has the digest of their content: a changed lock sets up again, but
# new file times of a checkout or a second `make` do not.
STAMP := $(VENV)/.trilake/$(shell cat pyproject.toml $(LOCKS) $(FETCHED) .ci/setup 2>/dev/null | sha256sum | cut -c1-16)

##@ The platform on this machine

.PHONY: demo
demo: $(STAMP) ## Start the platform, load a year of flights, print a report
	@$(BIN)/trilake demo

.PHONY: up
up: $(STAMP) ## Start the platform; services that run are not touched
	@$(BIN)/trilake up

.PHONY: down
down: ## Stop every process of the platform; its data is kept
	@if [ -x $(BIN)/trilake ]; then $(BIN)/trilake down; fi

.PHONY: clean
clean: down ## Stop the platform, remove its data (.trilake) and the tools' caches; keep the set-up
	@home="$${TRILAKE_HOME:-.trilake}"; if [ -d "$$home/run" ]; then rm -rf "$$home"; fi
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
	@find dags plugins spark_jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

##@ The three hosts on this machine, in Docker

.PHONY: replica
replica: $(STAMP) ## Build, start and set up the replica; containers that run are not touched
	@$(BIN)/trilake replica

.PHONY: replica-down
replica-down: ## Remove the replica's containers; its data is kept
	@if [ -x $(BIN)/trilake ]; then $(BIN)/trilake replica --down; fi

##@ On vps_1 (docs/operations/backup.md)

COMPOSE_VPS_1 = docker compose --env-file .env -f docker/vps_1/compose.yml

.PHONY: restore
restore: ## Restore PostgreSQL and S3 (AT=time; REPLACE=1 moves data aside), stop jobs, back up, fill ClickHouse
	@docker/host/restore $(if $(AT),--at $(AT)) $(if $(REPLACE),--replace)
	@$(COMPOSE_VPS_1) run --rm --no-deps airflow-scheduler trilake setup no-jobs || echo "restore: continuing" >&2
	@$(COMPOSE_VPS_1) up --detach s3 wal-metadata wal-postgres
	@docker/host/backup --base
	@$(COMPOSE_VPS_1) run --rm setup-tables trilake rebuild --checksums

##@ Working on it

.PHONY: setup
setup: $(STAMP) ## Install the locked packages, jars and Java, once

.PHONY: test
test: $(STAMP) ## Run the quick tests that need neither Docker nor Kubernetes
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not nightly" $(PYTEST)

.PHONY: test-slow
test-slow: $(STAMP) ## Run the slow tests of guarantees: the demo on the whole platform, jobs in Spark sessions
	@$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not nightly" $(PYTEST)

.PHONY: test-nightly
test-nightly: $(STAMP) ## Run all tests that need neither Docker nor Kubernetes, with more examples (an hour)
	@TRILAKE_SCHEDULES=$(or $(SCHEDULES),100) TRILAKE_SEEDS=50 $(BIN)/python -m pytest --hypothesis-profile nightly --timeout 3600 $(PYTEST)

.PHONY: test-part
test-part: $(STAMP) ## Run one part of the nightly-only tests, chosen by the commit (TURN=n chooses it)
	@$(BIN)/python -m pytest -m nightly --part $(or $(TURN),HEAD)/$(PARTS) $(PYTEST)

.PHONY: test-schedules
test-schedules: $(STAMP) ## Run 1,000 new schedules of concurrent publishers that die or wait (10 to 20 min; SCHEDULES=n)
	@TRILAKE_SCHEDULES=$(or $(SCHEDULES),1000) $(BIN)/python -m pytest --timeout 7200 -s tests/product/publication/test_publication_schedules.py

.PHONY: test-faults
test-faults: $(STAMP) ## Cause 40 faults in the middle of runs (an hour; SCHEDULES=n, SEED=s: n faults from seed s on)
	@$(BIN)/python -m pytest -v --timeout 1800 tests/faults $(if $(SCHEDULES),--schedules $(SCHEDULES)) $(if $(SEED),--seed $(SEED)) $(PYTEST)

.PHONY: test-kubernetes
test-kubernetes: $(STAMP) ## Run the tests that need a real Kubernetes (set KUBECONFIG); FULL=1 adds the slow ones
	@TRILAKE_TURN=$(TURN) $(BIN)/python -m pytest --timeout 3600 $(if $(FULL),,-m "not full") tests/kubernetes $(PYTEST)

.PHONY: test-replica
test-replica: $(STAMP) ## Run the tests that need Docker; TRILAKE_REPLICA=<project> adds those of a running replica
	@TRILAKE_TURN=$(TURN) TRILAKE_FULL=$(FULL) $(BIN)/python -m pytest --timeout 3600 $(if $(FULL),,-m "not full") tests/replica $(PYTEST)

# Some shell scripts have no suffix, so they are found by their first line. The other linters find their files by name.
SCRIPTS = $(shell find .ci * -type f -not -name '*.py*' -exec awk 'FNR == 1 && /^\#!.*sh$$/ { print FILENAME } { nextfile }' {} +)

.PHONY: lint
lint: $(STAMP) ## Check code, types, import layers, shell scripts, Dockerfiles and workflows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/shellcheck --external-sources --check-sourced $(SCRIPTS)
	@$(BIN)/hadolint $$(find * -name Dockerfile)
	@$(BIN)/zizmor --offline --quiet .github

.PHONY: lock
lock: $(STAMP) ## Write the package's locks from pyproject.toml; locked versions are kept where possible
	@$(LOCK) --extra airflow --extra spark --extra embedded --extra demo --group dev -o $(REQUIREMENTS)/development.txt
	@$(LOCK) --extra airflow --extra demo --group build --constraint $(REQUIREMENTS)/development.txt -o $(REQUIREMENTS)/airflow.txt
	@$(LOCK) --extra airflow --extra spark --extra embedded --group project --constraint $(REQUIREMENTS)/development.txt -o $(REQUIREMENTS)/project.txt
	@$(LOCK) --extra spark --constraint $(REQUIREMENTS)/development.txt -o $(REQUIREMENTS)/spark.txt

.PHONY: bench
bench: $(STAMP) ## Compare the speed with plain and official tools, on the demo's platform; writes benchmarks/RESULTS.md
	@$(BIN)/trilake up >/dev/null
	@$(BIN)/python benchmarks

.PHONY: format
format: $(STAMP) ## Format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP):
	@PYTHON="$(PYTHON)" .ci/setup "$(VENV)"
	@mkdir -p $(dir $@) && rm -f $(dir $@)* && touch $@
