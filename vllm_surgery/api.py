# SPDX-License-Identifier: Apache-2.0
"""The Python interface: import, plan, bake and swap patches. Only what changes weights needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.imports import convert
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_surgery.client.protocol import SwapReport
    from vllm_surgery.imports.options import ImportOptions
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


def import_patch(
    file: str | Path,
    model: str | Path,
    *,
    form: str | None = None,
    name: str | None = None,
    options: ImportOptions | None = None,
) -> Patch:
    """Makes a patch of a list of experts that another tool wrote: `vllm-surgery import`.

    Args:
        file: an expert profile, a ranking, a drop map or a list of SteerMoE; at most 16 MiB.
        model: the model's folder, whose experts the file names.
        form: which of them it is: ``profile``, ``ranking``, ``drop-map`` or ``steermoe``. None: the file tells.
        name: of the patch. None: the file's.
        options: what the file doesn't say, such as how many of a ranking's experts are taken out.

    Returns:
        The patch, with a guard of the model, and with the file's name, sha256 and form as its provenance.

    Raises:
        UsageError: the file is missing, or something that it doesn't say.
        PatchError: it is in no known form, or wrong in itself.
        MismatchError: the model hasn't these experts, or can't do without them.
    """
    return convert.import_file(Path(file), ModelFolder(model), form=form, name=name, options=options).patch


def export_patch(patch: Patch, form: str, model: str | Path | None = None) -> str:
    """Writes a patch that masks or silences experts in another tool's form: `vllm-surgery export`.

    Args:
        patch: which.
        form: ``profile``, ``ranking``, ``drop-map`` or ``steermoe``.
        model: the model's folder; a ranking needs it.

    Returns:
        The text of the file.

    Raises:
        UsageError: there is no such form, or it needs the model.
        PatchError: the patch can't be said in it.
        MismatchError: the patch is not for the model.
    """
    return convert.export_patch(patch, form, None if model is None else ModelFolder(model))


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
