# SPDX-License-Identifier: Apache-2.0
"""Holding patches against a model folder before anything is served: guard, ranges, formats, seals."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vllm_surgery.plan import Plan, Planner
from vllm_surgery.seal import SealCheck

if TYPE_CHECKING:
    from vllm_surgery.checkpoint import ModelFolder
    from vllm_surgery.stack import PatchSet


def review(patches: PatchSet, folder: ModelFolder) -> Plan:
    """Plans `patches` for the model in `folder` and verifies their seals.

    Raises:
        MismatchError: the patches are not for this model.
        CheckpointError: the folder can't be read.
    """
    planner, seals = Planner(patches, folder.facts), SealCheck(patches, folder.facts.scheme)
    for info in folder.tensors:
        slot, _ = planner.observe(info)
        if slot is not None:
            seals.observe(slot, info, partial(folder.read_slice, info.name))
    plan = planner.finish()
    seals.finish()
    return plan
