# SPDX-License-Identifier: Apache-2.0
"""What a quantised checkpoint stands for before and after a patch: a gain times the original, and nothing else moves."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.examples import refusal
from tests.quantised import EXPERTS, KINDS, LAYERS, WIDTH, Kind, make, name, parts_of, stored
from vllm_surgery import MismatchError, ModelFolder, Patch, PatchSet, SurgeryError
from vllm_surgery.engine.load.weight_stream import SurgicalLoad
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import diff
from vllm_surgery.patch.patch_set import SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.quantised import Tensors

GAINS = (-1.0, 0.0, 0.5, -0.7)
LAYER, NEURON, EXPERT = 1, 13, 2
OWN_SCALES = [word for word, kind in KINDS.items() if kind.out_axis is not None]


def patches(gain: float, kind: str = "neurons", index: int = NEURON, layer: int = LAYER) -> PatchSet:
    op = {-1.0: {"op": "negate"}, 0.0: {"op": "zero"}}.get(gain, {"op": "scale", "factor": gain})
    data = {"version": 1, "name": "test", "edits": [{**op, kind: {str(layer): [index]}}]}
    return PatchSet((SourcedPatch("p", Patch.from_data(data)),))


def baked(model: Path, gain: float, **unit: Any) -> Tensors:
    out = model.parent / "baked"
    bake(patches(gain, **unit), ModelFolder(model), out)
    return stored(out)


def rounded_once(scales: torch.Tensor, gain: float) -> torch.Tensor:
    return (scales.float() * gain).to(scales.dtype)


def with_scales(kind: Kind, parts: Tensors, gain: float) -> torch.Tensor:
    """The weight that these tensors stand for, had they scales times the size of a gain."""
    size = abs(gain) or 1.0
    return kind.dequantise({**parts, kind.scale: rounded_once(parts[kind.scale], size)})


def sign(gain: float) -> float:
    return math.copysign(1.0, gain) if gain else 0.0


def outputs_of(kind: Kind, tensors: Tensors, up: torch.Tensor) -> torch.Tensor:
    """What one neuron contributes for each input and output, its activation being linear in this."""
    return torch.outer(kind.dequantise(parts_of(tensors, LAYER, "down"))[:, NEURON], up[NEURON])


def changed(before: Tensors, after: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor that isn't what it was, byte by byte, and which of its numbers differ."""
    assert list(before) == list(after)
    for key, old in before.items():
        assert (old.dtype, old.shape) == (after[key].dtype, after[key].shape)
        whole = [tensor.reshape(-1, 1).view(torch.uint8) for tensor in (old, after[key])]
        different = (whole[0] != whole[1]).any(1).view(old.shape)
        if different.any():
            yield key, different


def cases(words: list[str]) -> pytest.MarkDecorator:
    held = [(word, gain) for word in words for gain in GAINS if holds(word, gain)]
    return pytest.mark.parametrize(("word", "gain"), held)


def holds(word: str, gain: float) -> bool:
    """Whether this kind holds a neuron's gain exactly."""
    return word in OWN_SCALES or gain in {-1.0, 0.0}


@cases(list(KINDS))
def test_a_neurons_output_is_its_gain_times_the_original(tmp_path: Path, word: str, gain: float) -> None:
    kind, model = KINDS[word], make(tmp_path / "model", KINDS[word])

    after = baked(model, gain)

    before = stored(model)
    up_after = kind.dequantise(parts_of(after, LAYER, "up"))
    expected = outputs_of(kind, before, with_scales(kind, parts_of(before, LAYER, "up"), gain)) * sign(gain)
    assert torch.equal(outputs_of(kind, after, up_after), expected)


@cases(list(KINDS))
def test_only_bytes_of_the_neuron_change(tmp_path: Path, word: str, gain: float) -> None:
    kind, model = KINDS[word], make(tmp_path / "model", KINDS[word])

    found = dict(changed(stored(model), baked(model, gain)))

    places = {name(LAYER, "down", "weight"): 1, name(LAYER, "up", kind.scale): kind.out_axis}
    assert found.keys() <= places.keys()
    for key, different in found.items():
        assert set(different.nonzero()[:, places[key]].tolist()) == {NEURON}


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("word", KINDS)
def test_an_experts_output_is_its_gain_times_the_original(tmp_path: Path, word: str, gain: float) -> None:
    kind, model = KINDS[word], make(tmp_path / "model", KINDS[word], experts=True)

    after = baked(model, gain, kind="experts", index=EXPERT)

    before = stored(model)
    expected = with_scales(kind, parts_of(before, LAYER, "down", EXPERT), gain) * sign(gain)
    assert torch.equal(kind.dequantise(parts_of(after, LAYER, "down", EXPERT)), expected)
    assert all(key.startswith(name(LAYER, "down", "", EXPERT)) for key, _ in changed(before, after))


@pytest.mark.parametrize("word", OWN_SCALES)
def test_up_behind_gate_in_one_tensor_is_told_apart(tmp_path: Path, word: str) -> None:
    kind = KINDS[word]
    assert kind.out_axis is not None
    model = make(tmp_path / "model", kind, fused=True)

    found = dict(changed(stored(model), baked(model, 0.5)))

    assert list(found) == [name(LAYER, "gate_up", kind.scale)]
    assert set(found.popitem()[1].nonzero()[:, kind.out_axis].tolist()) == {WIDTH + NEURON}


@pytest.mark.parametrize("experts", [False, True], ids=["neurons", "experts"])
@cases(list(KINDS))
def test_what_is_loaded_is_what_is_baked(tmp_path: Path, word: str, gain: float, experts: bool) -> None:
    model = make(tmp_path / "model", KINDS[word], experts=experts)
    unit = {"kind": "experts", "index": EXPERT} if experts else {}
    stream = list(stored(model).items())
    random.Random(3).shuffle(stream)

    load = SurgicalLoad(patches(gain, **unit), ModelFolder(model).facts)
    loaded = dict(load.edit_stream(stream))

    assert load.finish().units == 1
    assert not list(changed({key: loaded[key] for key in stored(model)}, baked(model, gain, **unit)))


@pytest.mark.parametrize("experts", [False, True], ids=["neurons", "experts"])
@cases(list(KINDS))
def test_the_difference_to_a_bake_is_the_patch(tmp_path: Path, word: str, gain: float, experts: bool) -> None:
    model = make(tmp_path / "model", KINDS[word], experts=experts)
    unit = {"kind": "experts", "index": EXPERT} if experts else {}
    baked(model, gain, **unit)

    found = diff(ModelFolder(model), ModelFolder(tmp_path / "baked"))

    assert (found.experts if experts else found.gains) == {(LAYER, EXPERT if experts else NEURON): gain}
    assert not found.unexplained


@pytest.mark.parametrize(
    ("word", "gain", "reason"),
    [
        ("fp8 per tensor", 0.5, "is one scale for all neurons; zero and negate can be held exactly"),
        ("fp8 in blocks", -0.7, "holds scales that neurons share; zero and negate can be held exactly"),
        ("int8 per tensor", -0.5, "is one scale for all neurons; zero and negate can be held exactly"),
    ],
)
def test_what_no_scale_of_their_own_holds_is_refused(tmp_path: Path, word: str, gain: float, reason: str) -> None:
    model = make(tmp_path / "model", KINDS[word])

    assert refusal(lambda: baked(model, gain), MismatchError) == (
        f"p: edits[0].neurons.{LAYER}: {name(LAYER, 'up', KINDS[word].scale)} {reason}"
    )
    assert not (tmp_path / "baked").exists()


@pytest.mark.parametrize("word", KINDS)
def test_the_last_neuron_is_one_and_the_next_is_refused(tmp_path: Path, word: str) -> None:
    model = ModelFolder(make(tmp_path / "model", KINDS[word]))

    bake(patches(-1.0, index=WIDTH - 1, layer=LAYERS - 1), model, tmp_path / "last")

    assert refusal(lambda: bake(patches(-1.0, index=WIDTH), model, tmp_path / "next"), MismatchError).endswith(
        f"index {WIDTH} is out of range: layer {LAYER} has {WIDTH} neurons"
    )


@pytest.mark.parametrize("word", KINDS)
def test_widths_and_experts_are_found(tmp_path: Path, word: str) -> None:
    dense = ModelFolder(make(tmp_path / "dense", KINDS[word])).anatomy
    experts = ModelFolder(make(tmp_path / "experts", KINDS[word], experts=True)).anatomy

    # Nothing tells the width of packed codes but scales of each output, which all packed formats have.
    assert dense.widths() == dict.fromkeys(range(LAYERS), WIDTH)
    assert experts.expert_counts() == dict.fromkeys(range(LAYERS), EXPERTS)


def rewritten(model: Path, tensors: Tensors) -> ModelFolder:
    from safetensors.torch import save_file

    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return ModelFolder(model)


@pytest.mark.parametrize("word", OWN_SCALES)
def test_a_weight_without_its_scales_is_refused(tmp_path: Path, word: str) -> None:
    model = make(tmp_path / "model", KINDS[word])
    tensors = stored(model)
    del tensors[name(LAYER, "up", KINDS[word].scale)]

    text = refusal(lambda: bake(patches(0.5), rewritten(model, tensors), tmp_path / "out"), MismatchError)

    assert "has no scales in a naming that is known" in text or "has no" in text


@pytest.mark.parametrize("word", OWN_SCALES)
def test_a_projection_that_is_not_quantised_beside_one_that_is_is_refused(tmp_path: Path, word: str) -> None:
    kind, model = KINDS[word], make(tmp_path / "model", KINDS[word])
    tensors = {key: tensor for key, tensor in stored(model).items() if not key.startswith(name(LAYER, "down", ""))}
    tensors[name(LAYER, "down", "weight")] = (
        kind.dequantise(parts_of(stored(model), LAYER, "down")).bfloat16().contiguous()
    )

    text = refusal(lambda: bake(patches(-1.0), rewritten(model, tensors), tmp_path / "out"), MismatchError)

    assert text.endswith(f"{name(LAYER, 'down', 'weight')} as BF16; a gain needs them alike")


@pytest.mark.parametrize("word", ["int8 per channel", "fp8 per channel", "fp8 in blocks"])
def test_a_layer_that_is_not_quantised_takes_gains_as_ever(tmp_path: Path, word: str) -> None:
    kind, model = KINDS[word], make(tmp_path / "model", KINDS[word])
    tensors = stored(model)
    for part_name in ("gate", "up", "down"):
        parts = parts_of(tensors, LAYER, part_name)
        for end in parts:
            del tensors[name(LAYER, part_name, end)]
        tensors[name(LAYER, part_name, "weight")] = kind.dequantise(parts).bfloat16()

    bake(patches(0.5), rewritten(model, tensors), tmp_path / "out")

    (found,) = changed(stored(model), stored(tmp_path / "out"))
    assert found[0] == name(LAYER, "down", "weight")


@pytest.mark.parametrize("word", ["int8 per channel", "gptq"])
def test_a_bias_of_up_is_scaled_with_its_row(tmp_path: Path, word: str) -> None:
    model = make(tmp_path / "model", KINDS[word])
    bias = torch.arange(1.0, WIDTH + 1).half()
    folder = rewritten(model, {**stored(model), name(LAYER, "up", "bias"): bias})

    bake(patches(-0.7), folder, tmp_path / "out")

    after = stored(tmp_path / "out")[name(LAYER, "up", "bias")]
    assert after.tolist() == [rounded_once(one, -0.7 if n == NEURON else 1).item() for n, one in enumerate(bias)]


def test_scales_that_do_not_fit_their_codes_are_refused(tmp_path: Path) -> None:
    kind = KINDS["fp8 per channel"]
    model = make(tmp_path / "model", kind)
    tensors = stored(model)
    tensors[name(LAYER, "up", kind.scale)] = torch.ones(WIDTH // 2, 3)

    text = refusal(lambda: bake(patches(0.5, index=1), rewritten(model, tensors), tmp_path / "out"), MismatchError)

    assert "doesn't hold a scale for each output of" in text


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, ""),
        ({"quant_method": "bitsandbytes"}, " (bitsandbytes)"),
        ({**KINDS["fp8 per channel"].config, "transform_config": {"config_groups": {"R3": {}}}}, " (compressed-tensors)"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, " (modelopt)"),
    ],
)  # fmt: skip
def test_a_scheme_that_is_not_known_is_refused(tmp_path: Path, config: dict[str, Any] | None, words: str) -> None:
    model = make(tmp_path / "model", KINDS["fp8 per channel"])
    data = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**data, "quantization_config": config}))

    text = refusal(lambda: baked(model, -1.0), MismatchError)

    assert f"{name(LAYER, 'down', 'weight')} is stored as F8_E4M3{words}, in which this version can hold no op" in text


def test_codes_without_an_opposite_are_refused(tmp_path: Path) -> None:
    model = ModelFolder(make(tmp_path / "model", KINDS["int8 per tensor"]))

    assert refusal(lambda: bake(patches(-1.0, index=3), model, tmp_path / "negated"), SurgeryError) == (
        f"{name(LAYER, 'down', 'weight')}: codes of -128 have no opposite among eight bits, so negate isn't exact; zero is"
    )
    bake(patches(0.0, index=3), model, tmp_path / "zeroed")
    assert not stored(tmp_path / "zeroed")[name(LAYER, "down", "weight")][:, 3].any()


def test_a_gain_that_makes_scales_infinite_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "model", KINDS["gptq"])

    assert "too large for F16" in refusal(lambda: baked(model, 1e7), SurgeryError)
    assert not (tmp_path / "baked").exists()


@pytest.mark.parametrize("experts", [False, True], ids=["neurons", "experts"])
@pytest.mark.parametrize("word", KINDS)
def test_negating_twice_gives_every_byte_back(tmp_path: Path, word: str, experts: bool) -> None:
    model = make(tmp_path / "model", KINDS[word], experts=experts)
    wanted = patches(-1.0, "experts", EXPERT) if experts else patches(-1.0)

    bake(wanted, ModelFolder(model), tmp_path / "once")
    bake(wanted, ModelFolder(tmp_path / "once"), tmp_path / "twice")

    assert list(changed(stored(model), stored(tmp_path / "once")))
    assert not list(changed(stored(model), stored(tmp_path / "twice")))
