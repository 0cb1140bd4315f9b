# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery swap` and `status` of several servers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.client.fleet_server import FleetServer
from vllm_surgery.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FleetServer]]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    made = [FleetServer(epoch=3), FleetServer(epoch=3)]
    yield made
    for server in made:
        server.stop()


def of(servers: list[FleetServer]) -> list[str]:
    return [word for server in servers for word in ("--url", server.url)]


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_swap_of_all(servers: list[FleetServer], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swap", "new", *of(servers)]) == 0
    assert lines(capsys.readouterr().out) == [f"{server.url} new@1 in place of old@1, epoch 4" for server in servers]


def test_a_swap_of_all_as_json(servers: list[FleetServer], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swap", "new", *of(servers), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["servers"]
    assert [(one["url"], one["id"], one["epoch"]) for one in told] == [(server.url, "new@1", 4) for server in servers]


def test_urls_from_a_file(servers: list[FleetServer], tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("".join(f"{server.url}\n" for server in servers))
    assert main(["swap", "new", "--urls-from", str(tmp_path / "urls")]) == 0
    assert [server.active for server in servers] == ["new@1"] * 2


def test_one_url_from_a_file_is_one_server(
    servers: list[FleetServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "urls").write_text(servers[0].url)
    assert main(["swap", "new", "--if-epoch", "3", "--urls-from", str(tmp_path / "urls")]) == 0
    assert capsys.readouterr().out.startswith("new@1 in place of old@1, epoch 4\n10.0 ms: ")


def test_a_swap_that_fails_says_what_became_of_each(
    servers: list[FleetServer], capsys: pytest.CaptureFixture[str]
) -> None:
    servers[1].fails["apply"] = "undone"
    assert main(["swap", "new", *of(servers)]) == 1
    out, err = capsys.readouterr()
    reason = "the server refused: rank 1 failed; it was undone"
    assert lines(out) == [
        f"{servers[0].url} taken back; serves old@1",
        f"{servers[1].url} unchanged; serves old@1; {reason}",
    ]
    assert err == (f"vllm-surgery: error: {servers[1].url}: {reason}; 2 of 2 servers serve what they served before\n")


def test_a_swap_that_fails_as_json(servers: list[FleetServer], capsys: pytest.CaptureFixture[str]) -> None:
    servers[1].fails["check"] = "refuses"
    assert main(["swap", "new", *of(servers), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["type"], [server["fate"] for server in error["servers"]]) == ("FleetError", ["unchanged"] * 2)


def test_a_rehearsal_of_all(servers: list[FleetServer], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swap", "new", "--check", *of(servers)]) == 0
    said = "new@1 can take the place of old@1: 1 unit in 1 tensor; the epoch is 3"
    assert lines(capsys.readouterr().out) == [f"{server.url} {said}" for server in servers]
    assert [server.active for server in servers] == ["old@1"] * 2


def test_one_server_can_rehearse_and_take_back(servers: list[FleetServer], capsys: pytest.CaptureFixture[str]) -> None:
    one = ["--url", servers[0].url]
    assert main(["swap", "new", "--check", *one]) == 0
    assert main(["swap", "new", *one]) == 0
    assert main(["swap", "--undo", "--if-epoch", "4", *one]) == 0
    assert servers[0].steps == ["check", "apply", "undo"]
    assert "old@1 in place of new@1, epoch 5" in lines(capsys.readouterr().out)


def test_slots_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    made = [FleetServer(slots=True, epoch=3) for _ in range(2)]
    try:
        assert main(["swap", "new", "--fill", "--share", "new=0.5", "--share", "old=0.5", *of(made)]) == 0
        said = "slots: new@1, old@1; default: new 0.5, old 0.5; epoch 4"
        assert lines(capsys.readouterr().out) == [f"{server.url} {said}" for server in made]
        assert main(["swap", "new", "--fill", "--check", *of(made)]) == 0
        assert lines(capsys.readouterr().out) == [f"{server.url} possible; the epoch is 4" for server in made]
    finally:
        for server in made:
            server.stop()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new", "--if-epoch", "3"], "--if-epoch is for one server: each has epochs of its own"),
        (["--undo"], "--undo is for one server at a time"),
        (["--promote"], "--promote is for one server at a time"),
        (["--undo", "new"], "--undo takes back what there is; it stands alone"),
        (["--undo", "--check"], "--undo stands alone"),
        (["--undo", "--promote"], "--undo stands alone"),
        (["new", "--urls-from", "/nowhere"], "/nowhere: no such file"),
    ],
)
def test_wrong_words(
    servers: list[FleetServer], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["swap", *words, *of(servers)]) == 2
    assert capsys.readouterr().err == f"vllm-surgery: error: {said}\n"
    assert [server.steps for server in servers] == [[], []]


def test_the_status_of_servers_that_are_alike(servers: list[FleetServer], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *of(servers)]) == 0
    said = "old@1, epoch 3, since 2026-01-02T03:04:05+00:00"
    assert lines(capsys.readouterr().out) == [
        *[f"{server.url} {said}" for server in servers],
        "2 servers serve the same",
    ]


def test_the_status_of_servers_that_differ(servers: list[FleetServer], capsys: pytest.CaptureFixture[str]) -> None:
    servers[1].served.append("new@1")
    servers[1].more = {"can_swap": False, "cannot_swap_reason": "experts are balanced", "on_loop": "stop"}
    assert main(["status", *of(servers)]) == 1
    told = lines(capsys.readouterr().out)
    assert told[1].endswith("can't swap: experts are balanced")
    assert told[2:] == [
        "active differs: old@1 on 1; new@1 on 1",
        "desired differs: old@1 on 1; new@1 on 1",
        "swaps differs: possible on 1; not possible on 1",
        "on loop differs: nothing on 1; stop on 1",
    ]


def test_the_status_of_servers_with_other_slots(capsys: pytest.CaptureFixture[str]) -> None:
    made = [FleetServer(slots=True) for _ in range(2)]
    made[1].slots = {"old": 0.5, "new": 0.5}
    try:
        assert main(["status", *of(made)]) == 1
        told = lines(capsys.readouterr().out)
    finally:
        for server in made:
            server.stop()
    assert told[1].startswith(f"{made[1].url} old@1 (new 0.5, old 0.5), epoch 3")
    assert told[2:] == [
        "default differs: old 1 on 1; new 0.5, old 0.5 on 1",
        "slots differs: old@1 on 1; new@1, old@1 on 1",
    ]


def test_a_followed_file_that_asks_for_something_else(
    servers: list[FleetServer], capsys: pytest.CaptureFixture[str]
) -> None:
    servers[0].more = {"watching": True, "desired": {"id": "b@2", "error": None}}
    assert main(["status", *of(servers)]) == 1
    assert lines(capsys.readouterr().out)[0].endswith(", desired: b@2, by the followed files")


def test_the_status_where_one_does_not_tell(servers: list[FleetServer], capsys: pytest.CaptureFixture[str]) -> None:
    servers[0].stop()
    assert main(["status", *of(servers)]) == 1
    told = lines(capsys.readouterr().out)
    assert told[0].startswith(f"{servers[0].url} [Errno 111] Connection refused")
    assert told[-1] == "1 server did not tell"


def test_the_status_of_all_as_json(servers: list[FleetServer], capsys: pytest.CaptureFixture[str]) -> None:
    servers[0].stop()
    assert main(["status", *of(servers), "--json"]) == 1
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["servers"][0]["error"]["type"] == "ServerUnreachableError"
    assert told["servers"][1]["state"]["active"] == "old@1"
    assert told["differences"] == {}
