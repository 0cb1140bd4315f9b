# SPDX-License-Identifier: Apache-2.0
"""Masks of one layer's router: masked experts' logits become the lowest number, and are verified not to be chosen.

It is done where vLLM hands a layer's logits to whatever chooses experts by them, which is one place for all families,
kernels and parallel layouts. Which experts are masked stands in a tensor of the device, so CUDA graphs and compiled
code look it up at every step; what has to be there before they are made is the looking up. A layer without masks
computes what vLLM computes, and nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.server_config import logger
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_BUFFER = "_vllm_surgery_masked"
"""Where a layer keeps its tensor of masked experts. It is no torch buffer: vLLM deletes those that it didn't make when
it loads weights anew."""

PROBE = 64.0
"""A logit with which an expert is sure to be chosen if it can be: softmax leaves the others next to nothing, and a
sigmoid reaches 1."""


@dataclass(frozen=True, eq=False)
class MaskableRouter:
    """A layer's router on this rank, as vLLM's MoE runner.

    Attributes:
        layer: which.
        path: the runner's name in the model.
        runner: vLLM's module.
    """

    layer: int
    path: str
    runner: Any

    @property
    def buffer(self) -> torch.Tensor | None:
        """Mask of the experts, ``[experts]`` bool; None where no mask is looked up."""
        found: torch.Tensor | None = self.runner.__dict__.get(_BUFFER)
        return found

    def masked(self) -> tuple[int, ...]:
        """Masked experts, ascending."""
        buffer = self.buffer
        return () if buffer is None else tuple(buffer.nonzero().flatten().tolist())

    def why_not(self) -> str | None:
        """Reason why logits can't be masked here; None where they can."""
        known, own = touchpoints.MASKING.owner(), type(self.runner)
        if own is not known:  # It, or the model that it is made for, may ask experts past what is wrapped.
            return f"{self.path}: {own.__name__} chooses experts in its own way, so none can be masked"
        if getattr(self.runner.router, "e_score_correction_bias", None) is not None:
            return f"{self.path}: its router has a correction bias under a name that isn't known, so none can be masked"
        return None

    def install(self) -> None:
        """Makes this layer look its masks up from now on; there are none yet."""
        if self.buffer is not None:
            return
        count = int(self.runner.moe_config.num_logical_experts)
        device = next((parameter.device for parameter in self.runner.parameters()), torch.device("cpu"))
        buffer = torch.zeros(count, dtype=torch.bool, device=device)
        self.runner.__dict__[_BUFFER] = buffer
        self.runner.__dict__[touchpoints.MASKING.name] = _masking(touchpoints.MASKING.of(self.runner), buffer)

    def remove(self) -> None:
        """Undoes `install`."""
        for name in (_BUFFER, touchpoints.MASKING.name):
            self.runner.__dict__.pop(name, None)

    def write(self, experts: Iterable[int]) -> None:
        """Masks these experts and no others, in place."""
        assert self.buffer is not None
        chosen = torch.zeros(self.buffer.shape, dtype=torch.bool)
        chosen[list(experts)] = True
        self.buffer.copy_(chosen)

    def check(self, experts: Iterable[int]) -> None:
        """Checks that these experts are masked and no others, and that the router chooses none of them.

        Raises:
            EngineError: they aren't, or it does.
        """
        wanted = tuple(experts)
        if self.masked() != wanted:
            raise EngineError(f"{self.path}: experts {list(self.masked())} are masked instead of {list(wanted)}")
        if wanted:
            self.check_choices(wanted)

    def check_choices(self, masked: Iterable[int], gate: Any = None) -> None:
        """Checks that the router chooses none of these experts, however good their logits are.

        Args:
            masked: the experts.
            gate: the layer that makes the logits, where its bias is what masks.

        Raises:
            EngineError: it chooses one.
        """
        try:
            chosen = self._choices(gate)
        except Exception as error:  # What was written is read back anyway.
            logger.warning("vllm-surgery: %s can't be asked, so its masks aren't verified: %s", self.path, error)
            return
        if wrong := chosen & {*masked}:
            raise EngineError(f"{self.path}: its router chooses expert {min(wrong)}, which is masked")

    def _choices(self, gate: Any) -> set[int]:
        """Experts that the router chooses where each in turn has by far the best logit."""
        config, device = self.runner.moe_config, next(self.runner.parameters()).device
        count = int(config.num_logical_experts)
        states = torch.zeros(count, config.hidden_dim, dtype=config.in_dtype, device=device)
        with torch.no_grad():
            logits = torch.eye(count, device=device) * PROBE
            if gate is not None:
                biases = gate(states[:, : gate.input_size])
                logits = logits + (biases[0] if isinstance(biases, tuple) else biases)
            route = touchpoints.MOE_ROUTING.of(self.runner.router)
            _, experts = route(states, masked_logits(logits, self.buffer), torch.int32)
        return {*experts.flatten().tolist()}


def lowest(dtype: torch.dtype) -> float:
    """The lowest logit of a number format, which bfloat16 holds too: kernels may round wider formats to that."""
    return float(max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min))


def masked_logits(logits: torch.Tensor, masked: torch.Tensor | None) -> torch.Tensor:
    """Copy of `logits`, ``[tokens, experts or more]``, with those of masked experts `lowest`.

    The lowest number stands for minus infinity, which some kernels take for a mistake. Behind the routed experts'
    logits there may be those of shared ones.
    """
    if masked is None:
        return logits
    if logits.shape[-1] > masked.shape[0]:
        masked = torch.nn.functional.pad(masked, (0, logits.shape[-1] - masked.shape[0]))
    return logits.masked_fill(masked, lowest(logits.dtype))


def _masking(original: Callable[..., Any], masked: torch.Tensor) -> Callable[..., Any]:
    def apply_quant_method(hidden_states: torch.Tensor, router_logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(hidden_states, masked_logits(router_logits, masked), *args, **kwargs)

    return apply_quant_method
