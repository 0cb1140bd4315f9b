# SPDX-License-Identifier: Apache-2.0
"""What an engine in this process is asked, and what of its answers is kept; a real one is asked in tests/engine."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patch_data, refusal
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation import Job, Key, of_patch, of_server, unpatched
from vllm_surgery.evaluation.arms import of_name
from vllm_surgery.evaluation.backends import offline as module
from vllm_surgery.evaluation.backends.offline import ANSWERS_PER_BATCH, OfflineBackend
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from vllm_surgery.patch.patch_set import PatchSet

CURE = Patch.from_data(patch_data(name="cure"))


class FakeLlm:
    """Stands for `vllm.LLM`; remembers each batch and its template options."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Any]] = []
        self.swapped: list[list[str]] = []

    def chat(self, messages: list[Any], sampling: list[Any], *, use_tqdm: bool, chat_template_kwargs: Any) -> list[Any]:
        self.batches.append((len(messages), chat_template_kwargs))
        said = [f"{chat[0]['content']} {asked.seed}" for chat, asked in zip(messages, sampling, strict=True)]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text=one, token_ids=(1, 2), finish_reason="stop")]) for one in said
        ]

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(
            apply_chat_template=lambda messages, **_: "??", encode=lambda text, **_: [ord(letter) for letter in text]
        )

    def generate(self, prompts: list[Any], sampling: Any, *, use_tqdm: bool) -> list[Any]:
        (prompt,) = prompts
        tokens = prompt["prompt_token_ids"]
        steps = [None, *({token: SimpleNamespace(logprob=-float(token))} for token in tokens[1:])]
        return [SimpleNamespace(prompt_logprobs=steps)]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLlm:
    made = FakeLlm()

    def swap(engine: FakeLlm, patches: PatchSet) -> Any:
        engine.swapped.append([member.patch.id for member in patches.members])
        return SimpleNamespace(id=patches.id)

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    monkeypatch.setattr(module, "swap_patches", swap)
    return made


def job(seed: int, **sampling: Any) -> Job:
    return Job(Key("a", "c", "s", "p", seed), "List", {"temperature": 0, "seed": seed, **sampling})


def test_arms_are_swapped_in(llm: FakeLlm) -> None:
    backend = OfflineBackend(llm)
    assert [backend.serve(unpatched()), backend.serve(of_patch(CURE))] == ["none", CURE.id]
    assert llm.swapped == [[], [CURE.id]]


@pytest.mark.parametrize("arm", [of_name("cure"), of_server("other", "http://x")], ids=lambda arm: arm.name)
def test_what_only_a_server_has_is_refused(llm: FakeLlm, arm: Any) -> None:
    text = refusal(lambda: OfflineBackend(llm).serve(arm), UsageError)
    assert text.endswith("an engine in this process has no patch folders and no other servers")


def test_answers_come_in_batches_and_belong_to_their_jobs(llm: FakeLlm) -> None:
    jobs = [job(seed) for seed in range(ANSWERS_PER_BATCH + 1)]
    batches = list(OfflineBackend(llm).answer(jobs))
    assert [len(batch) for batch in batches] == [ANSWERS_PER_BATCH, 1]
    assert [asked for batch in batches for asked, _ in batch] == jobs
    assert all(said.text == f"List {asked.key.seed}" for batch in batches for asked, said in batch)
    assert batches[0][0][1].token_ids == [1, 2]


def test_thinking_is_asked_for_apart(llm: FakeLlm) -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    list(OfflineBackend(llm).answer([job(0), job(1, **thinking), job(2)]))
    assert llm.batches == [(2, None), (1, {"enable_thinking": True})]


def test_log_probabilities_are_the_replys_alone(llm: FakeLlm) -> None:
    logprobs = OfflineBackend(llm).logprobs("Name a color.", "ab")
    assert (logprobs.targets, logprobs.logprobs) == ([97, 98], [-97.0, -98.0])
