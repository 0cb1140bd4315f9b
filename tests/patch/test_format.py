# SPDX-License-Identifier: Apache-2.0
"""Patch files: what they may say, what is refused and in which words, and what their digest stands for."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.examples import patch_data, refusal, scale, zero
from tests.strategies import (
    GainMap,
    Unit,
    edits_of,
    files_of,
    gain_maps,
    guards,
    hashes,
    mappings,
    patch_datas,
    texts,
    units,
)
from vllm_surgery.errors import PatchError, UsageError
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.format import SEAL_KEY_PATTERN, Patch

if TYPE_CHECKING:
    from pathlib import Path

HASH = "3f" * 32
NEURONS = {"1": [2]}
GOOD_NAME = (
    "1 to 64 lower-case letters, digits, dots, hyphens and underscores, of which the first is a letter or a digit"
)


def patch(*edits: object, **changes: object) -> Patch:
    return Patch.from_data(patch_data(*edits, **changes))


# Accepted


def test_the_file_that_the_documentation_shows_is_accepted() -> None:
    text = f"""
version: 1
name: smollm2-135m-enumeration
description: One late neuron inverted; fewer loops on long lists.
model:
  architectures: [LlamaForCausalLM]
  num_hidden_layers: 30
  intermediate_size: 1536
edits:
  - op: negate
    neurons: {{29: [545]}}
  - op: scale
    factor: -0.8
    neurons: {{10: [123], 12: [4, 9, "100-199"], 13: all}}
  - op: mask
    experts: {{7: [41, 88]}}
seal: {{neurons/29/545: {HASH}}}
provenance: {{source: a paper, evidence: a trial}}
"""

    found = Patch.parse(text)

    assert [edit.gain for edit in found.edits] == [-1.0, pytest.approx(-0.8), "mask"]


@pytest.mark.parametrize("name", ["a", "0", "none1", "smollm2-135m.v1_x", "a" * 64, "1-", "a.."])
def test_a_name_may_be(name: str) -> None:
    assert patch(name=name).name == name


def test_no_patch_is_called_what_stands_for_none() -> None:
    said = "patch: name: `none` stands for the model without a patch; call the patch something else"
    assert refusal(lambda: patch(name="none"), PatchError) == said


@pytest.mark.parametrize("factor", [-1, 0, 0.5, -0.8, 3.0, -1.0, 1.0000002, 3e38, 1e-45, 2])
def test_a_factor_may_be(factor: float) -> None:
    assert patch(scale(factor, NEURONS)).edits[0].gain == pytest.approx(factor, rel=1e-6, abs=1e-45)


def test_a_gain_is_what_float32_makes_of_the_factor() -> None:
    assert patch(scale(-0.8, NEURONS)).edits[0].gain == -0.800000011920929


def test_an_edit_may_name_neurons_and_experts() -> None:
    both = {"op": "zero", "neurons": {"1": [2]}, "experts": {"1": [2]}}

    assert [item.kind for item in patch(both).assignments()] == ["neurons", "experts"]


# Refused

REFUSED: list[tuple[dict[str, Any], str]] = [
    # Unknown keys, at each level.
    (patch_data(extra=1), "extra: is not a key of this format"),
    (patch_data(int=1), "int: is not a key of this format"),
    (patch_data(model={"layers": 3}), "model.layers: is not a key of this format"),
    (patch_data({**zero(NEURONS), "extra": 1}), "edits[0].extra: is not a key of this format"),
    (patch_data(zero(NEURONS), {**zero({"2": [1]}), "Neurons": {}}), "edits[1].Neurons: is not a key of this format"),
    (patch_data({"op": "zero", "neuron": NEURONS}), "edits[0].neuron: is not a key of this format"),
    (patch_data({"op": "zero", "zero": 1, **zero(NEURONS)}), "edits[0].zero: is not a key of this format"),
    # A unit named twice.
    (patch_data(zero({"1": [2, 2]})), "edits[0].neurons.1: index 2 is named twice"),
    (patch_data(zero({"1": ["0-5", 3]})), "edits[0].neurons.1: index 3 is named twice"),
    (patch_data(zero({"1": ["0-5", "5-9"]})), "edits[0].neurons.1: index 5 is named twice"),
    (patch_data(zero(NEURONS), zero(NEURONS)), "edits[1].neurons.1: neurons 2 of layer 1: already named in edits[0].neurons.1"),
    (patch_data(zero({"1": ["0-9"]}), scale(2, {"1": [9]})), "edits[1].neurons.1: neurons 9 of layer 1: already named in edits[0].neurons.1"),
    (patch_data(zero({"1": "all"}), scale(2, {"1": [7]})), "edits[1].neurons.1: neurons 7 of layer 1: already named in edits[0].neurons.1"),
    (patch_data(scale(2, {"1": [7]}), zero({"1": "all"})), "edits[1].neurons.1: neurons 7 of layer 1: already named in edits[0].neurons.1"),
    (patch_data(zero({"1": "all"}), zero({"1": "all"})), "edits[1].neurons.1: neurons 0 of layer 1: already named in edits[0].neurons.1"),
    (
        patch_data(zero({"1": [4]}, "experts"), {"op": "mask", "experts": {"1": ["3-5"]}}),
        "edits[1].experts.1: experts 4 of layer 1: already named in edits[0].experts.1",
    ),
    # An empty selection.
    (patch_data(edits=[]), "edits: must not be empty"),
    (patch_data(edits=None), "edits: input should be a valid list, got None"),
    (patch_data(edits={}), "edits: input should be a valid list"),
    ({"version": 1, "name": "small"}, "edits: is missing"),
    (patch_data({"op": "zero"}), "edits[0]: names no units; give `neurons`, `shared`, `experts` or `expert_neurons`"),
    (patch_data(zero({})), "edits[0].neurons: names no units; give at least one layer with an index"),
    (patch_data({**zero(NEURONS), "experts": {}}), "edits[0].experts: names no units; give at least one layer with an index"),
    (patch_data(zero({"1": []})), "edits[0].neurons.1: names no units; give at least one index"),
    (patch_data(edits=[None]), "edits[0]: input should be a valid dictionary or object to extract fields from, got None"),
    # Indices.
    (patch_data(zero({"1": [-1]})), "edits[0].neurons.1[0]: index -1 is negative"),
    (patch_data(zero({"1": [1, 1 << 20]})), "edits[0].neurons.1[1]: index 1048576 is beyond the largest that a patch may name, 1048575"),
    (patch_data(zero({"1": ["9-1"]})), "edits[0].neurons.1[0]: the range 9-1 runs backwards"),
    (patch_data(zero({"10000": [1]})), "edits[0].neurons: expected a layer number from 0 to 9999, got '10000'"),
    (patch_data(zero({"029": [1]})), "edits[0].neurons: expected a layer number from 0 to 9999, got '029'"),
    # Factors.
    (patch_data({"op": "scale", "neurons": NEURONS}), "edits[0].factor: is missing"),
    (patch_data(scale(1, NEURONS)), "edits[0].factor: a factor of 1 changes nothing; leave the edit out"),
    (patch_data(scale(1.0, NEURONS)), "edits[0].factor: a factor of 1 changes nothing; leave the edit out"),
    (patch_data(scale(1.0000000001, NEURONS)), "edits[0].factor: a factor of 1 changes nothing; leave the edit out"),
    (patch_data(scale(0.99999999, NEURONS)), "edits[0].factor: a factor of 1 changes nothing; leave the edit out"),
    (patch_data(scale(1e39, NEURONS)), "edits[0].factor: 1e+39 is too large for float32"),
    (patch_data(scale(-1e60, NEURONS)), "edits[0].factor: -1e+60 is too large for float32"),
    (patch_data(scale(1e-50, NEURONS)), "edits[0].factor: 1e-50 is 0 in float32; write `op: zero`"),
    (patch_data(scale(float("nan"), NEURONS)), "edits[0].factor: nan is not a finite number"),
    (patch_data(scale(float("-inf"), NEURONS)), "edits[0].factor: -inf is not a finite number"),
    (patch_data(scale("2", NEURONS)), "edits[0].factor: input should be a valid number, got '2'"),
    (patch_data(scale(True, NEURONS)), "edits[0].factor: input should be a valid number, got True"),
    (patch_data(scale(None, NEURONS)), "edits[0].factor: input should be a valid number, got None"),
    *(
        (patch_data({"op": op, "factor": -1, "neurons": NEURONS}), "edits[0].factor: is not a key of this format")
        for op in ("zero", "negate")
    ),
    (patch_data({"op": "mask", "factor": 0, "experts": NEURONS}), "edits[0].factor: is not a key of this format"),
    # Operations.
    (patch_data({"op": "mask", "neurons": NEURONS}), "edits[0].neurons: `mask` is for routed experts; for neurons use `zero`"),
    (patch_data({"op": "mask", "neurons": NEURONS, "experts": NEURONS}), "edits[0].neurons: `mask` is for routed experts; for neurons use `zero`"),
    (patch_data({"op": "mask"}), "edits[0].experts: is missing"),
    (patch_data({"neurons": NEURONS}), "edits[0]: `op` is missing; it is one of scale, zero, negate, mask, set, add, project"),
    *(
        (patch_data({"op": op, "neurons": NEURONS}), "edits[0]: `op` must be one of scale, zero, negate, mask, set, add, project")
        for op in ("Zero", "swap", "", None, 1, ["zero"], {})
    ),
    # Version and name.
    ({"name": "small", "edits": [zero(NEURONS)]}, "version: is missing"),
    (patch_data(version=2), "version: input should be 1, got 2"),
    (patch_data(version=True), "version: must be 1, got True"),
    (patch_data(version="1"), "version: input should be 1, got '1'"),
    (patch_data(version=None), "version: input should be 1, got None"),
    ({"version": 1, "edits": [zero(NEURONS)]}, "name: is missing"),
    (patch_data(name=1), "name: input should be a valid string, got 1"),
    *(
        (patch_data(name=name), f"name: expected {GOOD_NAME}, got {name!r}")
        for name in ["", "Small", "a" * 65, "small\n", "\nsmall", "-a", ".a", "_a", "a b", "a/b", "../a", "é", "a@b", "a+b", "a\0"]
    ),
    # Prose and provenance.
    (patch_data(description=1), "description: input should be a valid string, got 1"),
    (patch_data(description=None), "description: input should be a valid string, got None"),
    (patch_data(provenance="x"), "provenance: input should be a valid dictionary, got 'x'"),
    (patch_data(provenance={"a": [float("inf")]}), "provenance.a[0]: inf is not a finite number"),
    (patch_data(provenance={"a": "\ud800"}), "provenance.a: holds half of a surrogate pair, which is no text"),
    # The guard's own form.
    (patch_data(model=None), "model: input should be a valid dictionary or instance of Guard, got None"),
    (patch_data(model={"architectures": []}), "model.architectures: must not be empty"),
    (patch_data(model={"architectures": "LlamaForCausalLM"}), "model.architectures: input should be a valid list, got 'LlamaForCausalLM'"),
    (patch_data(model={"architectures": [1]}), "model.architectures[0]: input should be a valid string, got 1"),
    (patch_data(model={"num_hidden_layers": 0}), "model.num_hidden_layers: input should be greater than or equal to 1, got 0"),
    (patch_data(model={"num_hidden_layers": 2.0}), "model.num_hidden_layers: input should be a valid integer, got 2.0"),
    (patch_data(model={"hidden_size": "8"}), "model.hidden_size: input should be a valid integer, got '8'"),
    (patch_data(model={"num_experts": True}), "model.num_experts: input should be a valid integer, got True"),
    (patch_data(model={"intermediate_size": "8"}), "model.intermediate_size: input should be a valid integer, got '8'"),
    (patch_data(model={"intermediate_size": 0}), "model.intermediate_size: input should be greater than or equal to 1, got 0"),
    # The seal's own form.
    (patch_data(seal={"neurons/1/3": HASH}), "seal.neurons/1/3: seals a unit that no edit names"),
    (patch_data(seal={"neurons/2/2": HASH}), "seal.neurons/2/2: seals a unit that no edit names"),
    (patch_data(seal={"experts/1/2": HASH}), "seal.experts/1/2: seals a unit that no edit names"),
    (patch_data(zero({"1": "all"}), seal={"neurons/1/9999999": HASH}), "seal.neurons/1/9999999: seals a unit that no edit names"),
    (patch_data(zero({"1": ["0-3", "5-9"]}), seal={"neurons/1/4": HASH}), "seal.neurons/1/4: seals a unit that no edit names"),
    *(
        (
            patch_data(seal={"neurons/1/2": value}),
            f"seal.neurons/1/2: string should match pattern '^[0-9a-f]{{64}}$', got {value!r}",
        )
        for value in ["", HASH[1:], HASH.upper(), HASH + "\n", "g" * 64]
    ),
    *(
        (
            patch_data(seal={key: HASH}),
            f"seal.{key}: string should match pattern '{SEAL_KEY_PATTERN}', got {key!r}",
        )
        for key in ["neurons/1", "neurons/01/2", "neurons/1/2/3", "heads/1/2", "int"]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("data", "reason"), REFUSED)
def test_what_is_wrong_is_refused_with_file_place_and_reason(data: dict[str, Any], reason: str) -> None:
    assert refusal(lambda: Patch.from_data(data, "p.yaml"), PatchError) == f"p.yaml: {reason}"


@pytest.mark.parametrize(("data", "reason"), REFUSED)
def test_a_json_file_is_refused_as_its_data_is(data: dict[str, Any], reason: str) -> None:
    found = refusal(lambda: Patch.parse(json.dumps(data), "p.yaml"), PatchError)

    assert found.replace("NaN", "nan").replace("-Infinity", "-inf").replace("Infinity", "inf") == f"p.yaml: {reason}"


@pytest.mark.parametrize(
    "data", [None, [], "words", 1, 1.5, True, [{"version": 1}]], ids=lambda value: type(value).__name__
)
def test_what_is_no_mapping_is_refused(data: object) -> None:
    expected = f"p.yaml: is not a patch: expected a mapping, got {type(data).__name__}"

    assert refusal(lambda: Patch.parse(yaml.safe_dump(data), "p.yaml"), PatchError) == expected


def test_text_that_no_file_could_hold_is_refused() -> None:
    assert refusal(lambda: Patch.parse("a: \ud800", "p.yaml"), PatchError) == "p.yaml: byte 3: is not UTF-8 text"


def test_an_unreadable_value_is_cut_short() -> None:
    assert len(refusal(lambda: patch(name="x" * 100_000), PatchError)) <= 500


def test_the_reason_outlives_a_hostile_key() -> None:
    assert refusal(lambda: patch(**{"x" * 100_000: 1}), PatchError).endswith("…: is not a key of this format")


def test_numbers_and_text_for_one_layer_are_seen_to_be_one_layer() -> None:
    data = patch_data(zero({"29": [1], 29: [2]}))  # type: ignore[dict-item]

    assert refusal(lambda: Patch.from_data(data), PatchError) == (
        "patch: edits[0].neurons.29: the key '29' stands twice in one mapping"
    )


# Files


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(patch().to_yaml())

    assert load_patch(file) == patch()


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(patch().to_yaml() + "extra: 1\n")

    assert refusal(lambda: load_patch(file), PatchError) == f"{file}: extra: is not a key of this format"


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"

    assert refusal(lambda: load_patch(file), UsageError) == f"{file}: no such file"


def test_a_folder_is_wrong_usage(tmp_path: Path) -> None:
    assert refusal(lambda: load_patch(tmp_path), UsageError) == f"{tmp_path}: is a folder"


@pytest.mark.parametrize("path", ["", "a\0b", "a\nb", "x" * 10_000, "\ud800"])
def test_a_path_that_cannot_be_is_wrong_usage(path: str) -> None:
    assert refusal(lambda: load_patch(path), UsageError)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "p.yaml"
    os.mkfifo(pipe)

    assert refusal(lambda: load_patch(pipe), UsageError) == f"{pipe}: is not a regular file"


def test_a_loop_of_links_is_wrong_usage(tmp_path: Path) -> None:
    link = tmp_path / "p.yaml"
    link.symlink_to(link)

    assert refusal(lambda: load_patch(link), UsageError)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)

    assert refusal(lambda: load_patch(file), PatchError) == (
        f"{file}: is too long: a patch file may have at most 1048576 bytes (1 MiB)"
    )


# Laws


@given(patch_datas())
def test_a_patch_written_as_yaml_reads_back_equal(data: dict[str, Any]) -> None:
    found = Patch.from_data(data)

    assert Patch.parse(found.to_yaml()) == found


@given(patch_datas())
def test_a_patch_written_as_json_reads_back_equal(data: dict[str, Any]) -> None:
    found = Patch.from_data(data)

    assert Patch.parse(found.to_json()) == found


@given(patch_datas())
def test_a_patch_as_plain_data_reads_back_equal(data: dict[str, Any]) -> None:
    found = Patch.from_data(data)

    assert Patch.from_data(json.loads(json.dumps(found.to_data()))) == found


@given(patch_datas())
def test_reading_back_keeps_the_id_too(data: dict[str, Any]) -> None:
    found = Patch.from_data(data)
    before = found.id

    assert (Patch.parse(found.to_yaml()).id, found) == (before, Patch.parse(found.to_json()))


@given(st.data(), patch_datas())
def test_the_spelling_of_a_file_does_not_matter(data: st.DataObject, content: dict[str, Any]) -> None:
    content.pop("provenance", None)  # Its texts may look like layers, which PyYAML's own dumper doesn't quote.
    text = data.draw(files_of(content))

    assert Patch.parse(text) == Patch.from_data(content)


@given(st.data(), gain_maps, guards)
def test_the_digest_depends_on_gains_and_guard_not_on_how_the_edits_are_cut_up(
    data: st.DataObject, wanted: GainMap, guard: dict[str, Any]
) -> None:
    first, second = (
        Patch.parse(data.draw(files_of(patch_data(edits=data.draw(edits_of(wanted)), model=guard)))) for _ in range(2)
    )

    assert first.digest == second.digest


@given(texts, mappings, hashes)
def test_the_digest_does_not_depend_on_prose_or_seal(description: str, provenance: dict[str, Any], seal: str) -> None:
    found = patch(description=description, provenance=provenance, seal={"neurons/1/2": seal})

    assert found.digest == patch().digest


def test_the_digest_does_not_depend_on_the_name() -> None:
    assert patch(name="other").digest == patch().digest


@given(st.data(), gain_maps, units, st.sampled_from([-1.0, 0.0, 0.25]))
def test_the_digest_depends_on_every_unit_and_gain(
    data: st.DataObject, wanted: GainMap, unit: Unit, gain: float
) -> None:
    assume(wanted.get(unit) != gain)
    first, second = (patch(edits=data.draw(edits_of(gains))) for gains in (wanted, {**wanted, unit: gain}))

    assert first.digest != second.digest


@given(guards, guards)
def test_the_digest_depends_on_the_guard(first: dict[str, Any], second: dict[str, Any]) -> None:
    def meaning(guard: dict[str, Any]) -> dict[str, Any]:
        return {key: sorted(set(value)) if key == "architectures" else value for key, value in guard.items()}

    assert (patch(model=first).digest == patch(model=second).digest) == (meaning(first) == meaning(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"op": "negate", "neurons": NEURONS}, scale(-1, NEURONS)),
        (zero(NEURONS), scale(0, NEURONS)),
        (zero(NEURONS), scale(-0.0, NEURONS)),
        (scale(-0.8, NEURONS), scale(-0.800000011920929, NEURONS)),
        (scale(3, NEURONS), scale(3.0, NEURONS)),
        (zero({"1": ["2-4"]}), zero({"1": [4, 2, 3]})),
    ],
)
def test_two_ways_to_say_one_gain_have_one_digest(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert patch(first).digest == patch(second).digest


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (zero({"1": [2]}), zero({"1": [2]}, "experts")),
        (zero({"1": [2]}, "experts"), {"op": "mask", "experts": {"1": [2]}}),
        (zero({"1": "all"}), zero({"1": ["0-1048575"]})),
        (zero({"1": [23]}), zero({"12": [3]})),
        (scale(0.5, NEURONS), scale(0.50000006, NEURONS)),
    ],
)
def test_what_means_something_else_has_another_digest(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert patch(first).digest != patch(second).digest


def test_a_digest_never_changes_between_versions_of_this_program() -> None:
    assert patch().digest == "fd68bea41db56a684591aed06aef8c9df46f94964fa950ddb5f391bd8fc32cd9"


@given(patch_datas())
def test_an_id_is_the_name_and_eight_digits_of_the_digest(data: dict[str, Any]) -> None:
    found = Patch.from_data(data)

    assert found.id == f"{data['name']}@{found.digest[:8]}"
    assert re.fullmatch("[0-9a-f]{64}", found.digest)
