# SPDX-License-Identifier: Apache-2.0
"""Kernels that Numba compiles where it is installed, and that are plain Python where it isn't.

vLLM brings Numba. Without it the same source runs, on lists instead of arrays because Python is slow on the elements of
arrays; the results are the same. Kernels therefore use integers alone, whose products stay below 2**63: there Python's
and the machine's arithmetic agree.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

try:
    import numba
except ImportError:
    numba = None

Integers: TypeAlias = Any
"""Integers that a kernel reads and writes by index: an array where kernels are compiled, else a list."""

_Kernel = TypeVar("_Kernel", bound="Callable[..., Any]")

COMPILED = numba is not None


def kernel(function: _Kernel) -> _Kernel:
    """`function`, compiled at its first call if Numba is there. What it compiled is kept for the next process."""
    if numba is None:
        return function
    chosen = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(Path(chosen or Path(__file__).parent / "__pycache__") / _SOURCES)
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # There is no place to keep it, such as a read-only installation without a home folder.
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = chosen


def _fingerprint() -> str:
    """Of the sources of all kernels.

    Numba takes what it kept for current as long as the function's own file is the same, even if a kernel or a constant
    that it took from another file has changed. So it is kept in a folder of this name.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return f"kernels-{digest.hexdigest()[:16]}"


_SOURCES = _fingerprint()


def integers(values: Sequence[int] | np.ndarray[Any, Any], dtype: type[np.signedinteger[Any]] = np.int64) -> Integers:
    """`values` in the form that kernels take."""
    if COMPILED:
        return np.array(values, dtype=dtype)
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def room(size: int, dtype: type[np.signedinteger[Any]] = np.int32, fill: int = 0) -> Integers:
    """`size` integers, all of them `fill`."""
    return np.full(size, fill, dtype) if COMPILED else [fill] * size
