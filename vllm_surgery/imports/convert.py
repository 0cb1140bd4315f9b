# SPDX-License-Identifier: Apache-2.0
"""From a file in somebody's form to a patch for a model, and from a patch to such a file."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import MismatchError, PatchError, UsageError
from vllm_surgery.imports.foreign import read_foreign
from vllm_surgery.imports.forms import form_called, form_of
from vllm_surgery.imports.options import ImportOptions, Written
from vllm_surgery.model.config import ModelFacts
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import NO_PATCH, PatchSet, SourcedPatch
from vllm_surgery.patch.units import ALL, MASK
from vllm_surgery.planning.check import check_patches
from vllm_surgery.planning.guard import guard_of

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.imports.experts import ExpertLists, ExpertOp
    from vllm_surgery.imports.foreign import ForeignFile
    from vllm_surgery.imports.forms import Form
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.patch.units import Assignment

_LONGEST_NAME = 64
_MOST_UNCHECKED = 4_096  # Experts of one edit and layer, where no model says that there are as many; none known has.
_EDIT_PLACE = re.compile(r"edits\[0\]\.experts\.([0-9]+)")


@dataclass(frozen=True)
class Imported:
    """A file that became a patch.

    Attributes:
        form: which it had.
        notes: what is worth knowing about what became of it, each in one line.
    """

    patch: Patch
    form: Form
    notes: tuple[str, ...]


def import_file(
    path: Path,
    model: ModelFolder,
    *,
    form: str | None = None,
    name: str | None = None,
    options: ImportOptions | None = None,
) -> Imported:
    """Reads a file in another tool's form as a patch for a model, with a guard of that model.

    Args:
        path: of the file.
        model: whose experts it names; layers, experts and what its router needs are checked.
        form: the word of the form; None where the file itself is to tell.
        name: of the patch; None takes the file's.
        options: what the file doesn't say.

    Raises:
        UsageError: the file is missing, or something that it doesn't say.
        PatchError: the file is in no known form, or wrong in itself.
        MismatchError: the model hasn't these experts, or can't do without them.
    """
    file = read_foreign(path)
    chosen = form_of(file, form)
    counts = _counts(model)
    if not counts:
        raise MismatchError(file.source, "", f"names routed experts, and {model.path} has none")
    lists = chosen.read(file, options or ImportOptions(), counts)
    patch = _patch(file, chosen, lists, model, name)
    _check(file, patch, model)
    return Imported(patch, chosen, (*lists.notes, *_claims(lists, model)))


def _counts(model: ModelFolder) -> dict[int, int]:
    anatomy = model.anatomy
    layers = sorted({*anatomy.experts, *anatomy.routers})
    return {layer: count for layer in layers if (count := anatomy.experts_in(layer))}


def _patch(file: ForeignFile, form: Form, lists: ExpertLists, model: ModelFolder, name: str | None) -> Patch:
    says = {"says": lists.says} if lists.says else {}
    data: dict[str, Any] = {
        "version": 1,
        "name": name_of_file(file.name) if name is None else name,
        "description": f"Imported from {form.title}.",
        "model": guard_of(model),
        "edits": [{"op": lists.op, "experts": {str(layer): [*experts] for layer, experts in lists.layers.items()}}],
        "provenance": {
            "source": "vllm-surgery import",
            "file": file.name,
            "sha256": file.sha256,
            "form": form.word,
            **says,
        },
    }
    return Patch.from_data(data, file.source)


def name_of_file(file: str) -> str:
    """A patch's name from a file's: its own, as far as patches may be called that."""
    stem = re.sub(r"[^a-z0-9._-]+", "-", file.rsplit(".", 1)[0].lower()).strip("-._")
    return "imported" if stem in {"", NO_PATCH} else stem[:_LONGEST_NAME]


def _check(file: ForeignFile, patch: Patch, model: ModelFolder) -> None:
    """Plans the patch; its places are called as the file's reader knows them."""
    try:
        check_patches(PatchSet((SourcedPatch(file.source, patch),)), model)
    except MismatchError as error:
        found = _EDIT_PLACE.fullmatch(error.place)
        raise MismatchError(file.source, f"layer {found[1]}" if found else error.place, error.detail) from None


def _claims(lists: ExpertLists, model: ModelFolder) -> list[str]:
    """Where the file says that it is for another model than the folder says that it is."""
    facts, notes = model.facts, []
    for key, actual in (("model", facts.base), ("model_revision", facts.revision)):
        said = lists.says.get(key)
        if isinstance(said, str) and actual is not None and said != actual:
            notes.append(f"the file says that it is for {key} {said}; this model is {actual}")
    return notes


def export_patch(patch: Patch, form: str, model: ModelFolder | None = None, *, source: str = "") -> str:
    """A patch in another tool's form.

    Args:
        patch: whose edits are masks of experts alone, or silence experts alone.
        form: the word of the form.
        model: the model that it is for; its layers and names are written where the form has a place for them.
        source: what to call the patch in errors.

    Raises:
        UsageError: there is no such form, or it needs the model.
        PatchError: the patch can't be said in it.
        MismatchError: the patch is not for the model.
    """
    return form_called(form).write(_written(patch, model, source or patch.name))


def ratio_of_ranking(patch: Patch, model: ModelFolder) -> float:
    """The ratio that goes with a ranking of `export_patch`.

    Raises:
        PatchError: it can't be said as one.
    """
    from vllm_surgery.imports.ascend import ratio_of

    return ratio_of(_written(patch, model, patch.name))


def _written(patch: Patch, model: ModelFolder | None, source: str) -> Written:
    items = sorted(patch.assignments(source), key=lambda item: item.layer)
    ops = {_op(item) for item in items}
    if len(ops) > 1:
        raise PatchError(source, "", "masks some experts and silences others; these forms do the one or the other")
    if model is not None:
        check_patches(PatchSet((SourcedPatch(source, patch),)), model)
    counts = {} if model is None else _counts(model)
    layers: dict[int, set[int]] = defaultdict(set)
    for item in items:
        layers[item.layer] |= _experts(item, counts)
    facts = ModelFacts() if model is None else model.facts
    return Written(
        source,
        ops.pop(),
        {layer: tuple(sorted(experts)) for layer, experts in layers.items()},
        counts,
        patch.model.base or facts.base,
        patch.model.revision or facts.revision,
    )


def _op(item: Assignment) -> ExpertOp:
    if item.kind != "experts":
        raise PatchError(item.source, item.place, f"edits {item.kind}, and these forms only name routed experts")
    if item.gain == MASK:
        return "mask"
    if item.gain == 0:
        return "zero"
    raise PatchError(item.source, item.place, f"scales experts by {item.gain:g}; these forms only take experts out")


def _experts(item: Assignment, counts: dict[int, int]) -> set[int]:
    if item.layer not in counts and (item.indices == ALL or item.count(0) > _MOST_UNCHECKED):
        raise UsageError(f"{item.source}: {item.place}: give --model, which says how many experts there are")
    return {*item.resolve(counts.get(item.layer, 0))}
