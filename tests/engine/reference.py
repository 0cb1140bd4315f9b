# SPDX-License-Identifier: Apache-2.0
"""What transformers' own model, in float32, gives for the answers of an engine; with experts masked, or their outputs
removed."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from statistics import fmean, median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    Experts = Collection[tuple[int, int]]
    """Layers and indices."""

_LAYER = r"model\.(?:language_model\.)?layers\.(\d+)\."
_ROUTER = re.compile(rf"{_LAYER}(?:.*\.)?(?:gate|router|router\.proj)\.weight")
_CORRECTION = re.compile(rf"{_LAYER}.*\.e_score_correction_bias")
_EXPERTS = re.compile(rf"{_LAYER}(?:mlp\.|block_sparse_moe\.|feed_forward\.)?experts")

CLOSE = 1e-4
"""How far log-probabilities may be off: engine and transformers sum float32 numbers in another order."""
HALF_CLOSE = 0.1
"""How far half of them may be off where the engine computes in bfloat16. It was 0.02 to 0.04, and from 0.19 upwards for
a patch that was not applied or for experts that give nothing instead of being masked. The other half has no bound: where
two experts are nearly as good, rounding chooses the other one, and linear attention remembers it."""
SAME_TOKENS = 0.8
"""How many greedy tokens are the same then: 17 of 20 or more were, and 14 of 20 or fewer in those other cases."""


def assert_close(
    served: dict[str, Any], folder: Path, prompts: list[list[int]], *, masked: Experts = (), removed: Experts = ()
) -> None:
    """An engine's greedy tokens are transformers' too, and its log-probabilities differ by rounding alone.

    Of a checkpoint in bfloat16, in which the engine then computes, most tokens are and half of the log-probabilities do.
    """
    expected = chances(folder, prompts, served["tokens"], masked, removed)
    if config_of(folder).dtype == torch.bfloat16:
        _assert_half_close(served, expected)
        return
    for tokens, logprobs, steps in zip(served["tokens"], served["logprobs"], expected, strict=True):
        assert steps.argmax(dim=-1).tolist() == tokens
        for told, step in zip(logprobs, steps, strict=True):
            assert [chance for _, chance in told] == pytest.approx([float(step[token]) for token, _ in told], abs=CLOSE)


def _assert_half_close(served: dict[str, Any], expected: list[torch.Tensor]) -> None:
    off, same_tokens = [], []
    for tokens, logprobs, steps in zip(served["tokens"], served["logprobs"], expected, strict=True):
        same_tokens += [int(step.argmax()) == token for token, step in zip(tokens, steps, strict=True)]
        off += [
            abs(chance - float(step[token]))
            for told, step in zip(logprobs, steps, strict=True)
            for token, chance in told
        ]
    assert median(off) < HALF_CLOSE
    assert fmean(same_tokens) >= SAME_TOKENS


def chances(
    folder: Path, prompts: list[list[int]], answers: list[list[int]], masked: Experts = (), removed: Experts = ()
) -> list[torch.Tensor]:
    """For each answer the log-probabilities of all tokens at each of its steps, ``[steps, vocabulary]``.

    Args:
        folder: the model's.
        prompts: token ids.
        answers: token ids, one list a prompt.
        masked: the experts that no router may choose.
        removed: the experts that may be chosen, and then give nothing.
    """
    model = load(folder)
    with torch.no_grad(), _minus_infinity(model, masked), _nothing(model, removed):
        return [_steps(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def load(folder: Path) -> Any:
    """The model by transformers, in float32."""
    import transformers

    kind = getattr(transformers, config_of(folder).architectures[0])
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def config_of(folder: Path) -> Any:
    """The model's config, by transformers."""
    import transformers

    return transformers.AutoConfig.from_pretrained(folder)


def _steps(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + answer])).logits[0].float()
    return torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]


def _of(layer: int, experts: Experts) -> list[int]:
    return [expert for at, expert in experts if at == layer]


@contextmanager
def _minus_infinity(model: Any, masked: Experts) -> Iterator[None]:
    """Routers' logits are made by `linear`, in every family. What is added to the scores afterwards is masked too,
    or else an expert with a score of zero could still be chosen for the sake of its bias."""
    layers = {
        parameter.data_ptr(): int(found[1])
        for name, parameter in model.named_parameters()
        if (found := _ROUTER.fullmatch(name)) is not None
    }
    for name, buffer in model.named_buffers():
        if found := _CORRECTION.fullmatch(name):
            buffer[_of(int(found[1]), masked)] = -torch.inf
    linear = torch.nn.functional.linear

    def masking(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        result = linear(states, weight, bias)
        layer = layers.get(weight.data_ptr())
        if layer is not None:
            result[..., _of(layer, masked)] = -torch.inf
        return result

    assert {layer for layer, _ in masked} <= {*layers.values()}
    with patch.object(torch.nn.functional, "linear", masking):
        yield


@contextmanager
def _nothing(model: Any, removed: Experts) -> Iterator[None]:
    """What an expert gives is multiplied by the router's weight for it, in every family. Of the weights of the others,
    which the router has made by then, nothing changes."""
    found = {int(match[1]): module for name, module in model.named_modules() if (match := _EXPERTS.fullmatch(name))}
    with ExitStack() as stack:
        for layer in {layer for layer, _ in removed}:
            stack.enter_context(found[layer].register_forward_pre_hook(_without(_of(layer, removed))))
        yield


def _without(experts: list[int]) -> Callable[..., tuple[torch.Tensor, ...]]:
    def without(module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if len(given) == 1:  # Llama 4 multiplies what experts get: all experts' inputs, one expert after another.
            states = given[0].clone()
            states.view(module.num_experts, -1, states.shape[-1])[experts] = 0
            return (states,)
        states, chosen, weights = given
        gone = torch.isin(chosen, torch.tensor(experts))
        return states, chosen, weights.masked_fill(gone, 0.0)

    return without
