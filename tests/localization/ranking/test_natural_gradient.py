# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_surgery.localization.ranking.gradients import Gradients
from vllm_surgery.localization.ranking.natural_gradient import (
    MAX_CHANGE,
    MIN_CHANGE,
    STEP,
    TRIM,
    UNNOTICED_KL,
    project_constraints,
    robust_mean,
    set_candidates,
    single_candidates,
)
from vllm_surgery.patch.units import Unit, UnitBlock

GAINS = (0.0, -1.0, 3.0, 0.5)


def gradients(margins: list[list[float]], sensitivities: list[float], kind: str = "neurons") -> Gradients:
    block = UnitBlock(kind, 3)
    return Gradients({block: np.array(margins, np.float32)}, {block: np.array(sensitivities, np.float32)})


def random_gradients(seed: int, layers: int = 3, units: int = 40, transcripts: int = 5) -> Gradients:
    random = np.random.default_rng(seed)
    blocks = [*(UnitBlock("neurons", layer) for layer in range(layers)), UnitBlock("experts", layers)]
    return Gradients(
        {block: random.standard_normal((transcripts, units)).astype(np.float32) for block in blocks},
        {block: np.exp(random.normal(-5, 3, units)).astype(np.float32) for block in blocks},
    )


SEEDS = st.integers(0, 10**6)


def test_a_unit_that_holds_the_loop_is_suppressed_and_one_that_works_against_it_amplified() -> None:
    found = single_candidates(gradients([[2.0, -1.0]], [1.0, 1.0]), GAINS, 8)
    gains = {(unit, gain) for one in found for unit, gain in one.gains.items()}
    holds, against = Unit("neurons", 3, 0), Unit("neurons", 3, 1)
    assert gains == {(holds, 0.0), (holds, -1.0), (holds, 0.5), (against, 3.0)}


def test_the_better_of_two_units_is_the_one_that_healthy_text_feels_less() -> None:
    found = single_candidates(gradients([[1.0, 1.0, 0.0]], [4.0, 1.0, 2.0]), [0.0], 1)
    assert [one.gains for one in found] == [{Unit("neurons", 3, 1): 0.0}]


def test_what_is_promised_is_the_margin_and_the_divergence() -> None:
    (found,) = single_candidates(gradients([[0.5]], [0.02]), [-1.0], 1)
    assert found.margin == pytest.approx(0.5 * -2.0)
    assert found.kl == pytest.approx(0.5 * 0.02 * 4.0)


def test_neurons_that_healthy_text_never_feels_do_not_win_by_that() -> None:
    weak, strong = 1e-6, 1.0
    found = single_candidates(gradients([[weak, *[strong] * 19]], [0.0, *[0.1] * 19]), [0.0], 19)
    assert Unit("neurons", 3, 0) not in {unit for one in found for unit in one.gains}


def test_units_that_can_do_next_to_nothing_do_not_win_by_their_price() -> None:
    found = single_candidates(gradients([[0.001, 0.5]], [1e-9, 0.01]), [0.0], 1)
    assert [one.gains for one in found] == [{Unit("neurons", 3, 1): 0.0}]


def test_one_transcript_does_not_carry_a_unit() -> None:
    transcripts = int(2 / TRIM)
    margins = np.zeros((transcripts, 2), np.float32)
    margins[0, 0], margins[:, 1] = 100.0, 0.1
    assert robust_mean(margins) == pytest.approx([0.0, 0.1])


def test_experts_are_named_as_such() -> None:
    (found,) = single_candidates(gradients([[1.0]], [1.0], "experts"), [0.0], 1)
    assert found.gains == {Unit("experts", 3, 0): 0.0}


def test_without_a_useful_gain_there_is_no_candidate() -> None:
    assert single_candidates(gradients([[1.0]], [1.0]), [3.0], 5) == []


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_single_candidates_come_best_first_and_all_promise_a_fall(seed: int) -> None:
    found = single_candidates(random_gradients(seed), GAINS, 30)
    strengths = [-one.margin / np.sqrt(one.kl + UNNOTICED_KL) for one in found]
    assert len(found) == 30
    assert all(one.margin < 0 for one in found)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(strengths))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([1, 4, 32]), st.sampled_from([0.003, 0.06]))
def test_a_set_keeps_to_its_size_its_cost_and_the_ends_of_gains(seed: int, size: int, target: float) -> None:
    for found in set_candidates(random_gradients(seed), [size], [target]):
        assert 1 <= len(found.gains) <= size
        assert 0 < found.kl <= target
        assert found.margin < 0
        for gain in found.gains.values():
            assert 1 + MIN_CHANGE <= gain <= 1 + MAX_CHANGE
            assert gain != 1
            assert gain % STEP == 0


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_a_dearer_step_promises_no_less(seed: int) -> None:
    cheap, dear = (set_candidates(random_gradients(seed), [16], [target]) for target in (0.01, 0.1))
    assert not cheap or dear[0].margin <= cheap[0].margin


def test_alike_sets_are_given_once() -> None:
    found = set_candidates(gradients([[1.0, 0.0]], [0.001, 0.001]), [1, 2], [0.5, 1.0])
    assert [one.gains for one in found] == [{Unit("neurons", 3, 0): -1.0}]


def sparing(seed: int) -> tuple[Gradients, Gradients]:
    """Random gradients, and the same with two right answers that feel every unit."""
    free = random_gradients(seed)
    random = np.random.default_rng(seed + 1)
    right = {block: random.standard_normal((2, 40)).astype(np.float32) for block in free.margins}
    return free, Gradients(free.margins, free.sensitivities, right)


def test_of_a_step_that_need_not_be_rounded_no_right_answer_becomes_less_likely() -> None:
    random = np.random.default_rng(7)
    margins, felt, right = (
        random.standard_normal(500),
        np.exp(random.standard_normal(500)),
        random.standard_normal((9, 500)),
    )
    step = -project_constraints(margins, felt, right) / felt
    assert (right @ step >= -1e-9).all()
    assert margins @ step < 0


def test_where_no_right_answer_would_be_harmed_nothing_is_given_up() -> None:
    free, known = sparing(3)
    helped = Gradients(free.margins, free.sensitivities, {block: -values[:1] for block, values in free.margins.items()})
    assert set_candidates(helped, [8], [0.1])[0].margin <= set_candidates(known, [8], [0.1])[0].margin
