# SPDX-License-Identifier: Apache-2.0
"""A trial in this process, on a `vllm.LLM`: for searches that try many patches, and where no server can be had."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from vllm_surgery.client.protocol import ARGUMENTS_KEY, CHOICE_KEY
from vllm_surgery.engine.offline import (
    fill_slot,
    free_slots,
    sampling_params,
    served_model,
    slot_count,
    swap_patches,
    swap_weights,
)
from vllm_surgery.errors import CannotSwapError, SurgeryError, UsageError
from vllm_surgery.evaluation.arms import STREAM_KEY
from vllm_surgery.evaluation.backends.base import TOP_LOGPROBS, Completion, EngineFacts, Held, TokenLogprobs
from vllm_surgery.evaluation.backends.slot_names import renamed, unused_name
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import NO_PATCH, PatchSet, SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllm_surgery.evaluation.arms import Arm
    from vllm_surgery.evaluation.backends.base import Job, Text
    from vllm_surgery.evaluation.probes import Form

ANSWERS_PER_BATCH = 64
"""Answers of one arm that are made together, and lost together by a kill. Of several arms it is so many of each, as far
as `MOST_ANSWERS` goes."""
MOST_ANSWERS = 256
"""As many as an engine works on at once unless it is told otherwise."""
TEXTS_PER_BATCH = 16


class OfflineBackend:
    """An engine in this process.

    Args:
        llm: a `vllm.LLM` with the plugin on, that nobody else changes patches of.
        form: how prompts are put to it.
    """

    def __init__(self, llm: Any, form: Form = "chat") -> None:
        self._llm, self._form = llm, form
        self._choices: dict[str, str] = {}
        self._filled: list[str] = []
        self._in_weights = False

    @property
    def room(self) -> int:
        """The engine's slots."""
        return slot_count(self._llm)

    def facts(self) -> EngineFacts:
        """The engine's model."""
        return EngineFacts(*served_model(self._llm))

    def serve(self, arm: Arm) -> str | None:
        """Swaps: by a slot where there are slots, in the weights elsewhere, and where a slot can't hold the patch.

        Raises:
            UsageError: the arm is another server, or names a patch of one.
            SurgeryError: the swap is refused.
        """
        patches = _patches(arm)
        self._release()
        try:
            return swap_patches(self._llm, patches).id
        except CannotSwapError:
            if not self.room:
                raise
        swap_patches(self._llm, PatchSet())
        self._in_weights = True
        return swap_weights(self._llm, patches).id

    def hold(self, arms: Sequence[Arm]) -> Held:
        """Fills a slot for each arm with a patch."""
        self._release()
        swap_patches(self._llm, PatchSet())
        held = Held()
        for arm in arms:
            try:
                held.ids[arm.name] = self._hold(arm)
            except SurgeryError as error:
                held.refused[arm.name] = error
        return held

    def _hold(self, arm: Arm) -> str:
        patches = _patches(arm)
        if not arm.patches:
            self._choices[arm.name] = NO_PATCH
            return NO_PATCH
        (patch,) = (member.patch for member in patches.members)
        name = unused_name(patch.name, self._filled)
        fill_slot(self._llm, _alone(Patch.from_data(renamed(patch.to_data(), name), arm.name)))
        self._filled.append(name)
        self._choices[arm.name] = name
        return patches.id

    def _release(self) -> None:
        """Leaves slots and weights as they were before anything was held, or swapped into weights."""
        if self._filled:
            free_slots(self._llm, self._filled)
        self._filled, self._choices = [], {}
        if self._in_weights:
            swap_weights(self._llm, PatchSet())
            self._in_weights = False

    def answer(self, jobs: Sequence[Job]) -> Iterator[list[tuple[Job, Completion]]]:
        """Answers batches."""
        most = min(MOST_ANSWERS, ANSWERS_PER_BATCH * max(1, len(self._choices)))
        for thinking in dict.fromkeys(_template_options(job) for job in jobs):
            alike = iter([job for job in jobs if _template_options(job) == thinking])
            while batch := list(islice(alike, most)):
                yield list(zip(batch, self._answer(batch, dict(thinking)), strict=True))

    def _answer(self, jobs: Sequence[Job], template: dict[str, Any]) -> list[Completion]:
        asked = [
            {name: value for name, value in job.sampling.items() if name not in (_TEMPLATE, ARGUMENTS_KEY)}
            | self._extra(job)
            for job in jobs
        ]
        prompts, params = [job.prompt for job in jobs], [sampling_params(**sampling) for sampling in asked]
        if self._form == "completion":
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        else:
            messages, options = list(map(_messages, prompts)), template or None
            outputs = self._llm.chat(messages, params, use_tqdm=False, chat_template_kwargs=options)
        said = [output.outputs[0] for output in outputs]
        return [Completion(one.text, list(one.token_ids), str(one.finish_reason)) for one in said]

    def _extra(self, job: Job) -> dict[str, Any]:
        """What a request says to the plugin."""
        extra = job.sampling.get(ARGUMENTS_KEY, {}) | self._choice(job.key.arm).get("extra_args", {})
        return {"extra_args": extra} if extra else {}

    def _choice(self, arm: str) -> dict[str, Any]:
        """What a request says so that it is made under an arm that is held."""
        return {"extra_args": {CHOICE_KEY: self._choices[arm]}} if self._choices else {}

    def logprobs(self, texts: Sequence[Text]) -> Iterator[tuple[Text, TokenLogprobs]]:
        """Asks the engine for the log-probabilities of replies, a batch at a time."""
        left = iter(texts)
        while batch := list(islice(left, TEXTS_PER_BATCH)):
            yield from zip(batch, self._logprobs(batch), strict=True)

    def _logprobs(self, texts: Sequence[Text]) -> Iterator[TokenLogprobs]:
        pairs = [(self.tokens_before(text.prompt), self.encode(text.reply)) for text in texts]
        asked = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": TOP_LOGPROBS}
        outputs = self._llm.generate(
            [{"prompt_token_ids": before + targets} for before, targets in pairs],
            [sampling_params(**asked, **self._choice(text.arm)) for text in texts],
            use_tqdm=False,
        )
        for (before, targets), output in zip(pairs, outputs, strict=True):
            steps = output.prompt_logprobs[len(before) :]
            tops = [{token: float(entry.logprob) for token, entry in step.items()} for step in steps]
            yield TokenLogprobs(targets, [top[token] for token, top in zip(targets, tops, strict=True)], tops)

    def tokens_before(self, prompt: str) -> list[int]:
        """The tokens of a prompt, in a chat with the template around it, up to where the answer begins."""
        if self._form == "completion":
            return list(self._llm.get_tokenizer().encode(prompt))
        template = self._llm.get_tokenizer().apply_chat_template
        return self.encode(template(_messages(prompt), add_generation_prompt=True, tokenize=False))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text as it is."""
        return list(self._llm.get_tokenizer().encode(text, add_special_tokens=False))


_TEMPLATE = "chat_template_kwargs"


def _patches(arm: Arm) -> PatchSet:
    if arm.url is not None or not all(isinstance(patch, dict) for patch in arm.patches):
        raise UsageError(f"{arm.name}: an engine in this process has no patch folders and no other servers")
    if STREAM_KEY in arm.sampling:
        raise UsageError(f"{arm.name}: an engine in this process has no streams")
    patches = [Patch.from_data(patch, arm.name) for patch in arm.patches]
    return PatchSet(tuple(SourcedPatch(patch.name, patch) for patch in patches))


def _alone(patch: Patch) -> PatchSet:
    return PatchSet((SourcedPatch(patch.name, patch),))


def _template_options(job: Job) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(job.sampling.get(_TEMPLATE, {}).items()))


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]
