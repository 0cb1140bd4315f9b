# SPDX-License-Identifier: Apache-2.0
"""What an engine of a test asks for that neither vLLM nor the package has an option for."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engine.offline import Arm


@contextmanager
def circumstances(arm: Arm) -> Iterator[None]:
    """What an arm asks for, while its engine lives."""
    from unittest.mock import patch

    from vllm import _custom_ops
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    from vllm_surgery.engine.swap import rank as swapping
    from vllm_surgery.engine.swap import writer as writing

    with ExitStack() as stack:
        if arm.unpacked:
            stack.enter_context(patch.object(_custom_ops, "_supports_onednn", False))
        if arm.hide is not None:
            parts_of = swapping.parts_of
            stack.enter_context(patch.object(swapping, "parts_of", lambda *args: _without(arm.hide, parts_of(*args))))
        if not arm.forget_kernels:
            stack.enter_context(patch.object(writing, "_forget_expert_kernels", lambda module: None))
        if arm.own_experts:
            stack.enter_context(patch.object(CPUUnquantizedExperts, "apply", _own(CPUUnquantizedExperts.apply)))
        if arm.embeds:
            model = _class_of("Gemma3nForConditionalGeneration")
            stack.enter_context(patch.object(model, "forward", _embedding(model.forward)))
        if arm.experts_in_torch:
            from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

            stack.enter_context(patch.object(TritonExperts, "apply", _experts))
        if arm.ready_bytes is not None:
            stack.enter_context(patch.object(swapping, "READY_BYTES", arm.ready_bytes))
        yield


def register_kernels_once() -> None:
    """vLLM replaces kernels for every engine, looking through all of memory, and falls over llvmlite there once
    something has imported numba. Now it has done so for this process and those that are forked from it."""
    from vllm.platforms import current_platform

    replaces = getattr(current_platform, "register_triton_kernel_overrides", None)
    if callable(replaces):  # Older vLLMs don't; their platforms have None for whatever they lack.
        replaces()
        current_platform.register_triton_kernel_overrides = lambda: None


def _class_of(architecture: str) -> Any:
    from vllm.model_executor.models import ModelRegistry

    return ModelRegistry.models[architecture].load_model_cls()


def _embedding(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A model's forward pass that takes embeddings alone, which vLLM doesn't make where the model only reads."""

    @wraps(forward)
    def embedding(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature(forward).bind(self, *args, **kwargs).arguments
        more = given.pop("kwargs", {})
        if given.get("inputs_embeds") is None and given.get("intermediate_tensors") is None:
            given["inputs_embeds"] = self.embed_input_ids(given["input_ids"])
        return forward(**given, **more)

    return embedding


def _without(word: Any, parts: list[Any]) -> list[Any]:
    return [replace(part, tensors=tuple(name for name in part.tensors if word not in name)) for part in parts]


def _own(apply: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's CPU kernel with the map of expert parallelism, which it leaves out: indices of all ranks' experts make it
    read past this rank's. Experts elsewhere weigh nothing here."""

    @wraps(apply)
    def applied(*args: Any, **kwargs: Any) -> Any:
        given = signature(apply).bind(*args, **kwargs).arguments
        if given["expert_map"] is not None:
            local = given["expert_map"][given["topk_ids"].long()]
            given["topk_ids"] = local.clamp(min=0).to(given["topk_ids"].dtype)
            given["topk_weights"] = given["topk_weights"].masked_fill(local < 0, 0.0)
        return apply(**given)

    return applied


def _experts(
    kernel: Any,
    *,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    **_: Any,
) -> None:
    """What vLLM's Triton kernel for experts does, which no CPU runs and which vLLM takes wherever there may be adapters:
    gated by SiLU, unquantised, and without an adapter of the experts themselves."""
    output.zero_()
    for expert, (gate_up, down) in enumerate(zip(w1, w2, strict=True)):
        rows, places = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (hidden_states[rows] @ gate_up.T).chunk(2, dim=-1)
        answers = (torch.nn.functional.silu(gate) * up) @ down.T
        output.index_add_(0, rows, answers * topk_weights[rows, places, None])
