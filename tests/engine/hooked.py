# SPDX-License-Identifier: Apache-2.0
"""What of vLLM's objects was replaced for slots, found by looking at each."""

from __future__ import annotations

from typing import Any

RUNNER = ("_prepare_inputs", "add_requests", "prepare_inputs", "_remove_request")
CORE = ("preprocess_add_request", "add_request", "vllm_surgery_ledger")
MODULES = ("_maybe_dispatch", "_compute_routing", "apply")


def hooked(llm: Any) -> list[str] | None:
    """The names of methods that stand on objects of an engine in this process instead of on their classes.

    None where the engine or its worker is in another process.
    """
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    worker = getattr(getattr(core.model_executor, "driver_worker", None), "worker", None) if core else None
    if core is None or worker is None:
        return None
    found = [f"processor.{name}" for name in ("process_inputs",) if name in vars(llm.llm_engine.input_processor)]
    found += [f"core.{name}" for name in CORE if name in vars(core)]
    found += [f"runner.{name}" for name in RUNNER if name in vars(worker.model_runner)]
    found += [f"worker.{name}" for name in vars(worker) if name.startswith("_vllm_surgery_slots")]
    return found + _in_modules(worker.get_model())


def _in_modules(model: Any) -> list[str]:
    parts = [(name, part) for name, module in model.named_modules() for part in _parts(module)]
    return [f"{name}.{method}" for name, part in parts for method in MODULES if method in vars(part)]


def _parts(module: Any) -> list[Any]:
    """A module, and what vLLM gives it for its work."""
    given = (getattr(module, name, None) for name in ("quant_method", "router"))
    return [module, *(part for part in given if hasattr(part, "__dict__"))]
