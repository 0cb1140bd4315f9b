# SPDX-License-Identifier: Apache-2.0
"""What the package's table of names makes of an architecture, by the names that its classes have in vLLM's source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.docs.registry.source import EXPERTS, reached
from vllm_surgery.model.conventions import classify_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.docs.registry.source import Class, Name

_MLP = re.compile(r"MLP|FeedForward|FFN", re.IGNORECASE)
_UP, _UP_MAKER, _DOWN_MAKER = {"gate_up_proj", "w13", "gate_up"}, "MergedColumnParallelLinear", "RowParallelLinear"
_DOWN = ("down_proj", "w2")
_SHARED = ("shared_expert", "shared_experts", "shared_mlp", "share_expert", "shared_expert_mlp")
_LAYER = "model.layers.0."
ANY_MODEL = "init_vllm_registered_model"
"""The function by which a model of several parts makes whatever language model its config names."""

_ROTARY = (
    "BgeM3EmbeddingModel",
    "ColBERTJinaRobertaModel",
    "NomicBertModel",
    "RobertaForMaskedLM",
    "RobertaModel",
    "XLMRobertaModel",
)
ELSEWHERE = {
    "DbrxForCausalLM": "transformer.blocks.*.ffn.experts.mlp.w2",
    "Zamba2ForCausalLM": "model.layers.*.shared_transformer.feed_forward.down_proj.weight",
    **dict.fromkeys(("HfMoondream", "Moondream3ForCausalLM"), "text.blocks.*.mlp.fc2.weight"),
    **dict.fromkeys(_ROTARY, "encoder.layers.*.mlp.fc2.weight"),
    **dict.fromkeys(
        ("GteModel", "GteNewForSequenceClassification", "GteNewModel"), "encoder.layer.*.mlp.down_proj.weight"
    ),
}
"""Architectures whose checkpoints have other names than vLLM's classes, and which: read in their `load_weights` and mappers."""
_STACKED = ("Gemma4", "GptOss")
"""Beginnings of the names of families whose checkpoints store all of a layer's experts in one tensor."""

ROW, IN_PART, REFUSED, INSIDE, NONE = "row", "in part", "refused", "its language model's", "none"


@dataclass(frozen=True)
class Verdict:
    """What is said of one architecture.

    Attributes:
        known: names of down projections in a layer that the table knows, with ``*`` for the number of an expert.
        unknown: those that it doesn't know, so that a patch which names such units is refused.
        roots: beginnings of names, before ``layers.``, under which its checkpoints have the model and that aren't known.
        inside: whether it makes whatever language model its config names.
    """

    known: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()

    inside: bool = False

    @property
    def word(self) -> str:
        """`ROW` and so on."""
        if not self.known and not self.unknown:
            return INSIDE if self.inside else NONE
        if not self.known:
            return REFUSED
        return IN_PART if self.unknown or self.roots else ROW


def verdict(architecture: str, start: Name) -> Verdict:
    """What the table makes of the names in an architecture's source."""
    if architecture in ELSEWHERE:
        return Verdict(unknown=(ELSEWHERE[architecture],))
    classes = reached(start)
    found = sorted({*_dense(classes), *_routed(classes)})
    known = tuple(name for name in found if _is_known(name))
    roots = {
        before
        for each in classes.values()
        for before, after in each.prefixes.items()
        if after in {"model.", "language_model.model.", "language_model."} and before.endswith(".")
    }
    strange = tuple(sorted(root for root in roots if not _is_root(root)))
    inside = any(ANY_MODEL in each.mentioned for each in classes.values()) or "transformers" in start.module
    return Verdict(known, tuple(name for name in found if name not in known), strange if found else (), inside)


def _is_root(before: str) -> bool:
    return any(classify_tensor(f"{before}{more}layers.0.mlp.down_proj.weight") for more in ("", "model."))


def _is_known(name: str) -> bool:
    return classify_tensor(_LAYER + name.replace("*", "0")) is not None


def _gated(classes: Mapping[Name, Class]) -> dict[str, str]:
    """Classes of gated MLPs, and the name of their down projection."""
    found = {}
    for name, each in classes.items():
        merged = any(_UP_MAKER in words or part in _UP for part, words in each.made.items())
        apart = {"gate_proj", "up_proj"} <= each.made.keys() or {"w1", "w3"} <= each.made.keys()
        downs = [part for part, words in each.made.items() if _DOWN_MAKER in words]
        down = next((part for part in (*_DOWN, *downs) if part in each.made), None)
        if down is not None and (merged or apart) and _MLP.search(name.name):
            found[name.name] = down
    return found


def _dense(classes: Mapping[Name, Class]) -> Iterator[str]:
    """Down projections of gated MLPs: a layer's own, and those of shared experts."""
    gated = _gated(classes)
    owners = {attribute for each in classes.values() for attribute in _attributes(each, _holders(classes))}
    for each in classes.values():
        for attribute, words in each.made.items():
            for mlp in words & gated.keys():
                if attribute in _SHARED:
                    names = [
                        f"{place}{attribute}.{gated[mlp]}.weight" for place in ("", *(f"{one}." for one in owners))
                    ]
                    yield from [name for name in names if _is_known(name)] or names[1:]
                elif not (_TOWER.search(attribute) or words & EXPERTS):
                    yield f"{attribute}.{gated[mlp]}.weight"


_TOWER = re.compile(r"audio|vision|visual|merger|image")


def _routed(classes: Mapping[Name, Class]) -> Iterator[str]:
    holders = _holders(classes)
    said = {part for each in classes.values() for part in each.down_of_experts}
    for each in classes.values():
        for owner in _attributes(each, holders):
            in_one = any(name.name.startswith(_STACKED) for name in classes)
            stacked = [f"{owner}.experts.down_proj", *(["experts.down_proj"] if in_one else [])]
            stacked += [f"{owner}.output_linear.weight"]
            names = [f"{owner}.experts.*.{part}.weight" for part in sorted(said) or ["down_proj"]]
            known = [name for name in ((*stacked, *names) if in_one else (*names, *stacked)) if _is_known(name)]
            yield known[0] if known else names[0]


def _holders(classes: Mapping[Name, Class]) -> set[str]:
    """Names of classes that hold a layer's routed experts."""
    return {
        name.name
        for name, each in classes.items()
        if any(words & EXPERTS for words in each.made.values()) and name.name not in EXPERTS
    }


def _attributes(each: Class, kinds: set[str]) -> set[str]:
    found = {attribute for attribute, words in each.made.items() if words & kinds}
    return found - {"layers", "model", "language_model"}
