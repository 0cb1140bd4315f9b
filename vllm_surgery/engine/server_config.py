# SPDX-License-Identifier: Apache-2.0
"""Requested patches and model of a server, read from vLLM's own config, which reaches every process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vllm_surgery.engine.settings import Settings
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.model.config import CONFIG_FILE, ModelFacts
from vllm_surgery.patch.patch_set import PatchSet

# Below vLLM's own logger, so that its level, format and handlers apply.
logger = logging.getLogger("vllm.vllm_surgery")


def requested_patches(vllm_config: Any) -> PatchSet:
    """Patches that this server was asked for.

    Raises:
        UsageError, PatchError: the settings or a patch are wrong.
    """
    return Settings.of(vllm_config.additional_config).load()


def weight_patches(vllm_config: Any) -> PatchSet:
    """Requested patches that the weights are to hold: all of them, or none where requests have slots.

    Raises:
        UsageError, PatchError: the settings or a patch are wrong.
    """
    settings = Settings.of(vllm_config.additional_config)
    return PatchSet() if settings.slots else settings.load()


def model_facts(vllm_config: Any) -> ModelFacts:
    """Facts of the served model: from its folder's own config.json, or as vLLM read them from the Hub.

    Raises:
        CheckpointError: the folder's config.json can't be read.
    """
    model_config = vllm_config.model_config
    if (Path(model_config.model) / CONFIG_FILE).is_file():
        return ModelFolder(model_config.model).facts
    config = model_config.hf_config
    revision = getattr(config, "_commit_hash", None) or model_config.revision
    return ModelFacts.from_config(config.to_dict(), model_config.model, revision)
