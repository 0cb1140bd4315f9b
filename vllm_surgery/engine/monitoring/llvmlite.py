# SPDX-License-Identifier: Apache-2.0
"""Workaround for vLLM's failure where Numba is loaded, with which the loop detectors are compiled."""

from __future__ import annotations

import sys


def let_vllm_look_through_llvmlite() -> None:
    """Applies the workaround. To be called once Numba may have been loaded, before a worker is made in this process.

    Without Triton, vLLM's CPU workers ask every object of every loaded module for its ``__dict__``, to find kernels in
    it. The object through which llvmlite, below Numba, reaches its library has none, but answers to any name with a
    function of that library. vLLM takes that for a dict, and the worker fails. So it is given an empty one to show.
    """
    known_functions = getattr(getattr(sys.modules.get("llvmlite.binding.ffi"), "lib", None), "_fntab", None)
    if isinstance(known_functions, dict):
        known_functions["__dict__"] = {}
