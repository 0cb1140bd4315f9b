# Two commands do everything: `make serve` and `make test`. Both install what is missing, and may be run again at any time.

PYTHON ?= python3
VENV ?= .venv
# auto: a vLLM that $(PYTHON) already has, else one for NVIDIA GPUs where there is a driver, else one for CPUs.
ENGINE ?= auto
# What `make serve` serves. MODEL=<folder or name on the Hub> takes another model, PATCH= takes none.
MODEL ?= $(DEMO_MODEL)
PATCH ?= patches/smollm2-135m-instruct-lists.yaml
PORT ?= 8000
# More options of `vllm serve`.
ARGS ?=

DEMO_MODEL := $(VENV)/share/smollm2-135m-instruct
BIN := $(VENV)/bin
# The demo model's figures are float32's. Compiling would cost minutes and gain nothing on a model of this size.
DEMO_OPTIONS := --served-model-name smollm2 --dtype float32 --max-model-len 4096 --enforce-eager \
	--kv-cache-memory-bytes 1073741824

.PHONY: help serve test lint pytest bench bench-swaps evidence schema install demo-model clean

help:
	@echo "make serve      serve the demo model with its patch on port $(PORT)"
	@echo "make test       lint, types and all tests"
	@echo "make bench      what a patch costs while a model is loaded (bench-swaps: what a swap costs)"
	@echo "make evidence   measure again what the shipped patch does, and what it costs"

serve: demo-model
	@echo "[serve] http://localhost:$(PORT)/v1, model '$(MODEL)', patch '$(PATCH)'; ready at 'Application startup complete.'"
	$(BIN)/vllm-surgery serve $(MODEL) $(addprefix --patch ,$(PATCH)) --port $(PORT) \
		$(if $(filter $(DEMO_MODEL),$(MODEL)),$(DEMO_OPTIONS)) $(ARGS)

test: EXTRAS = --extra test
test: demo-model lint pytest

lint: EXTRAS = --extra test
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: demo-model
	VLLM_SURGERY_DEMO_MODEL=$(DEMO_MODEL) $(BIN)/python -m pytest $(ARGS)

bench: EXTRAS = --extra test
bench: demo-model
	$(BIN)/python -m tests.benchmarks.load_cost --model $(DEMO_MODEL) --patch $(PATCH) $(ARGS)

bench-swaps: EXTRAS = --extra test
bench-swaps: demo-model
	$(BIN)/python -m tests.benchmarks.swap_cost --model $(DEMO_MODEL) --patch $(PATCH) $(ARGS)

evidence: EXTRAS = --extra test
evidence: demo-model
	$(BIN)/python -m tests.benchmarks.evidence --model $(DEMO_MODEL) --patch $(PATCH) --out $(VENV)/evidence $(ARGS)

schema: install
	$(BIN)/vllm-surgery schema > patches/schema.json

install:
	@$(PYTHON) deploy/install.py --venv $(VENV) --engine $(ENGINE) --extra demo $(EXTRAS)

demo-model: install
	@$(BIN)/vllm-surgery demo-model $(DEMO_MODEL) > /dev/null

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
