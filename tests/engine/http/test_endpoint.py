# SPDX-License-Identifier: Apache-2.0
"""The routes, in a web application like vLLM's, with a stand-in for what carries swaps out."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI

from tests.examples import patch_data, zero
from vllm_surgery.client.protocol import PatchName, ServerState, SwapReport, SwapTimes, Unverified
from vllm_surgery.engine.http import endpoint
from vllm_surgery.engine.http.body import MAX_BODY_BYTES
from vllm_surgery.engine.http.endpoint import SurgeryEndpoint
from vllm_surgery.engine.http.routes import STATUS
from vllm_surgery.engine.plugin import ENDPOINT_GROUP, NAME
from vllm_surgery.engine.swap.transaction import ServedStatus, SwapCoordinator
from vllm_surgery.errors import (
    CannotSwapError,
    CheckpointError,
    ConflictError,
    EngineError,
    FleetError,
    MismatchError,
    MixedWeightsError,
    ServerError,
    ServerUnreachableError,
    SurgeryError,
    SwapFailedError,
    UsageError,
)
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

A, B = patch_data(zero({"1": [1]}), name="a"), patch_data(zero({"2": [2]}), name="b")
A_ID, B_ID = Patch.from_data(A).id, Patch.from_data(B).id
STATE, PATCHES = "/v1/surgery", "/v1/surgery/patches"


class FakeSwapper:
    """Serves whatever it is told to; fails, or takes its time, where it is told to."""

    def __init__(self, active: str = "none") -> None:
        self.active, self.epoch = active, 0
        self.calls: list[tuple[str, str, int | None]] = []
        self.error: Exception | None = None
        self.swap_error: Exception | None = None
        self.cannot: str | None = None
        self.unverified: list[Unverified] = []
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_end.set()

    async def status(self) -> ServedStatus:
        if self.error:
            raise self.error
        names = () if self.active == "none" else tuple(PatchName(name=n.split("@")[0], id=n) for n in [self.active])
        return ServedStatus(self.active, names, "2026-01-02T03:04:05.678+00:00", self.epoch, 5, 2, 4, self.cannot)

    async def swap(self, patches: PatchSet, *, mode: str = "keep", if_epoch: int | None = None) -> SwapReport:
        self.calls.append((patches.id, mode, if_epoch))
        self.begun.set()
        await self.may_end.wait()
        if failure := self.swap_error or self.error:
            raise failure
        previous, self.active, self.epoch = self.active, patches.id, self.epoch + 1
        times = SwapTimes(stage=1, pause=2, apply=3, verify=4, total=10)
        return SwapReport(
            id=patches.id,
            previous=previous,
            epoch=self.epoch,
            units=1,
            tensors=1,
            modules=1,
            verified=7,
            unverified=self.unverified,
            milliseconds=times,
        )

    async def check(self, patches: PatchSet, *, if_epoch: int | None = None) -> SwapReport:
        active, epoch = self.active, self.epoch
        report = await self.swap(patches, mode="check", if_epoch=if_epoch)
        self.active, self.epoch = active, epoch
        return report.model_copy(update={"epoch": epoch})

    async def undo(self, *, mode: str = "keep", if_epoch: int | None = None) -> SwapReport:
        return await self.swap(PatchSet(), mode=f"undo {mode}", if_epoch=if_epoch)


def engine(settings: dict[str, Any], model: Path, index: int = 0) -> Any:
    """What vLLM hands to the plugin, as far as it is looked at."""
    model_config = SimpleNamespace(model=str(model))
    config = SimpleNamespace(additional_config={"vllm_surgery": settings}, model_config=model_config)
    return SimpleNamespace(vllm_config=config, engine_core=SimpleNamespace(client_index=index))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "num_experts": 8}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "patches"
    made.mkdir()
    (made / "a.yaml").write_text(json.dumps(A))
    (made / "bad.yaml").write_text("version: 1\n")
    return made


class Server:
    """The web application, with the plugin in it."""

    def __init__(
        self, model: Path, swapper: FakeSwapper, settings: dict[str, Any], index: int = 0, **args: Any
    ) -> None:
        self.app, self.swapper = FastAPI(), swapper
        self.engine = engine(settings, model, index)
        args = {"host": "127.0.0.1", **args}
        self.args = Namespace(model=str(model), served_model_name=["served", "other"], **args)
        self.plugin = SurgeryEndpoint(lambda _client: swapper)

    @asynccontextmanager
    async def started(self, peer: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
        self.plugin.attach_router(self.app)
        await self.plugin.init_state(self.engine, self.app.state, self.args)
        transport = httpx.ASGITransport(self.app, client=(peer, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client
        if self.plugin._following:
            self.plugin._following.cancel()


@pytest.fixture
def ask(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., httpx.Response]:
    """Asks a server that was just started."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("VLLM_SURGERY_KEY", raising=False)

    def ask(
        method: str, path: str = STATE, *, swapper: FakeSwapper | None = None, peer: str = "127.0.0.1", **more: Any
    ) -> httpx.Response:
        settings = {"patch_dirs": [str(folder)], **more.pop("settings", {})}
        server = Server(model, swapper or FakeSwapper(), settings, **more.pop("args", {}))

        async def once() -> httpx.Response:
            async with server.started(peer) as client:
                return await client.request(method, path, **more)

        return asyncio.run(once())

    return ask


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    """Status, type and message; the body has vLLM's shape and nothing else."""
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == response.status_code
    return response.status_code, body["error"]["type"], body["error"]["message"]


def test_the_state_is_told(ask: Callable[..., httpx.Response]) -> None:
    response = ask("GET", swapper=FakeSwapper(A_ID))
    assert response.status_code == 200
    assert response.json() == {
        "active": A_ID,
        "patches": [{"name": "a", "id": A_ID}],
        "since": "2026-01-02T03:04:05.678+00:00",
        "epoch": 0,
        "units": 5,
        "tensors": 2,
        "ranks": 4,
        "desired": {"id": A_ID, "error": None},
        "watching": False,
        "slots": None,
        "on_loop": None,
        "can_swap": True,
        "cannot_swap_reason": None,
        "model": {"name": "served", "architectures": ["LlamaForCausalLM"], "layers": 4, "experts": 8},
    }


def test_a_server_that_cannot_swap_says_why(ask: Callable[..., httpx.Response]) -> None:
    swapper = FakeSwapper()
    swapper.cannot = "experts are balanced"
    state = ServerState.model_validate(ask("GET", swapper=swapper).json())
    assert (state.can_swap, state.cannot_swap_reason) == (False, "experts are balanced")


def test_patches_are_listed_broken_ones_too(ask: Callable[..., httpx.Response]) -> None:
    assert ask("GET", PATCHES).json() == {
        "patches": [
            {"name": "a", "id": A_ID, "error": None},
            {"name": "bad", "id": None, "error": "bad is refused; the server's log says why"},
        ]
    }


def test_names_and_patches_themselves_are_swapped_in(ask: Callable[..., httpx.Response]) -> None:
    swapper = FakeSwapper()
    response = ask("PUT", swapper=swapper, json={"patches": ["a", B], "mode": "abort", "if_epoch": 0})
    both = "+".join(sorted([A_ID, B_ID]))
    assert swapper.calls == [(both, "abort", 0)]
    assert response.json() == {
        "id": both,
        "previous": "none",
        "epoch": 1,
        "units": 1,
        "tensors": 1,
        "modules": 1,
        "verified": 7,
        "unverified": [],
        "milliseconds": {"stage": 1, "pause": 2, "apply": 3, "verify": 4, "total": 10},
    }


def test_a_check_changes_nothing(ask: Callable[..., httpx.Response]) -> None:
    swapper = FakeSwapper(A_ID)
    told = ask("PUT", swapper=swapper, json={"patches": [B], "check": True, "if_epoch": 0}).json()
    assert (told["id"], told["previous"], told["epoch"]) == (B_ID, A_ID, 0)
    assert (swapper.calls, swapper.active) == ([(B_ID, "check", 0)], A_ID)


def test_the_last_change_is_taken_back(ask: Callable[..., httpx.Response]) -> None:
    swapper = FakeSwapper(A_ID)
    assert ask("PUT", swapper=swapper, json={"undo": True, "mode": "wait", "if_epoch": 7}).json()["previous"] == A_ID
    assert swapper.calls == [("none", "undo wait", 7)]


def test_a_share_needs_slots(ask: Callable[..., httpx.Response]) -> None:
    assert error_of(ask("PUT", json={"patches": [A], "share": 0.5})) == (
        501,
        "CannotSwapError",
        "this server has no slots: it was started without --patch-slots",
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"undo": True, "patches": []}, "`undo` stands alone: it brings back what was there before"),
        ({"undo": True, "check": True}, "`check` goes with `patches`, or `fill`, `free` and `default`, alone"),
        ({"promote": True, "check": True}, "`check` goes with `patches`, or `fill`, `free` and `default`, alone"),
        ({"patches": [], "share": 0.5}, "`share` goes with `patches`: it says how many requests get them"),
        ({"patches": ["a"], "share": 1.0}, "share: Input should be less than 1"),
        ({"check": True}, "asks for nothing: give `patches`, or `fill`, `free` and `default`"),
    ],
)
def test_bodies_that_make_no_sense_say_why(ask: Callable[..., httpx.Response], body: Any, said: str) -> None:
    status, kind, message = error_of(ask("PUT", json=body))
    assert (status, kind, message.removeprefix("the body: ")) == (422, "UsageError", said)


def test_an_empty_list_is_the_model_as_it_is(ask: Callable[..., httpx.Response]) -> None:
    assert ask("PUT", swapper=FakeSwapper(A_ID), json={"patches": []}).json()["id"] == "none"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MismatchError("a.yaml", "edits[0]", "out of range"), 422),
        (CheckpointError("no config.json"), 422),
        (ConflictError("another swap runs"), 409),
        (CannotSwapError("experts are balanced"), 501),
        (SwapFailedError("rank 1 failed"), 500),
        (MixedWeightsError("rank 1 failed twice"), 500),
        (EngineError("ranks don't agree"), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_its_status(ask: Callable[..., httpx.Response], error: SurgeryError, status: int) -> None:
    swapper = FakeSwapper()
    swapper.swap_error = error
    assert error_of(ask("PUT", swapper=swapper, json={"patches": []})) == (status, type(error).__name__, str(error))


def test_every_error_that_there_is_has_a_status() -> None:
    kinds = [SurgeryError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    for kind in set(kinds) - {ServerError, ServerUnreachableError, FleetError}:  # These are a client's.
        assert any(base in STATUS for base in kind.__mro__ if base is not SurgeryError) or kind is SurgeryError, kind


def test_an_engine_that_does_not_tell_its_state_is_an_error(ask: Callable[..., httpx.Response]) -> None:
    swapper = FakeSwapper()
    swapper.error = EngineError("rank 1 serves none, rank 0 serves a")
    assert error_of(ask("GET", swapper=swapper))[:2] == (500, "EngineError")


def test_a_server_whose_nodes_were_started_with_different_patches_does_not_start(
    ask: Callable[..., httpx.Response], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint.logger, "propagate", True)
    swapper = FakeSwapper()
    swapper.error = MixedWeightsError("rank 1 serves none, rank 0 serves a")
    with pytest.raises(MixedWeightsError):
        ask("GET", swapper=swapper)
    assert caplog.messages[-1] == (
        "vllm-surgery refuses to serve: rank 1 serves none, rank 0 serves a; start all nodes with the same patch"
    )


@pytest.mark.parametrize(
    ("patches", "said"),
    [
        (["nowhere"], "no patch is called 'nowhere' in the server's patch folders"),
        (["../patches/a"], "no patch is called '../patches/a' in the server's patch folders"),
        (["a.yaml"], "no patch is called 'a.yaml'; leave the ending out"),
        (["bad"], "bad.yaml: is refused; the server's log says why"),
        ([{"version": 1, "name": "x"}], "patches[0]: edits: is missing"),
        (["a", A], "patches[1]: edits[0].neurons.1: neurons 1 of layer 1: already named in a.yaml, edits[0].neurons.1"),
    ],
)
def test_wrong_patches_are_refused_before_anything_is_done(
    ask: Callable[..., httpx.Response], patches: list[Any], said: str
) -> None:
    swapper = FakeSwapper()
    status, _, message = error_of(ask("PUT", swapper=swapper, json={"patches": patches}))
    assert (status, swapper.calls) == (422, [])
    assert message == said


def test_a_request_of_another_shape_is_422(ask: Callable[..., httpx.Response]) -> None:
    assert error_of(ask("PUT", json={"patches": [], "path": "/etc/passwd"}))[:2] == (422, "UsageError")


def test_a_body_that_is_no_json_is_400(ask: Callable[..., httpx.Response]) -> None:
    headers = {"content-type": "application/json"}
    assert error_of(ask("PUT", content=b"{", headers=headers))[:2] == (400, "MalformedError")


def test_another_content_type_is_415(ask: Callable[..., httpx.Response]) -> None:
    headers = {"content-type": "text/plain"}
    assert error_of(ask("PUT", content=b'{"patches": []}', headers=headers))[:2] == (415, "NotJsonError")


def test_a_body_that_is_too_long_is_413_though_it_says_that_it_is_short(ask: Callable[..., httpx.Response]) -> None:
    headers = {"content-type": "application/json", "content-length": "2"}
    response = ask("PUT", content=b" " * (MAX_BODY_BYTES + 1), headers=headers)
    assert error_of(response)[:2] == (413, "TooLargeError")


def test_patches_themselves_can_be_kept_out(ask: Callable[..., httpx.Response]) -> None:
    off = {"allow_inline": False}
    assert error_of(ask("PUT", json={"patches": [A]}, settings=off)) == (
        403,
        "ForbiddenError",
        "this server takes no patches from callers, only names (allow_inline is off)",
    )
    assert ask("PUT", json={"patches": ["a"]}, settings=off).status_code == 200


def test_other_machines_are_kept_out_before_their_body_is_read(ask: Callable[..., httpx.Response]) -> None:
    swapper = FakeSwapper()
    response = ask("PUT", swapper=swapper, peer="10.0.0.7", content=b"{")
    assert (error_of(response)[:2], swapper.calls) == ((403, "ForbiddenError"), [])


def test_other_machines_may_look(ask: Callable[..., httpx.Response]) -> None:
    assert ask("GET", peer="10.0.0.7").status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {"settings": {"allow_remote_swaps": True}},
        {"args": {"api_key": ["secret"]}, "headers": {"authorization": "Bearer secret"}},
    ],
)
def test_other_machines_are_let_in_by_the_setting_or_a_key(
    ask: Callable[..., httpx.Response], more: dict[str, Any]
) -> None:
    assert ask("PUT", peer="10.0.0.7", json={"patches": []}, **more).status_code == 200


@pytest.mark.parametrize("root_path", ["", "/api"])
@pytest.mark.parametrize(("method", "path"), [("GET", STATE), ("GET", PATCHES), ("PUT", STATE)])
def test_every_route_asks_for_the_api_key_itself(
    ask: Callable[..., httpx.Response], method: str, path: str, root_path: str
) -> None:
    swapper = FakeSwapper()
    args = {"api_key": ["secret"], "root_path": root_path}
    response = ask(method, path, swapper=swapper, args=args, json={"patches": []})
    assert error_of(response) == (401, "UnauthorizedError", "this server wants its API key")
    assert swapper.calls == []


def test_a_root_path_that_opens_the_routes_ends_the_start(ask: Callable[..., httpx.Response]) -> None:
    with pytest.raises(UsageError, match="--root-path /v1: "):
        ask("GET", args={"root_path": "/v1"})


def test_the_surgery_key_is_asked_for_by_changes_alone(
    ask: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_SURGERY_KEY", "scalpel")
    swapper = FakeSwapper()
    assert ask("GET", swapper=swapper).status_code == 200
    assert error_of(ask("PUT", swapper=swapper, json={"patches": []}))[:2] == (403, "ForbiddenError")
    assert swapper.calls == []
    headers = {"x-surgery-key": "scalpel"}
    assert ask("PUT", swapper=swapper, json={"patches": []}, headers=headers).status_code == 200


def test_a_server_whose_changes_are_off_says_so(ask: Callable[..., httpx.Response]) -> None:
    off, why = {"allow_swaps": False}, "this server takes no changes over HTTP (allow_swaps is off)"
    state = ServerState.model_validate(ask("GET", settings=off).json())
    assert (state.can_swap, state.cannot_swap_reason) == (False, why)
    assert error_of(ask("PUT", json={"patches": []}, settings=off)) == (403, "ForbiddenError", why)


def test_a_server_that_is_bound_to_all_addresses_takes_no_changes_without_a_key(
    ask: Callable[..., httpx.Response],
) -> None:
    assert error_of(ask("PUT", json={"patches": []}, args={"host": None}))[:2] == (403, "ForbiddenError")


def test_a_forwarded_address_is_not_believed(ask: Callable[..., httpx.Response]) -> None:
    response = ask("PUT", json={"patches": []}, headers={"x-forwarded-for": "127.0.0.1"})
    assert error_of(response)[:2] == (403, "ForbiddenError")


def test_a_page_of_another_site_is_kept_out(ask: Callable[..., httpx.Response]) -> None:
    response = ask("PUT", json={"patches": []}, headers={"origin": "http://evil.example"})
    assert error_of(response)[:2] == (403, "ForbiddenError")


def test_a_caller_that_goes_away_does_not_stop_a_swap(model: Path) -> None:
    async def run() -> FakeSwapper:
        swapper = FakeSwapper()
        swapper.may_end.clear()
        async with Server(model, swapper, {}).started() as client:
            asking = asyncio.create_task(client.put(STATE, json={"patches": [A]}))
            await swapper.begun.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            swapper.may_end.set()
            while swapper.active == "none":
                await asyncio.sleep(0)
        return swapper

    assert asyncio.run(run()).active == A_ID


def test_a_swap_that_fails_when_nobody_waits_any_more_is_no_loose_end(
    model: Path, recwarn: pytest.WarningsRecorder
) -> None:
    complaints: list[Any] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        swapper = FakeSwapper()
        swapper.may_end.clear()
        async with Server(model, swapper, {}).started() as client:
            asking = asyncio.create_task(client.put(STATE, json={"patches": [A]}))
            await swapper.begun.wait()
            asking.cancel()
            swapper.error = SwapFailedError("rank 1 failed")
            swapper.may_end.set()
            for _ in range(10):
                await asyncio.sleep(0)

    asyncio.run(run())
    assert complaints == []
    assert [item for item in recwarn if "never" in str(item.message)] == []


def test_a_body_that_breaks_off_changes_nothing(model: Path) -> None:
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": b'{"patches": [', "more_body": True}, {"type": "http.disconnect"}]

    async def run() -> FakeSwapper:
        swapper = FakeSwapper()
        server = Server(model, swapper, {})
        async with server.started():
            await server.app(_scope(), _receive(messages), _send(sent))
        return swapper

    assert asyncio.run(run()).calls == []
    assert sent[0]["status"] == 400


def _scope() -> dict[str, Any]:
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    common = {
        "http_version": "1.1",
        "scheme": "http",
        "query_string": b"",
        "root_path": "",
        "server": ("localhost", 80),
    }
    place = {"type": "http", "method": "PUT", "path": STATE, "raw_path": STATE.encode()}
    return {**common, **place, "headers": headers, "client": ("127.0.0.1", 1234)}


def _receive(messages: list[dict[str, Any]]) -> Callable[[], Any]:
    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return receive


def _send(sent: list[dict[str, Any]]) -> Callable[[Any], Any]:
    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    return send


def watching(model: Path, file: Path, swapper: FakeSwapper, index: int = 0) -> Server:
    return Server(model, swapper, {"patches": [A], "watch": [str(file)]}, index)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "wanted.yaml"
    made.write_text(json.dumps(A))
    return made


SECRET = "s3cr3t"


@pytest.mark.parametrize("content", [f"version: {SECRET}\n", f"{SECRET}: x\n", f"root:{SECRET}:0\n", f"a: [{SECRET}"])
def test_no_answer_quotes_a_file_or_says_where_it_is(
    model: Path, folder: Path, file: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[httpx.Response]:
        for each in (file, folder / "a.yaml"):
            each.write_text(content)
        settings = {"patches": [A], "watch": [str(file)], "patch_dirs": [str(folder)]}
        server = Server(model, FakeSwapper(A_ID), settings)
        async with server.started() as client:
            await server.app.state.vllm_surgery_service.watcher.look()
            put = client.put(STATE, json={"patches": ["a"]})
            return [await client.get(STATE), await client.get(PATCHES), await put]

    for answer in asyncio.run(run()):
        assert SECRET not in answer.text
        assert str(file.parent) not in answer.text
        assert "the server's log says why" in answer.text
    assert "wanted.yaml" in caplog.text
    assert "a.yaml" in caplog.text


def test_errors_of_workers_say_no_folder(ask: Callable[..., httpx.Response]) -> None:
    swapper = FakeSwapper()
    swapper.error = CheckpointError("/data/models/llama/config.json: can't be read as JSON")
    assert error_of(ask("PUT", swapper=swapper, json={"patches": []}))[2] == "config.json: can't be read as JSON"
    swapper.error, swapper.cannot = None, "rank 0: '/data/models/llama/x.safetensors' is gone"
    assert ask("GET", swapper=swapper).json()["cannot_swap_reason"] == "rank 0: 'x.safetensors' is gone"


@pytest.mark.parametrize("index", [0, 1])
def test_what_the_files_ask_for_is_told_by_every_process(model: Path, file: Path, index: int) -> None:
    async def run() -> list[ServerState]:
        states = []
        async with watching(model, file, FakeSwapper(A_ID), index).started() as client:
            for content in (json.dumps(A), json.dumps(B), "version: 1\n"):
                file.write_text(content)
                states.append(ServerState.model_validate((await client.get(STATE)).json()))
        return states

    states = asyncio.run(run())
    assert all(state.watching for state in states)
    assert [state.desired.id for state in states] == [A_ID, B_ID, None]
    assert [state.desired.error for state in states] == [
        None,
        None,
        "wanted.yaml is refused; the server's log says why",
    ]
    assert {state.active for state in states} == {A_ID}


def test_one_process_alone_follows_the_files(model: Path, file: Path) -> None:
    async def follows(index: int) -> bool:
        server = watching(model, file, FakeSwapper(A_ID), index)
        async with server.started():
            return server.plugin._following is not None

    assert [asyncio.run(follows(index)) for index in (0, 1, 2)] == [True, False, False]


def test_a_swap_to_the_files_that_failed_is_told(model: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(json.dumps(B))

    async def run() -> ServerState:
        swapper = FakeSwapper(A_ID)
        server = watching(model, file, swapper)
        async with server.started() as client:
            watcher = server.app.state.vllm_surgery_service.watcher
            swapper.error = SwapFailedError("rank 1 failed")
            for _ in range(2):
                await watcher.look()
            swapper.error = None
            return ServerState.model_validate((await client.get(STATE)).json())

    desired = asyncio.run(run()).desired
    assert (desired.id, desired.error) == (B_ID, "rank 1 failed")


def test_the_routes_describe_themselves(ask: Callable[..., httpx.Response]) -> None:
    described = ask("GET", "/openapi.json").json()
    put, get = described["paths"][STATE]["put"], described["paths"][STATE]["get"]
    assert set(put["responses"]) == {"200", "400", "401", "403", "409", "413", "415", "422", "500", "501"}
    assert all(answer["description"] for answer in (*put["responses"].values(), *get["responses"].values()))
    assert set(put["requestBody"]["content"]["application/json"]["schema"]["properties"]) == {
        "patches",
        "fill",
        "free",
        "default",
        "promote",
        "share",
        "undo",
        "check",
        "if_epoch",
        "mode",
    }
    assert put["responses"]["409"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    assert get["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/ServerState")
    assert PATCHES in described["paths"]


def test_a_server_without_an_engine_says_so(model: Path) -> None:
    async def run() -> list[httpx.Response]:
        server = Server(model, FakeSwapper(), {})
        server.engine = None
        async with server.started() as client:
            asked = [client.get(STATE), client.get(PATCHES), client.put(STATE, json={"patches": []})]
            return [await response for response in asked]

    for response in asyncio.run(run()):
        assert error_of(response) == (501, "CannotSwapError", "this server has no engine to operate on")


def test_disabled_there_are_no_routes(ask: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SURGERY_DISABLE", "1")
    assert [ask("GET").status_code, ask("PUT", json={"patches": []}).status_code] == [404, 404]


def test_a_patch_folder_that_is_not_there_stops_the_server(model: Path) -> None:
    async def run() -> None:
        async with Server(model, FakeSwapper(), {"patch_dirs": ["/nowhere"]}).started():
            pass

    with pytest.raises(UsageError, match=r"^/nowhere: no such folder$"):
        asyncio.run(run())


def test_it_is_a_plugin_as_vllm_wants_one() -> None:
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    plugin = SurgeryEndpoint()
    assert isinstance(plugin, EndpointPlugin)
    assert (plugin.name, plugin.required_tasks) == (NAME, None)
    assert isinstance(plugin._make_swapper(SimpleNamespace()), SwapCoordinator)


def test_vllm_still_has_the_group() -> None:
    from vllm.plugins import ENDPOINT_PLUGINS_GROUP

    assert ENDPOINT_PLUGINS_GROUP == ENDPOINT_GROUP


def test_vllm_still_numbers_its_servers_processes() -> None:
    import inspect

    from vllm.v1.engine.core_client import AsyncMPClient, MPClient

    assert "client_index" in inspect.signature(AsyncMPClient.__init__).parameters
    assert "self.client_index" in inspect.getsource(MPClient) + inspect.getsource(AsyncMPClient)
