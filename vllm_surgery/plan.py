# SPDX-License-Identifier: Apache-2.0
"""The planner: from patches and a model's tensors to edits in checkpoint coordinates.

It looks at tensors one by one, so the same code plans a whole folder before anything is served and a stream of
weights while it is loaded. What it makes is pure data; `vllm_surgery.arithmetic` carries it out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.anatomy import PLAIN_DTYPES, Anatomy, GatedMlp, Slot
from vllm_surgery.errors import MismatchError
from vllm_surgery.guard import check_guards, check_width
from vllm_surgery.units import ALL, MASK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_surgery.anatomy import TensorInfo
    from vllm_surgery.checkpoint import ModelFacts
    from vllm_surgery.stack import PatchSet
    from vllm_surgery.units import Assignment


@dataclass(frozen=True)
class TensorEdit:
    """Gains for some slices of one tensor.

    Attributes:
        tensor: its name in the checkpoint.
        dtype: safetensors' word for its number format.
        shape: its shape in the checkpoint.
        axis: the axis that `indices` count along: 0 for rows, 1 for columns.
        indices: the slices, ascending.
        gains: a factor for each.
    """

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    axis: int
    indices: tuple[int, ...]
    gains: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that patches do to one model.

    Attributes:
        id: of the patch set.
        edits: one a touched tensor, in the order of their names.
        units: how many neurons and experts get a gain.
    """

    id: str
    edits: tuple[TensorEdit, ...]
    units: int


class Planner:
    """Plans patches against a model that it sees tensor by tensor.

    Args:
        patches: what is asked for.
        facts: what the model's config says.

    Raises:
        MismatchError: the config alone shows that the patches are not for this model.
    """

    def __init__(self, patches: PatchSet, facts: ModelFacts) -> None:
        check_guards(patches, facts)
        self._patches = patches
        self._facts = facts
        self._anatomy = Anatomy(facts.num_hidden_layers)
        self._edits: dict[str, TensorEdit] = {}
        self._neurons: dict[int, list[Assignment]] = defaultdict(list)
        for item in patches.assignments():
            _refuse_experts(item, facts)
            _refuse_layer(item, facts)
            self._neurons[item.layer].append(item)

    def observe(self, info: TensorInfo) -> tuple[Slot | None, TensorEdit | None]:
        """Takes in one tensor; says what it is, and the edit that it needs.

        Raises:
            MismatchError: an index out of range, a width that the guard rules out, or a number format that can't
                hold the edit exactly.
            CheckpointError: the tensor doesn't fit what was seen before.
        """
        slot = self._anatomy.observe(info)
        if slot is None or slot.part.role != "down":
            return slot, None
        wanted = self._neurons.get(slot.layer, [])
        for item in wanted:
            _refuse_format(item, info, self._facts)
        if info.dtype in PLAIN_DTYPES:
            check_width(self._patches, slot.layer, info.shape[slot.part.unit_axis])
        if not wanted:
            return slot, None
        edit = _edit_of(info, slot, wanted)
        self._edits[info.name] = edit
        return slot, edit

    def finish(self) -> Plan:
        """The whole plan, once every tensor was seen.

        Raises:
            MismatchError: a unit that no tensor holds.
        """
        for layer, wanted in self._neurons.items():
            missing = self._anatomy.mlps.get(layer, GatedMlp(layer)).missing()
            if missing:
                reason = (
                    f"layer {layer} has no gated MLP in a naming that is known (no {', '.join(missing)} projection)"
                )
                hint = f"; the checkpoint is quantised ({self._facts.quantization})" if self._facts.quantization else ""
                raise MismatchError(wanted[0].source, wanted[0].place, f"touches no tensor: {reason}{hint}")
        edits = tuple(edit for _, edit in sorted(self._edits.items()))
        return Plan(self._patches.id, edits, sum(len(edit.indices) for edit in edits))


def plan(patches: PatchSet, facts: ModelFacts, tensors: Iterable[TensorInfo]) -> Plan:
    """Plans `patches` for a checkpoint with these tensors.

    Raises:
        MismatchError: the patches are not for this model; one line with file, place and reason.
        CheckpointError: the tensors are not those of a model that is understood.
    """
    planner = Planner(patches, facts)
    for info in tensors:
        planner.observe(info)
    return planner.finish()


def _edit_of(info: TensorInfo, slot: Slot, wanted: list[Assignment]) -> TensorEdit:
    """A neuron's gain goes on its column of the down projection, which every plain number format holds exactly."""
    width = info.shape[slot.part.unit_axis]
    gains: dict[int, float] = {}
    for item in wanted:
        _refuse_range(item, width)
        assert item.gain != MASK  # The format has no mask for neurons.
        gains.update(dict.fromkeys(item.resolve(width), item.gain))
    indices = tuple(sorted(gains))
    return TensorEdit(
        info.name, info.dtype, info.shape, slot.part.unit_axis, indices, tuple(gains[index] for index in indices)
    )


def _refuse_experts(item: Assignment, facts: ModelFacts) -> None:
    if item.kind == "experts":
        known = "this version edits the neurons of dense MLPs, not yet experts"
        reason = known if facts.num_experts else "the model has no routed experts"
        raise MismatchError(item.source, item.place, f"touches no tensor: {reason}")


def _refuse_layer(item: Assignment, facts: ModelFacts) -> None:
    layers = facts.num_hidden_layers
    if layers is not None and item.layer >= layers:
        raise MismatchError(
            item.source, item.place, f"layer {item.layer} is out of range: the model has {layers} layers"
        )


def _refuse_range(item: Assignment, width: int) -> None:
    if item.indices == ALL:
        return
    largest = item.indices[-1].last
    if largest >= width:
        raise MismatchError(
            item.source, item.place, f"index {largest} is out of range: layer {item.layer} has {width} neurons"
        )


def _refuse_format(item: Assignment, info: TensorInfo, facts: ModelFacts) -> None:
    if info.dtype not in PLAIN_DTYPES:
        raise MismatchError(
            item.source,
            item.place,
            f"{info.name} is stored as {info.dtype}"
            + (f" ({facts.quantization})" if facts.quantization else "")
            + f", in which this version can hold no op exactly; it edits {', '.join(sorted(PLAIN_DTYPES))}",
        )
