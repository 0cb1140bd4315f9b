# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's ops this machine has: its library for x86 CPUs without AVX-512 lacks some. See docs/testing.md."""

from __future__ import annotations

import pytest
import torch

PACKED_INTEGERS = "cpu_gemm_wna16"
"""Multiplies by weights in four bits, eight to a word."""

SHARED_MEMORY = "init_shm_manager"
"""By which ranks exchange tensors. Without it vLLM takes gloo, over which a batch of two ranks fails in vLLM itself."""

NEED_AVX_512 = ("int4 in groups", "int4 with zero points", "gptq", "awq")
"""The kinds of `tests.quantised` that need it."""


def has_op(name: str) -> bool:
    """Whether the library that vLLM takes on this machine has an op."""
    from vllm import _custom_ops  # noqa: F401 - loads the library

    return hasattr(torch.ops._C, name)


def skip_without_op(name: str) -> None:
    """Skips a test that needs an op which this machine's library lacks."""
    if not has_op(name):
        pytest.skip(f"this machine's vLLM has no kernel {name}, which needs AVX-512 on an x86 CPU")
