# SPDX-License-Identifier: Apache-2.0
"""The addresses of several servers, from arguments, files and names."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import refusal
from vllm_surgery.client.addresses import MOST_SERVERS, expand, from_source
from vllm_surgery.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Addresses by name, in place of the network's."""
    known: dict[str, list[str]] = {}

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(None, None, None, "", (address, port)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_urls_stay_as_they_are_given() -> None:
    assert expand(["http://b:8000/v1", "https://a"]) == ["http://b:8000/v1", "https://a"]


def test_a_name_stands_for_every_server_behind_it(names: dict[str, list[str]]) -> None:
    names["pods"] = ["10.0.0.2", "10.0.0.1", "10.0.0.1", "fd00::1"]
    assert expand(["http://x", "dns://pods:8000"]) == [
        "http://x",
        "http://10.0.0.1:8000",
        "http://10.0.0.2:8000",
        "http://[fd00::1]:8000",
    ]


def test_a_name_that_nobody_knows(names: dict[str, list[str]]) -> None:
    said = refusal(lambda: expand(["dns://pods:8000"]), UsageError)
    assert said == "dns://pods:8000: Name or service not known"


@pytest.mark.parametrize(
    "url",
    [
        "dns://pods",
        "dns://:8000",
        "dns://pods:x",
        "dns://pods:0",
        "dns://pods:99999",
        "dns://pods:8000/v1",
        "dns://u@pods:1",
    ],
)
def test_a_name_needs_a_port_and_nothing_else(url: str) -> None:
    said = refusal(lambda: expand([url]), UsageError)
    assert said == f"{url}: expected dns://NAME:PORT, such as dns://vllm-surgery-pods:8000"


@pytest.mark.parametrize("second", ["http://a:1", "http://a:1/", "http://a:1/v1"])
def test_no_server_is_named_twice(second: str) -> None:
    assert refusal(lambda: expand(["http://a:1", second]), UsageError) == "http://a:1: is named twice"


def test_there_is_a_bound() -> None:
    said = refusal(lambda: expand(f"http://a:{port}" for port in range(MOST_SERVERS + 1)), UsageError)
    assert said == "513 servers are too many: at most 512 can be asked at once"


def test_a_file_has_a_url_a_line(tmp_path: Path) -> None:
    file = tmp_path / "urls"
    file.write_text("# ours\nhttp://a:1  # the first\n\n  dns://pods:8000\r\n")
    assert from_source(str(file)) == ["http://a:1", "dns://pods:8000"]


def test_a_name_can_stand_in_the_place_of_a_file() -> None:
    assert from_source("dns://pods:8000") == ["dns://pods:8000"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# none\n\n", "names no server"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b"http://a\n" * 10_000, "is longer than 65536 bytes"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "urls"
    file.write_bytes(content)
    assert refusal(lambda: from_source(str(file)), UsageError) == f"{file}: {said}"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(lambda: from_source(f"{tmp_path}/x"), UsageError) == f"{tmp_path}/x: no such file"
    assert refusal(lambda: from_source(str(tmp_path)), UsageError) == f"{tmp_path}: is a folder"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(lambda: from_source(f"{tmp_path}/pipe"), UsageError) == f"{tmp_path}/pipe: is not a regular file"
