# SPDX-License-Identifier: Apache-2.0
"""The slots of one rank: put in place when the model is loaded, filled by a call that takes and gives plain data.

Like the steps of a swap, what is asked of a worker here never raises.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.masks.model import compiles
from vllm_surgery.engine.masks.router import MaskableRouter
from vllm_surgery.engine.model_parts import Layers
from vllm_surgery.engine.requests.content import SlotContent
from vllm_surgery.engine.requests.experts import ExpertTable, install_experts, why_not_local
from vllm_surgery.engine.requests.neurons import NeuronTable, install_neurons
from vllm_surgery.engine.requests.runners import install_runner
from vllm_surgery.engine.requests.tokens import TokenSlots
from vllm_surgery.engine.rpc_errors import failure_of
from vllm_surgery.errors import CannotSwapError, EngineError
from vllm_surgery.patch.units import units_in_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_surgery.engine.requests.content import LayerGains
    from vllm_surgery.engine.requests.runners import Version
    from vllm_surgery.patch.units import Kind

SLOTS = "_vllm_surgery_slots"
"""The attribute of a worker that keeps its `WorkerSlots`."""

FILL_METHOD = "vllm_surgery_fill_slot"
HOLD_METHOD = "vllm_surgery_hold"
SLOTS_METHOD = "vllm_surgery_slots"
"""The names under which `fill_slot`, `hold` and `report_slots` are methods of every worker."""

_DOWN: dict[Kind, re.Pattern[str]] = {
    "neurons": re.compile(r"(?:.*\.)?layers\.\d+\.(?:mlp|feed_forward)\.down_proj"),
    "shared": re.compile(
        r"(?:.*\.)?layers\.\d+\.(?:(?:mlp|feed_forward)\.(?:shared_experts?|shared_mlp)\.down_proj|shared_mlp\.output_linear)"
    ),
}
"""The down projections before which gains of neurons of each kind go."""


@dataclass
class WorkerSlots:
    """The slots of the model that one worker serves.

    Attributes:
        count: how many patches there is room for.
        runner: which of vLLM's model runners says whose tokens come next.
        traced: whether compiled code or graphs hold the gains.
        tokens: whose token is whose.
        neurons, shared, experts: tables by layer.
        slot_of: by digest; that of no patch is 0.
        reasons: by kind and layer, why a layer can't.
        held: the digest of the patch that the weights hold; empty for none.
    """

    count: int
    runner: Version
    traced: bool
    tokens: TokenSlots
    neurons: dict[int, NeuronTable] = field(default_factory=dict)
    shared: dict[int, NeuronTable] = field(default_factory=dict)
    experts: dict[int, ExpertTable] = field(default_factory=dict)
    slot_of: dict[str, int] = field(default_factory=lambda: {"": 0})
    reasons: dict[tuple[str, int], str] = field(default_factory=dict)
    held: str = ""

    def of_request(self, digest: str) -> int:
        """The slot of a request's tokens: none, too, where the weights hold its patch."""
        return 0 if digest == self.held else self.slot_of[digest]

    def fill(self, slot: int, content: SlotContent | None) -> list[list[Any]]:
        """Makes a slot hold `content`, or nothing.

        Returns:
            The kinds and layers that this rank holds of it.

        Raises:
            CannotSwapError: this model can't have it in a slot. Nothing was changed.
        """
        if not 0 < slot <= self.count:
            raise CannotSwapError(f"there is no slot {slot}")
        if content is not None:
            self._check(content)
        self.slot_of = {digest: other for digest, other in self.slot_of.items() if other != slot}
        for layer, neurons in self.neurons.items():
            neurons.write(slot, None if content is None else content.neurons.get(layer))
        for layer, neurons in self.shared.items():
            neurons.write(slot, None if content is None else content.shared.get(layer))
        for layer, experts in self.experts.items():
            _, masked = (0, ()) if content is None else content.masks.get(layer, (0, ()))
            experts.write(slot, None if content is None else content.experts.get(layer), masked)
        if content is None:
            return []
        self.slot_of[content.digest] = slot
        return self._held(content)

    def _held(self, content: SlotContent) -> list[list[Any]]:
        tables: dict[str, Any] = {"neurons": self.neurons, "shared": self.shared, "experts": self.experts}
        return [[kind, layer] for kind, layers in content.layers.items() for layer in layers if layer in tables[kind]]

    def _check(self, content: SlotContent) -> None:
        for kind, layers in content.layers.items():
            for layer in layers:
                if (kind, layer) in self.reasons:
                    raise CannotSwapError(self.reasons[kind, layer])
        loses = any(gains.directions for gains in (*content.neurons.values(), *content.shared.values()))
        if self.traced and loses:
            raise CannotSwapError(
                "op `project` has no place in compiled code, where every request would pay for it; start the server "
                "with --enforce-eager, or without --patch-slots, so that its weights can take the patch"
            )
        _check_widths("neurons", content.neurons, self.neurons)
        _check_widths("shared", content.shared, self.shared)
        for layer, table in self.experts.items():
            if layer in content.experts and table.no_gains:
                raise CannotSwapError(table.no_gains)
            if layer in content.masks and table.no_masks:
                raise CannotSwapError(table.no_masks)


def _check_widths(kind: Kind, wanted: Mapping[int, LayerGains], tables: Mapping[int, NeuronTable]) -> None:
    for layer, gains in wanted.items():
        if layer in tables and tables[layer].count != gains.count:
            word = units_in_words(kind)
            raise CannotSwapError(
                f"layer {layer} has {gains.count} {word} in the checkpoint and {tables[layer].count} here"
            )


def install_slots(worker: Any, count: int) -> WorkerSlots:
    """Gives a model that was just loaded a place for `count` patches, before anything is compiled or captured.

    Raises:
        EngineError: its runner isn't known.
    """
    config, model, runner = worker.vllm_config, worker.get_model(), worker.model_runner
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    traced = compiles(config)
    tokens = TokenSlots(_most_tokens(config), device)
    slots = WorkerSlots(count, "V1", traced, tokens)
    slots.runner = install_runner(runner, tokens, slots.of_request)
    _install_neurons(slots, model, shared=config.lora_config is not None)
    _install_experts(slots, model)
    setattr(worker, SLOTS, slots)
    return slots


def _most_tokens(config: Any) -> int:
    """In a step, padding included."""
    graphs = getattr(config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return max(int(config.scheduler_config.max_num_batched_tokens), int(graphs))


def _install_neurons(slots: WorkerSlots, model: Any, *, shared: bool) -> None:
    tables: dict[Kind, dict[int, NeuronTable]] = {"neurons": slots.neurons, "shared": slots.shared}
    scattered = _scattered(model)
    for layer, modules in Layers(model).runners(torch.nn.Module).items():
        for name, module in modules:
            kind = next((kind for kind, pattern in _DOWN.items() if pattern.fullmatch(name)), None)
            if kind is None:
                continue
            if kind == "shared" and layer in scattered:
                slots.reasons[kind, layer] = scattered[layer]
                continue
            linear = getattr(module, "base_layer", module)  # LoRA's holds the model's own.
            try:
                tables[kind][layer] = install_neurons(
                    linear, slots.count + 1, slots.tokens, traced=slots.traced, shared=shared
                )
            except EngineError as error:
                slots.reasons[kind, layer] = f"{name}: {error}"


def _scattered(model: Any) -> dict[int, str]:
    """By layer, the reason why the shared expert there gets tokens whose slots aren't known."""
    if not touchpoints.MASKING.there:
        return {}
    runners = Layers(model).runners(touchpoints.MASKING.owner())
    found = {layer: why_not_local(*each[0]) for layer, each in runners.items()}
    return {layer: reason for layer, reason in found.items() if reason is not None}


def _install_experts(slots: WorkerSlots, model: Any) -> None:
    if not touchpoints.MASKING.there:
        return
    for layer, runners in Layers(model).runners(touchpoints.MASKING.owner()).items():
        if len(runners) > 1:
            slots.reasons["experts", layer] = f"layer {layer} has more than one router"
            continue
        slots.experts[layer] = install_experts(
            MaskableRouter(layer, *runners[0]), slots.count + 1, slots.tokens, traced=slots.traced
        )


def fill_slot(worker: Any, slot: int, content: dict[str, Any] | None) -> dict[str, Any]:
    """Fills or empties a slot of `worker`. Never raises.

    Returns:
        ``{"ok": True, "held": …, "milliseconds": …}``, or ``{"ok": False, "kind": …, "error": …}``.
    """
    started = time.perf_counter()
    try:
        found: WorkerSlots | None = getattr(worker, SLOTS, None)
        if found is None:
            raise CannotSwapError("this server was started without slots")
        held = found.fill(slot, None if content is None else SlotContent.from_data(content))
    except Exception as error:  # See the module's docstring.
        return failure_of(error)
    return {"ok": True, "held": held, "milliseconds": (time.perf_counter() - started) * 1000}


def hold(worker: Any, digest: str) -> dict[str, Any]:
    """Tells `worker` which patch its weights hold. Never raises.

    Returns:
        ``{"ok": True}``, or ``{"ok": False, "kind": …, "error": …}``.
    """
    found: WorkerSlots | None = getattr(worker, SLOTS, None)
    if found is None:
        return failure_of(CannotSwapError("this server was started without slots"))
    found.held = digest
    return {"ok": True}


def report_slots(worker: Any) -> dict[str, Any]:
    """Describes the slots of `worker`, as plain data that crosses processes. Never raises."""
    found: WorkerSlots | None = getattr(worker, SLOTS, None)
    if found is None:
        return {"slots": 0}
    return {
        "slots": found.count,
        "runner": found.runner,
        "traced": found.traced,
        "held": found.held,
        "filled": {digest: slot for digest, slot in found.slot_of.items() if digest},
        "neurons": sorted(found.neurons),
        "shared": sorted(found.shared),
        "experts": sorted(found.experts),
    }
