# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery check`: are these patches sound, together, and for this model?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from itertools import islice
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json, open_model, tell
from vllm_surgery.engine.kernels import why_not_served
from vllm_surgery.imports.loading import load_patches
from vllm_surgery.model.conventions import classify_tensor
from vllm_surgery.model.routers import layer_of_router_bias
from vllm_surgery.patch.describe import count, gain_in_words
from vllm_surgery.patch.units import units_in_words
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.planning.planner import LayerMask, Plan, TensorEdit, UnitGains

_SLICES_SHOWN = 8
_TENSORS_SHOWN = 100  # More than a dense model has layers; of experts, each may have its own.


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers, "check", run, "Validate patches; with a model, also guard, ranges, seal and number format."
    )
    parser.add_argument("patches", nargs="+", metavar="PATCH", help="a patch file; several are checked as one set")
    parser.add_argument("--model", metavar="DIR", help="the model's Hugging Face folder")
    parser.add_argument(
        "--slots",
        action="store_true",
        help="check what a slot of a server needs (serve --patch-slots), not what weights can hold",
    )
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    patches = load_patches(args.patches)
    for_slots = args.slots or patches.needs_slots
    model = open_model(args.model) if args.model else None
    plan = check_patches(patches, model, for_slots=for_slots) if model else None
    hindered = why_not_served(model.facts) if model else None
    if args.json:
        _print_json(patches, plan, hindered)
        return 0
    for member in patches.members:
        tell(f"ok: {member.source} is {member.patch.id}")
    if plan is not None and for_slots:
        _print_slot(plan, args.model)
    elif plan is not None:
        _print_plan(plan, args.model)
    if hindered:
        tell(f"note: {args.model} can't be served here: {hindered}")
    return 0


def _print_json(patches: PatchSet, plan: Plan | None, hindered: str | None) -> None:
    members = [{"file": item.source, "id": item.patch.id, "digest": item.patch.digest} for item in patches.members]
    told = {"plan": plan and dataclasses.asdict(plan), "cannot_serve": hindered}
    report = {"ok": True, "id": patches.id, "patches": members, **told}
    print(json.dumps(report, indent=2, default=_digest_of))


def _digest_of(numbers: bytes) -> str:
    """A direction's numbers, by which JSON would only grow long."""
    return hashlib.sha256(numbers).hexdigest()


def _print_slot(plan: Plan, model: str) -> None:
    layers = {(item.kind, item.layer) for item in plan.gains}
    tell(f"in a slot of a server of {model}: {count(plan.units, 'unit')} in {count(len(layers), 'layer')}")
    for item in plan.gains[:_TENSORS_SHOWN]:
        tell(f"  {_layer_in_words(item)}")


def _layer_in_words(item: UnitGains) -> str:
    units = islice(zip(item.indices, item.gains, item.addends, item.projections, strict=True), _SLICES_SHOWN)
    words = ", ".join(f"{index} {gain_in_words(lost or gain, addend)}" for index, gain, addend, lost in units)
    more = len(item.indices) - _SLICES_SHOWN
    return f"{units_in_words(item.kind)} of layer {item.layer}: {words}{f' and {more} more' if more > 0 else ''}"


def _print_plan(plan: Plan, model: str) -> None:
    tell(f"plan for {model}: {count(plan.units, 'unit')} in {count(len(plan.edits), 'tensor')}")
    for edit in plan.edits[:_TENSORS_SHOWN]:
        tell(f"  {_in_words(edit)}")
    if len(plan.edits) > _TENSORS_SHOWN:
        tell(f"  and {count(len(plan.edits) - _TENSORS_SHOWN, 'more tensor')}; --json names each")
    for mask in plan.engine_masks().values():
        tell(f"  {_mask_in_words(mask)}")


def _in_words(edit: TensorEdit) -> str:
    parts = [f"{_slices_in_words(edit)}: {_gains_in_words(edit)}"] if edit.indices else []
    parts += [f"neurons of expert {expert}: {_gains_in_words(inner)}" for expert, inner in edit.inside[:_SLICES_SHOWN]]
    more = len(edit.inside) - _SLICES_SHOWN
    parts += [f"neurons of {count(more, 'more expert')}"] if more > 0 else []
    return f"{edit.tensor} {edit.dtype} {list(edit.shape)}, {'; '.join(parts)}"


def _gains_in_words(edit: TensorEdit) -> str:
    pairs = islice(zip(edit.indices, edit.gains, strict=True), _SLICES_SHOWN)
    slices = [gain_in_words(gain) if edit.axis is None else f"{index} {gain_in_words(gain)}" for index, gain in pairs]
    more = len(edit.indices) - _SLICES_SHOWN
    return f"{', '.join(slices)}{f' and {more} more' if more > 0 else ''}"


def _mask_in_words(mask: LayerMask) -> str:
    shown = ", ".join(map(str, mask.experts[:_SLICES_SHOWN]))
    more = len(mask.experts) - _SLICES_SHOWN
    tail = f" and {more} more" if more > 0 else ""
    return f"the router of layer {mask.layer}, which has no bias, so while serving: experts: {shown}{tail} masked"


def _slices_in_words(edit: TensorEdit) -> str:
    role = classify_tensor(edit.tensor)
    if layer_of_router_bias(edit.tensor) is not None:
        return "experts"
    if role is not None and role.kind == "experts":
        whole = f"expert {role.expert}" if role.expert is not None else "experts"
        return whole if role.expert is None or edit.axis is None else f"neurons of {whole}"
    return "columns" if edit.axis else "rows"
