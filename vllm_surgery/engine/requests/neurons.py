# SPDX-License-Identifier: Apache-2.0
"""One layer's dense MLP on one rank: the gains of all slots, and their place before the down projection.

It is done around the layer's quant method, which everything calls that multiplies by the weights: the layer itself, and
LoRA beside it, whose own matrices get the activations as they were, just as they do where weights are edited.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vllm_surgery.engine.requests.content import NO_ADDEND
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.engine.requests.content import LayerGains, LostDirection
    from vllm_surgery.engine.requests.tokens import TokenSlots

DENSE_NUMBERS = 32_768
"""Activations, tokens times width, up to which multiplying all of them takes less time than picking out the few that
change: of one layer 17 µs against 19 at 24 tokens of 1,536, and 160 against 40 at 256 tokens."""


@dataclass(frozen=True)
class _Lost:
    """A direction that a slot takes from some outputs.

    Attributes:
        columns: of the neurons, on this rank.
        responses: how much each gives up, for an activation of 1; float32.
        direction: ``[hidden]``, float32.
    """

    columns: torch.Tensor
    responses: torch.Tensor
    direction: torch.Tensor


class NeuronTable:
    """Gains and addends of one layer's neurons in all slots.

    Args:
        slots: rows, the one for no patch among them.
        count: neurons of the layer, over all ranks.
        first: the first that this rank holds.
        width: how many it holds.
        device: of the model.

    Attributes:
        gains, addends: ``[slots, width]``, float32; they never move.
    """

    def __init__(self, slots: int, count: int, first: int, width: int, device: torch.device) -> None:
        self.count, self._first, self._width = count, first, width
        self.gains = torch.ones(slots, width, device=device)
        self.addends = torch.full((slots, width), NO_ADDEND, device=device)
        self._directions: dict[int, list[_Lost]] = {}
        self._find_touched()

    def write(self, slot: int, content: LayerGains | None) -> None:
        """Makes a row say what `content` says of this rank's neurons; None: nothing."""
        gains, addends = torch.ones(self._width), torch.full((self._width,), NO_ADDEND)
        for index, gain, addend in zip(*_columns(content), strict=True):
            if self._has(index):
                gains[index - self._first], addends[index - self._first] = gain, addend
        self.gains[slot].copy_(gains)
        self.addends[slot].copy_(addends)
        self._directions.pop(slot, None)
        if content is not None and content.directions:
            self._directions[slot] = [self._lost(each) for each in content.directions]
        self._find_touched()

    def _lost(self, each: LostDirection) -> _Lost:
        pairs = zip(each.indices, each.responses, strict=True)
        here = [(index - self._first, response) for index, response in pairs if self._has(index)]
        device = self.gains.device
        columns = torch.tensor([index for index, _ in here], dtype=torch.long, device=device)
        responses = torch.tensor([response for _, response in here], dtype=torch.float32, device=device)
        numbers = np.frombuffer(each.numbers, "<f4").astype(np.float32)
        return _Lost(columns, responses, torch.from_numpy(numbers).to(device))

    def _has(self, index: int) -> bool:
        return self._first <= index < self._first + self._width

    def project(self, outputs: torch.Tensor, activations: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Outputs of this rank without the directions that each token's slot takes from them; others as they are.

        Args:
            outputs: ``[..., tokens, hidden]``, before ranks are added up.
            activations: ``[..., tokens, width]``, from which they were made.
            slots: one a token.
        """
        for slot, directions in self._directions.items():
            here = (slots == slot).unsqueeze(-1)
            for lost in directions:
                much = activations.index_select(-1, lost.columns).float() @ lost.responses
                without = outputs.float() - much.unsqueeze(-1) * lost.direction
                outputs = torch.where(here, without.to(outputs.dtype), outputs)
        return outputs

    def _find_touched(self) -> None:
        adds = self.addends.cpu().ne(0).any(0)
        touched = self.gains.cpu().ne(1).any(0) | adds
        self._columns = touched.nonzero().flatten().to(self.gains.device)
        self._column_gains = self.gains.index_select(1, self._columns)
        self._column_addends = self.addends.index_select(1, self._columns) if bool(adds.any()) else None

    def change(self, activations: torch.Tensor, slots: torch.Tensor) -> None:
        """Applies the gains in place, where no graph holds it.

        Args:
            activations: ``[..., tokens, width]``.
            slots: one a token.
        """
        if not len(self._columns):
            return
        if activations.numel() <= DENSE_NUMBERS:
            activations.mul_(self.gains.index_select(0, slots))
            if self._column_addends is not None:
                activations.add_(self.addends.index_select(0, slots))
            return
        part = activations.index_select(-1, self._columns).mul_(self._column_gains.index_select(0, slots))
        if self._column_addends is not None:
            part.add_(self._column_addends.index_select(0, slots))
        activations.index_copy_(-1, self._columns, part)


def _columns(content: LayerGains | None) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    return ((), (), ()) if content is None else (content.indices, content.gains, content.addends)


def install_neurons(module: Any, slots: int, tokens: TokenSlots, *, traced: bool, shared: bool) -> NeuronTable:
    """Puts a table before a down projection.

    Args:
        module: vLLM's linear layer.
        slots: rows of the table.
        tokens: which slot is whose.
        traced: whether graphs will hold it, so that it has to run at every step, alike for all.
        shared: whether something else reads the layer's input afterwards (LoRA does).

    Raises:
        EngineError: its input can't be told to be the layer's neurons.
    """
    width = getattr(module, "input_size_per_partition", None)
    if width is None or module.input_size % width or not hasattr(module.quant_method, "apply"):
        raise EngineError(f"{type(module).__name__} isn't a down projection that is known")
    parts = module.input_size // width
    device = next((tensor.device for tensor in module.parameters()), tokens.slots.device)
    first = module.tp_rank * width if parts > 1 else 0
    table = NeuronTable(slots, module.input_size, first, width, device)
    # Of its own, since a method may serve several layers. A model that joins activation and quantisation in one kernel
    # would leave no place between them.
    method = copy.copy(module.quant_method)
    method.apply = (_traced if traced else _eager)(method.apply, table, tokens, shared)
    module.quant_method = method
    module.requires_unquantized_input = True
    return table


def _traced(apply: Callable[..., Any], table: NeuronTable, tokens: TokenSlots, _shared: bool) -> Callable[..., Any]:
    gains, addends, slots = table.gains, table.addends, tokens.slots

    def gained(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        here = slots[: x.shape[-2]]
        return apply(layer, (x * gains[here] + addends[here]).to(x.dtype), bias)

    return gained


def _eager(apply: Callable[..., Any], table: NeuronTable, tokens: TokenSlots, shared: bool) -> Callable[..., Any]:
    def gained(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        if tokens.any:
            x = x.clone() if shared else x
            slots = tokens.slots[: x.shape[-2]]
            table.change(x, slots)
            return table.project(apply(layer, x, bias), x, slots)
        return apply(layer, x, bias)

    return gained
