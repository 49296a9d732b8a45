# `make demo` and `make test` work on a fresh checkout: they need Python 3.11 and g++, and make .venv themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)

VENV := .venv
BIN := $(VENV)/bin
BUILD := build/release
SOURCES := CMakeLists.txt pyproject.toml $(shell find cpp cmake dlf tests/cpp -type f -not -name '*.pyc')
CXX_FILES = $(shell git ls-files '*.cc' '*.h' '*.cu')
# The kernels' at::vec headers take most of a minute each to tidy and hold intrinsics only.
TIDY_FILES = $(shell git ls-files 'cpp/*.cc' | grep -v '_cpu\.cc$$')

.PHONY: help setup demo test test-py test-cpp asan lint format stubs stubs-check wheel clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

# ---- set-up: a virtual environment, torch, the build tools, then the package itself

$(VENV)/.tools: tools/requirements.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python tools/requirements.py build >$(VENV)/build.txt
	@echo "Installing torch and the build tools"
	@$(BIN)/python -m pip install --quiet -r $(VENV)/build.txt
	@touch $@

# A plain install, not an editable one: what is tested is what a user gets. The build folder is kept, so an edit rebuilds
# only what it touches; the C++ tests are built there as well.
$(VENV)/.installed: $(VENV)/.tools $(SOURCES)
	@echo "Building and installing dlf (a minute or two the first time)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation \
	  --config-settings=build-dir=$(BUILD) --config-settings=cmake.define.DLF_BUILD_TESTS=ON '.[plot,test]'
	@touch $@

$(VENV)/.linters: $(VENV)/.tools pyproject.toml
	$(BIN)/python tools/requirements.py dev >$(VENV)/dev.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/dev.txt
	@touch $@

setup: $(VENV)/.installed ## Make .venv, install torch and the build tools, build and install dlf

# ---- use

demo: setup ## Run the main job on the models that ship with the package
	$(BIN)/dlf demo

test: test-cpp test-py ## Run every test (not the slow ones: pytest -m slow)

test-py: setup ## Run the Python tests
	$(BIN)/pytest

test-cpp: setup ## Run the C++ tests
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure

asan: $(VENV)/.tools ## Run the C++ tests under AddressSanitizer and UBSan
	$(BIN)/cmake --preset asan
	$(BIN)/cmake --build --preset asan
	$(BIN)/ctest --preset asan

# ---- habits

lint: setup $(VENV)/.linters ## Check style and types: ruff, mypy, clang-format, clang-tidy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@echo clang-format; $(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	@echo clang-tidy; echo $(TIDY_FILES) | xargs -n 1 -P 2 $(BIN)/clang-tidy --quiet -p $(BUILD)

format: $(VENV)/.linters ## Format every source file in place
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

stubs: setup $(VENV)/.linters ## Regenerate dlf/_C.pyi from the extension
	$(BIN)/python tools/stubs.py

stubs-check: setup $(VENV)/.linters ## Fail where dlf/_C.pyi is out of date
	$(BIN)/python tools/stubs.py --check

wheel: ## Build dist/*.whl in an isolated environment
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

clean: ## Remove what was built; .venv stays
	rm -rf build dist $(VENV)/.installed
