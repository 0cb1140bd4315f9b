# SPDX-License-Identifier: Apache-2.0
"""The figure is sound whatever was measured."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.localization.fake import candidate, measure_of, neuron
from vllm_surgery.evaluation.analysis.outcomes import Rates
from vllm_surgery.evaluation.records import Key, Record
from vllm_surgery.localization.figure import front_figure
from vllm_surgery.localization.search.search import SearchResult
from vllm_surgery.localization.settings import SearchSettings

if TYPE_CHECKING:
    from vllm_surgery.localization.search.measurements import Measurement

BASE = Rates.of([Record(Key("none", "greedy", "l", "p", 0), None, "List", {}, "x", [1], "stop")])
SVG = "{http://www.w3.org/2000/svg}"
A, B, C = (candidate(neuron(0, index)) for index in range(3))


def found(*measured: Measurement, best: Measurement | None = None) -> SearchResult:
    return SearchResult(BASE, 10, measured=list(measured), best=best)


def drawn(one: SearchResult, max_kl: float = 0.05) -> ElementTree.Element:
    svg = front_figure(one, SearchSettings(max_kl=max_kl))
    assert not re.search(r"\b(nan|inf)\b", svg)
    return ElementTree.fromstring(svg)


def titles(root: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in root.iter(f"{SVG}title")][1:]


def circles(root: ElementTree.Element) -> list[tuple[float, float]]:
    every = [group.find(f"{SVG}circle") for group in root.iter(f"{SVG}g")]
    return [(float(one.get("cx", "")), float(one.get("cy", ""))) for one in every if one is not None]


def test_every_candidate_has_a_point_that_says_what_it_is() -> None:
    root = drawn(found(measure_of(A, 4, 0.01), measure_of(B, 2, 0.2)))
    assert titles(root) == ["neurons/0/0 x 0: 4 of 20, KL 0.0100", "neurons/0/1 x 0: 2 of 20, KL 0.2000"]


def test_fewer_loops_are_lower_and_more_divergence_is_further_right() -> None:
    (x, y), (other_x, other_y) = circles(drawn(found(measure_of(A, 4, 0.01), measure_of(B, 2, 0.2))))
    assert (x < other_x, y < other_y) == (True, True)


def test_the_one_that_was_judged_stands_out() -> None:
    one = measure_of(B, 2, 0.2)
    sizes = [circle.get("r") for circle in drawn(found(measure_of(A, 4), one, best=one)).iter(f"{SVG}circle")]
    assert sorted(sizes) == ["4", "4", "5", "5", "7"]


def test_the_front_is_a_line() -> None:
    root = drawn(found(measure_of(A, 4, 0.01), measure_of(B, 2, 0.2), measure_of(C, 5, 0.1)))
    (path,) = [one.get("d") or "" for one in root.iter(f"{SVG}path")]
    assert path.count("L") == 1


def test_nothing_was_measured() -> None:
    assert circles(drawn(found())) == []


def test_a_candidate_without_a_known_cost_has_no_place() -> None:
    assert circles(drawn(found(measure_of(A, 4, None), measure_of(B, 4, math.nan), measure_of(C, 4, math.inf)))) == []


@pytest.mark.parametrize("max_kl", [1e-300, 1e-4, 6.6e-5, 1e6])
def test_any_bound_can_be_drawn(max_kl: float) -> None:
    drawn(found(), max_kl)
    drawn(found(measure_of(A, 0, 0.0, base=0)), max_kl)


@given(
    st.lists(st.builds(measure_of, st.just(A), st.integers(0, 20), st.floats(0, 1e9))),
    st.floats(0, 1e9, exclude_min=True),
)
def test_every_point_is_in_the_drawing(measured: list[Measurement], max_kl: float) -> None:
    root = drawn(found(*measured), max_kl)
    width, height = (float(root.get("viewBox", "").split()[place]) for place in (2, 3))
    assert all(0 <= x <= width and 0 <= y <= height for x, y in circles(root))
