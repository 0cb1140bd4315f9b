# SPDX-License-Identifier: Apache-2.0
"""Hashes of all that an engine of this process computes with."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def digests(llm: Any) -> dict[str, str | None]:
    """Of the served model, and of the one that drafts for it."""
    worker = llm.llm_engine.model_executor.driver_worker.worker
    draft = getattr(getattr(worker.model_runner, "drafter", None), "model", None)
    return {"digest": _digest(worker.get_model()), "draft": None if draft is None else _digest(draft)}


def _digest(model: Any) -> str:
    """sha256 of all parameters and buffers, and of what is answered to one-hot inputs by every packed linear layer, and
    to one-hot logits by every layer's experts, which tells packed and masked ones."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode() + tensor.flatten().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        size = getattr(module, "input_size_per_partition", None)
        if hasattr(module, "cpu_linear") and size is not None:
            seen = module.quant_method.apply(module, torch.eye(size, dtype=module.params_dtype), None)
            content.update(name.encode() + seen.flatten().view(torch.uint8).numpy().tobytes())
        if hasattr(module, "_apply_quant_method"):
            logits = torch.eye(module.moe_config.num_logical_experts)
            states = torch.ones(len(logits), module.moe_config.hidden_dim)
            _, seen = module._apply_quant_method(states, logits, None)
            content.update(name.encode() + seen.flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
