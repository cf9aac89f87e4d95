# What a person types here. Every target makes the virtual environment it needs, once.
#   make quickstart                    prepare data, train a nano OFA on all eight tasks, evaluate it, write a report
#   make test | make test-full         the tests (fast tier | with real sizes and ahead-of-time compilation)
#   make faults                        kills a small training run 150 times, in every phase, and judges what it comes to (about an hour)
#   make lint                          ruff and mypy
#   make prepare-env                   .venv with Apache Beam and readers of other formats: launch/prepare.py build
#   make serve-env                     .venv-serve, with gradio: launch/predict.py --serve, a page in the browser
#   make tpu-env                       .venv-tpu, with libtpu: compiling for TPU topologies on any x86-64 Linux machine
# PYTHON=/path/to/python3.12 chooses the interpreter (3.11 or 3.12) of a new environment; CONFIG= chooses another quickstart.

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-full faults lint prepare-env serve-env tpu-env

VENV := .venv
SERVE_VENV := .venv-serve
TPU_VENV := .venv-tpu
VQGAN := configs/quickstart_vqgan.py
FRONT := configs/quickstart_front.py
CONFIG ?= configs/quickstart.py
PYTEST_WORKERS ?= 2
# Test processes run beside each other: one thread each for OpenMP and BLAS. XLA keeps its threads, eight fake devices wait for each other.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# Prints an interpreter of 3.12, else 3.11, that really runs: the shims of version managers are on the path even when they do not.
define FIND_PYTHON
version='import sys; print("%d.%d" % sys.version_info[:2])'
if [ -n "$$PYTHON" ]; then
  found=$$("$$PYTHON" -c "$$version" 2>/dev/null) || { echo "PYTHON=$$PYTHON does not run, expected Python 3.11 or 3.12" >&2; exit 1; }
  case "$$found" in
    3.11|3.12) echo "$$PYTHON"; exit 0 ;;
    *) echo "PYTHON=$$PYTHON is Python $$found, expected 3.11 or 3.12" >&2; exit 1 ;;
  esac
fi
for wanted in 3.12 3.11; do
  for python in "python$$wanted" "$$HOME"/.pyenv/versions/"$$wanted"*/bin/"python$$wanted" python3 python; do
    if [ "$$("$$python" -c "$$version" 2>/dev/null)" = "$$wanted" ]; then echo "$$python"; exit 0; fi
  done
done
echo "found neither Python 3.12 nor 3.11, expected one of them on the path or as PYTHON=/path/to/python3.12" >&2
exit 1
endef
export FIND_PYTHON
export PYTHON

# $(1): folder, $(2): requirements, $(3): note that it is done
define make_env
	@if [ -x $(1)/bin/python ]; then python=$(1)/bin/python; else python=""; fi; \
	if [ -n "$$python" ]; then PYTHON=$$python sh -c "$$FIND_PYTHON" >/dev/null || { echo "remove $(1) to have it made again" >&2; exit 1; }; \
	else python=$$(sh -c "$$FIND_PYTHON") || exit 1; echo "making $(1) with $$python"; "$$python" -m venv $(1) || exit 1; fi
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(2)
	@touch $(1)/$(or $(3),.made)
endef

help:
	@sed -n '2,9s/^# \{0,1\}//p' Makefile

# One environment, filled as far as a target needs it.
$(VENV)/.run: requirements.txt
	$(call make_env,$(VENV),requirements.txt,.run)

$(VENV)/.prepare: requirements.txt requirements-stores.txt requirements-prepare.txt
	$(call make_env,$(VENV),requirements-prepare.txt,.prepare)

$(VENV)/.made: requirements.txt requirements-stores.txt requirements-prepare.txt requirements-test.txt
	$(call make_env,$(VENV),requirements-test.txt)

prepare-env: $(VENV)/.prepare
	@echo "$(VENV)/bin/python launch/prepare.py build prepares public data sets and your own files"

$(SERVE_VENV)/.made: requirements.txt requirements-stores.txt requirements-prepare.txt requirements-serve.txt requirements-test.txt requirements-test-serve.txt
	$(call make_env,$(SERVE_VENV),requirements-test-serve.txt)

serve-env: $(SERVE_VENV)/.made
	@echo "$(SERVE_VENV)/bin/python launch/predict.py --checkpoint=RUN --serve shows a run in the browser"

$(TPU_VENV)/.made: requirements.txt requirements-stores.txt requirements-prepare.txt requirements-tpu.txt requirements-test.txt
	$(call make_env,$(TPU_VENV),requirements-tpu.txt -r requirements-test.txt)

tpu-env: $(TPU_VENV)/.made
	@echo "$(TPU_VENV)/bin/python compiles for TPU topologies; set JAX_PLATFORMS=cpu where there is no TPU"

quickstart: $(VENV)/.run
	$(VENV)/bin/python launch/prepare.py quickstart
	$(VENV)/bin/python launch/train.py --config=$(VQGAN)
	$(VENV)/bin/python launch/prepare.py codes --vqgan=runs/quickstart_vqgan --dataset=scenes --image_px=64
	$(VENV)/bin/python launch/train.py --config=$(FRONT)
	$(VENV)/bin/python launch/train.py --config=$(CONFIG)
	$(VENV)/bin/python launch/eval.py --config=$(CONFIG)

lint: $(VENV)/.made
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Eight fake devices, then the tests marked one_device again on one.
test: $(VENV)/.made
	$(TEST_ENV) $(VENV)/bin/python -m pytest -q -n $(PYTEST_WORKERS) --dist=loadfile --no-loadscope-reorder -m "not full"
	$(TEST_ENV) OFA_TEST_DEVICES=1 $(VENV)/bin/python -m pytest -q -m "one_device and not full"

# Those that compile for TPUs need libtpu. The page's tests last: they need gradio, a driver of browsers, and a Chromium on the path.
test-full: $(VENV)/.made $(TPU_VENV)/.made $(SERVE_VENV)/.made
	$(TEST_ENV) $(VENV)/bin/python -m pytest -q -n $(PYTEST_WORKERS) --dist=loadfile --no-loadscope-reorder -m "not serve and not tpu"
	$(TEST_ENV) OFA_TEST_DEVICES=1 $(VENV)/bin/python -m pytest -q -m "one_device and not serve"
	$(TEST_ENV) $(TPU_VENV)/bin/python -m pytest -q -n $(PYTEST_WORKERS) tests/pods/test_compile.py tests/pods/test_grid.py tests/pods/test_real_sizes.py tests/pods/test_cycles.py tests/models/test_attention.py
	$(TEST_ENV) OFA_TEST_DEVICES=1 $(SERVE_VENV)/bin/python -m pytest -q -m serve

# The same command goes on where it was stopped; runs/faults has the journal and everything that the runs printed.
FAULTS ?= tests/e2e/fault_run.py
KILLS ?= 150
faults: $(VENV)/.made
	$(TEST_ENV) $(VENV)/bin/python tests/e2e/fault_suite.py --config=$(FAULTS) --workdir=runs/faults --kills=$(KILLS) --out=docs/results/faults.json
