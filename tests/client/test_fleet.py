# SPDX-License-Identifier: Apache-2.0
"""Many servers are changed as one: all of them, or those that answer serve what they served before."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.client.fleet_server import FleetServer
from vllm_surgery.client.client import SurgeryClient
from vllm_surgery.client.fleet import Fleet
from vllm_surgery.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.fleet_server import Failure

NEW = {"patches": ["new"], "mode": "wait"}


@pytest.fixture
def servers() -> Iterator[list[FleetServer]]:
    made = [FleetServer(epoch=epoch) for epoch in (0, 3, 7)]
    yield made
    for server in made:
        server.stop()


def fleet(servers: list[FleetServer], *, change_seconds: float | None = None, settle_seconds: float = 2.0) -> Fleet:
    clients = [SurgeryClient(server.url, change_seconds=change_seconds) for server in servers]
    return Fleet(clients, settle_seconds=settle_seconds)


def fails(servers: list[FleetServer], **more: Any) -> FleetError:
    with pytest.raises(FleetError) as caught:
        fleet(servers, **more).change(NEW)
    return caught.value


def fates(error: FleetError) -> list[tuple[str | None, str | None]]:
    return [(server["fate"], server["serves"]) for server in error.servers]


def served(servers: list[FleetServer]) -> list[str]:
    return [server.active for server in servers]


def test_a_change_is_rehearsed_by_all_and_then_made_by_all(servers: list[FleetServer]) -> None:
    reports = fleet(servers).change(NEW)
    assert [(report.epoch, server.active) for report, server in zip(reports, servers, strict=True)] == [
        (1, "new@1"),
        (4, "new@1"),
        (8, "new@1"),
    ]
    assert [server.steps for server in servers] == [["check", "apply"]] * 3
    assert servers[1].bodies == [
        {"patches": ["new"], "check": True, "if_epoch": 3},
        {"patches": ["new"], "mode": "wait", "if_epoch": 3},
    ]


def test_what_one_refuses_none_gets(servers: list[FleetServer]) -> None:
    servers[1].fails["check"] = "refuses"
    error = fails(servers)
    assert str(error) == (
        f"{servers[1].url}: the server refused: it is for another model; nothing was changed on any server"
    )
    assert [server.steps for server in servers] == [["check"]] * 3
    assert [fate for fate, _ in fates(error)] == ["unchanged"] * 3


def test_a_server_that_is_not_there_keeps_all_from_changing(servers: list[FleetServer]) -> None:
    servers[2].stop()
    error = fails(servers)
    assert str(error).startswith(f"{servers[2].url}: ")
    assert str(error).endswith("; nothing was changed on any server")
    assert [fate for fate, _ in fates(error)] == ["unchanged", "unchanged", "gone"]
    assert [server.steps for server in servers] == [[], [], []]


def test_a_server_that_cannot_swap_keeps_all_from_changing(servers: list[FleetServer]) -> None:
    servers[0].more = {"can_swap": False, "cannot_swap_reason": "experts are balanced"}
    error = fails(servers)
    assert str(error) == f"{servers[0].url}: can't swap: experts are balanced; nothing was changed on any server"


def test_more_than_three_reasons_are_counted() -> None:
    many = [FleetServer() for _ in range(5)]
    for server in many:
        server.fails["check"] = "refuses"
    try:
        assert "and 2 more; nothing was changed" in str(fails(many))
    finally:
        for server in many:
            server.stop()


@pytest.mark.parametrize(
    ("failure", "fate"),
    [
        ("undone", ("unchanged", "old@1")),
        ("breaks off before", ("unchanged", "old@1")),
        ("breaks off after", ("taken back", "old@1")),
        ("dies before", ("gone", None)),
        ("dies after", ("gone", None)),
    ],
)
def test_whatever_one_does_in_the_middle_the_others_are_in_one_state(
    servers: list[FleetServer], failure: Failure, fate: tuple[str, str | None]
) -> None:
    servers[1].fails["apply"] = failure
    error = fails(servers)
    assert fates(error) == [("taken back", "old@1"), fate, ("taken back", "old@1")]
    assert served([servers[0], servers[2]]) == ["old@1"] * 2
    assert servers[0].bodies[-1] == {"undo": True, "mode": "keep", "if_epoch": 1}
    fine = 3 if fate[0] != "gone" else 2
    assert str(error).startswith(f"{servers[1].url}: ")
    assert str(error).endswith(f"; {fine} of 3 servers serve what they served before")


def test_a_server_that_never_answers_is_given_up(servers: list[FleetServer]) -> None:
    servers[1].fails["apply"] = "hangs"
    error = fails(servers, change_seconds=0.5, settle_seconds=0.5)
    assert f"{servers[1].url}: no answer in time" in str(error)
    assert served(servers) == ["old@1"] * 3


def test_a_server_that_is_still_at_it_is_waited_for(servers: list[FleetServer]) -> None:
    slow = servers[1]
    put, broken = slow.put, threading.Event()

    def busy(body: dict[str, Any]) -> Any:
        if not body.get("check") and not body.get("undo"):
            broken.set()
            return None  # The connection breaks, and it goes on.
        if broken.is_set() and slow.active == "old@1":
            put({"patches": ["new"]})
            return 409, {"error": {"message": "another swap is running", "type": "ConflictError", "code": 409}}
        return put(body)

    slow.put = busy  # type: ignore[method-assign]
    assert fates(fails(servers)) == [("taken back", "old@1")] * 3


def test_a_server_that_cannot_take_it_back_is_named(servers: list[FleetServer]) -> None:
    servers[0].fails["undo"] = "refuses"
    servers[1].fails["apply"] = "undone"
    error = fails(servers)
    assert fates(error) == [("changed", "new@1"), ("unchanged", "old@1"), ("taken back", "old@1")]
    assert f"1 could not take the change back: {servers[0].url}; 2 of 3 servers" in str(error)


def test_a_server_that_dies_while_it_takes_it_back_is_gone(servers: list[FleetServer]) -> None:
    servers[0].fails["undo"] = "dies before"
    servers[1].fails["apply"] = "undone"
    assert fates(fails(servers))[0] == ("gone", None)


def test_what_was_served_already_is_not_taken_back(servers: list[FleetServer]) -> None:
    servers[0].served.append("new@1")
    servers[1].fails["apply"] = "undone"
    assert fates(fails(servers))[0] == ("unchanged", "new@1")
    assert servers[0].steps == ["check", "apply"]


def test_nobody_elses_change_is_taken_back(servers: list[FleetServer]) -> None:
    put = servers[1].put

    def changed_by_another(body: dict[str, Any]) -> Any:
        if body.get("check") or body.get("undo"):
            return put(body)
        put({"patches": ["theirs"]})
        return None

    servers[1].put = changed_by_another  # type: ignore[method-assign]
    assert fates(fails(servers))[1] == ("unchanged", "theirs@1")


def test_a_server_that_was_started_anew_has_nothing_to_take_back(servers: list[FleetServer]) -> None:
    put = servers[1].put

    def restarts(body: dict[str, Any]) -> Any:
        if body.get("check"):
            return put(body)
        servers[1].epoch = 0

    servers[1].put = restarts  # type: ignore[method-assign]
    assert fates(fails(servers))[1] == ("unchanged", "old@1")


def test_an_interrupt_takes_all_back(servers: list[FleetServer], monkeypatch: pytest.MonkeyPatch) -> None:
    there = fleet(servers)
    ask, asked = there.ask, []

    def interrupted(question: Any) -> Any:
        asked.append(question)
        answers = ask(question)
        if len(asked) == 3:  # The states, the rehearsal, the change.
            raise KeyboardInterrupt
        return answers

    monkeypatch.setattr(there, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        there.change(NEW)
    assert [server.steps for server in servers] == [["check", "apply", "undo"]] * 3
    assert served(servers) == ["old@1"] * 3


def test_a_rehearsal_alone_changes_nothing(servers: list[FleetServer]) -> None:
    there = fleet(servers)
    assert [report.epoch for report in there.check(NEW, there.states())] == [0, 3, 7]
    assert served(servers) == ["old@1"] * 3


def test_a_change_is_taken_back_later(servers: list[FleetServer]) -> None:
    there = fleet(servers)
    epochs = [report.epoch for report in there.change(NEW)]
    servers[2].stop()
    assert [(one.fate, one.serves) for one in there.undo(epochs)] == [
        ("taken back", "old@1"),
        ("taken back", "old@1"),
        ("gone", None),
    ]


def test_slots_are_changed_as_weights_are() -> None:
    many = [FleetServer(slots=True) for _ in range(3)]
    try:
        fleet(many).change({"fill": ["new"], "default": {"new": 0.5, "old": 0.5}})
        assert [server.slots for server in many] == [{"new": 0.5, "old": 0.5}] * 3
        many[2].fails["apply"] = "breaks off after"
        with pytest.raises(FleetError):
            fleet(many).change({"default": {"new": 1.0}})
        assert [server.slots for server in many] == [{"new": 0.5, "old": 0.5}] * 3
    finally:
        for server in many:
            server.stop()
