# SPDX-License-Identifier: Apache-2.0
"""Holding patches against a model folder before anything is served: guard, ranges, formats, seals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.errors import PatchError
from vllm_surgery.model.expert_neurons import width_inside
from vllm_surgery.patch.document import MAX_BYTES
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.guard import guard_of
from vllm_surgery.planning.planner import Planner
from vllm_surgery.planning.seal import SealCheck, seal_of_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.model.config import ModelFacts
    from vllm_surgery.model.tensor_info import TensorInfo
    from vllm_surgery.patch.units import Block
    from vllm_surgery.planning.planner import Plan, TensorEdit
    from vllm_surgery.planning.seal import ReadSlice


class PatchCheck:
    """Plans patches and verifies their seals, as the tensors of a model come by.

    Args:
        patches: what is asked for.
        facts: of the model's config.
        for_slots: whether activations are to take the gains, not weights.

    Raises:
        MismatchError: the config alone shows that the patches are not for this model.
    """

    def __init__(self, patches: PatchSet, facts: ModelFacts, *, for_slots: bool = False) -> None:
        self._planner = Planner(patches, facts, for_slots=for_slots)
        self._seals: SealCheck | None = SealCheck(patches, facts)

    def observe(self, info: TensorInfo, read_slice: ReadSlice) -> TensorEdit | None:
        """The edit of a tensor; None where it stays as it is.

        Args:
            info: the tensor's.
            read_slice: gives the bytes of a slice, by axis and index; of the whole tensor for axis None.

        Raises:
            MismatchError: this tensor shows that the patches are not for this model.
        """
        role, edit = self._planner.observe(info)
        if role is not None and self._seals is not None:
            self._seals.observe(role, info, read_slice)
        return edit

    def finish(self) -> Plan:
        """The plan, once every tensor came by. Seals are not verified again on tensors that come after that.

        Raises:
            MismatchError: a unit wasn't found, or a seal isn't whole.
        """
        plan = self._planner.finish()
        if self._seals is not None:
            self._seals.finish()
            self._seals = None
        return plan


def check_patches(patches: PatchSet, folder: ModelFolder, *, for_slots: bool = False) -> Plan:
    """Plans `patches` for the model in `folder` and verifies their seals.

    Args:
        patches: what is asked for.
        folder: the model's.
        for_slots: whether activations are to take the gains, not weights.

    Raises:
        MismatchError: the patches are not for this model.
        CheckpointError: the folder can't be read.
    """
    check = PatchCheck(patches, folder.facts, for_slots=for_slots)
    for info in folder.tensors:
        check.observe(info, folder.slices_of(info.name))
    return check.finish()


def seal_patch(member: SourcedPatch, model: ModelFolder) -> Patch:
    """A copy of the patch that fits only models with this architecture and shape and these units' weights.

    What its guard says already stays, and must be true of the model. Seals that it had are made anew.

    Raises:
        MismatchError: the patch is not for this model.
        PatchError: so many units are sealed that the file would be larger than a patch file may be.
        CheckpointError: the model can't be read.
    """
    unsealed = member.patch.model_copy(update={"seal": {}})
    check_patches(PatchSet((SourcedPatch(member.source, unsealed),)), model)
    data = unsealed.to_data()
    data["model"] = {**guard_of(model), **unsealed.model.given()}
    data["seal"] = dict(_seals(unsealed, model))
    # The edits as they were: directions that came from files stay named by these.
    patch = Patch.from_data(data, member.source).model_copy(update={"edits": unsealed.edits})
    if len(patch.to_yaml()) > MAX_BYTES:
        raise PatchError(
            member.source, "seal", f"{len(patch.seal)} units make the file larger than 1 MiB; it can't be sealed"
        )
    return patch


def _seals(patch: Patch, model: ModelFolder) -> Iterator[tuple[str, str]]:
    for item in patch.assignments():
        for index in item.resolve(units_in(model, item.block)):
            unit = Unit(item.kind, item.layer, index, item.expert)
            yield str(unit), seal_of_folder(model, unit)


def units_in(model: ModelFolder, block: Block) -> int:
    """The number of units of a block that the model has."""
    if block.expert is not None:
        return width_inside(model.anatomy.experts[block.layer], block.expert, model.facts)
    return model.anatomy.counts(block.kind)[block.layer]
