# SPDX-License-Identifier: Apache-2.0
"""Each edited weight is the original times the gain, rounded once; every other bit stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import refusal
from vllm_surgery import CheckpointError, SurgeryError, TensorEdit
from vllm_surgery.arithmetic import apply_edit
from vllm_surgery.tensors import bits, dtype_word

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
GAINS = [-1.0, 0.0, 0.5, float(np.float32(-0.8)), 3.0]
SHAPE = (7, 9)


def weights(dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).standard_normal(SHAPE)).to(dtype)


def edit_of(tensor: torch.Tensor, axis: int, gains: dict[int, float], **changes: object) -> TensorEdit:
    known = {"dtype": dtype_word(tensor.dtype), "shape": tuple(tensor.shape), **changes}
    return TensorEdit("t", axis=axis, indices=tuple(gains), gains=tuple(gains.values()), **known)  # type: ignore[arg-type]


def rounded_to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """float32 numbers, rounded to the nearest bfloat16, ties to even; by integers, without torch."""
    word = numbers.astype(np.float32).view(np.uint32).astype(np.uint64)
    return (((word + 0x7FFF + ((word >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def expected(column: torch.Tensor, gain: float) -> np.ndarray:
    if column.dtype == torch.float64:
        return column.numpy() * np.float64(gain)
    product = column.float().numpy() * np.float32(gain)
    if column.dtype == torch.bfloat16:
        return rounded_to_bfloat16(product)
    return product.astype(column.numpy().dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_word)
@pytest.mark.parametrize("axis", [0, 1], ids=["row", "column"])
@pytest.mark.parametrize("gain", GAINS)
def test_an_edited_slice_is_the_original_times_the_gain(dtype: torch.dtype, axis: int, gain: float) -> None:
    before = weights(dtype)
    after = apply_edit(before, edit_of(before, axis, {3: gain}))
    wanted = expected(before.select(axis, 3), gain)
    assert after.select(axis, 3).double().tolist() == wanted.astype(np.float64).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_word)
@pytest.mark.parametrize("axis", [0, 1], ids=["row", "column"])
def test_every_other_bit_stays(dtype: torch.dtype, axis: int) -> None:
    before = weights(dtype)
    after = apply_edit(before, edit_of(before, axis, {1: -1.0, 3: 0.0, 4: 3.0}))
    others = torch.tensor([index for index in range(SHAPE[axis]) if index not in {1, 3, 4}])
    assert torch.equal(bits(after).index_select(axis, others), bits(before).index_select(axis, others))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_word)
def test_the_original_stays(dtype: torch.dtype) -> None:
    before = weights(dtype)
    copy = before.clone()
    after = apply_edit(before, edit_of(before, 1, {1: -1.0}))
    assert torch.equal(bits(before), bits(copy))
    assert after.data_ptr() != before.data_ptr()


SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -1e-40, 65504.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_word)
def test_negating_flips_the_sign_bit_of_anything(dtype: torch.dtype) -> None:
    before = torch.tensor([SPECIAL], dtype=torch.float64).to(dtype)
    after = apply_edit(before, edit_of(before, 0, {0: -1.0}))
    assert (bits(after) ^ bits(before)).unique().tolist() == [torch.iinfo(bits(before).dtype).min]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_word)
def test_zero_writes_plain_zeros_over_anything(dtype: torch.dtype) -> None:
    before = torch.tensor([SPECIAL], dtype=torch.float64).to(dtype)
    after = apply_edit(before, edit_of(before, 0, {0: 0.0}))
    assert bits(after).unique().tolist() == [0]


@given(words=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=40))
def test_negating_twice_changes_no_bit(words: list[int]) -> None:
    before = torch.tensor([words], dtype=torch.int16).view(torch.bfloat16)
    edit = edit_of(before, 0, {0: -1.0})
    assert torch.equal(bits(apply_edit(apply_edit(before, edit), edit)), bits(before))


@given(power=st.integers(-8, 8), values=st.lists(st.floats(-1000, 1000, width=16), min_size=1, max_size=20))
def test_a_power_of_two_and_its_inverse_change_no_bit(power: int, values: list[float]) -> None:
    before = torch.tensor([values], dtype=torch.float32)
    there = apply_edit(before, edit_of(before, 0, {0: 2.0**power}))
    assert torch.equal(bits(apply_edit(there, edit_of(before, 0, {0: 2.0**-power}))), bits(before))


@pytest.mark.parametrize(("dtype", "gain"), [(torch.float16, 100.0), (torch.bfloat16, 3e38), (torch.float32, 1e38)])
def test_weights_too_large_for_the_format_are_refused(dtype: torch.dtype, gain: float) -> None:
    before = torch.full(SHAPE, 1000.0).to(dtype)
    said = f"t: the edit makes weights too large for {dtype_word(dtype)}; use a smaller factor"
    assert refusal(lambda: apply_edit(before, edit_of(before, 1, {0: gain})), SurgeryError) == said


def test_weights_that_were_infinite_may_stay_so() -> None:
    before = torch.tensor([[float("inf"), 1.0]])
    assert apply_edit(before, edit_of(before, 0, {0: 2.0})).tolist() == [[float("inf"), 2.0]]


@pytest.mark.parametrize("changes", [{"shape": (9, 7)}, {"dtype": "BF16"}])
def test_another_tensor_than_the_planned_one_is_refused(changes: dict[str, object]) -> None:
    before = weights(torch.float32)
    edit = edit_of(before, 1, {0: 2.0}, **changes)
    said = f"t: planned for {edit.dtype} {list(edit.shape)}, got F32 [7, 9]"
    assert refusal(lambda: apply_edit(before, edit), CheckpointError) == said
