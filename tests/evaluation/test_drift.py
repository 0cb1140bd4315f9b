# SPDX-License-Identifier: Apache-2.0
"""Drift by the likeliest tokens: never more than the whole distribution's, and all of it where nothing is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_surgery.evaluation.backends.base import TokenLogprobs
from vllm_surgery.evaluation.drift import drift


def logprobs(probabilities: np.ndarray, target: int, count: int) -> TokenLogprobs:
    """One place, of whose tokens the likeliest `count` are told, and the target."""
    told = [*np.argsort(-probabilities)[:count].tolist(), target]
    logprobs = {int(token): math.log(probabilities[token]) for token in told}
    return TokenLogprobs([target], [logprobs[target]], [logprobs])


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_it_is_a_lower_bound_that_is_exact_when_all_is_told(seed: int, count: int) -> None:
    source = np.random.default_rng(seed)
    base, arm = source.dirichlet(np.full(12, 0.7), 2).clip(1e-6)
    base, arm = base / base.sum(), arm / arm.sum()
    whole = float(np.sum(base * np.log(base / arm)))
    found = drift("t", logprobs(base, 3, count), logprobs(arm, 3, count))
    assert 0 <= found.kl <= whole + 1e-9
    if count == 12:
        assert found.kl == pytest.approx(whole, abs=1e-9)
        assert found.rest < 1e-9


def test_losses_and_agreement_are_the_targets_own() -> None:
    base = TokenLogprobs(
        [0, 1], [math.log(0.75), math.log(0.1)], [{0: math.log(0.75)}, {0: math.log(0.9), 1: math.log(0.1)}]
    )
    arm = TokenLogprobs(
        [0, 1], [math.log(0.25), math.log(0.6)], [{0: math.log(0.25)}, {0: math.log(0.4), 1: math.log(0.6)}]
    )
    found = drift("t", base, arm)
    assert (found.tokens, found.agreed) == (2, 1)
    assert found.base_loss == pytest.approx(-math.log(0.075))
    assert found.loss == pytest.approx(-math.log(0.15))


def test_other_tokens_arent_compared() -> None:
    with pytest.raises(ValueError, match="cut into other tokens"):
        drift("t", TokenLogprobs([1], [-1.0], [{1: -1.0}]), TokenLogprobs([2], [-1.0], [{2: -1.0}]))
