# `make train` and `make test` need Python 3.11, pip and make; the rest they install into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
# Put first on the path, so that `mlflow run` finds this environment's python.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: train test test-slow test-docs test-cluster test-endurance docs format benchmark benchmark-attacks benchmark-parallel clean

train: $(INSTALLED)
	$(RUN) mlflow run . -e train --env-manager local --experiment-name resfool \
		-P arch=multiresnet -P dataset=mnist5k -P depth=5 -P steps=600 -P lr_drop=400 -P eval_every=200

test: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# What takes long: whole commands that are killed, resumed, installed and spread; trainings that
# learn; how far from the best solutions the solvers stay.
test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow --numprocesses 2 --dist loadfile

# Every command and every Python block of README.md and docs/, made small.
test-docs: $(INSTALLED)
	$(BIN)/python -m tests.documentation.run_commands

# What MLproject and the pages repeat from the code.
docs: $(INSTALLED)
	$(BIN)/python -m docs.generate

# Commands killed at random moments and given again; some hours.
test-endurance: $(INSTALLED)
	$(BIN)/python -m tests.endurance --kills 200

# Two hosts in network namespaces; as root on Linux.
test-cluster: .venv/.cluster
	$(BIN)/pytest -rs tests/cluster

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: .venv/.benchmarks
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.cpu_kernels

benchmark-attacks: .venv/.attack-benchmarks
	$(BIN)/python -m benchmarks.attack_agreement
	$(BIN)/python -m benchmarks.attack_sweep
	$(BIN)/python -m benchmarks.minimal_perturbations
	$(BIN)/python -m benchmarks.universal_perturbations

benchmark-parallel: $(INSTALLED)
	$(BIN)/python -m benchmarks.parallel_backends
	$(BIN)/python -m benchmarks.tuning_load
	$(BIN)/python -m benchmarks.cluster_simulation

clean:
	rm -rf .venv

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

.venv/.cluster: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,cluster]"
	touch $@

.venv/.benchmarks: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,benchmarks]"
	touch $@

.venv/.attack-benchmarks: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/build-constraints.txt
	PIP_CONSTRAINT=benchmarks/build-constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,attack-benchmarks]"
	touch $@
