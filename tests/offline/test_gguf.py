# SPDX-License-Identifier: Apache-2.0
"""GGUF files patched in place: every type, dequantised before and after by code that shares nothing with the package."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.directions import project, unit, values_of
from tests.examples import patch_data, patches_of, refusal, zero
from tests.gguf_files import BLOCKS, EXPERTS, FLOATS, HIDDEN, LAYERS, WIDTH, WITHOUT_SCALE, dequantised, write_gguf
from tests.models import patch_of
from vllm_surgery import CheckpointError, MismatchError, Patch, PatchSet, UsageError
from vllm_surgery.cli import main
from vllm_surgery.model.gguf_model import ARCHITECTURES, GgufModel
from vllm_surgery.offline.gguf import bake_gguf, diff_gguf
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.patch.units import op_of
from vllm_surgery.planning.guard import guard_of

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("gguf", reason="the gguf package writes and reads the files")

EXACT = {(0, 0): -1.0, (0, WIDTH - 1): 0.0, (1, 7): 0.5, (1, 8): -2.0}
ROUNDED = {(1, 100): -0.8, (0, 3): 1.25}


def patches(data: dict[str, Any]) -> PatchSet:
    return PatchSet((SourcedPatch("p.yaml", Patch.from_data(data, "p.yaml")),))


def changed(before: Path, after: Path) -> set[tuple[str, int]]:
    """Tensors and slices along their first axis that stand for other numbers."""
    old, new = dequantised(before), dequantised(after)
    assert old.keys() == new.keys()
    return {
        (name, int(index))
        for name, one in old.items()
        for index in np.flatnonzero((one != new[name]).reshape(len(one), -1).any(axis=1))
    }


@pytest.mark.parametrize("word", [*FLOATS, *BLOCKS])
def test_gains_are_on_what_the_rows_stand_for_and_nothing_else_changes(tmp_path: Path, word: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", word)
    out = tmp_path / "out.gguf"
    done = bake_gguf(patches(patch_of({**EXACT, **ROUNDED})), GgufModel(file), out)
    assert (done.units, done.tensors) == (6, 2)
    old, new = dequantised(file), dequantised(out)
    for (layer, index), gain in EXACT.items():
        name = f"blk.{layer}.ffn_up.weight"
        np.testing.assert_array_equal(new[name][index], old[name][index] * np.float32(gain))
    for (layer, index), gain in ROUNDED.items():
        name = f"blk.{layer}.ffn_up.weight"
        scale = np.abs(old[name][index]).max()
        np.testing.assert_allclose(new[name][index], old[name][index] * gain, rtol=2**-8, atol=scale * 2**-8)
    rows = {(f"blk.{layer}.ffn_up.weight", index) for layer, index in (*EXACT, *ROUNDED)}
    assert changed(file, out) == rows
    assert out.stat().st_size == file.stat().st_size


@pytest.mark.parametrize("word", [*FLOATS, *BLOCKS])
def test_negating_twice_gives_every_byte_back_and_a_difference_is_the_patch(tmp_path: Path, word: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", word)
    negate = patches(patch_of({(0, 0): -1.0, (1, 9): -1.0}))
    bake_gguf(negate, GgufModel(file), tmp_path / "once.gguf")
    bake_gguf(negate, GgufModel(tmp_path / "once.gguf"), tmp_path / "twice.gguf")
    assert (tmp_path / "twice.gguf").read_bytes() == file.read_bytes() != (tmp_path / "once.gguf").read_bytes()

    wanted = patch_of({**EXACT, **ROUNDED})
    bake_gguf(patches(wanted), GgufModel(file), tmp_path / "out.gguf")
    base = GgufModel(file)
    found = diff_gguf(base, GgufModel(tmp_path / "out.gguf"))
    assert (found.gains, found.unexplained) == ({**EXACT, **ROUNDED}, [])
    again = found.patch("test", base)
    assert again is not None
    assert again.digest == Patch.from_data({**wanted, "model": guard_of(base)}).digest


@pytest.mark.parametrize("word", ["Q4_0", "Q6_K", "F16"])
def test_experts_and_neurons_of_shared_experts(tmp_path: Path, word: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", word, kind="experts", architecture="qwen2moe")
    experts, shared = {(0, 1): -1.0, (1, EXPERTS - 1): 0.5}, {(1, 5): 0.0}
    base = GgufModel(file)
    bake_gguf(patches(patch_of({}, experts=experts, shared=shared)), base, tmp_path / "out.gguf")
    old, new = dequantised(file), dequantised(tmp_path / "out.gguf")
    for (layer, index), gain in experts.items():
        name = f"blk.{layer}.ffn_down_exps.weight"
        stored = np.float16 if word == "F16" else np.float32  # Half of the least number is no number.
        np.testing.assert_array_equal(new[name][index], (old[name][index] * np.float32(gain)).astype(stored))
    assert not new["blk.1.ffn_up_shexp.weight"][5].any()
    found = diff_gguf(base, GgufModel(tmp_path / "out.gguf"))
    assert (found.experts, found.shared, found.gains, found.unexplained) == (experts, shared, {}, [])


@pytest.mark.parametrize("word", ["Q4_0", "Q6_K", "F16"])
def test_neurons_inside_experts(tmp_path: Path, word: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", word, kind="experts", architecture="qwen3moe")
    gains = {(0, 1, 3): -1.0, (0, 1, WIDTH - 1): 0.0, (1, 0, 0): -1.0, (1, EXPERTS - 1, 7): 0.5}
    edits = [
        {**op_of(gain), "expert_neurons": {str(layer): {str(expert): [neuron]}}}
        for (layer, expert, neuron), gain in gains.items()
    ]
    base = GgufModel(file)
    done = bake_gguf(patches(patch_data(*edits)), base, tmp_path / "out.gguf")
    expected, new = dequantised(file), dequantised(tmp_path / "out.gguf")
    for (layer, expert, neuron), gain in gains.items():
        row = expected[f"blk.{layer}.ffn_up_exps.weight"][expert, neuron]
        row[:] = (row * np.float32(gain)).astype(np.float16 if word == "F16" else np.float32)
    assert [name for name in expected if not np.array_equal(expected[name], new[name])] == []
    found = diff_gguf(base, GgufModel(tmp_path / "out.gguf"))
    assert (done.units, found.expert_neurons, found.experts, found.unexplained) == (4, gains, {}, [])


def test_a_gain_of_an_expert_and_one_inside_it_are_more_than_a_patch_says(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", kind="experts", architecture="qwen3moe")
    whole, inside = (
        {"op": "negate", **one} for one in ({"experts": {"0": [1]}}, {"expert_neurons": {"0": {"1": [3]}}})
    )
    bake_gguf(patches(patch_data(whole)), GgufModel(file), tmp_path / "whole.gguf")
    bake_gguf(patches(patch_data(inside)), GgufModel(tmp_path / "whole.gguf"), tmp_path / "both.gguf")
    found = diff_gguf(GgufModel(file), GgufModel(tmp_path / "both.gguf"))
    assert (found.experts, found.expert_neurons) == ({(0, 1): -1.0}, {})
    assert [(item.tensor, item.numbers) for item in found.unexplained] == [("blk.0.ffn_up_exps.weight", HIDDEN)]


@pytest.mark.parametrize(
    ("expert", "neuron", "said"),
    [
        (EXPERTS, 0, f"expert {EXPERTS} is out of range: layer 1 has {EXPERTS} experts"),
        (2, WIDTH, f"index {WIDTH} is out of range: expert 2 of layer 1 has {WIDTH} neurons"),
    ],
)
def test_neurons_that_no_expert_has_are_refused(tmp_path: Path, expert: int, neuron: int, said: str) -> None:
    model = GgufModel(write_gguf(tmp_path / "model.gguf", kind="experts", architecture="qwen3moe"))
    wanted = patches_of(zero({"1": {str(expert): [neuron]}}, "expert_neurons"))
    assert refusal(lambda: bake_gguf(wanted, model, tmp_path / "out.gguf"), MismatchError) == (
        f"p.yaml: edits[0].expert_neurons.1.{expert}: {said}"
    )


def test_up_behind_gate_in_one_tensor(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", kind="fused", architecture="phi3")
    base = GgufModel(file)
    bake_gguf(patches(patch_of({(1, 7): -1.0})), base, tmp_path / "out.gguf")
    assert changed(file, tmp_path / "out.gguf") == {("blk.1.ffn_up.weight", WIDTH + 7)}
    assert diff_gguf(base, GgufModel(tmp_path / "out.gguf")).gains == {(1, 7): -1.0}


def test_a_bias_goes_along(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", kind="biased")
    base = GgufModel(file)
    bake_gguf(patches(patch_of({(1, 7): -1.0})), base, tmp_path / "out.gguf")
    assert changed(file, tmp_path / "out.gguf") == {("blk.1.ffn_up.weight", 7), ("blk.1.ffn_up.bias", 7)}
    assert diff_gguf(base, GgufModel(tmp_path / "out.gguf")).unexplained == []


@pytest.mark.parametrize("word", WITHOUT_SCALE)
def test_types_without_a_scale_for_it_are_refused_by_name(tmp_path: Path, word: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", word)
    said = refusal(
        lambda: bake_gguf(patches_of(zero({"1": [2]})), GgufModel(file), tmp_path / "out.gguf"), MismatchError
    )
    assert said == (
        f"p.yaml: edits[0].neurons.1: blk.1.ffn_up.weight is stored as {word}, whose blocks have no scale that takes "
        "a sign and a factor"
    )
    assert [item.name for item in tmp_path.iterdir()] == ["model.gguf"]


SEALED = patch_data(zero({"1": [2]}), seal={"neurons/1/2": "3f" * 32})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (patch_data(zero({"1": [WIDTH]})), f"edits[0].neurons.1: index {WIDTH} is out of range: layer 1 has {WIDTH} neurons"),
        (patch_data(zero({"2": [1]})), "edits[0].neurons.2: layer 2 is out of range: the model has 2 layers"),
        (patch_data(zero({"1": [1]}, "experts")), "edits[0].experts.1: touches no tensor: the model has no routed experts"),
        (patch_data(zero({"1": [1]}), model={"hidden_size": 1}), "model.hidden_size: the patch is for 1, this model has 256"),
        (
            patch_data(zero({"1": [1]}), model={"architectures": ["Qwen2ForCausalLM"]}),
            "model.architectures: the patch is for Qwen2ForCausalLM, this model is LlamaForCausalLM, MistralForCausalLM, "
            "MixtralForCausalLM",
        ),
        (
            patch_data(zero({"1": [1]}), model={"base": "org/name"}),
            "model.base: the patch is for org/name, but this model doesn't say what it has",
        ),
        (
            SEALED,
            "seal: seals are hashes of the original checkpoint's weights, which a GGUF file doesn't have; --unproven "
            "bakes without them",
        ),
        (
            patch_data({"op": "mask", "experts": {"1": [0]}}),
            "edits[0].experts.1: a GGUF file has no place for masks; zero silences an expert that is chosen",
        ),
        (
            patch_data({"op": "zero", "expert_neurons": {"1": {"2": [0]}}}),
            "edits[0].expert_neurons.1.2: touches no tensor: the model has no routed experts",
        ),
        (
            patch_data({"op": "set", "value": 1.0, "neurons": {"1": [0]}}),
            "edits[0].neurons.1: op `set` puts a constant where weights only put multiples; a server with --patch-slots can",
        ),
        (
            patch_data(project(values_of(unit(HIDDEN)), {"1": [0]})),
            "edits[0].neurons.1: op `project` computes weights anew, which blocks of a GGUF file can't hold; bake the "
            "checkpoint's own folder and convert that",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    model = GgufModel(write_gguf(tmp_path / "model.gguf"))
    text = refusal(lambda: bake_gguf(patches(data), model, tmp_path / "out.gguf"), MismatchError)
    assert text == f"p.yaml: {said}"
    assert [item.name for item in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("factor", "said"), [(1e-6, "so small that Q4_K can't hold them exactly"), (1e6, "too large for F16")]
)
def test_a_factor_beyond_a_scale_is_refused_and_leaves_nothing(tmp_path: Path, factor: float, said: str) -> None:
    model = GgufModel(write_gguf(tmp_path / "model.gguf"))
    text = refusal(lambda: bake_gguf(patches(patch_of({(1, 2): factor})), model, tmp_path / "out.gguf"))
    assert said in text
    assert [item.name for item in tmp_path.iterdir()] == ["model.gguf"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out, patch = write_gguf(tmp_path / "model.gguf"), tmp_path / "out.gguf", tmp_path / "p.json"
    patch.write_text(Patch.from_data(SEALED).to_json())
    command = ["bake", str(patch), "--model", str(file), "--out", str(out)]
    assert main(command) == 1
    assert main([*command, "--unproven"]) == 0
    assert (
        capsys.readouterr().out
        == f"baked: {out} holds {Patch.from_data(SEALED | {'seal': {}}).id}: 1 unit in 1 tensor\n"
    )
    assert main(["diff", str(file), str(out)]) == 0
    assert "zero" in capsys.readouterr().out
    assert main([*command, "--unproven"]) == 2
    assert f"{out}: already exists" in capsys.readouterr().err


def test_names_and_places_that_can_not_be(tmp_path: Path) -> None:
    model = GgufModel(write_gguf(tmp_path / "model.gguf"))
    wanted = patches_of(zero({"1": [2]}))
    assert refusal(lambda: bake_gguf(wanted, model, tmp_path / "out"), UsageError).endswith(
        "the copy of a GGUF file needs a name that ends in .gguf"
    )
    assert refusal(lambda: bake_gguf(wanted, model, model.path), UsageError) == f"{model.path}: already exists"
    assert "can't be written: No such file or directory" in refusal(
        lambda: bake_gguf(wanted, model, tmp_path / "none" / "out.gguf")
    )
    assert refusal(lambda: GgufModel(tmp_path / "none.gguf"), UsageError) == f"{tmp_path / 'none.gguf'}: no such file"


def test_other_files_are_refused(tmp_path: Path) -> None:
    part = write_gguf(tmp_path / "part.gguf", split__count=3)
    assert refusal(lambda: GgufModel(part), CheckpointError).endswith(
        "is one part of several; join them by llama-gguf-split --merge first"
    )
    other = write_gguf(tmp_path / "other.gguf", architecture="gpt2")
    assert refusal(lambda: GgufModel(other), CheckpointError) == (
        f"{other}: of the architecture gpt2 it isn't known that its MLPs are linear in their up projection, where gains "
        f"go in GGUF; known are {', '.join(sorted(ARCHITECTURES))}"
    )
    first, second = (write_gguf(tmp_path / f"{word}.gguf", word) for word in ("Q4_0", "Q8_0"))
    assert refusal(lambda: diff_gguf(GgufModel(first), GgufModel(second)), CheckpointError) == (
        f"{second}: blk.0.ffn_down.weight is Q8_0 [{HIDDEN}, {WIDTH}], in {first} it is Q4_0 [{HIDDEN}, {WIDTH}]; only "
        "files that are stored alike can be compared"
    )


def _header(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it ends in its header"),
        (b"GGML" + bytes(20), "it doesn't begin as one"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "its version is 1; 2 and 3 are read"),
        (_header(1 << 60, 0), f"it claims {1 << 60} tensors"),
        (_header(0, 1 << 60), f"it claims {1 << 60} keys"),
        (_header(0, 1) + struct.pack("<Q", 1 << 60), f"it claims {1 << 60} bytes of text"),
        (_header(0, 1) + struct.pack("<Q", 1 << 20), "it ends in its header"),
        (_header(0, 1) + struct.pack("<Q1sI", 1, b"a", 77), "a value of the unknown kind 77"),
        (_header(0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 9, 1), "a list of the unknown kind 9"),
        (_header(0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 4, 1 << 60), f"it claims {1 << 60} items of a list"),
        (_header(1, 0) + struct.pack("<Q1sIQIQ", 1, b"a", 1, 32, 99, 0), "a is of the unknown type 99"),
        (
            _header(1, 0) + struct.pack("<Q1sIQIQ", 1, b"a", 1, 31, 2, 0),
            "a has rows of 31 numbers, which Q4_0 can't store",
        ),
        (_header(1, 0) + struct.pack("<Q1sIQIQ", 1, b"a", 1, 32, 2, 0), "it ends before a"),
        (_header(1, 0) + struct.pack("<Q1sI", 1, b"a", 9), "it claims 9 axes"),
        (
            _header(1, 0) + struct.pack("<Q1sIQQIQ", 1, b"a", 2, 0, 1 << 40, 0, 0),
            f"a is empty and {1 << 40} long, which no tensor of a model is",
        ),
    ],
)
def test_no_bytes_make_more_than_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    assert refusal(lambda: GgufModel(file), CheckpointError) == f"{file}: is no GGUF file that is understood: {said}"


@pytest.mark.parametrize(("heads", "said"), [(LAYERS + 1, "-1"), ((1 << 32) - 1, str(LAYERS - (1 << 32) + 1))])
def test_a_number_of_layers_that_no_model_has_is_refused(tmp_path: Path, heads: int, said: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", llama__nextn_predict_layers=heads)
    assert refusal(lambda: GgufModel(file).facts, CheckpointError) == (
        f"{file}: a model can have 0 to 10000 layers, and this one says that it has {said}"
    )


def test_changed_codes_are_no_gain(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    other = tmp_path / "other.gguf"
    content = bytearray(file.read_bytes())
    model = GgufModel(file)
    tensor = model.file.tensors["blk.1.ffn_up.weight"]
    content[tensor.start + 3 * tensor.row_size + 20] ^= 1
    other.write_bytes(content)
    found = diff_gguf(model, GgufModel(other))
    assert found.gains == {}
    assert [(item.tensor, item.reason) for item in found.unexplained] == [
        ("blk.1.ffn_up.weight", "1 slice(s) changed by more than a gain")
    ]
