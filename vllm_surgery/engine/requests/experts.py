# SPDX-License-Identifier: Apache-2.0
"""One layer's routed experts on one rank: gains on the router's weights, masks on its logits, by each token's slot.

An expert's gain multiplies all that it gives, so it may as well multiply the weight with which the router takes it.
A mask is the lowest logit, as in `vllm_surgery.engine.masks.router`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.model_parts import OWN_KERNELS
from vllm_surgery.engine.requests.opaque import mask_logits, weigh_experts

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.engine.masks.router import MaskableRouter
    from vllm_surgery.engine.requests.content import LayerGains
    from vllm_surgery.engine.requests.tokens import TokenSlots


class ExpertTable:
    """Gains and masks of one layer's experts in all slots.

    Args:
        slots: rows, the one for no patch among them.
        count: of experts, over all ranks.
        device: of the model.
        no_gains: why they can't have gains here; None where they can.
        no_masks: why none can be masked here.

    Attributes:
        gains: ``[slots, experts]``, float32.
        masked: ``[slots, experts]``.
        has_gains, has_masks: whether a slot has some.
    """

    def __init__(
        self, slots: int, count: int, device: torch.device, no_gains: str | None = None, no_masks: str | None = None
    ) -> None:
        self.count, self.no_gains, self.no_masks = count, no_gains, no_masks
        self.gains = torch.ones(slots, count, device=device)
        self.masked = torch.zeros(slots, count, dtype=torch.bool, device=device)
        self.has_gains = self.has_masks = False

    def write(self, slot: int, gains: LayerGains | None, masked: tuple[int, ...]) -> None:
        """Makes a row say this of its experts; None and none: nothing."""
        row, mask = torch.ones(self.count), torch.zeros(self.count, dtype=torch.bool)
        if gains is not None:
            row[list(gains.indices)] = torch.tensor(gains.gains)
        mask[list(masked)] = True
        self.gains[slot].copy_(row)
        self.masked[slot].copy_(mask)
        self.has_gains, self.has_masks = bool(self.gains.ne(1).any()), bool(self.masked.any())


def install_experts(router: MaskableRouter, slots: int, tokens: TokenSlots, *, traced: bool) -> ExpertTable:
    """Puts a table into a layer's router.

    Args:
        router: the layer's on this rank.
        slots: rows of the table.
        tokens: which slot is whose.
        traced: whether graphs will hold what is done, so that it has to be done at every step.
    """
    path, runner = router.path, router.runner
    device = next((tensor.device for tensor in runner.parameters()), tokens.slots.device)
    count = int(runner.moe_config.num_logical_experts)
    table = ExpertTable(slots, count, device, _no_gains(path, runner), router.why_not() or why_not_local(path, runner))
    if table.no_masks is None:
        # Before tokens of other ranks join: `tokens` knows this rank's alone. And where no swap of masks takes it out.
        dispatch = touchpoints.MOE_DISPATCH
        runner.__dict__[dispatch.name] = _masking(dispatch.of(runner), table, tokens, traced)
    if table.no_gains is None:
        routing = touchpoints.MOE_ROUTING
        runner.router.__dict__[routing.name] = _gaining(routing.of(runner.router), table, tokens, traced)
    return table


def _no_gains(path: str, runner: Any) -> str | None:
    """The reason why a gain on the router's weight isn't a gain of the expert's output here; None where it is."""
    if type(runner).__module__.startswith(OWN_KERNELS):
        return f"{path}: {type(runner).__name__} asks experts past its router, so slots can't"
    if runner.is_monolithic:
        return f"{path}: its kernel chooses and weighs experts by itself, so in slots they can have masks but no gains"
    if getattr(runner.routed_experts, "apply_router_weight_on_input", False):
        return f"{path}: the router's weight multiplies what experts get, not what they give, so slots can't"
    if type(runner.router).__name__ == "ZeroExpertRouter" or not hasattr(runner.router, touchpoints.MOE_ROUTING.name):
        return f"{path}: {type(runner.router).__name__} weighs experts in its own way, so slots can't"
    if runner.do_naive_dispatch_combine:
        return f"{path}: tokens of other ranks are routed here too, and their slots aren't known"
    return why_not_local(path, runner)


def why_not_local(path: str, runner: Any) -> str | None:
    """The reason why it isn't known whose tokens this rank's runner gets; None where it is."""
    if getattr(runner.moe_config, "is_sequence_parallel", False):
        return f"{path}: ranks share a batch's tokens out among themselves, so their slots aren't known"
    return None


def _masking(dispatch: Callable[..., Any], table: ExpertTable, tokens: TokenSlots, traced: bool) -> Callable[..., Any]:
    masked, slots = table.masked, tokens.slots

    def maybe_dispatch(hidden_states: torch.Tensor, router_logits: torch.Tensor) -> Any:
        if traced or (tokens.any and table.has_masks):
            router_logits = mask_logits(router_logits, masked, slots)
        return dispatch(hidden_states, router_logits)

    return maybe_dispatch


def _gaining(route: Callable[..., Any], table: ExpertTable, tokens: TokenSlots, traced: bool) -> Callable[..., Any]:
    gains, slots = table.gains, tokens.slots

    def compute_routing(*args: Any, **kwargs: Any) -> Any:
        weights, experts = route(*args, **kwargs)
        if traced or (tokens.any and table.has_gains):
            weights = weigh_experts(weights, experts, gains, slots)
        return weights, experts

    return compute_routing
