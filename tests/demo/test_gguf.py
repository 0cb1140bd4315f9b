# SPDX-License-Identifier: Apache-2.0
"""The demo model against transformers' own reading of the same GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from vllm_surgery import SurgeryError
from vllm_surgery.demo import gguf as gguf_conversion
from vllm_surgery.demo import model as demo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow  # Loads the demo model by way of transformers' own reader too.

PROMPTS = ["What is the capital of France?", "List three colors.", "Write a haiku about the sea, in 2024."]
TEXTS = [
    "Hello world",
    "In 2024 there were 1234 people:\n\n\tdef f(x):\n\t    return x",
    "héllo ünï 日本 🙂",
    "<|im_start|>",
]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo._download(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def reference(gguf: Path) -> Iterator[tuple[Any, Any]]:
    """Model and tokenizer as transformers reads them from the GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    yield AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32), AutoTokenizer.from_pretrained(**source)


@pytest.fixture(scope="module")
def converted(demo_model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(demo_model), AutoTokenizer.from_pretrained(demo_model)


def test_every_weight_is_the_same(reference: tuple[Any, Any], converted: tuple[Any, Any]) -> None:
    expected, actual = reference[0].state_dict(), converted[0].state_dict()
    assert expected.keys() == actual.keys()
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


@pytest.mark.parametrize("text", TEXTS)
def test_text_becomes_the_same_tokens(reference: tuple[Any, Any], converted: tuple[Any, Any], text: str) -> None:
    ids = converted[1](text).input_ids
    assert ids == reference[1](text).input_ids
    assert converted[1].decode(ids) == text


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_same(reference: tuple[Any, Any], converted: tuple[Any, Any], prompt: str) -> None:
    expected, actual = (answer(*pair, prompt) for pair in (reference, converted))
    assert actual == expected


def answer(model: Any, tokenizer: Any, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**tokens, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(made[0, tokens["input_ids"].shape[1] :]))


def test_bfloat16_is_float32_rounded_once(gguf: Path, demo_model: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    gguf_conversion.convert_llama(gguf, tmp_path, "bfloat16")
    name = "model.layers.3.mlp.down_proj.weight"
    with (
        safe_open(demo_model / "model.safetensors", "pt") as wide,
        safe_open(tmp_path / "model.safetensors", "pt") as half,
    ):
        assert torch.equal(half.get_tensor(name), wide.get_tensor(name).to(torch.bfloat16))


def test_another_tokenizer_is_refused(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    field = gguf_conversion._field
    monkeypatch.setattr(
        gguf_conversion, "_field", lambda reader, name: "gpt-2" if name.endswith("ggml.pre") else field(reader, name)
    )
    with pytest.raises(SurgeryError, match="the GGUF file's tokenizer is gpt-2, not smollm"):
        gguf_conversion.convert_llama(gguf, tmp_path, "float32")
