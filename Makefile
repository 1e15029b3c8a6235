# Each target first sets up whatever it needs and is missing. STACK=tf220 takes the newer TensorFlow, in
# an environment of its own; PYTHON says with which Python. The machine needs GNU make, Python 3.11 and
# a package registry that pip reaches.

PYTHON ?= python3.11
STACK ?= tf215
# Files of tests, if not all.
TESTS ?=

VENV_tf215 := .venv
LOCK_tf215 := requirements.txt
VENV_tf220 := .venv-tf220
LOCK_tf220 := requirements-tf220.txt

VENV := $(or $(VENV_$(STACK)),$(error STACK=$(STACK): no such set; take tf215 or tf220))
LOCK := $(LOCK_$(STACK))
VENV_PYTHON := $(VENV)/bin/python
PYTEST := $(VENV_PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/installed

DATA_DIR := data/tfds
# The version that the pinned TFDS prepares.
FASHION_MNIST := $(DATA_DIR)/fashion_mnist/3.0.1/dataset_info.json
DEBIAN_DIR := $(or $(wildcard /usr/share/datasets/fashion-mnist),data/debian)

.PHONY: help setup data test test-long lint demo wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 11

setup: $(INSTALLED) ## make the environment, .venv or .venv-tf220

$(INSTALLED): $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile -r $(LOCK)
	touch $@

data: $(FASHION_MNIST) ## prepare Fashion-MNIST in data/tfds

$(FASHION_MNIST): | $(INSTALLED)
	$(VENV_PYTHON) -m hqc_tf.prepare --dataset=fashion_mnist --data_dir=$(DATA_DIR) \
		--debian_dir=$(DEBIAN_DIR)

test: $(INSTALLED) ## run the tests but the long ones, or those of TESTS="tests/..."
	@$(MAKE) --no-print-directory data || echo "No Fashion-MNIST: the tests that need it skip."
	$(PYTEST) $(or $(TESTS),-m "not long")

test-long: $(INSTALLED) ## run the tests that take five seconds or more, which `make test` leaves out
	@$(MAKE) --no-print-directory data || echo "No Fashion-MNIST: the tests that need it skip."
	$(PYTEST) -m long

lint: $(INSTALLED) ## check style and form with ruff
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

demo: $(INSTALLED) data ## the whole way once on real images, about 12 minutes
	$(VENV_PYTHON) -m hqc_tf.train --flagfile=configs/demo.flags --workdir=demo/run
	$(VENV_PYTHON) -m hqc_tf.evaluate --workdir=demo/run --untrained
	$(VENV_PYTHON) -m export.saved_model --workdir=demo/run --output=demo/serving
	$(VENV_PYTHON) -m export.index --saved_model=demo/serving --dataset=fashion_mnist \
		--data_dir=$(DATA_DIR) --output=demo/index
	$(VENV_PYTHON) -m export.search --index=demo/index --k=10 \
		--dataset='fashion_mnist/test[:2]' --data_dir=$(DATA_DIR)
	$(VENV_PYTHON) -m export.gallery --index=demo/index --dataset=fashion_mnist \
		--data_dir=$(DATA_DIR) --output=demo/neighbors.png
	$(VENV_PYTHON) -m hqc_tf.report --workdir=demo/run

wheel: $(INSTALLED) ## build dist/hqc_tf-*.whl
	$(VENV_PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# Environments and data, which take a network to bring back, stay.
clean: ## remove what demo, tests and builds leave
	rm -rf demo dist build *.egg-info .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +
