# SPDX-License-Identifier: Apache-2.0
"""Edits of a model's weights while vLLM streams them from the checkpoint.

In that stream every tensor is whole, un-fused and un-sharded, under its Hugging Face name: the plan's coordinates,
whatever the loader, the parallel layout and the hardware do with it afterwards.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from vllm_surgery.model.tensor_info import TensorInfo
from vllm_surgery.planning.check import PatchCheck
from vllm_surgery.weights.arithmetic import apply_edit
from vllm_surgery.weights.tensors import dtype_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vllm_surgery.model.config import ModelFacts
    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.planning.planner import Plan


class SurgicalLoad:
    """One load of one model in one process: plans, edits and verifies tensor by tensor.

    Args:
        patches: what is asked for.
        facts: what the model's config says.

    Raises:
        MismatchError: the config alone shows that the patches are not for this model.
    """

    def __init__(self, patches: PatchSet, facts: ModelFacts) -> None:
        self.seconds = 0.0
        self._check = PatchCheck(patches, facts)

    def edit_stream(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields `weights` with edited copies of tensors: in the same order, one at a time, the originals untouched.

        Raises:
            MismatchError, CheckpointError, SurgeryError: as soon as a tensor shows that the patches can't be applied.
        """
        for name, tensor in weights:
            started = time.perf_counter()
            edited = self._edit(name, tensor)
            self.seconds += time.perf_counter() - started
            yield name, edited

    def finish(self) -> Plan:
        """Checks that every unit was found and every seal holds. Later streams (reloads) are edited all the same.

        Raises:
            MismatchError: they were not.
        """
        started = time.perf_counter()
        plan = self._check.finish()
        self.seconds += time.perf_counter() - started
        return plan

    def _edit(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        info = TensorInfo(name, dtype_word(tensor.dtype), tuple(tensor.shape))
        edit = self._check.observe(info, partial(_slice_bytes, tensor))
        return tensor if edit is None else apply_edit(tensor, edit)


def _slice_bytes(tensor: torch.Tensor, axis: int | None, index: int) -> bytes:
    numbers = (tensor if axis is None else tensor.select(axis, index)).contiguous().cpu()
    return bytes(numbers.view(torch.uint8).numpy().tobytes())
