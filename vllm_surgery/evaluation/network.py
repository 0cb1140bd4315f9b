# SPDX-License-Identifier: Apache-2.0
"""A model as transformers has it, in float32 in this process: for what a server doesn't tell."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError, one_line
from vllm_surgery.installed import require
from vllm_surgery.model.checkpoint import ModelFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def load_network(folder: Path, purpose: str) -> Any:
    """The network of a model, whose weights take no gradients.

    Args:
        folder: the model's. It must fit this machine's memory in float32.
        purpose: what needs it, for an error.

    Raises:
        UsageError: torch or transformers isn't there, the model's weights are quantised, or transformers can't load
            all of them.
    """
    require(purpose, "torch", "transformers")
    if ModelFolder(folder).facts.quantization is not None:
        raise UsageError(f"{folder}: has quantised weights, and {purpose} needs others")
    import torch
    import transformers

    # Experts in plain operations: the fused ones want bfloat16, and the weights' own gradients.
    options = {"dtype": torch.float32, "experts_implementation": "eager", "output_loading_info": True}
    try:
        network, told = transformers.AutoModelForCausalLM.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        raise UsageError(f"{folder}: transformers can't load it: {one_line(str(error), 200)}") from None
    missing = sorted(told["missing_keys"])
    if missing:
        # It would have filled them with random numbers.
        raise UsageError(f"{folder}: transformers finds no {missing[0]} in it")
    return network.eval().requires_grad_(False)


@contextmanager
def run_by_transformers(folder: Path) -> Iterator[None]:
    """A forward pass, which not every model that transformers loads can do.

    Raises:
        UsageError: this one can't.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UsageError(f"{folder}: transformers can't run it: {one_line(str(error), 200)}") from None
