# SPDX-License-Identifier: Apache-2.0
"""docs/registry.md says of every architecture that the installed vLLM registers whether its units are known."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.registry.page import PAGE, page, verdicts
from tests.docs.registry.source import registered
from tests.docs.registry.verdict import INSIDE, NONE, REFUSED, ROW
from tests.models import EXPERT_FAMILIES, FAMILIES, LIKE_LLAMA, SEEING_FAMILIES

if TYPE_CHECKING:
    from tests.docs.registry.verdict import Verdict

pytest.importorskip("vllm", reason="vLLM's source is what the page is made of")


@pytest.fixture(scope="module")
def found() -> dict[str, Verdict]:
    return verdicts()


def test_the_page_is_what_vllms_source_says(found: dict[str, Verdict]) -> None:
    told = PAGE.read_text()
    new = [architecture for architecture in found if architecture not in told]
    assert new == [], (
        "this vLLM has architectures that the page doesn't name: run `make registry`, and read what it says"
    )
    assert told == page(found), "run `make registry`, and read what changed"


def test_vllms_own_registry_has_the_same_architectures() -> None:
    from vllm.model_executor.models.registry import _SPECULATIVE_DECODING_MODELS, _VLLM_MODELS

    assert {*registered()} == {*_VLLM_MODELS} - {*_SPECULATIVE_DECODING_MODELS}


@pytest.mark.parametrize("family", sorted({*FAMILIES, *LIKE_LLAMA} - {"Gemma4/dense", "Gemma3n", "Granite"}))
def test_families_that_the_tests_edit_have_a_row(found: dict[str, Verdict], family: str) -> None:
    assert found[f"{family}ForCausalLM"].word in {ROW, INSIDE}


@pytest.mark.parametrize(
    "family",
    sorted({re.split(r"[/ ]", each)[0] for each in (*FAMILIES, *LIKE_LLAMA, *EXPERT_FAMILIES, *SEEING_FAMILIES)}),
)
def test_no_architecture_of_a_family_that_the_tests_edit_has_nothing_to_edit(
    found: dict[str, Verdict], family: str
) -> None:
    words = {name: each.word for name, each in found.items() if re.match(rf"{family}(For|Model|Bidirectional)", name)}
    assert words
    assert [name for name, word in words.items() if word in {NONE, REFUSED}] == []


@pytest.mark.parametrize(
    ("architecture", "word", "name"),
    [
        ("GptOssForCausalLM", ROW, "mlp.experts.down_proj"),
        ("Glm4MoeLiteForCausalLM", ROW, "mlp.shared_experts.down_proj.weight"),
        ("JambaForCausalLM", ROW, "feed_forward.experts.*.down_proj.weight"),
        ("LlamaBidirectionalModel", ROW, "mlp.down_proj.weight"),
        ("Granite4VisionForConditionalGeneration", ROW, "mlp.down_proj.weight"),
        ("RForConditionalGeneration", INSIDE, None),
        ("GteNewModel", REFUSED, "encoder.layer.*.mlp.down_proj.weight"),
        ("ModernBertModel", REFUSED, "mlp.Wo.weight"),
        ("Moondream3ForCausalLM", REFUSED, "text.blocks.*.mlp.fc2.weight"),
        ("LlamaForCausalLM", ROW, "mlp.down_proj.weight"),
        ("DeepseekV4ForCausalLM", ROW, "ffn.experts.*.w2.weight"),
        ("Qwen2MoeForCausalLM", ROW, "mlp.shared_expert.down_proj.weight"),
        ("Qwen3OmniMoeForConditionalGeneration", ROW, "mlp.experts.*.down_proj.weight"),
        ("InternLM2ForCausalLM", ROW, "feed_forward.w2.weight"),
        ("ChatGLMModel", REFUSED, "mlp.dense_4h_to_h.weight"),
        ("BloomForCausalLM", NONE, None),
        ("LlavaForConditionalGeneration", INSIDE, None),
    ],
)
def test_some_that_are_known_by_heart(
    found: dict[str, Verdict], architecture: str, word: str, name: str | None
) -> None:
    each = found[architecture]
    assert each.word == word
    assert name is None or name in (*each.known, *each.unknown)
