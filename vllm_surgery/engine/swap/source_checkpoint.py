# SPDX-License-Identifier: Apache-2.0
"""Checkpoint that a served model was loaded from: the only source of original weights while it is served."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import CannotSwapError, SurgeryError
from vllm_surgery.model.checkpoint import ModelFolder, read_header_bytes
from vllm_surgery.weights.tensors import read_tensor

if TYPE_CHECKING:
    import torch


class SourceCheckpoint:
    """Model folder that must not change from now on.

    Args:
        path: the folder.

    Raises:
        UsageError, CheckpointError: it can't be read as safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.folder = ModelFolder(path)
        self._marks = _marks(self.folder)

    def check_unchanged(self) -> None:
        """Checks every file's size, time and header against those when the model was loaded.

        Raises:
            CannotSwapError: a file differs or is gone, so the original weights can't be had any more.
        """
        try:
            now = _marks(ModelFolder(self.folder.path))
        except (OSError, SurgeryError) as error:
            raise CannotSwapError(f"the checkpoint can't be read any more: {error}") from None
        for name in sorted({*self._marks, *now}):
            if self._marks.get(name) != now.get(name):
                raise CannotSwapError(f"{name} is no longer the file that was loaded")

    def tensor(self, name: str) -> torch.Tensor:
        """Tensor as the checkpoint stores it, in memory of its own.

        Raises:
            CheckpointError: it can't be read.
        """
        return read_tensor(self.folder.stored[name])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self.folder.stored)


def _marks(folder: ModelFolder) -> dict[str, tuple[int, int, str]]:
    marks = {}
    for file in folder.files:
        status = file.stat()
        marks[file.name] = (status.st_size, status.st_mtime_ns, hashlib.sha256(read_header_bytes(file)).hexdigest())
    return marks


def local_folder(vllm_config: Any) -> Path:
    """Folder of the files that vLLM loaded: the one that was named, or the Hub's snapshot in the local cache.

    Raises:
        CannotSwapError: they aren't on this machine.
    """
    model_config, load_config = vllm_config.model_config, vllm_config.load_config
    if (path := Path(model_config.model)).is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            model_config.model,
            revision=model_config.revision,
            cache_dir=load_config.download_dir,
            allow_patterns=["*.safetensors", "*.json"],
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        raise CannotSwapError(f"{model_config.model} is not in this machine's Hugging Face cache") from None
    return Path(found)
