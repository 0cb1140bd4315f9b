# SPDX-License-Identifier: Apache-2.0
"""Reasons for which a model can't take what a sound patch asks for: each is one line with file, place and reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.anatomy import GatedMlp
from vllm_surgery.errors import MismatchError
from vllm_surgery.units import ALL, MASK

if TYPE_CHECKING:
    from vllm_surgery.anatomy import Anatomy, RoutedExperts, TensorInfo
    from vllm_surgery.checkpoint import ModelFacts
    from vllm_surgery.formats.carriers import Carrier
    from vllm_surgery.units import Assignment


def refuse_by_config(item: Assignment, facts: ModelFacts) -> None:
    """What the model's config alone shows: a layer or an expert that isn't there, an op that isn't supported.

    Raises:
        MismatchError: it can't be done.
    """
    layers = facts.num_hidden_layers
    if layers is not None and item.layer >= layers:
        raise refusal(item, f"layer {item.layer} is out of range: the model has {layers} layers")
    if item.kind == "experts" and facts.num_experts is not None:
        refuse_range(item, facts.num_experts)
    if item.gain == MASK:
        raise refusal(
            item,
            "mask isn't supported yet; scale, zero and negate are"
            if facts.num_experts
            else "touches no tensor: the model has no routed experts",
        )


def refuse_range(item: Assignment, width: int) -> None:
    """An index beyond the last of the layer's `width` units.

    Raises:
        MismatchError: there is one.
    """
    if item.indices != ALL and item.indices[-1].last >= width:
        largest = item.indices[-1].last
        raise refusal(item, f"index {largest} is out of range: layer {item.layer} has {width} {item.kind}")


def refuse_format(item: Assignment, info: TensorInfo, carrier: Carrier) -> None:
    """A number format that can't hold the edit exactly.

    Raises:
        MismatchError: `info` has one.
    """
    if item.gain != MASK and (reason := carrier.why_not(carrier.share(item.gain))):
        raise refusal(item, f"{info.name} {reason}")


def refuse_missing(item: Assignment, anatomy: Anatomy, facts: ModelFacts) -> None:
    """Units that no tensor of the whole checkpoint holds.

    Raises:
        MismatchError: there are some.
    """
    reason = _missing_mlp(item, anatomy) if item.kind == "neurons" else _missing_experts(item, anatomy, facts)
    if reason:
        hint = f"; the checkpoint is quantised ({facts.quantization})" if facts.quantization else ""
        raise refusal(item, f"touches no tensor: {reason}{hint}")


def _missing_mlp(item: Assignment, anatomy: Anatomy) -> str | None:
    missing = anatomy.mlps.get(item.layer, GatedMlp(item.layer)).missing()
    lacks = f"no {', '.join(missing)} projection"
    return f"layer {item.layer} has no gated MLP in a naming that is known ({lacks})" if missing else None


def _missing_experts(item: Assignment, anatomy: Anatomy, facts: ModelFacts) -> str | None:
    if not anatomy.experts:
        return f"the model has no routed experts{' in a naming that is known' if facts.num_experts else ''}"
    block = anatomy.experts.get(item.layer)
    if block is None:
        return f"layer {item.layer} has no routed experts"
    refuse_range(item, block.count)
    return next(filter(None, (_missing_expert(block, index) for index in item.resolve(block.count))), None)


def _missing_expert(block: RoutedExperts, index: int) -> str | None:
    missing = block.missing(index)
    return f"expert {index} of layer {block.layer} has no {' and no '.join(missing)} tensor" if missing else None


def refusal(item: Assignment, reason: str) -> MismatchError:
    """The error that says why these units can't have this gain."""
    return MismatchError(item.source, item.place, reason)
