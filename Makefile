# `make demo` and `make test` work on a fresh checkout: they need Python 3.11 and g++, and make .venv themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)

# Of tests and compilers at a time.
JOBS := $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))

VENV := .venv
BIN := $(VENV)/bin
BUILD := build/release
# Builds run the CUDA kernels on an emulated device, whatever torch is installed; cuda-check builds the real backend.
DLF_CUDA ?= OFF
# ON compiles the host's files a dozen at a time: a whole build takes less time, and one after an edit more.
UNITY ?= OFF
# OpenMP's threads spin while they wait, in the way of other tests. One process runs a file's tests, which share fixtures.
IN_COMPANY := OMP_WAIT_POLICY=passive
PYTEST_OPTIONS := --numprocesses $(JOBS) --dist loadfile
CTEST_OPTIONS := --output-on-failure --parallel $(JOBS)
SOURCES := CMakeLists.txt pyproject.toml $(shell find cpp cmake dlf tests/cpp tests/cuda_emulation -type f -not -name '*.pyc')
CXX_FILES = $(shell git ls-files '*.cc' '*.h' '*.cu')

.PHONY: help setup demo test test-py test-real test-clients test-cluster test-cpp test-cpp-long test-emulated same-bits asan asan-long asan-py tsan torch-check cuda-kernels cuda-check lint analyze format stubs stubs-check wheel wheel-check docs clean
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

# A plain install, not an editable one, so that the tests run the package as a user gets it. The build folder is kept, so
# an edit rebuilds only what it affects; the C++ tests are built there too.
$(VENV)/.installed: $(VENV)/.tools $(SOURCES)
	@echo "Building and installing dlf (a minute or two the first time)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation \
	  --config-settings=build-dir=$(BUILD) --config-settings=cmake.define.DLF_BUILD_TESTS=ON \
	  --config-settings=cmake.define.DLF_CUDA=$(DLF_CUDA) --config-settings=cmake.define.CMAKE_UNITY_BUILD=$(UNITY) \
	  '.[plot,test]'
	@touch $@

$(VENV)/.linters: $(VENV)/.tools pyproject.toml
	$(BIN)/python tools/requirements.py dev >$(VENV)/dev.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/dev.txt
	@touch $@

setup: $(VENV)/.installed ## Make .venv, install torch and the build tools, build and install dlf

# ---- use

demo: setup ## Fuse the models that ship with the package
	$(BIN)/dlf demo

test: test-cpp test-py test-emulated ## Run all tests but the slow ones (pytest -m slow)

test-py: setup ## Run the Python tests
	$(IN_COMPANY) $(BIN)/pytest $(PYTEST_OPTIONS)

test-real: setup ## Compare models with real weights with llama.cpp, and read published chat templates; downloads 370 MB
	$(IN_COMPANY) $(BIN)/pytest -m real tests/test_real.py tests/test_real_templates.py

test-clients: setup ## Test the server with litellm and langchain, which are installed for it; 300 MB
	@$(BIN)/python tools/requirements.py clients >$(VENV)/clients.txt
	@$(BIN)/python -m pip install --quiet -r $(VENV)/clients.txt
	$(IN_COMPANY) $(BIN)/pytest tests/server/test_server_clients.py

test-cluster: setup ## Test batches and servers on Ray clusters of this machine, also the slow tests; installs 700 MB
	@$(BIN)/python tools/requirements.py ray | grep -v '^dlf' >$(VENV)/ray.txt
	@$(BIN)/python -m pip install --quiet -r $(VENV)/ray.txt
	$(IN_COMPANY) $(BIN)/pytest -m "slow or not slow" tests/cluster

test-cpp: setup ## Run the C++ tests
	$(IN_COMPANY) $(BIN)/ctest --test-dir $(BUILD) $(CTEST_OPTIONS) --label-exclude long

test-cpp-long: setup ## Run those of them that take minutes each
	$(IN_COMPANY) $(BIN)/ctest --test-dir $(BUILD) $(CTEST_OPTIONS) --label-regex long

# Runs the CUDA kernels and the engine around them on the host, without a GPU. Threads, streams and steps of a graph take
# turns at random, with a fixed seed, which finds missing waits.
EMULATED_TESTS ?= cuda and not slow

test-emulated: setup ## Run the Python tests of CUDA on an emulated device
	PYTHONPATH=$(BUILD)/emulated DLF_REQUIRE_CUDA=1 DLF_EMULATION_ORDER=1 DLF_CUDA_EARLY=1 \
	  $(IN_COMPANY) $(BIN)/pytest $(PYTEST_OPTIONS) -m "$(EMULATED_TESTS)"

# A change of structure must change no bit: runs the cases of tests/bit_cases.py in the build of another revision and in this one.
SAME_BITS := $(CURDIR)/build/same-bits
BASE ?= main

define compare_bits # the packages' PYTHONPATHs, and options
	PYTHONPATH=$(1) $(BIN)/python tests/same_bits.py record $(SAME_BITS)/base.json $(3)
	PYTHONPATH=$(2) $(BIN)/python tests/same_bits.py record $(SAME_BITS)/here.json $(3)
	$(BIN)/python tests/same_bits.py compare $(SAME_BITS)/base.json $(SAME_BITS)/here.json
endef

same-bits: setup ## Compare results with those of the revision BASE=..., to the bit
	rm -rf $(SAME_BITS)/base $(SAME_BITS)/site
	git worktree prune
	git worktree add --quiet --detach $(SAME_BITS)/base $(BASE)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(SAME_BITS)/site \
	  --config-settings=build-dir=$(SAME_BITS)/build --config-settings='build.targets=_C;dlf_emulated' \
	  --config-settings=cmake.define.DLF_BUILD_TESTS=ON --config-settings=cmake.define.DLF_CUDA=OFF $(SAME_BITS)/base
	$(call compare_bits,$(SAME_BITS)/site,,--threads 2)
	$(call compare_bits,$(SAME_BITS)/site,,--threads 1)
	$(call compare_bits,$(SAME_BITS)/build/emulated,$(BUILD)/emulated,--device cuda)

.PHONY: asan-build
asan-build: $(VENV)/.tools
	$(BIN)/cmake --preset asan
	$(BIN)/cmake --build --preset asan

asan: asan-build ## Run the C++ tests under AddressSanitizer and UBSan
	$(BIN)/ctest --preset asan

asan-long: asan-build ## Run those of them that take minutes each
	$(BIN)/ctest --preset asan-long

# Python must load the sanitizer's library first. Leaks are not detected, since Python and torch leave memory unfreed at exit.
ASAN_PY_BUILD := build/asan-py
ASAN_PY_TESTS ?= -m "not slow and not cuda and not real" tests
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

# The programs of the step loop, and the driver under load. Python, torch and OpenMP are not instrumented: tests/tsan.txt
# leaves out what is theirs alone. Python's lock is seen, since its mutex is a function that the sanitizer intercepts.
TSAN_BUILD := build/tsan
TSAN_PY_TESTS ?= tests/test_driver.py

tsan: setup ## Run the step loop and its driver under ThreadSanitizer
	$(BIN)/cmake --preset tsan
	$(BIN)/cmake --build --preset tsan
	$(BIN)/ctest --preset tsan
	rm -rf $(TSAN_BUILD)/package
	mkdir -p $(TSAN_BUILD)/package
	cp -r dlf $(TSAN_BUILD)/package
	cp $(TSAN_BUILD)/_C.*.so $(TSAN_BUILD)/_build.py $(TSAN_BUILD)/package/dlf
	PYTHONPATH=$(CURDIR)/$(TSAN_BUILD)/package LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)" $(IN_COMPANY) \
	  TSAN_OPTIONS=die_after_fork=0:suppressions=$(CURDIR)/tests/tsan.txt $(BIN)/pytest $(TSAN_PY_TESTS)

# ---- versions of torch other than the pinned one

# The oldest and the newest in cmake/Torch.cmake.
TORCH ?= $(shell sed -n 's/^set(DLF_TORCH_[A-Z]* \([0-9.]*\))$$/\1/p' cmake/Torch.cmake)
# A build of torch with CUDA takes 6 GB, so it lies outside of the checkout, where all checkouts share it.
TORCH_VENVS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dlf/torch-

# The version is fixed here, so the machine's constraints of pip must not apply.
$(TORCH_VENVS)%/.tools: tools/requirements.py pyproject.toml
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python tools/requirements.py build | sed 's/^torch==.*/torch==$*.*/' >$(@D)/build.txt
	@echo "Installing torch $* and the build tools in $(@D)"
	@PIP_CONSTRAINT=/dev/null $(@D)/bin/python -m pip install --quiet -r $(@D)/build.txt
	@touch $@

torch-check: $(TORCH:%=torch-check-%) ## Build and run every test with the oldest and the newest torch; TORCH=2.12 names another

$(TORCH:%=torch-check-%): torch-check-%: $(TORCH_VENVS)%/.tools
	@echo "Building and installing dlf for torch $*"
	@PATH="$(<D)/bin:$$PATH" PIP_CONSTRAINT=/dev/null $(<D)/bin/python -m pip install --quiet --no-build-isolation \
	  --config-settings=build-dir=build/torch-$* --config-settings=cmake.define.DLF_BUILD_TESTS=ON \
	  --config-settings=cmake.define.DLF_CUDA=OFF '.[plot,test]'
	$(IN_COMPANY) $(<D)/bin/ctest --test-dir build/torch-$* $(CTEST_OPTIONS)
	$(IN_COMPANY) $(<D)/bin/pytest $(PYTEST_OPTIONS)

# ---- the CUDA build, which needs nvcc but no GPU

# The kernels include no torch header. Only the device's half is compiled, since g++ compiles the host's for the emulator, and
# ptxas, which also reads inline assembly, does not optimise. cuda-check compiles all.
cuda-kernels: ## Compile the CUDA kernels alone, for one architecture
	@echo nvcc; ls cpp/*/cuda/*.cu | xargs -n 1 -P $(JOBS) nvcc -cubin -o /dev/null -arch=sm_90 -Xptxas=-O0 -std=c++20 -Icpp \
	  -Werror=all-warnings

CUDA_VENV = $(TORCH_VENVS)$(firstword $(TORCH))
CUDA_BUILD := build/cuda

# Without a device, the tests that need one are skipped.
cuda-check: $(CUDA_VENV)/.tools ## Build with CUDA and run the tests on that build
	@echo "Building and installing dlf with CUDA"
	@PATH="$(CUDA_VENV)/bin:$$PATH" $(CUDA_VENV)/bin/python -m pip install --quiet --no-build-isolation \
	  --config-settings=build-dir=$(CUDA_BUILD) --config-settings='build.targets=_C;dlf_cuda_tests' \
	  --config-settings=cmake.define.DLF_BUILD_TESTS=ON --config-settings=cmake.define.DLF_CUDA=ON '.[test]'
	$(CUDA_VENV)/bin/python -P -c "from dlf import _C; assert _C.cuda_version; print('CUDA', _C.cuda_version, _C.cuda_devices())"
	$(CUDA_VENV)/bin/ctest --test-dir $(CUDA_BUILD) --label-regex cuda --output-on-failure
	$(CUDA_VENV)/bin/pytest

# ---- habits

# clang-tidy reads a dozen files at a time, since torch's headers take most of the time of one. It skips kernels, which are
# compiled one by one, and support/cuda/runtime.cc, which needs CUDA's headers.
TIDY = $(BIN)/cmake --preset lint && $(BIN)/run-clang-tidy.py -clang-tidy-binary $(BIN)/clang-tidy -p build/lint -quiet -j $(JOBS) \
  '/Unity/|^$(CURDIR)/cpp/.*(?<!_kernel)\.cc$$'

# Without the analyzer, clang reports what libstdc++ itself calls within templates.
lint: setup $(VENV)/.linters ## Check style and types: ruff, mypy, clang-format, clang-tidy without its analyzer
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@echo clang-format; $(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	@echo clang-tidy; $(TIDY) -checks='-clang-analyzer-*' -extra-arg=-Wno-deprecated-declarations

# The analyzer follows paths through functions, and doubles the time.
analyze: $(VENV)/.linters ## Run clang-tidy with its analyzer
	$(TIDY)

format: $(VENV)/.linters ## Format every source file in place
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

stubs: setup $(VENV)/.linters ## Regenerate dlf/_C.pyi from the extension
	$(BIN)/python tools/stubs.py

stubs-check: setup $(VENV)/.linters ## Fail if dlf/_C.pyi is out of date
	$(BIN)/python tools/stubs.py --check

# ---- to publish

# Builds for the Pythons that pyproject.toml lists and this machine has, or for PYTHONS="python3.12 python3.14".
wheel: ## Build the CPU wheels in dist
	$(PYTHON) tools/wheel.py build $(PYTHONS)

wheel-check: ## Install each wheel next to its torch in an empty environment, and run dlf demo there
	$(PYTHON) tools/wheel.py check $(PYTHONS)

$(VENV)/.docs: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/requirements.py docs >$(VENV)/docs.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/docs.txt
	@touch $@

# zensical reads every folder below its own, and hangs on those of builds, so it gets a copy of what git tracks.
DOCS_COPY := build/docs

docs: $(VENV)/.docs ## Build the documentation as a site in build/site; a broken link is an error
	rm -rf $(DOCS_COPY) build/site
	mkdir -p $(DOCS_COPY)
	git ls-files -z | xargs -0 cp --parents -t $(DOCS_COPY)
	cd $(DOCS_COPY) && $(abspath $(BIN))/zensical build --strict
	mv $(DOCS_COPY)/build/site build/site
	$(BIN)/python tools/check_site.py build/site

# ---- clean

clean: ## Remove the builds; .venv stays
	rm -rf build dist $(VENV)/.installed
