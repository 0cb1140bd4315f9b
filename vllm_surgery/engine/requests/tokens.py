# SPDX-License-Identifier: Apache-2.0
"""The slot of each token of a step, in a tensor that never moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPARE_TOKENS = 512
"""Beyond the most tokens that a step is scheduled with: batches are padded to sizes that graphs and ranks like."""


class TokenSlots:
    """The slot of each token of a step.

    Compiled code and CUDA graphs hold `slots`, so it is written in place. Behind the tokens of a step of which any has
    a slot it keeps what was there before: padding may have any. After such steps all are 0 until a token has a slot
    again, since steps without one write nothing, however many tokens they have.

    Args:
        most: tokens in a step.
        device: of the model.

    Attributes:
        slots: ``[most]``.
        any: whether a token of this step has a slot but 0. Only of use where it is looked at at every step: on the
            host, in code that no graph holds.
    """

    def __init__(self, most: int, device: torch.device) -> None:
        self.slots = torch.zeros(most + SPARE_TOKENS, dtype=torch.int64, device=device)
        self.any = False

    def step(self, slots: NDArray[np.int64], counts: NDArray[np.integer]) -> None:
        """Says whose tokens come next.

        Args:
            slots: one a request, in the batch's order.
            counts: tokens of each request in this step.
        """
        was, self.any = self.any, bool(slots.any())
        if not self.any:
            if was:
                self.slots.zero_()
            return
        tokens = torch.from_numpy(np.repeat(slots, counts))
        if self.slots.device.type != "cpu":
            # Pinned memory is new for each step: the copy of the last one may still be under way.
            tokens = tokens.pin_memory()
        self.slots[: len(tokens)].copy_(tokens, non_blocking=True)
