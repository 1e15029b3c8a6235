# make setup, data, test, lint, demo, clean: each first sets up whatever it needs and is missing.
# STACK=tf220 does so with the newer TensorFlow, in an environment of its own; PYTHON says with which
# Python. The machine needs GNU make, Python 3.11 and a package registry that pip reaches.

PYTHON ?= python3.11
STACK ?= tf215
# Files of tests, if not all.
TESTS ?=

VENV_tf215 := .venv
REQUIREMENTS_tf215 := requirements.txt
CONSTRAINTS_tf215 := constraints.txt
VENV_tf220 := .venv-tf220
REQUIREMENTS_tf220 := requirements-tf220.txt
CONSTRAINTS_tf220 := constraints-tf220.txt

VENV := $(or $(VENV_$(STACK)),$(error STACK=$(STACK): no such set; take tf215 or tf220))
REQUIREMENTS := $(REQUIREMENTS_$(STACK))
CONSTRAINTS := $(CONSTRAINTS_$(STACK))
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

DATA_DIR := data/tfds
# The version that the pinned TFDS prepares.
FASHION_MNIST := $(DATA_DIR)/fashion_mnist/3.0.1/dataset_info.json
DEBIAN_DIR := $(or $(wildcard /usr/share/datasets/fashion-mnist),data/debian)

.PHONY: setup data test lint demo clean

setup: $(INSTALLED)

$(INSTALLED): $(REQUIREMENTS) requirements-beam.txt requirements-dev.txt $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check \
		-c $(CONSTRAINTS) -r $(REQUIREMENTS) -r requirements-dev.txt
	touch $@

data: $(FASHION_MNIST)

# Unpacking Debian's package needs no root. Without apt, or without a mirror, TFDS downloads.
# It is unpacked aside and moved, so that a broken-off attempt leaves no half of it.
APT_GET := apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20
define FETCH_DEBIAN_PACKAGE
rm -rf data/debian.part && mkdir -p data/debian.part && ( \
	cd data/debian.part && \
	{ $(APT_GET) download dataset-fashion-mnist 2>apt.log || { [ "$$(id -u)" = 0 ] && \
		$(APT_GET) update 2>>apt.log && \
		$(APT_GET) download dataset-fashion-mnist 2>>apt.log; }; } && \
	dpkg-deb -x dataset-fashion-mnist_*.deb . \
) && mv data/debian.part/usr/share/datasets/fashion-mnist data/debian && rm -rf data/debian.part
endef

$(FASHION_MNIST): | $(INSTALLED)
	@if [ ! -d $(DEBIAN_DIR) ] && command -v apt-get >/dev/null && \
		command -v dpkg-deb >/dev/null; then \
		{ $(FETCH_DEBIAN_PACKAGE); } || \
		echo "apt-get could not fetch dataset-fashion-mnist; data/debian.part/apt.log says why"; \
	fi
	$(VENV_PYTHON) -m hqc_tf.prepare --dataset=fashion_mnist --data_dir=$(DATA_DIR) \
		--debian_dir=$(DEBIAN_DIR)

test: $(INSTALLED)
	@$(MAKE) --no-print-directory data || echo "No Fashion-MNIST: the tests that need it skip."
	$(VENV_PYTHON) -m pytest -n 2 --dist loadfile $(TESTS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

# Two test images as files, the way a user's own queries come.
define WRITE_QUERIES
import pathlib
from hqc_tf import data
import PIL.Image
folder = pathlib.Path("demo/queries")
folder.mkdir(parents=True, exist_ok=True)
images = data.load_images("fashion_mnist/test[:2]", "$(DATA_DIR)")
for number, pixels in enumerate(images.pixels, start=1):
    PIL.Image.fromarray(pixels).save(folder / f"query{number}.png")
endef
export WRITE_QUERIES

demo: $(INSTALLED) data
	$(VENV_PYTHON) -m hqc_tf.train --flagfile=configs/demo.flags --workdir=demo/run
	$(VENV_PYTHON) -m hqc_tf.evaluate --workdir=demo/run --untrained
	$(VENV_PYTHON) -m export.saved_model --workdir=demo/run --output=demo/serving
	$(VENV_PYTHON) -m export.index --saved_model=demo/serving --dataset=fashion_mnist \
		--data_dir=$(DATA_DIR) --output=demo/index
	$(VENV_PYTHON) -c "$$WRITE_QUERIES"
	$(VENV_PYTHON) -m export.search --index=demo/index --k=10 \
		demo/queries/query1.png demo/queries/query2.png
	$(VENV_PYTHON) -m export.gallery --index=demo/index --dataset=fashion_mnist \
		--data_dir=$(DATA_DIR) --output=demo/neighbours.png
	$(VENV_PYTHON) -m hqc_tf.report --workdir=demo/run

# What the demo and the tests leave; environments and data, which take a network to bring back, stay.
clean:
	rm -rf demo .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +
