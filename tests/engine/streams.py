# SPDX-License-Identifier: Apache-2.0
"""Clients that keep streams of a server going, and remember every token."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = "model"
TIE = 1e-3
"""Two tokens whose log-probabilities differ by less may change places with the size of the batch."""


@dataclass
class Stream:
    """One request.

    Attributes:
        prompt: token ids.
        tokens: the answer's.
        times: when each came, in seconds of a monotonic clock.
        finish: why it ended; None while it runs, or where it was cut off.
        error: what went wrong.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None

    @property
    def running(self) -> bool:
        """Whether more tokens may come."""
        return self.finish is None and self.error is None


def body(prompt: list[int], tokens: int, **more: Any) -> dict[str, Any]:
    """A request for exactly that many tokens, greedy."""
    sampling = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True, "return_token_ids": True}
    return {"model": MODEL, "prompt": prompt, **sampling, **more}


def ask(url: str, prompt: list[int], tokens: int = 12, **more: Any) -> dict[str, Any]:
    """The whole answer to one request: its first choice."""
    response = httpx.post(f"{url}/v1/completions", json=body(prompt, tokens, **more), timeout=None)
    assert response.is_success, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


class Streams:
    """Keeps `number` requests going from other threads, until the block ends and those that run are done.

    Args:
        url: of the server.
        number: of requests at any time.
        tokens: that each asks for.
        seed: of the prompts.
        vocabulary: of the prompts.
        whole: whether those that run are waited for; else their clients hang up.
    """

    def __init__(
        self, url: str, number: int, tokens: int, seed: int = 0, vocabulary: int = 300, *, whole: bool = True
    ) -> None:
        self._url, self._number, self._tokens, self._whole = url, number, tokens, whole
        self._random, self._vocabulary = random.Random(seed), vocabulary
        self.done: list[Stream] = []
        self._stop = threading.Event()
        self._hang_up: Callable[[], object] | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Streams:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if not self._whole and self._hang_up is not None:
            self._hang_up()
        self._thread.join()

    @property
    def flowing(self) -> bool:
        """Whether as many streams as there should be have tokens and run, or something has gone wrong."""
        if any(stream.error for stream in self.done):
            return True
        return sum(bool(stream.tokens) and stream.running for stream in self.done) == self._number

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        async with httpx.AsyncClient(base_url=self._url, timeout=None) as client:
            streams = asyncio.gather(*(self._keep_going(client) for _ in range(self._number)))
            self._hang_up = lambda: loop.call_soon_threadsafe(streams.cancel)
            with suppress(asyncio.CancelledError):
                await streams

    async def _keep_going(self, client: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            stream = Stream([self._random.randrange(3, self._vocabulary) for _ in range(self._random.randrange(4, 24))])
            self.done.append(stream)
            try:
                await _follow(client, stream, self._tokens)
            except Exception as error:
                stream.error = f"{type(error).__name__}: {error}"


async def _follow(client: httpx.AsyncClient, stream: Stream, tokens: int) -> None:
    request = body(stream.prompt, tokens, stream=True)
    async with client.stream("POST", "/v1/completions", json=request) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(event["error"])
            choice = event["choices"][0]
            stream.tokens += choice["token_ids"] or []
            stream.times += [time.monotonic()] * len(choice["token_ids"] or [])
            stream.finish = choice["finish_reason"] or stream.finish


def longest_gap(streams: list[Stream], since: float = 0.0) -> float:
    """The longest time, in seconds, that any stream waited for a token that came after `since`."""
    gaps = [
        later - sooner
        for stream in streams
        for sooner, later in itertools.pairwise(list(stream.times))
        if later >= since
    ]
    return max(gaps, default=0.0)


def chances(url: str, stream: Stream) -> list[tuple[float, float]]:
    """For each token of an answer, with what the server holds now: its log-probability, and the most likely token's."""
    choice = ask(url, stream.prompt + stream.tokens, 1, prompt_logprobs=1)
    told = choice["prompt_logprobs"][len(stream.prompt) :]
    return [
        (step[str(token)]["logprob"], max(entry["logprob"] for entry in step.values()))
        for token, step in zip(stream.tokens, told, strict=True)
    ]
