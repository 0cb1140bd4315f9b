# SPDX-License-Identifier: Apache-2.0
"""Worker-side handlers of a swap: steps by name, plain data in and out, no exception ever.

An exception would leave the replies of the other ranks in vLLM's queues, and the next call to all of them would read
those: the server would hang.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.rpc_errors import failure_of
from vllm_surgery.engine.server_config import logger
from vllm_surgery.engine.swap.rank import Active, Staging, Swap
from vllm_surgery.errors import (
    CannotSwapError,
    ConflictError,
    MixedWeightsError,
)
from vllm_surgery.patch.patch_set import PatchSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.engine.swap.source_checkpoint import SourceCheckpoint
    from vllm_surgery.engine.swap.writer import Writer

STATE = "_vllm_surgery"
"""Where a worker keeps its `WorkerSurgery`."""

STEP_METHOD = "vllm_surgery_step"
REPORT_METHOD = "vllm_surgery_report"
"""The names under which `step` and `report` are methods of every worker."""

LEASE_SECONDS = 300.0
"""How long a swap stays its leader's who isn't heard of. Leaders are heard of every `BEAT_SECONDS` while they wait for
requests to end, and between two steps of an engine otherwise."""

EXIT_MIXED = 70
"""What a worker process ends with rather than serve mixed weights (EX_SOFTWARE of sysexits.h)."""

FIRST_LOOK_SECONDS = 0.01
"""How long the first step waits for staging. Patches of a few neurons are staged by then, and a further question would
wait for a whole step of the engine: longer than this on every server that is at work."""

MIXED = "weights are mixed after a failed swap"


def _refuse_to_execute(*_: Any, **__: Any) -> Any:
    raise MixedWeightsError(MIXED)


@dataclass
class WorkerSurgery:
    """State of the model that one worker serves.

    Attributes:
        worker: vLLM's worker.
        active: what the model holds.
        writer: into it.
        checkpoint: its files; None where it can't be read again.
        cannot_swap: why patches can't be swapped, or None.
        seconds: what applying the first patches took of the load.
    """

    worker: Any
    active: Active
    writer: Writer
    checkpoint: SourceCheckpoint | None
    cannot_swap: str | None
    seconds: float = 0.0
    _staging: Staging | None = None
    _given_up: str | None = None

    def state(self) -> dict[str, Any]:
        """State of this worker, as plain data."""
        plan = self.active.plan
        return {
            "id": plan.id,
            "patches": [[member.patch.name, member.patch.id] for member in self.active.patches.members],
            "units": plan.units,
            "tensors": len(plan.edits),
            "milliseconds": self.seconds * 1000,
            "epoch": self.active.epoch,
            "since": self.active.since,
            "cannot_swap": self.cannot_swap,
        }

    def begin(self, token: str, patches: list[dict[str, Any]], if_epoch: int | None) -> dict[str, Any]:
        """Starts to stage a swap in the background; returns what `poll` does.

        A swap whose leader hasn't been heard of for `LEASE_SECONDS` is over: its process is gone. What it had written
        is undone first.

        Raises:
            ConflictError: another swap runs, or the epoch is another.
            CannotSwapError: this model can't be swapped.
        """
        self._make_room(token)
        if if_epoch is not None and if_epoch != self.active.epoch:
            raise ConflictError(f"the epoch is {self.active.epoch}, not {if_epoch}: patches were swapped in between")
        if self.cannot_swap is not None or self.checkpoint is None:
            raise CannotSwapError(self.cannot_swap or "the checkpoint can't be read again")
        active, checkpoint, model, writer = self.active, self.checkpoint, self.worker.get_model(), self.writer

        def stage() -> Swap:  # Reading the patches too: this thread makes tokens meanwhile.
            return Swap(active, PatchSet.from_data(patches), checkpoint, model, writer)

        self._staging = Staging(token, stage)
        self._staging.wait(FIRST_LOOK_SECONDS)
        return self.poll(token)

    def _make_room(self, token: str) -> None:
        held = self._staging
        if held is None or held.committed or held.token == token:
            return
        if time.monotonic() - held.used < LEASE_SECONDS:
            raise ConflictError("another swap is running")
        logger.warning("vllm-surgery: nobody leads the swap that was begun before, so it is given up")
        if held.applied:
            held.swap().restore()
        self._staging, self._given_up = None, held.token

    def before(self, _token: str) -> dict[str, Any]:
        """The patches that were active before the last swap, as plain data; None where there was none."""
        before = self.active.before
        return {"patches": None if before is None else before.to_data(), "epoch": self.active.epoch}

    def poll(self, token: str) -> dict[str, Any]:
        """Progress of staging, and its result once it is done.

        Raises:
            SurgeryError: what staging failed with.
        """
        staging = self._of(token)
        if staging.running:
            return {"done": False}
        swap = staging.swap()
        return {
            "done": True,
            "previous": swap.old.plan.id,
            "epoch": swap.old.epoch,
            "units": swap.new.plan.units,
            "tensors": len(swap.new.plan.edits),
            "changed": swap.changed,
            "covered": swap.covered(),
            "modules": swap.modules,
            "seconds": staging.seconds,
        }

    def apply(self, token: str) -> dict[str, Any]:
        """Writes the new weights."""
        staging = self._of(token)
        staging.applied = True
        staging.swap().apply()
        return {}

    def verify(self, token: str) -> dict[str, Any]:
        """Verifies the new weights."""
        verified = self._of(token).swap().verify()
        return {"verified": verified.places, "unverified": verified.unverified}

    def commit(self, token: str) -> dict[str, Any]:
        """Makes the new patches the active ones. Until the next swap begins it can still be undone."""
        staging = self._of(token)
        staging.swap().settle()
        self.active = staging.swap().new
        self.active.since = time.time()
        staging.committed = True
        return {}

    def restore(self, token: str) -> dict[str, Any]:
        """Writes the weights again that were active before. Of a swap that was given up this has been done."""
        if token == self._given_up:
            return {}
        swap = self._of(token).swap()
        swap.restore()
        self.active, self._staging = swap.old, None
        return {}

    def discard(self, token: str) -> dict[str, Any]:
        """Drops a swap that wasn't applied, if it is the one that is staged."""
        if self._staging is not None and self._staging.token == token:
            self._staging = None
        return {}

    def halt(self, token: str) -> dict[str, Any]:
        """Ends this worker, whose weights are mixed, and with it the engine.

        A process that isn't vLLM's own lives on, but its engine makes no more tokens.
        """
        logger.critical("vllm-surgery: weights are mixed after a failed swap (%s); this engine stops", token)
        if multiprocessing.parent_process() is not None:
            os._exit(EXIT_MIXED)
        self.cannot_swap, self._staging = MIXED, None
        self.worker.execute_model = _refuse_to_execute
        return {}

    def _of(self, token: str) -> Staging:
        if self._staging is None or self._staging.token != token:
            raise ConflictError("this swap is not the one that is staged here")
        self._staging.used = time.monotonic()
        return self._staging


_STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "begin": WorkerSurgery.begin,
    "before": WorkerSurgery.before,
    "poll": WorkerSurgery.poll,
    "apply": WorkerSurgery.apply,
    "verify": WorkerSurgery.verify,
    "commit": WorkerSurgery.commit,
    "restore": WorkerSurgery.restore,
    "discard": WorkerSurgery.discard,
    "halt": WorkerSurgery.halt,
}


def step(worker: Any, name: str, token: str, **payload: Any) -> dict[str, Any]:
    """Carries out one step of a swap on `worker`. Never raises.

    Returns:
        ``{"ok": True, "milliseconds": …}`` with what the step gives, or ``{"ok": False, "kind": …, "error": …}``.
    """
    started = time.perf_counter()
    try:
        surgery: WorkerSurgery | None = getattr(worker, STATE, None)
        if surgery is None:
            raise CannotSwapError("the plugin did not see this model being loaded")
        result = _STEPS[name](surgery, token, **payload)
    except Exception as error:  # See the module's docstring.
        return failure_of(error)
    return {"ok": True, "milliseconds": (time.perf_counter() - started) * 1000, **result}


def report(worker: Any) -> dict[str, Any]:
    """State of `worker`, as plain data that crosses processes. Never raises."""
    surgery: WorkerSurgery | None = getattr(worker, STATE, None)
    return {"id": None} if surgery is None else surgery.state()
