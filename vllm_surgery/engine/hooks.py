# SPDX-License-Identifier: Apache-2.0
"""What happens at each touch point: preflight, load, and verification of all ranks.

Without a patch in the settings every one of these hands straight through to vLLM.
"""

from __future__ import annotations

import logging
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.checkpoint import ModelFacts, ModelFolder
from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.load import SurgicalLoad
from vllm_surgery.engine.settings import Settings
from vllm_surgery.errors import EngineError, SurgeryError
from vllm_surgery.plan import Planner
from vllm_surgery.review import review

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.stack import PatchSet

# Below vLLM's own logger, so that its level, format and handlers apply.
logger = logging.getLogger("vllm.vllm_surgery")

# Loaders that fill the model without passing checkpoint tensors through `model.load_weights`.
_NO_CHECKPOINT_STREAM = {
    "dummy": "makes random weights",
    "sharded_state": "reads weights that vLLM has already sharded and fused",
    "runai_streamer_sharded": "reads weights that vLLM has already sharded and fused",
    "ipc_cache": "shares weights that another process has already processed",
}

REPORT_METHOD = "vllm_surgery_report"
_LOAD = "_vllm_surgery_load"


def install() -> None:
    """Puts the hooks into this process, once. Any number of calls does the same as one.

    Raises:
        EngineError: this vLLM lacks a touch point; nothing was changed.
    """
    for point in touchpoints.TOUCH_POINTS[:-1]:  # The last is for the command line alone.
        point.get()
    touchpoints.CREATE_CONFIG.wrap(_preflight_hook)
    touchpoints.LOAD_MODEL.wrap(_load_hook)
    touchpoints.ENGINE_READY.wrap(_verify_hook)
    setattr(touchpoints.WORKER_BASE.get(), REPORT_METHOD, _report)


def requested(vllm_config: Any) -> PatchSet:
    """The patches that this server was asked for.

    Raises:
        UsageError, PatchError: the settings or a patch are wrong.
    """
    return Settings.of(vllm_config.additional_config).load()


def facts_of(vllm_config: Any) -> ModelFacts:
    """The facts of the served model: from its folder's own config.json, or as vLLM read them from the Hub."""
    model_config = vllm_config.model_config
    if Path(model_config.model).is_dir():
        return ModelFolder(model_config.model).facts
    config = model_config.hf_config
    revision = getattr(config, "_commit_hash", None) or model_config.revision
    return ModelFacts.from_config(config.to_dict(), model_config.model, revision)


def preflight(vllm_config: Any) -> None:
    """Refuses what can be refused before weights are read.

    Raises:
        SurgeryError: one line with the reason.
    """
    patches = requested(vllm_config)
    if not patches:
        return
    load_format = str(vllm_config.load_config.load_format)
    if load_format in _NO_CHECKPOINT_STREAM:
        reason = _NO_CHECKPOINT_STREAM[load_format]
        raise EngineError(f"{patches.id}: --load-format {load_format} {reason}, so no patch can be applied to it")
    model = Path(vllm_config.model_config.model)
    if model.is_dir() and any(model.glob("*.safetensors")):
        review(patches, ModelFolder(model))
    else:
        Planner(patches, facts_of(vllm_config))


def _preflight_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = original(self, *args, **kwargs)
        with _refusals_logged():
            preflight(vllm_config)
        return vllm_config

    return create_engine_config


def _load_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _refusals_logged():
            patches = requested(self.vllm_config)
            if not patches:
                logger.debug("vllm-surgery: no patch asked for; weights are loaded as they are")
                return original(self, *args, **kwargs)
            if kwargs.get("load_dummy_weights") or any(args):
                raise EngineError(f"{patches.id}: elastic expert-parallel scale-up can't be combined with a patch")
            load = SurgicalLoad(patches, facts_of(self.vllm_config))
            watch = _TargetWatch(load)
            with touchpoints.MODEL_BUILT.wrapped(watch.hook):
                result = original(self, *args, **kwargs)
            if watch.streamed is None or self.get_model() is not watch.streamed:
                load_format = self.vllm_config.load_config.load_format
                raise EngineError(
                    f"{patches.id}: --load-format {load_format} didn't read the model through a checkpoint stream, "
                    "so the patch was not applied"
                )
            load.finish()
            setattr(self, _LOAD, load)
            return result

    return load_model


class _TargetWatch:
    """Finds the served model among those that are built during a load, and puts the edits into its weight stream.

    Inner models of a multimodal model are built before the one that holds them, and a draft model after the target
    has its weights; neither may be edited (an inner one would be edited twice).
    """

    def __init__(self, load: SurgicalLoad) -> None:
        self.streamed: Any = None
        self._load = load

    def hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def record_metadata_for_reloading(model: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(model, *args, **kwargs)
            if self.streamed is None:
                self._attach(model)
            return result

        return record_metadata_for_reloading

    def _attach(self, model: Any) -> None:
        for inner in model.modules():
            if getattr(inner.__dict__.get("load_weights"), "__func__", None) is _edited_load_weights:
                del inner.__dict__["load_weights"]
        original = model.load_weights
        model.__dict__["load_weights"] = types.MethodType(
            _edited_load_weights, _Stream(self, self._load, model, original)
        )


class _Stream:
    """A model's weight stream with the edits in it."""

    def __init__(self, watch: _TargetWatch, load: SurgicalLoad, model: Any, original: Callable[..., Any]) -> None:
        self.watch, self.load, self.model, self.original = watch, load, model, original


def _edited_load_weights(stream: _Stream, weights: Any, *args: Any, **kwargs: Any) -> Any:
    if stream.watch.streamed is None:
        stream.watch.streamed = stream.model
    return stream.original(stream.load.edit_stream(weights), *args, **kwargs)


def _report(self: Any) -> dict[str, Any]:
    """What this worker applied, as plain data. Runs in the worker, and never raises."""
    load: SurgicalLoad | None = getattr(self, _LOAD, None)
    if load is None or load.plan is None:
        return {"id": None}
    return {
        "id": load.plan.id,
        "units": load.plan.units,
        "tensors": len(load.plan.edits),
        "milliseconds": load.seconds * 1000,
    }


def _verify_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize_kv_caches(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        with _refusals_logged():
            patches = requested(vllm_config)
            if patches:
                _verify_ranks(patches, self.model_executor.collective_rpc(REPORT_METHOD))
                self.set_weight_version(patches.id)
        return original(self, vllm_config, *args, **kwargs)

    return initialize_kv_caches


def _verify_ranks(patches: PatchSet, reports: list[dict[str, Any]]) -> None:
    """One line for the log once every rank has applied the same thing.

    Raises:
        EngineError: a rank did not.
    """
    for rank, report in enumerate(reports):
        if report["id"] != patches.id:
            raise EngineError(f"rank {rank} serves {report['id']} instead of {patches.id}")
    first, milliseconds = reports[0], max(report["milliseconds"] for report in reports)
    logger.info(
        "vllm-surgery: %s applied: %d units in %d tensors, %.1f ms on %d rank(s)",
        patches.id,
        first["units"],
        first["tensors"],
        milliseconds,
        len(reports),
    )


class _refusals_logged:  # noqa: N801 - reads as a statement where it is used
    """Logs a refusal as one line, before vLLM's processes each print where it came from."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SurgeryError) and not getattr(error, "_logged", False):
            error._logged = True  # type: ignore[attr-defined]
            logger.error("vllm-surgery refuses to serve: %s", error)
