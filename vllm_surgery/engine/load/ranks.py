# SPDX-License-Identifier: Apache-2.0
"""Verification of all ranks in the engine's process, before any request is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.requests.core import attach_ledger
from vllm_surgery.engine.requests.planning import SlotPlanner
from vllm_surgery.engine.server_config import logger, requested_patches, weight_patches
from vllm_surgery.engine.settings import Settings
from vllm_surgery.engine.swap.worker import REPORT_METHOD
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_surgery.patch.patch_set import PatchSet


def verify_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `EngineCore._initialize_kv_caches`, the first step after all ranks have their weights."""

    def initialize_kv_caches(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        patches = weight_patches(vllm_config)
        if patches:
            verify_ranks(patches, self.model_executor.collective_rpc(REPORT_METHOD))
            if touchpoints.SET_WEIGHT_VERSION.there:  # Where it isn't, no server swaps, so all its outputs are alike.
                self.set_weight_version(patches.id)
        if count := Settings.of(vllm_config.additional_config).slots:
            default = requested_patches(vllm_config)
            attach_ledger(self, count, SlotPlanner(vllm_config).fill(default, kept=False) if default else None)
            logger.info("vllm-surgery: %d slots for patches; %s is the default", count, default.id)
        return original(self, vllm_config, *args, **kwargs)

    return initialize_kv_caches


def verify_ranks(patches: PatchSet, reports: Sequence[dict[str, Any]]) -> None:
    """Checks that every rank has applied `patches`, and logs one line.

    Raises:
        EngineError: a rank did not.
    """
    for rank, report in enumerate(reports):
        if report["id"] != patches.id:
            raise EngineError(f"rank {rank} serves {report['id'] or 'no patch'} instead of {patches.id}")
    logger.info(
        "vllm-surgery: %s applied: %d unit(s) in %d tensor(s), %.1f ms on %d rank(s)",
        patches.id,
        reports[0]["units"],
        reports[0]["tensors"],
        max(report["milliseconds"] for report in reports),
        len(reports),
    )
