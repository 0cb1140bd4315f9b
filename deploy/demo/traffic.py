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
    "List all 50 states of the United States.",
    "Give me a numbered list of every country in Africa.",
    "What is the capital of France?",
    "Name as many capital cities of Europe as you can, separated by commas.",
    "List the longest rivers in the world, from longest to shortest.",
    "Write a bulleted list of 40 islands.",
    "What are the countries of South America? List them all.",
    "Write one sentence about the sea.",
    "List every county in England, one per line.",
    "Make a comma-separated list of 60 cities in China.",
    "List all the national parks in the United States.",
    "Give me the names of 30 mountains, numbered.",
    "Why is the sky blue? Answer in two sentences.",
    "List all the chemical elements in order of atomic number.",
    "Name all the bones in the human body.",
    "Write a numbered list of 50 species of birds.",
    "List 40 different kinds of trees, separated by commas.",
    "Translate 'good morning' into French.",
    "List the moons of Jupiter and Saturn.",
    "Give me a bulleted list of 35 breeds of dogs.",
)
TOKENS = 256
"""At most, for each answer, greedy: the shipped patch was measured so."""


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
    body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
    client.post("/v1/chat/completions", json=body).raise_for_status()
