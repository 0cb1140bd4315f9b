# SPDX-License-Identifier: Apache-2.0
"""Masks and gains of experts as operators that a compiler can't look into.

On CPUs vLLM compiles a layer's routing with the rest. Were these loose, the compiler would join them with the softmax
beside them and sum it in another order, so that requests without a patch would lose their last bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vllm_surgery.engine.masks.router import lowest

if TYPE_CHECKING:
    from collections.abc import Callable

NAMESPACE = "vllm_surgery"


def _opaque(schema: str, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """An operator that does what `function` does, and whose result is like its first argument."""
    name = f"{NAMESPACE}::{function.__name__.lstrip('_')}"
    made = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
    made.register_fake(lambda first, *_: torch.empty_like(first))
    result: Callable[..., torch.Tensor] = made
    return result


def _mask_logits(logits: torch.Tensor, masked: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    here = masked[slots[: logits.shape[0]]]
    more = logits.shape[-1] - here.shape[-1]  # Shared experts' logits may stand behind the routed ones'.
    padded = torch.nn.functional.pad(here, (0, more)) if more else here
    return logits.masked_fill(padded, lowest(logits.dtype))


def _weigh_experts(
    weights: torch.Tensor, experts: torch.Tensor, gains: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    here = slots[: weights.shape[0], None]
    return (weights * gains[here, experts.long()]).to(weights.dtype)


mask_logits = _opaque("(Tensor logits, Tensor masked, Tensor slots) -> Tensor", _mask_logits)
"""The router's logits, ``[tokens, experts or more]``, with the lowest number for experts that are masked in a token's
slot. ``masked`` is ``[slots, experts]``, ``slots`` has one a token and more behind them."""

weigh_experts = _opaque("(Tensor weights, Tensor experts, Tensor gains, Tensor slots) -> Tensor", _weigh_experts)
"""The router's weights, ``[tokens, chosen]``, times the gain of each chosen expert in the token's slot. ``experts``
says which were chosen; ``gains`` is ``[slots, experts]``, float32."""
