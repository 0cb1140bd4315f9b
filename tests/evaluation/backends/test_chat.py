# SPDX-License-Identifier: Apache-2.0
"""Streams of a server's answers, put together from their pieces; and what is no stream of vLLM's."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from vllm_surgery.errors import ServerError, ServerUnreachableError, SurgeryError, UsageError
from vllm_surgery.evaluation.backends.base import Completion
from vllm_surgery.evaluation.backends.chat import Chat

if TYPE_CHECKING:
    from vllm_surgery.evaluation.probes import Form

URL = "http://here"
ENDED = {"code": 500, "type": "InternalServerError", "message": "the engine has ended"}
STREAMED = {"stream": True, "max_tokens": 9}


def asked(status: int, content: str, form: Form = "chat") -> Completion:
    """What is made of an answer's body."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=content)

    async def ask() -> Completion:
        async with httpx.AsyncClient(base_url=URL, transport=httpx.MockTransport(answer)) as http:
            return await chat.complete_among(http, "Hello", STREAMED)

    chat = Chat(URL, model="m", form=form)
    chat._ask = lambda *_, **__: {"data": [{"id": "m"}], "version": "0"}  # type: ignore[method-assign]
    try:
        return asyncio.run(ask())
    finally:
        chat.close()


def events(*pieces: dict[str, Any]) -> str:
    said = [json.dumps({"choices": [piece]}) for piece in pieces]
    return "".join(f"data: {each}\n\n" for each in [*said, '{"choices": [], "usage": {}}', "[DONE]"])


def test_what_was_thought_and_said_and_all_tokens_are_put_together() -> None:
    body = events(
        {"delta": {"role": "assistant", "content": ""}},
        {"delta": {"reasoning": "So"}, "token_ids": [1, 2]},
        {"delta": {"content": "He"}, "token_ids": [3]},
        {"delta": {"content": "llo"}, "token_ids": [4, 5], "finish_reason": "length"},
    )
    assert asked(200, body) == Completion("So\nHello", [1, 2, 3, 4, 5], "length")


def test_text_that_goes_on_is_put_together() -> None:
    body = events({"text": "He", "token_ids": [3]}, {"text": "llo", "token_ids": [4], "finish_reason": "stop"})
    assert asked(200, body, "completion") == Completion("Hello", [3, 4], "stop")


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (200, events({"delta": {"content": "He"}, "token_ids": [3]}), ServerUnreachableError, "a stream broke off"),
        (200, "data: {\n\n", UsageError, "answers, but not as an OpenAI-compatible server does"),
        (200, f"data: {json.dumps({'error': ENDED})}\n\n", ServerError, "here: the engine has ended"),
        (200, 'data: {"error": {"message": "x"}}\n\n', UsageError, "answers, but not as an OpenAI-compatible"),
        (200, "data: []\n\n", UsageError, "answers, but not as an OpenAI-compatible"),
        (200, events({"delta": {}, "finish_reason": "stop"}), UsageError, "gives no token ids (`return_token_ids`)"),
        (400, '{"error": {"type": "BadRequest", "message": "no"}}', ServerError, "the server refused: no"),
    ],
)
def test_what_is_no_answer_is_said_in_one_line(status: int, body: str, kind: type[SurgeryError], reason: str) -> None:
    with pytest.raises(kind) as error:
        asked(status, body)
    assert reason in str(error.value)
    assert str(error.value).startswith(f"{URL}: ")
