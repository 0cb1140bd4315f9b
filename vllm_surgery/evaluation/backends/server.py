# SPDX-License-Identifier: Apache-2.0
"""A trial against running servers: arms in slots or swapped in live, and every answer is known to be of its arm."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeAlias

from vllm_surgery.client.client import SurgeryClient
from vllm_surgery.errors import CannotSwapError, ConflictError, PluginMissingError, SurgeryError, UsageError
from vllm_surgery.evaluation.arms import STREAM_KEY
from vllm_surgery.evaluation.backends.chat import Chat
from vllm_surgery.evaluation.backends.server_slots import ServerSlots
from vllm_surgery.patch.patch_set import NO_PATCH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import httpx

    from vllm_surgery.client.protocol import ServerState
    from vllm_surgery.evaluation.arms import Arm
    from vllm_surgery.evaluation.backends.base import Completion, EngineFacts, Held, Job, Text, TokenLogprobs
    from vllm_surgery.evaluation.probes import Form

    AnswerTask: TypeAlias = asyncio.Task[tuple[Job, Completion]]

ANSWERS_PER_EPOCH_CHECK, SECONDS_PER_EPOCH_CHECK = 16, 30.0
"""Answers, or seconds if there is one by then, after which the server is asked whether it still serves the arm. What a
kill loses is the smaller of both."""


_LEAST = {"max_tokens": 1, "temperature": 0}
"""What is sampled of a request whose answer nobody needs."""


class HttpBackend:
    """A trial's own server, and other servers that are arms.

    Args:
        url: the trial's own.
        api_key: for all of them.
        model: which of its models; None for the first.
        concurrency: requests at the same time.
        surgery_key: what swaps on the trial's own ask for, where it was started with one.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        model: str | None = None,
        concurrency: int = 32,
        surgery_key: str | None = None,
    ) -> None:
        self._url, self._key, self._model, self._concurrency = url, api_key, model, concurrency
        self._form: Form = "chat"
        self._surgery = SurgeryClient(url, api_key, surgery_key)
        self._chats: dict[str, Chat] = {}
        self._chat = self._chat_at(url)
        self._epoch: int | None = None
        self._before: ServerState | None = None
        self._swapped = False
        self._slots = ServerSlots(self._surgery)

    @property
    def room(self) -> int:
        """The slots of the trial's own server that nobody uses; known once `require` has looked."""
        return self._slots.room

    def keep_notes(self, file: Path) -> None:
        """From now on a file says what is put into slots, so that whoever goes on after a kill takes it out."""
        self._slots.notes = file

    def put_prompts_as(self, form: Form) -> None:
        """From now on prompts are put to all servers in this form; they are chats unless it is called."""
        self.close()
        self._form, self._chats = form, {}
        self._chat = self._chat_at(self._url)

    def facts(self, url: str | None = None) -> EngineFacts:
        """The model of the trial's own server, or of another one."""
        return self._chat_at(url or self._url).facts()

    def require(self, arms: Sequence[Arm]) -> None:
        """Asks for everything that the arms will need, before anything is swapped.

        Raises:
            CannotSwapError: the server can't exchange patches, with its reason.
            SurgeryError: a server or the model in it isn't what it should be.
        """
        self.facts()  # What is wrong with the server as such is said before what it lacks.
        own = [arm for arm in arms if arm.url is None]
        self._before = self._state(needed=any(arm.patches or arm.kind == "rescue" for arm in own))
        state = self._before
        if state is not None and not state.can_swap and {arm.id for arm in own} != {state.active}:
            raise CannotSwapError(f"{self._url}: can't swap patches: {state.cannot_swap_reason}")
        if any(arm.kind == "rescue" for arm in own) and (state is None or state.on_loop is None):
            raise UsageError(f"{self._url}: rescues no answers: start it with --on-loop, of which observe is enough")
        self._slots.look(state)
        for chat in [self._chat, *(self._chat_at(arm.url) for arm in arms if arm.url)]:
            chat.complete("Hello", _LEAST)
        for arm in own:
            if arm.kind == "rescue":  # Its server may not allow what it asks for.
                self._chat.complete("Hello", _LEAST | arm.sampling | {STREAM_KEY: False})

    def serve(self, arm: Arm) -> str | None:
        """Swaps, or turns to another server."""
        self._slots.release()
        self._chat = self._chat_at(arm.url or self._url)
        self._epoch = None
        if arm.url is not None or self._before is None:
            return None
        state = self._surgery.state()
        active, self._epoch = state.active, state.epoch
        if arm.id is None or active != arm.id:
            report = self._surgery.swap(arm.patches)
            self._swapped = True
            active, self._epoch = report.id, report.epoch
        if arm.id not in {None, active}:
            raise UsageError(f"{arm.name}: the server serves {active} instead of {arm.id}")
        return active

    def hold(self, arms: Sequence[Arm]) -> Held:
        """Fills slots. The server's default stays what it is, so nobody else's requests change.

        Raises:
            SurgeryError: the server is gone.
        """
        self._chat, self._epoch = self._chat_at(self._url), None
        return self._slots.hold(arms)

    def restore(self) -> str | None:
        """Frees what was filled, and swaps back to what was served before. Gives a warning where it can't."""
        self._slots.release()
        before = self._before
        if before is None or not self._swapped or self._surgery.state().active == before.active:
            return None
        names = [patch.name for patch in before.patches]
        known = {patch.name: patch.id for patch in self._surgery.patches().patches} if names else {}
        if all(known.get(patch.name) == patch.id for patch in before.patches):
            self._surgery.swap(names)
            return None
        self._surgery.swap([])
        return f"{self._url} served {before.active} before, which isn't in its patch folders; now it serves {NO_PATCH}"

    def answer(self, jobs: Sequence[Job]) -> Iterator[list[tuple[Job, Completion]]]:
        """Asks several at a time. Those that came before an error are still given."""
        done: list[tuple[Job, Completion]] = []
        settled = time.monotonic()
        error: SurgeryError | None = None
        left: set[AnswerTask] = set()
        with asyncio.Runner() as runner:
            http = self._chat.open_async(self._concurrency)
            try:
                left = runner.run(self._start(http, jobs))
                while left and error is None:
                    ended, left = runner.run(_first(left))
                    done += [task.result() for task in ended if task.exception() is None]
                    error = next((_surgery_error(task) for task in ended if task.exception() is not None), None)
                    late = time.monotonic() - settled >= SECONDS_PER_EPOCH_CHECK
                    if len(done) >= ANSWERS_PER_EPOCH_CHECK or (done and late):
                        yield self._settled(done)
                        done, settled = [], time.monotonic()
            finally:
                runner.run(_give_up(left, http))
        if done:
            yield self._settled(done)
        if error is not None:
            raise error

    async def _start(self, http: httpx.AsyncClient, jobs: Sequence[Job]) -> set[AnswerTask]:
        free = asyncio.Semaphore(self._concurrency)
        return {asyncio.create_task(self._one(http, free, job)) for job in jobs}

    async def _one(self, http: httpx.AsyncClient, free: asyncio.Semaphore, job: Job) -> tuple[Job, Completion]:
        async with free:
            choice = self._slots.choice(job.key.arm)
            return job, await self._chat.complete_among(http, job.prompt, job.sampling, choice)

    def logprobs(self, texts: Sequence[Text]) -> Iterator[tuple[Text, TokenLogprobs]]:
        """Asks for the log-probabilities of replies, one after another."""
        for text in texts:
            logprobs = self._chat.logprobs(text.prompt, text.reply, self._slots.choice(text.arm))
            self._settled([])
            yield text, logprobs

    def close(self) -> None:
        """Closes all connections."""
        for chat in self._chats.values():
            chat.close()

    def _state(self, *, needed: bool) -> ServerState | None:
        """The server's state; None where it has no vllm-surgery and none is needed."""
        try:
            return self._surgery.state()
        except PluginMissingError:
            if needed:
                raise
            return None

    def _settled(self, done: list[tuple[Job, Completion]]) -> list[tuple[Job, Completion]]:
        """The answers, if what is served hasn't changed since the arm came in."""
        if self._epoch is not None and (now := self._surgery.state().epoch) != self._epoch:
            raise ConflictError(f"{self._url}: somebody else swapped patches during the trial (epoch {now})")
        return done

    def _chat_at(self, url: str) -> Chat:
        if url not in self._chats:
            self._chats[url] = Chat(url, self._key, self._model if url == self._url else None, self._form)
        return self._chats[url]


async def _first(tasks: set[AnswerTask]) -> tuple[set[AnswerTask], set[AnswerTask]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _give_up(left: set[AnswerTask], http: httpx.AsyncClient) -> None:
    """Ends requests, so that the server stops working on them; what becomes of them is of no interest any more."""
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)  # Else asyncio complains of errors that nobody looked at.
    await http.aclose()


def _surgery_error(task: AnswerTask) -> SurgeryError:
    """The error of a request that a user can understand; others go on as they are."""
    error = task.exception()
    if not isinstance(error, SurgeryError):
        assert error is not None
        raise error
    return error
