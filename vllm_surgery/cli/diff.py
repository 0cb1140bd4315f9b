# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery diff`: the patch that turns one checkpoint into another."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json, check_out, open_model, tell
from vllm_surgery.errors import SurgeryError
from vllm_surgery.installed import require
from vllm_surgery.model.gguf_model import GgufModel, is_gguf
from vllm_surgery.model.hub import local_path
from vllm_surgery.patch.describe import count
from vllm_surgery.patch.files import write_patch_and_directions
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.patch.units import IndexRange, merge_ranges
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.offline.diff import Diff
    from vllm_surgery.patch.format import Patch

_EXIT_UNEXPLAINED = 1
_LAYERS_SHOWN = 4


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "diff",
        run,
        "Find the patch that turns one checkpoint into another. "
        "Exit code 1 if there are differences that no patch can say.",
    )
    parser.add_argument("base", metavar="BASE", help="the original model's folder, or .gguf file")
    parser.add_argument("edited", metavar="EDITED", help="the edited model's folder, or .gguf file")
    parser.add_argument("-o", "--out", metavar="PATCH", type=Path, help="where to write the patch; else it is printed")
    parser.add_argument("--name", default="diff", help="the patch's name (%(default)s)")
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    require("diff", "torch")
    given = [local_path(args.base), local_path(args.edited)]
    check_out(args.out, files=given, models=given)
    base, found = _compared(args)
    patch = found.patch(args.name, base, provenance={"source": f"vllm-surgery diff {args.base} {args.edited}"})
    if patch is not None and args.out is not None:
        patch = write_patch_and_directions(patch, args.out)
    if args.json:
        _print_json(found, patch)
    else:
        _print(found, patch, base, args.out)
    return _EXIT_UNEXPLAINED if found.unexplained else 0


def _compared(args: argparse.Namespace) -> tuple[ModelFolder | GgufModel, Diff]:
    from vllm_surgery.offline.diff import diff

    if not is_gguf(args.base) and not is_gguf(args.edited):
        base = open_model(args.base)
        return base, diff(base, open_model(args.edited), progress=True)
    from vllm_surgery.offline.gguf import diff_gguf

    first = GgufModel(Path(args.base))
    return first, diff_gguf(first, GgufModel(Path(args.edited)))


def _print_json(found: Diff, patch: Patch | None) -> None:
    report = {
        "ok": not found.unexplained,
        "id": patch and patch.id,
        "patch": patch and patch.to_data(),
        "gone": {str(layer): list(experts) for layer, experts in found.gone.items()},
        "unexplained": [dataclasses.asdict(item) for item in found.unexplained],
        "notes": found.notes,
    }
    print(json.dumps(report, indent=2))


def _of_gone(found: Diff) -> list[str]:
    """The experts that are gone, in one line that isn't longer than a few layers."""
    if not found.gone:
        return []
    shown = [
        f"layer {layer}: {', '.join(map(str, merge_ranges(IndexRange(index, index) for index in experts)))}"
        for layer, experts in islice(found.gone.items(), _LAYERS_SHOWN)
    ]
    more = [f"and {len(found.gone) - _LAYERS_SHOWN} layers more"] if len(found.gone) > _LAYERS_SHOWN else []
    number = count(sum(map(len, found.gone.values())), "expert")
    layers = count(len(found.gone), "layer")
    return [f"{number} of {layers} gone, masked by the patch: {'; '.join([*shown, *more])}"]


def _of_plan(patch: Patch | None, base: ModelFolder | GgufModel) -> list[str]:
    """Why the patch can't be applied to the original, where it can't. Of a GGUF file each gain has been tried."""
    if patch is None or isinstance(base, GgufModel):
        return []
    try:
        check_patches(PatchSet((SourcedPatch(patch.name, patch),)), base)
    except SurgeryError as error:
        return [f"the patch can't be applied to the original: {error}"]
    return []


def _print(found: Diff, patch: Patch | None, base: ModelFolder | GgufModel, out: Path | None) -> None:
    """The patch alone goes to stdout, so that it can be piped; what is said about it goes to stderr."""
    for item in found.unexplained:
        tell(f"no patch can say: {item.tensor} {item.reason} ({count(item.numbers, 'number')})", aside=True)
    for note in [*_of_gone(found), *found.notes, *_of_plan(patch, base)]:
        tell(f"note: {note}", aside=True)
    if patch is None:
        tell("no unit differs" if found.unexplained else "the checkpoints hold the same weights", aside=True)
    elif out is None:
        print(patch.to_yaml(), end="")
    else:
        units = [count(len(found.gains), "neuron") if found.gains else ""]
        units.append(count(len(found.shared), "shared neuron") if found.shared else "")
        columns = sum(len(lost.columns) for lost in found.lost.values())
        units.append(f"{count(columns, 'column')} without a direction" if columns else "")
        units.append(count(len(found.experts), "expert") if found.experts else "")
        inside = len(found.expert_neurons)
        units.append(f"{count(inside, 'neuron')} inside experts" if inside else "")
        units.append(count(len(found.masks), "masked expert") if found.masks else "")
        tell(f"found: {out} is {patch.id}, {' and '.join(filter(None, units))}")
