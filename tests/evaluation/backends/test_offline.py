# SPDX-License-Identifier: Apache-2.0
"""What an engine in this process is asked, and what of its answers is kept; a real one is asked in tests/engine."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patch_data, refusal
from vllm_surgery.errors import CannotSwapError, UsageError
from vllm_surgery.evaluation import Job, Key, of_patch, of_penalty, of_rescue, of_server, unpatched
from vllm_surgery.evaluation.arms import of_name
from vllm_surgery.evaluation.backends import offline as module
from vllm_surgery.evaluation.backends.base import Text
from vllm_surgery.evaluation.backends.offline import ANSWERS_PER_BATCH, TEXTS_PER_BATCH, OfflineBackend
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from vllm_surgery.evaluation import Arm
    from vllm_surgery.evaluation.backends.base import Held
    from vllm_surgery.patch.patch_set import PatchSet

CURE = Patch.from_data(patch_data(name="cure"))


class FakeLlm:
    """Stands for `vllm.LLM`; remembers each batch and its template options."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Any]] = []
        self.swapped: list[list[str]] = []
        self.prompts: list[int] = []
        self.chosen: list[str] = []
        self.sampled: list[Any] = []
        self.room, self.refused = 0, set[str]()
        self.slots: dict[str, Patch] = {}
        self.in_weights: list[list[str]] = []

    def chat(self, messages: list[Any], sampling: list[Any], *, use_tqdm: bool, chat_template_kwargs: Any) -> list[Any]:
        self.batches.append((len(messages), chat_template_kwargs))
        self._note(sampling)
        said = [f"{chat[0]['content']} {asked.seed}" for chat, asked in zip(messages, sampling, strict=True)]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text=one, token_ids=(1, 2), finish_reason="stop")]) for one in said
        ]

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(
            apply_chat_template=lambda messages, **_: "??", encode=lambda text, **_: [ord(letter) for letter in text]
        )

    def _note(self, sampling: list[Any]) -> None:
        self.sampled += sampling
        self.chosen += [one.extra_args["patch"] for one in sampling if hasattr(one, "extra_args")]

    def generate(self, prompts: list[Any], sampling: list[Any], *, use_tqdm: bool) -> list[Any]:
        self.prompts.append(len(prompts))
        self._note(sampling)
        if isinstance(prompts[0], str):
            said = [SimpleNamespace(text=one, token_ids=(1,), finish_reason="stop") for one in prompts]
            return [SimpleNamespace(outputs=[one]) for one in said]
        return [SimpleNamespace(prompt_logprobs=self._steps(prompt["prompt_token_ids"])) for prompt in prompts]

    def _steps(self, tokens: list[int]) -> list[Any]:
        return [None, *({token: SimpleNamespace(logprob=-float(token))} for token in tokens[1:])]

    def fill(self, patches: PatchSet) -> None:
        (patch,) = (member.patch for member in patches.members)
        if patch.digest in self.refused:
            raise CannotSwapError("no place for the gains")
        assert patch.name not in self.slots
        assert len(self.slots) < self.room
        self.slots[patch.name] = patch


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLlm:
    made = FakeLlm()

    def swap(engine: FakeLlm, patches: PatchSet) -> Any:
        if {member.patch.digest for member in patches.members} & engine.refused:
            raise CannotSwapError("no place for the gains")
        engine.swapped.append([member.patch.id for member in patches.members])
        return SimpleNamespace(id=patches.id)

    def swap_weights(engine: FakeLlm, patches: PatchSet) -> Any:
        engine.in_weights.append([member.patch.id for member in patches.members])
        return SimpleNamespace(id=patches.id)

    def free(engine: FakeLlm, names: list[str]) -> None:
        for name in names:
            del engine.slots[name]

    monkeypatch.setattr(module, "swap_weights", swap_weights)
    monkeypatch.setattr(module, "slot_count", lambda engine: engine.room)
    monkeypatch.setattr(module, "fill_slot", FakeLlm.fill)
    monkeypatch.setattr(module, "free_slots", free)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    monkeypatch.setattr(module, "swap_patches", swap)
    return made


def job(seed: int, **sampling: Any) -> Job:
    return Job(Key("a", "c", "s", "p", seed), "List", {"temperature": 0, "seed": seed, **sampling})


def test_a_model_that_completes_is_given_texts_to_go_on_with(llm: FakeLlm) -> None:
    backend = OfflineBackend(llm, "completion")
    ((_, answered),) = next(iter(backend.answer([job(0)])))
    assert (answered.text, llm.batches) == ("List", [])
    assert backend.tokens_before("ab") == [97, 98]


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
    text = Text("a", "s", "p", "Name a color.", "ab")
    ((asked, logprobs),) = OfflineBackend(llm).logprobs([text])
    assert asked is text
    assert (logprobs.targets, logprobs.logprobs) == ([97, 98], [-97.0, -98.0])


def test_log_probabilities_are_asked_for_in_batches(llm: FakeLlm) -> None:
    texts = [Text("a", "s", str(number), "Name a color.", "ab") for number in range(TEXTS_PER_BATCH + 1)]
    assert [text for text, _ in OfflineBackend(llm).logprobs(texts)] == texts
    assert llm.prompts == [TEXTS_PER_BATCH, 1]


SHAM = Patch.from_data({**patch_data(name="cure"), "edits": [{"op": "zero", "neurons": {"1": [3]}}]})


def held_by(llm: FakeLlm, *arms: Arm, room: int = 3) -> tuple[OfflineBackend, Held]:
    llm.room = room
    backend = OfflineBackend(llm)
    return backend, backend.hold(arms)


def test_without_slots_there_is_no_room(llm: FakeLlm) -> None:
    assert OfflineBackend(llm).room == 0


def test_arms_are_held_in_slots_side_by_side_and_each_job_chooses_its_own(llm: FakeLlm) -> None:
    backend, held = held_by(llm, unpatched(), of_patch(CURE), of_penalty(1.2))
    assert (backend.room, held.ids) == (3, {"unpatched": "none", "cure": CURE.id, "penalty-1.2": "none"})
    jobs = [replace(job(0), key=job(0).key._replace(arm=name)) for name in held.ids]
    list(backend.answer(jobs))
    list(backend.logprobs([Text(name, "s", "p", "?", "ab") for name in held.ids]))
    assert llm.chosen == ["none", "cure", "none"] * 2
    assert llm.swapped == [[]]


def test_what_an_arm_says_to_the_plugin_goes_beside_the_choice(llm: FakeLlm) -> None:
    backend, _ = held_by(llm, unpatched(), of_patch(CURE))
    asked = job(0)
    sampling = {**asked.sampling, **of_rescue("stop").sampling}
    list(backend.answer([replace(asked, key=asked.key._replace(arm="cure"), sampling=sampling)]))
    assert llm.sampled[-1].extra_args == {"on_loop": "stop", "patch": "cure"}


def test_two_patches_of_one_name_get_slots_of_their_own(llm: FakeLlm) -> None:
    other = replace(of_patch(SHAM), name="other")
    _, held = held_by(llm, of_patch(CURE), other)
    assert held.ids == {"cure": CURE.id, "other": SHAM.id}
    assert list(llm.slots) == ["cure", "cure-2"]


def test_an_arm_that_no_slot_can_hold_takes_no_other_with_it(llm: FakeLlm) -> None:
    llm.refused = {CURE.digest}
    backend, held = held_by(llm, of_patch(CURE), replace(of_patch(SHAM), name="other"))
    assert list(held.ids) == ["other"]
    assert str(held.refused["cure"]) == "no place for the gains"
    assert backend.serve(of_patch(CURE)) == CURE.id
    assert llm.in_weights == [[CURE.id]]
    assert llm.slots == {}
    backend.hold([unpatched()])
    assert llm.in_weights == [[CURE.id], []]


def test_without_slots_a_refused_swap_is_refused(llm: FakeLlm) -> None:
    llm.refused = {CURE.digest}
    with pytest.raises(CannotSwapError, match="no place for the gains"):
        OfflineBackend(llm).serve(of_patch(CURE))
    assert llm.in_weights == []


def test_slots_are_free_again_for_the_next_arms(llm: FakeLlm) -> None:
    backend, _ = held_by(llm, of_patch(CURE))
    backend.hold([replace(of_patch(SHAM), name="other")])
    assert [patch.digest for patch in llm.slots.values()] == [SHAM.digest]
    backend.serve(unpatched())
    assert llm.slots == {}


def test_several_arms_have_larger_batches(llm: FakeLlm) -> None:
    backend, _ = held_by(llm, unpatched(), of_patch(CURE))
    jobs = [replace(job(seed), key=job(seed).key._replace(arm="cure")) for seed in range(2 * ANSWERS_PER_BATCH + 1)]
    assert [len(batch) for batch in backend.answer(jobs)] == [2 * ANSWERS_PER_BATCH, 1]
