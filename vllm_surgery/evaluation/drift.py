# SPDX-License-Identifier: Apache-2.0
"""Drift of an arm's next-token distributions on healthy text, as far as a server tells them.

A server gives the likeliest tokens of each place and no others. What it doesn't give is taken together as one "rest",
on both sides; a divergence of distributions that are made coarser is never larger than that of the distributions
themselves (the data processing inequality), so the figure is a lower bound. `exact_drift` has the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_surgery.evaluation.backends.base import TokenLogprobs

_MIN_REST = 1e-12
"""A rest below this is rounding: log-probabilities come with six digits."""


@dataclass(frozen=True)
class Drift:
    """One text under one arm, summed over its tokens.

    Attributes:
        text: which.
        tokens: how many.
        kl: nats, KL divergence of the arm's from the unpatched distribution, KL(unpatched || arm).
        agreed: tokens for which both would have chosen the same.
        base_loss: nats, negative log likelihood of the text, unpatched.
        loss: the same under the arm.
        rest: probability, unpatched, of what is taken together; 0 where the divergence is exact.
    """

    text: str
    tokens: int
    kl: float
    agreed: int
    base_loss: float
    loss: float
    rest: float


def drift(text: str, base: TokenLogprobs, arm: TokenLogprobs) -> Drift:
    """The drift between token log-probabilities of one text under two arms. They must be of the same tokens."""
    if base.targets != arm.targets:
        raise ValueError(f"{text}: cut into other tokens under the two arms")
    places = [_coarse_kl(first, second) for first, second in zip(base.tops, arm.tops, strict=True)]
    return Drift(
        text=text,
        tokens=len(base.targets),
        kl=sum(kl for kl, _ in places),
        agreed=sum(_likeliest(first) == _likeliest(second) for first, second in zip(base.tops, arm.tops, strict=True)),
        base_loss=-sum(base.logprobs),
        loss=-sum(arm.logprobs),
        rest=sum(rest for _, rest in places),
    )


def _coarse_kl(base: dict[int, float], arm: dict[int, float]) -> tuple[float, float]:
    """The divergence over the tokens that both give, and one rest; and the rest's probability in `base`."""
    both = base.keys() & arm.keys()
    rest, other = (max(_MIN_REST, 1 - sum(math.exp(side[token]) for token in both)) for side in (base, arm))
    # From the logarithms themselves: a probability that a float can't tell from 0 has one.
    known = sum(math.exp(base[token]) * (base[token] - arm[token]) for token in both if base[token] > -math.inf)
    return max(0.0, known + rest * math.log(rest / other)), rest


def _likeliest(top: dict[int, float]) -> int:
    return max(top, key=lambda token: (top[token], -token))
