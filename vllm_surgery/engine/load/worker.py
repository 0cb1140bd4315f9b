# SPDX-License-Identifier: Apache-2.0
"""Worker-side hook of a load: edits the served model's weight stream, and keeps what later swaps need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.load.weight_stream import SurgicalLoad
from vllm_surgery.engine.requests.worker import install_slots
from vllm_surgery.engine.server_config import logger, model_facts, weight_patches
from vllm_surgery.engine.settings import Settings
from vllm_surgery.engine.swap.rank import Active
from vllm_surgery.engine.swap.source_checkpoint import SourceCheckpoint, local_folder
from vllm_surgery.engine.swap.support import why_not
from vllm_surgery.engine.swap.worker import STATE, WorkerSurgery
from vllm_surgery.engine.swap.writer import Writer
from vllm_surgery.errors import EngineError, SurgeryError, one_line
from vllm_surgery.planning.planner import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.patch.patch_set import PatchSet


def load_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Worker.load_model`. Without a patch in the settings the weights come through as they are."""

    def load_model(self: Any, **kwargs: Any) -> Any:
        patches = weight_patches(self.vllm_config)
        if not patches:
            logger.debug("vllm-surgery: no patch asked for; weights are loaded as they are")
        try:
            if patches and kwargs.get("load_dummy_weights"):
                raise EngineError(f"{patches.id}: elastic expert-parallel scale-up can't be combined with a patch")
            target = _Target(SurgicalLoad(patches, model_facts(self.vllm_config)) if patches else None)
            with touchpoints.MODEL_BUILT.wrapped(target.hook):
                result = original(self, **kwargs)
            surgery = _surgery(self, target, patches)
            if count := Settings.of(self.vllm_config.additional_config).slots:
                install_slots(self, count)
        except SurgeryError as error:
            # Said here too, since vLLM's own processes only print where it came from.
            logger.error("vllm-surgery refuses to serve: %s", error)
            raise
        setattr(self, STATE, surgery)
        return result

    return load_model


def _surgery(worker: Any, target: _Target, patches: PatchSet) -> WorkerSurgery:
    """State of a worker whose model was just loaded.

    Raises:
        SurgeryError: the patches were not applied to it.
    """
    config, model = worker.vllm_config, worker.get_model()
    streamed = target.streamed is not None and target.streamed is model
    if patches and not streamed:
        raise EngineError(
            f"{patches.id}: --load-format {config.load_config.load_format} didn't read the model through a checkpoint "
            "stream, so the patch was not applied"
        )
    load = target.load
    active = Active(patches, Plan(patches.id, (), 0) if load is None else load.finish())
    hook: _EditedLoadWeights | None = model.__dict__.get("load_weights") if streamed else None
    writer = Writer(model, model.load_weights if hook is None else hook.original, config)
    everywhere = Settings.of(config.additional_config).mask_buffers
    writer.masks.install(active.plan.engine_masks(), everywhere=everywhere)
    checkpoint, reason = _source_checkpoint(config, streamed)
    surgery = WorkerSurgery(worker, active, writer, checkpoint, reason, 0.0 if load is None else load.seconds)
    if hook is not None:
        hook.surgery = surgery
    return surgery


def _source_checkpoint(vllm_config: Any, streamed: bool) -> tuple[SourceCheckpoint | None, str | None]:
    """The checkpoint, or the reason why swaps are impossible."""
    try:
        reason = why_not(vllm_config, streamed)
        return (SourceCheckpoint(local_folder(vllm_config)), None) if reason is None else (None, reason)
    except SurgeryError as error:
        return None, str(error)
    except Exception as error:  # A server that can't swap still serves, whatever this vLLM did to us.
        logger.exception("vllm-surgery: can't tell whether patches can be swapped, so they can't")
        return None, one_line(f"{type(error).__name__}: {error}")


class _Target:
    """Finds the served model among those that are built during a load.

    Inner models of a multimodal model are built before the one that holds them, and a draft model after the target
    has its weights; neither may be edited (an inner one would be edited twice).
    """

    def __init__(self, load: SurgicalLoad | None) -> None:
        self.load = load
        self.streamed: Any = None

    def hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps the function that vLLM calls with each newly built model."""

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
        self._target, self._model, self.original = target, model, model.load_weights
        self.surgery: WorkerSurgery | None = None

    def __call__(self, weights: Any, *args: Any, **kwargs: Any) -> Any:
        if self._target.streamed is None:
            self._target.streamed = self._model
        load = self._target.load if self.surgery is None else self._reload(self.surgery)
        return self.original(weights if load is None else load.edit_stream(weights), *args, **kwargs)

    def _reload(self, surgery: WorkerSurgery) -> SurgicalLoad | None:
        """Edits for weights that somebody else loads while the model is served: those that are active by then.

        They may be other weights than the checkpoint's, as in reinforcement learning, so a swap can't go back to that.
        """
        surgery.cannot_swap = "weights were loaded since the start by something else than a swap"
        patches = surgery.active.patches
        return SurgicalLoad(patches, model_facts(surgery.worker.vllm_config)) if patches else None
