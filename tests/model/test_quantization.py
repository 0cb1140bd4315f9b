# SPDX-License-Identifier: Apache-2.0
"""What a config says of how a model's weights are stored."""

from __future__ import annotations

from typing import Any

import pytest

from tests.quantised import KINDS
from vllm_surgery.model.quantization import Scheme

GROUP = {"num_bits": 8, "type": "int", "strategy": "channel"}


def compressed(*groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = {f"group_{number}": {"weights": group} for number, group in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "config_groups": named, **more}


def scheme(section: Any) -> Scheme | None:
    return Scheme.of({"quantization_config": section})


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"text_config": {}}, {"text_config": 7}])
def test_a_plain_model_has_none(config: dict[str, Any]) -> None:
    assert Scheme.of(config) is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("fp8 per tensor", Scheme("fp8", "fp8")),
        ("fp8 per channel", Scheme("compressed-tensors", "fp8", per_word=4)),
        ("fp8 in blocks", Scheme("fp8", "fp8", blocks=True)),
        ("int8 per channel", Scheme("compressed-tensors", "integers", per_word=4)),
        ("int8 per tensor", Scheme("compressed-tensors", "integers", one_scale=True, per_word=4)),
        ("int4 in groups", Scheme("compressed-tensors", "integers", per_word=8)),
        ("gptq", Scheme("gptq", "integers", per_word=8)),
        ("gptq of 8 bits", Scheme("gptq", "integers", per_word=4)),
        ("awq", Scheme("awq", "integers", per_word=8, transposed=True)),
    ],
)
def test_known_kinds_are_told_apart(word: str, expected: Scheme) -> None:
    assert scheme(KINDS[word].config) == expected


@pytest.mark.parametrize("place", ["quantization_config", "compression_config"])
def test_a_multimodal_models_text_model_may_have_its_own(place: str) -> None:
    assert Scheme.of({"text_config": {place: {"quant_method": "mxfp4"}}}) == Scheme("mxfp4", "mxfp4")


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": "bitsandbytes", "bits": 4},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {},
        compressed(),
        compressed(GROUP, {**GROUP, "type": "float"}),
        compressed({**GROUP, "num_bits": 4, "type": "float"}),
        compressed(GROUP, transform_config={"config_groups": {"R1": {}}}),
        {"quant_method": "compressed-tensors", "config_groups": 7},
    ],
)
def test_what_is_not_known_has_no_codes(section: dict[str, Any]) -> None:
    found = scheme(section)

    assert found is not None
    assert found.codes is None


def test_groups_without_weights_say_nothing() -> None:
    assert scheme(compressed(GROUP, {})) == Scheme("compressed-tensors", "integers", per_word=4)


def test_one_group_in_blocks_is_enough_for_scales_to_be_shared() -> None:
    found = scheme(compressed({**GROUP, "type": "float"}, {**GROUP, "type": "float", "strategy": "block"}))

    assert found == Scheme("compressed-tensors", "fp8", blocks=True, per_word=4)


@pytest.mark.parametrize(
    ("bits", "per_word"), [(2, 16), (4, 8), (8, 4), (3, None), (0, None), ("4", None), (None, None)]
)
def test_codes_that_cross_words_are_not_counted_by_word(bits: Any, per_word: int | None) -> None:
    assert scheme({"quant_method": "gptq", "bits": bits}) == Scheme("gptq", "integers", per_word=per_word)


@pytest.mark.parametrize(
    ("section", "spares"),
    [
        ({"modules_to_not_convert": ["model.layers.0.mlp.experts"]}, True),
        ({"ignored_layers": ["re:.*block_sparse_moe.experts.*"]}, True),
        ({"dynamic": {"-:.*experts.*": {}}}, True),
        ({"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.shared_experts.up_proj"]}, False),
        ({"modules_to_not_convert": None}, False),
        ({"dynamic": 7}, False),
        ({}, False),
    ],
)
def test_experts_that_are_named_among_what_stays_are_spared(section: dict[str, Any], spares: bool) -> None:
    found = scheme({"quant_method": "gptq", "bits": 4, **section})

    assert found is not None
    assert found.spares_experts == spares


def test_so_are_those_that_compressed_tensors_ignores() -> None:
    found = scheme(compressed(GROUP, ignore=["lm_head", "re:.*mlp.experts.*"]))

    assert found is not None
    assert found.spares_experts
