# SPDX-License-Identifier: Apache-2.0
"""The one place where weights are changed. Loading, swapping, baking and exporting all call it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vllm_surgery.errors import CheckpointError, SurgeryError

if TYPE_CHECKING:
    from vllm_surgery.plan import TensorEdit

DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' words for torch's number formats."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dtype_word(dtype: torch.dtype) -> str:
    """Word of safetensors for `dtype`; torch's own where safetensors has none."""
    return DTYPES.get(dtype, str(dtype))


def apply_edit(tensor: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    """A copy of `tensor` in which each slice that `edit` names is its original times its gain.

    The product is taken in float32 (float64 for a float64 tensor) and rounded once to the tensor's own format. A gain
    of -1 flips signs and a gain of 0 writes zeros, so both are exact whatever the values. `tensor` itself, which may be
    a memory map of the checkpoint, isn't touched; device, shape and format stay.

    Args:
        tensor: the checkpoint's tensor, 2-D, of `edit`'s shape and format.
        edit: what to do.

    Raises:
        CheckpointError: the tensor isn't the one that was planned.
        SurgeryError: a product is too large for the format. Weights that were infinite before may stay so.
    """
    if tuple(tensor.shape) != edit.shape or dtype_word(tensor.dtype) != edit.dtype:
        raise CheckpointError(
            f"{edit.tensor}: planned for {edit.dtype} {list(edit.shape)}, "
            f"got {dtype_word(tensor.dtype)} {list(tensor.shape)}"
        )
    indices = torch.tensor(edit.indices, device=tensor.device)
    slices = tensor.index_select(edit.axis, indices)
    scaled = _scaled(slices, torch.tensor(edit.gains, dtype=torch.float64, device=tensor.device), edit.axis)
    if bool((slices.isfinite() & ~scaled.isfinite()).any()):
        raise SurgeryError(f"{edit.tensor}: the edit makes weights too large for {edit.dtype}; use a smaller factor")
    return tensor.clone().index_copy_(edit.axis, indices, scaled)


def _scaled(slices: torch.Tensor, gains: torch.Tensor, axis: int) -> torch.Tensor:
    wide = torch.float64 if slices.dtype == torch.float64 else torch.float32
    gains = gains.to(wide).unsqueeze(1 - axis)
    product = (slices.to(wide) * gains).to(slices.dtype)
    product = torch.where(gains == -1, _negated(slices), product)
    return torch.where(gains == 0, torch.zeros_like(slices), product)


def _negated(slices: torch.Tensor) -> torch.Tensor:
    """`slices` with every sign bit flipped. torch's own `neg` loses the payload of a 16-bit NaN."""
    bits = slices.view(_BITS[slices.element_size()])
    return (bits ^ torch.iinfo(bits.dtype).min).view(slices.dtype)
