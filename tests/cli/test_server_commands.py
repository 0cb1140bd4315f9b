# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery status`, `swap` and `patches`; and what `serve` refuses of their side."""

from __future__ import annotations

import importlib.util
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.client.test_client import LISTING, REPORT, STATE, FakeServer
from tests.examples import patch_data, zero
from vllm_surgery.cli import main
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    made = FakeServer()
    yield made
    made.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "local.yaml"
    made.write_text(Patch.from_data(patch_data()).to_yaml())
    return made


@pytest.fixture
def swapped(server: FakeServer) -> Callable[..., Any]:
    """Swaps; gives the patches that reached the server."""
    server.answers["/v1/surgery"] = (200, REPORT)

    def swap(*words: str) -> Any:
        assert main(["swap", *words, "--url", server.url]) == 0
        return server.asked[-1][3]["patches"]

    return swap


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, and nothing else."""
    out, err = capsys.readouterr()
    assert out == ""
    return err.removeprefix("vllm-surgery: error: ").removesuffix("\n")


def test_status_in_words(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "active   a@1",
        "since    2026-01-02T03:04:05+00:00, epoch 3",
        "changes  2 units in 1 tensor, on 1 rank",
        "swaps    possible",
        "model    demo, LlamaForCausalLM, 30 layers",
    ]


@pytest.mark.parametrize(
    ("desired", "line"),
    [
        ({"id": "a@1", "error": None}, "desired  the same; its files are followed"),
        ({"id": "b@2", "error": None}, "desired  b@2, by the followed files"),
        ({"id": "b@2", "error": "rank 1 failed"}, "desired  b@2: rank 1 failed"),
        ({"id": None, "error": "p.yaml: name: is missing"}, "desired  p.yaml: name: is missing"),
    ],
)
def test_status_of_a_server_that_follows_files(
    server: FakeServer, capsys: pytest.CaptureFixture[str], desired: dict[str, Any], line: str
) -> None:
    server.answers["/v1/surgery"] = (200, STATE | {"watching": True, "desired": desired})
    assert main(["status", "--url", server.url]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_status_of_a_server_that_cannot_swap(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"name": "m", "architectures": [], "layers": None, "experts": 64}
    changes = {"can_swap": False, "cannot_swap_reason": "experts are balanced", "model": model}
    server.answers["/v1/surgery"] = (200, STATE | changes)
    assert main(["status", "--url", server.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "swaps    not possible: experts are balanced" in lines
    assert "model    m, 64 routed experts a layer" in lines


def test_status_as_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", server.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATE


def test_the_default_address_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[Any] = []
    monkeypatch.setenv("VLLM_API_KEY", "from the environment")
    monkeypatch.setattr(
        "vllm_surgery.client.client.SurgeryClient._ask", lambda self, *_: clients.append(self) or exit_now()
    )
    for more in ([], ["--api-key", "given"], ["--api-key", ""]):
        with pytest.raises(SystemExit):
            main(["status", *more])
    assert {client.url for client in clients} == {"http://localhost:8000"}
    assert [client.api_key for client in clients] == ["from the environment", "given", None]


def exit_now() -> None:
    raise SystemExit


def test_patches_in_words(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [{"name": "long-name", "id": "a@1"}, {"name": "bad", "id": None, "error": "bad.yaml: name: is missing"}]
    server.answers["/v1/surgery/patches"] = (200, {"patches": listed})
    assert main(["patches", "--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines() == ["long-name  a@1", "bad        refused: bad.yaml: name: is missing"]


def test_no_patches_are_no_lines(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/v1/surgery/patches"] = (200, {"patches": []})
    assert main(["patches", "--url", server.url]) == 0
    assert capsys.readouterr().out == ""


def test_patches_as_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["patches", "--url", server.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["patches"][0]["id"] == "a@1"


def test_swap_in_words(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/v1/surgery"] = (200, REPORT)
    assert main(["swap", "b", "--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "b@1 in place of a@1, epoch 4",
        "10.0 ms: stage 1.0, pause 2.0, apply 3.0, verify 4.0",
        "verified in 12 places",
        "not verified: 2 parts: no kernel tells",
    ]


def test_a_swap_to_what_is_active_says_so(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/v1/surgery"] = (200, REPORT | {"previous": "b@1"})
    assert main(["swap", "b", "--url", server.url]) == 0
    assert capsys.readouterr().out == "b@1 was active already, epoch 4\n"


def test_swap_as_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/v1/surgery"] = (200, REPORT)
    assert main(["swap", "b", "--url", server.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == REPORT


def test_mode_and_epoch_are_passed_on(swapped: Callable[..., Any], server: FakeServer) -> None:
    swapped("b", "--mode", "abort", "--if-epoch", "0")
    assert server.asked[-1][3] == {"patches": ["b"], "mode": "abort", "if_epoch": 0}


def test_a_word_is_a_name_on_the_server(swapped: Callable[..., Any]) -> None:
    assert swapped("lists", "other") == ["lists", "other"]


def test_a_file_is_sent_itself(swapped: Callable[..., Any], file: Path) -> None:
    assert swapped("lists", str(file)) == ["lists", Patch.from_data(patch_data()).to_data()]


def test_a_file_needs_no_ending(swapped: Callable[..., Any], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    file.rename("bare")
    assert swapped("bare") == [Patch.from_data(patch_data()).to_data()]


def test_a_folder_is_no_file(swapped: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    assert swapped("lists") == ["lists"]


def test_none_is_no_patch_even_beside_a_file_of_that_name(
    swapped: Callable[..., Any], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    file.rename("none")
    assert swapped("none") == []


@pytest.mark.parametrize("word", ["gone.yaml", "gone.yml", "gone.json", "../gone", "folder/gone"])
def test_a_missing_file_is_exit_code_2_and_nothing_is_asked(
    server: FakeServer, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert main(["swap", word, "--url", server.url]) == 2
    assert (said(capsys), server.asked) == (f"{word}: no such file", [])


def test_a_wrong_file_is_exit_code_1_and_nothing_is_asked(
    server: FakeServer, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("version: 1\n")
    assert main(["swap", str(file), "--url", server.url]) == 1
    assert (said(capsys), server.asked) == (f"{file}: name: is missing", [])


def test_files_that_clash_are_refused_here(
    server: FakeServer, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(patch_data(zero({"1": [2]}), name="other")))
    assert main(["swap", str(file), str(other), "--url", server.url]) == 1
    assert "already named in" in said(capsys)
    assert server.asked == []


def test_none_stands_alone(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swap", "none", "lists", "--url", server.url]) == 2
    assert (said(capsys), server.asked) == ("`none` stands for no patch at all, so it stands alone", [])


def test_an_epoch_below_0_is_exit_code_2(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swap", "a", "--if-epoch", "-1", "--url", server.url]) == 2
    assert (said(capsys), server.asked) == ("--if-epoch: an epoch is 0 or more", [])


SLOTS = {
    "count": 3,
    "default": {"lists": 0.5, "none": 0.5},
    "patches": [
        {"name": "lists", "id": "lists@0123abcd", "units": 2, "users": 4, "leaving": False},
        {"name": "old", "id": "old@0123abcd", "units": 1, "users": 1, "leaving": True},
    ],
    "unpatched": 7,
}
CHANGED = {"epoch": 9, "slots": SLOTS, "milliseconds": {"fill": 1.0, "total": 2.0}}


def test_status_of_a_server_with_slots(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/v1/surgery"] = (200, STATE | {"slots": SLOTS})
    assert main(["status", "--url", server.url]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[3:8] == [
        "slots 2 of 3 filled, 1 free",
        "default lists 0.5, none 0.5",
        "lists lists@0123abcd, 2 units, 4 requests",
        "old old@0123abcd, 1 unit, 1 request, leaving",
        "none 7 requests",
    ]


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["a", "b", "--fill"], {"fill": ["a", "b"]}),
        (
            ["a", "--fill", "--share", "a=0.25", "--share", "none=0.75"],
            {"fill": ["a"], "default": {"a": 0.25, "none": 0.75}},
        ),
        (["--free", "a", "--free", "b", "--if-epoch", "3"], {"free": ["a", "b"], "if_epoch": 3}),
        (["--share", "a=1"], {"default": {"a": 1.0}}),
    ],
)
def test_slots_are_changed(
    arguments: list[str], body: dict[str, Any], server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers["/v1/surgery"] = (200, CHANGED)
    assert main(["swap", *arguments, "--url", server.url]) == 0
    assert [request[3] for request in server.asked] == [body]
    assert capsys.readouterr().out == "slots: lists@0123abcd; default: lists 0.5, none 0.5; epoch 9\n2.0 ms\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name the patches to serve, or `none`"),
        (["a", "--free", "b"], "--free and --share change no patch: to add patches beside them say --fill"),
        (["--fill"], "--fill needs patches to put into slots"),
        (["--share", "a"], "--share a: expected a name and a number, such as none=0.5"),
        (["a", "--promote"], "--promote writes the default that there is; swap to other patches before it"),
    ],
)
def test_slots_in_wrong_words(
    arguments: list[str], reason: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["swap", *arguments, "--url", server.url]) == 2
    assert (said(capsys), server.asked) == (reason, [])


@pytest.mark.parametrize("arguments", [["swap", "a", "--mode", "now"], ["swap", "a", "--if-epoch", "x"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize("command", [["status"], ["patches"], ["swap", "a"]], ids=lambda command: command[0])
def test_nobody_there_is_exit_code_1(
    server: FakeServer, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    server.stop()
    assert main([*command, "--url", server.url]) == 1
    assert said(capsys).startswith(f"{server.url}: ")


@pytest.mark.parametrize("command", [["status"], ["patches"], ["swap", "a"]], ids=lambda command: command[0])
def test_without_httpx_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "httpx" else find(name, *rest))
    assert main(command) == 2
    assert said(capsys) == "talking to a server needs httpx: install it, or vLLM, which brings it"


@pytest.mark.parametrize(("status", "kind"), [(409, "ConflictError"), (422, "MismatchError"), (501, "CannotSwapError")])
def test_the_servers_no_is_exit_code_1(
    server: FakeServer, capsys: pytest.CaptureFixture[str], status: int, kind: str
) -> None:
    server.error(status, kind, "not now")
    assert main(["swap", "a", "--url", server.url]) == 1
    assert said(capsys) == "the server refused: not now"


def test_the_servers_no_as_json_names_its_kind(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.error(409, "ConflictError", "another swap runs")
    assert main(["swap", "a", "--url", server.url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "error": {
            "type": "ServerError",
            "message": "the server refused: another swap runs",
            "status": 409,
            "kind": "ConflictError",
        },
    }


def test_serve_follows_only_files_that_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "model", "--watch"]) == 2
    assert said(capsys) == "--watch needs --patch: it follows the files that are given there"


def test_serve_refuses_a_patch_folder_that_is_not_there(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "model", "--patch-dir", "/nowhere"]) == 2
    assert said(capsys) == "/nowhere: no such folder"
    assert main(["serve", "model", "--patch-dir", str(file)]) == 2
    assert said(capsys) == f"{file}: is not a folder"


def test_serve_hands_folders_and_files_on_by_their_absolute_paths(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("vllm_surgery.engine.serve.serve", lambda *args, **options: calls.append((args, options)))
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("VLLM_SURGERY_KEY", "other")
    key = ["--surgery-key", "scalpel"]
    assert main(["serve", "model", *key, "--patch", "local.yaml", "--watch", "--patch-dir", ".", "--port", "1"]) == 0
    ((patches, rest), options) = calls[0]
    assert (len(patches), rest) == (1, ["model", "--port", "1"])
    assert options == {"patch_dirs": [file.parent], "watch": [file], "more": {}}
    assert os.environ["VLLM_SURGERY_KEY"] == "scalpel"


def test_serve_hands_the_number_of_slots_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("vllm_surgery.engine.serve.serve", lambda *_, **options: calls.append(options))
    assert main(["serve", "model", "--patch", str(file), "--patch-slots", "8"]) == 0
    assert calls[0]["more"] == {"slots": 8}


@pytest.mark.parametrize("count", ["-1", "65"])
def test_a_number_of_slots_that_cannot_be_is_exit_code_2(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "model", "--patch-slots", count]) == 2
    assert said(capsys) == "--patch-slots: from 0 to 64"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--on-loop", "stop", "--on-loop-hold-back", "-1"], "--on-loop-hold-back: from 0 to 1024"),
        (["--on-loop-hold-back", "8"], "--on-loop-hold-back needs --on-loop: nothing else takes tokens back"),
    ],
)
def test_holding_back_what_cannot_be_is_exit_code_2(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "model", *options]) == 2
    assert said(capsys) == reason


def test_serve_hands_on_what_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("vllm_surgery.engine.serve.serve", lambda *_, **options: calls.append(options))
    assert main(["serve", "model", "--on-loop", "penalty:1.15", "--on-loop-hold-back", "64"]) == 0
    assert calls[0]["more"] == {"on_loop": "penalty:1.15", "on_loop_hold_back": 64}


HOSTILE = "\x1b]0;mine\x07\x9b2J\u202e"


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["status", "--json"],
        ["patches"],
        ["patches", "--json"],
        ["swap", "none"],
        ["swap", "none", "--json"],
    ],
)
def test_nothing_that_a_server_says_means_anything_to_a_terminal(
    server: FakeServer, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    def spoiled(data: Any) -> Any:
        if isinstance(data, dict):
            return {key: spoiled(value) for key, value in data.items()}
        if isinstance(data, list):
            return [spoiled(item) for item in data]
        return f"{data}{HOSTILE}" if isinstance(data, str) else data

    state = REPORT if command[0] == "swap" else STATE
    server.answers = {"/v1/surgery": (200, spoiled(state)), "/v1/surgery/patches": (200, spoiled(LISTING))}
    assert main([*command, "--url", server.url]) == 0
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
