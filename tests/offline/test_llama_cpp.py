# SPDX-License-Identifier: Apache-2.0
"""llama.cpp answers a patched GGUF file as the patched model answers: the demo model's file under its shipped patch.

Needs llama-cpp-python, and in VLLM_SURGERY_DEMO_GGUF the GGUF file that the demo model was made from. The reference is
transformers on the demo model's folder, which holds the same weights dequantised, baked with the same patch: as vLLM
answers, which the engine's tests show.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_surgery import ModelFolder, PatchSet
from vllm_surgery.model.gguf_model import GgufModel
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.gguf import bake_gguf
from vllm_surgery.planning.gguf import unprovable

pytestmark = pytest.mark.slow

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python isn't installed")
FILE = os.environ.get("VLLM_SURGERY_DEMO_GGUF", "")
PATCH = Path(__file__).parents[2] / "patches" / "smollm2-135m-instruct-noloop.yaml"
PROMPTS = ("List the moons of Jupiter.", "Name every country in Africa, one per line.", "How do I boil an egg?")
TOKENS = 48
ALIKE = 0.9
"""How many of the patched model's greedy tokens llama.cpp chooses too, given those before: it computes with activations
of eight bits, so that near ties fall otherwise. A guess, made before the first run: mend it by what a run prints."""


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not FILE:
        pytest.skip("VLLM_SURGERY_DEMO_GGUF names no file")
    out = tmp_path_factory.mktemp("gguf") / "patched.gguf"
    bake_gguf(unprovable(PatchSet.load([PATCH])), GgufModel(Path(FILE)), out)
    return out


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts and the patched model's greedy answers to them, as tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("baked") / "model"
    bake(PatchSet.load([PATCH]), ModelFolder(demo_model), folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        made = model.generate(torch.tensor([asked]), max_new_tokens=TOKENS, do_sample=False, repetition_penalty=1.0)
        found.append((asked, made[0, len(asked) :].tolist()))
    return found


def share_alike(file: Path, answers: list[tuple[list[int], list[int]]]) -> float:
    """How many tokens of the answers are llama.cpp's most likely ones, given those before."""
    model = llama_cpp.Llama(model_path=str(file), n_ctx=512, logits_all=True, verbose=False, n_gpu_layers=0)
    alike = total = 0
    for asked, answer in answers:
        model.reset()
        model.eval([*asked, *answer[:-1]])
        chosen = model.scores[len(asked) - 1 : len(asked) - 1 + len(answer)].argmax(axis=-1).tolist()
        alike += sum(one == other for one, other in zip(chosen, answer, strict=True))
        total += len(answer)
    return alike / total


def test_tokens_change_as_the_patched_models_do(patched: Path, answers: list[tuple[list[int], list[int]]]) -> None:
    with_patch, without = share_alike(patched, answers), share_alike(Path(FILE), answers)
    print(f"of the patched model's tokens llama.cpp chooses {with_patch:.1%} with the patch, {without:.1%} without")
    assert with_patch >= ALIKE
    assert without < with_patch - 0.05
