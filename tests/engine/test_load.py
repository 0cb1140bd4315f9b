# SPDX-License-Identifier: Apache-2.0
"""Served with a patch == served from a checkpoint that was edited by hand, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.offline import Arm, run_arms
from tests.models import LAYERS, WIDTH, edit_by_hand, make_model, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answer = dict[str, Any]
    Answers = dict[str, Answer]

pytestmark = pytest.mark.engine

GAINS = {(0, 0): -1.0, (3, 7): 0.0, (5, WIDTH - 1): 0.5, (11, 0): -0.8, (11, 1): 3.0}
"""Every op, in the first layer and the last, on the first neuron and the last."""

MANY = {(index % LAYERS, index // LAYERS): -0.5 for index in range(1_100)}
"""1,100 neurons over all layers, as many as the largest edit that is known."""

INVERTIBLE = {(2, 3): -1.0, (7, 100): 2.0, (9, 9): 0.25}
INVERSE = {unit: 1 / gain for unit, gain in INVERTIBLE.items()}


def same(one: Answer, other: Answer) -> bool:
    """Whether two engines gave the same tokens with the same log-probabilities, to the last bit."""
    return bool(one["tokens"] == other["tokens"] and one["logprobs"] == other["logprobs"])


def as_bin(model: Path, folder: Path) -> Path:
    """The same weights in the older format of torch."""
    folder.mkdir()
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    torch.save(load_file(model / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Answers:
    """The answers of a small Llama, unpatched, patched in several ways, and edited by hand."""
    work = tmp_path_factory.mktemp("llama")
    base = family_model("Llama")
    sharded = make_model(work / "sharded", max_shard_size="400KB")
    half = make_model(work / "half", dtype=torch.bfloat16)
    first, second = dict(list(GAINS.items())[:2]), dict(list(GAINS.items())[2:])
    by_hand = edit_by_hand(base, work / "by_hand", GAINS)
    original = (base / "model.safetensors").read_bytes()
    arms = {
        "base": Arm(str(base)),
        "patched": Arm(str(base), [patch_of(GAINS)]),
        "by hand": Arm(str(by_hand)),
        "safetensors": Arm(str(base), [patch_of(GAINS)], {"load_format": "safetensors"}),
        "bin": Arm(str(as_bin(base, work / "bin")), [patch_of(GAINS)]),
        "sharded": Arm(str(sharded), [patch_of(GAINS)], later=[[], [patch_of(GAINS)]]),
        "two patches": Arm(str(base), [patch_of(first, "first"), patch_of(second, "second")]),
        "reloaded": Arm(str(base), [patch_of(GAINS)], reload=True),
        "many": Arm(str(base), [patch_of(MANY)]),
        "many by hand": Arm(str(edit_by_hand(base, work / "many", MANY))),
        "inverse of baked": Arm(str(edit_by_hand(base, work / "baked", INVERTIBLE)), [patch_of(INVERSE)]),
        "half": Arm(str(half)),
        "half patched": Arm(str(half), [patch_of(GAINS)]),
        "half by hand": Arm(str(edit_by_hand(half, work / "half_by_hand", GAINS))),
    }
    answers = dict(zip(arms, run_arms(*arms.values()), strict=True))
    assert (base / "model.safetensors").read_bytes() == original, "a checkpoint on disk was changed"
    return answers


@pytest.mark.parametrize(
    ("patched", "by_hand", "base"),
    [("patched", "by hand", "base"), ("many", "many by hand", "base"), ("half patched", "half by hand", "half")],
)
def test_a_patch_equals_a_checkpoint_edited_by_hand(llama: Answers, patched: str, by_hand: str, base: str) -> None:
    assert llama[patched]["tokens"] != llama[base]["tokens"]
    assert same(llama[patched], llama[by_hand])


@pytest.mark.parametrize("way", ["safetensors", "bin", "sharded", "two patches", "reloaded"])
def test_the_way_to_the_weights_changes_nothing(llama: Answers, way: str) -> None:
    assert same(llama[way], llama["by hand"])


def test_swaps_read_a_checkpoint_in_several_files(llama: Answers) -> None:
    unpatched, again = llama["sharded"]["later"]
    assert same(unpatched, llama["base"])
    assert same(again, llama["patched"])


def test_files_of_torch_are_patched_at_a_start_alone(llama: Answers) -> None:
    (report,) = llama["bin"]["reports"]
    assert report["cannot_swap"].endswith(
        "has no safetensors files; of .bin files only a server's start can read weights"
    )


def test_a_patch_and_its_inverse_give_the_base_back(llama: Answers) -> None:
    assert same(llama["inverse of baked"], llama["base"])


def test_every_answer_carries_the_patch_id(llama: Answers) -> None:
    (report,) = llama["patched"]["reports"]
    assert report["id"].startswith("test@")
    assert llama["patched"]["weight_version"] == report["id"]
    assert {version for versions in llama["patched"]["weight_versions"] for version in versions} == {report["id"]}
    assert llama["base"]["weight_version"] == "default"


def test_two_patches_have_both_ids(llama: Answers) -> None:
    names = [patch_id.split("@")[0] for patch_id in llama["two patches"]["weight_version"].split("+")]
    assert names == ["first", "second"]


def test_the_report_counts_units_and_tensors(llama: Answers) -> None:
    (report,) = llama["many"]["reports"]
    assert (report["units"], report["tensors"]) == (1_100, LAYERS)


def test_one_line_says_what_was_applied(llama: Answers) -> None:
    patch_id = llama["many"]["weight_version"]
    (line,) = [line for line in llama["many"]["log"].splitlines() if f"{patch_id} applied" in line]
    assert "INFO" in line
    assert "1100 unit(s) in 12 tensor(s)" in line
    assert line.endswith("ms on 1 rank(s)")


def test_a_patch_leaves_the_compile_cache_alone(llama: Answers) -> None:
    assert llama["patched"]["config_hash"] == llama["base"]["config_hash"]


def test_disabled_is_nothing_at_all(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    base = family_model("Llama")
    unpatched, disabled = run_arms(Arm(str(base)), Arm(str(base), [patch_of(GAINS)]), VLLM_SURGERY_DISABLE="1")
    assert same(disabled, unpatched)
    assert disabled["weight_version"] == "default"
    assert "vllm-surgery" not in disabled["log"]


def test_without_a_patch_there_is_one_debug_line(family_model: Callable[[str], Path]) -> None:
    (answer,) = run_arms(Arm(str(family_model("Llama"))), VLLM_LOGGING_LEVEL="DEBUG")
    lines = [line for line in answer["log"].splitlines() if "vllm-surgery:" in line]
    assert [("DEBUG" in line, "no patch asked for" in line) for line in lines] == [(True, True)]
