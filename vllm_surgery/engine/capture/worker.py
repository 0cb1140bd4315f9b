# SPDX-License-Identifier: Apache-2.0
"""Worker-side handlers of a capture: mean activities of units over one transcript.

Between `start` and `take` the engine is to be given that transcript, as one prompt, and nothing else. As in
`vllm_surgery.engine.swap.worker` no exception ever leaves this module: what goes wrong inside a forward pass is kept,
and `take` says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.capture.recorders import ExpertRecorder, NeuronRecorder, Rows
from vllm_surgery.engine.model_parts import Layers
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.engine.rpc_errors import failure_of
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CAPTURE_METHOD = "vllm_surgery_capture"
"""The name under which `capture` is a method of every worker."""

_STATE = "_vllm_surgery_capture"
"""Where a worker keeps its `Capture`, while there is one."""

_NONE = "NONE"
"""What vLLM calls both its mode without compilation and its mode without CUDA graphs."""

_DOWN = "mlp.down_proj"
"""What a dense MLP's neurons go into, in every family of `vllm_surgery.model.conventions`; experts have other names."""


@dataclass(frozen=True)
class Capture:
    """Recorders in one worker's model, for one transcript.

    Attributes:
        recorders: one a dense MLP, one a layer's routed experts.
        total: rows that each has to see.
    """

    recorders: tuple[NeuronRecorder | ExpertRecorder, ...]
    total: int

    def stop(self) -> None:
        """Removes all hooks; the recorded sums stay."""
        for recorder in self.recorders:
            recorder.stop()

    def result(self) -> list[dict[str, Any]]:
        """Results of all recorders, as plain data.

        Raises:
            EngineError: one failed, or saw another number of rows, or numbers that aren't finite.
        """
        for recorder in self.recorders:
            if recorder.error is not None:
                raise EngineError(f"{recorder.path}: what it computes can't be recorded: {recorder.error}")
            if recorder.rows.seen < self.total:
                raise EngineError(
                    f"{recorder.path} computed {recorder.rows.seen} rows of a transcript's {self.total}: "
                    "the rest came from a cache, or never came"
                )
        return [recorder.result() for recorder in self.recorders]


def capture(worker: Any, name: str, **payload: Any) -> dict[str, Any]:
    """Carries out one step of a capture on `worker`. Never raises.

    Steps:
        start: hooks in, for ``total`` rows of which ``groups``, pairs of first and one past the last, are averaged.
        take: hooks out; gives ``layers``, see `NeuronRecorder.result` and `ExpertRecorder.result`.
        stop: hooks out, whatever was before.

    Returns:
        ``{"ok": True}`` with what the step gives, or ``{"ok": False, "kind": …, "error": …}``.
    """
    try:
        return {"ok": True, **_STEPS[name](worker, **payload)}
    except Exception as error:  # See the module's docstring.
        return failure_of(error)


def _start(worker: Any, total: int, groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    _stop(worker)
    _check(worker.vllm_config)
    ranges = tuple(range(first, stop) for first, stop in groups)
    found = Capture(tuple(_recorders(worker.get_model(), worker.model_config, total, ranges)), total)
    if not found.recorders:
        raise EngineError("no layer here has an MLP or experts of a kind that is known")
    setattr(worker, _STATE, found)
    try:
        for recorder in found.recorders:
            recorder.start()
    except Exception:
        _stop(worker)
        raise
    return {}


def _take(worker: Any) -> dict[str, Any]:
    found: Capture | None = getattr(worker, _STATE, None)
    if found is None:
        raise EngineError("nothing is being recorded here")
    _stop(worker)
    return {"layers": found.result()}


def _stop(worker: Any) -> dict[str, Any]:
    found: Capture | None = worker.__dict__.pop(_STATE, None)
    if found is not None:
        found.stop()
    return {}


_STEPS: dict[str, Callable[..., dict[str, Any]]] = {"start": _start, "take": _take, "stop": _stop}


def _check(config: Any) -> None:
    """Refuses an engine in which hooks don't run, or don't see the rows of one prompt in order."""
    compilation, parallel = config.compilation_config, config.parallel_config
    if compilation.mode.name != _NONE or compilation.cudagraph_mode.name != _NONE:
        raise EngineError("a compiled engine computes past its modules: start it with enforce_eager")
    if parallel.data_parallel_size > 1 or getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise EngineError("with data or context parallelism no rank sees a whole transcript")
    if getattr(parallel, "enable_eplb", False):
        raise EngineError("with expert load balancing it isn't known which copy is which expert")


def _recorders(model: Any, config: Any, total: int, groups: tuple[range, ...]) -> list[NeuronRecorder | ExpertRecorder]:
    layers = Layers(model)
    runners = layers.runners(touchpoints.MASKING.owner()) if touchpoints.MASKING.there else {}
    found: list[NeuronRecorder | ExpertRecorder] = []
    for layer in range(int(config.hf_text_config.num_hidden_layers)):
        for path, module in _only_one(layers.below(layer, _DOWN)):
            found.append(NeuronRecorder(layer, path, module, Rows(total, groups)))
        for path, runner in _only_one(runners.get(layer, [])):
            OFFERS["localize"].check()
            found.append(ExpertRecorder(layer, path, runner, Rows(total, groups)))
        if layers.experts(layer) and layer not in runners:
            raise EngineError(f"layer {layer}: its experts are chosen in a way that isn't known")
    return found


def _only_one(found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    if len(found) > 1:
        raise EngineError(f"one layer has several: {' and '.join(path for path, _ in found)}")
    return found
