# SPDX-License-Identifier: Apache-2.0
"""The slots of a `vllm.LLM`, for Python code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.requests.admission import board_of
from vllm_surgery.engine.requests.engines import OfflineLedgers
from vllm_surgery.engine.requests.leader import SlotLeader, SlotState
from vllm_surgery.engine.requests.ledger import Change
from vllm_surgery.engine.requests.planning import SlotPlanner
from vllm_surgery.engine.swap.engines import run_sync
from vllm_surgery.errors import CannotSwapError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_surgery.patch.patch_set import PatchSet

NO_SLOTS = "this engine was started without slots; start it with the setting `slots`"


def change_slots(
    llm: Any,
    fill: Sequence[PatchSet] = (),
    *,
    default: str | Mapping[str, float] | None = None,
    free: Sequence[str] = (),
) -> SlotState:
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
    planner = SlotPlanner(llm.llm_engine.vllm_config)
    shares = {default: 1.0} if isinstance(default, str) else default
    change = Change(tuple(planner.fill(patches) for patches in fill), tuple(free), shares)
    return run_sync(SlotLeader(OfflineLedgers(llm), board).change(change)).state
