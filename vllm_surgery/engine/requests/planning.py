# SPDX-License-Identifier: Apache-2.0
"""From patches to what a slot holds, by the same planner as everything else, in whichever process asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.requests.admission import offered
from vllm_surgery.engine.requests.content import content_of
from vllm_surgery.engine.requests.ledger import Fill
from vllm_surgery.engine.swap.source_checkpoint import local_folder
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from vllm_surgery.patch.patch_set import PatchSet


class SlotPlanner:
    """Plans patches for the slots of one server. Headers of its checkpoint are read once.

    Args:
        vllm_config: of the server.
    """

    def __init__(self, vllm_config: Any) -> None:
        self._config = vllm_config
        self._folder: ModelFolder | None = None

    def fill(self, patches: PatchSet, *, kept: bool = True) -> Fill:
        """Plans a patch set for a slot.

        Args:
            patches: at least one.
            kept: whether it stays when it is no longer the default.

        Raises:
            MismatchError: the patches are not for this model.
            CheckpointError, CannotSwapError: its checkpoint can't be read here.
        """
        if self._folder is None:
            self._folder = ModelFolder(local_folder(self._config))
        plan = check_patches(patches, self._folder, for_slots=True)
        content = content_of(patches, plan.gains, plan.units)
        return Fill(offered(patches), content.to_data(), kept, patches.to_data())
