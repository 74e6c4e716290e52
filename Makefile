# make bench   measure the kernels against what people use today
# make test    prove them right
# Both set everything up themselves in .venv. Needed beforehand: Python >= 3.10, a C++20 compiler.
#
#   PYTHON=python3.12   the interpreter the environment is made with
#   CUDA=on|off|auto    build libfastops_cuda; on brings nvcc from PyPI where there is none. auto:
#                       `make test` builds it where nvcc is found, `make bench` only where a GPU is
#   BENCH="--op softmax --shapes llm"      arguments of `python -m bench`
#   TEST="tests/softmax -k tuple"          arguments of pytest instead of the whole suite
#   GPU="--part benchmarks --minutes 9"    arguments of `python -m bench.gpu`, which `make gpu` runs
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: bench test test-python test-isa test-one-isa test-native test-simt test-sanitize test-aarch64 test-wheel \
        conformance record-conformance mutants sass gpu model tables build build-bench lint format wheel clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
CUDA ?= auto
BENCH ?=
TEST ?=
GPU ?=
MODEL ?=
FAMILIES := tests/softmax tests/nm tests/merge tests/attention
JOBS := $(shell nproc 2>/dev/null || echo 2)
export MAX_JOBS ?= $(JOBS)
CALLERS_PATH := $(PATH)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
HAS_NVCC := $(shell command -v "$${CUDACXX:-nvcc}" || ls /usr/local/cuda/bin/nvcc 2>/dev/null)

# ---- the two commands -----------------------------------------------------------------------
bench: build-bench
	$(PY) -m bench $(BENCH)

ifeq ($(strip $(TEST)),)
test: build
	@$(MAKE) --no-print-directory test-native test-python test-isa test-simt
else
test: build
	$(PY) -m pytest $(TEST)
endif

# ---- environment: one stamp per requirements file --------------------------------------------
# Modules are compiled as they are imported, which most never are: half the time of installing torch.
$(PY):
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "fastops needs Python >= 3.10"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: requirements/%.txt requirements/build.txt | $(PY)
	$(PY) -m pip install -q --no-compile -r $<
	@touch $@

ifeq ($(CUDA)-$(strip $(HAS_NVCC)),on-)
CUDA_DEPS := $(VENV)/.cuda
CUDA_ENV := CUDACXX="$$($(PY) cmake/find_nvcc.py)"
endif
# The CUDA kernels also run on the host, given NVIDIA's headers, which come with any nvcc.
SIMT := $(if $(filter off,$(CUDA)),,$(if $(strip $(HAS_NVCC))$(CUDA_DEPS),on))

# ---- build: CMake looks for what changed, into fastops/_lib ------------------------------------
BUILD = build/cmake-$$($(PY) -c 'import sys; print(sys.implementation.cache_tag)')
build: $(VENV)/.test $(CUDA_DEPS)
	$(CUDA_ENV) FASTOPS_CUDA=$(CUDA) \
	  CMAKE_ARGS="-DFASTOPS_NATIVE_TESTS=ON $(if $(SIMT),-DFASTOPS_SIMT=ON)" \
	  $(PY) setup.py -q build_ext --inplace

build-bench: $(VENV)/.bench $(CUDA_DEPS)
	$(CUDA_ENV) FASTOPS_CUDA=$(if $(filter auto,$(CUDA)),$(if $(HAS_GPU),auto,off),$(CUDA)) \
	  $(PY) setup.py -q build_ext --inplace

# ---- tests -----------------------------------------------------------------------------------
test-native: build
	$(BUILD)/fastops_native_tests

test-python: sass
	FASTOPS_CUDA=$(CUDA) $(PY) -m pytest -n $(JOBS) tests --ignore tests/simt

# The instructions of each CUDA kernel, for tests/build/test_sass.py; read anew where one changed.
sass: build $(if $(filter on,$(CUDA)),$(VENV)/.disassembler)
	$(PY) cmake/sass_report.py fastops/_lib/libfastops_cuda.so

# The kernels again, on each instruction set this machine would not choose by itself.
define OTHER_ISAS
from fastops._lib import _native
print(*(n for n, built, here in _native.cpu_isas() if built and here and n != _native.active_isa()))
endef
export OTHER_ISAS
test-isa: build
	@for isa in $$($(PY) -c "$$OTHER_ISAS"); do \
	  echo "== FASTOPS_CPU_ISA=$$isa"; \
	  FASTOPS_CPU_ISA=$$isa $(PY) -m pytest -n $(JOBS) -m "isa and not large" $(FAMILIES) || exit 1; \
	done

# On one instruction set, ISA=avx512|avx2|portable; says so where the machine lacks it.
define HAS_ISA
import sys
from fastops._lib import _native
sys.exit((sys.argv[1], True, True) not in _native.cpu_isas())
endef
export HAS_ISA
test-one-isa: build
	@if $(PY) -c "$$HAS_ISA" $(ISA); then \
	  FASTOPS_CPU_ISA=$(ISA) $(PY) -m pytest -n $(JOBS) -m "isa and not large" $(FAMILIES); \
	else \
	  echo "test-one-isa: left out, this machine has no $(ISA)"; \
	fi

# The CUDA kernels, on the host (docs/simt.md): what is about them, then the families' ordinary tests,
# then whether these have run every kernel, in every order.
SIMT_COVERAGE := $(CURDIR)/build/simt-coverage.txt
SIMT_ENV := CI=true FASTOPS_SIMT=1 FASTOPS_REQUIRE_SIMT=1 FASTOPS_SIMT_COVERAGE=$(SIMT_COVERAGE)
test-simt: build
ifdef SIMT
	@$(MAKE) --no-print-directory conformance mutants
	@rm -f $(SIMT_COVERAGE)
	$(SIMT_ENV) $(PY) -m pytest -n $(JOBS) tests/simt
	$(SIMT_ENV) $(PY) -m pytest -n $(JOBS) -m "isa and not large" $(FAMILIES)
	$(PY) -m tests.simt.coverage $(SIMT_COVERAGE)
else
	@echo "test-simt: left out, no CUDA toolkit here (make CUDA=on test brings one)"
endif

# One-instruction kernels (tests/simt/conformance) as a program for a GPU, and what one leaves kept as
# tests/simt/golden.json, which test-simt replays on the emulator.
conformance: build
	cmake --build $(BUILD) --target fastops_conformance

# The kernels with each synchronisation behind a switch, for tests/simt/test_mutants.py.
mutants: build
	cmake --build $(BUILD) --target simt_mutants

record-conformance: conformance
	$(PY) -m tests.simt.record $(BUILD)/fastops_conformance

# What needs a GPU: proof, sanitizers, benchmarks and report, with the caller's own Python and torch,
# no environment and no network (docs/benchmarks.md).
gpu: export PATH := $(CALLERS_PATH)
gpu:
	$(PYTHON) -m bench.gpu $(GPU)

# What each CUDA kernel could reach on GPUs that need not be here.
model: build
	$(PY) -m bench.model $(MODEL)

# The tables of results in README and docs, from bench/results; a test checks them.
tables: $(VENV)/.bench
	$(PY) -m bench.tables

# AddressSanitizer and UBSan over the native tests, and over emulated CUDA kernels.
test-sanitize: $(VENV)/.build $(CUDA_DEPS)
	$(CUDA_ENV) cmake -S . -B build/sanitize -G Ninja -DFASTOPS_NATIVE_TESTS=ON -DFASTOPS_SANITIZE=ON \
	  -DFASTOPS_CUDA=off -DFASTOPS_SIMT=$(if $(SIMT),ON,OFF) >/dev/null
	cmake --build build/sanitize
	build/sanitize/fastops_native_tests
ifdef SIMT
	bash tests/simt/sanitize.sh build/sanitize/csrc/simt/simt_sanitize
endif

# The portable kernels on another architecture (Debian: g++-aarch64-linux-gnu, qemu-user).
test-aarch64: $(VENV)/.build
	cmake -S . -B build/aarch64 -G Ninja -DFASTOPS_NATIVE_TESTS=ON \
	  -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake >/dev/null
	cmake --build build/aarch64
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/fastops_native_tests

wheel: $(VENV)/.build
	$(CUDA_ENV) FASTOPS_CUDA=$(CUDA) $(PY) -m pip wheel -q --no-build-isolation --no-deps -w dist .

# A wheel, in a fresh environment, and on every other Python >= 3.10 at hand.
test-wheel: wheel
	bash tests/build/try_wheel.sh dist/fastops-*.whl

# ---- style -----------------------------------------------------------------------------------
CPP_FILES = $(shell git ls-files -co --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh' '*.inl')
lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/.lint
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .
	@$(BIN)/clang-format -i $(CPP_FILES)

clean:
	rm -rf build dist fastops/_lib *.egg-info $(VENV)
