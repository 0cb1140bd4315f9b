# SPDX-License-Identifier: Apache-2.0
"""The slots of a `vllm.LLM`, for Python code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.requests.admission import board_of
from vllm_surgery.engine.requests.engines import OfflineLedgers
from vllm_surgery.engine.requests.leader import SlotLeader
from vllm_surgery.engine.requests.planning import SlotPlanner
from vllm_surgery.engine.requests.swapper import SlotSwapper
from vllm_surgery.engine.swap.engines import OfflineEngine, run_sync
from vllm_surgery.errors import CannotSwapError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_surgery.client.protocol import SlotsReport
    from vllm_surgery.engine.requests.board import Board
    from vllm_surgery.engine.requests.ledger import Fill
    from vllm_surgery.patch.patch_set import PatchSet

NO_SLOTS = "this engine has no slots: start it with the setting `slots`"


def slot_swapper(llm: Any, board: Board) -> SlotSwapper:
    """Changes the slots of an idle engine.

    Args:
        llm: the engine.
        board: what its requests are offered.
    """
    planner = SlotPlanner(llm.llm_engine.vllm_config)

    async def plan(patches: PatchSet, kept: bool) -> Fill:
        return planner.fill(patches, kept=kept)

    return SlotSwapper(OfflineEngine(llm), SlotLeader(OfflineLedgers(llm), board), plan)


def change_slots(
    llm: Any,
    fill: Sequence[PatchSet] = (),
    *,
    default: str | Mapping[str, float] | None = None,
    free: Sequence[str] = (),
) -> SlotsReport:
    """Fills slots, frees others and sets the default, all of it or nothing.

    Args:
        llm: that isn't inside one of its calls.
        fill: each a patch set of its own.
        default: a name, or names with their shares.
        free: names that are offered no more.

    Raises:
        SurgeryError: refused with the reason; nothing was changed.
    """
    board = board_of(llm.llm_engine.input_processor)
    if board is None:
        raise CannotSwapError(NO_SLOTS)
    swapper = slot_swapper(llm, board)
    shares = {default: 1.0} if isinstance(default, str) else default
    return run_sync(swapper.change(fill, free=free, shares=shares))
