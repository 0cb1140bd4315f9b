# SPDX-License-Identifier: Apache-2.0
"""What the plugin does with vLLM, the touch points that each part takes, and what becomes of a server without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.engine import attributes, touchpoints
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from vllm_surgery.engine.touchpoints import TouchPoint


@dataclass(frozen=True)
class Offer:
    """One thing that the plugin does with vLLM.

    Attributes:
        group: the name of its touch points in `vllm_surgery.engine.touchpoints` and `vllm_surgery.engine.attributes`.
        without: what becomes of a server whose vLLM lacks one of them.
        spared: whether older vLLMs lack it, and the rest works.
    """

    group: str
    without: str
    spared: bool = False

    def points(self) -> tuple[TouchPoint, ...]:
        """Everything of vLLM's that it takes."""
        return (*getattr(touchpoints, self.group), *getattr(attributes, self.group, ()))

    def check(self) -> None:
        """Looks for everything that it takes.

        Raises:
            EngineError: this vLLM lacks one of them.
        """
        for point in self.points():
            point.get()


def loading_lost() -> str | None:
    """Reason why this vLLM doesn't let patches be applied; None where it does. Objects' attributes aren't looked at."""
    try:
        for point in touchpoints.FOR_LOADING:
            point.get()
    except EngineError as error:
        return str(error)
    return None


OFFERS = {
    "load": Offer("FOR_LOADING", "a server that asks for a patch is refused, others serve as if there were no plugin"),
    "serve": Offer("FOR_SERVING", "`vllm-surgery serve` is refused; `vllm serve` with --additional-config isn't"),
    "swap": Offer("FOR_SWAPPING", "a server serves its patches, and says that it can't swap them"),
    "mask": Offer("FOR_MASKING", "masks are refused in layers whose router has no bias of its own"),
    "localize": Offer("FOR_LOCALIZING", "`localize` measures models without experts, and refuses others"),
    "watch": Offer("FOR_WATCHING", "a server serves its patches, and doesn't watch for loops"),
    "rescue": Offer("FOR_RESCUE", "a server that is to rescue answers is refused", spared=True),
    "routes": Offer("FOR_ROUTES", "a server has no routes of ours, and one that needs them is refused"),
    "weight version": Offer("FOR_TELLING", "servers of several API processes aren't watched for loops", spared=True),
    "slots": Offer("FOR_SLOTS", "a server with slots is refused", spared=True),
    "slots on model runner V1": Offer("FOR_V1_SLOTS", "a server with slots is refused on that runner", spared=True),
    "slots on model runner V2": Offer("FOR_V2_SLOTS", "a server with slots is refused on that runner", spared=True),
    "slots for experts": Offer("FOR_EXPERT_SLOTS", "slots hold no patches of experts", spared=True),
    "patches by model name": Offer("FOR_NAMING", "a server with slots and routes is refused", spared=True),
}
"""By what people call it."""
