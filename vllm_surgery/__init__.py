# SPDX-License-Identifier: Apache-2.0
"""Edit a served language model's neurons and experts from a small text file.

Nothing here imports vLLM or torch: a laptop without either can read, check and compare patches.
"""

from importlib.metadata import version

from vllm_surgery.api import apply_to_checkpoint, export_patch, import_patch, plan, swap
from vllm_surgery.errors import (
    CannotSwapError,
    CheckpointError,
    ConflictError,
    EngineError,
    MismatchError,
    MixedWeightsError,
    PatchError,
    SurgeryError,
    SwapFailedError,
    UsageError,
)
from vllm_surgery.imports.options import ImportOptions
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet
from vllm_surgery.planning.planner import LayerMask, Plan, TensorEdit

__version__ = version("vllm-surgery")

__all__ = [
    "CannotSwapError",
    "CheckpointError",
    "ConflictError",
    "EngineError",
    "ImportOptions",
    "LayerMask",
    "MismatchError",
    "MixedWeightsError",
    "ModelFolder",
    "Patch",
    "PatchError",
    "PatchSet",
    "Plan",
    "SurgeryError",
    "SwapFailedError",
    "TensorEdit",
    "UsageError",
    "apply_to_checkpoint",
    "export_patch",
    "import_patch",
    "load_patch",
    "plan",
    "swap",
]
