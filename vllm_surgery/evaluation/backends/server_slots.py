# SPDX-License-Identifier: Apache-2.0
"""A trial's arms in the slots of a running server, beside what others have there."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vllm_surgery.atomic_files import atomic_write
from vllm_surgery.errors import CannotSwapError, ServerError, SurgeryError, UsageError
from vllm_surgery.evaluation.backends.base import Held
from vllm_surgery.evaluation.backends.chat import Choice
from vllm_surgery.evaluation.backends.slot_names import renamed, unused_name
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import NO_PATCH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vllm_surgery.client.client import SurgeryClient
    from vllm_surgery.client.protocol import ServerState
    from vllm_surgery.evaluation.arms import Arm


class ServerSlots:
    """The slots of one server, as far as a trial may use them.

    Args:
        client: of the server.

    Attributes:
        notes: a file that says what was put in, so that whoever goes on after a kill takes it out; None for no notes.
        room: slots that hold nothing that anybody uses or could choose; 0 on a server without slots, or one whose
            weights hold a patch.
    """

    def __init__(self, client: SurgeryClient) -> None:
        self._client = client
        self.notes: Path | None = None
        self.room = 0
        self._there: dict[str, str] = {}
        self._choices: dict[str, Choice] = {}
        self._filled: list[str] = []

    def look(self, state: ServerState | None) -> None:
        """Finds out what the server has room for."""
        if state is None or state.slots is None or state.tensors:
            return
        offered = {patch.name for patch in state.slots.patches if not patch.leaving}
        self._filled = [name for name in self._noted() if name in offered]
        held = [
            patch
            for patch in state.slots.patches
            if patch.name not in self._filled and (patch.users or not patch.leaving)
        ]
        self._there = {patch.name: patch.id for patch in held if not patch.leaving}
        self.room = max(0, state.slots.count - len(held))

    def choice(self, arm: str) -> Choice | None:
        """What a request says that is to be made under an arm; None where arms aren't held."""
        return self._choices.get(arm)

    def hold(self, arms: Sequence[Arm]) -> Held:
        """Puts the patches of all arms into slots, each by itself: one that is refused takes no other with it.

        Raises:
            UsageError: a slot holds another patch of the name that one has in the server's folders.
            SurgeryError: the server is gone.
        """
        self.release()
        held = Held()
        for arm in arms:
            try:
                held.ids[arm.name], self._choices[arm.name] = self._hold(arm)
            except (ServerError, CannotSwapError) as error:
                held.refused[arm.name] = error
        return held

    def release(self) -> None:
        """Takes out what was put in.

        Raises:
            SurgeryError: the server refuses, or is gone.
        """
        filled, self._filled, self._choices = self._filled, [], {}
        if filled:
            self._client.change_slots(free=filled)
            self._note()

    def _hold(self, arm: Arm) -> tuple[str, Choice]:
        """The id of an arm's patch, and how requests choose it."""
        if not arm.patches:
            return NO_PATCH, Choice(NO_PATCH, NO_PATCH)
        (patch,) = arm.patches
        if isinstance(patch, str):
            return self._hold_named(patch)
        wanted = Patch.from_data(patch, arm.name)
        if self._there.get(wanted.name) == wanted.id:
            return wanted.id, Choice(wanted.name, wanted.id)
        name = unused_name(wanted.name, {*self._there, *self._filled})
        chosen = Patch.from_data(renamed(patch, name), arm.name)
        self._fill(name, chosen.to_data())
        return wanted.id, Choice(name, chosen.id)

    def _hold_named(self, file: str) -> tuple[str, Choice]:
        """A patch that lies in the server's folders, where it has its own name."""
        known = {patch.name: patch.id for patch in self._client.patches().patches}
        patch_id = known.get(file)
        if patch_id is None:
            raise CannotSwapError(f"the server has no sound patch named {file}")
        name = patch_id.partition("@")[0]
        there = self._there.get(name)
        if there not in {None, patch_id} or name in self._filled:
            # Swapping it in would put it into that slot, under those who use it.
            raise UsageError(f"{file}: a slot of the server holds another patch named {name}; free that first")
        if there is None:
            self._fill(name, file)
        return patch_id, Choice(name, patch_id)

    def _fill(self, name: str, patch: Any) -> None:
        self._filled.append(name)
        self._note()  # Before it is true: a name that isn't there does no harm.
        try:
            self._client.change_slots([patch])
        except SurgeryError:
            self._filled.remove(name)
            raise

    def _noted(self) -> list[str]:
        """What a trial put in that was killed."""
        if self.notes is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):
                found = json.loads(self.notes.read_text())
                return [str(name) for name in found["names"]] if found["url"] == self._client.url else []
        return []

    def _note(self) -> None:
        if self.notes is not None:
            atomic_write(self.notes, json.dumps({"url": self._client.url, "names": self._filled}) + "\n")
