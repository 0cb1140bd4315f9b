# SPDX-License-Identifier: Apache-2.0
"""Masks of a model on one rank that no checkpoint can hold: installed at a load, changed by a swap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.masks.router import MaskableRouter
from vllm_surgery.engine.model_parts import Layers
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.errors import CannotSwapError, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_surgery.engine.model_parts import ModulePart
    from vllm_surgery.planning.planner import LayerMask

_GATE_BIAS = "bias"
"""What a linear layer calls its bias."""


class RouterMasks:
    """Maskable routers of one model on this rank.

    Args:
        model: the served model.
        vllm_config: of the server.
    """

    def __init__(self, model: Any, vllm_config: Any) -> None:
        self._model, self._config = model, vllm_config
        self._keep: set[int] = set()

    def install(self, masks: Mapping[int, LayerMask], *, everywhere: bool) -> None:
        """Installs the masks of a load, before anything is compiled or captured.

        Args:
            masks: by layer.
            everywhere: whether all routers get a place for masks.

        Raises:
            EngineError: a router can't be masked.
        """
        if not masks and not everywhere:
            return
        for layer, router in self._routers(masks).items():
            reason = router.why_not()
            if layer in masks and reason:
                raise EngineError(reason)
            if everywhere and not reason:
                self._keep.add(layer)
                router.install()
            if layer in masks:
                router.install()
                router.write(masks[layer].experts)
                router.check(masks[layer].experts)

    def stage(self, before: Mapping[int, LayerMask], after: Mapping[int, LayerMask]) -> MaskSwap:
        """Prepares a change of masks; nothing is written yet.

        Raises:
            CannotSwapError: a router can't be masked any more, or never could.
        """
        old, new = ({layer: mask.experts for layer, mask in masks.items()} for masks in (before, after))
        changed = sorted(layer for layer in {*old, *new} if old.get(layer) != new.get(layer))
        try:
            routers = self._routers(changed) if changed else {}
        except EngineError as error:
            raise CannotSwapError(str(error)) from None
        here = [layer for layer in changed if layer in routers]
        for layer in here:
            if reason := self._why_not(routers[layer]):
                raise CannotSwapError(reason)
        changes = [MaskChange(routers[layer], old.get(layer, ()), new.get(layer, ())) for layer in here]
        keep = {*here} if here and compiles(self._config) else self._keep
        return MaskSwap(changed, changes, frozenset(keep))

    def check_bias(self, mask: LayerMask, part: ModulePart) -> None:
        """Checks that a router doesn't choose the experts that are masked by its own bias.

        Args:
            mask: what the bias says.
            part: that holds it.

        Raises:
            EngineError: it does.
        """
        router = self._routers([]).get(mask.layer)
        if router is not None:
            router.check_choices(mask.experts, part.module if part.parameter == _GATE_BIAS else None)

    def _why_not(self, router: MaskableRouter) -> str | None:
        if router.buffer is None and compiles(self._config):
            return (
                f"layer {router.layer} was compiled without a place for masks; start with the setting mask_buffers, "
                "with a patch that masks an expert of it, or with --enforce-eager"
            )
        return router.why_not()

    def _routers(self, needed: Iterable[int]) -> dict[int, MaskableRouter]:
        """All routers on this rank, by layer.

        Raises:
            EngineError: a layer that is needed and held here has none, or more than one, or this vLLM none at all.
        """
        OFFERS["mask"].check()
        layers = Layers(self._model)
        found = layers.runners(touchpoints.MASKING.owner())
        for layer in needed:
            if len(found.get(layer, ())) != 1 and layers.holds(layer):
                raise EngineError(
                    f"it isn't known what in memory chooses experts in layer {layer}, so none can be masked"
                )
        return {layer: MaskableRouter(layer, *only[0]) for layer, only in found.items() if len(only) == 1}


@dataclass(frozen=True)
class MaskChange:
    """Change of one router's masks."""

    router: MaskableRouter
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class MaskSwap:
    """Change of a model's masks on one rank.

    Attributes:
        changed: the layers whose masks change, on any rank.
        changes: those that this rank holds.
        keep: layers in which masks are looked up even where there are none.
    """

    changed: list[int]
    changes: list[MaskChange]
    keep: frozenset[int]

    def write(self) -> None:
        """Writes the new masks."""
        for change in self.changes:
            self._put(change.router, change.after)

    def verify(self) -> int:
        """Verifies the new masks; returns how many routers were asked.

        Raises:
            EngineError: one doesn't do what its masks say.
        """
        for change in self.changes:
            change.router.check(change.after)
        return len(self.changes)

    def restore(self) -> None:
        """Writes the old masks again, and verifies them.

        Raises:
            EngineError: one doesn't do what its masks say.
        """
        for change in self.changes:
            self._put(change.router, change.before)
            change.router.check(change.before)

    def _put(self, router: MaskableRouter, experts: tuple[int, ...]) -> None:
        if not experts and router.layer not in self.keep:
            router.remove()
            return
        router.install()
        router.write(experts)


def label(layer: int) -> str:
    """Name of a router's masks among the names of tensors."""
    return f"the router of layer {layer}"


def compiles(vllm_config: Any) -> bool:
    """True if vLLM compiles the model or captures CUDA graphs of it before it serves."""
    compilation = vllm_config.compilation_config
    return bool(compilation.mode.value) or bool(compilation.cudagraph_mode.value)
