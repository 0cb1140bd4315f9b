# SPDX-License-Identifier: Apache-2.0
"""Every family in every kind of checkpoint: what is held exactly."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tests.docs.families.checkpoints import KINDS, store
from tests.docs.families.exactness import Held, held, refusal
from tests.examples import patches_of
from tests.models import EXPERT_FAMILIES, FAMILIES, SEEING_FAMILIES, make_model
from vllm_surgery import ModelFolder
from vllm_surgery.planning.inventory import take_inventory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_surgery.planning.inventory import UnitsFound

_TITLES = {
    "Gemma2": "Gemma 2",
    "Gemma3": "Gemma 3",
    "Gemma3n": "Gemma 3n",
    "Gemma4/dense": "Gemma 4, dense",
    "Gemma4/experts": "Gemma 4, experts",
    "Glm4": "GLM-4",
    "Glm4Moe": "GLM-4-MoE",
    "Glm4MoeLite": "GLM-4.7-Flash",
    "GraniteMoe": "Granite MoE",
    "Llama4": "Llama 4, experts in all layers",
    "MiniMaxM2": "MiniMax-M2",
    "Cohere2": "Cohere 2",
    "Ernie4_5": "ERNIE 4.5",
    "Exaone4": "EXAONE 4",
    "HunYuanDenseV1": "dense Hunyuan",
    "Olmo2": "OLMo 2",
    "Olmo3": "OLMo 3",
    "SeedOss": "Seed-OSS",
    "GptOss": "GPT-OSS",
    "Mistral3": "Mistral 3",
    "Olmoe": "OLMoE",
    "Phi3": "Phi-3",
    "Qwen2Moe": "Qwen2-MoE",
    "Qwen3Moe": "Qwen3-MoE",
    "Qwen3Next": "Qwen3-Next",
    "Qwen3VL": "Qwen3-VL",
    "Qwen3VLMoe": "Qwen3-VL-MoE",
    "Qwen3_5": "Qwen3.5",
    "Qwen3_5Moe": "Qwen3.5-MoE",
    "Qwen3_5Moe/stacked": "Qwen3.5-MoE, experts in one tensor",
    "DeepseekV2": "DeepSeek V2",
    "DeepseekV3": "DeepSeek V3",
}
"""What people call the families whose names in transformers aren't that already."""


_SEES = "/seeing"
NO_GATES = {"Phi": "Phi, Phi-1.5, Phi-2"}


@dataclass
class Family:
    """What was found of a family.

    Attributes:
        key: its name in `tests.models`, as the engine's tests use it.
        units: what the inventory says of a plain checkpoint.
        held: by kind of checkpoint and kind of unit.
    """

    key: str
    title: str
    units: tuple[UnitsFound, ...] = ()
    held: dict[tuple[str, str], Held] = field(default_factory=dict)


def survey() -> list[Family]:
    """All families, in the order of `tests.models`. Takes about a minute."""
    with _one_thread():
        return [_found(family) for family in (*FAMILIES, *EXPERT_FAMILIES, *SEEING_FAMILIES)]


def without_units() -> list[tuple[str, str]]:
    """Families whose MLPs have no gate, and what a patch is told there."""
    zero = patches_of({"op": "zero", "neurons": {"0": [1]}})
    reasons = []
    for key, title in NO_GATES.items():
        with tempfile.TemporaryDirectory() as work, _one_thread():
            reasons.append((title, str(refusal(zero, ModelFolder(make_model(Path(work) / "model", key))))))
    return reasons


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors are so small that threads cost more than they do, much more where all cores are taken."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def title_of(family: str) -> str:
    """What people call a family."""
    text = family.removesuffix(_SEES)
    return _TITLES.get(text, text) + (", multimodal" if text != family else "")


def _found(key: str) -> Family:
    with tempfile.TemporaryDirectory() as work:
        model, family = make_model(Path(work) / "model", key, torch.bfloat16), Family(key, title_of(key))
        for word in KINDS:
            checkpoint = store(model, word, Path(work) / word.replace(" ", "-"))
            if checkpoint is None:
                continue
            found = take_inventory(ModelFolder(checkpoint.folder)).found
            family.units = family.units or found
            for kind in sorted({group.kind for group in found}):
                stores = {"experts": checkpoint.stores_experts, "expert_neurons": checkpoint.stores_inside}.get(kind)
                if stores is None or stores():
                    family.held[word, kind] = held(checkpoint, kind)
        return family
