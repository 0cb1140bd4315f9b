# SPDX-License-Identifier: Apache-2.0
"""Numbers of at most eight bits: signs of codes, and scales that are exponents. Everything here works on bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vllm_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from vllm_surgery.planning.carriers import Encoding

# The sign is a number's highest bit. Two floats of four bits share a byte.
_SIGNS: dict[Encoding, int] = {"fp8": 0x80, "e2m1": 0x88}
_LEAST = 0x80  # As a byte, -128.
# An exponent e stands for 2**(e - 127); 255 is NaN. From the OCP Microscaling specification, 5.4.1.
_LARGEST_EXPONENT = 254


def scaled_bytes(codes: torch.Tensor, gains: torch.Tensor, numbers: Encoding) -> torch.Tensor:
    """Bytes that stand for what `codes` stand for times `gains`, exactly.

    Args:
        codes: uint8.
        gains: float64, of a shape that broadcasts to theirs. Each is -1, 0 or 1; for ``e8m0`` a power of two.
        numbers: what the bytes are.

    Raises:
        SurgeryError: an exponent leaves its range, or an integer has no opposite.
    """
    if numbers == "e8m0":
        return _shifted(codes, torch.frexp(gains).exponent - 1)
    flipped = torch.where(gains < 0, _opposite(codes, numbers), codes)
    if numbers == "int8" and bool(((codes == _LEAST) & (gains < 0)).any()):
        raise SurgeryError("codes of -128 have no opposite among eight bits, so negate isn't exact; zero is")
    return torch.where(gains == 0, torch.zeros_like(codes), flipped)


def _opposite(codes: torch.Tensor, numbers: Encoding) -> torch.Tensor:
    return (codes.view(torch.int8) * -1).view(torch.uint8) if numbers == "int8" else codes ^ _SIGNS[numbers]


def _shifted(exponents: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    wide = exponents.to(torch.int32)
    shifted = torch.where(wide > _LARGEST_EXPONENT, wide, wide + by)
    if bool(((shifted < 0) | ((shifted > _LARGEST_EXPONENT) & (wide <= _LARGEST_EXPONENT))).any()):
        raise SurgeryError("the edit makes scales that their format can't hold; use a factor nearer to 1")
    return shifted.to(torch.uint8)


def recovered_factor(before: torch.Tensor, after: torch.Tensor, numbers: Encoding) -> float | None:
    """The factor by which `scaled_bytes` turned some bytes into others; None if it didn't.

    Args:
        before: uint8.
        after: uint8, of the same shape, and not the same.
        numbers: what the bytes are.
    """
    if numbers == "e8m0":
        steps = (after.to(torch.int32) - before.to(torch.int32)).unique()
        return 2.0 ** int(steps[0]) if steps.numel() == 1 else None
    if not bool(after.any()):
        return 0.0
    return -1.0 if torch.equal(_opposite(before, numbers), after) else None
