# SPDX-License-Identifier: Apache-2.0
"""One rank's share of a swap, step by step; the coordinator calls the same step on every rank.

stage (nothing is touched yet) -> apply -> verify -> commit; or, at any point, restore. What a part of the model is to
hold is always computed from the checkpoint's original weights, never from what is in memory, so a thousand swaps drift
by nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.masks.model import label
from vllm_surgery.engine.model_parts import OWN_KERNELS, parts_of
from vllm_surgery.engine.swap.verify_columns import check_columns, check_parameter
from vllm_surgery.engine.swap.verify_experts import ExpertProbe, changed_inside, expert_gains
from vllm_surgery.engine.swap.writer import NotWrittenError
from vllm_surgery.errors import EngineError
from vllm_surgery.planning.check import check_patches
from vllm_surgery.weights.arithmetic import apply_edit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from vllm_surgery.engine.model_parts import ModulePart
    from vllm_surgery.engine.swap.source_checkpoint import SourceCheckpoint
    from vllm_surgery.engine.swap.writer import Writer
    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.patch.units import Effect
    from vllm_surgery.planning.planner import Plan, TensorEdit

READY_BYTES = 1 << 30
"""Edited tensors that a rank holds ready before the pause. Larger swaps compute the rest inside the pause, one tensor
at a time, so that no swap needs memory for a second model."""


_OWN = "its model has kernels of its own, which may read weights otherwise than the layer does that was asked"
_UNASKED = "it is no layer that can be asked for columns, or more than columns of one tensor changed"


@dataclass(frozen=True)
class Verified:
    """The outcome of reading back what a swap wrote on one rank.

    Attributes:
        places: columns, numbers, experts and routers that were read back and are right.
        unverified: how many parts couldn't be read back, by why.
    """

    places: int
    unverified: dict[str, int]


@dataclass
class Active:
    """Patches that a model in memory holds.

    Attributes:
        patches: the patches.
        plan: what they came to on this model.
        epoch: how many swaps there were before.
        since: when it went in, in seconds since 1970.
        before: the patches that it took the place of; None where there was no swap.
    """

    patches: PatchSet
    plan: Plan
    epoch: int = 0
    since: float = field(default_factory=time.time)
    before: PatchSet | None = None


class Swap:
    """Change from one patch set to another on one rank. Making it is the stage step: it reads, and writes nothing.

    Args:
        active: what the model holds.
        patches: what it is to hold.
        checkpoint: the files.
        model: the served model.
        writer: into it.

    Raises:
        PatchError, MismatchError: the patches aren't for this model.
        CannotSwapError: the checkpoint changed, or it can't be told where in memory a tensor went.
    """

    def __init__(
        self, active: Active, patches: PatchSet, checkpoint: SourceCheckpoint, model: Any, writer: Writer
    ) -> None:
        checkpoint.check_unchanged()
        self.old = active
        self._checkpoint = checkpoint
        self._writer = writer
        self.new = Active(patches, check_patches(patches, checkpoint.folder), active.epoch + 1, before=active.patches)
        self._before, self._after = (_Tensors(checkpoint, patched.plan) for patched in (self.old, self.new))
        before, after = self._before.edits, self._after.edits
        tensors = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        self.parts = parts_of(model, tensors, checkpoint.names)
        self._masks = writer.masks.stage(self.old.plan.engine_masks(), self.new.plan.engine_masks())
        self.changed = [*tensors, *map(label, self._masks.changed)]
        self._columns = {name: _columns(before.get(name), after.get(name)) for name in tensors}
        for part in self.parts:
            writer.check_room(part, self._columns_of(part))
        self._own_kernels = _has_own_kernels(model)
        self._probes: dict[ModulePart, ExpertProbe] = {}
        self._touched: list[ModulePart] = []
        self._after.hold_ready(name for part in self.parts for name in part.tensors)
        checkpoint.check_unchanged()  # Again: what is held ready was read after the first look.

    @property
    def modules(self) -> int:
        """Number of parts of the model that are written on this rank, routers' masks among them."""
        return len(self.parts) + len(self._masks.changes)

    def covered(self) -> list[str]:
        """Names of the changed tensors and routers' masks of which this rank holds at least a share."""
        tensors = {name for part in self.parts for name in part.tensors} & {*self.changed}
        return [*sorted(tensors), *(label(change.router.layer) for change in self._masks.changes)]

    def apply(self) -> None:
        """Writes the new weights.

        Raises:
            EngineError: a part couldn't be written. Others may have been.
        """
        self._probes = {part: self._probe(part) for part in self.parts if part.holds_experts}
        self._write(self.parts, self._after)
        self._masks.write()

    def verify(self) -> Verified:
        """Reads back what was written, where the backend lets it be read.

        Raises:
            EngineError: the model doesn't hold what was written.
            CannotSwapError: the checkpoint changed while the last tensors were read from it.
        """
        if not self._after.all_ready:
            self._checkpoint.check_unchanged()
        unverified: Counter[str] = Counter()
        places = self._masks.verify()
        for part in self.parts:
            if part.holds_experts:
                places, reason = places + self._probes[part].check(), self._probes[part].unasked
            else:
                checked = self._check(part, self._after)
                places, reason = places + (checked or 0), _UNASKED if checked is None else None
            if self._own_kernels and part.parameter is None:
                reason = reason or _OWN
            unverified.update([reason] if reason else [])
        self._check_router_biases()
        return Verified(places, dict(unverified))

    def settle(self) -> None:
        """Releases the tensors that were held ready: all are written."""
        self._after.let_go()

    def restore(self) -> None:
        """Writes the old weights wherever new ones were written, and verifies them.

        Raises:
            EngineError: it can't be done; what the model holds isn't known.
            CannotSwapError: the same, since the checkpoint is no longer the one that was loaded.
        """
        self._masks.restore()
        touched = tuple(self._touched)
        self._write(touched, self._before)
        for part in touched:
            if not part.holds_experts:
                self._check(part, self._before)
            elif part in self._probes:
                self._probes[part].check_unchanged()
        if touched:
            self._checkpoint.check_unchanged()

    def _probe(self, part: ModulePart) -> ExpertProbe:
        old, new = self._before.edits, self._after.edits
        before, after = (expert_gains(part.tensors, edits) for edits in (old, new))
        inside = changed_inside(part.tensors, old, new, self._checkpoint)
        return ExpertProbe(part, before, after, self._writer.vllm_config, inside)

    def _write(self, parts: Iterable[ModulePart], tensors: _Tensors) -> None:
        for part in parts:
            self._touched.append(part)
            try:
                self._writer.write(part, tensors, self._columns_of(part))
            except NotWrittenError:
                self._touched.remove(part)
                raise

    def _check(self, part: ModulePart, tensors: _Tensors) -> int | None:
        if part.parameter is not None:
            return check_parameter(part, tensors)
        columns = self._columns_of(part)
        return None if columns is None else check_columns(part, tensors, columns)

    def _check_router_biases(self) -> None:
        masks = {mask.tensor: mask for mask in self.new.plan.masks}
        for part in self.parts:
            if part.parameter is not None and (mask := masks.get(part.tensors[0])):
                self._writer.masks.check_bias(mask, part)

    def _columns_of(self, part: ModulePart) -> tuple[int, ...] | None:
        """Columns that differ, where the part is fed by one tensor of which columns are edited."""
        touched = [name for name in part.tensors if name in self._columns]
        return self._columns[touched[0]] if len(touched) == 1 else None


def _has_own_kernels(model: Any) -> bool:
    return any(type(module).__module__.startswith(OWN_KERNELS) for module in model.modules())


class _Tensors:
    """Tensors of the checkpoint, each with its edit.

    Args:
        checkpoint: the files.
        plan: the edits.

    Attributes:
        all_ready: whether no tensor has to be read any more.
    """

    def __init__(self, checkpoint: SourceCheckpoint, plan: Plan) -> None:
        self._checkpoint = checkpoint
        self.edits = {edit.tensor: edit for edit in plan.edits}
        self._ready: dict[str, torch.Tensor] = {}
        self.all_ready = False

    def __call__(self, name: str) -> torch.Tensor:
        if name in self._ready:
            return self._ready[name]
        tensor = self._checkpoint.tensor(name)
        edit = self.edits.get(name)
        return tensor if edit is None else apply_edit(tensor, edit)

    def hold_ready(self, names: Iterable[str]) -> None:
        """Computes tensors in advance, as many of the first ones as there is room for."""
        size = 0
        for name in names:
            size += self._checkpoint.folder.stored[name].size
            if size > READY_BYTES:
                return
            self._ready[name] = self(name)
        self.all_ready = True

    def let_go(self) -> None:
        """Undoes `hold_ready`."""
        self._ready.clear()


def _columns(before: TensorEdit | None, after: TensorEdit | None) -> tuple[int, ...] | None:
    """Columns of a matrix that two edits of it treat differently; None where they aren't about columns."""
    gains: list[dict[int, Effect]] = []
    for edit in (before, after):
        if edit is not None and (edit.axis != 1 or len(edit.shape) != 2):  # noqa: PLR2004 - a matrix
            return None
        gains.append({} if edit is None else dict(zip(edit.indices, edit.gains, strict=True)))
    both = sorted({*gains[0], *gains[1]})
    return tuple(index for index in both if gains[0].get(index) != gains[1].get(index))


class Staging:
    """Swap that is being staged in a thread, while tokens are served.

    Args:
        token: names the swap, so that only its leader goes on with it.
        make: makes the swap.

    Attributes:
        committed: whether the swap is over, and only kept to be undone.
        applied: whether weights may have been written.
        used: when its leader was last heard of, on the monotonic clock.
    """

    def __init__(self, token: str, make: Callable[[], Swap]) -> None:
        self.token = token
        self.started = time.perf_counter()
        self.seconds = 0.0
        self.committed = self.applied = False
        self.used = time.monotonic()
        self._make = make
        self._swap: Swap | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="vllm-surgery-stage", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """True until staging is over."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits until staging is over, for `seconds` at most."""
        self._thread.join(seconds)

    def swap(self) -> Swap:
        """The staged swap.

        Raises:
            EngineError: it isn't staged yet.
            Exception: whatever staging it failed with.
        """
        if self._error is not None:
            raise self._error
        if self._swap is None:
            raise EngineError("the swap is not staged")
        return self._swap

    def _run(self) -> None:
        try:
            self._swap = self._make()
        except Exception as error:  # Handed to whoever asks for the swap.
            self._error = error
        self.seconds = time.perf_counter() - self.started
