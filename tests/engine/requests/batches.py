# SPDX-License-Identifier: Apache-2.0
"""One batch in which requests have patches of their own, and the servers with edited weights that it is held against."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from tests.engine.families import case_of
from tests.engine.offline import Arm, run_arms
from tests.models import LAYERS, WIDTH, has_experts, patch_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Answer = dict[str, Any]
    Answers = dict[str, Answer]

PROMPTS = [[5, 17, 33, 90], [200, 41, 7], [12, 300, 65, 8, 19, 111], [7, 8, 9] * 12]

CLOSE = 1e-4
"""How far log-probabilities may be off where a gain rounds activations instead of weights. Several times what is
measured: 4e-6 with one neuron times five, 6e-5 with 188."""

ROUND = {(0, 3): -1.0, (1, 7): 0.0, (2, 5): 0.5, (3, 100): 4.0}
"""Gains that change no digit of a number."""


def exact_patch(family: str) -> dict[str, Any]:
    """Gains of 0, -1 and powers of two on the units that a family has."""
    case = case_of(family)
    neurons = {unit: gain for unit, gain in ROUND.items() if case.neurons}
    experts = {(0, 1): -1.0, (1, 2): 0.0, (2, 0): 2.0, (3, 7): 0.5} if has_experts(family) else {}
    shared = {(0, 3): -1.0, (1, 7): 0.0, (2, 5): 0.5, (3, 63): 4.0} if case.shared else {}
    return patch_of(neurons, "exact", experts, shared)


def rounded_patch(family: str) -> dict[str, Any]:
    """Gains that round."""
    case = case_of(family)
    neurons = {(1, 9): 3.0, (3, 64): -0.8} if case.neurons else {}
    experts = {(0, 4): 0.3, (3, 5): -0.7} if has_experts(family) else {}
    return patch_of(neurons, "rounded", experts, {(1, 9): 3.0, (3, 62): -0.8} if case.shared else {})


def last_patch(family: str) -> dict[str, Any]:
    """A mask where there are experts; else every neuron of a layer."""
    if not has_experts(family):
        return patch_of(dict.fromkeys(((LAYERS - 1, index) for index in range(WIDTH)), -1.0), "mask")
    edits = [{"op": "mask", "experts": {"1": [0, 3], "2": [5]}}]
    return {"version": 1, "name": "mask", "edits": edits}


def patches_of(family: str) -> dict[str, dict[str, Any]]:
    """A family's patches by name."""
    return {patch["name"]: patch for patch in (exact_patch(family), rounded_patch(family), last_patch(family))}


def answer_batch(
    model: Path, patches: Mapping[str, dict[str, Any]], slots: dict[str, Any] | None = None, **arm: Any
) -> Answers:
    """The answers under each choice: of one mixed batch, and of servers that have the patch in their weights.

    A server with edited weights answers as many requests at once as the mixed one, since a batch's size shows in the
    last bits.

    Returns:
        By the name of the choice for the mixed batch, by ``weights: NAME`` for a server of its own; ``plain`` is one
        that was started without slots.
    """
    choices = ["none", *patches]
    prompts = [prompt for prompt in PROMPTS for _ in choices]
    same_batch: dict[str, Any] = {"prompts": prompts, **arm}
    filled = {"settings": {"slots": len(patches), **(slots or {})}, "fills": [*patches.values()]}
    arms = {
        "mixed": Arm(str(model), [], choices=choices * len(PROMPTS), **filled, **same_batch),
        "plain": Arm(str(model), choices=[None] * len(prompts), **same_batch),
        **{
            f"weights: {name}": Arm(str(model), [patch], choices=[None] * len(prompts), **same_batch)
            for name, patch in patches.items()
        },
    }
    found = dict(zip(arms, run_arms(*arms.values()), strict=True))
    mixed = {choice: every(found["mixed"], place, len(choices)) for place, choice in enumerate(choices)}
    own = {
        name: every(answer, choices.index(name.removeprefix("weights: ")), len(choices))
        for name, answer in found.items()
        if name.startswith("weights: ")
    }
    return {**mixed, **own, "plain": every(found["plain"], 0, len(choices)), "engine": found["mixed"]}


def every(answer: Answer, first: int, step: int) -> Answer:
    """The answers to every `step`-th prompt."""
    return {key: answer[key][first::step] for key in ("tokens", "logprobs")}


def largest_difference(one: Answer, other: Answer) -> float:
    """Of two engines' log-probabilities of the same tokens."""
    pairs = zip(_logprobs(one), _logprobs(other), strict=True)
    return max(abs(first - second) for (_, first), (_, second) in pairs)


def _logprobs(answer: Answer) -> Sequence[tuple[int, float]]:
    return list(chain(*chain(*answer["logprobs"])))
