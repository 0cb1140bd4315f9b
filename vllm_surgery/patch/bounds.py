# SPDX-License-Identifier: Apache-2.0
"""Bounds of what one patch may say, checked before it is looked at more closely.

Every further step takes time in proportion to a patch's size, at most times a logarithm; these keep the size itself
so small that a hostile patch costs a second. Real patches have a handful of edits.
"""

from __future__ import annotations

from typing import Any

from vllm_surgery.patch.selection import refusal
from vllm_surgery.patch.units import KINDS

MAX_EDITS = 4_096
"""Edits of a patch: each unit of the largest patch known could have one of its own."""

MAX_SPANS = 65_536
"""Indices and ranges that a patch may write down. The widest MLP known has 57,000 neurons; ranges and `all` count one
whatever they span."""


def check_size(data: object) -> object:
    """Checks the number of edits, and of indices in them.

    Raises:
        PydanticCustomError: there are more than a patch may have.
    """
    edits = data.get("edits") if isinstance(data, dict) else None
    if not isinstance(edits, list | tuple):
        return data
    if len(edits) > MAX_EDITS:
        raise refusal("edits", f"{len(edits)} edits; a patch may have at most {MAX_EDITS}")
    spans = sum(map(_spans_of, edits))
    if spans > MAX_SPANS:
        raise refusal("edits", f"{spans} indices and ranges; a patch may have at most {MAX_SPANS}")
    return data


def _spans_of(edit: object) -> int:
    selections: list[Any] = [edit.get(kind) for kind in KINDS] if isinstance(edit, dict) else []
    layers = [layer for item in selections if isinstance(item, dict) for layer in item.values()]
    named = [one for layer in layers for one in (layer.values() if isinstance(layer, dict) else [layer])]
    return sum(len(one) if isinstance(one, list | tuple) else 1 for one in named)
