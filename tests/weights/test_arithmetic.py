# SPDX-License-Identifier: Apache-2.0
"""Arithmetic: each edited weight is its original times its gain, rounded to its format; nothing else moves by a bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import refusal
from vllm_surgery.errors import CheckpointError, SurgeryError
from vllm_surgery.planning.planner import TensorEdit
from vllm_surgery.weights import arithmetic as module
from vllm_surgery.weights.arithmetic import apply_edit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BITS = {"F64": np.uint64, "F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
SIGNED = {"F64": torch.int64, "F32": torch.int32, "F16": torch.int16, "BF16": torch.int16}
INFINITY = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}
GAINS = (-1.0, 0.0, 0.5, float(np.float32(0.9)), float(np.float32(-0.8)), float(np.float32(1.1)), 3.0)
# Odd sizes, so that vectorised code has a tail.
SHAPE = (37, 43)

Bits = "npt.NDArray[np.unsignedinteger[npt.NBitBase]]"


def bits_of(tensor: torch.Tensor, dtype: str) -> Bits:
    return tensor.contiguous().view(SIGNED[dtype]).numpy().view(BITS[dtype])


def tensor_of(bits: Bits, dtype: str) -> torch.Tensor:
    signed = bits.astype(BITS[dtype]).view(np.dtype(BITS[dtype]).name.replace("u", "", 1))
    return torch.from_numpy(signed.copy()).view(DTYPES[dtype])


def random_bits(dtype: str, shape: Sequence[int] = SHAPE, seed: int = 0) -> Bits:
    """Every pattern of bits: with infinities, NaNs with payloads, denormals and both zeros."""
    return np.random.default_rng(seed).integers(0, 1 << 64, shape, np.uint64).astype(BITS[dtype])


def weights(dtype: str, shape: Sequence[int] = SHAPE) -> torch.Tensor:
    """Weights as a model has them."""
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape)).to(DTYPES[dtype])


def edit_of(tensor: torch.Tensor, dtype: str, axis: int, gains: dict[int, float]) -> TensorEdit:
    return TensorEdit(
        "t", dtype, tuple(tensor.shape), axis, tuple(sorted(gains)), tuple(gains[n] for n in sorted(gains))
    )


def rounded(product: npt.NDArray[np.floating[npt.NBitBase]], dtype: str) -> Bits:
    """The bits of float32 (or float64) numbers in another format, rounded to nearest, ties to even; in numpy alone."""
    if dtype == "BF16":
        wide = product.view(np.uint32).astype(np.uint64)
        return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
    narrow = {"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]
    return product.astype(narrow).view(BITS[dtype])


def expected(tensor: torch.Tensor, dtype: str, axis: int, gains: dict[int, float]) -> Bits:
    wide = np.float64 if dtype == "F64" else np.float32
    numbers = tensor.to(torch.float64).numpy().astype(wide)
    bits = bits_of(tensor, dtype).copy()
    for index, gain in gains.items():
        place = (index, slice(None)) if axis == 0 else (slice(None), index)
        bits[place] = 0 if gain == 0 else rounded(numbers[place] * wide(gain), dtype)
    return bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("gain", GAINS)
def test_each_weight_is_its_original_times_the_gain_and_no_other_moves(dtype: str, axis: int, gain: float) -> None:
    tensor = weights(dtype)
    gains = dict.fromkeys([0, 5, 6, SHAPE[axis] - 1], gain)

    edited = apply_edit(tensor, edit_of(tensor, dtype, axis, gains))

    assert (bits_of(edited, dtype) == expected(tensor, dtype, axis, gains)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_several_gains_in_one_edit(dtype: str, axis: int) -> None:
    tensor = weights(dtype)
    gains = {3 * number: gain for number, gain in enumerate(GAINS)}

    edited = apply_edit(tensor, edit_of(tensor, dtype, axis, gains))

    assert (bits_of(edited, dtype) == expected(tensor, dtype, axis, gains)).all()


@given(
    dtype=st.sampled_from(list(DTYPES)),
    axis=st.integers(0, 1),
    gains=st.dictionaries(st.integers(0, 4), st.floats(-8, 8, width=32, allow_subnormal=False), min_size=1),
)
def test_any_gain_is_what_numpy_makes_of_it(dtype: str, axis: int, gains: dict[int, float]) -> None:
    tensor = weights(dtype, (5, 5))

    edited = apply_edit(tensor, edit_of(tensor, dtype, axis, gains))

    assert (bits_of(edited, dtype) == expected(tensor, dtype, axis, gains)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((7,), 0), ((5, 6, 7), 0), ((5, 6, 7), 1), ((5, 6, 7), 2)])
def test_slices_of_any_shape_are_edited_alike(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    tensor = weights(dtype, shape)
    gains = dict(enumerate(GAINS[: shape[axis]]))
    flat = tensor.movedim(axis, 0).reshape(shape[axis], -1)

    edited = apply_edit(tensor, edit_of(tensor, dtype, axis, gains))

    rows = edited.movedim(axis, 0).reshape(shape[axis], -1)
    assert (bits_of(rows, dtype) == expected(flat, dtype, 0, gains)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", GAINS)
def test_without_an_axis_the_whole_tensor_is_edited(dtype: str, gain: float) -> None:
    tensor = weights(dtype)

    edited = apply_edit(tensor, TensorEdit("t", dtype, SHAPE, None, (0,), (gain,)))

    assert (bits_of(edited, dtype) == expected(tensor, dtype, 0, dict.fromkeys(range(SHAPE[0]), gain))).all()


@pytest.mark.parametrize("at_once", [1, 43, 100, 10**6])
def test_how_many_slices_are_edited_at_once_does_not_matter(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = weights("BF16")
    edit = edit_of(tensor, "BF16", 0, dict.fromkeys(range(0, 37, 3), -0.5))
    whole = apply_edit(tensor, edit)

    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", at_once)

    assert torch.equal(apply_edit(tensor, edit), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_negating_flips_the_sign_bit_of_every_pattern_of_bits(dtype: str, axis: int) -> None:
    bits = random_bits(dtype)
    tensor = tensor_of(bits, dtype)
    sign = BITS[dtype](1 << (8 * tensor.element_size() - 1))

    edited = apply_edit(tensor, edit_of(tensor, dtype, axis, dict.fromkeys(range(SHAPE[axis]), -1.0)))

    assert (bits_of(edited, dtype) == bits ^ sign).all()


@given(
    dtype=st.sampled_from(list(DTYPES)),
    axis=st.integers(0, 1),
    seed=st.integers(0, 1000),
    indices=st.sets(st.integers(0, 6), min_size=1),
)
def test_negating_twice_is_doing_nothing(dtype: str, axis: int, seed: int, indices: set[int]) -> None:
    bits = random_bits(dtype, (7, 7), seed)
    edit = edit_of(tensor_of(bits, dtype), dtype, axis, dict.fromkeys(indices, -1.0))

    again = apply_edit(apply_edit(tensor_of(bits, dtype), edit), edit)

    assert (bits_of(again, dtype) == bits).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_zeroing_writes_plus_zero_over_every_pattern_of_bits(dtype: str, axis: int) -> None:
    tensor = tensor_of(random_bits(dtype), dtype)

    edited = apply_edit(tensor, edit_of(tensor, dtype, axis, dict.fromkeys(range(SHAPE[axis]), 0.0)))

    assert not bits_of(edited, dtype).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", GAINS)
def test_strange_numbers_beside_an_edit_keep_their_bits(dtype: str, gain: float) -> None:
    bits = random_bits(dtype)
    bits[:, 4] = 0
    tensor = tensor_of(bits, dtype)

    edited = bits_of(apply_edit(tensor, edit_of(tensor, dtype, 1, {4: gain})), dtype)

    assert (np.delete(edited, 4, axis=1) == np.delete(bits, 4, axis=1)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_original_is_not_touched(dtype: str) -> None:
    bits = random_bits(dtype)
    tensor = tensor_of(bits, dtype)

    apply_edit(tensor, edit_of(tensor, dtype, 1, {0: -1.0, 1: 0.0}))

    assert (bits_of(tensor, dtype) == bits).all()


def test_the_edit_shares_no_memory_with_the_original() -> None:
    tensor = weights("F32")

    edited = apply_edit(tensor, edit_of(tensor, "F32", 1, {0: -1.0}))

    assert edited.data_ptr() != tensor.data_ptr()
    assert (edited.dtype, edited.shape, edited.device) == (tensor.dtype, tensor.shape, tensor.device)


def test_a_tensor_that_is_a_view_of_another_is_edited_alike() -> None:
    tensor = weights("BF16")
    edit = edit_of(tensor, "BF16", 1, {0: 3.0, 5: -1.0})

    edited = apply_edit(tensor.T.contiguous().T, edit)

    assert (bits_of(edited, "BF16") == bits_of(apply_edit(tensor, edit), "BF16")).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_results_are_kept(dtype: str) -> None:
    tensor = tensor_of(np.full((2, 2), 4, np.uint64), dtype)

    edited = apply_edit(tensor, edit_of(tensor, dtype, 0, {0: 0.5, 1: 3.0}))

    assert bits_of(edited, dtype).tolist() == [[2, 2], [12, 12]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_product_too_large_for_the_format_is_refused(dtype: str, axis: int) -> None:
    tensor = torch.full((2, 2), torch.finfo(DTYPES[dtype]).max, dtype=DTYPES[dtype])

    assert refusal(lambda: apply_edit(tensor, edit_of(tensor, dtype, axis, {1: 3.0})), SurgeryError) == (
        f"t: the edit makes weights too large for {dtype}; use a smaller factor"
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_number_may_be_negated_and_halved(dtype: str) -> None:
    largest = torch.finfo(DTYPES[dtype]).max
    tensor = torch.full((2, 2), largest, dtype=DTYPES[dtype])

    edited = apply_edit(tensor, edit_of(tensor, dtype, 0, {0: -1.0, 1: 0.5}))

    assert edited[:, 0].tolist() == [-largest, largest / 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_were_infinite_before_stay_so(dtype: str) -> None:
    tensor = tensor_of(np.full((2, 2), INFINITY[dtype], np.uint64), dtype)

    edited = apply_edit(tensor, edit_of(tensor, dtype, 0, {0: 3.0, 1: -0.5}))

    assert edited[:, 0].tolist() == [float("inf"), float("-inf")]


@pytest.mark.parametrize(
    ("shape", "dtype", "got"),
    [((4, 6), "F16", "F16 [4, 6]"), ((6, 4), "F32", "F32 [6, 4]"), ((24,), "F32", "F32 [24]"), ((4, 6, 1), "F32", "F32 [4, 6, 1]")],
)  # fmt: skip
def test_another_tensor_than_the_planned_is_refused(shape: tuple[int, ...], dtype: str, got: str) -> None:
    edit = TensorEdit("t", "F32", (4, 6), 1, (0,), (-1.0,))

    assert refusal(lambda: apply_edit(weights(dtype, shape), edit), CheckpointError) == (
        f"t: planned for F32 [4, 6], got {got}"
    )


def test_integers_are_refused() -> None:
    edit = TensorEdit("t", "F32", (4, 6), 1, (0,), (-1.0,))

    assert refusal(lambda: apply_edit(torch.zeros((4, 6), dtype=torch.int8), edit), CheckpointError) == (
        "t: planned for F32 [4, 6], got I8 [4, 6]"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", [0.5, 3.0, -0.8])
def test_no_factor_scales_nan_in_silence(dtype: str, gain: float) -> None:
    tensor = weights(dtype)
    tensor[3, 4] = float("nan")
    said = refusal(lambda: apply_edit(tensor, edit_of(tensor, dtype, 1, {4: gain})), SurgeryError)
    assert said == "t: holds NaN where a factor should scale it; only negate and zero change that"
    apply_edit(tensor, edit_of(tensor, dtype, 1, {4: -1.0, 5: gain}))
    apply_edit(tensor, edit_of(tensor, dtype, 1, {4: 0.0, 5: gain}))


def once(tensor: torch.Tensor, gain: float) -> torch.Tensor:
    """The exact product, rounded once: of a 16-bit number's neighbours the nearest. float64 holds such a product."""
    exact = tensor.double() * gain
    twice = (tensor.float() * gain).to(tensor.dtype)
    ends = (torch.full_like(twice, end) for end in (float("inf"), -float("inf")))
    around = torch.stack([twice, *(torch.nextafter(twice, end) for end in ends)])
    nearest = (around.double() - exact).abs().argmin(dim=0)
    return around.gather(0, nearest[None])[0]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize(("gain", "least", "most"), [(0.9, 0.03, 0.06), (-0.8, 0, 0), (0.5, 0, 0), (3.0, 0, 0)])
def test_two_roundings_are_one_but_for_ties(dtype: str, gain: float, least: float, most: float) -> None:
    tensor = weights(dtype, (200, 200))
    factor = float(np.float32(gain))
    edited = apply_edit(tensor, edit_of(tensor, dtype, 0, dict.fromkeys(range(200), factor)))
    differ = edited != once(tensor, factor)
    assert least <= float(differ.float().mean()) <= most
    steps = bits_of(edited, dtype).astype(int) - bits_of(once(tensor, factor), dtype).astype(int)
    assert int(np.abs(steps).max()) <= 1
