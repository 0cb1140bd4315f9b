# SPDX-License-Identifier: Apache-2.0
"""Makes vLLM take another of its libraries for x86 CPUs: `VLLM_SURGERY_TEST_LIBRARY=avx2 make test`.

vLLM has three, for AVX2, for AVX-512, and for AVX-512 with bfloat16; it asks torch what the CPU can do, and so do its
kernels in Python. Here torch says less than it could. Python imports this file at the start of every process whose
`PYTHONPATH` names its folder, which is how it reaches servers and their workers; so it imports nothing of the project.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

VARIABLE = "VLLM_SURGERY_TEST_LIBRARY"
"""Names one of `LIBRARIES`. Without it, the library is the machine's own."""

LIBRARIES = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}
"""The environment in which torch's own kernels, and the libraries below it, compute as on such a CPU."""

_LACKING = {"avx2": ("avx512", "amx"), "avx512": ("avx512_bf16", "avx512_fp16", "amx")}
"""How the names begin of what torch must not say that the CPU has."""


def environment(library: str) -> dict[str, str]:
    """What makes a process, and all that it starts, take a library."""
    folder, there = str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")
    search = there if folder in there.split(os.pathsep) else os.pathsep.join(filter(None, (folder, there)))
    return {VARIABLE: library, "PYTHONPATH": search, **LIBRARIES[library]}


def force() -> None:
    """In this process and in all that it starts, vLLM takes the library that `VARIABLE` names, if it names one."""
    library = os.environ.get(VARIABLE)
    if not library:
        return
    os.environ.update(environment(library))
    if "torch.cpu" in sys.modules:
        _say_less(sys.modules["torch.cpu"], library)
    else:
        sys.meta_path.insert(0, _Finder(library))


def _say_less(cpu: ModuleType, library: str) -> None:
    asked = cpu.get_capabilities

    def get_capabilities() -> Mapping[str, Any]:
        return MappingProxyType(
            {name: value for name, value in asked().items() if not name.startswith(_LACKING[library])}
        )

    cpu.get_capabilities = get_capabilities  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `torch.cpu` where everybody does, and changes it as soon as it is there."""

    def __init__(self, library: str) -> None:
        self._library = library

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch.cpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._library)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, library: str) -> None:
        self._loader, self._library = loader, library

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _say_less(module, self._library)


force()
