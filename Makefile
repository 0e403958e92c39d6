# `make` lists what there is. A stamp in .venv marks each level of installation: a second call installs nothing,
# a change of pyproject.toml, setup.py, constraints.txt or csrc/ installs again.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --no-build-isolation -c constraints.txt
PACKAGE := pyproject.toml setup.py constraints.txt $(filter-out csrc/tests/%,$(wildcard csrc/*.cpp csrc/*/*.*))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-oldest test-asan test-tsan test-aarch64 lint types check checkpoint rngtest quality few-steps objectives bench gpu code wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: .venv/.run  ## install what sampling needs and draw samples.png
	$(BIN)/fastdiff sample --out samples.png

check: lint types test  ## lint, types and test

lint: .venv/.dev  ## ruff and clang-format: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu

types: .venv/.dev  ## mypy
	$(BIN)/mypy

test: .venv/.dev  ## pytest
	$(BIN)/pytest

# The oldest diffusers that pyproject.toml names, and what it needs in versions of its time, before those of .venv.
OLDEST = diffusers==0.35.0 transformers==4.56.2 tokenizers==0.22.1 huggingface_hub==0.34.6
test-oldest: build/oldest/.installed  ## test what is for diffusers with the oldest diffusers
	PYTHONPATH=build/oldest $(BIN)/pytest tests/integrations tests/models/test_from_diffusers.py tests/latents/test_load.py

build/oldest/.installed: Makefile .venv/.dev
	rm -rf $(@D)
	$(PIP) install --no-deps --target $(@D) $(OLDEST)
	@touch $@

# Sanitizers must be loaded before Python. They test build/asan and build/tsan, copies of the package with their own
# extension. ThreadSanitizer gives up where addresses are too random: sysctl vm.mmap_rnd_bits=28.
SANITIZED = $(filter-out %_large.py %_standalone.py,$(wildcard tests/ops/test_*.py)) $(addprefix tests/samplers/test_,ddim.py ddpm.py) \
	tests/test_noise.py tests/test_conditioning.py tests/test_serve.py \
	tests/test_noise_loss.py tests/test_forward.py tests/test_sample.py
preload = LD_PRELOAD="$(foreach library,$(1),$(shell $(CXX) -print-file-name=lib$(library).so))"
test-asan: .venv/.dev  ## run the C++ kernels under AddressSanitizer and UBSan
	FASTDIFF_SANITIZE=address,undefined $(BIN)/python setup.py -q build --build-lib build/asan --build-temp build/asan.o
	FASTDIFF_SANITIZE=address,undefined ASAN_OPTIONS=detect_leaks=0 $(call preload,asan ubsan stdc++) \
		$(BIN)/pytest --capture=sys -o pythonpath="build/asan ." $(SANITIZED)
test-tsan: .venv/.dev  ## run the C++ kernels under ThreadSanitizer
	FASTDIFF_SANITIZE=thread $(BIN)/python setup.py -q build --build-lib build/tsan --build-temp build/tsan.o
	FASTDIFF_SANITIZE=thread TSAN_OPTIONS=halt_on_error=1 $(call preload,tsan) \
		$(BIN)/pytest --capture=sys -o pythonpath="build/tsan ." $(SANITIZED)

BITS = $(addprefix csrc/,tests/bits.cpp cpu/scalar.cpp cpu/avx2.cpp cpu/avx512.cpp cpu/operand.cpp) -std=c++17 -O3 \
	-ffp-contract=off -static -Icsrc -I"$$($(BIN)/python -c 'import torch; print(*torch.__path__)')/include"
test-aarch64: .venv/.tools  ## compare the bits of the C++ kernels with those on an emulated aarch64
	@for tool in $(CXX) aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool >/dev/null || { echo "make test-aarch64" \
		"needs $$tool: apt-get install g++ g++-aarch64-linux-gnu qemu-user" >&2; exit 1; }; done
	mkdir -p build/bits
	$(CXX) $(BITS) -o build/bits/native
	aarch64-linux-gnu-g++ $(BITS) -o build/bits/aarch64
	build/bits/native >build/bits/native.txt
	qemu-aarch64 build/bits/aarch64 >build/bits/aarch64.txt
	diff build/bits/native.txt build/bits/aarch64.txt

checkpoint: .venv/.dev  ## train the shipped checkpoint again
	rm -rf runs/checkpoint
	$(BIN)/fastdiff train --data digits --out runs/checkpoint
	$(BIN)/fastdiff export runs/checkpoint fastdiff/checkpoints/digits --dtype float16

rngtest: .venv/.dev  ## feed the random numbers to PractRand or dieharder; takes hours
	@if command -v RNG_test >/dev/null; then tester="RNG_test stdin32 -tlmax 64GB"; \
	elif command -v dieharder >/dev/null; then tester="dieharder -a -g 200"; \
	else echo "make rngtest feeds PractRand's RNG_test or dieharder: install one (apt-get install dieharder)" >&2; exit 1; fi; \
	mkdir -p runs; $(BIN)/python -m tests.rng.stream | $$tester | tee runs/rngtest.txt; ! grep FAIL runs/rngtest.txt

quality: .venv/.dev  ## measure sample quality
	$(BIN)/python -m fastdiff.bench.quality

few-steps: .venv/.dev  ## measure how few evaluations each sampler needs
	$(BIN)/python -m fastdiff.bench.few_steps

objectives: .venv/.dev  ## train and compare objectives, score networks, latents and guidance
	$(BIN)/python -m fastdiff.bench.objectives

bench: .venv/.dev  ## measure speed on one and on two threads
	$(BIN)/fastdiff bench --rounds 15
	$(BIN)/fastdiff bench --rounds 15 --threads 2 --peers fastdiff,avx2,eager,diffusers,limit --out bench/results/speed-2-threads.json

gpu: .venv/.dev  ## build, test and measure the GPU backends on a machine with CUDA
	PYTHON=$(CURDIR)/$(BIN)/python bench/gpu.sh

code: .venv/.dev  ## inspect the code that the GPU kernels compile to; needs no GPU
	$(BIN)/python -m fastdiff.bench.code

wheel: .venv/.dev  ## source distribution and wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:  ## remove what was built; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find fastdiff kernels tests bench -name __pycache__ -prune -exec rm -rf {} +
	rm -f fastdiff/*.so .venv/.run .venv/.dev

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "fastdiff needs Python 3.10 or newer and '$(PYTHON)' is not: name one with make PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -m venv .venv || \
		{ echo "'$(PYTHON) -m venv .venv' failed: install the venv module (python3-venv on Debian and Ubuntu)"; exit 1; } >&2

.venv/.tools: .venv/bin/pip constraints.txt
	$(INSTALL) setuptools ninja numpy torch
	@touch $@

.venv/.run: .venv/.tools $(PACKAGE)
	$(INSTALL) -e .
	@touch $@

.venv/.dev: .venv/.tools $(PACKAGE)
	$(INSTALL) -e '.[dev]'
	@touch $@ .venv/.run
