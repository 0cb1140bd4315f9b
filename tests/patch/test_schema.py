# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema that editors use: generated, never behind, and of one mind with the parser.

JSON knows text keys alone, so an editor's YAML language server hands the layer in ``29: [545]`` to the schema as
``"29"``; so does `parse_document`. PyYAML's own loader gives the number 29, which a schema can't match to a pattern.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given

from tests.examples import patch_data, scale, zero
from tests.strategies import patch_datas
from vllm_surgery.errors import PatchError
from vllm_surgery.patch.document import parse_document
from vllm_surgery.patch.format import Patch, json_schema

PATCHES = Path(__file__).parents[2] / "patches"
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
NEURONS = {"1": [2]}
HASH = "3f" * 32


def accepts(data: object) -> bool:
    return VALIDATOR.is_valid(data)


def parses(data: object) -> bool:
    try:
        Patch.from_data(data)
    except PatchError:
        return False
    return True


def test_the_file_is_what_the_code_generates() -> None:
    found = (PATCHES / "schema.json").read_text()

    assert found == json.dumps(SCHEMA, indent=2) + "\n", "run: vllm-surgery schema > patches/schema.json"


def test_it_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", sorted(PATCHES.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_patch_is_accepted(file: Path) -> None:
    assert accepts(parse_document(file.read_bytes(), file.name))


@given(patch_datas())
def test_what_the_parser_accepts_the_schema_accepts(data: dict[str, Any]) -> None:
    assert parses(data)
    assert accepts(data)


@given(patch_datas())
def test_what_is_written_is_accepted(data: dict[str, Any]) -> None:
    assert accepts(parse_document(Patch.from_data(data).to_yaml().encode(), "p"))


REFUSED_BY_BOTH = [
    None, [], "words", {},
    # Unknown keys.
    patch_data(extra=1), patch_data(model={"layers": 3}), patch_data({**zero(NEURONS), "extra": 1}), patch_data({"op": "zero", "neuron": NEURONS}),
    # Missing keys, other versions, other names.
    {"version": 1, "name": "small"}, {"version": 1, "edits": [zero(NEURONS)]}, {"name": "small", "edits": [zero(NEURONS)]},
    patch_data(version=2), patch_data(version="1"), patch_data(version=True), patch_data(version=None),
    patch_data(name=1), patch_data(name=""), patch_data(name="Small"), patch_data(name="-a"), patch_data(name="a" * 65), patch_data(name="a/b"),
    # Empty selections.
    patch_data(edits=[]), patch_data(edits={}), patch_data({"op": "zero"}), patch_data(zero({})), patch_data(zero({"1": []})),
    patch_data({**zero(NEURONS), "experts": {}}), patch_data({"op": "mask"}), patch_data({"op": "scale", "factor": 2}),
    # Layers and indices.
    patch_data(zero({"029": [1]})), patch_data(zero({"10000": [1]})), patch_data(zero({"x": [1]})), patch_data(zero({"1": "All"})),
    patch_data(zero({"1": 5})), patch_data(zero({"1": [-1]})), patch_data(zero({"1": [1 << 20]})), patch_data(zero({"1": [1.5]})),
    patch_data(zero({"1": [True]})), patch_data(zero({"1": ["5"]})), patch_data(zero({"1": ["05-7"]})), patch_data(zero({"1": ["all"]})),
    # Factors.
    patch_data({"op": "scale", "neurons": NEURONS}), patch_data(scale(1, NEURONS)), patch_data(scale(1.0, NEURONS)), patch_data(scale("2", NEURONS)),
    patch_data(scale(None, NEURONS)), patch_data(scale(True, NEURONS)), patch_data({"op": "zero", "factor": 0, "neurons": NEURONS}),
    patch_data({"op": "negate", "factor": -1, "neurons": NEURONS}), patch_data({"op": "mask", "factor": 0, "experts": NEURONS}),
    # Operations.
    patch_data({"op": "mask", "neurons": NEURONS}), patch_data({"op": "mask", "neurons": NEURONS, "experts": NEURONS}),
    patch_data({"neurons": NEURONS}), patch_data({"op": "Zero", "neurons": NEURONS}), patch_data({"op": None, "neurons": NEURONS}),
    # Guard, seal, prose.
    patch_data(model={"architectures": []}), patch_data(model={"architectures": "x"}), patch_data(model={"num_hidden_layers": 0}),
    patch_data(model={"intermediate_size": 0}), patch_data(model={"intermediate_size": []}), patch_data(model={"intermediate_size": ["8"]}),
    patch_data(seal={"neurons/1/2": "x"}), patch_data(seal={"heads/1/2": HASH}), patch_data(seal={"neurons/01/2": HASH}),
    patch_data(description=1), patch_data(provenance="x"), patch_data(model=None),
]  # fmt: skip


@pytest.mark.parametrize("data", REFUSED_BY_BOTH, ids=json.dumps)
def test_what_a_schema_can_say_is_refused_by_both(data: object) -> None:
    assert (accepts(data), parses(data)) == (False, False)


REFUSED_BY_THE_PARSER_ALONE = {
    "a unit named twice": patch_data(zero(NEURONS), zero(NEURONS)),
    "an index that stands twice in one list": patch_data(zero({"1": [2, 2]})),
    "a range that runs backwards": patch_data(zero({"1": ["9-1"]})),
    "a range beyond the largest index": patch_data(zero({"1": ["0-1048576"]})),
    "a factor that is 1 in float32": patch_data(scale(1.0000000001, NEURONS)),
    "a factor that is 0 in float32": patch_data(scale(1e-50, NEURONS)),
    "a factor beyond float32": patch_data(scale(1e39, NEURONS)),
    "a seal of a unit that no edit names": patch_data(seal={"neurons/1/3": HASH}),
}


@pytest.mark.parametrize("data", REFUSED_BY_THE_PARSER_ALONE.values(), ids=REFUSED_BY_THE_PARSER_ALONE.keys())
def test_what_a_schema_cannot_say_is_refused_by_the_parser(data: object) -> None:
    assert (accepts(data), parses(data)) == (True, False)


def test_an_editor_sees_layers_as_text() -> None:
    text = "version: 1\nname: small\nedits: [{op: zero, neurons: {29: [545]}}]\n"

    assert accepts(parse_document(text.encode(), "p"))


def test_pyyamls_own_loader_gives_numbers_that_a_schema_cannot_match() -> None:
    text = "version: 1\nname: small\nedits: [{op: zero, neurons: {29: [545]}}]\n"

    with pytest.raises(TypeError):
        accepts(yaml.safe_load(text))
