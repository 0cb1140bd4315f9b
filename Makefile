# Two commands do everything: `make serve` and `make test`. Both install what is missing, and may be run again at any time.

PYTHON ?= python3
VENV ?= .venv
# auto: a vLLM that $(PYTHON) already has, else one for NVIDIA GPUs where there is a driver, else one for CPUs.
ENGINE ?= auto
# What `make serve` serves. MODEL=<folder or name on the Hub> takes another model, PATCH= takes none.
MODEL ?= $(DEMO_MODEL)
PATCH ?= patches/smollm2-135m-instruct-noloop.yaml
# What the benchmarks and `make evidence` measure: an edit of one neuron.
EXAMPLE := patches/smollm2-135m-instruct-lists.yaml
PORT ?= 8000
# Where the server listens. On this machine alone it takes swaps without a key: docs/serve.md.
HOST ?= 127.0.0.1
# Test files that run side by side. Each may start a vLLM of its own, which wants about one core and 2 GiB.
JOBS ?= 2
# Which of vLLM's libraries for x86 CPUs the tests take: avx2, avx512, or this machine's own. See docs/testing.md.
LIBRARY ?=
# What `make compat` tests.
VERSIONS ?= 0.33.0 0.31.0 0.30.0
# The small protocol of `vllm-surgery evaluate`, cut to what two cores do in a quarter of an hour.
EVIDENCE_OPTIONS := --shams 3 --seeds 2 --max-tokens 256 --concurrency 24 --exact \
	$(addprefix --probes ,paper lists:held-out healthy short skills text)
# A search that two quiet cores do in about two hours. Counted in answers, so that the same search comes out wherever it
# runs; its answers are short, those of the choice and of the trial long.
SEARCH_OPTIONS := --budget 800g --first 24 --seeds 0 --max-tokens 192 --singles 32 --sets 24 \
	--choice-first 16 --choice-tokens 256 --held-out-first 64 --held-out-seeds 0 --shams 1 \
	--dtype float32 --max-model-len 2048 --kv-cache-memory-bytes 1073741824
# More options of `vllm serve`.
ARGS ?=

# The real models that `make trial` and `make search` take by name, as in MODEL=qwen2. Gemma's terms have to be accepted:
# MODEL=gemma3 ACCEPT_TERMS=yes.
FAMILY = $(or $(filter smollm2 qwen2 gemma3,$(MODEL)),smollm2)
FOLDER_smollm2 = $(DEMO_MODEL)
FOLDER_qwen2 := $(VENV)/share/qwen2.5-coder-0.5b-instruct
FOLDER_gemma3 := $(VENV)/share/gemma-3-270m
# A model that wasn't tuned for chats goes on with texts.
FORM_gemma3 := --form completion
PATCH_smollm2 := --patch patches/smollm2-135m-instruct-noloop.yaml
ACCEPT_TERMS ?=

DEMO_MODEL := $(VENV)/share/smollm2-135m-instruct
BIN := $(VENV)/bin
# The demo model's figures are float32's. Compiling would cost minutes and gain nothing on a model of this size.
DEMO_OPTIONS := --served-model-name smollm2 --dtype float32 --max-model-len 4096 --enforce-eager --no-enable-chunked-prefill \
	--kv-cache-memory-bytes 1073741824

.PHONY: help serve demo test check soak docs lint pytest system-packages monitoring bench bench-swaps bench-slots bench-candidates bench-watching compat containers \
	rescue-trial trial evidence search schema matrix registry install demo-model family-model clean

help:
	@echo "make serve      serve the demo model with its patch on port $(PORT)"
	@echo "make demo       the same under Prometheus, with traffic and a swap after two minutes"
	@echo "make test       lint, types and all tests"
	@echo "make check      lint, types and the tests that need no engine, in a minute or two"
	@echo "make soak       a server under streams, swaps and hostile bodies for an hour"
	@echo "make docs       build the documentation site in $(VENV)/site"
	@echo "make bench      what a patch costs while a model is loaded (bench-swaps: a swap; bench-slots: a patch per request;"
	@echo "                bench-candidates: a search's candidates; bench-watching: the detectors)"
	@echo "make matrix     write docs/families.md again, which the tests hold against what they find"
	@echo "make registry   write docs/registry.md again: which of vLLM's architectures are known"
	@echo "make containers build the image for CPUs with Debian's podman and run it as a cluster would (root)"
	@echo "make rescue-trial   what rescues do to the demo model's answers, beside its patch and a repetition penalty"
	@echo "make trial      what a patch, a penalty and rescues do to one of three real models (MODEL=smollm2, qwen2 or gemma3)"
	@echo "make evidence   measure again what the example of one neuron does, and what it costs; of one of the three by name"
	@echo "                (MODEL=qwen2) the trial and the paper's table"
	@echo "make search     search one of the three for a patch, and judge it on held-out prompts (hours; goes on where it was)"

serve: demo-model
	@echo "[serve] http://localhost:$(PORT)/v1, model '$(MODEL)', patch '$(PATCH)'; ready at 'Application startup complete.'"
	$(BIN)/vllm-surgery serve $(MODEL) $(addprefix --patch ,$(PATCH)) --host $(HOST) --port $(PORT) \
		$(if $(filter $(DEMO_MODEL),$(MODEL)),$(DEMO_OPTIONS)) $(ARGS)

demo: demo-model system-packages
	$(BIN)/python -m deploy.demo --model $(DEMO_MODEL) --patch $(PATCH) $(ARGS)

test: EXTRAS = --extra test
test: demo-model lint pytest

check: EXTRAS = --extra test
check: demo-model lint
	VLLM_SURGERY_DEMO_MODEL=$(DEMO_MODEL) $(BIN)/python -m pytest -m "not engine and not slow" --numprocesses $(JOBS) $(ARGS)

# A server under streams, swaps and hostile bodies for an hour; `make test` has two minutes of it.
soak: EXTRAS = --extra test
soak: demo-model
	VLLM_SURGERY_SOAK_SECONDS=3600 $(BIN)/python -m pytest tests/engine/test_soak.py $(ARGS)

docs: EXTRAS = --extra docs
docs: install
	$(BIN)/mkdocs build --strict --site-dir $(abspath $(VENV))/site

lint: EXTRAS = --extra test
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: demo-model system-packages
	VLLM_SURGERY_DEMO_MODEL=$(DEMO_MODEL) VLLM_SURGERY_TEST_LIBRARY=$(LIBRARY) $(BIN)/python -m pytest \
		--numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Prometheus and Chromium for the tests that need them, where this may be done; never fails.
system-packages:
	@$(PYTHON) deploy/system_packages.py

monitoring: install
	$(BIN)/python -m deploy.monitoring

bench bench-swaps evidence: PATCH = $(EXAMPLE)

bench: EXTRAS = --extra test
bench: demo-model
	$(BIN)/python -m tests.benchmarks.load_cost --model $(DEMO_MODEL) --patch $(PATCH) $(ARGS)

bench-swaps: EXTRAS = --extra test
bench-swaps: demo-model
	$(BIN)/python -m tests.benchmarks.swap_cost --model $(DEMO_MODEL) --patch $(PATCH) $(ARGS)

bench-slots: EXTRAS = --extra test
bench-slots: PATCH = patches/smollm2-135m-instruct-noloop.yaml
bench-slots: demo-model
	$(BIN)/python -m tests.benchmarks.slot_cost --model $(DEMO_MODEL) --patch $(PATCH) $(ARGS)

bench-candidates: EXTRAS = --extra test
bench-candidates: PATCH = patches/smollm2-135m-instruct-noloop.yaml
bench-candidates: demo-model
	$(BIN)/python -m tests.benchmarks.candidate_cost --model $(DEMO_MODEL) --patch $(PATCH) $(ARGS)

bench-watching: EXTRAS = --extra test
bench-watching: demo-model
	$(BIN)/python -m tests.benchmarks.watching_cost --model $(DEMO_MODEL) $(ARGS)

rescue-trial: EXTRAS = --extra test
rescue-trial: PATCH = patches/smollm2-135m-instruct-noloop.yaml
rescue-trial: demo-model
	$(BIN)/python -m tests.benchmarks.rescue_trial --model $(DEMO_MODEL) --patch $(PATCH) --out $(VENV)/rescue-trial $(ARGS)

# The image for CPUs, built and run as a cluster would. Wants root, buildah, podman, podman-compose, runc, conmon and mmdebstrap.
containers: demo-model
	$(BIN)/python -m deploy.containers --model $(DEMO_MODEL) $(ARGS)

# The whole-server tests on other versions of vLLM, each in an environment of its own.
compat: demo-model
	$(PYTHON) deploy/compat.py --demo-model $(DEMO_MODEL) --base $(VENV) --engine $(ENGINE) $(VERSIONS) $(ARGS)

TRIAL = $(BIN)/python -m tests.benchmarks.trial --model $(FOLDER_$(FAMILY)) $(FORM_$(FAMILY)) $(PATCH_$(FAMILY))

trial: EXTRAS = --extra test
trial: family-model
	$(TRIAL) --out $(VENV)/trial-$(FAMILY) $(ARGS)

# Of one of the three by name everything: the trial, and the paper's table. Else of the example of one neuron.
evidence: EXTRAS = --extra test
ifeq ($(filter smollm2 qwen2 gemma3,$(MODEL)),)
evidence: demo-model
	$(BIN)/python -m tests.benchmarks.evidence --model $(DEMO_MODEL) --patch $(PATCH) --out $(VENV)/evidence \
		$(EVIDENCE_OPTIONS) $(ARGS)
else
evidence: trial
	$(TRIAL) --out $(VENV)/paper-$(FAMILY) --paper $(ARGS)
endif

# All cores: by itself vLLM leaves one of them alone.
search: CORES = $(shell getconf _NPROCESSORS_ONLN)
search: EXTRAS = --extra test
search: family-model
	OMP_NUM_THREADS=$(CORES) VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/vllm-surgery localize $(FOLDER_$(FAMILY)) \
		--out $(VENV)/search-$(FAMILY) --name $(notdir $(FOLDER_$(FAMILY)))-noloop $(FORM_$(FAMILY)) $(SEARCH_OPTIONS) $(ARGS)

schema: install
	$(BIN)/vllm-surgery schema > patches/schema.json

matrix: EXTRAS = --extra test
matrix: install
	$(BIN)/python -m tests.docs.families > $(VENV)/families.md
	mv $(VENV)/families.md docs/families.md

registry: EXTRAS = --extra test
registry: install
	$(BIN)/python -m tests.docs.registry > $(VENV)/registry.md
	mv $(VENV)/registry.md docs/registry.md

install:
	@$(PYTHON) deploy/install.py --venv $(VENV) --engine $(ENGINE) --extra demo $(EXTRAS)

demo-model: install
	@$(BIN)/vllm-surgery demo-model $(DEMO_MODEL) > /dev/null

family-model: install
	@$(BIN)/vllm-surgery demo-model --family $(FAMILY) $(if $(ACCEPT_TERMS),--accept-terms) $(FOLDER_$(FAMILY)) > /dev/null

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
