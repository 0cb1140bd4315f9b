# SPDX-License-Identifier: Apache-2.0
"""Clients of a chat server in every way that answers can be asked for, which remember the tokens that they got."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import openai

LISTS = [
    "List 50 fruits.",
    "Name every country in Africa, one per line.",
    "List 100 Pokemon, numbered.",
    "List all US states and their capitals.",
    "List 40 dog breeds.",
    "Name 60 chemical elements.",
    "List 50 Italian cities.",
    "List every Shakespeare play.",
]
HEALTHY = ["What is the capital of France?", "Say hello.", "What is 2 + 2?", "Name one colour."]
READ_BEFORE_DISCONNECT = 4


@dataclass
class Asking:
    """A server's clients.

    Attributes:
        complete: token ids and finish reason of each answer that came to its end.
        broken_off: how many requests were given up by their clients.
    """

    url: str
    model: str
    tokens: int
    complete: list[tuple[list[int], str]] = field(default_factory=list)
    broken_off: int = 0

    def ask_everything(self) -> None:
        """Lists and healthy questions, chat and completions, streamed and not, several choices, stop strings, aborts."""
        asyncio.run(self._ask_everything())

    async def _ask_everything(self) -> None:
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=None) as client:
            self._client = client
            await asyncio.gather(
                *(self._whole(question) for question in LISTS[:4]),
                *(self._streamed(question) for question in LISTS[4:]),
                self._whole(LISTS[0], n=2, temperature=0.8, seed=1),
                self._streamed(LISTS[1], n=2, temperature=0.8, seed=2),
                self._completion("1. apple\n2. pear\n3."),
                self._whole("List 20 animals.", stop=["4."]),
                *(self._whole(question) for question in HEALTHY),
                *(self._disconnect(question) for question in LISTS[:3]),
            )

    async def _whole(self, question: str, **options: Any) -> None:
        chat = await self._client.chat.completions.create(**self._request(question, **options))
        self.complete += [(choice.token_ids, choice.finish_reason) for choice in chat.choices]

    async def _streamed(self, question: str, **options: Any) -> None:
        tokens: dict[int, list[int]] = {}
        async for chunk in await self._client.chat.completions.create(
            stream=True, **self._request(question, **options)
        ):
            for choice in chunk.choices:
                tokens.setdefault(choice.index, []).extend(getattr(choice, "token_ids", None) or ())
                if choice.finish_reason:
                    self.complete.append((tokens[choice.index], choice.finish_reason))

    async def _completion(self, prompt: str) -> None:
        extra = {"return_token_ids": True}
        done = await self._client.completions.create(
            model=self.model, prompt=prompt, max_tokens=self.tokens, temperature=0, extra_body=extra
        )
        self.complete += [(choice.token_ids, choice.finish_reason) for choice in done.choices]

    async def _disconnect(self, question: str) -> None:
        stream = await self._client.chat.completions.create(stream=True, **self._request(question))
        read = 0
        async for _ in stream:
            read += 1
            if read == READ_BEFORE_DISCONNECT:
                break
        await stream.close()
        self.broken_off += 1

    def _request(self, question: str, **options: Any) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.tokens,
            "temperature": 0,
            "extra_body": {"return_token_ids": True},
            **options,
        }
