# SPDX-License-Identifier: Apache-2.0
"""Questions for a chat model: lists, on which small models loop, and such as they answer well."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPTS = (
    "List all the countries of Africa, numbered.",
    "What is the capital of France?",
    "Name 50 birds as bullets.",
    "List the chemical elements, separated by commas.",
    "Write one sentence about the sea.",
    "Give me a numbered list of 60 cities in the United States.",
    "List 40 words that begin with the letter B.",
    "Why is the sky blue? Answer in two sentences.",
    "Name all the rivers of Europe that you know, one per line.",
    "List 50 first names for a boy, numbered.",
    "Name 40 musical instruments in a numbered list.",
    "Translate 'good morning' into French.",
)
TOKENS = 256
"""At most, for each answer: the shipped patch was measured with as many."""


@contextmanager
def traffic(url: str, model: str, streams: int) -> Iterator[None]:
    """Keeps so many requests going until the block ends. What goes wrong with one doesn't stop the others."""
    stop = threading.Event()
    prompts = itertools.cycle(PROMPTS)
    with ThreadPoolExecutor(streams) as pool:
        for _ in range(streams):
            pool.submit(_keep_asking, url, model, prompts, stop)
        try:
            yield
        finally:
            stop.set()


def _keep_asking(url: str, model: str, prompts: Iterator[str], stop: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=300) as client:
        while not stop.is_set():
            try:
                _ask(client, model, next(prompts))
            except httpx.HTTPError:
                stop.wait(1)


def _ask(client: httpx.Client, model: str, prompt: str) -> None:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0.7}
    client.post("/v1/chat/completions", json=body).raise_for_status()
