# make demo and make test need Python 3.11, g++ and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
TORCH := torch==2.13.0

.PHONY: setup test
setup: $(VENV)/.installed

$(VENV)/.ready: Makefile pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q $(TORCH)
	$(VENV)/bin/pip install -q scikit-build-core cmake ninja
	touch $@

SOURCES := $(shell find cpp cmake dlf -name '*.cc' -o -name '*.h' -o -name '*.cmake' -o -name '*.py' -o -name '*.pyi') CMakeLists.txt
$(VENV)/.installed: $(VENV)/.ready $(SOURCES)
	$(VENV)/bin/pip install -q --no-build-isolation '.[test]'
	touch $@

test: setup
	$(VENV)/bin/python -m pytest -q
