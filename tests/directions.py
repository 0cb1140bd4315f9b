# SPDX-License-Identifier: Apache-2.0
"""Directions and edits by them: files, patches, and the arithmetic by hand, which shares nothing with the package."""

from __future__ import annotations

import base64
import hashlib
import math
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import save
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Columns = Mapping[tuple[str, int], tuple[float, int]]
    """By tensor and column the strength, and the seed of the direction."""


def unit(hidden: int, seed: int = 1) -> NDArray[np.float32]:
    """A random unit vector."""
    numbers = np.random.default_rng(seed).standard_normal(hidden)
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def values_of(numbers: NDArray[Any]) -> dict[str, str]:
    """A direction as a patch says its numbers."""
    return {"values": base64.b64encode(numbers.astype("<f4").tobytes()).decode()}


def write_direction(file: Path, **tensors: NDArray[Any]) -> dict[str, str]:
    """A safetensors file of directions, and how a patch beside it names its only one."""
    content = save({name: np.ascontiguousarray(numbers) for name, numbers in tensors.items()})
    file.write_bytes(content)
    return {"file": file.name, "sha256": hashlib.sha256(content).hexdigest()}


def project(direction: Any, selection: dict[str, Any], strength: float = 1.0, kind: str = "neurons") -> dict[str, Any]:
    """An edit in plain data."""
    return {"op": "project", "direction": direction, "strength": strength, kind: selection}


def lose(column: torch.Tensor, direction: NDArray[np.float32], strength: float) -> torch.Tensor:
    """A column without a direction: in float64, rounded once to float32 and once to the column's own format."""
    u = torch.from_numpy(direction).double()
    wide = column.double()
    # A dot product of Python's own, exactly rounded, so that it is no sum in the package's order.
    dot, square = (math.fsum(each.tolist()) for each in (u * wide, u * u))
    return (wide - u * (dot * strength / square)).float().to(column.dtype)


def edit_columns(model: Path, folder: Path, columns: Columns) -> Path:
    """A copy of `model` whose columns lost directions, by the arithmetic of the tests."""
    shutil.copytree(model, folder)
    missing = {name for name, _ in columns}
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for (name, column), (strength, seed) in columns.items():
            if name in tensors:
                old = tensors[name][:, column].clone()
                tensors[name][:, column] = lose(old, unit(len(old), seed), strength)
        missing -= tensors.keys()
        save_file(tensors, file, metadata={"format": "pt"})
    assert not missing
    return folder
