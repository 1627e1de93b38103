# make demo   from a fresh clone to generated text: system packages, .venv, build, install, `quire demo`
# make test   the same set-up plus test tools, then the C++ tests (ctest) and the Python tests (pytest)
# make sanitize   the C++ tests again under the address, undefined-behaviour and thread sanitizers
# make kernels   what nvcc makes of the CUDA kernels: registers, spills, instructions (skipped where there is no nvcc)
# make lint   formatting and types        make bench   the C++ benchmarks        make clean   forget the build
# Each step leaves a stamp, so a second run does only what changed. One build tree, build/dev, serves wheel and tests.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
BUILD := build/dev
JOBS ?= $(shell nproc)
# The tests of the engine on a GPU run on its emulation where there is none.
TEST_DEVICE ?= $(if $(shell nvidia-smi -L 2>/dev/null | grep GPU),cuda,simt)
# cmake and ninja come with .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)

SOURCES := CMakeLists.txt pyproject.toml README.md \
  $(shell find cmake cpp kernels python -type f -not -path '*/__pycache__/*' 2>/dev/null | grep -v ' ')
TEST_SOURCES := $(shell find tests -type f -not -path '*/__pycache__/*' | grep -v ' ')
CXX_FILES = $(shell git ls-files '*.h' '*.cpp' '*.inl' '*.cu' '*.cuh')

.PHONY: demo test sanitize kernels lint bench wheel clean
demo: $(VENV)/.installed
	quire demo

test: PIP_BUILD += --config-settings=cmake.define.QUIRE_BUILD_TESTS=ON --config-settings=cmake.define.QUIRE_WERROR=ON
test: $(VENV)/.ready-dev $(VENV)/.installed
	cmake -S . -B $(BUILD) -DQUIRE_BUILD_TESTS=ON -DQUIRE_WERROR=ON >build/configure.log || { cat build/configure.log; exit 1; }
	cmake --build $(BUILD) -j $(JOBS)
	failed=0; ctest --test-dir $(BUILD) -j $(JOBS) --output-on-failure || failed=1; \
	  PYTHONPATH=$(CURDIR)/$(BUILD)/testing QUIRE_PLUGIN_PATH=$(CURDIR)/$(BUILD)/testing \
	  QUIRE_TEST_DEVICE=$(TEST_DEVICE) python -m pytest || failed=1; exit $$failed

sanitize: build/.sanitize-address build/.sanitize-thread

# The thread sanitizer runs what uses threads: the pool, whole engines, and kernels, whose missing barriers it finds.
build/.sanitize-address: SANITIZERS := address,undefined
# The longest programs run every other case, those that the commit before this one left out: SHARDS=1 runs all.
SHARDS ?= 2
SHARD := $(shell echo $$(($$(git rev-list --count HEAD 2>/dev/null || echo 0) % $(SHARDS))))
build/.sanitize-address: SHARDED := test_engine_simt;test_engine_simt_features;test_kernels_simt
build/.sanitize-thread: SHARDED := test_kernels_simt
build/.sanitize-address: SANITIZED := base kernels device tensor comm model engine api simt kernels_simt engine_simt device_simt
build/.sanitize-thread: SANITIZERS := thread
build/.sanitize-thread: SANITIZED := base comm api kernels_simt
# Guesses bring no thread of their own, and one pooling model stands for all.
build/.sanitize-thread: export GTEST_FILTER := -Speculation.*:PoolingInvariance.*/1:PoolingInvariance.*/2:PoolingInvariance.*/3:PoolingInvariance.*/4:PoolingInvariance.*/5:PoolingInvariance.*/6:PoolingInvariance.*/7
build/.sanitize-%: $(SOURCES) $(TEST_SOURCES) | $(VENV)/.ready-dev
	mkdir -p build
	cmake -G Ninja -S . -B build/$* -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1 \
	  -DQUIRE_BUILD_TESTS=ON -DQUIRE_SANITIZE=$(SANITIZERS) -DQUIRE_TEST_SHARD=$(SHARD)/$(SHARDS) \
	  "-DQUIRE_SHARDED_TESTS=$(SHARDED)" >build/$*.log || { cat build/$*.log; exit 1; }
	cmake --build build/$* -j $(JOBS) --target $(SANITIZED:%=test_%)
	ctest --test-dir build/$* -j $(JOBS) --output-on-failure -R '^test_($(subst $(empty) $(empty),|,$(SANITIZED)))(_features)?$$'
	touch $@

kernels: $(VENV)/.ready-dev
	if ! command -v nvcc >/dev/null; then echo "no nvcc on PATH: the CUDA kernels are not compiled"; exit 0; fi; \
	python -m pip install --quiet --disable-pip-version-check $$(python tools/requirements.py kernels) && \
	  python tools/kernel_predictions.py --check && python tools/kernel_report.py --check --jobs $(JOBS) >build/kernels.log

lint: $(VENV)/.ready-dev
	python tests/layers.py
	@clang-format --dry-run --Werror $(CXX_FILES)
	ruff check .
	ruff format --check .
	mypy

bench: $(VENV)/.ready-dev $(VENV)/.installed
	cmake -S . -B $(BUILD) -DQUIRE_BUILD_BENCH=ON
	cmake --build $(BUILD) -j $(JOBS)
	for program in $(BUILD)/bench/bench_*; do "$$program"; done

wheel: build/.wheel

clean:
	rm -rf build dist

# The development environment holds all that the demo needs, so either stamp will do for building.
$(VENV)/.ready-dev: pyproject.toml constraints.txt tools/setup.sh tools/requirements.py
	tools/setup.sh dev
	touch $@ $(VENV)/.ready-demo

$(VENV)/.ready-demo: pyproject.toml tools/setup.sh tools/requirements.py
	tools/setup.sh demo
	touch $@

build/.wheel: $(SOURCES) | $(VENV)/.ready-demo
	mkdir -p build/wheel && rm -f build/wheel/*.whl
	python -m pip wheel -v --no-deps --no-build-isolation --disable-pip-version-check \
	  --config-settings=build-dir=$(BUILD) $(PIP_BUILD) -w build/wheel .
	touch $@

$(VENV)/.installed: build/.wheel
	python -m pip install --quiet --no-deps --force-reinstall --disable-pip-version-check build/wheel/*.whl
	touch $@
