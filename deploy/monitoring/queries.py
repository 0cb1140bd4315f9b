# SPDX-License-Identifier: Apache-2.0
"""Pieces of PromQL that panels and rules share. All of them aggregate first and divide then, and never by zero."""

from __future__ import annotations

from typing import Literal

Z = 1.96
"""Standard deviations either side of a 95 % interval."""

REQUESTS = "vllm_surgery_requests_total"
LOOPS = "vllm_surgery_loops_total"


def total(function: Literal["rate", "increase"], series: str, window: str, by: str = "") -> str:
    """``sum by (by) (function(series[window]))``; the window may be ``1d offset 1h``."""
    length, _, offset = window.partition(" ")
    return f"{_grouped('sum', by)}({function}({series}[{length}]{f' {offset}' if offset else ''}))"


def now(series: str, by: str = "") -> str:
    """``sum by (by) (series)``."""
    return f"{_grouped('sum', by)}({series})"


def _grouped(function: str, by: str) -> str:
    return f"{function} by ({by}) " if by else function


def ratio(part: str, whole: str, matching: str = "") -> str:
    """``part / whole`` where there is a whole; nothing where it is zero."""
    return f"{part} /{_spaced(matching)}({whole} > 0)"


def wilson(part: str, whole: str, bound: Literal["lower", "upper"], matching: str = "") -> str:
    """A bound of the 95 % Wilson interval for the share that `part` is of `whole`, both numbers of answers.

    Nothing where `whole` is zero. An answer that loops in two ways is two loops, so `part` may exceed `whole` by a
    little; the bounds stay between 0 and 1.

    Source: E. B. Wilson, JASA 22 (1927), 209-212, with numerator and denominator multiplied by the whole.
    """
    some, spaced = f"({whole} > 0)", _spaced(matching)
    spread = f"{Z} * sqrt(clamp_min({part} - ({part}) ^ 2 /{spaced}{some}, 0) + {Z * Z / 4:.4f})"
    sign = "-" if bound == "lower" else "+"
    centre = f"{part} + {Z * Z / 2:.4f}"
    return f"clamp(\n  ({centre} {sign} {spread})\n  /{spaced}({some} + {Z * Z:.4f}),\n  0, 1)"


def _spaced(matching: str) -> str:
    return f" {matching} " if matching else " "


Counted = tuple[str, str]
"""Two expressions: how many answers looped, and how many there were."""

EACH = "on () group_left ()"
"""Matches every series on the left with the one on the right that has no labels."""

POWER = 7.849
"""(1.960 + 0.842) squared: for a two-sided test at 5 % that finds the difference four times out of five."""


def difference(arm: Counted, control: Counted) -> str:
    """The rate of each arm, less that of the control, which has no labels."""
    return f"(({ratio(*arm)}) - {EACH} ({ratio(*control)}))"


def newcombe(arm: Counted, control: Counted, bound: Literal["lower", "upper"]) -> str:
    """A bound of the 95 % interval for `difference`, from the Wilson intervals of both.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998), 873-890, method 10.
    """
    other: Literal["lower", "upper"] = "upper" if bound == "lower" else "lower"
    own = f"(({ratio(*arm)}) - ({wilson(*arm, bound)})) ^ 2"
    others = f"(({ratio(*control)}) - ({wilson(*control, other)})) ^ 2"
    sign = "-" if bound == "lower" else "+"
    return f"{difference(arm, control)} {sign} sqrt({own} + {EACH} {others})"


def still_needed(arm: Counted, control: Counted) -> str:
    """Answers that each arm needs beyond those it has, to tell a difference as large as the one that is seen.

    Nothing where no difference is seen: no number of answers would tell it.
    """
    mine, others = f"({ratio(*arm)})", f"({ratio(*control)})"
    spread = f"({mine} * (1 - {mine}) + {EACH} ({others} * (1 - {others})))"
    return f"clamp_min({POWER} * {spread} / ({difference(arm, control)} ^ 2 > 0) - {arm[1]}, 0)"
