# SPDX-License-Identifier: Apache-2.0
"""A patch meets only models that its guard describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import SOURCE, patches_of, refusal
from tests.folders import LLAMA, config_of, mlp_tensors, write_folder, write_model
from vllm_surgery import MismatchError, ModelFolder
from vllm_surgery.guard import guard_of
from vllm_surgery.review import review

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS = (6, 8)


def checked(folder: Path, guard: dict[str, Any]) -> None:
    review(patches_of(model=guard), ModelFolder(folder))


@pytest.mark.parametrize(
    "guard",
    [
        {},
        {"architectures": [LLAMA]},
        {"architectures": ["Other", LLAMA]},
        {"num_hidden_layers": 2, "hidden_size": 4},
        {"intermediate_size": [6, 8]},
    ],
)
def test_a_true_guard_is_passed(tmp_path: Path, guard: dict[str, Any]) -> None:
    checked(write_model(tmp_path, WIDTHS), guard)


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ({"architectures": ["Other"]}, "architectures: the patch is for Other, this model is LlamaForCausalLM"),
        ({"num_hidden_layers": 3}, "num_hidden_layers: the patch is for 3, this model has 2"),
        ({"hidden_size": 5}, "hidden_size: the patch is for 5, this model has 4"),
        ({"num_experts": 8}, "num_experts: the patch is for 8, but this model doesn't say what it has"),
        ({"base": "org/m"}, "base: the patch is for org/m, but this model doesn't say what it has"),
        ({"revision": "abc"}, "revision: the patch is for abc, but this model doesn't say what it has"),
        ({"intermediate_size": 6}, "intermediate_size: the patch is for 6 neurons in layer 1, this model has 8"),
        ({"intermediate_size": [6, 9]}, "intermediate_size: the patch is for 9 neurons in layer 1, this model has 8"),
        ({"intermediate_size": [6]}, "intermediate_size: the patch lists 1 layers, this model has 2"),
    ],
)
def test_a_false_guard_is_refused(tmp_path: Path, guard: dict[str, Any], said: str) -> None:
    folder = write_model(tmp_path, WIDTHS)
    assert refusal(lambda: checked(folder, guard), MismatchError) == f"{SOURCE}: model.{said}"


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_experts_are_found_under_each_familys_name(tmp_path: Path, key: str) -> None:
    folder = write_folder(tmp_path, mlp_tensors(WIDTHS), config_of(WIDTHS, **{key: 16}))
    checked(folder, {"num_experts": 16})
    said = f"{SOURCE}: model.num_experts: the patch is for 8, this model has 16"
    assert refusal(lambda: checked(folder, {"num_experts": 8})) == said


def test_a_multimodal_model_is_described_by_its_text_model(tmp_path: Path) -> None:
    config = {"architectures": ["M"], "num_hidden_layers": 99, "text_config": config_of(WIDTHS)}
    folder = write_folder(tmp_path, mlp_tensors(WIDTHS, prefix="model.language_model"), config)
    checked(folder, {"architectures": ["M"], "num_hidden_layers": 2, "intermediate_size": [6, 8]})


def test_name_and_commit_are_known_in_the_hubs_cache(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models--org--name" / "snapshots" / "abc123", WIDTHS)
    checked(folder, {"base": "org/name", "revision": "abc123"})
    said = f"{SOURCE}: model.revision: the patch is for def, this model has abc123"
    assert refusal(lambda: checked(folder, {"revision": "def"})) == said


def test_the_guard_of_a_model_is_true_of_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path, WIDTHS)
    guard = guard_of(ModelFolder(folder))
    assert guard == {
        "architectures": [LLAMA],
        "num_hidden_layers": 2,
        "hidden_size": 4,
        "intermediate_size": [6, 8],
    }
    checked(folder, guard)
