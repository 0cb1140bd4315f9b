# SPDX-License-Identifier: Apache-2.0
"""An adapter plus the original is the edited model, as exactly as float32 can say a difference."""

from __future__ import annotations

import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from tests.examples import patches_of, refusal, zero
from tests.folders import Tensor, config_of, mlp_tensors, write_folder, write_model
from tests.models import down, edit_by_hand, make_model, patch_of
from vllm_surgery import MismatchError, ModelFolder, Patch, PatchSet, SurgeryError, UsageError
from vllm_surgery.cli import main
from vllm_surgery.offline import export_lora as module
from vllm_surgery.offline.export_lora import RANKS, export_lora
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.planning.planner import TensorEdit

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS, HIDDEN = (8, 8, 12), 64
GAINS = {(0, 1): -1.0, (0, 5): 0.5, (0, 7): 0.0, (2, 11): 3.0}
EXACT = (-1.0, 0.0, 0.5, 0.8, 2.0, 3.0)
"""Gains whose differences need no rounding, whatever the weight; of 3 the sum takes the rounding back."""
ROUNDED = (-0.8, 0.3, 0.001, 777.7)


def patches(gains: dict[tuple[int, int], float]) -> PatchSet:
    return PatchSet((SourcedPatch("a.yaml", Patch.from_data(patch_of(gains))),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", WIDTHS, hidden=HIDDEN, shards=2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("model*.safetensors"):
        found.update(load_file(file))
    return found


def factors(adapter: Path, layer: int, root: str = "model") -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = f"base_model.model.{root}.layers.{layer}.mlp.down_proj"
    return tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]


def in_bits(tensor: torch.Tensor) -> list[list[int]]:
    return tensor.view(torch.int32).tolist()


def sum_and_edited(tmp_path: Path, gain: float, dtype: str = "F32") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In float32: the original plus the adapter's product, the edited weights, and the product."""
    model = write_model(tmp_path / "model", (8,), hidden=4096, dtype=dtype)
    gains = {(0, index): gain for index in range(0, 8, 2)}
    export_lora(patches(gains), ModelFolder(model), tmp_path / "out")
    a, b = factors(tmp_path / "out", 0)
    edited = (
        weights(edit_by_hand(model, tmp_path / "edited", gains))[down(0)].float() + 0.0
    )  # No -0 in silenced columns.
    return weights(model)[down(0)].float() + b @ a, edited, b @ a


@pytest.mark.parametrize("gain", EXACT)
def test_original_plus_product_is_the_edited_weight_bit_for_bit(tmp_path: Path, gain: float) -> None:
    total, edited, _ = sum_and_edited(tmp_path, gain)
    assert in_bits(total) == in_bits(edited)


@pytest.mark.parametrize("gain", ROUNDED)
def test_else_it_is_off_by_at_most_a_unit_in_the_last_place_of_the_difference(tmp_path: Path, gain: float) -> None:
    total, edited, product = sum_and_edited(tmp_path, gain)
    unit = torch.nextafter(product.abs(), torch.tensor(torch.inf)) - product.abs()
    assert bool(((total.double() - edited.double()).abs() <= unit).all())
    assert bool((total != edited).any()), "this gain needs no rounding, so it shows nothing"


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("gain", [*EXACT, *ROUNDED, 2.0**11, -(2.0**-11)])
def test_of_a_16_bit_checkpoint_it_is_the_edited_weight_bit_for_bit(tmp_path: Path, dtype: str, gain: float) -> None:
    total, edited, _ = sum_and_edited(tmp_path, gain, dtype)
    assert in_bits(total) == in_bits(edited)


def test_of_a_float64_checkpoint_the_difference_is_taken_in_float64(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", (8,), dtype="F64")
    export_lora(patches({(0, 3): 1 + 2**-20}), ModelFolder(model), tmp_path / "out")
    _, b = factors(tmp_path / "out", 0)
    column = weights(model)[down(0)][:, 3]
    assert b[:, 0].tolist() == (column * (1 + 2**-20) - column).float().tolist()


def test_a_picks_the_neurons_and_the_rest_is_zero(model: Path, tmp_path: Path) -> None:
    export_lora(patches(GAINS), ModelFolder(model), tmp_path / "out")
    a, b = factors(tmp_path / "out", 0)
    assert (a.shape, b.shape, a.dtype, b.dtype) == ((3, 8), (HIDDEN, 3), torch.float32, torch.float32)
    assert a.nonzero().tolist() == [[0, 1], [1, 5], [2, 7]]
    a, b = factors(tmp_path / "out", 2)
    assert (a.shape, b.shape) == ((3, 12), (HIDDEN, 3))
    assert a.nonzero().tolist() == [[0, 11]]
    assert not b[:, 1:].any()


def test_layers_that_are_not_edited_are_not_there(model: Path, tmp_path: Path) -> None:
    done = export_lora(patches(GAINS), ModelFolder(model), tmp_path / "out")
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name.split(".")[4] for name in names} == {"0", "2"}
    assert (done.rank, done.max_lora_rank, done.units, done.modules) == (3, 8, 4, 2)


def test_the_config_is_pefts_and_its_scale_is_1(model: Path, tmp_path: Path) -> None:
    export_lora(patches(GAINS), ModelFolder(model), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_bytes()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": 3,
        "lora_alpha": 3,
        "target_modules": ["model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj"],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


@pytest.mark.parametrize("root", ["model.language_model", "language_model.model"])
def test_the_checkpoints_module_path_stays(tmp_path: Path, root: str) -> None:
    model = write_model(tmp_path / "model", prefix=root)
    export_lora(patches({(1, 2): -1.0}), ModelFolder(model), tmp_path / "out")
    a, _ = factors(tmp_path / "out", 1, root)
    assert a.nonzero().tolist() == [[0, 2]]


def test_a_model_from_the_hubs_cache_goes_by_its_name(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models--org--name" / "snapshots" / "abc")
    done = export_lora(patches({(1, 2): -1.0}), ModelFolder(model), tmp_path / "out")
    assert done.base == "org/name"
    assert "vllm serve org/name --enable-lora" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("neurons", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (321, 512), (512, 512)])
def test_the_rank_is_the_number_of_neurons_and_vllm_takes_the_next_it_allows(
    tmp_path: Path, neurons: int, allowed: int
) -> None:
    model = write_model(tmp_path / "model", (512,), hidden=2)
    done = export_lora(patches({(0, index): 0.0 for index in range(neurons)}), ModelFolder(model), tmp_path / "out")
    assert (done.rank, done.max_lora_rank) == (neurons, allowed)


def test_what_was_done_is_written_into_the_folder(model: Path, tmp_path: Path) -> None:
    wanted = patches(GAINS)
    export_lora(wanted, ModelFolder(model), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "vllm_surgery.json").read_bytes())["lora"]
    assert (record["id"], record["rank"]) == (wanted.id, 3)
    assert [Patch.from_data(data) for data in record["patches"]] == [member.patch for member in wanted.members]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"vllm serve {model} --enable-lora --max-lora-rank 8 --max-loras 2 --lora-modules {wanted.id}=FOLDER" in card
    assert f"Edited by vllm-surgery: `{wanted.id}`" in card


def test_everyone_may_read_it(model: Path, tmp_path: Path) -> None:
    export_lora(patches(GAINS), ModelFolder(model), tmp_path / "out")
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o666 & ~umask}


def refused(wanted: PatchSet, model: Path, out: Path, kind: type[SurgeryError]) -> str:
    return refusal(lambda: export_lora(wanted, ModelFolder(model), out), kind)


@pytest.mark.parametrize("edit", [zero({"0": [1]}, "experts"), {"op": "mask", "experts": {"0": [1]}}])
def test_experts_are_refused(model: Path, tmp_path: Path, edit: dict[str, Any]) -> None:
    assert refused(patches_of(zero({"1": [2]}), edit), model, tmp_path / "out", MismatchError) == (
        "p.yaml: edits[1].experts.0: a LoRA adapter can't hold edits of routed experts or inside them, only of the "
        "neurons of dense MLPs and of shared experts; bake the patch instead"
    )


def test_more_neurons_than_the_largest_rank_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", (4, RANKS[-1] + 1), hidden=2)
    wanted = patches_of(zero({"0": [1], "1": "all"}))
    assert refused(wanted, model, tmp_path / "out", MismatchError) == (
        "p.yaml: edits[0].neurons.1: 513 neurons of layer 1 are edited, each takes a rank, and the largest LoRA rank "
        "of vLLM is 512; bake the patch instead"
    )


def test_a_patch_for_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    said = refused(patches_of(zero({"0": [8]})), model, tmp_path / "out", MismatchError)
    assert said == "p.yaml: edits[0].neurons.0: index 8 is out of range: layer 0 has 8 neurons"


def test_a_difference_beyond_float32_is_refused(tmp_path: Path) -> None:
    tensors = mlp_tensors((2,), hidden=1)
    tensors[down(0)] = Tensor("F32", (1, 2), torch.tensor([1.0, 3e38]).numpy().tobytes())
    model = write_folder(tmp_path / "model", tensors, config_of((2,), hidden=1))
    said = refused(patches({(0, 1): -1.0}), model, tmp_path / "out", SurgeryError)
    assert said == f"{down(0)}: the edit changes weights by more than float32 can say; bake the patch instead"


def test_a_plan_of_other_tensors_is_refused() -> None:
    edit = TensorEdit("model.layers.0.mlp.up_proj.weight", "F32", (4, 2), 0, (1,), (0.5,))
    assert refusal(lambda: module._place(edit)) == (
        "model.layers.0.mlp.up_proj.weight: is edited, and the adapter can only hold columns of plain down projections"
    )


def test_no_patch_is_refused(model: Path, tmp_path: Path) -> None:
    said = refused(PatchSet(), model, tmp_path / "out", UsageError)
    assert said == "no patch was given, so there is nothing to export"


def test_a_taken_folder_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert refused(patches(GAINS), model, tmp_path / "out", UsageError) == f"{tmp_path}/out: already exists"


def test_the_models_own_folder_is_refused(model: Path) -> None:
    said = refused(patches(GAINS), model, model / "lora", UsageError)
    assert said == f"{model}/lora: lies in the model's own folder; an adapter goes into a folder of its own"


def test_a_place_that_cant_be_written_is_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused(patches(GAINS), model, tmp_path / "file" / "out", SurgeryError)
    assert said.startswith(f"{tmp_path}/file/out: can't be written: ")


def test_a_full_disk_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module, "adapter_card", full)
    said = refused(patches(GAINS), model, tmp_path / "out", SurgeryError)
    assert said == f"{tmp_path}/out: can't be written: No space left on device; nothing was left behind"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def arguments(model: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "patch.json").write_text(json.dumps(patch_of(GAINS)))
    return ["export-lora", str(tmp_path / "patch.json"), "--model", str(model), "--out", str(tmp_path / "out")]


def test_the_command_says_what_it_wrote(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out, wanted = arguments[-1], patches(GAINS).id
    assert capsys.readouterr().out.splitlines() == [
        f"exported: {out} holds {wanted}: 4 neurons in 2 down projections, rank 3",
        f"serve it: vllm serve {arguments[3]} --enable-lora --max-lora-rank 8 --max-loras 2 "
        f"--lora-modules {wanted}={out}",
    ]


def test_the_command_as_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "folder": arguments[-1],
        "id": patches(GAINS).id,
        "base": arguments[3],
        "rank": 3,
        "max_lora_rank": 8,
        "units": 4,
        "modules": 2,
    }


def test_the_command_refuses_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments[:-1], arguments[3]]) == 2
    assert capsys.readouterr().err.endswith("an adapter goes into a folder of its own\n")


def test_peft_loads_it(tmp_path: Path) -> None:
    """Merged by PEFT itself, the adapter gives the edited weights in the edited layers and leaves all others alone."""
    peft = pytest.importorskip("peft")
    import transformers

    gains = {(0, 0): -1.0, (3, 7): 0.0, (3, 9): 0.5}
    model, out = make_model(tmp_path / "model"), tmp_path / "out"
    export_lora(patches(gains), ModelFolder(model), out)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        merged = peft.PeftModel.from_pretrained(loaded, out).merge_and_unload().state_dict()
    edited = weights(edit_by_hand(model, tmp_path / "edited", gains))
    assert all(torch.equal(merged[name], tensor) for name, tensor in edited.items())
