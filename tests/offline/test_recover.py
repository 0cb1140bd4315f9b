# SPDX-License-Identifier: Apache-2.0
"""From two slices of weights back to the gain that a person wrote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_surgery.offline import recover as module
from vllm_surgery.offline.recover import differing_slices, recover_gains
from vllm_surgery.planning.planner import TensorEdit
from vllm_surgery.weights.arithmetic import apply_edit
from vllm_surgery.weights.tensors import dtype_word

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# What people write: up to four digits.
written = st.integers(-9999, 9999).flatmap(lambda digits: st.sampled_from([digits / 10**power for power in range(5)]))


def weights(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((512, 8))).to(dtype)


def edited(tensor: torch.Tensor, axis: int, gains: dict[int, float]) -> torch.Tensor:
    in_float32 = tuple(float(np.float32(gain)) for gain in gains.values())
    edit = TensorEdit("t", dtype_word(tensor.dtype), tuple(tensor.shape), axis, tuple(gains), in_float32)
    return apply_edit(tensor, edit)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_word)
@pytest.mark.parametrize("axis", [0, 1], ids=["row", "column"])
def test_signs_zeros_and_factors_come_back(dtype: torch.dtype, axis: int) -> None:
    before = weights(dtype) if axis == 1 else weights(dtype).t().contiguous()
    gains = {0: -1.0, 2: 0.0, 3: 0.5, 5: -0.8, 7: 3.0}
    after = edited(before, axis, gains)
    assert differing_slices(before, after, axis) == list(gains)
    assert recover_gains(before, after, axis, list(gains)) == list(gains.values())


@pytest.mark.parametrize("at_once", [1, 1024, 10**6])
def test_how_many_slices_are_looked_at_together_does_not_matter(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(torch.bfloat16)
    gains = {0: -1.0, 2: 0.0, 3: 0.5, 5: -0.8, 7: 3.0}
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", at_once)
    assert recover_gains(before, edited(before, 1, gains), 1, list(gains)) == list(gains.values())


@pytest.mark.parametrize("shape", [(6,), (6, 4, 3)])
def test_slices_of_any_shape_are_compared(shape: tuple[int, ...]) -> None:
    before = torch.from_numpy(np.random.default_rng(0).standard_normal(shape))
    gains = {0: -1.0, 2: 0.0, 3: 0.5, 5: 3.0}
    after = edited(before, 0, gains)
    assert differing_slices(before, after, 0) == list(gains)
    assert recover_gains(before, after, 0, list(gains)) == list(gains.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_word)
@settings(max_examples=60, deadline=None)
@given(gain=written.filter(lambda gain: abs(gain) not in {0, 1}), seed=st.integers(0, 3))
def test_a_written_factor_comes_back_as_it_was_written(dtype: torch.dtype, gain: float, seed: int) -> None:
    before = weights(dtype, seed)
    after = edited(before, 1, {4: gain})
    (found,) = recover_gains(before, after, 1, [4])
    assert found is not None
    assert torch.equal(edited(before, 1, {4: found}), after), "a gain that gives other weights"
    assert len(f"{found:.10g}") <= len(f"{gain:.10g}"), "a longer number than the one that was written"


@settings(max_examples=200, deadline=None)
@given(gain=st.floats(-100, 100, width=32).filter(lambda gain: abs(gain) > 1e-3 and abs(gain) != 1))
def test_any_float32_is_found_in_float32(gain: float) -> None:
    before = weights(torch.float32)
    after = edited(before, 1, {4: gain})
    (found,) = recover_gains(before, after, 1, [4])
    assert found is not None
    assert torch.equal(edited(before, 1, {4: found}), after)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_word)
def test_one_odd_weight_is_no_gain(dtype: torch.dtype) -> None:
    before = weights(dtype)
    after = edited(before, 1, {4: 0.5})
    after[100, 4] *= 1.5
    assert recover_gains(before, after, 1, [4]) == [None]


def test_other_weights_are_no_gain() -> None:
    before, after = weights(torch.float32, 1), weights(torch.float32, 2)
    assert recover_gains(before, after, 1, list(range(8))) == [None] * 8


def test_negative_zeros_are_zeros() -> None:
    before = weights(torch.float32)
    after = before.clone()
    after[:, 3] *= -0.0
    assert recover_gains(before, after, 1, [3]) == [0.0]


def test_weights_that_were_zero_say_nothing() -> None:
    before = weights(torch.bfloat16)
    before[::2, 1] = 0
    after = edited(before, 1, {1: 2.5})
    assert recover_gains(before, after, 1, [1]) == [2.5]


def test_a_whole_slice_of_zeros_that_became_something_is_no_gain() -> None:
    before = weights(torch.float32)
    before[:, 1] = 0
    after = before.clone()
    after[:, 1] = 1
    assert recover_gains(before, after, 1, [1]) == [None]


def test_infinite_weights_are_no_gain_and_no_error() -> None:
    before = weights(torch.float16)
    after = before.clone()
    after[0, 1] = float("inf")
    assert recover_gains(before, after, 1, [1]) == [None]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_word)
def test_a_negated_column_with_nan_comes_back(dtype: torch.dtype) -> None:
    before = weights(dtype)
    before[3, 1], before[4, 1] = float("nan"), float("inf")
    after = edited(before, 1, {1: -1.0})
    assert recover_gains(before, after, 1, differing_slices(before, after, 1)) == [-1.0]


def test_a_column_that_no_factor_can_make_hides_no_other() -> None:
    before = weights(torch.bfloat16)
    before[3, 1] = float("nan")
    after = edited(before, 1, {0: 0.5, 2: 0.5})
    after[5, 1] *= 0.5
    assert recover_gains(before, after, 1, [0, 1, 2]) == [0.5, None, 0.5]


def test_a_column_that_differs_in_the_sign_of_a_zero_alone_is_not_negated() -> None:
    before = weights(torch.float32)
    before[:, 0], before[0, 0] = 0.0, 1.0
    after = -before
    after[1, 0] = 0.0
    assert recover_gains(before, after, 1, [0]) == [None]
