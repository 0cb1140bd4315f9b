# SPDX-License-Identifier: Apache-2.0
"""Guards: every field that a patch gives must match the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import SOURCE, patches_of, refusal, zero
from tests.folders import mlp_tensors, write_model
from vllm_surgery.errors import MismatchError
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.model.config import ModelFacts
from vllm_surgery.planning.guard import check_guards, guard_of
from vllm_surgery.planning.planner import plan

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS = (6, 12)
FACTS = ModelFacts(
    architectures=("LlamaForCausalLM",),
    num_hidden_layers=2,
    hidden_size=4,
    num_experts=8,
    base="org/model",
    revision="4e20de3",
)
TENSORS = [tensor.info(name) for name, tensor in mlp_tensors(WIDTHS).items()]
SILENT = ModelFacts()


def plan_with(facts: ModelFacts = FACTS, **guard: object) -> object:
    return plan(patches_of(zero({"1": [2]}), model=guard), facts, TENSORS)


@pytest.mark.parametrize(
    "guard",
    [
        {},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["MistralForCausalLM", "LlamaForCausalLM"]},
        {"num_hidden_layers": 2},
        {"hidden_size": 4},
        {"intermediate_size": [6, 12]},
        {"num_experts": 8},
        {"base": "org/model"},
        {"revision": "4e20de3"},
        {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "intermediate_size": [6, 12], "base": "org/model"},
    ],
)  # fmt: skip
def test_a_guard_that_matches_lets_the_patch_through(guard: dict[str, Any]) -> None:
    assert plan_with(**guard)


@pytest.mark.parametrize(
    ("guard", "reason"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "architectures: the patch is for Qwen3ForCausalLM, this model is LlamaForCausalLM"),
        ({"architectures": ["llamaforcausallm"]}, "architectures: the patch is for llamaforcausallm, this model is LlamaForCausalLM"),
        ({"num_hidden_layers": 3}, "num_hidden_layers: the patch is for 3, this model has 2"),
        ({"hidden_size": 5}, "hidden_size: the patch is for 5, this model has 4"),
        ({"num_experts": 9}, "num_experts: the patch is for 9, this model has 8"),
        ({"base": "org/other"}, "base: the patch is for org/other, this model has org/model"),
        ({"revision": "4e20de"}, "revision: the patch is for 4e20de, this model has 4e20de3"),
        ({"intermediate_size": 6}, "intermediate_size: the patch is for 6 neurons in layer 1, this model has 12"),
        ({"intermediate_size": 12}, "intermediate_size: the patch is for 12 neurons in layer 0, this model has 6"),
        ({"intermediate_size": [6, 13]}, "intermediate_size: the patch is for 13 neurons in layer 1, this model has 12"),
        ({"intermediate_size": [7, 12]}, "intermediate_size: the patch is for 7 neurons in layer 0, this model has 6"),
        ({"intermediate_size": [6]}, "intermediate_size: the patch lists 1 layers, this model has 2"),
        ({"intermediate_size": [6, 12, 6]}, "intermediate_size: the patch lists 3 layers, this model has 2"),
        ({"num_hidden_layers": 2, "hidden_size": 5}, "hidden_size: the patch is for 5, this model has 4"),
    ],
)  # fmt: skip
def test_each_field_that_differs_is_refused(guard: dict[str, Any], reason: str) -> None:
    assert refusal(lambda: plan_with(**guard), MismatchError) == f"{SOURCE}: model.{reason}"


@pytest.mark.parametrize(
    ("guard", "reason"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "the patch is for LlamaForCausalLM, this model is none named"),
        *(
            ({name: value}, f"the patch is for {value}, but this model doesn't say what it has")
            for name, value in {"num_hidden_layers": 2, "hidden_size": 4, "num_experts": 8, "base": "a/b", "revision": "1"}.items()
        ),
        ({"intermediate_size": [6, 12]}, "the patch lists 2 layers, this model has None"),
    ],
)  # fmt: skip
def test_a_field_that_the_model_does_not_say_is_refused(guard: dict[str, Any], reason: str) -> None:
    text = refusal(lambda: plan_with(SILENT, **guard), MismatchError)

    assert text == f"{SOURCE}: model.{next(iter(guard))}: {reason}"


def test_a_width_is_taken_from_the_tensors_not_from_the_config() -> None:
    with_width = patches_of(zero({"1": [2]}), model={"intermediate_size": 6})
    tensors = [tensor.info(name) for name, tensor in mlp_tensors((6, 6)).items()]

    assert plan(with_width, SILENT, tensors)


def test_the_guard_of_a_second_file_counts_too() -> None:
    first = patches_of(zero({"0": [1]}), source="a.yaml").members
    second = patches_of(zero({"1": [1]}), source="b.yaml", model={"hidden_size": 5}).members
    both = type(patches_of())(first + second)

    assert refusal(lambda: check_guards(both, FACTS), MismatchError) == (
        "b.yaml: model.hidden_size: the patch is for 5, this model has 4"
    )


@pytest.mark.parametrize(("widths", "said"), [((6, 6), 6), ((6, 12), [6, 12])])
def test_a_model_writes_the_guard_that_it_passes(tmp_path: Path, widths: tuple[int, int], said: object) -> None:
    model = ModelFolder(write_model(tmp_path, widths))

    guard = guard_of(model)

    assert guard == {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 4,
        "intermediate_size": said,
    }
    assert plan(patches_of(zero({"1": [2]}), model=guard), model.facts, model.tensors)
