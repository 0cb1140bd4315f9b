# SPDX-License-Identifier: Apache-2.0
"""Rankings of vLLM-Ascend's expert pruning: https://github.com/vllm-project/vllm-ascend/pull/12525.

JSON lines, one layer each with its experts from the most important on. A ratio, which is no part of the file, says how
many are kept: the others leave the model with their rows of the router (`mask`).
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

from vllm_surgery.errors import MismatchError, PatchError, UsageError
from vllm_surgery.imports.experts import Collected, ExpertLists, is_layer_lists

if TYPE_CHECKING:
    from vllm_surgery.imports.foreign import ForeignFile
    from vllm_surgery.imports.options import Counts, ImportOptions, Written
    from vllm_surgery.patch.document import Plain


def recognises(file: ForeignFile) -> bool:
    """True for lines of layers with lists: several lines, or a file whose name says that it is of lines."""
    by_line = len(file.values) > 1 or (file.name.endswith(".jsonl") and len(file.values) == 1)
    return by_line and all(map(is_layer_lists, file.values.values()))


def read(file: ForeignFile, options: ImportOptions, counts: Counts) -> ExpertLists:
    """The experts that are not among the first, as many as the ratio says.

    Raises:
        UsageError: no ratio was given.
        PatchError: it is no ranking.
        MismatchError: it isn't one of this model's experts.
    """
    if options.prune_ratio is None:
        raise UsageError(
            f"{file.source}: ranks each layer's experts, and doesn't say how many are taken out: give --prune-ratio "
            "(vLLM-Ascend's expert_prune_ratio); or --as drop-map if these are the experts to take out"
        )
    ranked = _ranked(file)
    if missing := sorted(set(counts) - set(ranked)):
        raise MismatchError(file.source, "", f"ranks no experts of layer {missing[0]}, which has some")
    pruned = Collected(file.source)
    for layer, experts in ranked.items():
        kept = set(_kept(file.source, layer, experts, counts.get(layer), options.prune_ratio))
        for expert in sorted({*range(counts[layer])} - kept):
            pruned.add(layer, expert, str(layer))
    return ExpertLists("mask", pruned.layers(), {"expert_prune_ratio": options.prune_ratio})


def _ranked(file: ForeignFile) -> dict[int, list[int]]:
    """Each layer's experts in their order."""
    ranked: dict[int, list[int]] = {}
    for line, value in file.values.items():
        place = f"line {line}"
        checked = Collected(file.source)
        checked.add_layers(value, place)
        for layer in checked.layers():
            if layer in ranked:
                raise PatchError(file.source, place, f"layer {layer} stands twice")
            ranked[layer] = _numbers(value, layer)
    if not ranked:
        raise PatchError(file.source, "", "is no ranking of experts: expected JSON lines of layers with lists")
    return ranked


def _numbers(value: Plain, layer: int) -> list[int]:
    assert isinstance(value, dict)  # It was read before.
    experts = value[str(layer)]
    assert isinstance(experts, list)
    return [expert for expert in experts if isinstance(expert, int)]


def _kept(source: str, layer: int, experts: list[int], total: int | None, ratio: float) -> list[int]:
    if total is None:
        raise MismatchError(source, f"layer {layer}", "the model has no routed experts there")
    if max(experts) >= total:
        raise MismatchError(source, f"layer {layer}", f"ranks expert {max(experts)}; the layer has {total} experts")
    number = kept_by(total, ratio)
    if len(experts) < number:
        raise MismatchError(
            source,
            f"layer {layer}",
            f"ranks {len(experts)} of its {total} experts, and {number} are kept at a ratio of {ratio:g}",
        )
    if number == total:
        raise UsageError(f"--prune-ratio {ratio:g}: keeps all {total} experts of layer {layer}")
    return experts[:number]


def kept_by(total: int, ratio: float) -> int:
    """How many of `total` experts vLLM-Ascend keeps at a ratio: the product, in floating point, cut."""
    return int(total * (1.0 - ratio))


def write(written: Written) -> str:
    """A ranking that keeps the other experts first. `ratio_of` gives the ratio that goes with it.

    Raises:
        UsageError: no model says how many experts there are.
        PatchError: the patch can't be said so.
    """
    ratio_of(written)
    lines = [
        {str(layer): [*sorted({*range(count)} - {*written.layers[layer]}), *written.layers[layer]]}
        for layer, count in sorted(written.counts.items())
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def ratio_of(written: Written) -> float:
    """The share of the experts that goes, which must be the same in every layer.

    Raises:
        UsageError: no model says how many experts there are.
        PatchError: it isn't, or the experts are silenced rather than masked.
    """
    if written.op == "zero":
        raise PatchError(
            written.source, "", "silences experts that the router still chooses (`zero`); a ranking takes them out of "
            "its choice (`mask`)",
        )  # fmt: skip
    if not written.counts:
        raise UsageError(f"{written.source}: a ranking lists all experts of every layer: give --model")
    shares = {layer: (len(written.layers.get(layer, ())), count) for layer, count in sorted(written.counts.items())}
    for (layer, share), (other, other_share) in pairwise(shares.items()):
        if share != other_share:
            raise PatchError(
                written.source, "", f"masks {share[0]} of {share[1]} experts in layer {layer} and {other_share[0]} of "
                f"{other_share[1]} in layer {other}; a ranking keeps as many in each",
            )  # fmt: skip
    pruned, total = next(iter(shares.values()))
    # Half an expert less, so that the cut falls on the right side of the product's rounding.
    return round((pruned - 0.5) / total, 6)
