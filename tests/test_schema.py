# SPDX-License-Identifier: Apache-2.0
"""patches/schema.json is the format, for editors: generated, valid, and as strict as a schema can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from tests.examples import patch_data, scale, zero
from tests.strategies import patch_datas
from vllm_surgery.patch import Patch, json_schema

PATCHES = Path(__file__).parents[1] / "patches"
VALIDATOR = Draft202012Validator(json_schema())


def test_the_file_is_what_the_code_generates() -> None:
    assert json.loads((PATCHES / "schema.json").read_bytes()) == json_schema(), "run `make schema`"


def test_it_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


@given(data=patch_datas())
def test_every_patch_is_valid(data: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(Patch.from_data(data).to_data())) == []


@pytest.mark.parametrize("file", sorted(PATCHES.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_patch_is_valid(file: Path) -> None:
    assert list(VALIDATOR.iter_errors(Patch.parse(file.read_bytes()).to_data())) == []


@pytest.mark.parametrize(
    "data",
    [
        patch_data(edit=[]),
        patch_data(version=2),
        patch_data(name="Upper"),
        patch_data(edits=[]),
        patch_data(zero({})),
        patch_data(zero({"1": []})),
        patch_data(zero({"01": [1]})),
        patch_data(zero({"1": [-1]})),
        patch_data(zero({"1": ["1 to 3"]})),
        patch_data({"op": "scale", "neurons": {"1": [2]}}),
        patch_data({"op": "zero", "factor": 2, "neurons": {"1": [2]}}),
        patch_data({"op": "mask", "neurons": {"1": [2]}}),
        patch_data({"op": "invert", "neurons": {"1": [2]}}),
        patch_data(scale("big", {"1": [2]})),
        patch_data(model={"layers": 3}),
        patch_data(model={"num_hidden_layers": 0}),
        patch_data(seal={"neurons/1": "0" * 64}),
        patch_data(seal={"neurons/1/2": "abc"}),
    ],
)
def test_what_a_schema_can_refuse_is_refused(data: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(data)
