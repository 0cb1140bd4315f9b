# SPDX-License-Identifier: Apache-2.0
"""In each worker: putting the edits into the served model's weight stream, and telling what was applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.load import SurgicalLoad
from vllm_surgery.engine.request import logger, model_facts, requested_patches
from vllm_surgery.errors import EngineError, SurgeryError

if TYPE_CHECKING:
    from collections.abc import Callable

_LOAD = "_vllm_surgery_load"


def load_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Around `Worker.load_model`. Without a patch in the settings it hands straight through."""

    def load_model(self: Any, **kwargs: Any) -> Any:
        patches = requested_patches(self.vllm_config)
        if not patches:
            logger.debug("vllm-surgery: no patch asked for; weights are loaded as they are")
            return original(self, **kwargs)
        try:
            if kwargs.get("load_dummy_weights"):
                raise EngineError(f"{patches.id}: elastic expert-parallel scale-up can't be combined with a patch")
            load = SurgicalLoad(patches, model_facts(self.vllm_config))
            target = _Target(load)
            with touchpoints.MODEL_BUILT.wrapped(target.hook):
                result = original(self, **kwargs)
            if target.streamed is None or target.streamed is not self.get_model():
                load_format = self.vllm_config.load_config.load_format
                raise EngineError(
                    f"{patches.id}: --load-format {load_format} didn't read the model through a checkpoint stream, "
                    "so the patch was not applied"
                )
            load.finish()
        except SurgeryError as error:
            # Said here too, since vLLM's own processes only print where it came from.
            logger.error("vllm-surgery refuses to serve: %s", error)
            raise
        setattr(self, _LOAD, load)
        return result

    return load_model


class _Target:
    """Finds the served model among those that are built during a load.

    Inner models of a multimodal model are built before the one that holds them, and a draft model after the target
    has its weights; neither may be edited (an inner one would be edited twice).
    """

    def __init__(self, load: SurgicalLoad) -> None:
        self.load = load
        self.streamed: Any = None

    def hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Around the function that vLLM calls with each newly built model."""

        def record_metadata_for_reloading(model: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(model, *args, **kwargs)
            if self.streamed is None:
                self._attach(model)
            return result

        return record_metadata_for_reloading

    def _attach(self, model: Any) -> None:
        for inner in model.modules():
            if isinstance(inner.__dict__.get("load_weights"), _EditedLoadWeights):
                del inner.__dict__["load_weights"]
        model.__dict__["load_weights"] = _EditedLoadWeights(self, model)


class _EditedLoadWeights:
    """A model's `load_weights` with the edits in its stream. It stays, so that later reloads are edited too."""

    def __init__(self, target: _Target, model: Any) -> None:
        self._target, self._model, self._original = target, model, model.load_weights

    def __call__(self, weights: Any, *args: Any, **kwargs: Any) -> Any:
        if self._target.streamed is None:
            self._target.streamed = self._model
        return self._original(self._target.load.edit_stream(weights), *args, **kwargs)


def report(worker: Any) -> dict[str, Any]:
    """What `worker` applied, as plain data that crosses processes. Never raises."""
    load: SurgicalLoad | None = getattr(worker, _LOAD, None)
    if load is None or load.plan is None:
        return {"id": None}
    return {
        "id": load.plan.id,
        "units": load.plan.units,
        "tensors": len(load.plan.edits),
        "milliseconds": load.seconds * 1000,
    }
