# SPDX-License-Identifier: Apache-2.0
"""Trials on a server with slots: arms share a batch, each answer is of its arm, and nobody else notices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.evaluation.conftest import protocol, server
from tests.evaluation.fake_server import TABLE, FakeVllm
from tests.examples import patch_data, refusal
from vllm_surgery.cli import main
from vllm_surgery.errors import ConflictError, ServerError, UsageError
from vllm_surgery.evaluation import TrialFolder, of_patch, of_penalty, run_trial, unpatched
from vllm_surgery.evaluation.arms import Arm, in_batches, of_name, of_server
from vllm_surgery.evaluation.backends.server import HttpBackend
from vllm_surgery.evaluation.backends.slot_names import unused_name
from vllm_surgery.evaluation.protocol import load_protocol
from vllm_surgery.evaluation.trial import Trial
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # Whole trials.

__all__ = ["protocol", "server"]

CURE = Patch.from_data(patch_data(name="cure"))
ANOTHER = Patch.from_data({**patch_data(name="cure"), "edits": [{"op": "zero", "neurons": {"1": [3]}}]})
_SHAM = Patch.from_data({**ANOTHER.to_data(), "name": "sham-1"})
SHAM = Arm("cure/sham-1", "sham", [_SHAM.to_data()], _SHAM.id, control_of="cure")
ARMS = (unpatched(), of_patch(CURE), SHAM, of_penalty(1.15))


def go(server: FakeVllm, protocol: str, folder: Path, *arms: Arm, restore: bool = True) -> TrialFolder:
    kept = TrialFolder(folder)
    trial = Trial.of(load_protocol(protocol), arms or ARMS, {"model": "fake"})
    backend = HttpBackend(server.url, concurrency=8)
    try:
        backend.require(trial.arms)
        run_trial(trial, backend, kept, TABLE, quiet=True)
        if restore:
            assert backend.restore() is None
    finally:
        backend.close()
    return kept


def plain(folder: TrialFolder) -> list[dict[str, Any]]:
    """What was answered, whichever way."""
    lines = [{**record.to_data(), "way": None} for record in folder.records()]
    return sorted(lines, key=repr)


def test_arms_in_slots_are_answered_as_those_that_are_swapped_in(
    server: FakeVllm, protocol: str, tmp_path: Path
) -> None:
    swapped = go(server, protocol, tmp_path / "swapped")
    server.slots = 3
    held = go(server, protocol, tmp_path / "held")
    assert plain(held) == plain(swapped)
    assert held.logprobs() == swapped.logprobs()
    assert ({one.way for one in swapped.records()}, {one.way for one in held.records()}) == ({"swap"}, {"slot"})


def test_the_default_stays_and_slots_are_free_afterwards(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    server.slots, server.filled = 3, {"theirs": ANOTHER}
    go(server, protocol, tmp_path, unpatched(), of_patch(CURE))
    assert server.swaps == []
    assert server.filled == {"theirs": ANOTHER}
    assert server.filled_in_all == ["cure"]


def test_answers_to_one_prompt_are_asked_for_side_by_side(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    server.slots = 3
    go(server, protocol, tmp_path)
    asked = server.asked[1:]  # The first only tries the server out.
    chosen = [body["vllm_xargs"]["patch"] for body in asked[:40]]
    assert {"none", "cure", "sham-1"} == set(chosen)
    by_prompt = {(body["messages"][0]["content"], body["seed"]) for body in asked[:40]}
    assert len(by_prompt) <= 40 // len(ARMS) + 8  # What goes on at the same time comes in any order.


def test_what_is_in_a_slot_already_is_used_and_left_there(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    server.slots, server.filled, server.folder = 3, {"cure": CURE}, {"by-name": CURE}
    go(server, protocol, tmp_path, unpatched(), of_patch(CURE))
    go(server, protocol, tmp_path / "named", unpatched(), of_name("by-name"))
    assert (server.filled, server.filled_in_all) == ({"cure": CURE}, [])


def test_a_name_that_somebody_elses_patch_has_is_not_taken_from_it(
    server: FakeVllm, protocol: str, tmp_path: Path
) -> None:
    server.slots, server.filled = 3, {"cure": ANOTHER}
    held = go(server, protocol, tmp_path, unpatched(), of_patch(CURE))
    assert server.filled_in_all == ["cure-2"]
    assert {one.patch for one in held.records()} == {"none", CURE.id}


def test_a_patch_in_the_servers_folder_whose_name_is_taken_is_refused(
    server: FakeVllm, protocol: str, tmp_path: Path
) -> None:
    server.slots, server.filled, server.folder = 3, {"cure": ANOTHER}, {"cure": CURE}
    said = refusal(lambda: go(server, protocol, tmp_path, unpatched(), of_name("cure")), UsageError)
    assert said == "cure: a slot of the server holds another patch named cure; free that first"
    assert server.filled == {"cure": ANOTHER}


def test_a_patch_in_the_servers_folder_is_filled_by_name(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    server.slots, server.folder = 2, {"by-name": CURE}
    held = go(server, protocol, tmp_path, unpatched(), of_name("by-name"))
    assert {one.patch for one in held.records() if one.key.arm == "by-name"} == {CURE.id}
    assert server.filled_in_all == ["cure"]


def test_more_arms_than_slots_take_turns(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    server.slots, server.filled, server.users = 2, {"theirs": ANOTHER}, {"theirs": 1}
    third = Patch.from_data({**patch_data(name="third"), "edits": [{"op": "zero", "neurons": {"1": [1]}}]})
    held = go(server, protocol, tmp_path, unpatched(), of_patch(CURE), of_patch(third))
    assert server.filled_in_all == ["cure", "third"]
    assert {one.way for one in held.records()} == {"slot"}


def test_without_a_free_slot_arms_are_swapped_in(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    server.slots, server.filled = 1, {"theirs": ANOTHER}
    held = go(server, protocol, tmp_path, unpatched(), of_patch(CURE))
    assert {one.way for one in held.records()} == {"swap"}


def test_an_arm_that_no_slot_can_hold_is_swapped_in_with_a_line(
    server: FakeVllm, protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.slots, server.refuses_to_fill = 3, {CURE.digest}
    file = tmp_path / "cure.yaml"
    file.write_text(CURE.to_yaml())
    options = ["--protocol", protocol, "--out", str(tmp_path / "out"), "--patch", str(file)]
    assert main(["evaluate", "--url", server.url, *options]) == 0
    line = "cure: can't be held in a slot, so it is swapped in: the server refused: no rank has a place for the gains"
    assert line in capsys.readouterr().err
    report = (tmp_path / "out" / "report.md").read_text()
    assert "in one batch through slots, the patch chosen by each request: unpatched, penalty-1.15" in report
    assert "one after another, swapped in: cure" in report


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        (3, "**Arms**: in one batch through slots, the patch chosen by each request"),
        (0, "**Arms**: one after another, swapped in"),
    ],
)
def test_the_report_says_which_way_was_used(
    server: FakeVllm, protocol: str, tmp_path: Path, slots: int, said: str
) -> None:
    server.slots = slots
    assert main(["evaluate", "--url", server.url, "--protocol", protocol, "--out", str(tmp_path / "out")]) == 0
    assert f"- {said}\n" in (tmp_path / "out" / "report.md").read_text()


def test_an_answer_under_another_patch_is_noticed(
    server: FakeVllm, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.slots = 3
    monkeypatch.setattr(server, "headers", lambda *_: {"X-Surgery-Patch": "other@1"})
    with pytest.raises(ConflictError, match=r"an answer was made under other@1, not under .*: somebody else"):
        go(server, protocol, tmp_path)


def test_an_answer_that_names_no_patch_is_noticed(
    server: FakeVllm, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.slots = 3
    monkeypatch.setattr(server, "headers", lambda *_: {})
    with pytest.raises(ConflictError, match="under a patch that it does not name"):
        go(server, protocol, tmp_path)


def test_a_trial_that_was_stopped_goes_on_in_slots(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    server.slots = 3
    whole = go(server, protocol, tmp_path / "whole")
    server.stop_after = len(server.asked) + 90
    with pytest.raises(ServerError, match="going down"):
        go(server, protocol, tmp_path / "parts", restore=False)
    server.stop_after = None
    server.filled.clear()
    parts = go(server, protocol, tmp_path / "parts")
    assert plain(parts) == plain(whole)


def test_arms_without_a_patch_need_no_slot() -> None:
    arms = [*ARMS, of_server("other", "http://x")]
    assert [[one.name for one in batch] for batch in in_batches(arms, 1)] == [
        ["unpatched", "penalty-1.15", "cure"],
        ["cure/sham-1"],
        ["other"],
    ]
    assert [[one.name for one in batch] for batch in in_batches(arms, 2)] == [
        ["unpatched", "penalty-1.15", "cure", "cure/sham-1"],
        ["other"],
    ]
    assert [len(batch) for batch in in_batches(arms, 0)] == [1] * 5


def test_names_in_slots_are_unused_ones() -> None:
    assert unused_name("cure", []) == "cure"
    assert unused_name("cure", ["cure", "cure-2"]) == "cure-3"
    assert unused_name("none", []) == "none-2"
    assert len(unused_name("a" * 64, ["a" * 64])) <= 64


def noting(server: FakeVllm, notes: Path) -> HttpBackend:
    backend = HttpBackend(server.url)
    backend.keep_notes(notes)
    return backend


def test_what_a_killed_trial_left_in_slots_is_taken_out_by_the_one_that_goes_on(
    server: FakeVllm, protocol: str, tmp_path: Path
) -> None:
    server.slots = 1
    notes = tmp_path / "slots.json"
    killed = noting(server, notes)
    killed.require([unpatched(), of_patch(CURE)])
    killed.hold([of_patch(CURE)])
    assert list(server.filled) == ["cure"]
    again = noting(server, notes)
    again.require([unpatched(), of_patch(CURE)])
    assert again.room == 1
    assert again.hold([of_patch(CURE)]).ids == {"cure": CURE.id}
    assert again.restore() is None
    assert server.filled == {}
    assert json.loads(notes.read_text())["names"] == []
    killed.close()
    again.close()


@pytest.mark.parametrize("content", ["", "[]", '{"url": "http://elsewhere", "names": ["theirs"]}'])
def test_notes_that_say_nothing_of_this_server_are_left(server: FakeVllm, tmp_path: Path, content: str) -> None:
    server.slots, server.filled = 2, {"theirs": ANOTHER}
    notes = tmp_path / "slots.json"
    notes.write_text(content)
    backend = noting(server, notes)
    backend.require([unpatched()])
    backend.hold([unpatched()])
    assert server.filled == {"theirs": ANOTHER}
    backend.close()
