# SPDX-License-Identifier: Apache-2.0
"""Which ops a block's tensors hold exactly, for people who ask before they have a patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.conventions import locate
from vllm_surgery.errors import MismatchError
from vllm_surgery.formats.carriers import carrier_of
from vllm_surgery.formats.complete import refuse_incomplete
from vllm_surgery.units import Assignment, IndexRange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_surgery.anatomy import Anatomy, TensorInfo
    from vllm_surgery.formats.carriers import Carrier
    from vllm_surgery.formats.scheme import Scheme
    from vllm_surgery.units import Kind

    Carried = tuple[TensorInfo, Carrier]

# An op, and a gain that stands for all of its gains. A power of two is worth naming only where others aren't held.
_OPS = {"scale": 0.7, "scale by powers of two": 0.5, "zero": 0.0, "negate": -1.0}
_POWERS = "scale by powers of two"


def carried(infos: Iterable[TensorInfo], scheme: Scheme | None) -> list[Carried]:
    """Of a block's tensors those that take a share of gains; biases aside, which only go along."""
    found = []
    for info in infos:
        slot = locate(info.name)
        carrier = None if slot is None or slot.spelling.stores == "bias" else carrier_of(slot, info, scheme)
        if carrier is not None:
            found.append((info, carrier))
    return found


def exact_ops(
    kind: Kind, layer: int, carriers: Iterable[Carried], anatomy: Anatomy, scheme: Scheme | None
) -> tuple[str, ...]:
    """The ops that are exact on the units of one layer."""
    shares = [carrier for _, carrier in carriers]
    held = [
        op
        for op, gain in _OPS.items()
        if not any(carrier.why_not(carrier.share(gain)) for carrier in shares)
        and any(carrier.share(gain) != 1 for carrier in shares)
        and _complete(Assignment(kind, layer, (IndexRange(0, 0),), gain, "", ""), anatomy, scheme)
    ]
    return tuple(op for op in held if op != _POWERS or "scale" not in held)


def _complete(item: Assignment, anatomy: Anatomy, scheme: Scheme | None) -> bool:
    try:
        refuse_incomplete(item, anatomy, scheme)
    except MismatchError:
        return False
    return True
