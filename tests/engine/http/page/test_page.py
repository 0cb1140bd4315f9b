# SPDX-License-Identifier: Apache-2.0
"""The page as it is sent, without a browser: what it may do, and what it doesn't hold."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from typing import TYPE_CHECKING

import pytest
from fastapi.middleware.cors import CORSMiddleware
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from tests.engine.http.test_endpoint import A_ID, FakeSwapper, Server

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from tests.engine.http.test_endpoint import Server as AnyServer


def answer(server: AnyServer, path: str = "/surgery", peer: str = "127.0.0.1") -> httpx.Response:
    async def once() -> httpx.Response:
        async with server.started(peer) as client:
            return await client.get(path, headers={"origin": "http://localhost"})

    return asyncio.run(once())


@pytest.fixture
def server(model: Path) -> Server:
    return Server(model, FakeSwapper(), {})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return tmp_path


@pytest.fixture
def html(server: Server) -> str:
    return answer(server).text


def policy_of(response: httpx.Response) -> dict[str, str]:
    rules = response.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (rule.partition(" ") for rule in rules)}


def inner(html: str, tag: str) -> str:
    (found,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return str(found)


def test_it_is_html(server: Server) -> None:
    response = answer(server)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")


@pytest.mark.parametrize(("tag", "rule"), [("script", "script-src"), ("style", "style-src")])
def test_nothing_runs_or_shows_but_what_is_in_it(server: Server, tag: str, rule: str) -> None:
    response = answer(server)
    digest = base64.b64encode(hashlib.sha256(inner(response.text, tag).encode()).digest()).decode()
    assert policy_of(response)[rule] == f"'sha256-{digest}'"


def test_all_else_is_forbidden(server: Server) -> None:
    policy = policy_of(answer(server))
    hashed = {policy.pop("script-src"), policy.pop("style-src")}
    assert len(hashed) == 2
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_browsers_guess_nothing_and_tell_nobody(server: Server) -> None:
    headers = answer(server).headers
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


def test_it_needs_no_key(server: Server) -> None:
    server.app.add_middleware(AuthenticationMiddleware, tokens=["secret"])
    assert (answer(server).status_code, answer(server, "/v1/surgery").status_code) == (200, 401)


def test_other_machines_get_it_too(server: Server) -> None:
    assert answer(server, peer="10.0.0.7").status_code == 200


def test_disabled_there_is_no_page(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SURGERY_DISABLE", "1")
    assert answer(server).status_code == 404


def test_it_holds_no_data(model: Path, html: str) -> None:
    assert answer(Server(model, FakeSwapper(A_ID), {})).text == html


def test_what_passes_it_on_can_add_headers_without_their_piling_up(server: Server) -> None:
    server.app.add_middleware(CORSMiddleware, allow_origins=["*"])
    assert [len(answer(server).headers.raw) for _ in range(3)] == [len(answer(server).headers.raw)] * 3


def test_it_is_no_part_of_the_api(server: Server) -> None:
    assert "/surgery" not in answer(server, "/openapi.json").json()["paths"]


def test_it_loads_nothing(html: str) -> None:
    assert re.findall(r"\b(?:src|href|action|srcset)=\S+", html) == ['href="data:,">']
    assert set(re.findall(r"\w+://[^\s\"']+", html)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in html
    assert "url(" not in html


@pytest.mark.parametrize(
    "word",
    ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "setAttribute('on"],
)
def test_text_never_becomes_html_or_code(html: str, word: str) -> None:
    assert word not in inner(html, "script")


@pytest.mark.parametrize("word", ["localStorage", "sessionStorage", "indexedDB", "cookie", "caches"])
def test_nothing_is_stored(html: str, word: str) -> None:
    assert word not in inner(html, "script")


def test_addresses_are_relative_so_that_a_proxys_path_stays(html: str) -> None:
    assert set(re.findall(r'const \w+ = "(v1/[^"]*|/[^"]*|metrics)"', html)) == {
        "v1/surgery",
        "v1/surgery/patches",
        "metrics",
    }


def test_it_is_small(html: str) -> None:
    assert len(html.encode()) < 50_000


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_and_lines_be_seen(html: str, theme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", inner(html, "style"), re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", block))
    pairs = [(ink, paper) for ink in ("ink", "quiet") for paper in ("paper", "card")]
    pairs += [("bad", "bad-paper"), ("bad", "card"), ("on-accent", "accent")]
    assert {pair: contrast(*(colours[name] for name in pair)) for pair in pairs if poor(colours, pair, 4.5)} == {}
    series = [(name, "card") for name in colours if name.startswith("series")]
    assert len(series) == 6
    assert [pair for pair in series if poor(colours, pair, 3)] == []


def poor(colours: dict[str, str], pair: tuple[str, str], least: float) -> bool:
    return contrast(colours[pair[0]], colours[pair[1]]) < least
