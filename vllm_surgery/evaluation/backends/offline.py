# SPDX-License-Identifier: Apache-2.0
"""A trial in this process, on a `vllm.LLM`: for searches that try many patches, and where no server can be had."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.offline import sampling_params, served_model, swap_patches
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.backends.base import TOP_LOGPROBS, Completion, EngineFacts, TokenLogprobs
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllm_surgery.evaluation.arms import Arm
    from vllm_surgery.evaluation.backends.base import Job

ANSWERS_PER_BATCH = 64
"""Answers that are made together, and lost together by a kill."""


class OfflineBackend:
    """An engine in this process.

    Args:
        llm: a `vllm.LLM` with the plugin on, that nobody else swaps patches of.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def facts(self) -> EngineFacts:
        """The engine's model."""
        return EngineFacts(*served_model(self._llm))

    def serve(self, arm: Arm) -> str | None:
        """Swaps.

        Raises:
            UsageError: the arm is another server, or names a patch of one.
            SurgeryError: the swap is refused.
        """
        if arm.url is not None or not all(isinstance(patch, dict) for patch in arm.patches):
            raise UsageError(f"{arm.name}: an engine in this process has no patch folders and no other servers")
        patches = [Patch.from_data(patch, arm.name) for patch in arm.patches]
        return swap_patches(self._llm, PatchSet(tuple(SourcedPatch(patch.name, patch) for patch in patches))).id

    def answer(self, jobs: Sequence[Job]) -> Iterator[list[tuple[Job, Completion]]]:
        """Answers batches."""
        for thinking in dict.fromkeys(_template_options(job) for job in jobs):
            alike = iter([job for job in jobs if _template_options(job) == thinking])
            while batch := list(islice(alike, ANSWERS_PER_BATCH)):
                yield list(zip(batch, self._answer(batch, dict(thinking)), strict=True))

    def _answer(self, jobs: Sequence[Job], template: dict[str, Any]) -> list[Completion]:
        asked = [{name: value for name, value in job.sampling.items() if name != _TEMPLATE} for job in jobs]
        outputs = self._llm.chat(
            [_messages(job.prompt) for job in jobs],
            [sampling_params(**sampling) for sampling in asked],
            use_tqdm=False,
            chat_template_kwargs=template or None,
        )
        said = [output.outputs[0] for output in outputs]
        return [Completion(one.text, list(one.token_ids), str(one.finish_reason)) for one in said]

    def logprobs(self, prompt: str, reply: str) -> TokenLogprobs:
        """Asks the engine for the log-probabilities of a reply."""
        before, targets = self.tokens_before(prompt), self.encode(reply)
        sampling = sampling_params(max_tokens=1, temperature=0, prompt_logprobs=TOP_LOGPROBS)
        (output,) = self._llm.generate([{"prompt_token_ids": before + targets}], sampling, use_tqdm=False)
        steps = output.prompt_logprobs[len(before) :]
        tops = [{token: float(entry.logprob) for token, entry in step.items()} for step in steps]
        return TokenLogprobs(targets, [top[token] for token, top in zip(targets, tops, strict=True)], tops)

    def tokens_before(self, prompt: str) -> list[int]:
        """The tokens of a prompt with the chat template around it, up to where the answer begins."""
        template = self._llm.get_tokenizer().apply_chat_template
        return self.encode(template(_messages(prompt), add_generation_prompt=True, tokenize=False))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text as it is."""
        return list(self._llm.get_tokenizer().encode(text, add_special_tokens=False))


_TEMPLATE = "chat_template_kwargs"


def _template_options(job: Job) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(job.sampling.get(_TEMPLATE, {}).items()))


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]
