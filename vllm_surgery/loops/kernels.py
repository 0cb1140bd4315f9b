# SPDX-License-Identifier: Apache-2.0
"""Kernels that Numba compiles where it is installed, and that are plain Python where it isn't.

vLLM brings Numba. Without it the same source runs, on lists and plain objects instead of arrays and records because
Python is slow on the elements of arrays; the results are the same. Kernels therefore use integers alone, whose products
stay below 2**63: there Python's and the machine's arithmetic agree.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
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

Records: TypeAlias = Any
"""Records that a kernel reads and writes by index and field: a structured array where kernels are compiled, else a list
of plain objects."""

Record: TypeAlias = Any
"""One of `Records`."""

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
    """The hash of the sources of all kernels.

    Numba takes what it kept for current as long as the function's own file is the same, even if a kernel or a constant
    that it took from another file has changed. So it is kept in a folder of this name.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return f"kernels-{digest.hexdigest()[:16]}"


_SOURCES = _fingerprint()


class Layout:
    """The fields of a record that kernels keep between calls, made from their initial values.

    Args:
        values: of each field: an integer, or a tuple of a number of elements, their initial value and their type.
    """

    def __init__(self, **values: int | tuple[int, int, type[np.signedinteger[Any]]]) -> None:
        self._values = values
        self._blank = self._made(1) if COMPILED else None

    def _made(self, count: int) -> np.ndarray[Any, Any]:
        kinds: list[Any] = [
            (name, value[2], (value[0],)) if isinstance(value, tuple) else (name, np.int64)
            for name, value in self._values.items()
        ]
        made = np.zeros(count, np.dtype(kinds, align=True))
        for name, value in self._values.items():
            made[name] = value[1] if isinstance(value, tuple) else value
        return made

    def new(self, count: int = 1) -> Records:
        """`count` records with their initial values."""
        if self._blank is not None:
            return np.repeat(self._blank, count)
        return [SimpleNamespace(**{name: _plain(value) for name, value in self._values.items()}) for _ in range(count)]


def _plain(value: int | tuple[int, int, type[np.signedinteger[Any]]]) -> int | list[int]:
    return [value[1]] * value[0] if isinstance(value, tuple) else value


def readable(records: Records) -> Sequence[Record]:
    """The same records for Python, which reads their fields as attributes. What kernels write later is seen."""
    return records.view(np.recarray) if COMPILED else records  # type: ignore[no-any-return]


def frozen_record(data: Any) -> Records:
    """The fields of a dataclass of integers, as one record that kernels read."""
    if not COMPILED:
        return [data]
    names = [field.name for field in fields(data)]
    return np.array([tuple(getattr(data, name) for name in names)], np.dtype([(name, np.int64) for name in names]))


def integers(values: Sequence[int] | np.ndarray[Any, Any], dtype: type[np.integer[Any]] = np.int64) -> Integers:
    """`values` in the form that kernels take."""
    if COMPILED:
        return np.array(values, dtype=dtype)
    return values.tolist() if isinstance(values, np.ndarray) else list(values)
