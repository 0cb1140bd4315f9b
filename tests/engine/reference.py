# SPDX-License-Identifier: Apache-2.0
"""What transformers' own model, in float32, gives for the answers of an engine; with masked experts' logits at -inf."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

_ROUTER = re.compile(r"model\.layers\.(\d+)\.(?:.*\.)?(?:gate|router|router\.proj)\.weight")


def chances(
    folder: Path, prompts: list[list[int]], answers: list[list[int]], masked: Collection[tuple[int, int]] = ()
) -> list[torch.Tensor]:
    """For each answer the log-probabilities of all tokens at each of its steps, ``[steps, vocabulary]``.

    Args:
        folder: the model's.
        prompts: token ids.
        answers: token ids, one list a prompt.
        masked: layer and index of the experts that no router may choose.
    """
    model = load(folder)
    with torch.no_grad(), _minus_infinity(model, masked):
        return [_steps(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def load(folder: Path) -> Any:
    """The model by transformers, in float32."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def _steps(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + answer])).logits[0].float()
    return torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]


@contextmanager
def _minus_infinity(model: Any, masked: Collection[tuple[int, int]]) -> Iterator[None]:
    """Routers' logits are made by `linear`, in every family. What is added to the scores afterwards is masked too,
    or else an expert with a score of zero could still be chosen for the sake of its bias."""
    layers = {
        parameter.data_ptr(): int(found[1])
        for name, parameter in model.named_parameters()
        if (found := _ROUTER.fullmatch(name)) is not None
    }
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            layer = int(name.split(".")[2])
            buffer[[expert for at, expert in masked if at == layer]] = -torch.inf
    linear = torch.nn.functional.linear

    def masking(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        result = linear(states, weight, bias)
        layer = layers.get(weight.data_ptr())
        if layer is not None:
            result[..., [expert for at, expert in masked if at == layer]] = -torch.inf
        return result

    assert {layer for layer, _ in masked} <= {*layers.values()}
    with patch.object(torch.nn.functional, "linear", masking):
        yield
