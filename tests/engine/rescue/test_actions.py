# SPDX-License-Identifier: Apache-2.0
"""Actions as people write them, and which comes when."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_surgery.engine.rescue.actions import Action, Policy, parse_actions
from vllm_surgery.engine.rescue.policies import Policies
from vllm_surgery.engine.settings import Settings
from vllm_surgery.errors import UsageError

STOP = Action("stop")
PENALTY = Action("penalty", 1.15)
WARM = Action("temperature", 0.7)
CURE = Action("patch", patch="cure")


@pytest.mark.parametrize(
    ("written", "actions"),
    [
        ("observe", ()),
        ("stop", (STOP,)),
        ("penalty:1.15", (PENALTY,)),
        ("penalty:1.15,temperature:0.7, stop", (PENALTY, WARM, STOP)),
        (["patch:cure", "stop"], (CURE, STOP)),
    ],
)
def test_actions_are_read(written: object, actions: tuple[Action, ...]) -> None:
    assert parse_actions(written) == actions


FORMS = "there are observe, stop, penalty:1.15, temperature:0.7 or patch:NAME"


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("restart", f"on_loop: 'restart' is no action; {FORMS}"),
        ("", f"on_loop: '' is no action; {FORMS}"),
        ([], f"on_loop: names no action; {FORMS}"),
        (7, f"on_loop: 7 is no action; {FORMS}"),
        ("stop:now", f"on_loop: 'stop:now' is no action; {FORMS}"),
        ("patch:../x", f"on_loop: 'patch:../x' is no action; {FORMS}"),
        ("penalty", f"on_loop: 'penalty' is no action; {FORMS}"),
        ("x" * 100, f"on_loop: '{'x' * 58}… is no action; {FORMS}"),
        ("penalty:1", "on_loop: penalty:1: a penalty is above 1 and up to 2"),
        ("penalty:nan", "on_loop: penalty:nan: a penalty is above 1 and up to 2"),
        ("temperature:0", "on_loop: temperature:0: a temperature is above 0 and up to 2"),
        ("temperature:inf", "on_loop: temperature:inf: a temperature is above 0 and up to 2"),
        ("stop,penalty:1.15", "on_loop: nothing can be done after stop; put it last"),
        ("penalty:1.15,penalty:1.15", "on_loop: penalty:1.15 is named twice; alone it is tried twice anyway"),
        (
            "penalty:1.1,penalty:1.2,penalty:1.3",
            "on_loop: an answer goes on at most 2 times; name so many actions, and stop",
        ),
        ({"spin": "stop"}, "on_loop: 'spin' is no kind of loop; there are "),
    ],
)
def test_what_is_no_action_is_refused(written: Any, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        Policy.parse(written)
    assert str(refused.value).startswith(reason)


def test_an_action_is_for_every_kind_but_doom_unless_kinds_are_named() -> None:
    assert "doom" not in Policy.parse("stop").actions
    assert {"verbatim", "decay"} <= {*Policy.parse("stop").actions}
    assert Policy.parse({"doom": "stop", "decay": "observe"}).actions == {"doom": (STOP,)}
    assert Policy.parse("observe").actions == {}


@pytest.mark.parametrize(
    ("written", "turns"),
    [
        ("stop", [STOP]),
        ("penalty:1.15", [PENALTY, Action("penalty", 1 + 2 * (1.15 - 1)), STOP]),
        ("penalty:1.8", [Action("penalty", 1.8), Action("penalty", 2.0), STOP]),
        ("temperature:0.7", [WARM, WARM, STOP]),
        ("patch:cure", [CURE, STOP]),
        ("patch:cure,penalty:1.15", [CURE, PENALTY, STOP]),
        ("penalty:1.15,stop", [PENALTY, STOP]),
    ],
)
def test_actions_are_tried_in_turn_and_the_last_is_to_stop(written: str, turns: list[Action]) -> None:
    policy = Policy.parse(written)
    tried: list[Action] = []
    while not tried or tried[-1] != STOP:
        action = policy.next("verbatim", tried)
        assert action is not None
        tried.append(action)
    assert tried == turns


def test_a_kind_without_actions_is_only_observed() -> None:
    policy = Policy.parse({"verbatim": "stop"})
    assert policy.next("decay", []) is None
    assert policy.stop("decay") is None


def test_a_policy_reads_as_it_is_written() -> None:
    assert str(Policy.parse({"verbatim": "penalty:1.15,stop"})) == "verbatim: penalty:1.15, then stop"
    assert str(Policy.parse("observe")) == "observe"


def test_a_request_may_ask_for_what_is_allowed() -> None:
    policies = Policies.parse("penalty:1.15", ["temperature:0.7"], slots=False)
    assert policies.of_request(None) == policies.default
    assert policies.of_request("observe").actions == {}
    assert policies.of_request(["temperature:0.7", "stop"]).next("decay", []) == WARM
    with pytest.raises(
        UsageError, match=r"doesn't allow penalty:1.2; a request may ask for observe, penalty:1.15, stop"
    ):
        policies.of_request("penalty:1.2")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"on_loop": "spin"}, "on_loop: 'spin' is no action"),
        ({"on_loop": "patch:cure"}, "on_loop: patch:cure needs slots"),
        ({"on_loop": "observe", "on_loop_allowed": ["patch:cure"]}, "on_loop: patch:cure needs slots"),
        ({"on_loop": "stop", "detect_loops": False}, "on_loop: needs detect_loops"),
        ({"on_loop_allowed": ["stop"]}, "on_loop_allowed: needs on_loop, which may be observe"),
        ({"on_loop_hold_back": 8}, "on_loop_hold_back: needs on_loop, since nothing else takes tokens back"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Settings.of({"vllm_surgery": settings})
