# SPDX-License-Identifier: Apache-2.0
"""From patches to what a slot holds, by the same planner as everything else, in whichever process asks for it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.requests.admission import offered
from vllm_surgery.engine.requests.content import content_of
from vllm_surgery.engine.requests.ledger import Fill
from vllm_surgery.engine.swap.source_checkpoint import local_folder
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from vllm_surgery.patch.patch_set import PatchSet

_PLANS_KEPT = 16


class SlotPlanner:
    """Plans patches for the slots of one server.

    Headers of its checkpoint are read once, and what was planned lately isn't planned again: an A/B test goes to and
    fro between a few patches.

    Args:
        vllm_config: of the server.
    """

    def __init__(self, vllm_config: Any) -> None:
        self._config = vllm_config
        self._folder: ModelFolder | None = None
        self._content = lru_cache(_PLANS_KEPT)(self._plan)

    def fill(self, patches: PatchSet, *, kept: bool = True) -> Fill:
        """Plans a patch set for a slot.

        Args:
            patches: at least one.
            kept: whether it stays when it is no longer the default.

        Raises:
            MismatchError: the patches are not for this model.
            CheckpointError, CannotSwapError: its checkpoint can't be read here.
        """
        data = patches.to_data()
        return Fill(offered(patches), self._content(_Asked(_digest(data), patches)), kept, data)

    def _plan(self, asked: _Asked) -> dict[str, Any]:
        if self._folder is None:
            self._folder = ModelFolder(local_folder(self._config))
        plan = check_patches(asked.patches, self._folder, for_slots=True)
        return content_of(asked.patches, plan.gains, plan.units).to_data()


@dataclass(frozen=True)
class _Asked:
    """A patch set, equal to another that says the same."""

    digest: str
    patches: PatchSet = field(compare=False)


def _digest(data: list[dict[str, Any]]) -> str:
    """Of all that patches say, guards and seals included, which are no part of what they do."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
