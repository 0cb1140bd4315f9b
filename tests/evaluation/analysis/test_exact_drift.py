# SPDX-License-Identifier: Apache-2.0
"""Whole distributions: known ones, and a real small model's."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.examples import patch_data, refusal
from tests.localization.chain import lines, prompt, save_tokenizer
from tests.models import down, make_model
from vllm_surgery.api import apply_to_checkpoint, plan
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.analysis.exact_drift import _drift, _patched, exact_drifts
from vllm_surgery.evaluation.probes import Probe
from vllm_surgery.patch.format import Patch
from vllm_surgery.planning.planner import Plan, TensorEdit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_surgery.evaluation.drift import Drift
    from vllm_surgery.evaluation.probes import Form


def test_drift_of_distributions_that_are_known() -> None:
    base = torch.tensor([[0.75, 0.25], [0.9, 0.1]]).log()
    patched = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    drift = _drift("one", base, patched, torch.tensor([0, 1]))
    assert drift.kl == pytest.approx(0.75 * math.log(3) - 0.25 * math.log(3))
    assert (drift.tokens, drift.agreed, drift.rest) == (2, 1, 0)
    assert drift.base_loss == pytest.approx(-math.log(0.75 * 0.1))
    assert drift.loss == pytest.approx(-math.log(0.25 * 0.1))


def test_a_patch_is_taken_back() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    original = network[0].weight.data.clone()
    edit = TensorEdit("0.weight", "F32", (2, 3), 1, (1,), (5.0,))
    with _patched(network, Plan("p", (edit,), 1)):
        assert torch.equal(network[0].weight[:, 1], original[:, 1] * 5)
    assert torch.equal(network[0].weight, original)


def check_against_baked(folder: Path, work: Path, *edits: dict[str, Any]) -> None:
    """The network under a patch is that of a checkpoint into which the patch was baked."""
    patch = Patch.from_data(patch_data(*edits))
    apply_to_checkpoint(patch, folder, work / "baked")
    network, baked = (load_network(one) for one in (folder, work / "baked"))
    tokens = torch.arange(12).reshape(1, -1)
    with torch.inference_mode():
        before, wanted = network(tokens).logits, baked(tokens).logits
        with _patched(network, plan(patch, folder)):
            assert torch.equal(network(tokens).logits, wanted)
        assert torch.equal(network(tokens).logits, before)
    assert not torch.equal(before, wanted)


def load_network(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)


@pytest.mark.parametrize("family", ["Qwen3Moe", "Mixtral", "Glm4Moe"])
def test_experts_are_edited_where_transformers_packs_them(
    family_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    experts = [
        {"op": "zero", "experts": {"1": [0, 5]}},
        {"op": "scale", "factor": 3.0, "experts": {"2": [1], "1": [2]}},
    ]
    check_against_baked(family_model(family), tmp_path, *experts)


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss"])
def test_neurons_inside_experts_are_edited_where_transformers_packs_them(
    family_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    # Experts that were made at random say little, so many of their neurons are edited.
    edit = {"op": "scale", "factor": 3.0, "expert_neurons": {"2": {"1": [1, "7-40"], "0": "all"}, "1": {"2": "all"}}}
    check_against_baked(family_model(family), tmp_path, edit)


def test_products_are_rounded_to_the_checkpoints_own_numbers(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "Llama", torch.bfloat16)
    check_against_baked(folder, tmp_path, {"op": "scale", "factor": 0.7, "neurons": {"3": "all"}})


def test_a_mask_in_a_routers_bias_is_an_edit(family_model: Callable[[str], Path], tmp_path: Path) -> None:
    check_against_baked(family_model("Glm4Moe"), tmp_path, {"op": "mask", "experts": {"1": [0, 3, 5]}})


def test_a_mask_that_no_tensor_can_hold_is_refused(family_model: Callable[[str], Path]) -> None:
    folder = family_model("Qwen3Moe")
    patch = Patch.from_data(patch_data({"op": "mask", "experts": {"1": [0]}}))

    def apply() -> None:
        with _patched(torch.nn.Linear(2, 2), plan(patch, folder)):
            pass

    said = refusal(apply, UsageError)
    assert said == "exact probabilities: transformers can't mask experts of layer 1, whose router has no bias"


def test_a_tensor_of_another_name_is_said() -> None:
    def apply() -> None:
        with _patched(torch.nn.Linear(2, 2), Plan("p", (TensorEdit("x", "F32", (2, 2), 1, (1,), (5.0,)),), 1)):
            pass

    assert refusal(apply, UsageError) == "exact probabilities: transformers calls x by another name"


REPLY = Probe(id="a", prompt=prompt(1), reply=lines([2, 3, 4]))


@pytest.fixture
def speaking(family_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model with a tokenizer, whose files may be changed."""
    folder = shutil.copytree(family_model("Llama"), tmp_path / "speaking")
    save_tokenizer(folder)
    return folder


def measure(folder: Path, form: Form = "chat") -> Drift:
    patches = {"one": patch_data({"op": "zero", "neurons": {"1": "all"}})}
    (drift,) = exact_drifts(folder, patches, [REPLY], form, quiet=True)["one"]
    return drift


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_whole_distributions_of_a_reply_and_of_the_token_that_ends_it(speaking: Path, form: Form) -> None:
    drift = measure(speaking, form)
    assert (drift.text, drift.tokens, drift.rest) == ("a", 3 + 1, 0)
    assert drift.kl > 0
    assert drift.loss != drift.base_loss > 0


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8"])
def test_quantised_weights_are_refused(speaking: Path, method: str) -> None:
    file = speaking / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": method}}))
    said = refusal(lambda: measure(speaking), UsageError)
    assert said == f"{speaking}: has quantised weights, and a comparison of whole distributions needs others"


def test_weights_that_the_folder_lacks_are_not_made_up(speaking: Path) -> None:
    tensors = load_file(speaking / "model.safetensors")
    del tensors[down(3)]
    save_file(tensors, speaking / "model.safetensors", metadata={"format": "pt"})
    assert refusal(lambda: measure(speaking), UsageError) == f"{speaking}: transformers finds no {down(3)} in it"


@pytest.mark.parametrize("error", [ImportError, AttributeError, RuntimeError])
def test_a_model_that_transformers_cant_load_is_one_line(
    speaking: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("install\nit")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    assert refusal(lambda: measure(speaking), UsageError) == f"{speaking}: transformers can't load it: install it"


def test_a_model_that_transformers_cant_run_is_one_line(speaking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", fail)
    said = refusal(lambda: measure(speaking), UsageError)
    assert said == f"{speaking}: transformers can't run it: sizes of tensors must match"


def test_chats_need_a_chat_template(speaking: Path) -> None:
    (speaking / "chat_template.jinja").unlink()
    said = refusal(lambda: measure(speaking), UsageError)
    assert said == f"exact probabilities: {speaking} has no chat template: ask with --form completion"
    assert measure(speaking, "completion").kl > 0


def test_a_model_without_a_tokenizer_is_one_line(family_model: Callable[[str], Path]) -> None:
    assert "no tokenizer can be loaded" in refusal(lambda: measure(family_model("Llama")), UsageError)
