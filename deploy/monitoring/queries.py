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
