# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU kernels take scales of either sign, and none: a gain on a scale is the same gain on the output, to the bit.

A patch on weights that are stored as integers rests on it.
"""

from __future__ import annotations

import pytest
import torch

from tests.engine.kernels import PACKED_INTEGERS, skip_without_op

INPUTS, OUTPUTS, GROUP, PER_WORD = 128, 64, 32, 8
GAINS = {3: -1.0, 20: 0.0, 40: 0.5}


@pytest.fixture
def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def words(source: torch.Generator, *shape: int) -> torch.Tensor:
    """Packed codes, any of them."""
    return torch.randint(-(2**31), 2**31, shape, generator=source).to(torch.int32)


def gained(tensor: torch.Tensor) -> torch.Tensor:
    """With a gain on some outputs, which the last axis counts. Each is exact in every float format."""
    result = tensor.clone()
    for output, gain in GAINS.items():
        result[..., output] *= gain
    return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zero points"])
def test_packed_integers(source: torch.Generator, dtype: torch.dtype, zeros: bool) -> None:
    from vllm import _custom_ops as ops

    skip_without_op(PACKED_INTEGERS)
    inputs = torch.randn(5, INPUTS, generator=source).to(dtype)
    scales = (torch.rand(INPUTS // GROUP, OUTPUTS, generator=source) * 0.01).to(dtype)
    codes = words(source, OUTPUTS // 16, INPUTS * 16 // PER_WORD)
    points = words(source, INPUTS // GROUP, OUTPUTS // PER_WORD) if zeros else None

    plain, signed = (
        ops.cpu_gemm_wna16(inputs, codes, chosen, points, None, PER_WORD, "vec") for chosen in (scales, gained(scales))
    )

    assert torch.equal(signed, gained(plain))
    assert plain[:, list(GAINS)].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_integers_of_eight_bits(source: torch.Generator, dtype: torch.dtype) -> None:
    inputs = torch.randn(5, INPUTS, generator=source).to(dtype)
    codes = torch.randint(-128, 128, (OUTPUTS, INPUTS), generator=source).to(torch.int8)
    scales = torch.rand(OUTPUTS, generator=source) * 0.01

    plain, signed = (multiplied(inputs, codes, chosen) for chosen in (scales, gained(scales)))

    assert torch.equal(signed, gained(plain))
    assert plain[:, list(GAINS)].all()


def multiplied(inputs: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What vLLM makes of a compressed-tensors INT8 layer, as its `CPUInt8ScaledMMLinearKernel` does."""
    from vllm import _custom_ops as ops

    sums = codes.sum(1).float() * scales
    handler = ops.create_onednn_scaled_mm(codes.t(), scales.unsqueeze(1), inputs.dtype, True, False, 32)
    quantised, input_scales, points = ops.onednn_scaled_int8_quant(inputs, None, None, True)
    outputs = torch.empty(len(inputs), len(codes), dtype=inputs.dtype)
    ops.onednn_scaled_mm(handler, quantised, outputs, input_scales, points, sums.unsqueeze(0), None)
    return outputs
