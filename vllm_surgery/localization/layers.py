# SPDX-License-Identifier: Apache-2.0
"""Which layers take part in loops: each one's MLP or routed experts silenced as a whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vllm_surgery.localization.candidates import Candidate, UnitKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vllm_surgery.anatomy import Anatomy
    from vllm_surgery.localization.candidates import Block
    from vllm_surgery.localization.measures import Measure
    from vllm_surgery.units import Kind

WHOLE_LAYER = -1
DESTROYED = 3.0
"""Nats a token on sound replies. A model that moved this far speaks another language: no loop there says nothing."""
SHARE = 1 / 3
"""Of the layers that are kept, where so many make a difference."""
LEAST = 4


def blocks(anatomy: Anatomy, kinds: Iterable[Kind]) -> list[Block]:
    """Every layer's MLP and its routed experts, as far as units of these kinds are to be tried."""
    found: dict[Kind, Iterable[int]] = {"neurons": anatomy.widths(), "experts": anatomy.expert_counts()}
    return [(kind, layer) for kind in kinds for layer in sorted(found[kind])]


def ablation(block: Block) -> Candidate:
    """All units of a block silenced."""
    return Candidate.of({UnitKey(*block, WHOLE_LAYER): 0.0}, "layer")


def that_matter(measures: Sequence[Measure]) -> list[Block]:
    """The blocks without which there are fewer loops in a language that is still the model's, the best first.

    All of them where none is: two blocks that do the same aren't found by silencing one.
    """
    told = [one for one in measures if one.loops.looped < one.loops.base and one.kl is not None and one.kl < DESTROYED]
    ranked = sorted(told, key=lambda one: (one.loops.looped, one.kl or 0.0, one.candidate.gains))
    kept = ranked[: max(LEAST, math.ceil(len(measures) * SHARE))] or list(measures)
    return [(one.candidate.gains[0][0].kind, one.candidate.gains[0][0].layer) for one in kept]
