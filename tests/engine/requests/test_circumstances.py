# SPDX-License-Identifier: Apache-2.0
"""A patch per request in whatever else a server does: compiled, over two ranks, in parts, preempted, speculating, with adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.kernels import SHARED_MEMORY, skip_without_op
from tests.engine.offline import Arm, run_arms
from tests.engine.requests.batches import (
    CLOSE,
    PROMPTS,
    ROUND,
    answer_batch,
    every,
    exact_patch,
    largest_difference,
    last_patch,
    rounded_patch,
)
from tests.engine.test_load import same
from tests.engine.test_two_ranks import EP, PP, TP
from tests.models import LAYERS, patch_of
from vllm_surgery import ModelFolder, Patch
from vllm_surgery.api import patch_set
from vllm_surgery.offline.export_lora import export_lora

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.requests.batches import Answers

pytestmark = pytest.mark.engine

FLOAT: dict[str, Any] = {"dtype": "float32"}
COUNTED: dict[str, Any] = {**FLOAT, "disable_log_stats": False}
IN_PARTS = {"max_num_batched_tokens": 16, "max_num_seqs": 8}
"""A prompt of 36 tokens takes three steps."""
N_GRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 2}
# Two layers, since each is compiled for seconds.
SMALL = [patch_of({(0, 3): -1.0, (1, 7): 0.0, (1, 5): 2.0}, "exact"), patch_of({(0, 9): 3.0}, "rounded")]
DENSE = [exact_patch("Llama"), rounded_patch("Llama")]
BESIDE = "Gemma4/experts"
"""A dense MLP beside experts in each layer."""
BOTH_STAGES = patch_of({**ROUND, (LAYERS - 1, 9): -1.0}, "exact")

CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "compiled": ("Llama/two layers", SMALL, {**FLOAT, "enforce_eager": False}),
    "compiled experts": (
        "Qwen3Moe/two layers",
        [patch_of({}, "exact", {(0, 1): -1.0, (1, 2): 0.5})],
        {**FLOAT, "enforce_eager": False},
    ),
    "TP 2": (BESIDE, [exact_patch(BESIDE), last_patch(BESIDE)], TP),
    "EP 2": (BESIDE, [exact_patch(BESIDE)], EP),
    "PP 2": ("Llama", [BOTH_STAGES], PP),
    "in parts and preempted": ("Llama", DENSE, {**COUNTED, **IN_PARTS, "num_gpu_blocks_override": 9, "block_size": 32}),
    "speculating": ("Llama", DENSE, {**COUNTED, "speculative_config": N_GRAMS}),
    "LoRA": ("Llama", DENSE, {**FLOAT, "enable_lora": True, "max_lora_rank": 8, "max_loras": 2}),
}
HAPPENED = {
    "in parts and preempted": "vllm:num_preemptions",
    "speculating": "vllm:spec_decode_num_accepted_tokens",
}
"""vLLM's counter of what a case is about."""

SAME_BATCHES = {"compiled", "compiled experts", "TP 2", "EP 2", "PP 2", "LoRA"}
"""Where the mixed server cuts its work up as those with edited weights do, so that even the last bits are equal."""


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def answers(case: str, family_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    if case in ("TP 2", "EP 2"):
        skip_without_op(SHARED_MEMORY)
    family, patches, options = CASES[case]
    model, more = family_model(family), _how_to_ask(options)
    if options.get("enable_lora"):
        adapter = _adapter(model, tmp_path_factory.mktemp("lora") / "adapter")
        more["adapters"] = [folder for folder in (adapter, None, adapter, None) for _ in ("none", *patches)]
    return answer_batch(model, {patch["name"]: patch for patch in patches}, options=options, **more)


def _adapter(model: Path, folder: Path) -> str:
    """An adapter of down projections, by which the answers to every second prompt are other ones."""
    gains = patch_of({(0, 11): 5.0, (1, 7): -3.0, (LAYERS - 1, 20): 9.0}, "adapter")
    done = export_lora(patch_set(Patch.from_data(gains)), ModelFolder(model), folder)
    assert done.max_lora_rank <= 8
    return str(done.folder)


def _how_to_ask(options: dict[str, Any]) -> dict[str, Any]:
    """Two ranks wait for each other by turning in circles, so that every token costs much on few cores. Where there are
    few blocks, answers have to be so long that each request needs a second one."""
    if "distributed_executor_backend" in options:
        return {"own_experts": True, "max_tokens": 5}
    return {"max_tokens": options["block_size"]} if "block_size" in options else {}


def test_each_request_is_answered_as_by_a_server_of_its_own(case: str, answers: Answers) -> None:
    _, patches, _ = CASES[case]
    for choice, reference in [("none", "plain"), *((patch["name"], f"weights: {patch['name']}") for patch in patches)]:
        assert answers[choice]["tokens"] == answers[reference]["tokens"], choice
        assert largest_difference(answers[choice], answers[reference]) <= CLOSE, choice
        if case in SAME_BATCHES and choice != "rounded":
            assert same(answers[choice], answers[reference]), choice


def test_the_patches_differ(case: str, answers: Answers) -> None:
    _, patches, _ = CASES[case]
    assert len({str(answers[name]["logprobs"]) for name in ("none", *(patch["name"] for patch in patches))}) > len(
        patches
    )


def test_what_a_case_is_about_has_happened(case: str, answers: Answers) -> None:
    if case in HAPPENED:
        assert answers["engine"]["counters"][HAPPENED[case]] > 0, answers["engine"]["counters"]


def test_compiled_steps_read_nothing_that_a_request_left(family_model: Callable[[str], Path]) -> None:
    """Compiled code reads the slot of every token at every step, those of long steps without a patch too."""
    family, patches, options = CASES["compiled"]
    model, asked = str(family_model(family)), {"options": options, "max_tokens": 3, "in_turn": True}
    prompts = [PROMPTS[-1], [5], PROMPTS[-1]]
    slots = {"settings": {"slots": 1}, "fills": patches[:1], "choices": ["exact", "none", "none"]}
    mixed, plain = run_arms(
        Arm(model, [], prompts=prompts, **slots, **asked), Arm(model, prompts=prompts, choices=[None] * 3, **asked)
    )
    for place, name in enumerate(("patched", "short", "long")):
        equal = every(mixed, place, 3)["logprobs"] == every(plain, place, 3)["logprobs"]
        assert equal == (name != "patched"), name
