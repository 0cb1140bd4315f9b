# SPDX-License-Identifier: Apache-2.0
"""The header that names the patch of an answer: where requests choose one, and where the weights hold it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vllm_surgery.engine import weight_version
from vllm_surgery.engine.requests.choice import Offered
from vllm_surgery.engine.requests.header import PatchHeader, note_choice
from vllm_surgery.engine.weight_version import note_version, see_version, served_patch

CHOSEN = Offered("a", "a@01234567", "digest of a")


def answer(app: Any, **scope: Any) -> list[bytes]:
    """The values of the header in the answer to one request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asked = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], **scope}
    asyncio.run(app(asked, None, send))
    return [value for name, value in sent[0].get("headers", ()) if name == b"x-surgery-patch"]


def answering(status: int = 200, *, choose: bool = False) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if choose:
            note_choice(CHOSEN)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"answer"})

    return app


def test_where_requests_choose_the_header_says_what_was_chosen() -> None:
    assert answer(PatchHeader(answering(choose=True))) == [CHOSEN.id.encode()]
    assert answer(PatchHeader(answering())) == []


def test_where_the_weights_hold_the_patch_every_answer_says_it() -> None:
    ids = iter(["first@1", "second@2"])
    app = PatchHeader(answering(), lambda: next(ids))
    assert [answer(app), answer(app)] == [[b"first@1"], [b"second@2"]]


@pytest.mark.parametrize(
    ("status", "scope"), [(200, {"method": "GET", "path": "/v1/models"}), (404, {}), (200, {"method": "PUT"})]
)
def test_what_no_weights_made_says_nothing(status: int, scope: dict[str, Any]) -> None:
    assert answer(PatchHeader(answering(status), lambda: "first@1"), **scope) == []


@pytest.fixture(autouse=True)
def _versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process knows of its engine's version is forgotten afterwards."""
    monkeypatch.setattr(weight_version, "_told", None)
    monkeypatch.setattr(weight_version, "_seen", None)


def test_before_any_swap_it_is_the_patch_of_the_start() -> None:
    assert [served_patch("first@1", alone=alone) for alone in (True, False)] == ["first@1"] * 2


def test_one_process_knows_what_it_swapped_in_whatever_late_outputs_say() -> None:
    note_version("second@2")
    see_version("first@1")
    assert served_patch("first@1", alone=True) == "second@2"


def test_several_processes_know_it_by_outputs() -> None:
    see_version("second@2")
    see_version(None)
    assert served_patch("first@1", alone=False) == "second@2"
    see_version("default")
    assert served_patch("first@1", alone=False) == "none"
