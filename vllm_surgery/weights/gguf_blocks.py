# SPDX-License-Identifier: Apache-2.0
"""Gains on slices of GGUF tensors: on the scales of their blocks, or on the numbers where these stand by themselves.

A block's numbers are its scales times codes (and where there are two, plus or minus the second times other codes), so a
gain on its scales is a gain on all that it stands for. Signs and zero are exact; another factor rounds each scale once
to sixteen bits, and is refused where such a number has fewer digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm_surgery.errors import SurgeryError
from vllm_surgery.planning.planner import TensorEdit
from vllm_surgery.weights.arithmetic import apply_edit
from vllm_surgery.weights.tensors import bits, dtype_word, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from vllm_surgery.model.gguf_file import GgufTensor

_ROUNDING = 2.0**-10
"""How far a scale may be from its factor's exact product, relative: twice what rounding to sixteen bits does to a
number of full length."""


def why_unsupported(tensor: GgufTensor) -> str | None:
    """The reason why a tensor's type holds no gain; None where it does."""
    if tensor.type.scales is None or (len(tensor.shape) == 1 and tensor.type.numbers > 1):
        return (
            f"{tensor.name} is stored as {tensor.type.name}, whose blocks have no scale that takes a sign and a factor"
        )
    return None


def map_slices(file: Path, tensor: GgufTensor, mode: str = "r") -> NDArray[np.uint8]:
    """The bytes of a tensor, ``[slices, ...]``: one slice for each index along its first axis.

    Args:
        file: in which it lies.
        tensor: whose.
        mode: numpy's word; ``r+`` to write.
    """
    mapped = np.memmap(file, np.uint8, mode, tensor.start, (tensor.size,))  # type: ignore[call-overload]
    slices: NDArray[np.uint8] = mapped.reshape(tensor.shape[0], -1)
    return slices


def factors_of(slices: NDArray[np.uint8], tensor: GgufTensor) -> torch.Tensor:
    """The numbers of some slices that take a gain: ``[slices, numbers]``, a copy."""
    blocks = slices.reshape(len(slices), -1, tensor.type.size)
    if not tensor.type.scales:
        whole = np.ascontiguousarray(blocks).reshape(len(slices), -1)
        return torch.from_numpy(whole.copy()).view(torch_dtype(tensor.type.name))
    scales = [np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")[..., 0] for at in tensor.type.scales]
    return torch.from_numpy(np.concatenate(scales, axis=1).astype(np.float16))


def apply_gains(slices: NDArray[np.uint8], tensor: GgufTensor, gains: Mapping[int, float]) -> None:
    """Multiplies what some slices of a tensor stand for, in place.

    Args:
        slices: all of them, as `map_slices` gives them.
        tensor: whose.
        gains: by slice.

    Raises:
        SurgeryError: a number can't be held. Slices before it were changed.
    """
    for index, gain in sorted(gains.items()):
        chosen = slices[index : index + 1]
        before = factors_of(chosen, tensor)
        word = dtype_word(before.dtype)
        after = apply_edit(before, TensorEdit(tensor.name, word, tuple(before.shape), 0, (0,), (gain,)))
        if tensor.type.scales:
            _check_digits(before, after, gain, tensor)
        _put(chosen, tensor, after)


def _check_digits(before: torch.Tensor, after: torch.Tensor, gain: float, tensor: GgufTensor) -> None:
    exact = before.double() * gain
    if bool(((after.double() - exact).abs() > exact.abs() * _ROUNDING).any()):
        raise SurgeryError(
            f"{tensor.name}: the edit makes scales so small that {tensor.type.name} can't hold them exactly; zero and "
            "negate it can"
        )


def _put(chosen: NDArray[np.uint8], tensor: GgufTensor, numbers: torch.Tensor) -> None:
    content = bits(numbers).numpy()
    if not tensor.type.scales:
        chosen[:] = content.view(np.uint8).reshape(chosen.shape)
        return
    blocks = chosen.reshape(1, -1, tensor.type.size)
    each = content.reshape(len(tensor.type.scales), -1)
    for at, scales in zip(tensor.type.scales, each, strict=True):
        blocks[0, :, at : at + 2] = scales.astype("<i2")[:, None].view(np.uint8)
