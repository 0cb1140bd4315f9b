# SPDX-License-Identifier: Apache-2.0
"""Verification of linear layers by reading back what they compute with, however the backend has packed the weights.

A linear layer that is fed a one-hot input answers with a column of its weight: packed, sharded or not, that is what
every later token will be made from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_surgery.engine.model_parts import ModulePart

MOST_COLUMNS = 64
"""Columns read back from one layer: all of them for every edit but the largest, which are checked by samples."""

TOLERANCE = 2.0**-7
"""Relative. One step of bfloat16: what a backend that multiplies in fewer bits (TF32, BF16) may round a weight by. A
sign, a zero or another neuron's column is never so close."""


def check_columns(part: ModulePart, tensor_of: Callable[[str], torch.Tensor], columns: Sequence[int]) -> int | None:
    """Compares what a linear layer computes with what its checkpoint tensor says.

    Args:
        part: a linear layer.
        tensor_of: gives the tensor that it should hold, in checkpoint form, whole.
        columns: which to compare, in checkpoint coordinates.

    Returns:
        How many were read back on this rank; 0 where it holds none of them, None where it is no layer that can be
        asked.

    Raises:
        EngineError: they differ.
    """
    module = part.module
    size, method = getattr(module, "input_size_per_partition", None), getattr(module, "quant_method", None)
    names = [name for name in part.tensors if name.endswith(".weight")]
    if size is None or method is None or len(names) != 1 or not hasattr(module, "tp_rank"):
        return None
    first = module.tp_rank * size
    here = [column for column in columns if first <= column < first + size]
    sample = here[:: -(-len(here) // MOST_COLUMNS) or 1]
    if not sample:
        return 0
    actual = _read_columns(module, [column - first for column in sample])
    expected = tensor_of(names[0])[:, sample].to(actual.device, actual.dtype)
    wrong = _differs(actual, expected)
    if wrong is not None:
        raise EngineError(f"{part.path}: column {sample[wrong]} doesn't hold what was written to it")
    return len(sample)


def check_parameter(part: ModulePart, tensor_of: Callable[[str], torch.Tensor]) -> int:
    """Compares a parameter that is used as it is stored with its checkpoint tensor.

    Returns:
        How many numbers it has.

    Raises:
        EngineError: they differ.
    """
    assert part.parameter is not None
    parameter = part.module._parameters[part.parameter].data
    expected = tensor_of(part.tensors[0]).to(parameter.device, parameter.dtype)
    if not torch.equal(parameter, expected):
        raise EngineError(f"{part.path}.{part.parameter} doesn't hold what was written to it")
    return int(parameter.numel())


def _read_columns(module: Any, local: list[int]) -> torch.Tensor:
    """Columns of a layer's weight, ``[output, len(local)]``, as its kernel sees them, in the layer's number format."""
    inputs = torch.zeros(len(local), module.input_size_per_partition, dtype=module.params_dtype, device=_device(module))
    inputs[torch.arange(len(local)), local] = 1
    with torch.no_grad():
        return module.quant_method.apply(module, inputs, None).t()


def _device(module: Any) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _differs(actual: torch.Tensor, expected: torch.Tensor) -> int | None:
    """Index of the first column that is off by more than rounding; None where there is none.

    Weights that aren't finite spoil every product they take part in, so rows with one are left out.
    """
    wide, target = actual.double(), expected.double()
    smallest = torch.finfo(actual.dtype).tiny  # Some kernels take denormal numbers for zero.
    off = (wide - target).abs() > target.abs() * TOLERANCE + smallest
    off &= wide.isfinite() & target.isfinite()
    columns = off.any(dim=0).nonzero()
    return int(columns[0]) if len(columns) else None
