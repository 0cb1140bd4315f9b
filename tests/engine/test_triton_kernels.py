# SPDX-License-Identifier: Apache-2.0
"""vLLM's Triton kernels for quantised weights on GPUs, by Triton's interpreter: a gain on scales is a gain on answers.

No model is served here. A CPU has no kernel for most of these kinds, and what a GPU compiles may still round otherwise.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.engine.program import run_program
from tests.engine.requests.test_runner_v2 import INTERPRETER
from tests.engine.triton_kernels import GAINS, KINDS

LINEAR = ("fp8 per channel", "int8 per channel", "fp8 in blocks")
KERNELS = (*LINEAR, *(f"{kind} experts" for kind in KINDS))

INTERPRETED = {
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": os.pathsep.join([str(INTERPRETER), os.environ.get("PYTHONPATH", "")]),
}

pytestmark = pytest.mark.slow  # Imports vLLM once more.


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    written, _ = run_program("-m", "tests.engine.triton_kernels", given=None, **INTERPRETED)
    outcomes: dict[str, Any] = json.loads(written)
    return outcomes


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_answers_as_the_weights_say(found: dict[str, Any], kernel: str) -> None:
    assert found[kernel]["off"] < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gain_on_scales_is_that_gain_on_what_they_scale_and_on_nothing_else(
    found: dict[str, Any], kernel: str
) -> None:
    assert {gain: found[kernel][str(gain)] for gain in GAINS} == {gain: [True, True] for gain in GAINS}
