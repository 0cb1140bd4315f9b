# SPDX-License-Identifier: Apache-2.0
"""What is asked of each family's small model, and what its checkpoint becomes by the tests' own arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.engine.offline import Arm
from tests.models import (
    DENSE_FIRST_LAYER,
    EXPERT_FAMILIES,
    EXPERT_LAYERS,
    EXPERTS,
    FAMILIES,
    IN_BF16,
    LAYERS,
    ONLY_EXPERTS,
    SEEING_FAMILIES,
    WIDTH,
    edit_slices,
    has_experts,
    patch_of,
    shared_expert_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    Gains = dict[tuple[int, int], float]
    Slices = dict[tuple[str, int | None, int], float]

LAST, LAST_WITH_EXPERTS = LAYERS - 1, EXPERT_LAYERS - 1
WIDTHS = {"Gemma4/dense": 2 * WIDTH}
"""Neurons in the last layer, where it isn't as wide as the first: it shares keys and values, and is wider for it."""

SERVED_EXPERTS = tuple(family for family in EXPERT_FAMILIES if family != "MiniMaxM2")
"""Those that vLLM's CPU backend serves: its router computes no sigmoid of scores without groups of experts."""

_OWN = ("mlp.experts.{expert}.down_proj.weight",)
_CARRIERS = {
    **dict.fromkeys(("Mixtral", "MiniMaxM2"), ("block_sparse_moe.experts.{expert}.w2.weight",)),
    "GraniteMoe": ("block_sparse_moe.output_linear.weight",),
    "Llama4": ("feed_forward.experts.down_proj",),
    "GptOss": ("mlp.experts.down_proj", "mlp.experts.down_proj_bias"),
    "Gemma4/experts": ("router.per_expert_scale",),
    **dict.fromkeys(("Qwen3VLMoe", "Qwen3_5Moe/stacked"), ("mlp.experts.down_proj",)),
}
"""The tensors of a layer that hold what an expert gives, where they aren't called like the others'."""

_LAYERS = {
    **dict.fromkeys(SEEING_FAMILIES, "model.language_model.layers"),
    **dict.fromkeys(("Gemma3/seeing", "Mistral3/seeing"), "language_model.model.layers"),
}
"""Where a language model that is one part of several has its layers, newer and older spelling."""

_LATENT_ATTENTION = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}
"""vLLM 0.32's kernel for CPUs turns queries wrongly where there are more of their heads than of the keys', and hands
them over as three axes, which latent attention does. Its code in torch is right."""


@dataclass(frozen=True)
class Case:
    """A patch for one family, and the same by hand.

    Attributes:
        neurons: their gains.
        experts: theirs.
        shared: those of neurons of shared experts.
    """

    family: str
    neurons: Gains = field(default_factory=dict)
    experts: Gains = field(default_factory=dict)
    shared: Gains = field(default_factory=dict)

    @property
    def units(self) -> int:
        """How many are named."""
        return len(self.neurons) + len(self.experts) + len(self.shared)

    @property
    def patch(self) -> dict[str, Any]:
        """In plain data."""
        return patch_of(self.neurons, experts=self.experts, shared=self.shared)

    @property
    def inverse(self) -> dict[str, Any]:
        """A patch that takes the patch back, exactly where each gain is a power of two."""
        neurons, experts, shared = (
            {unit: 1 / gain for unit, gain in gains.items()} for gains in (self.neurons, self.experts, self.shared)
        )
        return patch_of(neurons, "inverse", experts=experts, shared=shared)

    @property
    def slices(self) -> Slices:
        """The same gains, on slices of the checkpoint's tensors."""
        layers = _LAYERS.get(self.family, "model.layers")
        down = {
            (f"{layers}.{layer}.mlp.down_proj.weight", 1, unit): gain for (layer, unit), gain in self.neurons.items()
        }
        name, _ = shared_expert_of(self.family) or ("", 0)
        down |= {
            (f"{layers}.{layer}.{name}.down_proj.weight", 1, unit): gain for (layer, unit), gain in self.shared.items()
        }
        return down | {
            (f"{layers}.{layer}.{name.format(expert=expert)}", *((None, 0) if "{" in name else (0, expert))): gain
            for (layer, expert), gain in self.experts.items()
            for name in _CARRIERS.get(self._text, _OWN)
        }

    @property
    def past(self) -> list[tuple[dict[str, Any], str]]:
        """Patches that each name one thing too many, with what a refusal of them says."""
        layers = EXPERT_LAYERS if has_experts(self.family) else LAYERS
        cases = [
            (patch_of({(layers, 0): 0.0}, "layer"), f"layer {layers} is out of range: the model has {layers} layers")
        ]
        if self.neurons:
            layer = max(layer for layer, _ in self.neurons)
            width = WIDTHS.get(self._text, WIDTH)
            said = f"index {width} is out of range: layer {layer} has {width} neurons"
            cases.append((patch_of({(layer, width): -1.0}, "neuron"), said))
        if shared := shared_expert_of(self.family):
            _, width = shared
            said = f"index {width} is out of range: layer {LAST_WITH_EXPERTS} has {width} shared neurons"
            cases.append((patch_of({}, "shared", shared={(LAST_WITH_EXPERTS, width): -1.0}), said))
        if self.experts:
            said = f"index {EXPERTS} is out of range: layer {LAST_WITH_EXPERTS} has {EXPERTS} experts"
            cases.append((patch_of({}, "expert", {(LAST_WITH_EXPERTS, EXPERTS): -1.0}), said))
        return cases

    @property
    def options(self) -> dict[str, Any]:
        """What vLLM needs to be told for the model."""
        own = {"language_model_only": True} if self._sees else {}
        own |= _LATENT_ATTENTION if self.family in {"DeepseekV2", "DeepseekV3", "Glm4MoeLite"} else {}
        return {"dtype": "bfloat16" if self.family in IN_BF16 else "float32", **own}

    @property
    def _sees(self) -> bool:
        return self.family in SEEING_FAMILIES

    @property
    def _text(self) -> str:
        return self.family.removesuffix("/seeing")


def case_of(family: str) -> Case:
    """Every op, in the first layer that has such units and in the last, on the first unit and on the last."""
    text = family.removesuffix("/seeing")
    if not has_experts(family):
        last = WIDTHS.get(text, WIDTH) - 1
        return Case(family, {(0, 0): -1.0, (3, 7): 0.0, (5, WIDTH - 1): 0.5, (LAST, 0): -0.8, (LAST, last): 3.0})
    first = 1 if text in DENSE_FIRST_LAYER else 0
    experts = {(first, 0): -1.0, (1, 1): 0.5, (1, 3): 0.0, (2, 5): 3.0, (3, 0): -0.8, (3, EXPERTS - 1): -1.0}
    shared = _shared_gains(family, first)
    if family.split("/", maxsplit=1)[0] in ONLY_EXPERTS:
        return Case(family, experts=experts, shared=shared)
    last_dense = 0 if text in DENSE_FIRST_LAYER else LAST_WITH_EXPERTS
    return Case(family, {(0, 3): -1.0, (0, 4): 0.0, (last_dense, WIDTH - 1): 0.5}, experts, shared)


def _shared_gains(family: str, first: int) -> Gains:
    if (shared := shared_expert_of(family)) is None:
        return {}
    last = shared[1] - 1
    return {(first, 0): -1.0, (first, last): 0.0, (2, 5): 0.5, (3, 7): -0.8, (LAST_WITH_EXPERTS, last): 3.0}


def cases(families: Iterable[str] = (*FAMILIES, *SERVED_EXPERTS)) -> dict[str, Case]:
    """One case a family."""
    return {family: case_of(family) for family in families}


def edit_each(cases: Mapping[str, Case], models: Callable[[str], Path], folder: Path) -> dict[str, Path]:
    """Each family's checkpoint, edited by the tests' own arithmetic, in a folder of its own below `folder`."""
    return {family: edit_slices(models(family), folder / family, case.slices) for family, case in cases.items()}


def arms_of(case: Case, base: Path, by_hand: Path, *, past: bool) -> dict[str, Arm]:
    """A family unpatched, then swapped in and out; patched, past swaps that are refused if so wanted; and by hand."""
    how: dict[str, Any] = {"options": case.options, "embeds": case.family == "Gemma3n/seeing"}
    refused = [[patch] for patch, _ in case.past] if past else []
    return {
        case.family: Arm(str(base), later=[[case.patch], []], **how),
        f"{case.family} patched": Arm(str(base), [case.patch], swaps=refused, **how),
        f"{case.family} by hand": Arm(str(by_hand), **how),
    }


def assert_past_is_refused(case: Case, swaps: Sequence[Mapping[str, Any]]) -> None:
    """Each patch that names one thing too many was refused with the reason, in this order."""
    for (_, expected), swap in zip(case.past, swaps, strict=True):
        assert swap["error"].startswith("MismatchError")
        assert swap["error"].endswith(expected)
