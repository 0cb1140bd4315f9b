# SPDX-License-Identifier: Apache-2.0
"""Preflight checks: refusals before any process is started or any weight read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.kernels import missing_kernel
from vllm_surgery.engine.load.compile_cache import check_compile_cache
from vllm_surgery.engine.requests.support import check_support
from vllm_surgery.engine.rescue.support import check_rescue
from vllm_surgery.engine.server_config import model_facts, requested_patches
from vllm_surgery.engine.settings import Settings
from vllm_surgery.errors import CheckpointError, EngineError
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.units import INSIDE, MASK
from vllm_surgery.planning.check import check_patches
from vllm_surgery.planning.planner import Planner

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.patch.patch_set import PatchSet

# Loaders that fill the model without passing checkpoint tensors through `model.load_weights`.
NO_CHECKPOINT_STREAM = {
    "dummy": "makes random weights",
    "sharded_state": "reads weights that vLLM has already sharded and fused",
    "runai_streamer_sharded": "reads weights that vLLM has already sharded and fused",
    "ipc_cache": "shares weights that another process has already processed",
}


def preflight(patches: PatchSet, vllm_config: Any) -> None:
    """Checks that `patches` can be applied, as far as config and local files tell.

    Raises:
        SurgeryError: one line with the reason.
    """
    load_format = str(vllm_config.load_config.load_format)
    if load_format in NO_CHECKPOINT_STREAM:
        reason = NO_CHECKPOINT_STREAM[load_format]
        raise EngineError(f"{patches.id}: --load-format {load_format} {reason}, so no patch can be applied to it")
    if getattr(vllm_config.parallel_config, "enable_ep_weight_filter", False) and _changes_experts(patches):
        raise EngineError(f"{patches.id}: --enable-ep-weight-filter hides experts from ranks, so they can't be edited")
    model = Path(vllm_config.model_config.model)
    if model.is_dir() and any(model.glob("*.safetensors")):
        check_patches(patches, ModelFolder(model))
    else:
        Planner(patches, model_facts(vllm_config))


def preflight_slots(patches: PatchSet, vllm_config: Any) -> None:
    """Checks that `patches` can be in slots, as far as config and local files tell.

    Raises:
        SurgeryError: one line with the reason.
    """
    model = Path(vllm_config.model_config.model)
    if model.is_dir() and any(model.glob("*.safetensors")):
        check_patches(patches, ModelFolder(model), for_slots=True)
    else:
        Planner(patches, model_facts(vllm_config), for_slots=True)


def check_kernels(vllm_config: Any) -> None:
    """Refuses a quantised model that vLLM could load and not compute on this machine, patched or not.

    Raises:
        EngineError: one line that names the kernel.
    """
    if vllm_config.model_config.quantization is None:
        return
    with suppress(CheckpointError):  # Of a model that isn't understood nothing is known.
        if kernel := missing_kernel(model_facts(vllm_config)):
            raise EngineError(f"{vllm_config.model_config.model}: this machine's vLLM has {kernel.reason}")


def _changes_experts(patches: PatchSet) -> bool:
    return any(item.kind in {"experts", INSIDE} and item.gain != MASK for item in patches.assignments())


def preflight_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `EngineArgs.create_engine_config`, through which every way to start vLLM goes.

    From here on the config carries the patches themselves: what was checked is what every process will apply.
    """

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = original(self, *args, **kwargs)
        check_kernels(vllm_config)
        check_compile_cache(vllm_config)
        patches = requested_patches(vllm_config)
        settings = Settings.of(vllm_config.additional_config)
        slots = settings.slots
        if settings.on_loop is not None:
            check_rescue(vllm_config)
        if slots:
            check_support(vllm_config)
        if patches and slots:
            preflight_slots(patches, vllm_config)
        elif patches:
            preflight(patches, vllm_config)
        if patches:
            carried = settings.carrying(patches)
            vllm_config.additional_config = carried.put_into(vllm_config.additional_config)
        return vllm_config

    return create_engine_config
