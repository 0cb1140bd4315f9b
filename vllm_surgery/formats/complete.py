# SPDX-License-Identifier: Apache-2.0
"""Whether all tensors that units' gains go on came by, once all did: a quantised weight is stored in several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.formats.carriers import EACH_DTYPES, PLAIN_DTYPES
from vllm_surgery.refuse import refusal
from vllm_surgery.units import MASK

if TYPE_CHECKING:
    from vllm_surgery.anatomy import Anatomy, GatedMlp, RoutedExperts, TensorInfo
    from vllm_surgery.conventions import Role
    from vllm_surgery.formats.scheme import Scheme
    from vllm_surgery.units import Assignment


def refuse_incomplete(item: Assignment, anatomy: Anatomy, scheme: Scheme | None) -> None:
    """Units of a quantised model that lack a tensor which their gain needs, or that no single place can hold.

    Raises:
        MismatchError: there are some.
    """
    if scheme is None or item.gain == MASK:
        return
    scaled = not scheme.signs_codes(item.kind) or abs(item.gain) not in {0.0, 1.0}
    if item.kind == "neurons":
        reason = _reason_of_mlp(anatomy.mlps[item.layer], scheme, scaled)
    else:
        block = anatomy.experts[item.layer]
        reasons = (_reason_of_expert(block, index, scaled) for index in item.resolve(block.count))
        reason = next(filter(None, reasons), None)
    if reason:
        raise refusal(item, reason)


def _reason_of_mlp(mlp: GatedMlp, scheme: Scheme, scaled: bool) -> str | None:
    role: Role = "up" if "up" in mlp.tensors else "gate_up"
    up, down = mlp.tensors[role], mlp.tensors["down"]
    if _plain(up) and _plain(down):
        bias = mlp.beside.get((role, "bias"))
        odd = f"{bias[1].name} stands beside a plain weight in a quantised model" if scaled and bias else None
        return odd and f"{odd}, which isn't understood"
    if up.dtype != down.dtype:
        return f"{up.name} is stored as {up.dtype}, {down.name} as {down.dtype}; a gain needs them alike"
    return _reason_of_scales(mlp, scheme, role) if scaled else None


def _reason_of_scales(mlp: GatedMlp, scheme: Scheme, role: Role) -> str | None:
    up = mlp.tensors[role]
    if (role, "scales") not in mlp.beside:
        return f"{up.name} has no scales in a naming that is known"
    slot, scales = mlp.beside[role, "scales"]
    counted = [scales] if scheme.transposed else [up, scales]  # Packed along the outputs, codes don't count them.
    outputs = {info.shape[slot.spelling.out_axis] for info in counted}
    if mlp.tensors["down"].dtype in EACH_DTYPES:
        outputs.add(mlp.width * (2 if slot.part.halves else 1))
    if len(outputs) > 1:
        return f"{scales.name} {list(scales.shape)} doesn't hold a scale for each output of {up.name} {list(up.shape)}"
    return None


def _reason_of_expert(block: RoutedExperts, index: int, scaled: bool) -> str | None:
    if not scaled or not any(part.role == "down" for part in block.convention.carriers):
        return None
    expert = index if ("down", index) in block.tensors else None
    down = block.tensors["down", expert]
    if not _plain(down) and ("down", expert, "scales") not in block.beside:
        return f"{down.name} has no scales in a naming that is known"
    return None


def _plain(info: TensorInfo) -> bool:
    return info.dtype in PLAIN_DTYPES
