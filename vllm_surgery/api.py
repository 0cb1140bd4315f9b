# SPDX-License-Identifier: Apache-2.0
"""The Python interface: plan, bake and swap patches that have been read. Only what changes weights needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_surgery.client.protocol import SwapReport
    from vllm_surgery.planning.planner import Plan


def plan(patches: Patch | Iterable[Patch], model: str | Path) -> Plan:
    """Plans patches for the model in a Hugging Face folder: edits of its tensors, as pure data.

    Guard, ranges, number formats and seals are checked on the way, as they are before a server starts.

    Args:
        patches: one, or several that name no unit in common.
        model: the model's folder; only headers and sealed slices are read.

    Raises:
        SurgeryError: the patches are not for this model, or it can't be read; one line.
    """
    return check_patches(patch_set(patches), ModelFolder(model))


def apply_to_checkpoint(
    patches: Patch | Iterable[Patch], model: str | Path, out: str | Path, *, link: bool = True
) -> Path:
    """Writes a copy of a model's Hugging Face folder with patches applied: `vllm-surgery bake`.

    Args:
        patches: one, or several that name no unit in common.
        model: the model's folder; it isn't touched.
        out: where the copy goes; nothing may be there.
        link: whether untouched files may be hard links to the original's.

    Returns:
        `out`.

    Raises:
        SurgeryError: the patches are not for this model, a file can't be read, or `out` can't be written. Nothing is
            left behind.
    """
    from vllm_surgery.offline.bake import bake

    return bake(patch_set(patches), ModelFolder(model), Path(out), link=link).folder


def swap(llm: Any, patches: Patch | Iterable[Patch] = ()) -> SwapReport:
    """Replaces the patches of a running offline engine, without loading the model again.

    Args:
        llm: a `vllm.LLM` that isn't inside one of its calls.
        patches: one, or several that name no unit in common. None of them: the model as its checkpoint has it.

    Returns:
        What is active now, what was before, and how long each step took.

    Raises:
        PatchError, MismatchError, CannotSwapError, ConflictError: refused with the reason; nothing was changed.
        SwapFailedError: it failed on the way and was undone.
        MixedWeightsError: it couldn't be undone; `llm` answers no more.
    """
    from vllm_surgery.engine.offline import swap_patches

    return swap_patches(llm, patch_set(patches))


def patch_set(patches: Patch | Iterable[Patch]) -> PatchSet:
    """One patch or several as a set; in errors each goes by its name.

    Raises:
        PatchError: two of them name the same unit.
    """
    members = [patches] if isinstance(patches, Patch) else patches
    return PatchSet(tuple(SourcedPatch(patch.name, patch) for patch in members))
