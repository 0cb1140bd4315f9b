# SPDX-License-Identifier: Apache-2.0
"""vLLM's library for CPUs without AVX-512, whatever this machine has: a small part of `make test LIBRARY=avx2`."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import pytest

from tests.cpu_library.sitecustomize import environment
from tests.engine.families import arms_of, case_of, edit_each
from tests.engine.offline import run_arms
from tests.engine.test_load import same
from tests.engine.test_refusals import start, the_error
from tests.quantised import kinds, make_served

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="vLLM has libraries to choose from on x86 CPUs alone"),
]

CASES = {family: case_of(family) for family in ("Llama", "Qwen3Moe")}
AVX2 = environment("avx2")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Answers:
    by_hand = edit_each(CASES, family_model, tmp_path_factory.mktemp("by_hand"))
    arms = {}
    for family, case in CASES.items():
        arms |= arms_of(case, family_model(family), by_hand[family], past=False)
    return dict(zip(arms, run_arms(*arms.values(), **AVX2), strict=True))


def test_vllm_takes_the_library_that_tests_ask_for(answers: Answers) -> None:
    assert {tuple(answer["libraries"]) for answer in answers.values()} == {("_C_AVX2.abi3.so",)}


@pytest.mark.parametrize("family", CASES)
def test_a_patch_equals_a_checkpoint_edited_by_hand(answers: Answers, family: str) -> None:
    assert answers[f"{family} patched"]["logprobs"] != answers[family]["logprobs"]
    assert same(answers[f"{family} patched"], answers[f"{family} by hand"])


@pytest.mark.parametrize("family", CASES)
def test_swapped_in_and_out_equals_patched_and_unpatched(answers: Answers, family: str) -> None:
    swapped_in, swapped_out = answers[family]["later"]
    assert same(swapped_in, answers[f"{family} patched"]), swapped_in["swap"]
    assert same(swapped_out, answers[family]), swapped_out["swap"]


def test_a_checkpoint_that_it_has_no_kernel_for_is_refused_before_the_load(tmp_path: Path) -> None:
    model = make_served(tmp_path / "model", kinds(32)["gptq"], "Llama/two layers")
    done = start(str(model), "--skip-tokenizer-init", **AVX2)
    assert done.returncode == 1
    assert the_error(done) == (
        f"{model}: this machine's vLLM has no kernel for weights in INT4, GPTQ or AWQ (cpu_gemm_wna16), which needs a "
        "CPU with AVX-512, or a GPU"
    )
