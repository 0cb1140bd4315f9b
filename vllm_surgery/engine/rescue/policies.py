# SPDX-License-Identifier: Apache-2.0
"""What a server does about loops, and what a request may ask for instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.engine.rescue.actions import OBSERVE, PATCH, STOP, Action, Policy, parse_actions
from vllm_surgery.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_surgery.engine.rescue.actions import Written


@dataclass(frozen=True)
class Policies:
    """The policy of a server, and of its requests.

    Attributes:
        default: of requests that ask for none.
        allowed: the actions that a request may ask for.
    """

    default: Policy
    allowed: frozenset[Action]

    @classmethod
    def parse(cls, written: Written | Mapping[str, Written], allowed: Iterable[str], *, slots: bool) -> Policies:
        """Those that are written so.

        Args:
            written: the default's actions, or a mapping of kinds to theirs.
            allowed: further actions that a request may ask for.
            slots: whether there are any, for actions that take a patch.

        Raises:
            UsageError: one of them is wrong.
        """
        default = Policy.parse(written)
        policies = cls(default, default.all_actions | {Action.parse(item) for item in allowed} | {Action(STOP)})
        of_patches = sorted(str(action) for action in policies.allowed if action.name == PATCH)
        if of_patches and not slots:
            raise UsageError(
                f"on_loop: {of_patches[0]} needs slots (--patch-slots), where single requests have patches"
            )
        return policies

    def of_request(self, asked: object) -> Policy:
        """The policy of a request.

        Args:
            asked: what it says; None for nothing.

        Raises:
            UsageError: that is no action, or not allowed.
        """
        if asked is None:
            return self.default
        for action in parse_actions(asked):
            if action not in self.allowed:
                allowed = ", ".join([OBSERVE, *sorted(map(str, self.allowed))])
                raise UsageError(f"on_loop: this server doesn't allow {action}; a request may ask for {allowed}")
        return Policy.parse(asked)  # type: ignore[arg-type]  # As `parse_actions` took it.
