# SPDX-License-Identifier: Apache-2.0
"""Client of one vLLM server's OpenAI-compatible API: answers with their token ids, log-probabilities, and its model."""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from vllm_surgery.client.connection import CONNECT_SECONDS, Connection
from vllm_surgery.client.protocol import ARGUMENTS_KEY, CHOICE_HEADER, CHOICE_KEY
from vllm_surgery.errors import ConflictError, ServerError, ServerUnreachableError, SurgeryError, UsageError
from vllm_surgery.evaluation.arms import STREAM_KEY
from vllm_surgery.evaluation.backends.base import TOP_LOGPROBS, Completion, EngineFacts, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_surgery.evaluation.probes import Form

ANSWER_SECONDS = 3600.0
"""A long answer behind a full queue on a slow machine; a server that is gone is noticed at once."""

_TIMEOUT = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=None)
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_EVENT = "data: "
_WORDS = ("reasoning", "content", "text")
"""What a model says in a piece of a stream."""
_STRANGE = "answers, but not as an OpenAI-compatible server does"


class Choice(NamedTuple):
    """The patch in a slot that a request asks for.

    Attributes:
        name: by which it asks.
        id: by which the answer's header says that it was given.
    """

    name: str
    id: str


class Chat(Connection):
    """Client of one server's OpenAI-compatible API.

    Args:
        url: of the server; a ``/v1`` at the end may stay.
        api_key: the key that the server was started with.
        model: which of its models; None for the first.
        form: how prompts are put to it.
    """

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None, form: Form = "chat") -> None:
        super().__init__(url, api_key)
        self._wanted, self._form = model, form
        self._path = _CHAT if form == "chat" else _COMPLETIONS
        self._facts: EngineFacts | None = None
        with self.network_errors():
            hooks = {"response": [self.bound]}
            self._http = httpx.Client(base_url=self.base, headers=self.headers, timeout=_TIMEOUT, event_hooks=hooks)

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def facts(self) -> EngineFacts:
        """The model, and what serves it. Asked once.

        Raises:
            ServerUnreachableError: nothing answers there.
            UsageError: what answers isn't a server of this kind, or has no such model.
        """
        if self._facts is None:
            self._facts = self._ask_facts()
        return self._facts

    def _ask_facts(self) -> EngineFacts:
        listed = self._ask("GET", "/v1/models")
        models = {
            str(model["id"]): model for model in _list(listed, "data") if isinstance(model, dict) and "id" in model
        }
        if not models:
            raise UsageError(f"{self.url}: {_STRANGE}")
        name = self._wanted or next(iter(models))
        if name not in models:
            raise UsageError(f"{self.url}: serves no model {name}; it has {', '.join(models)}")
        try:
            version = f"vLLM {self._ask('GET', '/version')['version']}"
        except (SurgeryError, KeyError, TypeError):
            version = "unknown"
        return EngineFacts(name, str(models[name].get("root") or name), models[name].get("max_model_len"), version)

    def complete(self, prompt: str, sampling: Mapping[str, Any]) -> Completion:
        """The answer to one request.

        Raises:
            ServerUnreachableError: it went away.
            UsageError: the model has no chat template, or the server isn't vLLM.
            ServerError: the server's refusal.
        """
        return self._completion(self._ask("POST", self._path, self._body(prompt, sampling)))

    async def complete_among(
        self, http: httpx.AsyncClient, prompt: str, sampling: Mapping[str, Any], choice: Choice | None = None
    ) -> Completion:
        """As `complete`, beside others, over a client that `open_async` gave, and under a patch of its own.

        Where the sampling asks for a stream, the answer is put together from its pieces.

        Raises:
            SurgeryError: as with `complete`.
            ConflictError: it was made under another patch.
        """
        body = _choosing(self._body(prompt, sampling), choice)
        if body.get(STREAM_KEY):
            return await self._streamed(http, body, choice)
        with self.network_errors():
            response = await http.post(self._path, json=body)
        answer = self._read(response)
        self._check(response, choice)
        return self._completion(answer)

    async def _streamed(self, http: httpx.AsyncClient, body: dict[str, Any], choice: Choice | None) -> Completion:
        """The answer as its pieces make it."""
        pieces: list[dict[str, Any]] = []
        with self.network_errors():
            async with http.stream("POST", self._path, json=body) as response:
                if not response.is_success:
                    await response.aread()
                self.check(response)
                self._check(response, choice)
                async for line in response.aiter_lines():
                    if line.startswith(_EVENT) and line != f"{_EVENT}[DONE]":
                        pieces += self._piece(line.removeprefix(_EVENT))
        said = [piece.get("delta", piece) for piece in pieces]
        whole = {name: "".join(filter(None, (part.get(name) for part in said))) for name in _WORDS}
        ended = [piece["finish_reason"] for piece in pieces if piece.get("finish_reason")]
        if not ended:
            raise ServerUnreachableError(f"{self.url}: a stream broke off")
        lists = [piece["token_ids"] for piece in pieces if isinstance(piece.get("token_ids"), list)]
        tokens = list(chain.from_iterable(lists)) if lists else None
        joined = {"message": whole, "text": whole["text"], "token_ids": tokens, "finish_reason": ended[-1]}
        return self._completion({"choices": [joined]})

    def _piece(self, event: str) -> list[dict[str, Any]]:
        """The first choice of an event, where it has one; an error that ends the stream is the server's refusal."""
        try:
            told = json.loads(event)
            if (error := told.get("error")) is not None:
                raise ServerError(int(error["code"]), str(error["type"]), f"{self.url}: {error['message']}")
            return [told["choices"][0]] if told["choices"] else []
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{self.url}: {_STRANGE}") from None

    def open_async(self, connections: int) -> httpx.AsyncClient:
        """A client for many requests at a time."""
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        hooks = {"response": [self.bound_async]}
        return httpx.AsyncClient(
            base_url=self.base, headers=self.headers, timeout=_TIMEOUT, limits=limits, event_hooks=hooks
        )

    def _body(self, prompt: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": self.facts().name, **self._asked(prompt), "return_token_ids": True, **sampling}

    def _asked(self, prompt: str) -> dict[str, Any]:
        return {"prompt": prompt} if self._form == "completion" else {"messages": [{"role": "user", "content": prompt}]}

    def _completion(self, answer: Any) -> Completion:
        try:
            choice = answer["choices"][0]
            text = str(choice["text"]) if self._form == "completion" else _said(choice["message"])
            tokens, finish = choice.get("token_ids"), str(choice["finish_reason"])
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UsageError(f"{self.url}: {_STRANGE}") from None
        if not isinstance(tokens, list):
            raise UsageError(f"{self.url}: gives no token ids (`return_token_ids`), which loops are looked for in")
        return Completion(text, tokens, finish)

    def logprobs(self, prompt: str, reply: str, choice: Choice | None = None) -> TokenLogprobs:
        """Log-probabilities of a reply, token by token, without the token that ends it.

        Raises:
            SurgeryError: as with `complete_among`.
        """
        start = self._tokens(self._asked(prompt) | ({"add_generation_prompt": True} if self._form == "chat" else {}))
        targets = self._tokens({"prompt": reply, "add_special_tokens": False})
        body = {"model": self.facts().name, "prompt": start + targets, "max_tokens": 1, "prompt_logprobs": TOP_LOGPROBS}
        answer = self._ask("POST", _COMPLETIONS, _choosing({**body, "temperature": 0}, choice), choice)
        try:
            steps = answer["choices"][0]["prompt_logprobs"][len(start) :]
            tops = [{int(token): float(entry["logprob"]) for token, entry in step.items()} for step in steps]
            return TokenLogprobs(targets, [top[token] for token, top in zip(targets, tops, strict=True)], tops)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise UsageError(f"{self.url}: gives no log-probabilities of a prompt (`prompt_logprobs`)") from None

    def _tokens(self, body: Mapping[str, Any]) -> list[int]:
        tokens = self._ask("POST", "/tokenize", {"model": self.facts().name, **body})
        return [int(token) for token in _list(tokens, "tokens")]

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, choice: Choice | None = None) -> Any:
        with self.network_errors():
            response = self._http.request(method, path, json=body)
        answer = self._read(response)
        self._check(response, choice)
        return answer

    def _check(self, response: httpx.Response, choice: Choice | None) -> None:
        """Sees that an answer was made under the patch that was asked for."""
        made_under = response.headers.get(CHOICE_HEADER)
        if choice is not None and made_under != choice.id:
            raise ConflictError(
                f"{self.url}: an answer was made under {made_under or 'a patch that it does not name'}, not under "
                f"{choice.id}: somebody else changed the slots"
            )

    def _read(self, response: httpx.Response) -> Any:
        self.check(response)
        try:
            return response.json()
        except ValueError:
            raise UsageError(f"{self.url}: {_STRANGE}") from None

    def refusal(self, response: httpx.Response) -> SurgeryError:
        """As `Connection.refusal`, with the address, since a trial has several servers; and two that are usage."""
        found = super().refusal(response)
        if "chat template" in str(found).lower():
            return UsageError(
                f"{self.url}: the model has no chat template: ask with --form completion, or start the server with "
                "--chat-template FILE"
            )
        assert isinstance(found, ServerError)
        if found.status == httpx.codes.NOT_FOUND and found.kind == "ServerError":
            return UsageError(f"{self.url}: has no {response.request.url.path}, so it isn't a server of vLLM's")
        return ServerError(found.status, found.kind, f"{self.url}: {found}")


def _choosing(body: Mapping[str, Any], choice: Choice | None) -> dict[str, Any]:
    """The body of a request that chooses a patch, beside what it says to the plugin already."""
    if choice is None:
        return dict(body)
    return {**body, ARGUMENTS_KEY: {**body.get(ARGUMENTS_KEY, {}), CHOICE_KEY: choice.name}}


def _said(message: Mapping[str, Any]) -> str:
    """What a model thought, where the server tells that apart, and what it said."""
    thought = message.get("reasoning") or message.get("reasoning_content") or ""
    return "\n".join(filter(None, [thought, message.get("content") or ""]))


def _list(answer: Any, name: str) -> list[Any]:
    found = answer.get(name) if isinstance(answer, dict) else None
    return found if isinstance(found, list) else []
