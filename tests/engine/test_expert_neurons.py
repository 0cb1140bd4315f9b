# SPDX-License-Identifier: Apache-2.0
"""Neurons inside experts: served with a patch == served from a checkpoint that was edited by hand, bit for bit, and swapped
in and out as well."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.test_load import same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

GAINS = {(0, 0, 0): -1.0, (0, 0, 63): 0.0, (1, 3, 7): 0.5, (1, 5, 8): -0.8, (3, 7, 63): 3.0}
"""By layer, expert and neuron."""
OTHERS = {(0, 0, 0): 2.0, (1, 3, 9): 0.0, (2, 1, 31): -1.0, (3, 7, 63): 3.0}
FAMILIES = {
    "Qwen3Moe": ("mlp.experts.{}.down_proj.weight", None),
    "Gemma4/experts": ("experts.down_proj", 1),
    "GptOss": ("mlp.experts.down_proj", 0),
}
"""The tensor with an expert's down projection, and which axis of its part counts neurons where all experts share it."""


def patch_of(gains: dict[tuple[int, int, int], float], name: str) -> dict[str, Any]:
    edits = [
        {
            **({"op": "zero"} if gain == 0 else {"op": "scale", "factor": gain}),
            "expert_neurons": {str(layer): {str(expert): [neuron]}},
        }
        for (layer, expert, neuron), gain in gains.items()
    ]
    return {"version": 1, "name": name, "edits": edits}


def by_hand(model: Path, folder: Path, family: str, gains: dict[tuple[int, int, int], float]) -> str:
    """A copy of a model whose neurons write their gains times what they wrote."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    name, axis = FAMILIES[family]
    for (layer, expert, neuron), gain in gains.items():
        tensor = tensors[f"model.layers.{layer}.{name.format(expert)}"]
        column = tensor[:, neuron] if axis is None else tensor[expert].select(axis, neuron)
        column *= gain
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


TP: dict[str, Any] = {"dtype": "float32", "distributed_executor_backend": "mp", "tensor_parallel_size": 2}
RANKS = {"TP 2": TP, "EP 2": {**TP, "enable_expert_parallel": True}}
PATCH, OTHER = patch_of(GAINS, "inside"), patch_of(OTHERS, "other")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Answers:
    folder, arms = tmp_path_factory.mktemp("by_hand"), dict[str, Arm]()
    for family in FAMILIES:
        model, place = family_model(family), family.replace("/", "-")
        arms[family] = Arm(str(model), [], {"dtype": "float32"}, later=[[PATCH], [OTHER], []])
        arms[f"{family} patched"] = Arm(str(model), [PATCH], {"dtype": "float32"})
        for word, gains in (("by hand", GAINS), ("other by hand", OTHERS)):
            edited = by_hand(model, folder / f"{place}-{len(gains)}", family, gains)
            arms[f"{family} {word}"] = Arm(edited, None, {"dtype": "float32"})
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Answers:
    model, arms = family_model("Qwen3Moe"), dict[str, Arm]()
    edited = by_hand(model, tmp_path_factory.mktemp("ranks") / "by_hand", "Qwen3Moe", GAINS)
    for name, options in RANKS.items():
        arms[name] = Arm(str(model), [PATCH], options, later=[[], [PATCH]])
        arms[f"{name} by hand"] = Arm(edited, None, options)
    for arm in arms.values():
        arm.own_experts, arm.prompts, arm.max_tokens = True, PROMPTS[:2], 5
    found = run_arms(*arms.values(), VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS="1")
    return dict(zip(arms, found, strict=True))


@pytest.mark.parametrize("layout", RANKS)
def test_each_of_two_ranks_edits_its_share(ranks: Answers, layout: str) -> None:
    out, again = ranks[layout]["later"]
    assert same(ranks[layout], ranks[f"{layout} by hand"])
    assert same(again, ranks[layout]), again["swap"]
    assert out["logprobs"] != again["logprobs"], out["swap"]


def test_a_rank_without_the_neuron_says_that_it_saw_nothing(ranks: Answers) -> None:
    """Of TP 2 the first rank has neurons 0 to 31 of each expert: in layer 3 it sees none, the second none in layer 1."""
    (unseen,) = ranks["TP 2"]["later"][1]["swap"]["unverified"]
    assert unseen["parts"] == 2
    assert "its edited neurons are another rank's" in unseen["reason"]
    assert ranks["EP 2"]["later"][1]["swap"]["unverified"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_equals_a_checkpoint_edited_by_hand(answers: Answers, family: str) -> None:
    assert answers[f"{family} patched"]["logprobs"] != answers[family]["logprobs"]
    assert same(answers[f"{family} patched"], answers[f"{family} by hand"])


@pytest.mark.parametrize("family", ["Qwen3Moe", "Gemma4/experts"])
def test_swapped_in_to_another_and_out_equals_a_fresh_start(answers: Answers, family: str) -> None:
    first, second, none = answers[family]["later"]
    for later, word in ((first, " by hand"), (second, " other by hand"), (none, "")):
        assert "error" not in later["swap"]
        assert same(later, answers[family + word]), later["swap"]


@pytest.mark.parametrize("family", ["Qwen3Moe", "Gemma4/experts"])
def test_a_swap_reads_every_edited_expert_back(answers: Answers, family: str) -> None:
    swaps = [later["swap"] for later in answers[family]["later"]]
    assert [swap["unverified"] for swap in swaps] == [[], [], []]
    # Of each layer that changed all eight experts: three layers, three, and at last all four.
    assert [swap["verified"] for swap in swaps] == [24, 24, 32]


def test_where_experts_can_not_be_loaded_while_they_serve_a_swap_is_refused(answers: Answers) -> None:
    for later in answers["GptOss"]["later"][:2]:
        assert later["swap"]["error"].startswith("CannotSwapError: model.layers.")
        assert same(later, answers["GptOss"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_counts_units(answers: Answers, family: str) -> None:
    (report,) = answers[f"{family} patched"]["reports"]
    assert report["units"] == len(GAINS)
