# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.examples import refusal
from tests.models import EXPERT_FAMILIES, VOCABULARY, make_model
from vllm_surgery.errors import EngineError, UsageError
from vllm_surgery.localization.ranking.allowance import LEAST, Allowance
from vllm_surgery.localization.ranking.gain_hooks import gained_network
from vllm_surgery.localization.ranking.gradients import MAX_ROWS, Gradients, gain_gradients, log_odds
from vllm_surgery.localization.transcripts import Passage
from vllm_surgery.patch.units import UnitBlock

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.localization.ranking.gain_hooks import GainedNetwork

pytestmark = pytest.mark.filterwarnings("ignore")


def passage(seed: int, length: int = 24, repeats: int | None = 14) -> Passage:
    tokens = np.random.default_rng(seed).integers(3, VOCABULARY, length)
    return Passage([int(token) for token in tokens], 6, repeats)


LOOPING = [passage(1), passage(2)]
HEALTHY = [passage(3, repeats=None), passage(4, repeats=None)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture(scope="module")
def gradients(model: Path) -> Gradients:
    return gain_gradients(model, LOOPING, HEALTHY, quiet=True)


def logits_with(gained: GainedNetwork, gain: float, unit: tuple[UnitBlock, int], tokens: list[int], rows: list[int]):
    block, index = unit
    with torch.no_grad():
        gained.gains[block][index] = gain
        logits = gained.logits(tokens, rows).double()
        gained.gains[block][index] = 1.0
    return logits


def slope(gained: GainedNetwork, block: UnitBlock, index: int, looping: Passage, step: float = 0.02) -> float:
    rows = list(looping.after)
    came = torch.tensor(looping.tokens)[[row + 1 for row in rows]]
    above, below = (
        float(log_odds(logits_with(gained, 1 + sign * step, (block, index), looping.tokens, rows), came).mean())
        for sign in (1, -1)
    )
    return (above - below) / (2 * step)


def _change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def strongest(gradients: Gradients, block: UnitBlock) -> int:
    return int(np.abs(gradients.margins[block][0]).argmax())


@pytest.mark.parametrize("layer", [0, 5, 11])
def test_the_gradient_is_the_slope_of_the_margin(model: Path, gradients: Gradients, layer: int) -> None:
    block: UnitBlock = ("neurons", layer)
    index = strongest(gradients, block)
    with gained_network(model) as gained:
        slopes = [slope(gained, block, index, one) for one in LOOPING]
    assert gradients.margins[block][:, index] == pytest.approx(slopes, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("family", sorted({*EXPERT_FAMILIES, "Phi3", "Gemma3n"} - {"Llama4"}))
def test_families_gradients_are_slopes_too(tmp_path: Path, family: str) -> None:
    model = make_model(tmp_path / "model", family)
    if family == "DeepseekV3":
        _change_config(model, head_dim=64)  # Of what rotates, as the real ones say; vLLM doesn't mind the test's 32.
    found = gain_gradients(model, LOOPING[:1], HEALTHY[:1], draws=1, quiet=True)
    assert not found.without
    assert any(kind == "experts" for kind, _ in found.margins) == (family in EXPERT_FAMILIES)
    # In the last layer: from an earlier one a step can make a router choose otherwise, which no slope tells.
    last = max(found.margins, key=lambda block: (block[1], block[0] == "experts"))
    index = strongest(found, last)
    with gained_network(model) as gained:
        assert found.margins[last][0, index] == pytest.approx(slope(gained, last, index, LOOPING[0]), rel=0.02)


def test_experts_that_take_weighed_states_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "Llama4")
    said = "transformers: its experts don't take the router's choice and weights$"
    with pytest.raises(UsageError, match=f"has no unit whose gain can be told by {said}"):
        gain_gradients(model, LOOPING[:1], HEALTHY[:1], draws=1, quiet=True)


def test_the_sensitivity_tells_the_divergence_of_a_small_change(model: Path, gradients: Gradients) -> None:
    found = gain_gradients(model, LOOPING[:1], HEALTHY, draws=100, quiet=True)
    block: UnitBlock = ("neurons", 11)
    index, change = int(found.sensitivities[block].argmax()), 0.05
    divergence, rows = 0.0, 0
    with gained_network(model) as gained:
        for one in HEALTHY:
            places = list(one.before)
            base, moved = (
                logits_with(gained, gain, (block, index), one.tokens, places).log_softmax(-1)
                for gain in (1.0, 1 + change)
            )
            divergence += float((base.exp() * (base - moved)).sum())
            rows += len(places)
    expected = 0.5 * change**2 * found.sensitivities[block][index]
    assert expected == pytest.approx(divergence / rows, rel=0.25)
    assert found.sensitivities[block][index] == pytest.approx(gradients.sensitivities[block][index], rel=1.5)


def test_the_odds_are_those_of_one_token_against_all_others() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.25], [0.98, 0.01, 0.01]])
    odds = log_odds(logprobs.log(), torch.tensor([1, 0])).exp()
    assert odds.tolist() == pytest.approx([0.25 / 0.75, 0.98 / 0.02], rel=1e-4)


def test_the_same_inputs_give_the_same_result(model: Path, gradients: Gradients) -> None:
    again = gain_gradients(model, LOOPING, HEALTHY, quiet=True)
    for block, values in gradients.sensitivities.items():
        assert np.array_equal(again.sensitivities[block], values)
        assert np.array_equal(again.margins[block], gradients.margins[block])


def test_what_comes_after_the_last_row_has_no_part(model: Path, gradients: Gradients) -> None:
    long = Passage(LOOPING[0].tokens[:14] + [7, 8] * MAX_ROWS, 6, 14)
    other = replace(long, tokens=[*long.tokens[:-10], *[9] * 10])
    found = gain_gradients(model, [long, other], HEALTHY[:1], draws=1, quiet=True)
    for values in found.margins.values():
        assert np.array_equal(values[0], values[1])


def test_numbers_that_are_none_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vllm_surgery.localization.ranking.gradients.log_odds", lambda logits, _: logits.sum(-1) * float("nan")
    )
    with pytest.raises(EngineError, match=r"looping transcript 0: the gradient of layer 0's neurons isn't a finite"):
        gain_gradients(model, LOOPING, HEALTHY, quiet=True)


def test_a_model_that_transformers_does_not_know_is_refused_in_one_line(tmp_path: Path, model: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    _change_config(folder, model_type="no-such-kind")
    with pytest.raises(UsageError, match="transformers can't load it"):
        gain_gradients(folder, LOOPING, HEALTHY, quiet=True)


def test_a_model_that_transformers_can_not_run_is_refused_in_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object, **__: object) -> None:
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", forward)
    with pytest.raises(UsageError, match="transformers can't run it"):
        gain_gradients(model, LOOPING, HEALTHY, quiet=True)


def test_weights_that_the_folder_lacks_are_not_made_up(tmp_path: Path, model: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"transformers finds no model\.layers\.3\.mlp\.down_proj\.weight in it"):
        gain_gradients(folder, LOOPING, HEALTHY, quiet=True)


def test_experts_that_are_not_given_weights_are_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "model", "DeepseekV2")
    monkeypatch.setattr("vllm_surgery.localization.ranking.gain_hooks._is_routed", lambda _: False)
    found = gain_gradients(folder, LOOPING[:1], HEALTHY[:1], draws=1, quiet=True)
    assert list(found.margins) == [("neurons", 0)]
    assert found.without == dict.fromkeys((1, 2, 3), "its experts don't take the router's choice and weights")


def test_gradients_are_those_of_the_kinds_that_are_wanted(gradients: Gradients) -> None:
    assert gradients.of_kinds(["neurons", "experts"]).margins.keys() == gradients.margins.keys()
    experts = replace(gradients, margins=gradients.margins | {UnitBlock("experts", 3): np.zeros((1, 4), np.float32)})
    assert list(experts.of_kinds(["experts"]).margins) == [("experts", 3)]


@pytest.mark.parametrize(
    ("without", "reason"),
    [({}, "it knows none by their names"), ({3: "its experts are many"}, "its experts are many")],
)
def test_kinds_without_gradients_are_refused_with_the_reason(
    gradients: Gradients, without: dict[int, str], reason: str
) -> None:
    said = refusal(lambda: replace(gradients, without=without).of_kinds(["experts"]), UsageError)
    assert said == f"transformers tells no gains of the model's experts: {reason}"


def test_when_its_time_is_up_a_few_transcripts_of_each_sort_are_looked_into(model: Path) -> None:
    allowance = Allowance(0)
    looping, healthy = ([passage(seed, repeats=repeats) for seed in range(LEAST + 2)] for repeats in (14, None))
    found = gain_gradients(model, looping, healthy, healthy, draws=1, allowance=allowance, quiet=True)
    assert {len(rows) for part in (found.margins, found.right) for rows in part.values()} == {LEAST}
    assert len(allowance.cut) == 3
