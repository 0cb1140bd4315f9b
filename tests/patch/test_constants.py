# SPDX-License-Identifier: Apache-2.0
"""`set` and `add`: constants in neurons' activations, which slots can give and no weight can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from tests.examples import SOURCE, patch_data, patches_of, refusal, zero
from vllm_surgery import Patch, PatchError
from vllm_surgery.cli import main
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.export_lora import export_lora
from vllm_surgery.patch.describe import describe
from vllm_surgery.patch.format import json_schema
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNITS = {"1": [2]}
SET: dict[str, Any] = {"op": "set", "value": 3.5, "neurons": UNITS}
ADD: dict[str, Any] = {"op": "add", "value": -0.25, "neurons": UNITS}
NO_WEIGHT = (
    "edits[0].neurons.1: op `{}` puts a constant where weights only put multiples, so it can't be loaded, baked, "
    "exported or swapped into weights; a server with --patch-slots can serve it"
)


@pytest.mark.parametrize(("edit", "gain", "addend"), [(SET, 0.0, 3.5), (ADD, 1.0, -0.25)])
def test_what_becomes_of_an_activation(edit: dict[str, Any], gain: float, addend: float) -> None:
    (item,) = Patch.from_data(patch_data(edit)).assignments()
    assert (item.gain, item.addend) == (gain, addend)


@pytest.mark.parametrize("edit", [SET, ADD])
def test_a_file_is_read_back(edit: dict[str, Any]) -> None:
    patch = Patch.from_data(patch_data(edit))
    assert Patch.parse(patch.to_yaml()) == Patch.parse(patch.to_json()) == patch


def test_each_op_and_value_has_a_digest_of_its_own() -> None:
    edits = [zero(UNITS), SET, ADD, {**SET, "value": 3.25}, {**ADD, "value": 3.5}]
    assert len({Patch.from_data(patch_data(edit)).digest for edit in edits}) == len(edits)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({**SET, "value": 0}, "edits[0].value: 0.0 is 0 in float32; to silence a neuron write `op: zero`"),
        ({**ADD, "value": 1e-60}, "edits[0].value: 1e-60 is 0 in float32"),
        ({**SET, "value": 1e60}, "edits[0].value: 1e+60 is too large for float32"),
        ({**SET, "value": float("nan")}, "edits[0].value: nan is not a finite number"),
        ({"op": "set", "neurons": UNITS}, "edits[0].value: is missing"),
        ({"op": "add", "value": 1.0}, "edits[0]: names no units; give `neurons` or `shared`"),
        ({"op": "set", "value": 1.0, "experts": UNITS}, "edits[0].experts: `set` and `add` are for neurons"),
        ({**SET, "factor": 2.0}, "edits[0].factor: is not a key of this format"),
    ],
)
def test_nonsense_is_refused_with_its_place(edit: dict[str, Any], said: str) -> None:
    assert refusal(lambda: Patch.from_data(patch_data(edit), SOURCE), PatchError).startswith(f"{SOURCE}: {said}")


@pytest.mark.parametrize("edit", [SET, ADD])
def test_the_schema_takes_it(edit: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(patch_data(edit))
    assert not validator.is_valid(patch_data({**edit, "value": 0}))


@pytest.mark.parametrize(
    ("edit", "words"), [(SET, "neurons set to 3.5: layer 1: 2"), (ADD, "neurons - 0.25: layer 1: 2")]
)
def test_it_is_said_in_words(edit: dict[str, Any], words: str) -> None:
    assert words in describe(Patch.from_data(patch_data(edit)))


@pytest.mark.parametrize("edit", [SET, ADD])
def test_no_weight_can_hold_it(edit: dict[str, Any], family_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder, patches = ModelFolder(family_model("Llama")), patches_of(edit)
    expected = f"{SOURCE}: {NO_WEIGHT.format(edit['op'])}"
    assert refusal(lambda: check_patches(patches, folder)) == expected
    assert refusal(lambda: bake(patches, folder, tmp_path / "out")) == expected
    assert refusal(lambda: export_lora(patches, folder, tmp_path / "lora")) == expected
    assert not list(tmp_path.iterdir())


def test_a_plan_for_slots_has_it(family_model: Callable[[str], Path]) -> None:
    patches = patches_of(SET, zero({"1": [7], "3": [0]}))
    plan = check_patches(patches, ModelFolder(family_model("Llama")), for_slots=True)
    found = {item.layer: (item.kind, item.indices, item.gains, item.addends) for item in plan.gains}
    assert found == {1: ("neurons", (2, 7), (0.0, 0.0), (3.5, 0.0)), 3: ("neurons", (0,), (0.0,), (0.0,))}
    assert (plan.units, plan.edits) == (3, ())


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([zero({"1": [128]})], "index 128 is out of range: layer 1 has 128 neurons"),
        ([zero({"12": [0]})], "layer 12 is out of range: the model has 12 layers"),
        ([zero({"1": [0]}, "experts")], "the model has no routed experts"),
    ],
)
def test_a_plan_for_slots_refuses_what_is_not_there(
    edits: list[Any], said: str, family_model: Callable[[str], Path]
) -> None:
    folder = ModelFolder(family_model("Llama"))
    assert said in refusal(lambda: check_patches(patches_of(*edits), folder, for_slots=True))


def test_a_plan_for_slots_holds_guards(family_model: Callable[[str], Path]) -> None:
    patches = patches_of(SET, model={"intermediate_size": 64})
    with pytest.raises(PatchError, match="the patch is for 64 neurons in layer 0, this model has 128"):
        check_patches(patches, ModelFolder(family_model("Llama")), for_slots=True)


def test_check_says_what_a_slot_would_do(
    family_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(Patch.from_data(patch_data(SET)).to_yaml())
    model = str(family_model("Llama"))
    assert main(["check", str(file), "--model", model]) == 0
    out = capsys.readouterr().out
    assert f"in a slot of a server of {model}: 1 unit in 1 layer" in out
    assert "neurons of layer 1: 2 set to 3.5" in out


def test_check_asks_slots_for_ops_that_the_weights_cannot_hold(
    family_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(Patch.from_data(patch_data()).to_yaml())
    assert main(["check", str(file), "--model", str(family_model("Llama")), "--slots"]) == 0
    assert "neurons of layer 1: 2 silenced" in capsys.readouterr().out
