# SPDX-License-Identifier: Apache-2.0
"""Holding patches against a model folder before anything is served: guard, ranges, formats, seals."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vllm_surgery.errors import PatchError
from vllm_surgery.patch.document import MAX_BYTES
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.guard import guard_of
from vllm_surgery.planning.planner import Plan, Planner
from vllm_surgery.planning.seal import SealCheck, seal_of_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_surgery.model.checkpoint import ModelFolder


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
    planner = Planner(patches, folder.facts, for_slots=for_slots)
    seals = SealCheck(patches, folder.facts.scheme)
    for info in folder.tensors:
        role, _ = planner.observe(info)
        if role is not None:
            seals.observe(role, info, partial(folder.read_slice, info.name))
    plan = planner.finish()
    seals.finish()
    return plan


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
    patch = Patch.from_data(data, member.source)
    if len(patch.to_yaml()) > MAX_BYTES:
        raise PatchError(
            member.source, "seal", f"{len(patch.seal)} units make the file larger than 1 MiB; it can't be sealed"
        )
    return patch


def _seals(patch: Patch, model: ModelFolder) -> Iterator[tuple[str, str]]:
    widths = {"neurons": model.anatomy.widths(), "experts": model.anatomy.expert_counts()}
    for item in patch.assignments():
        for index in item.resolve(widths[item.kind][item.layer]):
            unit = Unit(item.kind, item.layer, index)
            yield str(unit), seal_of_folder(model, unit)
