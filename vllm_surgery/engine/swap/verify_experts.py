# SPDX-License-Identifier: Apache-2.0
"""Verification of routed experts by probing them with the same input before and after a swap.

Their weights are packed by every backend in its own way, and no one-hot input goes through a gated MLP. But a gain on
an expert is a gain on its answer, and an expert that isn't edited must answer as before, to the last bit. One inside of
which neurons are edited may answer otherwise only by what these neurons write: their columns of the down projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from vllm_surgery.engine.server_config import logger
from vllm_surgery.errors import EngineError, one_line
from vllm_surgery.model.conventions import classify_tensor
from vllm_surgery.weights.tensors import of_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_surgery.engine.model_parts import ModulePart
    from vllm_surgery.engine.swap.source_checkpoint import SourceCheckpoint
    from vllm_surgery.patch.units import Effect
    from vllm_surgery.planning.planner import TensorEdit

MOST_EXPERTS = 8
"""Edited experts asked in one layer, and as many that aren't: a sample where there are more."""

TOLERANCE = 2.0**-5
"""Relative to the answer's length. Four steps of bfloat16: weights and the answer are each rounded to it. A sign, a
zero or another expert's answer is never so close."""


TOLERANCE_INSIDE = 2.0**-7
"""The same beside what edited neurons write. Twice what rounding an answer to bfloat16 may move it by; one of some
thousand neurons moves it by more."""

MOST_NEURONS = 64
"""Edited neurons of one expert beside which an answer still proves something in little time."""

_ROUNDED_AWAY = "an expert answers as before: its edited neurons are another rank's, or say too little to be seen"
_TOO_MANY = f"more than {MOST_NEURONS} neurons inside one expert were edited, so its answer proves nothing"

NOISE_PROBES = 3
"""How often an expert is asked again whose answer isn't what it was. Kernels that add in no fixed order answer a little
differently each time, and only then is a small difference no fault."""


class ExpertProbe:
    """Probe of a layer's experts: their answers before they are written, to compare with those after.

    Args:
        part: the experts.
        before: the gain of each edited expert while `before` was active; 1 where it isn't named.
        after: the same for what will be active.
        vllm_config: of the server.
        inside: by expert the neurons whose gains change, where single ones do.

    Attributes:
        unasked: why experts can't be asked, or what their answers don't show; None where they can and do.
    """

    def __init__(
        self,
        part: ModulePart,
        before: Mapping[int, float],
        after: Mapping[int, float],
        vllm_config: Any,
        inside: Mapping[int, NeuronsInside] = MappingProxyType({}),
    ) -> None:
        self._part, self._before, self._after, self._inside = part, before, after, inside
        self._answers: dict[int, torch.Tensor] = {}
        self.unasked: str | None = None
        if not _may_be_asked(vllm_config):
            self.unasked = "with data parallelism an expert's answer may wait for other engines"
            return
        count = int(part.module.global_num_experts)
        scaled = {index for index in {*before, *after} if before.get(index, 1.0) != after.get(index, 1.0)}
        changed = sorted(scaled | {*inside})
        others = [index for index in range(count) if index not in set(changed)]
        asked = [*_sample(changed), *_sample(others)]
        try:
            self._answers = {index: _probe(part.module, index) for index in asked}
        except Exception as error:  # Nothing is written yet, and a backend that can't be asked can still be swapped.
            self._answers = {}
            self.unasked = one_line(f"its experts can't be asked: {type(error).__name__}: {error}")
            logger.warning("vllm-surgery: %s isn't verified: %s", part.path, self.unasked)

    def check(self) -> int:
        """Compares the experts' answers now with those before; returns how many were asked.

        Raises:
            EngineError: one doesn't answer with its new gain, or one that isn't edited answers differently.
        """
        places = 0
        for index, old in self._answers.items():
            gains = self._before.get(index, 1.0), self._after.get(index, 1.0)
            if index in self._inside and bool(old.any()):  # One that another rank holds answers with zeros.
                reason = self._why_unseen(index, old, *gains)
                self.unasked = self.unasked or reason
                places += reason is None
                continue
            if not self._answers_as(index, old, *gains):
                raise self._fault(index)
            places += 1
        return places

    def _fault(self, index: int) -> EngineError:
        return EngineError(f"{self._part.path}: expert {index} doesn't answer as its weights say")

    def _why_unseen(self, index: int, old: torch.Tensor, before: float, after: float) -> str | None:
        """Why an expert's answer doesn't show that edited neurons inside it were written; None where it does.

        Raises:
            EngineError: it shows that something else was.
        """
        new, inside = _probe(self._part.module, index), self._inside[index]
        if len(inside.neurons) > MOST_NEURONS:
            return _TOO_MANY
        if 0 in (before, after) or not bool(old.isfinite().all()):
            if not self._answers_as(index, old, before, after):
                raise self._fault(index)
            return None
        moved = new - old / before * after
        if not bool(moved.any()):
            return _ROUNDED_AWAY
        columns = inside.columns()
        moved = moved[: len(columns)]
        along = columns @ torch.linalg.lstsq(columns, moved.unsqueeze(1), driver="gelsd").solution[:, 0]
        rest = (moved - along).norm()
        if not bool(rest <= TOLERANCE_INSIDE * torch.maximum(old.norm(), new.norm())):
            raise self._fault(index)
        return None if bool(along.norm() > rest) else _ROUNDED_AWAY

    def check_unchanged(self) -> None:
        """Checks that every expert answers as at first, after the old weights were written again.

        Raises:
            EngineError: one doesn't.
        """
        for index, old in self._answers.items():
            if not self._answers_as(index, old, 1.0, 1.0):
                raise EngineError(f"{self._part.path}: expert {index} doesn't answer as it did before")

    def _answers_as(self, index: int, old: torch.Tensor, before: float, after: float) -> bool:
        """True if an expert's answer went from one gain to the other; as exactly as its kernel answers at all."""
        new = _probe(self._part.module, index)
        if _follows(old, new, before, after):
            return True
        again = (_probe(self._part.module, index) for _ in range(NOISE_PROBES))
        return any(not torch.equal(new, other) for other in again) and _close(old, new, before, after)


def expert_gains(names: Iterable[str], edits: Mapping[str, TensorEdit]) -> dict[int, float]:
    """Gain of each expert that is edited in the tensors of these names."""
    gains: dict[int, float] = {}
    for name in names:
        edit, role = edits.get(name), classify_tensor(name)
        if edit is None or role is None or role.block != "experts":
            continue
        if role.expert is not None and edit.axis is not None:
            continue  # Of neurons inside it.
        named = edit.indices if role.expert is None else (role.expert,)
        gains.update((index, gain) for index, gain in zip(named, edit.gains, strict=True) if isinstance(gain, float))
    return gains


@dataclass(frozen=True)
class NeuronsInside:
    """Neurons of one expert whose gains change.

    Attributes:
        tensor: the expert's down projection, or that of all experts.
        place: the expert's along that tensor's first axis; None where the tensor is its own.
        axis: of the expert's matrix, the one that counts neurons.
        neurons: ascending.
        checkpoint: which has the tensor.
    """

    tensor: str
    place: int | None
    axis: int
    neurons: tuple[int, ...]
    checkpoint: SourceCheckpoint

    def columns(self) -> torch.Tensor:
        """What the neurons write: ``[hidden, neurons]`` in float64, as the checkpoint has it."""
        info = self.checkpoint.folder.stored[self.tensor].info
        axis, index, shape = (None, 0, info.shape) if self.place is None else (0, self.place, info.shape[1:])
        matrix = of_bytes(self.checkpoint.folder.read_slice(self.tensor, axis, index), info.dtype).view(shape)
        chosen = matrix.index_select(self.axis, torch.tensor(self.neurons)).double()
        return chosen if self.axis == 1 else chosen.t()


def changed_inside(
    names: Iterable[str],
    before: Mapping[str, TensorEdit],
    after: Mapping[str, TensorEdit],
    checkpoint: SourceCheckpoint,
) -> dict[int, NeuronsInside]:
    """By expert, the neurons inside it that two plans treat differently, in the tensors of these names."""
    found: dict[int, NeuronsInside] = {}
    for name in names:
        role = classify_tensor(name)
        if role is None or role.block != "experts":
            continue
        old, new = (_edits_inside(edits.get(name), role.expert) for edits in (before, after))
        for expert in sorted({*old, *new}):
            gains = [_gains(edits.get(expert)) for edits in (old, new)]
            neurons = tuple(n for n in sorted({*gains[0], *gains[1]}) if gains[0].get(n) != gains[1].get(n))
            axis = (old.get(expert) or new[expert]).axis
            if neurons and axis is not None:
                found[expert] = NeuronsInside(name, expert if role.stacked else None, axis, neurons, checkpoint)
    return found


def _edits_inside(edit: TensorEdit | None, expert: int | None) -> dict[int, TensorEdit]:
    """By expert, the edits of its own matrix in a tensor that is one expert's, or that all share."""
    if edit is None or expert is None:
        return {} if edit is None else dict(edit.inside)
    return {} if edit.axis is None else {expert: edit}


def _gains(edit: TensorEdit | None) -> dict[int, Effect]:
    return {} if edit is None else dict(zip(edit.indices, edit.gains, strict=True))


def _may_be_asked(vllm_config: Any) -> bool:
    """True unless, with data parallelism, an expert's answer may wait for other engines, which aren't asked now."""
    return int(vllm_config.parallel_config.data_parallel_size) == 1


def _sample(indices: list[int]) -> list[int]:
    return indices[:: -(-len(indices) // MOST_EXPERTS) or 1]


def _probe(module: Any, index: int) -> torch.Tensor:
    """Answer of one expert to a fixed input, ``[hidden]``; zeros on a rank that doesn't hold it."""
    device = module.w13_weight.device
    generator = torch.Generator().manual_seed(index)
    question = torch.randn(1, module.hidden_size, generator=generator).to(device, module.params_dtype)
    with torch.no_grad():
        answer = module.quant_method.apply(
            layer=module,
            x=question,
            topk_weights=torch.ones(1, 1, dtype=torch.float32, device=device),
            topk_ids=torch.full((1, 1), index, dtype=torch.int32, device=device),
            shared_experts=None,
            shared_experts_input=None,
        )
    return torch.as_tensor(answer)[0].double().cpu()


def _follows(old: torch.Tensor, new: torch.Tensor, before: float, after: float) -> bool:
    """True if an answer went from one gain to the other. From a gain of 0 nothing is known but that it isn't NaN."""
    return bool(torch.equal(old, new)) if before == after else _close(old, new, before, after)


def _close(old: torch.Tensor, new: torch.Tensor, before: float, after: float) -> bool:
    if not bool(old.isfinite().all()) or before == 0:
        return bool(new.isfinite().all()) or not bool(old.isfinite().all())
    expected = old / before * after
    return bool((new - expected).norm() <= TOLERANCE * expected.norm())
