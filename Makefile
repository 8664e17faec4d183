# Every command of the project. `make help` lists them; the first call sets up .venv, later ones install nothing.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Settings and secrets of this machine, if there is a .env (see deploy/env.example). The environment overrides the file.
WITH_ENV := $(if $(wildcard .env),dotenv run --no-override --)
export PATH := $(abspath $(BIN)):$(PATH)
# No telemetry from the tools called here; pipeline/telemetry.py turns off the rest.
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export BENTOML_DO_NOT_TRACK := True
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# Prefect keeps its runs in this folder, so that `make up` shows the runs of `make run`.
export PREFECT_HOME ?= $(CURDIR)/var/prefect

.DEFAULT_GOAL := help
.PHONY: help install run serve up test test-long check lock clean

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP)  ## Set up .venv with the locked versions (every command does it by itself)

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@

run: $(STAMP)  ## The whole loop: data to bento. DATA=folder MODEL=name-or-folder PRESET="name ..." SET="key=value ..." for your own
	@mkdir -p "$$PREFECT_HOME"
	@$(WITH_ENV) python -m flows.run $(if $(DATA),finetune) $(PRESET) $(if $(DATA),--data "$$DATA") $(if $(MODEL),--model "$$MODEL") $(foreach pair,$(SET),-S '$(pair)')

serve: $(STAMP)  ## Serve the champion on SERVICE_PORT (3000)
	@port=$$($(WITH_ENV) python -m flows.ports SERVICE_PORT) && exec $(WITH_ENV) bentoml serve service:Unmask --host 127.0.0.1 --port $$port

up: $(STAMP)  ## MLflow, Prefect, a worker with all deployments, and the service, under one supervisor
	@mkdir -p "$$PREFECT_HOME"
	@$(WITH_ENV) python -m flows.up

test: $(STAMP)  ## Run the tests, but for those that take minutes each
	@python -m pytest $(ARGS)

test-long: $(STAMP)  ## Run the tests that take minutes each
	@python -m pytest -m long $(ARGS)

check: $(STAMP)  ## Style, types and import rules
	ruff check .
	ruff format --check .
	mypy
	lint-imports

lock: $(STAMP)  ## Write requirements.lock from what is installed
	@{ echo "# Exact versions that are installed and tested. Made with 'make lock' from the ranges in pyproject.toml."; \
	   $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//'; } > requirements.lock

clean:  ## Remove what the pipeline made here (data, models, reports, records); sources, feedback, labels and the DVC cache stay
	@for lock in $(wildcard var/*.lock); do flock --nonblock $$lock true || { echo "error: a run is active here ($$(basename $$lock .lock)); stop it first, or wait" >&2; exit 1; }; done
	rm -rf data/raw data/splits data/splits.new data/manifest.parquet data/accepted.parquet reports models/trained models/package models/champion models/calibration.json mlflow.db mlartifacts
	test ! -d var || find var -mindepth 1 -maxdepth 1 ! -name feedback ! -name labelling -exec rm -rf {} +
