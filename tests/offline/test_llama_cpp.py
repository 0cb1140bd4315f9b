# SPDX-License-Identifier: Apache-2.0
"""llama.cpp answers a patched GGUF file as the patched model answers: the demo model's file under its shipped patch.

The reference is transformers on the demo model's folder, which holds the same weights dequantised, baked with the same
patch: as vLLM answers, which the engine's tests show. llama.cpp comes from the package xllamacpp. It computes with
activations of eight bits, so near ties fall otherwise, with and without a patch alike. ``pytest -s`` prints the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.conftest import PATCHES
from vllm_surgery import ModelFolder, PatchSet
from vllm_surgery.model.gguf_model import GgufModel
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.gguf import bake_gguf
from vllm_surgery.planning.gguf import unprovable

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Answers = list[tuple[list[int], list[int]]]
    """Prompts and what is said to them, as tokens."""

pytestmark = pytest.mark.slow

llama_cpp = pytest.importorskip("xllamacpp", reason="xllamacpp, which carries llama.cpp, isn't installed")

PATCH = PATCHES / "smollm2-135m-instruct-noloop.yaml"
PROMPTS = (
    "List the moons of Jupiter.",
    "Name every country in Africa, one per line.",
    "How do I boil an egg?",
    "Write a haiku about the sea, in 2024.",
    "List 40 kinds of bread.",
)
TOKENS = 64
# What the first runs gave, on 230 tokens, is in brackets.
ALIKE = 0.9
"""Share of tokens that the patched model would choose too [0.961; both unpatched 0.974]. It is a floor and separates little: the
unpatched model chooses 0.930 of them."""
NEAR_TIE = 0.7
"""Nats by which a token may be less likely than the patched model's choice [0.30; by the unpatched model 2.20]."""
CORRELATION = 0.9
"""Of what the patch adds to the tokens' log-probabilities, by llama.cpp and by the model [0.973]."""
SLOPE = 0.15
"""How far from 1 the slope of the one by the other may be [0.016]."""


@dataclass(frozen=True)
class Reading:
    """What a model makes of each token of the answers, given those before it.

    Attributes:
        chosen: the token that it would choose there.
        best: the log-probability of that token.
        logprobs: the log-probability of the token that stands there.
    """

    chosen: NDArray[np.int64]
    best: NDArray[np.float64]
    logprobs: NDArray[np.float64]

    def alike(self, other: Reading) -> float:
        """In how many places both choose the same, as a share."""
        return float((self.chosen == other.chosen).mean())

    def distance(self, other: Reading) -> float:
        """The mean distance of the log-probabilities, in nats."""
        return float(np.abs(self.logprobs - other.logprobs).mean())

    @property
    def shortfall(self) -> float:
        """How much less likely than the model's own choice is what stands there, in nats, where that is most."""
        return float((self.best - self.logprobs).max())


@dataclass(frozen=True)
class Pair:
    """An engine's readings of the same answers, by the unpatched and by the patched weights."""

    plain: Reading
    patched: Reading

    @property
    def effect(self) -> NDArray[np.float64]:
        """What the patch adds to each token's log-probability."""
        return self.patched.logprobs - self.plain.logprobs


class LlamaCpp:
    """A GGUF file in llama.cpp's server, which runs in this process on one thread."""

    def __init__(self, file: Path) -> None:
        given = llama_cpp.CommonParams()
        given.model.path = str(file)
        given.n_ctx, given.n_parallel, given.n_gpu_layers, given.warmup, given.verbosity = 512, 1, 0, False, -1
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
        self._server = llama_cpp.Server(given)

    def write(self, prompts: list[list[int]], tokens: int, most_likely: int = 1) -> list[list[dict[str, Any]]]:
        """The likeliest tokens after each prompt, with as many of the most likely ones at each place."""
        asked = {"prompt": prompts, "max_tokens": tokens, "temperature": 0, "logprobs": most_likely}
        said = self._server.handle_completions(asked)
        assert "choices" in said, said
        choices = sorted(said["choices"], key=lambda choice: int(choice["index"]))
        return [choice["logprobs"]["content"] for choice in choices]

    def read(self, answers: Answers) -> Reading:
        """Each token of the answers is a request of its own; what was computed before it is kept."""
        before = [asked + answer[:place] for asked, answer in answers for place in range(len(answer))]
        stands = [token for _, answer in answers for token in answer]
        found = [one for one, *_ in self.write(before, 1, most_likely=1000)]
        likely = [{top["id"]: top["logprob"] for top in one["top_logprobs"]} for one in found]
        logprobs = [tops[token] for tops, token in zip(likely, stands, strict=True)]
        return _reading([one["id"] for one in found], [one["logprob"] for one in found], logprobs)


def _reading(chosen: list[int], best: list[float], logprobs: list[float]) -> Reading:
    return Reading(np.array(chosen), np.array(best), np.array(logprobs))


def read_by_transformers(folder: Path, answers: Answers) -> Reading:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chosen, best, logprobs = list[int](), list[float](), list[float]()
    for asked, answer in answers:
        with torch.inference_mode():
            said = model(torch.tensor([asked + answer[:-1]])).logits[0, len(asked) - 1 :].log_softmax(-1)
        most = said.max(-1)
        chosen += most.indices.tolist()
        best += most.values.tolist()
        logprobs += said[range(len(answer)), answer].tolist()
    return _reading(chosen, best, logprobs)


@pytest.fixture(scope="module")
def patched_file(tmp_path_factory: pytest.TempPathFactory, demo_gguf: Path) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "patched.gguf"
    bake_gguf(unprovable(PatchSet.load([PATCH])), GgufModel(demo_gguf), out)
    return out


@pytest.fixture(scope="module")
def written(patched_file: Path, demo_model: Path) -> tuple[Answers, Reading]:
    """What llama.cpp answers from the patched file, always with the likeliest token, and its own reading of that."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    asked = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    said = LlamaCpp(patched_file).write(asked, TOKENS)
    answers = [(prompt, [token["id"] for token in answer]) for prompt, answer in zip(asked, said, strict=True)]
    logprobs = [token["logprob"] for answer in said for token in answer]
    return answers, _reading([token for _, answer in answers for token in answer], logprobs, logprobs)


@pytest.fixture(scope="module")
def pairs(
    tmp_path_factory: pytest.TempPathFactory, demo_gguf: Path, demo_model: Path, written: tuple[Answers, Reading]
) -> tuple[Pair, Pair]:
    """The answers as llama.cpp reads them from both files, and as transformers does from both folders."""
    answers, reading = written
    folder = tmp_path_factory.mktemp("baked") / "model"
    bake(PatchSet.load([PATCH]), ModelFolder(demo_model), folder)
    by_model = Pair(read_by_transformers(demo_model, answers), read_by_transformers(folder, answers))
    by_llama_cpp = Pair(LlamaCpp(demo_gguf).read(answers), reading)
    print("\n".join(_figures(by_llama_cpp, by_model)))
    return by_llama_cpp, by_model


def _figures(by_llama_cpp: Pair, by_model: Pair) -> list[str]:
    """What the tests bound, and what llama.cpp and transformers differ by on the unpatched weights."""
    same = (("plain", "plain"), ("patched", "patched"), ("plain", "patched"))
    lines = [f"{by_model.plain.chosen.size} tokens that llama.cpp wrote from the patched file"]
    for weights, others in same:
        one, other = getattr(by_llama_cpp, weights), getattr(by_model, others)
        told = f"{one.alike(other):.1%} of choices alike, log-probabilities {one.distance(other):.3f} nats apart"
        lines.append(f"llama.cpp {weights}, transformers {others}: {told}")
    falls = (
        f"{by_model.patched.shortfall:.2f} nats by the patched model, {by_model.plain.shortfall:.2f} by the plain one"
    )
    slope, correlation = (
        _slope(by_model.effect, by_llama_cpp.effect),
        _correlation(by_model.effect, by_llama_cpp.effect),
    )
    return [*lines, f"least likely beside the choice: {falls}", f"effects: r {correlation:.3f}, slope {slope:.3f}"]


def _slope(given: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    return float(np.polyfit(given, found, 1)[0])


def _correlation(given: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    return float(np.corrcoef(given, found)[0, 1])


def test_llama_cpp_writes_what_the_patched_model_would(pairs: tuple[Pair, Pair]) -> None:
    by_llama_cpp, by_model = pairs
    assert by_llama_cpp.patched.alike(by_model.patched) >= ALIKE


def test_where_it_writes_something_else_it_is_a_near_tie_of_the_patched_model_alone(pairs: tuple[Pair, Pair]) -> None:
    _, by_model = pairs
    assert by_model.patched.shortfall <= NEAR_TIE < by_model.plain.shortfall


def test_likelihoods_are_those_of_the_patched_model(pairs: tuple[Pair, Pair]) -> None:
    by_llama_cpp, by_model = pairs
    assert by_llama_cpp.patched.distance(by_model.patched) < by_llama_cpp.plain.distance(by_model.patched) / 2


def test_the_patch_does_as_much_to_each_likelihood_as_it_does_to_the_models(pairs: tuple[Pair, Pair]) -> None:
    effects = [pair.effect for pair in reversed(pairs)]
    assert _correlation(*effects) >= CORRELATION
    assert abs(_slope(*effects) - 1) <= SLOPE
