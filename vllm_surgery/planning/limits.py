# SPDX-License-Identifier: Apache-2.0
"""Reasons for which a model can't take what a sound patch asks for: each is one line with file, place and reason."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vllm_surgery.errors import MismatchError
from vllm_surgery.model.anatomy import GatedMlp
from vllm_surgery.model.expert_neurons import gated_mlp_of, why_at_odds
from vllm_surgery.model.routers import LOWEST
from vllm_surgery.model.tensor_info import FLOAT_DTYPES, UNPACKED_DTYPES
from vllm_surgery.patch.units import ALL, INSIDE, MASK, NEURON_KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.model.anatomy import Anatomy, RoutedExperts
    from vllm_surgery.model.config import ModelFacts
    from vllm_surgery.model.conventions import PartName
    from vllm_surgery.model.quantization import Scheme
    from vllm_surgery.model.tensor_info import TensorInfo
    from vllm_surgery.patch.units import Assignment
    from vllm_surgery.planning.carriers import Carrier


def check_config(item: Assignment, facts: ModelFacts) -> None:
    """Refuses a layer or an expert that, by the model's config alone, isn't there.

    Raises:
        MismatchError: it can't be done.
    """
    layers = facts.num_hidden_layers
    if layers is not None and item.layer >= layers:
        raise refusal(item, f"layer {item.layer} is out of range: the model has {layers} layers")
    if item.kind == "experts" and facts.num_experts is not None:
        check_range(item, facts.num_experts)
    if facts.num_experts is not None:
        check_expert(item, facts.num_experts)


def refuse_constant(item: Assignment) -> None:
    """A constant, which no weight can hold.

    Raises:
        MismatchError: it is one.
    """
    if item.addend:
        op = "add" if item.gain else "set"
        raise refusal(
            item,
            f"op `{op}` puts a constant where weights only put multiples, so it can't be loaded, baked, exported or "
            "swapped into weights; a server with --patch-slots can serve it",
        )


def refuse_inside(item: Assignment) -> None:
    """A neuron inside an expert, whose activation no slot reaches.

    Raises:
        MismatchError: it is one.
    """
    if item.expert is not None:
        raise refusal(
            item,
            "neurons inside an expert are edited in weights only: start the server without --patch-slots, or bake the "
            "patch",
        )


def check_expert(item: Assignment, count: int) -> None:
    """Neurons inside an expert beyond the last of the layer's `count`.

    Raises:
        MismatchError: there are some.
    """
    if item.expert is not None and item.expert >= count:
        raise refusal(item, f"expert {item.expert} is out of range: layer {item.layer} has {count} experts")


def check_range(item: Assignment, width: int) -> None:
    """An index beyond the last of the layer's, or the expert's, `width` units.

    Raises:
        MismatchError: there is one.
    """
    if item.indices != ALL and item.indices[-1].last >= width:
        largest = item.indices[-1].last
        block = item.block
        raise refusal(item, f"index {largest} is out of range: {block.place} has {width} {block.words}")


def check_format(item: Assignment, info: TensorInfo, carrier: Carrier) -> None:
    """A number format that can't hold the edit exactly.

    Raises:
        MismatchError: `info` has one.
    """
    if item.gain != MASK and (reason := carrier.why_unsupported(carrier.factor(item.gain))):
        raise refusal(item, f"{info.name} {reason}")


def check_projection(item: Assignment, info: TensorInfo) -> None:
    """A down projection whose columns can't lose a direction.

    Raises:
        MismatchError: it is stored in numbers that can't be computed anew, or the direction is of another model.
    """
    if item.projection is None:
        return
    if info.dtype not in FLOAT_DTYPES:
        raise refusal(
            item,
            f"{info.name} is stored as {info.dtype}, and an edit by a direction computes weights anew, which "
            f"{', '.join(sorted(FLOAT_DTYPES))} alone can hold",
        )
    if len(info.shape) == 2 and info.shape[0] != len(item.projection.direction):  # noqa: PLR2004 - a matrix
        raise refusal(
            item, f"the direction has {len(item.projection.direction)} numbers, {info.name} writes {info.shape[0]}"
        )


def check_router_format(item: Assignment, info: TensorInfo) -> None:
    """A router's bias in a number format that can't hold a mask.

    Raises:
        MismatchError: `info` is one.
    """
    if info.dtype not in LOWEST:
        raise refusal(item, f"{info.name} is stored as {info.dtype}, in which this version can hold no mask")


def check_present(item: Assignment, anatomy: Anatomy, facts: ModelFacts) -> None:
    """Units that no tensor of the whole checkpoint holds.

    Raises:
        MismatchError: there are some.
    """
    if item.kind == INSIDE:
        reason = _missing_inside(item, anatomy, facts)
    else:
        reason = _missing_experts(item, anatomy, facts) if item.kind == "experts" else _missing_mlp(item, anatomy)
    if reason:
        hint = f"; the checkpoint is quantised ({facts.quantization})" if facts.quantization else ""
        raise refusal(item, f"touches no tensor: {reason}{hint}")


def check_masks(masks: Sequence[Assignment], anatomy: Anatomy, facts: ModelFacts) -> None:
    """Masks in a layer whose router isn't known, or that leave the router too little to choose from.

    Args:
        masks: all masks of one layer, one at least.
        anatomy: of the whole checkpoint.
        facts: what the model's config says.

    Raises:
        MismatchError: it can't be done.
    """
    first, layer = masks[0], masks[0].layer
    router, count = anatomy.routers.get(layer), anatomy.experts_in(layer)
    if count is None and not facts.num_experts:
        raise refusal(first, "touches no tensor: the model has no routed experts")
    if router is None or count is None:
        raise refusal(first, f"touches no tensor: layer {layer} has no router in a naming that is known")
    if router.other_bias is not None:
        raise refusal(first, f"layer {layer}'s router has a bias on which no mask can be put: {router.other_bias.name}")
    for item in masks:
        check_range(item, count)
    masked = {index for item in masks for index in item.resolve(count)}
    if reason := why_too_few_left(sorted({*range(count)} - masked), count, facts, sums_of_two=router.corrects):
        raise refusal(first, f"masks {len(masked)} of the {count} experts of layer {layer}: {reason}")


def why_too_few_left(left: Sequence[int], count: int, facts: ModelFacts, *, sums_of_two: bool) -> str | None:
    """The reason why a router can't choose from the experts that are left; None if it can.

    Args:
        left: those that aren't masked.
        count: of all experts.
        facts: how many the router chooses, and out of how many groups of them.
        sums_of_two: whether it compares groups by the sum of their best two scores, not by their best.
    """
    chosen = facts.experts_per_token or 1
    if len(left) < chosen:
        return f"too few are left for the router, which chooses {chosen}"
    groups, chosen_groups = facts.expert_groups or 1, facts.groups_per_token or 1
    if groups <= 1 or count % groups:
        return None
    sizes = Counter(index * groups // count for index in left)
    alone = [group for group, size in sorted(sizes.items()) if size == 1]
    if sums_of_two and alone and count // groups > 1:
        return f"one is left in group {alone[0]}, and the router compares groups by their best two"
    if len(sizes) < chosen_groups:
        return f"too few groups keep any for the router, which chooses {chosen_groups} groups"
    if (fewest := sum(sorted(sizes.values())[:chosen_groups])) < chosen:
        return f"too few may be left in the groups that the router chooses, {fewest}, and it chooses {chosen} experts"
    return None


def _missing_mlp(item: Assignment, anatomy: Anatomy) -> str | None:
    missing = anatomy.gated_mlps(item.kind).get(item.layer, GatedMlp(item.layer)).missing()
    block = "shared expert" if item.kind == "shared" else "gated MLP"
    lacks = f"no {', '.join(missing)} projection"
    hint = (
        "; its shared expert's neurons are named by `shared`"
        if item.kind == "neurons" and item.layer in anatomy.shared
        else ""
    )
    return f"layer {item.layer} has no {block} in a naming that is known ({lacks}){hint}" if missing else None


def _missing_block(item: Assignment, anatomy: Anatomy, facts: ModelFacts) -> str:
    if not anatomy.experts:
        return f"the model has no routed experts{' in a naming that is known' if facts.num_experts else ''}"
    return f"layer {item.layer} has no routed experts"


def _missing_inside(item: Assignment, anatomy: Anatomy, facts: ModelFacts) -> str | None:
    block, expert = anatomy.experts.get(item.layer), item.expert
    if block is None or expert is None:
        return _missing_block(item, anatomy, facts)
    missing = gated_mlp_of(block, expert, facts).missing()
    if missing or ("down", expert) not in block.tensors:  # Counting them takes its time.
        check_expert(item, block.count)
    if missing:
        return f"expert {expert} of layer {item.layer} has no {' and no '.join(missing)} tensor"
    return why_at_odds(block, facts)


def _missing_experts(item: Assignment, anatomy: Anatomy, facts: ModelFacts) -> str | None:
    block = anatomy.experts.get(item.layer)
    if block is None:
        return _missing_block(item, anatomy, facts)
    check_range(item, block.count)
    return next(filter(None, (_missing_expert(block, index) for index in item.resolve(block.count))), None)


def _missing_expert(block: RoutedExperts, index: int) -> str | None:
    missing = block.missing(index)
    return f"expert {index} of layer {block.layer} has no {' and no '.join(missing)} tensor" if missing else None


def refusal(item: Assignment, reason: str) -> MismatchError:
    """The error that says why these units can't have this gain."""
    return MismatchError(item.source, item.place, reason)


def check_complete(item: Assignment, anatomy: Anatomy, facts: ModelFacts) -> None:
    """Units of a quantised model that lack a tensor which their gain needs, or that no single place can hold.

    Raises:
        MismatchError: there are some.
    """
    scheme = facts.scheme
    if scheme is None or item.gain == MASK:
        return
    scaled = not scheme.signs_codes(item.kind) or abs(item.gain) not in {0.0, 1.0}
    if item.kind in NEURON_KINDS:
        reason = _reason_of_mlp(anatomy.gated_mlps(item.kind)[item.layer], scheme, scaled)
    elif item.expert is not None:
        reason = _reason_of_mlp(gated_mlp_of(anatomy.experts[item.layer], item.expert, facts), scheme, scaled)
    else:
        block = anatomy.experts[item.layer]
        reasons = (_reason_of_expert(block, index, scaled) for index in item.resolve(block.count))
        reason = next(filter(None, reasons), None)
    if reason:
        raise refusal(item, reason)


def _reason_of_mlp(mlp: GatedMlp, scheme: Scheme, scaled: bool) -> str | None:
    part_name: PartName = "up" if "up" in mlp.tensors else "gate_up"
    up, down = mlp.tensors[part_name], mlp.tensors["down"]
    if _plain(up) and _plain(down):
        bias = mlp.quant_params.get((part_name, "bias"))
        odd = f"{bias[1].name} stands beside a plain weight in a quantised model" if scaled and bias else None
        return odd and f"{odd}, which isn't understood"
    if up.dtype != down.dtype:
        return f"{up.name} is stored as {up.dtype}, {down.name} as {down.dtype}; a gain needs them alike"
    return _reason_of_scales(mlp, scheme, part_name) if scaled else None


def _reason_of_scales(mlp: GatedMlp, scheme: Scheme, part_name: PartName) -> str | None:
    up = mlp.tensors[part_name]
    if (part_name, "scales") not in mlp.quant_params:
        return f"{up.name} has no scales in a naming that is known"
    role, scales = mlp.quant_params[part_name, "scales"]
    counted = [scales] if scheme.transposed else [up, scales]  # Packed along the outputs, codes don't count them.
    outputs = {info.shape[role.suffix.out_axis] for info in counted}
    if mlp.tensors["down"].dtype in UNPACKED_DTYPES:
        outputs.add(mlp.width * (2 if role.part.halves else 1))
    if len(outputs) > 1:
        return f"{scales.name} {list(scales.shape)} doesn't hold a scale for each output of {up.name} {list(up.shape)}"
    return None


def _reason_of_expert(block: RoutedExperts, index: int, scaled: bool) -> str | None:
    if not scaled or not any(part.name == "down" for part in block.convention.carriers):
        return None
    expert = index if ("down", index) in block.tensors else None
    down = block.tensors["down", expert]
    if not _plain(down) and ("down", expert, "scales") not in block.quant_params:
        return f"{down.name} has no scales in a naming that is known"
    return None


def _plain(info: TensorInfo) -> bool:
    return info.dtype in FLOAT_DTYPES
