# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery doctor --model`: what a patch can edit in a model's folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.folders import (
    config_of,
    expert_tensors,
    mlp_tensors,
    random_tensor,
    write_experts,
    write_folder,
    write_model,
)
from tests.quantised import KINDS, make
from vllm_surgery import ModelFolder
from vllm_surgery.cli import main
from vllm_surgery.planning.inventory import take_inventory

if TYPE_CHECKING:
    from pathlib import Path

EXACT = "exact: scale, zero, negate"
DOWN, UP = ("model.layers.*.mlp.down_proj.weight", "model.layers.*.mlp.up_proj.weight")
GONE_ON = {
    "own": "model.layers.*.mlp.experts.*.down_proj.weight",
    "mixtral": "model.layers.*.block_sparse_moe.experts.*.w2.weight",
    "shared": "model.layers.*.mlp.experts.down_proj",
    "shared with biases": "model.layers.*.mlp.experts.down_proj and model.layers.*.mlp.experts.down_proj_bias",
    "scaled": "model.layers.*.router.per_expert_scale",
}
INSIDE_GONE_ON = {
    **GONE_ON,
    "shared with biases": "model.layers.*.mlp.experts.down_proj",
    "scaled": "model.layers.*.experts.down_proj",
}


def lines(folder: Path) -> list[str]:
    return list(take_inventory(ModelFolder(folder)).lines())


def test_layers_that_are_stored_alike_stand_together(tmp_path: Path) -> None:
    assert lines(write_model(tmp_path, (6, 6, 8), dtype="BF16")) == [
        "LlamaForCausalLM, 3 layers, hidden size 4, 10 tensors, 9 of them parts of units",
        f"layers 0-1: 6 neurons each; gains go on {DOWN} (BF16); {EXACT}",
        f"layer 2: 8 neurons; gains go on {DOWN} (BF16); {EXACT}",
    ]


@pytest.mark.parametrize("layout", GONE_ON)
def test_experts_are_said_with_where_their_gains_go(tmp_path: Path, layout: str) -> None:
    masked_by = "model.layers.*.mlp.router.bias" if layout == "shared with biases" else "while serving"
    assert lines(write_experts(tmp_path, layout))[-2:] == [
        f"layers 0-1: 4 experts each; gains go on {GONE_ON[layout]} (F32); {EXACT}, mask ({masked_by})",
        f"layers 0-1: 6 neurons inside each expert; gains go on {INSIDE_GONE_ON[layout]} (F32); {EXACT}",
    ]


def test_dense_and_expert_layers_may_alternate(tmp_path: Path) -> None:
    tensors = mlp_tensors((6,), 8) | expert_tensors("own", layers=[1, 2, 4])
    folder = write_folder(tmp_path, tensors, config_of([6] * 5, 8))

    assert lines(folder)[1:] == [
        f"layer 0: 6 neurons; gains go on {DOWN} (F32); {EXACT}",
        f"layers 1-2, 4: 4 experts each; gains go on {GONE_ON['own']} (F32); {EXACT}, mask (while serving)",
        f"layers 1-2, 4: 6 neurons inside each expert; gains go on {GONE_ON['own']} (F32); {EXACT}",
        "layer 3: no MLP and no experts in a naming that is known",
    ]


def test_a_quantised_model_says_what_is_not_exact(tmp_path: Path) -> None:
    config = config_of((6,), quantization_config={"quant_method": "fp8"})
    folder = write_folder(tmp_path, mlp_tensors((6,), dtype="F8_E4M3"), config)

    assert lines(folder) == [
        "LlamaForCausalLM, 1 layer, hidden size 4, quantised (fp8), 3 tensors, 3 of them parts of units",
        f"layer 0: 6 neurons; gains go on {DOWN} (F8_E4M3); exact: zero, negate",
    ]


def test_a_model_in_an_unknown_format_says_that_nothing_is_exact(tmp_path: Path) -> None:
    config = config_of((6,), quantization_config={"quant_method": "bitsandbytes"})
    folder = write_folder(tmp_path, mlp_tensors((6,), dtype="U8"), config)

    assert lines(folder)[1:] == [
        f"layer 0: neurons; gains go on {DOWN} (U8); no op is exact",
        "nothing in this model can be edited",
    ]


def test_experts_that_are_packed_can_be_masked(tmp_path: Path) -> None:
    packed = {"model.layers.0.mlp.experts.3.down_proj.qweight": random_tensor("I32", (1, 8))}
    router = {"model.layers.0.mlp.gate.weight": random_tensor("BF16", (4, 8))}
    folder = write_folder(tmp_path, packed | router, config_of((6,), quantization_config={"quant_method": "awq"}))

    assert lines(folder)[1:] == ["layer 0: 4 experts; gains can go on no tensor; exact: mask (while serving)"]


@pytest.mark.parametrize(
    ("word", "gone_on", "ops"),
    [
        ("fp8 per tensor", f"{DOWN} (F8_E4M3)", "zero, negate"),
        ("fp8 per channel", f"{DOWN} and {UP}_scale (BF16, F8_E4M3)", "scale, zero, negate"),
        ("gptq", f"{UP.replace('weight', 'scales')} (F16)", "scale, zero, negate"),
    ],
)
def test_a_quantised_model_says_what_is_exact(tmp_path: Path, word: str, gone_on: str, ops: str) -> None:
    folder = ModelFolder(make(tmp_path / "model", KINDS[word]))

    assert (
        list(take_inventory(folder).lines())[1] == f"layers 0-1: 24 neurons each; gains go on {gone_on}; exact: {ops}"
    )


def test_the_command_says_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_experts(tmp_path, "scaled")

    assert main(["doctor", "--model", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{folder}:", *(f"  {line}" for line in lines(folder))]


def test_the_command_says_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path, {"x": random_tensor("F32", (2,))}, {})

    assert main(["doctor", "--model", str(folder)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "  nothing in this model can be edited"


def test_the_command_reports_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_experts(tmp_path, "own")

    assert main(["doctor", "--model", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["model"], report["without"]) == (True, str(folder), [])
    assert report["found"] == [
        {
            "kind": "experts",
            "layers": [0, 1],
            "units": 4,
            "tensors": [GONE_ON["own"]],
            "dtypes": ["F32"],
            "ops": ["scale", "zero", "negate", "mask"],
            "masked_by": None,
        },
        {
            "kind": "expert_neurons",
            "layers": [0, 1],
            "units": 6,
            "tensors": [GONE_ON["own"]],
            "dtypes": ["F32"],
            "ops": ["scale", "zero", "negate"],
            "masked_by": None,
        },
    ]


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
