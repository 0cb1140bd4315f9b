# SPDX-License-Identifier: Apache-2.0
"""Checks of answers to small tasks."""

from __future__ import annotations

import ast
import json
import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from vllm_surgery.evaluation.tasks.sandbox import run_code

_FENCE = re.compile(r"```[a-zA-Z0-9]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Says(_Check):
    """The answer holds one of these, as whole words; with `exact` in this very spelling."""

    kind: Literal["says"]
    any: list[str] = Field(min_length=1)
    exact: bool = False

    def is_right(self, text: str, *, run: bool) -> bool:
        """True if the answer holds one of the words."""
        flags = re.NOFLAG if self.exact else re.IGNORECASE
        return any(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, flags) for words in self.any)


class Number(_Check):
    """The last number in the answer is this one: what comes before may be the calculation."""

    kind: Literal["number"]
    value: float

    def is_right(self, text: str, *, run: bool) -> bool:
        """True if the answer's last number is the value."""
        found = _NUMBER.findall(text)
        return bool(found) and float(found[-1].replace(",", "")) == self.value


class Json(_Check):
    """The answer, or the block of code in it, is a JSON object with these keys."""

    kind: Literal["json"]
    keys: list[str]

    def is_right(self, text: str, *, run: bool) -> bool:
        """True if the answer is a JSON object with all keys."""
        try:
            data = json.loads(_code(text))
        except (ValueError, RecursionError):
            return False
        return isinstance(data, dict) and set(self.keys) <= set(data)


class Python(_Check):
    """The block of code in the answer compiles; where code may be run, the call also gives this value."""

    kind: Literal["python"]
    call: str
    value: Any

    def is_right(self, text: str, *, run: bool) -> bool:
        """True if the code compiles, and with `run`, in a process with limits, its call gives the value."""
        code = _code(text)
        try:
            defined = any(isinstance(node, ast.FunctionDef) for node in ast.parse(code).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return run_code(code, self.call) == json.dumps(self.value) if run and defined else defined


Check: TypeAlias = Annotated[Says | Number | Json | Python, Field(discriminator="kind")]


def _code(text: str) -> str:
    """The first block of code; the whole text where none is marked."""
    found = _FENCE.search(text)
    return (found[1] if found else text).strip()
