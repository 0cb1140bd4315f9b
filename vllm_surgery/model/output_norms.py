# SPDX-License-Identifier: Apache-2.0
"""Output norm of each neuron of a layer: the norm of its column of the down projection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm_surgery.model.expert_neurons import matrix_inside, role_inside
from vllm_surgery.model.quantization import WHOLE

if TYPE_CHECKING:
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.model.tensor_info import TensorInfo
    from vllm_surgery.patch.units import Kind

Norms: TypeAlias = NDArray[np.float64]
"""One a neuron of a layer."""

_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def output_norms(folder: ModelFolder, layer: int, kind: Kind = "neurons") -> Norms | None:
    """The norm of what each neuron of a layer adds, for an activation of one.

    None where it can't be read: the layer has no such MLP, or its weights are quantised.
    """
    mlp = folder.anatomy.gated_mlps(kind).get(layer)
    info = None if mlp is None else mlp.tensors.get("down")
    return None if info is None else _norms(folder.read_slice(info.name, None, 0), info, axis=1)


def output_norms_inside(folder: ModelFolder, layer: int, expert: int) -> Norms | None:
    """The same of the neurons of one routed expert, which the model has."""
    for role, info in folder.anatomy.experts[layer].roles_of(expert):
        inner = role_inside(role, info, folder.facts) if role.part.name == "down" else None
        if inner is not None and role.suffix.stores in WHOLE:
            assert inner.part.unit_axis is not None
            content = folder.read_slice(info.name, 0 if role.stacked else None, expert if role.stacked else 0)
            return _norms(content, matrix_inside(info, role), inner.part.unit_axis)
    return None


def _norms(content: memoryview, matrix: TensorInfo, axis: int) -> Norms | None:
    """The norm of each slice of a down projection along the axis that counts neurons."""
    if matrix.dtype not in {*_DTYPES, "BF16"}:
        return None
    norms: Norms = np.linalg.norm(_numbers(content, matrix).astype(np.float64), axis=1 - axis)
    return norms


def _numbers(content: memoryview, matrix: TensorInfo) -> NDArray[Any]:
    if matrix.dtype == "BF16":
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4").reshape(matrix.shape)
    return np.frombuffer(content, _DTYPES[matrix.dtype]).reshape(matrix.shape)
