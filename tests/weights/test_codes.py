# SPDX-License-Identifier: Apache-2.0
"""Bytes stand for a gain times what they stood for, all 256 of them."""

from __future__ import annotations

import pytest
import torch

from tests.examples import refusal
from vllm_surgery import SurgeryError
from vllm_surgery.weights.codes import recovered_factor, scaled_bytes

ALL = torch.arange(256, dtype=torch.uint8)
# By the OCP Microscaling specification.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def gains(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of_fp8(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return codes.view(dtype).double()


def of_pairs(codes: torch.Tensor) -> torch.Tensor:
    return torch.stack([E2M1[codes.long() & 15], E2M1[codes.long() >> 4]])


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(7, 8, 9), other.nan_to_num(7, 8, 9))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_change_their_sign(dtype: torch.dtype) -> None:
    assert equal(of_fp8(scaled_bytes(ALL, gains(-1), "fp8"), dtype), -of_fp8(ALL, dtype))


def test_integers_change_their_sign() -> None:
    codes = ALL[ALL != 128]

    assert torch.equal(scaled_bytes(codes, gains(-1), "int8").view(torch.int8), -codes.view(torch.int8))


def test_an_integer_without_an_opposite_is_refused_where_it_would_be_negated() -> None:
    assert refusal(lambda: scaled_bytes(ALL, gains(-1), "int8"), SurgeryError).startswith("codes of -128 have no")
    assert torch.equal(scaled_bytes(ALL, gains(1), "int8"), ALL)
    assert not scaled_bytes(ALL, gains(0), "int8").any()


def test_pairs_change_both_signs() -> None:
    assert torch.equal(of_pairs(scaled_bytes(ALL, gains(-1), "e2m1")), -of_pairs(ALL))


@pytest.mark.parametrize("numbers", ["fp8", "e2m1"])
def test_zero_is_a_byte_of_zeros(numbers: str) -> None:
    assert not scaled_bytes(ALL, gains(0), numbers).any()  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", ["fp8", "e2m1"])
def test_each_slice_has_its_own_gain(numbers: str) -> None:
    made = scaled_bytes(torch.stack([ALL, ALL, ALL]), gains(1, -1, 0).view(3, 1), numbers)  # type: ignore[arg-type]

    assert torch.equal(made[0], ALL)
    assert torch.equal(made[1], scaled_bytes(ALL, gains(-1), numbers))  # type: ignore[arg-type]
    assert not made[2].any()


@pytest.mark.parametrize("power", [-3, -1, 1, 5])
def test_exponents_move_by_a_power_of_two(power: int) -> None:
    exponents = ALL[10:240]

    made = scaled_bytes(exponents, gains(2.0**power), "e8m0").view(torch.float8_e8m0fnu).double()

    assert torch.equal(made, exponents.view(torch.float8_e8m0fnu).double() * 2.0**power)


def test_nan_among_exponents_stays() -> None:
    assert scaled_bytes(ALL[255:], gains(0.5), "e8m0").tolist() == [255]


@pytest.mark.parametrize(("exponent", "power"), [(0, -1), (254, 1), (5, -6), (250, 5)])
def test_an_exponent_that_would_leave_its_range_is_refused(exponent: int, power: int) -> None:
    action = lambda: scaled_bytes(ALL[exponent : exponent + 1], gains(2.0**power), "e8m0")  # noqa: E731

    assert refusal(action, SurgeryError) == (
        "the edit makes scales that their format can't hold; use a factor nearer to 1"
    )


@pytest.mark.parametrize(
    ("numbers", "factor"),
    [
        ("fp8", -1.0),
        ("fp8", 0.0),
        ("e2m1", -1.0),
        ("e2m1", 0.0),
        ("int8", -1.0),
        ("int8", 0.0),
        ("e8m0", 0.25),
        ("e8m0", 8.0),
    ],
)
def test_a_share_comes_back(numbers: str, factor: float) -> None:
    codes = ALL[20:120]

    assert recovered_factor(codes, scaled_bytes(codes, gains(factor), numbers), numbers) == factor  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", ["fp8", "int8", "e2m1", "e8m0"])
def test_one_odd_byte_is_no_share(numbers: str) -> None:
    factor = 2.0 if numbers == "e8m0" else -1.0
    made = scaled_bytes(ALL[20:120], gains(factor), numbers)  # type: ignore[arg-type]
    made[7] ^= 2

    assert recovered_factor(ALL[20:120], made, numbers) is None  # type: ignore[arg-type]
