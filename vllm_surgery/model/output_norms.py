# SPDX-License-Identifier: Apache-2.0
"""Output norm of each neuron of a layer: the norm of its column of the down projection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

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
    if info is None or info.dtype not in {*_DTYPES, "BF16"}:
        return None
    norms: Norms = np.linalg.norm(_matrix(folder, info).astype(np.float64), axis=0)
    return norms


def _matrix(folder: ModelFolder, info: TensorInfo) -> NDArray[Any]:
    content = folder.read_slice(info.name, None, 0)
    if info.dtype == "BF16":
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4").reshape(info.shape)
    return np.frombuffer(content, _DTYPES[info.dtype]).reshape(info.shape)
