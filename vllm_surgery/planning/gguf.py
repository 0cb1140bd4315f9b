# SPDX-License-Identifier: Apache-2.0
"""Plans of patches on the model in a GGUF file: which slices of which tensors get which gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.errors import MismatchError
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.patch.units import MASK
from vllm_surgery.planning.limits import refusal
from vllm_surgery.planning.planner import Planner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm_surgery.model.gguf_file import GgufTensor
    from vllm_surgery.model.gguf_model import GgufModel
    from vllm_surgery.patch.units import Assignment
    from vllm_surgery.planning.planner import UnitGains


@dataclass(frozen=True)
class GgufEdit:
    """Gains for slices of one tensor, by their index along its first axis."""

    tensor: GgufTensor
    gains: Mapping[int, float]


@dataclass(frozen=True)
class GgufPlan:
    """Everything that patches do to a GGUF file.

    Attributes:
        id: of the patch set.
        units: how many neurons and experts get a gain.
    """

    id: str
    edits: tuple[GgufEdit, ...]
    units: int


def unprovable(patches: PatchSet) -> PatchSet:
    """The same patches without what no GGUF file can prove: seals, and a model's name and commit on the Hub."""
    members = []
    for member in patches.members:
        guard = member.patch.model.model_copy(update={"base": None, "revision": None})
        members.append(SourcedPatch(member.source, member.patch.model_copy(update={"seal": {}, "model": guard})))
    return PatchSet(tuple(members))


def plan_gguf(patches: PatchSet, model: GgufModel, why_unsupported: Callable[[GgufTensor], str | None]) -> GgufPlan:
    """Plans `patches` for a GGUF file.

    Args:
        patches: what is asked for.
        model: the file's.
        why_unsupported: says why a tensor's type holds no gain; None where it does.

    Raises:
        MismatchError: the patches are not for this model, or ask for what no scale of a block can say.
        CheckpointError: the tensors are not those of a model that is understood.
    """
    for member in patches.members:
        if member.patch.seal:
            raise MismatchError(
                member.source,
                "seal",
                "seals are hashes of the original checkpoint's weights, which a GGUF file doesn't have; "
                "--unproven bakes without them",
            )
    for item in patches.assignments():
        _refuse_other_ops(item)
    # Gains by unit, whatever may hold them, are what slots take too.
    planner = Planner(patches, model.facts, for_slots=True, inside=True)
    for info in model.infos():
        planner.observe(info)
    plan = planner.finish()
    by_block = {item.block: item for item in patches.assignments()}
    edits: list[GgufEdit] = []
    for gains in plan.gains:
        edits += _edits_of(gains, model, by_block[gains.block], why_unsupported)
    return GgufPlan(patches.id, tuple(edits), plan.units)


def _refuse_other_ops(item: Assignment) -> None:
    if item.gain == MASK:
        raise refusal(item, "a GGUF file has no place for masks; zero silences an expert that is chosen")
    if item.addend:
        op = "add" if item.gain else "set"
        raise refusal(
            item, f"op `{op}` puts a constant where weights only put multiples; a server with --patch-slots can"
        )
    if item.projection is not None:
        raise refusal(
            item,
            "op `project` computes weights anew, which blocks of a GGUF file can't hold; bake the checkpoint's own "
            "folder and convert that",
        )


def _edits_of(
    gains: UnitGains, model: GgufModel, item: Assignment, why_unsupported: Callable[[GgufTensor], str | None]
) -> list[GgufEdit]:
    carrier = model.carrier(gains.block)
    by_unit = {
        index + carrier.first: gain
        for index, gain in zip(gains.indices, gains.gains, strict=True)
        if isinstance(gain, float)
    }
    tensors = [carrier.tensor] if carrier.bias is None else [carrier.tensor, carrier.bias]
    for tensor in tensors:
        if reason := why_unsupported(tensor):
            raise refusal(item, reason)
    return [GgufEdit(tensor, by_unit) for tensor in tensors]
