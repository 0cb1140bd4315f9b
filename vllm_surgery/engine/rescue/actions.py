# SPDX-License-Identifier: Apache-2.0
"""Actions on an answer that loops, as people write them: ``stop``, ``penalty:1.15``, ``patch:NAME``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vllm_surgery.errors import UsageError
from vllm_surgery.loops import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_surgery.loops import Kind

OBSERVE, STOP, PENALTY, TEMPERATURE, PATCH = "observe", "stop", "penalty", "temperature", "patch"
NAMES = (STOP, PENALTY, TEMPERATURE, PATCH)
"""Names of all actions that change an answer, for metrics."""

MOST_RESCUES = 2
"""How often an answer is let go on. Should it loop once more, it is stopped."""

_MOST_PENALTY, _MOST_TEMPERATURE = 2.0, 2.0
"""The largest values that vLLM takes."""

_PATCH_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
_FORMS = "observe, stop, penalty:1.15, temperature:0.7 or patch:NAME"

Written: TypeAlias = "str | list[str]"
"""Actions as people write them: one, several with commas between, or a list."""


@dataclass(frozen=True)
class Action:
    """What is done to an answer that loops.

    Attributes:
        name: `STOP`, or how it goes on: `PENALTY`, `TEMPERATURE` or `PATCH`.
        value: of the penalty or the temperature; 0 for the others.
        patch: whose name; empty for the others.
    """

    name: str
    value: float = 0.0
    patch: str = ""

    @classmethod
    def parse(cls, text: object) -> Action:
        """The action that is written so.

        Raises:
            UsageError: there is no such action, or its value is out of range.
        """
        name, colon, given = str(text).strip().partition(":")
        if isinstance(text, str):
            if name == STOP and not colon:
                return cls(STOP)
            if name == PENALTY and (value := _number(given)) is not None and 1 < value <= _MOST_PENALTY:
                return cls(PENALTY, value)
            if name == TEMPERATURE and (value := _number(given)) is not None and 0 < value <= _MOST_TEMPERATURE:
                return cls(TEMPERATURE, value)
            if name == PATCH and _PATCH_NAME.fullmatch(given):
                return cls(PATCH, patch=given)
            if name == PENALTY and colon:
                raise UsageError(f"on_loop: {text}: a penalty is above 1 and up to {_MOST_PENALTY:g}")
            if name == TEMPERATURE and colon:
                raise UsageError(f"on_loop: {text}: a temperature is above 0 and up to {_MOST_TEMPERATURE:g}")
        raise UsageError(f"on_loop: {_shown(text)} is no action; there are {_FORMS}")

    def __str__(self) -> str:
        return f"{self.name}:{self.patch or format(self.value, 'g')}" if self.name != STOP else STOP

    def again(self) -> Action:
        """What is done should the answer, under this action, loop again and nothing else be left to try.

        A penalty doubles its distance from 1, since the same one would write the same again; a temperature draws other
        tokens; a patch has shown that it doesn't help.
        """
        if self.name == PENALTY:
            return Action(PENALTY, min(1 + 2 * (self.value - 1), _MOST_PENALTY))
        return self if self.name == TEMPERATURE else Action(STOP)


def parse_actions(written: object) -> tuple[Action, ...]:
    """Actions to be tried in turn; none for `OBSERVE`.

    Raises:
        UsageError: one isn't an action, or the list can't be carried out as it is.
    """
    items = written if isinstance(written, list) else str(written).split(",") if isinstance(written, str) else [written]
    if items == [OBSERVE]:
        return ()
    actions = tuple(Action.parse(item) for item in items)
    going_on = [action for action in actions if action.name != STOP]
    if not actions:
        raise UsageError(f"on_loop: names no action; there are {_FORMS}")
    if STOP in [action.name for action in actions[:-1]]:
        raise UsageError("on_loop: nothing can be done after stop; put it last")
    if len(going_on) > MOST_RESCUES:
        raise UsageError(f"on_loop: an answer goes on at most {MOST_RESCUES} times; name so many actions, and stop")
    if len({*going_on}) < len(going_on):
        raise UsageError(f"on_loop: {going_on[0]} is named twice; alone it is tried twice anyway")
    return actions


@dataclass(frozen=True)
class Policy:
    """What is done about each kind of loop.

    Attributes:
        actions: to be tried in turn, by kind; a kind that isn't there is only observed.
    """

    actions: Mapping[Kind, tuple[Action, ...]]

    @classmethod
    def parse(cls, written: Written | Mapping[str, Written]) -> Policy:
        """The policy that is written so: actions for every kind but doom, or a mapping of kinds to theirs.

        A doom loop has no onset that could be taken back to, so that it is acted upon only where it is named.

        Raises:
            UsageError: there is no such kind or action.
        """
        if not isinstance(written, dict):
            actions = parse_actions(written)
            return cls({kind: actions for kind in KINDS if actions and kind != "doom"})
        unknown = [kind for kind in written if kind not in KINDS]
        if unknown:
            raise UsageError(f"on_loop: {_shown(unknown[0])} is no kind of loop; there are {', '.join(KINDS)}")
        parsed = {kind: parse_actions(written[kind]) for kind in KINDS if kind in written}
        return cls({kind: actions for kind, actions in parsed.items() if actions})

    @property
    def all_actions(self) -> frozenset[Action]:
        """Every action that some kind names."""
        return frozenset(action for actions in self.actions.values() for action in actions)

    @property
    def only_stops(self) -> bool:
        """True if nothing that loops ever goes on."""
        return not self.all_actions - {Action(STOP)}

    def stop(self, kind: Kind) -> Action | None:
        """What to do about a loop of an answer that can't be continued: it is stopped where that may ever happen."""
        return Action(STOP) if Action(STOP) in self.actions.get(kind, ()) else None

    def __str__(self) -> str:
        told = {kind: ", then ".join(map(str, actions)) for kind, actions in self.actions.items()}
        return "; ".join(f"{kind}: {actions}" for kind, actions in told.items()) or OBSERVE

    def next(self, kind: Kind, tried: Iterable[Action]) -> Action | None:
        """What to do about a loop, after what was tried in the same answer; None: nothing."""
        actions, before = self.actions.get(kind, ()), list(tried)
        if not actions:
            return None
        if len(before) >= MOST_RESCUES:
            return Action(STOP)
        if len(before) < len(actions):
            return actions[len(before)]
        return before[-1].again()


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"  # noqa: PLR2004 - whole for any action that there is
