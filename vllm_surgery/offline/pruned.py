# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that lost routed experts (REAP and the like): which of the original's experts each of theirs is.

Such tools cut experts and their rows of the router out and number the others anew. Which is which is found by the
content of a matrix that gains don't touch, or by the rows of the router where that changed too.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from vllm_surgery.model.checkpoint import TensorSlices
from vllm_surgery.model.conventions import classify_tensor
from vllm_surgery.model.quantization import WHOLE
from vllm_surgery.model.routers import layer_of_router
from vllm_surgery.model.tensor_info import FLOAT_DTYPES
from vllm_surgery.weights.tensors import bits, of_bytes, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllm_surgery.model.checkpoint import StoredTensor
    from vllm_surgery.model.conventions import PartName, TensorRole

    Stored: TypeAlias = Mapping[str, StoredTensor]

# Parts by which experts are told apart, the first that both checkpoints have. A gain stands on none of them.
_TELLING: tuple[PartName, ...] = ("gate_up", "up", "gate")
_OWN = re.compile(r"(?<=\.experts\.)([0-9]+)(?=\.)")


@dataclass
class _Experts:
    """The tensors of one layer's experts in one checkpoint.

    Attributes:
        own: by part and expert, where each has its own.
        shared: by part, where they share one.
        router: the weights of their router.
    """

    own: dict[tuple[PartName, int], StoredTensor] = field(default_factory=dict)
    shared: dict[PartName, StoredTensor] = field(default_factory=dict)
    router: StoredTensor | None = None

    @property
    def indices(self) -> list[int]:
        """The experts that there are, in order."""
        if self.own:
            return sorted({expert for _, expert in self.own})
        return list(range(max((item.info.shape[0] for item in self.shared.values() if item.info.shape), default=0)))

    def part(self, name: PartName, expert: int) -> tuple[StoredTensor, int | None] | None:
        """Where a part of an expert is: a tensor, and its slice of it; None for one of its own."""
        if (name, expert) in self.own:
            return self.own[name, expert], None
        return (self.shared[name], expert) if name in self.shared else None

    def row(self, expert: int) -> tuple[StoredTensor, int] | None:
        """Where the router's row for an expert is."""
        router = self.router
        return None if router is None or expert >= router.info.shape[0] else (router, expert)


@dataclass(frozen=True)
class Pruned:
    """A layer that has fewer experts than it had.

    Attributes:
        layer: which.
        had: the experts that it had.
        kept: which of those each of the edited checkpoint's experts is; None for one that is none of them.
    """

    layer: int
    had: tuple[int, ...]
    kept: dict[int, int | None]

    @property
    def strange(self) -> list[int]:
        """The edited checkpoint's experts that are none of the original's."""
        return [expert for expert, original in self.kept.items() if original is None]

    @property
    def gone(self) -> tuple[int, ...]:
        """The original's experts that are no longer there."""
        return tuple(sorted({*self.had} - {original for original in self.kept.values() if original is not None}))


def find_pruned(base: Stored, edited: Stored) -> dict[int, Pruned]:
    """The layers of `edited` that have fewer experts than in `base`. Only their experts are read.

    Args:
        base: the original's tensors.
        edited: the other's.

    Raises:
        CheckpointError: a file can't be read.
    """
    before, after = _experts(base), _experts(edited)
    return {
        layer: Pruned(layer, tuple(experts.indices), _matched(experts, after[layer]))
        for layer, experts in sorted(before.items())
        if layer in after and 0 < len(after[layer].indices) < len(experts.indices)
    }


def original_name(name: str, pruned: Mapping[int, Pruned]) -> str | None:
    """The name that a tensor of the edited checkpoint had in the original; None where its expert is none of that's."""
    role = classify_tensor(name)
    if role is None or role.expert is None or role.layer not in pruned:
        return name
    original = pruned[role.layer].kept.get(role.expert)
    return None if original is None else _OWN.sub(str(original), name)


def is_gone(name: str, pruned: Mapping[int, Pruned]) -> bool:
    """True for a tensor of the original's that belongs to an expert which none of the edited checkpoint's is."""
    role = classify_tensor(name)
    return role is not None and role.layer in pruned and role.expert in pruned[role.layer].gone


def _experts(stored: Stored) -> dict[int, _Experts]:
    found: dict[int, _Experts] = defaultdict(_Experts)
    for tensor in stored.values():
        role = classify_tensor(tensor.info.name)
        if role is not None and role.kind == "experts" and role.suffix.stores in WHOLE:
            _take(found[role.layer], role, tensor)
        elif role is None and (layer := layer_of_router(tensor.info.name)) is not None and len(tensor.info.shape) > 1:
            found[layer].router = tensor
    return {layer: experts for layer, experts in found.items() if experts.own or experts.shared}


def _take(experts: _Experts, role: TensorRole, tensor: StoredTensor) -> None:
    if role.expert is not None:
        experts.own[role.part.name, role.expert] = tensor
    elif role.part.unit_axis == 0:
        experts.shared[role.part.name] = tensor


def _matched(before: _Experts, after: _Experts) -> dict[int, int | None]:
    """For each of the edited layer's experts the original's: by content, else by the router's row."""
    kept: dict[int, int | None] = {}
    part = next((name for name in _TELLING if _has(before, name) and _has(after, name)), None)
    by_content = {} if part is None else _matches(_hashes(before, part, after), _hashes(after, part, after))
    by_row = _matches(_row_hashes(before, after), _row_hashes(after, after))
    for expert in after.indices:
        candidates, rows = by_content.get(expert, set()), by_row.get(expert, set())
        free = (candidates & rows or candidates or rows) - set(kept.values())
        kept[expert] = min(free, default=None)  # Experts that are alike are kept in their order.
    return kept


def _has(experts: _Experts, part: PartName) -> bool:
    return all(experts.part(part, expert) is not None for expert in experts.indices)


def _matches(before: Mapping[int, str], after: Mapping[int, str]) -> dict[int, set[int]]:
    by_hash: dict[str, set[int]] = defaultdict(set)
    for expert, content in before.items():
        by_hash[content].add(expert)
    return {expert: by_hash[content] for expert, content in after.items() if content in by_hash}


def _hashes(experts: _Experts, part: PartName, like: _Experts) -> dict[int, str]:
    places = {expert: experts.part(part, expert) for expert in experts.indices}
    model = like.part(part, like.indices[0])
    return dict(_hashed(places, model))


def _row_hashes(experts: _Experts, like: _Experts) -> dict[int, str]:
    return dict(_hashed({expert: experts.row(expert) for expert in experts.indices}, like.row(like.indices[0])))


def _hashed(
    places: Mapping[int, tuple[StoredTensor, int | None] | None], like: tuple[StoredTensor, int | None] | None
) -> Iterator[tuple[int, str]]:
    """The hash of each slice, in the number format of another where both are floats."""
    if like is None:
        return
    readers: dict[str, TensorSlices] = {}
    for expert, place in places.items():
        if place is None:
            continue
        stored, index = place
        reader = readers.setdefault(stored.info.name, TensorSlices(stored))
        content = reader(None, 0) if index is None else reader(0, index)
        if stored.info.dtype != like[0].info.dtype and {stored.info.dtype, like[0].info.dtype} <= FLOAT_DTYPES:
            content = bits(of_bytes(content, stored.info.dtype).to(torch_dtype(like[0].info.dtype))).numpy().data
        yield expert, hashlib.sha256(content).hexdigest()
