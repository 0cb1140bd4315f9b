# SPDX-License-Identifier: Apache-2.0
"""From patches to what a slot holds, by the same planner as everything else, in whichever process asks for it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from vllm_surgery.engine.requests.admission import offered
from vllm_surgery.engine.requests.content import LostDirection, content_of
from vllm_surgery.engine.requests.ledger import Fill
from vllm_surgery.engine.swap.source_checkpoint import local_folder
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.planning.check import check_patches
from vllm_surgery.weights.arithmetic import responses
from vllm_surgery.weights.tensors import read_tensor

if TYPE_CHECKING:
    from vllm_surgery.patch.direction import Projection
    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.patch.units import Kind
    from vllm_surgery.planning.planner import UnitGains

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
        lost = lost_directions(plan.gains, self._folder)
        return content_of(asked.patches, plan.gains, plan.units, lost).to_data()


@dataclass(frozen=True)
class _Asked:
    """A patch set, equal to another that says the same."""

    digest: str
    patches: PatchSet = field(compare=False)


def _digest(data: list[dict[str, Any]]) -> str:
    """Of all that patches say, guards and seals included, which are no part of what they do."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def lost_directions(
    planned: tuple[UnitGains, ...], folder: ModelFolder
) -> dict[tuple[Kind, int], tuple[LostDirection, ...]]:
    """By kind and layer, the directions that neurons' outputs lose, and how much of them each does.

    That much is a product with the original weights, which are read for it: of one tensor at a time.
    """
    found: dict[tuple[Kind, int], tuple[LostDirection, ...]] = {}
    for layer in planned:
        columns: dict[Projection, list[int]] = defaultdict(list)
        for index, projection in zip(layer.indices, layer.projections, strict=True):
            if projection is not None:
                columns[projection].append(index)
        if columns:
            down = folder.anatomy.gated_mlps(layer.kind)[layer.layer].tensors["down"]
            weights = read_tensor(folder.stored[down.name])
            found[layer.kind, layer.layer] = tuple(_lost(weights, *each) for each in columns.items())
    return found


def _lost(weights: torch.Tensor, projection: Projection, columns: list[int]) -> LostDirection:
    chosen = weights.index_select(1, torch.tensor(columns)).to(torch.float64)
    each = responses(chosen, projection).tolist()
    return LostDirection(tuple(columns), tuple(each), projection.direction.numbers)
