# SPDX-License-Identifier: Apache-2.0
"""Requests of OpenAI's API choose a patch before a handler looks at them, and their answers say which."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vllm_surgery.engine.requests.board import BOARD, Board
from vllm_surgery.engine.requests.choice import PINNED_KEY, Offer, Offered
from vllm_surgery.engine.requests.header import PatchHeader
from vllm_surgery.engine.requests.openai import check_model_hook, model_name_hook, show_models_hook

if TYPE_CHECKING:
    from collections.abc import Callable

A, B = (Offered(name, f"{name}@01234567", f"digest of {name}") for name in ("a", "b"))
OFFER = Offer({"a": A, "b": B}, {"a": 1.0})


class Models:
    """vLLM's list of models: one base, one adapter, and one whose own name has the mark in it."""

    lora_requests = ("adapter",)

    def __init__(self, offer: Offer | None) -> None:
        self.input_processor = SimpleNamespace(**({} if offer is None else {BOARD: Board(offer)}))
        self.base_model_paths = [SimpleNamespace(name="base")]

    def is_base_model(self, name: str) -> bool:
        return name in {"base", "owner@host"}

    def model_name(self, lora_request: Any = None) -> str:
        return "base" if lora_request is None else "adapter"


class Handler:
    """A route's handler, as far as it asks for the model."""

    def __init__(self, offer: Offer | None = OFFER) -> None:
        self.models = Models(offer)

    async def _check_model(self, request: Any) -> Any:
        known = self.models.is_base_model(request.model) or request.model in self.models.lora_requests
        return None if known else "unknown"

    def create_error_response(self, message: str, kind: str, status: int, param: str) -> Any:
        return SimpleNamespace(message=message, kind=kind, status=int(status), param=param)


def request(model: str = "base", **more: Any) -> Any:
    return SimpleNamespace(**{"model": model, "vllm_xargs": None, "request_id": "id", **more})


def check(given: Any, handler: Handler | None = None) -> Any:
    return asyncio.run(check_model_hook(Handler._check_model)(handler or Handler(), given))


@pytest.mark.parametrize(
    ("given", "model", "digest"),
    [
        (request("base@b"), "base", "digest of b"),
        (request("base@none"), "base", ""),
        (request("base"), "base", "digest of a"),
        (request("adapter@b"), "adapter", "digest of b"),
        (request("owner@host"), "owner@host", "digest of a"),
        (request("owner@host@b"), "owner@host", "digest of b"),
        (request(vllm_xargs={"patch": "b"}), "base", "digest of b"),
        (request("base@b", vllm_xargs={"patch": "b"}), "base", "digest of b"),
    ],
    ids=["name", "none", "default", "adapter", "mark in a name", "mark in both", "argument", "both"],
)
def test_a_request_is_pinned(given: Any, model: str, digest: str) -> None:
    assert check(given) is None
    assert (given.model, given.vllm_xargs) == (model, {PINNED_KEY: digest})


def test_other_arguments_stay() -> None:
    given = request(vllm_xargs={"patch": "b", "mine": 7})
    check(given)
    assert given.vllm_xargs == {"mine": 7, PINNED_KEY: "digest of b"}


def test_what_another_route_rendered_keeps_its_patch() -> None:
    rendered = request("base@b")
    check(rendered)
    params = SimpleNamespace(extra_args=dict(rendered.vllm_xargs))
    for _ in range(2):
        check(SimpleNamespace(model="base", sampling_params=params, request_id="other"))
        assert params.extra_args == {PINNED_KEY: "digest of b"}
    check(SimpleNamespace(model="base@none", sampling_params=params, request_id="other"))
    assert params.extra_args == {PINNED_KEY: ""}, "a name that is given now goes before"


def test_a_route_that_takes_parameters_themselves_is_pinned_there() -> None:
    params = SimpleNamespace(extra_args=None)
    check(SimpleNamespace(model="base@b", sampling_params=params, request_id="id"))
    assert params.extra_args == {PINNED_KEY: "digest of b"}


def test_a_route_without_answers_takes_the_name_of_the_unpatched_model_alone() -> None:
    counting = SimpleNamespace(model="base@none")
    assert check(counting) is None
    assert counting.model == "base"
    assert check(SimpleNamespace(model="base@b")).message == "this route can't carry a patch"


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        (request("base@absent"), 404, "The model 'base@absent' does not exist: no slot holds a patch named 'absent'"),
        (request(vllm_xargs={"patch": "absent"}), 400, "no slot holds a patch named 'absent'"),
        (request("base@a", vllm_xargs={"patch": "b"}), 400, "the model's name chooses a, vllm_xargs b"),
        (request(vllm_xargs={PINNED_KEY: "forged"}), 400, "the patch of this request is in no slot any more"),
        (request(use_beam_search=True), 400, "beam search can't carry the patch a; ask for @none"),
    ],
)
def test_what_cannot_be_is_refused(given: Any, status: int, said: str) -> None:
    error = check(given)
    assert error.status == status
    assert error.message.startswith(said)
    assert given.vllm_xargs in (None, {"patch": "absent"}, {"patch": "b"}, {PINNED_KEY: "forged"})


def test_beam_search_without_a_patch_goes_on() -> None:
    assert check(request("base@none", use_beam_search=True)) is None


def test_an_unknown_model_is_left_to_vllm() -> None:
    assert check(request("absent@a")) == "unknown"


def test_on_a_server_without_slots_nothing_is_touched() -> None:
    given = request("base", vllm_xargs={"patch": "mine"})
    assert check(given, Handler(None)) is None
    assert given.vllm_xargs == {"patch": "mine"}
    assert check(request("base@none"), Handler(None)) == "unknown"


def test_a_user_stays_in_one_share() -> None:
    shared = Handler(Offer(OFFER.patches, {"a": 0.5, "none": 0.5}))

    def drawn(**more: Any) -> str:
        given = request(**more)
        check(given, shared)
        pinned: str = given.vllm_xargs[PINNED_KEY]
        return pinned

    assert {drawn(user="u", request_id=str(number)) for number in range(20)} == {drawn(user="u")}
    assert {drawn(request_id=str(number)) for number in range(50)} == {"", "digest of a"}


class Card(SimpleNamespace):
    def model_copy(self, update: dict[str, Any]) -> Card:
        return Card(**{**vars(self), **update})


def listed(offer: Offer | None) -> list[str]:
    async def show(_models: Models) -> Any:
        return SimpleNamespace(data=[Card(id="base"), Card(id="adapter")])

    return [card.id for card in asyncio.run(show_models_hook(show)(Models(offer))).data]


def test_the_base_model_is_listed_with_every_patch() -> None:
    assert listed(OFFER) == ["base", "adapter", "base@none", "base@a", "base@b"]
    assert listed(None) == ["base", "adapter"]


def exchange(handle: Callable[[], Any], headers: tuple[tuple[bytes, bytes], ...] = ()) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that is begun after `handle` was called in a task of its own, as frameworks do."""
    sent: list[dict[str, Any]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.create_task(handle())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"own", b"1")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(PatchHeader(app)({"type": "http", "headers": list(headers)}, None, send))  # type: ignore[arg-type]
    told: list[tuple[bytes, bytes]] = sent[0]["headers"]
    return told


def test_an_answer_says_its_patch() -> None:
    hook, handler = check_model_hook(Handler._check_model), Handler()
    assert exchange(lambda: hook(handler, request("base@b"))) == [(b"own", b"1"), (b"x-surgery-patch", b"b@01234567")]


def test_a_refused_request_says_none() -> None:
    hook, handler = check_model_hook(Handler._check_model), Handler()
    assert exchange(lambda: hook(handler, request("absent@b"))) == [(b"own", b"1")]


def test_an_answer_names_the_model_as_the_request_did() -> None:
    names: list[str] = []

    async def handle() -> None:
        handler = Handler()
        await check_model_hook(Handler._check_model)(handler, request("base@b"))
        names.append(model_name_hook(Models.model_name)(handler.models))
        names.append(model_name_hook(Models.model_name)(handler.models, "an adapter"))

    exchange(handle)
    assert names == ["base@b", "adapter"]
    assert model_name_hook(Models.model_name)(Models(OFFER)) == "base"


def test_a_clients_own_id_draws_its_share() -> None:
    shared = Offer(OFFER.patches, {"a": 0.5, "none": 0.5})

    def drawn(name: bytes) -> Any:
        hook, handler = check_model_hook(Handler._check_model), Handler(shared)
        return exchange(lambda: hook(handler, request(request_id="random")), ((b"x-request-id", name),))

    ids = [b"client-%d" % number for number in range(30)]
    assert [drawn(name) for name in ids] == [drawn(name) for name in ids]
    assert len({str(drawn(name)) for name in ids}) == 2


def test_other_connections_pass() -> None:
    passed = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        passed.append(scope["type"])

    asyncio.run(PatchHeader(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]
