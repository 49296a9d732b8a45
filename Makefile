# `make demo` and `make test` work on a fresh checkout: they need Python 3.11 and g++, and make .venv themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)

VENV := .venv
BIN := $(VENV)/bin
BUILD := build/release
# What is built here runs the CUDA kernels on an emulated device, whatever torch is there; cuda-check builds the real ones.
DLF_CUDA ?= OFF
SOURCES := CMakeLists.txt pyproject.toml $(shell find cpp cmake dlf tests/cpp tests/cuda_emulation -type f -not -name '*.pyc')
CXX_FILES = $(shell git ls-files '*.cc' '*.h' '*.cu')
# The kernels' at::vec headers take most of a minute each to tidy and hold intrinsics only; support/cuda/runtime.cc needs CUDA's.
TIDY_FILES = $(shell git ls-files 'cpp/*.cc' | grep -v -e '_kernel\.cc$$' -e 'support/cuda/runtime\.cc$$')

.PHONY: help setup demo test test-py test-cpp test-emulated same-bits asan asan-py torch-check cuda-check lint format stubs stubs-check wheel wheel-check docs clean
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
	  --config-settings=build-dir=$(BUILD) --config-settings=cmake.define.DLF_BUILD_TESTS=ON \
	  --config-settings=cmake.define.DLF_CUDA=$(DLF_CUDA) '.[plot,test]'
	@touch $@

$(VENV)/.linters: $(VENV)/.tools pyproject.toml
	$(BIN)/python tools/requirements.py dev >$(VENV)/dev.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/dev.txt
	@touch $@

setup: $(VENV)/.installed ## Make .venv, install torch and the build tools, build and install dlf

# ---- use

demo: setup ## Run the main job on the models that ship with the package
	$(BIN)/dlf demo

test: test-cpp test-py test-emulated ## Run every test (not the slow ones: pytest -m slow)

test-py: setup ## Run the Python tests
	$(BIN)/pytest

test-cpp: setup ## Run the C++ tests
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --parallel 2

# The CUDA kernels and the engine around them on the host, thread by thread: no GPU is needed. Threads, streams and steps
# of a graph take their turns at random, with one seed, which shows what does not wait for what it needs.
EMULATED_TESTS ?= cuda and not slow

test-emulated: setup ## Run the Python tests of CUDA on an emulated device
	PYTHONPATH=$(BUILD)/emulated DLF_REQUIRE_CUDA=1 DLF_EMULATION_ORDER=1 DLF_CUDA_EARLY=1 \
	  $(BIN)/pytest -m "$(EMULATED_TESTS)"

# What a change of structure must not change: the cases of tests/bit_cases.py, in the build of another revision and in this one.
SAME_BITS := $(CURDIR)/build/same-bits
BASE ?= main

define compare_bits # of two packages
	PYTHONPATH=$(1) $(BIN)/python tests/same_bits.py record $(SAME_BITS)/base.json $(3)
	PYTHONPATH=$(2) $(BIN)/python tests/same_bits.py record $(SAME_BITS)/here.json $(3)
	$(BIN)/python tests/same_bits.py compare $(SAME_BITS)/base.json $(SAME_BITS)/here.json
endef

same-bits: setup ## Compare every bit of a result with what the revision BASE=... gives
	rm -rf $(SAME_BITS)/base $(SAME_BITS)/site
	git worktree prune
	git worktree add --quiet --detach $(SAME_BITS)/base $(BASE)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(SAME_BITS)/site \
	  --config-settings=build-dir=$(SAME_BITS)/build --config-settings='build.targets=_C;dlf_emulated' \
	  --config-settings=cmake.define.DLF_BUILD_TESTS=ON --config-settings=cmake.define.DLF_CUDA=OFF $(SAME_BITS)/base
	$(call compare_bits,$(SAME_BITS)/site,,--threads 2)
	$(call compare_bits,$(SAME_BITS)/site,,--threads 1)
	$(call compare_bits,$(SAME_BITS)/build/emulated,$(BUILD)/emulated,--device cuda)

asan: $(VENV)/.tools ## Run the C++ tests under AddressSanitizer and UBSan
	$(BIN)/cmake --preset asan
	$(BIN)/cmake --build --preset asan
	$(BIN)/ctest --preset asan

# The sanitizer's library must be the first that Python loads. What Python and torch never free is no leak of ours.
ASAN_PY_BUILD := build/asan-py
ASAN_PY_TESTS ?= -m "not slow and not cuda" tests
ASAN_PY_OPTIONS := detect_leaks=0:allocator_may_return_null=1:detect_odr_violation=0:quarantine_size_mb=32

asan-py: setup ## Run the Python tests under AddressSanitizer and UBSan (most of an hour)
	$(BIN)/cmake --preset asan-py
	$(BIN)/cmake --build --preset asan-py
	rm -rf $(ASAN_PY_BUILD)/package
	mkdir -p $(ASAN_PY_BUILD)/package
	cp -r dlf $(ASAN_PY_BUILD)/package
	cp $(ASAN_PY_BUILD)/_C.*.so $(ASAN_PY_BUILD)/_build.py $(ASAN_PY_BUILD)/package/dlf
	PYTHONPATH=$(CURDIR)/$(ASAN_PY_BUILD)/package LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=$(ASAN_PY_OPTIONS) UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 $(BIN)/pytest $(ASAN_PY_TESTS)

# ---- other versions of torch than the pinned one

# The oldest and the newest that cmake/Torch.cmake takes.
TORCH ?= $(shell sed -n 's/^set(DLF_TORCH_[A-Z]* \([0-9.]*\))$$/\1/p' cmake/Torch.cmake)
# The index's build of torch, with CUDA, takes 6 GB, so it outlives the checkout and is shared by all of them.
TORCH_VENVS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dlf/torch-

# Constraints that pip has on this machine do not hold: the version is named.
$(TORCH_VENVS)%/.tools: tools/requirements.py pyproject.toml
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python tools/requirements.py build | sed 's/^torch==.*/torch==$*.*/' >$(@D)/build.txt
	@echo "Installing torch $* and the build tools in $(@D)"
	@PIP_CONSTRAINT=/dev/null $(@D)/bin/python -m pip install --quiet -r $(@D)/build.txt
	@touch $@

torch-check: $(TORCH:%=torch-check-%) ## Build and run every test with the oldest and the newest torch; TORCH=2.12 names another

$(TORCH:%=torch-check-%): torch-check-%: $(TORCH_VENVS)%/.tools
	@echo "Building and installing dlf for torch $*"
	@PATH="$(<D)/bin:$$PATH" $(<D)/bin/python -m pip install --quiet --no-build-isolation \
	  --config-settings=build-dir=build/torch-$* --config-settings=cmake.define.DLF_BUILD_TESTS=ON \
	  --config-settings=cmake.define.DLF_CUDA=OFF '.[plot,test]'
	$(<D)/bin/ctest --test-dir build/torch-$* --output-on-failure --parallel 2
	$(<D)/bin/pytest

# ---- the CUDA build, which needs nvcc but no GPU

CUDA_VENV = $(TORCH_VENVS)$(firstword $(TORCH))
CUDA_BUILD := build/cuda

# What needs a device says that it was skipped, where there is none.
cuda-check: $(CUDA_VENV)/.tools ## Build with CUDA and run the tests on that build
	@echo "Building and installing dlf with CUDA"
	@PATH="$(CUDA_VENV)/bin:$$PATH" $(CUDA_VENV)/bin/python -m pip install --quiet --no-build-isolation \
	  --config-settings=build-dir=$(CUDA_BUILD) --config-settings='build.targets=_C;dlf_cuda_tests' \
	  --config-settings=cmake.define.DLF_BUILD_TESTS=ON --config-settings=cmake.define.DLF_CUDA=ON '.[test]'
	$(CUDA_VENV)/bin/python -P -c "from dlf import _C; assert _C.cuda_version; print('CUDA', _C.cuda_version, _C.cuda_devices())"
	$(CUDA_VENV)/bin/ctest --test-dir $(CUDA_BUILD) --label-regex cuda --output-on-failure
	$(CUDA_VENV)/bin/pytest

# ---- habits

lint: setup $(VENV)/.linters ## Check style and types: ruff, mypy, clang-format, clang-tidy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
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

# ---- to publish

# For the Pythons that pyproject.toml lists and this machine has, or for PYTHONS="python3.12 python3.14".
wheel: ## Build the CPU wheels, in dist
	$(PYTHON) tools/wheel.py build $(PYTHONS)

wheel-check: ## Install each wheel next to its torch in an empty environment, and run dlf demo there
	$(PYTHON) tools/wheel.py check $(PYTHONS)

$(VENV)/.docs: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/requirements.py docs >$(VENV)/docs.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/docs.txt
	@touch $@

docs: $(VENV)/.docs ## Build the documentation's site, in build/site; a link that leads nowhere is an error
	$(BIN)/zensical build --strict
	$(BIN)/python tools/check_site.py build/site

# ---- to begin anew

clean: ## Remove what was built; .venv stays
	rm -rf build dist $(VENV)/.installed
